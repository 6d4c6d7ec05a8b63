//! The cache against a naive segmented LRU with ghosts.

use proptest::prelude::*;

use super::{cache, get, resident};

#[derive(Clone, Copy)]
struct Entry {
    key: u64,
    weight: u64,
    request: u64,
    used_at: u64,
}

/// Least recently used first.
type Segment = Vec<Entry>;

#[derive(Default)]
struct Model {
    probation: Segment,
    protected: Segment,
    /// `(key, last request, forgotten after as many admitted bytes)`.
    ghosts: Vec<(u64, u64, u64)>,
    capacity: u64,
    share: f64,
    uses: u64,
    admitted: u64,
    returned: u64,
}

fn bytes(segment: &Segment) -> u64 {
    segment.iter().map(|entry| entry.weight).sum()
}

impl Model {
    fn get(&mut self, key: u64, request: u64, weight: u64) -> bool {
        self.uses += 1;
        let used_at = self.uses;
        if let Some(at) = self.protected.iter().position(|entry| entry.key == key) {
            let entry = self.protected.remove(at);
            self.protected.push(Entry { request, used_at, ..entry });
            return true;
        }
        if let Some(at) = self.probation.iter().position(|entry| entry.key == key) {
            let entry = self.probation.remove(at);
            let segment = if entry.request != request && self.share > 0.0 { &mut self.protected } else { &mut self.probation };
            segment.push(Entry { request, used_at, ..entry });
            return true;
        }
        if weight <= self.capacity {
            self.evict_to(self.capacity - weight);
            let ghost = self.ghosts.iter().position(|ghost| ghost.0 == key).map(|at| self.ghosts.remove(at));
            let returns = ghost.is_some_and(|(_, last, until)| last != request && self.admitted <= until);
            let segment = if returns { &mut self.protected } else { &mut self.probation };
            segment.push(Entry { key, weight, request, used_at });
            self.returned += u64::from(returns);
            self.admitted += weight;
        }
        false
    }

    fn evict_to(&mut self, bound: u64) {
        while bytes(&self.probation) + bytes(&self.protected) > bound {
            let ghost_bytes = bytes(&self.protected);
            let is_over = ghost_bytes > (self.capacity as f64 * self.share) as u64;
            let from_protected = match (self.probation.first(), self.protected.first()) {
                (Some(on_probation), Some(protected)) => is_over && protected.used_at < on_probation.used_at,
                (on_probation, _) => on_probation.is_none(),
            };
            let victim = if from_protected { self.protected.remove(0) } else { self.probation.remove(0) };
            if ghost_bytes > 0 {
                self.ghosts.retain(|ghost| ghost.0 != victim.key);
                self.ghosts.push((victim.key, victim.request, self.admitted + ghost_bytes));
            }
        }
    }

    fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
        self.evict_to(capacity);
    }

    fn remove_if(&mut self, matches: impl Fn(u64) -> bool) {
        self.probation.retain(|entry| !matches(entry.key));
        self.protected.retain(|entry| !matches(entry.key));
        self.ghosts.retain(|ghost| !matches(ghost.0));
    }

    fn resident(&self) -> Vec<u64> {
        let mut keys: Vec<u64> = self.probation.iter().chain(&self.protected).map(|entry| entry.key).collect();
        keys.sort_unstable();
        keys
    }
}

#[derive(Clone, Debug)]
enum Step {
    Get { key: u64, request: u64, weight: u64 },
    SetCapacity(u64),
    RemoveMultiplesOf(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => (0..30_u64, 0..4_u64, 0..60_u64).prop_map(|(key, request, weight)| Step::Get { key, request, weight }),
        1 => (0..300_u64).prop_map(Step::SetCapacity),
        1 => (2..9_u64).prop_map(Step::RemoveMultiplesOf),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_a_naive_segmented_lru(
        steps in prop::collection::vec(step(), 1..200),
        partitions in 1..8_usize,
        share in prop_oneof![Just(0.0), Just(0.5), Just(0.8), Just(1.0)],
    ) {
        // A reserve that large keeps values that were refused from pushing anything out.
        let cache = cache(200, 1_000_000, partitions, share);
        let mut model = Model { capacity: 200, share, ..Model::default() };
        for step in steps {
            match step {
                Step::Get { key, request, weight } => {
                    let (hit, _) = get(&cache, key, request, weight);
                    prop_assert_eq!(hit, model.get(key, request, weight));
                }
                Step::SetCapacity(bytes) => {
                    cache.set_capacity(bytes);
                    model.set_capacity(bytes);
                }
                Step::RemoveMultiplesOf(n) => {
                    let before = cache.budget().usage().resident;
                    let (count, removed) = cache.remove_if(|key| key.0 % n == 0);
                    let len = model.resident().len();
                    model.remove_if(|key| key % n == 0);
                    prop_assert_eq!(count as usize, len - model.resident().len());
                    prop_assert_eq!(removed, before - cache.budget().usage().resident);
                }
            }
            prop_assert_eq!(resident(&cache), model.resident());
            let usage = cache.budget().usage();
            prop_assert_eq!(usage, super::usage(bytes(&model.probation) + bytes(&model.protected), 0, 0));
            prop_assert!(usage.resident <= cache.budget().capacity());
        }
        let stats = cache.stats();
        prop_assert_eq!(stats.inserts + stats.rejected, stats.misses);
        prop_assert_eq!(stats.returned, model.returned);
    }
}

#[test]
fn a_hot_partition_takes_space_from_a_cold_one() {
    let cache = cache(100, 0, 2, 0.0);
    for key in 0..10 {
        get(&cache, key, key, 10);
    }
    for key in (10..28).step_by(2) {
        get(&cache, key, key, 10);
    }
    // Only key 9 of the odd partition is younger than what had to go.
    assert_eq!(resident(&cache), [9, 10, 12, 14, 16, 18, 20, 22, 24, 26]);
}

#[test]
fn the_same_request_does_not_protect() {
    let cache = cache(20, 0, 1, 0.5);
    get(&cache, 1, 7, 10);
    get(&cache, 1, 7, 10);
    get(&cache, 2, 8, 10);
    get(&cache, 3, 9, 10);
    assert_eq!(resident(&cache), [2, 3]);
    get(&cache, 2, 10, 10);
    get(&cache, 4, 11, 10);
    get(&cache, 5, 12, 10);
    assert_eq!(resident(&cache), [2, 5]);
}
