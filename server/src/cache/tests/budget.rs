//! Bytes: counted, bounded, waited for.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::join_all;
use futures::poll;

use super::{Key, TestCache, cache, get, resident, usage};
use crate::cache::{Cache, CacheConfig, LoadGroup, Lookup, ReserveError};

fn cache_that_waits(reserve_timeout: Duration) -> Arc<TestCache> {
    Cache::new(CacheConfig { capacity_bytes: 100, reserve_bytes: 10, partitions: 2, protected_share: 0.8, reserve_timeout })
}

#[test]
fn what_is_evicted_but_held_is_streaming() {
    let cache = cache(20, 100, 2, 0.8);
    let (_, held) = get(&cache, 1, 1, 10);
    get(&cache, 2, 2, 10);
    get(&cache, 3, 3, 10);
    assert_eq!((resident(&cache), cache.budget().usage()), (vec![2, 3], usage(20, 0, 10)));
    assert_eq!((**held, held.weight_bytes()), (1, 10));
    drop(held);
    assert_eq!(cache.budget().usage(), usage(20, 0, 0));
    let stats = cache.stats();
    assert_eq!((stats.evictions, stats.evicted_bytes), (1, 10));
}

#[test]
fn what_is_heavier_than_the_capacity_is_not_kept() {
    let cache = cache(20, 100, 2, 0.8);
    get(&cache, 1, 1, 10);
    let (_, heavy) = get(&cache, 2, 2, 21);
    assert_eq!((resident(&cache), cache.budget().usage()), (vec![1], usage(10, 0, 21)));
    drop(heavy);
    let detached = cache.detached(3, 5);
    assert_eq!(cache.budget().usage(), usage(10, 0, 5));
    drop(detached);
    cache.set_capacity(9);
    assert_eq!((cache.len(), cache.budget().usage()), (0, usage(0, 0, 0)));
}

#[test]
fn a_value_takes_the_place_of_its_reservation() {
    let cache = cache(100, 0, 2, 0.8);
    let mut reservation = cache.try_reserve(100).unwrap();
    for key in 0..2 {
        let Lookup::Lead(permit, _flight) = cache.lookup(&Key(key), 0, true, &LoadGroup::new()) else { panic!() };
        permit.complete(key, 40, reservation.split(50));
    }
    assert_eq!((reservation.bytes(), cache.budget().usage()), (0, usage(80, 0, 0)));
    // Heavier than reserved: what is resident makes room.
    let reservation = cache.try_reserve(20).unwrap();
    let Lookup::Lead(permit, _flight) = cache.lookup(&Key(2), 0, true, &LoadGroup::new()) else { panic!() };
    permit.complete(2, 30, reservation);
    assert_eq!((resident(&cache), cache.budget().usage()), (vec![1, 2], usage(70, 0, 0)));
}

#[test]
fn a_foreign_reservation_is_released_where_it_came_from() {
    let (cache, other) = (cache(100, 0, 2, 0.8), cache(100, 0, 2, 0.8));
    let Lookup::Lead(permit, _flight) = cache.lookup(&Key(1), 0, true, &LoadGroup::new()) else { panic!() };
    permit.complete(1, 10, other.try_reserve(50));
    assert_eq!((cache.budget().usage(), other.budget().usage()), (usage(10, 0, 0), usage(0, 0, 0)));
}

#[test]
fn reservations_grow_shrink_and_split() {
    let cache = cache(100, 20, 2, 0.8);
    get(&cache, 1, 1, 30);
    let mut one = cache.try_reserve(60).unwrap();
    assert!(one.try_grow(30));
    assert!(!one.try_grow(1));
    assert_eq!(cache.budget().usage(), usage(30, 90, 0));
    let two = one.split(50);
    assert_eq!((one.bytes(), two.bytes()), (40, 50));
    one.shrink_to(10);
    drop(two);
    assert_eq!(cache.budget().usage(), usage(30, 10, 0));
    // Evicts if that is enough, and not if it is not.
    assert!(cache.try_reserve(111).is_none());
    assert_eq!(cache.len(), 1);
    let all = cache.try_reserve(110).unwrap();
    assert_eq!(cache.budget().usage(), usage(0, 120, 0));
    drop((one, all));
    assert_eq!(cache.budget().usage(), usage(0, 0, 0));
}

#[tokio::test]
async fn reservations_are_granted_first_come_first_served() {
    let cache = cache(100, 0, 2, 0.8);
    let held = cache.reserve(100).await.unwrap();
    let mut large = Box::pin(cache.reserve(60));
    let mut larger = Box::pin(cache.reserve(80));
    let mut small = Box::pin(cache.reserve(10));
    assert!(poll!(&mut large).is_pending());
    assert!(poll!(&mut larger).is_pending());
    assert!(poll!(&mut small).is_pending());
    drop(held);
    // All is free, and would be for the small one while the larger one waits.
    assert!(cache.try_reserve(0).is_none(), "others wait");
    assert!(poll!(&mut small).is_pending() && poll!(&mut larger).is_pending());
    let large = large.await.unwrap();
    assert!(poll!(&mut larger).is_pending());
    assert!(poll!(&mut small).is_pending());
    assert_eq!(cache.budget().usage(), usage(0, 60, 0));
    drop(large);
    let _reservations = (larger.await.unwrap(), small.await.unwrap());
    assert_eq!(cache.budget().usage(), usage(0, 90, 0));
}

#[tokio::test]
async fn waiting_for_memory_ends() {
    let (impatient, patient) = (cache_that_waits(Duration::ZERO), cache_that_waits(Duration::MAX));
    let held = impatient.reserve(20).await.unwrap();
    get(&impatient, 1, 1, 10);
    assert_eq!(impatient.reserve(100).await.unwrap_err(), ReserveError::TimedOut { wanted: 100 });
    assert_eq!(impatient.len(), 1, "evicting would not have helped");
    // Who gave up is out of the way.
    drop(held);
    drop(impatient.reserve(110).await.unwrap());

    let held = patient.reserve(20).await.unwrap();
    let mut waiting = Box::pin(patient.reserve(100));
    assert!(poll!(&mut waiting).is_pending());
    // What can never fit does not queue.
    assert_eq!(
        poll!(Box::pin(patient.reserve(111))).map(Result::err),
        Poll::Ready(Some(ReserveError::TooLarge { wanted: 111, limit: 110 }))
    );
    patient.set_capacity(80);
    assert_eq!(waiting.await.unwrap_err(), ReserveError::TooLarge { wanted: 100, limit: 90 });
    drop(held);
}

#[tokio::test]
async fn a_reservation_waits_for_pinned_entries_and_evicts_the_others() {
    let cache = cache(20, 0, 2, 0.8);
    let (_, pinned) = get(&cache, 1, 1, 10);
    get(&cache, 2, 2, 10);
    let mut reserve = Box::pin(cache.reserve(20));
    assert!(poll!(&mut reserve).is_pending());
    drop(pinned);
    drop(reserve.await.unwrap());
    assert_eq!(cache.budget().usage(), usage(0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_budget_holds_under_concurrency() {
    stress(1, 500).await;
}

/// A request that waits for one key while it holds another needs a reserve for what all of them can hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_budget_holds_for_batches() {
    stress(3, 16 * 2 * 209 + 3 * 209).await;
}

/// More requests than memory: every count is checked at every step.
async fn stress(keys_per_request: usize, reserve: u64) {
    const KEYS: u64 = 64;
    let cache = cache(1_000, reserve, 7, 0.8);
    let check = {
        let cache = Arc::clone(&cache);
        move || {
            let usage = cache.budget().usage();
            assert!(usage.resident <= 1_000 && usage.total() <= 1_000 + reserve, "{usage:?}");
        }
    };
    let tasks = (0..16_u64).map(|task| {
        let (cache, check) = (Arc::clone(&cache), check.clone());
        tokio::spawn(async move {
            let mut random = task * 7_919 + 1;
            for request in 0..400_u64 {
                let group = LoadGroup::new();
                let (mut permits, mut flights, mut pins) = (Vec::new(), Vec::new(), Vec::new());
                for _ in 0..keys_per_request {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let key = Key((random >> 33) % KEYS);
                    match cache.lookup(&key, task * 1_000_000 + request, random >> 62 != 0, &group) {
                        Lookup::Hit(entry) => {
                            assert_eq!(**entry, key.0);
                            pins.push(entry);
                        }
                        Lookup::Wait(flight) => flights.push((key, flight)),
                        Lookup::Lead(permit, flight) => {
                            permits.push(permit);
                            flights.push((key, flight));
                        }
                    }
                    check();
                }
                // Whoever waits for memory while holding some may wait for others who do the same.
                drop(pins);
                let (loader, checker) = (Arc::clone(&cache), check.clone());
                group.spawn(async move {
                    let weight = |key: u64| 20 + key * 3;
                    let needed = permits.iter().map(|permit| weight(permit.key().0)).sum();
                    let mut reservation = loader.reserve(needed).await.unwrap();
                    checker();
                    for permit in permits {
                        tokio::task::yield_now().await;
                        let (key, weight) = (permit.key().0, weight(permit.key().0));
                        permit.complete(key, weight, reservation.split(weight));
                        checker();
                    }
                });
                drop(group);
                // Some leave early.
                if request % 10 == 0 {
                    continue;
                }
                for (key, flight) in flights {
                    assert_eq!(**flight.wait().await.unwrap(), key.0);
                    check();
                }
                if request % 50 == 0 {
                    cache.remove_if(|key| key.0 % 5 == task % 5);
                    check();
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    // Aborted loads end within moments.
    let everything = cache.reserve(1_000 + reserve).await.unwrap();
    assert_eq!(cache.budget().usage(), usage(0, 1_000 + reserve, 0));
    drop(everything);
    while cache.loads_under_way() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(cache.is_empty() && cache.stats().evictions > 0 && cache.stats().returned > 0);
}
