//! Functions whose results may be far larger than what they are given: what one call makes is measured before it is made.
//!
//! Memory pools know what operators keep, not what an expression makes of a batch: `repeat('x', 2000000000)` is a short statement.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _};
use arrow::datatypes::{DataType, FieldRef, Int64Type, TimeUnit, TimestampMillisecondType};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue, exec_datafusion_err, plan_err, resources_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable as _, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};

use crate::parquet::fixed_bytes;

/// Bytes that one call may make for a batch.
const MAX_BATCH_BYTES: u128 = 512 << 20;
/// Bytes of an element of a list that may be NULL or a number, about.
const ELEMENT_BYTES: u128 = 16;
/// Bytes an element of a list takes beside its own.
const OFFSET_BYTES: u128 = 8;
/// Bytes of a value that is the same for all rows: it may be repeated for each of a batch's.
const MAX_CONSTANT_BYTES: u128 = 128 << 10;
/// Bytes a value of a cast's type may take though it is NULL.
const MAX_FIXED_BYTES: u64 = 4 << 10;

/// Puts such functions under measure, and refuses constants and types that are too large.
#[derive(Debug)]
pub(super) struct BoundGrowth;

/// How large a result may be, by its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Growth {
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
}

impl Growth {
    fn of(function: &str) -> Option<Self> {
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

/// A function under measure. It is the same in all else, but is not looked into while planning: what it became then would be
/// without.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Measured {
    function: Arc<ScalarUDF>,
    growth: Growth,
}

impl ScalarUDFImpl for Measured {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.function.inner().schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.function.inner().return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.function.inner().return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.function.inner().coerce_types(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        check(self.name(), self.growth, &args.args, args.number_rows)?;
        self.function.inner().invoke_with_args(args)
    }
}

/// What it is given, measured: for operators, which are no functions.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    signature: Signature,
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &'static str {
        "bounded"
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        args.first().map_or_else(|| plan_err!("nothing to measure"), |inner| Ok(inner.schema_name().to_string()))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(|| exec_datafusion_err!("nothing to measure"))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        args.arg_fields.first().cloned().ok_or_else(|| exec_datafusion_err!("nothing to measure"))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        check("||", Growth::Sum, &args.args, args.number_rows)?;
        args.args.into_iter().next().ok_or_else(|| exec_datafusion_err!("nothing to measure"))
    }
}

/// Refuses a call whose result would be too large.
fn check(name: &str, growth: Growth, arguments: &[ColumnarValue], rows: usize) -> Result<()> {
    let argument = |value: &ColumnarValue| match value {
        ColumnarValue::Array(array) => Ok(Argument { array: Arc::clone(array), is_constant: false }),
        ColumnarValue::Scalar(value) => Ok(Argument { array: value.to_array()?, is_constant: true }),
    };
    let arguments = arguments.iter().map(argument).collect::<Result<Vec<_>>>()?;
    let is_constant = arguments.iter().all(|argument| argument.is_constant);
    let (rows, bound) = if is_constant { (1, MAX_CONSTANT_BYTES) } else { (rows, MAX_BATCH_BYTES) };
    let mut bytes = 0_u128;
    if growth == Growth::Sum {
        let whole = |argument: &Argument| match argument.is_constant {
            true => argument.bytes(0) * rows as u128,
            false => bytes_of(&argument.array, 0, argument.array.len()),
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

impl FunctionRewrite for BoundGrowth {
    fn name(&self) -> &'static str {
        "bound_growth"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        match expr {
            Expr::ScalarFunction(ScalarFunction { func, args }) => {
                if matches!(func.name(), "arrow_cast" | "arrow_try_cast") {
                    let cast = Expr::ScalarFunction(ScalarFunction { func, args });
                    let data_type = cast.get_type(schema)?;
                    if fixed_bytes(&data_type) > MAX_FIXED_BYTES {
                        return plan_err!("a cast to {data_type}, of which each value takes {} bytes", fixed_bytes(&data_type));
                    }
                    return Ok(Transformed::no(cast));
                }
                let Some(growth) = Growth::of(func.name()) else {
                    return Ok(Transformed::no(Expr::ScalarFunction(ScalarFunction { func, args })));
                };
                let measured = Arc::new(ScalarUDF::new_from_impl(Measured { function: func, growth }));
                Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func: measured, args })))
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => {
                let (left, right) = (checked(*left), checked(*right));
                let joined = BinaryExpr { left: Box::new(left), op: Operator::StringConcat, right: Box::new(right) };
                Ok(Transformed::yes(Expr::BinaryExpr(joined)))
            }
            Expr::Literal(value, _) if value.size() as u128 > MAX_CONSTANT_BYTES => {
                plan_err!("a constant of {} bytes; at most {MAX_CONSTANT_BYTES} are taken", value.size())
            }
            other => Ok(Transformed::no(other)),
        }
    }
}

fn checked(expr: Expr) -> Expr {
    if matches!(expr, Expr::Literal(..)) {
        return expr;
    }
    let function = ScalarUDF::new_from_impl(Checked { signature: Signature::any(1, Volatility::Immutable) });
    Expr::ScalarFunction(ScalarFunction { func: Arc::new(function), args: vec![expr] })
}

#[cfg(test)]
mod tests {
    use datafusion::error::DataFusionError;
    use datafusion::prelude::SessionContext;

    use super::*;

    fn context() -> SessionContext {
        let context = SessionContext::new();
        let state = context.state_ref();
        datafusion::execution::FunctionRegistry::register_function_rewrite(&mut *state.write(), Arc::new(BoundGrowth)).unwrap();
        context
    }

    async fn run(context: &SessionContext, sql: &str) -> Result<String> {
        let batches = context.sql(sql).await?.collect().await?;
        Ok(arrow::util::pretty::pretty_format_batches(&batches)?.to_string())
    }

    #[tokio::test]
    async fn ordinary_calls_are_what_they_were() {
        let (bounded, plain) = (context(), SessionContext::new());
        for sql in [
            "SELECT repeat('ab', 3), lpad('x', 5, 'yz'), rpad('x', 5), concat('a', NULL, 'b'), concat_ws(', ', 'a', 'b')",
            "SELECT s || '-' || s AS twice, repeat(s, n) FROM (VALUES ('a', 2), (NULL, 3), ('bc', NULL)) AS t(s, n)",
            "SELECT range(3), range(1, 10, 3), generate_series(5, 1, -2), array_repeat('a', 3), array_resize([1, 2], 4, 7)",
            "SELECT range(DATE '2024-01-01', DATE '2024-03-01', INTERVAL '1' MONTH)",
            "SELECT generate_series(TIMESTAMP '2024-01-01', TIMESTAMP '2024-01-02', INTERVAL '6' HOUR)",
            "SELECT replace('banana', 'a', 'oo'), regexp_replace('banana', '(a)(n)', '\\2\\1', 'g'), overlay('abc' placing 'x' from 2)",
            "SELECT array_to_string([1, 2, NULL], '-', '?'), [1] || [2, 3], make_array(1, 2), struct(1 AS a), regexp_match('ab', '(a)(b)')",
            "SELECT arrow_cast(1, 'Int8'), arrow_cast('a', 'Utf8View') || 'b', map(['a'], [1])",
            "SELECT sum(v) FROM (SELECT unnest(range(0, 10000)) AS v)",
            "SELECT count(*) FROM range(0, 1000000)",
            "SELECT length(repeat('x', 100)), array_length(array_concat([1], [2]))",
        ] {
            assert_eq!(run(&bounded, sql).await.unwrap(), run(&plain, sql).await.unwrap(), "{sql}");
        }
    }

    #[tokio::test]
    async fn what_would_be_too_large_is_not_made() {
        let context = context();
        let doubled = |times: usize, first: &str| {
            let steps: Vec<_> = (0..times).map(|at| format!(", t{} AS (SELECT s || s AS s FROM t{at})", at + 1)).collect();
            format!("WITH t0 AS ({first}){} SELECT length(s) FROM t{times}", steps.concat())
        };
        for sql in [
            "SELECT repeat('x', 1000000000)".to_owned(),
            "SELECT repeat('x', 9223372036854775807)".to_owned(),
            "SELECT lpad('x', 2000000000), rpad('x', 2000000000)".to_owned(),
            "SELECT range(0, 100000000000)".to_owned(),
            "SELECT generate_series(TIMESTAMP '1970-01-01', TIMESTAMP '2024-01-01', INTERVAL '1' SECOND)".to_owned(),
            "SELECT array_repeat(NULL, 10000000000), array_repeat([1], 10000000000)".to_owned(),
            "SELECT array_resize([1], 10000000000)".to_owned(),
            "SELECT repeat(s, 1000000) FROM (SELECT CAST(value AS VARCHAR) AS s FROM range(0, 100000))".to_owned(),
            "SELECT replace(repeat('a', 100000), 'a', repeat('b', 100000))".to_owned(),
            "SELECT regexp_replace(repeat('a', 100000), 'a', repeat('b', 100000), 'g')".to_owned(),
            "SELECT array_to_string(range(0, 10000), repeat('b', 100000))".to_owned(),
            doubled(60, "SELECT arrow_cast('abcd', 'LargeUtf8') AS s"),
            doubled(60, "SELECT arrow_cast(CAST(value AS VARCHAR), 'Utf8View') AS s FROM range(0, 9)"),
            format!("SELECT concat_ws(repeat('x', 100000){})", ", ''".repeat(200)),
        ] {
            let error = run(&context, &sql).await.unwrap_err();
            assert!(
                matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)),
                "{}: {error}",
                &sql[..sql.len().min(80)]
            );
        }
        for sql in [
            "SELECT arrow_cast(NULL, 'FixedSizeList(1000000000, Int64)')".to_owned(),
            "SELECT arrow_try_cast('a', 'FixedSizeBinary(1000000000)')".to_owned(),
            format!("SELECT '{}'", "x".repeat(200_000)),
        ] {
            assert!(
                matches!(run(&context, &sql).await.unwrap_err().find_root(), DataFusionError::Plan(_)),
                "{}",
                &sql[..60.min(sql.len())]
            );
        }
    }
}
