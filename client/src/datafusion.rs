//! Tables for `DataFusion`, read over Flight.

use std::sync::Arc;

use arrow::array::RecordBatch;
pub use flightcache_datafusion::aggregate::AggregatePushdown;
pub use flightcache_datafusion::reroute::{Reroute, with_rules};
pub use flightcache_datafusion::{Cache, CachedSource, CachedTable, Figures};
use flightcache_proto::action::{self, Bounds, BoundsRequest, SourcesInfo, TableInfo, UrlRequest};
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

impl Client {
    /// The rule by which `DataFusion` reads its own Parquet tables through the cache, where their files belong to one of its sources.
    ///
    /// ```no_run
    /// # async fn example(cache: flightcache::Client) -> datafusion::common::Result<()> {
    /// use datafusion::execution::session_state::SessionStateBuilder;
    ///
    /// let session = SessionStateBuilder::new().with_default_features();
    /// let session = flightcache::datafusion::with_rules(session, Some(cache.reroute().await?));
    /// let ctx = datafusion::prelude::SessionContext::new_with_state(session.build());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn reroute(&self) -> datafusion::common::Result<Reroute> {
        Reroute::connect(Arc::new(self.clone())).await
    }
}

impl Cache for Client {
    fn table(&self, url: &str) -> BoxFuture<'static, Result<TableInfo>> {
        let (client, url) = (self.clone(), url.to_owned());
        async move { client.act_once(action::TABLE, &UrlRequest { url, now: false }).await }.boxed()
    }

    fn table_now(&self, url: &str) -> BoxFuture<'static, Result<TableInfo>> {
        let (client, url) = (self.clone(), url.to_owned());
        async move { client.act_once(action::TABLE, &UrlRequest { url, now: true }).await }.boxed()
    }

    fn bounds(&self, url: &str, column: &str) -> BoxFuture<'static, Result<Bounds>> {
        let (client, request) = (self.clone(), BoundsRequest { url: url.to_owned(), column: column.to_owned() });
        async move { client.act_once(action::BOUNDS, &request).await }.boxed()
    }

    fn sources(&self) -> BoxFuture<'static, Result<SourcesInfo>> {
        let client = self.clone();
        async move { client.act_once(action::SOURCES, &()).await }.boxed()
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
