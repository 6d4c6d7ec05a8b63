//! A Delta table in `DataFusion`, read through the cache: its log from S3 as always, its Parquet files from the cache.
//!
//! ```sh
//! cargo run --release --manifest-path examples/delta/Cargo.toml -- grpc://127.0.0.1:50051 s3://lake/trips/ "SELECT count(*) FROM trips"
//! ```
//!
//! The table has the name of its folder; the store is that of `AWS_ENDPOINT_URL` and so on.

use std::sync::Arc;

use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::SessionContext;
use deltalake_core::logstore::{LogStore, LogStoreFactory, ObjectStoreRef, StorageConfig, default_logstore, logstore_factories};
use deltalake_core::{DeltaResult, DeltaTableBuilder};
use object_store::aws::AmazonS3Builder;
use url::Url;

struct S3;

impl LogStoreFactory for S3 {
    fn with_options(
        &self,
        table: ObjectStoreRef,
        bucket: ObjectStoreRef,
        url: &Url,
        options: &StorageConfig,
    ) -> DeltaResult<Arc<dyn LogStore>> {
        Ok(default_logstore(table, bucket, url, options))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(server), Some(url), Some(sql)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("which server, which table, and which statement?".into());
    };
    let url = Url::parse(&url)?;
    let name = url.path().trim_matches('/').rsplit('/').next().unwrap_or_default().to_owned();

    logstore_factories().insert(Url::parse("s3://")?, Arc::new(S3));
    let store = Arc::new(AmazonS3Builder::from_env().with_url(url.as_str()).build()?);
    let table = DeltaTableBuilder::from_url(url.clone())?.with_storage_backend(store, url).load().await?;

    // Whatever scans Parquet files of the cache's sources has them from the cache.
    let cache = flightcache::Client::connect(&server).await?;
    let state = SessionStateBuilder::new().with_default_features();
    let state = flightcache::datafusion::with_rules(state, Some(cache.reroute().await?));
    let ctx = SessionContext::new_with_state(state.build());
    ctx.register_table(name, table.table_provider().await?)?;
    table.update_datafusion_session(&ctx.state())?;
    ctx.sql(&sql).await?.show().await?;
    Ok(())
}
