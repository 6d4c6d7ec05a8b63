//! Tables as they cross the FFI, which has no physical pushdown: filters have to be taken at once, or not at all.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, Result, Statistics};
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::expr_rewriter::unnormalize_col;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::{PhysicalExpr, conjunction, create_physical_expr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::filter_pushdown::PushedDown;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use flightcache_datafusion::{CachedTable, predicate};
use tokio::runtime::Handle;
use tokio_util::context::TokioContext;

/// A [`CachedTable`] that takes a filter exactly where the server can evaluate it.
#[derive(Debug)]
pub(crate) struct ExactTable {
    table: Arc<CachedTable>,
    runtime: Handle,
}

impl ExactTable {
    pub(crate) fn new(table: Arc<CachedTable>, runtime: Handle) -> Self {
        Self { table, runtime }
    }

    fn physical(&self, filter: &Expr) -> Result<Arc<dyn PhysicalExpr>> {
        let schema = DFSchema::try_from(self.table.schema())?;
        let filter = unnormalize_col(filter.clone());
        create_physical_expr(&filter, &schema, &ExecutionProps::new(), &PhysicalPlanningContext::default())
    }

    fn can_say(&self, filter: &Expr) -> bool {
        let said = self.physical(filter).ok().and_then(|filter| predicate::write([&filter], [], &self.table.schema()));
        said.flatten().is_some()
    }

    async fn filtered(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let filters = filters.iter().map(|filter| self.physical(filter)).collect::<Result<Vec<_>>>()?;
        let all = self.table.scan(state, None, &[], None).await?;
        let filter = conjunction(filters.clone());
        // What is read takes the filters in, but not how many rows they may leave.
        let above = FilterExec::try_new(Arc::clone(&filter), Arc::clone(&all))?;
        let estimate = StatisticsContext::new().compute(&above, &StatisticsArgs::new())?;
        if let Some(scan) = taking(&all, filters, state)? {
            let scan = FileScanConfigBuilder::from(scan)
                .with_statistics(Arc::unwrap_or_clone(estimate))
                .with_projection_indices(projection.cloned())?
                .with_limit(limit)
                .build();
            return Ok(DataSourceExec::from_data_source(scan));
        }
        // No objects, a server that reads no predicates, or more than fits one.
        Ok(Arc::new(FilterExecBuilder::new(filter, all).apply_projection(projection.cloned())?.build()?))
    }
}

/// The scan with all of the filters taken in, if it takes them.
fn taking(
    scan: &Arc<dyn ExecutionPlan>,
    filters: Vec<Arc<dyn PhysicalExpr>>,
    state: &dyn Session,
) -> Result<Option<FileScanConfig>> {
    let Some(scan) = scan.downcast_ref::<DataSourceExec>() else { return Ok(None) };
    let answer = scan.data_source().try_pushdown_filters(filters, state.config_options())?;
    let takes_all = answer.filters.iter().all(|answer| matches!(answer, PushedDown::Yes));
    let scan = answer.updated_node.filter(|_| takes_all);
    Ok(scan.and_then(|scan| scan.downcast_ref::<FileScanConfig>().cloned()))
}

#[async_trait]
impl TableProvider for ExactTable {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        self.table.table_type()
    }

    fn statistics(&self) -> Option<Statistics> {
        self.table.statistics()
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| {
            if self.can_say(filter) { TableProviderFilterPushDown::Exact } else { TableProviderFilterPushDown::Unsupported }
        };
        Ok(filters.iter().map(support).collect())
    }

    /// Polled by the other side's runtime: connections need this one's.
    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if filters.is_empty() {
            return TokioContext::new(self.table.scan(state, projection, filters, limit), self.runtime.clone()).await;
        }
        TokioContext::new(self.filtered(state, projection, filters, limit), self.runtime.clone()).await
    }
}
