//! The traces that are known by name, and those in files.

use std::fs::File;
use std::io::{BufReader, ErrorKind};

use flightcache_traces::generate::{Hot, Load, Scans, scan_mix, zipf};
use flightcache_traces::{Access, Error, Trace, original};

/// Rows of each synthetic object, of 20 float64 columns: 16 MB.
const OBJECT_ROWS: u64 = 100_000;
const OBJECT_BYTES: u64 = OBJECT_ROWS * original::COLUMNS * size_of::<f64>() as u64;
/// Working sets that follow each other in `shift` and `rounds`.
const PHASES: u64 = 4;
/// Objects of each working set of `rounds`, and how often each set is read.
const ROUNDS: (u64, u64) = (500, 20);
const LOAD: Load = Load { seed: 7, requests: 40_000, rate_per_s: 100.0 };
const HOT: Hot = Hot { objects: 4_000, exponent: 1.0, object_bytes: OBJECT_BYTES };
const SCANS: Scans = Scans { share: 0.3, length: 500, objects: 4_000, object_bytes: OBJECT_BYTES };
/// A small hot set, and scans four times as long.
const HOT_SET: Hot = Hot { objects: 500, exponent: 0.0, object_bytes: OBJECT_BYTES };
const LONG_SCANS: Scans = Scans { share: 0.5, length: 2_000, objects: 4_000, object_bytes: OBJECT_BYTES };

type Generate = fn() -> flightcache_traces::Result<Trace>;

/// Name, what it is, and how it is made.
const SYNTHETIC: [(&str, &str, Generate); 5] = [
    ("zipf", "4,000 objects of 16 MB by Zipf's law, exponent 1", || zipf(LOAD, HOT)),
    ("scan-mix", "as zipf; 30 % of the requests are scans of 500 objects each over a table of 4,000", || {
        scan_mix(LOAD, HOT, SCANS)
    }),
    (
        "hot-scan",
        "500 objects of 16 MB at random; half of the requests are scans of 2,000 objects each over a table of 4,000",
        || scan_mix(LOAD, HOT_SET, LONG_SCANS),
    ),
    ("shift", "as zipf with 2,000 objects, all of them replaced by others three times", || {
        let phase = |phase| {
            zipf(Load { seed: LOAD.seed + phase, requests: LOAD.requests / PHASES, ..LOAD }, Hot { objects: 2_000, ..HOT })
        };
        Ok(in_turn((0..PHASES).map(phase).collect::<Result<_, _>>()?))
    }),
    ("rounds", "four sets of 500 objects of 16 MB after each other, each read in 20 rounds", || {
        Ok(in_turn((0..PHASES).map(|_| rounds()).collect()))
    }),
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
pub(super) fn all() -> Result<Vec<Workload>, WorkloadError> {
    known().into_iter().map(workload).collect()
}

/// A trace by its name, or from a file of JSON Lines.
pub fn workload(name: &str) -> Result<Workload, WorkloadError> {
    let workload = |about: &str, trace| Workload { name: name.to_owned(), about: about.to_owned(), is_synthetic: false, trace };
    let in_trace = |source| WorkloadError::Trace { name: name.to_owned(), source };
    if let Some((_, trace)) = original::all().into_iter().find(|(known, _)| *known == name) {
        return Ok(workload("original trace", trace));
    }
    if let Some((_, about, generate)) = SYNTHETIC.iter().find(|(known, ..)| *known == name) {
        return Ok(Workload { is_synthetic: true, ..workload(about, generate().map_err(in_trace)?) });
    }
    let file = File::open(name).map_err(|source| match source.kind() {
        ErrorKind::NotFound => WorkloadError::Unknown { name: name.to_owned() },
        _ => WorkloadError::Open { path: name.to_owned(), source },
    })?;
    Ok(workload("from a file", Trace::read(BufReader::new(file)).map_err(in_trace)?))
}

fn known() -> Vec<&'static str> {
    original::all().iter().map(|(name, _)| *name).chain(SYNTHETIC.map(|(name, ..)| name)).collect()
}

/// A set of objects, read from the first to the last again and again.
fn rounds() -> Trace {
    let (objects, rounds) = ROUNDS;
    let gap_us = 1e6 / LOAD.rate_per_s;
    let access = |at: u64| {
        let name = format!("{}.parquet", at % objects + 1);
        Access::whole_object((at as f64 * gap_us) as u64, at, name, OBJECT_BYTES, OBJECT_ROWS)
    };
    Trace { accesses: (0..objects * rounds).map(access).collect() }
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
            access.url = format!("set-{index}/{}", access.url);
            accesses.push(access);
        }
        start_us += last_us;
        requests += last_request + 1;
    }
    Trace { accesses }
}
