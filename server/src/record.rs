//! Recording what is asked of the cache: one line for each row group that a request reads, in the format of
//! [`flightcache_traces::trace`]. Which columns, how many bytes and rows, found or not, when; no data, no filters.
//!
//! ```text
//!  scan: look-ups, rows --> RequestRecord --pieces--> queue --> writer --> file
//!                           (its lines)    (bounded)        (a thread)
//! ```
//!
//! - **A request** is one ticket's stream, one row read or one warming. Its lines are handed on when it ends, however it ends,
//!   or in pieces when they take 256 KiB. So the file has requests in the order of their ends, and pieces of
//!   a long one between others; reading a trace puts that in order.
//! - **Serving never waits.** The queue is bounded by bytes. A request that finds it full is dropped: all of its lines, or
//!   those from that piece on if others were handed on before. The same goes for all requests after a write has failed: the
//!   file is cut back to its last whole piece and recording ends.
//! - **Memory**: of a request, one piece and the lines of row groups it has under way; of all together, the queue.
//!
//! Reading order: `request`, `writer`.

mod request;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use flightcache_proto::{Error, Result};
use prometheus::IntCounter;
use tokio::sync::oneshot;

use self::request::Lines;
pub(crate) use self::request::{LookedUp, Place, RequestRecord, RowGroupRecord};
use self::writer::{Message, Output, Piece, Writer};

/// How long [`Recorder::close`] waits for the writer.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// A full queue is logged once in this time.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What a recorder may hold in memory, and for how long.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// A request hands its finished lines on when they take this many bytes.
    piece_bytes: u64,
    /// Pieces that wait for the writer take this many bytes, and that of one piece each request more.
    queue_bytes: u64,
    /// Age at which a handed-on line is in the file, if the file takes it.
    flush_every: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { piece_bytes: 256 << 10, queue_bytes: 16 << 20, flush_every: Duration::from_secs(1) }
    }
}

/// Writes a server's access trace.
pub struct Recorder {
    started_at: Instant,
    bounds: Bounds,
    messages: mpsc::Sender<Message>,
    queue: Arc<Queue>,
    warned_at: Mutex<Option<Instant>>,
    /// The lines of requests that have not ended, by request.
    live: Mutex<HashMap<u64, Arc<Mutex<Lines>>>>,
}

/// What the two ends of the queue share.
struct Queue {
    bytes: AtomicU64,
    /// Nothing is taken any more: a write has failed.
    failed: AtomicBool,
    /// Nothing is taken any more: the recorder was closed.
    closed: AtomicBool,
    dropped: IntCounter,
}

impl Queue {
    /// Counts a request as dropped, once.
    fn drop_request(&self, dropped: &AtomicBool) {
        if !dropped.swap(true, Ordering::AcqRel) {
            self.dropped.inc();
        }
    }
}

impl Recorder {
    /// Starts recording to `path`, which is created, or an empty file. `dropped` counts requests that could not be recorded.
    ///
    /// # Errors
    /// The file cannot be written, or something is in it already: times count from the start of one recording.
    pub fn create(path: &Path, dropped: IntCounter) -> Result<Arc<Self>> {
        let refused = |why: &dyn std::fmt::Display| Error::invalid(format!("cannot record to {}: {why}", path.display()));
        // Opening something else, such as a pipe, might not even return.
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Err(refused(&"it is not a regular file"));
        }
        let file = File::options().append(true).create(true).open(path).map_err(|e| refused(&e))?;
        match file.metadata().map_err(|e| refused(&e))?.len() {
            0 => Self::over(file, dropped, Bounds::default()).map_err(|e| refused(&e)),
            bytes => Err(refused(&format!("it already holds {bytes} bytes; move it away or name another file"))),
        }
    }

    fn over(output: impl Output, dropped: IntCounter, bounds: Bounds) -> io::Result<Arc<Self>> {
        let (messages, received) = mpsc::channel();
        let queue =
            Arc::new(Queue { bytes: AtomicU64::new(0), failed: AtomicBool::new(false), closed: AtomicBool::new(false), dropped });
        let writer = Writer::new(output, Arc::clone(&queue), bounds.flush_every);
        std::thread::Builder::new().name("record".to_owned()).spawn(move || writer.run(&received))?;
        let (warned_at, live) = (Mutex::default(), Mutex::default());
        Ok(Arc::new(Self { started_at: Instant::now(), bounds, messages, queue, warned_at, live }))
    }

    /// A request that begins; its number is its own. Dropping what this returns, and every row group's record made of it,
    /// ends it.
    pub(crate) fn request(self: &Arc<Self>, number: u64) -> Arc<RequestRecord> {
        let lines = Arc::new(Mutex::new(Lines::new(number)));
        lock(&self.live).insert(number, Arc::clone(&lines));
        Arc::new(RequestRecord::new(Arc::clone(self), lines))
    }

    /// Writes what there is, requests that have not ended included, and takes nothing more. Gives the file five seconds.
    pub async fn close(&self) {
        let live: Vec<_> = lock(&self.live).values().cloned().collect();
        for lines in live {
            self.hand_on(lock(&lines).take_all());
        }
        self.queue.closed.store(true, Ordering::Release);
        let (written, done) = oneshot::channel();
        // Without a writer there is nothing to wait for.
        if self.messages.send(Message::Close(written)).is_ok() && tokio::time::timeout(CLOSE_WAIT, done).await.is_err() {
            tracing::warn!("the end of the access trace could not be written in time");
        }
    }

    fn now_us(&self) -> u64 {
        self.started_at.elapsed().as_micros() as u64
    }

    /// Passes a piece to the writer, or drops its request.
    fn hand_on(&self, piece: Piece) {
        let queue = &self.queue;
        if piece.lines.is_empty() || piece.dropped.load(Ordering::Acquire) || queue.closed.load(Ordering::Acquire) {
            return;
        }
        if queue.failed.load(Ordering::Acquire) {
            return queue.drop_request(&piece.dropped);
        }
        let bytes = piece.bytes;
        // What one piece exceeds the bound by is bounded itself.
        if queue.bytes.fetch_add(bytes, Ordering::AcqRel) >= self.bounds.queue_bytes {
            queue.bytes.fetch_sub(bytes, Ordering::AcqRel);
            queue.drop_request(&piece.dropped);
            return self.warn();
        }
        // Without a writer, the recorder was closed.
        let _ = self.messages.send(Message::Piece(piece));
    }

    fn warn(&self) {
        let mut warned_at = lock(&self.warned_at);
        if warned_at.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            *warned_at = Some(Instant::now());
            tracing::warn!(dropped = self.queue.dropped.get(), "the access trace cannot be written as fast as requests come");
        }
    }
}

/// No code of others runs under these locks: what a panic leaves behind is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
