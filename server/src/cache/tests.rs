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
