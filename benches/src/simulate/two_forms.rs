//! The server's cache of chunks in two forms: Parquet bytes, and arrays made of them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use flightcache_proto::Slot;
use flightcache_server::cache::{Cache, CacheConfig, CacheKey, DerivedLookup, DerivedUse, LoadGroup, Lookup};
use flightcache_traces::{ItemKey, Policy};

/// The chunk cache of a server, with weights and no values. A trace's bytes are those of arrays.
pub struct TwoForms<'a> {
    cache: Arc<Cache<Item, (), Infallible>>,
    slots: &'a [Slot],
    /// How many times larger arrays are than what they are made of.
    expansion: f64,
    /// Whether arrays may stay.
    is_auto: bool,
    asked_bytes: u64,
    decoded_bytes: u64,
}

/// An item in one of its forms, and the hash slot that decides its partition.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Item {
    key: ItemKey,
    slot: Slot,
    is_decoded: bool,
}

impl CacheKey for Item {
    fn partition_hash(&self) -> u64 {
        u64::from(self.slot.get())
    }
}

impl<'a> TwoForms<'a> {
    /// An empty cache; `slots` as of [`SegmentedLru::slots`](super::SegmentedLru::slots).
    pub fn new(
        capacity_bytes: u64,
        protected_share: f64,
        partitions: usize,
        slots: &'a [Slot],
        expansion: f64,
        is_auto: bool,
    ) -> Self {
        let config =
            CacheConfig { capacity_bytes, reserve_bytes: u64::MAX, partitions, protected_share, reserve_timeout: Duration::ZERO };
        Self { cache: Cache::new(config), slots, expansion, is_auto, asked_bytes: 0, decoded_bytes: 0 }
    }

    /// Share of the bytes asked for that had to be decoded, 0 to 1.
    pub fn decoded_share(&self) -> f64 {
        self.decoded_bytes as f64 / self.asked_bytes.max(1) as f64
    }
}

impl Policy for TwoForms<'_> {
    fn access(&mut self, key: ItemKey, bytes: u64, request: u64, _next_use: Option<u64>) -> bool {
        let item = |is_decoded| Item { key, slot: self.slots[key as usize], is_decoded };
        let asked = DerivedUse { request, count: 1, populate: true, populate_derived: self.is_auto };
        self.asked_bytes += bytes;
        let found = self.cache.lookup_derived(&[(item(true), item(false))], asked, &LoadGroup::new()).pop();
        let Some(DerivedLookup::Lead(permit, _flight, source)) = found else {
            // One thread, and each load ends at once: nobody waits.
            return matches!(found, Some(DerivedLookup::Hit(_)));
        };
        self.decoded_bytes += bytes;
        let is_hit = match source {
            Lookup::Hit(_) => true,
            Lookup::Lead(source, _flight) => {
                source.complete((), (bytes as f64 / self.expansion) as u64, None);
                false
            }
            Lookup::Wait(_) => false,
        };
        permit.complete((), bytes, None);
        is_hit
    }
}
