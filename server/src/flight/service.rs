//! The Flight methods.

use std::sync::Arc;
use std::time::Instant;

use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, Location, PollInfo, PutResult, Result as ActionResult, SchemaResult, Ticket as FlightTicket,
};
use bytes::Bytes;
use flightcache_proto::{Error, Result, ScanRequest, Ticket, action};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::actions;
use super::port::OverUnixSocket;
use super::sql;
use super::status::status;
use crate::admin::ScanMeter;
use crate::scan::{Engine, ipc_schema};
use crate::sql::Sql;

/// Decoded bytes one endpoint's share aims at.
const SHARE_BYTES: u64 = 256 << 20;
/// Endpoints a scan is cut into at most.
const MAX_SHARES: u64 = 64;

/// Arrow Flight over an [`Engine`], and Flight SQL over the same.
#[derive(Clone)]
pub struct FlightcacheService {
    engine: Arc<Engine>,
    sql: Arc<Sql>,
}

type Answer<T> = Result<Response<T>, Status>;
type Frames<T> = BoxStream<'static, Result<T, Status>>;

impl FlightcacheService {
    /// The service.
    pub fn new(sql: Arc<Sql>) -> Self {
        Self { engine: Arc::clone(sql.engine()), sql }
    }

    fn count<T>(&self, method: &str, result: Result<T>) -> Result<T, Status> {
        let label = result.as_ref().err().map_or("ok", |error| error.kind.as_str());
        self.engine.metrics().requests.with_label_values(&[method, label]).inc();
        if let Err(error) = &result {
            tracing::info!(method, status = label, error = %error, "request failed");
        }
        result.map_err(|error| status(&error))
    }

    /// `is_local` says that the client came over a Unix socket.
    async fn flight_info(&self, descriptor: FlightDescriptor, is_local: bool) -> Result<FlightInfo> {
        if sql::is_flight_sql(&descriptor.cmd) {
            return sql::info(&self.sql, descriptor).await;
        }
        let started = Instant::now();
        let request = scan_of(&descriptor)?;
        let url = request.url.clone();
        let meter = Arc::new(ScanMeter::default());
        let plan = self.engine.plan(&Ticket::Scan(request), &meter).await?;
        let map = self.engine.slot_map();
        // Without a location, a share is to be had over the connection that told of it. The socket's path may mean something
        // else, or nothing, where the client is.
        let is_here = is_local && map.nodes().len() == 1;
        let mut info = FlightInfo {
            schema: encapsulated(&ipc_schema(plan.answer_schema())?),
            flight_descriptor: Some(descriptor),
            total_records: plan.exact_rows().map_or(-1, |rows| rows as i64),
            total_bytes: if plan.exact_rows().is_some() { plan.estimated_bytes() as i64 } else { -1 },
            ordered: true,
            ..FlightInfo::default()
        };
        for (ticket, slot) in plan.shares(&map, SHARE_BYTES, MAX_SHARES)? {
            let owners = map.owners(slot).filter(|_| !is_here);
            let locations = owners.filter_map(|owner| owner.uri.as_ref()).map(|uri| Location { uri: uri.clone() });
            let metadata = serde_json::json!({"slot": slot, "epoch": map.epoch()});
            info.endpoint.push(FlightEndpoint {
                ticket: Some(FlightTicket { ticket: ticket.encode().into() }),
                location: locations.collect(),
                expiration_time: None,
                app_metadata: metadata.to_string().into(),
            });
        }
        let stats = meter.snapshot();
        tracing::info!(
            url,
            endpoints = info.endpoint.len(),
            store_requests = stats.store_requests,
            fetch_us = stats.fetch_us,
            elapsed_us = started.elapsed().as_micros() as u64,
            "get_flight_info"
        );
        Ok(info)
    }

    async fn schema(&self, descriptor: &FlightDescriptor) -> Result<SchemaResult> {
        if sql::is_flight_sql(&descriptor.cmd) {
            return sql::schema(&self.sql, descriptor).await;
        }
        let plan = self.engine.plan(&Ticket::Scan(scan_of(descriptor)?), &Arc::default()).await?;
        Ok(SchemaResult { schema: encapsulated(&ipc_schema(plan.answer_schema())?) })
    }

    /// What is resident, one flight an object. The criteria is a URL prefix.
    fn resident(&self, criteria: &[u8]) -> Result<Vec<FlightInfo>> {
        let prefix = std::str::from_utf8(criteria).map_err(|_| Error::invalid("the criteria is a URL prefix, in UTF-8"))?;
        let objects = self.engine.resident_objects();
        let flight = |(footer, bytes): (Arc<crate::parquet::Footer>, u64)| {
            let url = footer.object.url().to_owned();
            let request = ScanRequest::new(&url);
            let metadata = serde_json::json!({"resident_bytes": bytes, "size_bytes": footer.size});
            Ok(FlightInfo {
                schema: encapsulated(&ipc_schema(&footer.schema)?),
                flight_descriptor: Some(FlightDescriptor::new_path(vec![url])),
                endpoint: vec![FlightEndpoint {
                    ticket: Some(FlightTicket { ticket: Ticket::Scan(request).encode().into() }),
                    ..FlightEndpoint::default()
                }],
                total_records: (0..footer.metadata.num_row_groups() as u32)
                    .map(|group| footer.row_group_rows(group) as i64)
                    .sum(),
                total_bytes: bytes as i64,
                ordered: true,
                app_metadata: metadata.to_string().into(),
            })
        };
        objects.into_iter().filter(|(footer, _)| footer.object.url().starts_with(prefix)).map(flight).collect()
    }
}

/// The scan a descriptor describes.
fn scan_of(descriptor: &FlightDescriptor) -> Result<ScanRequest> {
    match DescriptorType::try_from(descriptor.r#type) {
        Ok(DescriptorType::Path) => match descriptor.path.as_slice() {
            [url] => Ok(ScanRequest::new(url)),
            path => Err(Error::invalid(format!("a path descriptor holds one URL, not {} parts", path.len()))),
        },
        Ok(DescriptorType::Cmd) => ScanRequest::parse(&descriptor.cmd),
        _ => Err(Error::invalid("a descriptor of an unknown type")),
    }
}

/// A schema message with its IPC prefix, as `FlightInfo` and `SchemaResult` carry it.
pub(super) fn encapsulated(message: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(message.len() + 16);
    let padded = message.len().next_multiple_of(8);
    bytes.extend_from_slice(&[0xff; 4]);
    bytes.extend_from_slice(&(padded as u32).to_le_bytes());
    bytes.extend_from_slice(message);
    bytes.resize(8 + padded, 0);
    bytes.into()
}

fn unsupported<T>(method: &str) -> Answer<T> {
    Err(Status::unimplemented(format!("{method} is not supported")))
}

#[tonic::async_trait]
impl FlightService for FlightcacheService {
    type HandshakeStream = Frames<HandshakeResponse>;
    type ListFlightsStream = Frames<FlightInfo>;
    type DoGetStream = Frames<FlightData>;
    type DoPutStream = Frames<PutResult>;
    type DoActionStream = Frames<ActionResult>;
    type ListActionsStream = Frames<ActionType>;
    type DoExchangeStream = Frames<FlightData>;

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        let is_local = request.extensions().get::<OverUnixSocket>().is_some();
        let info = self.flight_info(request.into_inner(), is_local).await;
        self.count("get_flight_info", info).map(Response::new)
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        let schema = self.schema(request.get_ref()).await;
        self.count("get_schema", schema).map(Response::new)
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        let flights = self.count("list_flights", self.resident(&request.get_ref().expression))?;
        Ok(Response::new(futures::stream::iter(flights).map(Ok).boxed()))
    }

    /// Never called: the port answers it, without copying.
    async fn do_get(&self, _: Request<FlightTicket>) -> Answer<Self::DoGetStream> {
        unsupported("DoGet behind another port than Flightcache's")
    }

    async fn do_action(&self, request: Request<Action>) -> Answer<Self::DoActionStream> {
        let Action { r#type, body } = request.into_inner();
        let results = match sql::run(&self.sql, &r#type, &body).await {
            Some(results) => results.map(|results| futures::stream::iter(results).map(Ok).boxed()),
            None => actions::run(&self.sql, &r#type, &body).await,
        };
        let results = self.count("do_action", results)?;
        Ok(Response::new(results.map_err(|error| status(&error)).boxed()))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Answer<Self::ListActionsStream> {
        let types = action::ALL.into_iter().chain(sql::ACTIONS);
        let types =
            types.map(|(name, description)| Ok(ActionType { r#type: name.to_owned(), description: description.to_owned() }));
        Ok(Response::new(futures::stream::iter(types).boxed()))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<PollInfo> {
        unsupported("PollFlightInfo")
    }

    /// Answered, for clients that begin with it. It means nothing here.
    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Answer<Self::HandshakeStream> {
        Ok(Response::new(futures::stream::iter([Ok(HandshakeResponse::default())]).boxed()))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        let result = self.count("do_put", sql::put(&self.sql, request.into_inner()).await)?;
        Ok(Response::new(futures::stream::iter([Ok(result)]).boxed()))
    }

    /// Never called, like `do_get`.
    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        unsupported("DoExchange behind another port than Flightcache's")
    }
}
