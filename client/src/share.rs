//! A share as it is read: from an owner of its slot, from another where that one fails, and on from where it broke off.
//!
//! The rows of a share come in the same order whoever is asked, of the same versions of its objects. So what breaks off is asked for
//! again, and what was delivered already is passed over, as long as the versions are the same ([`ScanStats::versions`]).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use flightcache_proto::{Error, ErrorKind, Result, ScanStats, Slot};
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::client::Client;
use crate::link::Transfer;
use crate::receive::{self, Answer, Frame, Payload};
use crate::retry::{MAX_ATTEMPTS, back_off};
use crate::routes::{Connection, Owners};

/// Shares read at a time, of each owner: where one has much of what comes next, the others go on with what comes later.
const SHARES_AN_OWNER: usize = 3;
/// And in all, of one owner and of many.
const SHARES_AT_A_TIME: std::ops::RangeInclusive<usize> = 4..=12;
/// Batches of one share that wait for the reader.
const BATCHES_BUFFERED: usize = 4;
/// How long to wait for the rest of a cluster to notice that a server is gone: several times what it takes.
const PATIENCE: Duration = Duration::from_secs(15);
/// Times a share is asked for where it is said to be; then anyone may answer it.
const MAX_MOVES: u32 = 2;

/// What to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pub(crate) ticket: Bytes,
    /// Of its first row group; without one, anyone answers it.
    pub(crate) slot: Option<Slot>,
    /// It is answered with rows, whose order is known.
    pub(crate) is_of_rows: bool,
}

/// The figures of several shares.
pub(crate) type Figures = Arc<Mutex<Vec<ScanStats>>>;

/// An answer of which something came.
struct Begun {
    answer: Answer,
    /// Up to its first batch, in reverse.
    frames: Vec<Frame>,
    has_ended: bool,
}

/// What was delivered.
#[derive(Default)]
struct Delivered {
    rows: u64,
    /// Of the objects they are of; zero where the server does not tell.
    versions: u64,
}

/// What went wrong, and at whom.
struct Failed {
    error: Error,
    at: Option<Connection>,
}

/// What comes of shares, in their order. Several are read at a time, unless few rows are wanted; dropping the stream ends them all.
pub(crate) fn in_order(
    client: Client,
    shares: Vec<Share>,
    transfer: Transfer,
    figures: Figures,
    has_limit: bool,
) -> impl Stream<Item = Result<Payload>> + Send {
    async_stream::try_stream! {
        *figures.lock().unwrap_or_else(PoisonError::into_inner) = vec![ScanStats::default(); shares.len()];
        let mut shares = shares.into_iter().enumerate();
        let owners = client.routes.map().await.map_or(1, |map| map.nodes().len());
        let at_a_time = (SHARES_AN_OWNER * owners).clamp(*SHARES_AT_A_TIME.start(), *SHARES_AT_A_TIME.end());
        let at_a_time = if has_limit { 1 } else { at_a_time };
        let mut ahead = std::collections::VecDeque::new();
        loop {
            while ahead.len() < at_a_time && let Some((index, share)) = shares.next() {
                let (sender, receiver) = mpsc::channel(BATCHES_BUFFERED);
                let task = send_all(client.clone(), share, index, transfer, Arc::clone(&figures), sender);
                ahead.push_back((receiver, AbortOnDropHandle::new(tokio::spawn(task))));
            }
            let Some((mut payloads, task)) = ahead.pop_front() else { break };
            while let Some(payload) = payloads.recv().await {
                yield payload?;
            }
            // The channel closes when the task ends; that must have been an orderly end.
            task.await.map_err(|e| Error::internal(format!("reading a share gave up: {e}")))?;
        }
    }
}

async fn send_all(
    client: Client,
    share: Share,
    index: usize,
    transfer: Transfer,
    figures: Figures,
    sender: mpsc::Sender<Result<Payload>>,
) {
    let mut frames = std::pin::pin!(read(client, share, transfer));
    while let Some(frame) = frames.next().await {
        let frame = frame.map(|frame| {
            if let Some(so_far) = frame.stats
                && let Some(of_share) = figures.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index)
            {
                *of_share = so_far;
            }
            frame.payload
        });
        // Fails only when the scan is gone.
        if !matches!(frame, Ok(Payload::Nothing)) && sender.send(frame).await.is_err() {
            return;
        }
    }
}

/// The frames of a share.
pub(crate) fn read(client: Client, share: Share, transfer: Transfer) -> impl Stream<Item = Result<Frame>> + Send {
    async_stream::try_stream! {
        let mut delivered = Delivered::default();
        let (mut attempt, mut moves) = (1, 0);
        let mut since = Instant::now();
        // Who was unavailable last, and whether it said that it lacks the store.
        let (mut avoid, mut storeless): (Option<Connection>, bool) = (None, false);
        loop {
            let mut owners = match share.slot {
                Some(slot) => client.routes.owners(slot).await,
                None => Ok(client.routes.anyone()),
            };
            // Where no owner can be reached, or the only one cannot reach the store, another server may answer in their place.
            let is_out = |owner: &Connection| owner.is_doubtful() || storeless && avoid.as_ref().is_some_and(|at| owner.is(at));
            if let Ok(owners) = &mut owners
                && owners.connections.iter().all(is_out)
                && let Some(other) = client.routes.next(share.slot, avoid.as_ref())
            {
                *owners = Owners { connections: vec![other], epoch: None, ..*owners };
            }
            let epoch = owners.as_ref().ok().and_then(|owners| owners.epoch).filter(|_| moves < MAX_MOVES);
            let (known, mut passed_over, mut versions) = (delivered.rows, 0, 0);
            let begun = match &owners {
                Ok(owners) => open(&client, &share, owners, epoch, avoid.as_ref(), transfer).await,
                Err(error) => Err(Failed { error: error.clone(), at: None }),
            };
            let failed = match begun {
                Err(failed) => failed,
                Ok((mut begun, at)) => loop {
                    let frame = match client.routes.unless_lost(&at, begun.next()).await {
                        Ok(Some(frame)) => frame,
                        Ok(None) if passed_over < known => break Failed { error: shorter(), at: None },
                        Ok(None) => return,
                        Err(error) => break Failed { error, at: Some(at) },
                    };
                    let Frame { mut payload, stats } = frame;
                    versions = stats.map_or(versions, |stats| stats.versions);
                    if passed_over >= known {
                        // An answer may follow an object of which it sent nothing to a newer version.
                        delivered.versions = versions;
                    } else if matches!(payload, Payload::Batch(_)) && versions != delivered.versions {
                        break Failed { error: overwritten(), at: None };
                    }
                    if let Payload::Batch(batch) = payload {
                        let rows = batch.num_rows() as u64;
                        let again = rows.min(known - passed_over);
                        passed_over += again;
                        payload = if again == rows && rows > 0 { Payload::Nothing } else { Payload::Batch(rest(&batch, again)) };
                        if again < rows {
                            delivered.rows += rows - again;
                            (attempt, moves, since) = (1, 0, Instant::now());
                        }
                    }
                    yield Frame { payload, stats };
                },
            };
            let Failed { error, at } = failed;
            let may_go_on = delivered.rows == 0 || share.is_of_rows && delivered.versions != 0;
            let may_retry = may_go_on && error.kind.is_retryable() && error.kind != ErrorKind::Changed;
            let is_unavailable = error.kind == ErrorKind::Unavailable;
            let lacks_store = is_unavailable && error.is_stated;
            // The cluster notices that a server is gone, and not that the store is.
            let is_patient =
                owners.as_ref().map_or(true, |owners| owners.are_of_many) && since.elapsed() < PATIENCE && !lacks_store;
            match (&at, error.kind) {
                (Some(at), ErrorKind::Moved) => {
                    moves += 1;
                    // Who says so knows better. What it does not tell, the next answer will.
                    if client.routes.follow(at, epoch).await.is_err() {
                        client.routes.learn_from(&error);
                    }
                }
                _ => client.routes.learn_from(&error),
            }
            if let Some(at) = &at && share.slot.is_none() {
                client.routes.turn_from(at, &error);
            }
            if let Some(at) = at.as_ref().filter(|_| error.is_unreached()) {
                at.doubt();
            }
            if !may_retry || (attempt >= MAX_ATTEMPTS && !is_patient) {
                Err(error)?;
                return;
            }
            // Another server may be asked at once.
            let has_other = owners.is_ok_and(|owners| owners.are_of_many) && avoid.is_none();
            storeless = lacks_store;
            avoid = at.filter(|_| is_unavailable);
            attempt += 1;
            if avoid.is_none() || !has_other {
                back_off(attempt).await;
            }
        }
    }
}

/// Asks the owner that has least to do; another one too if that takes long.
async fn open(
    client: &Client,
    share: &Share,
    owners: &Owners,
    epoch: Option<u64>,
    avoid: Option<&Connection>,
    transfer: Transfer,
) -> Result<(Begun, Connection), Failed> {
    let mut candidates: Vec<&Connection> = owners.connections.iter().collect();
    if let Some(avoid) = avoid.filter(|_| candidates.len() > 1) {
        candidates.retain(|candidate| !candidate.is(avoid));
    }
    candidates.sort_by_cached_key(|candidate| (candidate.is_doubtful(), candidate.load()));
    let begin = |connection: &Connection| {
        let (connection, ticket) = (connection.clone(), share.ticket.clone());
        async move {
            match client.routes.unless_lost(&connection, Begun::begin(&connection, ticket, epoch, transfer)).await {
                Ok(begun) => Ok((begun, connection)),
                Err(error) => Err(Failed { error, at: Some(connection) }),
            }
        }
    };
    match candidates[..] {
        [] => Err(Failed { error: Error::internal("a slot without an owner"), at: None }),
        [only] => begin(only).await,
        [first, second, ..] => client.routes.hedges.race(begin(first), || begin(second)).await,
    }
}

impl Begun {
    async fn begin(connection: &Connection, ticket: Bytes, epoch: Option<u64>, transfer: Transfer) -> Result<Self> {
        let mut answer = receive::get(connection, ticket, epoch, transfer).await?;
        let (mut frames, mut has_ended) = (Vec::new(), false);
        loop {
            match answer.next().await? {
                Some(frame) => frames.push(frame),
                None => has_ended = true,
            }
            if has_ended || matches!(frames.last(), Some(Frame { payload: Payload::Batch(_), .. })) {
                frames.reverse();
                return Ok(Self { answer, frames, has_ended });
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Frame>> {
        match self.frames.pop() {
            Some(frame) => Ok(Some(frame)),
            None if self.has_ended => Ok(None),
            None => self.answer.next().await,
        }
    }
}

/// The rows of a batch that are new.
fn rest(batch: &RecordBatch, known: u64) -> RecordBatch {
    if known == 0 { batch.clone() } else { batch.slice(known as usize, batch.num_rows() - known as usize) }
}

fn overwritten() -> Error {
    Error::new(ErrorKind::Changed, "an object was overwritten while it was read, and the server that read it is gone")
}

fn shorter() -> Error {
    Error::new(ErrorKind::Changed, "a share that was asked for again has fewer rows than came of it before")
}
