//! `import`: traces of others as JSON Lines.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, stdin, stdout};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use flightcache_traces::import::{LibCacheSim, ObjectSize, lib_cache_sim, two_column};
use flightcache_traces::{Trace, footprint_bytes, original};

#[cfg(test)]
mod tests;

/// What is read, and where to.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How the input is laid out.
    #[arg(long, value_enum)]
    format: Format,
    /// libcachesim: where the columns are, as libCacheSim's --trace-type-params: time-col, obj-id-col, obj-size-col (from 1),
    /// delimiter, has-header.
    #[arg(long, value_name = "PARAMS")]
    params: Option<LibCacheSim>,
    /// two-column: decoded bytes of each object; without it those of the original traces.
    #[arg(long, requires = "rows")]
    bytes: Option<u64>,
    /// two-column: rows of each object.
    #[arg(long, requires = "bytes")]
    rows: Option<u64>,
    /// The CSV; - for standard input.
    input: PathBuf,
    /// Where the JSON Lines go; - for standard output.
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// CSV as libCacheSim reads it: seconds, object, bytes.
    #[value(name = "libcachesim")]
    LibCacheSim,
    /// The original traces' layout: milliseconds, file index.
    TwoColumn,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be opened or created.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The input cannot be read, or the output not written.
    #[error("{path}: {source}")]
    Trace {
        /// The file.
        path: String,
        /// Why, with the line.
        source: flightcache_traces::Error,
    },
    /// An option of the other format.
    #[error("{option} is of no use with --format {format}")]
    Unused {
        /// The option.
        option: &'static str,
        /// The format.
        format: &'static str,
    },
}

/// Reads all of the input, then writes the output, and says on standard error what it was.
pub fn run(options: &Options) -> Result<(), ImportError> {
    write(&read(options)?, &options.output)
}

fn read(options: &Options) -> Result<Trace, ImportError> {
    let Options { format, params, bytes, rows, input, .. } = options;
    match format {
        Format::LibCacheSim if bytes.is_some() => {
            return Err(ImportError::Unused { option: "--bytes", format: "libcachesim" });
        }
        Format::TwoColumn if params.is_some() => {
            return Err(ImportError::Unused { option: "--params", format: "two-column" });
        }
        _ => {}
    }
    let path = shown(input, "standard input");
    let reader: Box<dyn io::BufRead> = if is_standard(input) {
        Box::new(stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(input).map_err(|source| ImportError::File { path: path.clone(), source })?))
    };
    let trace = match format {
        Format::LibCacheSim => lib_cache_sim(reader, &params.unwrap_or_default()),
        Format::TwoColumn => {
            let one_size = bytes.zip(*rows).map(|(bytes, rows)| ObjectSize { bytes, rows });
            two_column(reader, |file| one_size.or_else(|| original::object_size(file)))
        }
    };
    trace.map_err(|source| ImportError::Trace { path, source })
}

/// Writes a trace, and says on standard error what it was.
pub(crate) fn write(trace: &Trace, output: &Path) -> Result<(), ImportError> {
    let path = shown(output, "standard output");
    let written = if is_standard(output) {
        trace.write(BufWriter::new(stdout().lock()))
    } else {
        let file = File::create(output).map_err(|source| ImportError::File { path: path.clone(), source })?;
        trace.write(BufWriter::new(file))
    };
    written.map_err(|source| ImportError::Trace { path, source })?;
    let (requests, footprint) = (trace.requests().count(), bytesize::ByteSize(footprint_bytes(trace)));
    eprintln!("{requests} requests, footprint {}", footprint.display().iec());
    Ok(())
}

fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn shown(path: &Path, standard: &str) -> String {
    if is_standard(path) { standard.to_owned() } else { path.display().to_string() }
}
