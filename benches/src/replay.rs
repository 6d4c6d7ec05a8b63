//! Access traces, played against Flightcache, a cache of whole files, and no cache.
//!
//! ```text
//!  plan (traces → schedules, checked) → play (side by side) → open_loop (requests at their times) → side ─┬─ direct
//!                                        │                                                                ├─ whole_file
//!                                        └→ statistics (means, percentiles, ratios) → report, tables      └─ cached (Flightcache)
//! ```
//!
//! Each trace is played against one side after another, each with its cache emptied before; the order rotates by round. The
//! sides read the same store from the same distance, over a link of their own, and must find the same rows.

pub mod cached;
pub mod direct;
pub mod error;
pub mod open_loop;
pub mod plan;
pub mod play;
pub mod side;
pub mod statistics;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod whole_file;

use std::sync::Arc;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use object_store::ObjectStore;

use self::cached::Cached;
use self::direct::Direct;
use self::error::ReplayError;
use self::plan::{Schedule, Servers};
use self::play::Problems;
use self::side::Side;
use self::whole_file::WholeFile;
use crate::output::{self, Output};
use crate::place::{self, Distance};
use crate::report::Report;

/// Arguments of `replay`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where the objects are: a directory, or a file:// or `s3://bucket/prefix/` URL (settings from AWS_* variables).
    #[arg(long, value_name = "PLACE")]
    pub data: String,
    /// Original traces by name (1m, 100m, parallel, serial, repeat) or files of JSON Lines; all original ones if none is given.
    #[arg(long = "trace", value_name = "NAME|FILE", num_args = 1..)]
    pub traces: Vec<String>,
    /// Servers to start in this process, or the locations of running ones, such as <grpc://a:50051,grpc://b:50051>.
    #[arg(long, default_value = "1")]
    pub servers: Servers,
    /// URL prefix under which running servers know the data, and which stands for --data in traces that name URLs; without it
    /// the data's own URL.
    #[arg(long, value_name = "URL")]
    pub url_prefix: Option<String>,
    /// What to compare.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "direct,whole-file,flightcache")]
    pub sides: Vec<SideKind>,
    /// Capacity of each server's cache; running servers have their own.
    #[arg(long, default_value = "1GB")]
    pub capacity: ByteSize,
    /// Times each trace is played against each side; the figures are of all of them together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
    /// How many times faster than recorded the requests come.
    #[arg(long, default_value = "1.0", value_parser = speed)]
    pub speed: f64,
    #[command(flatten)]
    pub distance: Distance,
    #[command(flatten)]
    pub output: Output,
}

/// A way to answer requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SideKind {
    /// `DataFusion` reads the store.
    Direct,
    /// A cache of whole files, decoded by its clients.
    WholeFile,
    /// The system under test.
    Flightcache,
}

pub(crate) fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed > 0.0 => Ok(speed),
        _ => Err("it must be a number above 0".to_owned()),
    }
}

impl Options {
    /// What stands for the data in URLs, ending in `/`; `None` if there is nothing to tell.
    fn prefix(&self) -> Result<Option<String>, ReplayError> {
        let with_slash = |url: &str| if url.ends_with('/') { url.to_owned() } else { format!("{url}/") };
        let prefix = self.url_prefix.as_deref().or(Some(self.data.as_str()).filter(|data| data.contains("://"))).map(with_slash);
        if let Servers::Running(_) = self.servers
            && self.sides.contains(&SideKind::Flightcache)
        {
            if !self.distance.latency.is_zero() || self.distance.bandwidth.as_u64() > 0 {
                let and = if self.distance.bandwidth.as_u64() > 0 { " and no --bandwidth" } else { "" };
                return Err(ReplayError::Distance { and });
            }
            if prefix.is_none() {
                return Err(ReplayError::NoPrefix);
            }
        }
        Ok(prefix)
    }

    /// Sides, ready to be asked, each over a link of its own.
    async fn start(
        &self,
        store: &Arc<dyn ObjectStore>,
        prefix: Option<String>,
    ) -> Result<Vec<Arc<dyn Side>>, Box<dyn std::error::Error>> {
        let mut sides: Vec<Arc<dyn Side>> = Vec::new();
        let mut started = Vec::new();
        for kind in &self.sides {
            if started.contains(kind) {
                continue;
            }
            started.push(*kind);
            let store = self.distance.apply(Arc::clone(store));
            sides.push(match (kind, &self.servers) {
                (SideKind::Direct, _) => Arc::new(Direct::new(store)),
                (SideKind::WholeFile, servers) => Arc::new(WholeFile::start(store, servers.count(), self.capacity).await?),
                (SideKind::Flightcache, Servers::Own(count)) => Arc::new(Cached::start(store, *count, self.capacity).await?),
                (SideKind::Flightcache, Servers::Running(locations)) => {
                    Arc::new(Cached::connect(locations, prefix.clone().ok_or(ReplayError::NoPrefix)?).await?)
                }
            });
        }
        Ok(sides)
    }

    /// What a reader must know to judge the numbers.
    fn notes(&self) -> Vec<String> {
        let capacity = self.capacity.display().si();
        let servers = match &self.servers {
            Servers::Own(count) => format!("{count} in this process, {capacity} of decoded columns each"),
            Servers::Running(locations) => format!("running at {}", locations.join(", ")),
        };
        vec![
            format!(
                "Data: {}; {}. Played at {} times the recorded speed, {} round(s). All sides share this machine's cores.",
                self.data,
                self.distance.describe(),
                self.speed,
                self.rounds,
            ),
            "Requests come at the trace's times, whether or not earlier ones have been answered, all of them from one process with its connections; each reads \
             all rows. A response time counts from when the request was due to its last row. Each side starts a trace with an \
             empty cache. Cold is the first request for an object; a repeat may come while that is still being loaded, and waits \
             for it then."
                .to_owned(),
            format!(
                "direct: DataFusion in the client, a new session for each request, over one connection pool. whole-file cache: {} \
                 node(s) that keep Parquet files as they are, {capacity} each, one load per object; the client looks up the route and \
                 decodes; server includes the transfer. flightcache: server(s) {servers}; server is filtering and encoding, the \
                 transfer is in the rest.",
                self.servers.count(),
            ),
            "Flightcache's stages are sums over concurrent work; where they exceed a request's time they are shrunk to it, all \
             alike. They leave out what a request waits for: another's load, and the reading of a footer while the scan is \
             planned; both are in the rest."
                .to_owned(),
        ]
    }
}

/// Replays, prints tables, and writes what was asked for. Fails at the end if a request failed or the sides do not agree.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let report = output::report("Replay of access traces");
    measure(&options, report).await
}

/// The same, into a report that may hold notes already.
pub async fn measure(options: &Options, mut report: Report) -> Result<(), Box<dyn std::error::Error>> {
    let (prefix, traces) = (options.prefix()?, plan::traces(&options.traces)?);
    let schedule = |(name, trace)| Schedule::new(name, trace, options.speed, prefix.as_deref());
    let schedules: Vec<Schedule> =
        traces.iter().map(|(name, trace)| schedule((name.as_str(), trace))).collect::<Result<_, _>>()?;
    let store = place::open(&options.data)?;
    let objects = plan::objects(&schedules, &store, &options.data).await?;
    report.notes.extend(options.notes());
    for note in &report.notes {
        println!("{note}");
    }

    let sides = options.start(&store, prefix).await?;
    let mut played = Ok(());
    let mut problems = Problems::default();
    for schedule in &schedules {
        match play::trace(schedule, &sides, &objects, options.rounds, &mut problems).await {
            Ok(replay) => {
                println!(
                    "\n{}: {} requests, {:.1} s from first to last, times in ms",
                    replay.trace,
                    schedule.reads.len(),
                    replay.span_s
                );
                println!("{}\n{}", tables::sides(&replay), tables::cold_and_repeat(&replay));
                report.replays.push(replay);
            }
            Err(error) => {
                played = Err(error);
                break;
            }
        }
    }
    for side in sides {
        side.stop().await;
    }
    played?;
    options.output.write(&report)?;
    Ok(problems.into_result()?)
}
