//! Who answers: plain `DataFusion`, and the doors of the cache.

use std::sync::Arc;

use bytesize::ByteSize;
use clap::ValueEnum;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use flightcache::Client;
use flightcache_server::Server;
use futures::StreamExt as _;
use object_store::ObjectStore;
use object_store::path::Path;
use url::Url;

use super::Options;
use super::answer::Answer;
use crate::place::{self, SOURCE};
use crate::slow_store::SlowStore;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A way to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Door {
    /// `DataFusion` that reads Parquet from the store.
    Plain,
    /// `DataFusion` over tables of the client library.
    Provider,
}

/// Who answers, with a store and a server of its own.
pub(super) struct Side {
    pub(super) name: String,
    context: SessionContext,
    /// `None` where files are read as such.
    store: Option<Arc<SlowStore>>,
    cache: Option<(Server, Client, u64)>,
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

fn context() -> SessionContext {
    let mut config = SessionConfig::new();
    // Strings that were written as binary are strings, for every side.
    config.options_mut().execution.parquet.binary_as_string = true;
    SessionContext::new_with_config(config)
}

async fn plain(options: &Options, store: Arc<SlowStore>) -> Result<Side> {
    let context = context();
    context.register_object_store(&Url::parse(SOURCE)?, Arc::clone(&store) as Arc<dyn ObjectStore>);
    for table in options.suite.tables() {
        let url = format!("{SOURCE}{}", file(&*store, table).await?);
        context.register_parquet(*table, url, ParquetReadOptions::default()).await?;
    }
    Ok(Side { name: "plain".to_owned(), context, store: Some(store), cache: None })
}

async fn of_files(options: &Options, directory: &str) -> Result<Side> {
    let context = context();
    let store = place::open(directory)?;
    for table in options.suite.tables() {
        let path = format!("{directory}/{}", file(&*store, table).await?);
        context.register_parquet(*table, path, ParquetReadOptions::default()).await?;
    }
    Ok(Side { name: "plain, local files".to_owned(), context, store: None, cache: None })
}

async fn provider(options: &Options, store: Arc<SlowStore>) -> Result<Side> {
    let (server, client) = serve(&store, options.capacity).await?;
    let context = context();
    for table in options.suite.tables() {
        let url = format!("{SOURCE}{}", file(&*store, table).await?);
        context.register_table(*table, client.table(&url).await?)?;
    }
    Ok(Side { name: "provider".to_owned(), context, store: Some(store), cache: Some((server, client, 0)) })
}

async fn serve(store: &Arc<SlowStore>, capacity: ByteSize) -> Result<(Server, Client)> {
    let server = place::serve(Arc::clone(store) as Arc<dyn ObjectStore>, capacity).await?;
    let client = Client::connect(&format!("grpc://{}", server.flight_addr())).await?;
    Ok((server, client))
}

impl Side {
    /// All rows of a query's answer.
    pub(super) async fn answer(&mut self, sql: &str) -> Result<Answer> {
        let frame = self.context.sql(sql).await?;
        let schema = Arc::new(frame.schema().as_arrow().clone());
        Ok(Answer::new(&schema, &frame.collect().await?)?)
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
