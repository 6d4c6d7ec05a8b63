//! What stays: admission, eviction, invalidation.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::{Entry, Pinned};
use super::flight::{Record, Role};
use super::lookup::{Cache, CacheKey};
use super::partition::{Inserted, Segment, Uses};

/// What was not used while so many times the capacity was is forgotten: far longer than any source stays for which there is
/// no room, as losing one costs more than decoding it often.
const FORGOTTEN_EPOCHS: u64 = 8;

/// What a look at an entry's partition came to.
enum Admission<V> {
    /// Added; an entry it replaced is dropped after the lock.
    Inserted(#[expect(dead_code, reason = "held to be dropped")] Option<Pinned<V>>),
    Rejected,
    Full,
}

impl<K: CacheKey, V: Send + Sync + 'static, E: Clone + Send + Sync + 'static> Cache<K, V, E> {
    /// Ends the record for which `is_own` holds. Inserts the entry if the record still stands, wants it, and if it fits;
    /// evicts for it first: anything for a source, only what is used less for a derived entry.
    ///
    /// All of that is decided, charged and done under one hold of the partition's lock, which is left only to evict.
    pub(super) fn admit(&self, key: &K, entry: &Pinned<V>, request: u64, role: Role, is_own: impl Fn(&Record<V, E>) -> bool) {
        let mut is_welcome = true;
        loop {
            let epoch = self.epoch();
            let admission = self.with_partition(key, |partition| {
                let record = partition.in_flight.get(key).filter(|record| is_own(record));
                let wanted =
                    is_welcome && record.is_some_and(Record::wants_to_stay) && entry.weight_bytes() <= self.budget.capacity();
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
                let (key, entry) = (key.clone(), Arc::clone(entry));
                let Inserted { replaced, is_protected } = match role {
                    Role::Source(count) => {
                        self.count_use(&entry);
                        let admitted_bytes = self.admitted_bytes.fetch_add(bytes, Ordering::AcqRel);
                        partition.insert(key, entry, self.used(request, count, epoch), admitted_bytes)
                    }
                    Role::Derived { uses, is_again } => {
                        partition.insert_derived(key, entry, self.used(request, uses, epoch), is_again)
                    }
                };
                if is_protected {
                    self.protected_bytes.fetch_add(bytes, Ordering::AcqRel);
                    self.counters.returned.fetch_add(1, Ordering::Relaxed);
                }
                Admission::Inserted(replaced.map(|(replaced, segment)| {
                    self.detach(&replaced, segment);
                    replaced
                }))
            });
            let counter = match admission {
                Admission::Full => {
                    if let Role::Derived { uses, .. } = role {
                        is_welcome = self.evict_for_derived(uses);
                        continue;
                    }
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

    /// Removes entries whose key matches, forgets that there were others, and keeps loads of such keys that are under way from being inserted: who waits
    /// for one still gets its value, who comes later loads anew. Returns the number and bytes of removed entries.
    ///
    /// `matches` runs under a partition's lock and must not use the cache.
    pub fn remove_if(&self, matches: impl Fn(&K) -> bool) -> (u64, u64) {
        let (mut count, mut bytes) = (0, 0);
        for at in 0..self.partitions.len() {
            let removed: Vec<Pinned<V>> = self.with_partition_at(at, |partition| {
                partition.in_flight.retain(|key, _| !matches(key));
                partition.forget_ghosts(&matches);
                let keys: Vec<K> = partition.entries().map(|(key, _)| key).filter(|key| matches(key)).cloned().collect();
                let removed = keys.iter().filter_map(|key| partition.remove(key));
                removed.inspect(|(entry, segment)| self.detach(entry, *segment)).map(|(entry, _)| entry).collect()
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

    /// Evicts an entry: the oldest derived one that was used once or not for long, or the oldest on probation, or the oldest
    /// derived one, or the oldest protected one. If the protected hold more than their share and the oldest of them is older
    /// than the one on probation, that goes, or a derived one that is even older.
    pub(super) fn evict_one(&self) -> bool {
        // A partition can be emptied between reading its tick and locking it; then another is tried.
        loop {
            let [derived, on_probation, again, protected] =
                [Segment::Derived, Segment::Probation, Segment::DerivedAgain, Segment::Protected]
                    .map(|segment| self.oldest(segment));
            if [(derived, 0), (again, FORGOTTEN_EPOCHS)].into_iter().any(|(oldest, epochs)| self.evict_unused(oldest, epochs)) {
                return true;
            }
            let oldest = match (on_probation, protected) {
                (Some(on_probation), Some(protected)) if self.protected_are_over() && protected < on_probation => {
                    Some(again.map_or(protected, |again| again.min(protected)))
                }
                (None, _) if self.evict_unused(protected, FORGOTTEN_EPOCHS) => return true,
                _ => on_probation.or(again).or(protected),
            };
            let Some(oldest) = oldest else { return false };
            if self.evict(oldest, |_, _| true) {
                return true;
            }
        }
    }

    /// Evicts for a derived entry: the oldest other, if its uses count for less, by more than one, as of two that are used in
    /// turn one is always a use ahead; or, for one that is used again, the oldest source that is long forgotten.
    fn evict_for_derived(&self, uses: u32) -> bool {
        let is_less = |oldest: Uses, epoch: u64| oldest.at(epoch) + 1 < uses;
        let evict_less = |at| self.oldest(at).is_some_and(|at| self.evict(at, is_less));
        [Segment::Derived, Segment::DerivedAgain].into_iter().any(evict_less)
            || uses > 1
                && [Segment::Probation, Segment::Protected]
                    .into_iter()
                    .any(|at| self.evict_unused(self.oldest(at), FORGOTTEN_EPOCHS))
    }

    /// Evicts an entry that was not used for so many epochs or longer.
    fn evict_unused(&self, oldest: Option<Oldest>, epochs: u64) -> bool {
        oldest.is_some_and(|oldest| self.evict(oldest, |uses, epoch| uses.age(epoch) >= epochs))
    }

    /// Evicts the oldest entry of a segment of a partition, if there still is one and its uses, at the epoch of now, allow it.
    fn evict(&self, Oldest { at, segment, .. }: Oldest, may_go: impl Fn(Uses, u64) -> bool) -> bool {
        // Probation and ghosts together reach back as far as plain LRU would.
        let ghost_bytes = self.protected_bytes.load(Ordering::Acquire);
        let admitted_bytes = self.admitted_bytes.load(Ordering::Acquire);
        let epoch = self.epoch();
        let victim = self.with_partition_at(at, |partition| {
            partition.oldest_uses(segment).filter(|uses| may_go(*uses, epoch))?;
            let entry = partition.evict(segment, admitted_bytes, ghost_bytes)?;
            self.detach(&entry, segment);
            Some(entry)
        });
        victim.inspect(|entry| self.count_eviction(entry)).is_some()
    }

    fn count_eviction(&self, entry: &Entry<V>) {
        self.counters.evictions.fetch_add(1, Ordering::Relaxed);
        self.counters.evicted_bytes.fetch_add(entry.weight_bytes(), Ordering::Relaxed);
    }

    fn protected_are_over(&self) -> bool {
        let share_bytes = (self.budget.capacity() as f64 * self.protected_share) as u64;
        self.protected_bytes.load(Ordering::Acquire) > share_bytes
    }

    /// The oldest tail of a segment, read without locks.
    fn oldest(&self, segment: Segment) -> Option<Oldest> {
        let tails =
            self.partitions.iter().enumerate().map(|(at, (_, tails))| Oldest { tick: tails.oldest(segment), at, segment });
        tails.min().filter(|oldest| oldest.tick != u64::MAX)
    }

    fn detach(&self, entry: &Entry<V>, segment: Segment) {
        if segment == Segment::Protected {
            self.protected_bytes.fetch_sub(entry.weight_bytes(), Ordering::AcqRel);
        }
        entry.detach();
    }
}

/// The oldest entry of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Oldest {
    tick: u64,
    /// Its partition.
    at: usize,
    segment: Segment,
}
