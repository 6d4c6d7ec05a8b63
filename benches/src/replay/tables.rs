//! A replay for the terminal.

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, TableComponent};

use super::statistics::ratio;
use crate::report::{Replay, Side};

/// What each side did.
pub fn sides(replay: &Replay) -> Table {
    let mut table = table([
        "side",
        "requests",
        "average",
        "p50",
        "p99",
        "file fetch",
        "decoding",
        "server",
        "hits",
        "bytes from S3",
        "S3 requests",
        "errors",
        "ratio to direct",
    ]);
    for side in &replay.sides {
        table.add_row([
            side.name.clone(),
            replay.requests.to_string(),
            ms(side.mean_ms),
            ms(side.p50_ms),
            ms(side.p99_ms),
            ms(side.fetch_ms),
            ms(side.decode_ms),
            ms(side.server_ms),
            if side.caches() { format!("{:.0}%", side.hit_rate() * 100.0) } else { NONE.to_owned() },
            ByteSize(side.store_bytes).to_string(),
            side.store_requests.to_string(),
            side.errors.to_string(),
            times(side.speedup_over_direct),
        ]);
    }
    table
}

/// Requests by what a cache can have known of their objects, and how many times faster Flightcache is.
pub fn by_kind(replay: &Replay) -> Table {
    let mut header = vec!["requests for an object".to_owned()];
    header.extend(replay.sides.iter().map(|side| side.name.clone()));
    let own = replay.sides.iter().find(|side| side.name == "flightcache");
    let others: Vec<&Side> = replay.sides.iter().filter(|side| own.is_some() && side.name != "flightcache").collect();
    header.extend(others.iter().map(|side| format!("{} / flightcache", side.name)));
    let mut table = table(header);
    let kinds: [(&str, MeanOfSide); 3] = [
        ("cold: the first", |side| side.cold_ms),
        ("joined: while the first was under way", |side| side.joined_ms),
        ("repeat: all after that", |side| side.repeat_ms),
    ];
    for (kind, time) in kinds {
        let times_of = replay.sides.iter().map(|side| time(side).map_or(NONE.to_owned(), ms));
        let ratios = others.iter().map(|side| times(ratio(time(side), own.and_then(time))));
        table.add_row([kind.to_owned()].into_iter().chain(times_of).chain(ratios));
    }
    table
}

/// A mean that a side may not have.
type MeanOfSide = fn(&Side) -> Option<f64>;

const NONE: &str = "–";

pub(super) fn table(header: impl IntoIterator<Item = impl Into<comfy_table::Cell>>) -> Table {
    let mut table = Table::new();
    // Lines around the table and below its header only.
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.remove_style(TableComponent::HorizontalLines).remove_style(TableComponent::MiddleIntersections);
    table.set_header(header.into_iter().map(Into::into).collect::<Vec<comfy_table::Cell>>());
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

pub(super) fn ms(time_ms: f64) -> String {
    if time_ms.is_finite() { format!("{time_ms:.1}") } else { NONE.to_owned() }
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or(NONE.to_owned(), |ratio| format!("{ratio:.2}×"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_others_to_flightcache() {
        let side = |name: &str, [cold_ms, joined_ms, repeat_ms]: [Option<f64>; 3]| Side {
            name: name.into(),
            cold_ms,
            joined_ms,
            repeat_ms,
            ..Side::default()
        };
        let sides = vec![
            side("direct", [Some(30.0), None, Some(40.0)]),
            side("whole-file cache", [Some(45.0), Some(12.0), None]),
            side("flightcache", [Some(20.0), Some(6.0), Some(5.0)]),
        ];
        let replay = Replay { trace: "t".into(), requests: 4, span_s: 1.0, servers: 1, sides };
        let text = by_kind(&replay).to_string();
        let row =
            |kind: &str| text.lines().find(|line| line.contains(kind)).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(row("cold"), "cold: the first 30.0 45.0 20.0 1.50× 2.25×");
        assert_eq!(row("joined"), "joined: while the first was under way – 12.0 6.0 – 2.00×");
        assert_eq!(row("repeat"), "repeat: all after that 40.0 – 5.0 8.00× –");
    }
}
