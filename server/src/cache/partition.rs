//! One partition: two LRU segments, what was evicted of late, and the loads under way, under one lock.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;

use super::entry::{Entry, Pinned};
use super::flight::Record;

/// Ghosts that a partition may have even if it has fewer entries.
const GHOSTS_MIN: usize = 1_024;

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

/// What is remembered of an evicted entry.
struct Ghost {
    /// The request that used it last.
    request: u64,
    /// Forgotten once more bytes than that were admitted.
    until: u64,
}

/// What adding an entry came to.
pub(super) struct Inserted<V> {
    /// An entry it replaced, and whether that was protected.
    pub(super) replaced: Option<(Pinned<V>, bool)>,
    pub(super) is_protected: bool,
}

pub(super) struct Partition<K, V, E> {
    probation: LruCache<K, Slot<V>>,
    protected: LruCache<K, Slot<V>>,
    /// In the order of their eviction.
    ghosts: LruCache<K, Ghost>,
    pub(super) in_flight: HashMap<K, Record<V, E>>,
}

impl<K: Hash + Eq + Clone, V, E> Partition<K, V, E> {
    pub(super) fn new() -> Self {
        let (probation, protected) = (LruCache::unbounded(), LruCache::unbounded());
        Self { probation, protected, ghosts: LruCache::unbounded(), in_flight: HashMap::new() }
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

    /// Adds an entry: on probation, or protected if another request used it before and its ghost is still there.
    pub(super) fn insert(&mut self, key: K, entry: Pinned<V>, request: u64, tick: u64, admitted_bytes: u64) -> Inserted<V> {
        let replaced = self.remove(&key);
        let ghost = self.ghosts.pop(&key);
        let is_protected = ghost.is_some_and(|ghost| ghost.request != request && admitted_bytes <= ghost.until);
        let segment = if is_protected { &mut self.protected } else { &mut self.probation };
        segment.put(key, Slot { entry, tick, request });
        Inserted { replaced, is_protected }
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<(Pinned<V>, bool)> {
        let on_probation = self.probation.pop(key).map(|slot| (slot.entry, false));
        on_probation.or_else(|| self.protected.pop(key).map(|slot| (slot.entry, true)))
    }

    /// Takes the least recently used entry out of a segment. Remembers it until another `ghost_bytes` were admitted.
    pub(super) fn evict(&mut self, is_protected: bool, admitted_bytes: u64, ghost_bytes: u64) -> Option<Pinned<V>> {
        let segment = if is_protected { &mut self.protected } else { &mut self.probation };
        let (key, Slot { entry, request, .. }) = segment.pop_lru()?;
        if ghost_bytes > 0 {
            self.ghosts.put(key, Ghost { request, until: admitted_bytes.saturating_add(ghost_bytes) });
        }
        // Many small entries may have been evicted where few large ones stay.
        let most = self.len().max(GHOSTS_MIN);
        while self.ghosts.peek_lru().is_some_and(|(_, ghost)| ghost.until < admitted_bytes || self.ghosts.len() > most) {
            self.ghosts.pop_lru();
        }
        Some(entry)
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
