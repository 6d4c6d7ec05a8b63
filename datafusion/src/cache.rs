//! What tables are read through.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use datafusion::common::DataFusionError;
use flightcache_proto::action::TableInfo;
use flightcache_proto::{Error, Result, ScanStats, Share};
use futures::future::BoxFuture;
use futures::stream::BoxStream;

/// A cache, wherever it is.
pub trait Cache: fmt::Debug + Send + Sync + 'static {
    /// What a URL holds now: an object, a prefix or a glob.
    fn table(&self, url: &str) -> BoxFuture<'static, Result<TableInfo>>;

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
