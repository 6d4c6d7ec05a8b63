//! The server's policy: not a model of it but its cache, with weights and no values.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use flightcache_proto::{Part, Slot};
use flightcache_server::cache::{Cache, CacheConfig, CacheKey, LoadGroup, Lookup};
use flightcache_traces::{ItemKey, Policy, Trace};

/// The chunk cache of a server. What is larger than the capacity goes by without being kept, as there.
///
/// Nothing is read, so nothing waits for memory: the reserve has no bound, and only the capacity evicts.
pub struct SegmentedLru<'a> {
    cache: Arc<Cache<Item, (), Infallible>>,
    slots: &'a [Slot],
}

/// An item and the hash slot that decides its partition.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Item {
    key: ItemKey,
    slot: Slot,
}

impl CacheKey for Item {
    fn partition_hash(&self) -> u64 {
        u64::from(self.slot.get())
    }
}

impl<'a> SegmentedLru<'a> {
    /// The hash slot of each item of a trace, in the order of [`ItemKey`]: that of its row group; a whole object counts as one.
    pub fn slots(trace: &Trace) -> Vec<Slot> {
        let (mut slots, mut known) = (Vec::new(), HashSet::new());
        for access in &trace.accesses {
            for column in access.columns.iter() {
                if known.insert((&access.url, access.row_group, column)) {
                    slots.push(Slot::of(&access.url, Part::RowGroup(access.row_group.unwrap_or(0))));
                }
            }
        }
        slots
    }

    /// An empty cache of `capacity_bytes`, for the trace that `slots` are of.
    pub fn new(capacity_bytes: u64, protected_share: f64, partitions: usize, slots: &'a [Slot]) -> Self {
        let config =
            CacheConfig { capacity_bytes, reserve_bytes: u64::MAX, partitions, protected_share, reserve_timeout: Duration::ZERO };
        Self { cache: Cache::new(config), slots }
    }

    /// Bytes of what is resident.
    pub fn resident_bytes(&self) -> u64 {
        self.cache.budget().usage().resident
    }
}

impl Policy for SegmentedLru<'_> {
    fn access(&mut self, key: ItemKey, bytes: u64, request: u64, _next_use: Option<u64>) -> bool {
        let item = Item { key, slot: self.slots[key as usize] };
        match self.cache.lookup(&item, request, true, &LoadGroup::new()) {
            Lookup::Hit(_) => true,
            Lookup::Lead(permit, _flight) => {
                permit.complete((), bytes, None);
                false
            }
            // One thread, and each load ends at once.
            Lookup::Wait(_) => false,
        }
    }
}
