//! What serving costs, each end in a process of its own: figures, and their section on the page.

use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use super::axis::{Axis, Scale};
use super::html::{Rendered, distinct};
use super::plot::{Bar, BarPlot, LinePlot};
use super::units::{bytes, count, number, ratio};
use super::{curves, figure};

/// What was measured of the wire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wire {
    pub points: Vec<WirePoint>,
    pub rates: Vec<WireRate>,
    pub memory: Vec<WireMemory>,
}

/// One server and one client that read one table whole, again and again. Medians of rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WirePoint {
    /// The table, and the link if it is not the loopback.
    pub data: String,
    /// "flightcache → pyarrow".
    pub side: String,
    /// Rows of a batch of the server's; `None` where the server cuts them itself.
    pub batch_rows: Option<u64>,
    /// Bytes are those of the table as Arrow IPC, the same for every side.
    pub gib_per_s: f64,
    pub server_cpu_s_per_gib: f64,
    pub client_cpu_s_per_gib: f64,
    /// Throughput as a multiple of raw TCP's.
    pub to_raw: Option<f64>,
    /// Throughput as a multiple of that of pyarrow at both ends, at its better size of batches.
    pub to_pyarrow: Option<f64>,
}

/// Small answers to one client. Medians of rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WireRate {
    pub side: String,
    /// Requests under way at a time.
    pub in_flight: u64,
    pub requests_per_s: f64,
    pub server_cpu_us: f64,
    pub client_cpu_us: f64,
}

/// What a full server holds by its own account, and by the system's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WireMemory {
    /// "arrow", "parquet".
    pub residency: String,
    /// Resident, in flight, and streaming.
    pub accounted_bytes: u64,
    /// Resident set of the process before anything was read, after, and at its largest.
    pub idle_rss_bytes: u64,
    pub rss_bytes: u64,
    pub peak_rss_bytes: u64,
}

impl Wire {
    pub(super) fn is_empty(&self) -> bool {
        self.points.is_empty() && self.rates.is_empty() && self.memory.is_empty()
    }
}

impl WireMemory {
    /// What the system counts beyond an idle server, as a multiple of what the server does.
    pub fn rss_to_accounted(&self) -> f64 {
        self.rss_bytes.saturating_sub(self.idle_rss_bytes) as f64 / self.accounted_bytes as f64
    }
}

pub(super) fn section(wire: &Wire) -> Rendered {
    Ok(html! {
        section {
            h2 { "The wire" }
            p { "Server and client are processes of their own, and the sides take turns. CPU is each process's own. Our server cuts its batches itself." }
            @for data in distinct(wire.points.iter().map(|point| point.data.as_str())) {
                @let points: Vec<&WirePoint> = wire.points.iter().filter(|point| point.data == data).collect();
                h3 { (data) }
                div.figures {
                    (throughput(&points)?)
                    (cpu(&points)?)
                }
                (point_table(&points))
            }
            @if !wire.rates.is_empty() {
                h3 { "Small answers, one client" }
                div.beside {
                    (figure::lines(&LinePlot {
                        title: "Requests a second".into(),
                        x: Axis { label: "requests under way", scale: Scale::Log },
                        y: Axis { label: "answered, requests/s", scale: Scale::Linear },
                        lines: curves::of_rates(&wire.rates),
                    })?)
                    (rate_table(&wire.rates))
                }
            }
            @if !wire.memory.is_empty() {
                h3 { "Memory of a server" }
                (memory_table(&wire.memory))
            }
        }
    })
}

fn throughput(points: &[&WirePoint]) -> Rendered {
    figure::bars(&BarPlot {
        title: "Throughput".into(),
        x: Axis { label: "GiB/s", scale: Scale::Linear },
        unit: "GiB/s",
        parts: &["median of the rounds"],
        bars: points.iter().map(|point| Bar { name: name(point), parts: vec![point.gib_per_s] }).collect(),
    })
}

fn cpu(points: &[&WirePoint]) -> Rendered {
    let bar = |point: &&WirePoint| Bar { name: name(point), parts: vec![point.server_cpu_s_per_gib, point.client_cpu_s_per_gib] };
    figure::bars(&BarPlot {
        title: "Processor time".into(),
        x: Axis { label: "CPU seconds of a GiB", scale: Scale::Linear },
        unit: "s",
        parts: &["server", "client"],
        bars: points.iter().map(bar).collect(),
    })
}

fn name(point: &WirePoint) -> String {
    match point.batch_rows {
        Some(rows) => format!("{}, {}K", point.side, rows >> 10),
        None => point.side.clone(),
    }
}

fn point_table(points: &[&WirePoint]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                th.name scope="col" { "server → client" }
                @for name in ["rows of a batch", "GiB/s", "server CPU-s/GiB", "client CPU-s/GiB", "to raw TCP", "to pyarrow → pyarrow"] {
                    th scope="col" { (name) }
                }
            } }
            tbody { @for point in points { tr {
                th.name scope="row" { (point.side) }
                td { @if let Some(rows) = point.batch_rows { (count(rows)) } @else { "–" } }
                td { (number(point.gib_per_s)) }
                td { (number(point.server_cpu_s_per_gib)) }
                td { (number(point.client_cpu_s_per_gib)) }
                td { (ratio(point.to_raw)) }
                td { (ratio(point.to_pyarrow)) }
            } } }
        } }
    }
}

fn rate_table(rates: &[WireRate]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                th.name scope="col" { "server → client" }
                @for name in ["under way", "requests/s", "server CPU, µs", "client CPU, µs"] { th scope="col" { (name) } }
            } }
            tbody { @for rate in rates { tr {
                th.name scope="row" { (rate.side) }
                td { (count(rate.in_flight)) }
                td { (number(rate.requests_per_s)) }
                td { (number(rate.server_cpu_us)) }
                td { (number(rate.client_cpu_us)) }
            } } }
        } }
    }
}

fn memory_table(memory: &[WireMemory]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                th.name scope="col" { "residency" }
                @for name in ["accounted", "RSS when idle", "RSS when full", "RSS at its peak", "growth / accounted"] {
                    th scope="col" { (name) }
                }
            } }
            tbody { @for memory in memory { tr {
                th.name scope="row" { (memory.residency) }
                @for size in [memory.accounted_bytes, memory.idle_rss_bytes, memory.rss_bytes, memory.peak_rss_bytes] {
                    td { (bytes(size)) }
                }
                td { (ratio(Some(memory.rss_to_accounted()))) }
            } } }
        } }
    }
}
