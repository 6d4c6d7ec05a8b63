//! Statements, planned: each in a session of its own, of the server's settings.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{FunctionRegistry as _, SessionState};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::Statement as Parsed;
use flightcache_proto::{Error, ErrorKind, Result};
use object_store::memory::InMemory;
use tokio::runtime::Handle as IoHandle;
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use super::catalog::{Catalogs, Names};
use super::error::from_datafusion;
use super::handle::Handle;
use super::kept::AccountForKept;
use super::local::LocalCache;
use super::running::Running;
use super::runtime::SqlRuntime;
use super::size;
use super::statement::{Statement, refused_plan};
use super::tables::{CATALOG, SCHEMA, Tables};
use crate::admin::ScanMeter;
use crate::parquet::announced_schema;
use crate::scan::{BoundGrowth, Engine};
use crate::settings::Settings;

/// Memory that a sort keeps for merging what it spilled, at most: as by default.
const MAX_SPILL_RESERVATION_BYTES: usize = 10 << 20;
/// Consumers that an error names when memory runs out.
const CONSUMERS_NAMED: std::num::NonZeroUsize = std::num::NonZeroUsize::new(3).unwrap();

/// Answers SQL from an [`Engine`].
pub struct Sql {
    pub(super) engine: Arc<Engine>,
    pub(super) tables: Arc<Tables>,
    base: SessionState,
    runtime_env: Arc<RuntimeEnv>,
    io: IoHandle,
    pub(super) runtime: SqlRuntime,
    pub(super) running: Arc<Running>,
    /// A permit for each statement that may run; the others wait.
    pub(super) statements: Semaphore,
    /// And one for each that may be planned only.
    planning: Semaphore,
    at_a_time: usize,
    /// How long.
    wait: Duration,
}

/// A statement that was looked at, and not run.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Answers the statement on any server.
    pub handle: Handle,
    /// Of the answer; of no fields for statements that answer nothing.
    pub schema: SchemaRef,
    /// One field a parameter, in order; of type Null where the statement leaves the type open.
    pub parameters: SchemaRef,
}

/// A statement's plan, analysed: of settled names and types.
pub(super) struct Planned {
    plan: LogicalPlan,
    state: SessionState,
    pub(super) names: Arc<Names>,
    parameters: SchemaRef,
    is_bound: bool,
}

impl std::fmt::Debug for Sql {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sql").field("tables", &self.tables).finish_non_exhaustive()
    }
}

impl Sql {
    /// SQL by the settings: its memory, where it spills, its tables. Reading goes on at `io`. Makes no request.
    pub fn new(settings: &Settings, engine: Arc<Engine>, io: IoHandle) -> Result<Arc<Self>> {
        let runtime_env = runtime_env(settings)?;
        let config = SessionConfig::new()
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(false)
            // The catalog has one of its own.
            .with_information_schema(false)
            .with_target_partitions(std::thread::available_parallelism().map_or(2, std::num::NonZero::get))
            // A small pool has less to set aside for merging what was spilled.
            .with_sort_spill_reservation_bytes(((settings.sql_memory.as_u64() / 16) as usize).min(MAX_SPILL_RESERVATION_BYTES))
            // Clients know text without views.
            .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
        let mut rules = PhysicalOptimizer::default().rules;
        rules.push(Arc::new(AccountForKept));
        let mut base = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(Arc::clone(&runtime_env))
            .with_default_features()
            .with_physical_optimizer_rules(rules)
            .build();
        base.register_function_rewrite(Arc::new(BoundGrowth)).map_err(|e| Error::internal(e.strip_backtrace()))?;
        let tables = Arc::new(Tables::new(settings.tables.clone()));
        Ok(Arc::new(Self {
            engine,
            tables,
            base,
            runtime_env,
            io,
            runtime: SqlRuntime::new()?,
            running: Arc::default(),
            statements: Semaphore::new(settings.sql_statements),
            planning: Semaphore::new(settings.sql_statements),
            at_a_time: settings.sql_statements,
            wait: settings.memory_wait,
        }))
    }

    /// The engine it reads from.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Bytes that running statements hold beyond the cache.
    pub fn memory_used(&self) -> usize {
        self.runtime_env.memory_pool.reserved()
    }

    /// Names of all tables, ascending.
    pub fn table_names(&self) -> Vec<String> {
        self.tables.names()
    }

    /// The schema of a table.
    pub async fn table_schema(&self, name: &str) -> Result<SchemaRef> {
        let named = self.tables.get(name).ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no table {name:?}")))?;
        let table = self.names(&Handle::default(), &Arc::default()).open(&named.url).await;
        table.map(|table| datafusion::catalog::TableProvider::schema(&*table)).map_err(|e| from_datafusion(&e))
    }

    /// Plans a statement. Parameters need not be bound, unless it is `to_run`: then its handle is that of a flight, with an id.
    pub async fn prepare(self: &Arc<Self>, handle: Handle, to_run: bool) -> Result<Prepared> {
        let sql = Arc::clone(self);
        let prepared = self.runtime.spawn(async move {
            let id = if to_run { Uuid::new_v4().into_bytes().to_vec() } else { Vec::new() };
            let statement = match Statement::parse(&handle.sql)? {
                Statement::Query(statement) => statement,
                other => {
                    sql.check(&other)?;
                    let empty = Arc::new(Schema::empty());
                    return Ok(Prepared { handle: Handle { id, ..handle }, schema: Arc::clone(&empty), parameters: empty });
                }
            };
            let _permit = sql.permit(&sql.planning, "are planned").await?;
            let planned = sql.plan(&handle, *statement, &Arc::default()).await?;
            if to_run {
                planned.check_bound()?;
            }
            let handle = Handle { tables: planned.names.created(), id, ..handle };
            Ok(Prepared { handle, schema: planned.schema(), parameters: planned.parameters })
        });
        prepared.await.unwrap_or_else(|_| Err(gave_up()))
    }

    /// Waits for its turn.
    pub(super) async fn permit<'a>(&self, permits: &'a Semaphore, what: &str) -> Result<SemaphorePermit<'a>> {
        let Ok(Ok(permit)) = tokio::time::timeout(self.wait, permits.acquire()).await else {
            let message =
                format!("{} statements {what} already, and none ended within {:?}: try again later", self.at_a_time, self.wait);
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        };
        Ok(permit)
    }

    /// Stops the answers that are being read of a handle. Returns whether there are any, here.
    pub fn cancel(&self, handle: &Handle) -> bool {
        self.running.cancel(&handle.id)
    }

    pub(super) async fn plan(&self, handle: &Handle, statement: Parsed, meter: &Arc<ScanMeter>) -> Result<Planned> {
        let names = Arc::new(self.names(handle, meter));
        let mut state = SessionStateBuilder::new_from_existing(self.base.clone())
            .with_catalog_list(Arc::new(Catalogs::new(Arc::clone(&names))))
            .build();
        // What `now()` means in it.
        state.mark_start_execution();
        let failed = |error: DataFusionError| from_datafusion(&error);
        let plan = state.statement_to_plan(statement).await.map_err(failed)?;
        size::check(&plan).map_err(failed)?;
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        read_only.verify_plan(&plan).map_err(|error| refused_plan(&error.strip_backtrace()))?;
        let parameters = parameters(&plan).map_err(failed)?;
        let values = handle.values()?;
        let is_bound = values.is_some() || parameters.fields().is_empty();
        let plan = match values {
            Some(values) if !parameters.fields().is_empty() => plan.with_param_values(values).map_err(failed)?,
            _ => plan,
        };
        let plan = match plan {
            // Told of from the start, by the optimizer.
            explain @ LogicalPlan::Explain(_) => explain,
            plan => match state.analyzer().execute_and_check(plan.clone(), state.config_options(), |_, _| {}) {
                Ok(plan) => plan,
                // Of open parameters not all types are known.
                Err(_) if !is_bound => plan,
                Err(error) => return Err(failed(error)),
            },
        };
        Ok(Planned { plan, state, names, parameters, is_bound })
    }

    fn names(&self, handle: &Handle, meter: &Arc<ScanMeter>) -> Names {
        let cache = LocalCache::new(Arc::clone(&self.engine), self.io.clone(), Arc::clone(meter));
        Names::new(cache, Arc::clone(&self.tables), handle.tables.clone())
    }

    /// Whether a change could be made; without I/O.
    fn check(&self, statement: &Statement) -> Result<()> {
        match statement {
            Statement::CreateTable { url, .. } => self.engine.check_url(url),
            Statement::Query(_) | Statement::DropTable { .. } => Ok(()),
        }
    }

    pub(super) async fn change(&self, statement: Statement) -> Result<()> {
        match statement {
            Statement::Query(_) => return Err(Error::internal("a query changes nothing")),
            Statement::CreateTable { name, url, if_not_exists, or_replace } => {
                // It has to be there.
                let opened = self.names(&Handle::default(), &Arc::default()).open(&url).await;
                opened.map_err(|e| from_datafusion(&e))?;
                self.tables.create(&name, &url, if_not_exists, or_replace)?;
                tracing::info!(name, url, "create external table");
            }
            Statement::DropTable { name, if_exists } => {
                self.tables.remove(&name, if_exists)?;
                tracing::info!(name, "drop table");
            }
        }
        self.until_all_know().await;
        Ok(())
    }
}

/// Memory and disk that all statements share. No statement reads files by it: a store that is empty stands where the local one would.
fn runtime_env(settings: &Settings) -> Result<Arc<RuntimeEnv>> {
    let memory = FairSpillPool::new(settings.sql_memory.as_u64() as usize);
    let mode = match &settings.sql_spill_directory {
        _ if settings.sql_spill.as_u64() == 0 => DiskManagerMode::Disabled,
        None => DiskManagerMode::OsTmpDirectory,
        Some(path) => DiskManagerMode::Directories(vec![path.clone()]),
    };
    let disk = DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(settings.sql_spill.as_u64());
    let runtime_env = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(TrackConsumersPool::new(memory, CONSUMERS_NAMED)))
        .with_disk_manager_builder(disk)
        .build_arc()
        .map_err(|e| Error::invalid(format!("sql_spill_directory: {}", e.strip_backtrace())))?;
    runtime_env.register_object_store(ObjectStoreUrl::local_filesystem().as_ref(), Arc::new(InMemory::new()));
    Ok(runtime_env)
}

impl Planned {
    /// Of the answer, without dictionaries, as all that is sent.
    pub(super) fn schema(&self) -> SchemaRef {
        Arc::new(announced_schema(self.plan.schema().as_arrow()))
    }

    pub(super) fn state(&self) -> &SessionState {
        &self.state
    }

    pub(super) fn check_bound(&self) -> Result<()> {
        if self.is_bound {
            return Ok(());
        }
        let names: Vec<&str> = self.parameters.fields().iter().map(|field| field.name().as_str()).collect();
        Err(Error::invalid(format!("parameters are not bound: {}", names.join(", "))))
    }

    /// What is executed.
    pub(super) async fn physical(&self) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let optimised = match &self.plan {
            explain @ LogicalPlan::Explain(_) => self.state.optimize(explain)?,
            analysed => self.state.optimizer().optimize(analysed.clone(), &self.state, |_, _| {})?,
        };
        self.state.query_planner().create_physical_plan(&optimised, &self.state).await
    }
}

/// A field a parameter, by position; named ones after those, by name.
fn parameters(plan: &LogicalPlan) -> Result<SchemaRef, DataFusionError> {
    let mut parameters: Vec<(String, Option<DataType>)> = plan.get_parameter_types()?.into_iter().collect();
    let position = |name: &str| name.trim_start_matches('$').parse::<usize>().unwrap_or(usize::MAX);
    parameters.sort_by(|(a, _), (b, _)| (position(a), a).cmp(&(position(b), b)));
    let fields = parameters.into_iter().map(|(name, data_type)| Field::new(name, data_type.unwrap_or(DataType::Null), true));
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

pub(super) fn gave_up() -> Error {
    Error::internal("the statement gave up; the server's log says why")
}
