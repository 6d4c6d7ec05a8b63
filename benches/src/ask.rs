//! `ask`: scans over and over, by one client that stays, of running servers: rows compared, every answer told.
//!
//! What servers that come, go and are killed do to a client shows in its answers, one JSON line each ([`Told`]): how long it took and
//! stood still, whether it failed, whether its rows were the right ones, and what the client has done so far to get them.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::{Array as _, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::FileReader;
use clap::Args;
use flightcache::{Client, ScanBuilder};
use futures::TryStreamExt as _;
use futures::future::join_all;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::load::{self, Arrivals};
use crate::paced::paced;

/// The pause after an error: a server that refuses at once is not to be asked in a tight loop.
const PAUSE: Duration = Duration::from_millis(50);

/// What is asked, and how often.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A running server, such as `grpc://127.0.0.1:50051`. The slot map names the others of its cluster.
    #[arg(long)]
    pub server: String,
    /// Object, prefix ending in `/`, or glob that a request reads; of several, one after the other.
    #[arg(long = "url", value_name = "URL", required = true)]
    pub urls: Vec<String>,
    /// Columns of each request; without it all.
    #[arg(long, value_delimiter = ',')]
    pub columns: Option<Vec<String>>,
    /// Filter of each request, as SQL.
    #[arg(long)]
    pub filter: Option<String>,
    /// Arrow IPC file with the rows that each answer must have, in their order; of one URL. Without it rows are counted only.
    #[arg(long)]
    pub expect: Option<PathBuf>,
    /// Requests at a time; each waits for its answer before the next.
    #[arg(long, default_value = "1", conflicts_with = "rate")]
    pub at_a_time: NonZeroUsize,
    /// Requests a second instead, at equal intervals, whether or not earlier ones were answered.
    #[arg(long, value_parser = load::rate)]
    pub rate: Option<f64>,
    /// How long; without it until Ctrl-C or SIGTERM. What is under way then is still answered.
    #[arg(long, value_parser = load::duration)]
    pub duration: Option<Duration>,
}

/// What became of a request. The client's counts are those of all its requests so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Told {
    /// When it was due, in seconds since 1970.
    pub due_s: f64,
    /// From then to its last row, or its error.
    pub took_ms: f64,
    /// The longest time in which no rows came.
    pub stood_ms: f64,
    /// Rows that came.
    pub rows: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// In what its rows are not those that were expected.
    pub wrong: Option<String>,
    /// [`Client::failed_requests`].
    pub failed_requests: u64,
    /// [`Client::hedged_requests`].
    pub hedged_requests: u64,
    /// [`Client::route_lookups`].
    pub route_lookups: u64,
}

/// Asks until told to stop, and writes a line for each answer to standard output.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let asking = Arc::new(Asking::new(&options).await?);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let is_over = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&is_over);
    tokio::spawn(async move {
        let _ = tokio::select! { told = terminate.recv() => told, told = interrupt.recv() => told };
        end.store(true, Ordering::Relaxed);
    });
    let (sender, mut told) = mpsc::unbounded_channel();
    let asked = tokio::spawn(ask(asking, options, is_over, sender));
    while let Some(told) = told.recv().await {
        println!("{}", serde_json::to_string(&told)?);
    }
    Ok(asked.await??)
}

async fn ask(
    asking: Arc<Asking>,
    options: Options,
    is_over: Arc<AtomicBool>,
    told: mpsc::UnboundedSender<Told>,
) -> Result<(), crate::paced::Stopped> {
    let duration = options.duration.unwrap_or(Duration::MAX);
    let started = Instant::now();
    if let Some(rate_per_s) = options.rate {
        let mut due = paced(started, Arrivals::Constant.due(rate_per_s, duration, 0));
        let mut outstanding = JoinSet::new();
        while !is_over.load(Ordering::Relaxed)
            && let Some(due) = due.next().await?
        {
            let (asking, told) = (Arc::clone(&asking), told.clone());
            // Fails only when nobody listens any more.
            outstanding.spawn(async move { _ = told.send(asking.ask(due).await) });
            while outstanding.try_join_next().is_some() {}
        }
        outstanding.join_all().await;
        return Ok(());
    }
    let workers = (0..options.at_a_time.get()).map(|_| async {
        while !is_over.load(Ordering::Relaxed) && started.elapsed() < duration {
            let answer = asking.ask(Instant::now()).await;
            let has_failed = answer.error.is_some();
            let _ = told.send(answer);
            if has_failed {
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
    join_all(workers).await;
    Ok(())
}

/// The client, its scans, and the rows to be expected.
struct Asking {
    client: Client,
    scans: Vec<ScanBuilder>,
    asked: AtomicUsize,
    expected: Option<RecordBatch>,
    /// Since 1970, and now.
    epoch: (Duration, Instant),
}

impl Asking {
    async fn new(options: &Options) -> Result<Self, Box<dyn std::error::Error>> {
        let client = Client::connect(&options.server).await?;
        let mut scans: Vec<_> = options.urls.iter().map(|url| client.scan(url)).collect();
        for scan in &mut scans {
            if let Some(columns) = &options.columns {
                *scan = scan.clone().columns(columns);
            }
            if let Some(filter) = &options.filter {
                *scan = scan.clone().filter(filter);
            }
        }
        let expected = match (&options.expect, &scans[..]) {
            (None, _) => None,
            (Some(path), [scan]) => {
                let expected = read(path).map_err(|error| format!("{}: {error}", path.display()))?;
                Some(of_types(&expected, &scan.clone().limit(0).send().await?.schema())?)
            }
            (Some(_), _) => return Err("rows can be expected of one URL only".into()),
        };
        let epoch = (SystemTime::now().duration_since(UNIX_EPOCH)?, Instant::now());
        Ok(Self { client, scans, asked: AtomicUsize::new(0), expected, epoch })
    }

    async fn ask(&self, due: Instant) -> Told {
        let mut told = Told { due_s: (self.epoch.0 + (due - self.epoch.1)).as_secs_f64(), ..Told::default() };
        if let Err(error) = self.answer(&mut told).await {
            told.error = Some(error.to_string());
        }
        told.took_ms = due.elapsed().as_secs_f64() * 1e3;
        told.failed_requests = self.client.failed_requests();
        told.hedged_requests = self.client.hedged_requests();
        told.route_lookups = self.client.route_lookups();
        told
    }

    async fn answer(&self, told: &mut Told) -> flightcache::Result<()> {
        let mut last = Instant::now();
        let mut came = |told: &mut Told| {
            told.stood_ms = told.stood_ms.max(last.elapsed().as_secs_f64() * 1e3);
            last = Instant::now();
        };
        let scan = &self.scans[self.asked.fetch_add(1, Ordering::Relaxed) % self.scans.len()];
        let mut answer = scan.clone().send().await.inspect_err(|_| came(told))?;
        loop {
            let batch = answer.try_next().await;
            came(told);
            told.bytes = answer.stats().bytes;
            let Some(batch) = batch? else { break };
            if let Some(expected) = &self.expected {
                told.wrong = told.wrong.take().or_else(|| difference(expected, told.rows, &batch));
            }
            told.rows += batch.num_rows() as u64;
        }
        if let Some(expected) = self.expected.as_ref().map(|expected| expected.num_rows() as u64)
            && told.rows != expected
        {
            told.wrong.get_or_insert_with(|| format!("{} rows instead of {expected}", told.rows));
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<RecordBatch, Box<dyn std::error::Error>> {
    let file = FileReader::try_new_buffered(std::fs::File::open(path)?, None)?;
    let schema = file.schema();
    Ok(concat_batches(&schema, &file.collect::<Result<Vec<_>, _>>()?)?)
}

/// The same rows, of the types that a server announces.
fn of_types(rows: &RecordBatch, announced: &SchemaRef) -> Result<RecordBatch, Box<dyn std::error::Error>> {
    let names = |schema: &SchemaRef| schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
    if names(&rows.schema()) != names(announced) {
        return Err(format!("the answers' columns are {:?}, expected are {:?}", names(announced), names(&rows.schema())).into());
    }
    let columns = rows.columns().iter().zip(announced.fields()).map(|(column, field)| cast(column, field.data_type()));
    Ok(RecordBatch::try_new(Arc::clone(announced), columns.collect::<Result<_, _>>()?)?)
}

/// Where a batch that begins at row `at` differs from what was expected there.
fn difference(expected: &RecordBatch, at: u64, batch: &RecordBatch) -> Option<String> {
    let (at, rows) = (at as usize, batch.num_rows());
    if at + rows > expected.num_rows() {
        return Some(format!("more than {} rows", expected.num_rows()));
    }
    let expected = expected.slice(at, rows);
    let differs = |(column, expected): &(_, _)| column != expected;
    let column = batch.columns().iter().zip(expected.columns()).position(|pair| differs(&pair))?;
    let (came, expected) = (batch.column(column), expected.column(column));
    let row = (0..rows).find(|&row| came.slice(row, 1) != expected.slice(row, 1))?;
    Some(format!("row {}: another value of column {}", at + row, batch.schema().field(column).name()))
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;
    use object_store::memory::InMemory;
    use object_store::{ObjectStore, ObjectStoreExt as _};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::{data, place};

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn options(args: &[&str]) -> Options {
        <Cli as clap::Parser>::parse_from([&["ask", "--url", "s3://bench/t.parquet"], args].concat()).options
    }

    /// The lines of a run against a server of 20,000 rows, of which one value is changed in what is expected.
    async fn told(args: &[&str], change: Option<usize>) -> Result<Vec<Told>, String> {
        let file = data::parquet(20_000).unwrap();
        let rows = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(file.clone())).unwrap().build().unwrap();
        let rows = rows.collect::<Result<Vec<_>, _>>().unwrap();
        let mut rows = concat_batches(&rows[0].schema(), &rows).unwrap();
        if let Some(row) = change {
            let other = rows.slice(row + 1, 1);
            let (before, after) = (rows.slice(0, row), rows.slice(row + 1, rows.num_rows() - row - 1));
            rows = concat_batches(&rows.schema(), [&before, &other, &after]).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let expect = directory.path().join("expected.arrow");
        let mut writer =
            arrow::ipc::writer::FileWriter::try_new_buffered(std::fs::File::create(&expect).unwrap(), &rows.schema()).unwrap();
        writer.write(&rows).unwrap();
        writer.finish().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        store.put(&"t.parquet".into(), file.into()).await.unwrap();
        let server = place::serve(store, ByteSize::gib(1)).await.unwrap();
        let location = format!("grpc://{}", server.flight_addr());
        let options = options(&[&["--server", &location, "--expect", expect.to_str().unwrap()], args].concat());
        let asking = Arc::new(Asking::new(&options).await.map_err(|error| error.to_string())?);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        ask(asking, options, Arc::default(), sender).await.unwrap();
        server.shutdown().await;
        let mut lines = Vec::new();
        while let Some(line) = receiver.recv().await {
            lines.push(line);
        }
        Ok(lines)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn right_answers_are_told() {
        let lines = told(&["--duration", "300ms", "--at-a-time", "2"], None).await.unwrap();
        assert!(lines.len() >= 2, "{lines:?}");
        for line in &lines {
            assert_eq!((line.rows, &line.error, &line.wrong, line.failed_requests), (20_000, &None, &None, 0));
            assert!(line.bytes > 20_000 * 8 * 19 && line.stood_ms > 0.0 && line.stood_ms <= line.took_ms, "{line:?}");
        }
        assert!(lines.iter().all(|line| line.route_lookups == 1), "the map is asked for once");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn requests_are_due_at_a_rate() {
        let lines = told(&["--duration", "500ms", "--rate", "20"], None).await.unwrap();
        assert_eq!(lines.len(), 10);
        let mut due: Vec<f64> = lines.iter().map(|line| line.due_s).collect();
        due.sort_by(f64::total_cmp);
        assert!(due.windows(2).all(|pair| (pair[1] - pair[0] - 0.05).abs() < 1e-3), "{due:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_wrong_value_is_found() {
        let lines = told(&["--duration", "1ms"], Some(12_345)).await.unwrap();
        assert_eq!(lines[0].wrong.as_deref(), Some("row 12345: another value of column id"));
        assert_eq!(lines[0].error, None);
        let lines = told(&["--duration", "1ms", "--filter", "id < 100"], None).await.unwrap();
        assert_eq!(lines[0].wrong.as_deref(), Some("100 rows instead of 20000"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn other_columns_than_expected_are_refused() {
        let error = told(&["--columns", "id"], None).await.unwrap_err();
        assert!(error.contains("the answers' columns are [\"id\"]"), "{error}");
    }
}
