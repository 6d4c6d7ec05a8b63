//! What a benchmark run measured, and its page: one HTML file that needs no script, no network and no other file.
//!
//! ```text
//! Report ─ html (sections, tables) ─┬─ curves (measurements → lines)
//!                                   ├─ figure (title, legend) ─ plot (lines → SVG) ─ axis (ranges, ticks)
//!                                   └─ units (numbers as text)
//! ```
//!
//! Times are in milliseconds, instants in seconds. A number that is not finite is shown as a dash and left out of the plots.
//! JSON has no such number (`serde_json` writes `null`), so a report that is to be read back should hold none.

use serde::{Deserialize, Serialize};

mod axis;
mod curves;
mod figure;
mod html;
mod plot;
mod sql;
#[cfg(test)]
mod tests;
mod units;
mod wire;

pub use sql::{Sql, SqlQuery, SqlSide};
pub use wire::{Wire, WireMemory, WirePoint, WireRate};

/// Why a page could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The plotting library refused a plot.
    #[error("cannot draw the plot '{plot}': {source}")]
    Plot { plot: String, source: Box<dyn std::error::Error + Send + Sync> },
}

/// One run of the benchmark program. A list that is empty has no section on the page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub title: String,
    /// When the run ended, as it is to be shown.
    pub generated_at: String,
    /// The command line that reproduces the run.
    pub command: String,
    /// Processor, memory and system of the machine that measured.
    pub machine: String,
    /// What a reader must know to judge the numbers; a paragraph each.
    pub notes: Vec<String>,
    pub replays: Vec<Replay>,
    pub simulations: Vec<Simulation>,
    pub loads: Vec<Load>,
    #[serde(default)]
    pub residencies: Vec<ResidencyPoint>,
    #[serde(default)]
    pub wire: Wire,
    #[serde(default)]
    pub sql: Vec<Sql>,
}

/// The scans of one round against a cache of one form of residency and one capacity. Medians of rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResidencyPoint {
    /// "arrow", "parquet", "auto".
    pub form: String,
    /// Capacity as a share of what the scans read, as arrays; 1 holds all.
    pub capacity_share: f64,
    pub capacity_bytes: u64,
    pub round_ms: f64,
    /// Processor time of server and client.
    pub cpu_ms: f64,
    /// Share of the look-ups for which the store was not asked, 0 to 1.
    pub hit_rate: f64,
    pub store_requests: f64,
    pub store_bytes: f64,
    /// Resident at the end, by form.
    pub arrow_bytes: u64,
    pub parquet_bytes: u64,
}

/// One trace, replayed against each side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    pub trace: String,
    /// Requests of the trace in all rounds together; each side got them all.
    pub requests: u64,
    /// From the first request to the last, in seconds.
    pub span_s: f64,
    /// Servers of each side that has any.
    #[serde(default = "one")]
    pub servers: u64,
    pub sides: Vec<Side>,
}

const fn one() -> u64 {
    1
}

impl Replay {
    /// The trace, and the servers if there are several.
    pub fn title(&self) -> String {
        if self.servers > 1 { format!("{}, {} servers", self.trace, self.servers) } else { self.trace.clone() }
    }
}

/// One way to answer a trace's requests: "direct", "whole-file cache", "flightcache".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Side {
    pub name: String,
    /// Response times in milliseconds.
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Mean response times by what a cache can have known: of the first request for each object of the trace, of those that
    /// were due before the first one had been answered (on the side that took longest, in the same round), and of all later
    /// ones; `None` without any.
    #[serde(default)]
    pub cold_ms: Option<f64>,
    #[serde(default)]
    pub joined_ms: Option<f64>,
    #[serde(default)]
    pub repeat_ms: Option<f64>,
    /// Mean time of a request in each stage, in milliseconds. The stages are disjoint: `server_ms` is the server's time outside
    /// the other two, and what is missing to `mean_ms` is shown as the rest (network, client).
    pub fetch_ms: f64,
    pub decode_ms: f64,
    pub server_ms: f64,
    /// Look-ups in the cache that it answered and that it did not, one for each column chunk or whole file; both 0 on a side
    /// that does not cache.
    pub hits: u64,
    pub misses: u64,
    /// Bytes and requests that reached the object store.
    pub store_bytes: u64,
    pub store_requests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// The direct side's mean response time divided by this one's; above 1 is faster.
    pub speedup_over_direct: Option<f64>,
    pub responses: Vec<Response>,
}

impl Side {
    /// Whether anything was looked up in a cache.
    pub fn caches(&self) -> bool {
        self.hits > 0 || self.misses > 0
    }

    /// Share of the lookups that the cache answered, 0 to 1; not a number on a side that does not cache.
    pub fn hit_rate(&self) -> f64 {
        let hits = self.hits as f64;
        hits / (hits + self.misses as f64)
    }
}

/// One request's answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// When it was asked for, in seconds since the trace's start.
    pub at_s: f64,
    pub response_ms: f64,
    pub fetch_ms: f64,
    pub decode_ms: f64,
    pub server_ms: f64,
    /// Share of the request that the cache answered, 0 to 1.
    pub hit_share: f64,
    /// False when it failed; it is then left out of the curves.
    pub ok: bool,
}

/// Hit rates of eviction policies on one trace, computed without a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Simulation {
    pub trace: String,
    /// Bytes of all that the trace touches, each counted once.
    pub footprint_bytes: u64,
    pub points: Vec<SimulationPoint>,
}

/// One policy at one capacity.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SimulationPoint {
    /// "LRU", "segmented LRU", "Belady".
    pub policy: String,
    /// Capacity as a share of the footprint; 1 holds all.
    pub capacity_share: f64,
    pub capacity_bytes: u64,
    /// Share of the requests that hit, 0 to 1.
    pub hit_rate_by_requests: f64,
    /// Share of the bytes asked for that hit, 0 to 1.
    pub hit_rate_by_bytes: f64,
    /// Share of the bytes asked for that had to be decoded, 0 to 1, where forms of residency are compared.
    #[serde(default)]
    pub decoded_share: Option<f64>,
}

/// A server under rising load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Where the server listened.
    pub url: String,
    /// Columns of each request.
    pub columns: u64,
    /// Servers, where they are this program's own.
    #[serde(default = "one")]
    pub servers: u64,
    pub steps: Vec<LoadStep>,
}

/// A while at one rate of requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadStep {
    /// Requests a second that were due, and that were answered.
    pub offered_per_s: f64,
    pub achieved_per_s: f64,
    pub requests: u64,
    pub errors: u64,
    /// Response times in milliseconds, from when a request was due.
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    /// Record batches received, in megabytes (10⁶ bytes) a second.
    pub mb_per_s: f64,
    /// Milliseconds by which 99 % of the requests were at most sent late, by the program that measured.
    #[serde(default)]
    pub late_p99_ms: f64,
}

impl Report {
    /// The page, complete.
    pub fn to_html(&self) -> Result<String, ReportError> {
        Ok(html::page(self)?.into_string())
    }
}
