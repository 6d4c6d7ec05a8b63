//! A cache of whole objects, as the predecessor was: the server keeps files as they are, the client decodes them.
//!
//! ```text
//!  client --GET /route/{key}--> any node: the owner's address
//!         --GET /objects/{key}-> owner: cache, or one GET from the store --> bytes --> Parquet reader in the client
//! ```

mod cache;
mod server;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use reqwest::{Client, Response};
use url::Url;

use self::server::{FETCH_HEADER, HIT_HEADER, Nodes};
use super::side::{Answer, AskError, Clients, InTurn, Read, Side, StoreCounts};
use crate::slow_store::SlowStore;

/// Rows of a batch, as `DataFusion` and Flightcache have them.
const BATCH_ROWS: usize = 8_192;

/// Each request looks up its routes first, as the predecessor's did.
#[derive(Debug)]
pub struct WholeFile {
    /// Those that requests share, if they do.
    kept: Option<InTurn<Client>>,
    nodes: Nodes,
    store: Arc<SlowStore>,
}

impl WholeFile {
    /// Starts `count` nodes in this process, each with this capacity.
    pub async fn start(
        store: Arc<SlowStore>,
        count: usize,
        capacity: ByteSize,
        connecting: Clients,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let kept = match connecting {
            Clients::PerRequest => None,
            Clients::Kept(count) => Some(InTurn::new((0..count.get()).map(|_| client()).collect::<Result<_, _>>()?)),
        };
        Ok(Self { kept, nodes: Nodes::start(&store, count, capacity.as_u64()).await?, store })
    }
}

/// No proxy and no root certificates, which take milliseconds to read: there is no TLS on the loopback.
fn client() -> reqwest::Result<Client> {
    Client::builder().no_proxy().tls_built_in_root_certs(false).build()
}

#[async_trait]
impl Side for WholeFile {
    fn name(&self) -> &'static str {
        "whole-file cache"
    }

    async fn ask(&self, read: &Read) -> Result<Answer, AskError> {
        let mut answer = Answer::default();
        let client = self.kept.as_ref().map_or_else(client, |kept| Ok(kept.next().clone()))?;
        for object in &read.objects {
            let started = Instant::now();
            let owner = get(&client, url(self.nodes.seed(), "route", &object.name)?).await?.text().await?;
            let response = get(&client, url(&owner, "objects", &object.name)?).await?;
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()?.parse().ok());
            let fetch = Duration::from_micros(header(FETCH_HEADER).unwrap_or_default());
            let hit = header(HIT_HEADER).unwrap_or_default().min(1);
            let file = response.bytes().await?;
            let exchange = started.elapsed();
            let columns = object.columns.clone();
            let (rows, decode) = tokio::task::spawn_blocking(move || decode(file, columns.as_deref())).await??;
            answer.rows += rows;
            answer.fetch += fetch;
            answer.decode += decode;
            answer.server += exchange.saturating_sub(fetch);
            answer.hits += hit;
            answer.misses += 1 - hit;
        }
        Ok(answer)
    }

    async fn empty(&self, _objects: &[String]) -> Result<(), AskError> {
        self.nodes.clear();
        Ok(())
    }

    async fn take_counts(&self) -> Result<StoreCounts, AskError> {
        Ok(self.store.take_counts().into())
    }

    async fn stop(&self) {
        self.nodes.stop();
    }
}

fn url(node: &str, path: &str, object: &str) -> Result<Url, AskError> {
    let mut url = Url::parse(&format!("{node}/{path}"))?;
    // An `http` URL always has segments; they are encoded as they are added.
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.extend(object.split('/'));
    }
    Ok(url)
}

async fn get(client: &Client, url: Url) -> Result<Response, AskError> {
    let response = client.get(url).send().await?;
    let status = response.status();
    if status.is_success() {
        Ok(response)
    } else {
        Err(AskError::Refused { status: status.as_u16(), body: response.text().await? })
    }
}

/// Reads all rows, and says how many there were and how long it took.
fn decode(file: Bytes, columns: Option<&[String]>) -> Result<(u64, Duration), ParquetError> {
    let started = Instant::now();
    let mut reader = ParquetRecordBatchReaderBuilder::try_new(file)?.with_batch_size(BATCH_ROWS);
    if let Some(columns) = columns {
        let known = reader.schema().fields();
        let root = |name: &String| {
            let at = known.iter().position(|field| field.name() == name);
            at.ok_or_else(|| ParquetError::General(format!("there is no column {name}")))
        };
        let roots: Vec<usize> = columns.iter().map(root).collect::<Result<_, _>>()?;
        let mask = ProjectionMask::roots(reader.parquet_schema(), roots);
        reader = reader.with_projection(mask);
    }
    let mut rows = 0;
    for batch in reader.build()? {
        rows += batch?.num_rows() as u64;
    }
    Ok((rows, started.elapsed()))
}

#[cfg(test)]
mod tests;
