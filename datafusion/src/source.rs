//! Scans of a table in a plan.

use std::fmt;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileOpener, FileScanConfig, FileSource, ParquetSource};
use datafusion::datasource::projection::{ProjectionOpener, SplitProjection};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::object_store::ObjectStore;
use datafusion::physical_expr::expressions::DynamicFilterTracking;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr, conjunction};
use datafusion::physical_expr_adapter::DefaultPhysicalExprAdapterFactory;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::filter_pushdown::{FilterPushdownPropagation, PushedDown};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::sort_pushdown::SortOrderPushdownResult;
use datafusion::physical_plan::{DisplayFormatType, ExecutionPlan as _};
use flightcache_proto::action::SourcesInfo;
use flightcache_proto::{aggregation, predicate};

use super::aggregate::Pushed;
use super::cache::Cache;
use super::opener::Opener;
use super::order::{Order, Wanted};
use super::predicate::write;
use super::reroute::{Routed, RoutedOpener};
use super::table::Described;

/// What a plan reads from a table: under `DataFusion`'s own `DataSourceExec`.
#[derive(Clone, Debug)]
pub struct CachedSource {
    pub(crate) cache: Arc<dyn Cache>,
    table: Arc<Described>,
    /// The files of a native plan, where it reads those.
    routed: Option<Arc<Routed>>,
    /// Of the rows, whatever becomes of them.
    rows_schema: TableSchema,
    table_schema: TableSchema,
    pub(crate) projection: SplitProjection,
    /// Evaluated by the cache: rows for which one is not true do not come.
    pub(crate) exact: Vec<Arc<dyn PhysicalExpr>>,
    /// Evaluated above, and by the cache as far as it can be told.
    pub(crate) dynamic: Vec<Arc<dyn PhysicalExpr>>,
    /// Asked for instead of rows.
    pub(crate) aggregate: Option<Arc<Pushed>>,
    /// How to read row groups, if not as they are.
    pub(crate) order: Option<Order>,
    pub(crate) metrics: ExecutionPlanMetricsSet,
}

impl CachedSource {
    pub(crate) fn new(cache: Arc<dyn Cache>, table: Arc<Described>) -> Self {
        let schema = TableSchema::from(Arc::clone(&table.schema));
        Self::over(cache, table, schema)
    }

    fn over(cache: Arc<dyn Cache>, table: Arc<Described>, schema: TableSchema) -> Self {
        Self {
            cache,
            table,
            routed: None,
            projection: SplitProjection::unprojected(&schema),
            rows_schema: schema.clone(),
            table_schema: schema,
            exact: Vec::new(),
            dynamic: Vec::new(),
            aggregate: None,
            order: None,
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// What reads the files of a native scan. `None` if its filters cannot be said.
    pub(crate) fn routed(
        cache: &Arc<dyn Cache>,
        routed: Arc<Routed>,
        server: &SourcesInfo,
        parquet: &ParquetSource,
    ) -> Option<Self> {
        let schema = parquet.table_schema().clone();
        let table = Arc::new(Described::of_columns(routed.store(), Arc::clone(schema.table_schema()), server));
        let mut source = Self { routed: Some(routed), ..Self::over(Arc::clone(cache), table, schema) };
        source.projection = SplitProjection::new(source.table_schema.file_schema(), parquet.projection()?);
        if let Some(filter) = parquet.filter() {
            let is_exact = parquet.table_parquet_options().global.pushdown_filters;
            if is_exact && (source.table.predicate_version < predicate::VERSION || !source.can_say_too(&filter)) {
                return None;
            }
            // Otherwise it is evaluated above, and only spares work here.
            if is_exact { source.exact.push(filter) } else { source.dynamic.push(filter) }
        }
        Some(source)
    }

    /// Of the rows, whatever becomes of them.
    pub(crate) fn rows_schema(&self) -> &TableSchema {
        &self.rows_schema
    }

    /// What reads the states of a partial aggregate over this. `None` if they cannot be asked for.
    pub(crate) fn aggregated(&self, partial: &AggregateExec) -> Option<Self> {
        if self.table.aggregation_version < aggregation::VERSION || self.aggregate.is_some() {
            return None;
        }
        let inputs: Vec<_> = self.projection.source.expr_iter().collect();
        let pushed = Pushed::new(&inputs, partial, &self.table.schema)?;
        // What the aggregate would tell of what it has seen, nobody will.
        let own: Vec<_> = partial.dynamic_expressions_produced().iter().map(|expr| expr.expression_id()).collect();
        let is_own = |expr: &Arc<dyn PhysicalExpr>| {
            let is_produced =
                |expr: &Arc<dyn PhysicalExpr>| expr.expression_id().is_some() && own.contains(&expr.expression_id());
            expr.exists(|expr| Ok(is_produced(expr))).unwrap_or(false)
        };
        let mut source = self.clone();
        source.dynamic.retain(|filter| !is_own(filter));
        source.table_schema = pushed.schema.clone();
        source.projection = SplitProjection::unprojected(&pushed.schema);
        source.aggregate = Some(Arc::new(pushed));
        source.order = None;
        source.metrics = ExecutionPlanMetricsSet::new();
        Some(source)
    }

    fn all_filters(&self) -> Option<Arc<dyn PhysicalExpr>> {
        let all: Vec<_> = self.exact.iter().chain(&self.dynamic).cloned().collect();
        (!all.is_empty()).then(|| conjunction(all))
    }

    /// Whether a filter can be said beside those that are.
    fn can_say_too(&self, filter: &Arc<dyn PhysicalExpr>) -> bool {
        let all: Vec<_> = self.exact.iter().chain([filter]).collect();
        write(all, [], &self.table.schema).is_some_and(|predicate| predicate.is_some())
    }
}

impl FileSource for CachedSource {
    fn create_file_opener(
        &self,
        _: Arc<dyn ObjectStore>,
        config: &FileScanConfig,
        partition: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        let limit = config.limit.map(|limit| limit as u64);
        if let Some(routed) = &self.routed {
            let routed = Arc::clone(routed);
            let adapters = config.expr_adapter_factory.clone().unwrap_or_else(|| Arc::new(DefaultPhysicalExprAdapterFactory));
            return Ok(Arc::new(RoutedOpener { source: self.clone(), routed, adapters, limit, partition }));
        }
        let (columns, schema) = if let Some(pushed) = &self.aggregate {
            (pushed.columns.clone(), Arc::clone(pushed.schema.table_schema()))
        } else {
            let schema = Arc::new(self.table.schema.project(&self.projection.file_indices)?);
            (schema.fields().iter().map(|field| field.name().clone()).collect(), schema)
        };
        let opener = Opener {
            cache: Arc::clone(&self.cache),
            table: Arc::clone(&self.table),
            columns,
            schema,
            order: self.order.clone(),
            aggregation: self.aggregate.as_ref().map(|pushed| pushed.aggregation.clone()),
            exact: self.exact.clone(),
            dynamic: self.dynamic.clone(),
            // A filter that is evaluated above needs more rows than come out of it.
            limit: limit.filter(|_| self.dynamic.is_empty()),
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

    /// None of states: what holds for rows says nothing of those.
    fn filter(&self) -> Option<Arc<dyn PhysicalExpr>> {
        if self.aggregate.is_some() { None } else { self.all_filters() }
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
        let filter = self.all_filters().map(|filter| format!("predicate={filter}"));
        let aggregate = self.aggregate.as_ref().map(ToString::to_string);
        let order = self.order.as_ref().map(|order| format!("read={order}"));
        for extra in [aggregate, filter, order].into_iter().flatten() {
            match format {
                DisplayFormatType::Default | DisplayFormatType::Verbose => write!(f, ", {extra}")?,
                DisplayFormatType::TreeRender => writeln!(f, "{extra}")?,
            }
        }
        Ok(())
    }

    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn FileSource>>> {
        let mut source = self.clone();
        let mut answers = Vec::new();
        for filter in filters {
            answers.push(if self.table.predicate_version < predicate::VERSION || self.aggregate.is_some() {
                // The server would not understand; or they are of states.
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
        if self.aggregate.is_some() {
            return Ok(None);
        }
        let projection = self.projection.source.try_merge(projection)?;
        let projection = SplitProjection::new(self.table_schema.file_schema(), &projection);
        Ok(Some(Arc::new(Self { projection, ..self.clone() })))
    }

    fn try_pushdown_sort(
        &self,
        order: &[PhysicalSortExpr],
        properties: &EquivalenceProperties,
    ) -> Result<SortOrderPushdownResult<Arc<dyn FileSource>>> {
        Ok(match Wanted::of(order, properties)? {
            _ if self.aggregate.is_some() => SortOrderPushdownResult::Unsupported,
            Wanted::AsIs => SortOrderPushdownResult::Exact { inner: Arc::new(self.clone()) },
            Wanted::Roughly(order) => {
                SortOrderPushdownResult::Inexact { inner: Arc::new(Self { order: Some(order), ..self.clone() }) }
            }
            Wanted::InPart | Wanted::Unknown => SortOrderPushdownResult::Unsupported,
        })
    }

    fn reorder_files(&self, files: Vec<PartitionedFile>) -> Vec<PartitionedFile> {
        match &self.order {
            Some(order) => order.files(files, self.table_schema.table_schema()),
            None => files,
        }
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
