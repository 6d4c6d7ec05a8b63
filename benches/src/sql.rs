//! `sql`: the queries of TPC-H and `ClickBench` through each door of the cache, against plain `DataFusion` over the same Parquet:
//! the same answers, and what they take.

mod answer;
mod side;
mod suite;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::Args;
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{self, Output};
use crate::place::Distance;
use crate::report::{Sql, SqlQuery, SqlSide};

use answer::Answer;
use side::Side;
use suite::{Query, Suite};

/// What is asked, and of whom.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where the tables lie, each as `NAME.parquet` or `NAME/`: a directory, or a file:// or `s3://bucket/prefix/` URL (settings
    /// from AWS_* variables).
    #[arg(long, value_name = "PLACE")]
    pub data: String,
    /// Which queries.
    #[arg(long, value_enum, default_value = "tpch")]
    pub suite: Suite,
    /// Only these of them, counted from 1.
    #[arg(long, value_name = "NUMBER", value_delimiter = ',')]
    pub queries: Vec<usize>,
    /// Who answers them; plain always does.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "plain,provider")]
    pub doors: Vec<side::Door>,
    /// A directory with the same tables that plain `DataFusion` reads as local files, as one more side.
    #[arg(long, value_name = "DIRECTORY")]
    pub local: Option<String>,
    /// Python with the package `flightcache`, for that door; without it `$FLIGHTCACHE_VENV/bin/python`, or python3.
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Capacity of each server's cache.
    #[arg(long, default_value = "6GiB")]
    pub capacity: ByteSize,
    /// Rounds of all queries, after a first one on empty caches, which is shown as cold.
    #[arg(long, default_value_t = 3)]
    pub rounds: u16,
    /// How far away the store is.
    #[command(flatten)]
    pub distance: Distance,
    /// Where the figures go.
    #[command(flatten)]
    pub output: Output,
}

/// What a query took on one side, once.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    elapsed: Duration,
    /// Of this process, engine, server, and the store's client, and of the engine where it has another.
    cpu: Duration,
    moved_bytes: u64,
    store_requests: u64,
}

/// Asks, compares, prints a table, and writes the report.
///
/// # Errors
/// Also where a side answered other rows than plain `DataFusion`, once everything was asked.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    options.output.create()?;
    let queries = options.suite.queries(&options.queries)?;
    let mut sides = side::start(&options).await?;
    let mut report = output::report("Flightcache: SQL");
    report.notes = notes(&options);
    report.notes.iter().for_each(|note| println!("{note}"));

    let mut turns = vec![vec![Vec::new(); queries.len()]; sides.len()];
    let mut differences = Vec::new();
    let passes = usize::from(options.rounds) + 1;
    let progress = ProgressBar::new((passes * queries.len() * sides.len()) as u64);
    progress.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} {wide_msg}")?);
    for (at, query) in queries.iter().enumerate() {
        // For what a limit may choose among.
        let all = match query.unlimited() {
            Some(sql) => Some(sides[0].answer(&sql).await?),
            None => None,
        };
        let sorted_by = sides[0].sorted_by(&query.sql).await?;
        sides[0].take_counts().await?;
        let mut expected: Option<Answer> = None;
        for pass in 0..passes {
            for turn in 0..sides.len() {
                // Plain first in the first pass, for what to expect; then each is first in turn.
                let of = if pass == 0 { turn } else { (turn + pass) % sides.len() };
                progress.set_message(format!("{} of {}: {}", query.number, options.suite.name(), sides[of].name));
                let (answer, took) = timed(&mut sides[of], query).await?;
                turns[of][at].push(took);
                match &expected {
                    None => expected = Some(answer),
                    Some(expected) => {
                        if let Err(difference) = answer.check(expected, all.as_ref(), &sorted_by) {
                            let when = if pass == 0 { "cold" } else { "warm" };
                            differences.push(format!("query {}, {}, {when}: {difference}", query.number, sides[of].name));
                        }
                    }
                }
                progress.inc(1);
            }
        }
        if let Some(all) = all {
            let sql = query.unlimited().unwrap_or_default();
            for side in &mut sides[1..] {
                if let Err(difference) = side.answer(&sql).await?.check(&all, None, &sorted_by) {
                    differences.push(format!("query {} without its limit, {}: {difference}", query.number, side.name));
                }
                side.take_counts().await?;
            }
        }
    }
    progress.finish_and_clear();

    let measured = Sql {
        suite: options.suite.name().to_owned(),
        queries: queries.iter().map(|query| query.number as u64).collect(),
        sides: sides.iter().zip(&turns).map(|(side, turns)| measured(side, turns)).collect(),
    };
    println!("{}", table(&measured));
    report.sql.push(measured);
    for side in sides {
        side.stop().await;
    }
    options.output.write(&report)?;
    if differences.is_empty() {
        println!("every side answered the {} queries as plain DataFusion did", queries.len());
        return Ok(());
    }
    Err(differences.join("\n").into())
}

async fn timed(side: &mut Side, query: &Query) -> Result<(Answer, Turn), Box<dyn std::error::Error>> {
    let (started, cpu) = (Instant::now(), side.cpu());
    let asked = side.answer(&query.sql).await;
    let answer = asked.map_err(|error| format!("query {}, {}: {error}", query.number, side.name))?;
    let (elapsed, cpu) = (started.elapsed(), side.cpu().saturating_sub(cpu));
    let (moved_bytes, store_requests) = side.take_counts().await?;
    Ok((answer, Turn { elapsed, cpu, moved_bytes, store_requests }))
}

fn notes(options: &Options) -> Vec<String> {
    vec![
        format!(
            "{} over {}; {}. Each server's cache holds {}.",
            options.suite.title(),
            options.data,
            options.distance.describe(),
            options.capacity.display().iec(),
        ),
        format!(
            "Sides take turns, query by query, in this process; a server is reached over loopback. Cold is the first time that a query is asked, of caches \
             that hold what the queries before it have left there; warm is the median of {} more. Bytes moved are those that plain DataFusion reads of the store, \
             or that the server sends.",
            options.rounds,
        ),
    ]
}

fn measured(side: &Side, turns: &[Vec<Turn>]) -> SqlSide {
    let query = |turns: &Vec<Turn>| {
        let (cold, warm) = turns.split_first().map_or((Turn::default(), &[][..]), |(cold, warm)| (*cold, warm));
        let median = |figure: fn(&Turn) -> f64| {
            let mut values: Vec<f64> = warm.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(0.0)
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        SqlQuery {
            cold_ms: ms(cold.elapsed),
            cold_store_requests: cold.store_requests,
            warm_ms: median(|turn| turn.elapsed.as_secs_f64() * 1e3),
            warm_cpu_ms: median(|turn| turn.cpu.as_secs_f64() * 1e3),
            warm_bytes: median(|turn| turn.moved_bytes as f64) as u64,
        }
    };
    SqlSide { name: side.name.clone(), queries: turns.iter().map(query).collect() }
}

fn table(sql: &Sql) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    let header = ["cold, ms", "warm, ms", "CPU, ms", "moved"];
    let heads = sql.sides.iter().flat_map(|side| header.iter().map(move |head| format!("{}\n{head}", side.name)));
    table.set_header(std::iter::once("query".to_owned()).chain(heads));
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let cells = |query: &SqlQuery| {
        let bytes = ByteSize(query.warm_bytes).display().iec().to_string();
        [format!("{:.0}", query.cold_ms), format!("{:.1}", query.warm_ms), format!("{:.0}", query.warm_cpu_ms), bytes]
    };
    for (at, number) in sql.queries.iter().enumerate() {
        let figures = sql.sides.iter().flat_map(|side| cells(&side.queries[at]));
        table.add_row(std::iter::once(number.to_string()).chain(figures));
    }
    let totals: Vec<SqlQuery> = sql.sides.iter().map(SqlSide::total).collect();
    table.add_row(std::iter::once("all".to_owned()).chain(totals.iter().flat_map(cells)));
    let first = totals.first().cloned().unwrap_or_default();
    let ratios = totals.iter().flat_map(|total| {
        let [cold, warm] = [total.cold_ms / first.cold_ms, first.warm_ms / total.warm_ms];
        [format!("{cold:.2} of\nplain's"), format!("{warm:.2} times\nas fast"), String::new(), String::new()]
    });
    table.add_row(std::iter::once("to the first".to_owned()).chain(ratios));
    table
}
