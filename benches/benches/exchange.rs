//! Small answers a second: one request each by `DoGet`, and many over one `DoExchange`, over TCP and a Unix socket.
//!
//! Server and client share this process and its two threads. An answer is 16 rows of 8 numbers, resident: 1 KiB.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use flightcache::{Client, ScanRequest};
use flightcache_server::settings::SourceSettings;
use flightcache_server::{Server, Settings};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: u64 = 200_000;
const GROUP_ROWS: usize = 100_000;
const COLUMNS: usize = 8;
const ROWS_A_READ: u64 = 16;
/// Messages, or single requests, under way at a time.
const IN_FLIGHT: usize = 16;

/// The first row of the read with this number: anywhere.
fn first_row(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (ROWS - ROWS_A_READ)
}

fn checked(batch: &RecordBatch, first: u64) {
    let numbers = batch.column(0).as_any().downcast_ref::<Int64Array>();
    let numbers = numbers.expect("numbers were written");
    assert_eq!((numbers.len() as u64, numbers.value(0), numbers.value(15)), (ROWS_A_READ, first as i64, first as i64 + 15));
}

/// Warm-up and measured time: short where `cargo test` only sees whether it runs.
fn times() -> (Duration, Duration) {
    let is_measured = std::env::args().any(|arg| arg == "--bench");
    let measured = if is_measured { Duration::from_secs(3) } else { Duration::from_millis(60) };
    (measured / 6, measured)
}

/// Runs tasks that read again and again; returns reads a second.
async fn measure<F: Future<Output = ()> + Send + 'static>(tasks: usize, task: impl Fn(Arc<Tally>, u64) -> F) -> f64 {
    let tally = Arc::new(Tally::default());
    let tasks: Vec<_> = (0..tasks as u64).map(|at| tokio::spawn(task(Arc::clone(&tally), at << 32))).collect();
    let (warm_up, measured) = times();
    tokio::time::sleep(warm_up).await;
    let (before, started) = (tally.reads.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(measured).await;
    let rate = (tally.reads.load(Ordering::Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
    tally.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("a read failed");
    }
    rate
}

#[derive(Default)]
struct Tally {
    reads: AtomicU64,
    stop: AtomicBool,
}

impl Tally {
    fn goes_on(&self) -> bool {
        self.reads.fetch_add(1, Ordering::Relaxed);
        !self.stop.load(Ordering::Relaxed)
    }
}

async fn do_get(client: &Client, url: &str) -> f64 {
    measure(IN_FLIGHT, |tally, mut number| {
        let (client, url) = (client.clone(), url.to_owned());
        async move {
            while tally.goes_on() {
                number += 1;
                let first = first_row(number);
                let scan = client.scan(&url).rows(first..first + ROWS_A_READ).in_one_request();
                let batches = scan.send().await.expect("a server").collect().await.expect("rows");
                checked(&batches[0], first);
            }
        }
    })
    .await
}

async fn exchange(client: &Client, url: &str, batch: usize) -> f64 {
    let exchange = client.exchange().await.expect("a server");
    exchange.set_max_batch(batch);
    let template = exchange.template(ScanRequest::new(url)).expect("a template");
    measure(IN_FLIGHT * batch, |tally, mut number| {
        let (exchange, template) = (exchange.clone(), template.clone());
        async move {
            while tally.goes_on() {
                number += 1;
                let first = first_row(number);
                let rows: Arc<[u64]> = (first..first + ROWS_A_READ).collect();
                checked(&exchange.rows(&template, rows).await.expect("rows"), first);
            }
        }
    })
    .await
}

fn write(path: &std::path::Path) {
    let column = |column: usize| -> (String, ArrayRef) {
        (format!("c{column}"), Arc::new((0..ROWS as i64).map(|row| row << (3 * column)).collect::<Int64Array>()))
    };
    let batch = RecordBatch::try_from_iter((0..COLUMNS).map(column)).expect("columns of one length");
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(GROUP_ROWS)).build();
    let file = std::fs::File::create(path).expect("a file");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a writer");
    writer.write(&batch).expect("rows are written");
    writer.close().expect("the file is closed");
}

async fn run() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().canonicalize().expect("a path");
    write(&path.join("t.parquet"));
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let sources = vec![SourceSettings { url: format!("file://{}/", path.display()), ..SourceSettings::default() }];
    let listen_unix = Some(path.join("cache.sock"));
    let settings = Settings { listen: any, admin: any, listen_unix, sources, ..Settings::default() };
    let server = Server::start(&settings).await.expect("a server");
    let url = format!("file://{}/t.parquet", path.display());
    let locations = [
        ("TCP", format!("grpc://{}", server.flight_addr())),
        ("Unix socket", format!("grpc+unix://{}", path.join("cache.sock").display())),
    ];
    println!("{:<12} {:>28} {:>14}", "over", "by", "answers/s");
    for (over, location) in locations {
        let client = Client::connect(&location).await.expect("a server");
        let rate = do_get(&client, &url).await;
        println!("{over:<12} {:>28} {rate:>14.0}", format!("DoGet, {IN_FLIGHT} in flight"));
        for batch in [1, 16, 64] {
            let rate = exchange(&client, &url, batch).await;
            println!("{over:<12} {:>28} {rate:>14.0}", format!("DoExchange, {batch} a message"));
        }
    }
    assert!(server.shutdown().await, "requests were still under way");
}

fn main() {
    // Tests are run without it: they only see that this compiles.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(run());
}
