//! The client: everything but scans.

use std::sync::Arc;

use arrow_flight::{Action, Criteria};
use bytes::Bytes;
#[cfg(feature = "datafusion")]
use flightcache_proto::action::TableInfo;
use flightcache_proto::action::{self, DrainRequest, Evicted, ObjectInfo, SetCapacity, Stats, UrlRequest, WarmProgress};
use flightcache_proto::{Error, Node, Result, ScanRequest, SlotMap};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::exchange::Exchange;
use crate::retry::{from_status, retrying};
use crate::routes::{Connection, Routes, flight};
use crate::scan::{ScanBuilder, ScanStream};

/// Servers asked at a time, where all are.
const SERVERS_AT_A_TIME: usize = 16;

/// A connection to a Flightcache. Cheap to clone; clones share routes and channels.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) routes: Arc<Routes>,
}

/// A resident object, as `ListFlights` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidentObject {
    /// Canonical URL.
    pub url: String,
    /// Rows of the object.
    pub rows: i64,
    /// Bytes of its chunks that are resident.
    pub resident_bytes: i64,
}

impl Client {
    /// Connects to a server, such as `grpc://127.0.0.1:50051` or `grpc+unix:///run/flightcache.sock`, and learns the slot map.
    pub async fn connect(location: &str) -> Result<Self> {
        let routes = Arc::new(Routes::new(location)?);
        retrying(|| routes.refresh()).await.map_err(|e| Error::new(e.kind, format!("{location}: {}", e.message)))?;
        Ok(Self { routes })
    }

    /// The same without asking the server anything yet: the connection is made, and the slot map learned, when they are needed.
    pub fn lazy(location: &str) -> Result<Self> {
        Ok(Self { routes: Arc::new(Routes::new(location)?) })
    }

    /// A scan of an object, a prefix ending in `/`, or a glob.
    pub fn scan(&self, url: impl Into<String>) -> ScanBuilder {
        ScanBuilder::new(self.clone(), ScanRequest::new(url))
    }

    /// Runs a SQL statement on the server, over named tables and quoted URLs: `SELECT … FROM 's3://lake/trips/'`. The stream is
    /// empty for statements that answer nothing.
    pub async fn sql(&self, statement: impl Into<String>) -> Result<ScanStream> {
        crate::sql::send(self, statement.into()).await
    }

    /// Opens a stream for many small requests: tens of thousands a second and more.
    pub async fn exchange(&self) -> Result<Exchange> {
        Exchange::open(self.clone()).await
    }

    /// Schema, row groups, sizes and what is resident, by object.
    pub async fn info(&self, url: &str) -> Result<Vec<ObjectInfo>> {
        self.act(action::INFO, &UrlRequest::new(url)).await
    }

    /// Server-wide figures.
    pub async fn stats(&self) -> Result<Stats> {
        self.act_once(action::STATS, &()).await
    }

    /// The figures of every server of the cluster, each asked itself.
    pub async fn cluster_stats(&self) -> Result<Vec<(Node, Result<Stats>)>> {
        let map = self.slot_map().await?;
        let asked = map.nodes().to_vec().into_iter().map(|node| {
            let connection = self.routes.connection(&map, &node);
            async move {
                let asked = async {
                    let connection = connection?;
                    let asked = async { bodies(&connection, action::STATS, Vec::new()).await?.try_collect().await };
                    let bodies: Vec<Bytes> = self.routes.unless_lost(&connection, asked).await?;
                    let body = bodies.first().ok_or_else(|| Error::internal("the server answered nothing"))?;
                    parse(action::STATS, body)
                };
                (node, asked.await)
            }
        });
        Ok(futures::stream::iter(asked).buffered(SERVERS_AT_A_TIME).collect().await)
    }

    /// Forgets an object, a prefix or a glob, on all servers of the cluster.
    pub async fn evict(&self, url: &str) -> Result<Evicted> {
        self.act_once(action::EVICT, &UrlRequest::new(url)).await
    }

    /// Changes the capacity of the chunk cache.
    pub async fn set_capacity(&self, capacity_bytes: u64) -> Result<Stats> {
        self.act_once(action::SET_CAPACITY, &SetCapacity { capacity_bytes }).await
    }

    /// Loads what a scan reads into the cache, telling how far it is. Dropping the stream stops it.
    pub async fn warm(&self, request: &ScanRequest) -> Result<impl Stream<Item = Result<WarmProgress>> + use<>> {
        let bodies = self.bodies(action::WARM, json(request)?).await?;
        Ok(bodies.map(|body| body.and_then(|body| parse(action::WARM, &body))))
    }

    /// The slot map, fresh from the server.
    pub async fn slot_map(&self) -> Result<Arc<SlotMap>> {
        retrying(|| self.routes.refresh()).await
    }

    /// Has a node of the cluster own no slots any more, by its id or the beginning of it. It stays reachable.
    pub async fn drain(&self, node: &str) -> Result<Node> {
        self.act_once(action::DRAIN, &DrainRequest { node: node.to_owned(), passed_on: false }).await
    }

    /// What is resident under a URL prefix (all of it for an empty one).
    pub async fn list(&self, prefix: &str) -> Result<Vec<ResidentObject>> {
        let criteria = Criteria { expression: prefix.as_bytes().to_vec().into() };
        let server = self.routes.contact();
        let object = |flight: arrow_flight::FlightInfo| ResidentObject {
            url: flight.flight_descriptor.and_then(|descriptor| descriptor.path.into_iter().next()).unwrap_or_default(),
            rows: flight.total_records,
            resident_bytes: flight.total_bytes,
        };
        let asked = async {
            let flights = flight(server.channel()).list_flights(criteria).await.map_err(|e| from_status(&e))?.into_inner();
            flights.map_ok(object).map_err(|e| from_status(&e)).try_collect().await
        };
        self.routes.unless_lost(&server, asked).await.inspect_err(|error| self.routes.turn_from(&server, error))
    }

    /// Times the slot map was asked for.
    pub fn route_lookups(&self) -> u64 {
        self.routes.lookups()
    }

    /// Requests for shares that were sent to a second owner as well, because the first took long.
    pub fn hedged_requests(&self) -> u64 {
        self.routes.hedges.sent()
    }

    /// Requests for plans and shares of scans that failed for want of their server, or of the store behind it. Where that
    /// may help, they were sent again.
    pub fn failed_requests(&self) -> u64 {
        self.routes.failed()
    }

    pub(crate) async fn act_once<T: DeserializeOwned>(&self, name: &str, body: &impl Serialize) -> Result<T> {
        let mut answers = self.act(name, body).await?;
        answers.pop().ok_or_else(|| Error::internal(format!("{name}: the server answered nothing")))
    }

    async fn act<T: DeserializeOwned>(&self, name: &str, body: &impl Serialize) -> Result<Vec<T>> {
        self.answers(name, body).await?.iter().map(|answer| parse(name, answer)).collect()
    }

    /// A table's description, which may have taken several messages.
    #[cfg(feature = "datafusion")]
    pub(crate) async fn table_info(&self, request: &UrlRequest) -> Result<TableInfo> {
        let answers = self.answers(action::TABLE, request).await?;
        let Some((first, more)) = answers.split_first() else {
            return Err(Error::internal(format!("{}: the server answered nothing", action::TABLE)));
        };
        let mut table: TableInfo = parse(action::TABLE, first)?;
        for more in more {
            table.extend(parse(action::TABLE, more)?);
        }
        // Servers that do not tell send all at once.
        if table.objects_total != 0 && table.objects_total != table.objects.len() as u64 {
            let (came, total) = (table.objects.len(), table.objects_total);
            return Err(Error::internal(format!("{}: {came} objects came of {total}", action::TABLE)));
        }
        Ok(table)
    }

    async fn answers(&self, name: &str, body: &impl Serialize) -> Result<Vec<Bytes>> {
        retrying(|| async { self.bodies(name, json(body)?).await?.try_collect().await }).await
    }

    async fn bodies(&self, name: &str, body: Vec<u8>) -> Result<impl Stream<Item = Result<Bytes>> + use<>> {
        let (routes, server) = (Arc::clone(&self.routes), self.routes.contact());
        let begun = routes.unless_lost(&server, bodies(&server, name, body)).await;
        let mut results = begun.inspect_err(|error| routes.turn_from(&server, error))?;
        Ok(async_stream::try_stream! {
            loop {
                let next = routes.unless_lost(&server, results.try_next()).await;
                match next.inspect_err(|error| routes.turn_from(&server, error))? {
                    Some(body) => yield body,
                    None => break,
                }
            }
        }
        .boxed())
    }
}

async fn bodies(server: &Connection, name: &str, body: Vec<u8>) -> Result<impl Stream<Item = Result<Bytes>> + Unpin + use<>> {
    let results = flight(server.channel()).do_action(Action::new(name, body)).await.map_err(|e| from_status(&e))?;
    Ok(results.into_inner().map_ok(|result| result.body).map_err(|e| from_status(&e)))
}

fn parse<T: DeserializeOwned>(name: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|e| Error::internal(format!("{name}: the server's answer cannot be read: {e}")))
}

fn json(body: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(body).map_err(|e| Error::internal(e.to_string()))
}
