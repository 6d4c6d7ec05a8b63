//! One partition: LRU segments, what was evicted of late, and the loads under way, under one lock.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;

use super::entry::{Entry, Pinned};
use super::flight::Record;

/// Ghosts that a partition may have even if it has fewer entries.
const GHOSTS_MIN: usize = 1_024;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Segment {
    /// Can be made again of another entry, used by one request so far.
    Derived,
    /// Used by one request so far.
    Probation,
    /// Can be made again of another entry, used again.
    DerivedAgain,
    /// Used again.
    Protected,
}

impl Segment {
    pub(super) fn is_derived(self) -> bool {
        matches!(self, Self::Derived | Self::DerivedAgain)
    }

    /// Where an entry goes that is used again.
    fn again(self) -> Self {
        if self.is_derived() { Self::DerivedAgain } else { Self::Protected }
    }
}

/// The oldest tick of each segment, readable without the lock. `u64::MAX`: empty.
#[derive(Debug)]
pub(super) struct Tails([AtomicU64; 4]);

impl Default for Tails {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(u64::MAX)))
    }
}

impl Tails {
    pub(super) fn oldest(&self, segment: Segment) -> u64 {
        self.0[segment as usize].load(Ordering::Acquire)
    }
}

/// How often an entry was used: a count that halves as the clock goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Uses {
    count: u32,
    /// Of the clock, at the last use.
    epoch: u64,
}

impl Uses {
    pub(super) fn at(self, epoch: u64) -> u32 {
        self.count.checked_shr(u32::try_from(self.age(epoch)).unwrap_or(u32::MAX)).unwrap_or(0)
    }

    /// Epochs since the last use.
    pub(super) fn age(self, epoch: u64) -> u64 {
        epoch.saturating_sub(self.epoch)
    }

    fn add(&mut self, count: u32, epoch: u64) {
        *self = Self { count: self.at(epoch).saturating_add(count), epoch };
    }
}

/// One request's use of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    pub(super) request: u64,
    pub(super) tick: u64,
    /// What the use counts for, and when.
    pub(super) count: u32,
    pub(super) epoch: u64,
}

pub(super) struct Slot<V> {
    pub(super) entry: Pinned<V>,
    tick: u64,
    /// The request that used it last: more use by the same is no re-use.
    request: u64,
    uses: Uses,
}

impl<V> Slot<V> {
    /// Whether another request had used it last.
    fn touch(&mut self, used: Use) -> bool {
        let reused = self.request != used.request;
        (self.tick, self.request) = (used.tick, used.request);
        self.uses.add(if reused { used.count } else { 0 }, used.epoch);
        reused
    }
}

/// An entry that was found.
pub(super) struct Touched<V> {
    pub(super) entry: Pinned<V>,
    /// Where it is now.
    pub(super) segment: Segment,
    /// Bytes that moved there with this use.
    pub(super) moved_bytes: u64,
    /// What its uses count for, this one included.
    pub(super) uses: u32,
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
    /// An entry it replaced, and where that was.
    pub(super) replaced: Option<(Pinned<V>, Segment)>,
    pub(super) is_protected: bool,
}

pub(super) struct Partition<K, V, E> {
    segments: [LruCache<K, Slot<V>>; 4],
    /// In the order of their eviction.
    ghosts: LruCache<K, Ghost>,
    pub(super) in_flight: HashMap<K, Record<V, E>>,
}

/// The likeliest first.
const SEGMENTS: [Segment; 4] = [Segment::Protected, Segment::DerivedAgain, Segment::Probation, Segment::Derived];

impl<K: Hash + Eq + Clone, V, E> Partition<K, V, E> {
    pub(super) fn new() -> Self {
        let segments = std::array::from_fn(|_| LruCache::unbounded());
        Self { segments, ghosts: LruCache::unbounded(), in_flight: HashMap::new() }
    }

    fn segment(&mut self, segment: Segment) -> &mut LruCache<K, Slot<V>> {
        &mut self.segments[segment as usize]
    }

    /// Finds and uses an entry.
    pub(super) fn touch(&mut self, key: &K, used: Use, protect: bool) -> Option<Touched<V>> {
        let at = SEGMENTS.into_iter().find(|&segment| self.segments[segment as usize].contains(key))?;
        let slot = self.segment(at).get_mut(key)?;
        let reused = slot.touch(used);
        let mut touched = Touched { entry: Arc::clone(&slot.entry), segment: at, moved_bytes: 0, uses: slot.uses.at(used.epoch) };
        if reused
            && protect
            && at != at.again()
            && let Some((key, slot)) = self.segment(at).pop_entry(key)
        {
            touched.segment = at.again();
            touched.moved_bytes = touched.entry.weight_bytes();
            self.segment(touched.segment).put(key, slot);
        }
        Some(touched)
    }

    pub(super) fn peek(&self, key: &K) -> Option<Pinned<V>> {
        self.segments.iter().find_map(|segment| segment.peek(key)).map(|slot| Arc::clone(&slot.entry))
    }

    /// Adds an entry: on probation, or protected if another request used it before and its ghost is still there.
    pub(super) fn insert(&mut self, key: K, entry: Pinned<V>, used: Use, admitted_bytes: u64) -> Inserted<V> {
        let ghost = self.ghosts.pop(&key);
        let is_protected = ghost.is_some_and(|ghost| ghost.request != used.request && admitted_bytes <= ghost.until);
        let segment = if is_protected { Segment::Protected } else { Segment::Probation };
        Inserted { replaced: self.put(key, entry, used, segment), is_protected }
    }

    /// Adds an entry that can be made again of another one, which was used again or not.
    pub(super) fn insert_derived(&mut self, key: K, entry: Pinned<V>, used: Use, is_again: bool) -> Inserted<V> {
        let segment = if is_again { Segment::DerivedAgain } else { Segment::Derived };
        Inserted { replaced: self.put(key, entry, used, segment), is_protected: false }
    }

    fn put(&mut self, key: K, entry: Pinned<V>, used: Use, segment: Segment) -> Option<(Pinned<V>, Segment)> {
        let replaced = self.remove(&key);
        let Use { request, tick, count, epoch } = used;
        self.segment(segment).put(key, Slot { entry, tick, request, uses: Uses { count, epoch } });
        replaced
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<(Pinned<V>, Segment)> {
        SEGMENTS.into_iter().find_map(|segment| Some((self.segment(segment).pop(key)?.entry, segment)))
    }

    /// The uses of a segment's least recently used entry.
    pub(super) fn oldest_uses(&self, segment: Segment) -> Option<Uses> {
        self.segments[segment as usize].peek_lru().map(|(_, slot)| slot.uses)
    }

    /// Takes the least recently used entry out of a segment. Remembers it until another `ghost_bytes` were admitted, unless
    /// it was a derived one.
    pub(super) fn evict(&mut self, segment: Segment, admitted_bytes: u64, ghost_bytes: u64) -> Option<Pinned<V>> {
        let (key, Slot { entry, request, .. }) = self.segment(segment).pop_lru()?;
        if ghost_bytes > 0 && !segment.is_derived() {
            self.ghosts.put(key, Ghost { request, until: admitted_bytes.saturating_add(ghost_bytes) });
        }
        // Many small entries may have been evicted where few large ones stay.
        let most = self.len().max(GHOSTS_MIN);
        while self.ghosts.peek_lru().is_some_and(|(_, ghost)| ghost.until < admitted_bytes || self.ghosts.len() > most) {
            self.ghosts.pop_lru();
        }
        Some(entry)
    }

    /// Forgets evicted entries whose key matches.
    pub(super) fn forget_ghosts(&mut self, matches: impl Fn(&K) -> bool) {
        let keys: Vec<K> = self.ghosts.iter().map(|(key, _)| key).filter(|key| matches(key)).cloned().collect();
        for key in keys {
            self.ghosts.pop(&key);
        }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&K, &Entry<V>)> {
        self.segments.iter().flatten().map(|(key, slot)| (key, &*slot.entry))
    }

    /// Keys of all entries with their heat: whether they were used again, and the tick of their last use.
    pub(super) fn heat(&self) -> impl Iterator<Item = ((bool, u64), &K)> {
        let entries = move |segment: Segment| {
            let is_again = segment == segment.again();
            self.segments[segment as usize].iter().map(move |(key, slot)| ((is_again, slot.tick), key))
        };
        SEGMENTS.into_iter().flat_map(entries)
    }

    pub(super) fn len(&self) -> usize {
        self.segments.iter().map(LruCache::len).sum()
    }

    pub(super) fn publish(&self, tails: &Tails) {
        for (segment, tail) in self.segments.iter().zip(&tails.0) {
            tail.store(segment.peek_lru().map_or(u64::MAX, |(_, slot)| slot.tick), Ordering::Release);
        }
    }
}
