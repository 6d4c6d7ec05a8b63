//! What is remembered of evicted entries, and for how long.

use std::sync::Arc;

use super::{TestCache, cache, get, resident};

/// 100 bytes, 80 of them protected: keys 0 to 7, used by requests 0 and 1. Key 1000, used by request 2, was evicted and is to be
/// remembered until another 80 bytes are admitted.
fn with_a_ghost(partitions: usize) -> Arc<TestCache> {
    let cache = cache(100, 0, partitions, 0.8);
    for request in 0..2 {
        (0..8).for_each(|key| assert_eq!(get(&cache, key, request, 10).0, request > 0));
    }
    for key in 1000..1003 {
        get(&cache, key, 2, 10);
    }
    assert_eq!(resident(&cache), [0, 1, 2, 3, 4, 5, 6, 7, 1001, 1002]);
    cache
}

/// A scan of keys nobody asks for again.
fn scan(cache: &Arc<TestCache>, keys: u64) {
    (2000..2000 + keys).for_each(|key| assert!(!get(cache, key, 3, 10).0));
}

#[test]
fn what_comes_back_in_time_is_protected_at_once() {
    let cache = with_a_ghost(1);
    assert!(!get(&cache, 1000, 4, 10).0);
    scan(&cache, 100);
    // The protected had to give up the one that was not used for longest.
    assert_eq!(resident(&cache), [1, 2, 3, 4, 5, 6, 7, 1000, 2098, 2099]);
    assert_eq!(cache.stats().returned, 1);
}

#[test]
fn a_ghost_lasts_as_long_as_plain_lru_would_have_kept_the_entry() {
    // Since its use, two others were admitted, and one more of which the admission evicted it.
    for (keys, is_in_time) in [(7, true), (8, false)] {
        // In a partition of its own, which admits and evicts nothing while the scan goes through the others.
        for partitions in [1, 2001] {
            let cache = with_a_ghost(partitions);
            scan(&cache, keys);
            assert!(!get(&cache, 1000, 4, 10).0);
            assert_eq!(cache.stats().returned, u64::from(is_in_time), "{keys} keys, {partitions} partitions");
        }
    }
    // What plain LRU does with the same requests.
    for (keys, is_in_time) in [(7, true), (8, false)] {
        let cache = cache(100, 0, 1, 0.0);
        (1000..1003).for_each(|key| assert!(!get(&cache, key, 2, 10).0));
        scan(&cache, keys);
        assert_eq!(get(&cache, 1000, 4, 10).0, is_in_time);
    }
}

#[test]
fn coming_back_in_the_same_request_is_no_reuse() {
    let cache = with_a_ghost(1);
    assert!(!get(&cache, 1000, 2, 10).0);
    assert_eq!(cache.stats().returned, 0);
}

#[test]
fn beyond_their_share_the_protected_leave_in_the_order_of_use() {
    let cache = cache(100, 0, 3, 0.5);
    for request in 0..2 {
        (0..10).for_each(|key| assert_eq!(get(&cache, key, request, 10).0, request > 0));
    }
    // All are protected, which are twice as much as is safe.
    get(&cache, 1000, 2, 10);
    get(&cache, 0, 3, 10);
    scan(&cache, 4);
    assert_eq!(resident(&cache), [0, 6, 7, 8, 9, 1000, 2000, 2001, 2002, 2003]);
    // Now they hold no more than their share.
    (3000..3100).for_each(|key| assert!(!get(&cache, key, 4, 10).0));
    assert_eq!(resident(&cache), [0, 6, 7, 8, 9, 3095, 3096, 3097, 3098, 3099]);
}

#[test]
fn few_large_entries_do_not_make_it_remember_ever_more_small_ones() {
    let cache = cache(10_000, 0, 1, 1.0);
    get(&cache, 1, 1, 9_500);
    get(&cache, 1, 2, 9_500);
    (2000..7000).for_each(|key| assert!(!get(&cache, key, 3, 1).0));
    // All would be in time, but only the last thousand of 4,500 are remembered.
    (2000..2100).for_each(|key| assert!(!get(&cache, key, 4, 1).0));
    assert_eq!(cache.stats().returned, 0);
    (6400..6500).for_each(|key| assert!(!get(&cache, key, 4, 1).0));
    assert_eq!(cache.stats().returned, 100);
}

#[test]
fn what_is_removed_is_not_remembered_either() {
    let cache = with_a_ghost(1);
    cache.remove_if(|key| key.0 == 1000);
    assert!(!get(&cache, 1000, 4, 10).0);
    assert_eq!(cache.stats().returned, 0);
}
