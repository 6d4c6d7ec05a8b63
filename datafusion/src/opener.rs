//! What is asked of the cache, and when.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use datafusion::common::{DataFusionError, Result, Statistics, internal_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileOpenFuture, FileOpener};
use datafusion::physical_expr::expressions::DynamicFilterTracking;
use datafusion::physical_expr::{PhysicalExpr, conjunction};
use datafusion::physical_expr_common::physical_expr::snapshot_generation;
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, Time};
use flightcache_proto::action::TableObject;
use flightcache_proto::{Error, ObjectShare, ScanRequest, ScanStats, Share, aggregation};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};

use super::cache::{Cache, Figures, to_datafusion};
use super::order::Order;
use super::table::Described;
use super::{predicate, prune};

/// Row groups of one ask, while dynamic filters keep changing: the next ask takes what they are by then.
const FEWEST_ROW_GROUPS: usize = 1;
/// Row groups of one ask while they stay what they are.
const MOST_ROW_GROUPS: usize = 16;

/// Opens objects, or ranges of them.
#[derive(Clone)]
pub(crate) struct Opener {
    pub(crate) cache: Arc<dyn Cache>,
    pub(crate) table: Arc<Described>,
    /// The columns that are read.
    pub(crate) columns: Vec<String>,
    /// What comes of them.
    pub(crate) schema: SchemaRef,
    /// Asked for instead of rows.
    pub(crate) aggregation: Option<Vec<u8>>,
    /// How to read row groups, if not as they are.
    pub(crate) order: Option<Order>,
    pub(crate) exact: Vec<Arc<dyn PhysicalExpr>>,
    pub(crate) dynamic: Vec<Arc<dyn PhysicalExpr>>,
    pub(crate) limit: Option<u64>,
    pub(crate) metrics: ExecutionPlanMetricsSet,
    pub(crate) partition: usize,
}

/// The asks for one object's row groups, one after the other.
struct Asks {
    cache: Arc<dyn Cache>,
    table: Arc<Described>,
    object: Arc<TableObject>,
    /// Of all its rows, where they are known.
    statistics: Option<Arc<Statistics>>,
    columns: Vec<String>,
    schema: SchemaRef,
    aggregation: Option<Vec<u8>>,
    exact: Vec<Arc<dyn PhysicalExpr>>,
    dynamic: Vec<Arc<dyn PhysicalExpr>>,
    limit: Option<u64>,
    figures: ShownFigures,
    /// In the order in which they are asked for.
    left: VecDeque<u32>,
    at_a_time: usize,
    /// What the dynamic filters were at the last ask.
    generation: Option<u64>,
}

impl FileOpener for Opener {
    fn open(&self, file: PartitionedFile) -> Result<FileOpenFuture> {
        let Some(object) = file.extension::<Arc<TableObject>>() else {
            return internal_err!("{}: a file of another table", file.path());
        };
        let range = file.range.as_ref().map(|range| range.start.unsigned_abs()..range.end.unsigned_abs());
        let (opener, object) = (self.clone(), Arc::clone(object));
        let statistics = file.extension::<Arc<Statistics>>().cloned();
        let groups = row_groups(&object, range).collect();
        Ok(Box::pin(async move { Ok(opener.batches(&object, statistics, groups).await) }))
    }
}

impl Opener {
    /// What comes of row groups of an object, in this order unless another helps.
    pub(crate) async fn batches(
        &self,
        object: &Arc<TableObject>,
        statistics: Option<Arc<Statistics>>,
        groups: Vec<u32>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        // What is learned of the first rows spares others only where filters tell it.
        let groups = match self.order.as_ref().filter(|_| !self.dynamic.is_empty()) {
            Some(order) => order.row_groups(&self.cache, object, groups).await,
            None => groups,
        };
        let changes = |filter: &Arc<dyn PhysicalExpr>| DynamicFilterTracking::classify(filter).contains_dynamic_filter();
        let asks = Asks {
            cache: Arc::clone(&self.cache),
            table: Arc::clone(&self.table),
            object: Arc::clone(object),
            statistics,
            columns: self.columns.clone(),
            schema: Arc::clone(&self.schema),
            aggregation: self.aggregation.clone(),
            exact: self.exact.clone(),
            dynamic: self.dynamic.clone(),
            limit: self.limit,
            figures: ShownFigures::new(&self.metrics, self.partition),
            at_a_time: if self.dynamic.iter().any(changes) { FEWEST_ROW_GROUPS } else { usize::MAX },
            left: groups.into(),
            generation: None,
        };
        let batches = futures::stream::try_unfold(asks, |mut asks| async move {
            let next = asks.next()?;
            Ok::<_, DataFusionError>(next.map(|batches| (batches, asks)))
        });
        batches.try_flatten().boxed()
    }
}

/// The row groups of a range of an object's bytes: those whose middle lies in it, were they as long there as they are as Arrow.
fn row_groups(object: &TableObject, range: Option<Range<u64>>) -> Range<u32> {
    let Some(range) = range else { return 0..object.row_groups.len() as u32 };
    let length = |(_, bytes): &(u64, u64)| u128::from(*bytes).max(1);
    let total: u128 = object.row_groups.iter().map(length).sum();
    let mut before = 0;
    let middles: Vec<u64> = object
        .row_groups
        .iter()
        .map(|group| {
            let middle = (before + length(group) / 2) * u128::from(object.bytes) / total;
            before += length(group);
            middle as u64
        })
        .collect();
    let before = |offset: u64| middles.partition_point(|middle| *middle < offset) as u32;
    before(range.start)..before(range.end)
}

impl Asks {
    /// Whether the dynamic filters, as they are now, leave nothing of the object. With the others statistics were compared when the
    /// plan was made.
    fn is_ruled_out(&self) -> bool {
        let Some(statistics) = &self.statistics else { return false };
        !prune::may_pass(conjunction(self.dynamic.clone()), &self.table.schema, std::slice::from_ref(statistics)).contains(&true)
    }

    /// The batches of the next row groups; `None` after the last.
    fn next(&mut self) -> Result<Option<BoxStream<'static, Result<RecordBatch>>>> {
        if self.left.is_empty() {
            return Ok(None);
        }
        if self.at_a_time != usize::MAX {
            let generation = self.dynamic.iter().map(snapshot_generation).fold(0, u64::wrapping_add);
            let is_same = self.generation.replace(generation) == Some(generation);
            if !is_same && self.is_ruled_out() {
                self.figures.row_groups_ruled_out.add(self.left.len());
                return Ok(None);
            }
            self.at_a_time = if is_same { (2 * self.at_a_time).min(MOST_ROW_GROUPS) } else { FEWEST_ROW_GROUPS };
        }
        let groups: Vec<u32> = self.left.drain(..self.at_a_time.min(self.left.len())).collect();
        let rows: u64 = groups.iter().map(|&group| self.object.row_groups[group as usize].0).sum();
        let Some(predicate) = predicate::write(&self.exact, &self.dynamic, &self.table.schema) else {
            // What was sayable when the plan was made still is: its values are the same.
            return internal_err!("{}: a filter can no longer be said", self.table.url);
        };
        let share = Share {
            scan: ScanRequest {
                columns: Some(self.columns.clone()),
                predicate: predicate.map(|predicate| predicate.to_bytes()),
                limit: self.limit,
                aggregation: self.aggregation.clone(),
                ..ScanRequest::new(&self.object.url)
            },
            objects: vec![ObjectShare {
                url: self.object.url.clone(),
                version: self.object.version.clone(),
                row_groups: Some(groups),
            }],
            epoch: 0,
            schema: self.table.ipc_schema.clone(),
            schema_hash: self.aggregation.as_deref().map_or(0, aggregation::schema_hash),
            asked_at_us: 0,
        };
        let figures = Figures::default();
        let mut shown = Shown { of: self.figures.clone(), figures: figures.clone(), counted: ScanStats::default() };
        let schema = Arc::clone(&self.schema);
        let url = self.object.url.clone();
        let mut rows_left_out = Some(rows).filter(|_| self.limit.is_none() && self.aggregation.is_none());
        let batches = self.cache.read(share, figures).map(Some).chain(futures::stream::once(async { None }));
        let batches = batches.filter_map(move |batch| {
            shown.update();
            let Some(batch) = batch else {
                // All came that will: the rest was left out.
                shown.of.rows_pruned.add(rows_left_out.take().unwrap_or_default() as usize);
                return std::future::ready(None);
            };
            let batch = batch.map_err(to_datafusion).and_then(|batch| shaped(&batch, &schema, &url));
            rows_left_out = match &batch {
                Ok(batch) => rows_left_out.map(|left| left.saturating_sub(batch.num_rows() as u64)),
                Err(_) => None,
            };
            std::future::ready(Some(batch))
        });
        Ok(Some(batches.boxed()))
    }
}

/// A batch in the plan's schema: what is announced may say less of its columns, such as that they hold no NULL.
fn shaped(batch: &RecordBatch, schema: &SchemaRef, url: &str) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &options)
        .map_err(|e| to_datafusion(Error::internal(format!("{url}: the answer does not have the table's columns: {e}"))))
}

/// One figure.
type Of = fn(&ScanStats) -> u64;

/// The figures of one ask, shown as far as they are known: also of an answer that nobody reads to its end.
struct Shown {
    of: ShownFigures,
    figures: Figures,
    counted: ScanStats,
}

impl Shown {
    fn update(&mut self) {
        self.of.add(&mut self.counted, self.figures.get());
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.update();
    }
}

/// The cache's figures as metrics of the plan.
#[derive(Clone)]
struct ShownFigures {
    /// Rows that were asked for, and were not wanted where they lie.
    rows_pruned: Count,
    /// Row groups that were not asked for.
    row_groups_ruled_out: Count,
    counts: [(Count, Of); 7],
    times: [(Time, Of); 4],
}

impl ShownFigures {
    fn new(metrics: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let count = |name: &'static str| MetricBuilder::new(metrics).counter(name, partition);
        let time = |name: &'static str| MetricBuilder::new(metrics).subset_time(name, partition);
        Self {
            rows_pruned: count("rows_pruned"),
            row_groups_ruled_out: count("row_groups_ruled_out"),
            counts: [
                (count("bytes_received"), |stats| stats.bytes),
                (count("chunks_hit"), |stats| stats.chunks_hit),
                (count("chunks_missed"), |stats| stats.chunks_missed),
                (count("row_groups"), |stats| stats.row_groups),
                (count("row_groups_pruned"), |stats| stats.row_groups_pruned),
                (count("store_requests"), |stats| stats.store_requests),
                (count("store_bytes"), |stats| stats.store_bytes),
            ],
            times: [
                (time("fetch_time"), |stats| stats.fetch_us),
                (time("decode_time"), |stats| stats.decode_us),
                (time("filter_time"), |stats| stats.filter_us),
                (time("aggregate_time"), |stats| stats.aggregate_us),
            ],
        }
    }

    /// Adds what is new since `counted`.
    fn add(&self, counted: &mut ScanStats, now: ScanStats) {
        for (count, of) in &self.counts {
            count.add(of(&now).saturating_sub(of(counted)) as usize);
        }
        for (time, of) in &self.times {
            time.add_duration(std::time::Duration::from_micros(of(&now).saturating_sub(of(counted))));
        }
        *counted = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_share_row_groups_out() {
        for (sizes, bytes) in [(vec![10, 20, 30, 1, 1, 500], 90_u64), (vec![0, 0, 0], 7), (vec![5; 53], 230_000_000), (vec![], 1)]
        {
            let object =
                TableObject { bytes, row_groups: sizes.iter().map(|&bytes| (1, bytes)).collect(), ..TableObject::default() };
            assert_eq!(row_groups(&object, None), 0..sizes.len() as u32);
            for parts in 1..9 {
                let step = bytes.div_ceil(parts);
                let mut next = 0;
                for part in 0..parts {
                    let range = row_groups(&object, Some(part * step..(part + 1) * step));
                    assert_eq!(range.start, next.max(range.start));
                    assert!(range.start == next || range.is_empty(), "{range:?} after {next}");
                    next = range.end.max(next);
                }
                assert_eq!(next as usize, sizes.len());
            }
        }
    }
}
