//! How reading, writing and generating traces fails.

use std::io;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input or the output failed.
    #[error("trace: {0}")]
    Io(#[from] io::Error),
    /// A line is not what it should be.
    #[error("trace line {line}: {problem}")]
    Line {
        /// Counted from 1, headers and empty lines included.
        line: u64,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A generator or an importer was given a parameter it cannot work with.
    #[error("{0}")]
    Parameter(String),
}

/// Shorthand for results with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn parameter(message: impl Into<String>) -> Self {
        Self::Parameter(message.into())
    }
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Longer than [`crate::trace::MAX_LINE_BYTES`].
    #[error("longer than 1 MiB")]
    TooLong,
    /// Not text.
    #[error("not UTF-8")]
    NotUtf8,
    /// Not the JSON form of an access.
    #[error("not an access: {0}")]
    Json(String),
    /// A list that goes by column has another length than the columns.
    #[error("{columns} columns, but {len} entries in `{field}`")]
    Length {
        /// How many columns the access has.
        columns: usize,
        /// The list.
        field: &'static str,
        /// Its length.
        len: usize,
    },
    /// An access without a row group has other columns than [`crate::WHOLE_OBJECT`].
    #[error("without a row group, `columns` must be [\"*\"]")]
    WholeObject,
    /// Times run backwards.
    #[error("time {at_us} µs is before {start_us} µs, the start that an earlier line states")]
    Time {
        /// The line's time.
        at_us: u64,
        /// What it should not precede.
        start_us: u64,
    },
    /// The first line is not the header.
    #[error("expected the header `{0}`")]
    Header(&'static str),
    /// A field is missing or malformed.
    #[error("column {column} is not {expected}")]
    Field {
        /// Counted from 1.
        column: usize,
        /// What it should hold.
        expected: &'static str,
    },
    /// The trace names a file whose size is not known.
    #[error("no size is known for file {0}")]
    UnknownFile(u64),
}
