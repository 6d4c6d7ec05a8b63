//! Queries through each door: figures, and their section on the page.

use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use super::axis::{Axis, Scale};
use super::figure;
use super::html::Rendered;
use super::plot::{Bar, BarPlot, Line, LinePlot};
use super::units::{bytes, count, number, ratio};

/// The queries of a suite, by each side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sql {
    /// "TPC-H".
    pub suite: String,
    /// Their numbers.
    pub queries: Vec<u64>,
    /// The first is what others are compared with.
    pub sides: Vec<SqlSide>,
}

/// Who answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SqlSide {
    /// "provider".
    pub name: String,
    /// One for each number.
    pub queries: Vec<SqlQuery>,
}

/// A query on one side. Warm figures are medians of rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SqlQuery {
    pub cold_ms: f64,
    pub cold_store_requests: u64,
    pub warm_ms: f64,
    /// Processor time of engine and server.
    pub warm_cpu_ms: f64,
    /// Bytes that moved to the engine.
    pub warm_bytes: u64,
}

impl SqlSide {
    /// Sums of all queries.
    pub fn total(&self) -> SqlQuery {
        self.queries.iter().fold(SqlQuery::default(), |sum, query| SqlQuery {
            cold_ms: sum.cold_ms + query.cold_ms,
            cold_store_requests: sum.cold_store_requests + query.cold_store_requests,
            warm_ms: sum.warm_ms + query.warm_ms,
            warm_cpu_ms: sum.warm_cpu_ms + query.warm_cpu_ms,
            warm_bytes: sum.warm_bytes + query.warm_bytes,
        })
    }
}

pub(super) fn section(suites: &[Sql]) -> Rendered {
    Ok(html! {
        section {
            h2 { "SQL" }
            p { "Each query was asked of every side, and the answers were compared. Cold: the first time. Warm: the median of later rounds." }
            @for sql in suites {
                h3 { (sql.suite) }
                div.figures {
                    (totals(sql)?)
                    (figure::lines(&LinePlot {
                        title: "Each query, warm".into(),
                        x: Axis { label: "query", scale: Scale::Linear },
                        y: Axis { label: "time, ms", scale: Scale::Log },
                        lines: lines(sql, |query| query.warm_ms),
                    })?)
                    (figure::lines(&LinePlot {
                        title: "Bytes moved, warm".into(),
                        x: Axis { label: "query", scale: Scale::Linear },
                        y: Axis { label: "bytes to the engine, MB", scale: Scale::Log },
                        lines: lines(sql, |query| query.warm_bytes as f64 / 1e6),
                    })?)
                }
                (table(sql))
            }
        }
    })
}

fn totals(sql: &Sql) -> Rendered {
    let bar = |name: String, ms: f64| Bar { name, parts: vec![ms / 1e3] };
    figure::bars(&BarPlot {
        title: "All queries".into(),
        x: Axis { label: "time, s", scale: Scale::Linear },
        unit: "s",
        parts: &["sum over the queries"],
        bars: sql
            .sides
            .iter()
            .map(|side| (side, side.total()))
            .flat_map(|(side, total)| {
                [bar(format!("{}, cold", side.name), total.cold_ms), bar(format!("{}, warm", side.name), total.warm_ms)]
            })
            .collect(),
    })
}

fn lines(sql: &Sql, value: fn(&SqlQuery) -> f64) -> Vec<Line> {
    let line = |(style, side): (usize, &SqlSide)| Line {
        name: side.name.clone(),
        style,
        points: sql.queries.iter().zip(&side.queries).map(|(number, query)| (*number as f64, value(query))).collect(),
    };
    sql.sides.iter().enumerate().map(line).collect()
}

fn table(sql: &Sql) -> Markup {
    let totals: Vec<SqlQuery> = sql.sides.iter().map(SqlSide::total).collect();
    let first = totals.first().cloned().unwrap_or_default();
    html! {
        div.scroll { table {
            thead {
                tr {
                    th.name rowspan="2" scope="col" { "query" }
                    @for side in &sql.sides { th.group colspan="4" scope="colgroup" { (side.name) } }
                }
                tr { @for _ in &sql.sides {
                    @for name in ["cold, ms", "warm, ms", "CPU, ms", "moved"] { th scope="col" { (name) } }
                } }
            }
            tbody {
                @for (at, query) in sql.queries.iter().enumerate() { tr {
                    th.name scope="row" { (count(*query)) }
                    @for side in &sql.sides { (cells(&side.queries[at])) }
                } }
                tr {
                    th.name scope="row" { "all" }
                    @for total in &totals { (cells(total)) }
                }
                tr {
                    th.name scope="row" { "times as fast as the first" }
                    @for total in &totals {
                        td { (ratio(Some(first.cold_ms / total.cold_ms))) }
                        td { (ratio(Some(first.warm_ms / total.warm_ms))) }
                        td {}
                        td {}
                    }
                }
            }
        } }
    }
}

fn cells(query: &SqlQuery) -> Markup {
    html! {
        td { (number(query.cold_ms)) }
        td { (number(query.warm_ms)) }
        td { (number(query.warm_cpu_ms)) }
        td { (bytes(query.warm_bytes)) }
    }
}
