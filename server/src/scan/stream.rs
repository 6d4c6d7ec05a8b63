//! Streaming a scan: row groups ahead of the reader, in order, restarted when an object turns out overwritten.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use arrow::array::RecordBatch;
use flightcache_proto::{Error, ErrorKind, Result};
use futures::future::Either;
use futures::{Stream, StreamExt as _};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::Engine;
use super::load::RowGroupRef;
use super::parquet_rows::ParquetRows;
use super::plan::{ObjectPlan, ScanPlan, versions};
use super::row_group::{Loaded, Turn, Turns};
use crate::admin::{ScanMeter, add_time};
use crate::parquet::Footer;
use crate::record::{RequestRecord, RowGroupRecord};
use crate::settings::Residency;

/// Times an object may be found overwritten before the scan gives up.
pub(super) const MAX_RESTARTS: usize = 5;
/// Row groups read ahead at most.
const MAX_AHEAD: usize = 16;

/// Bytes decoded ahead at most, where arrays do not stay.
const MAX_DECODED_AHEAD_BYTES: u64 = 32 << 20;

/// A batch of an answer.
pub struct Batch {
    /// In the announced types, or where the client takes them as dictionaries of such.
    pub rows: RecordBatch,
    /// The chunks whose memory the rows may show; what is held of them stays accounted.
    pub held: Option<Arc<dyn Any + Send + Sync>>,
}

/// What a client takes besides Arrow in the announced types.
#[derive(Clone, Copy, Debug, Default)]
pub struct Takes {
    /// Whole row groups as Parquet.
    pub parquet: bool,
    /// Strings as the dictionaries they rest in.
    pub dictionaries: bool,
    /// It is another server of the cluster.
    pub is_for_peer: bool,
}

/// What an answer consists of.
pub enum Part {
    /// Rows.
    Batch(Batch),
    /// A whole row group, which the client decodes.
    Parquet(ParquetRows),
}

/// A row group being loaded. Dropping it stops the load, unless others wait for it too.
struct Running {
    object: usize,
    group: u32,
    loaded: Load,
    record: Option<Arc<RowGroupRecord>>,
}

enum Load {
    /// It had to wait for nothing.
    Done(Box<Result<Loaded>>),
    Task(AbortOnDropHandle<Result<Loaded>>),
}

impl Load {
    /// Begins a load, here if it is the next to be read, and goes on in a task if it has to wait.
    fn begin(load: impl Future<Output = Result<Loaded>> + Send + 'static, is_next: bool) -> Self {
        let mut load = Box::pin(load);
        if is_next && let Poll::Ready(loaded) = load.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Self::Done(Box::new(loaded));
        }
        Self::Task(AbortOnDropHandle::new(tokio::spawn(load)))
    }

    async fn end(self, url: &str) -> Result<Loaded> {
        match self {
            Self::Done(loaded) => *loaded,
            Self::Task(task) => {
                task.await.unwrap_or_else(|panic| Err(Error::internal(format!("{url}: reading a row group gave up: {panic}"))))
            }
        }
    }
}

/// The part of a scan that is still to be done.
struct Driver {
    engine: Arc<Engine>,
    plan: Arc<ScanPlan>,
    meter: Arc<ScanMeter>,
    request: u64,
    record: Option<Arc<RequestRecord>>,
    objects: Vec<ObjectPlan>,
    queue: VecDeque<(usize, u32)>,
    running: VecDeque<Running>,
    /// Told when the youngest running row group has reserved memory for the filter's columns, and for the answer's.
    filter_turn: oneshot::Receiver<()>,
    answer_turn: oneshot::Receiver<()>,
    ahead: usize,
    max_ahead: usize,
    takes: Takes,
    /// The object that the last batch was of.
    sent_of: Option<usize>,
    restarts: usize,
}

impl Driver {
    fn new(engine: Arc<Engine>, plan: Arc<ScanPlan>, meter: Arc<ScanMeter>, takes: Takes) -> Self {
        let objects = plan.objects.clone();
        let queue: VecDeque<_> =
            objects.iter().enumerate().flat_map(|(at, object)| object.row_groups.iter().map(move |&group| (at, group))).collect();
        let columns = plan.read_columns();
        // How many row groups' columns make so many bytes, on the average.
        let fitting = |bytes: u64, of_column: fn(&Footer, u32, usize) -> u64| {
            let sum: u64 = queue
                .iter()
                .flat_map(|&(at, group)| columns.iter().map(move |&column| (at, group, column)))
                .filter_map(|(at, group, column)| {
                    let object: &ObjectPlan = &objects[at];
                    Some(of_column(&object.footer, group, super::file_column(&object.columns[column])?))
                })
                .fold(0, u64::saturating_add);
            bytes / (sum / (queue.len() as u64).max(1)).max(1)
        };
        let mut max_ahead = fitting(engine.read_ahead_bytes, Footer::compressed_bytes);
        let may_answer_parquet = |object: &ObjectPlan| engine.may_answer_parquet(&plan, &object.footer, &object.columns);
        if engine.residency == Residency::Parquet && !(takes.parquet && objects.iter().all(may_answer_parquet)) {
            // What is decoded ahead is held beyond what may stay.
            max_ahead = max_ahead.min(fitting(MAX_DECODED_AHEAD_BYTES, Footer::decoded_bytes_estimate));
        }
        let max_ahead = max_ahead.clamp(2, MAX_AHEAD as u64) as usize;
        // With a limit, the first row groups may be enough: begin with one, and double.
        let ahead = if plan.request.limit.is_some() { 1 } else { max_ahead };
        let (request, record) = engine.next_request();
        // Their senders are dropped: the first row group's turns have come.
        let (filter_turn, answer_turn) = (oneshot::channel().1, oneshot::channel().1);
        let running = VecDeque::new();
        Self {
            engine,
            plan,
            meter,
            request,
            record,
            objects,
            queue,
            running,
            filter_turn,
            answer_turn,
            ahead,
            max_ahead,
            takes,
            sent_of: None,
            restarts: 0,
        }
    }

    fn fill(&mut self) {
        while self.running.len() < self.ahead {
            let Some((object, group)) = self.queue.pop_front() else { return };
            let part = &self.objects[object];
            let record = self.record.as_ref().map(RequestRecord::row_group);
            let row_group = RowGroupRef {
                footer: Arc::clone(&part.footer),
                row_group: group,
                request: self.request,
                populate: self.plan.request.populate,
                meter: Arc::clone(&self.meter),
                record: record.clone(),
                is_for_peer: self.takes.is_for_peer,
            };
            let turns = Turns { filter: Turn::after(&mut self.filter_turn), answer: Turn::after(&mut self.answer_turn) };
            let (plan, columns) = (Arc::clone(&self.plan), Arc::clone(&part.columns));
            let load = Arc::clone(&self.engine).row_group(plan, columns, row_group, turns, self.takes.parquet);
            let loaded = Load::begin(load, self.running.is_empty());
            self.running.push_back(Running { object, group, loaded, record });
        }
    }

    /// Whether an object that turned out overwritten can be started anew: nothing of it was sent.
    fn may_restart(&self, object: usize, error: &Error) -> bool {
        error.kind == ErrorKind::Changed
            && self.sent_of != Some(object)
            && self.objects[object].whole
            && self.restarts < MAX_RESTARTS
    }

    /// Starts an object anew on its current version: what is queued and running of it is replaced.
    async fn restart(&mut self, object: usize, error: &Error) -> Result<()> {
        self.restarts += 1;
        let old = &self.objects[object];
        tracing::info!(url = old.footer.object.url(), cause = %error, "overwritten while it was read: starting over");
        let renewed = self.engine.replan_object(&self.plan, old, &self.meter).await?;
        self.running.retain(|running| running.object != object);
        self.queue.retain(|(at, _)| *at != object);
        // Of the objects after this one, some row groups may be running already: they are queued again, behind it, so that the
        // order holds; what they loaded is in the cache.
        for running in self.running.drain(..).rev() {
            self.queue.push_front((running.object, running.group));
        }
        for &group in renewed.row_groups.iter().rev() {
            self.queue.push_front((object, group));
        }
        self.objects[object] = renewed;
        self.meter.versions.store(versions(&self.objects), Ordering::Relaxed);
        Ok(())
    }
}

impl Engine {
    /// The batches of a scan, in order. Dropping the stream stops the work.
    pub fn execute(
        self: &Arc<Self>,
        plan: Arc<ScanPlan>,
        meter: Arc<ScanMeter>,
    ) -> impl Stream<Item = Result<Batch>> + Send + use<> {
        self.answer(plan, meter, Takes::default()).map(|part| match part? {
            Part::Batch(batch) => Ok(batch),
            Part::Parquet(_) => Err(Error::internal("Parquet was not asked for")),
        })
    }

    /// The same for a client that may take other forms.
    pub fn answer(
        self: &Arc<Self>,
        plan: Arc<ScanPlan>,
        meter: Arc<ScanMeter>,
        takes: Takes,
    ) -> impl Stream<Item = Result<Part>> + Send + use<> {
        match plan.aggregate.clone() {
            Some(aggregate) => Either::Left(self.states(plan, aggregate, meter)),
            None => Either::Right(self.parts(plan, meter, takes)),
        }
    }

    /// The rows of a scan, whatever becomes of them.
    pub(super) fn parts(
        self: &Arc<Self>,
        plan: Arc<ScanPlan>,
        meter: Arc<ScanMeter>,
        takes: Takes,
    ) -> impl Stream<Item = Result<Part>> + Send + use<> {
        let engine = Arc::clone(self);
        async_stream::try_stream! {
            let mut left = plan.request.limit.unwrap_or(u64::MAX);
            if plan.request.rows.is_some() {
                for await batch in engine.rows(Arc::clone(&plan), Arc::clone(&meter)) {
                    yield Part::Batch(batch?);
                }
                left = 0;
            }
            let mut driver = Driver::new(engine, Arc::clone(&plan), Arc::clone(&meter), takes);
            while left > 0 {
                driver.fill();
                let Some(running) = driver.running.pop_front() else { break };
                let Running { object, loaded, record, .. } = running;
                let loaded = match loaded.end(&plan.request.url).await {
                    Err(error) if driver.may_restart(object, &error) => {
                        driver.restart(object, &error).await?;
                        continue;
                    }
                    loaded => loaded?,
                };
                driver.ahead = (driver.ahead * 2).min(driver.max_ahead);
                if let Loaded::Parquet(rows) = loaded {
                    meter.rows.fetch_add(rows.file.rows as u64, Ordering::Relaxed);
                    if let Some(record) = &record {
                        record.rows(rows.file.rows as u64);
                    }
                    driver.sent_of = Some(object);
                    driver.fill();
                    yield Part::Parquet(rows);
                    continue;
                }
                let mut batches = loaded;
                loop {
                    let started = Instant::now();
                    let batch = match &mut batches {
                        Loaded::NoMatch | Loaded::Parquet(_) => None,
                        Loaded::Resident(rows) => rows.next_batch(&plan, takes),
                        Loaded::Banded(bands) => bands.next_batch().await,
                    };
                    let Some(batch) = batch else { break };
                    let mut batch = match batch {
                        Err(error) if driver.may_restart(object, &error) => {
                            driver.restart(object, &error).await?;
                            break;
                        }
                        batch => batch?,
                    };
                    if batch.num_rows() as u64 > left {
                        batch = batch.slice(0, left as usize);
                    }
                    add_time(&meter.filter_us, started.elapsed());
                    left -= batch.num_rows() as u64;
                    meter.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                    if let Some(record) = &record {
                        record.rows(batch.num_rows() as u64);
                    }
                    driver.sent_of = Some(object);
                    // What is next is under way while this batch is encoded and sent.
                    if left > 0 {
                        driver.fill();
                    }
                    yield Part::Batch(Batch { rows: batch, held: batches.held() });
                    if left == 0 {
                        break;
                    }
                }
            }
        }
    }
}
