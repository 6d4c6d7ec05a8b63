//! The figures in the terminal and in words.

use comfy_table::{CellAlignment, Table};

use super::{Options, Tally, servers_text};
use crate::report::Load;

/// A row a rate.
pub(super) fn table(tallies: &[Tally]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "offered/s",
        "answered/s",
        "requests",
        "errors",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "MB/s",
        "sent late, p99 ms",
    ]);
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    for tally in tallies {
        let step = tally.step();
        let mut row = vec![number(step.offered_per_s), number(step.achieved_per_s)];
        row.extend([step.requests, step.errors].map(|count| count.to_string()));
        let times = [step.p50_ms, step.p90_ms, step.p99_ms, step.p999_ms, step.max_ms];
        row.extend(times.into_iter().chain([step.mb_per_s, step.late_p99_ms]).map(number));
        table.add_row(row);
    }
    table
}

/// The most that each number of servers answered.
pub(super) fn growth(loads: &[Load]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY);
    table.set_header(["", "answered/s", "MB/s", "to the first"]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let most = |load: &Load| load.steps.iter().map(|step| step.mb_per_s).fold(0.0, f64::max);
    for load in loads {
        let answered = load.steps.iter().map(|step| step.achieved_per_s).fold(0.0, f64::max);
        let ratio = most(load) / most(&loads[0]);
        table.add_row([servers_text(load.servers), number(answered), number(most(load)), format!("{ratio:.2}×")]);
    }
    table
}

/// What the errors were, a line for each rate that had any.
pub(super) fn failures(tallies: &[Tally]) -> Vec<String> {
    let line = |tally: &Tally| {
        let kinds = [(tally.refused, "refused"), (tally.failed, "failed"), (tally.unanswered, "not answered")];
        let kinds = kinds.into_iter().filter(|(count, _)| *count > 0).map(|(count, kind)| format!("{count} {kind}"));
        let first = tally.first_error.as_ref().map_or(String::new(), |error| format!("; first: {error}"));
        format!("{}/s: {}{first}", number(tally.rate_per_s), kinds.collect::<Vec<_>>().join(", "))
    };
    tallies.iter().filter(|tally| tally.errors() > 0).map(line).collect()
}

/// How it was measured, for the report.
pub(super) fn how(options: &Options, target: &str) -> String {
    let arrivals = match options.arrivals {
        super::Arrivals::Constant => "at constant intervals".to_owned(),
        super::Arrivals::Poisson => format!("at random (Poisson, seed {})", options.seed),
    };
    format!(
        "Against {target}. Requests were due {arrivals} for {} a rate, over {} connections, after warming. Response times are those \
         of answered requests; each is a single DoGet where one server owns all slots. At most {} requests were outstanding; what was due beyond them was refused, which counts as an error.",
        humantime::format_duration(options.duration),
        options.connections,
        options.max_outstanding
    )
}

/// About three digits.
fn number(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "–".to_owned(),
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
