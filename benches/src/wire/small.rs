//! Answers of 1 KiB: how many a second one client gets.

use super::process::{Ask, Launcher, Process};
use super::tables::Table;
use super::{Options, median};
use crate::report::WireRate;

/// Requests under way.
const IN_FLIGHT: [usize; 3] = [1, 16, 128];
/// The same where one message carries many.
const IN_FLIGHT_BATCHED: [usize; 3] = [16, 128, 1024];
const SECONDS: f64 = 1.0;
const ROWS: usize = 16;

struct Side {
    name: &'static str,
    server: Process,
    reader: Process,
    ask: Ask,
    in_flight: [usize; 3],
    /// By requests under way.
    turns: [Vec<Turn>; 3],
}

#[derive(Clone, Copy)]
struct Turn {
    requests_per_s: f64,
    server_cpu_us: f64,
    client_cpu_us: f64,
}

/// Figures of each side, by requests under way.
pub(super) async fn measure(
    launcher: &Launcher,
    options: &Options,
    table: &Table,
) -> Result<Vec<WireRate>, Box<dyn std::error::Error>> {
    let served = table.as_served(&[ROWS]).await?;
    let (ours, at) = launcher.flightcache(std::slice::from_ref(table), options.residency, None)?;
    let mut servers = vec![("flightcache → flightcache", ours, at, "flightcache", table.url()?)];
    let (ours, at) = launcher.flightcache(std::slice::from_ref(table), options.residency, None)?;
    servers.push(("… by DoExchange", ours, at, "exchange", table.url()?));
    let (arrow_rs, at) = launcher.arrow_rs(&served.files, None)?;
    servers.push(("arrow-rs → arrow-rs", arrow_rs, at, "arrow-rs", ROWS.to_string()));
    if let Some((pyarrow, at)) = launcher.pyarrow(&served.files, None)? {
        servers.push(("pyarrow → our receiver", pyarrow, at, "receiver", ROWS.to_string()));
    }
    let mut sides = Vec::new();
    for (name, server, ready, reader_kind, ticket) in servers {
        let ask = Ask { address: ready.address, ticket, ..Ask::default() };
        let mut reader = launcher.reader(reader_kind, None)?;
        // Twice: what is read again may rest otherwise.
        let answer = reader.ask(&Ask { passes: 2, ..ask.clone() })?;
        if answer.rows != 2 * served.rows {
            return Err(format!("{name}: {} rows, not {}", answer.rows, 2 * served.rows).into());
        }
        let in_flight = if reader_kind == "exchange" { IN_FLIGHT_BATCHED } else { IN_FLIGHT };
        sides.push(Side { name, server, reader, ask: Ask { seconds: SECONDS, ..ask }, in_flight, turns: Default::default() });
    }
    for _ in 0..options.rounds.max(1) {
        for at in 0..IN_FLIGHT.len() {
            for side in &mut sides {
                side.ask.in_flight = side.in_flight[at];
                let turn = side.turn(served.rows)?;
                side.turns[at].push(turn);
            }
        }
    }
    let of = |side: &Side, at: usize| {
        let of = |figure: fn(&Turn) -> f64| median(side.turns[at].iter().map(figure));
        WireRate {
            side: side.name.to_owned(),
            in_flight: side.in_flight[at] as u64,
            requests_per_s: of(|turn| turn.requests_per_s),
            server_cpu_us: of(|turn| turn.server_cpu_us),
            client_cpu_us: of(|turn| turn.client_cpu_us),
        }
    };
    Ok(sides.iter().flat_map(|side| (0..IN_FLIGHT.len()).map(move |at| of(side, at))).collect())
}

impl Side {
    fn turn(&mut self, rows: u64) -> Result<Turn, Box<dyn std::error::Error>> {
        let before = (self.server.cpu(), self.reader.cpu());
        let answer = self.reader.ask(&self.ask)?;
        let after = (self.server.cpu(), self.reader.cpu());
        if answer.rows != rows * answer.reads {
            return Err(format!("{}: {} rows in {} reads", self.name, answer.rows, answer.reads).into());
        }
        let reads = answer.reads as f64;
        Ok(Turn {
            requests_per_s: reads / answer.seconds,
            server_cpu_us: after.0.saturating_sub(before.0).as_secs_f64() * 1e6 / reads,
            client_cpu_us: after.1.saturating_sub(before.1).as_secs_f64() * 1e6 / reads,
        })
    }
}
