//! Weighted rendezvous hashing: each node draws a score for each slot ([`Slot::score`]), and the best own it.
//!
//! A node's score depends on no other node, so one that comes or goes moves only what it gains or loses, and a slot whose owner is gone
//! goes to its second.

use std::collections::{BTreeMap, HashSet};

use flightcache_proto::{SLOT_COUNT, Slot};
use uuid::Uuid;

/// What a node drew for a slot. There are many: the node is told by its place in [`Ranking::names`].
#[derive(Clone, Copy, Debug)]
struct Draw {
    score: f32,
    place: u16,
}

#[derive(Clone, Copy, Debug)]
struct Ranked {
    weight: u64,
    place: u16,
}

/// For each slot all nodes, best first. Kept, and changed by the nodes that come and go: 16,384 scores for each.
#[derive(Debug)]
pub struct Ranking {
    nodes: BTreeMap<Uuid, Ranked>,
    /// By place. Those of nodes that are gone are free.
    names: Vec<Uuid>,
    free: Vec<u16>,
    slots: Vec<Vec<Draw>>,
    scores_computed: u64,
}

impl Default for Ranking {
    fn default() -> Self {
        let slots = vec![Vec::new(); usize::from(SLOT_COUNT)];
        Self { nodes: BTreeMap::new(), names: Vec::new(), free: Vec::new(), slots, scores_computed: 0 }
    }
}

impl Ranking {
    /// Brings the ranking to these nodes and weights. There may be 65,535 at most.
    pub fn set(&mut self, nodes: impl IntoIterator<Item = (Uuid, u64)>) {
        let nodes: BTreeMap<_, _> = nodes.into_iter().take(usize::from(u16::MAX)).collect();
        let mut gone = HashSet::new();
        self.nodes.retain(|uuid, ranked| {
            let stays = nodes.get(uuid) == Some(&ranked.weight);
            if !stays {
                gone.insert(ranked.place);
            }
            stays
        });
        if !gone.is_empty() {
            for draws in &mut self.slots {
                draws.retain(|draw| !gone.contains(&draw.place));
            }
            self.free.extend(gone);
        }
        for (uuid, weight) in nodes {
            if !self.nodes.contains_key(&uuid) {
                self.insert(uuid, weight);
            }
        }
    }

    fn insert(&mut self, uuid: Uuid, weight: u64) {
        let place = self.free.pop().unwrap_or(self.names.len() as u16);
        match self.names.get_mut(usize::from(place)) {
            Some(name) => *name = uuid,
            None => self.names.push(uuid),
        }
        let names = &self.names;
        let slots = (0..SLOT_COUNT).filter_map(|slot| Slot::try_from(slot).ok());
        for (slot, draws) in slots.zip(&mut self.slots) {
            let score = slot.score(uuid.into_bytes(), weight);
            let goes_before = |other: &Draw| {
                let by_name = || uuid.cmp(&names[usize::from(other.place)]);
                other.score.total_cmp(&score).then_with(by_name).is_gt()
            };
            let at = draws.partition_point(goes_before);
            draws.insert(at, Draw { score, place });
        }
        self.nodes.insert(uuid, Ranked { weight, place });
        self.scores_computed += u64::from(SLOT_COUNT);
    }

    /// The nodes, best first for a slot.
    pub fn best(&self, slot: u16) -> impl Iterator<Item = Uuid> {
        let draws = self.slots.get(usize::from(slot)).into_iter().flatten();
        draws.filter_map(|draw| self.names.get(usize::from(draw.place)).copied())
    }

    /// Scores computed so far.
    pub fn scores_computed(&self) -> u64 {
        self.scores_computed
    }
}

#[cfg(test)]
mod tests {
    use flightcache_proto::{Node, SlotMap};
    use proptest::prelude::*;

    use super::*;

    const SLOTS: u64 = SLOT_COUNT as u64;

    fn ranking(nodes: impl IntoIterator<Item = (Uuid, u64)>) -> Ranking {
        let mut ranking = Ranking::default();
        ranking.set(nodes);
        ranking
    }

    fn owner(ranking: &Ranking, slot: u16) -> Uuid {
        ranking.best(slot).next().unwrap()
    }

    fn all(ranking: &Ranking) -> Vec<Vec<Uuid>> {
        (0..SLOT_COUNT).map(|slot| ranking.best(slot).collect()).collect()
    }

    /// Nodes of random names and of weights within a factor of four.
    fn nodes(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<(Uuid, u64)>> {
        let node = (any::<u128>().prop_map(Uuid::from_u128), 1_024_u64..4_096);
        proptest::collection::btree_map(any::<u128>(), node, count).prop_map(|nodes| nodes.into_values().collect())
    }

    #[test]
    fn a_change_at_100_nodes_costs_one_nodes_scores() {
        let nodes: Vec<_> = (0..100).map(|uuid| (Uuid::from_u128(uuid), 1)).collect();
        let mut changed = ranking(nodes.clone());
        assert_eq!(changed.scores_computed(), 100 * SLOTS);
        changed.set(nodes.iter().copied().chain([(Uuid::from_u128(100), 1)]));
        assert_eq!(changed.scores_computed(), 101 * SLOTS);
        // Who leaves costs none.
        changed.set(nodes[1..].iter().copied());
        assert_eq!(changed.scores_computed(), 101 * SLOTS);
        // A new weight: that node's.
        let reweighed = nodes[1..].iter().map(|&(uuid, weight)| (uuid, if uuid.as_u128() == 7 { 2 } else { weight }));
        changed.set(reweighed.clone());
        assert_eq!(changed.scores_computed(), 102 * SLOTS);
        assert_eq!(all(&changed), all(&ranking(reweighed)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn whatever_came_before_the_ranking_is_the_same(sets in proptest::collection::vec(nodes(1..8), 1..5)) {
            let mut kept = Ranking::default();
            for set in &sets {
                // Others that come and go in between, and one of the same name and another weight.
                kept.set(set.iter().map(|&(uuid, weight)| (uuid, weight + 1)));
                kept.set(set.iter().rev().copied());
            }
            let last = sets.last().unwrap();
            prop_assert_eq!(all(&kept), all(&ranking(last.iter().copied())));
        }

        /// Who knows the map only, and not the ranking, knows who comes next as well.
        #[test]
        fn a_map_tells_who_comes_next(nodes in nodes(2..6), owners in 1_usize..3) {
            let ranking = ranking(nodes.iter().copied());
            let ids: Vec<Uuid> = nodes.iter().map(|(uuid, _)| *uuid).collect();
            let node = |&(uuid, weight): &(Uuid, u64)| Node { id: uuid.to_string(), weight, ..Node::default() };
            let place = |uuid| ids.iter().position(|id| *id == uuid).unwrap() as u32;
            let map = SlotMap::from_owners(1, nodes.iter().map(node).collect(), |slot| {
                ranking.best(slot).take(owners).map(place).collect()
            });
            let map = map.unwrap();
            for slot in (0..SLOT_COUNT).step_by(7) {
                let heirs: Vec<_> = map.heirs(Slot::try_from(slot).unwrap()).into_iter().map(|node| node.id.clone()).collect();
                let next: Vec<_> = ranking.best(slot).skip(owners).map(|uuid| uuid.to_string()).collect();
                prop_assert_eq!(heirs, next);
            }
        }

        #[test]
        fn one_node_moves_its_share_and_nothing_else(nodes in nodes(2..6)) {
            let (joining, others) = nodes.split_last().unwrap();
            let (without, with) = (ranking(others.iter().copied()), ranking(nodes.iter().copied()));
            let mut moved = 0;
            for slot in 0..SLOT_COUNT {
                let (before, after) = (owner(&without, slot), owner(&with, slot));
                if before != after {
                    prop_assert_eq!(after, joining.0, "slot {} moved between two others", slot);
                    // Should it leave again, or crash, its second takes over.
                    prop_assert_eq!(with.best(slot).nth(1), Some(before));
                    moved += 1;
                }
            }
            let total: u64 = nodes.iter().map(|(_, weight)| weight).sum();
            let share = joining.1 as f64 / total as f64;
            let fair = SLOTS as f64 * share;
            // Slots are drawn: for the shares of many nodes, chance is wider than a tenth.
            let chance = fair + 5.0 * (fair * (1.0 - share)).sqrt();
            prop_assert!(f64::from(moved) <= chance.max(1.1 * fair), "{} slots moved, {} are fair", moved, fair);
        }
    }

    #[test]
    fn a_fourth_equal_node_moves_at_most_a_tenth_more_than_a_quarter() {
        for cluster in 0..50_u128 {
            let nodes: Vec<_> = (0..4).map(|node| (Uuid::from_u128(cluster * 1_000_003 + node), 1_024)).collect();
            let (before, after) = (ranking(nodes[..3].iter().copied()), ranking(nodes.iter().copied()));
            let moved = (0..SLOT_COUNT).filter(|&slot| owner(&before, slot) != owner(&after, slot)).count();
            assert!(moved as f64 <= 1.1 * f64::from(SLOT_COUNT) / 4.0, "{moved} slots moved");
        }
    }
}
