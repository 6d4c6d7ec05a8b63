//! Aggregates over tables: states cross instead of rows, and the answers are those over the files themselves.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int64Array, RecordBatch, StringArray,
    StringViewArray, TimestampMicrosecondArray, UInt8Array,
};
use arrow::datatypes::Int32Type;
use arrow::util::pretty::pretty_format_batches;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use flightcache::{ErrorKind, ScanRequest};
use flightcache_datafusion::aggregate::AggregatePushdown;
use flightcache_proto::aggregation::{Aggregate, Aggregation, VERSION};
use flightcache_proto::predicate::{Binary, Call, Expression, Kind, Operator};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use crate::support::Cache;

const ROWS: i64 = 1_500;

/// NULLs in all columns but one; NaN, infinities and zeros of both signs among the floats, whose sums round nothing.
fn rows(first: i64) -> RecordBatch {
    let range = || first..first + ROWS;
    let null = |row: i64| row % 7 == 3;
    let maybe = |row: i64, value: i64| (!null(row)).then_some(value);
    let words = ["alpha", "beta", "", "Gamma", "a word longer than a view"];
    let word = |row: i64| (!null(row)).then(|| words[(row % 5) as usize]);
    let floats = [1.5, -2.0, f64::NAN, f64::INFINITY, 0.0, -0.0, 3.25];
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(range().collect::<Int64Array>())),
        ("small", Arc::new(range().map(|row| maybe(row, row * 31 % 20 - 10)).collect::<Int64Array>())),
        ("tiny", Arc::new(range().map(|row| maybe(row, row).map(|row| (row % 200) as u8)).collect::<UInt8Array>())),
        ("f", Arc::new(range().map(|row| maybe(row, row).map(|row| floats[(row % 7) as usize])).collect::<Float64Array>())),
        ("fare", Arc::new(range().map(|row| maybe(row, row).map(|row| (row % 97) as f64 / 4.0)).collect::<Float64Array>())),
        ("word", Arc::new(range().map(word).collect::<StringArray>())),
        ("v", Arc::new(range().map(word).collect::<StringViewArray>())),
        ("text", Arc::new(range().map(|row| Some(format!("row {row}"))).collect::<StringArray>())),
        ("dict", Arc::new(range().map(word).collect::<DictionaryArray<Int32Type>>())),
        ("flag", Arc::new(range().map(|row| maybe(row, row).map(|row| row % 3 == 0)).collect::<BooleanArray>())),
        (
            "price",
            Arc::new(
                range()
                    .map(|row| maybe(row, row).map(i128::from))
                    .collect::<Decimal128Array>()
                    .with_precision_and_scale(12, 2)
                    .unwrap(),
            ),
        ),
        ("day", Arc::new(range().map(|row| Some(19_700 + row as i32 % 40)).collect::<Date32Array>())),
        (
            "at",
            Arc::new(
                range().map(|row| maybe(row, row * 60_000_000)).collect::<TimestampMicrosecondArray>().with_timezone("+02:00"),
            ),
        ),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, name != "id"))).unwrap()
}

fn parquet(rows: &RecordBatch) -> Vec<u8> {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(500)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    writer.into_inner().unwrap()
}

/// One table: over the cache with the rule and without it, and over the files.
struct Doors {
    cache: Cache,
    ruled: SessionContext,
    ours: SessionContext,
    plain: SessionContext,
    _files: tempfile::TempDir,
}

fn with_rule(config: SessionConfig) -> SessionContext {
    let state = SessionStateBuilder::new().with_config(config).with_default_features();
    SessionContext::new_with_state(state.with_physical_optimizer_rule(Arc::new(AggregatePushdown)).build())
}

impl Doors {
    async fn open(objects: &[RecordBatch], partitions: usize) -> Self {
        let cache = Cache::start().await;
        let files = tempfile::tempdir().unwrap();
        for (at, rows) in objects.iter().enumerate() {
            let bytes = parquet(rows);
            std::fs::write(files.path().join(format!("{at}.parquet")), &bytes).unwrap();
            cache.store.put(&format!("t/{at}.parquet"), bytes).await;
        }
        let config = || SessionConfig::new().with_target_partitions(partitions);
        // Statistics of floats leave NaN out, and native scans believe them.
        let unbelieving = config().with_collect_statistics(false).set_bool("datafusion.execution.parquet.pruning", false);
        let (ruled, ours, plain) =
            (with_rule(config()), SessionContext::new_with_config(config()), SessionContext::new_with_config(unbelieving));
        for context in [&ruled, &ours] {
            context.register_table("t", cache.client.table("s3://lake/t/").await.unwrap()).unwrap();
        }
        let path = format!("{}/", files.path().display());
        plain.register_parquet("t", path, ParquetReadOptions::default()).await.unwrap();
        Self { cache, ruled, ours, plain, _files: files }
    }

    /// The plan of a statement, its answer, and that of the files.
    async fn ask(&self, sql: &str) -> (Arc<dyn ExecutionPlan>, Option<String>) {
        let plan = self.ruled.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
        let ruled = datafusion::physical_plan::collect(Arc::clone(&plan), self.ruled.task_ctx()).await;
        let ruled = ruled.map(|batches| sorted(&batches)).map_err(|e| e.to_string());
        for context in [&self.ours, &self.plain] {
            let answer = context.sql(sql).await.unwrap().collect().await.map(|batches| sorted(&batches));
            assert_eq!(ruled.as_ref().ok(), answer.as_ref().ok(), "{sql}: {ruled:?} {answer:?}\n{}", shown(&plan));
        }
        (plan, ruled.ok())
    }
}

fn sorted(batches: &[RecordBatch]) -> String {
    let text = pretty_format_batches(batches).unwrap().to_string();
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('+')).collect();
    lines.get_mut(1..).unwrap_or_default().sort_unstable();
    lines.join("\n")
}

fn shown(plan: &Arc<dyn ExecutionPlan>) -> String {
    displayable(plan.as_ref()).indent(false).to_string()
}

/// A figure of all scans of a plan.
fn figure(plan: &Arc<dyn ExecutionPlan>, name: &str) -> usize {
    let own = plan.metrics().filter(|_| plan.name() == "DataSourceExec");
    let own = own.and_then(|metrics| {
        if name == "output_rows" { metrics.output_rows() } else { metrics.sum_by_name(name).map(|sum| sum.as_usize()) }
    });
    own.unwrap_or(0) + plan.children().into_iter().map(|child| figure(child, name)).sum::<usize>()
}

fn is_pushed(plan: &Arc<dyn ExecutionPlan>) -> bool {
    shown(plan).contains(", aggregate=[")
}

#[tokio::test(flavor = "multi_thread")]
async fn states_cross_instead_of_rows() {
    let doors = Doors::open(&[rows(0), rows(ROWS), rows(2 * ROWS)], 2).await;
    let (plan, _) = doors
        .ask(
            "SELECT word, flag, sum(small), sum(price * (1 - CAST(0.05 AS DECIMAL(12, 2)))), sum(price * (1 - CAST(0.05 AS DECIMAL(12, 2))) * (1 + CAST(0.07 AS DECIMAL(12, 2)))), avg(price), count(*) \
             FROM t WHERE day <= DATE '2024-01-10' GROUP BY word, flag",
        )
        .await;
    let text = shown(&plan);
    assert!(is_pushed(&plan) && !text.contains("mode=Partial"), "{text}");
    assert!(text.contains("gby=[word, flag]") && text.contains("predicate=day"), "{text}");
    // For each object, at most its groups.
    assert!(figure(&plan, "output_rows") <= 3 * 18, "{}", figure(&plan, "output_rows"));
    assert!(figure(&plan, "bytes_received") < 16_000, "{}", figure(&plan, "bytes_received"));
    let (plan, _) = doors.ask("SELECT sum(price * small) FROM t WHERE fare > 3 AND small < 5").await;
    assert_eq!(figure(&plan, "output_rows"), 3, "{}", shown(&plan));
    // One ask for all row groups of an object, however many partitions there are to spread rows over.
    assert!(!shown(&plan).contains("RoundRobin"), "{}", shown(&plan));
    let shown = doors.ruled.sql("EXPLAIN SELECT sum(small) FROM t").await.unwrap().collect().await.unwrap();
    assert!(sorted(&shown).contains("aggregate=[sum(t.small)]"), "{}", sorted(&shown));
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_partition_is_merged_here() {
    let doors = Doors::open(&[rows(0)], 1).await;
    for sql in ["SELECT word, sum(fare), count(*) FROM t GROUP BY word", "SELECT min(f), max(text), avg(small) FROM t"] {
        let (plan, _) = doors.ask(sql).await;
        assert!(is_pushed(&plan) && shown(&plan).contains("mode=Final"), "{}", shown(&plan));
    }
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cache_cannot_do_alike_stays() {
    let doors = Doors::open(&[rows(0), rows(ROWS)], 2).await;
    for sql in [
        "SELECT count(DISTINCT small), count(DISTINCT word) FROM t",
        "SELECT word, array_agg(id ORDER BY id) FROM t GROUP BY word",
        "SELECT first_value(id ORDER BY id) FROM t",
        "SELECT word, flag, count(*) FROM t GROUP BY ROLLUP(word, flag)",
        "SELECT count(*) FROM t WHERE regexp_like(text, '[5-7]$')",
        "SELECT sum(character_length(regexp_replace(text, '1', 'xx'))) FROM t",
        "SELECT median(small) FROM t",
        "SELECT sum(id) FROM (SELECT id FROM t LIMIT 10000)",
    ] {
        let (plan, _) = doors.ask(sql).await;
        assert!(!is_pushed(&plan), "{}", shown(&plan));
    }
    // Distinct values of one column are groups, and a filter is an expression like others.
    for sql in [
        "SELECT count(DISTINCT small) FROM t",
        "SELECT sum(fare) FILTER (WHERE flag), count(*) FILTER (WHERE word = 'beta') FROM t",
        "SELECT word, max(id) AS m FROM t GROUP BY word ORDER BY m DESC LIMIT 2",
        "SELECT DISTINCT word, flag FROM t",
        "SELECT count(*) FROM t WHERE flag",
        "SELECT word FROM t WHERE word = 'beta' GROUP BY word",
        "SELECT min(f), max(f) FROM t WHERE small > 3",
    ] {
        let (plan, _) = doors.ask(sql).await;
        assert!(is_pushed(&plan), "{}", shown(&plan));
    }
    // What joins learn of the groups is told all the same.
    let (plan, _) = doors
        .ask("SELECT a.word, a.n FROM (SELECT word, count(*) AS n FROM t GROUP BY word) a JOIN (VALUES ('beta')) b(w) ON a.word = b.w")
        .await;
    assert!(is_pushed(&plan), "{}", shown(&plan));
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_and_too_much_are_as_they_are_elsewhere() {
    let doors = Doors::open(&[rows(0), rows(0).slice(0, 0)], 2).await;
    for sql in [
        "SELECT count(*), sum(id), min(word), avg(price), stddev(fare), bool_and(flag) FROM t WHERE id < 0",
        "SELECT word, count(*) FROM t WHERE id < 0 GROUP BY word",
        "SELECT sum(CAST(9223372036854775807 AS BIGINT) + tiny) FROM t",
        "SELECT sum(CAST(id AS DECIMAL(38, 0)) * 99999999999999999999999999999999999) FROM t",
        "SELECT sum(id / (tiny - tiny)) FROM t",
    ] {
        doors.ask(sql).await;
    }
    let (_, answer) = doors.ask("SELECT sum(id / (tiny - tiny)) FROM t").await;
    assert_eq!(answer, None);
    doors.cache.stop().await;
}

/// More groups than may be held go out in pieces.
#[tokio::test(flavor = "multi_thread")]
async fn groups_without_number_are_merged_by_who_asked() {
    let long = |row: i64| format!("{row:>400}");
    let rows = |first: i64| {
        let keys: ArrayRef = Arc::new((first..first + 60_000).map(|row| Some(long(row / 2))).collect::<StringArray>());
        let values: ArrayRef = Arc::new((first..first + 60_000).collect::<Int64Array>());
        RecordBatch::try_from_iter([("key", keys), ("value", values)]).unwrap()
    };
    let doors = Doors::open(&[rows(0), rows(60_000)], 2).await;
    let sql = "SELECT count(*), sum(n), sum(s), min(key) FROM (SELECT key, count(*) AS n, sum(value) AS s FROM t GROUP BY key)";
    let (plan, answer) = doors.ask(sql).await;
    assert!(is_pushed(&plan) && answer.unwrap().contains("60000"), "{}", shown(&plan));
    assert!(figure(&plan, "output_rows") >= 60_000);
    doors.cache.stop().await;
}

fn statements() -> impl Strategy<Value = String> {
    let aggregate = prop::sample::select(vec![
        "count(*)",
        "count(word)",
        "count(f + small)",
        "sum(small)",
        "sum(tiny)",
        "sum(f)",
        "sum(fare)",
        "sum(price)",
        "sum(price * (1 - CAST(0.05 AS DECIMAL(12, 2))))",
        "sum(small * 2 + tiny)",
        "sum(-fare)",
        "sum(CASE WHEN flag THEN price END)",
        "sum(small) FILTER (WHERE flag OR word = 'beta')",
        "count(*) FILTER (WHERE f > 1)",
        "avg(small)",
        "avg(fare)",
        "avg(price)",
        "avg(tiny)",
        "min(word)",
        "max(v)",
        "max(dict)",
        "min(text)",
        "max(upper(dict))",
        "min(price)",
        "max(day)",
        "min(at)",
        "max(at)",
        "min(flag)",
        "max(coalesce(small, 100))",
        "bit_and(small)",
        "bit_or(tiny)",
        "bit_xor(small)",
        "bool_and(flag)",
        "bool_or(small > 8)",
        "round(stddev(id), 6)",
        "round(stddev_pop(small), 6)",
        "round(var(fare), 6)",
        "round(var_pop(tiny), 6)",
        "count(DISTINCT word)",
        "sum(DISTINCT small)",
        "median(small)",
        "first_value(text ORDER BY id)",
        "count(date_part('hour', at))",
        "max(arrow_cast(at, 'Timestamp(Microsecond, Some(\"America/New_York\"))'))",
    ]);
    let group = prop::sample::select(vec![
        "word",
        "v",
        "dict",
        "flag",
        "day",
        "at",
        "price",
        "tiny",
        "small",
        "id % 7",
        "date_trunc('hour', at)",
        "upper(dict)",
        "word || v",
        "CASE WHEN fare > 10 THEN 'much' ELSE word END",
        "fare",
        "NULL",
    ]);
    let filter = prop::sample::select(vec![
        "true",
        "false",
        "flag",
        "small > 3",
        "id BETWEEN 700 AND 2200",
        "word LIKE '%a' OR dict = 'beta'",
        "f IS NULL",
        "isnan(f)",
        "at >= TIMESTAMP '1970-01-01T10:00:00Z' AND price < 25.5",
        "regexp_like(text, '1[2-4]')",
        "day IN (DATE '2023-12-12', DATE '2024-01-01')",
    ]);
    let groups = prop::collection::vec(group, 0..3);
    (prop::collection::vec(aggregate, 0..5), groups, filter).prop_map(|(aggregates, groups, filter)| {
        let aggregates = if aggregates.is_empty() && groups.is_empty() { vec!["count(*)"] } else { aggregates };
        let columns: Vec<String> =
            groups.iter().chain(&aggregates).enumerate().map(|(at, column)| format!("{column} AS c{at}")).collect();
        let groups: Vec<String> = (1..=groups.len()).map(|at| at.to_string()).collect();
        let groups = if groups.is_empty() { String::new() } else { format!(" GROUP BY {}", groups.join(", ")) };
        format!("SELECT {} FROM t WHERE {filter}{groups}", columns.join(", "))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregates_are_what_datafusion_makes_of_the_files() {
    let mut runner = TestRunner::deterministic();
    let statements = statements();
    let mut pushed = 0;
    for partitions in 1..=3 {
        let objects: Vec<_> = (0..partitions as i64).map(|at| rows(at * ROWS)).collect();
        let doors = Doors::open(&objects, partitions).await;
        for _ in 0..100 {
            let sql = statements.new_tree(&mut runner).unwrap().current();
            let (plan, _) = doors.ask(&sql).await;
            pushed += usize::from(is_pushed(&plan));
        }
        doors.cache.stop().await;
    }
    assert!(pushed > 120, "most can be pushed: {pushed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_does_not_know_it_refuses() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", parquet(&rows(0))).await;
    let column = |name: &str| Expression::new(Kind::Column(name.into()));
    let count = |function: &str, version| {
        let aggregates = vec![Aggregate { function: function.into(), arguments: vec![column("0")], filter: None }];
        Aggregation { version, inputs: vec![column("id")], aggregates, ..Aggregation::default() }
    };
    let ask = |aggregation: Aggregation| ScanRequest {
        columns: Some(vec!["id".into()]),
        aggregation: Some(aggregation.to_bytes()),
        ..ScanRequest::new("s3://lake/t.parquet")
    };
    for (request, kind, message) in [
        (ask(count("count", VERSION + 1)), ErrorKind::InvalidRequest, "version"),
        (ask(count("array_agg", VERSION)), ErrorKind::InvalidRequest, "array_agg"),
        (ask(Aggregation { inputs: vec![column("small")], ..count("count", VERSION) }), ErrorKind::InvalidRequest, "small"),
        (ask(Aggregation { groups: vec![column("7")], ..count("count", VERSION) }), ErrorKind::InvalidRequest, "7"),
        (ask(count("count", VERSION)), ErrorKind::InvalidRequest, "state"),
        (ScanRequest { limit: Some(3), ..ask(valid()) }, ErrorKind::InvalidRequest, "limits"),
        (ask(Aggregation { inputs: vec![Expression::default()], ..valid() }), ErrorKind::InvalidRequest, "kind"),
        (ask(Aggregation { aggregates: Vec::new(), ..valid() }), ErrorKind::Unsupported, "states"),
    ] {
        let error = cache.do_get(serde_json::to_vec(&request).unwrap()).await.unwrap_err();
        let arrow_flight::error::FlightError::Tonic(status) = error else { panic!("{error}") };
        assert!(status.message().contains(message), "{status}");
        assert_eq!(status.code(), expected_code(kind), "{status}");
    }
    // What would make gigabytes of a batch is not made.
    let square =
        Binary { operator: Operator::Multiply.into(), left: Some(Box::new(column("id"))), right: Some(Box::new(column("id"))) };
    let square = Expression::new(Kind::Binary(Box::new(square)));
    let text = Call { function: "repeat".into(), arguments: vec![column("text"), square] };
    let large = Aggregation { inputs: vec![Expression::new(Kind::Call(text))], ..valid() };
    let request = ScanRequest { columns: Some(vec!["id".into(), "text".into()]), ..ask(large) };
    let error = cache.do_get(serde_json::to_vec(&request).unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("repeat would make more than"), "{error}");
    // And the states of what it knows are an answer like others.
    let states = cache.do_get(serde_json::to_vec(&ask(valid())).unwrap()).await.unwrap();
    assert_eq!(crate::support::values(&states), [ROWS]);
    cache.stop().await;
}

fn expected_code(kind: ErrorKind) -> tonic::Code {
    if kind == ErrorKind::InvalidRequest { tonic::Code::InvalidArgument } else { tonic::Code::Unimplemented }
}

/// `count(id)`.
fn valid() -> Aggregation {
    use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};

    let column = |name: &str| Expression::new(Kind::Column(name.into()));
    let state = arrow::datatypes::Schema::new(vec![arrow::datatypes::Field::new("n", arrow::datatypes::DataType::Int64, true)]);
    let (mut tracker, options) = (DictionaryTracker::new(false), IpcWriteOptions::default());
    let state = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(&state, &mut tracker, &options);
    Aggregation {
        version: VERSION,
        inputs: vec![column("id")],
        aggregates: vec![Aggregate { function: "count".into(), arguments: vec![column("0")], filter: None }],
        state: state.ipc_message,
        ..Aggregation::default()
    }
}
