//! `DoGet` as it is received: one request, and its answer as Arrow.
//!
//! ```text
//!  HTTP/2 DATA, cut anywhere --assemble--> FlightData, its body aligned --decode--> batches that are slices of the body
//!                                               |                 \--folded--> what came as dictionaries, picked from them
//!                                               \--parquet_rows--> row groups as Parquet --> batches
//! ```
//!
//! tonic would copy every byte into a buffer of its own, from which the Flight decoder copies it again to align it; here a body
//! that comes whole and aligned stays where it is, and any other is copied once, to where its columns stay.

mod assemble;
mod decode;
mod flat;
mod folded;
mod parquet_rows;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use arrow::buffer::Buffer;
use bytes::{BufMut as _, Bytes};
use flightcache_proto::accept::{ACCEPT_HEADER, DICTIONARIES, PARQUET};
use flightcache_proto::parquet::ParquetPiece;
use flightcache_proto::route::{EPOCH_HEADER, PEER_HEADER, PeerAsk};
use flightcache_proto::scan::SCAN_STATS_TRAILER;
use flightcache_proto::{Error, ErrorKind, Result, ScanStats};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::{Code, Status};

use self::assemble::Assembler;
pub(crate) use self::assemble::Message;
use self::assemble::malformed;
pub(crate) use self::decode::Decoder;
pub use self::decode::Payload;
use self::parquet_rows::ParquetRows;
use crate::link::{Arrivals, Link, Transfer};
use crate::retry::from_status;
use crate::routes::{Connection, TakenLane};

const DO_GET_PATH: &str = "/arrow.flight.protocol.FlightService/DoGet";
const DO_EXCHANGE_PATH: &str = "/arrow.flight.protocol.FlightService/DoExchange";
/// Both that there are.
const PARQUET_AND_DICTIONARIES: &str = "parquet, dictionaries";
/// The largest message that is accepted, of any method.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// An answer that is being received. Dropping it cancels the call.
#[derive(Debug)]
pub struct Answer {
    incoming: Incoming,
    decoder: Decoder,
    /// Parquet was asked for.
    takes_parquet: bool,
    parquet: ParquetRows,
    /// What came behind row groups that are still to be read.
    ahead: Option<Result<Received>>,
    /// Figures that came with Parquet.
    stats: Option<ScanStats>,
}

/// The messages of an answer.
#[derive(Debug)]
struct Incoming {
    /// `None` after its end, or an error.
    body: Option<Body>,
    assembler: Assembler,
    /// The status came in the headers, and is good: there are neither messages nor trailers.
    is_status_known: bool,
    arrivals: Arrivals,
    link: Option<Arc<Link>>,
    /// The lane it comes over, where there are several.
    lane: Option<TakenLane>,
}

/// One message of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// What it says.
    pub payload: Payload,
    /// What serving took so far, where the server says it.
    pub stats: Option<ScanStats>,
}

/// Column chunks that are being received from another server. Dropping it cancels the call.
#[derive(Debug)]
pub struct PeerAnswer(Answer);

/// One message of them.
#[derive(Debug)]
pub struct PeerFrame {
    /// What it says.
    pub payload: PeerPayload,
    /// Bytes that came with it.
    pub bytes: u64,
    /// What answering took so far, where the server says it.
    pub stats: Option<ScanStats>,
}

/// What such a message says.
#[derive(Debug)]
pub enum PeerPayload {
    /// Which columns come, or rows of them as they rest, dictionaries included.
    Arrow(Payload),
    /// A piece of the columns' Parquet bytes, which follow each other in the order of the columns.
    Parquet(ParquetPiece, Buffer),
}

/// What came.
#[derive(Debug)]
enum Received {
    Message(Message),
    /// The good end, with the last figures.
    End(Option<Frame>),
}

/// Sends a ticket. The service is a channel, or something like one.
pub async fn do_get<S>(service: S, ticket: Bytes) -> Result<Answer>
where
    S: GrpcService<Body, ResponseBody = Body>,
{
    get_with(service, ticket, None, false).await
}

/// Sends a ticket over a connection, of which the answer's arrival tells how fast it is, and the epoch by which it is sent there.
pub(crate) async fn get(connection: &Connection, ticket: Bytes, epoch: Option<u64>, transfer: Transfer) -> Result<Answer> {
    let lane = connection.take_lane();
    let mut answer = get_over(lane.channel(), Arc::clone(&connection.link), ticket, epoch, transfer).await?;
    answer.incoming.lane = Some(lane);
    Ok(answer)
}

async fn get_over<S>(service: S, link: Arc<Link>, ticket: Bytes, epoch: Option<u64>, transfer: Transfer) -> Result<Answer>
where
    S: GrpcService<Body, ResponseBody = Body>,
{
    let mut answer = get_with(service, ticket, epoch, link.takes_parquet(transfer)).await?;
    answer.incoming.link = Some(link);
    Ok(answer)
}

/// Sends a ticket, and that the answer may hold Parquet.
async fn get_with<S>(service: S, ticket: Bytes, epoch: Option<u64>, takes_parquet: bool) -> Result<Answer>
where
    S: GrpcService<Body, ResponseBody = Body>,
{
    let mut request = request(DO_GET_PATH, of_ticket(ticket)?);
    let accept = HeaderValue::from_static(if takes_parquet { PARQUET_AND_DICTIONARIES } else { DICTIONARIES });
    request.headers_mut().insert(ACCEPT_HEADER, accept);
    if let Some(epoch) = epoch {
        request.headers_mut().insert(EPOCH_HEADER, HeaderValue::from(epoch));
    }
    Ok(Answer { takes_parquet, ..call(service, request).await? })
}

/// Sends a ticket as one server to another.
pub(crate) async fn pull(connection: &Connection, ticket: Bytes, ask: PeerAsk, takes_arrays: bool) -> Result<PeerAnswer> {
    let mut request = request(DO_GET_PATH, of_ticket(ticket)?);
    request
        .headers_mut()
        .insert(ACCEPT_HEADER, HeaderValue::from_static(if takes_arrays { PARQUET_AND_DICTIONARIES } else { PARQUET }));
    request.headers_mut().insert(PEER_HEADER, HeaderValue::from_static(ask.as_str()));
    let lane = connection.take_lane();
    let mut answer = call(lane.channel(), request).await?;
    answer.decoder = Decoder::keeping_dictionaries();
    answer.incoming.lane = Some(lane);
    Ok(PeerAnswer(answer))
}

/// Sends requests, whose answers are [`Answer::next_message`]s.
pub(crate) async fn do_exchange<S>(service: S, requests: Body) -> Result<Answer>
where
    S: GrpcService<Body, ResponseBody = Body>,
{
    call(service, request(DO_EXCHANGE_PATH, requests)).await
}

async fn call<S>(mut service: S, request: Request<Body>) -> Result<Answer>
where
    S: GrpcService<Body, ResponseBody = Body>,
{
    std::future::poll_fn(|cx| service.poll_ready(cx)).await.map_err(broken::<S>)?;
    let response = service.call(request).await.map_err(broken::<S>)?;
    let (head, body) = response.into_parts();
    let status = status(&head.headers);
    match &status {
        Some(status) if status.code() != Code::Ok => return Err(from_status(status)),
        _ if head.status != StatusCode::OK => {
            return Err(Error::new(kind_of(head.status), format!("the answer is HTTP {}, not gRPC", head.status)));
        }
        _ => {}
    }
    let incoming = Incoming {
        body: Some(body),
        assembler: Assembler::new(MAX_MESSAGE_BYTES),
        is_status_known: status.is_some(),
        arrivals: Arrivals::default(),
        link: None,
        lane: None,
    };
    Ok(Answer {
        incoming,
        decoder: Decoder::default(),
        takes_parquet: false,
        parquet: ParquetRows::default(),
        ahead: None,
        stats: None,
    })
}

fn of_ticket(ticket: Bytes) -> Result<Body> {
    let ticket = arrow_flight::Ticket { ticket };
    let length = ticket.encoded_len();
    let mut message = Vec::with_capacity(5 + length);
    message.put_u8(0);
    message.put_u32(u32::try_from(length).map_err(|_| Error::invalid("the ticket is longer than 4 GiB"))?);
    message.put(&*ticket.encode_to_vec());
    Ok(Body::new(Full::new(Bytes::from(message))))
}

fn request(path: &'static str, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(path);
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request
}

/// The error of a call that had no answer.
fn broken<S: GrpcService<Body>>(error: S::Error) -> Error {
    from_status(&Status::from_error(error.into()))
}

/// The status among headers or trailers.
fn status(headers: &HeaderMap) -> Option<Status> {
    // Details are none of ours, and reading ones that are not base64 panics.
    let mut headers = headers.clone();
    headers.remove("grpc-status-details-bin");
    Status::from_header_map(&headers)
}

/// What an HTTP status means where gRPC's is missing:
/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>.
fn kind_of(status: StatusCode) -> ErrorKind {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Denied,
        StatusCode::NOT_FOUND => ErrorKind::Unsupported,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    }
}

impl Answer {
    /// The next message; `None` only after an end that the server declared good. May be dropped while it waits.
    ///
    /// Of row groups that come as Parquet, their batches, in the order of rows; meanwhile the next row group is received.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        let next = self.next_frame().await;
        if next.is_err() {
            self.incoming.body = None;
            (self.parquet, self.ahead) = (ParquetRows::default(), None);
        }
        next
    }

    /// The same as it came.
    pub(crate) async fn next_message(&mut self) -> Result<Option<Message>> {
        match self.incoming.receive().await {
            Ok(Received::Message(message)) => Ok(Some(message)),
            Ok(Received::End(_)) => Ok(None),
            Err(error) => {
                self.incoming.body = None;
                Err(error)
            }
        }
    }

    async fn next_frame(&mut self) -> Result<Option<Frame>> {
        loop {
            let received = if self.parquet.is_empty() {
                match self.ahead.take() {
                    Some(received) => received,
                    None => self.incoming.receive().await,
                }
            } else {
                let may_receive = self.ahead.is_none() && self.parquet.has_room();
                tokio::select! {
                    biased;
                    batch = self.parquet.next_batch() => match batch {
                        Some(batch) => return Ok(Some(Frame { payload: Payload::Batch(batch?), stats: self.stats.take() })),
                        None => continue,
                    },
                    received = self.incoming.receive(), if may_receive => received,
                }
            };
            match received.and_then(|received| self.without_parquet(received)).transpose() {
                None => {}
                Some(received) if !self.parquet.is_empty() => self.ahead = Some(received),
                Some(received) => return self.frame(received?),
            }
        }
    }

    /// Takes what came as Parquet; `None` if that was all.
    fn without_parquet(&mut self, received: Received) -> Result<Option<Received>> {
        let piece = match &received {
            Received::Message(message) if self.takes_parquet => ParquetPiece::parse(&message.header)?,
            _ => None,
        };
        match (piece, received) {
            (Some(piece), Received::Message(message)) => {
                let schema = self.decoder.schema().ok_or_else(|| malformed("Parquet came before the schema"))?;
                self.parquet.push(&piece, &message.body, schema)?;
                self.stats = serde_json::from_slice(&message.app_metadata).ok();
                Ok(None)
            }
            _ if !self.parquet.is_complete() => Err(malformed("a row group is cut off")),
            (_, received) => Ok(Some(received)),
        }
    }

    fn frame(&mut self, received: Received) -> Result<Option<Frame>> {
        match received {
            Received::Message(message) => {
                let payload = self.decoder.decode(&message)?;
                Ok(Some(Frame { payload, stats: serde_json::from_slice(&message.app_metadata).ok() }))
            }
            Received::End(frame) => Ok(frame),
        }
    }
}

impl PeerAnswer {
    /// The next message; `None` only after an end that the server declared good.
    pub async fn next(&mut self) -> Result<Option<PeerFrame>> {
        let Answer { incoming, decoder, .. } = &mut self.0;
        let received = incoming.receive().await;
        let frame = received.and_then(|received| {
            let message = match received {
                Received::Message(message) => message,
                Received::End(figures) => {
                    return Ok(figures.map(|Frame { payload, stats }| PeerFrame {
                        payload: PeerPayload::Arrow(payload),
                        bytes: 0,
                        stats,
                    }));
                }
            };
            let (bytes, stats) = (message.body.len() as u64, serde_json::from_slice(&message.app_metadata).ok());
            let payload = match ParquetPiece::parse(&message.header)? {
                Some(piece) => PeerPayload::Parquet(piece, message.body),
                None => PeerPayload::Arrow(decoder.decode(&message)?),
            };
            Ok(Some(PeerFrame { payload, bytes, stats }))
        });
        frame.inspect_err(|_| incoming.body = None)
    }
}

impl Incoming {
    async fn receive(&mut self) -> Result<Received> {
        loop {
            let Some(body) = &mut self.body else { return Ok(Received::End(None)) };
            if let Some(message) = self.assembler.next()? {
                return Ok(Received::Message(message));
            }
            let mut was_awaited = false;
            let mut frame = pin!(body.frame());
            let frame = poll_fn(|cx| {
                let polled = frame.as_mut().poll(cx);
                was_awaited |= polled.is_pending();
                polled
            });
            let frame = frame.await;
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) if piece.is_empty() => {}
                    Ok(_) if self.is_status_known => return Err(Error::internal("the server's answer goes on after its status")),
                    Ok(piece) => {
                        if let Some(link) = &self.link {
                            self.arrivals.came(link, Instant::now(), piece.len(), was_awaited);
                        }
                        self.assembler.push(piece);
                    }
                    Err(frame) => return self.end(frame.trailers_ref()).map(Received::End),
                },
                Some(Err(status)) => return Err(from_status(&status)),
                None => return self.end(None).map(Received::End),
            }
        }
    }

    /// Ends the answer, telling the last figures.
    fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<Option<Frame>> {
        match trailers.and_then(status) {
            Some(status) if status.code() != Code::Ok => return Err(from_status(&status)),
            // What resets a stream without a reason, as some proxies do, ends it like this: with no trailers at all.
            None if !self.is_status_known => {
                return Err(Error::new(ErrorKind::Unavailable, "the server's answer ended without its status"));
            }
            _ => {}
        }
        if !self.assembler.is_complete() {
            return Err(Error::internal("the server's answer ended within a message"));
        }
        (self.body, self.lane) = (None, None);
        let stats = trailers.and_then(|trailers| trailers.get(SCAN_STATS_TRAILER));
        let stats = stats.and_then(|stats| serde_json::from_slice(stats.as_bytes()).ok());
        Ok(stats.map(|stats| Frame { payload: Payload::Nothing, stats: Some(stats) }))
    }
}
