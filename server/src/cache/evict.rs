//! What stays: admission, eviction, demotion, invalidation.

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
                let replaced = partition.insert(key.clone(), Arc::clone(entry), request, self.tick());
                Admission::Inserted(replaced.map(|(replaced, was_protected)| {
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
        self.demote_overflow();
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

    /// Evicts the oldest entry: on probation if there is any.
    pub(super) fn evict_one(&self) -> bool {
        // A partition can be emptied between reading its tick and locking it; then another is tried.
        loop {
            let victim = if let Some(at) = self.oldest(|tails| &tails.probation) {
                self.with_partition_at(at, |partition| {
                    partition.pop_oldest_on_probation().inspect(|entry| self.detach(entry, false))
                })
            } else if let Some(at) = self.oldest(|tails| &tails.protected) {
                self.with_partition_at(at, |partition| partition.pop_oldest_protected().inspect(|entry| self.detach(entry, true)))
            } else {
                return false;
            };
            if let Some(entry) = victim {
                self.counters.evictions.fetch_add(1, Ordering::Relaxed);
                self.counters.evicted_bytes.fetch_add(entry.weight_bytes(), Ordering::Relaxed);
                return true;
            }
        }
    }

    /// Moves the oldest protected entries to the fresh end of probation until the others fit their share.
    pub(super) fn demote_overflow(&self) {
        let bound = (self.budget.capacity() as f64 * self.protected_share) as u64;
        while self.protected_bytes.load(Ordering::Acquire) > bound {
            let Some(at) = self.oldest(|tails| &tails.protected) else { return };
            let demoted = self.with_partition_at(at, |partition| {
                let weight = partition.demote(self.tick())?;
                self.protected_bytes.fetch_sub(weight, Ordering::AcqRel);
                Some(())
            });
            if demoted.is_some() {
                self.counters.demotions.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The partition whose segment has the oldest tail, read without locks.
    fn oldest(&self, tick: fn(&Tails) -> &AtomicU64) -> Option<usize> {
        let ticks = self.partitions.iter().enumerate().map(|(at, (_, tails))| (tick(tails).load(Ordering::Acquire), at));
        ticks.min().filter(|(tick, _)| *tick != u64::MAX).map(|(_, at)| at)
    }

    fn detach(&self, entry: &Entry<V>, was_protected: bool) {
        if was_protected {
            self.protected_bytes.fetch_sub(entry.weight_bytes(), Ordering::AcqRel);
        }
        entry.detach();
    }
}
