//! Scans: planned once, their shares read from their owners concurrently, delivered in order.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use flightcache_proto::{Error, ErrorKind, Part, Populate, Result, ScanRequest, ScanStats, Slot};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::client::Client;
use crate::direct;
use crate::link::Transfer;
use crate::receive::{self, Payload};
use crate::retry::{MAX_ATTEMPTS, back_off, from_status, retrying};
use crate::routes::flight;

/// Shares read at a time.
const SHARES_AT_A_TIME: usize = 4;
/// Batches of one share that wait for the reader.
const BATCHES_BUFFERED: usize = 4;

/// A scan to be sent.
#[derive(Clone, Debug)]
#[must_use = "a scan does nothing until it is sent"]
pub struct ScanBuilder {
    client: Client,
    request: ScanRequest,
    transfer: Transfer,
    is_direct: bool,
}

/// The batches of a scan or a SQL statement, in order. Dropping it stops the work on both sides.
pub struct ScanStream {
    pub(crate) schema: SchemaRef,
    pub(crate) stats: Arc<Mutex<Vec<ScanStats>>>,
    pub(crate) batches: BoxStream<'static, Result<RecordBatch>>,
}

/// App metadata of an endpoint.
#[derive(Clone, Copy, Deserialize)]
struct Route {
    slot: Slot,
    epoch: u64,
}

struct Share {
    ticket: Ticket,
    route: Option<Route>,
    index: usize,
}

impl ScanBuilder {
    pub(crate) fn new(client: Client, request: ScanRequest) -> Self {
        Self { client, request, transfer: Transfer::Auto, is_direct: false }
    }

    /// Returns only these columns, in this order.
    pub fn columns(mut self, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.request.columns = Some(columns.into_iter().map(Into::into).collect());
        self
    }

    /// Returns only rows for which this SQL boolean expression is true.
    pub fn filter(mut self, sql: impl Into<String>) -> Self {
        self.request.filter = Some(sql.into());
        self
    }

    /// Returns at most this many rows.
    pub fn limit(mut self, rows: u64) -> Self {
        self.request.limit = Some(rows);
        self
    }

    /// Returns the rows with these numbers, in this order.
    pub fn rows(mut self, rows: impl IntoIterator<Item = u64>) -> Self {
        self.request.rows = Some(rows.into_iter().collect());
        self
    }

    /// Says whether what is read may stay in the cache.
    pub fn populate(mut self, populate: Populate) -> Self {
        self.request.populate = populate;
        self
    }

    /// Says how the rows travel.
    pub fn transfer(mut self, transfer: Transfer) -> Self {
        self.transfer = transfer;
        self
    }

    /// Plans and reads in one request where one server owns everything; elsewhere in two, as it is done otherwise.
    ///
    /// Saves a round trip, which is most of a small answer's time. A large one is better read in shares, several at a time.
    pub fn in_one_request(mut self) -> Self {
        self.is_direct = true;
        self
    }

    /// What will be asked.
    pub fn request(&self) -> &ScanRequest {
        &self.request
    }

    /// Plans the scan and starts reading.
    pub async fn send(self) -> Result<ScanStream> {
        let Self { client, request, transfer, is_direct } = self;
        let stats: Arc<Mutex<Vec<ScanStats>>> = Arc::default();
        if is_direct && let Some(opened) = retrying(|| direct::open(&client, &request, transfer)).await? {
            let schema = Arc::clone(&opened.schema);
            let batches = direct::read(client, request, transfer, opened, Arc::clone(&stats)).boxed();
            return Ok(ScanStream { schema, stats, batches });
        }
        let info = retrying(|| plan(&client, &request)).await?;
        let schema = Arc::new(schema_of(&info)?);
        let batches = read(client, request, transfer, info, Arc::clone(&schema), Arc::clone(&stats)).boxed();
        Ok(ScanStream { schema, stats, batches })
    }
}

impl ScanStream {
    /// The schema of the batches.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// What serving the scan took so far, all shares together.
    pub fn stats(&self) -> ScanStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().sum()
    }

    /// All batches.
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>> {
        let mut batches = Vec::new();
        while let Some(batch) = self.try_next().await? {
            batches.push(batch);
        }
        Ok(batches)
    }
}

impl Stream for ScanStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(cx)
    }
}

pub(crate) async fn plan(client: &Client, request: &ScanRequest) -> Result<FlightInfo> {
    let slot = Slot::of(&request.url, Part::Footer);
    let mut flight = flight(client.routes.owner(slot).await?.channel());
    let info = flight.get_flight_info(FlightDescriptor::new_cmd(request.to_protobuf())).await;
    info.map(tonic::Response::into_inner).map_err(|e| from_status(&e)).inspect_err(|e| client.routes.learn_from(e))
}

/// The error of a scan whose object has another schema now.
pub(crate) fn overwritten(request: &ScanRequest) -> Error {
    Error::new(ErrorKind::Changed, format!("{}: overwritten with another schema", request.url))
}

pub(crate) fn schema_of(info: &FlightInfo) -> Result<Schema> {
    // The converter trusts its input to have fields, and of types it knows.
    let schema = std::panic::catch_unwind(|| Schema::try_from(info.clone()).map_err(|e| e.to_string()));
    let schema = schema.unwrap_or_else(|_| Err("it has unknown types, or no fields".to_owned()));
    schema.map_err(|e| Error::internal(format!("the server's schema cannot be read: {e}")))
}

fn shares(client: &Client, info: &FlightInfo) -> Result<Vec<Share>> {
    let share = |(index, endpoint): (usize, &FlightEndpoint)| {
        let ticket = endpoint.ticket.clone().ok_or_else(|| Error::internal(format!("endpoint {index} has no ticket")))?;
        let route: Option<Route> = match &*endpoint.app_metadata {
            [] => None,
            metadata => Some(
                serde_json::from_slice(metadata)
                    .map_err(|e| Error::internal(format!("the route of endpoint {index} cannot be read: {e}")))?,
            ),
        };
        if let Some(route) = route {
            client.routes.expect_epoch(route.epoch);
        }
        Ok(Share { ticket, route, index })
    };
    info.endpoint.iter().enumerate().map(share).collect()
}

/// Reads all shares in order. When an object turns out overwritten before anything was delivered, plans anew.
pub(crate) fn read(
    client: Client,
    request: ScanRequest,
    transfer: Transfer,
    info: FlightInfo,
    schema: SchemaRef,
    stats: Arc<Mutex<Vec<ScanStats>>>,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    async_stream::try_stream! {
        let mut info = info;
        let mut attempt = 1;
        'plan: loop {
            let shares = shares(&client, &info)?;
            *stats.lock().unwrap_or_else(PoisonError::into_inner) = vec![ScanStats::default(); shares.len()];
            let mut running = futures::stream::iter(shares)
                .map(|share| {
                    let (sender, receiver) = mpsc::channel(BATCHES_BUFFERED);
                    let task = read_share(client.clone(), share, transfer, Arc::clone(&schema), sender, Arc::clone(&stats));
                    let task = tokio::spawn(task);
                    std::future::ready((receiver, AbortOnDropHandle::new(task)))
                })
                .buffered(1);
            let mut ahead = std::collections::VecDeque::new();
            let mut has_delivered = false;
            loop {
                while ahead.len() < SHARES_AT_A_TIME {
                    match running.next().await {
                        Some(share) => ahead.push_back(share),
                        None => break,
                    }
                }
                let Some((mut batches, task)) = ahead.pop_front() else { break 'plan };
                while let Some(batch) = batches.recv().await {
                    match batch {
                        Err(error) if error.kind == ErrorKind::Changed && !has_delivered && attempt < MAX_ATTEMPTS => {
                            // Ends what was read ahead of the old plan, and with it the figures it tells.
                            ahead.clear();
                            attempt += 1;
                            back_off(attempt).await;
                            info = retrying(|| plan(&client, &request)).await?;
                            let now = schema_of(&info)?;
                            if now.fields() != schema.fields() {
                                Err(overwritten(&request))?;
                            }
                            continue 'plan;
                        }
                        batch => {
                            has_delivered = true;
                            yield batch?;
                        }
                    }
                }
                // The channel closes when the task ends; that must have been an orderly end.
                task.await.map_err(|e| Error::internal(format!("reading a share gave up: {e}")))?;
            }
        }
    }
}

/// Reads one share into a channel; again from its start while nothing of it was delivered and the error allows.
async fn read_share(
    client: Client,
    share: Share,
    transfer: Transfer,
    schema: SchemaRef,
    sender: mpsc::Sender<Result<RecordBatch>>,
    stats: Arc<Mutex<Vec<ScanStats>>>,
) {
    let mut attempt = 1;
    loop {
        let mut has_delivered = false;
        let Err(error) = read_once(&client, &share, transfer, &schema, &sender, &stats, &mut has_delivered).await else { return };
        client.routes.learn_from(&error);
        let may_retry = error.kind.is_retryable() && error.kind != ErrorKind::Changed && !has_delivered && attempt < MAX_ATTEMPTS;
        if !may_retry {
            // Fails only when the scan is gone.
            let _ = sender.send(Err(error)).await;
            return;
        }
        attempt += 1;
        back_off(attempt).await;
    }
}

async fn read_once(
    client: &Client,
    share: &Share,
    transfer: Transfer,
    schema: &Schema,
    sender: &mpsc::Sender<Result<RecordBatch>>,
    stats: &Mutex<Vec<ScanStats>>,
    has_delivered: &mut bool,
) -> Result<()> {
    let connection = match share.route {
        Some(route) => client.routes.owner(route.slot).await?,
        None => client.routes.seed(),
    };
    let mut answer = receive::get(&connection, share.ticket.ticket.clone(), transfer).await?;
    while let Some(frame) = answer.next().await? {
        if let Some(so_far) = frame.stats
            && let Some(stats) = stats.lock().unwrap_or_else(PoisonError::into_inner).get_mut(share.index)
        {
            *stats = so_far;
        }
        match frame.payload {
            // What holds all of an object may follow it to a newer version.
            Payload::Schema(now) if now.fields() != schema.fields() => {
                return Err(Error::new(ErrorKind::Changed, "a share has another schema than its scan"));
            }
            Payload::Batch(batch) => {
                *has_delivered = true;
                if sender.send(Ok(batch)).await.is_err() {
                    return Ok(());
                }
            }
            Payload::Schema(_) | Payload::Nothing => {}
        }
    }
    Ok(())
}
