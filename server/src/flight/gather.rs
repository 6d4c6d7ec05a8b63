//! A connection's writes, gathered: what HTTP/2 writes frame by frame in one turn of its task leaves in few system calls.
//!
//! h2 flushes after each frame of data, which for a small answer makes three calls: its schema, its batch, its trailers. Here small
//! writes are kept, at most [`MOST_BYTES`] of them, until there are too many, a large one follows, or the turn is over.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes kept.
const MOST_BYTES: usize = 64 << 10;
/// The largest write that is copied: a frame of the default size, with its head.
const SMALL_BYTES: usize = (16 << 10) + 9;
/// As many pieces as h2 hands over at a time, and what is kept.
const MOST_PIECES: usize = 65;

/// A stream whose writes are gathered. It never flushes by itself: [`Gathered::poll_drain`] does, at the end of a turn.
///
/// Shared by the connection that reads and writes and by whoever drains, both in one task: the lock is never waited for.
pub(super) struct Gathered<S>(Arc<Mutex<Gather<S>>>);

struct Gather<S> {
    stream: S,
    kept: Vec<u8>,
    /// Of what is kept: bytes that were written.
    written: usize,
    /// Anything was read.
    has_heard: bool,
}

impl<S> Gathered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Gather { stream, kept: Vec::new(), written: 0, has_heard: false })))
    }

    /// For the connection.
    pub(super) fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Whether the other end has said anything.
    pub(super) fn has_heard(&self) -> bool {
        self.lock().has_heard
    }

    fn lock(&self) -> MutexGuard<'_, Gather<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Writes what is kept.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.lock().poll_drain(cx)
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while self.written < self.kept.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.kept[self.written..]))?;
            self.advance(written)?;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Drops what was written from what is kept, and tells how much was written beyond it.
    fn advance(&mut self, written: usize) -> Result<usize> {
        if written == 0 {
            return Err(Error::from(ErrorKind::WriteZero));
        }
        let kept = written.min(self.kept.len() - self.written);
        self.written += kept;
        if self.written == self.kept.len() {
            self.kept.clear();
            self.written = 0;
        }
        Ok(written - kept)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let bytes = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        if bytes <= SMALL_BYTES && self.kept.len() + bytes <= MOST_BYTES {
            for piece in pieces {
                self.kept.extend_from_slice(piece);
            }
            return Poll::Ready(Ok(bytes));
        }
        while self.written < self.kept.len() {
            let mut all = [IoSlice::new(&[]); MOST_PIECES];
            all[0] = IoSlice::new(&self.kept[self.written..]);
            let count = pieces.len().min(MOST_PIECES - 1);
            all[1..=count].copy_from_slice(&pieces[..count]);
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &all[..=count]))?;
            let beyond = self.advance(written)?;
            if beyond > 0 {
                return Poll::Ready(Ok(beyond));
            }
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let (mut gather, before) = (self.lock(), into.filled().len());
        let read = Pin::new(&mut gather.stream).poll_read(cx, into);
        gather.has_heard |= into.filled().len() > before;
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.lock().poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        self.lock().poll_write(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().stream.is_write_vectored()
    }

    /// Nothing: the turn goes on.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut gather = self.lock();
        ready!(gather.poll_drain(cx))?;
        Pin::new(&mut gather.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes so many bytes, and tells each call.
    #[derive(Default)]
    struct Stream {
        room: usize,
        calls: Vec<Vec<u8>>,
        has_shut_down: bool,
    }

    impl AsyncWrite for Stream {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(mut self: Pin<&mut Self>, _: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<Result<usize>> {
            let taken: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).take(self.room).collect();
            if taken.is_empty() {
                return Poll::Pending;
            }
            self.room -= taken.len();
            self.calls.push(taken);
            Poll::Ready(Ok(self.calls.last().map_or(0, Vec::len)))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            self.has_shut_down = true;
            Poll::Ready(Ok(()))
        }
    }

    fn bytes(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|at| ((at * 31) ^ seed) as u8).collect()
    }

    #[test]
    fn small_writes_leave_in_one_call_at_the_end_of_a_turn() {
        let cx = &mut Context::from_waker(Waker::noop());
        let stream = Gathered::new(Stream { room: usize::MAX, ..Stream::default() });
        let mut connection = stream.share();
        for part in ["head", "batch", "trailers"] {
            assert!(matches!(Pin::new(&mut connection).poll_write(cx, part.as_bytes()), Poll::Ready(Ok(n)) if n == part.len()));
            assert!(matches!(Pin::new(&mut connection).poll_flush(cx), Poll::Ready(Ok(()))));
        }
        assert!(stream.lock().stream.calls.is_empty());
        assert!(matches!(stream.poll_drain(cx), Poll::Ready(Ok(()))));
        assert_eq!(stream.lock().stream.calls, [b"headbatchtrailers"]);
        assert!(matches!(stream.poll_drain(cx), Poll::Ready(Ok(()))));
        assert_eq!(stream.lock().stream.calls.len(), 1);
    }

    #[test]
    fn nothing_is_lost_or_moved_whatever_the_stream_takes() {
        let cx = &mut Context::from_waker(Waker::noop());
        let sizes = [5, 9, 300, SMALL_BYTES, SMALL_BYTES + 1, 70_000, 1, 16_393, 16_393, 16_393, 16_393, 1 << 20, 3, 0, 12];
        for room in [113, 1_000, 65_536, usize::MAX] {
            let stream = Gathered::new(Stream::default());
            let mut connection = stream.share();
            let mut expected = Vec::new();
            for (seed, size) in sizes.into_iter().enumerate() {
                let all = bytes(size, seed);
                expected.extend_from_slice(&all);
                let mut left = &all[..];
                while !left.is_empty() {
                    let (one, other) = left.split_at(left.len() / 3);
                    match Pin::new(&mut connection).poll_write_vectored(cx, &[IoSlice::new(one), IoSlice::new(other)]) {
                        Poll::Ready(written) => left = &left[written.unwrap()..],
                        Poll::Pending => stream.lock().stream.room = room,
                    }
                    assert!(stream.lock().kept.len() <= MOST_BYTES);
                }
            }
            while stream.poll_drain(cx).is_pending() {
                stream.lock().stream.room = room;
            }
            assert!(stream.lock().stream.calls.concat() == expected, "{room}");
        }
    }

    #[test]
    fn what_is_kept_leaves_with_what_is_large() {
        let cx = &mut Context::from_waker(Waker::noop());
        let stream = Gathered::new(Stream { room: usize::MAX, ..Stream::default() });
        let mut connection = stream.share();
        assert!(Pin::new(&mut connection).poll_write(cx, b"head").is_ready());
        assert!(matches!(Pin::new(&mut connection).poll_write(cx, &bytes(100_000, 0)), Poll::Ready(Ok(100_000))));
        assert_eq!(stream.lock().stream.calls.iter().map(Vec::len).collect::<Vec<_>>(), [100_004]);
    }

    #[test]
    fn shutting_down_waits_for_what_is_kept() {
        let cx = &mut Context::from_waker(Waker::noop());
        let stream = Gathered::new(Stream::default());
        let mut connection = stream.share();
        assert!(Pin::new(&mut connection).poll_write(cx, b"goaway").is_ready());
        assert!(Pin::new(&mut connection).poll_shutdown(cx).is_pending());
        assert!(!stream.lock().stream.has_shut_down);
        stream.lock().stream.room = 6;
        assert!(Pin::new(&mut connection).poll_shutdown(cx).is_ready());
        assert!(stream.lock().stream.has_shut_down);
        assert_eq!(stream.lock().stream.calls, [b"goaway"]);
    }
}
