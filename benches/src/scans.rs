//! Kinds of reads (whole, projected, filtered), direct, cold and warm, interleaved; medians and ratios.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::Args;
use comfy_table::{CellAlignment, Table};
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use flightcache::{Client, ScanStats};
use flightcache_server::admin::Metrics;
use flightcache_server::object::{Freshness, Sources};
use flightcache_server::{Server, Settings};
use futures::TryStreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use url::Url;

use crate::data;
use crate::slow_store::SlowStore;

#[derive(Args)]
pub struct Options {
    /// Rows of the data set.
    #[arg(long, default_value_t = 400_000)]
    rows: usize,
    /// Latency added to each request to the store.
    #[arg(long, default_value = "30ms", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// Bandwidth of the store's link, a second; 0 for no bound.
    #[arg(long, default_value = "300MB")]
    bandwidth: ByteSize,
    /// Rounds; the median is shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Put the data in this bucket of a real S3 (settings from AWS_* variables) instead of a temporary directory.
    #[arg(long)]
    bucket: Option<String>,
}

struct Query {
    name: &'static str,
    columns: Option<&'static [&'static str]>,
    filter: Option<&'static str>,
}

const QUERIES: [Query; 4] = [
    Query { name: "whole file", columns: None, filter: None },
    Query { name: "2 of 20 columns", columns: Some(&["id", "m3"]), filter: None },
    Query { name: "station = 'station-042'", columns: Some(&["id", "m1", "m2"]), filter: Some("station = 'station-042'") },
    Query { name: "point on the sorted id", columns: None, filter: Some("id = 314159") },
];

#[derive(Clone, Copy, Default)]
struct Sample {
    elapsed: Duration,
    rows: usize,
    requests: u64,
    bytes: u64,
    stats: ScanStats,
}

pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let (inner, place): (Arc<dyn ObjectStore>, String) = match &options.bucket {
        Some(bucket) => (Arc::new(AmazonS3Builder::from_env().with_bucket_name(bucket).build()?), format!("bucket {bucket}")),
        None => (Arc::new(LocalFileSystem::new_with_prefix(directory.path())?), "a local directory".to_owned()),
    };
    let file = data::parquet(options.rows)?;
    println!("{} rows, 20 columns, {} of Snappy Parquet in {place}", options.rows, ByteSize(file.len() as u64));
    let bandwidth = match options.bandwidth.as_u64() {
        0 => "no bound on bandwidth".to_owned(),
        _ => format!("{} a second", options.bandwidth),
    };
    println!("injected in front of it: {:?} a request, {bandwidth}", options.latency);
    inner.put(&Path::from("scans.parquet"), file.into()).await?;

    let bandwidth = Some(options.bandwidth.as_u64()).filter(|bandwidth| *bandwidth > 0);
    let store = Arc::new(SlowStore::new(inner, options.latency, bandwidth));
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = Settings { listen: any, admin: any, ..Settings::default() };
    let sources =
        Sources::default().with_store("s3://bench/", Arc::clone(&store) as Arc<dyn ObjectStore>, Freshness::default())?;
    let server = Server::start_with(&settings, sources, Arc::new(Metrics::new()?)).await?;
    let client = Client::connect(&format!("grpc://{}", server.flight_addr())).await?;

    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "read",
        "rows",
        "direct",
        "cold",
        "warm",
        "cold / direct",
        "direct / warm",
        "warm hits",
        "store: direct",
        "store: cold",
        "store: warm",
    ]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    for query in &QUERIES {
        let (mut direct, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.rounds.max(1) {
            direct.push(read_directly(&store, query).await?);
            client.evict(URL).await?;
            cold.push(read_cached(&client, &store, query).await?);
            warm.push(read_cached(&client, &store, query).await?);
        }
        let (direct, cold, warm) = (median(direct), median(cold), median(warm));
        if direct.rows != cold.rows || direct.rows != warm.rows {
            return Err(format!("{}: {} rows directly, {} cold, {} warm", query.name, direct.rows, cold.rows, warm.rows).into());
        }
        let ms = |sample: &Sample| format!("{:.1} ms", sample.elapsed.as_secs_f64() * 1e3);
        let asked = |sample: &Sample| format!("{} / {}", sample.requests, ByteSize(sample.bytes));
        let ratio = |a: &Sample, b: &Sample| format!("{:.2}", a.elapsed.as_secs_f64() / b.elapsed.as_secs_f64());
        table.add_row([
            query.name.to_owned(),
            warm.rows.to_string(),
            ms(&direct),
            ms(&cold),
            ms(&warm),
            ratio(&cold, &direct),
            ratio(&direct, &warm),
            format!("{}/{}", warm.stats.chunks_hit, warm.stats.chunks_hit + warm.stats.chunks_missed),
            asked(&direct),
            asked(&cold),
            asked(&warm),
        ]);
    }
    println!("{table}");
    println!(
        "direct: DataFusion reading the store in this process; cold, warm: through a server, over loopback TCP; medians of {}",
        options.rounds.max(1)
    );
    println!("store: requests / bytes that reached it");
    drop(client);
    server.shutdown().await;
    Ok(())
}

const URL: &str = "s3://bench/scans.parquet";

async fn read_directly(store: &Arc<SlowStore>, query: &Query) -> Result<Sample, Box<dyn std::error::Error>> {
    store.take_counts();
    let started = Instant::now();
    let context = SessionContext::new();
    context.register_object_store(&Url::parse("s3://bench/")?, Arc::clone(store) as Arc<dyn ObjectStore>);
    let mut frame = context.read_parquet(URL, ParquetReadOptions::default()).await?;
    if let Some(filter) = query.filter {
        let filter = frame.parse_sql_expr(filter)?;
        frame = frame.filter(filter)?;
    }
    if let Some(columns) = query.columns {
        frame = frame.select_columns(columns)?;
    }
    let mut batches = frame.execute_stream().await?;
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows();
    }
    let (requests, bytes) = store.take_counts();
    Ok(Sample { elapsed: started.elapsed(), rows, requests, bytes, stats: ScanStats::default() })
}

async fn read_cached(client: &Client, store: &SlowStore, query: &Query) -> Result<Sample, Box<dyn std::error::Error>> {
    store.take_counts();
    let started = Instant::now();
    let mut scan = client.scan(URL);
    if let Some(columns) = query.columns {
        scan = scan.columns(columns.iter().copied());
    }
    if let Some(filter) = query.filter {
        scan = scan.filter(filter);
    }
    let mut batches = scan.send().await?;
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows();
    }
    let elapsed = started.elapsed();
    let (requests, bytes) = store.take_counts();
    Ok(Sample { elapsed, rows, requests, bytes, stats: batches.stats() })
}

fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by_key(|sample| sample.elapsed);
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}
