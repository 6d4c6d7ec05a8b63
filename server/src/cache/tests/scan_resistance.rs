//! What the protected segment buys, and what it costs. Run with `--nocapture` to see the rates.

use std::sync::Arc;

use super::{TestCache, cache, get};

const ENTRY_BYTES: u64 = 1;
const CAPACITY: u64 = 1_000;

/// Share of `keys` found, one request a key.
fn hit_rate(cache: &Arc<TestCache>, keys: impl Iterator<Item = u64>, requests: &mut u64) -> f64 {
    let (mut hits, mut total) = (0_u32, 0_u32);
    for key in keys {
        *requests += 1;
        hits += u32::from(get(cache, key, *requests, ENTRY_BYTES).0);
        total += 1;
    }
    f64::from(hits) / f64::from(total)
}

fn after_a_scan(protected_share: f64) -> f64 {
    let (cache, mut requests) = (cache(CAPACITY, 0, 4, protected_share), 0);
    let hot = || 0..CAPACITY / 2;
    hit_rate(&cache, hot().chain(hot()).chain(hot()), &mut requests);
    hit_rate(&cache, 10_000..10_000 + 10 * CAPACITY, &mut requests);
    hit_rate(&cache, hot(), &mut requests)
}

/// Two working sets of `size` entries, the second read after the first has filled the protected segment: in rounds, or in
/// random order as often.
fn after_a_shift(protected_share: f64, size: u64, random: bool) -> f64 {
    let (cache, mut requests) = (cache(CAPACITY, 0, 4, protected_share), 0);
    let mut state = 1_u64;
    let mut order = move |at: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if random { (state >> 33) % size } else { at % size }
    };
    hit_rate(&cache, (0..4 * CAPACITY).map(|at| at % CAPACITY), &mut requests);
    hit_rate(&cache, (0..4 * size).map(|at| 10_000 + order(at)), &mut requests)
}

#[test]
fn a_scan_of_any_length_spares_what_is_protected() {
    let (segmented, plain) = (after_a_scan(0.8), after_a_scan(0.0));
    println!("hot set after a scan of 10 times the capacity: segmented {segmented:.3}, plain LRU {plain:.3}");
    assert!(segmented > 0.999);
    assert!(plain < 0.001);
}

#[test]
fn scanning_a_table_larger_than_the_capacity_again_and_again_changes_nothing() {
    let (cache, mut requests) = (cache(CAPACITY, 0, 4, 0.8), 0);
    // The whole capacity is protected; what was used last fits the share.
    hit_rate(&cache, (0..CAPACITY).chain(0..CAPACITY), &mut requests);
    for _ in 0..10 {
        assert!(hit_rate(&cache, 10_000..=10_000 + CAPACITY, &mut requests) < 0.001);
    }
    assert_eq!(cache.stats().returned, 0);
    assert!(hit_rate(&cache, CAPACITY / 5..CAPACITY, &mut requests) > 0.999);
}

#[test]
fn a_new_working_set_takes_a_round_longer() {
    for (percent, random) in [10, 30, 50, 90].into_iter().flat_map(|percent| [(percent, false), (percent, true)]) {
        let rates = [0.8, 0.5, 0.2, 0.0].map(|share| after_a_shift(share, CAPACITY * percent / 100, random));
        let order = if random { "at random" } else { "in rounds" };
        println!("new working set of {percent} % of capacity, read 4 times {order}: protected 0.8, 0.5, 0.2, 0: {rates:.3?}");
        let [segmented, .., plain] = rates;
        assert!(segmented < plain + 0.001);
        if random {
            assert!(segmented > plain - 0.1);
        } else {
            // At most one round more than the first misses.
            assert!((plain - 0.75).abs() < 0.001);
            assert!(segmented > if percent > 20 { 0.499 } else { 0.749 });
        }
    }
}

#[test]
fn what_is_used_twice_and_then_never_needs_probation_as_long_as_the_gap() {
    for percent in [10, 30, 45] {
        let gap = CAPACITY * percent / 100;
        let rates = [0.8, 0.5, 0.2, 0.0].map(|share| {
            let (cache, mut requests) = (cache(CAPACITY, 0, 4, share), 0);
            hit_rate(&cache, (0..4 * CAPACITY).map(|at| at % CAPACITY), &mut requests);
            // A new key, then for the second and last time the one that was new `gap` keys ago.
            hit_rate(&cache, 10_000..10_000 + gap, &mut requests);
            let keys = (10_000..10_000 + 10 * CAPACITY).flat_map(|key| [key + gap, key]);
            hit_rate(&cache, keys, &mut requests)
        });
        println!("keys used twice, {percent} % of capacity apart: protected 0.8, 0.5, 0.2, 0: {rates:.3?}");
        assert!((rates[3] - 0.5).abs() < 0.001);
        assert!(if percent > 20 { rates[0] < 0.1 } else { rates[0] > 0.499 });
    }
}
