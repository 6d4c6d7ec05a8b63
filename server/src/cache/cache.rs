//! The cache: partitions over one budget.

use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::budget::{Budget, Reservation, ReserveError};
use super::entry::{Entry, Pinned};
use super::flight::{Flight, LoadGroup, Permit, Record};
use super::partition::{Partition, Tails};

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
    /// Share of the capacity that protected entries may hold; 0 is plain LRU.
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

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),*) => {
        /// Counts since start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CacheStats { $($(#[$doc])* pub $name: u64,)* }

        #[derive(Debug, Default)]
        struct Counters { $($name: AtomicU64,)* }

        impl Counters {
            fn snapshot(&self) -> CacheStats {
                CacheStats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters!(
    /// Look-ups that found an entry.
    hits,
    /// Look-ups that did not, joined ones included.
    misses,
    /// Look-ups that joined a load under way.
    joined,
    /// Entries added.
    inserts,
    /// Loaded values that were not kept: too large, not wanted, or invalidated meanwhile.
    rejected,
    /// Entries evicted for space.
    evictions,
    /// Their bytes.
    evicted_bytes,
    /// Protected entries that fell back to probation.
    demotions
);

/// A byte-capacity cache. See the module's documentation for its rules.
pub struct Cache<K: CacheKey, V, E> {
    partitions: Vec<(Mutex<Partition<K, V, E>>, Tails)>,
    budget: Arc<Budget>,
    clock: AtomicU64,
    protected_bytes: AtomicU64,
    protected_share: f64,
    reserve_timeout: Duration,
    turnstile: tokio::sync::Mutex<()>,
    counters: Counters,
}

impl<K: CacheKey, V: Send + Sync + 'static, E: Clone + Send + Sync + 'static> Cache<K, V, E> {
    /// An empty cache.
    pub fn new(config: CacheConfig) -> Arc<Self> {
        Arc::new(Self {
            partitions: (0..config.partitions.max(1)).map(|_| (Mutex::new(Partition::new()), Tails::default())).collect(),
            budget: Budget::new(config.capacity_bytes, config.reserve_bytes),
            clock: AtomicU64::new(0),
            protected_bytes: AtomicU64::new(0),
            protected_share: config.protected_share.clamp(0.0, 1.0),
            reserve_timeout: config.reserve_timeout,
            turnstile: tokio::sync::Mutex::new(()),
            counters: Counters::default(),
        })
    }

    /// Finds a key, joins its load, or makes the caller load it.
    ///
    /// `request` tells one request's uses from another's; `populate` says whether a loaded value may stay.
    pub fn lookup(self: &Arc<Self>, key: &K, request: u64, populate: bool, group: &LoadGroup) -> Lookup<K, V, E> {
        let mut moved = 0;
        let found = self.with_partition(key, |partition| {
            let protect = self.protected_share > 0.0;
            if let Some((entry, bytes)) = partition.touch(key, request, self.tick(), protect) {
                moved = bytes;
                self.protected_bytes.fetch_add(bytes, Ordering::AcqRel);
                return Lookup::Hit(entry);
            }
            if let Some(flight) = partition.in_flight.get(key).and_then(|record| record.join(populate)) {
                return Lookup::Wait(flight);
            }
            let (permit, flight, record) = Permit::new(self, key.clone(), request, populate, group);
            partition.in_flight.insert(key.clone(), record);
            Lookup::Lead(permit, flight)
        });
        let counted = match found {
            Lookup::Hit(_) => &self.counters.hits,
            Lookup::Wait(_) => {
                self.counters.joined.fetch_add(1, Ordering::Relaxed);
                &self.counters.misses
            }
            Lookup::Lead(..) => &self.counters.misses,
        };
        counted.fetch_add(1, Ordering::Relaxed);
        if moved > 0 {
            self.demote_overflow();
        }
        found
    }

    /// Whether a key is resident. No use.
    pub fn contains(&self, key: &K) -> bool {
        self.with_partition(key, |partition| partition.contains(key))
    }

    /// Reserves memory for a load: evicts what is needed, then waits its turn, first come first served.
    pub async fn reserve(&self, bytes: u64) -> Result<Reservation, ReserveError> {
        let too_large = || {
            let limit = self.budget.limit();
            (bytes > limit).then_some(ReserveError::TooLarge { wanted: bytes, limit })
        };
        let wait = async {
            let _turn = self.turnstile.lock().await;
            loop {
                let mut released = std::pin::pin!(self.budget.released.notified());
                released.as_mut().enable();
                if let Some(error) = too_large() {
                    return Err(error);
                }
                while self.budget.eviction_may_help(bytes) {
                    if let Some(reservation) = self.budget.try_reserve(bytes) {
                        return Ok(reservation);
                    }
                    if !self.evict_one() {
                        break;
                    }
                }
                if let Some(reservation) = self.budget.try_reserve(bytes) {
                    return Ok(reservation);
                }
                released.await;
            }
        };
        tokio::time::timeout(self.reserve_timeout, wait).await.unwrap_or(Err(ReserveError::TimedOut { wanted: bytes }))
    }

    /// Changes the capacity, and evicts to fit.
    pub fn set_capacity(&self, capacity_bytes: u64) {
        self.budget.set_capacity(capacity_bytes);
        self.demote_overflow();
        while self.budget.residents_are_over() && self.evict_one() {}
        self.shrink_to_limit();
    }

    /// Removes entries whose key matches, and keeps loads of such keys that are under way from being inserted. Returns the
    /// number and bytes of removed entries.
    pub fn remove_if(&self, matches: impl Fn(&K) -> bool) -> (u64, u64) {
        let (mut count, mut bytes) = (0, 0);
        for at in 0..self.partitions.len() {
            let removed = self.with_partition_at(at, |partition| {
                partition.in_flight.retain(|key, _| !matches(key));
                let keys: Vec<K> = partition.entries().map(|(key, _)| key).filter(|key| matches(key)).cloned().collect();
                keys.iter().filter_map(|key| partition.remove(key)).inspect(|(entry, was_protected)| self.detach(entry, *was_protected)).collect::<Vec<_>>()
            });
            count += removed.len() as u64;
            bytes += removed.iter().map(|(entry, _)| entry.weight_bytes()).sum::<u64>();
        }
        (count, bytes)
    }

    /// Calls `visit` with every resident entry. No use.
    pub fn for_each_resident(&self, mut visit: impl FnMut(&K, &Entry<V>)) {
        for at in 0..self.partitions.len() {
            self.with_partition_at(at, |partition| partition.entries().for_each(|(key, entry)| visit(key, entry)));
        }
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

    /// An entry that is counted but not in the cache.
    pub fn detached(&self, value: V, weight_bytes: u64) -> Pinned<V> {
        Arc::new(Entry::detached(value, weight_bytes, Arc::clone(&self.budget)))
    }

    /// Makes an entry of a loaded value and ends its record; inserts it if `wanted`, if the record still stands, and if it fits.
    pub(super) fn admit(&self, key: &K, value: V, weight: u64, request: u64, wanted: bool, is_own: impl Fn(&Record<V, E>) -> bool) -> Pinned<V> {
        let admitted = wanted && self.make_room(weight);
        let entry = if admitted {
            Entry::admitted(value, weight, Arc::clone(&self.budget))
        } else {
            Entry::detached(value, weight, Arc::clone(&self.budget))
        };
        let entry = Arc::new(entry);
        let (inserted, replaced) = self.with_partition(key, |partition| {
            let stands = partition.in_flight.get(key).is_some_and(&is_own);
            if stands {
                partition.in_flight.remove(key);
            }
            if !(stands && admitted) {
                return (false, None);
            }
            let replaced = partition.insert(key.clone(), Arc::clone(&entry), request, self.tick());
            if let Some((replaced, was_protected)) = &replaced {
                self.detach(replaced, *was_protected);
            }
            (true, replaced)
        });
        drop(replaced);
        if !inserted {
            entry.detach();
        }
        let counted = if inserted { &self.counters.inserts } else { &self.counters.rejected };
        counted.fetch_add(1, Ordering::Relaxed);
        entry
    }

    pub(super) fn forget_record(&self, key: &K, is_own: impl Fn(&Record<V, E>) -> bool) {
        self.with_partition(key, |partition| {
            if partition.in_flight.get(key).is_some_and(is_own) {
                partition.in_flight.remove(key);
            }
        });
    }

    /// Evicts while more is held than capacity and reserve, as far as that helps.
    pub(super) fn shrink_to_limit(&self) {
        while self.budget.is_over() && self.budget.eviction_may_help(0) && self.evict_one() {}
    }

    fn make_room(&self, weight: u64) -> bool {
        if weight > self.budget.capacity() {
            return false;
        }
        while !self.budget.try_admit(weight) {
            if !self.evict_one() {
                return false;
            }
        }
        true
    }

    fn evict_one(&self) -> bool {
        // A partition can be emptied between reading its tick and locking it; then another is tried.
        loop {
            let oldest = |tick: fn(&Tails) -> &AtomicU64| {
                let ticks = self.partitions.iter().enumerate().map(|(at, (_, tails))| (tick(tails).load(Ordering::Acquire), at));
                ticks.min().filter(|(tick, _)| *tick != u64::MAX).map(|(_, at)| at)
            };
            let victim = if let Some(at) = oldest(|tails| &tails.probation) {
                self.with_partition_at(at, |partition| partition.pop_oldest_on_probation().inspect(|entry| self.detach(entry, false)))
            } else if let Some(at) = oldest(|tails| &tails.protected) {
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

    fn demote_overflow(&self) {
        let bound = (self.budget.capacity() as f64 * self.protected_share) as u64;
        while self.protected_bytes.load(Ordering::Acquire) > bound {
            let ticks = self.partitions.iter().enumerate().map(|(at, (_, tails))| (tails.protected.load(Ordering::Acquire), at));
            let Some((_, at)) = ticks.min().filter(|(tick, _)| *tick != u64::MAX) else { return };
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

    fn detach(&self, entry: &Entry<V>, was_protected: bool) {
        if was_protected {
            self.protected_bytes.fetch_sub(entry.weight_bytes(), Ordering::AcqRel);
        }
        entry.detach();
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn with_partition<T>(&self, key: &K, work: impl FnOnce(&mut Partition<K, V, E>) -> T) -> T {
        self.with_partition_at((key.partition_hash() % self.partitions.len() as u64) as usize, work)
    }

    fn with_partition_at<T>(&self, at: usize, work: impl FnOnce(&mut Partition<K, V, E>) -> T) -> T {
        let (partition, tails) = &self.partitions[at];
        let mut partition: MutexGuard<'_, _> = partition.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut partition);
        partition.publish(tails);
        result
    }
}
