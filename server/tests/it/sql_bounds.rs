//! Flight SQL: what a statement may take, which versions it reads, and what is left of it when its reader goes.

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow_flight::CancelFlightInfoRequest;
use flightcache_proto::ErrorKind;
use flightcache_server::Settings;
use flightcache_server::object::Freshness;
use futures::TryStreamExt as _;
use futures::future::select;
use prost::Message as _;

use crate::sql::{Lake, act, ask, assert_kind, flight, trips};
use crate::support::{file, settings, until};

const ROWS: i64 = 40_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_stops_the_work_and_frees_its_memory() {
    let lake = Lake::start().await;
    lake.cache.store.put("wide.parquet", file(0, 400_000, 20_000, 8)).await;
    let mut client = lake.client();
    // Sorted whole before the first row goes, and too much for the buffers on the way.
    let info = client.execute("SELECT * FROM 's3://lake/wide.parquet' ORDER BY c3".to_owned(), None).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert!(stream.try_next().await.unwrap().is_some());
    let sql = lake.cache.server.sql();
    assert!(sql.memory_used() > 1 << 20, "{} bytes", sql.memory_used());
    assert_eq!(lake.cache.server.engine().metrics().active_statements.get(), 1);
    drop(stream);
    until("memory is free", || sql.memory_used() == 0).await;
    until("the statement has ended", || lake.cache.server.engine().metrics().active_statements.get() == 0).await;
    lake.cache.settled().await;
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_disk_are_bounded() {
    let spill = tempfile::tempdir().unwrap();
    let lake = Lake::with(Settings {
        sql_memory: bytesize::ByteSize::mib(24),
        sql_spill: bytesize::ByteSize::gib(1),
        sql_spill_directory: Some(spill.path().to_owned()),
        ..settings()
    })
    .await;
    // One row group, of which every batch is a slice.
    lake.cache.store.put("wide.parquet", file(0, 400_000, 400_000, 8)).await;
    let none =
        Lake::with(Settings { sql_memory: bytesize::ByteSize::mib(1), sql_spill: bytesize::ByteSize::b(0), ..settings() }).await;
    none.cache.store.put("wide.parquet", file(0, 400_000, 20_000, 8)).await;
    let sort = "SELECT * FROM 's3://lake/wide.parquet' ORDER BY c3";
    let error = ask(&mut none.client(), sort).await.unwrap_err();
    assert_kind(&error, ErrorKind::ResourceExhausted, sort);
    until("memory is free", || none.cache.server.sql().memory_used() == 0).await;
    let rows: usize = ask(&mut lake.client(), sort).await.unwrap().iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 400_000, "what does not fit spills");
    let window = "SELECT c1, sum(c2) OVER (), c3, c4, c5 FROM 's3://lake/wide.parquet'";
    assert_kind(&ask(&mut none.client(), window).await.unwrap_err(), ErrorKind::ResourceExhausted, window);
    until("memory is free", || lake.cache.server.sql().memory_used() == 0).await;
    lake.stop().await;
    none.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overwritten_object_is_read_anew() {
    // The cache believes what it knows, until a read shows that it is wrong.
    let lake = Lake::with(Settings { freshness: Freshness::Immutable, ..settings() }).await;
    let mut client = lake.client();
    let sum = "SELECT sum(zone) AS s FROM 's3://lake/trips/a.parquet'";
    ask(&mut client, "SELECT count(*) FROM 's3://lake/trips/a.parquet'").await.unwrap();
    lake.cache.store.put("trips/a.parquet", trips(500_000, ROWS / 4)).await;
    let expected: i64 = (500_000..500_000 + ROWS / 4).map(|id| id * 31 % 50).sum();
    let batches = ask(&mut client, sum).await.unwrap();
    assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().value(0), expected);
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_read_anew_as_well() {
    let lake = Lake::with(Settings { freshness: Freshness::Immutable, ..settings() }).await;
    let mut client = lake.client();
    ask(&mut client, "SELECT count(*) FROM 's3://lake/trips/'").await.unwrap();
    lake.cache.store.put("trips/b.parquet", trips(500_000, ROWS / 4)).await;
    let expected: i64 = (0..ROWS / 2).chain(500_000..500_000 + ROWS / 4).map(|id| id * 31 % 50).sum();
    let batches = ask(&mut client, "SELECT sum(zone) AS s FROM 's3://lake/trips/'").await.unwrap();
    assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().value(0), expected);
    lake.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_statements_run_at_a_time() {
    let memory_wait = std::time::Duration::from_millis(300);
    let lake = Lake::with(Settings { sql_statements: 1, memory_wait, ..settings() }).await;
    lake.cache.store.put("wide.parquet", file(0, 400_000, 20_000, 8)).await;
    let mut client = lake.client();
    let info = client.execute("SELECT * FROM 's3://lake/wide.parquet'".to_owned(), None).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert!(stream.try_next().await.unwrap().is_some());
    let count = "SELECT count(*) FROM 's3://lake/zones.parquet'";
    assert_kind(&ask(&mut lake.client(), count).await.unwrap_err(), ErrorKind::ResourceExhausted, count);
    drop(stream);
    assert_eq!(ask(&mut lake.client(), count).await.unwrap()[0].num_rows(), 1, "the next runs once there is room");

    // One that is cancelled makes room as well, though its reader is there and reads nothing.
    let info = client.execute("SELECT * FROM 's3://lake/wide.parquet'".to_owned(), None).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert!(stream.try_next().await.unwrap().is_some());
    let cancel = CancelFlightInfoRequest { info: Some(info) }.encode_to_vec();
    act(&mut flight(&lake), "CancelFlightInfo", cancel).await.unwrap();
    assert_eq!(ask(&mut lake.client(), count).await.unwrap()[0].num_rows(), 1);
    drop(stream);

    // As many are planned at a time, beside those that run.
    let permits = lake.cache.store.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let (mut one, mut other) = (lake.client(), lake.client());
    let sum = "SELECT sum(id) FROM 's3://lake/trips/'";
    let (refused, planned) = select(Box::pin(ask(&mut one, sum)), Box::pin(ask(&mut other, sum))).await.factor_first();
    assert_kind(&refused.unwrap_err(), ErrorKind::ResourceExhausted, "planning");
    lake.cache.store.gate.add_permits(permits);
    planned.await.unwrap();
    lake.stop().await;
}
