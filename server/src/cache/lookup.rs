//! The cache: partitions over one budget, and looking keys up in them.

use std::cmp::Reverse;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::budget::Budget;
use super::entry::{Entry, Pinned};
use super::flight::{Flight, LoadGroup, Permit, Role};
use super::partition::{Partition, Segment, Tails, Touched, Use};
use super::stats::{CacheStats, Counters};

/// What can be a key.
pub trait CacheKey: Clone + Eq + Hash + Send + Sync + 'static {
    /// Decides the partition: the hash slot.
    fn partition_hash(&self) -> u64;
}

/// How a cache is made.
#[derive(Clone, Copy, Debug)]
pub struct CacheConfig {
    /// Bound on resident bytes.
    pub capacity_bytes: u64,
    /// Bytes beyond the capacity for loads and for evicted entries still in use.
    pub reserve_bytes: u64,
    /// Number of partitions, at least 1.
    pub partitions: usize,
    /// Share of the capacity that is safe with protected entries; 0 is plain LRU.
    pub protected_share: f64,
    /// How long [`Cache::reserve`] waits.
    pub reserve_timeout: Duration,
}

/// What a look-up found.
pub enum Lookup<K: CacheKey, V: Send + Sync + 'static, E: Clone + Send + Sync + 'static> {
    /// It is resident.
    Hit(Pinned<V>),
    /// Somebody is loading it.
    Wait(Flight<V, E>),
    /// The caller has to load it, in the task of the group it passed.
    Lead(Permit<K, V, E>, Flight<V, E>),
}

/// What a look-up of an entry that can be made of another one, its source, found.
pub enum DerivedLookup<K: CacheKey, V: Send + Sync + 'static, E: Clone + Send + Sync + 'static> {
    /// It is resident.
    Hit(Pinned<V>),
    /// Somebody is making it, of a source that is resident or not.
    Wait(Flight<V, E>, bool),
    /// The caller has to make it, and to load its source if that is a lead as well, in the task of the group it passed.
    Lead(Permit<K, V, E>, Flight<V, E>, Lookup<K, V, E>),
}

/// One request's wish for entries that can be made of others.
#[derive(Clone, Copy, Debug)]
pub struct DerivedUse {
    /// Tells one request's uses from another's.
    pub request: u64,
    /// What this use counts for, against the uses of others, when there is room for one only.
    pub count: u32,
    /// Whether what is loaded may stay.
    pub populate: bool,
    /// Whether what is made of it may stay as well.
    pub populate_derived: bool,
}

/// A partition under its lock, and what is read of it without.
type Guarded<K, V, E> = (Mutex<Partition<K, V, E>>, Tails);

/// A byte-capacity cache. See the module's documentation for its rules.
pub struct Cache<K: CacheKey, V, E> {
    pub(super) partitions: Vec<Guarded<K, V, E>>,
    pub(super) budget: Arc<Budget>,
    /// Ticks once a use.
    clock: AtomicU64,
    /// Bytes of all entries ever added: the clock by which ghosts are forgotten, the same for all partitions.
    pub(super) admitted_bytes: AtomicU64,
    /// Bytes of all sources ever found or added.
    used_bytes: AtomicU64,
    /// The used bytes that end the epoch.
    epoch_end: AtomicU64,
    /// The clock by which uses are forgotten.
    epoch: AtomicU64,
    pub(super) protected_bytes: AtomicU64,
    pub(super) protected_share: f64,
    pub(super) reserve_timeout: Duration,
    pub(super) turnstile: tokio::sync::Mutex<()>,
    pub(super) counters: Counters,
}

impl<K: CacheKey, V: Send + Sync + 'static, E: Clone + Send + Sync + 'static> Cache<K, V, E> {
    /// An empty cache.
    pub fn new(config: CacheConfig) -> Arc<Self> {
        Arc::new(Self {
            partitions: (0..config.partitions.max(1)).map(|_| (Mutex::new(Partition::new()), Tails::default())).collect(),
            budget: Budget::new(config.capacity_bytes, config.reserve_bytes),
            clock: AtomicU64::new(0),
            admitted_bytes: AtomicU64::new(0),
            used_bytes: AtomicU64::new(0),
            epoch_end: AtomicU64::new(config.capacity_bytes),
            epoch: AtomicU64::new(0),
            protected_bytes: AtomicU64::new(0),
            protected_share: config.protected_share.clamp(0.0, 1.0),
            reserve_timeout: config.reserve_timeout,
            turnstile: tokio::sync::Mutex::new(()),
            counters: Counters::default(),
        })
    }

    /// Finds a key, joins its load, or makes the caller load it.
    ///
    /// `request` tells one request's uses from another's: only use by a second request protects an entry. `populate` says
    /// whether a loaded value may stay; joining with `populate` a load begun without makes it stay.
    ///
    /// For several keys there is [`Cache::lookup_all`].
    pub fn lookup(self: &Arc<Self>, key: &K, request: u64, populate: bool, group: &LoadGroup) -> Lookup<K, V, E> {
        let epoch = self.epoch();
        let found =
            self.with_partition(key, |partition| self.find(partition, key, self.used(request, 1, epoch), populate, group));
        self.count(&found);
        found
    }

    /// The same for a batch, in its order. Keys that follow each other in one partition are looked up under one lock: of two
    /// callers with the same keys, one leads all that is missing.
    ///
    /// Then [`LoadGroup::spawn`] one task for all that came back as [`Lookup::Lead`], without an await in between. One
    /// partition is locked at a time.
    pub fn lookup_all(self: &Arc<Self>, keys: &[K], request: u64, populate: bool, group: &LoadGroup) -> Vec<Lookup<K, V, E>> {
        let mut found = Vec::with_capacity(keys.len());
        let epoch = self.epoch();
        for together in keys.chunk_by(|a, b| self.partition_of(a) == self.partition_of(b)) {
            self.with_partition(&together[0], |partition| {
                let find = |key| self.find(partition, key, self.used(request, 1, epoch), populate, group);
                found.extend(together.iter().map(find));
            });
        }
        for found in &found {
            self.count(found);
        }
        found
    }

    /// The same for entries that can be made of others: of each, its key and its source's, which lie in one partition.
    ///
    /// Whatever finds what was made of a source uses the source as well, and later. What is made stays if there is room, or in
    /// place of what is used less.
    pub fn lookup_derived(
        self: &Arc<Self>,
        keys: &[(K, K)],
        asked: DerivedUse,
        group: &LoadGroup,
    ) -> Vec<DerivedLookup<K, V, E>> {
        let mut found = Vec::with_capacity(keys.len());
        let epoch = self.epoch();
        for together in keys.chunk_by(|(a, _), (b, _)| self.partition_of(a) == self.partition_of(b)) {
            self.with_partition(&together[0].0, |partition| {
                found.extend(together.iter().map(|keys| self.find_derived(partition, keys, asked, epoch, group)));
            });
        }
        for found in &found {
            match found {
                DerivedLookup::Hit(_) | DerivedLookup::Wait(_, true) => self.counters.hits.fetch_add(1, Ordering::Relaxed),
                DerivedLookup::Wait(_, false) => {
                    self.counters.joined.fetch_add(1, Ordering::Relaxed);
                    self.counters.misses.fetch_add(1, Ordering::Relaxed)
                }
                DerivedLookup::Lead(_, _, source) => {
                    self.count(source);
                    self.counters.derived.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
        found
    }

    fn find(
        self: &Arc<Self>,
        partition: &mut Partition<K, V, E>,
        key: &K,
        used: Use,
        populate: bool,
        group: &LoadGroup,
    ) -> Lookup<K, V, E> {
        if let Some(found) = self.touch(partition, key, used) {
            return Lookup::Hit(found.entry);
        }
        if let Some(flight) = partition.in_flight.get(key).and_then(|record| record.join(populate)) {
            return Lookup::Wait(flight);
        }
        let (permit, flight, record) = Permit::new(self, key.clone(), used.request, Role::Source(used.count), populate, group);
        partition.in_flight.insert(key.clone(), record);
        Lookup::Lead(permit, flight)
    }

    fn find_derived(
        self: &Arc<Self>,
        partition: &mut Partition<K, V, E>,
        (key, source): &(K, K),
        asked: DerivedUse,
        epoch: u64,
        group: &LoadGroup,
    ) -> DerivedLookup<K, V, E> {
        let DerivedUse { request, count, populate, populate_derived } = asked;
        let derived = self.touch(partition, key, self.used(request, count, epoch));
        // Later than what is made of it, so that it is evicted later.
        let source_use = self.used(request, count, epoch);
        if let Some(found) = derived {
            self.touch(partition, source, source_use);
            return DerivedLookup::Hit(found.entry);
        }
        let stays = populate && populate_derived;
        if let Some(flight) = partition.in_flight.get(key).and_then(|record| record.join(stays)) {
            return DerivedLookup::Wait(flight, self.touch(partition, source, source_use).is_some());
        }
        let (source, role) = if let Some(found) = self.touch(partition, source, source_use) {
            let is_again = found.segment == Segment::Protected;
            (Lookup::Hit(found.entry), Role::Derived { uses: found.uses, is_again })
        } else {
            let found = self.find(partition, source, source_use, populate, group);
            (found, Role::Derived { uses: count, is_again: false })
        };
        let (permit, flight, record) = Permit::new(self, key.clone(), request, role, stays, group);
        partition.in_flight.insert(key.clone(), record);
        DerivedLookup::Lead(permit, flight, source)
    }

    fn touch(&self, partition: &mut Partition<K, V, E>, key: &K, used: Use) -> Option<Touched<V>> {
        let found = partition.touch(key, used, self.protected_share > 0.0)?;
        if found.segment == Segment::Protected {
            self.protected_bytes.fetch_add(found.moved_bytes, Ordering::AcqRel);
        }
        if !found.segment.is_derived() {
            self.count_use(&found.entry);
        }
        Some(found)
    }

    fn count(&self, found: &Lookup<K, V, E>) {
        let counted = match found {
            Lookup::Hit(_) => &self.counters.hits,
            Lookup::Wait(_) => {
                self.counters.joined.fetch_add(1, Ordering::Relaxed);
                &self.counters.misses
            }
            Lookup::Lead(..) => &self.counters.misses,
        };
        counted.fetch_add(1, Ordering::Relaxed);
    }

    /// An entry that is resident. Counts as no use.
    pub fn peek(&self, key: &K) -> Option<Pinned<V>> {
        self.with_partition(key, |partition| partition.peek(key))
    }

    /// Calls `visit` with every resident entry, which counts as no use. It runs under a partition's lock and must neither use
    /// the cache nor wait.
    pub fn for_each_resident(&self, mut visit: impl FnMut(&K, &Entry<V>)) {
        for at in 0..self.partitions.len() {
            self.with_partition_at(at, |partition| partition.entries().for_each(|(key, entry)| visit(key, entry)));
        }
    }

    /// Keys of all resident entries, hottest first: those used again before those used once, and of either those used last. Counts as
    /// no use.
    pub fn hottest_first(&self) -> Vec<K> {
        let mut keys = Vec::new();
        for at in 0..self.partitions.len() {
            self.with_partition_at(at, |partition| keys.extend(partition.heat().map(|(heat, key)| (heat, key.clone()))));
        }
        keys.sort_unstable_by_key(|(heat, _)| Reverse(*heat));
        keys.into_iter().map(|(_, key)| key).collect()
    }

    /// Number of resident entries.
    pub fn len(&self) -> usize {
        (0..self.partitions.len()).map(|at| self.with_partition_at(at, |partition| partition.len())).sum()
    }

    /// Whether nothing is resident.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The budget.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Counts since start.
    pub fn stats(&self) -> CacheStats {
        self.counters.snapshot()
    }

    /// Loads under way that somebody waits for or works on.
    pub fn loads_under_way(&self) -> usize {
        (0..self.partitions.len()).map(|at| self.with_partition_at(at, |partition| partition.in_flight.len())).sum()
    }

    /// An entry that is counted but not in the cache. Release what was reserved for it first, or both count.
    pub fn detached(&self, value: V, weight_bytes: u64) -> Pinned<V> {
        let entry = Arc::new(Entry::detached(value, weight_bytes, None, &self.budget));
        self.evict_overflow();
        entry
    }

    pub(super) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn used(&self, request: u64, count: u32, epoch: u64) -> Use {
        Use { request, tick: self.tick(), count, epoch }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// An epoch ends when as many bytes of sources were used in it as the cache may hold.
    pub(super) fn count_use(&self, entry: &Entry<V>) {
        let bytes = entry.weight_bytes();
        let used = self.used_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let end = self.epoch_end.load(Ordering::Relaxed);
        if used >= end {
            let next_end = used.saturating_add(self.budget.capacity());
            // Another use may have ended it.
            if self.epoch_end.compare_exchange(end, next_end, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                self.epoch.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn with_partition<T>(&self, key: &K, work: impl FnOnce(&mut Partition<K, V, E>) -> T) -> T {
        self.with_partition_at(self.partition_of(key), work)
    }

    fn partition_of(&self, key: &K) -> usize {
        (key.partition_hash() % self.partitions.len() as u64) as usize
    }

    pub(super) fn with_partition_at<T>(&self, at: usize, work: impl FnOnce(&mut Partition<K, V, E>) -> T) -> T {
        let (partition, tails) = &self.partitions[at];
        let mut partition: MutexGuard<'_, _> = partition.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut partition);
        partition.publish(tails);
        result
    }
}
