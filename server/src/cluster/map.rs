//! What a view means: the slot map, its epoch, and whom a slot came from.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flightcache_proto::{Error, Node, NodeState, Result, SLOT_COUNT, Slot, SlotMap};
use tokio::time::Instant;
use uuid::Uuid;

use super::rendezvous::Ranking;
use super::view::{Published, View};

/// How long it is remembered from whom a slot came: what is not asked for within this time was not hot.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Nodes that a slot is remembered to have come from.
const MAX_FORMER: usize = 3;
/// Epochs are smaller, so that every JSON reader has them whole.
pub(super) const MAX_EPOCH: u64 = 1 << 53;

/// The epoch of this node's map. It never falls, and grows whenever the view changes.
#[derive(Debug, Default)]
pub(super) struct Epoch {
    value: u64,
    /// The highest that any node was seen to have.
    seen: u64,
    fingerprint: Option<u64>,
}

impl Epoch {
    /// Above what an earlier run had.
    pub(super) fn after(kept: u64) -> Self {
        Self { value: kept.min(MAX_EPOCH - 1), ..Self::default() }
    }

    /// The epoch for a view of this fingerprint. One that another node has published for the same view is taken over, if it is higher;
    /// that way all nodes that see the same come to the same. A view that is new gets one that is higher than any seen, and than
    /// the clock in ms: so it is also higher than those of nodes that are gone. Unless `may_begin`, it is left to others to begin one.
    pub(super) fn of_view(
        &mut self,
        fingerprint: u64,
        published: impl Iterator<Item = Published>,
        now_ms: u64,
        may_begin: bool,
    ) -> u64 {
        let mut same = 0;
        for published in published {
            self.seen = self.seen.max(published.epoch);
            if published.fingerprint == fingerprint {
                same = same.max(published.epoch);
            }
        }
        if same > self.value {
            self.value = same;
            self.fingerprint = Some(fingerprint);
        } else if may_begin && self.fingerprint != Some(fingerprint) {
            self.value = self.value.max(self.seen).max(now_ms).saturating_add(1).min(MAX_EPOCH - 1);
            self.fingerprint = Some(fingerprint);
        }
        self.value
    }
}

/// From whom a slot came, the last owner first.
#[derive(Clone, Debug)]
struct Former {
    owners: Arc<[Uuid]>,
    until: Instant,
}

/// A slot map, and from whom this node's slots came.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) map: Arc<SlotMap>,
    former: HashMap<u16, Former>,
}

impl Current {
    /// A map that came from nowhere.
    pub(super) fn new(map: SlotMap) -> Self {
        Self { map: Arc::new(map), former: HashMap::new() }
    }

    /// The map that follows, at node `me`.
    pub(super) fn next(&self, map: SlotMap, me: Uuid, ranking: &Ranking, now: Instant) -> Self {
        let map = Arc::new(map);
        let (before, after) = (Nodes::new(&self.map), Nodes::new(&map));
        let (owned, owns) = (before.slots_of(me), after.slots_of(me));
        let mut former = HashMap::new();
        for slot in (0..SLOT_COUNT).filter_map(|slot| Slot::try_from(slot).ok()).filter(|&slot| owns(slot)) {
            let known = self.former.get(&slot.get()).filter(|former| former.until > now);
            let found = if owned(slot) {
                known.cloned()
            } else {
                Some(Former { owners: from_whom(&before, &after, slot, me, ranking).into(), until: now + REMEMBERED })
            };
            former.extend(found.filter(|found| !found.owners.is_empty()).map(|found| (slot.get(), found)));
        }
        Self { map: Arc::clone(&map), former }
    }

    /// The nodes that owned a slot before this one came to, the last first, as long as that is remembered and they are there.
    pub(super) fn previous_owners(&self, slot: Slot, now: Instant) -> Vec<Node> {
        let former = self.former.get(&slot.get()).filter(|former| former.until > now);
        let ids = former.iter().flat_map(|former| &*former.owners).map(Uuid::to_string);
        ids.filter_map(|id| self.map.nodes().iter().find(|node| node.id == id).cloned()).collect()
    }
}

/// A map whose nodes are told by UUID.
struct Nodes<'a> {
    map: &'a SlotMap,
    indexes: HashMap<Uuid, u32>,
}

impl<'a> Nodes<'a> {
    fn new(map: &'a SlotMap) -> Self {
        let uuid = |(index, node): (u32, &Node)| Some((Uuid::try_parse(&node.id).ok()?, index));
        Self { map, indexes: (0..).zip(map.nodes()).filter_map(uuid).collect() }
    }

    fn node(&self, uuid: Uuid) -> Option<&Node> {
        self.map.nodes().get(*self.indexes.get(&uuid)? as usize)
    }

    /// Whether a node has begun to own: the map of one that joins and knows of no other names it all the same.
    fn is_in(&self, uuid: Uuid) -> bool {
        self.node(uuid).is_some_and(|node| node.state != NodeState::Joining)
    }

    /// Whether a node had not been there for long when another one came, as far as their clocks tell.
    fn is_newcomer(&self, uuid: Uuid, when: Uuid) -> bool {
        let started = |uuid| self.node(uuid).map_or(0, |node| node.incarnation);
        started(uuid).saturating_add(REMEMBERED.as_millis() as u64) > started(when)
    }

    /// Tells which slots a node owns.
    fn slots_of(&self, uuid: Uuid) -> impl Fn(Slot) -> bool {
        let index = self.indexes.get(&uuid).filter(|_| self.is_in(uuid));
        move |slot| index.is_some_and(|index| self.map.owner_indexes(slot).contains(index))
    }
}

/// The best owner that the slot had and that is still there. A node that joins did not see who had it earlier: that is whom the ranking
/// names next, if the owner has not been there for long either, and may not have what is hot of it.
fn from_whom(before: &Nodes<'_>, after: &Nodes<'_>, slot: Slot, me: Uuid, ranking: &Ranking) -> Vec<Uuid> {
    let uuids = before.map.owners(slot).filter_map(|node| Uuid::try_parse(&node.id).ok());
    let mut had = uuids.filter(|&uuid| uuid != me && before.is_in(uuid)).filter(|&uuid| after.node(uuid).is_some());
    let mut owners: Vec<Uuid> = had.next().into_iter().collect();
    if before.is_in(me) {
        return owners;
    }
    for uuid in ranking.best(slot.get()).filter(|&uuid| uuid != me) {
        if !owners.contains(&uuid) {
            owners.push(uuid);
        }
        if owners.len() == MAX_FORMER || !after.is_newcomer(uuid, me) {
            break;
        }
    }
    owners
}

/// The slot map of a view whose owners are ranked.
pub(super) fn slot_map(epoch: u64, view: &View, ranking: &Ranking) -> Result<SlotMap> {
    let indexes: HashMap<Uuid, u32> = view.members().iter().map(|member| member.uuid).zip(0..).collect();
    let (replicas, extra) = (view.replicas(), view.extra_owners());
    if indexes.is_empty() {
        return Err(Error::internal("no member owns anything"));
    }
    let count = |slot| replicas + extra.get(&slot).copied().unwrap_or(0) as usize;
    let owners = |slot| ranking.best(slot).take(count(slot)).filter_map(|uuid| indexes.get(&uuid).copied()).collect();
    SlotMap::from_owners(epoch, view.nodes(), owners)
}

#[cfg(test)]
mod tests;
