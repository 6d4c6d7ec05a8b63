//! `load`: requests at constant rates, whether or not earlier ones were answered, and what that does to response times.
//!
//! ```text
//! arrivals (when each request is due) --> open_loop --ask--> target (connections, the scan, its check)
//!                                             |  closed_loop, before, finds the rates
//!                                             v
//!                                        tally (latency from when it was due) --> table, report
//! ```
//!
//! A generator that waits for an answer before it sends the next request asks a slow server less often and so hides how slow
//! it is (*coordinated omission*, Gil Tene, <https://github.com/giltene/wrk2>). Here a request is due whatever the server does,
//! and its response time counts from then.

mod arrivals;
mod closed_loop;
mod open_loop;
mod show;
mod tally;
mod target;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

pub use arrivals::Arrivals;
pub use open_loop::{Limits, open_loop};
pub use tally::{Answer, Tally};
pub use target::{Target, TargetError};

use crate::output::{self, Output};
use crate::place::Distance;
use crate::replay::published::servers_text;
use crate::report::{Load, Report};

/// Shares of the capacity that are offered if no rates are given: the last shows what happens past saturation.
const SHARES: [f64; 4] = [0.25, 0.5, 0.8, 1.3];
/// How long the closed loop that finds the capacity runs.
const PROBE: Duration = Duration::from_secs(2);
/// Workers of the closed loop, for each connection.
const WORKERS_PER_CONNECTION: usize = 2;
/// How long the answers that are outstanding at the end of a rate may still take.
const DRAIN: Duration = Duration::from_secs(10);

/// What is asked, and how often.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A running server, such as `grpc://127.0.0.1:50051`. Without it one is started in this process, over a generated file.
    #[arg(long, requires = "url", conflicts_with_all = ["latency", "bandwidth", "file_rows"])]
    pub server: Option<String>,
    /// Servers to start in this process, as one cluster; several numbers one after the other, as 1,3, to see what more of them give.
    #[arg(long, value_delimiter = ',', default_value = "1", conflicts_with = "server")]
    pub servers: Vec<NonZeroUsize>,
    /// Object, prefix ending in `/`, or glob that each request reads.
    #[arg(long, requires = "server")]
    pub url: Option<String>,
    /// Columns of each request; without it all.
    #[arg(long, value_delimiter = ',')]
    pub columns: Option<Vec<String>>,
    /// Filter of each request, as SQL.
    #[arg(long)]
    pub filter: Option<String>,
    /// Rows of each answer at most.
    #[arg(long)]
    pub limit: Option<u64>,
    /// Requests a second, one step each; `auto` for 0.25, 0.5, 0.8 and 1.3 of what two workers a connection reach in two
    /// seconds when each waits for its answer.
    #[arg(long, value_name = "RATES|auto", default_value = "auto", value_parser = rates)]
    pub rates: Rates,
    /// How long each rate is offered.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// When requests are due.
    #[arg(long, value_enum, default_value_t)]
    pub arrivals: Arrivals,
    /// Makes Poisson arrivals repeatable.
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// Connections, used in turn.
    #[arg(long, default_value = "4")]
    pub connections: NonZeroUsize,
    /// Requests without an answer yet; what is due beyond them is not sent and counts as refused.
    #[arg(long, default_value = "4096")]
    pub max_outstanding: NonZeroUsize,
    /// Rows of the generated file: 20 columns, 8 bytes a value and a little more.
    #[arg(long, default_value = "50000")]
    pub file_rows: NonZeroUsize,
    /// Files like it, read in turn: a cluster spreads their row groups over its servers.
    #[arg(long, default_value = "1", conflicts_with = "server")]
    pub files: NonZeroUsize,
    /// How far away the store behind the server in this process is made.
    #[command(flatten)]
    pub distance: Distance,
    /// Where the figures go.
    #[command(flatten)]
    pub output: Output,
}

/// The rates to offer, in requests a second.
#[derive(Clone, Debug, PartialEq)]
pub enum Rates {
    /// Shares of the capacity, to be found first.
    Auto,
    /// These.
    Given(Vec<f64>),
}

/// Offers each rate, prints a table, and writes the report.
pub async fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    options.output.create()?;
    let (mut notes, mut loads) = (Vec::new(), Vec::new());
    for &servers in &options.servers {
        let target = Target::start(options, servers.get()).await?;
        println!("{}; each answer: {}", target.describe(), target.describe_answer());
        notes.push(show::how(options, target.describe()));
        let tallies = offer(options, &target).await;
        let (url, columns) = (target.url().to_owned(), target.columns());
        target.shutdown().await;
        let tallies = tallies?;
        println!("{}", show::table(&tallies));
        let failures = show::failures(&tallies);
        for line in &failures {
            println!("{line}");
        }
        notes.extend(failures);
        loads.push(Load { url, columns, servers: servers.get() as u64, steps: tallies.iter().map(Tally::step).collect() });
    }
    println!("response times: from when a request was due to its last row, of the answered requests; sent late: by this program");
    if loads.len() > 1 {
        println!("{}", show::growth(&loads));
    }
    let report = Report { notes, loads, ..output::report("Flightcache under load") };
    options.output.write(&report)
}

/// The rates, one after the other.
pub async fn offer(options: &Options, target: &Target) -> Result<Vec<Tally>, Box<dyn std::error::Error>> {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    let rates = match &options.rates {
        Rates::Given(rates) => rates.clone(),
        Rates::Auto => {
            let workers = WORKERS_PER_CONNECTION * options.connections.get();
            bar.set_message(format!("finding the capacity with {workers} workers"));
            let capacity_per_s = closed_loop::answers_per_s(workers, PROBE, |request| target.ask(request)).await?;
            bar.suspend(|| eprintln!("{workers} workers that wait for their answers: {capacity_per_s:.1} requests/s"));
            SHARES.map(|share| rounded(share * capacity_per_s)).to_vec()
        }
    };
    let limits = Limits { max_outstanding: options.max_outstanding.get(), drain: DRAIN };
    let mut tallies = Vec::new();
    for rate_per_s in rates {
        let due = options.arrivals.due(rate_per_s, options.duration, options.seed);
        let tally = open_loop(
            rate_per_s,
            options.duration,
            due,
            limits,
            |request| target.ask(request),
            |so_far, outstanding| {
                bar.set_message(format!(
                    "{rate_per_s}/s: {} due, {outstanding} outstanding, {} errors",
                    so_far.requests,
                    so_far.errors()
                ));
            },
        );
        let tally = tally.await?;
        bar.suspend(|| eprintln!("{rate_per_s}/s: {} of {} answered", tally.answered(), tally.requests));
        tallies.push(tally);
    }
    bar.finish_and_clear();
    Ok(tallies)
}

/// To three digits: a rate that one can type again.
fn rounded(rate_per_s: f64) -> f64 {
    let digit = 10_f64.powi(2 - rate_per_s.log10().floor() as i32);
    (rate_per_s * digit).round() / digit
}

/// Below, one request would be due; above, the pacing itself would be what is measured.
const RATES_PER_S: RangeInclusive<f64> = 1e-3..=1e6;

fn rates(text: &str) -> Result<Rates, String> {
    if text == "auto" {
        return Ok(Rates::Auto);
    }
    let rate = |text| rate(text).map_err(|error| format!("{error}, nor auto"));
    text.split(',').map(rate).collect::<Result<_, _>>().map(Rates::Given)
}

pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let rate = text.trim().parse().ok().filter(|rate| RATES_PER_S.contains(rate));
    rate.ok_or_else(|| format!("'{text}' is no rate of {} to {} requests a second", RATES_PER_S.start(), RATES_PER_S.end()))
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("it must be longer than nothing".to_owned()) } else { Ok(duration) }
}
