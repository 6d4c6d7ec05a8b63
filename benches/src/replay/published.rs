//! What was published of the predecessor, beside what was measured here.

use comfy_table::Table;

use super::tables::{ms, table};
use crate::report::Replay;

/// Mean response times in ms, with one server and with three, by trace: clients and servers on EC2 c5.xlarge, 2.5 Gbit/s, S3 124 ms away.
const PUBLISHED: [(&str, [f64; 2]); 4] =
    [("1m", [116.6, 121.5]), ("100m", [14_203.6, 9_572.5]), ("parallel", [2_508.5, 2_648.6]), ("serial", [1_055.1, 1_021.7])];

/// Means of the sides that were measured, for each number of servers; `None` if no trace was published.
pub fn beside(replays: &[Replay]) -> Option<Table> {
    let measured = |trace: &str| replays.iter().filter(|replay| replay.trace == trace).collect::<Vec<_>>();
    let mut columns: Vec<(String, u64)> = Vec::new();
    for (replay, side) in replays.iter().flat_map(|replay| replay.sides.iter().map(move |side| (replay, side))) {
        let column = (side.name.clone(), replay.servers);
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    // All numbers of servers of a side beside each other.
    let order: Vec<String> = columns.iter().map(|(name, _)| name.clone()).collect();
    columns.sort_by_key(|(name, servers)| (order.iter().position(|other| other == name), *servers));
    let heads = columns.iter().map(|(name, servers)| format!("{name}\n{}", servers_text(*servers)));
    let published = ["published\n1 server", "published\n3 servers"].map(ToOwned::to_owned);
    let mut shown = table(["trace".to_owned()].into_iter().chain(published).chain(heads));
    let mut has_rows = false;
    for (trace, published) in PUBLISHED {
        let measured = measured(trace);
        if measured.is_empty() {
            continue;
        }
        has_rows = true;
        let mean = |(name, servers): &(String, u64)| {
            let of_servers = measured.iter().filter(|replay| replay.servers == *servers);
            let side = of_servers.flat_map(|replay| &replay.sides).find(|side| side.name == *name);
            ms(side.map_or(f64::NAN, |side| side.mean_ms))
        };
        shown.add_row([trace.to_owned()].into_iter().chain(published.map(ms)).chain(columns.iter().map(mean)));
    }
    has_rows.then_some(shown)
}

/// So many servers, in words.
pub fn servers_text(count: u64) -> String {
    if count == 1 { "1 server".to_owned() } else { format!("{count} servers") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Side;

    #[test]
    fn numbers_of_servers_stand_beside_each_other() {
        let replay = |trace: &str, servers, means: [f64; 2]| {
            let side = |name: &str, mean_ms| Side { name: name.into(), mean_ms, ..Side::default() };
            let sides = vec![side("direct", means[0]), side("flightcache", means[1])];
            Replay { trace: trace.into(), servers, sides, ..Replay::default() }
        };
        let replays = [replay("serial", 1, [9.0, 2.0]), replay("serial", 3, [8.0, 1.0]), replay("zipf", 3, [7.0, 7.0])];
        let text = beside(&replays).unwrap().to_string();
        let row = text.lines().find(|line| line.contains("serial")).unwrap();
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["serial", "1055.1", "1021.7", "9.0", "8.0", "2.0", "1.0"]);
        assert!(!text.contains("zipf") && text.contains("3 servers"), "{text}");
        assert!(beside(&replays[2..]).is_none());
    }
}
