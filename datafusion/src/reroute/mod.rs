//! The rule that has native Parquet scans read through the cache.

mod opener;
mod routed;

use std::fmt;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::{ConfigOptions, ParquetEncryptionOptions};
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _, TreeNodeRecursion};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder, FileSource as _, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use flightcache_proto::action::SourcesInfo;

pub(crate) use opener::RoutedOpener;
pub(crate) use routed::Routed;

use crate::aggregate::AggregatePushdown;
use crate::cache::{Cache, to_datafusion};
use crate::source::CachedSource;

/// Functions that only native scans can answer.
const OF_FILES: [&str; 2] = ["file_row_index", "input_file_name"];

/// Has scans of Parquet files read through the cache, where the files belong to one of its sources: tables of `register_parquet`,
/// listing tables, Delta tables, and whatever else is planned as a `ParquetSource`.
///
/// File groups, ranges, partition values, projections, limits and how expressions are adapted to files stay as they are planned. What is
/// not understood stays native: access plans and other extensions of files, encryption, virtual columns (of Delta tables: those with
/// deletion vectors), coerced INT96.
///
/// To be applied before filters move into scans: [`with_rules`] puts it there.
#[derive(Clone)]
pub struct Reroute {
    cache: Arc<dyn Cache>,
    server: Arc<SourcesInfo>,
}

/// Adds the rules of this crate to a session, each in its place: [`Reroute`], if there is one, and [`AggregatePushdown`].
pub fn with_rules(mut builder: SessionStateBuilder, reroute: Option<Reroute>) -> SessionStateBuilder {
    let rules = builder.physical_optimizers().take();
    let mut rules = rules.map_or_else(|| PhysicalOptimizer::new().rules, |optimizer| optimizer.rules);
    if let Some(reroute) = reroute {
        let first = rules.iter().position(|rule| rule.name() == "FilterPushdown").unwrap_or(0);
        rules.insert(first, Arc::new(reroute));
    }
    rules.push(Arc::new(AggregatePushdown));
    builder.with_physical_optimizer_rules(rules)
}

impl Reroute {
    /// Asks a cache what its sources are.
    pub async fn connect(cache: Arc<dyn Cache>) -> Result<Self> {
        let server = Arc::new(cache.sources().await.map_err(to_datafusion)?);
        Ok(Self { cache, server })
    }

    /// The scan that reads the same files through the cache.
    fn rerouted(&self, scan: &DataSourceExec) -> Option<Arc<dyn ExecutionPlan>> {
        let (config, parquet) = scan.downcast_to_file_source::<ParquetSource>()?;
        if !is_understood(parquet) || !config.file_groups.iter().all(|group| group.iter().all(|file| self.has(config, file))) {
            return None;
        }
        let routed = Routed::new(Arc::clone(&self.cache), config.object_store_url.as_str());
        let source = CachedSource::routed(&self.cache, routed, &self.server, parquet)?;
        let config = FileScanConfigBuilder::from(config.clone()).with_source(Arc::new(source)).build();
        Some(DataSourceExec::from_data_source(config))
    }

    /// Whether a file is one that can be asked for.
    fn has(&self, config: &FileScanConfig, file: &PartitionedFile) -> bool {
        let url = routed::url(config.object_store_url.as_str(), file);
        let is_plain = file.extensions.is_empty() && file.arrow_schema.is_none();
        is_plain && can_be_asked_for(&url) && self.server.sources.iter().any(|source| url.starts_with(source))
    }
}

/// Whether a name is no pattern there, and nothing that servers refuse, as some other layer could decode a way out of a source.
fn can_be_asked_for(url: &str) -> bool {
    let lower = url.to_ascii_lowercase();
    !url.contains(['*', '?', '[', '{']) && !["%2e", "%2f", "%5c", "%00"].iter().any(|encoded| lower.contains(encoded))
}

fn is_understood(parquet: &ParquetSource) -> bool {
    let options = parquet.table_parquet_options();
    parquet.table_schema().virtual_columns().is_empty()
        && options.global.coerce_int96.is_none()
        && options.crypto == ParquetEncryptionOptions::default()
}

/// Whether a plan asks for what is known of files alone.
fn asks_for_files(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut asks = false;
    let mut look = |expr: &Arc<dyn PhysicalExpr>| {
        asks |= expr.exists(|expr| {
            let call = expr.downcast_ref::<ScalarFunctionExpr>();
            Ok(call.is_some_and(|call| OF_FILES.contains(&call.fun().name())))
        })?;
        Ok(TreeNodeRecursion::Continue)
    };
    plan.apply(|node| node.apply_expressions(&mut look))?;
    Ok(asks)
}

impl PhysicalOptimizerRule for Reroute {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if asks_for_files(&plan)? {
            return Ok(plan);
        }
        let reroute = |node: Arc<dyn ExecutionPlan>| {
            Ok(match node.downcast_ref::<DataSourceExec>().and_then(|scan| self.rerouted(scan)) {
                Some(rerouted) => Transformed::yes(rerouted),
                None => Transformed::no(node),
            })
        };
        plan.transform_up(reroute).data()
    }

    fn name(&self) -> &'static str {
        "flightcache_reroute"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

impl fmt::Debug for Reroute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reroute({})", self.server.sources.join(", "))
    }
}
