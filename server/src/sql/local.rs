//! The cache as the tables of one statement see it: in this process, without a network and without an encoding.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use flightcache_datafusion::{Cache, Figures};
use flightcache_proto::action::{Bounds, TableInfo};
use flightcache_proto::{Error, ErrorKind, Result, Share, Ticket};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, Stream, StreamExt as _};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::admin::ScanMeter;
use crate::parquet::SLICE_ROWS;
use crate::scan::{Batch, Engine};

/// What one statement reads. Each URL is looked up once, and URLs that overlap have to agree: all mentions of an object are of one
/// version.
#[derive(Clone)]
pub(super) struct LocalCache {
    engine: Arc<Engine>,
    /// Where reading, decoding and filtering go on: not on the threads that operators keep busy.
    io: Handle,
    /// What all of it takes.
    meter: Arc<ScanMeter>,
    looked_up: Arc<Mutex<LookedUp>>,
}

#[derive(Default)]
struct LookedUp {
    tables: HashMap<String, TableInfo>,
    /// The version of each of their objects.
    versions: HashMap<String, Option<String>>,
}

impl LocalCache {
    pub(super) fn new(engine: Arc<Engine>, io: Handle, meter: Arc<ScanMeter>) -> Self {
        Self { engine, io, meter, looked_up: Arc::default() }
    }

    /// Forgets what was looked up, some of which turned out overwritten; the next statement asks the store.
    pub(super) fn forget(&self) {
        let looked_up = std::mem::take(&mut *self.looked_up());
        for (url, table) in &looked_up.tables {
            self.engine.forget_table(url, table);
        }
    }

    /// Takes a table up, unless another mention was first: then that one's version is the one.
    fn keep(&self, url: String, table: TableInfo) -> Result<TableInfo> {
        let mut looked_up = self.looked_up();
        let LookedUp { tables, versions } = &mut *looked_up;
        let kept = match tables.entry(url) {
            Entry::Occupied(kept) => return Ok(kept.get().clone()),
            Entry::Vacant(place) => place.insert(table).clone(),
        };
        for object in &kept.objects {
            let known = versions.entry(object.url.clone()).or_insert_with(|| object.version.clone());
            if *known != object.version {
                let message = format!("{}: overwritten while the statement was planned", object.url);
                drop(looked_up);
                self.forget();
                return Err(Error::new(ErrorKind::Changed, message));
            }
        }
        Ok(kept)
    }

    fn looked_up(&self) -> MutexGuard<'_, LookedUp> {
        self.looked_up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for LocalCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalCache")
    }
}

impl Cache for LocalCache {
    fn table(&self, url: &str) -> BoxFuture<'static, Result<TableInfo>> {
        let (cache, url) = (self.clone(), url.to_owned());
        async move {
            let known = cache.looked_up().tables.get(&url).cloned();
            if let Some(table) = known {
                return Ok(table);
            }
            let (engine, meter, asked) = (Arc::clone(&cache.engine), Arc::clone(&cache.meter), url.clone());
            let ask = async move {
                let (mut table, more) = engine.table(&asked, false, &meter).await?;
                more.for_each(|more| table.extend(more));
                Ok(table)
            };
            let asking = AbortOnDropHandle::new(cache.io.spawn(ask));
            let table = asking.await.unwrap_or_else(|_| Err(Error::internal(format!("{url}: planning gave up"))))?;
            cache.keep(url, table)
        }
        .boxed()
    }

    fn bounds(&self, url: &str, column: &str) -> BoxFuture<'static, Result<Bounds>> {
        let (engine, io, url, column) = (Arc::clone(&self.engine), self.io.clone(), url.to_owned(), column.to_owned());
        async move {
            let asked = url.clone();
            let asking = AbortOnDropHandle::new(io.spawn(async move { engine.bounds(&asked, &column).await }));
            asking.await.unwrap_or_else(|_| Err(Error::internal(format!("{url}: planning gave up"))))
        }
        .boxed()
    }

    fn read(&self, share: Share, figures: Figures) -> BoxStream<'static, Result<RecordBatch>> {
        let engine = Arc::clone(&self.engine);
        let counted = Counted { meter: Arc::default(), whole: Arc::clone(&self.meter) };
        let batches = async_stream::try_stream! {
            let meter = &counted.meter;
            let plan = engine.plan(&Ticket::Share(share), meter).await?;
            figures.set(meter.snapshot());
            let mut batches = std::pin::pin!(engine.execute(plan, Arc::clone(meter)));
            while let Some(batch) = batches.next().await {
                // What a batch shows stays accounted until the next is asked for; operators that keep it account for it themselves.
                let Batch { rows, held: _held } = batch?;
                figures.set(meter.snapshot());
                // Few rows at a time stay in the processor's caches from one operator to the next.
                for start in (0..rows.num_rows()).step_by(SLICE_ROWS) {
                    yield rows.slice(start, SLICE_ROWS.min(rows.num_rows() - start));
                }
            }
            figures.set(meter.snapshot());
        };
        OnRuntime { runtime: self.io.clone(), stream: batches.boxed() }.boxed()
    }
}

/// Adds a read's figures to its statement's, however it ends.
struct Counted {
    meter: Arc<ScanMeter>,
    whole: Arc<ScanMeter>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.whole.add(&self.meter.snapshot());
    }
}

/// A stream whose tasks are started on a given runtime, whoever polls it.
struct OnRuntime<T> {
    runtime: Handle,
    stream: BoxStream<'static, T>,
}

impl<T> Stream for OnRuntime<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let this = &mut *self;
        let _entered = this.runtime.enter();
        this.stream.poll_next_unpin(cx)
    }
}

#[cfg(test)]
mod tests {
    use flightcache_proto::action::TableObject;
    use flightcache_proto::{Node, SlotMap};

    use super::*;
    use crate::admin::Metrics;
    use crate::object::Sources;
    use crate::settings::Settings;

    #[tokio::test]
    async fn urls_that_overlap_have_to_agree() {
        let map = SlotMap::single(1, Node::default());
        let engine = Engine::new(&Settings::default(), Sources::default(), Arc::new(Metrics::new().unwrap()), map);
        let cache = LocalCache::new(engine, Handle::current(), Arc::default());
        let table = |version: &str| TableInfo {
            objects: vec![TableObject { url: "s3://lake/a".into(), version: Some(version.into()), ..TableObject::default() }],
            ..TableInfo::default()
        };
        cache.keep("s3://lake/a".into(), table("1")).unwrap();
        cache.keep("s3://lake/".into(), table("1")).unwrap();
        let kept = cache.keep("s3://lake/".into(), table("2")).unwrap();
        assert_eq!(kept, table("1"), "what was looked up first is the one");
        let error = cache.keep("s3://lake/*".into(), table("2")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Changed, "{error}");
        cache.keep("s3://lake/*".into(), table("2")).unwrap();
    }
}
