//! Files of a native plan as objects of the cache.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::common::Result;
use datafusion::datasource::listing::PartitionedFile;
use flightcache_proto::action::{TableInfo, TableObject};
use flightcache_proto::{Error, ErrorKind};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

use crate::cache::{Cache, to_datafusion};
use crate::table::Described;

type Asked = Shared<BoxFuture<'static, Result<Arc<Resolved>, Error>>>;

/// The files of one scan, each looked up when it is first opened: whatever is read of it is of one version.
#[derive(Debug)]
pub(crate) struct Routed {
    cache: Arc<dyn Cache>,
    /// URL of the plan's object store.
    store: String,
    asked: Mutex<HashMap<String, Asked>>,
}

/// An object of the cache that a file is.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) object: Arc<TableObject>,
    /// Its own columns.
    pub(crate) table: Arc<Described>,
}

/// What the cache calls a file.
pub(super) fn url(store: &str, file: &PartitionedFile) -> String {
    // Of `file:///`, whose host is empty, two stay.
    format!("{}/{}", store.strip_suffix('/').unwrap_or(store), file.path())
}

impl Routed {
    pub(super) fn new(cache: Arc<dyn Cache>, store: &str) -> Arc<Self> {
        Arc::new(Self { cache, store: store.to_owned(), asked: Mutex::default() })
    }

    /// URL of the plan's object store.
    pub(crate) fn store(&self) -> &str {
        &self.store
    }

    /// The object that a file is, of the version that was planned with.
    pub(super) async fn resolve(&self, file: &PartitionedFile) -> Result<Arc<Resolved>> {
        let url = url(&self.store, file);
        let asked = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let ask = || ask(Arc::clone(&self.cache), url.clone(), file.clone()).boxed().shared();
            asked.entry(url.clone()).or_insert_with(ask).clone()
        };
        asked.await.map_err(|error| {
            // Whoever executes the plan again may have more luck.
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&url);
            to_datafusion(error)
        })
    }
}

async fn ask(cache: Arc<dyn Cache>, url: String, file: PartitionedFile) -> Result<Arc<Resolved>, Error> {
    let mut info = cache.table(&url).await?;
    if !is_of(&file, &info) {
        // The server may not have looked for a while.
        info = cache.table_now(&url).await?;
    }
    if !is_of(&file, &info) {
        return Err(Error::new(ErrorKind::Changed, format!("{url}: it is not the version that was planned with")));
    }
    let object = info.objects.first().cloned().map(Arc::new);
    let object = object.ok_or_else(|| Error::internal(format!("{url}: no object")))?;
    let table = Described::read(&url, info).and_then(|table| table.first_columns(object.columns as usize));
    Ok(Arc::new(Resolved { table: Arc::new(table.map_err(|e| Error::internal(e.strip_backtrace()))?), object }))
}

/// Whether an object is the version of a file that was planned with, as far as the plan says.
fn is_of(file: &PartitionedFile, info: &TableInfo) -> bool {
    let [object] = &info.objects[..] else { return false };
    let meta = &file.object_meta;
    let tags = (meta.e_tag.as_deref(), object.version.as_deref().and_then(|version| version.strip_prefix("etag:")));
    // Weak tags are no version.
    let is_tagged = |tag: &str| !tag.is_empty() && !tag.starts_with("W/");
    meta.size == object.bytes && !matches!(tags, (Some(planned), Some(now)) if is_tagged(planned) && planned != now)
}

/// The row groups of a range of a file's bytes: those that begin in it, as native scans have it.
pub(super) fn row_groups(object: &TableObject, range: Option<&Range<i64>>) -> Vec<u32> {
    let offsets = object.offsets.iter().enumerate();
    let within = |offset: &u64| range.is_none_or(|range| i64::try_from(*offset).is_ok_and(|at| range.contains(&at)));
    offsets.filter(|(_, offset)| within(offset)).map(|(group, _)| group as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_agree_as_far_as_they_are_known() {
        let file = |size, tag: Option<&str>| {
            let mut file = PartitionedFile::new("t.parquet", size);
            file.object_meta.e_tag = tag.map(ToOwned::to_owned);
            file
        };
        let info = |bytes, version: Option<&str>| TableInfo {
            objects: vec![TableObject { bytes, version: version.map(ToOwned::to_owned), ..TableObject::default() }],
            ..TableInfo::default()
        };
        for (file, info, agrees) in [
            (file(7, Some("\"a\"")), info(7, Some("etag:\"a\"")), true),
            (file(7, Some("\"a\"")), info(7, Some("etag:\"b\"")), false),
            (file(8, Some("\"a\"")), info(7, Some("etag:\"a\"")), false),
            (file(7, None), info(7, Some("etag:\"b\"")), true),
            (file(7, Some("W/\"a\"")), info(7, Some("id:3")), true),
            (file(7, Some("\"a\"")), info(7, None), true),
            (file(7, None), TableInfo::default(), false),
        ] {
            assert_eq!(is_of(&file, &info), agrees, "{file:?} {info:?}");
        }
    }

    #[test]
    fn row_groups_belong_where_they_begin() {
        let object = TableObject { offsets: vec![4, 100, 220], ..TableObject::default() };
        assert_eq!(row_groups(&object, None), [0, 1, 2]);
        assert_eq!(row_groups(&object, Some(&(0..100))), [0]);
        assert_eq!(row_groups(&object, Some(&(100..221))), [1, 2]);
        assert_eq!(row_groups(&object, Some(&(221..900))), [0; 0]);
    }
}
