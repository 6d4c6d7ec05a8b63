//! The cache as the tables of one statement see it: in this process, without a network and without an encoding.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use flightcache_datafusion::{Cache, Figures};
use flightcache_proto::action::{Bounds, TableInfo};
use flightcache_proto::{Error, Result, Share, Ticket};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, Stream, StreamExt as _};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::admin::ScanMeter;
use crate::parquet::SLICE_ROWS;
use crate::scan::{Batch, Engine};

/// What one statement reads. Each URL is looked up once: all mentions of it are of one version.
#[derive(Clone)]
pub(super) struct LocalCache {
    engine: Arc<Engine>,
    /// Where reading, decoding and filtering go on: not on the threads that operators keep busy.
    io: Handle,
    /// What all of it takes.
    meter: Arc<ScanMeter>,
    tables: Arc<Mutex<HashMap<String, TableInfo>>>,
}

impl LocalCache {
    pub(super) fn new(engine: Arc<Engine>, io: Handle, meter: Arc<ScanMeter>) -> Self {
        Self { engine, io, meter, tables: Arc::default() }
    }

    /// Forgets what was looked up, some of which turned out overwritten; the next statement asks the store.
    pub(super) fn forget(&self) {
        let tables = std::mem::take(&mut *self.tables());
        for (url, table) in &tables {
            self.engine.forget_table(url, table);
        }
    }

    fn tables(&self) -> MutexGuard<'_, HashMap<String, TableInfo>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
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
            let known = cache.tables().get(&url).cloned();
            if let Some(table) = known {
                return Ok(table);
            }
            let (engine, meter, asked) = (Arc::clone(&cache.engine), Arc::clone(&cache.meter), url.clone());
            let asking = AbortOnDropHandle::new(cache.io.spawn(async move { engine.table(&asked, false, &meter).await }));
            let table = asking.await.unwrap_or_else(|_| Err(Error::internal(format!("{url}: planning gave up"))))?;
            // Another mention may have been first: its version is the one.
            Ok(cache.tables().entry(url).or_insert(table).clone())
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
