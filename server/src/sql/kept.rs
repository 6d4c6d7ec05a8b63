//! What operators keep of their input, told to the memory pool as it is.
//!
//! Batches of a scan are slices of cached chunks. An operator that keeps such batches and accounts for each by the buffers it refers to
//! takes a chunk for every slice of it; one that keeps them without accounting holds memory that nobody knows of. Both get their input
//! through a [`KeptExec`].

use std::fmt;
use std::sync::Arc;

use arrow::compute::BatchCoalescer;
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
use futures::StreamExt as _;

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
        let rows = context.session_config().batch_size();
        let mut coalescer = BatchCoalescer::new(Arc::clone(&schema), rows);
        let batches = async_stream::try_stream! {
            let reserve = |batch: &_| reservation.as_ref().map_or(Ok(()), |kept| kept.try_grow(get_record_batch_memory_size(batch)));
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
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
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
