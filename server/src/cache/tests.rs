//! What the tests share; each file below tests one promise of the cache.

mod budget;
mod derived;
mod ghosts;
mod model;
mod scan_resistance;
mod single_flight;
mod weight;

use std::sync::Arc;
use std::time::Duration;

use super::{Cache, CacheConfig, CacheKey, LoadGroup, Lookup, Pinned, Usage};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key(u64);

impl CacheKey for Key {
    fn partition_hash(&self) -> u64 {
        self.0
    }
}

type TestCache = Cache<Key, u64, String>;

fn cache(capacity_bytes: u64, reserve_bytes: u64, partitions: usize, protected_share: f64) -> Arc<TestCache> {
    let reserve_timeout = Duration::from_secs(10);
    Cache::new(CacheConfig { capacity_bytes, reserve_bytes, partitions, protected_share, reserve_timeout })
}

/// Looks a key up, and loads it as its own value if it is missing. Returns whether it was found.
fn get(cache: &Arc<TestCache>, key: u64, request: u64, weight: u64) -> (bool, Pinned<u64>) {
    match cache.lookup(&Key(key), request, true, &LoadGroup::new()) {
        Lookup::Hit(entry) => (true, entry),
        Lookup::Wait(_) => panic!("nothing else loads {key}"),
        Lookup::Lead(permit, _flight) => (false, permit.complete(key, weight, None)),
    }
}

fn resident(cache: &TestCache) -> Vec<u64> {
    let mut keys = Vec::new();
    cache.for_each_resident(|key, _| keys.push(key.0));
    keys.sort_unstable();
    keys
}

fn usage(resident: u64, in_flight: u64, streaming: u64) -> Usage {
    Usage { resident, in_flight, streaming }
}

#[test]
fn the_hottest_are_those_used_again_then_those_used_last() {
    for partitions in [1, 4] {
        let cache = cache(100, 0, partitions, 0.8);
        for (request, key) in [1, 2, 3, 4, 5].into_iter().enumerate() {
            get(&cache, key, request as u64, 10);
        }
        for (request, key) in [4, 2].into_iter().enumerate() {
            assert!(get(&cache, key, 10 + request as u64, 10).0);
        }
        // Asked for once more by the request that loaded it, which is no re-use.
        assert!(get(&cache, 1, 0, 10).0);
        let keys = || cache.hottest_first().into_iter().map(|key| key.0).collect::<Vec<_>>();
        assert_eq!(keys(), [2, 4, 1, 5, 3]);
        assert_eq!(keys(), [2, 4, 1, 5, 3], "looking is no use");
    }
}
