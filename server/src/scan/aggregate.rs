//! Partial aggregates over the rows of a scan: `DataFusion`'s, in bounded memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, task};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNode as _;
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::execution::memory_pool::{MemoryLimit, MemoryPool, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite as _;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use flightcache_proto::aggregation::Aggregation;
use flightcache_proto::{Error, ErrorKind, Result};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::growth::BoundGrowth;
use super::predicate::on_deep_stack;
use super::stream::{Batch, Takes};
use super::{Engine, Part, ScanPlan};
use crate::admin::ScanMeter;

/// Bytes the groups of one answer may take. Beyond, states go out before all rows are in.
const MOST_BYTES: usize = 32 << 20;
/// Bytes they may take whatever the others do.
const LEAST_BYTES: usize = 2 << 20;
/// Bytes the groups of all answers may take, each one's least ones aside.
const ALL_BYTES: usize = 128 << 20;
/// States ahead of the reader.
const STATES_AHEAD: usize = 1;
/// Longer aggregations may nest too deep for a thread's own stack.
const SHALLOW_BYTES: usize = 4 << 10;

/// A partial aggregate over a scan's columns.
pub(crate) struct Aggregate {
    aggregation: Aggregation,
    /// Of its states.
    pub(crate) schema: SchemaRef,
    is_deep: bool,
}

impl Aggregate {
    /// Reads a `flightcache.v1.Aggregation` over columns.
    pub(crate) fn read(bytes: &[u8], columns: &SchemaRef) -> Result<Self> {
        let aggregation = Aggregation::parse(bytes)?;
        let none = Arc::new(EmptyExec::new(Arc::clone(columns)));
        let schema = planned(&aggregation, none)?.schema();
        Ok(Self { aggregation, schema, is_deep: bytes.len() > SHALLOW_BYTES })
    }

    fn over(&self, rows: Rows) -> Result<Arc<AggregateExec>> {
        let schema = Arc::clone(&rows.schema);
        let rows = StreamingTableExec::try_new(schema, vec![Arc::new(rows)], None, [], false, None);
        let rows = Arc::new(rows.map_err(|e| Error::internal(e.strip_backtrace()))?);
        planned(&self.aggregation, rows).map(Arc::new)
    }
}

/// An aggregation over rows, none of whose expressions makes more of them than fits.
fn planned(aggregation: &Aggregation, rows: Arc<dyn ExecutionPlan>) -> Result<AggregateExec> {
    let options = ConfigOptions::new();
    let bound = |expr: Expr, over: &DFSchema| Ok(expr.transform_up(|expr| BoundGrowth.rewrite(expr, over, &options))?.data);
    on_deep_stack(|| flightcache_datafusion::aggregate::read(aggregation, rows, &bound))
}

impl Engine {
    /// The states of a scan's aggregate over its rows. Dropping the stream stops the work.
    pub(super) fn states(
        self: &Arc<Self>,
        plan: Arc<ScanPlan>,
        aggregate: Arc<Aggregate>,
        meter: Arc<ScanMeter>,
    ) -> impl Stream<Item = Result<Part>> + Send + use<> {
        let engine = Arc::clone(self);
        async_stream::try_stream! {
            let url = plan.request.url.clone();
            let pool = Arc::new(Room { all: Arc::clone(&engine.aggregates), own: AtomicUsize::new(0) });
            let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().map_err(|e| failed(&url, &e))?;
            let context = Arc::new(TaskContext::default().with_runtime(runtime));
            let exec = aggregate.over(Rows::new(&engine, &plan, &meter))?;
            let mut states = Box::pin(deep(exec.execute(0, context).map_err(|e| failed(&url, &e))?, aggregate.is_deep));
            let (sender, mut made) = mpsc::channel(STATES_AHEAD);
            // In a task of its own: it keeps a core busy, and who reads has others to serve.
            let making = AbortOnDropHandle::new(tokio::spawn(async move {
                while let Some(batch) = states.next().await {
                    // Whoever took them is gone.
                    if sender.send(batch).await.is_err() {
                        return;
                    }
                }
            }));
            let mut counted_us = 0;
            while let Some(batch) = made.recv().await {
                let rows = batch.map_err(|e| failed(&url, &e))?;
                meter.rows.fetch_add(rows.num_rows() as u64, Ordering::Relaxed);
                let spent = exec.metrics().and_then(|metrics| metrics.elapsed_compute()).unwrap_or_default() as u64 / 1_000;
                meter.aggregate_us.fetch_add(spent.saturating_sub(counted_us), Ordering::Relaxed);
                counted_us = spent;
                yield Part::Batch(Batch { rows, held: None });
            }
            making.await.map_err(|panic| Error::internal(format!("{url}: aggregating gave up: {panic}")))?;
        }
    }
}

/// Polls a stream where there is room for as deep as its expressions are nested.
fn deep(mut states: SendableRecordBatchStream, is_deep: bool) -> impl Stream<Item = Result<RecordBatch, DataFusionError>> {
    futures::stream::poll_fn(
        move |cx: &mut task::Context<'_>| {
            if is_deep { on_deep_stack(|| states.poll_next_unpin(cx)) } else { states.poll_next_unpin(cx) }
        },
    )
}

/// What went wrong with the rows, or with the aggregates over them.
fn failed(url: &str, error: &DataFusionError) -> Error {
    match error.find_root() {
        DataFusionError::External(source) if source.is::<Error>() => {
            source.downcast_ref::<Error>().cloned().unwrap_or_else(|| Error::internal(error.strip_backtrace()))
        }
        DataFusionError::ResourcesExhausted(message) => {
            Error::new(ErrorKind::ResourceExhausted, format!("{url}: aggregating: {message}"))
        }
        _ => Error::invalid(format!("{url}: aggregating: {}", error.strip_backtrace())),
    }
}

/// The rows of a scan, once.
struct Rows {
    schema: SchemaRef,
    batches: Mutex<Option<BoxStream<'static, Result<RecordBatch, DataFusionError>>>>,
}

impl Rows {
    fn new(engine: &Arc<Engine>, plan: &Arc<ScanPlan>, meter: &Arc<ScanMeter>) -> Self {
        let parts = engine.parts(Arc::clone(plan), Arc::clone(meter), Takes::default());
        let meter = Arc::clone(meter);
        let batches = async_stream::try_stream! {
            for await part in parts {
                let Part::Batch(Batch { rows, held }) = part.map_err(flightcache_datafusion::to_datafusion)? else {
                    Err(DataFusionError::Internal("Parquet was not asked for".into()))?
                };
                // They are not sent.
                meter.rows.fetch_sub(rows.num_rows() as u64, Ordering::Relaxed);
                yield rows;
                drop(held);
                // What is resident waits for nothing, and others want this thread too.
                tokio::task::yield_now().await;
            }
        };
        Self { schema: Arc::clone(&plan.schema), batches: Mutex::new(Some(batches.boxed())) }
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rows")
    }
}

impl PartitionStream for Rows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner).take();
        let twice = || futures::stream::once(async { Err(DataFusionError::Internal("rows are read once".into())) }).boxed();
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches.unwrap_or_else(twice)))
    }
}

/// Memory of one answer's groups: a little in any case, more as there is room for all.
#[derive(Debug)]
struct Room {
    all: Arc<AtomicUsize>,
    own: AtomicUsize,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} of {MOST_BYTES} bytes)", self.name(), self.reserved())
    }
}

impl MemoryPool for Room {
    fn name(&self) -> &'static str {
        "aggregate"
    }

    fn grow(&self, _: &MemoryReservation, additional: usize) {
        self.own.fetch_add(additional, Ordering::Relaxed);
        self.all.fetch_add(additional, Ordering::Relaxed);
    }

    fn shrink(&self, _: &MemoryReservation, bytes: usize) {
        self.own.fetch_sub(bytes, Ordering::Relaxed);
        self.all.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<(), DataFusionError> {
        let own = self.own.load(Ordering::Relaxed).saturating_add(additional);
        let all = self.all.load(Ordering::Relaxed).saturating_add(additional);
        if own > LEAST_BYTES && (own > MOST_BYTES || all > ALL_BYTES) {
            return Err(DataFusionError::ResourcesExhausted(format!("groups take more than {own} bytes")));
        }
        self.grow(reservation, additional);
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.own.load(Ordering::Relaxed)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(MOST_BYTES)
    }
}
