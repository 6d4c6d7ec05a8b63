//! Tables: an object, a prefix or a glob, as `DataFusion` knows tables.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::compute::SortOptions;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, Result, Statistics, internal_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, SortExpr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr, create_lex_ordering};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use flightcache_proto::action::{SortedBy, SourcesInfo, TableInfo, TableObject};
use flightcache_proto::{Error, ErrorKind};

use super::cache::{Cache, to_datafusion};
use super::source::CachedSource;
use super::{prune, schema, statistics};

/// A table of a cache. Its schema is that of when it was opened; its objects are looked up anew by each query.
pub struct CachedTable {
    cache: Arc<dyn Cache>,
    url: String,
    schema: SchemaRef,
    /// Orders that the rows of each object come in.
    sorted_by: Vec<Vec<SortExpr>>,
    /// What was last known of it.
    known: Mutex<Arc<Described>>,
}

/// A table as it was at one time.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) url: String,
    pub(crate) schema: SchemaRef,
    /// Of the predicates that the server reads.
    pub(crate) predicate_version: u32,
    /// Of the aggregations that it reads.
    pub(crate) aggregation_version: u32,
    /// For shares: the schema as an IPC message, where objects do not determine it.
    pub(crate) ipc_schema: Option<Vec<u8>>,
    pub(crate) objects: Vec<Arc<TableObject>>,
    /// One for each object.
    of_objects: Vec<Arc<Statistics>>,
    statistics: Statistics,
}

impl CachedTable {
    /// Looks a URL up: an object, a prefix or a glob.
    pub async fn open(cache: Arc<dyn Cache>, url: &str) -> Result<Self> {
        let known = Arc::new(Described::ask(&cache, url).await?);
        Ok(Self {
            cache,
            url: url.to_owned(),
            schema: Arc::clone(&known.schema),
            sorted_by: Vec::new(),
            known: Mutex::new(known),
        })
    }

    /// The same table, of whose objects it is known that the rows of each are sorted so, as `file_sort_order` says of listing tables.
    #[must_use]
    pub fn sorted_by(&self, orders: Vec<Vec<SortExpr>>) -> Self {
        Self {
            cache: Arc::clone(&self.cache),
            url: self.url.clone(),
            schema: Arc::clone(&self.schema),
            sorted_by: orders,
            known: Mutex::new(self.known()),
        }
    }

    /// Objects over partitions; those of one partition one after the other, where statistics say that they are so and it is wanted.
    fn groups(&self, files: Vec<PartitionedFile>, order: Option<&LexOrdering>, state: &dyn Session) -> Vec<FileGroup> {
        let partitions = state.config().target_partitions();
        let files = FileGroup::new(files);
        if let Some(order) = order.filter(|_| state.config_options().execution.split_file_groups_by_statistics) {
            let split = FileScanConfig::split_groups_by_statistics_with_target_partitions;
            let groups = split(&self.schema, std::slice::from_ref(&files), order, partitions);
            if let Some(groups) = groups.ok().filter(|groups| groups.len() <= partitions) {
                return groups;
            }
        }
        files.split_files(partitions)
    }

    fn known(&self) -> Arc<Described> {
        Arc::clone(&self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for CachedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CachedTable({})", self.url)
    }
}

impl Described {
    async fn ask(cache: &Arc<dyn Cache>, url: &str) -> Result<Self> {
        let info = cache.table(url).await.map_err(to_datafusion)?;
        Self::read(url, info)
    }

    pub(crate) fn read(url: &str, info: TableInfo) -> Result<Self> {
        let schema =
            schema::read(&info.schema).map_err(|e| to_datafusion(Error::internal(format!("{url}: the server's schema: {e}"))))?;
        let mut of_objects = statistics::read(&schema, &info.statistics)?;
        if of_objects.len() != info.objects.len() {
            return internal_err!("{url}: statistics of {} objects for {}", of_objects.len(), info.objects.len());
        }
        for (object, statistics) in info.objects.iter().zip(&mut of_objects) {
            // As of native Parquet, of columns it is known what they take, not of objects: joins are ordered by what is known of both sides.
            statistics.num_rows = Precision::Exact(object.row_groups.iter().map(|(rows, _)| *rows).sum::<u64>() as usize);
        }
        Ok(Self {
            url: url.to_owned(),
            predicate_version: info.predicate_version,
            aggregation_version: info.aggregation_version,
            statistics: merged(of_objects.iter(), &schema)?,
            schema: Arc::new(schema),
            ipc_schema: info.spans_objects.then_some(info.schema),
            objects: info.objects.into_iter().map(Arc::new).collect(),
            of_objects: of_objects.into_iter().map(Arc::new).collect(),
        })
    }
}

impl Described {
    /// Of each object, whether it may have rows that all of these are true for.
    fn may_pass(&self, filters: &[Expr], state: &dyn Session) -> Vec<bool> {
        let physical = |filter| {
            let schema = DFSchema::try_from(Arc::clone(&self.schema))?;
            state.create_physical_expr(filter, &schema)
        };
        // What cannot be evaluated here is evaluated where it can be.
        let filter = conjunction(filters.iter().cloned()).and_then(|filter| physical(filter).ok());
        filter.map_or_else(|| vec![true; self.objects.len()], |filter| prune::may_pass(filter, &self.schema, &self.of_objects))
    }

    /// The same with its first columns alone, and nothing known of them.
    pub(crate) fn first_columns(self, columns: usize) -> Result<Self> {
        let first: Vec<_> = (0..columns.min(self.schema.fields().len())).collect();
        let schema = Arc::new(self.schema.project(&first)?);
        Ok(Self { statistics: Statistics::new_unknown(&schema), schema, of_objects: Vec::new(), ..self })
    }

    /// Columns that are read through a cache, of objects that are yet to be known.
    pub(crate) fn of_columns(url: &str, schema: SchemaRef, server: &SourcesInfo) -> Self {
        Self {
            url: url.to_owned(),
            predicate_version: server.predicate_version,
            aggregation_version: server.aggregation_version,
            ipc_schema: None,
            objects: Vec::new(),
            of_objects: Vec::new(),
            statistics: Statistics::new_unknown(&schema),
            schema,
        }
    }
}

/// Objects of no rows have no least value, and partition columns that no row has.
fn merged<'a>(objects: impl Iterator<Item = &'a Statistics>, schema: &Schema) -> Result<Statistics> {
    let objects: Vec<_> = objects.filter(|object| object.num_rows != Precision::Exact(0)).collect();
    if objects.is_empty() {
        return Ok(Statistics { num_rows: Precision::Exact(0), ..Statistics::new_unknown(schema) });
    }
    Statistics::try_merge_iter(objects, schema)
}

#[async_trait]
impl TableProvider for CachedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(self.known().statistics.clone())
    }

    /// Inexact, although the scan may evaluate them: joins are selected before filters move into scans, and by how selective the
    /// filters above these are. They move when the physical plan is optimised.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let now = Arc::new(Described::ask(&self.cache, &self.url).await?);
        if now.schema.fields() != self.schema.fields() {
            let message = format!("{}: it has another schema than when it was opened; open it again", self.url);
            return Err(to_datafusion(Error::new(ErrorKind::Changed, message)));
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&now);
        // Of objects without rows there is nothing to read, and no order to be known.
        let has_rows = |object: &TableObject| object.row_groups.iter().any(|(rows, _)| *rows > 0);
        let may_pass = now.may_pass(filters, state);
        let objects = now.objects.iter().zip(&now.of_objects).zip(&may_pass);
        let objects: Vec<_> =
            objects.filter(|((object, _), may_pass)| **may_pass && has_rows(object)).map(|(of, _)| of).collect();
        let files: Vec<_> = objects.iter().map(|(object, statistics)| file(object, statistics)).collect();
        if files.is_empty() {
            let schema =
                projection.map_or_else(|| Ok(Arc::clone(&self.schema)), |columns| self.schema.project(columns).map(Arc::new))?;
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let mut ordering = create_lex_ordering(&self.schema, &self.sorted_by, state.execution_props())?;
        if self.sorted_by.is_empty() {
            ordering.extend(order_of_all(&self.schema, objects.iter().map(|(object, _)| &object.sorted_by[..])));
        }
        let statistics = if may_pass.contains(&false) {
            merged(objects.iter().map(|(_, statistics)| &***statistics), &self.schema)?
        } else {
            now.statistics.clone()
        };
        if files.len() > 1 {
            // Least and greatest values, by which objects follow each other, tell nothing of NULL and NaN.
            ordering.retain(|order| order.iter().all(|sort| has_bounds_only(&sort.expr, &self.schema, &statistics)));
        }
        let source = Arc::new(CachedSource::new(Arc::clone(&self.cache), now));
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), source)
            .with_file_groups(self.groups(files, ordering.first(), state))
            .with_output_ordering(ordering)
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// What the rows of each of these objects are sorted by, as they say themselves.
fn order_of_all<'a>(schema: &Schema, objects: impl Iterator<Item = &'a [SortedBy]>) -> Option<LexOrdering> {
    let common = |a: &'a [SortedBy], b: &'a [SortedBy]| &a[..a.iter().zip(b).take_while(|(a, b)| a == b).count()];
    let by = objects.reduce(common)?.iter().map_while(|by| {
        let index = by.column as usize;
        let column = Column::new(schema.fields().get(index)?.name(), index);
        let options = SortOptions { descending: by.descending, nulls_first: by.nulls_first };
        Some(PhysicalSortExpr::new(Arc::new(column), options))
    });
    LexOrdering::new(by.collect::<Vec<_>>())
}

/// Whether all values of a column lie between its least and greatest.
fn has_bounds_only(expr: &Arc<dyn PhysicalExpr>, schema: &Schema, statistics: &Statistics) -> bool {
    expr.downcast_ref::<Column>().is_some_and(|column| {
        let nulls = statistics.column_statistics.get(column.index()).map(|column| column.null_count);
        nulls == Some(Precision::Exact(0)) && !schema.field(column.index()).data_type().is_floating()
    })
}

/// An object as a file of the plan.
fn file(object: &Arc<TableObject>, statistics: &Arc<Statistics>) -> PartitionedFile {
    let path = object.url.split_once("://").map_or(object.url.as_str(), |(_, path)| path);
    PartitionedFile::new(path.trim_start_matches('/'), object.bytes.max(1))
        .with_statistics(Arc::clone(statistics))
        .with_extension(Arc::clone(object))
        // Those of the plan are none where it is of states.
        .with_extension(Arc::clone(statistics))
}

#[cfg(test)]
mod tests {
    use arrow::array::RecordBatch;
    use arrow::datatypes::{DataType, Field};
    use datafusion::common::config::ConfigOptions;
    use datafusion::datasource::physical_plan::FileSource as _;
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{binary, col, lit};
    use datafusion::physical_plan::filter_pushdown::PushedDown;
    use flightcache_proto::{Share, predicate};
    use futures::future::BoxFuture;
    use futures::stream::BoxStream;

    use super::super::Figures;
    use super::*;

    #[derive(Debug)]
    struct Unasked;

    impl Cache for Unasked {
        fn table(&self, _: &str) -> BoxFuture<'static, flightcache_proto::Result<TableInfo>> {
            unreachable!()
        }

        fn read(&self, _: Share, _: Figures) -> BoxStream<'static, flightcache_proto::Result<RecordBatch>> {
            unreachable!()
        }
    }

    #[test]
    fn a_server_that_reads_no_predicates_gets_none() {
        let schema = Schema::new(vec![Field::new("a", DataType::Int64, true)]);
        for (predicate_version, is_pushed) in [(0, false), (predicate::VERSION, true)] {
            let info = TableInfo {
                predicate_version,
                schema: super::schema::write(&schema),
                statistics: statistics::write(&schema, &[]).unwrap(),
                ..TableInfo::default()
            };
            let source = CachedSource::new(Arc::new(Unasked), Arc::new(Described::read("s3://lake/t", info).unwrap()));
            let filter = binary(col("a", &schema).unwrap(), Operator::Gt, lit(1_i64), &schema).unwrap();
            let answer = source.try_pushdown_filters(vec![filter], &ConfigOptions::new()).unwrap();
            assert_eq!(matches!(answer.filters[..], [PushedDown::Yes]), is_pushed);
            assert_eq!(answer.updated_node.is_some(), is_pushed);
        }
    }
}
