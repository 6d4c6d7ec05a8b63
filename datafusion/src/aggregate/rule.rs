//! The rule that has partial aggregates computed where the rows are.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _};
use datafusion::common::{Result, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder, FileSource as _};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties as _, Partitioning};

use crate::source::CachedSource;

/// Has the cache aggregate what is read only to be aggregated: the scan under a partial aggregate becomes one of its states.
///
/// To be applied after all other rules, which know nothing of such scans:
/// [`SessionStateBuilder::with_physical_optimizer_rule`](datafusion::execution::session_state::SessionStateBuilder::with_physical_optimizer_rule)
/// puts it there.
#[derive(Clone, Copy, Debug, Default)]
pub struct AggregatePushdown;

impl PhysicalOptimizerRule for AggregatePushdown {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let push = |node: Arc<dyn ExecutionPlan>| {
            Ok(match node.downcast_ref::<AggregateExec>().and_then(pushed) {
                Some(pushed) => Transformed::yes(pushed),
                None => Transformed::no(node),
            })
        };
        plan.transform_up(push).data()
    }

    fn name(&self) -> &'static str {
        "flightcache_aggregate_pushdown"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// What takes an aggregate's place, if it can be had from the cache.
fn pushed(aggregate: &AggregateExec) -> Option<Arc<dyn ExecutionPlan>> {
    // Of some groups, whichever, few rows are read.
    let is_of_any_groups = aggregate.limit_options().is_some_and(|limit| limit.descending().is_none());
    // Something above may count on the order of groups.
    if is_of_any_groups || aggregate.properties().output_ordering().is_some() {
        return None;
    }
    let scan = scan(aggregate.input());
    match aggregate.mode() {
        AggregateMode::Partial => states(aggregate, scan),
        AggregateMode::Single => merged(aggregate, scan, AggregateMode::Final),
        AggregateMode::SinglePartitioned => merged(aggregate, scan, AggregateMode::FinalPartitioned),
        AggregateMode::Final | AggregateMode::FinalPartitioned | AggregateMode::PartialReduce => None,
    }
}

/// What is below plans that only spread rows over more partitions.
fn scan(plan: &Arc<dyn ExecutionPlan>) -> &Arc<dyn ExecutionPlan> {
    match plan.downcast_ref::<RepartitionExec>() {
        Some(spread) if matches!(spread.partitioning(), Partitioning::RoundRobinBatch(_)) => scan(spread.input()),
        _ => plan,
    }
}

/// The states of a partial aggregate.
fn states(partial: &AggregateExec, scan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    let (config, source) = scan.downcast_ref::<DataSourceExec>()?.downcast_to_file_source::<CachedSource>()?;
    if config.limit.is_some() {
        return None;
    }
    let source = source.aggregated(partial)?;
    Some(DataSourceExec::from_data_source(of_states(config, source)))
}

/// An aggregate in one step, in two.
fn merged(single: &AggregateExec, scan: &Arc<dyn ExecutionPlan>, mode: AggregateMode) -> Option<Arc<dyn ExecutionPlan>> {
    if scan.output_partitioning().partition_count() != 1 {
        return None;
    }
    let aggregate = |mode, groups, input| {
        let (aggregates, filters) = (single.aggr_expr().to_vec(), single.filter_expr().to_vec());
        AggregateExec::try_new(mode, groups, aggregates, filters, input, single.input_schema()).ok()
    };
    let partial = aggregate(AggregateMode::Partial, single.group_expr().clone(), Arc::clone(single.input()))?;
    let merged = aggregate(mode, single.group_expr().as_final(), states(&partial, scan)?)?;
    (merged.schema() == single.schema()).then(|| Arc::new(merged.with_limit_options(single.limit_options())) as _)
}

/// The same files: what is known of their rows does not hold for states.
fn of_states(config: &FileScanConfig, source: CachedSource) -> FileScanConfig {
    let file = |file: &PartitionedFile| PartitionedFile { statistics: None, ordering: None, ..file.clone() };
    let groups = config.file_groups.iter().map(|group| FileGroup::new(group.iter().map(file).collect())).collect();
    let statistics = Statistics::new_unknown(source.table_schema().table_schema());
    FileScanConfigBuilder::new(config.object_store_url.clone(), Arc::new(source))
        .with_file_groups(groups)
        .with_statistics(statistics)
        .with_expr_adapter(config.expr_adapter_factory.clone())
        .build()
}
