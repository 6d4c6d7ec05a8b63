//! Readers in Rust: our client, our receiver at another's server, arrow-flight's client, and one of bytes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{AsArray as _, RecordBatch};
use arrow::compute::{cast, sum};
use arrow::datatypes::{DataType, Int64Type};
use arrow_flight::{FlightClient, Ticket};
use bytes::Bytes;
use flightcache::receive::{Frame, Payload, do_get};
use flightcache::{Client, Exchange, RowTemplate, ScanRequest, Transfer};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tonic::transport::{Channel, Endpoint};

use super::process::{Answer, Ask};
use super::raw;

/// As our client's connections have it.
const FRAME_BYTES: u32 = 4 << 20;
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// Our client.
    Flightcache,
    /// Our client, all rows of a small object at a time by one `DoExchange`.
    Exchange,
    /// What receives in our client, with tickets of any server.
    Receiver,
    /// arrow-flight's client.
    ArrowRs,
    /// Bytes over TCP.
    Raw,
}

/// A reader and its connections.
pub(super) struct Reader {
    kind: Kind,
    /// By address and size of frames.
    connections: HashMap<(String, Option<u32>), Connection>,
}

#[derive(Clone)]
enum Connection {
    Flightcache(Client),
    Exchange(Exchange, RowTemplate, Arc<[u64]>),
    Receiver(Channel),
    ArrowRs(Channel),
    Raw(raw::Connection),
}

impl Reader {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, connections: HashMap::new() }
    }

    pub(super) async fn read(&mut self, ask: Ask) -> Result<Answer, Error> {
        let key = (ask.address.clone(), ask.frame_bytes);
        let connection = if let Some(connection) = self.connections.get(&key) {
            connection.clone()
        } else {
            let connection = Connection::open(self.kind, &ask).await?;
            self.connections.insert(key, connection.clone());
            connection
        };
        let started = Instant::now();
        let work = |_| tokio::spawn(read(connection.clone(), ask.clone(), started));
        let workers: Vec<_> = (0..ask.in_flight.max(1)).map(work).collect();
        let mut answer = Answer::default();
        for worker in workers {
            let one = worker.await??;
            answer.reads += one.reads;
            answer.rows += one.rows;
            answer.checksum = answer.checksum.wrapping_add(one.checksum);
        }
        answer.seconds = started.elapsed().as_secs_f64();
        Ok(answer)
    }
}

async fn read(connection: Connection, ask: Ask, started: Instant) -> Result<Answer, Error> {
    let time = Duration::from_secs_f64(ask.seconds);
    let mut answer = Answer::default();
    while answer.reads < ask.passes || started.elapsed() < time {
        if let Connection::Raw(connection) = &connection {
            let connection = connection.clone();
            tokio::task::spawn_blocking(move || connection.read(ask.bytes)).await??;
        } else if let Connection::Exchange(exchange, template, rows) = &connection {
            answer.rows += exchange.rows(template, Arc::clone(rows)).await?.num_rows() as u64;
        } else {
            let mut batches = connection.batches(&ask.ticket, ask.parquet).await?;
            while let Some(batch) = batches.try_next().await? {
                answer.rows += batch.num_rows() as u64;
                if ask.checksum {
                    answer.checksum = answer.checksum.wrapping_add(checksum(&batch)?);
                }
            }
        }
        answer.reads += 1;
    }
    Ok(answer)
}

/// The sum of the first column, as integers.
fn checksum(batch: &RecordBatch) -> Result<i64, Error> {
    let column = cast(batch.column(0), &DataType::Int64)?;
    Ok(sum(column.as_primitive::<Int64Type>()).unwrap_or_default())
}

impl Connection {
    async fn open(kind: Kind, ask: &Ask) -> Result<Self, Error> {
        let endpoint = || Endpoint::from_shared(format!("http://{}", ask.address));
        Ok(match kind {
            Kind::Flightcache => Self::Flightcache(Client::connect(&format!("grpc://{}", ask.address)).await?),
            Kind::Exchange => {
                let client = Client::connect(&format!("grpc://{}", ask.address)).await?;
                let rows = client.info(&ask.ticket).await?.iter().map(|object| object.rows).sum();
                let exchange = client.exchange().await?;
                let template = exchange.template(ScanRequest::new(&ask.ticket))?;
                Self::Exchange(exchange, template, (0..rows).collect())
            }
            Kind::Receiver => {
                let endpoint = endpoint()?.tcp_nodelay(true).max_frame_size(FRAME_BYTES);
                let endpoint = endpoint.initial_stream_window_size(STREAM_WINDOW_BYTES);
                Self::Receiver(endpoint.initial_connection_window_size(CONNECTION_WINDOW_BYTES).connect().await?)
            }
            Kind::ArrowRs => Self::ArrowRs(endpoint()?.max_frame_size(ask.frame_bytes).connect().await?),
            Kind::Raw => Self::Raw(raw::Connection::open(&ask.address)?),
        })
    }

    async fn batches(&self, ticket: &str, parquet: bool) -> Result<BoxStream<'static, Result<RecordBatch, Error>>, Error> {
        Ok(match self {
            Self::Flightcache(client) => {
                let transfer = if parquet { Transfer::Parquet } else { Transfer::Arrow };
                client.scan(ticket).transfer(transfer).in_one_request().send().await?.map_err(Into::into).boxed()
            }
            Self::Receiver(channel) => {
                let answer = do_get(channel.clone(), Bytes::from(ticket.to_owned())).await?;
                let next = |mut answer: flightcache::receive::Answer| async move {
                    while let Some(Frame { payload, .. }) = answer.next().await? {
                        if let Payload::Batch(batch) = payload {
                            return Ok(Some((batch, answer)));
                        }
                    }
                    Ok(None)
                };
                futures::stream::try_unfold(answer, next).boxed()
            }
            Self::ArrowRs(channel) => {
                let mut client = FlightClient::new(channel.clone());
                client.do_get(Ticket::new(ticket.to_owned())).await?.map_err(Into::into).boxed()
            }
            Self::Exchange(..) | Self::Raw(_) => return Err("it is read otherwise".into()),
        })
    }
}
