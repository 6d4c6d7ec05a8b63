//! Scans of a table in a plan.

use std::fmt;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::physical_plan::{FileOpener, FileScanConfig, FileSource};
use datafusion::datasource::projection::{ProjectionOpener, SplitProjection};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::object_store::ObjectStore;
use datafusion::physical_expr::expressions::DynamicFilterTracking;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::{PhysicalExpr, conjunction};
use datafusion::physical_plan::DisplayFormatType;
use datafusion::physical_plan::filter_pushdown::{FilterPushdownPropagation, PushedDown};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;

use flightcache_proto::predicate::VERSION;

use super::cache::Cache;
use super::opener::Opener;
use super::predicate;
use super::table::Described;

/// What a plan reads from a table: under `DataFusion`'s own `DataSourceExec`.
#[derive(Clone, Debug)]
pub struct CachedSource {
    cache: Arc<dyn Cache>,
    table: Arc<Described>,
    table_schema: TableSchema,
    projection: SplitProjection,
    /// Evaluated by the cache: rows for which one is not true do not come.
    exact: Vec<Arc<dyn PhysicalExpr>>,
    /// Evaluated above, and by the cache as far as it can be told.
    dynamic: Vec<Arc<dyn PhysicalExpr>>,
    metrics: ExecutionPlanMetricsSet,
}

impl CachedSource {
    pub(crate) fn new(cache: Arc<dyn Cache>, table: Arc<Described>) -> Self {
        let table_schema = TableSchema::from(Arc::clone(&table.schema));
        let projection = SplitProjection::unprojected(&table_schema);
        let metrics = ExecutionPlanMetricsSet::new();
        Self { cache, table, table_schema, projection, exact: Vec::new(), dynamic: Vec::new(), metrics }
    }

    /// Whether a filter can be said beside those that are.
    fn can_say_too(&self, filter: &Arc<dyn PhysicalExpr>) -> bool {
        let all: Vec<_> = self.exact.iter().chain([filter]).collect();
        predicate::write(all, [], &self.table.schema).is_some_and(|predicate| predicate.is_some())
    }
}

impl FileSource for CachedSource {
    fn create_file_opener(
        &self,
        _: Arc<dyn ObjectStore>,
        config: &FileScanConfig,
        partition: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        let opener = Opener {
            cache: Arc::clone(&self.cache),
            table: Arc::clone(&self.table),
            schema: Arc::new(self.table.schema.project(&self.projection.file_indices)?),
            exact: self.exact.clone(),
            dynamic: self.dynamic.clone(),
            // A filter that is evaluated above needs more rows than come out of it.
            limit: config.limit.filter(|_| self.dynamic.is_empty()).map(|limit| limit as u64),
            metrics: self.metrics.clone(),
            partition,
        };
        ProjectionOpener::try_new(self.projection.clone(), Arc::new(opener), self.table_schema.file_schema())
    }

    fn table_schema(&self) -> &TableSchema {
        &self.table_schema
    }

    /// The cache's batches are of a size of their own: cut by bytes.
    fn with_batch_size(&self, _: usize) -> Arc<dyn FileSource> {
        Arc::new(self.clone())
    }

    fn filter(&self) -> Option<Arc<dyn PhysicalExpr>> {
        let all: Vec<_> = self.exact.iter().chain(&self.dynamic).cloned().collect();
        (!all.is_empty()).then(|| conjunction(all))
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        Some(&self.projection.source)
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        &self.metrics
    }

    fn file_type(&self) -> &'static str {
        "flightcache"
    }

    fn fmt_extra(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(filter) = self.filter() else { return Ok(()) };
        match format {
            DisplayFormatType::Default | DisplayFormatType::Verbose => write!(f, ", predicate={filter}"),
            DisplayFormatType::TreeRender => writeln!(f, "predicate={filter}"),
        }
    }

    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn FileSource>>> {
        let mut source = self.clone();
        let mut answers = Vec::new();
        for filter in filters {
            answers.push(if self.table.predicate_version < VERSION {
                // The server would not understand.
                PushedDown::No
            } else if DynamicFilterTracking::classify(&filter).contains_dynamic_filter() {
                source.dynamic.push(filter);
                PushedDown::No
            } else if source.can_say_too(&filter) {
                source.exact.push(filter);
                PushedDown::Yes
            } else {
                PushedDown::No
            });
        }
        let has_changed = source.exact.len() + source.dynamic.len() > self.exact.len() + self.dynamic.len();
        let answer = FilterPushdownPropagation::with_parent_pushdown_result(answers);
        Ok(if has_changed { answer.with_updated_node(Arc::new(source) as Arc<dyn FileSource>) } else { answer })
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> Result<Option<Arc<dyn FileSource>>> {
        let projection = self.projection.source.try_merge(projection)?;
        let projection = SplitProjection::new(self.table_schema.file_schema(), &projection);
        Ok(Some(Arc::new(Self { projection, ..self.clone() })))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let projected = self.projection.source.iter().map(|projected| &projected.expr);
        for expr in self.exact.iter().chain(&self.dynamic).chain(projected) {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }
}
