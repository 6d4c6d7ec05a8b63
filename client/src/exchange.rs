//! Many small requests over one stream: asked by any number of tasks, sent together, answered as they are done.
//!
//! ```text
//!  tasks --rows, scan--> what is asked --RequestBody: all that gathered while the last message left--> DoExchange
//!    ^                                                                                                     |
//!    +------ slices of the batch ------ who waits, by tag <---------- one task that receives <-------------+
//! ```
//!
//! A message leaves when the connection takes it and holds whatever was asked until then, up to a bound: alone, a request is
//! not held back, and under load one message carries many.

mod session;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use flightcache_proto::exchange::{MAX_REQUESTS, RowTemplate as WireTemplate};
use flightcache_proto::{Error, Result, ScanRequest, Ticket};
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;

use self::session::{RequestBody, Session, Wanted};
use crate::client::Client;
use crate::receive;
use crate::retry::retrying;

/// Requests sent in one message, unless it is said otherwise.
const DEFAULT_MAX_BATCH: usize = 64;

/// Numbers templates, so that one can be used with any stream.
static TEMPLATES: AtomicU32 = AtomicU32::new(0);

/// A stream of requests. Cheap to clone; clones share the stream. When it breaks, what was asked fails with a retryable error,
/// and the next request opens another.
#[derive(Clone, Debug)]
pub struct Exchange {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    max_batch: Arc<AtomicUsize>,
    current: Mutex<Option<Current>>,
    /// Held while a stream is opened, so that all who wait for one get the same.
    opening: tokio::sync::Mutex<()>,
}

/// The stream in use, and the task that receives its answers.
#[derive(Debug)]
struct Current {
    session: Arc<Session>,
    _receiving: AbortOnDropHandle<()>,
}

impl Drop for Current {
    fn drop(&mut self) {
        self.session.close();
    }
}

/// What row reads have in common: the object, the columns. The server prepares it once a stream.
#[derive(Clone, Debug)]
pub struct RowTemplate {
    prepared: Arc<Prepared>,
}

#[derive(Debug)]
struct Prepared {
    number: u32,
    scan: ScanRequest,
    /// In a message.
    encoded_bytes: usize,
    exchange: Weak<Inner>,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let Some(exchange) = self.exchange.upgrade() else { return };
        if let Some(session) = exchange.session_now() {
            session.close_template(self.number);
        }
    }
}

/// The answer of a scan.
#[derive(Clone, Debug, PartialEq)]
pub struct ScanAnswer {
    /// The schema of the batches.
    pub schema: SchemaRef,
    /// The rows, in order. None of the batches is empty.
    pub batches: Vec<RecordBatch>,
}

impl Inner {
    fn session_now(&self) -> Option<Arc<Session>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|current| Arc::clone(&current.session)).filter(|session| !session.is_over())
    }

    /// The stream, opened anew if there is none.
    async fn session(&self) -> Result<Arc<Session>> {
        if let Some(session) = self.session_now() {
            return Ok(session);
        }
        let _turn = self.opening.lock().await;
        if let Some(session) = self.session_now() {
            return Ok(session);
        }
        let current = retrying(|| self.open()).await?;
        let session = Arc::clone(&current.session);
        let replaced = self.current.lock().unwrap_or_else(PoisonError::into_inner).replace(current);
        drop(replaced);
        Ok(session)
    }

    async fn open(&self) -> Result<Current> {
        let routes = &self.client.routes;
        let open = async {
            let server = routes.sole_owner().await?.unwrap_or_else(|| routes.contact());
            let session = Arc::new(Session::default());
            let body = RequestBody::new(Arc::clone(&session), Arc::clone(&self.max_batch));
            let begun = routes.unless_lost(&server, receive::do_exchange(server.channel(), Body::new(body))).await;
            let answers = begun.inspect_err(|error| routes.turn_from(&server, error))?;
            let receiving = tokio::spawn(session::receive(Arc::clone(&session), answers, Arc::clone(routes), server));
            Ok(Current { session, _receiving: AbortOnDropHandle::new(receiving) })
        };
        open.await.inspect_err(|e| routes.learn_from(e))
    }

    async fn ask(&self, wanted: impl Fn() -> Wanted) -> Result<session::Reply> {
        loop {
            let session = self.session().await?;
            // A stream that broke since is replaced: nothing was asked of it.
            let Some(asked) = session.ask(wanted())? else { continue };
            return asked.await.inspect_err(|e| self.client.routes.learn_from(e));
        }
    }
}

impl Exchange {
    pub(crate) async fn open(client: Client) -> Result<Self> {
        let inner = Inner {
            client,
            max_batch: Arc::new(AtomicUsize::new(DEFAULT_MAX_BATCH)),
            current: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        };
        inner.session().await?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Sends at most this many requests in one message; at least 1, and at most as many as a server takes.
    pub fn set_max_batch(&self, requests: usize) {
        self.inner.max_batch.store(requests.clamp(1, MAX_REQUESTS), Ordering::Relaxed);
    }

    /// Prepares row reads: `scan` says of what object and which columns, and has no rows itself. Sends nothing yet.
    pub fn template(&self, scan: ScanRequest) -> Result<RowTemplate> {
        if scan.rows.is_some() {
            return Err(Error::invalid("a template has no rows; they belong to its reads"));
        }
        let number = TEMPLATES.fetch_add(1, Ordering::Relaxed);
        let encoded_bytes = WireTemplate::encoded_bytes(&scan);
        Ok(RowTemplate { prepared: Arc::new(Prepared { number, scan, encoded_bytes, exchange: Arc::downgrade(&self.inner) }) })
    }

    /// The rows with these numbers, in this order. Dropping the future gives the answer up.
    pub async fn rows(&self, template: &RowTemplate, rows: impl Into<Arc<[u64]>>) -> Result<RecordBatch> {
        let rows = rows.into();
        let wanted = || Wanted::Rows { template: template.clone(), rows: Arc::clone(&rows) };
        let session::Reply { parts, last } = self.inner.ask(wanted).await?;
        if parts.is_empty() {
            return Ok(last);
        }
        let schema = last.schema();
        concat_batches(&schema, parts.iter().chain([&last])).map_err(|e| Error::internal(format!("joining an answer: {e}")))
    }

    /// All rows of a scan, which are gathered in memory: for large ones there is [`Client::scan`]. Dropping the future stops the
    /// scan.
    pub async fn scan(&self, request: ScanRequest) -> Result<ScanAnswer> {
        let ticket = Ticket::Scan(request).encode();
        let session::Reply { mut parts, last } = self.inner.ask(|| Wanted::Scan { ticket: ticket.clone() }).await?;
        let schema = last.schema();
        if last.num_rows() > 0 {
            parts.push(last);
        }
        Ok(ScanAnswer { schema, batches: parts })
    }
}

impl RowTemplate {
    /// What was prepared.
    pub fn scan(&self) -> &ScanRequest {
        &self.prepared.scan
    }

    fn number(&self) -> u32 {
        self.prepared.number
    }

    fn encoded_bytes(&self) -> usize {
        self.prepared.encoded_bytes
    }
}
