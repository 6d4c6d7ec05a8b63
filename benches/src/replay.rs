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
mod notes;
pub mod open_loop;
pub mod plan;
pub mod play;
pub mod published;
pub mod side;
pub mod statistics;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod whole_file;

use std::ops::RangeInclusive;
use std::sync::Arc;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use object_store::ObjectStore;

use self::cached::Cached;
use self::direct::Direct;
use self::error::ReplayError;
use self::plan::{Schedule, Servers};
use self::play::Problems;
use self::side::{Clients, Side};
use self::whole_file::WholeFile;
use crate::output::{self, Output};
use crate::place::{self, Distance};
use crate::report::{Replay, Report};
use crate::workloads::Workload;

/// Arguments of `replay`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where the objects are: a directory, or a file:// or `s3://bucket/prefix/` URL (settings from AWS_* variables).
    #[arg(long, value_name = "PLACE")]
    pub data: String,
    /// Traces by name, original (1m, 100m, parallel, serial, repeat) or generated ones (zipf, scan-mix, hot-scan, shift, rounds,
    /// bursts; on the files that `generate` makes), or files of JSON Lines; all original ones if none is given.
    #[arg(long = "trace", value_name = "NAME|FILE", num_args = 1..)]
    pub traces: Vec<String>,
    /// Servers to start in this process, several numbers one after the other, as 1,3; or the locations of running ones, such as
    /// <grpc://a:50051,grpc://b:50051>.
    #[arg(long, default_value = "1")]
    pub servers: Servers,
    /// URL prefix under which running servers know the data, and which stands for --data in traces that name URLs; without it
    /// the data's own URL.
    #[arg(long, value_name = "URL")]
    pub url_prefix: Option<String>,
    /// What to compare; without it all, but for the cache of whole files where servers are running: it is always in this process.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub sides: Vec<SideKind>,
    /// Who opens the connections to the caches, Flightcache's and the one of whole files: per-request, so many clients in turn, or
    /// shared, which is one.
    #[arg(long, value_name = "per-request|shared|NUMBER", default_value = "per-request")]
    pub clients: Clients,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum SideKind {
    /// `DataFusion` reads the store.
    Direct,
    /// A cache of whole files, decoded by its clients.
    WholeFile,
    /// The system under test.
    Flightcache,
}

pub(crate) fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed| SPEEDS.contains(speed));
    speed.ok_or_else(|| format!("it must be a number from {} to {}", SPEEDS.start(), SPEEDS.end()))
}

/// Slower, a trace would take a year; faster, it comes at once.
const SPEEDS: RangeInclusive<f64> = 1e-3..=1e6;

impl Options {
    /// What is compared, each once.
    fn sides(&self) -> Vec<SideKind> {
        let mut sides = match (&self.sides[..], &self.servers) {
            ([], Servers::Own(_)) => vec![SideKind::Direct, SideKind::WholeFile, SideKind::Flightcache],
            ([], Servers::Running(_)) => vec![SideKind::Direct, SideKind::Flightcache],
            (sides, _) => sides.to_vec(),
        };
        sides.sort_unstable();
        sides.dedup();
        sides
    }

    /// What stands for the data in URLs, ending in `/`; `None` if there is nothing to tell.
    fn prefix(&self) -> Result<Option<String>, ReplayError> {
        let with_slash = |url: &str| if url.ends_with('/') { url.to_owned() } else { format!("{url}/") };
        let prefix = self.url_prefix.as_deref().or(Some(self.data.as_str()).filter(|data| data.contains("://"))).map(with_slash);
        if let Servers::Running(_) = self.servers
            && self.sides().contains(&SideKind::Flightcache)
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
        count: usize,
    ) -> Result<Vec<Arc<dyn Side>>, Box<dyn std::error::Error>> {
        let (capacity, clients) = (self.capacity, self.clients);
        let mut sides: Vec<Arc<dyn Side>> = Vec::new();
        for kind in self.sides() {
            let store = self.distance.apply(Arc::clone(store));
            sides.push(match (kind, &self.servers) {
                (SideKind::Direct, _) => Arc::new(Direct::new(store)),
                (SideKind::WholeFile, _) => Arc::new(WholeFile::start(store, count, capacity, clients).await?),
                (SideKind::Flightcache, Servers::Own(_)) => Arc::new(Cached::start(store, count, capacity, clients).await?),
                (SideKind::Flightcache, Servers::Running(locations)) => {
                    let prefix = prefix.clone().ok_or(ReplayError::NoPrefix)?;
                    Arc::new(Cached::connect(locations.clone(), prefix, clients).await?)
                }
            });
        }
        Ok(sides)
    }
}

/// Replays, prints tables, and writes what was asked for. Fails at the end if a request failed or the sides do not agree.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let report = output::report("Replay of access traces");
    measure(&options, report).await
}

/// The same, into a report that may hold notes already.
pub async fn measure(options: &Options, mut report: Report) -> Result<(), Box<dyn std::error::Error>> {
    options.output.create()?;
    let (prefix, traces) = (options.prefix()?, plan::traces(&options.traces)?);
    let schedule = |workload: Workload| Schedule::new(&workload.name, &workload.trace, options.speed, prefix.as_deref());
    let schedules: Vec<Schedule> = traces.into_iter().map(schedule).collect::<Result<_, _>>()?;
    let store = place::open(&options.data)?;
    let objects = plan::objects(&schedules, &store, &options.data).await?;
    report.notes.extend(options.notes(&schedules));
    for note in &report.notes {
        println!("{note}");
    }

    let mut problems = Problems::default();
    for count in options.servers.counts() {
        let sides = options.start(&store, prefix.clone(), count).await?;
        let played = play(&schedules, &sides, &objects, (options.rounds, count as u64), &mut problems).await;
        for side in sides {
            side.stop().await;
        }
        report.replays.extend(played?);
    }
    if let Some(table) = published::beside(&report.replays) {
        println!("\nmean response times in ms; published: on EC2 c5.xlarge with 2.5 Gbit/s, S3 124 ms away\n{table}");
    }
    options.output.write(&report)?;
    Ok(problems.into_result()?)
}

/// All traces against some sides, of so many rounds and servers.
async fn play(
    schedules: &[Schedule],
    sides: &[Arc<dyn Side>],
    objects: &[String],
    (rounds, servers): (u16, u64),
    problems: &mut Problems,
) -> Result<Vec<Replay>, Box<dyn std::error::Error>> {
    let mut replays = Vec::new();
    for schedule in schedules {
        let replay = Replay { servers, ..play::trace(schedule, sides, objects, rounds, problems).await? };
        println!(
            "\n{}: {} requests, {:.1} s from first to last, {}, times in ms",
            replay.trace,
            schedule.reads.len(),
            replay.span_s,
            published::servers_text(servers)
        );
        println!("{}\n{}", tables::sides(&replay), tables::by_kind(&replay));
        replays.push(replay);
    }
    Ok(replays)
}
