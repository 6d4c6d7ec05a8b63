//! Tables of the cache in `DataFusion`: schema and statistics come from the server, filters and projections go there.
//!
//! ```sh
//! cargo run --release -p flightcache --features datafusion --example tables -- grpc://127.0.0.1:50051 s3://lake/trips/
//! ```

use datafusion::prelude::{SessionContext, col, lit};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(server), Some(trips)) = (arguments.next(), arguments.next()) else {
        return Err("which server, and which objects?".into());
    };
    let cache = flightcache::Client::connect(&server).await?;
    let ctx = SessionContext::new();
    ctx.register_table("trips", cache.table(&trips).await?)?;

    // From statistics, without a scan.
    ctx.sql("SELECT count(*) AS trips FROM trips").await?.show().await?;
    // Two columns of the rows that pass come over the wire.
    ctx.sql("SELECT payer, avg(fare) AS fare FROM trips WHERE fare > 20 GROUP BY payer ORDER BY payer").await?.show().await?;
    // The same without SQL.
    ctx.table("trips").await?.filter(col("fare").gt(lit(100.0)))?.limit(0, Some(5))?.show().await?;
    Ok(())
}
