//! A scan in one request: planned and read by the one server that owns everything.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use flightcache_proto::{Error, ErrorKind, Result, ScanRequest, ScanStats, Ticket};
use futures::{Stream, StreamExt as _};

use crate::client::Client;
use crate::link::Transfer;
use crate::receive::{Answer, Frame, Payload, get};
use crate::retry::{MAX_ATTEMPTS, back_off, retrying};
use crate::routes::Connection;
use crate::scan::{self, overwritten};

/// An answer that has begun.
pub(crate) struct Opened {
    pub(crate) schema: SchemaRef,
    answer: Answer,
    at: Connection,
}

/// Asks for all of a scan, if one server owns everything. The answer has begun with its schema.
pub(crate) async fn open(client: &Client, request: &ScanRequest, transfer: Transfer) -> Result<Option<Opened>> {
    let open = async {
        let Some(at) = client.routes.sole_owner().await? else { return Ok(None) };
        let begin = async {
            let mut answer = get(&at, Ticket::Scan(request.clone()).encode().into(), None, transfer).await?;
            Ok((answer.next().await?, answer))
        };
        match client.routes.unless_lost(&at, begin).await? {
            (Some(Frame { payload: Payload::Schema(schema), .. }), answer) => Ok(Some(Opened { schema, answer, at })),
            _ => Err(Error::internal("the server's answer does not begin with a schema")),
        }
    };
    open.await.inspect_err(|e| client.routes.learn_from(e))
}

/// Reads an answer; asks again, by plan when one server no longer owns everything, while nothing of it was delivered.
pub(crate) fn read(
    client: Client,
    request: ScanRequest,
    transfer: Transfer,
    opened: Opened,
    stats: Arc<Mutex<Vec<ScanStats>>>,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    async_stream::try_stream! {
        let Opened { schema, mut answer, mut at } = opened;
        let mut has_delivered = false;
        let mut attempt = 1;
        loop {
            let error = match client.routes.unless_lost(&at, answer.next()).await {
                Ok(None) => break,
                Ok(Some(Frame { payload, stats: so_far })) => {
                    if let Some(so_far) = so_far {
                        *stats.lock().unwrap_or_else(PoisonError::into_inner) = vec![so_far];
                    }
                    match payload {
                        Payload::Batch(batch) => {
                            has_delivered = true;
                            yield batch;
                            continue;
                        }
                        Payload::Schema(now) if now.fields() != schema.fields() => {
                            Error::new(ErrorKind::Changed, "the answer has another schema than it began with")
                        }
                        Payload::Schema(_) | Payload::Nothing => continue,
                    }
                }
                Err(error) => error,
            };
            client.routes.learn_from(&error);
            if !error.kind.is_retryable() || has_delivered || attempt == MAX_ATTEMPTS {
                Err(error)?;
            }
            attempt += 1;
            back_off(attempt).await;
            stats.lock().unwrap_or_else(PoisonError::into_inner).clear();
            let Some(again) = retrying(|| open(&client, &request, transfer)).await? else {
                let info = retrying(|| scan::plan(&client, &request)).await?;
                if scan::schema_of(&info)?.fields() != schema.fields() {
                    Err(overwritten(&request))?;
                }
                let mut shares = pin!(scan::read(client, request, transfer, info, schema, stats));
                while let Some(batch) = shares.next().await {
                    yield batch?;
                }
                return;
            };
            if again.schema.fields() != schema.fields() {
                Err(overwritten(&request))?;
            }
            (answer, at) = (again.answer, again.at);
        }
    }
}
