//! Servers of a cluster that fail each other: whatever a peer does, the answer is right, and what was reserved for it is free again.
//!
//! The peer is a server of its own, over a store of its own, which the one under test takes for the owner of all slots.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo,
    PutResult, SchemaResult,
};
use bytes::Bytes;
use bytesize::ByteSize;
use flightcache::{Client, ScanRequest};
use flightcache_proto::error::ERROR_KIND_METADATA;
use flightcache_proto::{Node, Populate, SlotMap, Ticket};
use flightcache_server::admin::{Metrics, ScanMeter};
use flightcache_server::object::{Freshness, Sources};
use flightcache_server::scan::{Engine, ScanPlan};
use flightcache_server::settings::Residency;
use flightcache_server::{Server, Settings};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::GetRange;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::node;
use crate::store::{TestStore, shared};
use crate::support::{file, settings, until, values};

const URL: &str = "s3://lake/t.parquet";
const ROWS: i64 = 40_000;

fn sources(store: &Arc<TestStore>, settings: &Settings) -> Sources {
    Sources::default().with_store("s3://lake/", shared(store), settings.freshness).unwrap()
}

/// An engine under test, to which all slots belong to another node.
struct Asking {
    engine: Arc<Engine>,
    store: Arc<TestStore>,
}

impl Asking {
    async fn new(settings: &Settings, owner_uri: String) -> Self {
        Self::of(settings, owner_uri, file(0, ROWS, 10_000, 4)).await
    }

    async fn of(settings: &Settings, owner_uri: String, object: bytes::Bytes) -> Self {
        let store = Arc::new(TestStore::new());
        store.put("t.parquet", object).await;
        Self::over(settings, owner_uri, store)
    }

    fn over(settings: &Settings, owner_uri: String, store: Arc<TestStore>) -> Self {
        let node = |id: &str, uri| Node { id: id.to_owned(), uri, ..Node::default() };
        let nodes = vec![node("asking", None), node("owner", Some(owner_uri))];
        let map = SlotMap::from_owners(1, nodes, |_| vec![1]).unwrap();
        let engine = Engine::new(settings, sources(&store, settings), Arc::new(Metrics::new().unwrap()), map);
        Self { engine, store }
    }

    async fn scan(&self) -> flightcache::Result<Vec<RecordBatch>> {
        self.execute(self.plan(ScanRequest::new(URL)).await?).await
    }

    async fn plan(&self, request: ScanRequest) -> flightcache::Result<Arc<ScanPlan>> {
        self.engine.plan(&Ticket::Scan(request), &Arc::default()).await
    }

    async fn execute(&self, plan: Arc<ScanPlan>) -> flightcache::Result<Vec<RecordBatch>> {
        self.engine.execute(plan, Arc::default()).map_ok(|batch| batch.rows).try_collect().await
    }

    /// All rows, right; whatever was asked of the owner ended in `status`, and all came from the store.
    async fn scan_of_store(&self, status: &str) {
        let rows = values(&self.scan().await.unwrap());
        assert!(rows.into_iter().eq(0..ROWS), "{status}");
        let pulls = self.engine.metrics().peer_pulls.with_label_values(&["load", status]).get();
        assert_eq!(pulls, 4, "{status}: {}", self.engine.metrics().render().unwrap());
        let stats = self.engine.stats();
        assert_eq!((stats.chunks_pulled, stats.resident_chunks), (0, 16), "{status}");
        self.settled().await;
    }

    async fn settled(&self) {
        let held = || {
            let stats = self.engine.stats();
            stats.in_flight_bytes + stats.streaming_bytes
        };
        until("nothing is reserved any more", || held() == 0).await;
    }
}

/// A server that others take for the owner.
struct Owner {
    server: Server,
    store: Arc<TestStore>,
}

impl Owner {
    async fn start(residency: Residency, object: bytes::Bytes) -> Self {
        Self::of(Settings { residency, ..settings() }, object).await
    }

    async fn of(settings: Settings, object: bytes::Bytes) -> Self {
        let store = Arc::new(TestStore::new());
        store.put("t.parquet", object).await;
        Self::over(&settings, store).await
    }

    async fn over(settings: &Settings, store: Arc<TestStore>) -> Self {
        let server = Server::start_with(settings, sources(&store, settings), Arc::new(Metrics::new().unwrap())).await.unwrap();
        Self { server, store }
    }

    /// From here on it knows the footer, and gets no more of its store until `release`.
    async fn hold(&self) {
        self.server.engine().info(URL).await.unwrap();
        self.store.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn release(&self) {
        self.store.gate.add_permits(1_000);
    }

    fn uri(&self) -> String {
        format!("grpc+tcp://{}", self.server.flight_addr())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_is_asked_before_the_store() {
    for residency in [Residency::Arrow, Residency::Parquet, Residency::Auto] {
        let owner = Owner::start(residency, file(0, ROWS, 10_000, 4)).await;
        let asking = Asking::new(&Settings { residency, ..settings() }, owner.uri()).await;
        assert!(values(&asking.scan().await.unwrap()).into_iter().eq(0..ROWS));
        let stats = asking.engine.stats();
        assert_eq!(stats.chunks_pulled, 16);
        // The data, and a little more: figures, a copy of the schema.
        let data = 4 * 8 * ROWS as u64;
        assert!((data..data + data / 10).contains(&stats.pulled_bytes), "{residency:?}: {} bytes of {data}", stats.pulled_bytes);
        assert_eq!(asking.store.take_reads().len(), 1, "the footer");
        asking.settled().await;
        assert!(owner.server.shutdown().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_rows_than_were_asked_for_are_refused() {
    // Its objects have the same URL and version.
    let others = [
        ("more rows in a row group", file(0, 2 * ROWS, 20_000, 4)),
        ("very many rows in a row group", file(0, 40 * ROWS, 400_000, 4)),
        ("fewer rows in a row group", file(0, ROWS, 5_000, 4)),
    ];
    for residency in [Residency::Arrow, Residency::Parquet] {
        for (what, object) in &others {
            let owner = Owner::start(residency, object.clone()).await;
            let asking = Asking::new(&Settings { residency, ..settings() }, owner.uri()).await;
            asking.scan_of_store("internal").await;
            // It is not read on: at most a window of it came.
            let came = asking.engine.stats().pulled_bytes;
            assert!(came < 4 * (4 << 20), "{what}, {residency:?}: {came} bytes came");
            assert!(owner.server.shutdown().await);
        }
        let owner = Owner::start(residency, file(0, ROWS, 10_000, 3)).await;
        let asking = Asking::new(&Settings { residency, ..settings() }, owner.uri()).await;
        asking.scan_of_store("not_found").await;
        assert!(owner.server.shutdown().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_is_read_from_the_store() {
    // As much as loading a row group from the store takes, and not as much again.
    let small = Settings { capacity: ByteSize::kib(800), reserve: Some(ByteSize(0)), ..settings() };
    let owner = Owner::start(Residency::Arrow, file(0, ROWS, 10_000, 4)).await;
    let asking = Asking::new(&small, owner.uri()).await;
    assert!(values(&asking.scan().await.unwrap()).into_iter().eq(0..ROWS));
    assert!(asking.engine.metrics().peer_pulls.with_label_values(&["load", "resource_exhausted"]).get() > 0);
    asking.settled().await;
    assert!(owner.server.shutdown().await);
}

/// The same rows as those of [`file`], compressed.
fn compressed() -> bytes::Bytes {
    let batches = ParquetRecordBatchReaderBuilder::try_new(file(0, ROWS, 10_000, 4)).unwrap().build().unwrap();
    let batches: Vec<RecordBatch> = batches.map(Result::unwrap).collect();
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(10_000)).set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batches[0].schema(), Some(properties)).unwrap();
    for batch in &batches {
        writer.write(batch).unwrap();
    }
    writer.into_inner().unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_footer_that_does_not_fit_the_object_is_read_anew() {
    // Its object has the same URL and version, and it has nothing to give but the footer.
    let owner = Owner::of(node("footer", &[]), compressed()).await;
    owner.server.engine().info(URL).await.unwrap();
    let asking = Asking::new(&Settings { residency: Residency::Parquet, ..settings() }, owner.uri()).await;
    assert!(values(&asking.scan().await.unwrap()).into_iter().eq(0..ROWS));
    let asks = |status| asking.engine.metrics().peer_pulls.with_label_values(&["footer", status]).get();
    assert_eq!(asks("ok"), 1);
    let suffixes = asking.store.take_reads().into_iter().filter(|read| matches!(read, Some(GetRange::Suffix(_)))).count();
    assert_eq!(suffixes, 1, "the store's own is right");
    // It is not asked for again.
    assert!(values(&asking.scan().await.unwrap()).into_iter().eq(0..ROWS));
    assert_eq!((asks("ok"), asking.store.take_reads().len()), (1, 0));
    asking.settled().await;
    assert!(owner.server.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_by_a_wrong_footer_is_nothing_to_the_right_one() {
    for residency in [Residency::Arrow, Residency::Parquet, Residency::Auto] {
        let owner = Owner::of(node("footer", &[]), compressed()).await;
        owner.server.engine().info(URL).await.unwrap();
        let asking = Asking::new(&Settings { residency, ..settings() }, owner.uri()).await;
        // It was planned before that turned out, and reads after it.
        let late = asking.plan(ScanRequest::new(URL)).await.unwrap();
        let passing = asking.plan(ScanRequest { populate: Populate::Never, ..ScanRequest::new(URL) }).await.unwrap();
        for plan in [passing, late] {
            assert!(values(&asking.execute(plan).await.unwrap()).into_iter().eq(0..ROWS), "{residency:?}");
        }
        assert!(values(&asking.scan().await.unwrap()).into_iter().eq(0..ROWS), "{residency:?}");
        asking.settled().await;
        assert!(owner.server.shutdown().await);
    }
}

/// Listens, and says nothing.
async fn mute() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("grpc+tcp://{}", listener.local_addr().unwrap());
    (listener, uri)
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_says_nothing_is_given_up() {
    let (_listener, uri) = mute().await;
    let asking = Asking::new(&settings(), uri).await;
    let asked_at = Instant::now();
    asking.scan_of_store("unavailable").await;
    let waited = asked_at.elapsed();
    assert!(waited <= Duration::from_secs(35), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_hangs_is_given_up() {
    for residency in [Residency::Arrow, Residency::Parquet] {
        let owner = Owner::start(residency, file(0, ROWS, 10_000, 4)).await;
        owner.hold().await;
        let asking = Asking::new(&Settings { residency, ..settings() }, owner.uri()).await;
        let asked_at = Instant::now();
        asking.scan_of_store("unavailable").await;
        let waited = asked_at.elapsed();
        assert!((Duration::from_secs(25)..=Duration::from_secs(35)).contains(&waited), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_would_wait_too_long_for_the_rate_is_read_from_the_store() {
    for residency in [Residency::Arrow, Residency::Parquet] {
        let object = file(0, 8 * 200_000, 200_000, 4);
        let owner = Owner::start(residency, object.clone()).await;
        let slow = Settings { residency, peer_bandwidth: Some(ByteSize::mib(8)), ..settings() };
        let asking = Asking::of(&slow, owner.uri(), object).await;
        // Row groups of 6.1 MiB and a rate of 8 MiB a second: the first come in the burst, some wait, the rest are refused.
        let asked_at = Instant::now();
        assert!(values(&asking.scan().await.unwrap()).into_iter().eq(0..8 * 200_000));
        let waited = asked_at.elapsed();
        let metrics = asking.engine.metrics();
        let (refused, ok) = (metrics.peer_refusals.get(), metrics.peer_pulls.with_label_values(&["load", "ok"]).get());
        assert!(refused > 0 && ok > 2 && refused + ok == 8, "{refused} refused, {ok} came");
        assert!(metrics.peer_wait_seconds.get_sample_sum() > 0.0);
        assert!(waited <= Duration::from_secs(4), "{waited:?}");
        assert!(asking.engine.stats().pulled_bytes as f64 <= 9.0 * 2.0_f64.powi(20) * (waited.as_secs_f64() + 2.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_ends_with_the_scan_it_is_for() {
    for residency in [Residency::Arrow, Residency::Parquet] {
        let owner = Owner::start(residency, file(0, ROWS, 10_000, 4)).await;
        let asking = Asking::new(&Settings { residency, ..settings() }, owner.uri()).await;
        owner.hold().await;
        let scan = tokio::spawn({
            let engine = Arc::clone(&asking.engine);
            async move {
                let meter = Arc::new(ScanMeter::default());
                let plan = engine.plan(&Ticket::Scan(ScanRequest::new(URL)), &meter).await.unwrap();
                engine.execute(plan, meter).try_for_each(|_| std::future::ready(Ok(()))).await
            }
        });
        let under_way = || owner.server.engine().stats().in_flight_bytes;
        until("the owner loads", || under_way() > 0).await;
        assert!(asking.engine.stats().in_flight_bytes > 0);
        scan.abort();
        asking.settled().await;
        until("the owner has given it up", || under_way() == 0).await;
        assert_eq!(asking.engine.metrics().peer_chunks.get() + asking.engine.stats().resident_chunks, 0);
        // The ways to it are free again.
        owner.release();
        assert!(values(&asking.scan().await.unwrap()).into_iter().eq(0..ROWS));
        assert_eq!(asking.engine.stats().chunks_pulled, 16);
        assert!(owner.server.shutdown().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_overwritten_is_stale_no_longer_than_its_bound_whoever_knows_it_not() {
    // Two servers that never hear of each other: one takes the other for the owner of all slots, which takes itself for alone. So
    // neither is told what the other sees, and what the other knows is asked for all the same.
    const TTL: Duration = Duration::from_millis(1_500);
    for residency in [Residency::Arrow, Residency::Parquet] {
        let settings = Settings { residency, freshness: Freshness::Ttl(TTL), ..settings() };
        let store = Arc::new(TestStore::new());
        store.put("t.parquet", file(0, ROWS, 10_000, 4)).await;
        let of_owner = Settings { residency, freshness: settings.freshness, ..node("split", &[]) };
        let owner = Owner::over(&of_owner, Arc::clone(&store)).await;
        let asking = || Asking::over(&settings, owner.uri(), Arc::clone(&store));
        let alone = Client::connect(&owner.uri().replace("grpc+tcp", "grpc")).await.unwrap();
        let (newer, began) = (file(7, ROWS, 10_000, 4), Instant::now());
        let of_owner = async || values(&alone.scan(URL).send().await.unwrap().collect().await.unwrap());
        assert!(of_owner().await.into_iter().eq(0..ROWS));
        let known = asking();
        let (mut told, mut stale, mut fresh, mut is_soon) = (0, 0, 0, false);
        assert!(values(&known.scan().await.unwrap()).into_iter().eq(0..ROWS));
        store.put("t.parquet", newer).await;
        let overwritten_at = Instant::now();
        // One that knows it, and one after the other that know nothing.
        while fresh < 9 {
            let new = asking();
            for side in [&known, &new] {
                let asked_after = overwritten_at.elapsed();
                let rows = values(&side.scan().await.unwrap());
                let is_new = rows[0] == 7;
                // Otherwise the bound is over already, on a machine that is busy.
                is_soon |= began.elapsed() < TTL / 2;
                assert!(rows.into_iter().eq(if is_new { 7..ROWS + 7 } else { 0..ROWS }), "rows of two versions");
                assert!(is_new || asked_after < TTL, "{asked_after:?} after it was overwritten");
                (stale, fresh) = (stale + usize::from(!is_new), fresh + usize::from(asked_after >= TTL));
            }
            let asked_after = overwritten_at.elapsed();
            assert!(of_owner().await[0] == 7 || asked_after < TTL, "{asked_after:?}");
            told += new.engine.metrics().peer_pulls.with_label_values(&["footer", "ok"]).get();
        }
        assert!(told > 0 && (stale > 0 || !is_soon), "{told} footers were told, {stale} answers were of what was there before");
        drop(alone);
        assert!(owner.server.shutdown().await);
    }
}

/// Stands between servers, and sends those that ask for chunks away so many times each.
struct Between {
    owner: Channel,
    times: usize,
    sent_away: Mutex<HashMap<Bytes, usize>>,
}

#[tonic::async_trait]
impl FlightService for Between {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;

    async fn do_get(&self, request: Request<arrow_flight::Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let is_sent_away = {
            let mut sent_away = self.sent_away.lock().unwrap();
            let times = sent_away.entry(request.get_ref().ticket.clone()).or_default();
            *times += 1;
            *times <= self.times
        };
        if is_sent_away {
            let mut status = Status::failed_precondition("not here");
            status.metadata_mut().insert(ERROR_KIND_METADATA, "moved".parse().unwrap());
            return Err(status);
        }
        let answer = FlightServiceClient::new(self.owner.clone()).do_get(request).await?;
        Ok(Response::new(answer.into_inner().boxed()))
    }

    async fn do_action(&self, _: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        Err(Status::unimplemented("no footers"))
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        Err(Status::unimplemented("no plans"))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented("no flights"))
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented("no schemas"))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Err(Status::unimplemented("no actions"))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented("no plans"))
    }

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented("no handshakes"))
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        Err(Status::unimplemented("no puts"))
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented("no exchanges"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_that_a_slot_is_not_its_own_is_asked_again_once_maps_agree() {
    for (times, at_peers) in [(1, true), (2, false)] {
        let owner = Owner::start(Residency::Parquet, file(0, ROWS, 10_000, 4)).await;
        let channel = Endpoint::from_shared(format!("http://{}", owner.server.flight_addr())).unwrap().connect_lazy();
        let between = FlightServiceServer::new(Between { owner: channel, times, sent_away: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("grpc+tcp://{}", listener.local_addr().unwrap());
        let serve = tonic::transport::Server::builder().serve_with_incoming(between, TcpIncoming::from(listener));
        let serving = tokio::spawn(serve);
        let asking = Asking::new(&Settings { residency: Residency::Parquet, ..settings() }, uri).await;
        assert!(values(&asking.scan().await.unwrap()).into_iter().eq(0..ROWS));
        let asks = |status| asking.engine.metrics().peer_pulls.with_label_values(&["load", status]).get();
        let expected = if at_peers { (4, 4, 1) } else { (8, 0, 5) };
        assert_eq!((asks("moved"), asks("ok"), asking.store.take_reads().len()), expected);
        serving.abort();
        assert!(owner.server.shutdown().await);
    }
}
