//! The page: its sections, tables and figures.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::axis::{Axis, Scale};
use super::plot::{Bar, BarPlot, LinePlot};
use crate::replay::published::servers_text;

use super::units::{bytes, count, number, percent, ratio};
use super::{Load, Replay, Report, ReportError, ResidencyPoint, Side, Simulation, SimulationPoint, curves, figure, sql, wire};

pub(super) type Rendered = Result<Markup, ReportError>;

/// Nothing may be loaded or run, whatever a trace is called.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

pub(super) fn page(report: &Report) -> Rendered {
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (report.title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                header {
                    h1 { (report.title) }
                    p.muted { (report.generated_at) " · " (report.machine) }
                    pre { code { @for word in report.command.split_inclusive(' ') { span { (word) } } } }
                    @for note in &report.notes { p.note { (note) } }
                }
                main {
                    @if !report.replays.is_empty() { (replay_section(&report.replays)?) }
                    @if !report.simulations.is_empty() { (simulation_section(&report.simulations)?) }
                    @if !report.loads.is_empty() { (load_section(&report.loads)?) }
                    @if !report.residencies.is_empty() { (residency_section(&report.residencies)?) }
                    @if !report.wire.is_empty() { (wire::section(&report.wire)?) }
                    @if !report.sql.is_empty() { (sql::section(&report.sql)?) }
                }
            }
        }
    })
}

fn replay_section(replays: &[Replay]) -> Rendered {
    let sides = distinct(replays.iter().flat_map(|replay| &replay.sides).map(|side| side.name.as_str()));
    Ok(html! {
        section {
            h2 { "Replay" }
            p {
                "Each trace was replayed against each side. The fastest side of a trace is in bold. Cold: the first request for "
                "each object; joined: requests that were due while the first was under way, on the side that took longest for "
                "it; repeat: all after that."
            }
            (replay_table(replays))
            @for replay in replays {
                h3 { (replay.title()) }
                div.figures {
                    (figure::lines(&LinePlot {
                        title: "Response times".into(),
                        x: Axis { label: "response time, ms", scale: Scale::Log },
                        y: Axis { label: "responses within that time, %", scale: Scale::Percent },
                        lines: curves::of_sides(&sides, &replay.sides, curves::response_times),
                    })?)
                    (figure::lines(&LinePlot {
                        title: "Hit rate since the start".into(),
                        x: Axis { label: "time in the trace, s", scale: Scale::Linear },
                        y: Axis { label: "hit rate so far, %", scale: Scale::Percent },
                        lines: curves::of_sides(&sides, replay.sides.iter().filter(|side| side.caches()), curves::hit_rate),
                    })?)
                    (figure::bars(&BarPlot {
                        title: "Where the time goes".into(),
                        x: Axis { label: "mean time of a request, ms", scale: Scale::Linear },
                        unit: "ms",
                        parts: &["file fetch", "decoding", "server", "rest"],
                        bars: replay.sides.iter().map(stages).collect(),
                    })?)
                }
            }
        }
    })
}

fn replay_table(replays: &[Replay]) -> Markup {
    html! {
        div.scroll { table {
            thead {
                tr {
                    th.name rowspan="2" scope="col" { "side" }
                    th.group colspan="6" scope="colgroup" { "response, ms" }
                    th.group colspan="3" scope="colgroup" { "stage means, ms" }
                    th rowspan="2" scope="col" { "hits" }
                    th.group colspan="2" scope="colgroup" { "from S3" }
                    th rowspan="2" scope="col" { "errors" }
                    th rowspan="2" scope="col" { "ratio to direct" }
                }
                tr {
                    @for name in ["average", "p50", "p99", "cold", "joined", "repeat", "file fetch", "decoding", "server", "bytes", "requests"] {
                        th scope="col" { (name) }
                    }
                }
            }
            @for replay in replays {
                @let best = fastest(replay);
                tbody {
                    tr.trace { th.name colspan="15" scope="rowgroup" {
                        (replay.title()) span.muted { " · " (count(replay.requests)) " requests in " (number(replay.span_s)) " s" }
                    } }
                    @for (index, side) in replay.sides.iter().enumerate() {
                        tr.best[best == Some(index)] {
                            th.name scope="row" { (side.name) }
                            @for time in response_times(side).into_iter().chain([side.fetch_ms, side.decode_ms, side.server_ms]) {
                                td { (number(time)) }
                            }
                            td { (percent(side.hit_rate())) }
                            td { (bytes(side.store_bytes)) }
                            td { (count(side.store_requests)) }
                            (errors(side.errors))
                            td { (ratio(side.speedup_over_direct)) }
                        }
                    }
                }
            }
        } }
    }
}

fn residency_section(points: &[ResidencyPoint]) -> Rendered {
    let plot = |title: &str, label: &'static str, scale: Scale, value: fn(&ResidencyPoint) -> f64| {
        figure::lines(&LinePlot {
            title: title.into(),
            x: Axis { label: "capacity / size as arrays", scale: Scale::Log },
            y: Axis { label, scale },
            lines: curves::of_forms(points, value),
        })
    };
    Ok(html! {
        section {
            h2 { "Forms of residency" }
            p { "The same scans, again and again, against caches of rising capacity. A capacity is given as a share of what the scans read, as arrays." }
            div.figures {
                (plot("Time of a round", "median time, ms", Scale::Linear, |point| point.round_ms)?)
                (plot("Processor time of a round", "median time of server and client, ms", Scale::Linear, |point| point.cpu_ms)?)
                (plot("Hit rate", "look-ups without the store, %", Scale::Percent, |point| point.hit_rate)?)
            }
            div.scroll { table {
                thead { tr {
                    th.name scope="col" { "capacity" }
                    @for name in ["form", "time, ms", "CPU, ms", "hits", "S3 requests", "S3 bytes", "as arrays", "as bytes"] {
                        th scope="col" { (name) }
                    }
                } }
                tbody { @for point in points { tr {
                    th.name scope="row" { (number(point.capacity_share)) " · " (bytes(point.capacity_bytes)) }
                    td { (point.form) }
                    td { (number(point.round_ms)) }
                    td { (number(point.cpu_ms)) }
                    td { (percent(point.hit_rate)) }
                    td { (number(point.store_requests)) }
                    td { (bytes(point.store_bytes as u64)) }
                    td { (bytes(point.arrow_bytes)) }
                    td { (bytes(point.parquet_bytes)) }
                } } }
            } }
        }
    })
}

fn simulation_section(simulations: &[Simulation]) -> Rendered {
    let policies = distinct(simulations.iter().flat_map(|simulation| &simulation.points).map(|point| point.policy.as_str()));
    Ok(html! {
        section {
            h2 { "Simulation" }
            p {
                "Hit rates of eviction policies on each trace, by requests and by bytes, without a server. "
                "A capacity is given as a share of the trace's footprint (all that it touches) and in bytes."
            }
            @for simulation in simulations {
                h3 { (simulation.trace) span.muted { " · footprint " (bytes(simulation.footprint_bytes)) } }
                div.beside {
                    (figure::lines(&LinePlot {
                        title: "Hit rate against capacity".into(),
                        x: Axis { label: "capacity, % of the footprint", scale: Scale::Log },
                        y: Axis { label: "hit rate by bytes, %", scale: Scale::Percent },
                        lines: curves::of_policies(&policies, &simulation.points),
                    })?)
                    (simulation_table(&policies, &simulation.points))
                }
            }
        }
    })
}

fn simulation_table(policies: &[&str], points: &[SimulationPoint]) -> Markup {
    let mut capacities: Vec<(u64, f64)> = points.iter().map(|point| (point.capacity_bytes, point.capacity_share)).collect();
    capacities.sort_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
    capacities.dedup_by_key(|capacity| capacity.0);
    let at = |policy: &str, capacity| points.iter().find(|point| point.policy == policy && point.capacity_bytes == capacity);
    html! {
        div.scroll { table {
            thead {
                tr {
                    th.group colspan="2" scope="colgroup" { "capacity" }
                    @for policy in policies { th.group colspan="2" scope="colgroup" { (policy) } }
                }
                tr {
                    th scope="col" { "share" }
                    th scope="col" { "bytes" }
                    @for _ in policies { th scope="col" { "by requests" } th scope="col" { "by bytes" } }
                }
            }
            tbody {
                @for (capacity, share) in capacities {
                    tr {
                        th scope="row" { (percent(share)) }
                        td { (bytes(capacity)) }
                        @for policy in policies {
                            @let point = at(policy, capacity);
                            td { (percent(point.map_or(f64::NAN, |point| point.hit_rate_by_requests))) }
                            td { (percent(point.map_or(f64::NAN, |point| point.hit_rate_by_bytes))) }
                        }
                    }
                }
            }
        } }
    }
}

fn load_section(loads: &[Load]) -> Rendered {
    Ok(html! {
        section {
            h2 { "Load" }
            p { "Requests were sent at a fixed rate; a response time counts from when its request was due." }
            @for load in loads {
                h3 { code { (load.url) } span.muted { " · " (servers_text(load.servers)) " · " (count(load.columns)) " columns a request" } }
                div.figures {
                    (figure::lines(&LinePlot {
                        title: "Response times under load".into(),
                        x: Axis { label: "offered, requests/s", scale: Scale::Linear },
                        y: Axis { label: "response time, ms", scale: Scale::Log },
                        lines: curves::percentiles(&load.steps),
                    })?)
                    (figure::lines(&LinePlot {
                        title: "Throughput".into(),
                        x: Axis { label: "offered, requests/s", scale: Scale::Linear },
                        y: Axis { label: "achieved, requests/s", scale: Scale::Linear },
                        lines: curves::throughput(&load.steps),
                    })?)
                }
                (load_table(load))
            }
        }
    })
}

fn load_table(load: &Load) -> Markup {
    html! {
        div.scroll { table {
            thead {
                tr {
                    th.group colspan="2" scope="colgroup" { "requests/s" }
                    th rowspan="2" scope="col" { "requests" }
                    th rowspan="2" scope="col" { "errors" }
                    th.group colspan="5" scope="colgroup" { "response, ms" }
                    th rowspan="2" scope="col" { "MB/s" }
                    th rowspan="2" scope="col" { "sent late, p99 ms" }
                }
                tr { @for name in ["offered", "achieved", "p50", "p90", "p99", "p99.9", "max"] { th scope="col" { (name) } } }
            }
            tbody {
                @for step in &load.steps {
                    tr {
                        th scope="row" { (number(step.offered_per_s)) }
                        td { (number(step.achieved_per_s)) }
                        td { (count(step.requests)) }
                        (errors(step.errors))
                        @for time in [step.p50_ms, step.p90_ms, step.p99_ms, step.p999_ms, step.max_ms] { td { (number(time)) } }
                        td { (number(step.mb_per_s)) }
                        td { (number(step.late_p99_ms)) }
                    }
                }
            }
        } }
    }
}

fn response_times(side: &Side) -> [f64; 6] {
    let [cold_ms, joined_ms, repeat_ms] = [side.cold_ms, side.joined_ms, side.repeat_ms].map(|time| time.unwrap_or(f64::NAN));
    [side.mean_ms, side.p50_ms, side.p99_ms, cold_ms, joined_ms, repeat_ms]
}

fn errors(errors: u64) -> Markup {
    html! { td.failed[errors > 0] { (count(errors)) } }
}

fn stages(side: &Side) -> Bar {
    let rest = side.mean_ms - side.fetch_ms - side.decode_ms - side.server_ms;
    Bar { name: side.name.clone(), parts: vec![side.fetch_ms, side.decode_ms, side.server_ms, rest] }
}

/// The side with the least mean response time, if there is more than one to choose from. One that only failed is none.
fn fastest(replay: &Replay) -> Option<usize> {
    let able = || (0..).zip(&replay.sides).filter(|(_, side)| side.mean_ms.is_finite() && side.errors < replay.requests);
    let best = able().min_by(|one, other| one.1.mean_ms.total_cmp(&other.1.mean_ms));
    best.filter(|_| able().count() > 1).map(|(index, _)| index)
}

/// Names in the order in which they first occur: the same name has the same line everywhere.
pub(super) fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    names.fold(Vec::new(), |mut known, name| {
        if !known.contains(&name) {
            known.push(name);
        }
        known
    })
}
