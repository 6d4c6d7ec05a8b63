//! Which slots are too much for their owners: what a node is asked for, slot by slot, and the extra owners it wants for some.
//!
//! A node compares what it is asked for with what the others say they are. One that stands out wants one more owner for the hottest
//! slots it is the preferred owner of, says so by gossip, and looks again; so a slot gets as many owners as it needs. Clients ask the
//! owner that has less to do. Once the node would not stand out without them, or little is asked of the slot, the extra owners go, all
//! at once; what they hold of the slot ages out of their caches.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flightcache_proto::{SLOT_COUNT, Slot};

use super::view::MAX_REPLICAS;

/// Extra owners, by slot.
pub(super) type ExtraOwners = BTreeMap<u16, u32>;

/// Slots of one node that have extra owners, at most.
pub(super) const MAX_HOT_SLOTS: usize = 16;
/// What answering takes beside the bytes it touches.
const REQUEST_BYTES: u64 = 64 << 10;
/// A node that is asked for less a second needs no relief: one core touches a hundred times as much.
const FLOOR: f64 = (32 << 20) as f64;
/// A node stands out that is asked for so many times the mean, for its weight.
const STANDS_OUT: f64 = 1.4;
/// It does not any more at so many times the mean.
const CALM: f64 = 1.2;
/// A slot is worth another owner that takes such a part of what its node is asked for.
const PART: f64 = 0.05;
/// Extra owners that take less than such a part of the mean are of no use.
const NOTHING: f64 = 0.01;
/// Looks in a row at which a node stands out before it asks for relief: the effect of the last extra owner is seen by then.
const LOOKS_TO_ADD: u32 = 2;
/// Looks in a row at which a slot is cool before its extra owners go.
const LOOKS_TO_REMOVE: u32 = 10;
/// Parts into which the slots are divided where they are shown.
const RANGES: u16 = 16;

/// What a node was asked for since its start, slot by slot: bytes touched, whether they were there or not.
#[derive(Debug)]
pub struct Heat(Box<[AtomicU64]>);

impl Default for Heat {
    fn default() -> Self {
        Self((0..SLOT_COUNT).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Heat {
    /// Counts a request for chunks of a slot.
    pub fn add(&self, slot: Slot, bytes: u64) {
        self.0[usize::from(slot.get())].fetch_add(bytes.saturating_add(REQUEST_BYTES), Ordering::Relaxed);
    }

    /// The counts of ranges of slots, with each one's first and last slot.
    pub fn by_range(&self) -> impl Iterator<Item = (u16, u16, u64)> {
        let width = SLOT_COUNT / RANGES;
        (0..RANGES).map(move |range| {
            let (first, last) = (range * width, (range + 1) * width - 1);
            let slots = &self.0[usize::from(first)..=usize::from(last)];
            (first, last, slots.iter().map(|count| count.load(Ordering::Relaxed)).sum())
        })
    }

    fn counts(&self) -> Vec<u64> {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

/// What a node is asked for, against its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Bytes a second.
    pub(super) rate: u64,
    pub(super) weight: u64,
}

impl Load {
    fn relative(self) -> f64 {
        self.rate as f64 / self.weight.max(1) as f64
    }
}

/// The extra owners that a node wants for its slots.
#[derive(Debug, Default)]
pub(super) struct Relief {
    counted: Vec<u64>,
    rate: f64,
    /// Looks in a row at which this node stood out.
    stood_out: u32,
    hot: BTreeMap<u16, Hot>,
}

#[derive(Debug, Default)]
struct Hot {
    extra: u32,
    /// Looks in a row at which it was cool.
    cool: u32,
}

impl Relief {
    /// Bytes a second this node is asked for.
    pub(super) fn rate(&self) -> u64 {
        self.rate as u64
    }

    /// The extra owners it wants.
    pub(super) fn extra_owners(&self) -> ExtraOwners {
        self.hot.iter().map(|(&slot, hot)| (slot, hot.extra)).collect()
    }

    /// Looks at what was asked for in the time since the last look. `others` are the other nodes that own slots; `owners` tells how many
    /// owners a slot has, if this node is the preferred one.
    pub(super) fn look(
        &mut self,
        heat: &Heat,
        elapsed: Duration,
        weight: u64,
        others: &[Load],
        owners: impl Fn(u16) -> Option<usize>,
    ) {
        let counts = heat.counts();
        let seconds = elapsed.as_secs_f64().max(1e-3);
        let counted = std::mem::replace(&mut self.counted, counts);
        if counted.is_empty() {
            return;
        }
        let rates: Vec<f64> =
            self.counted.iter().zip(counted).map(|(now, before)| now.saturating_sub(before) as f64 / seconds).collect();
        let now: f64 = rates.iter().sum();
        // Half of the look before: one burst is no load.
        self.rate = f64::midpoint(self.rate, now);
        let me = Load { rate: self.rate(), weight };
        let mean = others.iter().chain([&me]).map(|load| load.relative()).sum::<f64>() / (others.len() + 1) as f64;
        self.cool_down(&rates, now, weight, mean, &owners);
        // What has been is no reason.
        let lasting = self.rate.min(now);
        let stands_out = lasting >= FLOOR && lasting / weight.max(1) as f64 > STANDS_OUT * mean;
        self.stood_out = if stands_out { self.stood_out + 1 } else { 0 };
        if self.stood_out >= LOOKS_TO_ADD {
            self.stood_out = 0;
            self.add(&rates, CALM * mean * weight as f64, others.len() + 1, &owners);
        }
    }

    /// Takes extra owners back that are not needed any more, as many as leave this node as calm as it should be.
    fn cool_down(&mut self, rates: &[f64], whole: f64, weight: u64, mean: f64, owners: &impl Fn(u16) -> Option<usize>) {
        let calm = (CALM * mean * weight as f64).max(FLOOR / 2.0);
        // Its owners take equal parts of a slot, about.
        let elsewhere = |slot: u16, hot: &Hot| rates[usize::from(slot)] * f64::from(hot.extra);
        let mut coolest: Vec<(u16, f64)> = self.hot.iter().map(|(&slot, hot)| (slot, elsewhere(slot, hot))).collect();
        coolest.sort_unstable_by(|(_, a), (_, b)| a.total_cmp(b));
        let mut back = 0.0;
        for (slot, elsewhere) in coolest {
            back += elsewhere;
            let is_cool = whole + back <= calm || elsewhere < NOTHING * mean * weight as f64;
            if let Some(hot) = self.hot.get_mut(&slot) {
                hot.cool = if is_cool { hot.cool + 1 } else { 0 };
            }
        }
        self.hot.retain(|&slot, hot| hot.cool < LOOKS_TO_REMOVE && owners(slot).is_some());
    }

    /// One more owner for each of the hottest slots, until what is left is as much as it should be.
    fn add(&mut self, rates: &[f64], calm: f64, nodes: usize, owners: &impl Fn(u16) -> Option<usize>) {
        let mut hottest: Vec<(u16, f64)> =
            (0..).zip(rates.iter().copied()).filter(|&(_, rate)| rate > PART * self.rate).collect();
        hottest.sort_unstable_by(|(_, a), (_, b)| b.total_cmp(a));
        let mut left = self.rate;
        for (slot, rate) in hottest {
            if left <= calm {
                return;
            }
            let Some(owners) = owners(slot).filter(|owners| *owners < nodes) else { continue };
            if self.hot.len() >= MAX_HOT_SLOTS && !self.hot.contains_key(&slot) {
                continue;
            }
            let hot = self.hot.entry(slot).or_default();
            if hot.extra == MAX_REPLICAS {
                continue;
            }
            *hot = Hot { extra: hot.extra + 1, cool: 0 };
            left -= rate / (owners + 1) as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_secs(2);
    const MIB: u64 = 1 << 20;

    fn slot(number: u16) -> Slot {
        Slot::try_from(number).unwrap()
    }

    /// A node of three, each of which is asked `others` MiB a second; it prefers the even slots.
    struct Node {
        heat: Heat,
        relief: Relief,
        others: u64,
    }

    impl Node {
        fn new(others: u64) -> Self {
            let mut node = Self { heat: Heat::default(), relief: Relief::default(), others };
            node.look(&[]);
            node
        }

        /// One look, after each of some slots was asked so many MiB a second of.
        fn look(&mut self, asked: &[(u16, u64)]) -> Vec<(u16, u32)> {
            for &(number, rate) in asked {
                self.heat.add(slot(number), (rate * 2 * MIB).saturating_sub(REQUEST_BYTES));
            }
            let others = [Load { rate: self.others * MIB, weight: 7 }; 2];
            let hot = self.relief.extra_owners();
            let owners = |slot: u16| slot.is_multiple_of(2).then(|| 1 + hot.get(&slot).copied().unwrap_or(0) as usize);
            self.relief.look(&self.heat, LOOK, 7, &others, owners);
            self.relief.extra_owners().into_iter().collect()
        }

        fn looks(&mut self, times: u32, asked: &[(u16, u64)]) -> Vec<(u16, u32)> {
            (0..times).map(|_| self.look(asked)).last().unwrap_or_default()
        }
    }

    #[test]
    fn the_slots_that_stand_out_get_owners_and_lose_them_again() {
        let mut node = Node::new(10);
        assert_eq!(node.looks(1, &[(2, 600), (4, 10), (6, 10)]), [], "one look is a burst");
        assert_eq!(node.looks(4, &[(2, 600), (4, 10), (6, 10)]), [(2, 2)], "as many as there are nodes");
        // The others take two thirds of it.
        node.others = 210;
        assert_eq!(node.looks(30, &[(2, 200), (4, 10), (6, 10)]), [(2, 2)], "it stays as long as it is hot");
        node.others = 10;
        assert_eq!(node.looks(LOOKS_TO_REMOVE - 1, &[(2, 1), (4, 3), (6, 3)]), [(2, 2)]);
        assert_eq!(node.looks(1, &[(2, 1), (4, 3), (6, 3)]), []);
    }

    #[test]
    fn what_is_spread_or_little_or_alike_everywhere_gets_none() {
        let spread: Vec<(u16, u64)> = (0..60).map(|slot| (slot * 2, 10)).collect();
        assert_eq!(Node::new(10).looks(20, &spread), [], "no slot stands out");
        assert_eq!(Node::new(0).looks(20, &[(2, 20)]), [], "too little to matter");
        assert_eq!(Node::new(500).looks(20, &[(2, 600)]), [], "all have as much to do");
        assert_eq!(Node::new(10).looks(20, &[(3, 600)]), [], "another node's slot");
    }

    #[test]
    fn extra_owners_are_bounded() {
        let many: Vec<(u16, u64)> = (0..19).map(|slot| (slot * 2, 100)).collect();
        let hot = Node::new(1).looks(40, &many);
        assert_eq!(hot.len(), MAX_HOT_SLOTS);
        assert!(hot.iter().all(|&(_, extra)| extra <= 2), "{hot:?}");
    }

    #[test]
    fn several_hot_slots_stay_spread_as_long_as_they_are_hot() {
        // Sixteen slots of one node of three, 40 MiB a second each; whoever has fewer answers under way is asked, so that all have as much to do.
        let mut node = Node::new(100);
        let mut seen = Vec::new();
        for _ in 0..200 {
            let hot = node.relief.extra_owners();
            let moved = if hot.is_empty() { 0 } else { (640 - 100) * 2 / 3 * hot.len() as u64 / 16 };
            node.others = 100 + moved / 2;
            let asked: Vec<(u16, u64)> = (0..16)
                .map(|at| at * 2)
                .map(|slot| (slot, if hot.contains_key(&slot) { 40 - moved / hot.len() as u64 } else { 40 }))
                .collect();
            node.look(&asked);
            seen.push(hot.len());
        }
        let after = &seen[20..];
        assert!(after.iter().all(|hot| *hot > 0), "{seen:?}");
        let changes = after.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes <= 2, "it settles: {seen:?}");
    }

    #[test]
    fn slots_that_are_not_preferred_any_more_are_forgotten() {
        let mut node = Node::new(10);
        node.looks(4, &[(2, 600)]);
        node.relief.look(&node.heat, LOOK, 7, &[], |_| None);
        assert_eq!(node.relief.extra_owners(), ExtraOwners::new());
    }

    #[test]
    fn ranges_cover_all_slots() {
        let heat = Heat::default();
        heat.add(slot(0), 1);
        heat.add(slot(1_024), 2);
        heat.add(slot(SLOT_COUNT - 1), 3);
        let ranges: Vec<_> = heat.by_range().collect();
        assert_eq!((ranges.len(), ranges[0], ranges[1].0), (16, (0, 1_023, REQUEST_BYTES + 1), 1_024));
        assert_eq!(ranges[15], (15_360, SLOT_COUNT - 1, REQUEST_BYTES + 3));
    }
}
