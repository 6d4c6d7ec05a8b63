//! Who answers: plain `DataFusion`, and the doors of the cache.

use std::io::Cursor;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use arrow::ipc::reader::StreamReader;
use bytesize::ByteSize;
use clap::ValueEnum;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlanProperties as _;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use flightcache::Client;
use flightcache::datafusion::with_rules;
use flightcache_server::Server;
use futures::StreamExt as _;
use object_store::ObjectStore;
use object_store::path::Path;
use serde::Deserialize;
use url::Url;

use super::Options;
use super::answer::Answer;
use crate::cpu::cpu_time;
use crate::place::{self, SOURCE};
use crate::process::{self, Process};
use crate::slow_store::SlowStore;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A way to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Door {
    /// `DataFusion` that reads Parquet from the store.
    Plain,
    /// `DataFusion` over tables of the client library, with its rules.
    Provider,
    /// `DataFusion` over Parquet of the store, which a rule has it read through the cache.
    Rule,
    /// The server, over Flight SQL.
    FlightSql,
    /// The engine of the Python package, in a process of its own.
    Python,
}

/// Answers in Arrow IPC what it is asked in lines of JSON.
const PYTHON: &str = include_str!("python.py");

/// Who answers, with a store and a server of its own.
pub(super) struct Side {
    pub(super) name: String,
    engine: Engine,
    /// `None` where files are read as such.
    store: Option<Arc<SlowStore>>,
    cache: Option<(Server, Client, u64)>,
}

/// What runs the queries.
enum Engine {
    Here(SessionContext),
    Server,
    Python(Process),
}

/// What the engine in Python says first.
#[derive(Deserialize)]
struct Reply {
    bytes: usize,
    error: Option<String>,
}

/// Plain first, then the others in the order in which they were asked for.
pub(super) async fn start(options: &Options) -> Result<Vec<Side>> {
    let data = place::open(&options.data)?;
    let distant = || options.distance.apply(Arc::clone(&data));
    let mut sides = vec![plain(options, distant()).await?];
    if let Some(local) = &options.local {
        sides.push(of_files(options, local).await?);
    }
    for door in &options.doors {
        match door {
            Door::Plain => {}
            Door::Provider => sides.push(provider(options, distant()).await?),
            Door::Rule => sides.push(rule(options, distant()).await?),
            Door::FlightSql => sides.push(flight_sql(options, distant()).await?),
            Door::Python => sides.push(python(options, distant()).await?),
        }
    }
    Ok(sides)
}

/// What the table is called in its place.
async fn file(store: &dyn ObjectStore, table: &str) -> Result<String> {
    let file = format!("{table}.parquet");
    let mut listed = store.list(None);
    while let Some(object) = listed.next().await {
        let location = object?.location;
        if location == Path::from(file.as_str()) {
            return Ok(file);
        }
        if location.prefix_matches(&Path::from(table)) {
            return Ok(format!("{table}/"));
        }
    }
    Err(format!("there is no {file} and no {table}/").into())
}

fn config() -> SessionConfig {
    let mut config = SessionConfig::new();
    // Strings that were written as binary are strings, for every side.
    config.options_mut().execution.parquet.binary_as_string = true;
    config
}

/// A session with the rules of the client library, that of rerouting if there is a client to reroute to.
async fn ruled(reroute_to: Option<&Client>) -> Result<SessionContext> {
    let reroute = match reroute_to {
        Some(client) => Some(client.reroute().await?),
        None => None,
    };
    let state = SessionStateBuilder::new().with_config(config()).with_default_features();
    Ok(SessionContext::new_with_state(with_rules(state, reroute).build()))
}

async fn plain(options: &Options, store: Arc<SlowStore>) -> Result<Side> {
    let context = SessionContext::new_with_config(config());
    register(options, &context, &store).await?;
    Ok(Side { name: "plain".to_owned(), engine: Engine::Here(context), store: Some(store), cache: None })
}

/// The tables as Parquet of the store.
async fn register(options: &Options, context: &SessionContext, store: &Arc<SlowStore>) -> Result<()> {
    context.register_object_store(&Url::parse(SOURCE)?, Arc::clone(store) as Arc<dyn ObjectStore>);
    for table in options.suite.tables() {
        let url = format!("{SOURCE}{}", file(&**store, table).await?);
        context.register_parquet(*table, url, ParquetReadOptions::default()).await?;
    }
    Ok(())
}

async fn of_files(options: &Options, directory: &str) -> Result<Side> {
    let context = SessionContext::new_with_config(config());
    let store = place::open(directory)?;
    for table in options.suite.tables() {
        let path = format!("{directory}/{}", file(&*store, table).await?);
        context.register_parquet(*table, path, ParquetReadOptions::default()).await?;
    }
    Ok(Side { name: "plain, local files".to_owned(), engine: Engine::Here(context), store: None, cache: None })
}

async fn provider(options: &Options, store: Arc<SlowStore>) -> Result<Side> {
    let (server, client) = serve(&store, options.capacity).await?;
    let context = ruled(None).await?;
    for table in options.suite.tables() {
        let url = format!("{SOURCE}{}", file(&*store, table).await?);
        context.register_table(*table, client.table(&url).await?)?;
    }
    let cache = Some((server, client, 0));
    Ok(Side { name: "provider".to_owned(), engine: Engine::Here(context), store: Some(store), cache })
}

async fn rule(options: &Options, store: Arc<SlowStore>) -> Result<Side> {
    let (server, client) = serve(&store, options.capacity).await?;
    let context = ruled(Some(&client)).await?;
    register(options, &context, &store).await?;
    let cache = Some((server, client, 0));
    Ok(Side { name: "rule".to_owned(), engine: Engine::Here(context), store: Some(store), cache })
}

async fn flight_sql(options: &Options, store: Arc<SlowStore>) -> Result<Side> {
    let (server, client) = serve(&store, options.capacity).await?;
    for table in options.suite.tables() {
        let statement =
            format!("CREATE EXTERNAL TABLE {table} STORED AS PARQUET LOCATION '{SOURCE}{}'", file(&*store, table).await?);
        client.sql(statement).await?.collect().await?;
    }
    let cache = Some((server, client, 0));
    Ok(Side { name: "Flight SQL".to_owned(), engine: Engine::Server, store: Some(store), cache })
}

async fn python(options: &Options, store: Arc<SlowStore>) -> Result<Side> {
    let (server, client) = serve(&store, options.capacity).await?;
    let mut command = Command::new(process::python(options.python.as_deref()));
    command.args(["-c", PYTHON, &format!("grpc://{}", server.flight_addr())]);
    let mut process = Process::start(command)?;
    for table in options.suite.tables() {
        let url = format!("{SOURCE}{}", file(&*store, table).await?);
        in_python(&mut process, &serde_json::json!({ "name": table, "url": url }))?;
    }
    let cache = Some((server, client, 0));
    Ok(Side { name: "Python".to_owned(), engine: Engine::Python(process), store: Some(store), cache })
}

/// Asks the engine in Python. Its server is in this process, and goes on.
fn in_python(process: &mut Process, ask: &serde_json::Value) -> Result<Vec<u8>> {
    tokio::task::block_in_place(|| {
        process.say(ask)?;
        let reply: Reply = process.hear()?;
        match reply.error {
            Some(error) => Err(error.into()),
            None => process.hear_bytes(reply.bytes),
        }
    })
}

async fn serve(store: &Arc<SlowStore>, capacity: ByteSize) -> Result<(Server, Client)> {
    let server = place::serve(Arc::clone(store) as Arc<dyn ObjectStore>, capacity).await?;
    let client = Client::connect(&format!("grpc://{}", server.flight_addr())).await?;
    Ok((server, client))
}

impl Side {
    /// All rows of a query's answer.
    pub(super) async fn answer(&mut self, sql: &str) -> Result<Answer> {
        match (&mut self.engine, &self.cache) {
            (Engine::Here(context), _) => {
                let frame = context.sql(sql).await?;
                let schema = Arc::new(frame.schema().as_arrow().clone());
                Ok(Answer::new(&schema, &frame.collect().await?)?)
            }
            (Engine::Server, Some((_, client, _))) => {
                let rows = client.sql(sql).await?;
                let schema = rows.schema();
                Ok(Answer::new(&schema, &rows.collect().await?)?)
            }
            (Engine::Server, None) => Err("there is no server".into()),
            (Engine::Python(process), _) => {
                let stream = in_python(process, &serde_json::json!({ "sql": sql }))?;
                let rows = StreamReader::try_new(Cursor::new(stream), None)?;
                let schema = rows.schema();
                Ok(Answer::new(&schema, &rows.collect::<std::result::Result<Vec<_>, _>>()?)?)
            }
        }
    }

    /// Processor time so far, of engine and server.
    pub(super) fn cpu(&self) -> Duration {
        let elsewhere = if let Engine::Python(process) = &self.engine { process.cpu() } else { Duration::ZERO };
        cpu_time() + elsewhere
    }

    /// The columns of a query's answer that its rows are sorted by.
    pub(super) async fn sorted_by(&self, sql: &str) -> Result<Vec<usize>> {
        let Engine::Here(context) = &self.engine else { return Ok(Vec::new()) };
        let plan = context.sql(sql).await?.create_physical_plan().await?;
        let order = plan.output_ordering().into_iter().flatten();
        Ok(order.map_while(|by| by.expr.downcast_ref::<Column>()).map(Column::index).collect())
    }

    /// Bytes moved to the engine, and requests to the store, since the last call.
    pub(super) async fn take_counts(&mut self) -> Result<(u64, u64)> {
        let (requests, mut bytes) = self.store.as_ref().map_or((0, 0), |store| store.take_counts());
        if let Some((_, client, before)) = &mut self.cache {
            let served = client.stats().await?.served_bytes;
            bytes = served - std::mem::replace(before, served);
        }
        Ok((bytes, requests))
    }

    pub(super) async fn stop(self) {
        if let Some((server, client, _)) = self.cache {
            drop(client);
            server.shutdown().await;
        }
    }
}
