//! Tables: an object, a prefix or a glob, as `DataFusion` knows tables.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use flightcache_proto::action::{TableInfo, TableObject};
use flightcache_proto::{Error, ErrorKind};

use super::cache::{Cache, to_datafusion};
use super::source::CachedSource;
use super::statistics;

/// A table of a cache. Its schema is that of when it was opened; its objects are looked up anew by each query.
pub struct CachedTable {
    cache: Arc<dyn Cache>,
    url: String,
    schema: SchemaRef,
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
        Ok(Self { cache, url: url.to_owned(), schema: Arc::clone(&known.schema), known: Mutex::new(known) })
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

    fn read(url: &str, info: TableInfo) -> Result<Self> {
        let message = arrow::ipc::root_as_message(&info.schema)
            .map_err(|e| to_datafusion(Error::internal(format!("{url}: the server's schema cannot be read: {e}"))))?;
        let Some(schema) = message.header_as_schema() else { return internal_err!("{url}: the server told no schema") };
        // The converter trusts its input to name types it knows.
        let schema = std::panic::catch_unwind(|| arrow::ipc::convert::fb_to_schema(schema))
            .map_err(|_| to_datafusion(Error::internal(format!("{url}: the server's schema has unknown types"))))?;
        let mut of_objects = statistics::read(&schema, &info.statistics)?;
        if of_objects.len() != info.objects.len() {
            return internal_err!("{url}: statistics of {} objects for {}", of_objects.len(), info.objects.len());
        }
        for (object, statistics) in info.objects.iter().zip(&mut of_objects) {
            let sum = |of: fn(&(u64, u64)) -> u64| object.row_groups.iter().map(of).sum::<u64>() as usize;
            statistics.num_rows = Precision::Exact(sum(|(rows, _)| *rows));
            statistics.total_byte_size = Precision::Inexact(sum(|(_, bytes)| *bytes));
        }
        Ok(Self {
            url: url.to_owned(),
            predicate_version: info.predicate_version,
            statistics: merged(&of_objects, &schema)?,
            schema: Arc::new(schema),
            ipc_schema: info.spans_objects.then_some(info.schema),
            objects: info.objects.into_iter().map(Arc::new).collect(),
            of_objects: of_objects.into_iter().map(Arc::new).collect(),
        })
    }
}

/// Objects of no rows have no least value, and partition columns that no row has.
fn merged(objects: &[Statistics], schema: &Schema) -> Result<Statistics> {
    let objects: Vec<_> = objects.iter().filter(|object| object.num_rows != Precision::Exact(0)).collect();
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
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let now = Arc::new(Described::ask(&self.cache, &self.url).await?);
        if now.schema.fields() != self.schema.fields() {
            let message = format!("{}: it has another schema than when it was opened; open it again", self.url);
            return Err(to_datafusion(Error::new(ErrorKind::Changed, message)));
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&now);
        let files: Vec<_> =
            now.objects.iter().zip(&now.of_objects).map(|(object, statistics)| file(object, statistics)).collect();
        if files.is_empty() {
            let schema =
                projection.map_or_else(|| Ok(Arc::clone(&self.schema)), |columns| self.schema.project(columns).map(Arc::new))?;
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let statistics = now.statistics.clone();
        let source = Arc::new(CachedSource::new(Arc::clone(&self.cache), now));
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), source)
            .with_file_groups(FileGroup::new(files).split_files(state.config().target_partitions()))
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// An object as a file of the plan.
fn file(object: &Arc<TableObject>, statistics: &Arc<Statistics>) -> PartitionedFile {
    let path = object.url.split_once("://").map_or(object.url.as_str(), |(_, path)| path);
    PartitionedFile::new(path.trim_start_matches('/'), object.bytes.max(1))
        .with_statistics(Arc::clone(statistics))
        .with_extension(Arc::clone(object))
}

#[cfg(test)]
mod tests {
    use arrow::array::RecordBatch;
    use arrow::datatypes::{DataType, Field};
    use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
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
        let mut tracker = DictionaryTracker::new(false);
        let options = IpcWriteOptions::default();
        let message = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(&schema, &mut tracker, &options);
        for (predicate_version, is_pushed) in [(0, false), (predicate::VERSION, true)] {
            let info = TableInfo {
                predicate_version,
                schema: message.ipc_message.clone(),
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
