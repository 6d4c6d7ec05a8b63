//! The traces that are known by name, and those in files: what `replay` plays, `simulate` takes, and `export` writes.

use std::fs::File;
use std::io::{BufReader, ErrorKind};

use flightcache_traces::generate::{Hot, Load, OnOff, Scans, bursts, scan_mix, zipf};
use flightcache_traces::{Access, Error, Trace, original};

/// How large a generated trace is, and of what objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Thousands of objects, which need not exist.
    Simulated,
    /// The files that `generate` makes, asked for twice a second for a minute: as the original traces, more or less.
    Files,
}

/// What generated traces are made of.
struct Parameters {
    load: Load,
    /// `zipf` and `bursts`.
    hot: Hot,
    /// `scan-mix`: what is asked for between scans, and the scans.
    mixed: (Hot, Scans),
    /// `hot-scan`: a small hot set, and long scans.
    hot_set: (Hot, Scans),
    /// `shift`: each of the working sets that follow each other.
    shifting: Hot,
    /// `rounds`: objects of each of the sets that follow each other, and how often each set is read.
    rounds: (u64, u64),
    on_off: OnOff,
}

/// Working sets that follow each other in `shift` and `rounds`.
const PHASES: u64 = 4;
/// Rows of each simulated object, of 20 float64 columns: 16 MB.
const OBJECT_ROWS: u64 = 100_000;
const OBJECT_BYTES: u64 = OBJECT_ROWS * original::COLUMNS * size_of::<f64>() as u64;

const SIMULATED: Parameters = {
    let hot = Hot { objects: 4_000, exponent: 1.0, object_bytes: OBJECT_BYTES };
    let scans = Scans { share: 0.3, length: 500, objects: 4_000, object_bytes: OBJECT_BYTES };
    Parameters {
        load: Load { seed: 7, requests: 40_000, rate_per_s: 100.0 },
        hot,
        mixed: (hot, scans),
        hot_set: (Hot { objects: 500, exponent: 0.0, ..hot }, Scans { share: 0.5, length: 2_000, ..scans }),
        shifting: Hot { objects: 2_000, ..hot },
        rounds: (500, 20),
        on_off: OnOff { mean_on_s: 2.0, mean_off_s: 8.0 },
    }
};

/// Hot sets are among the small files, and scans are over the large ones, where there are both.
const FILES: Parameters = {
    // The sizes are those of the files, and filled in when these are known.
    let hot = Hot { objects: SMALL_FILES + LARGE_FILES, exponent: 1.0, object_bytes: 0 };
    let scans = Scans { share: 0.3, length: 5, objects: LARGE_FILES, object_bytes: 0 };
    Parameters {
        load: Load { seed: 7, requests: 120, rate_per_s: 2.0 },
        hot,
        mixed: (Hot { objects: SMALL_FILES, ..hot }, scans),
        hot_set: (Hot { objects: SET_FILES, exponent: 0.0, ..hot }, Scans { share: 0.5, length: LARGE_FILES, ..scans }),
        shifting: Hot { objects: SET_FILES, ..hot },
        rounds: (SET_FILES, 8),
        on_off: OnOff { mean_on_s: 2.0, mean_off_s: 8.0 },
    }
};
const SMALL_FILES: u64 = 9;
const LARGE_FILES: u64 = 10;
/// Of each of the sets that follow each other.
const SET_FILES: u64 = 4;

/// A trace that is made by a generator.
struct Synthetic {
    name: &'static str,
    /// What it is, simulated and on files.
    about: [&'static str; 2],
    generate: fn(&Parameters) -> flightcache_traces::Result<Trace>,
}

const SYNTHETIC: [Synthetic; 6] = [
    Synthetic {
        name: "zipf",
        about: ["4,000 objects of 16 MB by Zipf's law, exponent 1", "files 1 to 19 by Zipf's law, exponent 1"],
        generate: |of| zipf(of.load, of.hot),
    },
    Synthetic {
        name: "scan-mix",
        about: [
            "as zipf; 30 % of the requests are scans of 500 objects each over a table of 4,000",
            "files 1 to 9 by Zipf's law, exponent 1; 30 % of the requests are scans of 5 files each over files 10 to 19",
        ],
        generate: |of| scan_mix(of.load, of.mixed.0, of.mixed.1),
    },
    Synthetic {
        name: "hot-scan",
        about: [
            "500 objects of 16 MB at random; half of the requests are scans of 2,000 objects each over a table of 4,000",
            "files 1 to 4 at random; half of the requests are scans of files 10 to 19",
        ],
        generate: |of| scan_mix(of.load, of.hot_set.0, of.hot_set.1),
    },
    Synthetic {
        name: "shift",
        about: [
            "as zipf with 2,000 objects, all of them replaced by others three times",
            "files 1 to 4 by Zipf's law, exponent 1, all of them replaced by four others three times",
        ],
        generate: |of| {
            let load = |phase| Load { seed: of.load.seed + phase, requests: of.load.requests / PHASES, ..of.load };
            Ok(in_turn((0..PHASES).map(|phase| zipf(load(phase), of.shifting)).collect::<Result<_, _>>()?))
        },
    },
    Synthetic {
        name: "rounds",
        about: [
            "four sets of 500 objects of 16 MB after each other, each read in 20 rounds",
            "four sets of four files after each other, each read in 8 rounds",
        ],
        generate: |of| Ok(in_turn((0..PHASES).map(|_| rounds(of)).collect())),
    },
    Synthetic {
        name: "bursts",
        about: ["as zipf, in bursts of 2 s, 8 s apart", "as zipf, in bursts of 2 s, 8 s apart"],
        generate: |of| {
            let OnOff { mean_on_s, mean_off_s } = of.on_off;
            // In the mean as many a second as the others.
            let rate_per_s = of.load.rate_per_s * (mean_on_s + mean_off_s) / mean_on_s;
            bursts(Load { rate_per_s, ..of.load }, of.hot, of.on_off)
        },
    },
];

/// A trace to run.
pub struct Workload {
    /// Its name, or its file.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Whether a generator made it.
    pub is_synthetic: bool,
    /// Its accesses.
    pub trace: Trace,
}

/// Why there is no such trace.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Neither known nor a file.
    #[error("unknown trace '{name}': no such file, and the known ones are {}", known().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The file cannot be opened.
    #[error("cannot read trace {path}: {source}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file cannot be read to its end, or is no trace.
    #[error("{name}: {source}")]
    Trace {
        /// The trace.
        name: String,
        /// Why, with the line.
        source: Error,
    },
}

/// All known traces: the original ones, then synthetic ones.
pub fn all(scale: Scale) -> Result<Vec<Workload>, WorkloadError> {
    known().into_iter().map(|name| workload(name, scale)).collect()
}

/// The original traces.
pub fn originals() -> Vec<Workload> {
    original::all().map(|(name, trace)| original_workload(name, trace)).into()
}

/// A trace by its name, or from a file of JSON Lines.
pub fn workload(name: &str, scale: Scale) -> Result<Workload, WorkloadError> {
    let in_trace = |source| WorkloadError::Trace { name: name.to_owned(), source };
    if let Some((_, trace)) = original::all().into_iter().find(|(known, _)| *known == name) {
        return Ok(original_workload(name, trace));
    }
    if let Some(synthetic) = SYNTHETIC.iter().find(|synthetic| synthetic.name == name) {
        let [simulated, on_files] = synthetic.about;
        let (about, trace) = match scale {
            Scale::Simulated => (simulated, (synthetic.generate)(&SIMULATED)),
            Scale::Files => (on_files, (synthetic.generate)(&FILES).map(of_files)),
        };
        let trace = trace.map_err(in_trace)?;
        return Ok(Workload { name: name.to_owned(), about: about.to_owned(), is_synthetic: true, trace });
    }
    let file = File::open(name).map_err(|source| match source.kind() {
        ErrorKind::NotFound => WorkloadError::Unknown { name: name.to_owned() },
        _ => WorkloadError::Open { path: name.to_owned(), source },
    })?;
    let trace = Trace::read(BufReader::new(file)).map_err(in_trace)?;
    Ok(Workload { name: name.to_owned(), about: "from a file".to_owned(), is_synthetic: false, trace })
}

fn original_workload(name: &str, trace: Trace) -> Workload {
    Workload { name: name.to_owned(), about: "original trace".to_owned(), is_synthetic: false, trace }
}

fn known() -> Vec<&'static str> {
    original::all().iter().map(|(name, _)| *name).chain(SYNTHETIC.iter().map(|synthetic| synthetic.name)).collect()
}

/// A set of objects, read from the first to the last again and again.
fn rounds(of: &Parameters) -> Trace {
    let (objects, rounds) = of.rounds;
    let gap_us = 1e6 / of.load.rate_per_s;
    let access = |at: u64| {
        let name = format!("{}.parquet", at % objects + 1);
        Access::whole_object((at as f64 * gap_us) as u64, at, name, OBJECT_BYTES, OBJECT_ROWS)
    };
    Trace { accesses: (0..objects * rounds).map(access).collect() }
}

/// The same with files that `generate` makes in place of the objects.
fn of_files(mut trace: Trace) -> Trace {
    for access in &mut trace.accesses {
        if let Some(number) = file(&access.url)
            && let Some(size) = original::object_size(number)
        {
            (access.url, access.bytes, access.rows) = (format!("{number}.parquet").into(), vec![size.bytes], size.rows);
        }
    }
    trace
}

/// The number of an object's file: a table that is scanned is the large ones, and sets follow each other.
fn file(object: &str) -> Option<u64> {
    let object = object.strip_suffix(".parquet")?;
    let number = |text: &str| text.parse::<u64>().ok();
    if let Some(scanned) = object.strip_prefix("scan-") {
        return Some(SMALL_FILES + number(scanned)?);
    }
    match object.strip_prefix("set-").and_then(|object| object.split_once('/')) {
        Some((set, object)) => Some(number(set)?.checked_sub(1)? * SET_FILES + number(object)?),
        None => number(object),
    }
}

/// One trace after the other, each with objects and requests of its own.
fn in_turn(phases: Vec<Trace>) -> Trace {
    let (mut accesses, mut start_us, mut requests) = (Vec::new(), 0, 0);
    for (index, phase) in (1..).zip(phases) {
        let (mut last_us, mut last_request) = (0, 0);
        for mut access in phase.accesses {
            (last_us, last_request) = (access.at_us, access.request);
            access.at_us += start_us;
            access.request += requests;
            access.url = format!("set-{index}/{}", access.url).into();
            accesses.push(access);
        }
        start_us += last_us;
        requests += last_request + 1;
    }
    Trace { accesses }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn on_files_every_trace_reads_what_generate_makes() {
        for Workload { name, trace, is_synthetic, .. } in all(Scale::Files).unwrap() {
            for access in &trace.accesses {
                let number = access.url.strip_suffix(".parquet").and_then(|number| number.parse().ok());
                let size = number.and_then(original::object_size).unwrap_or_else(|| panic!("{name}: {}", access.url));
                assert_eq!((&access.bytes[..], access.rows), (&[size.bytes][..], size.rows), "{name}: {}", access.url);
            }
            if is_synthetic {
                let (requests, last_us) = (trace.requests().count(), trace.accesses.last().unwrap().at_us);
                assert!((120..=128).contains(&requests) && (30_000_000..120_000_000).contains(&last_us), "{name}: {last_us} µs");
            }
        }
    }

    #[test]
    fn scans_and_sets_have_files_of_their_own() {
        let files = |name: &str| {
            let trace = workload(name, Scale::Files).unwrap().trace;
            trace.accesses.iter().map(|access| file(&access.url).unwrap()).collect::<Vec<_>>()
        };
        let distinct = |files: &[u64]| files.iter().copied().collect::<HashSet<_>>();
        assert_eq!(distinct(&files("rounds")), (1..=16).collect());
        assert!(distinct(&files("shift")[..30]).is_subset(&(1..=4).collect()));
        assert!(distinct(&files("shift")[90..]).is_subset(&(13..=16).collect()));
        assert!(distinct(&files("hot-scan")).is_superset(&(10..=19).collect()));
        assert!(files("hot-scan").iter().all(|file| !(5..10).contains(file)));
        assert_eq!(
            ["scan-2.parquet", "set-3/4.parquet", "7.parquet", "t", "set-0/1.parquet"].map(file),
            [Some(11), Some(12), Some(7), None, None]
        );
    }
}
