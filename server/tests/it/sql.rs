//! Flight SQL: arrow-rs's own client, value by value against plain `DataFusion` over the same rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, Date32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Int64Type};
use arrow::util::pretty::pretty_format_batches;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, Any, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys,
    CommandGetImportedKeys, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTables, CommandPreparedStatementQuery,
    CommandPreparedStatementUpdate, DoPutUpdateResult, ProstMessageExt, SqlInfo,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest,
};
use bytes::Bytes;
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use flightcache_proto::{ErrorKind, error::ERROR_KIND_METADATA};
use flightcache_server::{Server, Settings};
use futures::TryStreamExt as _;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use prost::Message as _;
use tonic::transport::{Channel, Endpoint};

use crate::store::TestStore;
use crate::support::{Cache, settings, until};

pub(crate) type Sql = FlightSqlServiceClient<Channel>;

const ROWS: i64 = 40_000;

/// Trips in two objects, of several row groups each, with NULL, NaN and dates; zones in a third.
pub(crate) struct Lake {
    pub(crate) cache: Cache,
    directory: tempfile::TempDir,
}

pub(crate) fn trips(first: i64, rows: i64) -> Bytes {
    let ids = first..first + rows;
    let fare = ids.clone().map(|id| match id % 97 {
        0 => None,
        1 => Some(f64::NAN),
        rest => Some(rest as f64 * 1.25 - 10.0),
    });
    let note = ids.clone().map(|id| (id % 7 != 0).then(|| format!("note {}", id % 1_000)));
    let columns: [(&str, ArrayRef); 5] = [
        ("id", Arc::new(ids.clone().collect::<Int64Array>())),
        ("zone", Arc::new(ids.clone().map(|id| id * 31 % 50).collect::<Int64Array>())),
        ("fare", Arc::new(fare.collect::<Float64Array>())),
        ("day", Arc::new(Date32Array::from_iter_values(ids.map(|id| 19_000 + (id / 1_000) as i32)))),
        ("Note", Arc::new(note.collect::<StringArray>())),
    ];
    parquet_of(&RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap())
}

fn parquet_of(batch: &RecordBatch) -> Bytes {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(4_000)).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes.into()
}

impl Lake {
    pub(crate) async fn start() -> Self {
        Self::with(Settings { tables: [("trips".to_owned(), "s3://lake/trips/".to_owned())].into(), ..settings() }).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let cache = Cache::with(settings, TestStore::new()).await;
        let directory = tempfile::tempdir().unwrap();
        let names: StringArray = (0..50).map(|zone| (zone != 13).then(|| format!("zone {zone}"))).collect();
        let zones: Int64Array = (0..50).collect();
        let zones: [(&str, ArrayRef); 2] = [("zone", Arc::new(zones)), ("name", Arc::new(names))];
        let zones = parquet_of(&RecordBatch::try_from_iter_with_nullable(zones.map(|(n, a)| (n, a, true))).unwrap());
        for (key, bytes) in
            [("trips/a.parquet", trips(0, ROWS / 2)), ("trips/b.parquet", trips(ROWS / 2, ROWS / 2)), ("zones.parquet", zones)]
        {
            let path = directory.path().join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &bytes).unwrap();
            cache.store.put(key, bytes).await;
        }
        Self { cache, directory }
    }

    pub(crate) fn client(&self) -> Sql {
        client(&self.cache.server)
    }

    /// `DataFusion`'s answer over the rows themselves: statistics, which leave NaN out, would have it answer another question.
    /// `{trips}` and `{zones}` stand for the tables.
    async fn plain(&self, sql: &str) -> RecordBatch {
        let config = SessionConfig::new().set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
        let context = SessionContext::new_with_config(config);
        for (table, keys) in [("trips", &["trips/a.parquet", "trips/b.parquet"][..]), ("zones", &["zones.parquet"])] {
            let read = |key: &&str| {
                let file = std::fs::File::open(self.directory.path().join(key)).unwrap();
                ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().map(Result::unwrap).collect::<Vec<_>>()
            };
            let batches: Vec<_> = keys.iter().map(read).collect();
            let table_of = MemTable::try_new(batches[0][0].schema(), batches).unwrap();
            context.register_table(table, Arc::new(table_of)).unwrap();
        }
        let answer = context.sql(&sql.replace("{trips}", "trips").replace("{zones}", "zones")).await.unwrap();
        let logical = Arc::new(answer.schema().as_arrow().clone());
        let batches = answer.collect().await.unwrap();
        // Types settle only in the analysis, after the logical plan's.
        let schema = batches.first().map_or(logical, RecordBatch::schema);
        concat_batches(&schema, &batches).unwrap()
    }

    pub(crate) async fn stop(self) {
        self.cache.stop().await;
    }
}

pub(crate) fn client(server: &Server) -> Sql {
    let channel = Endpoint::from_shared(format!("http://{}", server.flight_addr())).unwrap().connect_lazy();
    Sql::new_from_inner(FlightServiceClient::new(channel))
}

async fn read(client: &mut Sql, info: FlightInfo) -> Result<Vec<RecordBatch>, FlightError> {
    let announced = info.clone().try_decode_schema()?;
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        let stream = client.do_get(endpoint.ticket.unwrap()).await?;
        batches.extend(stream.try_collect::<Vec<_>>().await?);
    }
    assert!(batches.iter().all(|batch| batch.schema().fields() == announced.fields()), "{announced:?}");
    Ok(batches)
}

pub(crate) async fn ask(client: &mut Sql, sql: &str) -> Result<Vec<RecordBatch>, FlightError> {
    let info = client.execute(sql.to_owned(), None).await?;
    read(client, info).await
}

async fn text(client: &mut Sql, sql: &str) -> String {
    pretty_format_batches(&ask(client, sql).await.unwrap()).unwrap().to_string()
}

/// The kind the server gave an error.
fn kind(error: &FlightError) -> Option<String> {
    match error {
        FlightError::Tonic(status) => Some(status.metadata().get(ERROR_KIND_METADATA)?.to_str().ok()?.to_owned()),
        FlightError::Arrow(arrow::error::ArrowError::IpcError(message)) => Some(message.clone()),
        _ => None,
    }
}

pub(crate) fn assert_kind(error: &FlightError, expected: ErrorKind, sql: &str) {
    let kind = kind(error).unwrap_or_else(|| format!("{error:?}"));
    assert!(kind.contains(expected.as_str()), "{sql}: {error:?}");
}

/// The same rows, NaN equal to NaN; the types as well. Names of computed columns tell their tables'.
fn assert_same(ours: &[RecordBatch], plain: &RecordBatch, sql: &str) {
    let types = |batch: &RecordBatch| -> Vec<DataType> {
        batch.schema().fields().iter().map(|field| field.data_type().clone()).collect()
    };
    let anonymous = |batch: &RecordBatch| {
        let columns = batch.columns().iter().enumerate().map(|(at, column)| (format!("c{at}"), Arc::clone(column), true));
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    };
    let rows: usize = ours.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, plain.num_rows(), "{sql}");
    if let Some(first) = ours.first() {
        assert_eq!(types(first), types(plain), "{sql}");
        let shown = |batches: &[RecordBatch]| pretty_format_batches(batches).unwrap().to_string();
        let ours: Vec<RecordBatch> = ours.iter().map(anonymous).collect();
        let (ours, plain) = (shown(&ours), shown(&[anonymous(plain)]));
        let first_of = |text: &str| text.chars().take(1_000).collect::<String>();
        assert!(ours == plain, "{sql}\n{}\n{}", first_of(&ours), first_of(&plain));
    }
}

const QUESTIONS: [&str; 26] = [
    "SELECT * FROM {trips} ORDER BY id",
    "SELECT count(*) FROM {trips}",
    "SELECT count(*), count(fare), min(id), max(id), min(day), max(day), min(\"Note\"), max(\"Note\") FROM {trips}",
    "SELECT min(fare), max(fare) FROM {trips}",
    "SELECT count(*) FROM {trips} WHERE id >= 39000",
    "SELECT id, fare FROM {trips} WHERE id BETWEEN 11990 AND 12010 ORDER BY id",
    "SELECT id FROM {trips} WHERE fare > 100 AND zone IN (3, 4, 5) ORDER BY id LIMIT 20",
    "SELECT count(*) FROM {trips} WHERE fare > 1e300",
    "SELECT count(*) FROM {trips} WHERE fare = 'NaN'::double",
    "SELECT count(*) FROM {trips} WHERE fare <> 0",
    "SELECT count(*) FROM {trips} WHERE NOT (fare > 10) OR \"Note\" IS NULL",
    "SELECT \"Note\", count(*) FROM {trips} WHERE \"Note\" LIKE 'note 12%' GROUP BY 1 ORDER BY 1",
    "SELECT zone, sum(id), avg(fare) FROM {trips} WHERE day < date '2022-01-20' GROUP BY zone ORDER BY zone",
    "SELECT z.name, count(*) AS n FROM {trips} t JOIN {zones} z ON t.zone = z.zone WHERE t.id % 3 = 1 GROUP BY z.name ORDER BY n DESC, z.name",
    "SELECT count(*) FROM {trips} t LEFT JOIN {zones} z ON t.zone = z.zone WHERE z.name IS NULL",
    "SELECT a.id FROM {trips} a JOIN {trips} b ON a.id = b.id + 1 WHERE b.id < 5 ORDER BY a.id",
    "SELECT id FROM {trips} WHERE zone = (SELECT max(zone) FROM {zones}) ORDER BY id DESC LIMIT 3",
    "SELECT name FROM {zones} z WHERE EXISTS (SELECT 1 FROM {trips} t WHERE t.zone = z.zone AND t.id < 4) ORDER BY name",
    "SELECT id, row_number() OVER (PARTITION BY zone ORDER BY id) AS r FROM {trips} WHERE id < 300 ORDER BY id",
    "SELECT id FROM {trips} ORDER BY fare DESC NULLS LAST, id LIMIT 7",
    "SELECT DISTINCT upper(substr(\"Note\", 1, 6)) AS u FROM {trips} ORDER BY u",
    "SELECT 1 AS a UNION ALL SELECT 2.5 ORDER BY a",
    "SELECT count(*) FROM {trips} WHERE false",
    "SELECT id FROM {trips} WHERE id < 0",
    "WITH d AS (SELECT day, count(*) AS n FROM {trips} GROUP BY day) SELECT max(n), min(n) FROM d",
    "SELECT CASE WHEN fare > 50 THEN 'dear' ELSE 'cheap' END AS c, count(*) FROM {trips} GROUP BY c ORDER BY c",
];

#[tokio::test(flavor = "multi_thread")]
async fn answers_equal_plain_datafusion() {
    let lake = Lake::start().await;
    let mut client = lake.client();
    let names = [
        ("trips", "'s3://lake/zones.parquet'"),
        ("'s3://lake/trips/'", "\"s3://lake/zones.parquet\""),
        ("\"s3://lake/trips/*.parquet\"", "'s3://lake/zon*.parquet'"),
    ];
    for sql in QUESTIONS {
        let plain = lake.plain(sql).await;
        for (trips, zones) in names {
            let sql = sql.replace("{trips}", trips).replace("{zones}", zones);
            let ours = ask(&mut client, &sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            assert_same(&ours, &plain, &sql);
        }
    }
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_footers_tell_needs_no_data() {
    let lake = Lake::start().await;
    let mut client = lake.client();
    ask(&mut client, "SELECT count(*), min(id), max(day) FROM trips").await.unwrap();
    assert_eq!(lake.cache.server.engine().stats().chunks_missed, 0, "data was read for what statistics tell");
    // NaN is greater than all numbers, and in no statistics.
    ask(&mut client, "SELECT max(fare) FROM trips").await.unwrap();
    assert!(lake.cache.server.engine().stats().chunks_missed > 0);
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_shows_what_was_pushed_down_and_what_it_took() {
    let lake = Lake::start().await;
    let mut client = lake.client();
    let plan = text(&mut client, "EXPLAIN SELECT fare FROM trips WHERE id < 3000 AND random() < 2").await;
    assert!(plan.contains("file_type=flightcache, predicate=id@0 < 3000"), "{plan}");
    assert!(plan.contains("FilterExec: random()"), "{plan}");
    let analyze = "EXPLAIN ANALYZE SELECT sum(fare) FROM trips WHERE id < 3000";
    let cold = text(&mut client, analyze).await;
    // Of the object that may have such rows; the other one is left out of the plan.
    assert!(
        cold.contains("chunks_missed=2") && cold.contains("row_groups_pruned=4") && cold.contains("rows_pruned=17.00 K"),
        "{cold}"
    );
    let warm = text(&mut client, analyze).await;
    assert!(warm.contains("chunks_hit=2") && warm.contains("chunks_missed=0"), "{warm}");
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_is_told() {
    let lake = Lake::start().await;
    let mut client = lake.client();
    assert!(text(&mut client, "SHOW TABLES").await.contains("| flightcache   | public             | trips"));
    assert!(text(&mut client, "DESCRIBE trips").await.contains("| Note        | Utf8"));
    let columns = "SELECT column_name FROM information_schema.columns WHERE table_name = 'trips'";
    assert_eq!(ask(&mut client, columns).await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 5);
    let one_column = async |client: &mut Sql, info: FlightInfo, column: usize| -> Vec<String> {
        let batches = read(client, info).await.unwrap();
        batches
            .iter()
            .flat_map(|b| b.column(column).as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    };
    let info = client.get_catalogs().await.unwrap();
    assert_eq!(one_column(&mut client, info, 0).await, ["flightcache"]);
    let info = client.get_db_schemas(CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: None }).await.unwrap();
    assert_eq!(one_column(&mut client, info, 1).await, ["information_schema", "public"]);
    let info = client.get_table_types().await.unwrap();
    assert_eq!(one_column(&mut client, info, 0).await, ["TABLE"]);
    let tables =
        CommandGetTables { table_name_filter_pattern: Some("tr%".into()), include_schema: true, ..CommandGetTables::default() };
    let info = client.get_tables(tables).await.unwrap();
    let batches = read(&mut client, info).await.unwrap();
    assert_eq!(batches[0].column(2).as_string::<i32>().value(0), "trips");
    let schema = arrow_flight::IpcMessage(batches[0].column(4).as_binary::<i32>().value(0).to_vec().into());
    assert_eq!(arrow::datatypes::Schema::try_from(schema).unwrap().field(4).name(), "Note");
    let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerReadOnly, SqlInfo::FlightSqlServerName]).await.unwrap();
    assert_eq!(read(&mut client, info).await.unwrap()[0].num_rows(), 2);
    let info = client.get_xdbc_type_info(arrow_flight::sql::CommandGetXdbcTypeInfo { data_type: None }).await.unwrap();
    assert!(read(&mut client, info).await.unwrap()[0].num_rows() > 10);
    let (table, none) = ("trips".to_owned(), None::<String>);
    let keys = CommandGetPrimaryKeys { catalog: none.clone(), db_schema: none.clone(), table: table.clone() };
    let imported = CommandGetImportedKeys { catalog: none.clone(), db_schema: none.clone(), table: table.clone() };
    let exported = CommandGetExportedKeys { catalog: none.clone(), db_schema: none.clone(), table: table.clone() };
    let cross = CommandGetCrossReference { pk_table: table.clone(), fk_table: table, ..CommandGetCrossReference::default() };
    for (info, columns) in [
        (client.get_primary_keys(keys).await.unwrap(), 6),
        (client.get_imported_keys(imported).await.unwrap(), 13),
        (client.get_exported_keys(exported).await.unwrap(), 13),
        (client.get_cross_reference(cross).await.unwrap(), 13),
    ] {
        assert_eq!(info.clone().try_decode_schema().unwrap().fields().len(), columns);
        assert_eq!(read(&mut client, info).await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    }
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_bound() {
    let lake = Lake::start().await;
    let mut client = lake.client();
    for sql in [
        "SELECT id FROM trips WHERE id > $1 AND id <= $2 ORDER BY id",
        "SELECT id FROM trips WHERE id > ? AND id <= ? ORDER BY id",
    ] {
        let mut prepared = client.prepare(sql.to_owned(), None).await.unwrap();
        let types: Vec<_> = prepared.parameter_schema().unwrap().fields().iter().map(|f| f.data_type().clone()).collect();
        assert_eq!(types, [DataType::Int64, DataType::Int64], "{sql}");
        assert_eq!(prepared.dataset_schema().unwrap().field(0).name(), "id");
        let unbound = prepared.execute().await.unwrap_err();
        assert!(format!("{unbound:?}").contains("not bound"), "{unbound:?}");
        for (low, high) in [(5, 8), (100, 101)] {
            let values: [(&str, ArrayRef); 2] =
                [("0", Arc::new(Int64Array::from(vec![low]))), ("1", Arc::new(Int64Array::from(vec![high])))];
            prepared.set_parameters(RecordBatch::try_from_iter(values).unwrap()).unwrap();
            let info = prepared.execute().await.unwrap();
            let batches = read(&mut client, info).await.unwrap();
            let ids: Vec<i64> = batches.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
            assert_eq!(ids, (low + 1..=high).collect::<Vec<_>>(), "{sql}");
        }
        prepared.close().await.unwrap();
    }
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_made_and_dropped_within_the_sources() {
    let lake = Lake::start().await;
    let mut client = lake.client();
    assert_kind(&ask(&mut client, "SELECT * FROM zones").await.unwrap_err(), ErrorKind::NotFound, "zones");
    let create = "CREATE EXTERNAL TABLE zones STORED AS PARQUET LOCATION 's3://lake/zones.parquet'";
    ask(&mut client, create).await.unwrap();
    assert_eq!(client.execute_update(create.to_owned(), None).await.unwrap(), 0, "the same again");
    assert!(text(&mut client, "SELECT count(*) FROM zones").await.contains("| 50 "));
    assert!(text(&mut client, "SHOW TABLES").await.contains("| zones"));
    ask(&mut client, "DROP TABLE zones").await.unwrap();
    for (sql, expected) in [
        ("SELECT * FROM zones", ErrorKind::NotFound),
        ("DROP TABLE zones", ErrorKind::NotFound),
        ("DROP TABLE trips", ErrorKind::Denied),
        ("CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION 's3://other/x.parquet'", ErrorKind::Denied),
        ("CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION 's3://lake/none.parquet'", ErrorKind::NotFound),
        ("SELECT * FROM 's3://other/x.parquet'", ErrorKind::Denied),
        ("SELECT * FROM 'file:///etc/passwd'", ErrorKind::Denied),
        ("SELECT * FROM 's3://lake/none.parquet'", ErrorKind::NotFound),
        ("SELECT nosuch FROM trips", ErrorKind::NotFound),
        ("SELECT 1 +", ErrorKind::InvalidRequest),
        ("SELECT 1 / 0", ErrorKind::InvalidRequest),
        ("SELECT * INTO x FROM trips", ErrorKind::Unsupported),
        ("INSERT INTO trips SELECT * FROM trips", ErrorKind::Unsupported),
        ("DELETE FROM trips", ErrorKind::Unsupported),
        ("COPY trips TO 's3://lake/copy.parquet'", ErrorKind::Unsupported),
        ("CREATE VIEW v AS SELECT 1", ErrorKind::Unsupported),
        ("SET datafusion.execution.target_partitions = 1", ErrorKind::Unsupported),
        ("EXPLAIN ANALYZE INSERT INTO trips SELECT * FROM trips", ErrorKind::Unsupported),
        ("SHOW ALL", ErrorKind::Unsupported),
        ("SELECT * FROM information_schema.df_settings", ErrorKind::NotFound),
        ("SELECT * FROM '/etc/passwd'", ErrorKind::NotFound),
        ("SELECT * FROM './Cargo.toml'", ErrorKind::NotFound),
        ("CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION '/etc/'", ErrorKind::InvalidRequest),
        ("SELECT repeat('x', 1000000000)", ErrorKind::ResourceExhausted),
        ("SELECT range(0, 1000000000000)", ErrorKind::ResourceExhausted),
        // A row goes in one message.
        (
            "SELECT s || s || s || s || s || s || s || s FROM (SELECT string_agg(\"Note\", ',') AS s FROM trips)",
            ErrorKind::ResourceExhausted,
        ),
    ] {
        assert_kind(&ask(&mut client, sql).await.unwrap_err(), expected, sql);
    }
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_before_any_io() {
    let lake = Lake::start().await;
    let mut client = lake.client();
    lake.cache.store.take_reads();
    for sql in ["SELECT * FROM 's3://other/x.parquet'", "CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION 's3://other/'"] {
        assert_kind(&client.execute(sql.to_owned(), None).await.unwrap_err(), ErrorKind::Denied, sql);
    }
    assert!(lake.cache.store.take_reads().is_empty());
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_of_one_server_is_answered_by_another() {
    let (one, two) = (Lake::start().await, Lake::start().await);
    let (mut client, mut other) = (one.client(), two.client());
    let create = "CREATE EXTERNAL TABLE here STORED AS PARQUET LOCATION 's3://lake/zones.parquet'";
    ask(&mut client, create).await.unwrap();
    let mut prepared = client.prepare("SELECT name FROM here WHERE zone = $1".to_owned(), None).await.unwrap();
    let values: [(&str, ArrayRef); 1] = [("$1", Arc::new(Int64Array::from(vec![7])))];
    prepared.set_parameters(RecordBatch::try_from_iter(values).unwrap()).unwrap();
    let info = prepared.execute().await.unwrap();
    one.stop().await;
    let batches = read(&mut other, info).await.unwrap();
    assert_eq!(batches[0].column(0).as_string::<i32>().value(0), "zone 7");
    assert_kind(&ask(&mut other, "SELECT * FROM here").await.unwrap_err(), ErrorKind::NotFound, "it knows no such table itself");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_cannot_be_read_are_no_obstacle() {
    let tables = [("trips", "s3://lake/trips/"), ("gone", "s3://lake/gone/"), ("elsewhere", "s3://other/")];
    let tables = tables.map(|(name, url)| (name.to_owned(), url.to_owned())).into();
    let lake = Lake::with(Settings { tables, ..settings() }).await;
    let mut client = lake.client();
    let info = client.get_tables(CommandGetTables { include_schema: true, ..CommandGetTables::default() }).await.unwrap();
    let batches = read(&mut client, info).await.unwrap();
    let names: Vec<_> = batches[0].column(2).as_string::<i32>().iter().flatten().collect();
    assert_eq!(names, ["elsewhere", "gone", "trips"]);
    let columns =
        ask(&mut client, "SELECT table_name FROM information_schema.columns WHERE table_schema = 'public'").await.unwrap();
    assert_eq!(columns.iter().map(RecordBatch::num_rows).sum::<usize>(), 5);
    assert_kind(&ask(&mut client, "SELECT * FROM gone").await.unwrap_err(), ErrorKind::NotFound, "gone");
    assert_kind(&ask(&mut client, "SELECT * FROM elsewhere").await.unwrap_err(), ErrorKind::Denied, "elsewhere");
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_all_types_arrive() {
    let lake = Lake::start().await;
    let mut client = lake.client();
    for sql in [
        "SELECT NULL AS n, true AS b, INTERVAL '1 month 2 days' AS i, DATE '2024-01-01' AS d, TIME '10:00:00' AS t",
        "SELECT now() AS now, TIMESTAMP '2024-01-01T00:00:00Z' AS z, CAST(1.5 AS DECIMAL(40, 3)) AS d, X'00ff' AS x",
        "SELECT arrow_cast('a', 'Dictionary(Int32, Utf8)') AS d, arrow_cast('a', 'Utf8View') AS v, arrow_cast('a', 'LargeUtf8') AS l",
        "SELECT arrow_cast(1, 'Duration(Second)') AS d, arrow_cast(1, 'Float16') AS f, arrow_cast(1, 'UInt8') AS u",
        "SELECT [1, NULL, 3] AS l, [['a'], []] AS ll, struct(1 AS a, 'b' AS b) AS s, map(['k'], [1]) AS m",
        "SELECT arrow_cast([1, 2], 'FixedSizeList(2, Int32)') AS f, arrow_cast([1, 2], 'LargeList(Int32)') AS l",
        "SELECT \"Note\", arrow_cast(\"Note\", 'Dictionary(Int8, Utf8)') AS d FROM trips WHERE id = 5",
    ] {
        let rows: usize =
            ask(&mut client, sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).iter().map(RecordBatch::num_rows).sum();
        assert_eq!(rows, 1, "{sql}");
    }
    lake.stop().await;
}

/// What the calls below go through.
pub(crate) fn flight(lake: &Lake) -> FlightServiceClient<Channel> {
    FlightServiceClient::new(Endpoint::from_shared(format!("http://{}", lake.cache.server.flight_addr())).unwrap().connect_lazy())
}

pub(crate) async fn act(
    flight: &mut FlightServiceClient<Channel>,
    name: &str,
    body: Vec<u8>,
) -> Result<Vec<Bytes>, tonic::Status> {
    let results = flight.do_action(Action::new(name, body)).await?.into_inner();
    results.map_ok(|result| result.body).try_collect().await
}

fn any(message: &impl ProstMessageExt) -> Vec<u8> {
    message.as_any().encode_to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn others_than_its_reader_cancel_a_statement() {
    let lake = Lake::start().await;
    let (mut client, mut flight) = (lake.client(), flight(&lake));
    let endless = "SELECT value, value * 2 AS twice FROM generate_series(1, 1000000000000)";
    let cancel = |info: &FlightInfo| CancelFlightInfoRequest { info: Some(info.clone()) }.encode_to_vec();
    for is_old in [false, true] {
        let info = client.execute(endless.to_owned(), None).await.unwrap();
        let other = client.execute(endless.to_owned(), None).await.unwrap();
        let unknown = act(&mut flight, "CancelFlightInfo", cancel(&info)).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound, "nobody reads it yet");
        let mut read = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
        let mut other = client.do_get(other.endpoint[0].ticket.clone().unwrap()).await.unwrap();
        assert!(read.try_next().await.unwrap().is_some());
        if is_old {
            let request = any(&ActionCancelQueryRequest { info: info.encode_to_vec().into() });
            assert_eq!(act(&mut flight, "CancelQuery", request).await.unwrap().len(), 1);
        } else {
            let answer = act(&mut flight, "CancelFlightInfo", cancel(&info)).await.unwrap();
            let status = CancelFlightInfoResult::decode(answer[0].clone()).unwrap().status;
            assert_eq!(status, CancelStatus::Cancelled as i32);
        }
        let error = loop {
            match read.try_next().await {
                Ok(batch) => assert!(batch.is_some(), "it ended as if it were whole"),
                Err(error) => break error,
            }
        };
        assert_kind(&error, ErrorKind::Cancelled, endless);
        assert!(other.try_next().await.unwrap().is_some(), "the same statement of others goes on");
        drop(other);
        until("the statements have ended", || lake.cache.server.engine().metrics().active_statements.get() == 0).await;
        assert!(act(&mut flight, "CancelFlightInfo", cancel(&info)).await.is_err());
    }
    for (name, body) in [("CancelFlightInfo", vec![0xff; 9]), ("CancelFlightInfo", Vec::new()), ("CancelQuery", vec![0xff; 9])] {
        assert_eq!(act(&mut flight, name, body).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_taken_politely() {
    let lake = Lake::start().await;
    let mut flight = flight(&lake);
    // `SetSessionOptionsRequest { session_options: { "catalog": { string_value: "x" } } }`.
    let options = b"\x0a\x0e\x0a\x07catalog\x12\x03\x0a\x01x".to_vec();
    assert_eq!(act(&mut flight, "SetSessionOptions", options).await.unwrap(), [Bytes::new()]);
    assert_eq!(act(&mut flight, "GetSessionOptions", Vec::new()).await.unwrap(), [Bytes::new()]);
    assert_eq!(act(&mut flight, "CloseSession", Vec::new()).await.unwrap(), [Bytes::from_static(b"\x08\x01")]);
    let refused = act(&mut flight, "BeginTransaction", Vec::new()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
    lake.stop().await;
}

/// The calls of the JDBC driver, in its order: a statement is prepared, its schema tells whether it asks or changes something.
#[tokio::test(flavor = "multi_thread")]
async fn jdbc_is_answered() {
    let lake = Lake::start().await;
    let mut flight = flight(&lake);
    let greeting = futures::stream::iter([HandshakeRequest::default()]);
    assert!(flight.handshake(greeting).await.unwrap().into_inner().try_next().await.unwrap().is_some());
    let ask_for = async |flight: &mut FlightServiceClient<Channel>, command: Vec<u8>| {
        let info = flight.get_flight_info(FlightDescriptor::new_cmd(command)).await.unwrap().into_inner();
        let announced = info.clone().try_decode_schema().unwrap();
        let frames = flight.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap().into_inner();
        let mut batches = arrow_flight::decode::FlightRecordBatchStream::new_from_flight_data(frames.map_err(Into::into));
        let first = batches.try_next().await.unwrap();
        assert_eq!(batches.schema().unwrap().fields(), announced.fields());
        let mut all: Vec<RecordBatch> = first.into_iter().collect();
        all.extend(batches.try_collect::<Vec<_>>().await.unwrap());
        all
    };
    let rows = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    // `getMetaData()`.
    let all = ask_for(&mut flight, any(&CommandGetSqlInfo { info: Vec::new() })).await;
    assert!(rows(&all) > 80, "{}", rows(&all));
    let tables = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
    assert_eq!(rows(&ask_for(&mut flight, any(&tables)).await), 1);
    // `executeQuery()`.
    let prepare = async |flight: &mut FlightServiceClient<Channel>, query: &str| {
        let request = ActionCreatePreparedStatementRequest { query: query.to_owned(), transaction_id: None };
        let answer = act(flight, "CreatePreparedStatement", any(&request)).await.unwrap();
        let result = Any::decode(answer[0].clone()).unwrap().unpack::<ActionCreatePreparedStatementResult>();
        result.unwrap().unwrap()
    };
    let prepared = prepare(&mut flight, "SELECT count(*) AS n FROM trips WHERE zone = 3").await;
    assert!(!prepared.dataset_schema.is_empty());
    let query = CommandPreparedStatementQuery { prepared_statement_handle: prepared.prepared_statement_handle.clone() };
    let schema = flight.get_schema(FlightDescriptor::new_cmd(any(&query))).await.unwrap().into_inner();
    assert!(!schema.schema.is_empty());
    let counted = ask_for(&mut flight, any(&query)).await;
    assert_eq!(
        counted[0].column(0).as_primitive::<Int64Type>().value(0),
        (0..ROWS).filter(|id| id * 31 % 50 == 3).count() as i64
    );
    let close = ActionClosePreparedStatementRequest { prepared_statement_handle: prepared.prepared_statement_handle };
    assert!(act(&mut flight, "ClosePreparedStatement", any(&close)).await.unwrap().is_empty());
    // `executeUpdate()`.
    let prepared = prepare(&mut flight, "CREATE EXTERNAL TABLE zones STORED AS PARQUET LOCATION 's3://lake/zones.parquet'").await;
    assert!(prepared.dataset_schema.is_empty(), "it answers nothing");
    let update = CommandPreparedStatementUpdate { prepared_statement_handle: prepared.prepared_statement_handle };
    let (none, options) = (arrow::datatypes::Schema::empty(), arrow::ipc::writer::IpcWriteOptions::default());
    let schema = arrow_flight::SchemaAsIpc::new(&none, &options);
    let data = FlightData { flight_descriptor: Some(FlightDescriptor::new_cmd(any(&update))), ..FlightData::from(schema) };
    let put = flight.do_put(futures::stream::iter([data])).await.unwrap().into_inner().try_next().await.unwrap().unwrap();
    assert_eq!(DoPutUpdateResult::decode(put.app_metadata).unwrap().record_count, 0);
    assert_eq!(rows(&ask_for(&mut flight, any(&tables)).await), 2);
    assert_eq!(act(&mut flight, "CloseSession", Vec::new()).await.unwrap().len(), 1);
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_from_outside_fails_typed() {
    let lake = Lake::start().await;
    let named = |name: &str, value: &[u8]| {
        let url = format!("type.googleapis.com/arrow.flight.protocol.sql.{name}");
        Any { type_url: url, value: value.to_vec().into() }.encode_to_vec()
    };
    for (ticket, expected) in [
        (named("TicketStatementQuery", b"\xff\xff"), "InvalidArgument"),
        (named("TicketStatementQuery", b"\x0a\x02\xff\xff"), "InvalidArgument"),
        (named("TicketStatementQuery", b""), "InvalidArgument"),
        (named("CommandStatementIngest", b""), "Unimplemented"),
        (named("Nonsense", b""), "Unimplemented"),
        (named("TicketStatementQuery", b"")[..60].to_vec(), "InvalidArgument"),
    ] {
        let error = lake.cache.do_get(ticket.clone()).await.unwrap_err();
        let FlightError::Tonic(status) = &error else { panic!("{error:?}") };
        assert_eq!(format!("{:?}", status.code()), expected, "{ticket:?}: {status:?}");
    }
    let mut client = lake.client();
    let (sum, any_of) = ("id + ".repeat(400), "id = 1 OR ".repeat(300));
    for sql in [
        format!("SELECT count(*) FROM trips WHERE {sum} id >= 0"),
        format!("SELECT count(*) FROM trips WHERE {any_of} id >= 0"),
        format!("SELECT count({sum} id) FROM trips"),
        format!("SELECT {}count(*) FROM trips", "1 + ".repeat(400)),
    ] {
        assert_eq!(ask(&mut client, &sql).await.unwrap()[0].num_rows(), 1, "{}…", &sql[..60]);
    }
    for sql in [format!("SELECT {}1", "1 + ".repeat(20_000)), format!("SELECT {}1{}", "(".repeat(1_000), ")".repeat(1_000))] {
        assert_kind(&ask(&mut client, &sql).await.unwrap_err(), ErrorKind::InvalidRequest, &sql[..40]);
    }
    lake.stop().await;
}
