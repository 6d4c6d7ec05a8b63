//! One load a key, whoever asks, leaves, fails or panics.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use tokio::sync::oneshot;

use super::{Key, TestCache, cache, get, resident, usage};
use crate::cache::{Flight, FlightError, LoadGroup, Lookup, Permit};

type TestPermit = Permit<Key, u64, String>;
type TestFlight = Flight<u64, String>;

fn lead(cache: &Arc<TestCache>, key: u64, populate: bool, group: &LoadGroup) -> (TestPermit, TestFlight) {
    match cache.lookup(&Key(key), 0, populate, group) {
        Lookup::Lead(permit, flight) => (permit, flight),
        Lookup::Hit(_) | Lookup::Wait(_) => panic!("{key} should have to be loaded"),
    }
}

fn join(cache: &Arc<TestCache>, key: u64, populate: bool) -> TestFlight {
    match cache.lookup(&Key(key), 1, populate, &LoadGroup::new()) {
        Lookup::Wait(flight) => flight,
        Lookup::Hit(_) | Lookup::Lead(..) => panic!("{key} should be loading"),
    }
}

/// Leads a load that completes when told to. The receiver sees its sender dropped when the task ends, permit first.
fn gated(cache: &Arc<TestCache>, key: u64) -> (TestFlight, oneshot::Sender<()>, oneshot::Receiver<()>) {
    let group = LoadGroup::new();
    let (permit, flight) = lead(cache, key, true, &group);
    let (open, gate) = oneshot::channel();
    let (alive, ended) = oneshot::channel::<()>();
    group.spawn(async move {
        let _alive = alive;
        let permit = permit;
        if gate.await.is_ok() {
            permit.complete(key, 10, None);
        }
    });
    (flight, open, ended)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_tasks_make_one_load() {
    let (cache, loads) = (cache(100, 100, 4, 0.8), Arc::new(AtomicUsize::new(0)));
    let barrier = Arc::new(tokio::sync::Barrier::new(200));
    let tasks = (0..200).map(|request| {
        let (cache, loads, barrier) = (Arc::clone(&cache), Arc::clone(&loads), Arc::clone(&barrier));
        tokio::spawn(async move {
            barrier.wait().await;
            let group = LoadGroup::new();
            match cache.lookup(&Key(5), request, true, &group) {
                Lookup::Hit(entry) => **entry,
                Lookup::Wait(flight) => **flight.wait().await.unwrap(),
                Lookup::Lead(permit, flight) => {
                    group.spawn(async move {
                        loads.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                        permit.complete(55, 10, None);
                    });
                    **flight.wait().await.unwrap()
                }
            }
        })
    });
    for value in join_all(tasks).await {
        assert_eq!(value.unwrap(), 55);
    }
    assert_eq!(loads.load(Ordering::Relaxed), 1);
    let stats = cache.stats();
    assert_eq!((stats.hits + stats.misses, stats.misses - stats.joined, stats.inserts), (200, 1, 1));
    assert_eq!(cache.budget().usage(), usage(10, 0, 0));
}

#[tokio::test]
async fn a_batch_is_answered_key_by_key() {
    let cache = cache(100, 100, 4, 0.8);
    get(&cache, 1, 0, 10);
    let group = LoadGroup::new();
    assert!(matches!(cache.lookup(&Key(1), 1, true, &group), Lookup::Hit(_)));
    let ((two, two_flight), (three, three_flight)) = (lead(&cache, 2, true, &group), lead(&cache, 3, true, &group));
    let (open, gate) = oneshot::channel::<()>();
    group.spawn(async move {
        two.complete(2, 10, None);
        let _ = gate.await;
        three.fail("no three".to_owned());
    });
    drop(group);
    assert_eq!(**two_flight.wait().await.unwrap(), 2);
    assert_eq!(cache.loads_under_way(), 1);
    open.send(()).unwrap();
    assert_eq!(three_flight.wait().await.unwrap_err(), FlightError::Failed("no three".to_owned()));
    assert_eq!(resident(&cache), [1, 2]);
    assert_eq!(cache.loads_under_way(), 0);
}

#[tokio::test]
async fn the_leader_may_leave() {
    let cache = cache(100, 100, 4, 0.8);
    let (leader, open, _ended) = gated(&cache, 1);
    let (waiter, other) = (join(&cache, 1, true), join(&cache, 1, true));
    drop(leader);
    drop(other.clone());
    drop(other);
    open.send(()).unwrap();
    assert_eq!(**waiter.wait().await.unwrap(), 1);
    assert_eq!(resident(&cache), [1]);
}

#[tokio::test]
async fn a_load_that_all_have_left_is_aborted() {
    let cache = cache(100, 100, 4, 0.8);
    let (leader, open, ended) = gated(&cache, 1);
    let waiter = join(&cache, 1, true);
    drop(leader);
    let mut waiting = Box::pin(waiter.wait());
    assert!(futures::poll!(&mut waiting).is_pending());
    assert!(!open.is_closed());
    drop(waiting);
    assert!(ended.await.is_err());
    assert!(open.is_closed());
    assert_eq!((cache.loads_under_way(), cache.len()), (0, 0));
    let (flight, open, _ended) = gated(&cache, 1);
    open.send(()).unwrap();
    assert_eq!(**flight.wait().await.unwrap(), 1);
}

#[tokio::test]
async fn the_end_of_a_dead_load_leaves_a_newer_one_alone() {
    let cache = cache(100, 100, 4, 0.8);
    let group = LoadGroup::new();
    for fate in ["dropped", "failed", "completed"] {
        let (dead, flight) = lead(&cache, 1, true, &group);
        drop(flight);
        let (permit, flight) = lead(&cache, 1, true, &group);
        match fate {
            "dropped" => drop(dead),
            "failed" => dead.fail(String::new()),
            _ => drop(dead.complete(0, 10, None)),
        }
        assert_eq!((cache.loads_under_way(), cache.len()), (1, 0), "{fate}");
        permit.complete(1, 10, None);
        assert_eq!(**flight.wait().await.unwrap(), 1);
        assert_eq!(resident(&cache), [1]);
        cache.remove_if(|_| true);
    }
}

#[tokio::test]
async fn a_failed_load_leaves_nothing() {
    let cache = cache(100, 100, 4, 0.8);
    let (permit, flight) = lead(&cache, 1, true, &LoadGroup::new());
    let waiter = join(&cache, 1, true);
    permit.fail("broken".to_owned());
    for flight in [flight, waiter] {
        assert_eq!(flight.wait().await.unwrap_err(), FlightError::Failed("broken".to_owned()));
    }
    assert_eq!((cache.loads_under_way(), cache.len()), (0, 0));
    assert_eq!(cache.budget().usage(), usage(0, 0, 0));
    drop(lead(&cache, 1, true, &LoadGroup::new()));
}

#[tokio::test]
async fn a_panic_abandons_what_was_not_answered() {
    let cache = cache(100, 100, 4, 0.8);
    let group = LoadGroup::new();
    let ((one, one_flight), (two, two_flight)) = (lead(&cache, 1, true, &group), lead(&cache, 2, true, &group));
    let reservation = cache.reserve(50).await.unwrap();
    group.spawn(async move {
        let _held = (&two, &reservation);
        one.complete(1, 10, None);
        panic!("expected by this test");
    });
    assert_eq!(**one_flight.wait().await.unwrap(), 1);
    assert_eq!(two_flight.wait().await.unwrap_err(), FlightError::Abandoned);
    assert_eq!(cache.loads_under_way(), 0);
    assert_eq!(cache.budget().usage(), usage(10, 0, 0));
}

#[tokio::test]
async fn a_permit_dropped_before_its_task_starts_is_abandoned() {
    let cache = cache(100, 100, 4, 0.8);
    let (permit, flight) = lead(&cache, 1, true, &LoadGroup::new());
    let waiter = join(&cache, 1, true);
    drop((permit, flight));
    assert_eq!(waiter.wait().await.unwrap_err(), FlightError::Abandoned);
    assert_eq!(cache.loads_under_way(), 0);
}

#[tokio::test]
async fn what_is_invalidated_while_it_loads_is_not_kept() {
    let cache = cache(100, 100, 4, 0.8);
    let (permit, flight) = lead(&cache, 1, true, &LoadGroup::new());
    let kept = lead(&cache, 2, true, &LoadGroup::new());
    assert_eq!(cache.remove_if(|key| key.0 == 1), (0, 0));
    let (newer, newer_flight) = lead(&cache, 1, true, &LoadGroup::new());
    permit.complete(100, 10, None);
    kept.0.complete(2, 10, None);
    assert_eq!(resident(&cache), [2]);
    let stale = flight.wait().await.unwrap();
    assert_eq!((**stale, cache.budget().usage()), (100, usage(10, 0, 10)));
    newer.complete(1, 10, None);
    assert_eq!(**newer_flight.wait().await.unwrap(), 1);
    assert_eq!(resident(&cache), [1, 2]);
    drop(stale);
    assert_eq!(cache.budget().usage(), usage(20, 0, 0));
    assert_eq!(cache.stats().rejected, 1);
}

#[tokio::test]
async fn what_need_not_stay_does_unless_someone_joins_who_wants_it_to() {
    let cache = cache(100, 100, 4, 0.8);
    for (joiner, stays) in [(false, false), (true, true)] {
        let (permit, flight) = lead(&cache, 1, false, &LoadGroup::new());
        let waiter = join(&cache, 1, joiner);
        permit.complete(1, 10, None);
        let pinned = waiter.wait().await.unwrap();
        let streaming = if stays { 0 } else { 10 };
        assert_eq!(cache.budget().usage(), usage(10 - streaming, 0, streaming));
        drop((pinned, flight));
        assert_eq!(cache.peek(&Key(1)).is_some(), stays);
    }
}

#[tokio::test]
async fn waiters_do_not_protect() {
    let cache = cache(20, 100, 1, 0.5);
    let (permit, flight) = lead(&cache, 1, true, &LoadGroup::new());
    let waiters = [join(&cache, 1, true), join(&cache, 1, true)];
    permit.complete(1, 10, None);
    for waiter in waiters {
        waiter.wait().await.unwrap();
    }
    drop(flight);
    get(&cache, 2, 2, 10);
    get(&cache, 3, 3, 10);
    assert_eq!(resident(&cache), [2, 3]);
}

/// The promise is about threads, so it is tried often: a batch within one partition is led by one of two callers.
#[test]
fn of_two_batches_one_leads_all_that_is_missing() {
    for round in 0..500 {
        let cache = cache(1_000, 1_000, 4, 0.8);
        // All in partition 1.
        let keys: Vec<Key> = (0..20).map(|i| Key(1 + 4 * i)).collect();
        let start = std::sync::Barrier::new(2);
        let led = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for request in 0..2 {
                let (cache, keys, start, led) = (&cache, &keys, &start, &led);
                scope.spawn(move || {
                    start.wait();
                    let found = cache.lookup_all(keys, request, true, &LoadGroup::new());
                    let leads = found.iter().filter(|found| matches!(found, Lookup::Lead(..))).count();
                    assert!(leads == 0 || leads == keys.len(), "round {round}: {leads}");
                    led.fetch_add(leads, Ordering::SeqCst);
                    // Neither leaves before both have looked.
                    start.wait();
                });
            }
        });
        assert_eq!(led.into_inner(), keys.len());
    }
}
