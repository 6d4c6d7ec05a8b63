//! The format: JSON Lines, one line for each row group that a request reads.
//!
//! ```json
//! {"at_us":0,"request":1,"url":"s3://lake/t.parquet","row_group":0,"columns":["a","b"],"bytes":[48000,1200],"rows":6000,"hit":[true,false]}
//! {"at_us":8000,"request":2,"url":"11.parquet","row_group":null,"columns":["*"],"bytes":[96000000],"rows":600000}
//! ```
//!
//! Lines with the same number belong to one request, which starts when the first of them says; none of its lines is earlier.
//! Whoever records writes a request when it ends, or in pieces while it goes on. So a file may be in any order apart from
//! that: [`Trace::read`] puts requests in the order of their starts, and makes the lines of each follow each other.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, Write};
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Problem, Result};
use crate::lines::for_each_line;

mod shared;

use shared::Shared;

/// The one column of an access to a whole object.
pub const WHOLE_OBJECT: &str = "*";

/// Longer lines are refused.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// Names of columns, in order. Lines of a trace that is read share equal ones: there are many lines, and few names.
pub type Columns = Arc<[Arc<str>]>;

static ALL_COLUMNS: LazyLock<Columns> = LazyLock::new(|| Arc::new([Arc::from(WHOLE_OBJECT)]));

/// What a request reads of one row group, or of an object as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Microseconds since the trace's start.
    pub at_us: u64,
    /// Number of the request; no other request of the trace has it.
    pub request: u64,
    /// The object: a URL, or a name that the player puts a prefix in front of.
    #[serde(with = "shared::text")]
    pub url: Arc<str>,
    /// The row group; `None`: the whole object, and the only column is [`WHOLE_OBJECT`].
    pub row_group: Option<u32>,
    /// The columns read.
    #[serde(with = "shared::list")]
    pub columns: Columns,
    /// Decoded bytes, by column; an estimate where nothing was decoded.
    pub bytes: Vec<u64>,
    /// Rows of the answer that come from here; 0 if it is not known.
    pub rows: u64,
    /// Whether it was resident, by column, if the trace was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit: Option<Vec<bool>>,
}

impl Access {
    /// The reading of an object as a whole.
    pub fn whole_object(at_us: u64, request: u64, url: impl Into<Arc<str>>, bytes: u64, rows: u64) -> Self {
        let columns = Arc::clone(&ALL_COLUMNS);
        Self { at_us, request, url: url.into(), row_group: None, columns, bytes: vec![bytes], rows, hit: None }
    }

    /// Reads a line, without its line feed.
    pub fn from_line(line: &str) -> Result<Self, Problem> {
        let access: Self = serde_json::from_str(line).map_err(|e| {
            // The position would name line 1, of one.
            Problem::Json(e.to_string().replace(&format!(" at line {} column {}", e.line(), e.column()), ""))
        })?;
        access.check()?;
        Ok(access)
    }

    /// The line, without its line feed. What cannot be read back is not written.
    pub fn to_line(&self) -> Result<String, Problem> {
        self.check()?;
        let line = serde_json::to_string(self).map_err(|e| Problem::Json(e.to_string()))?;
        if line.len() > MAX_LINE_BYTES { Err(Problem::TooLong) } else { Ok(line) }
    }

    fn check(&self) -> Result<(), Problem> {
        let columns = self.columns.len();
        let lengths = [("bytes", self.bytes.len()), ("hit", self.hit.as_ref().map_or(columns, Vec::len))];
        if let Some((field, len)) = lengths.into_iter().find(|(_, len)| *len != columns) {
            return Err(Problem::Length { columns, field, len });
        }
        if self.row_group.is_none() && self.columns != *ALL_COLUMNS {
            return Err(Problem::WholeObject);
        }
        Ok(())
    }
}

/// A request: lines with the same number, which follow each other in a [`Trace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its number in the trace.
    pub number: u64,
    /// Microseconds between the trace's start and the request's.
    pub at_us: u64,
    /// What it reads; never empty.
    pub accesses: &'a [Access],
}

impl<'a> Request<'a> {
    fn new(accesses: &'a [Access]) -> Self {
        Self { number: accesses[0].request, at_us: accesses[0].at_us, accesses }
    }

    /// The objects it reads, in the order of their first use.
    pub fn urls(&self) -> Vec<&'a str> {
        distinct(self.accesses.iter().map(|access| &*access.url))
    }

    /// The objects in that order, each with the columns it reads of it, in the order of their first use; [`WHOLE_OBJECT`] stands
    /// for all.
    pub fn objects(&self) -> Vec<(&'a str, Vec<&'a str>)> {
        let mut accesses: HashMap<&str, Vec<&Access>> = HashMap::new();
        for access in self.accesses {
            accesses.entry(&access.url).or_default().push(access);
        }
        let columns = |url| distinct(accesses[url].iter().flat_map(|access| access.columns.iter().map(|column| &**column)));
        self.urls().into_iter().map(|url| (url, columns(url))).collect()
    }
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    names.filter(|name| seen.insert(*name)).collect()
}

/// What was asked of a cache, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The lines.
    pub accesses: Vec<Access>,
}

impl Trace {
    /// Reads JSON Lines, and sorts them by their requests' starts, then numbers. Lines of a request stay in the order of the
    /// file, and must not be earlier than its first one.
    pub fn read(input: impl BufRead) -> Result<Self> {
        let mut trace = Self::default();
        let mut shared = Shared::default();
        let mut starts_us = HashMap::new();
        for_each_line(input, |_, line| {
            let mut access = Access::from_line(line)?;
            shared.share(&mut access);
            let start_us = *starts_us.entry(access.request).or_insert(access.at_us);
            if access.at_us < start_us {
                return Err(Problem::Time { at_us: access.at_us, start_us });
            }
            trace.accesses.push(access);
            Ok(())
        })?;
        trace.accesses.sort_by_key(|access| (starts_us[&access.request], access.request));
        Ok(trace)
    }

    /// Writes JSON Lines.
    pub fn write(&self, mut output: impl Write) -> Result<()> {
        for (line, access) in (1..).zip(&self.accesses) {
            let text = access.to_line().map_err(|problem| Error::Line { line, problem })?;
            writeln!(output, "{text}")?;
        }
        Ok(output.flush()?)
    }

    /// The requests, in order.
    pub fn requests(&self) -> impl Iterator<Item = Request<'_>> {
        self.accesses.chunk_by(|a, b| a.request == b.request).map(Request::new)
    }

    /// The same accesses at `factor` times their times: 0.5 is twice as fast, 0 all at once.
    #[must_use]
    pub fn scaled_time(mut self, factor: f64) -> Self {
        for access in &mut self.accesses {
            access.at_us = (access.at_us as f64 * factor).round() as u64;
        }
        self
    }
}

#[cfg(test)]
mod tests;
