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
fn a_scan_flushes_probation_only() {
    let (segmented, plain) = (after_a_scan(0.8), after_a_scan(0.0));
    println!("hot set after a scan of 10 times the capacity: segmented {segmented:.3}, plain LRU {plain:.3}");
    assert!(segmented > 0.999);
    assert!(plain < 0.001);
}

#[test]
fn a_shifting_workload_pays_for_it() {
    for (percent, random) in [10, 30, 50, 90].into_iter().flat_map(|percent| [(percent, false), (percent, true)]) {
        let rates = [0.8, 0.5, 0.2, 0.0].map(|share| after_a_shift(share, CAPACITY * percent / 100, random));
        let order = if random { "at random" } else { "in rounds" };
        println!("new working set of {percent} % of capacity, read 4 times {order}: protected 0.8, 0.5, 0.2, 0: {rates:.3?}");
        let [segmented, .., plain] = rates;
        assert!(segmented <= plain + 0.001);
        if !random {
            assert!((plain - 0.75).abs() < 0.001);
            // Rounds longer than probation never find anything there, so never displace what is protected.
            assert!(if percent > 20 { segmented < 0.001 } else { segmented > 0.749 });
        }
    }
}
