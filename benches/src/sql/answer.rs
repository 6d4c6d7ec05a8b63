//! Answers, as what can be compared.

use std::collections::HashMap;
use std::fmt::Write as _;

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// Digits of a floating-point number that are compared: sums depend on the order of their terms.
const DIGITS: usize = 9;

/// The rows of an answer, as text, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    columns: Vec<String>,
    rows: Vec<String>,
}

impl Answer {
    pub(super) fn new(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Self, ArrowError> {
        let columns = schema.fields().iter().map(|field| field.name().clone()).collect();
        let options = FormatOptions::new().with_null("NULL").with_display_error(false);
        let mut rows = Vec::new();
        for batch in batches {
            let start = rows.len();
            rows.resize(start + batch.num_rows(), String::new());
            for column in batch.columns() {
                if column.data_type().is_floating() {
                    let numbers = cast(column, &DataType::Float64)?;
                    let numbers = numbers.as_primitive::<Float64Type>();
                    for (at, row) in rows[start..].iter_mut().enumerate() {
                        let is_null = numbers.is_null(at);
                        let number = if is_null { "NULL".to_owned() } else { format!("{:.*e}", DIGITS, numbers.value(at)) };
                        let _ = write!(row, "{number}\u{1f}");
                    }
                    continue;
                }
                let formatter = ArrayFormatter::try_new(column, &options)?;
                for (at, row) in rows[start..].iter_mut().enumerate() {
                    let _ = write!(row, "{}\u{1f}", formatter.value(at).try_to_string()?);
                }
            }
        }
        Ok(Self { columns, rows })
    }

    /// Whether this is as good an answer as what was expected: the same columns and rows, in the same order as far as it goes by
    /// columns `sorted_by`; with `all`, as many rows that are among those.
    pub(super) fn check(&self, expected: &Self, all: Option<&Self>, sorted_by: &[usize]) -> Result<(), String> {
        if self.columns != expected.columns {
            return Err(format!("columns {:?} instead of {:?}", self.columns, expected.columns));
        }
        if self.rows.len() != expected.rows.len() {
            return Err(format!("{} rows instead of {}", self.rows.len(), expected.rows.len()));
        }
        let keys = |row: &str| {
            let cells: Vec<&str> = row.split('\u{1f}').collect();
            sorted_by.iter().map(|&column| cells[column].to_owned()).collect::<Vec<_>>()
        };
        let in_turn = self.rows.iter().zip(&expected.rows).map(|(row, other)| (keys(row), keys(other)));
        if let Some((at, (key, other))) = in_turn.enumerate().find(|(_, (key, other))| key != other) {
            return Err(format!("row {at} is sorted by {key:?}, plain's by {other:?}"));
        }
        let mut left: HashMap<&str, usize> = HashMap::new();
        for row in &all.unwrap_or(expected).rows {
            *left.entry(row).or_default() += 1;
        }
        for row in &self.rows {
            match left.get_mut(row.as_str()) {
                Some(count) if *count > 0 => *count -= 1,
                _ => return Err(format!("a row that is not plain's: {}", row.replace('\u{1f}', " | "))),
            }
        }
        Ok(())
    }
}
