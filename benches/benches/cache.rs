//! Cache look-ups and inserts under threads: one partition against sixteen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flightcache_server::cache::{Cache, CacheConfig, CacheKey, LoadGroup, Lookup};

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key(u64);

impl CacheKey for Key {
    fn partition_hash(&self) -> u64 {
        self.0
    }
}

type TestCache = Cache<Key, u64, String>;

const KEYS: u64 = 10_000;

fn cache(capacity_bytes: u64, partitions: usize) -> Arc<TestCache> {
    let reserve_timeout = Duration::from_secs(1);
    Cache::new(CacheConfig { capacity_bytes, reserve_bytes: 1 << 20, partitions, protected_share: 0.8, reserve_timeout })
}

fn get(cache: &Arc<TestCache>, key: u64, request: u64) {
    if let Lookup::Lead(permit, _flight) = cache.lookup(&Key(key), request, true, &LoadGroup::new()) {
        permit.complete(key, 1, None);
    }
}

/// Time for `iterations` operations on each of `threads` threads, which work at the same time.
fn timed(cache: &Arc<TestCache>, threads: u64, iterations: u64, keys: u64) -> Duration {
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut state = thread + 1;
                for at in 0..iterations {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    get(cache, (state >> 33) % keys, thread << 32 | at);
                }
            });
        }
    });
    started.elapsed()
}

fn threads(criterion: &mut Criterion) {
    for (name, keys, capacity) in [("hit", KEYS, KEYS), ("insert and evict", 100 * KEYS, KEYS)] {
        let mut group = criterion.benchmark_group(format!("cache/{name}"));
        for threads in [1, 2, 4, 8] {
            group.throughput(Throughput::Elements(threads));
            for partitions in [1, 16] {
                let cache = cache(capacity, partitions);
                (0..KEYS).for_each(|key| get(&cache, key, u64::MAX));
                group.bench_function(BenchmarkId::new(format!("{partitions} partitions"), format!("{threads} threads")), |b| {
                    b.iter_custom(|iterations| timed(&cache, threads, iterations, keys));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, threads);
criterion_main!(benches);
