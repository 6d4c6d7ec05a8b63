//! `wire`: what serving cached columns costs, against other servers and clients, each end in a process of its own.
//!
//! ```text
//!  wire (asks in turn, reads both ends' CPU) ─ process ┬─ end, server  (flightcache, arrow-rs, raw TCP) ─┐
//!                                                      ├─ end, reader  (ours, arrow-rs, raw TCP) ────────┤ TCP
//!                                                      └─ pyarrow.py   (server, reader) ─────────────────┘
//! ```
//!
//! Reading order: `tables` (what is served), `process` and `end` (who serves and who reads), `whole`, `small` and `memory` (what
//! is measured), `link` (over what).

mod arrow_rs;
mod end;
mod link;
mod memory;
mod process;
mod raw;
mod reader;
mod show;
mod small;
mod tables;
mod whole;

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use flightcache_server::settings::Residency;

pub use self::end::{EndOptions, run_end};
use self::link::Link;
use self::process::Launcher;
use self::tables::{Kind, Table};
use crate::output::{self, Output};

/// What is measured: whole tables over the loopback, unless something else is named.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Generated tables.
    #[arg(long, value_name = "KIND", value_delimiter = ',', default_value = "numeric,string,mixed")]
    data: Vec<Kind>,
    /// Rows of each generated table; without it as many as take 256 MiB of Arrow.
    #[arg(long)]
    rows: Option<usize>,
    /// lineitem of TPC-H as a Parquet file, measured as well.
    #[arg(long, value_name = "FILE")]
    lineitem: Option<PathBuf>,
    /// Rows of the batches of servers that are not ours.
    #[arg(long, value_delimiter = ',', default_value = "8192,65536")]
    batch_rows: Vec<usize>,
    /// Rounds in which each side has its turn; medians are shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bytes that a side reads in its turn, by reading the table as often as they take.
    #[arg(long, default_value = "1GiB")]
    bytes: ByteSize,
    /// How chunks rest in our server.
    #[arg(long, default_value = "arrow")]
    residency: Residency,
    /// Python with pyarrow; without it `$FLIGHTCACHE_VENV/bin/python`, or python3.
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Measure whole tables, also when something else is named.
    #[arg(long)]
    tables: bool,
    /// Measure answers of 1 KiB: requests a second with 1, 16 and 128 under way, of one client.
    #[arg(long)]
    small: bool,
    /// Measure what a full server accounts for, against its resident set.
    #[arg(long)]
    rss: bool,
    /// Measure whole tables over a link of this rate, such as 2.5gbit, between two network namespaces (Linux, as root).
    #[arg(long, value_name = "RATE")]
    link: Option<String>,
    /// Where the figures go.
    #[command(flatten)]
    output: Output,
}

/// Measures, prints tables, and writes the report.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let mut report = output::report("Flightcache: the wire");
    let launcher = Launcher::new(options.python.as_deref())?;
    report.notes = notes(&options);
    report.notes.extend(launcher.missing().map(ToOwned::to_owned));
    report.notes.iter().for_each(|note| println!("{note}"));
    let directory = tempfile::tempdir()?;
    let tables = tables::make(&options, directory.path())?;
    let over_loopback = options.tables || !(options.small || options.rss || options.link.is_some());
    if over_loopback || options.link.is_some() {
        let link = match &options.link {
            None => None,
            Some(rate) => match Link::up(rate) {
                Ok(link) => Some(link),
                Err(error) => {
                    println!("no link: {error}");
                    report.notes.push(format!("--link was left out: {error}"));
                    None
                }
            },
        };
        for table in &tables {
            let served = table.as_served(&options.batch_rows).await?;
            println!("{}: {} rows, {} as Arrow", table.name, served.rows, ByteSize(served.bytes).display().iec());
            if over_loopback {
                let points = whole::measure(&launcher, &options, table, &served, None)?;
                println!("{}", show::points(&points));
                report.wire.points.extend(points);
            }
            if let Some(link) = &link {
                let points = whole::measure(&launcher, &options, table, &served, Some(link))?;
                println!("{}", show::points(&points));
                report.wire.points.extend(points);
            }
        }
    }
    if options.small {
        report.wire.rates = small::measure(&launcher, &options, &Table::small(directory.path())?).await?;
        println!("{}", show::rates(&report.wire.rates));
    }
    if options.rss {
        report.wire.memory = memory::measure(&launcher, &tables).await?;
        println!("{}", show::memory(&report.wire.memory));
    }
    options.output.write(&report)
}

fn notes(options: &Options) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let congestion = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    vec![
        format!(
            "{cores} cores for both ends together; TCP congestion control {}; chunks in our server rest as {}.",
            congestion.trim(),
            tables::name_of(options.residency)
        ),
        format!(
            "In its turn a side reads about {} over one connection, one stream at a time; the sides take turns, and medians of {} rounds are shown. \
             A table's bytes are those it takes as Arrow IPC, the same for every side. Tables are made with a fixed seed.",
            options.bytes.display().iec(),
            options.rounds.max(1)
        ),
        "arrow-rs is tonic's server with FlightDataEncoder and arrow-flight's FlightClient: once with its defaults (messages of 2 MiB, HTTP/2 frames \
         of 16 KiB), once with messages of 1 MiB, once with frames of 1 MiB as well. pyarrow's server sends a RecordBatchStream of a table in memory. \
         raw TCP is as many bytes, written 1 MiB at a time from memory, and read into 1 MiB. What travels compressed or as Parquet still counts as \
         the Arrow it stands for."
            .to_owned(),
    ]
}

/// The one in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
