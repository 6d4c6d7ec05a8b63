//! One partition: two LRU segments and the loads under way, under one lock.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;

use super::entry::{Entry, Pinned};
use super::flight::Record;

/// The oldest tick of each segment, readable without the lock. `u64::MAX`: empty.
#[derive(Debug)]
pub(super) struct Tails {
    pub(super) probation: AtomicU64,
    pub(super) protected: AtomicU64,
}

impl Default for Tails {
    fn default() -> Self {
        Self { probation: AtomicU64::new(u64::MAX), protected: AtomicU64::new(u64::MAX) }
    }
}

pub(super) struct Slot<V> {
    pub(super) entry: Pinned<V>,
    tick: u64,
    /// The request that used it last: more use by the same is no re-use.
    request: u64,
}

pub(super) struct Partition<K, V, E> {
    probation: LruCache<K, Slot<V>>,
    protected: LruCache<K, Slot<V>>,
    pub(super) in_flight: HashMap<K, Record<V, E>>,
}

impl<K: Hash + Eq + Clone, V, E> Partition<K, V, E> {
    pub(super) fn new() -> Self {
        Self { probation: LruCache::unbounded(), protected: LruCache::unbounded(), in_flight: HashMap::new() }
    }

    /// Finds and uses an entry. Also returns the bytes that moved from probation to protected.
    pub(super) fn touch(&mut self, key: &K, request: u64, tick: u64, protect: bool) -> Option<(Pinned<V>, u64)> {
        if let Some(slot) = self.protected.get_mut(key) {
            slot.tick = tick;
            slot.request = request;
            return Some((Arc::clone(&slot.entry), 0));
        }
        let slot = self.probation.get_mut(key)?;
        let reused = slot.request != request;
        slot.tick = tick;
        slot.request = request;
        let entry = Arc::clone(&slot.entry);
        if !(reused && protect) {
            return Some((entry, 0));
        }
        if let Some((key, slot)) = self.probation.pop_entry(key) {
            self.protected.put(key, slot);
        }
        let moved = entry.weight_bytes();
        Some((entry, moved))
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.probation.contains(key) || self.protected.contains(key)
    }

    /// Adds an entry on probation; returns one it replaces and whether that was protected.
    pub(super) fn insert(&mut self, key: K, entry: Pinned<V>, request: u64, tick: u64) -> Option<(Pinned<V>, bool)> {
        let replaced = self.remove(&key);
        self.probation.put(key, Slot { entry, tick, request });
        replaced
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<(Pinned<V>, bool)> {
        let on_probation = self.probation.pop(key).map(|slot| (slot.entry, false));
        on_probation.or_else(|| self.protected.pop(key).map(|slot| (slot.entry, true)))
    }

    pub(super) fn pop_oldest_on_probation(&mut self) -> Option<Pinned<V>> {
        self.probation.pop_lru().map(|(_, slot)| slot.entry)
    }

    pub(super) fn pop_oldest_protected(&mut self) -> Option<Pinned<V>> {
        self.protected.pop_lru().map(|(_, slot)| slot.entry)
    }

    /// Moves the least recently used protected entry to the fresh end of probation; returns its weight.
    pub(super) fn demote(&mut self, tick: u64) -> Option<u64> {
        let (key, mut slot) = self.protected.pop_lru()?;
        slot.tick = tick;
        let weight = slot.entry.weight_bytes();
        self.probation.put(key, slot);
        Some(weight)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&K, &Entry<V>)> {
        self.probation.iter().chain(self.protected.iter()).map(|(key, slot)| (key, &*slot.entry))
    }

    pub(super) fn len(&self) -> usize {
        self.probation.len() + self.protected.len()
    }

    pub(super) fn publish(&self, tails: &Tails) {
        let oldest = |segment: &LruCache<K, Slot<V>>| segment.peek_lru().map_or(u64::MAX, |(_, slot)| slot.tick);
        tails.probation.store(oldest(&self.probation), Ordering::Release);
        tails.protected.store(oldest(&self.protected), Ordering::Release);
    }
}
