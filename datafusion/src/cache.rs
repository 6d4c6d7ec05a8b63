//! What tables are read through.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use datafusion::common::DataFusionError;
use flightcache_proto::action::{Bounds, SourcesInfo, TableInfo};
use flightcache_proto::{Error, ErrorKind, Result, ScanStats, Share};
use futures::future::BoxFuture;
use futures::stream::BoxStream;

/// A cache, wherever it is.
pub trait Cache: fmt::Debug + Send + Sync + 'static {
    /// What a URL holds now: an object, a prefix or a glob.
    fn table(&self, url: &str) -> BoxFuture<'static, Result<TableInfo>>;

    /// The same, as the store has it now.
    fn table_now(&self, url: &str) -> BoxFuture<'static, Result<TableInfo>> {
        self.table(url)
    }

    /// What may be read. Nothing, unless it says.
    fn sources(&self) -> BoxFuture<'static, Result<SourcesInfo>> {
        Box::pin(std::future::ready(Ok(SourcesInfo::default())))
    }

    /// Least and greatest values of a column of one object, by row group. Unsupported, unless it says.
    fn bounds(&self, url: &str, _column: &str) -> BoxFuture<'static, Result<Bounds>> {
        let error = Error::new(ErrorKind::Unsupported, format!("{url}: bounds of row groups are not told"));
        Box::pin(std::future::ready(Err(error)))
    }

    /// The rows of a share, in order. Its row groups are of one object. Dropping the stream stops the work.
    fn read(&self, share: Share, figures: Figures) -> BoxStream<'static, Result<RecordBatch>>;
}

/// What serving a share took so far.
#[derive(Clone, Debug, Default)]
pub struct Figures(Arc<Mutex<ScanStats>>);

impl Figures {
    /// Replaces the figures by later ones.
    pub fn set(&self, stats: ScanStats) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// The latest figures.
    pub fn get(&self) -> ScanStats {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error of the cache as one of `DataFusion`, which keeps its kind: it is the source.
pub fn to_datafusion(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
