//! What stays: admission, eviction, invalidation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::entry::{Entry, Pinned};
use super::flight::Record;
use super::lookup::{Cache, CacheKey};
use super::partition::Tails;

/// What a look at an entry's partition came to.
enum Admission<V> {
    /// Added; an entry it replaced is dropped after the lock.
    Inserted(#[expect(dead_code, reason = "held to be dropped")] Option<Pinned<V>>),
    Rejected,
    Full,
}

impl<K: CacheKey, V: Send + Sync + 'static, E: Clone + Send + Sync + 'static> Cache<K, V, E> {
    /// Ends the record for which `is_own` holds. Inserts the entry if the record still stands, wants it, and if it fits;
    /// evicts for it first.
    ///
    /// All of that is decided, charged and done under one hold of the partition's lock, which is left only to evict.
    pub(super) fn admit(&self, key: &K, entry: &Pinned<V>, request: u64, is_own: impl Fn(&Record<V, E>) -> bool) {
        loop {
            let admission = self.with_partition(key, |partition| {
                let record = partition.in_flight.get(key).filter(|record| is_own(record));
                let wanted = record.is_some_and(Record::wants_to_stay) && entry.weight_bytes() <= self.budget.capacity();
                if wanted && !entry.admit() {
                    return Admission::Full;
                }
                if record.is_some() {
                    partition.in_flight.remove(key);
                }
                if !wanted {
                    return Admission::Rejected;
                }
                let bytes = entry.weight_bytes();
                let admitted_bytes = self.admitted_bytes.fetch_add(bytes, Ordering::AcqRel);
                let inserted = partition.insert(key.clone(), Arc::clone(entry), request, self.tick(), admitted_bytes);
                if inserted.is_protected {
                    self.protected_bytes.fetch_add(bytes, Ordering::AcqRel);
                    self.counters.returned.fetch_add(1, Ordering::Relaxed);
                }
                Admission::Inserted(inserted.replaced.map(|(replaced, was_protected)| {
                    self.detach(&replaced, was_protected);
                    replaced
                }))
            });
            let counter = match admission {
                Admission::Full => {
                    // Full, yet nothing to evict: what fills it was admitted, and is published within moments.
                    if !self.evict_one() {
                        std::thread::yield_now();
                    }
                    continue;
                }
                Admission::Inserted(_) => &self.counters.inserts,
                Admission::Rejected => &self.counters.rejected,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            break;
        }
        // It may now be evicted for who waits for memory.
        self.budget.released.notify_waiters();
        self.evict_overflow();
    }

    pub(super) fn forget_record(&self, key: &K, is_own: impl Fn(&Record<V, E>) -> bool) {
        self.with_partition(key, |partition| {
            if partition.in_flight.get(key).is_some_and(is_own) {
                partition.in_flight.remove(key);
            }
        });
    }

    /// Changes the capacity, and evicts to fit.
    pub fn set_capacity(&self, capacity_bytes: u64) {
        self.budget.set_capacity(capacity_bytes);
        self.evict_overflow();
    }

    /// Removes entries whose key matches, and keeps loads of such keys that are under way from being inserted: who waits
    /// for one still gets its value, who comes later loads anew. Returns the number and bytes of removed entries.
    ///
    /// `matches` runs under a partition's lock and must not use the cache.
    pub fn remove_if(&self, matches: impl Fn(&K) -> bool) -> (u64, u64) {
        let (mut count, mut bytes) = (0, 0);
        for at in 0..self.partitions.len() {
            let removed: Vec<Pinned<V>> = self.with_partition_at(at, |partition| {
                partition.in_flight.retain(|key, _| !matches(key));
                let keys: Vec<K> = partition.entries().map(|(key, _)| key).filter(|key| matches(key)).cloned().collect();
                let removed = keys.iter().filter_map(|key| partition.remove(key));
                removed.inspect(|(entry, was_protected)| self.detach(entry, *was_protected)).map(|(entry, _)| entry).collect()
            });
            count += removed.len() as u64;
            bytes += removed.iter().map(|entry| entry.weight_bytes()).sum::<u64>();
        }
        (count, bytes)
    }

    /// Evicts while residents exceed the capacity, or everything exceeds capacity and reserve and eviction helps.
    pub(super) fn evict_overflow(&self) {
        while self.budget.residents_are_over() && self.evict_one() {}
        while self.budget.is_over() && self.budget.eviction_may_help(0) && self.evict_one() {}
    }

    /// Evicts the oldest entry on probation, or the oldest protected one: if there is no other, or if it is the older of the
    /// two and the protected hold more than their share.
    pub(super) fn evict_one(&self) -> bool {
        // A partition can be emptied between reading its tick and locking it; then another is tried.
        loop {
            let on_probation = self.oldest(|tails| &tails.probation).map(|(tick, at)| (tick, at, false));
            let protected = self.oldest(|tails| &tails.protected).map(|(tick, at)| (tick, at, true));
            let oldest = match (on_probation, protected) {
                (Some(on_probation), Some(protected)) if self.protected_are_over() => Some(on_probation.min(protected)),
                _ => on_probation.or(protected),
            };
            let Some((_, at, is_protected)) = oldest else { return false };
            // Probation and ghosts together reach back as far as plain LRU would.
            let ghost_bytes = self.protected_bytes.load(Ordering::Acquire);
            let victim = self.with_partition_at(at, |partition| {
                let entry = partition.evict(is_protected, self.admitted_bytes.load(Ordering::Acquire), ghost_bytes)?;
                self.detach(&entry, is_protected);
                Some(entry)
            });
            if let Some(entry) = victim {
                self.counters.evictions.fetch_add(1, Ordering::Relaxed);
                self.counters.evicted_bytes.fetch_add(entry.weight_bytes(), Ordering::Relaxed);
                return true;
            }
        }
    }

    fn protected_are_over(&self) -> bool {
        let share_bytes = (self.budget.capacity() as f64 * self.protected_share) as u64;
        self.protected_bytes.load(Ordering::Acquire) > share_bytes
    }

    /// The oldest tail of a segment and its partition, read without locks.
    fn oldest(&self, tick: fn(&Tails) -> &AtomicU64) -> Option<(u64, usize)> {
        let ticks = self.partitions.iter().enumerate().map(|(at, (_, tails))| (tick(tails).load(Ordering::Acquire), at));
        ticks.min().filter(|(tick, _)| *tick != u64::MAX)
    }

    fn detach(&self, entry: &Entry<V>, was_protected: bool) {
        if was_protected {
            self.protected_bytes.fetch_sub(entry.weight_bytes(), Ordering::AcqRel);
        }
        entry.detach();
    }
}
