//! Having other servers load what is theirs to have.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flightcache_proto::{Error, ErrorKind, NodeState, ObjectId, PeerAsk, Populate, Result, ScanStats, Slot, SlotMap};
use futures::StreamExt as _;
use tokio::time::timeout;

use super::moved;
use super::pull::ticket;
use crate::parquet::Footer;
use crate::scan::Engine;
use crate::scan::load::RowGroupRef;
use crate::scan::resident::ChunkKey;

/// How long loading a row group may take elsewhere: it may wait for memory, and for who has it.
const WARM_PATIENCE: Duration = Duration::from_mins(1);
/// Row groups handed over at a time.
const HANDED_OVER_AT_A_TIME: usize = 4;
/// How long, in ms, it is waited time and again for an owner to know that it is one: as long as a busy machine takes.
const NOT_YET: [u64; 6] = [100, 200, 400, 800, 1_600, 3_200];

impl Engine {
    /// Has the preferred owner of a row group load columns of it, and counts what that took. *Moved* where that is this server, or the
    /// owner does not know yet that it is.
    pub(in crate::scan) async fn warm_at_owner(&self, group: &RowGroupRef, columns: &[usize]) -> Result<()> {
        let (slot, map) = (group.slot(), self.slot_map());
        let owner = map.owner(slot);
        if map.nodes().len() < 2 || owner.id == self.cluster.node_id() {
            return Err(moved(slot, &map));
        }
        let ticket = ticket(group, columns, PeerAsk::Warm, map.epoch());
        let ticket = ticket.ok_or_else(|| Error::new(ErrorKind::Unsupported, "its columns cannot be asked for"))?;
        let warm = async {
            let mut answer = self.peers.way(owner, &map)?.peer.chunks(ticket.encode().into(), PeerAsk::Warm, false).await?;
            let mut stats = ScanStats::default();
            while let Some(frame) = answer.next().await? {
                stats = frame.stats.unwrap_or(stats);
            }
            Ok(stats)
        };
        let late = |_| Error::new(ErrorKind::Unavailable, format!("node {} did not load it within {WARM_PATIENCE:?}", owner.id));
        let stats = timeout(WARM_PATIENCE, self.unless_lost(owner, warm)).await.map_err(late)??;
        group.meter.add(&stats);
        Ok(())
    }

    /// Has the owners of the slots that were this server's own `before` it drains load, from here, what is resident of them, the hottest
    /// first: there may not be time for all. Once; whoever asks waits for it.
    pub(crate) async fn hand_over(self: &Arc<Self>, before: &SlotMap) {
        self.handed_over.get_or_init(|| self.hand_over_chunks(before)).await;
    }

    async fn hand_over_chunks(self: &Arc<Self>, before: &SlotMap) {
        let me = self.cluster.node_id();
        if !self.slot_map().nodes().iter().any(|node| node.state == NodeState::Active && node.id != me) {
            return;
        }
        let was_own = |slot: Slot| before.owners(slot).any(|owner| owner.id == me);
        let groups = row_groups(self.chunks.hottest_first());
        let footers = self.footers.resident().into_iter().filter_map(|footer| Some((footer.id.clone()?, footer)));
        let footers: HashMap<Arc<ObjectId>, Arc<Footer>> = footers.collect();
        let groups = groups.into_iter().filter_map(|((object, row_group), columns)| {
            let group = RowGroupRef {
                footer: Arc::clone(footers.get(&object)?),
                row_group,
                request: 0,
                populate: Populate::Auto,
                meter: Arc::default(),
                record: None,
                is_for_peer: false,
            };
            Some((group, columns))
        });
        let groups = groups.filter(|(group, _)| was_own(group.slot()));
        let (groups, started) = (groups.collect::<Vec<_>>(), std::time::Instant::now());
        let all = groups.len();
        let taken = futures::stream::iter(groups)
            .map(|(group, columns)| async move {
                let mut attempt = 0;
                loop {
                    let Err(error) = self.warm_at_owner(&group, &columns).await else { return true };
                    // An owner that cannot be reached may be another one soon.
                    let attempts = if error.kind == ErrorKind::Moved { NOT_YET.len() } else { 2 };
                    if attempt >= attempts || !(error.kind == ErrorKind::Moved || error.kind.is_retryable()) {
                        let url = group.footer.object.url();
                        tracing::debug!(url, row_group = group.row_group, cause = %error, "not handed over");
                        return false;
                    }
                    tokio::time::sleep(Duration::from_millis(NOT_YET[attempt])).await;
                    attempt += 1;
                }
            })
            .buffer_unordered(HANDED_OVER_AT_A_TIME)
            .filter(|taken| std::future::ready(*taken))
            .count()
            .await;
        tracing::info!(row_groups = all, taken, elapsed_ms = started.elapsed().as_millis() as u64, "handed over");
    }
}

/// A row group of an object version, and columns of it.
type RowGroup = ((Arc<ObjectId>, u32), Vec<usize>);

/// The row groups that chunks are of, in the order of the first chunk of each, with the columns that there are.
fn row_groups(chunks: impl IntoIterator<Item = ChunkKey>) -> Vec<RowGroup> {
    let mut groups: Vec<RowGroup> = Vec::new();
    let mut places = HashMap::new();
    for ChunkKey { object, row_group, column, .. } in chunks {
        let place = *places.entry((Arc::clone(&object), row_group)).or_insert(groups.len());
        if place == groups.len() {
            groups.push(((object, row_group), Vec::new()));
        }
        let (_, columns) = &mut groups[place];
        // Both of its forms may be there.
        if !columns.contains(&(column as usize)) {
            columns.push(column as usize);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use flightcache_proto::Version;

    use super::*;
    use crate::scan::resident::Form;

    #[test]
    fn row_groups_come_in_the_order_of_their_hottest_chunk() {
        let object = |url: &str| Arc::new(ObjectId { url: url.into(), version: Version::ETag("1".into()), footer: 0 });
        let (a, b) = (object("s3://lake/a.parquet"), object("s3://lake/b.parquet"));
        let key = |object: &Arc<ObjectId>, row_group, column| ChunkKey {
            object: Arc::clone(object),
            row_group,
            column,
            form: Form::Decoded,
        };
        let chunks = [key(&b, 7, 2), key(&a, 7, 1), key(&b, 7, 0), key(&b, 0, 0), key(&b, 7, 2).encoded(), key(&a, 7, 0)];
        let expected = vec![((Arc::clone(&b), 7), vec![2, 0]), ((a, 7), vec![1, 0]), ((b, 0), vec![0])];
        assert_eq!(row_groups(chunks), expected);
    }
}
