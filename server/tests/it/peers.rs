//! Chunks that servers of a cluster have of each other, and what they tell each other.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, ListArray, RecordBatch, StringArray, StructArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_service_client::FlightServiceClient;
use flightcache::{Client, ErrorKind};
use flightcache_server::object::Freshness;
use flightcache_server::settings::Residency;
use flightcache_server::{Server, Settings};
use futures::TryStreamExt as _;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use tonic::transport::Endpoint;

use crate::cluster::{client, converged, node, start};
use crate::store::TestStore;
use crate::support::{Cache, file, settings, until, values};

const URL: &str = "s3://lake/t.parquet";
const ROWS: i64 = 200_000;
/// What footers may take, each server its own.
const FOOTER_BYTES: u64 = 4 * (64 << 10);
const RESIDENCIES: [Residency; 3] = [Residency::Arrow, Residency::Parquet, Residency::Auto];

struct Three {
    store: Arc<TestStore>,
    servers: Vec<Server>,
}

impl Three {
    async fn start(name: &str, change: impl Fn(Settings) -> Settings) -> Self {
        let store = Arc::new(TestStore::new());
        store.put("t.parquet", file(0, ROWS, 10_000, 4)).await;
        let first = start(&change(node(name, &[])), &store).await;
        let second = start(&change(node(name, &[&first])), &store).await;
        let third = start(&change(node(name, &[&first])), &store).await;
        converged(&[&first, &second, &third]).await;
        Self { store, servers: vec![first, second, third] }
    }

    /// A fourth server of the same cluster.
    async fn join(&mut self, name: &str, change: impl Fn(Settings) -> Settings) {
        let fourth = start(&change(node(name, &[&self.servers[0]])), &self.store).await;
        self.servers.push(fourth);
        converged(&self.servers.iter().collect::<Vec<_>>()).await;
    }

    fn sum(&self, figure: impl Fn(&flightcache::action::Stats) -> u64) -> u64 {
        self.servers.iter().map(|server| figure(&server.engine().stats())).sum()
    }

    async fn stop(self) {
        for server in self.servers {
            assert!(server.shutdown().await);
        }
    }
}

/// An answer of one server, as a plain client asks for it.
async fn get(server: &Server, ticket: String) -> Vec<RecordBatch> {
    let channel = Endpoint::from_shared(format!("http://{}", server.flight_addr())).unwrap().connect_lazy();
    let frames = FlightServiceClient::new(channel).do_get(Ticket { ticket: ticket.into() }).await.unwrap().into_inner();
    FlightRecordBatchStream::new_from_flight_data(frames.map_err(Into::into)).try_collect().await.unwrap()
}

/// All of the object from one server.
async fn whole(server: &Server) -> Vec<i64> {
    values(&get(server, format!("{{\"url\": \"{URL}\"}}")).await)
}

async fn scan(client: &Client) -> Vec<i64> {
    values(&client.scan(URL).send().await.unwrap().collect().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_chunk_is_read_once_whoever_asks() {
    for residency in RESIDENCIES {
        a_herd(residency).await;
    }
}

async fn a_herd(residency: Residency) {
    let three = Three::start("herd", |settings| Settings { residency, ..settings }).await;
    let size = file(0, ROWS, 10_000, 4).len() as u64;
    let asked = futures::future::join_all(three.servers.iter().map(whole)).await;
    for rows in asked {
        assert!(rows.into_iter().eq(0..ROWS));
    }
    let read = three.sum(|stats| stats.store_bytes);
    assert!(read < size + FOOTER_BYTES, "{read} bytes read of {size}");
    assert!(three.sum(|stats| stats.chunks_pulled) > 0);
    // Asked again, each has all that it was asked for.
    let before = three.sum(|stats| stats.store_bytes + stats.chunks_pulled);
    for rows in futures::future::join_all(three.servers.iter().map(whole)).await {
        assert!(rows.into_iter().eq(0..ROWS));
    }
    assert_eq!(three.sum(|stats| stats.store_bytes + stats.chunks_pulled), before);
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_go_to_their_owners_and_routes_are_asked_for_once() {
    let three = Three::start("routes", |settings| settings).await;
    let reader = client(&three.servers[0]).await;
    for _ in 0..3 {
        assert!(scan(&reader).await.into_iter().eq(0..ROWS));
    }
    assert_eq!(three.sum(|stats| stats.chunks_pulled), 0, "nobody needs another's chunks");
    assert!(three.servers.iter().all(|server| server.engine().stats().served_bytes > 0));
    assert_eq!(reader.route_lookups(), 1);
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_has_its_chunks_of_who_had_them() {
    for residency in RESIDENCIES {
        a_join(residency).await;
    }
}

async fn a_join(residency: Residency) {
    let change = |settings| Settings { residency, ..settings };
    let mut three = Three::start("join", change).await;
    let reader = client(&three.servers[0]).await;
    assert!(scan(&reader).await.into_iter().eq(0..ROWS));
    let before = three.sum(|stats| stats.store_bytes);
    three.join("join", change).await;
    // The old map first, then the new one.
    for _ in 0..3 {
        assert!(scan(&reader).await.into_iter().eq(0..ROWS));
    }
    let fourth = three.servers[3].engine().stats();
    assert!(fourth.chunks_pulled > 0, "{fourth:?}");
    let read = three.sum(|stats| stats.store_bytes) - before;
    assert!(read < FOOTER_BYTES, "{read} bytes read of the store");
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_that_drains_has_is_taken_over() {
    for residency in RESIDENCIES {
        a_drain(residency).await;
    }
}

async fn a_drain(residency: Residency) {
    let three = Three::start("drain", |settings| Settings { residency, ..settings }).await;
    let reader = client(&three.servers[0]).await;
    assert!(scan(&reader).await.into_iter().eq(0..ROWS));
    let before = three.sum(|stats| stats.store_bytes);
    reader.drain(three.servers[2].cluster().node_id()).await.unwrap();
    converged(&[&three.servers[0], &three.servers[1]]).await;
    let taken = || three.servers[..2].iter().map(|server| server.engine().stats().resident_chunks).sum::<u64>();
    until("all is taken over, before anybody asks for it", || taken() == 80).await;
    for _ in 0..2 {
        assert!(scan(&reader).await.into_iter().eq(0..ROWS));
    }
    let read = three.sum(|stats| stats.store_bytes) - before;
    assert!(read < FOOTER_BYTES, "{read} bytes read of the store");
    assert!(three.sum(|stats| stats.chunks_pulled) > 0);
    three.stop().await;
}

/// Columns of all sorts; the last rests as a dictionary that is no message.
fn sorts() -> bytes::Bytes {
    let rows = 30_000_i64;
    let words = |count: i64| {
        (0..rows).map(move |row| (row % 7 != 3).then(|| format!("a word that is not so short {}", row * 31 % count)))
    };
    let long = (0..rows).map(|row| Some(format!("{:01$}", row % 200, 4_000)));
    let lists = (0..rows).map(|row| (row % 5 != 2).then(|| (0..row % 4).map(Some).collect::<Vec<_>>()));
    let x: ArrayRef = Arc::new((0..rows).map(|row| (row % 3 != 0).then_some(row)).collect::<Int64Array>());
    let y: ArrayRef = Arc::new(words(20_000).collect::<StringArray>());
    let point = StructArray::from(vec![
        (Arc::new(Field::new("x", DataType::Int64, true)), x),
        (Arc::new(Field::new("y", DataType::Utf8, true)), y),
    ]);
    let columns: [(&str, ArrayRef); 9] = [
        ("id", Arc::new((0..rows).collect::<Int64Array>())),
        ("few", Arc::new(words(6).collect::<StringArray>())),
        ("some", Arc::new(words(2_000).collect::<StringArray>())),
        ("many", Arc::new(words(30_000).collect::<StringArray>())),
        ("none", Arc::new(Int64Array::new_null(rows as usize))),
        ("list", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))),
        ("point", Arc::new(point)),
        ("flag", Arc::new((0..rows).map(|row| (row % 9 != 1).then_some(row % 2 == 0)).collect::<BooleanArray>())),
        ("long", Arc::new(long.collect::<StringArray>())),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(10_000)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_all_sorts_come_as_they_rest() {
    for residency in RESIDENCIES {
        all_sorts(residency).await;
    }
}

async fn all_sorts(residency: Residency) {
    let three = Three::start("sorts", |settings| Settings { residency, ..settings }).await;
    three.store.put("sorts.parquet", sorts()).await;
    let alone = Cache::with(Settings { residency, ..settings() }, TestStore::new()).await;
    alone.store.put("sorts.parquet", sorts()).await;
    let names = ["id", "few", "some", "many", "none", "list", "point", "flag", "long"];
    for (at, name) in names.into_iter().enumerate() {
        let url = "s3://lake/sorts.parquet";
        let ticket = format!("{{\"url\": \"{url}\", \"columns\": [\"{name}\"]}}");
        let expected = alone.do_get(ticket.clone()).await.unwrap();
        let expected = concat_batches(&expected[0].schema(), &expected).unwrap();
        let weight = alone.settled().await.resident_bytes;
        let before = three.sum(|stats| stats.chunks_pulled);
        // What every server has been asked for it keeps: the same, and as much, as one that reads the store.
        for server in &three.servers {
            let answer = get(server, ticket.clone()).await;
            assert_eq!(concat_batches(&answer[0].schema(), &answer).unwrap(), expected, "{name}");
        }
        let pulled = three.sum(|stats| stats.chunks_pulled) - before;
        assert_eq!(pulled, if name == "long" && residency == Residency::Arrow { 0 } else { 6 }, "{name}, {residency:?}");
        for server in &three.servers {
            let resident = server.engine().stats().resident_bytes;
            assert!(
                resident.abs_diff(weight) <= weight / 20 + 4_096 * (at as u64 + 1),
                "{name}, {residency:?}: {resident} bytes, alone {weight}"
            );
        }
    }
    alone.stop().await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_whose_chunks_rest_in_different_forms_answer_the_same() {
    let next = std::cell::Cell::new(0);
    let three =
        Three::start("forms", |settings| Settings { residency: RESIDENCIES[next.replace(next.get() + 1)], ..settings }).await;
    three.store.put("sorts.parquet", sorts()).await;
    let alone = Cache::start().await;
    alone.store.put("sorts.parquet", sorts()).await;
    let ticket = "{\"url\": \"s3://lake/sorts.parquet\"}".to_owned();
    let expected = alone.do_get(ticket.clone()).await.unwrap();
    let expected = concat_batches(&expected[0].schema(), &expected).unwrap();
    for _ in 0..2 {
        for server in &three.servers {
            let answer = get(server, ticket.clone()).await;
            assert_eq!(concat_batches(&answer[0].schema(), &answer).unwrap(), expected);
        }
        for rows in futures::future::join_all(three.servers.iter().map(whole)).await {
            assert!(rows.into_iter().eq(0..ROWS));
        }
    }
    // Bytes are of use to all; arrays only where chunks rest as such.
    let pulled = |residency: usize| three.servers[residency].engine().stats().chunks_pulled;
    assert!(pulled(0) > 0 && pulled(1) > 0 && pulled(2) > 0);
    let kinds = &three.servers[1].engine().metrics().peer_pulls;
    assert!(kinds.with_label_values(&["load", "unsupported"]).get() > 0, "nothing was asked of one that keeps arrays only");
    alone.stop().await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_owners_read_a_cold_chunk_once() {
    let three = Three::start("replicas", |settings| Settings { replicas: 2, ..settings }).await;
    let size = file(0, ROWS, 10_000, 4).len() as u64;
    let readers = futures::future::join_all((0..6).map(|at| client(&three.servers[at % 3]))).await;
    for rows in futures::future::join_all(readers.iter().map(scan)).await {
        assert!(rows.into_iter().eq(0..ROWS));
    }
    let read = three.sum(|stats| stats.store_bytes);
    assert!(read < size + FOOTER_BYTES, "{read} bytes read of {size}");
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evicting_reaches_all_nodes() {
    let three = Three::start("evict", |settings| settings).await;
    let reader = client(&three.servers[0]).await;
    scan(&reader).await;
    assert!(three.servers.iter().all(|server| server.engine().stats().resident_bytes > 0));
    let evicted = reader.evict("s3://lake/").await.unwrap();
    assert!(evicted.chunks >= 80 && evicted.footers >= 3, "{evicted:?}");
    assert_eq!(three.sum(|stats| stats.resident_chunks + stats.resident_footers), 0);
    let error = reader.evict("s3://elsewhere/").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_sees_overwritten_all_look_at_again() {
    // Each would believe what it knows for as long as the test runs.
    let long = |settings| Settings { freshness: Freshness::Ttl(Duration::from_mins(30)), ..settings };
    let three = Three::start("renewed", long).await;
    for server in &three.servers {
        assert_eq!(client(server).await.info(URL).await.unwrap()[0].rows, ROWS as u64);
    }
    three.store.put("t.parquet", file(7, ROWS, 10_000, 4)).await;
    // Its chunks are not there: reading them shows that the object is another one.
    assert!(whole(&three.servers[1]).await.into_iter().eq(7..ROWS + 7));
    for server in &three.servers {
        let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
        while !whole(server).await.into_iter().eq(7..ROWS + 7) {
            assert!(tokio::time::Instant::now() < deadline, "it is not told");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    three.stop().await;
}
