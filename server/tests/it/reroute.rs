//! Native Parquet tables, read through the cache by rule: the same answers as without it.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use bytes::Bytes;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _};
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, lit};
use datafusion::physical_expr_adapter::{DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory};
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use flightcache::ErrorKind;
use flightcache::datafusion::with_rules;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use crate::store::shared;
use crate::support::Cache;

fn trips(first: i64, rows: i64) -> Bytes {
    let range = || first..first + rows;
    let columns: [(&str, ArrayRef); 4] = [
        ("id", Arc::new(range().collect::<Int64Array>())),
        ("zone", Arc::new(range().map(|row| (row * 7919 % 263) as i32).collect::<Int32Array>())),
        ("fare", Arc::new(range().map(|row| (row % 11 != 5).then_some((row % 97 + 1) as f64 / 4.0)).collect::<Float64Array>())),
        ("payer", Arc::new(range().map(|row| ["card", "cash", "voucher"][row as usize % 3]).map(Some).collect::<StringArray>())),
    ];
    written(&RecordBatch::try_from_iter(columns).unwrap())
}

fn written(batch: &RecordBatch) -> Bytes {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(1_000)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap().into()
}

/// The same store, read natively with the rule and without it.
struct Doors {
    cache: Cache,
    ruled: SessionContext,
    plain: SessionContext,
}

impl Doors {
    async fn open(config: SessionConfig) -> Self {
        let cache = Cache::start().await;
        let state = || SessionStateBuilder::new().with_config(config.clone()).with_default_features();
        let ruled = with_rules(state(), Some(cache.client.reroute().await.unwrap()));
        let doors = Self {
            ruled: SessionContext::new_with_state(ruled.build()),
            plain: SessionContext::new_with_state(state().build()),
            cache,
        };
        for context in [&doors.ruled, &doors.plain] {
            for url in ["s3://lake", "s3://pond"] {
                context.register_object_store(&url::Url::parse(url).unwrap(), shared(&doors.cache.store));
            }
        }
        doors
    }

    async fn register(&self, name: &str, url: &str, options: ParquetReadOptions<'_>) {
        for context in [&self.ruled, &self.plain] {
            context.register_parquet(name, url, options.clone()).await.unwrap();
        }
    }

    async fn plan(&self, sql: &str) -> Arc<dyn ExecutionPlan> {
        self.ruled.sql(sql).await.unwrap().create_physical_plan().await.unwrap()
    }

    /// The plan of a statement, whose answer is that without the rule.
    async fn ask(&self, sql: &str) -> String {
        let plan = self.plan(sql).await;
        let shown = displayable(plan.as_ref()).indent(false).to_string();
        let ruled = datafusion::physical_plan::collect(plan, self.ruled.task_ctx()).await;
        let ruled = ruled.unwrap_or_else(|e| panic!("{sql}: {e}\n{shown}"));
        let plain = self.plain.sql(sql).await.unwrap().collect().await.unwrap();
        assert_eq!(sorted(&ruled), sorted(&plain), "{sql}\n{shown}");
        shown
    }
}

fn sorted(batches: &[RecordBatch]) -> String {
    let text = pretty_format_batches(batches).unwrap().to_string();
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('+')).collect();
    lines.get_mut(1..).unwrap_or_default().sort_unstable();
    lines.join("\n")
}

fn config(partitions: usize) -> SessionConfig {
    SessionConfig::new().with_target_partitions(partitions)
}

#[tokio::test(flavor = "multi_thread")]
async fn listing_tables_go_through_the_cache() {
    for pushdown_filters in [false, true] {
        let config = config(2).set_bool("datafusion.execution.parquet.pushdown_filters", pushdown_filters);
        let doors = Doors::open(config).await;
        doors.cache.store.put("t/month=1/a.parquet", trips(0, 5_000)).await;
        doors.cache.store.put("t/month=2/b.parquet", trips(5_000, 5_500)).await;
        let partition = vec![("month".to_owned(), DataType::Int64)];
        doors.register("t", "s3://lake/t/", ParquetReadOptions::default().table_partition_cols(partition)).await;
        for sql in [
            "SELECT * FROM t WHERE id BETWEEN 4990 AND 5010",
            "SELECT count(*), sum(fare), min(payer), avg(id) FROM t WHERE zone > 3",
            "SELECT payer, month, count(*), sum(fare) FROM t WHERE zone % 3 = 1 GROUP BY payer, month",
            "SELECT month, id FROM t WHERE month = 2 AND fare > 24 AND regexp_like(payer, 'c[a-b]')",
            "SELECT id + month AS both FROM t WHERE id + month = 7",
            "SELECT id, fare FROM t ORDER BY fare DESC NULLS LAST, id LIMIT 7",
            "SELECT a.id FROM t a JOIN t b ON a.id = b.zone WHERE b.id < 50",
            "SELECT count(*) FROM t WHERE upper(payer) = 'CASH'",
            "SELECT id FROM t WHERE id > 10499",
        ] {
            let shown = doors.ask(sql).await;
            assert!(shown.contains("file_type=flightcache") && !shown.contains("file_type=parquet"), "{shown}");
        }
        let shown = doors.ask("SELECT payer, month, count(*), sum(fare) FROM t WHERE id > 77 GROUP BY payer, month").await;
        assert!(shown.contains("aggregate=[count(Int64(1)), sum(t.fare)], gby=[payer, month], predicate=id"), "{shown}");
        doors.cache.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_files_are_read_once() {
    let doors = Doors::open(config(5).set_usize("datafusion.optimizer.repartition_file_min_size", 1)).await;
    doors.cache.store.put("t.parquet", trips(0, 9_500)).await;
    doors.register("t", "s3://lake/t.parquet", ParquetReadOptions::default()).await;
    for sql in ["SELECT id, payer FROM t", "SELECT sum(id), count(fare) FROM t WHERE zone < 100", "SELECT DISTINCT zone FROM t"] {
        let shown = doors.ask(sql).await;
        assert!(shown.contains("5 groups") && shown.contains("file_type=flightcache"), "{shown}");
    }
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_drifted_are_adapted_as_natively() {
    let doors = Doors::open(config(2)).await;
    let words = |words: &[&str]| Arc::new(words.iter().copied().map(Some).collect::<StringArray>()) as ArrayRef;
    let narrow = |range: std::ops::Range<i32>| Arc::new(range.collect::<Int32Array>()) as ArrayRef;
    let wide = |range: std::ops::Range<i64>| Arc::new(range.collect::<Int64Array>()) as ArrayRef;
    for (key, columns) in [
        ("d/1.parquet", vec![("id", narrow(0..3)), ("name", words(&["a", "b", "c"]))]),
        ("d/2.parquet", vec![("name", words(&["d", "e"])), ("more", wide(0..2)), ("id", wide(3..5))]),
        ("d/k=7/3.parquet", vec![("id", wide(5..6))]),
    ] {
        let columns = columns.into_iter().map(|(name, column)| (name, column, true));
        doors.cache.store.put(key, written(&RecordBatch::try_from_iter_with_nullable(columns).unwrap())).await;
    }
    // What a directory is called is no column of a file, even where the table has one of that name.
    let fields = [("id", DataType::Int64), ("name", DataType::Utf8View), ("more", DataType::Float64), ("k", DataType::Int64)];
    let schema = Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec());
    doors.register("d", "s3://lake/d/", ParquetReadOptions::default().schema(&schema)).await;
    for sql in [
        "SELECT id, name, more, k FROM d",
        "SELECT id FROM d WHERE name IS NULL",
        "SELECT id + 1 FROM d WHERE id > 1 AND (more IS NULL OR more < 1)",
        "SELECT sum(id), count(name), max(more), count(k) FROM d",
        "SELECT k, count(*) FROM d GROUP BY k",
        "SELECT name, sum(more) FROM d WHERE id < 5 GROUP BY name",
        "SELECT id FROM d WHERE k = 7",
    ] {
        let shown = doors.ask(sql).await;
        assert!(shown.contains("file_type=flightcache"), "{shown}");
    }
    doors.cache.stop().await;
}

/// Of rows of files that have no column `more`, it is 7.
#[derive(Debug)]
struct Sevens {
    rest: Arc<dyn PhysicalExprAdapter>,
    file: SchemaRef,
}

#[derive(Debug)]
struct SevensFactory;

impl PhysicalExprAdapterFactory for SevensFactory {
    fn create(&self, table: SchemaRef, file: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let rest = DefaultPhysicalExprAdapterFactory.create(table, Arc::clone(&file))?;
        Ok(Arc::new(Sevens { rest, file }))
    }
}

impl PhysicalExprAdapter for Sevens {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        let sevens = |expr: Arc<dyn PhysicalExpr>| {
            let is_missing = |column: &Column| column.name() == "more" && self.file.column_with_name(column.name()).is_none();
            let is_missing = expr.downcast_ref::<Column>().is_some_and(is_missing);
            Ok(if is_missing { Transformed::yes(lit(7_i64)) } else { Transformed::no(expr) })
        };
        self.rest.rewrite(expr.transform(sevens).data()?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_of_a_table_are_asked_as_natively() {
    let config = config(2).set_bool("datafusion.execution.parquet.pushdown_filters", true);
    // Native scans take a column to be NULL, before they ask an adapter, where statistics say that it is.
    let doors = Doors::open(config.set_bool("datafusion.execution.collect_statistics", false)).await;
    let wide = |range: std::ops::Range<i64>| Arc::new(range.collect::<Int64Array>()) as ArrayRef;
    for (key, columns) in
        [("d/1.parquet", vec![("id", wide(0..3)), ("more", wide(0..3))]), ("d/2.parquet", vec![("id", wide(3..5))])]
    {
        doors.cache.store.put(key, written(&RecordBatch::try_from_iter(columns).unwrap())).await;
    }
    let schema = Arc::new(Schema::new(["id", "more"].map(|name| Field::new(name, DataType::Int64, true)).to_vec()));
    for context in [&doors.ruled, &doors.plain] {
        let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
        let table = ListingTableConfig::new(ListingTableUrl::parse("s3://lake/d/").unwrap())
            .with_listing_options(options)
            .with_schema(Arc::clone(&schema))
            .with_expr_adapter_factory(Arc::new(SevensFactory));
        context.register_table("d", Arc::new(ListingTable::try_new(table).unwrap())).unwrap();
    }
    for (sql, answer) in [
        ("SELECT sum(more) AS c FROM d", "17"),
        ("SELECT sum(id) AS c FROM d WHERE more = 7", "7"),
        ("SELECT max(id) AS c FROM d WHERE more < 7", "2"),
        ("SELECT count(*) AS c FROM (SELECT more, count(*) FROM d GROUP BY more)", "4"),
    ] {
        let shown = doors.ask(sql).await;
        assert!(shown.contains("file_type=flightcache"), "{shown}");
        let batches = doors.ruled.sql(sql).await.unwrap().collect().await.unwrap();
        assert!(sorted(&batches).contains(&format!("| {answer} ")), "{sql}: {}\n{shown}", sorted(&batches));
    }
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_version_is_read_or_none() {
    let doors = Doors::open(config(2)).await;
    doors.cache.store.put("t.parquet", trips(0, 3_000)).await;
    doors.register("t", "s3://lake/t.parquet", ParquetReadOptions::default()).await;
    doors.ask("SELECT sum(id), max(fare) FROM t").await;
    // Planned, then overwritten by as many bytes.
    let plan = doors.plan("SELECT sum(id) FROM t WHERE zone > 0").await;
    doors.cache.store.put("t.parquet", trips(1_000, 3_000)).await;
    doors.cache.client.evict("s3://lake/").await.unwrap();
    let error = datafusion::physical_plan::collect(plan, doors.ruled.task_ctx()).await.unwrap_err();
    let datafusion::common::DataFusionError::External(source) = error.find_root() else { panic!("{error}") };
    assert_eq!(source.downcast_ref::<flightcache::Error>().map(|error| error.kind), Some(ErrorKind::Changed), "{error}");
    // The next plan is of what is there now, whatever the server still knows.
    doors.ask("SELECT sum(id), max(fare) FROM t").await;
    doors.cache.store.put("t.parquet", trips(7_000, 2_000)).await;
    doors.ask("SELECT sum(id), max(fare) FROM t WHERE zone > 0").await;
    doors.cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_stays_native() {
    let doors = Doors::open(config(2)).await;
    doors.cache.store.put("t.parquet", trips(0, 3_000)).await;
    doors.cache.store.put("a[1].parquet", trips(0, 100)).await;
    doors.register("t", "s3://lake/t.parquet", ParquetReadOptions::default()).await;
    doors.register("elsewhere", "s3://pond/t.parquet", ParquetReadOptions::default()).await;
    let coerced = config(2).set_str("datafusion.execution.parquet.coerce_int96", "us");
    for (sql, is_native) in [
        ("SELECT sum(id) FROM t", false),
        ("SELECT sum(id) FROM elsewhere", true),
        ("SELECT count(*) FROM t WHERE zone = 3 AND id IN (SELECT zone FROM elsewhere)", false),
    ] {
        let shown = doors.ask(sql).await;
        assert_eq!(!shown.contains("file_type=flightcache"), is_native, "{shown}");
    }
    let other = Doors::open(coerced).await;
    other.cache.store.put("t.parquet", trips(0, 300)).await;
    other.register("t", "s3://lake/t.parquet", ParquetReadOptions::default()).await;
    let shown = other.ask("SELECT sum(id) FROM t").await;
    assert!(shown.contains("file_type=parquet"), "{shown}");
    other.cache.stop().await;
    doors.cache.stop().await;
}
