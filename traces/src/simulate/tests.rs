use proptest::prelude::*;

use super::*;
use crate::trace::Access;

/// Accesses to whole objects: (object, bytes) by request.
pub(super) fn trace(accesses: &[(u8, u64)]) -> Trace {
    let access = |(request, (object, bytes)): (u64, &(u8, u64))| Access::whole_object(0, request, object.to_string(), *bytes, 1);
    Trace { accesses: (1..).zip(accesses).map(access).collect() }
}

fn unit_trace(objects: &[u8]) -> Trace {
    trace(&objects.iter().map(|object| (*object, 1)).collect::<Vec<_>>())
}

/// LRU without any cleverness: the most recent comes first.
struct NaiveLru(u64, Vec<(ItemKey, u64)>);

impl Policy for NaiveLru {
    fn access(&mut self, key: ItemKey, bytes: u64, _request: u64, _next_use: Option<u64>) -> bool {
        let Self(capacity, items) = self;
        let found = items.iter().position(|(resident, _)| *resident == key);
        if let Some(position) = found {
            items.remove(position);
        }
        if bytes <= *capacity {
            items.insert(0, (key, bytes));
        }
        while items.iter().map(|(_, bytes)| bytes).sum::<u64>() > *capacity {
            items.pop();
        }
        found.is_some()
    }
}

/// The most hits that are possible with items of size 1: tries every choice.
fn best(accesses: &[u8], resident: &[u8], capacity: usize) -> u64 {
    let Some((object, rest)) = accesses.split_first() else { return 0 };
    if resident.contains(object) {
        return 1 + best(rest, resident, capacity);
    }
    let with = [resident, &[*object]].concat();
    let without = |index: usize| [&with[..index], &with[index + 1..]].concat();
    // Each resident one may go, or the new one itself.
    let evicting = (0..with.len()).map(|index| best(rest, &without(index), capacity)).max().unwrap_or(0);
    if with.len() <= capacity { evicting.max(best(rest, &with, capacity)) } else { evicting }
}

proptest! {
    #[test]
    fn lru_is_what_the_naive_model_says(
        accesses in proptest::collection::vec(0..12_u8, 0..200),
        sizes in proptest::collection::vec(0..9_u64, 12),
        capacity in 0..24_u64,
    ) {
        let trace = trace(&accesses.iter().map(|object| (*object, sizes[*object as usize])).collect::<Vec<_>>());
        prop_assert_eq!(simulate(&trace, &mut Lru::new(capacity)), simulate(&trace, &mut NaiveLru(capacity, Vec::new())));
    }

    #[test]
    fn lru_is_never_above_belady(accesses in proptest::collection::vec(0..12_u8, 0..200), capacity in 0..14_u64) {
        let trace = unit_trace(&accesses);
        let (lru, belady) = (simulate(&trace, &mut Lru::new(capacity)), simulate(&trace, &mut Belady::new(capacity)));
        prop_assert!(lru.item_hits <= belady.item_hits, "{lru:?} {belady:?}");
        prop_assert_eq!((lru.requests, lru.items, lru.bytes), (belady.requests, belady.items, belady.bytes));
    }

    #[test]
    fn nothing_beats_belady(accesses in proptest::collection::vec(0..3_u8, 0..=8), capacity in 0..3_usize) {
        let hits = simulate(&unit_trace(&accesses), &mut Belady::new(capacity as u64)).item_hits;
        prop_assert_eq!(hits, best(&accesses, &[], capacity));
    }

    #[test]
    fn the_footprint_is_enough(accesses in proptest::collection::vec((0..12_u8, 0..9_u64), 1..100)) {
        let trace = trace(&accesses);
        let footprint = footprint_bytes(&trace);
        let objects = accesses.iter().map(|(object, _)| object).collect::<std::collections::HashSet<_>>().len() as u64;
        let expected = accesses.len() as u64 - objects;
        prop_assert_eq!(simulate(&trace, &mut Lru::new(footprint)).item_hits, expected);
        prop_assert_eq!(simulate(&trace, &mut Belady::new(footprint)).item_hits, expected);
    }
}

#[test]
fn next_uses_are_positions() {
    assert_eq!(next_uses(&[0, 1, 0, 2, 1, 0], 3), [Some(2), Some(4), Some(5), None, None, None]);
}

#[test]
fn belady_does_not_push_out_what_is_used_sooner() {
    // `1` is wanted again before `2`, so it stays; LRU thrashes.
    let trace = unit_trace(&[1, 2, 1, 2, 1, 2]);
    assert_eq!(simulate(&trace, &mut Belady::new(1)).item_hits, 2);
    assert_eq!(simulate(&trace, &mut Lru::new(1)).item_hits, 0);
}

#[test]
fn columns_of_row_groups_are_items() {
    let line = |request, row_group, columns: &[&str], bytes: &[u64]| Access {
        row_group: Some(row_group),
        columns: columns.iter().copied().map(std::sync::Arc::from).collect(),
        bytes: bytes.to_vec(),
        ..Access::whole_object(0, request, "t", 0, 1)
    };
    let accesses = vec![
        line(1, 0, &["a", "b"], &[10, 1]),
        line(1, 1, &["a"], &[10]),
        line(2, 0, &["b"], &[2]), // the larger size counts
        line(2, 1, &["a"], &[10]),
        line(3, 1, &["a", "b"], &[10, 1]),
        line(4, 0, &[], &[]),
    ];
    let trace = Trace { accesses };
    assert_eq!(footprint_bytes(&trace), 23);
    let rates = simulate(&trace, &mut Lru::new(23));
    let expected = HitRates { requests: 4, request_hits: 2, items: 7, item_hits: 3, bytes: 45, byte_hits: 22 };
    assert_eq!(rates, expected);
    let shares = |rates: HitRates| [rates.by_requests(), rates.by_items(), rates.by_bytes()].map(|share| format!("{share:.3}"));
    assert_eq!(shares(rates), ["0.500", "0.429", "0.489"]);
    assert_eq!(shares(HitRates::default()), ["0.000"; 3]);
}
