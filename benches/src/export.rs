//! `export`: known traces as JSON Lines.

use std::path::PathBuf;

use clap::Args;

use crate::import::{self, ImportError};
use crate::workloads::{Scale, WorkloadError, workload};

/// What is written, and where to.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// As `simulate` takes a generated trace, with thousands of objects that need not exist; without it as `replay` plays it, on
    /// the files that `generate` makes.
    #[arg(long)]
    simulated: bool,
    /// An original trace (1m, 100m, parallel, serial, repeat) or a generated one (zipf, scan-mix, hot-scan, shift, rounds, bursts).
    name: String,
    /// Where the JSON Lines go; - for standard output.
    output: PathBuf,
}

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no such trace.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] ImportError),
}

/// Writes the trace, and says on standard error what it was.
pub fn run(options: &Options) -> Result<(), ExportError> {
    let scale = if options.simulated { Scale::Simulated } else { Scale::Files };
    Ok(import::write(&workload(&options.name, scale)?.trace, &options.output)?)
}

#[cfg(test)]
mod tests {
    use flightcache_traces::Trace;

    use super::*;

    #[test]
    fn what_is_written_is_the_trace() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("zipf.jsonl");
        for (simulated, scale) in [(false, Scale::Files), (true, Scale::Simulated)] {
            run(&Options { simulated, name: "zipf".to_owned(), output: output.clone() }).unwrap();
            let written = Trace::read(&std::fs::read(&output).unwrap()[..]).unwrap();
            assert_eq!(written, workload("zipf", scale).unwrap().trace);
        }
        let error = run(&Options { simulated: false, name: "zipfian".to_owned(), output }).unwrap_err().to_string();
        assert!(error.contains("'zipfian'"), "{error}");
        let output = directory.path().join("none/zipf.jsonl");
        let error = run(&Options { simulated: false, name: "1m".to_owned(), output }).unwrap_err().to_string();
        assert!(error.contains("none/zipf.jsonl"), "{error}");
    }
}
