//! What is asked: a server, connections to it, and the one scan.

use std::sync::Arc;

use bytesize::ByteSize;
use flightcache::{Client, ScanBuilder};
use flightcache_server::Server;
use futures::TryStreamExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::tally::Answer;
use super::{Options, servers_text};
use crate::{data, place};

/// Room for every column of the generated file.
const CAPACITY: ByteSize = ByteSize::gib(4);

/// Why a request, or the first one, brought nothing of use.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The server's error, or the connection's.
    #[error(transparent)]
    Flight(#[from] flightcache::Error),
    /// An answer differs from the first one.
    #[error("an answer has {rows} rows, the first one had {expected}")]
    Rows {
        /// Rows of the answer.
        rows: u64,
        /// Rows of the first answer.
        expected: u64,
    },
}

/// A warm server and the scan that every request sends.
pub struct Target {
    /// Of each connection, for each file.
    scans: Vec<Vec<ScanBuilder>>,
    /// Of the last warming request.
    answer: Answer,
    columns: u64,
    location: String,
    place: String,
    servers: Vec<Server>,
}

impl Target {
    /// Connects, to so many servers in this process if no other is named, and warms them with the requests themselves.
    pub async fn start(options: &Options, servers: usize) -> Result<Self, Box<dyn std::error::Error>> {
        let (servers, location, urls, place) = if let (Some(location), Some(url)) = (&options.server, &options.url) {
            (Vec::new(), location.clone(), vec![url.clone()], format!("{url} at {location}"))
        } else {
            let (servers, place) = serve(options, servers).await?;
            let location = format!("grpc://{}", servers[0].flight_addr());
            let urls = (0..options.files.get()).map(|at| format!("{}{}", place::SOURCE, file(at))).collect();
            (servers, location, urls, place)
        };
        let mut scans: Vec<Vec<ScanBuilder>> = Vec::new();
        for _ in 0..options.connections.get() {
            let client = Client::connect(&location).await?;
            scans.push(urls.iter().map(|url| scan(&client, url, options)).collect());
        }
        let mut columns = 0;
        let mut answer = Answer::default();
        // Every connection is opened, and what the first request loads is resident for the others.
        for scan in scans.iter().flatten() {
            (answer, columns) = read(scan.clone()).await?;
        }
        Ok(Self { scans, answer, columns, location, place, servers })
    }

    /// Sends the scan, of the next file on the next connection in turn, and reads its answer to the end.
    pub fn ask(&self, request: u64) -> impl Future<Output = Result<Answer, TargetError>> + Send + use<> {
        let of_connection = &self.scans[request as usize % self.scans.len()];
        let scan = of_connection[request as usize / self.scans.len() % of_connection.len()].clone();
        let expected = self.answer.rows;
        async move {
            let (answer, _) = read(scan).await?;
            if answer.rows == expected { Ok(answer) } else { Err(TargetError::Rows { rows: answer.rows, expected }) }
        }
    }

    /// Where the server listens.
    pub fn url(&self) -> &str {
        &self.location
    }

    /// Columns of an answer.
    pub fn columns(&self) -> u64 {
        self.columns
    }

    /// The server and the data, in words.
    pub fn describe(&self) -> &str {
        &self.place
    }

    /// What each answer brings, in words.
    pub fn describe_answer(&self) -> String {
        let Answer { rows, bytes } = self.answer;
        format!("{rows} rows of {} columns, {} on the wire", self.columns, ByteSize(bytes).display().iec())
    }

    /// Ends the connections, and the server if it is in this process.
    pub async fn shutdown(self) {
        drop(self.scans);
        futures::future::join_all(self.servers.into_iter().map(Server::shutdown)).await;
    }
}

/// The name of a generated file.
fn file(at: usize) -> String {
    format!("load-{at}.parquet")
}

/// Servers in this process over generated files.
async fn serve(options: &Options, servers: usize) -> Result<(Vec<Server>, String), Box<dyn std::error::Error>> {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let parquet = data::parquet(options.file_rows.get())?;
    let place = format!(
        "{} in this process, on the cores of what asks, over {} file(s) of {} rows of 20 columns, {} of Parquet each; {}",
        servers_text(servers as u64),
        options.files,
        options.file_rows,
        ByteSize(parquet.len() as u64).display().iec(),
        options.distance.describe()
    );
    for at in 0..options.files.get() {
        store.put(&Path::from(file(at)), parquet.clone().into()).await?;
    }
    let store: Arc<dyn ObjectStore> = options.distance.apply(store);
    Ok((place::serve_all(&store, CAPACITY, servers).await?, place))
}

fn scan(client: &Client, url: &str, options: &Options) -> ScanBuilder {
    // A request is then one call, as it is counted.
    let mut scan = client.scan(url).in_one_request();
    if let Some(columns) = &options.columns {
        scan = scan.columns(columns);
    }
    if let Some(filter) = &options.filter {
        scan = scan.filter(filter);
    }
    if let Some(limit) = options.limit {
        scan = scan.limit(limit);
    }
    scan
}

/// The answer and its columns.
async fn read(scan: ScanBuilder) -> Result<(Answer, u64), flightcache::Error> {
    let mut batches = scan.send().await?;
    let columns = batches.schema().fields().len() as u64;
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows() as u64;
    }
    Ok((Answer { rows, bytes: batches.stats().bytes }, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    #[tokio::test]
    async fn an_answer_of_other_rows_is_an_error() {
        let args = ["load", "--file-rows", "100", "--limit", "7", "--latency", "0ms"];
        let mut target = Target::start(&<Cli as clap::Parser>::parse_from(args).options, 1).await.unwrap();
        assert_eq!(target.ask(0).await.unwrap().rows, 7);
        target.answer.rows = 8;
        let error = target.ask(1).await.unwrap_err().to_string();
        assert_eq!(error, "an answer has 7 rows, the first one had 8");
        target.shutdown().await;
    }
}
