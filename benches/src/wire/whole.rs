//! Whole tables, read again and again by each pair of ends in turn.

use std::collections::BTreeMap;

use flightcache_server::settings::Residency;

use super::link::Link;
use super::process::{Ask, Launcher, Process};
use super::tables::{Served, Table};
use super::{Options, arrow_rs, median};
use crate::report::WirePoint;

const GIB: f64 = (1_u64 << 30) as f64;

const FLIGHTCACHE: &str = "flightcache";
/// With Parquet bytes in its cache.
const FLIGHTCACHE_PARQUET: &str = "flightcache-parquet";
const PYARROW: &str = "pyarrow";
const RECEIVER: &str = "receiver";
const ARROW_RS: &str = "arrow-rs";
const RAW: &str = "raw";

const RAW_TCP: &str = "raw TCP";
const PYARROW_ALONE: &str = "pyarrow → pyarrow";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A server, a client, and what they did in their turns.
struct Side {
    name: &'static str,
    batch_rows: Option<usize>,
    server: &'static str,
    client: &'static str,
    ask: Ask,
    samples: Vec<Sample>,
}

/// One turn.
#[derive(Clone, Copy)]
struct Sample {
    gib_per_s: f64,
    server_cpu_s_per_gib: f64,
    client_cpu_s_per_gib: f64,
}

/// All ends.
#[derive(Default)]
struct Ends {
    servers: BTreeMap<&'static str, (Process, String)>,
    readers: BTreeMap<&'static str, Process>,
}

/// Figures of each side for one table.
pub(super) fn measure(
    launcher: &Launcher,
    options: &Options,
    table: &Table,
    served: &Served,
    link: Option<&Link>,
) -> Result<Vec<WirePoint>> {
    let mut ends = start(launcher, options, table, served, link)?;
    let mut sides = sides(&ends, table, served, link.is_some())?;
    check(&mut ends, &sides, served)?;
    let passes = ((options.bytes.as_u64() as f64 / served.bytes as f64).round() as u64).max(1);
    let count = sides.len();
    for round in 0..options.rounds.max(1) {
        for turn in 0..count {
            let side = &mut sides[(round + turn) % count];
            side.ask.passes = passes;
            let sample = ends.sample(side, served)?;
            side.samples.push(sample);
        }
    }
    let data = link.map_or_else(|| table.name.to_owned(), |link| format!("{}, {}", table.name, link.rate));
    Ok(points(&data, &sides))
}

fn start(launcher: &Launcher, options: &Options, table: &Table, served: &Served, link: Option<&Link>) -> Result<Ends> {
    let mut ends = Ends::default();
    let mut servers = vec![
        (FLIGHTCACHE, launcher.flightcache(std::slice::from_ref(table), options.residency, link)?),
        (RAW, launcher.raw(served.bytes, link)?),
    ];
    servers.extend(launcher.pyarrow(&served.files, link)?.map(|server| (PYARROW, server)));
    let mut readers = vec![FLIGHTCACHE, RAW];
    if link.is_some() {
        servers.push((FLIGHTCACHE_PARQUET, launcher.flightcache(std::slice::from_ref(table), Residency::Parquet, link)?));
    } else {
        servers.push((ARROW_RS, launcher.arrow_rs(&served.files, link)?));
        readers.extend([ARROW_RS, RECEIVER]);
    }
    ends.servers = servers.into_iter().map(|(name, (process, ready))| (name, (process, ready.address))).collect();
    for name in readers {
        ends.readers.insert(name, launcher.reader(name, link)?);
    }
    ends.readers.extend(launcher.pyarrow_reader(link)?.map(|reader| (PYARROW, reader)));
    Ok(ends)
}

fn sides(ends: &Ends, table: &Table, served: &Served, is_linked: bool) -> Result<Vec<Side>> {
    let side = |name, server: &'static str, client: &'static str, batch_rows, ask: Ask| {
        let (_, address) = ends.servers.get(server)?;
        ends.readers.get(client)?;
        let ask = Ask { address: address.clone(), bytes: served.bytes, ..ask };
        Some(Side { name, batch_rows, server, client, ask, samples: Vec::new() })
    };
    let ours = Ask { ticket: table.url()?, ..Ask::default() };
    let mut sides = vec![
        side("flightcache → flightcache", FLIGHTCACHE, FLIGHTCACHE, None, ours.clone()),
        side("flightcache → pyarrow", FLIGHTCACHE, PYARROW, None, ours.clone()),
    ];
    if is_linked {
        let compressed = |codec: &str| Ask { compression: Some(codec.to_owned()), ..ours.clone() };
        sides.extend([
            side("… compressed with LZ4", FLIGHTCACHE, PYARROW, None, compressed("lz4")),
            side("… compressed with Zstandard", FLIGHTCACHE, PYARROW, None, compressed("zstd")),
            side("flightcache → flightcache as Parquet", FLIGHTCACHE_PARQUET, FLIGHTCACHE, None, Ask { parquet: true, ..ours }),
        ]);
    }
    let by_rows = |name, server, client, suffix: &str, frame_bytes| {
        let of_rows = move |(rows, _): &(usize, std::path::PathBuf)| {
            side(name, server, client, Some(*rows), Ask { ticket: format!("{rows}{suffix}"), frame_bytes, ..Ask::default() })
        };
        served.files.iter().map(of_rows).collect::<Vec<_>>()
    };
    sides.extend(by_rows(PYARROW_ALONE, PYARROW, PYARROW, "", None));
    if !is_linked {
        sides.extend(by_rows("pyarrow → our receiver", PYARROW, RECEIVER, "", None));
        sides.extend(by_rows("arrow-rs → arrow-rs", ARROW_RS, ARROW_RS, "", None));
        sides.extend(by_rows("… messages of 1 MiB", ARROW_RS, ARROW_RS, arrow_rs::SMALLER, None));
        sides.extend(by_rows("… and frames of 1 MiB", ARROW_RS, ARROW_RS, arrow_rs::SMALLER, Some(1 << 20)));
    }
    sides.push(side(RAW_TCP, RAW, RAW, None, Ask::default()));
    Ok(sides.into_iter().flatten().collect())
}

/// Warms all, and sees that all read the same.
fn check(ends: &mut Ends, sides: &[Side], served: &Served) -> Result<()> {
    let mut first = None;
    for side in sides {
        let ask = Ask { passes: 1, checksum: true, ..side.ask.clone() };
        let reader = ends.readers.get_mut(side.client).ok_or("no such reader")?;
        let answer = reader.ask(&ask)?;
        if side.server != RAW && (answer.rows, *first.get_or_insert(answer.checksum)) != (served.rows, answer.checksum) {
            let problem = format!("{} rows, sum {}, not {} rows, sum {first:?}", answer.rows, answer.checksum, served.rows);
            return Err(format!("{}: {problem}", side.name).into());
        }
        // Once more, as it will be measured: what is read again may rest otherwise.
        reader.ask(&Ask { passes: 1, ..side.ask.clone() })?;
    }
    Ok(())
}

impl Ends {
    fn sample(&mut self, side: &Side, served: &Served) -> Result<Sample> {
        let (server, _) = self.servers.get(side.server).ok_or("no such server")?;
        let reader = self.readers.get_mut(side.client).ok_or("no such reader")?;
        let before = (server.cpu(), reader.cpu());
        let answer = reader.ask(&side.ask)?;
        let after = (server.cpu(), reader.cpu());
        if side.server != RAW && answer.rows != served.rows * answer.reads {
            return Err(format!("{}: {} rows in {} reads of {}", side.name, answer.rows, answer.reads, served.rows).into());
        }
        let gib = (served.bytes * answer.reads) as f64 / GIB;
        Ok(Sample {
            gib_per_s: gib / answer.seconds,
            server_cpu_s_per_gib: after.0.saturating_sub(before.0).as_secs_f64() / gib,
            client_cpu_s_per_gib: after.1.saturating_sub(before.1).as_secs_f64() / gib,
        })
    }
}

fn points(data: &str, sides: &[Side]) -> Vec<WirePoint> {
    let of = |side: &Side, figure: fn(&Sample) -> f64| median(side.samples.iter().map(figure));
    let best = |name: &str| {
        let own = sides.iter().filter(|side| side.name == name).map(|side| of(side, |sample| sample.gib_per_s));
        own.reduce(f64::max)
    };
    let (raw, pyarrow) = (best(RAW_TCP), best(PYARROW_ALONE));
    let point = |side: &Side| {
        let gib_per_s = of(side, |sample| sample.gib_per_s);
        WirePoint {
            data: data.to_owned(),
            side: side.name.to_owned(),
            batch_rows: side.batch_rows.map(|rows| rows as u64),
            gib_per_s,
            server_cpu_s_per_gib: of(side, |sample| sample.server_cpu_s_per_gib),
            client_cpu_s_per_gib: of(side, |sample| sample.client_cpu_s_per_gib),
            to_raw: raw.map(|raw| gib_per_s / raw),
            to_pyarrow: pyarrow.map(|pyarrow| gib_per_s / pyarrow),
        }
    };
    sides.iter().map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_set_against_raw_tcp_and_the_better_pyarrow() {
        let side = |name, batch_rows, rates: [f64; 3]| {
            let sample = |gib_per_s| Sample { gib_per_s, server_cpu_s_per_gib: 1.0, client_cpu_s_per_gib: 2.0 };
            let samples = rates.map(sample).to_vec();
            Side { name, batch_rows, server: RAW, client: RAW, ask: Ask::default(), samples }
        };
        let pyarrow = [side(PYARROW_ALONE, Some(8_192), [1.0, 1.0, 9.0]), side(PYARROW_ALONE, Some(65_536), [2.0, 0.5, 3.0])];
        let [small, large] = pyarrow;
        let points =
            points("numeric", &[side("ours", None, [3.0, 4.0, 5.0]), small, large, side(RAW_TCP, None, [8.0, 8.0, 1.0])]);
        let ours = &points[0];
        assert_eq!((ours.gib_per_s, ours.to_raw, ours.to_pyarrow), (4.0, Some(0.5), Some(2.0)));
        assert_eq!(points[1].to_pyarrow, Some(0.5));
    }
}
