//! Servers, files and conditions.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightDescriptor, Ticket};
use bytes::Bytes;
use bytesize::ByteSize;
use flightcache::Client;
use flightcache::action::Stats;
use flightcache_server::admin::Metrics;
use flightcache_server::object::{Freshness, Sources};
use flightcache_server::{Server, Settings};
use futures::TryStreamExt as _;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use tonic::transport::Endpoint;

use crate::store::{TestStore, shared};

/// A server over a test store at `s3://lake/`, and a client of it.
pub(crate) struct Cache {
    pub(crate) store: Arc<TestStore>,
    pub(crate) server: Server,
    pub(crate) client: Client,
}

pub(crate) fn settings() -> Settings {
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let drain = Duration::from_secs(5);
    Settings {
        listen: any,
        admin: any,
        capacity: ByteSize::mib(64),
        drain,
        freshness: Freshness::Immutable,
        ..Settings::default()
    }
}

impl Cache {
    pub(crate) async fn start() -> Self {
        Self::with(settings(), TestStore::new()).await
    }

    pub(crate) async fn with(settings: Settings, store: TestStore) -> Self {
        let store = Arc::new(store);
        let sources = Sources::default().with_store("s3://lake/", shared(&store), settings.freshness).unwrap();
        let server = Server::start_with(&settings, sources, Arc::new(Metrics::new().unwrap())).await.unwrap();
        let client = Client::connect(&format!("grpc://{}", server.flight_addr())).await.unwrap();
        Self { store, server, client }
    }

    pub(crate) async fn stop(self) {
        drop(self.client);
        assert!(self.server.shutdown().await, "requests were still under way");
    }

    /// One `DoGet` of a ticket, as a plain client sends it: nothing is planned, nothing tried again.
    pub(crate) async fn do_get(&self, ticket: impl Into<Bytes>) -> Result<Vec<RecordBatch>, FlightError> {
        let channel = Endpoint::from_shared(format!("http://{}", self.server.flight_addr())).unwrap().connect_lazy();
        let frames = FlightServiceClient::new(channel).do_get(Ticket { ticket: ticket.into() }).await?.into_inner();
        FlightRecordBatchStream::new_from_flight_data(frames.map_err(Into::into)).try_collect().await
    }

    /// The tickets of a scan.
    pub(crate) async fn tickets(&self, json: &str) -> Vec<Bytes> {
        let channel = Endpoint::from_shared(format!("http://{}", self.server.flight_addr())).unwrap().connect_lazy();
        let info = FlightServiceClient::new(channel).get_flight_info(FlightDescriptor::new_cmd(json.to_owned())).await;
        info.unwrap().into_inner().endpoint.into_iter().map(|endpoint| endpoint.ticket.unwrap().ticket).collect()
    }

    /// The figures once nothing is in flight any more: the last frame of an answer is freed a moment after its reader has it.
    pub(crate) async fn settled(&self) -> Stats {
        let stats = || self.server.engine().stats();
        until("nothing is in flight", || stats().in_flight_bytes + stats().streaming_bytes == 0).await;
        stats()
    }

    /// All values of a column of the scan's answer.
    pub(crate) async fn values(&self, url: &str, column: &str) -> flightcache::Result<Vec<i64>> {
        let batches = self.client.scan(url).columns([column]).send().await?.collect().await?;
        Ok(values(&batches))
    }
}

pub(crate) fn values(batches: &[RecordBatch]) -> Vec<i64> {
    let column = |batch: &RecordBatch| batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec();
    batches.iter().flat_map(column).collect()
}

/// A Parquet file of `columns` columns `c0`…, `rows` rows in groups of `group_rows`; `c0` counts from `first`, the others hold
/// noise that does not compress.
pub(crate) fn file(first: i64, rows: i64, group_rows: usize, columns: usize) -> Bytes {
    let noise = |column: i64| {
        (0..rows).map(move |row| (row + 1).wrapping_mul(column.wrapping_mul(0x1E37_79B9_7F4A_7C15)).rotate_left(17))
    };
    let arrays = (0..columns).map(|column| {
        let values: Int64Array = if column == 0 { (first..first + rows).collect() } else { noise(column as i64).collect() };
        (format!("c{column}"), Arc::new(values) as ArrayRef)
    });
    let batch = RecordBatch::try_from_iter(arrays).unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(group_rows))
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes.into()
}

/// Waits until a condition holds; fails when it does not within a minute.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
