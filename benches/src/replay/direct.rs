//! No cache: `DataFusion`, in this process, reads the store.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use futures::TryStreamExt as _;
use object_store::ObjectStore;
use url::Url;

use super::side::{Answer, AskError, Read, Side, StoreCounts};
use crate::place::SOURCE;
use crate::slow_store::SlowStore;

/// Each request has a `SessionContext` of its own, with nothing cached; the store's connection pool is shared.
#[derive(Debug)]
pub struct Direct {
    store: Arc<SlowStore>,
}

impl Direct {
    pub fn new(store: Arc<SlowStore>) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Side for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    async fn ask(&self, read: &Read) -> Result<Answer, AskError> {
        let started = Instant::now();
        let store = Arc::new(self.store.view());
        let context = SessionContext::new();
        context.register_object_store(&Url::parse(SOURCE)?, Arc::clone(&store) as Arc<dyn ObjectStore>);
        let mut rows = 0;
        for object in &read.objects {
            // Any name will do.
            let options = ParquetReadOptions { file_extension: "", ..ParquetReadOptions::default() };
            let mut frame = context.read_parquet(format!("{SOURCE}{}", object.name), options).await?;
            if let Some(columns) = &object.columns {
                frame = frame.select_columns(&columns.iter().map(String::as_str).collect::<Vec<_>>())?;
            }
            let mut batches = frame.execute_stream().await?;
            while let Some(batch) = batches.try_next().await? {
                rows += batch.num_rows() as u64;
            }
        }
        let fetch = store.reading();
        Ok(Answer { rows, fetch, decode: started.elapsed().saturating_sub(fetch), ..Answer::default() })
    }

    async fn empty(&self, _objects: &[String]) -> Result<(), AskError> {
        Ok(())
    }

    async fn take_counts(&self) -> Result<StoreCounts, AskError> {
        Ok(self.store.take_counts().into())
    }

    async fn stop(&self) {}
}
