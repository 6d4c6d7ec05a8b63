//! Entries that can be made again of others.

use std::sync::Arc;

use super::{Key, TestCache, cache, get};
use crate::cache::{DerivedLookup, DerivedUse, FlightError, LoadGroup, Lookup};

/// Between a source's key and that of what is made of it.
const DERIVED: u64 = 1 << 20;
const SOURCE_BYTES: u64 = 1;
const DERIVED_BYTES: u64 = 5;
/// For what is made and does not stay.
const RESERVE: u64 = 10;

/// What a request had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    None,
    Make,
    LoadAndMake,
}

fn asked(request: u64, count: u32, populate_derived: bool) -> DerivedUse {
    DerivedUse { request, count, populate: true, populate_derived }
}

fn look_up(cache: &Arc<TestCache>, key: u64, asked: DerivedUse, group: &LoadGroup) -> DerivedLookup<Key, u64, String> {
    cache.lookup_derived(&[(Key(key + DERIVED), Key(key))], asked, group).pop().expect("one look-up, one answer")
}

fn read(cache: &Arc<TestCache>, key: u64, asked: DerivedUse) -> Work {
    match look_up(cache, key, asked, &LoadGroup::new()) {
        DerivedLookup::Hit(_) => Work::None,
        DerivedLookup::Wait(..) => panic!("nothing else makes {key}"),
        DerivedLookup::Lead(permit, _flight, source) => {
            let work = match source {
                Lookup::Hit(_) => Work::Make,
                Lookup::Wait(_) => panic!("nothing else loads {key}"),
                Lookup::Lead(source, _flight) => {
                    source.complete(key, SOURCE_BYTES, None);
                    Work::LoadAndMake
                }
            };
            permit.complete(key, DERIVED_BYTES, None);
            work
        }
    }
}

fn has(cache: &TestCache, key: u64) -> (bool, bool) {
    (cache.peek(&Key(key)).is_some(), cache.peek(&Key(key + DERIVED)).is_some())
}

#[test]
fn what_is_made_goes_before_what_it_is_made_of() {
    for partitions in [1, 4] {
        let cache = cache(100, RESERVE, partitions, 0.8);
        for round in 0..3 {
            for key in 0..10 {
                read(&cache, key, asked(round, 1, true));
            }
        }
        assert_eq!(cache.budget().usage().resident, 60);
        cache.set_capacity(10);
        assert!((0..10).all(|key| has(&cache, key) == (true, false)), "with {partitions} partitions");
        cache.set_capacity(5);
        assert_eq!((0..10).filter(|&key| has(&cache, key) == (true, false)).count(), 5);
    }
}

#[test]
fn new_sources_displace_what_was_made_longest_ago() {
    let cache = cache(60, RESERVE, 2, 0.8);
    for key in 0..10 {
        read(&cache, key, asked(key, 1, true));
    }
    // Full: each other source takes the place of one that is made, until those are gone.
    for key in 100..103 {
        get(&cache, key, key, DERIVED_BYTES);
    }
    let made: Vec<bool> = (0..10).map(|key| has(&cache, key).1).collect();
    assert_eq!(made, (0..10).map(|key| key >= 3).collect::<Vec<_>>());
    assert!((0..10).all(|key| has(&cache, key).0));
}

#[test]
fn of_a_circle_some_stay_made_and_nothing_is_loaded_twice() {
    let cache = cache(100, RESERVE, 4, 0.8);
    // 40 sources of 1 byte; 12 of what is made of them fit beside.
    let mut request = 0;
    let mut round = |expected: Work| {
        let works: Vec<Work> = (0..40)
            .map(|key| {
                request += 1;
                read(&cache, key, asked(request, 1, true))
            })
            .collect();
        assert!(works.iter().all(|work| *work == Work::None || *work == expected), "{works:?}");
        works.iter().filter(|work| **work == Work::None).count()
    };
    assert_eq!(round(Work::LoadAndMake), 0);
    for _ in 0..20 {
        let found = round(Work::Make);
        assert!(found >= 10, "only {found} of 12 stayed");
    }
}

#[test]
fn what_is_used_more_displaces_what_is_used_less() {
    let cache = cache(40, RESERVE, 1, 0.8);
    for request in 0..4 {
        for key in 0..6 {
            read(&cache, key, asked(request, 1, true));
        }
    }
    assert!((0..6).all(|key| has(&cache, key) == (true, true)));
    // No room: its uses count for no more than theirs.
    assert_eq!(read(&cache, 10, asked(100, 1, true)), Work::LoadAndMake);
    assert_eq!(has(&cache, 10), (true, false));
    // A use that counts for much gets it in, in place of the one used longest ago.
    assert_eq!(read(&cache, 10, asked(101, 100, true)), Work::Make);
    assert_eq!(has(&cache, 10), (true, true));
    assert_eq!(has(&cache, 0), (true, false));
    assert_eq!(read(&cache, 10, asked(102, 1, true)), Work::None);
}

#[test]
fn old_uses_count_for_nothing() {
    let cache = cache(12, RESERVE, 1, 0.8);
    for request in 0..100 {
        read(&cache, 0, asked(request, 100, true));
        read(&cache, 1, asked(request, 100, true));
    }
    assert_eq!((has(&cache, 0), has(&cache, 1)), ((true, true), (true, true)));
    // Another one is used on its own until the uses of those are long ago.
    let rounds = (100..200).take_while(|&request| {
        read(&cache, 2, asked(request, 1, true));
        !has(&cache, 2).1
    });
    let rounds = rounds.count();
    assert!((2..90).contains(&rounds), "after {rounds} uses");
}

#[test]
fn nothing_made_stays_unless_it_is_to() {
    let cache = cache(100, RESERVE, 1, 0.8);
    assert_eq!(read(&cache, 0, asked(0, 1, false)), Work::LoadAndMake);
    assert_eq!(read(&cache, 0, asked(1, 1, false)), Work::Make);
    assert_eq!((has(&cache, 0), cache.budget().usage().resident), ((true, false), SOURCE_BYTES));
    assert_eq!(cache.budget().usage().streaming, 0);
}

#[tokio::test]
async fn one_makes_it_for_all_and_others_can_wait_for_the_source_alone() {
    let cache = cache(100, RESERVE, 1, 0.8);
    let group = LoadGroup::new();
    let DerivedLookup::Lead(permit, flight, Lookup::Lead(source, source_flight)) = look_up(&cache, 0, asked(0, 1, true), &group)
    else {
        panic!("nothing is there")
    };
    let DerivedLookup::Wait(joined, false) = look_up(&cache, 0, asked(1, 1, true), &LoadGroup::new()) else {
        panic!("it is being made of what is not there")
    };
    let Lookup::Wait(of_source) = cache.lookup(&Key(0), 2, true, &LoadGroup::new()) else { panic!("it is being loaded") };
    source.complete(7, SOURCE_BYTES, None);
    assert_eq!(**of_source.wait().await.unwrap(), 7);
    assert!(matches!(look_up(&cache, 0, asked(3, 1, true), &LoadGroup::new()), DerivedLookup::Wait(_, true)));
    permit.fail("made no sense".to_owned());
    for flight in [flight, joined] {
        assert_eq!(flight.wait().await.unwrap_err(), FlightError::Failed("made no sense".to_owned()));
    }
    drop(source_flight);
    assert_eq!((has(&cache, 0), cache.loads_under_way()), ((true, false), 0));
}

#[test]
fn nothing_is_resident_without_its_source() {
    let cache = cache(200, RESERVE, 4, 0.8);
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for request in 0..30_000 {
        // Some keys are read often, most are not, and some are loaded on their own.
        let key = if random(3) == 0 { random(10) } else { random(1_000) };
        match random(8) {
            0 => drop(get(&cache, key, request, SOURCE_BYTES)),
            1 if request < 20_000 => cache.set_capacity(150 + random(100)),
            _ => drop(read(&cache, key, asked(request, 1 + random(4) as u32, true))),
        }
        let usage = cache.budget().usage();
        assert!(usage.resident <= cache.budget().capacity() && usage.streaming == 0, "{usage:?}");
        if request % 100 == 0 {
            assert!((0..1_000).all(|key| has(&cache, key) != (false, true)), "at request {request}");
        }
    }
    assert!((0..10).filter(|&key| has(&cache, key).1).count() > 5, "what is read often is not made");
}
