//! Tables for `DataFusion`, read over Flight.

use std::sync::Arc;

use arrow::array::RecordBatch;
use flightcache_datafusion::{Cache, CachedTable, Figures};
use flightcache_proto::action::{self, TableInfo, UrlRequest};
use flightcache_proto::{Error, ErrorKind, Part, Result, Share, Slot, Ticket};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};

use crate::client::Client;
use crate::link::Transfer;
use crate::receive::{Payload, get};
use crate::retry::{MAX_ATTEMPTS, back_off};

impl Client {
    /// An object, a prefix or a glob as a table for `DataFusion`'s `register_table`.
    ///
    /// Schema, objects and statistics come from the server, filters, projections and limits go there; nobody else needs access to
    /// the store. Each query reads the objects as they are when it is planned, and fails with [`ErrorKind::Changed`] if one is
    /// overwritten before it is read.
    pub async fn table(&self, url: &str) -> datafusion::common::Result<Arc<CachedTable>> {
        CachedTable::open(Arc::new(self.clone()), url).await.map(Arc::new)
    }
}

impl Cache for Client {
    fn table(&self, url: &str) -> BoxFuture<'static, Result<TableInfo>> {
        let (client, url) = (self.clone(), url.to_owned());
        async move { client.act_once(action::TABLE, &UrlRequest { url }).await }.boxed()
    }

    fn read(&self, share: Share, figures: Figures) -> BoxStream<'static, Result<RecordBatch>> {
        read(self.clone(), share, figures).boxed()
    }
}

/// Reads a share from the owner of its first row group; again from its start while nothing of it was delivered and the error allows.
fn read(client: Client, share: Share, figures: Figures) -> impl futures::Stream<Item = Result<RecordBatch>> + Send {
    async_stream::try_stream! {
        let slot = share.objects.first().map(|object| {
            let part = object.row_groups.as_ref().and_then(|groups| groups.first()).map_or(Part::Footer, |&group| Part::RowGroup(group));
            Slot::of(&object.url, part)
        });
        let slot = slot.ok_or_else(|| Error::internal("a share of no objects"))?;
        let ticket = bytes::Bytes::from(Ticket::Share(share).encode());
        let mut attempt = 1;
        'ask: loop {
            let mut has_delivered = false;
            let asked = async { get(&client.routes.owner(slot).await?, ticket.clone(), Transfer::Auto).await };
            let mut answer = asked.await;
            let error = loop {
                let frame = match &mut answer {
                    Ok(answer) => answer.next().await,
                    Err(error) => break error.clone(),
                };
                match frame {
                    Ok(Some(frame)) => {
                        if let Some(stats) = frame.stats {
                            figures.set(stats);
                        }
                        if let Payload::Batch(batch) = frame.payload {
                            has_delivered = true;
                            yield batch;
                        }
                    }
                    Ok(None) => break 'ask,
                    Err(error) => break error,
                }
            };
            client.routes.learn_from(&error);
            let may_retry = error.kind.is_retryable() && error.kind != ErrorKind::Changed && !has_delivered;
            if !may_retry || attempt == MAX_ATTEMPTS {
                Err(error)?;
            }
            attempt += 1;
            back_off(attempt).await;
        }
    }
}
