//! `simulate`: hit rates of eviction policies on traces, by requests and by bytes, in no time and without any data.
//!
//! ```text
//! workloads (name or file) --Trace--> Lru | SegmentedLru (the server's own cache) | Belady --HitRates--> table, report
//! ```

mod segmented_lru;
#[cfg(test)]
mod tests;
mod two_forms;

use bytesize::ByteSize;
use clap::Args;
use comfy_table::{CellAlignment, Table};
use flightcache_server::Settings;
use flightcache_traces::{Belady, HitRates, Lru, Trace, footprint_bytes, simulate};

pub use segmented_lru::SegmentedLru;
pub use two_forms::TwoForms;

use crate::output::{self, Output};
use crate::report::{Simulation, SimulationPoint};
use crate::workloads::{self, Scale, Workload, workload};

const LRU: &str = "LRU";
const BELADY: &str = "Belady";

/// What is simulated.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A known trace or a file of JSON Lines; repeatable. Without it all known ones: 1m, 100m, parallel, serial, repeat (the
    /// original traces), zipf, scan-mix, hot-scan, shift, rounds, bursts (synthetic).
    #[arg(long = "trace", value_name = "NAME|FILE")]
    pub traces: Vec<String>,
    /// Capacities, in percent of all that a trace touches.
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_value = "5,10,20,40,60,80,100", value_parser = percent)]
    pub shares: Vec<f64>,
    /// Share of the capacity that is kept from scans for entries used more than once, 0 to 1, as in the server's setting;
    /// several are compared.
    #[arg(long, value_name = "SHARE", value_delimiter = ',', default_values_t = [Settings::default().protected_share], value_parser = protected_share)]
    pub protected_share: Vec<f64>,
    /// Compare forms of residency instead of policies: arrays only, Parquet bytes only, or both (`auto`). A trace's bytes are
    /// then those of arrays.
    #[arg(long)]
    pub residency: bool,
    /// With --residency: how many times larger arrays are than Parquet bytes; 5.6 is lineitem of TPC-H with Snappy.
    #[arg(long, value_name = "TIMES", default_value_t = 5.6, value_parser = expansion, requires = "residency")]
    pub expansion: f64,
    /// Where the figures go.
    #[command(flatten)]
    pub output: Output,
}

/// Simulates, prints a table a trace, and writes the report.
pub fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    options.output.create()?;
    let workloads = if options.traces.is_empty() {
        workloads::all(Scale::Simulated)?
    } else {
        options.traces.iter().map(|name| workload(name, Scale::Simulated)).collect::<Result<_, _>>()?
    };
    let (shares, protected_shares) = (ascending(&options.shares), ascending(&options.protected_share));
    if options.residency {
        return residency(options, workloads, &shares);
    }
    let mut report = output::report("Flightcache: simulated hit rates");
    report.notes = notes(&workloads);
    for Workload { name, about, trace, .. } in workloads {
        let simulation = measure(name, &trace, &shares, &protected_shares);
        let requests = trace.requests().count();
        println!("\n{}: {about}, {requests} requests, footprint {}", simulation.trace, size(simulation.footprint_bytes));
        println!("{}", table(&simulation));
        report.simulations.push(simulation);
    }
    println!("req, bytes: hit rate by requests and by bytes, in percent; vs LRU: points by bytes above LRU's;");
    println!("of Belady: by bytes, in percent of what Belady's policy reaches, which knows the future");
    options.output.write(&report)
}

/// Runs `trace` against each policy at each of the capacities, which are in percent of its footprint.
pub fn measure(name: String, trace: &Trace, percents: &[f64], protected_shares: &[f64]) -> Simulation {
    let footprint_bytes = footprint_bytes(trace);
    let slots = SegmentedLru::slots(trace);
    let mut points = Vec::new();
    for percent in percents {
        let capacity_share = percent / 100.0;
        let capacity_bytes = (footprint_bytes as f64 * capacity_share) as u64;
        let mut add = |policy: String, rates: HitRates| {
            points.push(SimulationPoint {
                policy,
                capacity_share,
                capacity_bytes,
                hit_rate_by_requests: rates.by_requests(),
                hit_rate_by_bytes: rates.by_bytes(),
                decoded_share: None,
            });
        };
        add(LRU.to_owned(), simulate(trace, &mut Lru::new(capacity_bytes)));
        for &share in protected_shares {
            let mut policy = SegmentedLru::new(capacity_bytes, share, Settings::default().partitions, &slots);
            add(format!("segmented LRU {share}"), simulate(trace, &mut policy));
        }
        add(BELADY.to_owned(), simulate(trace, &mut Belady::new(capacity_bytes)));
    }
    Simulation { trace: name, footprint_bytes, points }
}

/// Runs traces against each form of residency.
fn residency(options: &Options, workloads: Vec<Workload>, percents: &[f64]) -> Result<(), Box<dyn std::error::Error>> {
    let mut report = output::report("Flightcache: simulated forms of residency");
    report.notes = vec![format!(
        "The server's own cache code. Arrays are taken for {} times larger than the Parquet bytes they are made of. A capacity is a share \
         of all that a trace touches, as arrays; a hit needs no store.",
        options.expansion
    )];
    for Workload { name, about, trace, .. } in workloads {
        let simulation = measure_forms(name, &trace, percents, options.expansion);
        println!("\n{}: {about}, footprint as arrays {}", simulation.trace, size(simulation.footprint_bytes));
        println!("{}", forms_table(&simulation));
        report.simulations.push(simulation);
    }
    println!(
        "hit: bytes of arrays asked for without the store, in percent; decoded: bytes of arrays that had to be decoded, in percent"
    );
    options.output.write(&report)
}

/// Runs `trace` against caches of arrays, of Parquet bytes, and of both, at each of the capacities.
pub fn measure_forms(name: String, trace: &Trace, percents: &[f64], expansion: f64) -> Simulation {
    let footprint_bytes = footprint_bytes(trace);
    let slots = SegmentedLru::slots(trace);
    let Settings { partitions, protected_share, .. } = Settings::default();
    let mut points = Vec::new();
    for percent in percents {
        let capacity_share = percent / 100.0;
        let capacity_bytes = (footprint_bytes as f64 * capacity_share) as u64;
        let arrow = simulate(trace, &mut SegmentedLru::new(capacity_bytes, protected_share, partitions, &slots));
        let mut forms = vec![("arrow", arrow, 1.0 - arrow.by_bytes())];
        for (form, is_auto) in [("parquet", false), ("auto", true)] {
            let mut policy = TwoForms::new(capacity_bytes, protected_share, partitions, &slots, expansion, is_auto);
            forms.push((form, simulate(trace, &mut policy), 0.0));
            if let Some(last) = forms.last_mut() {
                last.2 = policy.decoded_share();
            }
        }
        points.extend(forms.into_iter().map(|(form, rates, decoded_share)| SimulationPoint {
            policy: form.to_owned(),
            capacity_share,
            capacity_bytes,
            hit_rate_by_requests: rates.by_requests(),
            hit_rate_by_bytes: rates.by_bytes(),
            decoded_share: Some(decoded_share),
        }));
    }
    Simulation { trace: name, footprint_bytes, points }
}

fn forms_table(simulation: &Simulation) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY);
    let mut header = vec!["capacity".to_owned(), String::new()];
    let points: Vec<_> = simulation.points.chunk_by(|one, next| one.capacity_bytes == next.capacity_bytes).collect();
    for point in points.first().copied().unwrap_or_default() {
        header.extend([format!("{}\nhit", point.policy), "\ndecoded".to_owned()]);
    }
    table.set_header(header);
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let text = |share: f64| format!("{:.1}", share * 100.0);
    for points in points {
        let mut row = vec![format!("{} %", trimmed(points[0].capacity_share * 100.0)), size(points[0].capacity_bytes)];
        row.extend(
            points.iter().flat_map(|point| [text(point.hit_rate_by_bytes), text(point.decoded_share.unwrap_or_default())]),
        );
        table.add_row(row);
    }
    table
}

fn table(simulation: &Simulation) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY);
    let mut header = vec!["capacity".to_owned(), String::new()];
    // LRU comes first at each capacity.
    let points: Vec<_> = simulation.points.chunk_by(|_, next| next.policy != LRU).collect();
    for point in points.first().copied().unwrap_or_default() {
        header.extend([format!("{}\nreq", point.policy), "\nbytes".to_owned()]);
        if is_ours(point) {
            header.extend(["\nvs LRU".to_owned(), "\nof Belady".to_owned()]);
        }
    }
    table.set_header(header);
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    for points in points {
        let by_bytes = |policy: &str| points.iter().find(|point| point.policy == policy).map_or(0.0, |p| p.hit_rate_by_bytes);
        let (lru, belady) = (by_bytes(LRU), by_bytes(BELADY));
        let mut row = vec![format!("{} %", trimmed(points[0].capacity_share * 100.0)), size(points[0].capacity_bytes)];
        for point in points {
            row.extend([point.hit_rate_by_requests, point.hit_rate_by_bytes].map(|rate| format!("{:.1}", rate * 100.0)));
            if is_ours(point) {
                row.push(points_above(point.hit_rate_by_bytes - lru));
                let of_belady = point.hit_rate_by_bytes / belady;
                row.push(if of_belady.is_finite() { format!("{:.1}", of_belady * 100.0) } else { "–".to_owned() });
            }
        }
        table.add_row(row);
    }
    table
}

fn is_ours(point: &SimulationPoint) -> bool {
    point.policy != LRU && point.policy != BELADY
}

fn notes(workloads: &[Workload]) -> Vec<String> {
    let policies = format!(
        "{LRU} is plain least recently used. Segmented LRU is the server's own cache code with its {} partitions; the number is \
         the share of the capacity kept for entries used more than once. {BELADY} knows the future: for items of one size \
         no policy has more item hits, for other traces it is a heuristic.",
        Settings::default().partitions
    );
    let synthetic = workloads.iter().filter(|workload| workload.is_synthetic);
    let traces: Vec<_> = synthetic.map(|workload| format!("{}: {}.", workload.name, workload.about)).collect();
    [policies, traces.join(" ")].into_iter().filter(|note| !note.is_empty()).collect()
}

/// In points of a hundred, with a sign that zero has not.
fn points_above(difference: f64) -> String {
    let text = format!("{:+.1}", difference * 100.0);
    if text.ends_with("0.0") && text.len() == 4 { "0.0".to_owned() } else { text }
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// Without what computing left of a number that was typed in.
fn trimmed(number: f64) -> String {
    let text = format!("{number:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn ascending(numbers: &[f64]) -> Vec<f64> {
    let mut numbers = numbers.to_vec();
    numbers.sort_by(f64::total_cmp);
    numbers.dedup();
    numbers
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim().parse().ok().filter(|number| *number > 0.0 && *number <= 1_000.0);
    number.ok_or_else(|| "a capacity must be above 0 and at most 1000 percent".to_owned())
}

fn expansion(text: &str) -> Result<f64, String> {
    let number = text.trim().parse().ok().filter(|number| (1.0..=1_000.0).contains(number));
    number.ok_or_else(|| "arrays must be 1 to 1000 times larger than bytes".to_owned())
}

fn protected_share(text: &str) -> Result<f64, String> {
    let number = text.trim().parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "a protected share must be 0 to 1".to_owned())
}
