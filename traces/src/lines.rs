//! Lines of bounded length, numbered.

use std::io::{BufRead, Read as _};

use crate::error::{Error, Problem, Result};
use crate::trace::MAX_LINE_BYTES;

/// Calls `each` with every line and its number, counted from 1. What it refuses becomes an error with that number.
pub(crate) fn for_each_line(mut input: impl BufRead, mut each: impl FnMut(u64, &str) -> Result<(), Problem>) -> Result<()> {
    let mut buffer = Vec::new();
    for line in 1.. {
        buffer.clear();
        // One byte more than allowed: the line feed, or the proof that there is none.
        if input.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut buffer)? == 0 {
            break;
        }
        buffer.pop_if(|byte| *byte == b'\n');
        let text = if buffer.len() > MAX_LINE_BYTES {
            Err(Problem::TooLong)
        } else {
            std::str::from_utf8(&buffer).map_err(|_| Problem::NotUtf8)
        };
        text.and_then(|text| each(line, text)).map_err(|problem| Error::Line { line, problem })?;
    }
    Ok(())
}
