//! One stream: what is asked, who waits, and the two ends of the connection.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_flight::{FlightData, FlightDescriptor};
use bytes::{BufMut as _, Bytes};
use flightcache_proto::exchange::{
    Answers, Form, MAX_MESSAGE_BYTES, MAX_REQUESTS, MAX_TEMPLATES, Requests, RowReads, RowTemplate as WireTemplate, TaggedTicket,
};
use flightcache_proto::{Error, ErrorKind, Result};
use http_body::{Body, Frame};
use prost::Message as _;
use tokio::sync::oneshot;

use super::RowTemplate;
use crate::receive::{Answer, Decoder, Message, Payload};
use crate::routes::{Connection, Routes};

/// Bytes of requests that are gathered for one message, unless a single one takes more.
const TARGET_MESSAGE_BYTES: usize = 1 << 20;
/// Bytes of a message for its descriptor, and for what is given up and closed beside its requests.
const MAX_BESIDE_BYTES: usize = 64 << 10;

/// One request.
pub(super) enum Wanted {
    Rows { template: RowTemplate, rows: Arc<[u64]> },
    Scan { ticket: Vec<u8> },
}

/// A request that waits to be sent.
struct Queued {
    tag: u64,
    wanted: Wanted,
    /// In a message, without its template.
    bytes: usize,
}

/// An answer: all of it in `last`, unless there are parts before.
pub(super) struct Reply {
    pub(super) parts: Vec<RecordBatch>,
    pub(super) last: RecordBatch,
}

/// A stream, as those know it who ask.
#[derive(Debug, Default)]
pub(super) struct Session {
    state: Mutex<State>,
    is_over: AtomicBool,
}

#[derive(Default)]
struct State {
    next_tag: u64,
    asked: VecDeque<Queued>,
    cancelled: Vec<u64>,
    closed_templates: Vec<u32>,
    /// Templates that the server knows.
    opened: HashSet<u32>,
    waiting: HashMap<u64, Waiting>,
    /// Of the connection, which waits for something to send.
    sender: Option<Waker>,
    /// Nothing is asked any more.
    is_over: bool,
}

/// Who waits for an answer, and what came of it.
struct Waiting {
    reply: oneshot::Sender<Result<Reply>>,
    parts: Vec<RecordBatch>,
}

/// A request that was asked. Dropping it gives its answer up.
pub(super) struct Asked {
    session: Arc<Session>,
    tag: u64,
    is_scan: bool,
    reply: oneshot::Receiver<Result<Reply>>,
    has_ended: bool,
}

/// The requests of a stream, as the connection takes them.
pub(super) struct RequestBody {
    session: Arc<Session>,
    max_batch: Arc<AtomicUsize>,
    has_begun: bool,
    /// Others had a chance to ask since the last message.
    has_yielded: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} asked, {} waiting", self.asked.len(), self.waiting.len())
    }
}

impl Wanted {
    /// Bytes it takes in a message; an error if no message may hold it.
    fn bytes(&self) -> Result<usize> {
        let (bytes, of_template) = match self {
            Self::Rows { template, rows } => (RowReads::encoded_bytes(rows), template.encoded_bytes()),
            Self::Scan { ticket } => (TaggedTicket::encoded_bytes(ticket), 0),
        };
        let most = MAX_MESSAGE_BYTES - MAX_BESIDE_BYTES;
        if bytes + of_template > most {
            let message = format!("exchange: a request of {} bytes; at most {most}: ask for less at a time", bytes + of_template);
            return Err(Error::invalid(message));
        }
        Ok(bytes)
    }
}

impl State {
    fn wake_sender(&mut self) {
        if let Some(sender) = self.sender.take() {
            sender.wake();
        }
    }

    /// What is sent in one message.
    fn take(&mut self, max_batch: usize) -> Requests {
        let mut requests = Requests { cancel: some_of(&mut self.cancelled), ..Requests::default() };
        requests.close = some_of(&mut self.closed_templates);
        let (mut taken, mut taken_bytes) = (0, 0);
        while taken < max_batch {
            let Some(next) = self.asked.front() else { break };
            // If not, it was given up before it was sent.
            let is_wanted = self.waiting.contains_key(&next.tag);
            if is_wanted {
                let mut bytes = next.bytes;
                if let Wanted::Rows { template, .. } = &next.wanted
                    && !self.opened.contains(&template.number())
                {
                    bytes += template.encoded_bytes();
                    // The server closes templates after it has opened others.
                    let closing = requests.close.len() + self.closed_templates.len();
                    if closing > 0 && self.opened.len() + closing >= MAX_TEMPLATES {
                        break;
                    }
                }
                if taken > 0 && taken_bytes + bytes > TARGET_MESSAGE_BYTES {
                    break;
                }
                taken_bytes += bytes;
            }
            let Some(Queued { tag, wanted, .. }) = self.asked.pop_front() else { break };
            taken += usize::from(is_wanted);
            match wanted {
                Wanted::Scan { ticket } if is_wanted => requests.scans.push(TaggedTicket { tag, ticket }),
                Wanted::Scan { .. } => {}
                Wanted::Rows { template, .. } if !is_wanted => self.let_go(template),
                Wanted::Rows { template, .. }
                    if self.opened.len() >= MAX_TEMPLATES && !self.opened.contains(&template.number()) =>
                {
                    let message = format!("exchange: more than {MAX_TEMPLATES} templates are in use");
                    if let Some(waiting) = self.waiting.remove(&tag) {
                        // Nobody is there if it was given up just now.
                        let _ = waiting.reply.send(Err(Error::new(ErrorKind::ResourceExhausted, message)));
                    }
                    self.let_go(template);
                }
                Wanted::Rows { template, rows } => {
                    let number = template.number();
                    if self.opened.insert(number) {
                        requests.open.push(WireTemplate { template: number, scan: template.scan().clone() });
                    }
                    let at = requests.rows.iter().rposition(|reads| reads.template == number).unwrap_or_else(|| {
                        requests.rows.push(RowReads { template: number, ..RowReads::default() });
                        requests.rows.len() - 1
                    });
                    let reads = &mut requests.rows[at];
                    reads.tags.push(tag);
                    reads.counts.push(rows.len() as u32);
                    reads.rows.extend_from_slice(&rows);
                    // Its drop may want the state, which is locked.
                    self.let_go(template);
                }
            }
        }
        requests
    }

    /// Lets a template go, and tells the server if nobody else has it.
    fn let_go(&mut self, template: RowTemplate) {
        let number = template.number();
        // With its own drop disarmed: that would lock the state again.
        if let Some(mut prepared) = Arc::into_inner(template.prepared) {
            prepared.exchange = std::sync::Weak::new();
            if self.opened.remove(&number) {
                self.closed_templates.push(number);
            }
        }
    }
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Asks; `None` if the stream is over. What no message may hold is refused.
    pub(super) fn ask(self: &Arc<Self>, wanted: Wanted) -> Result<Option<Asked>> {
        let bytes = wanted.bytes()?;
        let (reply, receiver) = oneshot::channel();
        let is_scan = matches!(wanted, Wanted::Scan { .. });
        let mut state = self.lock();
        if state.is_over {
            // What is dropped may want the state.
            drop(state);
            return Ok(None);
        }
        let tag = state.next_tag;
        state.next_tag += 1;
        state.waiting.insert(tag, Waiting { reply, parts: Vec::new() });
        state.asked.push_back(Queued { tag, wanted, bytes });
        state.wake_sender();
        drop(state);
        Ok(Some(Asked { session: Arc::clone(self), tag, is_scan, reply: receiver, has_ended: false }))
    }

    /// Gives an answer up.
    fn forget(&self, tag: u64, is_scan: bool) {
        let mut state = self.lock();
        if state.waiting.remove(&tag).is_some() && is_scan && !state.is_over {
            // If it was not sent yet, the server knows no such scan, which is no error.
            state.cancelled.push(tag);
            state.wake_sender();
        }
    }

    /// Nobody uses a template any more. The server hears of it with the next message.
    pub(super) fn close_template(&self, number: u32) {
        let mut state = self.lock();
        if state.opened.remove(&number) {
            state.closed_templates.push(number);
        }
    }

    /// Ends the stream from this side.
    pub(super) fn close(&self) {
        self.fail(&Error::new(ErrorKind::Unavailable, "the exchange was closed"));
    }

    /// Ends the stream: whoever waits is told.
    fn fail(&self, error: &Error) {
        self.is_over.store(true, Ordering::Release);
        let (waiting, asked) = {
            let mut state = self.lock();
            state.is_over = true;
            state.wake_sender();
            (std::mem::take(&mut state.waiting), std::mem::take(&mut state.asked))
        };
        // What is dropped may want the state.
        drop(asked);
        for waiting in waiting.into_values() {
            // Nobody is there if it was given up just now.
            let _ = waiting.reply.send(Err(error.clone()));
        }
    }

    /// Hands a message's answers to those who wait.
    fn deliver(&self, message: &Message, schemas: &mut HashMap<u32, (SchemaRef, Decoder)>) -> Result<()> {
        let Answers { schema: number, tags, counts, more, errors } = Answers::parse(Form::Protobuf, &message.app_metadata)?;
        for failure in errors {
            let waiting = self.lock().waiting.remove(&failure.tag);
            if let Some(waiting) = waiting {
                let _ = waiting.reply.send(Err(failure.into_error()));
            }
        }
        let contradicts = || Error::internal("the server's answer contradicts itself");
        let batch = if message.header.is_empty() {
            None
        } else {
            let entry = schemas.entry(number);
            let (schema, decoder) = match entry {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => {
                    let mut decoder = Decoder::default();
                    let Payload::Schema(schema) = decoder.decode(message)? else { return Err(contradicts()) };
                    new.insert((schema, decoder));
                    return Ok(());
                }
            };
            match decoder.decode(message)? {
                Payload::Batch(batch) => Some(batch),
                Payload::Schema(now) => {
                    *schema = now;
                    return Ok(());
                }
                Payload::Nothing => None,
            }
        };
        if tags.is_empty() {
            return Ok(());
        }
        let batch = match batch {
            Some(batch) => batch,
            None => RecordBatch::new_empty(Arc::clone(&schemas.get(&number).ok_or_else(contradicts)?.0)),
        };
        let rows: u64 = counts.iter().map(|&count| u64::from(count)).sum();
        if counts.len() != tags.len() || rows != batch.num_rows() as u64 || (more && tags.len() != 1) {
            return Err(contradicts());
        }
        if more {
            if let Some(waiting) = self.lock().waiting.get_mut(&tags[0])
                && batch.num_rows() > 0
            {
                waiting.parts.push(batch);
            }
            return Ok(());
        }
        let waiting: Vec<Option<Waiting>> = {
            let mut state = self.lock();
            tags.iter().map(|tag| state.waiting.remove(tag)).collect()
        };
        let mut at = 0;
        for (waiting, count) in waiting.into_iter().zip(counts) {
            let count = count as usize;
            if let Some(Waiting { reply, parts }) = waiting {
                let last = if count == batch.num_rows() { batch.clone() } else { batch.slice(at, count) };
                // Nobody is there if it was given up just now.
                let _ = reply.send(Ok(Reply { parts, last }));
            }
            at += count;
        }
        Ok(())
    }
}

/// Receives a stream's answers until it ends.
pub(super) async fn receive(session: Arc<Session>, mut answers: Answer, routes: Arc<Routes>, server: Connection) {
    let mut schemas = HashMap::new();
    let error = loop {
        // Of whom nothing is asked, nothing is to be heard.
        let is_awaited = || !session.lock().waiting.is_empty();
        match routes.unless_lost_while(&server, is_awaited, answers.next_message()).await {
            Ok(Some(message)) => {
                if let Err(error) = session.deliver(&message, &mut schemas) {
                    break error;
                }
            }
            Ok(None) => break Error::new(ErrorKind::Unavailable, "the server ended the exchange"),
            // It was not the callers who went away.
            Err(error) if error.kind == ErrorKind::Cancelled => break Error { kind: ErrorKind::Unavailable, ..error },
            Err(error) => break error,
        }
    };
    routes.turn_from(&server, &error);
    session.fail(&error);
}

impl Future for Asked {
    type Output = Result<Reply>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = ready!(Pin::new(&mut self.reply).poll(cx));
        self.has_ended = true;
        // Whoever drops a sender has sent.
        Poll::Ready(reply.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the exchange ended"))))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.has_ended {
            self.session.forget(self.tag, self.is_scan);
        }
    }
}

impl RequestBody {
    pub(super) fn new(session: Arc<Session>, max_batch: Arc<AtomicUsize>) -> Self {
        Self { session, max_batch, has_begun: false, has_yielded: false }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let max_batch = this.max_batch.load(Ordering::Relaxed);
        let mut state = this.session.lock();
        if state.is_over {
            return Poll::Ready(None);
        }
        let requests = if this.has_begun {
            if state.asked.is_empty() && state.cancelled.is_empty() {
                state.sender = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if state.asked.len() < max_batch && !this.has_yielded {
                // One answer wakes many tasks, of which this one runs first: the others are about to ask.
                this.has_yielded = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            state.take(max_batch)
        } else {
            Requests::default()
        };
        drop(state);
        this.has_yielded = false;
        let descriptor = (!this.has_begun).then(|| FlightDescriptor::new_cmd(Form::Protobuf.command()));
        this.has_begun = true;
        Poll::Ready(Some(Ok(Frame::data(message(descriptor, requests)))))
    }
}

/// As many as one message may hold.
fn some_of<T>(all: &mut Vec<T>) -> Vec<T> {
    let rest = all.split_off(all.len().min(MAX_REQUESTS));
    std::mem::replace(all, rest)
}

/// A gRPC message of requests.
fn message(flight_descriptor: Option<FlightDescriptor>, requests: Requests) -> Bytes {
    let data = FlightData { flight_descriptor, app_metadata: requests.encode(Form::Protobuf).into(), ..FlightData::default() };
    let mut message = Vec::with_capacity(5 + data.encoded_len());
    message.put_u8(0);
    message.put_u32(data.encoded_len() as u32);
    // A vector grows as it needs to.
    let _ = data.encode(&mut message);
    message.into()
}
