//! `DoGet`: one ticket's batches as messages, with what it took in the app metadata and in the trailers.
//!
//! The answer's body is not tonic's, which would copy every column: its data are messages that share the cached arrays.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use arrow_flight::Ticket as FlightTicket;
use bytes::{Buf as _, Bytes};
use flightcache_proto::accept::{ACCEPT_HEADER, DICTIONARIES, PARQUET};
use flightcache_proto::route::{EPOCH_HEADER, PEER_HEADER};
use flightcache_proto::scan::SCAN_STATS_TRAILER;
use flightcache_proto::{Error, ErrorKind, PeerAsk, Result, Ticket};
use futures::stream::BoxStream;
use futures::{FutureExt as _, Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::encode::{Encoder, Prepared};
use super::message::Message;
use super::parquet_rows;
use super::sql;
use super::status::status;
use crate::admin::{Metrics, ScanMeter, add_time};
use crate::scan::{Batch, Engine, ForPeer, Part, ScanPlan, Takes};
use crate::sql::Sql;

/// Large enough for a million row numbers.
const MAX_TICKET_BYTES: usize = 16 << 20;

/// Compressed messages that wait for the connection.
const MESSAGES_AHEAD: usize = 2;

/// Says in the log and in the metrics how a scan ended, however it ended.
struct Ending {
    plan: Arc<ScanPlan>,
    meter: Arc<ScanMeter>,
    metrics: Arc<Metrics>,
    started_at: Instant,
    /// Until something else is known: the stream was dropped.
    outcome: Option<ErrorKind>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let stats = self.meter.snapshot();
        let elapsed = self.started_at.elapsed();
        self.metrics.active_scans.dec();
        self.metrics.scan_seconds.observe(elapsed.as_secs_f64());
        let status = self.outcome.map_or("ok", ErrorKind::as_str);
        self.metrics.requests.with_label_values(&["do_get", status]).inc();
        let request = &self.plan.request;
        tracing::info!(
            url = %request.url,
            columns = self.plan.schema.fields().len(),
            filter = request.filter.as_deref().unwrap_or(""),
            status,
            rows = stats.rows,
            bytes = stats.bytes,
            chunks_hit = stats.chunks_hit,
            chunks_missed = stats.chunks_missed,
            row_groups = stats.row_groups,
            row_groups_as_parquet = stats.row_groups_as_parquet,
            row_groups_pruned = stats.row_groups_pruned,
            store_requests = stats.store_requests,
            store_bytes = stats.store_bytes,
            fetch_us = stats.fetch_us,
            decode_us = stats.decode_us,
            filter_us = stats.filter_us,
            aggregate_us = stats.aggregate_us,
            encode_us = stats.encode_us,
            elapsed_us = elapsed.as_micros() as u64,
            "do_get"
        );
    }
}

/// The messages of an answer, then its status and figures as trailers.
pub(super) struct DoGetBody {
    messages: BoxStream<'static, Result<Message>>,
    meter: Arc<ScanMeter>,
    has_ended: bool,
}

impl Body for DoGetBody {
    type Data = Message;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Message>, Infallible>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let ended = match ready!(self.messages.poll_next_unpin(cx)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
            Some(Err(error)) => status(&error),
            None => tonic::Status::ok(""),
        };
        self.has_ended = true;
        // What is left of the scan goes now, not when the client has read its trailers.
        self.messages = futures::stream::empty().boxed();
        Poll::Ready(Some(Ok(Frame::trailers(trailers(&ended, &self.meter)))))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}

pub(super) fn trailers(ended: &tonic::Status, meter: &ScanMeter) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if ended.add_header(&mut trailers).is_err() {
        // A message that no header can carry: its code can.
        trailers.insert("grpc-status", HeaderValue::from(ended.code() as i32));
    }
    let figures = serde_json::to_string(&meter.snapshot()).ok();
    if let Some(value) = figures.and_then(|figures| HeaderValue::from_str(&figures).ok()) {
        trailers.insert(SCAN_STATS_TRAILER, value);
    }
    trailers
}

/// Answers a gRPC request for `DoGet`.
pub(super) async fn respond(engine: &Arc<Engine>, sql: &Arc<Sql>, request: http::Request<Incoming>) -> http::Response<DoGetBody> {
    let meter = Arc::new(ScanMeter::default());
    let (takes, epoch, ask) = (takes(request.headers()), epoch(request.headers()), ask(request.headers()));
    let opened = async {
        let ticket = ticket(request.into_body()).await?;
        if sql::is_flight_sql(&ticket) {
            return sql::open(sql, &ticket, &meter).await;
        }
        let ticket = Ticket::parse(&ticket)?;
        if let Some(epoch) = epoch {
            engine.check_route(&ticket, epoch)?;
        }
        match ask {
            Some(ask) => open_for_peer(engine, &ticket, ask, takes, &meter).await,
            None => open(engine, &ticket, takes, &meter).await,
        }
    };
    let opened = std::panic::AssertUnwindSafe(opened).catch_unwind().await;
    let messages = match opened.unwrap_or_else(|_| Err(Error::internal("planning gave up; the server's log says why"))) {
        Ok(messages) => messages,
        Err(error) => {
            engine.metrics().requests.with_label_values(&["do_get", error.kind.as_str()]).inc();
            tracing::info!(method = "do_get", status = error.kind.as_str(), error = %error, "request failed");
            futures::stream::iter([Err(error)]).boxed()
        }
    };
    let mut response = http::Response::new(DoGetBody { messages, meter, has_ended: false });
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// What the client says that it takes.
fn takes(headers: &HeaderMap) -> Takes {
    let values = headers.get_all(ACCEPT_HEADER).into_iter().filter_map(|value| value.to_str().ok());
    let mut takes = Takes::default();
    for form in values.flat_map(|value| value.split(',')) {
        match form.trim() {
            PARQUET => takes.parquet = true,
            DICTIONARIES => takes.dictionaries = true,
            _ => {}
        }
    }
    takes
}

/// Of the slot map by which a request was sent here.
fn epoch(headers: &HeaderMap) -> Option<u64> {
    headers.get(EPOCH_HEADER)?.to_str().ok()?.parse().ok()
}

/// What another server asks for.
fn ask(headers: &HeaderMap) -> Option<PeerAsk> {
    let told = headers.get(PEER_HEADER)?.to_str().ok()?;
    PeerAsk::ALL.into_iter().find(|ask| ask.as_str() == told)
}

/// The ticket in a request's body: one gRPC message, uncompressed.
async fn ticket(body: Incoming) -> Result<Bytes> {
    let body = Limited::new(body, MAX_TICKET_BYTES).collect().await;
    let mut body = body.map_err(|e| Error::invalid(format!("the request cannot be read: {e}")))?.to_bytes();
    if body.len() < 5 {
        return Err(Error::invalid("the request holds no message"));
    }
    let (compressed, length) = (body.get_u8(), body.get_u32() as usize);
    if compressed != 0 {
        return Err(Error::new(ErrorKind::Unsupported, "compressed requests are not supported"));
    }
    if length != body.len() {
        return Err(Error::invalid(format!("the request's message is {length} bytes long, of which {} came", body.len())));
    }
    let ticket = FlightTicket::decode(body).map_err(|e| Error::invalid(format!("not a ticket: {e}")))?;
    Ok(ticket.ticket)
}

pub(super) fn gave_up() -> Error {
    Error::internal("the scan gave up; the server's log says why")
}

/// What another server asks for: column chunks as they rest.
async fn open_for_peer(
    engine: &Arc<Engine>,
    ticket: &Ticket,
    ask: PeerAsk,
    takes: Takes,
    meter: &Arc<ScanMeter>,
) -> Result<BoxStream<'static, Result<Message>>> {
    let started_at = Instant::now();
    let sent: ForPeer = engine.for_peer(ticket, ask, takes, meter).await?;
    let plan = Arc::clone(&sent.plan);
    let parts = |takes| sent.parts(engine, meter, takes);
    answer(engine, plan, takes, meter, started_at, parts)
}

/// Plans a ticket's scan and opens its stream. The meter goes on counting while the stream is read.
async fn open(
    engine: &Arc<Engine>,
    ticket: &Ticket,
    takes: Takes,
    meter: &Arc<ScanMeter>,
) -> Result<BoxStream<'static, Result<Message>>> {
    let started_at = Instant::now();
    let plan = engine.plan(ticket, meter).await?;
    let parts = |takes| engine.answer(Arc::clone(&plan), Arc::clone(meter), takes);
    answer(engine, Arc::clone(&plan), takes, meter, started_at, parts)
}

/// The messages of an answer whose parts `parts` begins.
fn answer<P: Stream<Item = Result<Part>> + Send + 'static>(
    engine: &Arc<Engine>,
    plan: Arc<ScanPlan>,
    takes: Takes,
    meter: &Arc<ScanMeter>,
    started_at: Instant,
    parts: impl FnOnce(Takes) -> P,
) -> Result<BoxStream<'static, Result<Message>>> {
    // Before there is an ending: each failure is counted by the ending or by the caller.
    let compression = plan.request.compression;
    let encoder = Encoder::prepared(&plan.opening(|| Prepared::new(plan.answer_schema(), compression))?);
    let takes = Takes { dictionaries: takes.dictionaries && encoder.takes_dictionaries(), ..takes };
    let metrics = Arc::clone(engine.metrics());
    metrics.active_scans.inc();
    let ending =
        Ending { plan, meter: Arc::clone(meter), metrics: Arc::clone(&metrics), started_at, outcome: Some(ErrorKind::Cancelled) };
    let mut parts = Box::pin(parts(takes));
    let meter = Arc::clone(meter);
    let cpu = compression.map(|_| Arc::clone(engine.cpu()));
    let frames = async_stream::stream! {
        // Moved in whole: its drop is what reports the end.
        let mut ending = ending;
        yield Ok(encoder.schema().into_message(b"", None));
        let encoder = Arc::new(Mutex::new(encoder));
        let mut is_first = true;
        loop {
            let next = async {
                let Batch { rows, held } = match parts.next().await? {
                    Ok(Part::Batch(batch)) => batch,
                    Ok(Part::Parquet(rows)) => {
                        return Some(Ok((rows.file.rows as u64, parquet_rows::frames(&rows.file), Some(rows.held))));
                    }
                    Err(error) => return Some(Err(error)),
                };
                let count = rows.num_rows() as u64;
                let (encoder, meter, metrics) = (Arc::clone(&encoder), Arc::clone(&meter), Arc::clone(&metrics));
                let encode = move || {
                    let started = Instant::now();
                    let encoded = encoder.lock().unwrap_or_else(PoisonError::into_inner).batch(&rows);
                    add_time(&meter.encode_us, started.elapsed());
                    metrics.encode_seconds.observe(started.elapsed().as_secs_f64());
                    encoded
                };
                let (encoded, held) = match &cpu {
                    // Nothing is copied: it takes microseconds, and the frames show what is held.
                    None => (encode(), held),
                    Some(cpu) => (off_the_async_threads(cpu, encode).await, None),
                };
                Some(encoded.map(|frames| (count, frames, held)))
            };
            // A panic must reach the client as an error, not as a stream that was reset.
            let next = std::panic::AssertUnwindSafe(next).catch_unwind().await;
            let (rows, frames, held) = match next.unwrap_or_else(|_| Some(Err(gave_up()))) {
                None => break,
                Some(Ok(encoded)) => encoded,
                Some(Err(error)) => {
                    ending.outcome = Some(error.kind);
                    yield Err(error);
                    return;
                }
            };
            if is_first {
                metrics.first_batch_seconds.observe(ending.started_at.elapsed().as_secs_f64());
                is_first = false;
            }
            metrics.served_rows.inc_by(rows);
            for frame in frames {
                let bytes = frame.len() as u64;
                meter.bytes.fetch_add(bytes, Ordering::Relaxed);
                metrics.served_bytes.inc_by(bytes);
                let figures = serde_json::to_vec(&meter.snapshot()).unwrap_or_default();
                yield Ok(frame.into_message(&figures, held.clone()));
            }
        }
        ending.outcome = None;
    };
    Ok(if compression.is_some() { ahead(frames.boxed()) } else { frames.boxed() })
}

async fn off_the_async_threads<T: Send + 'static>(
    cpu: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let Ok(permit) = Arc::clone(cpu).acquire_owned().await else { return Err(gave_up()) };
    let work = move || {
        let _permit = permit;
        work()
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(gave_up()))
}

/// Makes some messages ahead of the connection that takes them, in a task of its own, which ends with the stream.
fn ahead(mut messages: BoxStream<'static, Result<Message>>) -> BoxStream<'static, Result<Message>> {
    let (sender, mut made) = mpsc::channel(MESSAGES_AHEAD);
    let making = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            // Whoever took them is gone.
            if sender.send(message).await.is_err() {
                return;
            }
        }
    }));
    let messages = async_stream::stream! {
        while let Some(message) = made.recv().await {
            yield message;
        }
        if making.await.is_err() {
            yield Err(gave_up());
        }
    };
    messages.boxed()
}
