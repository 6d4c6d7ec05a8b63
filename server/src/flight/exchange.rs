//! `DoExchange`: many scans and row reads over one stream, answered as they are done.
//!
//! ```text
//!  gRPC messages --Requests--> row reads, joined by template --> RowReads: one batch for many of them --+
//!                     |                                                                                +--> Answers + frames
//!                     +------> scans, some at a time ---------------------------------------------------+
//! ```
//!
//! All of a stream is one task: what is resident is read, answered and handed to the connection without another. It runs when
//! the connection takes messages, so a reader that stalls stops everything behind it, down to the requests' own bytes; and
//! whatever is under way is part of it, so that it goes when the stream does.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_flight::FlightData;
use bytes::{Buf as _, Bytes, BytesMut};
use flightcache_proto::exchange::{
    Answers, Failure, Form, MAX_MESSAGE_BYTES, MAX_TEMPLATES, Requests, RowReads as WireReads, TaggedTicket,
};
use flightcache_proto::{Error, ErrorKind, Result, ScanRequest, Ticket};
use futures::future::BoxFuture;
use futures::stream::{AbortHandle, BoxStream, FuturesUnordered, SelectAll, abortable};
use futures::{FutureExt as _, StreamExt as _};
use http::HeaderValue;
use http_body::{Body, Frame as HttpFrame};
use hyper::body::Incoming;
use prost::Message as _;
use tokio::sync::watch;

use super::do_get::trailers;
use super::encode::Encoder;
use super::message::{Held, Message};
use super::port::until;
use super::status::status;
use crate::admin::{Metrics, ScanMeter, add_time};
use crate::scan::{Batch, Engine, PickedRows, RowReads};

/// Requests taken and not answered, beyond which no message is read.
const MAX_OUTSTANDING: usize = 4_096;
/// Rows that wait to be read, beyond which no message is read.
const MAX_OUTSTANDING_ROWS: usize = 1 << 20;
/// Schemas of one stream's answers.
const MAX_SCHEMAS: usize = 1_024;
/// Joined row reads that wait for their chunks.
const MAX_JOINED: usize = 64;
/// Scans read at a time.
const MAX_SCANS: usize = 16;
/// Of so many messages, one is a scan's, if it has one, however many rows are read beside it.
const SCANS_TURN: usize = 4;

/// Row reads by one template that wait.
struct Waiting {
    template: Arc<RowReads>,
    tags: Vec<u64>,
    counts: Vec<u32>,
    rows: Vec<u64>,
}

/// Row reads that were read together.
struct Joined {
    reads: Waiting,
    picked: Result<Option<PickedRows>>,
}

/// What a scan does next.
enum Step {
    Batch(Batch),
    /// It is over; its answer's schema, if it had no rows.
    Done(SchemaRef),
    Failed(Error),
}

/// What is known of a scan under way.
struct Scan {
    stop: AbortHandle,
    metrics: Arc<Metrics>,
    started_at: Instant,
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.stop.abort();
        self.metrics.active_scans.dec();
        self.metrics.scan_seconds.observe(self.started_at.elapsed().as_secs_f64());
    }
}

/// The schemas that the client knows, by their numbers.
#[derive(Default)]
struct Schemas(Vec<(SchemaRef, Encoder)>);

/// A stream that goes on.
struct Exchange {
    engine: Arc<Engine>,
    meter: Arc<ScanMeter>,
    incoming: Incoming,
    /// What came and is no whole message yet.
    unread: BytesMut,
    form: Option<Form>,
    templates: HashMap<u32, Arc<RowReads>>,
    schemas: Schemas,
    waiting: VecDeque<Waiting>,
    joined: FuturesUnordered<BoxFuture<'static, Joined>>,
    queued_scans: VecDeque<(u64, Result<Ticket>)>,
    scans: SelectAll<BoxStream<'static, (u64, Step)>>,
    scanning: HashMap<u64, Scan>,
    ready: VecDeque<Message>,
    outstanding: usize,
    outstanding_rows: usize,
    turn: usize,
    /// The client asks no more.
    is_closed: bool,
    /// The server is going away.
    stopping: BoxFuture<'static, ()>,
    is_stopping: bool,
    /// For the log.
    started_at: Instant,
    answered: u64,
    failed: u64,
}

/// The messages of a stream, then its status and figures as trailers.
pub(super) struct ExchangeBody {
    /// `None` after its end.
    exchange: Option<Exchange>,
}

/// Answers a gRPC request for `DoExchange`.
pub(super) fn respond(
    engine: &Arc<Engine>,
    request: http::Request<Incoming>,
    stopped: watch::Receiver<bool>,
) -> http::Response<ExchangeBody> {
    let exchange = Exchange {
        engine: Arc::clone(engine),
        meter: Arc::default(),
        incoming: request.into_body(),
        unread: BytesMut::new(),
        form: None,
        templates: HashMap::new(),
        schemas: Schemas::default(),
        waiting: VecDeque::new(),
        joined: FuturesUnordered::new(),
        queued_scans: VecDeque::new(),
        scans: SelectAll::new(),
        scanning: HashMap::new(),
        ready: VecDeque::new(),
        outstanding: 0,
        outstanding_rows: 0,
        turn: 0,
        is_closed: false,
        stopping: until(stopped).boxed(),
        is_stopping: false,
        started_at: Instant::now(),
        answered: 0,
        failed: 0,
    };
    let mut response = http::Response::new(ExchangeBody { exchange: Some(exchange) });
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

impl Body for ExchangeBody {
    type Data = Message;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<HttpFrame<Message>, Infallible>>> {
        let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| exchange.poll_message(cx)));
        let polled =
            polled.unwrap_or_else(|_| Poll::Ready(Some(Err(Error::internal("the exchange gave up; the server's log says why")))));
        let ended = match polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(message))) => return Poll::Ready(Some(Ok(HttpFrame::data(message)))),
            Poll::Ready(Some(Err(error))) => {
                tracing::info!(method = "do_exchange", status = error.kind.as_str(), %error, "request failed");
                exchange.engine.metrics().requests.with_label_values(&["do_exchange", error.kind.as_str()]).inc();
                status(&error)
            }
            Poll::Ready(None) => tonic::Status::ok(""),
        };
        let trailers = trailers(&ended, &exchange.meter);
        // What is under way goes now, not when the client has read its trailers.
        self.exchange = None;
        Poll::Ready(Some(Ok(HttpFrame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.exchange.is_none()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let stats = self.meter.snapshot();
        tracing::info!(
            answered = self.answered,
            failed = self.failed,
            unanswered = self.outstanding,
            rows = stats.rows,
            bytes = stats.bytes,
            chunks_hit = stats.chunks_hit,
            chunks_missed = stats.chunks_missed,
            store_requests = stats.store_requests,
            elapsed_us = self.started_at.elapsed().as_micros() as u64,
            "do_exchange"
        );
    }
}

impl Exchange {
    /// The next message. Everything happens here.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message>>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(message)));
            }
            let is_more = match self.read(cx) {
                Ok(is_more) => is_more,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            self.turn += 1;
            if self.turn.is_multiple_of(SCANS_TURN) && self.poll_scans(cx) || self.poll_rows(cx) || self.poll_scans(cx) {
                continue;
            }
            // A cancelled scan leaves a message behind.
            if is_more || !self.ready.is_empty() {
                continue;
            }
            if self.outstanding == 0 {
                if self.is_stopping {
                    let error = Error::new(ErrorKind::Unavailable, "the server is shutting down");
                    return Poll::Ready(Some(Err(error)));
                }
                if self.is_closed {
                    return Poll::Ready(None);
                }
            }
            if !self.is_stopping && self.stopping.poll_unpin(cx).is_ready() {
                self.is_stopping = true;
                continue;
            }
            return Poll::Pending;
        }
    }

    /// Whether the stream has no schema yet and will have one only: requests that may give it go one after another then, so that
    /// it does not depend on which of them is read sooner.
    fn awaits_schema(&self) -> bool {
        self.form == Some(Form::Json) && self.schemas.0.is_empty()
    }

    fn is_idle(&self) -> bool {
        self.joined.is_empty() && self.scanning.is_empty()
    }

    /// Whether one more may be under way beside `running` of its kind.
    fn may_start(&self, running: usize, most: usize) -> bool {
        if self.awaits_schema() { self.is_idle() } else { running < most }
    }

    /// Takes the requests that are there, as long as what is taken already is bounded. Whether there may be more.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        while !self.is_stopping && self.outstanding < MAX_OUTSTANDING && self.outstanding_rows < MAX_OUTSTANDING_ROWS {
            if let Some(data) = self.next_data()? {
                self.accept(&data)?;
                if self.awaits_schema() && self.is_idle() && self.outstanding > 0 {
                    return Ok(true);
                }
                continue;
            }
            if self.is_closed {
                return Ok(false);
            }
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.unread.extend_from_slice(&data);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    return Err(Error::new(ErrorKind::Cancelled, format!("exchange: the requests broke off: {error}")));
                }
                Poll::Ready(None) => {
                    self.is_closed = true;
                    if !self.unread.is_empty() {
                        return Err(Error::invalid("exchange: the requests end within a message"));
                    }
                    if self.form.is_none() {
                        return Err(Error::invalid("exchange: there was no message"));
                    }
                }
            }
        }
        Ok(false)
    }

    /// The next message of the client, if all of it is there.
    fn next_data(&mut self) -> Result<Option<FlightData>> {
        let Some(&[compressed, a, b, c, d]) = self.unread.first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if compressed != 0 {
            return Err(Error::new(ErrorKind::Unsupported, "compressed requests are not supported"));
        }
        if length > MAX_MESSAGE_BYTES {
            return Err(Error::invalid(format!("exchange: a message of {length} bytes; at most {MAX_MESSAGE_BYTES}")));
        }
        if self.unread.len() < 5 + length {
            return Ok(None);
        }
        self.unread.advance(5);
        let data: Bytes = self.unread.split_to(length).freeze();
        FlightData::decode(data).map(Some).map_err(|e| Error::invalid(format!("exchange: not FlightData: {e}")))
    }

    fn accept(&mut self, data: &FlightData) -> Result<()> {
        let form = match (self.form, &data.flight_descriptor) {
            (Some(form), _) => form,
            (None, Some(descriptor)) => *self.form.insert(Form::of_command(&descriptor.cmd)?),
            (None, None) => return Err(Error::invalid("exchange: the first message has no descriptor")),
        };
        // A client may announce a schema, though it has no batches to send.
        if data.app_metadata.is_empty() {
            return Ok(());
        }
        let requests = Requests::parse(form, &data.app_metadata)?;
        requests.check_count()?;
        let Requests { open, rows, scans, cancel, close } = requests;
        let count = rows.iter().map(|reads| reads.tags.len()).sum::<usize>() + scans.len();
        for open in open {
            self.templates.insert(open.template, Arc::new(RowReads::new(open.scan)));
        }
        if self.templates.len() > MAX_TEMPLATES {
            return Err(Error::new(ErrorKind::ResourceExhausted, format!("exchange: more than {MAX_TEMPLATES} templates")));
        }
        self.outstanding += count;
        for reads in rows {
            self.accept_rows(reads);
        }
        for TaggedTicket { tag, ticket } in scans {
            let is_taken = self.scanning.contains_key(&tag) || self.queued_scans.iter().any(|(queued, _)| *queued == tag);
            if is_taken {
                return Err(Error::invalid(format!("exchange: tag {tag} belongs to a scan under way")));
            }
            self.queued_scans.push_back((tag, Ticket::parse(&ticket)));
        }
        for tag in cancel {
            self.cancel(tag);
        }
        for template in close {
            self.templates.remove(&template);
        }
        Ok(())
    }

    fn accept_rows(&mut self, reads: WireReads) {
        let WireReads { template, tags, counts, rows } = reads;
        let Some(template) = self.templates.get(&template) else {
            let error = Error::invalid(format!("exchange: template {template} is not open"));
            self.fail(tags, &error);
            return;
        };
        self.outstanding_rows += rows.len();
        match self.waiting.back_mut() {
            Some(last) if Arc::ptr_eq(&last.template, template) => {
                last.tags.extend_from_slice(&tags);
                last.counts.extend_from_slice(&counts);
                last.rows.extend_from_slice(&rows);
            }
            _ => self.waiting.push_back(Waiting { template: Arc::clone(template), tags, counts, rows }),
        }
    }

    /// Ends a scan that nobody waits for. One that is over already is left at that.
    fn cancel(&mut self, tag: u64) {
        let queued = self.queued_scans.iter().position(|(queued, _)| *queued == tag);
        let was_queued = queued.and_then(|at| self.queued_scans.remove(at)).is_some();
        if was_queued || self.scanning.remove(&tag).is_some() {
            self.fail(vec![tag], &Error::new(ErrorKind::Cancelled, "cancelled"));
        }
    }

    /// Reads rows; whether there is something to send.
    fn poll_rows(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            while self.may_start(self.joined.len(), MAX_JOINED) {
                let Some(reads) = self.next_reads() else { break };
                let (engine, meter) = (Arc::clone(&self.engine), Arc::clone(&self.meter));
                let mut reading = read_joined(engine, reads, meter).boxed();
                // What is resident is there at once.
                match reading.poll_unpin(cx) {
                    Poll::Ready(joined) => self.answer_rows(joined),
                    Poll::Pending => self.joined.push(reading),
                }
                if !self.ready.is_empty() {
                    return true;
                }
            }
            match self.joined.poll_next_unpin(cx) {
                Poll::Ready(Some(joined)) => self.answer_rows(joined),
                Poll::Ready(None) | Poll::Pending => return false,
            }
            if !self.ready.is_empty() {
                return true;
            }
            // There is room for others that wait.
        }
    }

    /// As many waiting reads as are well read together.
    fn next_reads(&mut self) -> Option<Waiting> {
        let first = self.waiting.front_mut()?;
        let most = first.template.rows_at_a_time();
        if first.rows.len() <= most {
            return self.waiting.pop_front();
        }
        let mut rows = 0;
        let mut reads = 0;
        while reads < first.counts.len() && (reads == 0 || rows + first.counts[reads] as usize <= most) {
            rows += first.counts[reads] as usize;
            reads += 1;
        }
        let rest = Waiting {
            template: Arc::clone(&first.template),
            tags: first.tags.split_off(reads),
            counts: first.counts.split_off(reads),
            rows: first.rows.split_off(rows),
        };
        let next = std::mem::replace(first, rest);
        if first.tags.is_empty() {
            self.waiting.pop_front();
        }
        Some(next)
    }

    fn answer_rows(&mut self, joined: Joined) {
        let Joined { reads, picked } = joined;
        // Before the first plan nobody knew how much is well read together.
        let is_too_much = reads.tags.len() > 1 && reads.rows.len() > reads.template.rows_at_a_time();
        if is_too_much && matches!(picked, Ok(None)) {
            return self.waiting.push_front(reads);
        }
        self.outstanding_rows -= reads.rows.len();
        match picked {
            Err(error) => self.fail(reads.tags, &error),
            Ok(Some(picked)) => {
                let (mut tags, mut counts) = (Vec::with_capacity(reads.tags.len()), Vec::with_capacity(reads.tags.len()));
                for (tag, count) in reads.tags.into_iter().zip(picked.counts) {
                    match count {
                        Ok(count) => {
                            tags.push(tag);
                            counts.push(count);
                        }
                        Err(error) => self.fail(vec![tag], &error),
                    }
                }
                if !tags.is_empty() {
                    self.engine.metrics().requests.with_label_values(&["do_exchange", "ok"]).inc_by(tags.len() as u64);
                    self.answer(tags, counts, &picked.rows, false, picked.held.map(|held| Arc::new(held) as Held));
                }
            }
            Ok(None) => {
                let mut rows = reads.rows.into_iter();
                for (tag, count) in reads.tags.into_iter().zip(reads.counts) {
                    let rows = rows.by_ref().take(count as usize).collect();
                    let scan = Ticket::Scan(ScanRequest { rows: Some(rows), ..reads.template.request().clone() });
                    // Where it is the first that may give a schema, it stays the first.
                    if self.awaits_schema() && self.is_idle() {
                        self.start_scan(tag, scan);
                    } else {
                        self.queued_scans.push_back((tag, Ok(scan)));
                    }
                }
            }
        }
    }

    /// Goes on with scans; whether there is something to send.
    fn poll_scans(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            // Which schema a stream has: of a message, its row reads' rather than its scans'.
            while self.may_start(self.scanning.len(), MAX_SCANS) && (self.waiting.is_empty() || !self.awaits_schema()) {
                let Some((tag, ticket)) = self.queued_scans.pop_front() else { break };
                match ticket {
                    Ok(ticket) => self.start_scan(tag, ticket),
                    Err(error) => self.fail(vec![tag], &error),
                }
            }
            match self.scans.poll_next_unpin(cx) {
                Poll::Ready(Some((tag, step))) => self.step(tag, step),
                Poll::Ready(None) | Poll::Pending => return !self.ready.is_empty(),
            }
            if !self.ready.is_empty() {
                return true;
            }
        }
    }

    fn start_scan(&mut self, tag: u64, ticket: Ticket) {
        // Row reads that are too large for anything else come here with tags of their own.
        if self.scanning.contains_key(&tag) {
            return self.fail(vec![tag], &Error::invalid(format!("exchange: tag {tag} belongs to a scan under way")));
        }
        let metrics = Arc::clone(self.engine.metrics());
        metrics.active_scans.inc();
        let steps = scan(Arc::clone(&self.engine), ticket, Arc::clone(&self.meter));
        let (steps, stop) = abortable(steps);
        self.scans.push(steps.map(move |step| (tag, step)).boxed());
        self.scanning.insert(tag, Scan { stop, metrics, started_at: Instant::now() });
    }

    fn step(&mut self, tag: u64, step: Step) {
        // What was on its way when its scan was cancelled.
        if !self.scanning.contains_key(&tag) {
            return;
        }
        match step {
            Step::Batch(batch) => self.answer(vec![tag], Vec::new(), &batch.rows, true, batch.held),
            Step::Done(schema) => {
                self.scanning.remove(&tag);
                self.engine.metrics().requests.with_label_values(&["do_exchange", "ok"]).inc();
                self.answer(vec![tag], Vec::new(), &RecordBatch::new_empty(schema), false, None);
            }
            Step::Failed(error) => {
                self.scanning.remove(&tag);
                self.fail(vec![tag], &error);
            }
        }
    }

    /// Sends rows: all of these reads', or with `more` a part of one scan's.
    fn answer(&mut self, mut tags: Vec<u64>, mut counts: Vec<u32>, rows: &RecordBatch, more: bool, held: Option<Held>) {
        let form = self.form.unwrap_or(Form::Protobuf);
        let schema = match self.schemas.number(rows, form, &mut self.ready) {
            Ok(schema) => schema,
            Err(error) => {
                // Of a scan, nothing follows.
                for tag in &tags {
                    self.scanning.remove(tag);
                }
                return self.fail(tags, &error);
            }
        };
        if rows.num_rows() == 0 {
            let counts = vec![0; tags.len()];
            self.answered += if more { 0 } else { tags.len() as u64 };
            self.outstanding -= if more { 0 } else { tags.len() };
            let answers = Answers { schema, tags, counts, more, errors: Vec::new() };
            return self.ready.push_back(Message::of_metadata(&answers.encode(form)));
        }
        let started = Instant::now();
        let encoded = self.schemas.0[schema as usize].1.batch(rows);
        add_time(&self.meter.encode_us, started.elapsed());
        let frames = match encoded {
            Ok(frames) if frames.len() == 1 || tags.len() == 1 => frames,
            Err(error) if tags.len() == 1 => {
                self.scanning.remove(&tags[0]);
                return self.fail(tags, &error);
            }
            _ => {
                // Too large for one message, or one of the reads is for any: each half by itself.
                let half = tags.len() / 2;
                let (later_tags, later_counts) = (tags.split_off(half), counts.split_off(half));
                let at = counts.iter().map(|&count| count as usize).sum();
                self.answer(tags, counts, &rows.slice(0, at), more, held.clone());
                return self.answer(later_tags, later_counts, &rows.slice(at, rows.num_rows() - at), more, held);
            }
        };
        let metrics = self.engine.metrics();
        metrics.served_rows.inc_by(rows.num_rows() as u64);
        let last = frames.len() - 1;
        let mut all = Some((tags, counts));
        let mut first = None;
        for (at, frame) in frames.into_iter().enumerate() {
            let bytes = frame.len() as u64;
            self.meter.bytes.fetch_add(bytes, Ordering::Relaxed);
            metrics.served_bytes.inc_by(bytes);
            // Several frames are of one tag.
            let (tags, mut counts) = match all.take() {
                Some(all) => all,
                None => (first.into_iter().collect(), Vec::new()),
            };
            first = tags.first().copied();
            if tags.len() == 1 {
                counts = vec![frame.rows() as u32];
            }
            let goes_on = more || at < last;
            if !goes_on {
                self.answered += tags.len() as u64;
                self.outstanding -= tags.len();
            }
            let answers = Answers { schema, tags, counts, more: goes_on, errors: Vec::new() };
            self.ready.push_back(frame.into_message(&answers.encode(form), held.clone()));
        }
    }

    fn fail(&mut self, tags: Vec<u64>, error: &Error) {
        self.outstanding -= tags.len();
        self.failed += tags.len() as u64;
        let label = [("do_exchange"), error.kind.as_str()];
        self.engine.metrics().requests.with_label_values(&label).inc_by(tags.len() as u64);
        let errors = tags.into_iter().map(|tag| Failure::new(tag, error.clone())).collect();
        let form = self.form.unwrap_or(Form::Protobuf);
        self.ready.push_back(Message::of_metadata(&Answers { errors, ..Answers::default() }.encode(form)));
    }
}

impl Schemas {
    /// The number of a batch's schema. A new one is announced first.
    fn number(&mut self, rows: &RecordBatch, form: Form, ready: &mut VecDeque<Message>) -> Result<u32> {
        let schema = rows.schema_ref();
        let known = self.0.iter().position(|(known, _)| Arc::ptr_eq(known, schema) || known == schema);
        if let Some(at) = known {
            return Ok(at as u32);
        }
        if form == Form::Json && !self.0.is_empty() {
            let message = "the answer has another schema than this stream's, which has one only where requests are JSON: open another stream";
            return Err(Error::invalid(message));
        }
        if self.0.len() >= MAX_SCHEMAS {
            let message = format!("a stream's answers have at most {MAX_SCHEMAS} schemas: open another stream");
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        let encoder = Encoder::new(schema, None)?;
        let number = self.0.len() as u32;
        let answers = Answers { schema: number, ..Answers::default() };
        ready.push_back(encoder.schema().into_message(&answers.encode(form), None));
        self.0.push((Arc::clone(schema), encoder));
        Ok(number)
    }
}

/// Row reads, read together.
async fn read_joined(engine: Arc<Engine>, reads: Waiting, meter: Arc<ScanMeter>) -> Joined {
    let picking = AssertUnwindSafe(engine.read_rows(&reads.template, &reads.counts, &reads.rows, &meter));
    // A panic must reach the client as these requests' error.
    let gave_up = |_| Err(Error::internal("row reads gave up; the server's log says why"));
    let picked = picking.catch_unwind().await.unwrap_or_else(gave_up);
    Joined { reads, picked }
}

/// The steps of a ticket's scan, ending with one that says how it ended.
fn scan(engine: Arc<Engine>, ticket: Ticket, meter: Arc<ScanMeter>) -> impl futures::Stream<Item = Step> + Send {
    let steps = async_stream::stream! {
        let plan = match engine.plan(&ticket, &meter).await {
            Ok(plan) => plan,
            Err(error) => {
                yield Step::Failed(error);
                return;
            }
        };
        let schema = Arc::clone(plan.answer_schema());
        let mut batches = Box::pin(engine.execute(plan, meter));
        while let Some(batch) = batches.next().await {
            match batch {
                Ok(batch) => yield Step::Batch(batch),
                Err(error) => {
                    yield Step::Failed(error);
                    return;
                }
            }
        }
        yield Step::Done(schema);
    };
    // A panic must reach the client as that request's error.
    let gave_up = |_| Step::Failed(Error::internal("the scan gave up; the server's log says why"));
    AssertUnwindSafe(steps).catch_unwind().map(move |step| step.unwrap_or_else(gave_up))
}
