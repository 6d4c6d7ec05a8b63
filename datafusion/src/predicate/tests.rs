//! What is written says the same when it is read.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int32Array,
    Int64Array, RecordBatch, StringArray, StringViewArray, TimestampMicrosecondArray, TimestampMillisecondArray, UInt8Array,
};
use arrow::datatypes::{Field, Int32Type, Schema, SchemaRef};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, Expr, Operator, ScalarUDF, Volatility, create_udf};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, CaseExpr, DynamicFilterPhysicalExpr, InListExpr, col, lit};
use datafusion::prelude::SessionContext;
use flightcache_proto::ErrorKind;
use flightcache_proto::predicate::{Expression, Expressions, Kind, MAX_DEPTH, Predicate, VERSION};
use proptest::prelude::*;

use super::{read, write};

const ROWS: usize = 64;

fn batch() -> RecordBatch {
    fn every<T>(step: usize, f: impl Fn(usize) -> T) -> Vec<Option<T>> {
        (0..ROWS).map(|row| (row % step != 0).then(|| f(row))).collect()
    }
    let words = ["", "a", "Ab", "abc", "a%b", "xyz_", "ÄÖ", "a longer text than twelve bytes"];
    let word = |row: usize| words[row * 7 % words.len()];
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("i", Arc::new(Int32Array::from(every(5, |row| row as i32 - 20)))),
        ("l", Arc::new(Int64Array::from_iter_values((0..ROWS as i64).map(|row| row * row - 500)))),
        ("u", Arc::new(UInt8Array::from(every(9, |row| row as u8)))),
        ("f", Arc::new(Float64Array::from(every(7, |row| [0.0, -0.0, f64::NAN, f64::INFINITY, -1.5, 2.25][row % 6])))),
        ("d", Arc::new(Decimal128Array::from(every(6, |row| row as i128 * 25 - 500)).with_precision_and_scale(10, 2).unwrap())),
        ("s", Arc::new(StringArray::from(every(8, word)))),
        ("v", Arc::new(StringViewArray::from(every(11, word)))),
        ("Dict", Arc::new(every(10, word).into_iter().collect::<DictionaryArray<Int32Type>>())),
        (
            "t",
            Arc::new(TimestampMicrosecondArray::from(every(6, |row| row as i64 * 3_600_000_000)).with_timezone("Europe/Berlin")),
        ),
        ("n", Arc::new(TimestampMillisecondArray::from(every(4, |row| row as i64 * 7_200_000)))),
        ("day", Arc::new(Date32Array::from(every(3, |row| row as i32)))),
        ("b", Arc::new(BooleanArray::from(every(3, |row| row % 2 == 0)))),
        ("bin", Arc::new(BinaryArray::from_iter(every(7, |row| vec![row as u8; row % 3])))),
    ];
    let fields = columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), column.null_count() > 0));
    RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns.iter().map(|(_, c)| Arc::clone(c)).collect())
        .unwrap()
}

fn planned(sql: &str, schema: &SchemaRef) -> Arc<dyn PhysicalExpr> {
    let context = SessionContext::new();
    let schema = DFSchema::try_from(Arc::clone(schema)).unwrap();
    let expr = context.parse_sql_expr(sql, &schema).unwrap_or_else(|e| panic!("{sql}: {e}"));
    context.create_physical_expr(expr, &schema).unwrap_or_else(|e| panic!("{sql}: {e}"))
}

fn logical(expr: Expr, schema: &SchemaRef) -> Arc<dyn PhysicalExpr> {
    SessionContext::new().create_physical_expr(expr, &DFSchema::try_from(Arc::clone(schema)).unwrap()).unwrap()
}

fn evaluated(expr: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<ArrayRef, String> {
    expr.evaluate(batch).and_then(|value| value.into_array(batch.num_rows())).map_err(|e| e.strip_backtrace())
}

fn can_say(expr: &Arc<dyn PhysicalExpr>, schema: &SchemaRef) -> bool {
    write([expr], [], schema).is_some_and(|predicate| predicate.is_some())
}

/// As it arrives: through bytes, without dynamic filters.
fn arrived(expr: &Arc<dyn PhysicalExpr>, schema: &SchemaRef) -> Arc<dyn PhysicalExpr> {
    let written = write([expr], [], schema).flatten().unwrap_or_else(|| panic!("{expr} cannot be said"));
    logical(read(&Predicate::parse(&written.to_bytes()).unwrap()).unwrap(), schema)
}

fn check(sql: &str) {
    let batch = batch();
    let expr = planned(sql, &batch.schema());
    let arrived = arrived(&expr, &batch.schema());
    assert_eq!(evaluated(&arrived, &batch), evaluated(&expr, &batch), "{sql}: {expr} arrived as {arrived}");
}

#[test]
fn all_kinds_of_expressions_arrive() {
    for sql in [
        "b",
        "NOT b OR i IS NULL",
        "i + l * 2 - u > 100 % (u + 1)",
        "-i < 3",
        "i / 3 = 2",
        "f = 0.0 OR f > 1e3 OR f <> f",
        "f IS DISTINCT FROM 'NaN'::double",
        "d BETWEEN 1.25 AND 7.5",
        "d * 2 >= 3.333",
        "s LIKE 'a%' AND s NOT LIKE '%b'",
        "v ILIKE '_B%'",
        "s LIKE 'a\\%b'",
        "s || v = 'aa'",
        "\"Dict\" = 'abc'",
        "\"Dict\" IN ('a', 'Ab', NULL)",
        "i IN (1, 2, 3, 5, 8, 13) OR i NOT IN (2, NULL)",
        "t >= '1970-01-02T01:00:00Z'",
        "t = TIMESTAMP '1970-01-01T03:00:00+02:00'",
        "n < '1970-01-02'",
        "day > DATE '1970-01-10' + INTERVAL '3 days'",
        "n - INTERVAL '1 month' < TIMESTAMP '1969-12-20'",
        "date_part('hour', t) = 5",
        "date_trunc('day', n) = '1970-01-02'",
        "CASE WHEN i > 3 THEN s = 'a' WHEN i IS NULL THEN true END",
        "CASE u WHEN 3 THEN 'x' WHEN 4 THEN s ELSE v END = 'x'",
        "CAST(i AS VARCHAR) = '7'",
        "TRY_CAST(s AS INT) IS NULL",
        "CAST(l AS DECIMAL(20, 3)) > 5.5",
        "upper(s) = 'AB' AND character_length(v) > 2",
        "substr(s, 2, 2) = 'bc' OR starts_with(v, 'xy')",
        "coalesce(s, v, 'none') <> 'none'",
        "abs(i) > 3 AND round(f) = 2 AND NOT isnan(f)",
        "bin = X'0202'",
        "i IS NOT DISTINCT FROM NULL",
        "true",
        "NULL",
        "u > 250 OR (u < 5 AND (s = 'a' OR (l > 5 AND (d < 2 OR NOT (f > 1)))))",
    ] {
        check(sql);
    }
}

#[test]
fn what_cannot_be_said_stays() {
    let schema = batch().schema();
    for sql in ["random() < 0.5", "regexp_like(s, 'a+')", "now() > t"] {
        assert!(!can_say(&planned(sql, &schema), &schema), "{sql}");
    }
    // A function of a known name that is another.
    let own = |args: &[ColumnarValue]| Ok(args[0].clone());
    let upper: ScalarUDF = create_udf(
        "upper",
        vec![schema.field(5).data_type().clone()],
        schema.field(5).data_type().clone(),
        Volatility::Immutable,
        Arc::new(own),
    );
    let expr = logical(upper.call(vec![datafusion::prelude::col("s")]).eq(datafusion::prelude::lit("a")), &schema);
    assert!(!can_say(&expr, &schema));
    assert!(can_say(&planned("upper(s) = 'a'", &schema), &schema));
    // Too deep.
    let deep = (0..MAX_DEPTH)
        .fold(planned("b", &schema), |expr, _| Arc::new(datafusion::physical_expr::expressions::NotExpr::new(expr)) as _);
    assert!(!can_say(&deep, &schema));
    // Chains are not deep.
    let chain = (0..2_000).map(|i| format!("l = {i}")).collect::<Vec<_>>().join(" OR ");
    let on_a_large_stack = move || check(&chain);
    std::thread::Builder::new().stack_size(64 << 20).spawn(on_a_large_stack).unwrap().join().unwrap();
}

fn binary(left: Arc<dyn PhysicalExpr>, op: Operator, right: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
    Arc::new(BinaryExpr::new(left, op, right))
}

#[test]
fn dynamic_filters_are_said_as_they_stand_or_wider() {
    let batch = batch();
    let schema = batch.schema();
    let l = || col("l", &schema).unwrap();
    let filter = Arc::new(DynamicFilterPhysicalExpr::new(vec![l()], lit(true)));
    let dynamic: Arc<dyn PhysicalExpr> = Arc::clone(&filter) as _;
    let said = || write([], [&dynamic], &schema).unwrap();
    assert!(said().is_none(), "at first there is nothing to say");
    let rows = |predicate: Predicate| {
        let values = evaluated(&logical(read(&predicate).unwrap(), &schema), &batch).unwrap();
        let values = values.as_any().downcast_ref::<BooleanArray>().unwrap();
        (0..ROWS).filter(|&row| values.is_valid(row) && values.value(row)).collect::<Vec<_>>()
    };
    filter.update(binary(l(), Operator::Lt, lit(-400_i64))).unwrap();
    assert_eq!(rows(said().unwrap()), (0..10).collect::<Vec<_>>());
    // Of a conjunction what can be said; of a disjunction all or nothing.
    let unsayable = planned("regexp_like(s, 'a')", &schema);
    filter.update(binary(binary(l(), Operator::Lt, lit(-400_i64)), Operator::And, Arc::clone(&unsayable))).unwrap();
    assert_eq!(rows(said().unwrap()), (0..10).collect::<Vec<_>>());
    filter.update(binary(binary(l(), Operator::Lt, lit(-400_i64)), Operator::Or, Arc::clone(&unsayable))).unwrap();
    assert!(said().is_none());
    // A partitioned join: which partition a row belongs to is not known here.
    let partition = binary(planned("l % 2", &schema), Operator::Eq, lit(0_i64));
    let cases = vec![
        (Arc::clone(&partition), binary(l(), Operator::Lt, lit(-499_i64))),
        (lit(true), binary(l(), Operator::Gt, lit(3_000_i64))),
    ];
    filter.update(Arc::new(CaseExpr::try_new(None, cases, Some(lit(false))).unwrap())).unwrap();
    let wider = rows(said().unwrap());
    assert_eq!(wider, [0, 60, 61, 62, 63]);
    // Long lists become Bloom filters.
    let list: Vec<_> = (0..2_000_i64).map(|value| lit(ScalarValue::Int64(Some(value * 3)))).collect();
    filter.update(Arc::new(InListExpr::try_new(l(), list, false, &schema).unwrap())).unwrap();
    let predicate = said().unwrap();
    assert!(matches!(predicate.expression.as_ref().unwrap().kind, Some(Kind::Bloom(_))));
    let found = rows(predicate);
    let exact: Vec<_> = (0..ROWS).filter(|&row| (row * row) as i64 >= 500 && (row * row - 500) % 3 == 0).collect();
    assert!(exact.iter().all(|row| found.contains(row)), "{found:?}");
    assert!(found.len() < exact.len() + 5, "{found:?}");
    // Beside exact ones, which are all there or nothing is.
    let exact = planned("i > 0", &schema);
    assert_eq!(rows(write([&exact], [&dynamic], &schema).unwrap().unwrap()).iter().filter(|&&row| row <= 20).count(), 0);
    assert!(write([&unsayable], [&dynamic], &schema).is_none());
}

#[test]
fn what_is_too_long_is_left_out_or_stays() {
    let schema = batch().schema();
    let list = |values: std::ops::Range<i64>| -> Arc<dyn PhysicalExpr> {
        let list = values.map(|value| lit(ScalarValue::Int64(Some(value)))).collect();
        Arc::new(InListExpr::try_new(col("l", &schema).unwrap(), list, false, &schema).unwrap())
    };
    let (long, other) = (list(0..200_000), list(0..100_000));
    assert!(can_say(&long, &schema) && can_say(&other, &schema));
    assert!(write([&long, &other], [], &schema).is_none(), "not both");
    // What only spares work must not keep the others from being said.
    let text = || (0..1_000).map(|row| lit(ScalarValue::from(format!("{row}{}", "x".repeat(5_000))))).collect();
    let dynamic: Arc<dyn PhysicalExpr> =
        Arc::new(InListExpr::try_new(col("s", &schema).unwrap(), text(), false, &schema).unwrap());
    let said = write([&long], [&dynamic], &schema).unwrap().unwrap();
    assert_eq!(said, write([&long], [], &schema).unwrap().unwrap());
}

#[test]
fn one_list_that_is_referred_to_often_is_refused() {
    let values = |list: ArrayRef| super::values::write(vec![list]).unwrap();
    let literal = || Expression::new(Kind::Literal(0));
    let chain = |times: usize, kind: fn() -> Expression| {
        Expression::new(Kind::Or(flightcache_proto::predicate::Expressions { items: (0..times).map(|_| kind()).collect() }))
    };
    let read = |expression, list| read(&Predicate { version: VERSION, expression: Some(expression), values: Some(values(list)) });
    let long: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(1 << 20)]));
    assert!(read(literal(), Arc::clone(&long)).is_ok());
    assert_eq!(read(chain(100, || Expression::new(Kind::Literal(0))), long).unwrap_err().kind, ErrorKind::InvalidRequest);
    let flags: ArrayRef = Arc::new(BooleanArray::from(vec![true; 1 << 20]));
    let in_list = flightcache_proto::predicate::InList {
        expression: Some(Box::new(Expression::new(Kind::Column("b".into())))),
        list: 0,
        negated: false,
    };
    let in_list = Expression::new(Kind::InList(Box::new(in_list)));
    assert_eq!(read(in_list.clone(), flags).unwrap_err().kind, ErrorKind::InvalidRequest);
    // NULLs take no bytes.
    let nothing: ArrayRef = Arc::new(arrow::array::NullArray::new(1 << 30));
    assert_eq!(read(in_list, nothing).unwrap_err().kind, ErrorKind::InvalidRequest);
}

#[test]
fn foreign_bytes_fail_typed() {
    let wrap = |kind: Option<Kind>| Predicate { version: VERSION, expression: Some(Expression { kind }), values: None };
    let refused = [
        Predicate { version: VERSION, ..Predicate::default() },
        wrap(None),
        wrap(Some(Kind::Literal(3))),
        wrap(Some(Kind::And(Expressions::default()))),
        wrap(Some(Kind::Call(flightcache_proto::predicate::Call { function: "random".into(), arguments: vec![] }))),
        wrap(Some(Kind::Case(Box::default()))),
        wrap(Some(Kind::Binary(Box::default()))),
        wrap(Some(Kind::Bloom(Box::new(flightcache_proto::predicate::Bloom {
            expression: Some(Box::new(Expression::new(Kind::Column("a".into())))),
            filter: vec![1, 2, 3],
        })))),
    ];
    for predicate in refused {
        assert_eq!(read(&predicate).unwrap_err().kind, ErrorKind::InvalidRequest, "{predicate:?}");
    }
}

fn condition() -> impl Strategy<Value = String> {
    let op = prop_oneof![Just("="), Just("<>"), Just("<"), Just(">="), Just("IS DISTINCT FROM")];
    let leaf = prop_oneof![
        (prop_oneof![Just("i"), Just("l"), Just("u")], op.clone(), -30_i64..3_000).prop_map(|(c, op, v)| format!("{c} {op} {v}")),
        (op.clone(), prop_oneof![Just("0.0"), Just("-1.5"), Just("'NaN'::double"), Just("'inf'::double")])
            .prop_map(|(op, v)| format!("f {op} {v}")),
        (op.clone(), -600_i64..600).prop_map(|(op, v)| format!("d {op} {}.{:02}", v / 100, v.abs() % 100)),
        (prop_oneof![Just("s"), Just("v"), Just("\"Dict\"")], op.clone(), "[abAB%_x]{0,3}")
            .prop_map(|(c, op, v)| format!("{c} {op} '{v}'")),
        (prop_oneof![Just("s"), Just("v")], any::<bool>(), any::<bool>(), "[abAB%_x]{0,3}").prop_map(|(c, not, i, v)| {
            format!("{c} {}{} '{v}'", if not { "NOT " } else { "" }, if i { "ILIKE" } else { "LIKE" })
        }),
        (op.clone(), 0_u32..60).prop_map(|(op, hour)| format!("t {op} '1970-01-0{}T{:02}:00:00Z'", 1 + hour / 24, hour % 24)),
        (op, 1_u32..28).prop_map(|(op, day)| format!("day {op} DATE '1970-02-{day:02}'")),
        proptest::collection::vec(-30..60, 1..40)
            .prop_map(|list| format!("i IN ({})", list.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))),
        prop_oneof![Just("i"), Just("f"), Just("s"), Just("t"), Just("b"), Just("bin")].prop_map(|c| format!("{c} IS NULL")),
        Just("b".to_owned()),
    ];
    let leaf = leaf.prop_map(|leaf| format!("({leaf})"));
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} AND {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} OR {b})")),
            inner.clone().prop_map(|a| format!("(NOT {a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("(CASE WHEN {a} THEN {b} ELSE {c} END)")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn random_conditions_arrive(sql in condition()) {
        check(&sql);
    }

    #[test]
    fn any_bytes_are_read_or_fail_typed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(predicate) = Predicate::parse(&bytes) {
            let _ = read(&predicate);
        }
    }
}
