//! Pushdown changes no result: scans with filters, against `DataFusion` filtering the same rows in memory.

use std::sync::Arc;

use arrow::array::{
    Array as _, ArrayRef, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int64Array, ListArray,
    RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{Field, Int32Type, Int64Type};
use datafusion::physical_plan::displayable;
use datafusion::prelude::SessionContext;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use crate::support::Cache;

const ROWS: i64 = 3_000;
const URL: &str = "s3://lake/t.parquet";

/// Nulls everywhere; NaN of both signs, infinities and zeros of both signs among the floats; a sorted key.
fn table() -> RecordBatch {
    let null = |row: i64| row % 7 == 3;
    let maybe = |row: i64, value: i64| (!null(row)).then_some(value);
    let floats = [1.5, -2.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 3.25];
    let words = ["alpha", "beta", "", "Gamma", "%x_"];
    let float = |row: i64| (!null(row)).then(|| if row < 1_000 { (row % 10) as f64 } else { floats[(row % 9) as usize] });
    let columns: [(&str, ArrayRef); 9] = [
        ("id", Arc::new((0..ROWS).collect::<Int64Array>())),
        ("small", Arc::new((0..ROWS).map(|row| maybe(row, row * 31 % 20 - 10)).collect::<Int64Array>())),
        ("f", Arc::new((0..ROWS).map(float).collect::<Float64Array>())),
        ("word", Arc::new((0..ROWS).map(|row| (!null(row)).then(|| words[(row % 5) as usize])).collect::<StringArray>())),
        ("text", Arc::new((0..ROWS).map(|row| Some(format!("row {row}"))).collect::<StringArray>())),
        ("flag", Arc::new((0..ROWS).map(|row| maybe(row, row).map(|row| row % 3 == 0)).collect::<BooleanArray>())),
        (
            "price",
            Arc::new(
                (0..ROWS)
                    .map(|row| maybe(row, row).map(i128::from))
                    .collect::<Decimal128Array>()
                    .with_precision_and_scale(12, 2)
                    .unwrap(),
            ),
        ),
        ("day", Arc::new((0..ROWS).map(|row| Some(19_700 + row as i32 % 400)).collect::<Date32Array>())),
        (
            "at",
            Arc::new(
                (0..ROWS).map(|row| maybe(row, row * 60_000_000)).collect::<TimestampMicrosecondArray>().with_timezone("+02:00"),
            ),
        ),
    ];
    let lists =
        ListArray::from_iter_primitive::<Int64Type, _, _>((0..ROWS).map(|row| Some((0..row % 4).map(Some).collect::<Vec<_>>())));
    let codes: DictionaryArray<Int32Type> = (0..ROWS).map(|row| (!null(row)).then(|| words[(row / 100 % 5) as usize])).collect();
    // `get_field` shows what lies under a NULL, which a file does not keep.
    let is_point = |row: i64| row % 5 != 2;
    let x: ArrayRef = Arc::new((0..ROWS).map(|row| maybe(row, row % 11).filter(|_| is_point(row))).collect::<Int64Array>());
    let y = (0..ROWS).map(|row| is_point(row).then(|| words[(row % 5) as usize]));
    let y: ArrayRef = Arc::new(y.collect::<StringArray>());
    let fields = vec![Field::new("x", x.data_type().clone(), true), Field::new("y", y.data_type().clone(), true)];
    let valid = (0..ROWS).map(is_point).collect::<NullBuffer>();
    let points = StructArray::new(fields.into(), vec![x, y], Some(valid));
    let nested: [(&str, ArrayRef); 3] = [("list", Arc::new(lists)), ("code", Arc::new(codes)), ("point", Arc::new(points))];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().chain(nested).map(|(name, array)| (name, array, true))).unwrap()
}

fn parquet(table: &RecordBatch) -> Vec<u8> {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(500)).set_bloom_filter_enabled(true).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), table.schema(), Some(properties)).unwrap();
    writer.write(table).unwrap();
    writer.into_inner().unwrap()
}

fn filters() -> impl Strategy<Value = String> {
    let op = prop::sample::select(vec!["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM"]);
    let literal = |column: &'static str, values: Vec<&'static str>| (Just(column), prop::sample::select(values));
    let side = prop_oneof![
        literal("id", vec!["0", "499", "500", "1234", "2999", "5000", "-1", "NULL", "17.5"]),
        literal("small", vec!["-10", "0", "9", "10", "NULL"]),
        literal("f", vec!["0.0", "-0.0", "1.5", "5", "-2", "'NaN'::double", "'inf'::double", "1e300", "NULL"]),
        literal("word", vec!["'alpha'", "''", "'Gamma'", "'zeta'", "NULL"]),
        literal("code", vec!["'alpha'", "''", "'Gamma'", "'zeta'", "NULL"]),
        literal("point['x']", vec!["0", "7", "10", "NULL"]),
        literal("point['y']", vec!["'alpha'", "'zeta'"]),
        literal("text", vec!["'row 7'", "'row 2999'", "'row'", "'s'"]),
        literal("price", vec!["0", "12.34", "29.99", "100"]),
        literal("day", vec!["DATE '2023-12-09'", "DATE '2024-06-01'", "DATE '2030-01-01'"]),
        literal("at", vec!["TIMESTAMP '1970-01-01T10:00:00Z'", "TIMESTAMP '1970-01-03T00:00:00+05:00'"]),
    ];
    let comparison = (side.clone(), op, any::<bool>()).prop_map(|((column, value), op, swapped)| {
        if swapped { format!("{value} {op} {column}") } else { format!("{column} {op} {value}") }
    });
    let listed = (side, any::<bool>())
        .prop_map(|((column, value), not)| format!("{column} {}IN ({value}, {value})", if not { "NOT " } else { "" }));
    let other = prop::sample::select(vec![
        "flag",
        "NOT flag",
        "flag IS NULL",
        "f IS NOT NULL",
        "isnan(f)",
        "abs(f) > 2",
        "word LIKE '%a'",
        "word NOT LIKE 'a%'",
        "word ILIKE 'g%'",
        "word LIKE '\\%x%'",
        "length(text) = 5",
        "id % 100 = 7",
        "cardinality(list) > 2",
        "array_has(list, 2)",
        "list = [0, 1]",
        "list IS NOT NULL",
        "code LIKE '%a'",
        "code IS NULL",
        "upper(code) = 'BETA'",
        "code = word",
        "point IS NULL",
        "point['x'] + small > 5",
        "f BETWEEN 1 AND 4",
        "f > 2 AND f < 3",
        "id BETWEEN 700 AND 720",
        "coalesce(small, 100) > 50",
        "CASE WHEN f > 1 THEN flag ELSE small > 0 END",
        "date_part('year', day) = 2024",
        "f = f",
        "f <> f",
        "small = f",
        "id < small",
        "true",
        "false",
        "NULL",
        "upper(word) = 'BETA'",
        "substr(text, 5) = '12'",
        "word || text = 'alpharow 5'",
        "f / 0 > 1",
        "cast(f AS bigint) = 3 AND f > 3 AND f < 4",
        "price * 2 = 10.00",
    ])
    .prop_map(str::to_owned);
    prop_oneof![4 => comparison, 1 => listed, 3 => other].prop_recursive(3, 8, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} AND {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} OR {b})")),
            inner.prop_map(|a| format!("NOT ({a})")),
        ]
    })
}

/// The filter's rows by `DataFusion`, or its error.
async fn oracle(table: &RecordBatch, filter: &str) -> Result<Vec<i64>, String> {
    let context = SessionContext::new();
    context.register_batch("t", table.clone()).unwrap();
    let frame = context.sql(&format!("SELECT id FROM t WHERE {filter}")).await.map_err(|e| e.to_string())?;
    let batches = frame.collect().await.map_err(|e| e.to_string())?;
    let mut ids = crate::support::values(&batches);
    ids.sort_unstable();
    Ok(ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_select_what_datafusion_selects() {
    let cache = Cache::start().await;
    let table = table();
    cache.store.put("t.parquet", parquet(&table)).await;
    let mut runner = TestRunner::deterministic();
    let filters = filters();
    let ours = SessionContext::new();
    ours.register_table("t", cache.client.table(URL).await.unwrap()).unwrap();
    let (mut selected, mut pushed) = (0, 0);
    for case in 0..300_u64 {
        let filter = filters.new_tree(&mut runner).unwrap().current();
        let expected = oracle(&table, &filter).await;
        let scan = || cache.client.scan(URL).filter(&filter).columns(["id"]);
        // Cold, so that chunks which pruning passes over are not there by chance; then from the cache, with a limit.
        cache.client.evict(URL).await.unwrap();
        let cold = async { scan().send().await?.collect().await }.await;
        match (&expected, &cold) {
            (Ok(expected), Ok(cold)) => {
                assert_eq!(&crate::support::values(cold), expected, "case {case}: {filter}");
                selected += usize::from(!expected.is_empty());
                let limit = case % 50;
                let few = scan().limit(limit).send().await.unwrap().collect().await.unwrap();
                let first = &expected[..expected.len().min(limit as usize)];
                assert_eq!(crate::support::values(&few), first, "case {case}, limit {limit}: {filter}");
                // Row reads prune nothing.
                let all = scan().rows(0..ROWS as u64).send().await.unwrap().collect().await.unwrap();
                assert_eq!(&crate::support::values(&all), expected, "case {case}, by rows: {filter}");
                // As a predicate, or left to the reader.
                let plan =
                    ours.sql(&format!("SELECT id FROM t WHERE {filter}")).await.unwrap().create_physical_plan().await.unwrap();
                pushed += usize::from(!displayable(plan.as_ref()).indent(false).to_string().contains("FilterExec"));
                let mut ids = crate::support::values(&datafusion::physical_plan::collect(plan, ours.task_ctx()).await.unwrap());
                ids.sort_unstable();
                assert_eq!(&ids, expected, "case {case}, from a table: {filter}");
            }
            // Overflows, divisions by zero and the like: where rows are skipped the cache may see none of them.
            (Err(_), _) => {}
            (Ok(_), Err(error)) => panic!("case {case}: {filter}: {error}"),
        }
    }
    assert!(selected > 100, "the filters select something: {selected}");
    assert!(pushed > 180, "most can be said as predicates: {pushed}");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_rows_come_back_as_they_were() {
    let cache = Cache::start().await;
    let table = table();
    cache.store.put("t.parquet", parquet(&table)).await;
    for _ in 0..2 {
        let batches = cache.client.scan(URL).send().await.unwrap().collect().await.unwrap();
        // Dictionaries are announced, and sent, as what they stand for.
        let plain: Vec<_> = table
            .columns()
            .iter()
            .zip(batches[0].schema().fields())
            .map(|(column, field)| cast(column, field.data_type()).unwrap())
            .collect();
        assert_eq!(concat_batches(&batches[0].schema(), &batches).unwrap().columns(), plain);
    }
    cache.stop().await;
}
