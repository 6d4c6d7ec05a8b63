//! Traces of others: the two-column CSV of ISTZIIO, and CSV as libCacheSim reads it.
//!
//! Each line becomes a request for a whole object named `{id}.parquet`. Times are shifted so that the first is 0. Empty lines
//! are skipped; quotes around a field are removed, but a quoted field cannot contain the delimiter.

use std::io::BufRead;
use std::str::FromStr;

use crate::error::{Error, Problem, Result};
use crate::lines::for_each_line;
use crate::trace::{Access, Trace};

/// The header of ISTZIIO's traces.
pub const TWO_COLUMN_HEADER: &str = "timestamp,file_index";

/// Size of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectSize {
    /// Decoded bytes.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
}

/// Reads [`TWO_COLUMN_HEADER`] and lines of milliseconds and file index; `size_of` tells how large a file is.
pub fn two_column(input: impl BufRead, size_of: impl Fn(u64) -> Option<ObjectSize>) -> Result<Trace> {
    let header: HeaderCheck = |line| if line == TWO_COLUMN_HEADER { Ok(()) } else { Err(Problem::Header(TWO_COLUMN_HEADER)) };
    read(input, ',', Some(header), |fields| {
        let at_us = integer(fields, 1, "milliseconds")?.saturating_mul(1_000);
        let file = integer(fields, 2, "a file index")?;
        let ObjectSize { bytes, rows } = size_of(file).ok_or(Problem::UnknownFile(file))?;
        Ok(Access::whole_object(at_us, 0, format!("{file}.parquet"), bytes, rows))
    })
}

/// Where a CSV has what; columns are counted from 1, as libCacheSim counts them.
///
/// Parsed from libCacheSim's `--trace-type-params`: `time-col=2, obj-id-col=5, obj-size-col=4, delimiter=;, has-header=true`.
/// Unlike there, nothing is guessed: what is not given is as in [`LibCacheSim::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibCacheSim {
    /// Seconds, whole or fractional, since any epoch.
    pub time_col: usize,
    /// The object's name; any text.
    pub obj_id_col: usize,
    /// Bytes.
    pub obj_size_col: usize,
    /// Between fields.
    pub delimiter: char,
    /// Whether the first line is skipped.
    pub has_header: bool,
}

impl Default for LibCacheSim {
    fn default() -> Self {
        Self { time_col: 1, obj_id_col: 2, obj_size_col: 3, delimiter: ',', has_header: false }
    }
}

impl FromStr for LibCacheSim {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut layout = Self::default();
        // `delimiter=,` would be split in two; the part after it is empty.
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let refused = || Error::parameter(format!("trace parameters: cannot use `{part}`"));
            let (name, value) = part.split_once('=').ok_or_else(refused)?;
            let column = || value.parse().ok().filter(|column| *column > 0).ok_or_else(refused);
            match name {
                "time-col" => layout.time_col = column()?,
                "obj-id-col" => layout.obj_id_col = column()?,
                "obj-size-col" => layout.obj_size_col = column()?,
                "delimiter" if value.is_empty() => layout.delimiter = ',',
                "delimiter" if value == "\\t" => layout.delimiter = '\t',
                "delimiter" => layout.delimiter = value.parse().map_err(|_| refused())?,
                "has-header" => layout.has_header = value.parse().map_err(|_| refused())?,
                // Ids are text here, whatever they look like.
                "obj-id-is-num" => {}
                _ => return Err(refused()),
            }
        }
        Ok(layout)
    }
}

/// Reads a CSV of `layout`. The rows of the answers are not known: 0.
pub fn lib_cache_sim(input: impl BufRead, layout: &LibCacheSim) -> Result<Trace> {
    let any_header: HeaderCheck = |_| Ok(());
    read(input, layout.delimiter, layout.has_header.then_some(any_header), |fields| {
        let seconds = parse(fields, layout.time_col, "seconds", |s: &f64| s.is_finite() && *s >= 0.0)?;
        let id = parse(fields, layout.obj_id_col, "an object id", |id: &String| !id.is_empty())?;
        let bytes = integer(fields, layout.obj_size_col, "a number of bytes")?;
        Ok(Access::whole_object((seconds * 1e6).round() as u64, 0, format!("{id}.parquet"), bytes, 0))
    })
}

/// What tells whether a first line is the header.
type HeaderCheck = fn(&str) -> Result<(), Problem>;

/// One request for each line but the header, if there should be one.
fn read(
    input: impl BufRead,
    delimiter: char,
    header: Option<HeaderCheck>,
    access: impl Fn(&[&str]) -> Result<Access, Problem>,
) -> Result<Trace> {
    let mut trace = Trace::default();
    let mut times_us = None;
    for_each_line(input, |number, line| {
        let line = line.trim_end_matches('\r');
        if let Some(check) = header.filter(|_| number == 1) {
            return check(line);
        }
        if line.trim().is_empty() {
            return Ok(());
        }
        let fields: Vec<&str> = line.split(delimiter).map(|field| field.trim().trim_matches('"')).collect();
        let mut access = access(&fields)?;
        let (first_us, start_us) = times_us.unwrap_or((access.at_us, access.at_us));
        if access.at_us < start_us {
            return Err(Problem::Time { at_us: access.at_us, start_us });
        }
        times_us = Some((first_us, access.at_us));
        access.at_us -= first_us;
        access.request = trace.accesses.len() as u64 + 1;
        trace.accesses.push(access);
        Ok(())
    })?;
    Ok(trace)
}

fn integer(fields: &[&str], column: usize, expected: &'static str) -> Result<u64, Problem> {
    parse(fields, column, expected, |_| true)
}

fn parse<T: FromStr>(fields: &[&str], column: usize, expected: &'static str, valid: fn(&T) -> bool) -> Result<T, Problem> {
    let field = column.checked_sub(1).and_then(|index| fields.get(index)).and_then(|field| field.parse().ok());
    field.filter(valid).ok_or(Problem::Field { column, expected })
}

#[cfg(test)]
mod tests;
