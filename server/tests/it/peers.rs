//! Chunks that servers of a cluster have of each other, and what they tell each other.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, ListArray, RecordBatch, StringArray, StructArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_service_client::FlightServiceClient;
use flightcache::{Client, ErrorKind, ScanRequest, action};
use flightcache_proto::{Part, Slot};
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

pub(crate) const URL: &str = "s3://lake/t.parquet";
pub(crate) const ROWS: i64 = 200_000;
/// What footers may take, each server its own.
const FOOTER_BYTES: u64 = 4 * (64 << 10);
pub(crate) const RESIDENCIES: [Residency; 3] = [Residency::Arrow, Residency::Parquet, Residency::Auto];

pub(crate) struct Three {
    pub(crate) store: Arc<TestStore>,
    pub(crate) servers: Vec<Server>,
}

impl Three {
    pub(crate) async fn start(name: &str, change: impl Fn(Settings) -> Settings) -> Self {
        let store = Arc::new(TestStore::new());
        store.put("t.parquet", file(0, ROWS, 10_000, 4)).await;
        // Time to hand over, though the machine is busy.
        let node = |seeds: &[&Server]| change(Settings { drain: Duration::from_secs(30), ..node(name, seeds) });
        let first = start(&node(&[]), &store).await;
        let second = start(&node(&[&first]), &store).await;
        let third = start(&node(&[&first]), &store).await;
        converged(&[&first, &second, &third]).await;
        Self { store, servers: vec![first, second, third] }
    }

    /// A fourth server of the same cluster.
    pub(crate) async fn join(&mut self, name: &str, change: impl Fn(Settings) -> Settings) {
        let fourth = start(&change(node(name, &[&self.servers[0]])), &self.store).await;
        self.servers.push(fourth);
        converged(&self.servers.iter().collect::<Vec<_>>()).await;
    }

    /// How many row groups of the object a server is the preferred owner of: by chance none of them, once in some hundred times.
    fn owned(&self, at: usize) -> u64 {
        let (map, id) = (self.servers[at].engine().slot_map(), self.servers[at].cluster().node_id());
        (0..20).filter(|&group| map.owner(Slot::of(URL, Part::RowGroup(group))).id == id).count() as u64
    }

    pub(crate) fn sum(&self, figure: impl Fn(&flightcache::action::Stats) -> u64) -> u64 {
        self.servers.iter().map(|server| figure(&server.engine().stats())).sum()
    }

    pub(crate) async fn stop(self) {
        for (at, server) in self.servers.into_iter().enumerate() {
            let (engine, began) = (Arc::clone(server.engine()), tokio::time::Instant::now());
            let ended = server.shutdown().await;
            assert!(
                ended,
                "server {at}: requests were under way after {:?}: {}",
                began.elapsed(),
                engine.metrics().render().unwrap()
            );
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
pub(crate) async fn whole(server: &Server) -> Vec<i64> {
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
    for (at, server) in three.servers.iter().enumerate() {
        assert!(three.owned(at) == 0 || server.engine().stats().served_bytes > 0);
    }
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
    three.store.take_reads();
    three.join("join", change).await;
    // The old map first, then the new one.
    for _ in 0..3 {
        assert!(scan(&reader).await.into_iter().eq(0..ROWS));
    }
    let fourth = three.servers[3].engine().stats();
    assert!(three.owned(3) == 0 || fourth.chunks_pulled > 0 && fourth.resident_footers == 1, "{fourth:?}");
    assert_eq!(three.store.take_reads(), [], "neither chunks nor footers are read of the store");
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_moves_twice_is_had_of_who_has_it() {
    for residency in RESIDENCIES {
        let change = |settings| Settings { residency, ..settings };
        let mut three = Three::start("twice", change).await;
        let reader = client(&three.servers[0]).await;
        assert!(scan(&reader).await.into_iter().eq(0..ROWS));
        three.store.take_reads();
        // Nobody asks the first three for anything: whom the slots come from last, has nothing of them.
        for _ in 0..3 {
            three.join("twice", change).await;
        }
        for _ in 0..2 {
            assert!(scan(&reader).await.into_iter().eq(0..ROWS));
        }
        assert_eq!(three.store.take_reads(), [], "{residency:?}");
        three.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_plans_by_footers_of_who_had_them() {
    let mut three = Three::start("plans", |settings| settings).await;
    for at in 0..12 {
        three.store.put(&format!("many/{at}.parquet"), file(at, 4_000, 1_000, 2)).await;
    }
    let url = "s3://lake/many/";
    let reader = client(&three.servers[0]).await;
    let expected = values(&reader.scan(url).send().await.unwrap().collect().await.unwrap());
    assert_eq!(expected.len(), 48_000);
    three.store.take_reads();
    three.join("plans", |settings| settings).await;
    // All of it from the new one, whoever owns it.
    assert_eq!(values(&get(&three.servers[3], format!("{{\"url\": \"{url}\"}}")).await), expected);
    assert_eq!(three.store.take_reads(), []);
    assert_eq!(three.servers[3].engine().stats().resident_footers, 12);
    assert_eq!(three.servers[3].engine().metrics().peer_pulls.with_label_values(&["footer", "ok"]).get(), 12);
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

#[tokio::test(flavor = "multi_thread")]
async fn who_is_handed_chunks_has_the_footer_of_who_hands_them() {
    let store = Arc::new(TestStore::new());
    store.put("t.parquet", file(0, ROWS, 10_000, 4)).await;
    let settings = |seeds: &[&Server]| Settings { drain: Duration::from_secs(30), ..node("handed", seeds) };
    let first = start(&settings(&[]), &store).await;
    converged(&[&first]).await;
    let reader = client(&first).await;
    assert!(scan(&reader).await.into_iter().eq(0..ROWS));
    store.take_reads();
    // It knows nothing of the object, and is not asked for it.
    let second = start(&settings(&[&first]), &store).await;
    let map = converged(&[&first, &second]).await;
    let of_first = (0..20).filter(|&group| map.owner(Slot::of(URL, Part::RowGroup(group))).id == first.cluster().node_id());
    let chunks = 4 * of_first.count() as u64;
    reader.drain(first.cluster().node_id()).await.unwrap();
    until("all is handed over", || second.engine().stats().resident_chunks == chunks).await;
    assert!(scan(&client(&second).await).await.into_iter().eq(0..ROWS));
    assert_eq!(store.take_reads(), []);
    drop(reader);
    for server in [first, second] {
        assert!(server.shutdown().await);
    }
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
    for (at, server) in three.servers.iter().enumerate() {
        assert!(three.owned(at) == 0 || server.engine().stats().resident_bytes > 0);
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_names_who_was_not_reached_and_is_done_elsewhere() {
    let store = Arc::new(TestStore::new());
    store.put("t.parquet", file(0, ROWS, 10_000, 4)).await;
    let first = start(&node("evict-some", &[]), &store).await;
    let second = start(&node("evict-some", &[&first]), &store).await;
    // Where it says it is, somebody hangs up.
    let rude = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("grpc+tcp://{}", rude.local_addr().unwrap());
    let hangs_up = tokio::spawn(async move {
        loop {
            drop(rude.accept().await);
        }
    });
    let astray = Settings { advertise: Some(uri), ..node("evict-some", &[&first]) };
    let third = start(&astray, &store).await;
    converged(&[&first, &second, &third]).await;
    for server in [&first, &second] {
        // What is the third's to load, it does not give: the store does.
        assert!(whole(server).await.into_iter().eq(0..ROWS));
        assert_eq!(server.engine().stats().resident_chunks, 80);
    }
    let error = client(&first).await.evict("s3://lake/").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message.contains(third.cluster().node_id()), "{error}");
    assert!(!error.message.contains(second.cluster().node_id()), "{error}");
    for server in [&first, &second] {
        let stats = server.engine().stats();
        assert_eq!((stats.resident_chunks, stats.resident_footers), (0, 0));
    }
    for server in [third, second, first] {
        assert!(server.shutdown().await);
    }
    hangs_up.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_hands_over_what_it_has() {
    for residency in RESIDENCIES {
        let mut three = Three::start("stop", |settings| Settings { residency, ..settings }).await;
        assert!(scan(&client(&three.servers[0]).await).await.into_iter().eq(0..ROWS));
        let before = three.sum(|stats| stats.store_bytes);
        let stopped = three.servers.pop().unwrap();
        let read = stopped.engine().stats().store_bytes;
        assert!(stopped.shutdown().await);
        assert_eq!(three.sum(|stats| stats.resident_chunks), 80, "{residency:?}");
        assert!(scan(&client(&three.servers[0]).await).await.into_iter().eq(0..ROWS));
        let read = three.sum(|stats| stats.store_bytes) + read - before;
        assert!(read < FOOTER_BYTES, "{residency:?}: {read} bytes read of the store");
        three.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handing_over_ends_by_its_deadline() {
    let store = Arc::new(TestStore::new());
    store.put("t.parquet", file(0, ROWS, 10_000, 4)).await;
    let drain = Duration::from_secs(4);
    let first = start(&Settings { drain, ..node("deadline", &[]) }, &store).await;
    // It takes connections, and never says anything.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("grpc+tcp://{}", mute.local_addr().unwrap());
    converged(&[&first]).await;
    assert!(whole(&first).await.into_iter().eq(0..ROWS));
    let second = start(&Settings { advertise: Some(uri), ..node("deadline", &[&first]) }, &store).await;
    converged(&[&first, &second]).await;
    let began = tokio::time::Instant::now();
    assert!(first.shutdown().await, "there is time left for requests under way, and there are none");
    let took = began.elapsed();
    assert!((drain / 2..2 * drain).contains(&took), "{took:?}");
    assert!(second.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn warming_counts_what_the_owners_do() {
    let three = Three::start("warm", |settings| settings).await;
    let size = file(0, ROWS, 10_000, 4).len() as u64;
    let reader = client(&three.servers[0]).await;
    let warm = async || {
        let done: Vec<_> = reader.warm(&ScanRequest::new(URL)).await.unwrap().try_collect().await.unwrap();
        *done.last().unwrap()
    };
    let first = warm().await;
    assert_eq!((first.row_groups_done, first.chunks_hit, first.chunks_missed), (20, 0, 80));
    assert!((size - FOOTER_BYTES..size + FOOTER_BYTES).contains(&first.store_bytes), "{first:?}");
    let again = warm().await;
    assert_eq!((again.row_groups_done, again.chunks_hit, again.chunks_missed, again.store_bytes), (20, 80, 0, 0));
    assert_eq!(three.sum(|stats| stats.resident_chunks), 80, "each chunk is where it belongs");
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_validated_by_who_asks_for_it_and_not_by_who_is_asked() {
    let three = Three::start("always", |settings| Settings { freshness: Freshness::Always, ..settings }).await;
    let asked = || async { whole(&three.servers[0]).await };
    assert!(asked().await.into_iter().eq(0..ROWS));
    // A footer at each server, and each row group once.
    let cold = three.store.take_reads().len();
    assert!(cold <= 3 + 20, "{cold} reads");
    // One look at the object for each request, though most of its chunks are pulled once they are forgotten here.
    assert!(asked().await.into_iter().eq(0..ROWS));
    assert_eq!(three.store.take_reads().len(), 1);
    let passed_on = action::UrlRequest { passed_on: true, ..action::UrlRequest::new(URL) };
    let peer = flightcache::peer::Peer::at(&format!("grpc+tcp://{}", three.servers[0].flight_addr())).unwrap();
    peer.act(action::EVICT, serde_json::to_vec(&passed_on).unwrap()).await.unwrap();
    assert!(asked().await.into_iter().eq(0..ROWS));
    let own = three.servers[0].engine().stats().chunks_missed;
    assert!(own > 0);
    let reads = three.store.take_reads().len();
    let pulled_groups = three.servers[0].engine().metrics().peer_pulls.with_label_values(&["load", "ok"]).get() / 2;
    assert!(pulled_groups > 0 && reads <= 1 + 20 - pulled_groups as usize, "{reads} reads, {pulled_groups} row groups pulled");
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_servers_ask_of_each_other_is_no_heat() {
    for residency in RESIDENCIES {
        let three = Three::start("heat", |settings| Settings { residency, ..settings }).await;
        let touched = |server: &Server| {
            server.engine().publish_gauges();
            let map = server.engine().metrics().render().unwrap();
            let lines = map.lines().filter(|line| line.starts_with("flightcache_slot_touched_bytes_total"));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
        };
        assert!(whole(&three.servers[0]).await.into_iter().eq(0..ROWS));
        assert!(three.servers[0].engine().stats().chunks_pulled > 0);
        assert!(touched(&three.servers[0]) >= 4.0 * 8.0 * ROWS as f64);
        for (at, other) in three.servers.iter().enumerate().skip(1) {
            assert!(three.owned(at) == 0 || other.engine().stats().chunks_missed > 0, "it loaded for the first");
            assert!(touched(other).abs() < f64::EPSILON, "{residency:?}: {}", touched(other));
        }
        three.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_ends_when_its_node_is_lost() {
    let store = Arc::new(TestStore::new());
    store.put("t.parquet", file(0, ROWS, 10_000, 4)).await;
    let first = start(&node("lost", &[]), &store).await;
    // Where it says it is, somebody listens and says nothing.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("grpc+tcp://{}", mute.local_addr().unwrap());
    let second = start(&Settings { advertise: Some(uri), ..node("lost", &[&first]) }, &store).await;
    converged(&[&first, &second]).await;
    let engine = Arc::clone(first.engine());
    let lost = async {
        // Its own row groups are there; what it waits for is all that is left.
        until("it waits for the other", || engine.stats().in_flight_bytes > 0 && engine.stats().resident_chunks > 0).await;
        assert!(second.shutdown().await);
    };
    let began = tokio::time::Instant::now();
    let (rows, ()) = tokio::join!(whole(&first), lost);
    assert!(rows.into_iter().eq(0..ROWS));
    // A load may take half a minute to begin.
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert!(engine.metrics().peer_pulls.with_label_values(&["load", "unavailable"]).get() > 0);
    drop(engine);
    assert!(first.shutdown().await);
}
