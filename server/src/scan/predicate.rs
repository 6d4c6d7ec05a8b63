//! Filters: SQL over a scan's columns, evaluated by `DataFusion`'s physical expressions on arrays as they rest in the cache.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray as _, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite as _;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, Volatility};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::SessionConfig;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use flightcache_proto::{Error, ErrorKind, Result};

use super::growth::BoundGrowth;

/// Characters of a filter that an error shows.
const MAX_SHOWN_CHARS: usize = 1_000;
/// Filters longer than this are refused.
const MAX_FILTER_BYTES: usize = 1 << 20;

/// Reads filters. Holds `DataFusion`'s functions and rules.
pub(crate) struct Planner {
    /// Unquoted identifiers are lower-cased, as `DataFusion` does by default.
    folding: SessionState,
    /// Identifiers are taken as they are written: `WatchID` works without quotes.
    literal: SessionState,
}

/// Chains of operators nest as deep as they are long, and are dropped and cloned by recursion.
const MAX_FILTER_OPERATORS: usize = 1_500;

/// Enough for an expression of as many levels. A Tokio thread has 2 MiB.
const STACK_BYTES: usize = 16 << 20;
/// Expressions of fewer operators do with that.
const SHALLOW_OPERATORS: usize = 64;

type Bound = Arc<dyn PhysicalExpr>;

/// A filter over the columns of a table.
pub(crate) struct Predicate {
    expr: Expr,
    planner: Arc<Planner>,
    table: SchemaRef,
    /// The table columns it refers to, ascending.
    columns: Vec<usize>,
    /// What `now()` means: the same for all of a scan.
    asked_at: DateTime<Utc>,
    /// Over the announced types, for pruning.
    announced: Arc<dyn PhysicalExpr>,
    /// Whether it may nest too deep for a thread's own stack.
    is_deep: bool,
    /// By the types the columns rest in: strings may be dictionaries in one row group and plain in the next.
    bound: Mutex<HashMap<Vec<DataType>, Option<Bound>>>,
}

impl Default for Planner {
    fn default() -> Self {
        let state = |fold: bool| {
            let config = SessionConfig::new().set_bool("datafusion.sql_parser.enable_ident_normalization", fold);
            SessionStateBuilder::new().with_config(config).with_default_features().build()
        };
        Self { folding: state(true), literal: state(false) }
    }
}

impl Planner {
    /// Types made to agree, constants computed, functions that only exist while planning replaced.
    fn physical(&self, expr: Expr, schema: &DFSchema, asked_at: DateTime<Utc>) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(schema.clone()))
            .with_config_options(Arc::clone(self.folding.config_options()))
            .with_query_execution_start_time(Some(asked_at))
            .build();
        // Before anything is computed.
        let options = self.folding.config_options();
        let expr = expr.transform_up(|expr| BoundGrowth.rewrite(expr, schema, options))?.data;
        let simplifier = ExprSimplifier::new(context);
        let expr = simplifier.simplify(simplifier.coerce(expr, schema)?)?;
        self.folding.create_physical_expr(expr, schema)
    }
}

impl Predicate {
    /// Reads a SQL boolean expression over the columns of `table`.
    pub(crate) fn parse(planner: &Arc<Planner>, sql: &str, table: &SchemaRef, asked_at_us: i64) -> Result<Self> {
        let is_deep = check_size(sql)? > SHALLOW_OPERATORS;
        let parse = || Self::parse_checked(planner, sql, table, asked_at_us);
        let mut filter = if is_deep { on_deep_stack(parse) } else { parse() }?;
        filter.is_deep = is_deep;
        Ok(filter)
    }

    fn parse_checked(planner: &Arc<Planner>, sql: &str, table: &SchemaRef, asked_at_us: i64) -> Result<Self> {
        let invalid = |e: DataFusionError| Error::invalid(format!("filter {sql:?}: {}", e.strip_backtrace()));
        let schema = DFSchema::try_from(Arc::clone(table)).map_err(invalid)?;
        let expr = planner.folding.create_logical_expr(sql, &schema).or_else(|folded| {
            // The first error is the one to report: it speaks of the text by DataFusion's own rules.
            planner.literal.create_logical_expr(sql, &schema).map_err(|_| folded)
        });
        let expr = expr.map_err(|e| {
            if root_is_missing_column(&e) {
                Error::new(ErrorKind::NotFound, format!("filter {sql:?}: {}", e.strip_backtrace()))
            } else {
                invalid(e)
            }
        })?;
        Self::of_checked(planner, expr, table, asked_at_us)
            .map_err(|e| Error::new(e.kind, format!("filter {sql:?}: {}", e.message)))
    }

    /// Reads a `flightcache.v1.Predicate` over the columns of `table`.
    pub(crate) fn read(planner: &Arc<Planner>, bytes: &[u8], table: &SchemaRef, asked_at_us: i64) -> Result<Self> {
        let expr = flightcache_datafusion::predicate::read(&flightcache_proto::predicate::Predicate::parse(bytes)?)?;
        let expr = expr.transform(|expr| Ok(plain_literal(expr))).map_err(|e| Error::invalid(e.strip_backtrace()))?.data;
        // Lists are long, not deep.
        let mut expressions = 0;
        let _ = expr.apply(|_| {
            expressions += 1;
            Ok(if expressions > SHALLOW_OPERATORS { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        });
        let is_deep = expressions > SHALLOW_OPERATORS;
        let read = || Self::of_checked(planner, expr, table, asked_at_us);
        let read = if is_deep { on_deep_stack(read) } else { read() };
        let mut predicate = read.map_err(|e| Error::new(e.kind, format!("predicate: {}", e.message)))?;
        predicate.is_deep = is_deep;
        Ok(predicate)
    }

    /// The predicate that is true where both are.
    pub(crate) fn and(self, other: Self) -> Result<Self> {
        let is_deep = self.is_deep || other.is_deep;
        let expr = self.expr.and(other.expr);
        let both = || Self::of_checked(&self.planner, expr, &self.table, self.asked_at.timestamp_micros());
        let mut both = if is_deep { on_deep_stack(both) } else { both() }?;
        both.is_deep = is_deep;
        Ok(both)
    }

    fn of_checked(planner: &Arc<Planner>, expr: Expr, table: &SchemaRef, asked_at_us: i64) -> Result<Self> {
        let invalid = |e: DataFusionError| Error::invalid(e.strip_backtrace());
        if expr.is_volatile() {
            return Err(Error::invalid("volatile functions are not allowed"));
        }
        let schema = DFSchema::try_from(Arc::clone(table)).map_err(invalid)?;
        let asked_at = DateTime::from_timestamp_micros(asked_at_us).unwrap_or_default();
        let announced = planner.physical(expr.clone(), &schema, asked_at).map_err(invalid)?;
        let data_type = announced.data_type(table).map_err(invalid)?;
        if !matches!(data_type, DataType::Boolean | DataType::Null) {
            return Err(Error::invalid(format!("it is of type {data_type}, not boolean")));
        }
        let mut columns = Vec::new();
        for column in expr.column_refs() {
            columns.push(table.index_of(&column.name).map_err(|e| Error::new(ErrorKind::NotFound, e.to_string()))?);
        }
        columns.sort_unstable();
        Ok(Self {
            expr,
            planner: Arc::clone(planner),
            table: Arc::clone(table),
            columns,
            asked_at,
            announced,
            is_deep: false,
            bound: Mutex::default(),
        })
    }

    /// Whether it may mean something else at another time: it asks for the date, for instance.
    pub(crate) fn depends_on_time(&self) -> bool {
        let is_unstable = |expr: &Expr| match expr {
            Expr::ScalarFunction(call) => call.func.signature().volatility != Volatility::Immutable,
            _ => false,
        };
        // The walk itself fails only where the question does.
        self.is_deep || self.expr.exists(|expr| Ok(is_unstable(expr))).unwrap_or(true)
    }

    /// The table columns it refers to, ascending.
    pub(crate) fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// As a physical expression over the whole table's announced schema.
    pub(crate) fn announced(&self) -> &Arc<dyn PhysicalExpr> {
        &self.announced
    }

    /// The rows for which it is true. `arrays` are the columns of [`Predicate::columns`], in that order, in whatever type they
    /// rest in.
    pub(crate) fn evaluate(&self, arrays: Vec<ArrayRef>, rows: usize) -> Result<BooleanArray> {
        if self.is_deep { on_deep_stack(|| self.evaluate_here(arrays, rows)) } else { self.evaluate_here(arrays, rows) }
    }

    fn evaluate_here(&self, arrays: Vec<ArrayRef>, rows: usize) -> Result<BooleanArray> {
        let types: Vec<_> = arrays.iter().map(|array| array.data_type().clone()).collect();
        let (expr, arrays) = if let Some(expr) = self.bind(&types) {
            (expr, arrays)
        } else {
            // An expression that cannot be bound to dictionaries is bound to the announced types.
            let announced: Vec<_> = self.columns.iter().map(|&column| self.table.field(column).data_type().clone()).collect();
            let columns = arrays.iter().zip(&announced);
            let arrays = columns.map(|(array, data_type)| arrow::compute::cast(array, data_type)).collect::<Result<_, _>>();
            let expr =
                self.bind(&announced).ok_or_else(|| Error::internal("the filter cannot be bound to the announced types"))?;
            (expr, arrays.map_err(|e| self.failed(&e.into()))?)
        };
        let types = arrays.iter().map(|array| array.data_type().clone()).collect::<Vec<_>>();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::new(self.schema(&types)), arrays, &options)
            .map_err(|e| self.failed(&e.into()))?;
        let value = expr.evaluate(&batch).and_then(|value| value.into_array(rows)).map_err(|e| self.failed(&e))?;
        match value.as_boolean_opt() {
            Some(mask) => Ok(match mask.null_count() {
                0 => mask.clone(),
                // NULL is not true.
                _ => arrow::compute::prep_null_mask_filter(mask),
            }),
            None => Ok(BooleanArray::from(vec![false; rows])),
        }
    }

    fn failed(&self, error: &DataFusionError) -> Error {
        // It travels in a header.
        let filter: String = self.expr.to_string().chars().take(MAX_SHOWN_CHARS).collect();
        Error::invalid(format!("filter {filter}: {}", error.strip_backtrace()))
    }

    fn schema(&self, types: &[DataType]) -> Schema {
        let fields = self.columns.iter().zip(types).map(|(&column, data_type)| {
            let field = self.table.field(column);
            // Partition and merged columns may be NULL where the file says otherwise.
            Field::new(field.name(), data_type.clone(), true)
        });
        Schema::new(fields.collect::<Vec<_>>())
    }

    fn bind(&self, types: &[DataType]) -> Option<Arc<dyn PhysicalExpr>> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(expr) = bound.get(types) {
            return expr.clone();
        }
        let schema = self.schema(types);
        let none = RecordBatch::new_empty(Arc::new(schema.clone()));
        let expr =
            DFSchema::try_from(schema).and_then(|schema| self.planner.physical(self.expr.clone(), &schema, self.asked_at)).ok();
        // What is planned over dictionaries need not go with them: a pattern of views, for one.
        let is_announced =
            self.columns.iter().zip(types).all(|(&column, data_type)| self.table.field(column).data_type() == data_type);
        let expr = expr.filter(|expr| is_announced || expr.evaluate(&none).is_ok());
        bound.insert(types.to_vec(), expr.clone());
        expr
    }
}

/// Refuses a filter that is too long to be read. Returns how deep it may nest.
fn check_size(sql: &str) -> Result<usize> {
    if sql.len() > MAX_FILTER_BYTES {
        return Err(Error::invalid(format!("filter of {} bytes; at most {MAX_FILTER_BYTES} are read", sql.len())));
    }
    let tokens =
        Tokenizer::new(&GenericDialect {}, sql).tokenize().map_err(|e| Error::invalid(format!("filter {sql:?}: {e}")))?;
    let operators = tokens.iter().filter(|token| is_operator(token)).count();
    if operators > MAX_FILTER_OPERATORS {
        return Err(Error::invalid(format!(
            "filter of {operators} names, operators and brackets; at most {MAX_FILTER_OPERATORS} are read. Long lists of values go into IN (…)"
        )));
    }
    Ok(operators)
}

/// Runs what recurses as deep as an expression is nested.
pub(super) fn on_deep_stack<T>(work: impl FnOnce() -> T) -> T {
    stacker::maybe_grow(STACK_BYTES / 2, STACK_BYTES, work)
}

/// Whether a token can add a level to the expression: all but literals, commas and space.
fn is_operator(token: &Token) -> bool {
    !matches!(
        token,
        Token::Whitespace(_) | Token::Comma | Token::Number(..) | Token::SingleQuotedString(_) | Token::HexStringLiteral(_)
    )
}

/// A string as SQL has it. One of a client's type, such as a view, does not agree with dictionaries in all comparisons; a plain one is
/// made to agree with whatever it is compared with.
fn plain_literal(expr: Expr) -> Transformed<Expr> {
    let plain = match expr {
        Expr::Literal(ScalarValue::Utf8View(value) | ScalarValue::LargeUtf8(value), metadata) => {
            Expr::Literal(ScalarValue::Utf8(value), metadata)
        }
        Expr::Literal(ScalarValue::BinaryView(value) | ScalarValue::LargeBinary(value), metadata) => {
            Expr::Literal(ScalarValue::Binary(value), metadata)
        }
        other => return Transformed::no(other),
    };
    Transformed::yes(plain)
}

fn root_is_missing_column(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::SchemaError(schema, _) if matches!(**schema, datafusion::common::SchemaError::FieldNotFound { .. }))
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, Int64Array, StringArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    fn table() -> SchemaRef {
        let fields = vec![
            Field::new("a", DataType::Int64, true),
            Field::new("Name", DataType::Utf8, true),
            Field::new("s", DataType::Utf8, true),
        ];
        Arc::new(Schema::new(fields))
    }

    fn parse(sql: &str) -> Result<Predicate> {
        Predicate::parse(&Arc::new(Planner::default()), sql, &table(), 1_800_000_000_000_000)
    }

    #[test]
    fn null_is_not_true() {
        let predicate = parse("a > 1").unwrap();
        let mask = predicate.evaluate(vec![Arc::new(Int64Array::from(vec![Some(1), None, Some(2)]))], 3).unwrap();
        assert_eq!(mask, BooleanArray::from(vec![false, false, true]));
        let constant = parse("NULL").unwrap();
        assert_eq!(constant.evaluate(vec![], 2).unwrap(), BooleanArray::from(vec![false, false]));
    }

    #[test]
    fn dictionaries_and_plain_strings_agree() {
        let values = vec![Some("x"), None, Some("yy"), Some("x"), Some("Xx")];
        let plain: ArrayRef = Arc::new(StringArray::from(values.clone()));
        let dictionary: ArrayRef = Arc::new(values.into_iter().collect::<DictionaryArray<Int32Type>>());
        for sql in [
            "s = 'x'",
            "s <> 'x'",
            "s LIKE '%x'",
            "s ILIKE 'x%'",
            "s LIKE arrow_cast('%x', 'Utf8View')",
            "s NOT ILIKE arrow_cast('x%', 'LargeUtf8')",
            "s IN ('x', 'yy')",
            "s IS NULL",
            "upper(s) = 'X'",
            "length(s) > 1",
            "s || 'z' = 'xz'",
            "s > 'x'",
            "CASE WHEN s = 'x' THEN true ELSE false END",
        ] {
            let predicate = parse(sql).unwrap();
            let on_plain = predicate.evaluate(vec![Arc::clone(&plain)], 5).unwrap();
            assert_eq!(predicate.evaluate(vec![Arc::clone(&dictionary)], 5).unwrap(), on_plain, "{sql}");
        }
    }

    #[test]
    fn literals_of_a_clients_types_agree_with_dictionaries() {
        use datafusion::physical_expr::expressions::{binary, col, in_list, like, lit};

        let values = [Some("x"), None, Some("yy"), Some("x"), Some("Xx")];
        let dictionary: ArrayRef = Arc::new(values.iter().copied().collect::<DictionaryArray<Int32Type>>());
        for data_type in [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View] {
            let table = Arc::new(Schema::new(vec![Field::new("s", data_type.clone(), true)]));
            let plain = arrow::compute::cast(&dictionary, &data_type).unwrap();
            let s = || col("s", &table).unwrap();
            let literal = |text: &str| lit(ScalarValue::Utf8(Some(text.to_owned())).cast_to(&data_type).unwrap());
            for (filter, expected) in [
                (like(false, false, s(), literal("%x"), &table).unwrap(), [true, false, false, true, true]),
                (like(true, true, s(), literal("x%"), &table).unwrap(), [false, false, true, false, false]),
                (
                    binary(s(), datafusion::logical_expr::Operator::Gt, literal("Xx"), &table).unwrap(),
                    [true, false, true, true, false],
                ),
                (in_list(s(), vec![literal("yy"), literal("Xx")], &false, &table).unwrap(), [false, false, true, false, true]),
            ] {
                let written = flightcache_datafusion::predicate::write([&filter], [], &table).flatten().unwrap();
                let read =
                    Predicate::read(&Arc::new(Planner::default()), &prost::Message::encode_to_vec(&written), &table, 0).unwrap();
                for array in [&plain, &dictionary] {
                    let mask = read.evaluate(vec![Arc::clone(array)], 5).unwrap();
                    assert_eq!(mask, BooleanArray::from(expected.to_vec()), "{filter} on {}", array.data_type());
                }
            }
        }
    }

    #[test]
    fn what_would_be_too_large_is_not_made() {
        for sql in
            ["length(repeat('x', 1000000000)) > a", "array_length(range(0, 100000000000)) > a", "repeat(s, 1000000000) = s"]
        {
            let arrays: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1])), Arc::new(StringArray::from(vec!["x"]))];
            let evaluated = parse(sql).and_then(|filter| {
                let at = filter.columns().iter().map(|column| Arc::clone(&arrays[column / 2])).collect();
                filter.evaluate(at, 1)
            });
            let error = evaluated.map(|_| ()).unwrap_err();
            assert!(error.message.contains("would make more than"), "{sql}: {error}");
        }
    }

    #[test]
    fn names_work_folded_quoted_and_as_written() {
        for sql in ["a = arrow_cast('1', 'Int64')", "now() > timestamp '2024-01-01'", "A = 1", "\"Name\" = 'x'", "Name = 'x'"] {
            assert!(parse(sql).is_ok(), "{sql}");
        }
    }

    #[test]
    fn long_filters_work_or_are_refused() {
        // On a thread with the stack of a Tokio worker.
        let work = || {
            let chain = |term: &str, times: usize| vec![term; times].join(" OR ");
            let sql = [
                chain("a = 1", MAX_FILTER_OPERATORS / 4),
                chain("NOT a IS NULL", MAX_FILTER_OPERATORS / 5),
                format!("a{} > 0", " + a".repeat(MAX_FILTER_OPERATORS / 2 - 2)),
                format!("a{} > 0", "::bigint".repeat(MAX_FILTER_OPERATORS / 2 - 2)),
                format!("a {}", "IS NULL ".repeat(MAX_FILTER_OPERATORS / 2 - 2)),
            ];
            for sql in sql {
                let evaluated = parse(&sql).map(|filter| filter.evaluate(vec![Arc::new(Int64Array::from(vec![1, 2]))], 2));
                assert!(evaluated.is_ok_and(|mask| mask.is_ok()), "{}…", &sql[..60]);
            }
            let values: Vec<_> = (0..50_000).map(|value| value.to_string()).collect();
            assert!(parse(&format!("a IN ({})", values.join(","))).is_ok());
            for sql in [
                chain("a = 1", 100_000),
                format!("{}a{} = 1", "(".repeat(1_000), ")".repeat(1_000)),
                format!("{} a", "NOT ".repeat(1_400)),
            ] {
                assert_eq!(parse(&sql).map(|_| ()).unwrap_err().kind, ErrorKind::InvalidRequest);
            }
        };
        std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap();
    }

    #[test]
    fn mistakes_are_typed() {
        let kind = |sql: &str| parse(sql).map(|_| ()).unwrap_err().kind;
        assert_eq!(kind("b = 1"), ErrorKind::NotFound);
        for sql in ["a +", "a + 1", "a = 1; drop table t", "random() < 0.5", "a IN (SELECT 1)", "nosuch(a) = 1", "sum(a) > 1", ""]
        {
            assert_eq!(kind(sql), ErrorKind::InvalidRequest, "{sql}");
        }
    }
}
