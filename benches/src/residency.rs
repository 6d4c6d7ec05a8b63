//! `residency`: the same scans against caches that keep arrays, Parquet bytes, or both, from too small to more than enough.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::Args;
use comfy_table::{CellAlignment, Table};
use flightcache::{Client, ScanBuilder};
use flightcache_server::Settings;
use flightcache_server::settings::Residency;
use futures::TryStreamExt as _;
use object_store::ObjectStore;

use crate::cpu::cpu_time;
use crate::output::{self, Output};
use crate::place::{self, Distance, SOURCE};
use crate::report::ResidencyPoint;
use crate::slow_store::SlowStore;

/// What is measured.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where lineitem of TPC-H lies: a directory, or a file:// or `s3://bucket/prefix/` URL (settings from AWS_* variables).
    #[arg(long, value_name = "PLACE")]
    pub data: String,
    /// Capacities, as shares of what the scans' columns take as arrays.
    #[arg(long, value_name = "SHARE", value_delimiter = ',', default_value = "0.1,0.2,0.5,1,2")]
    pub shares: Vec<f64>,
    /// Rounds of all scans that are measured, after one that is not.
    #[arg(long, default_value_t = 3)]
    pub rounds: u16,
    /// Read all of it, unfiltered, instead of what the queries read.
    #[arg(long)]
    pub full: bool,
    /// How far away the store is.
    #[command(flatten)]
    pub distance: Distance,
    /// Where the figures go.
    #[command(flatten)]
    pub output: Output,
}

/// A scan of lineitem, as a query of TPC-H would make it.
struct Scan {
    query: &'static str,
    /// All of them, if there are none.
    columns: &'static [&'static str],
    filter: Option<&'static str>,
}

const FULL: [Scan; 1] = [Scan { query: "one that reads everything", columns: &[], filter: None }];
const SCANS: [Scan; 5] = [
    Scan {
        query: "Q1",
        columns: &["l_returnflag", "l_linestatus", "l_quantity", "l_extendedprice", "l_discount", "l_tax"],
        filter: Some("l_shipdate <= DATE '1998-09-02'"),
    },
    Scan {
        query: "Q6",
        columns: &["l_extendedprice", "l_discount"],
        filter: Some(
            "l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1995-01-01' AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24",
        ),
    },
    Scan {
        query: "Q12",
        columns: &["l_orderkey", "l_shipmode"],
        filter: Some(
            "l_shipmode IN ('MAIL', 'SHIP') AND l_commitdate < l_receiptdate AND l_shipdate < l_commitdate AND l_receiptdate >= DATE '1994-01-01' AND l_receiptdate < DATE '1995-01-01'",
        ),
    },
    Scan { query: "Q18", columns: &["l_orderkey", "l_quantity"], filter: None },
    Scan {
        query: "Q19",
        columns: &["l_partkey", "l_quantity", "l_extendedprice", "l_discount"],
        filter: Some("l_shipinstruct = 'DELIVER IN PERSON' AND l_shipmode IN ('AIR', 'REG AIR')"),
    },
];

const FORMS: [(Residency, &str); 3] = [(Residency::Arrow, "arrow"), (Residency::Parquet, "parquet"), (Residency::Auto, "auto")];

/// A cache, and what one round of scans came to.
struct Running {
    server: flightcache_server::Server,
    client: Client,
    store: Arc<SlowStore>,
    form: &'static str,
    scans: &'static [Scan],
    rounds: Vec<Round>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Round {
    elapsed: Duration,
    cpu: Duration,
    hits: u64,
    lookups: u64,
    store_requests: u64,
    store_bytes: u64,
}

impl Options {
    fn scans(&self) -> &'static [Scan] {
        if self.full { &FULL } else { &SCANS }
    }
}

/// Measures, prints a table, and writes the report.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let data = place::open(&options.data)?;
    let mut report = output::report("Flightcache: forms of residency");
    let all = arrays_bytes(&options, &data).await?;
    report.notes = vec![
        format!(
            "Data: lineitem in {}; {}. As arrays, the columns of the scans take {}.",
            options.data,
            options.distance.describe(),
            ByteSize(all).display().iec(),
        ),
        format!(
            "A round is a scan as each of {} makes it, read to its end by a client in this process, over loopback. One round is not measured; \
             then the caches take turns for {} rounds, of which the medians are shown. CPU is this process's: server, client and the store's client.",
            options.scans().iter().map(|scan| scan.query).collect::<Vec<_>>().join(", "),
            options.rounds,
        ),
        "arrow: chunks are decoded once. parquet: they rest as the bytes they were read as, and are decoded for each request. auto: as bytes, \
         and as arrays as well where there is room, first those that filters touch or that are read most."
            .to_owned(),
    ];
    report.notes.iter().for_each(|note| println!("{note}"));
    for &share in &options.shares {
        let capacity = ByteSize((all as f64 * share) as u64);
        report.residencies.extend(measure(&options, &data, share, capacity).await?);
    }
    println!("{}", table(&report.residencies));
    options.output.write(&report)
}

/// What the scans' columns take as arrays.
async fn arrays_bytes(options: &Options, data: &Arc<dyn ObjectStore>) -> Result<u64, Box<dyn std::error::Error>> {
    let mut running = start(options, data, (Residency::Arrow, "arrow"), ByteSize::tib(1)).await?;
    running.round().await?;
    let bytes = running.client.stats().await?.resident_arrow_bytes;
    running.server.shutdown().await;
    if bytes == 0 { Err(format!("{}: there is no lineitem", options.data).into()) } else { Ok(bytes) }
}

async fn start(
    options: &Options,
    data: &Arc<dyn ObjectStore>,
    (residency, form): (Residency, &'static str),
    capacity: ByteSize,
) -> Result<Running, Box<dyn std::error::Error>> {
    let store = options.distance.apply(Arc::clone(data));
    let settings = Settings { residency, capacity, ..Settings::default() };
    let server = place::serve_with(Arc::clone(&store) as Arc<dyn ObjectStore>, settings).await?;
    let client = Client::connect(&format!("grpc://{}", server.flight_addr())).await?;
    Ok(Running { server, client, store, form, scans: options.scans(), rounds: Vec::new() })
}

async fn measure(
    options: &Options,
    data: &Arc<dyn ObjectStore>,
    share: f64,
    capacity: ByteSize,
) -> Result<Vec<ResidencyPoint>, Box<dyn std::error::Error>> {
    let mut caches = Vec::new();
    for form in FORMS {
        let mut running = start(options, data, form, capacity).await?;
        // Twice: what is read again is treated otherwise than what is read once.
        running.round().await?;
        running.round().await?;
        caches.push(running);
    }
    for turn in 0..usize::from(options.rounds.max(1)) {
        for at in 0..caches.len() {
            let running = &mut caches[(turn + at) % FORMS.len()];
            let round = running.round().await?;
            running.rounds.push(round);
        }
    }
    let mut points = Vec::new();
    for running in caches {
        let stats = running.client.stats().await?;
        let median = |value: fn(&Round) -> f64| {
            let mut values: Vec<f64> = running.rounds.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        points.push(ResidencyPoint {
            form: running.form.to_owned(),
            capacity_share: share,
            capacity_bytes: capacity.as_u64(),
            round_ms: median(|round| round.elapsed.as_secs_f64() * 1e3),
            cpu_ms: median(|round| round.cpu.as_secs_f64() * 1e3),
            hit_rate: median(|round| round.hits as f64 / round.lookups.max(1) as f64),
            store_requests: median(|round| round.store_requests as f64),
            store_bytes: median(|round| round.store_bytes as f64),
            arrow_bytes: stats.resident_arrow_bytes,
            parquet_bytes: stats.resident_parquet_bytes,
        });
        running.server.shutdown().await;
    }
    Ok(points)
}

impl Running {
    async fn round(&mut self) -> Result<Round, flightcache::Error> {
        self.store.take_counts();
        let (started, cpu) = (Instant::now(), cpu_time());
        let mut round = Round::default();
        for scan in self.scans {
            let (hits, lookups) = self.read(scan).await?;
            round.hits += hits;
            round.lookups += lookups;
        }
        (round.elapsed, round.cpu) = (started.elapsed(), cpu_time().saturating_sub(cpu));
        (round.store_requests, round.store_bytes) = self.store.take_counts();
        Ok(round)
    }

    async fn read(&self, scan: &Scan) -> Result<(u64, u64), flightcache::Error> {
        let builder: ScanBuilder = self.client.scan(format!("{SOURCE}**/lineitem*.parquet"));
        let builder = if scan.columns.is_empty() { builder } else { builder.columns(scan.columns.iter().copied()) };
        let builder = if let Some(filter) = scan.filter { builder.filter(filter) } else { builder };
        let mut batches = builder.in_one_request().send().await?;
        while batches.try_next().await?.is_some() {}
        let stats = batches.stats();
        Ok((stats.chunks_hit, stats.chunks_hit + stats.chunks_missed))
    }
}

fn table(points: &[ResidencyPoint]) -> Table {
    let arrow: BTreeMap<u64, f64> =
        points.iter().filter(|point| point.form == FORMS[0].1).map(|point| (point.capacity_bytes, point.round_ms)).collect();
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "capacity\nof arrays",
        "",
        "form",
        "round, ms",
        "arrow's\n/ this",
        "CPU, ms",
        "hit rate",
        "S3\nrequests",
        "S3 bytes",
        "as arrays",
        "as bytes",
    ]);
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let size = |bytes: u64| ByteSize(bytes).display().iec().to_string();
    for point in points {
        let ratio = arrow.get(&point.capacity_bytes).map_or(f64::NAN, |arrow| arrow / point.round_ms);
        table.add_row([
            point.capacity_share.to_string(),
            size(point.capacity_bytes),
            point.form.clone(),
            format!("{:.0}", point.round_ms),
            format!("{ratio:.2}"),
            format!("{:.0}", point.cpu_ms),
            format!("{:.1} %", point.hit_rate * 100.0),
            format!("{:.0}", point.store_requests),
            size(point.store_bytes as u64),
            size(point.arrow_bytes),
            size(point.parquet_bytes),
        ]);
    }
    table
}
