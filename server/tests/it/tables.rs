//! Tables in `DataFusion`: the same answers as over the files themselves, in plans as good, and little crosses the wire.

use std::sync::Arc;

use arrow::array::{
    Array as _, ArrayRef, Float64Array, Int64Array, NullArray, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::util::pretty::pretty_format_batches;
use arrow_flight::flight_service_client::FlightServiceClient;
use bytes::Bytes;
use datafusion::datasource::MemTable;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use flightcache::ErrorKind;
use flightcache_proto::action;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::WriterProperties;

use crate::support::{Cache, file};

/// A column of numbers and one of words, of row groups of 10, each of which is said to be sorted by numbers, then words.
fn said_to_be_sorted(rows: impl IntoIterator<Item = (i64, &'static str)>) -> Bytes {
    let (numbers, words): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let numbers: ArrayRef = Arc::new(Int64Array::from(numbers));
    let words: ArrayRef = Arc::new(StringArray::from(words));
    let batch = RecordBatch::try_from_iter([("n", numbers), ("w", words)]).unwrap();
    let by = [0, 1].map(|column_idx| SortingColumn { column_idx, descending: false, nulls_first: false });
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(10)).set_sorting_columns(Some(by.to_vec())).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_say_how_they_are_sorted_are_not_sorted_again() {
    let doors = Doors::open().await;
    let word = |at: i64| ["a", "b", "c"][at as usize % 3];
    let cases = [
        // Two objects, one after the other.
        (
            "follow",
            vec![said_to_be_sorted((0..40).map(|at| (at, word(at)))), said_to_be_sorted((40..70).map(|at| (at, word(at))))],
            true,
            true,
        ),
        // A row group begins with the number that the one before ends with: by words they are not sorted then.
        ("touch", vec![said_to_be_sorted((0..30).map(|at| (at / 7, if at / 10 % 2 == 0 { "x" } else { "a" })))], true, false),
        // What each row group says is so, but they do not follow one another.
        ("overlap", vec![said_to_be_sorted((0..40).map(|at| (at % 10, "a")))], false, false),
        // Objects that are sorted, but not by the same.
        (
            "other",
            vec![
                said_to_be_sorted((0..20).map(|at| (at, "a"))),
                written(
                    &RecordBatch::try_from_iter([
                        ("n", Arc::new((0..9).rev().collect::<Int64Array>()) as ArrayRef),
                        ("w", Arc::new((0..9).map(|_| Some("b")).collect::<StringArray>())),
                    ])
                    .unwrap(),
                    10,
                ),
            ],
            false,
            false,
        ),
    ];
    for (name, objects, by_number, by_both) in cases {
        for (at, bytes) in objects.into_iter().enumerate() {
            let path = doors.files.path().join(format!("{name}/{at}.parquet"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &bytes).unwrap();
            doors.cache.store.put(&format!("{name}/{at}.parquet"), bytes).await;
        }
        let url = format!("s3://lake/{name}/");
        doors.ours.register_table(name, doors.cache.client.table(&url).await.unwrap()).unwrap();
        let rows = doors.ours.sql(&format!("SELECT n, w FROM {name}")).await.unwrap().collect().await.unwrap();
        let rows = MemTable::try_new(rows[0].schema(), vec![rows]).unwrap();
        doors.plain.register_table(name, Arc::new(rows)).unwrap();
        for (sql, is_sorted) in [
            (format!("SELECT n FROM {name} ORDER BY n"), by_number),
            (format!("SELECT n, w FROM {name} ORDER BY n, w"), by_both),
            (format!("SELECT n FROM {name} ORDER BY n DESC"), false),
            (format!("SELECT n, count(*) FROM {name} WHERE w > 'a' GROUP BY n ORDER BY n"), by_number),
        ] {
            let (plan, _) = doors.ask(&sql).await;
            assert_eq!(!Doors::shown(&plan).contains("SortExec"), is_sorted, "{sql}\n{}", Doors::shown(&plan));
        }
    }
    doors.cache.stop().await;
}

/// Both doors to the same tables: `t` of two objects in directories of a partition column, `small` of one.
struct Doors {
    cache: Cache,
    ours: SessionContext,
    plain: SessionContext,
    files: tempfile::TempDir,
}

fn trips(first: i64, rows: i64) -> Bytes {
    let range = || first..first + rows;
    let null = |row: i64| row % 11 == 5;
    let columns: [(&str, ArrayRef); 5] = [
        ("id", Arc::new(range().collect::<Int64Array>())),
        ("zone", Arc::new(range().map(|row| row * 7919 % 263).collect::<Int64Array>())),
        ("fare", Arc::new(range().map(|row| (!null(row)).then_some((row % 97 + 1) as f64 / 4.0)).collect::<Float64Array>())),
        ("payer", Arc::new(range().map(|row| ["card", "cash", "voucher"][row as usize % 3]).map(Some).collect::<StringArray>())),
        ("at", Arc::new(range().map(|row| Some(row * 1_000_000)).collect::<TimestampMicrosecondArray>().with_timezone("UTC"))),
    ];
    written(&RecordBatch::try_from_iter(columns).unwrap(), 1_000)
}

fn written(batch: &RecordBatch, group_rows: usize) -> Bytes {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group_rows)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap().into()
}

fn zones() -> Bytes {
    let names: ArrayRef = Arc::new((0..20).map(|zone| Some(format!("zone {zone}"))).collect::<StringArray>());
    let ids: ArrayRef = Arc::new((100..120).collect::<Int64Array>());
    written(&RecordBatch::try_from_iter([("zone", ids), ("name", names)]).unwrap(), 100)
}

impl Doors {
    async fn open() -> Self {
        let cache = Cache::start().await;
        let files = tempfile::tempdir().unwrap();
        for (key, bytes) in [
            ("t/month=0/none.parquet", trips(0, 0)),
            ("t/month=1/a.parquet", trips(0, 5_000)),
            ("t/month=2/b.parquet", trips(5_000, 5_500)),
            ("zones.parquet", zones()),
        ] {
            let path = files.path().join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &bytes).unwrap();
            cache.store.put(key, bytes).await;
        }
        let config = || SessionConfig::new().with_target_partitions(2);
        let (ours, plain) = (SessionContext::new_with_config(config()), SessionContext::new_with_config(config()));
        ours.register_table("t", cache.client.table("s3://lake/t/").await.unwrap()).unwrap();
        ours.register_table("zones", cache.client.table("s3://lake/zones.parquet").await.unwrap()).unwrap();
        let month = vec![("month".to_owned(), arrow::datatypes::DataType::Int64)];
        let options = || ParquetReadOptions::default();
        let path = |name: &str| files.path().join(name).display().to_string();
        plain.register_parquet("t", path("t/"), options().table_partition_cols(month)).await.unwrap();
        plain.register_parquet("zones", path("zones.parquet"), options()).await.unwrap();
        Self { cache, ours, plain, files }
    }

    /// The plan and the answer of a statement through the cache, which has to be that over the files.
    async fn ask(&self, sql: &str) -> (Arc<dyn ExecutionPlan>, String) {
        let plan = self.ours.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
        let ours = datafusion::physical_plan::collect(Arc::clone(&plan), self.ours.task_ctx()).await.unwrap();
        let plain = self.plain.sql(sql).await.unwrap().collect().await.unwrap();
        let ours = sorted(&ours, sql.contains("ORDER BY"));
        assert_eq!(ours, sorted(&plain, sql.contains("ORDER BY")), "{sql}");
        (plan, ours)
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
        own.unwrap_or(0) + plan.children().into_iter().map(|child| Self::figure(child, name)).sum::<usize>()
    }
}

fn sorted(batches: &[RecordBatch], is_ordered: bool) -> String {
    let text = pretty_format_batches(batches).unwrap().to_string();
    if is_ordered {
        return text;
    }
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('+')).collect();
    lines.get_mut(1..).unwrap_or_default().sort_unstable();
    lines.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_over_the_files() {
    let doors = Doors::open().await;
    for sql in [
        "SELECT * FROM t WHERE id BETWEEN 4990 AND 5010",
        "SELECT count(*), sum(fare), min(payer), max(at), avg(id) FROM t",
        "SELECT payer, month, count(*), sum(fare) FROM t WHERE zone % 3 = 1 GROUP BY payer, month",
        "SELECT id, fare * 2 + 1 AS double, upper(payer) FROM t WHERE fare > 24 AND payer <> 'cash' ORDER BY id DESC LIMIT 7",
        "SELECT * FROM t WHERE month = 2 AND fare IS NULL ORDER BY id LIMIT 3",
        "SELECT name, count(*), sum(fare) FROM t JOIN zones ON t.zone = zones.zone GROUP BY name",
        "SELECT count(*) FROM t WHERE payer LIKE 'c%h' OR regexp_like(payer, '^v')",
        "SELECT * FROM t WHERE at >= '1970-01-01T02:54:55Z' AND at < TIMESTAMP '1970-01-01T02:55:00Z'",
        "SELECT id FROM t WHERE id > 3 LIMIT 0",
        "SELECT count(*) FROM t WHERE false",
        "SELECT a.id FROM t a LEFT ANTI JOIN zones ON a.zone = zones.zone WHERE a.id < 40",
        "SELECT zone, fare FROM t ORDER BY fare DESC NULLS LAST, id LIMIT 5",
        "SELECT count(DISTINCT zone) FROM t WHERE fare IN (1.5, 2.25, 20)",
        "SELECT (SELECT max(id) FROM t) - min(zone) FROM zones",
    ] {
        doors.ask(sql).await;
    }
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_answer_without_a_scan() {
    let doors = Doors::open().await;
    let (plan, answer) = doors.ask("SELECT count(*), min(id), max(id), min(month), max(month) FROM t").await;
    assert!(answer.contains("10500"), "{answer}");
    assert!(!Doors::shown(&plan).contains("DataSourceExec"), "{}", Doors::shown(&plan));
    // What writers may have cut short is read.
    let (plan, _) = doors.ask("SELECT min(fare) FROM t").await;
    assert!(Doors::shown(&plan).contains("DataSourceExec"), "{}", Doors::shown(&plan));
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_move_into_the_scan_and_row_groups_are_left_out() {
    let doors = Doors::open().await;
    let (plan, _) = doors.ask("SELECT fare FROM t WHERE id = 7321 AND payer <> 'x'").await;
    assert!(!Doors::shown(&plan).contains("FilterExec"), "{}", Doors::shown(&plan));
    assert_eq!(Doors::figure(&plan, "output_rows"), 1);
    assert_eq!(Doors::figure(&plan, "row_groups"), 1, "{}", Doors::shown(&plan));
    // What cannot be said is evaluated here, the rest there.
    let (plan, _) = doors.ask("SELECT fare FROM t WHERE regexp_like(payer, 'h+$') AND id < 300").await;
    assert!(Doors::shown(&plan).contains("FilterExec: payer"), "{}", Doors::shown(&plan));
    assert_eq!(Doors::figure(&plan, "output_rows"), 300);
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_and_top_k_send_what_they_learn() {
    let doors = Doors::open().await;
    let (plan, _) =
        doors.ask("SELECT name, count(*) FROM t JOIN zones ON t.zone = zones.zone WHERE name < 'zone 11' GROUP BY name").await;
    let matching = (0..10_500_i64).filter(|row| [100, 101, 110].contains(&(row * 7919 % 263))).count();
    // Those that match, and the three of the other side.
    let crossed = Doors::figure(&plan, "output_rows");
    assert!(crossed <= matching + 20, "{crossed} rows for {matching}: {}", Doors::shown(&plan));
    // The join is of the kind that native Parquet gets.
    let native = doors
        .plain
        .sql("SELECT name, count(*) FROM t JOIN zones ON t.zone = zones.zone WHERE name < 'zone 11' GROUP BY name")
        .await;
    let native = native.unwrap().create_physical_plan().await.unwrap();
    let mode = |plan: &str| {
        plan.lines().find(|line| line.contains("HashJoinExec")).map(|line| line.split(',').next().unwrap().trim().to_owned())
    };
    assert_eq!(mode(&Doors::shown(&plan)), mode(&Doors::shown(&native)));
    // The best so far is known after the first row groups: most of the others are left out.
    let (plan, _) = doors.ask("SELECT id, payer FROM t ORDER BY id LIMIT 5").await;
    let read = Doors::figure(&plan, "row_groups");
    assert!(read <= 5, "{read} row groups of 11: {}", Doors::shown(&plan));
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_statistics_rule_out_are_not_asked_for() {
    let doors = Doors::open().await;
    let asked = || doors.cache.server.engine().metrics().requests.with_label_values(&["do_get", "ok"]).get();
    for (sql, objects) in [
        ("SELECT id, payer FROM t WHERE month = 2 AND zone < 3", &["month=2/b"][..]),
        ("SELECT id, month FROM t WHERE id < 12", &["month=1/a"]),
        ("SELECT sum(id) FROM t WHERE month > 2", &[]),
        ("SELECT t.id FROM t JOIN zones ON t.zone = zones.zone WHERE month = 1", &["month=1/a", "zones"]),
        ("SELECT count(*) FROM t WHERE id IS NULL OR id > 6000 AND month IN (1, 2)", &["month=2/b"]),
    ] {
        let before = asked();
        let (plan, _) = doors.ask(sql).await;
        let shown = Doors::shown(&plan);
        for object in ["month=0/none", "month=1/a", "month=2/b", "zones"] {
            assert_eq!(shown.contains(&format!("{object}.parquet")), objects.contains(&object), "{sql}\n{shown}");
        }
        assert_eq!(asked() - before == 0, objects.is_empty(), "{sql}");
    }
    // What dynamic filters rule out is not asked for either: the other object's row groups, once the first has been read.
    let config = SessionConfig::new().with_target_partitions(1);
    let one = SessionContext::new_with_config(config);
    one.register_table("t", doors.cache.client.table("s3://lake/t/").await.unwrap()).unwrap();
    let plan = one.sql("SELECT id, payer FROM t ORDER BY id DESC LIMIT 5").await.unwrap().create_physical_plan().await.unwrap();
    let rows = datafusion::physical_plan::collect(Arc::clone(&plan), one.task_ctx()).await.unwrap();
    assert_eq!(crate::support::values(&rows), [10_499, 10_498, 10_497, 10_496, 10_495]);
    let ruled_out = Doors::figure(&plan, "row_groups_ruled_out");
    assert!(ruled_out >= 5, "{ruled_out} row groups: {}", Doors::shown(&plan));
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_query_reads_one_version_of_each_object() {
    let doors = Doors::open().await;
    let count = "SELECT count(*), max(fare) FROM t";
    doors.ask(count).await;
    // Planned, then overwritten.
    let plan = doors.ours.sql("SELECT sum(id) FROM t").await.unwrap().create_physical_plan().await.unwrap();
    doors.cache.store.put("t/month=1/a.parquet", trips(20_000, 400)).await;
    doors.cache.client.evict("s3://lake/").await.unwrap();
    let error = datafusion::physical_plan::collect(plan, doors.ours.task_ctx()).await.unwrap_err();
    let datafusion::common::DataFusionError::External(source) = error.find_root() else { panic!("{error}") };
    assert_eq!(source.downcast_ref::<flightcache::Error>().map(|error| error.kind), Some(ErrorKind::Changed), "{error}");
    // The next query sees what is there now.
    let now = doors.ours.sql("SELECT count(*), min(id) FROM t").await.unwrap().collect().await.unwrap();
    assert!(sorted(&now, false).contains("5900"), "{}", sorted(&now, false));
    assert_eq!(now[0].column(1).null_count(), 0);
    // Another schema is another table.
    doors.cache.store.put("zones.parquet", trips(0, 10)).await;
    doors.cache.client.evict("s3://lake/").await.unwrap();
    let error = doors.ours.sql("SELECT * FROM zones").await.unwrap().collect().await.unwrap_err();
    assert!(error.to_string().contains("another schema"), "{error}");
    let error = doors.cache.client.table("s3://lake/none.parquet").await.unwrap_err();
    let datafusion::common::DataFusionError::External(source) = error.find_root() else { panic!("{error}") };
    assert_eq!(source.downcast_ref::<flightcache::Error>().map(|error| error.kind), Some(ErrorKind::NotFound), "{error}");
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_one_table_may_lack_columns_and_order_them_otherwise() {
    let cache = Cache::start().await;
    let files = tempfile::tempdir().unwrap();
    let ids = |range: std::ops::Range<i64>| Arc::new(range.collect::<Int64Array>()) as ArrayRef;
    let names = |names: &[&str]| Arc::new(names.iter().copied().map(Some).collect::<StringArray>()) as ArrayRef;
    let nulls = |rows| Arc::new(NullArray::new(rows)) as ArrayRef;
    let batch = |columns: Vec<(&str, ArrayRef)>| {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
    };
    for (key, columns) in [
        ("d/1.parquet", vec![("id", ids(0..3)), ("name", names(&["a", "b", "c"]))]),
        ("d/2.parquet", vec![("id", ids(3..5))]),
        ("d/3.parquet", vec![("name", names(&["f"])), ("id", ids(5..6))]),
        // What a writer makes of a column without any value.
        ("d/4.parquet", vec![("name", nulls(2)), ("id", ids(6..8))]),
        ("e/1.parquet", vec![("id", ids(0..2)), ("name", nulls(2)), ("none", nulls(2))]),
        ("e/2.parquet", vec![("name", names(&["a"])), ("id", ids(2..3)), ("none", nulls(1))]),
    ] {
        let bytes = written(&batch(columns), 2);
        std::fs::create_dir_all(files.path().join(&key[..1])).unwrap();
        std::fs::write(files.path().join(key), &bytes).unwrap();
        cache.store.put(key, bytes).await;
    }
    let (ours, plain) = (SessionContext::new(), SessionContext::new());
    for name in ["d", "e"] {
        ours.register_table(name, cache.client.table(&format!("s3://lake/{name}/")).await.unwrap()).unwrap();
        let directory = format!("{}/", files.path().join(name).display());
        plain.register_parquet(name, directory, ParquetReadOptions::default()).await.unwrap();
    }
    for sql in [
        "SELECT name, count(*), count(none) FROM e WHERE id < 9 GROUP BY name",
        "SELECT id FROM e WHERE name IS NULL",
        "SELECT max(name), min(none), count(name), count(none) FROM e",
        "SELECT id, name FROM d",
        "SELECT count(*), count(name), min(name), max(id) FROM d",
        "SELECT id FROM d WHERE name IS NULL",
        "SELECT id FROM d WHERE name > 'a' OR id = 4",
        "SELECT upper(name) AS n FROM d WHERE id >= 2 ORDER BY n NULLS FIRST",
    ] {
        let answer = |context: &SessionContext| {
            let asked = context.clone();
            async move { sorted(&asked.sql(sql).await.unwrap().collect().await.unwrap(), sql.contains("ORDER BY")) }
        };
        assert_eq!(answer(&ours).await, answer(&plain).await, "{sql}");
    }
    cache.stop().await;
}

/// Without a declared schema `DataFusion`'s listing table has none for such files; with one it is told what they are to be cast to.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_many_objects_and_columns_are_told_in_several_messages() {
    let cache = Cache::start().await;
    for object in 0..120 {
        cache.store.put(&format!("wide/{object:03}.parquet"), file(object * 5, 5, 5, 400)).await;
    }
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", cache.server.flight_addr())).unwrap();
    let mut flight = FlightServiceClient::new(endpoint.connect_lazy());
    let request = serde_json::json!({ "url": "s3://lake/wide/" });
    let answers = crate::sql::act(&mut flight, action::TABLE, request.to_string().into_bytes()).await.unwrap();
    assert!(answers.len() > 2 && answers.iter().all(|answer| answer.len() < 4 << 20), "{}", answers.len());
    let context = SessionContext::new();
    context.register_table("wide", cache.client.table("s3://lake/wide/").await.unwrap()).unwrap();
    for (sql, answer) in [
        ("SELECT count(*), min(c0), max(c0) FROM wide", "| 600 | 0 | 599 |"),
        ("SELECT count(*), min(c0), sum(c0) FROM wide WHERE c0 > 14 AND c0 < 595", "| 580 | 15 | 176610 |"),
    ] {
        // The server's own engine reads it whole.
        let theirs = cache.client.sql(sql.replace("wide", "'s3://lake/wide/'")).await.unwrap().collect().await.unwrap();
        for batches in [context.sql(sql).await.unwrap().collect().await.unwrap(), theirs] {
            let shown = pretty_format_batches(&batches).unwrap().to_string();
            assert!(shown.split_whitespace().collect::<Vec<_>>().join(" ").contains(answer), "{sql}\n{shown}");
        }
    }
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_other_types_are_no_table_of_one() {
    let cache = Cache::start().await;
    let files = tempfile::tempdir().unwrap();
    for (key, column) in [
        ("1.parquet", Arc::new((0..3).collect::<arrow::array::Int32Array>()) as ArrayRef),
        ("2.parquet", Arc::new((3..5).collect::<Int64Array>())),
    ] {
        let bytes = written(&RecordBatch::try_from_iter([("id", column)]).unwrap(), 2);
        std::fs::write(files.path().join(key), &bytes).unwrap();
        cache.store.put(&format!("d/{key}"), bytes).await;
    }
    let directory = format!("{}/", files.path().display());
    let native = SessionContext::new().register_parquet("d", directory, ParquetReadOptions::default()).await;
    assert!(native.is_err(), "natively refused as well");
    let error = cache.client.table("s3://lake/d/").await.unwrap_err().to_string();
    assert!(error.contains("\"id\" is Int64") && error.contains("Int32"), "{error}");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_first_is_read_first() {
    let doors = Doors::open().await;
    let (plan, _) = doors.ask("SELECT id, payer FROM t ORDER BY id DESC LIMIT 5").await;
    assert!(Doors::shown(&plan).contains("read=id DESC"), "{}", Doors::shown(&plan));
    // Each partition begins with the last row group of the best object there is, and finds nothing better after it.
    let read = Doors::figure(&plan, "row_groups");
    assert!(read <= 4, "{read} row groups of 11: {}", Doors::shown(&plan));
    doors.ask("SELECT id, fare FROM t ORDER BY fare DESC NULLS LAST, id LIMIT 9").await;
    doors.ask("SELECT zone, id FROM t WHERE payer <> 'cash' ORDER BY zone, id DESC LIMIT 9").await;
    doors.ask("SELECT payer, id FROM t ORDER BY payer DESC, id LIMIT 4").await;
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_are_sorted_are_not_sorted_again() {
    let doors = Doors::open().await;
    let sorted = |ascending| vec![vec![datafusion::prelude::col("id").sort(ascending, false)]];
    let table = doors.cache.client.table("s3://lake/t/").await.unwrap().sorted_by(sorted(true));
    doors.ours.register_table("ids", Arc::new(table)).unwrap();
    let month = vec![("month".to_owned(), arrow::datatypes::DataType::Int64)];
    let options = ParquetReadOptions::default().table_partition_cols(month).file_sort_order(sorted(true));
    let path = doors.files.path().join("t/").display().to_string();
    doors.plain.register_parquet("ids", path, options).await.unwrap();
    for sql in [
        "SELECT id, payer FROM ids WHERE zone < 9 ORDER BY id",
        "SELECT id FROM ids ORDER BY id LIMIT 12",
        "SELECT id, fare FROM ids ORDER BY id DESC LIMIT 7",
        "SELECT payer, max(id) FROM ids GROUP BY payer ORDER BY payer",
        "SELECT id, count(*) FROM ids WHERE id < 50 GROUP BY id ORDER BY id",
    ] {
        doors.ask(sql).await;
    }
    let (plan, _) = doors.ask("SELECT id, payer FROM ids WHERE zone < 9 ORDER BY id").await;
    assert!(!Doors::shown(&plan).contains("SortExec"), "{}", Doors::shown(&plan));
    doors.cache.stop().await;
}
