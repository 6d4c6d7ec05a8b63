//! Tables for `DataFusion`, read over Flight.

use std::sync::{Arc, PoisonError};

use arrow::array::RecordBatch;
pub use flightcache_datafusion::aggregate::AggregatePushdown;
pub use flightcache_datafusion::reroute::{Reroute, with_rules};
pub use flightcache_datafusion::{Cache, CachedSource, CachedTable, Figures};
use flightcache_proto::action::{self, Bounds, BoundsRequest, SourcesInfo, TableInfo, UrlRequest};
use flightcache_proto::{Error, ObjectShare, Part, Result, Share, Slot, SlotMap, Ticket};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};

use crate::client::Client;
use crate::link::Transfer;
use crate::receive::Payload;
use crate::share;

impl Client {
    /// An object, a prefix or a glob as a table for `DataFusion`'s `register_table`.
    ///
    /// Schema, objects and statistics come from the server, filters, projections and limits go there; nobody else needs access to
    /// the store. Each query reads the objects as they are when it is planned, and fails with [`flightcache_proto::ErrorKind::Changed`] if one is
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
        async move { client.table_info(&UrlRequest::new(url)).await }.boxed()
    }

    fn table_now(&self, url: &str) -> BoxFuture<'static, Result<TableInfo>> {
        let (client, url) = (self.clone(), url.to_owned());
        async move { client.table_info(&UrlRequest { now: true, ..UrlRequest::new(url) }).await }.boxed()
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

/// Reads a share from its owners: rows in its order, states in any.
fn read(client: Client, share: Share, figures: Figures) -> impl futures::Stream<Item = Result<RecordBatch>> + Send {
    async_stream::try_stream! {
        let (is_of_rows, has_limit) = (share.scan.aggregation.is_none(), share.scan.limit.is_some());
        let ask = |(share, slot): (Share, Slot)| share::Share { ticket: Ticket::Share(share).encode().into(), slot: Some(slot), is_of_rows };
        let shares: Vec<_> = by_owner(share, &*client.routes.map().await?)?.into_iter().map(ask).collect();
        let of_shares = share::Figures::default();
        let mut payloads = std::pin::pin!(share::in_order(client, shares, Transfer::Auto, Arc::clone(&of_shares), has_limit));
        let told = || of_shares.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().sum();
        while let Some(payload) = payloads.next().await {
            figures.set(told());
            if let Payload::Batch(batch) = payload? {
                yield batch;
            }
        }
        figures.set(told());
    }
}

/// Cuts a share of one object's row groups where another owner's begin; one whose answer has no order, into one an owner.
fn by_owner(share: Share, map: &SlotMap) -> Result<Vec<(Share, Slot)>> {
    let [object] = &share.objects[..] else { return Err(Error::internal("a share is of one object's row groups")) };
    let Some(groups) = object.row_groups.as_deref().filter(|groups| !groups.is_empty()) else {
        let slot = Slot::of(&object.url, Part::Footer);
        return Ok(vec![(share, slot)]);
    };
    let is_ordered = share.scan.aggregation.is_none();
    let mut parts: Vec<(Slot, Vec<u32>)> = Vec::new();
    for &group in groups {
        let slot = Slot::of(&object.url, Part::RowGroup(group));
        let owners = |slot: Slot| map.owner_indexes(slot);
        let known = if is_ordered { parts.len().saturating_sub(1)..parts.len() } else { 0..parts.len() };
        match parts[known].iter_mut().find(|(of_part, _)| owners(*of_part) == owners(slot)) {
            Some((_, groups)) => groups.push(group),
            None => parts.push((slot, vec![group])),
        }
    }
    let part = |(slot, groups): (Slot, Vec<u32>)| {
        let objects = vec![ObjectShare { row_groups: Some(groups), ..object.clone() }];
        (Share { objects, ..share.clone() }, slot)
    };
    Ok(parts.into_iter().map(part).collect())
}
