//! Scans: planned once, their shares read from their owners concurrently, delivered in order.

use std::iter;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo};
use flightcache_proto::{Error, ErrorKind, Part, Populate, Result, ScanRequest, ScanStats, Slot};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use serde::Deserialize;

use crate::client::Client;
use crate::direct;
use crate::link::Transfer;
use crate::receive::Payload;
use crate::retry::{MAX_ATTEMPTS, back_off, from_status, retrying};
use crate::routes::{Connection, flight};
use crate::share::{self, Figures, Share};

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
        let stats: Figures = Arc::default();
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

/// Asks an owner of the URL's slot; where it cannot be reached, another, whom the slot goes to next, or in the end anyone.
pub(crate) async fn plan(client: &Client, request: &ScanRequest) -> Result<FlightInfo> {
    let (routes, slot) = (&client.routes, Slot::of(&request.url, Part::Footer));
    let owners = routes.owners(slot).await?.connections.into_iter();
    let (doubtful, owners): (Vec<_>, Vec<_>) = owners.partition(Connection::is_doubtful);
    let next = iter::once_with(|| routes.next(Some(slot), None)).flatten();
    let anyone = iter::once_with(|| routes.contact());
    let mut asked: Vec<Connection> = Vec::new();
    let mut failed: Option<Error> = None;
    for server in owners.into_iter().chain(next).chain(anyone).chain(doubtful) {
        if asked.iter().any(|asked| asked.is(&server)) {
            continue;
        }
        let mut flight = flight(server.channel());
        let info = flight.get_flight_info(FlightDescriptor::new_cmd(request.to_protobuf()));
        let error = match routes.unless_lost(&server, info.map_err(|status| from_status(&status))).await {
            Ok(info) => return Ok(info.into_inner()),
            Err(error) => error,
        };
        routes.learn_from(&error);
        routes.turn_from(&server, &error);
        // Two that say that they cannot reach the store are enough.
        let is_enough = error.is_stated && failed.is_some_and(|failed| failed.is_stated);
        if error.kind != ErrorKind::Unavailable || is_enough {
            return Err(error);
        }
        if error.is_unreached() {
            server.doubt();
        }
        asked.push(server);
        failed = Some(error);
    }
    Err(failed.unwrap_or_else(|| Error::internal("there is nobody to plan a scan")))
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

fn shares(client: &Client, request: &ScanRequest, info: &FlightInfo) -> Result<Vec<Share>> {
    let is_of_rows = request.aggregation.is_none();
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
        Ok(Share { ticket: ticket.ticket, slot: route.map(|route| route.slot), is_of_rows })
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
    stats: Figures,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    async_stream::try_stream! {
        let mut info = info;
        let mut attempt = 1;
        let mut has_delivered = false;
        'plan: loop {
            let shares = shares(&client, &request, &info)?;
            let mut payloads = pin!(share::in_order(client.clone(), shares, transfer, Arc::clone(&stats), false));
            while let Some(payload) = payloads.next().await {
                let error = match payload {
                    Ok(Payload::Batch(batch)) => {
                        has_delivered = true;
                        yield batch;
                        continue;
                    }
                    // What holds all of an object may follow it to a newer version.
                    Ok(Payload::Schema(now)) if now.fields() != schema.fields() => {
                        Error::new(ErrorKind::Changed, "a share has another schema than its scan")
                    }
                    Ok(_) => continue,
                    Err(error) => error,
                };
                if error.kind != ErrorKind::Changed || has_delivered || attempt == MAX_ATTEMPTS {
                    Err(error)?;
                }
                attempt += 1;
                back_off(attempt).await;
                info = retrying(|| plan(&client, &request)).await?;
                if schema_of(&info)?.fields() != schema.fields() {
                    Err(overwritten(&request))?;
                }
                // Ends what was read ahead of the old plan, and with it the figures it tells.
                continue 'plan;
            }
            break;
        }
    }
}
