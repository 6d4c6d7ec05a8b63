//! The writer: a thread that makes text of lines, and puts it into the file.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use flightcache_traces::{Access, Problem};
use tokio::sync::oneshot;

use super::Queue;
use super::request::Line;

/// Text is written when there is this much of it, or when it is old enough.
const BUFFER_BYTES: usize = 64 << 10;

/// Where the text goes.
pub(super) trait Output: Write + Send + 'static {
    /// Cuts what was written back to its first `bytes`.
    fn cut(&mut self, bytes: u64) -> io::Result<()>;
}

impl Output for File {
    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

/// Some lines of a request.
pub(super) struct Piece {
    pub(super) request: u64,
    pub(super) lines: Vec<Line>,
    /// Bytes they take in memory.
    pub(super) bytes: u64,
    /// Whether the request is dropped: no more of it is written.
    pub(super) dropped: Arc<AtomicBool>,
}

/// What the writer is told.
pub(super) enum Message {
    Piece(Piece),
    /// Write what there is, say so, and end.
    Close(oneshot::Sender<()>),
}

/// The writer's side of a recorder.
pub(super) struct Writer<W> {
    output: W,
    queue: Arc<Queue>,
    flush_every: Duration,
    /// Whole pieces that are still to be written.
    text: Vec<u8>,
    /// Whose they are.
    requests: Vec<Arc<AtomicBool>>,
    written_bytes: u64,
}

impl<W: Output> Writer<W> {
    pub(super) fn new(output: W, queue: Arc<Queue>, flush_every: Duration) -> Self {
        Self { output, queue, flush_every, text: Vec::new(), requests: Vec::new(), written_bytes: 0 }
    }

    /// Works until it is told to close, or nobody is left to tell it.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        let mut flush_at: Option<Instant> = None;
        loop {
            let message = match flush_at {
                Some(at) => messages.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => messages.recv().map_err(RecvTimeoutError::from),
            };
            match message {
                Ok(Message::Piece(piece)) => {
                    self.take(piece);
                    flush_at.get_or_insert_with(|| Instant::now() + self.flush_every);
                }
                Ok(Message::Close(written)) => {
                    self.flush();
                    // Nobody waits any more.
                    let _ = written.send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.flush(),
            }
            if self.text.len() >= BUFFER_BYTES || flush_at.is_some_and(|at| at <= Instant::now()) {
                self.flush();
                flush_at = None;
            }
        }
    }

    fn take(&mut self, piece: Piece) {
        self.queue.bytes.fetch_sub(piece.bytes, Ordering::AcqRel);
        if piece.dropped.load(Ordering::Acquire) {
            return;
        }
        if self.queue.failed.load(Ordering::Acquire) {
            return self.queue.drop_request(&piece.dropped);
        }
        let start = self.text.len();
        for line in piece.lines {
            let (url, row_group) = (line.url.clone(), line.row_group);
            if let Err(problem) = push(access(piece.request, line), &mut self.text) {
                tracing::info!(url, row_group, %problem, "a request cannot be recorded");
                self.text.truncate(start);
                return self.queue.drop_request(&piece.dropped);
            }
        }
        self.requests.push(piece.dropped);
    }

    /// Writes what there is. After a failure nothing is ever written again: what follows would lack what comes before.
    fn flush(&mut self) {
        let written = self.output.write_all(&self.text).and_then(|()| self.output.flush());
        match written {
            Ok(()) => self.written_bytes += self.text.len() as u64,
            Err(error) => {
                self.queue.failed.store(true, Ordering::Release);
                self.requests.iter().for_each(|dropped| self.queue.drop_request(dropped));
                // The last line may be there in part.
                let is_whole = self.output.cut(self.written_bytes).is_ok();
                let bytes = self.written_bytes;
                tracing::error!(%error, bytes, is_whole, "the access trace cannot be written: recording ends");
            }
        }
        self.text.clear();
        self.requests.clear();
    }
}

fn access(request: u64, line: Line) -> Access {
    let name = |column: u32| line.schema.fields().get(column as usize).map_or("", |field| field.name());
    Access {
        at_us: line.at_us,
        request,
        url: line.url.into(),
        row_group: Some(line.row_group),
        columns: line.columns.keys().map(|&column| Arc::from(name(column))).collect(),
        bytes: line.columns.values().map(|(bytes, _)| *bytes).collect(),
        rows: line.rows,
        hit: Some(line.columns.values().map(|(_, hit)| *hit).collect()),
    }
}

/// Adds an access as one line, or as several, each with some of its columns, the first with its rows.
fn push(mut access: Access, text: &mut Vec<u8>) -> Result<(), Problem> {
    match access.to_line() {
        Ok(line) => {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
            Ok(())
        }
        Err(Problem::TooLong) if access.columns.len() > 1 => {
            let (first, second) = access.columns.split_at(access.columns.len() / 2);
            let (half, first, second) = (first.len(), Arc::from(first), Arc::from(second));
            let rest = Access {
                columns: second,
                bytes: access.bytes.split_off(half),
                hit: access.hit.as_mut().map(|hit| hit.split_off(half)),
                rows: 0,
                url: Arc::clone(&access.url),
                ..access
            };
            access.columns = first;
            push(access, text)?;
            push(rest, text)
        }
        Err(problem) => Err(problem),
    }
}
