//! Reading the files of a native plan: what is planned over the table's columns is asked over the object's own.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _};
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileOpenFuture, FileOpener};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::CastExpr;
use datafusion::physical_expr::projection::{ProjectionExpr, ProjectionExprs};
use datafusion::physical_expr::simplifier::PhysicalExprSimplifier;
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use datafusion::physical_expr::{PhysicalExpr, conjunction};
use datafusion::physical_expr_adapter::{PhysicalExprAdapter, PhysicalExprAdapterFactory, replace_columns_with_literals};
use datafusion::physical_plan::ExecutionPlan as _;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::filter::batch_filter;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::StreamExt as _;
use futures::stream::BoxStream;

use super::routed::{Resolved, Routed, row_groups};
use crate::aggregate::Pushed;
use crate::opener::Opener;
use crate::predicate;
use crate::source::CachedSource;

type Batches = BoxStream<'static, Result<RecordBatch>>;

/// Opens files of a native plan.
pub(crate) struct RoutedOpener {
    pub(crate) source: CachedSource,
    pub(crate) routed: Arc<Routed>,
    /// Of the plan.
    pub(crate) adapters: Arc<dyn PhysicalExprAdapterFactory>,
    pub(crate) limit: Option<u64>,
    pub(crate) partition: usize,
}

impl FileOpener for RoutedOpener {
    fn open(&self, file: PartitionedFile) -> Result<FileOpenFuture> {
        let (source, routed, adapters) = (self.source.clone(), Arc::clone(&self.routed), Arc::clone(&self.adapters));
        let opened = Self { source, routed, adapters, ..*self };
        Ok(Box::pin(async move {
            let resolved = opened.routed.resolve(&file).await?;
            opened.batches(&file, &resolved).await
        }))
    }
}

/// Expressions of a table as ones of one of its objects.
struct Fit {
    literals: HashMap<String, ScalarValue>,
    adapter: Arc<dyn PhysicalExprAdapter>,
    schema: SchemaRef,
}

impl Fit {
    fn dynamic(&self, expr: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        let expr = self.adapter.rewrite(replace_columns_with_literals(Arc::clone(expr), &self.literals)?)?;
        // Adapters cast to the table's fields, also where only what a field says beside its type differs, and such casts cannot be
        // said. What comes of them gets the plan's schema in any case.
        let plain = |expr: Arc<dyn PhysicalExpr>| {
            let Some(cast) = expr.downcast_ref::<CastExpr>() else { return Ok(Transformed::no(expr)) };
            if !cast.has_explicit_metadata() || cast.cast_type().is_nested() {
                return Ok(Transformed::no(expr));
            }
            let inner = Arc::clone(cast.expr());
            if inner.data_type(&self.schema)? == *cast.cast_type() {
                return Ok(Transformed::yes(inner));
            }
            let options = Some(cast.cast_options().clone());
            Ok(Transformed::yes(Arc::new(CastExpr::new(inner, cast.cast_type().clone(), options)) as Arc<dyn PhysicalExpr>))
        };
        expr.transform_up(plain).data()
    }

    fn exact(&self, expr: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        PhysicalExprSimplifier::new(&self.schema).simplify(self.dynamic(expr)?)
    }
}

/// The filters of a scan, fitted.
struct Filters {
    exact: Vec<Arc<dyn PhysicalExpr>>,
    dynamic: Vec<Arc<dyn PhysicalExpr>>,
    /// What fitting made unsayable.
    here: Vec<Arc<dyn PhysicalExpr>>,
}

impl RoutedOpener {
    async fn batches(&self, file: &PartitionedFile, resolved: &Resolved) -> Result<Batches> {
        let source = &self.source;
        let schema = &resolved.table.schema;
        let columns = source.rows_schema();
        let partitions = columns.table_partition_cols().iter().map(|field| field.name().clone());
        let fit = Fit {
            literals: partitions.zip(file.partition_values.iter().cloned()).collect(),
            adapter: self.adapters.create(Arc::clone(columns.file_schema()), Arc::clone(schema))?,
            schema: Arc::clone(schema),
        };
        let mut filters = Filters { exact: Vec::new(), dynamic: Vec::new(), here: Vec::new() };
        for filter in &source.exact {
            let filter = fit.exact(filter)?;
            let is_sayable =
                predicate::write(filters.exact.iter().chain([&filter]), [], schema).is_some_and(|said| said.is_some());
            if is_sayable { filters.exact.push(filter) } else { filters.here.push(filter) }
        }
        filters.dynamic = source.dynamic.iter().map(|filter| fit.dynamic(filter)).collect::<Result<_>>()?;
        let Some(pushed) = &source.aggregate else {
            let projected = source.projection.source.iter();
            let exprs = projected
                .map(|projected| Ok(ProjectionExpr { expr: fit.exact(&projected.expr)?, alias: projected.alias.clone() }));
            let exprs = exprs.collect::<Result<Vec<_>>>()?;
            let output = Arc::new(source.projection.source.project_schema(columns.table_schema())?);
            return self.rows(file, resolved, exprs, output, filters).await;
        };
        let inputs = pushed.inputs.iter().map(|input| fit.exact(input)).collect::<Result<Vec<_>>>()?;
        if filters.here.is_empty()
            && let Some(fitted) = Pushed::new(&inputs, &pushed.exec, schema)
        {
            let states = Arc::clone(fitted.schema.table_schema());
            return Ok(self.asked(file, resolved, fitted.columns, states, Some(fitted.aggregation), filters).await);
        }
        let rows = pushed.exec.input_schema();
        let exprs =
            inputs.into_iter().zip(rows.fields()).map(|(expr, field)| ProjectionExpr { expr, alias: field.name().clone() });
        aggregated_here(&pushed.exec, self.rows(file, resolved, exprs.collect(), rows, filters).await?)
    }

    async fn asked(
        &self,
        file: &PartitionedFile,
        resolved: &Resolved,
        columns: Vec<String>,
        schema: SchemaRef,
        aggregation: Option<Vec<u8>>,
        filters: Filters,
    ) -> Batches {
        let opener = Opener {
            cache: Arc::clone(&self.source.cache),
            table: Arc::clone(&resolved.table),
            columns,
            schema,
            aggregation,
            order: self.source.order.clone(),
            // A filter that is evaluated above, or here, needs more rows than come out of it.
            limit: self.limit.filter(|_| filters.dynamic.is_empty() && filters.here.is_empty()),
            exact: filters.exact,
            dynamic: filters.dynamic,
            metrics: self.source.metrics.clone(),
            partition: self.partition,
        };
        let range = file.range.as_ref().map(|range| range.start..range.end);
        let groups = row_groups(&resolved.object, range.as_ref());
        opener.batches(&resolved.object, None, groups).await
    }

    /// Rows of a file: `exprs` over its columns.
    async fn rows(
        &self,
        file: &PartitionedFile,
        resolved: &Resolved,
        exprs: Vec<ProjectionExpr>,
        output: SchemaRef,
        filters: Filters,
    ) -> Result<Batches> {
        let mut indices: Vec<usize> = exprs
            .iter()
            .map(|projected| &projected.expr)
            .chain(&filters.here)
            .flat_map(collect_columns)
            .map(|c| c.index())
            .collect();
        indices.sort_unstable();
        indices.dedup();
        let read = Arc::new(resolved.table.schema.project(&indices)?);
        let over_read = |expr: &Arc<dyn PhysicalExpr>| reassign_expr_columns(Arc::clone(expr), &read);
        let exprs = exprs.into_iter().map(|projected| Ok(ProjectionExpr { expr: over_read(&projected.expr)?, ..projected }));
        let projector = ProjectionExprs::new(exprs.collect::<Result<Vec<_>>>()?).make_projector(&read)?;
        let here = filters.here.iter().map(over_read).collect::<Result<Vec<_>>>()?;
        let here = (!here.is_empty()).then(|| conjunction(here));
        let columns = read.fields().iter().map(|field| field.name().clone()).collect();
        let batches = self.asked(file, resolved, columns, read, None, filters).await.map(move |batch| {
            let mut batch = batch?;
            if let Some(filter) = &here {
                batch = batch_filter(&batch, filter)?;
            }
            let projected = projector.project_batch(&batch)?;
            // The plan's schema may say more of its columns, or less.
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            Ok(RecordBatch::try_new_with_options(Arc::clone(&output), projected.columns().to_vec(), &options)?)
        });
        Ok(batches.boxed())
    }
}

/// What could not be asked for of one file.
fn aggregated_here(exec: &AggregateExec, rows: Batches) -> Result<Batches> {
    let schema = exec.input_schema();
    let rows = Arc::new(Once { schema: Arc::clone(&schema), rows: Mutex::new(Some(rows)) });
    let rows = StreamingTableExec::try_new(Arc::clone(&schema), vec![rows], None, [], false, None)?;
    let (aggregates, filters) = (exec.aggr_expr().to_vec(), exec.filter_expr().to_vec());
    let groups = exec.group_expr().clone();
    let exec = AggregateExec::try_new(AggregateMode::Partial, groups, aggregates, filters, Arc::new(rows), schema)?;
    Ok(exec.execute(0, Arc::new(TaskContext::default()))?.boxed())
}

/// Rows, once.
struct Once {
    schema: SchemaRef,
    rows: Mutex<Option<Batches>>,
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Once")
    }
}

impl PartitionStream for Once {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner).take();
        let twice = || futures::stream::once(async { internal_err!("rows are read once") }).boxed();
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows.unwrap_or_else(twice)))
    }
}
