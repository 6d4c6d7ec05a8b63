//! What operators keep of their input, told to the memory pool as it is.
//!
//! Batches of a scan are slices of cached chunks. An operator that keeps such batches and accounts for each by the buffers it refers to
//! takes a chunk for every slice of it; one that keeps them without accounting holds memory that nobody knows of. Both get their input
//! through a [`KeptExec`].

use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::BatchCoalescer;
use arrow::error::ArrowError;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _, TreeNodeRecursion};
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::{CrossJoinExec, NestedLoopJoinExec};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::windows::WindowAggExec;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::{Stream as _, StreamExt as _};

use crate::cache::compact;

/// Batches as rows of their own.
#[derive(Debug)]
struct KeptExec {
    input: Arc<dyn ExecutionPlan>,
    /// Whether all that passes is kept, by an operator that does not account for it.
    reserves: bool,
}

impl DisplayAs for KeptExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptExec: reserves={}", self.reserves)
    }
}

impl ExecutionPlan for KeptExec {
    fn name(&self) -> &'static str {
        "KeptExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(Self { input, reserves: self.reserves })),
            Err(children) => internal_err!("{} inputs for one", children.len()),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let schema = self.input.schema();
        let mut input = self.input.execute(partition, Arc::clone(&context))?;
        let reservation =
            self.reserves.then(|| MemoryConsumer::new(format!("KeptExec[{partition}]")).register(context.memory_pool()));
        let reservation = Arc::new(reservation);
        let held = Arc::clone(&reservation);
        let rows = context.session_config().batch_size();
        let mut coalescer = BatchCoalescer::new(Arc::clone(&schema), rows);
        let batches = async_stream::try_stream! {
            let reserve = |batch: &_| (*reservation).as_ref().map_or(Ok(()), |kept| kept.try_grow(get_record_batch_memory_size(batch)));
            while let Some(batch) = input.next().await {
                coalescer.push_batch(batch?)?;
                while let Some(batch) = coalescer.next_completed_batch() {
                    reserve(&batch)?;
                    yield batch;
                }
            }
            coalescer.finish_buffered_batch()?;
            while let Some(batch) = coalescer.next_completed_batch() {
                reserve(&batch)?;
                yield batch;
            }
        };
        // What was let through is held as long as the operator that took it may hold it: until it drops its input.
        let mut batches = Box::pin(batches);
        let batches = futures::stream::poll_fn(move |cx| {
            let _held = &held;
            batches.as_mut().poll_next(cx)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}

/// A batch that holds little more than its own rows, however long the buffers are that it shows a part of.
pub(super) fn own(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().cloned().map(compact).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(batch.schema(), columns, &options)
}

/// Puts [`KeptExec`]s where they are needed.
#[derive(Debug)]
pub(super) struct AccountForKept;

impl PhysicalOptimizerRule for AccountForKept {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            // Of a sort that keeps the first rows only, few batches are kept.
            let keeps_input = plan.downcast_ref::<SortExec>().is_some_and(|sort| sort.fetch().is_none());
            let keeps_left =
                plan.downcast_ref::<CrossJoinExec>().is_some() || plan.downcast_ref::<NestedLoopJoinExec>().is_some();
            let reserves = plan.downcast_ref::<WindowAggExec>().is_some();
            if !(keeps_input || keeps_left || reserves) {
                return Ok(Transformed::no(plan));
            }
            let has_columns = plan.children().first().is_some_and(|input| !input.schema().fields().is_empty());
            if !has_columns {
                return Ok(Transformed::no(plan));
            }
            let mut children: Vec<Arc<dyn ExecutionPlan>> = plan.children().into_iter().cloned().collect();
            if let Some(first) = children.first_mut() {
                *first = Arc::new(KeptExec { input: Arc::clone(first), reserves });
            }
            let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
            plan.replace_children(children, options).map(Transformed::yes)
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "account_for_kept"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray, StringViewArray};

    use super::*;

    #[test]
    fn a_slice_that_is_owned_holds_little() {
        let rows = 100_000;
        let words = || (0..rows).map(|row| Some(format!("a word too long to be inlined: {row}")));
        let columns: [(&str, ArrayRef); 3] = [
            ("id", Arc::new((0..rows).collect::<Int64Array>())),
            ("word", Arc::new(words().collect::<StringArray>())),
            ("view", Arc::new(words().collect::<StringViewArray>())),
        ];
        let all = RecordBatch::try_from_iter(columns).unwrap();
        assert_eq!(get_record_batch_memory_size(&own(&all).unwrap()), get_record_batch_memory_size(&all), "is not copied");
        let slice = all.slice(50_000, 1_000);
        let owned = own(&slice).unwrap();
        assert_eq!(owned, slice);
        assert!(get_record_batch_memory_size(&owned) < 500_000, "{}", get_record_batch_memory_size(&owned));
        assert!(get_record_batch_memory_size(&slice) > 5_000_000);
    }
}
