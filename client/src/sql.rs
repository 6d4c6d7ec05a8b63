//! SQL statements: planned and run by the server that is asked, over Flight SQL.

use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt as _};
use arrow_flight::{FlightDescriptor, FlightInfo, Ticket};
use flightcache_proto::{Error, ErrorKind, Result, ScanStats};
use futures::{Stream, StreamExt as _, TryFutureExt as _};
use prost::Message as _;

use crate::client::Client;
use crate::link::Transfer;
use crate::receive::{self, Payload};
use crate::retry::{from_status, retrying};
use crate::routes::flight;
use crate::scan::{ScanStream, schema_of};

/// Plans a statement and starts reading its answer.
pub(crate) async fn send(client: &Client, statement: String) -> Result<ScanStream> {
    let command = CommandStatementQuery { query: statement, transaction_id: None }.as_any().encode_to_vec();
    let info = retrying(|| plan(client, &command)).await?;
    let schema = Arc::new(schema_of(&info)?);
    let stats: Arc<Mutex<Vec<ScanStats>>> = Arc::default();
    let batches = read(client.clone(), info, Arc::clone(&stats)).boxed();
    Ok(ScanStream { schema, stats, batches })
}

async fn plan(client: &Client, command: &[u8]) -> Result<FlightInfo> {
    let descriptor = FlightDescriptor::new_cmd(command.to_vec());
    let server = client.routes.contact();
    let mut flight = flight(server.channel());
    let asked = flight.get_flight_info(descriptor).map_err(|e| from_status(&e));
    let info = client.routes.unless_lost(&server, asked).await;
    info.map(tonic::Response::into_inner).inspect_err(|e| client.routes.turn_from(&server, e))
}

/// Reads all endpoints in order. A statement may change something: it is not sent again.
fn read(client: Client, info: FlightInfo, stats: Arc<Mutex<Vec<ScanStats>>>) -> impl Stream<Item = Result<RecordBatch>> + Send {
    async_stream::try_stream! {
        let schema = schema_of(&info)?;
        for (index, endpoint) in info.endpoint.into_iter().enumerate() {
            let Some(Ticket { ticket }) = endpoint.ticket else {
                Err(Error::internal(format!("endpoint {index} has no ticket")))?;
                return;
            };
            let server = client.routes.contact();
            let turn = |error: &Error| client.routes.turn_from(&server, error);
            let begun = client.routes.unless_lost(&server, receive::get(&server, ticket, None, Transfer::Arrow)).await;
            let mut answer = begun.inspect_err(turn)?;
            while let Some(frame) = client.routes.unless_lost(&server, answer.next()).await.inspect_err(turn)? {
                if let Some(so_far) = frame.stats {
                    let mut stats = stats.lock().unwrap_or_else(PoisonError::into_inner);
                    stats.resize(index + 1, ScanStats::default());
                    stats[index] = so_far;
                }
                match frame.payload {
                    Payload::Schema(now) if now.fields() != schema.fields() => {
                        Err(Error::new(ErrorKind::Changed, "the statement's answer has another schema by now"))?;
                    }
                    Payload::Batch(batch) => yield batch,
                    Payload::Schema(_) | Payload::Nothing => {}
                }
            }
        }
    }
}
