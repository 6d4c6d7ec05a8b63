//! How large results may be, by what a function is given.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _};
use arrow::datatypes::{DataType, Int64Type, TimeUnit, TimestampMillisecondType};
use datafusion::common::{Result, ScalarValue, resources_err};
use datafusion::logical_expr::ColumnarValue;

/// Bytes that one call may make for a batch.
const MAX_BATCH_BYTES: u128 = 512 << 20;
/// Bytes of an element of a list that may be NULL or a number, about.
const ELEMENT_BYTES: u128 = 16;
/// Bytes an element of a list takes beside its own.
const OFFSET_BYTES: u128 = 8;
/// Bytes that one of a pattern may become, at most: `%+` is a date, a time and a zone.
const FORMATTED_BYTES: u128 = 32;
/// Bytes of a value that is the same for all rows: it may be repeated for each of a batch's.
pub(super) const MAX_CONSTANT_BYTES: u128 = 128 << 10;
/// How large a result may be, by its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Growth {
    /// Its arguments together.
    Sum,
    /// Its arguments together, with the first between them.
    Separated,
    /// The first, so many times as the second says.
    Repeat,
    /// A list of the first, so many times as the second says.
    RepeatElement,
    /// So many characters as the second says.
    Pad,
    /// So many elements as lie between two bounds, a step apart.
    Series,
    /// So many elements as the second says, each the third.
    Resize,
    /// The first, with the third in place of each second.
    Replace,
    /// The first, with the third in place of each match.
    ReplaceMatches,
    /// The first, once for each group of the second, a pattern.
    Groups,
    /// The elements of the first, with the others between them.
    Join,
    /// Steps, not bytes: each of the first with each of the second.
    Product,
    /// Text by a pattern, the second.
    Format,
}

impl Growth {
    pub(super) fn of(function: &str) -> Option<Self> {
        Some(match function {
            "concat" | "overlay" | "make_array" | "array_append" | "array_prepend" | "array_concat" | "array_insert"
            | "named_struct" | "struct" | "map" => Self::Sum,
            "concat_ws" => Self::Separated,
            "repeat" => Self::Repeat,
            "array_repeat" => Self::RepeatElement,
            "lpad" | "rpad" => Self::Pad,
            "range" | "generate_series" => Self::Series,
            "array_resize" => Self::Resize,
            "replace" | "array_replace" | "array_replace_n" | "array_replace_all" => Self::Replace,
            "regexp_replace" => Self::ReplaceMatches,
            "regexp_match" => Self::Groups,
            "array_to_string" => Self::Join,
            "levenshtein" => Self::Product,
            "to_char" | "date_format" => Self::Format,
            _ => return None,
        })
    }

    /// Bytes of one row's result, at most.
    fn row(self, arguments: &[Argument], row: usize) -> u128 {
        let bytes = |at: usize| arguments.get(at).map_or(0, |argument| argument.bytes(row));
        let times = |at: usize| arguments.get(at).map_or(0, |argument| argument.times(row));
        match self {
            Self::Sum => (0..arguments.len()).map(bytes).sum(),
            Self::Separated => (0..arguments.len()).map(bytes).sum::<u128>() + bytes(0) * arguments.len() as u128,
            Self::Repeat => bytes(0) * times(1),
            Self::RepeatElement => (bytes(0) + ELEMENT_BYTES) * times(1),
            Self::Pad => times(1) * 4 + bytes(0),
            Self::Series => series(arguments, row),
            Self::Resize => bytes(0) + (bytes(2) + ELEMENT_BYTES) * times(1),
            Self::Replace => bytes(0) + (bytes(0) / bytes(1).max(1) + 1) * bytes(2),
            Self::ReplaceMatches => bytes(0) + (bytes(0) + 1) * 2 * bytes(2),
            Self::Groups => bytes(0) * (bytes(1) + 1),
            Self::Product => bytes(0) * bytes(1),
            Self::Format => bytes(1) * FORMATTED_BYTES,
            Self::Join => bytes(0) * 2 + bytes(0) / OFFSET_BYTES * (bytes(1) + bytes(2)),
        }
    }
}

/// An argument of a call: a column, or the same value for all rows.
struct Argument {
    array: ArrayRef,
    is_constant: bool,
}

impl Argument {
    fn at(&self, row: usize) -> Option<usize> {
        let at = if self.is_constant { 0 } else { row };
        self.array.is_valid(at).then_some(at)
    }

    fn bytes(&self, row: usize) -> u128 {
        self.at(row).map_or(0, |at| bytes_of(&self.array, at, 1))
    }

    fn times(&self, row: usize) -> u128 {
        self.integer(row).map_or(0, |times| times.max(0).unsigned_abs())
    }

    /// What is no number of 64 bits is a large one.
    fn integer(&self, row: usize) -> Option<i128> {
        let at = self.at(row)?;
        let value = arrow::compute::cast(&self.array.slice(at, 1), &DataType::Int64).ok()?;
        let value = value.as_primitive_opt::<Int64Type>()?;
        let is_null = *self.array.data_type() == DataType::Null;
        (!is_null).then(|| if value.is_valid(0) { i128::from(value.value(0)) } else { i128::from(i64::MAX) })
    }

    /// A point in time in nanoseconds, or a number as it is.
    fn point(&self, row: usize) -> Option<i128> {
        if !self.array.data_type().is_temporal() {
            return self.integer(row);
        }
        let at = self.at(row)?;
        let ms = arrow::compute::cast(&self.array.slice(at, 1), &DataType::Timestamp(TimeUnit::Millisecond, None)).ok()?;
        Some(i128::from(ms.as_primitive_opt::<TimestampMillisecondType>()?.value(0)) * 1_000_000)
    }

    /// The least distance a step goes, in the units of [`Argument::point`].
    fn step(&self, row: usize) -> Option<u128> {
        let at = self.at(row)?;
        match ScalarValue::try_from_array(&self.array, at).ok()? {
            ScalarValue::IntervalMonthDayNano(Some(step)) => {
                let days = i128::from(step.months) * 28 + i128::from(step.days);
                Some((days * 86_400_000_000_000 + i128::from(step.nanoseconds)).unsigned_abs())
            }
            ScalarValue::IntervalDayTime(Some(step)) => {
                Some((i128::from(step.days) * 86_400_000_000_000 + i128::from(step.milliseconds) * 1_000_000).unsigned_abs())
            }
            ScalarValue::IntervalYearMonth(Some(months)) => Some((i128::from(months) * 28 * 86_400_000_000_000).unsigned_abs()),
            _ => self.integer(row).map(i128::unsigned_abs),
        }
    }
}

fn series(arguments: &[Argument], row: usize) -> u128 {
    let point = |at: usize| arguments.get(at).and_then(|argument| argument.point(row));
    let (from, to) = if arguments.len() == 1 { (Some(0), point(0)) } else { (point(0), point(1)) };
    let step = arguments.get(2).map_or(Some(1), |step| step.step(row));
    match (from, to, step) {
        // A step of nothing is an error of the function's own.
        (Some(from), Some(to), Some(step @ 1..)) => (from.abs_diff(to) / step + 1) * 8,
        _ => 0,
    }
}

/// Bytes of the values of some rows.
fn bytes_of(array: &dyn Array, start: usize, len: usize) -> u128 {
    let list = |values: &ArrayRef, from: i64, to: i64| {
        let elements = (to - from) as usize;
        bytes_of(values, from as usize, elements) + OFFSET_BYTES * (elements as u128 + 1)
    };
    let rows = start..start + len;
    match array.data_type() {
        DataType::Utf8 => {
            let offsets = array.as_string::<i32>().value_offsets();
            (offsets[rows.end] - offsets[rows.start]).unsigned_abs().into()
        }
        DataType::LargeUtf8 => {
            let offsets = array.as_string::<i64>().value_offsets();
            (offsets[rows.end] - offsets[rows.start]).unsigned_abs().into()
        }
        DataType::Binary => {
            let offsets = array.as_binary::<i32>().value_offsets();
            (offsets[rows.end] - offsets[rows.start]).unsigned_abs().into()
        }
        DataType::LargeBinary => {
            let offsets = array.as_binary::<i64>().value_offsets();
            (offsets[rows.end] - offsets[rows.start]).unsigned_abs().into()
        }
        // The low half of a view is its length.
        DataType::Utf8View => rows.map(|row| array.as_string_view().views()[row] & u128::from(u32::MAX)).sum(),
        DataType::BinaryView => rows.map(|row| array.as_binary_view().views()[row] & u128::from(u32::MAX)).sum(),
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            list(lists.values(), lists.value_offsets()[rows.start].into(), lists.value_offsets()[rows.end].into())
        }
        DataType::LargeList(_) => {
            let lists = array.as_list::<i64>();
            list(lists.values(), lists.value_offsets()[rows.start], lists.value_offsets()[rows.end])
        }
        DataType::Map(..) => {
            let maps = array.as_map();
            let (from, to) = (maps.value_offsets()[rows.start], maps.value_offsets()[rows.end]);
            bytes_of(maps.entries(), from as usize, (to - from) as usize) + OFFSET_BYTES
        }
        DataType::FixedSizeList(_, width) => {
            let width = width.unsigned_abs() as usize;
            bytes_of(array.as_fixed_size_list().values(), start * width, len * width)
        }
        DataType::Struct(_) => array.as_struct().columns().iter().map(|column| bytes_of(column, start, len)).sum(),
        other => match other.primitive_width() {
            Some(width) => (width * len) as u128,
            None => array.slice(start, len).get_array_memory_size() as u128,
        },
    }
}

/// Refuses a call whose result would be too large.
pub(super) fn check(name: &str, growth: Growth, arguments: &[ColumnarValue], rows: usize) -> Result<()> {
    let argument = |value: &ColumnarValue| match value {
        ColumnarValue::Array(array) => Ok(Argument { array: Arc::clone(array), is_constant: false }),
        ColumnarValue::Scalar(value) => Ok(Argument { array: value.to_array()?, is_constant: true }),
    };
    let arguments = arguments.iter().map(argument).collect::<Result<Vec<_>>>()?;
    let is_constant = arguments.iter().all(|argument| argument.is_constant);
    let (rows, bound) = if is_constant { (1, MAX_CONSTANT_BYTES) } else { (rows, MAX_BATCH_BYTES) };
    let mut bytes = 0_u128;
    if growth == Growth::Sum {
        let whole = |argument: &Argument| {
            if argument.is_constant {
                argument.bytes(0) * rows as u128
            } else {
                bytes_of(&argument.array, 0, argument.array.len())
            }
        };
        bytes = arguments.iter().map(whole).sum();
        return if bytes > bound { too_large(name, bound) } else { Ok(()) };
    }
    for row in 0..rows {
        bytes = bytes.saturating_add(growth.row(&arguments, row));
        if bytes > bound {
            return too_large(name, bound);
        }
    }
    Ok(())
}

fn too_large(name: &str, bound: u128) -> Result<()> {
    resources_err!("{name} would make more than {bound} bytes at once")
}
