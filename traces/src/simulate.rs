//! Offline cache simulation: what hit rate a policy reaches on a trace, in no time and without any data.
//!
//! ```text
//!  Trace --intern--> items in order --next use--> Policy::access(key, bytes, request, next_use) --hit?--> HitRates
//! ```
//!
//! An item is what a cache holds or does not: one column of one row group, or a whole object. Every access loads what is
//! missing at once, so two requests never wait for the same load; first accesses count as misses like all others.

mod belady;
mod lru;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub use belady::Belady;
pub use lru::Lru;

use crate::trace::Trace;

/// A column of a row group of an object, numbered from 0 in the order of first access.
pub type ItemKey = u32;

/// What decides which items are resident.
pub trait Policy {
    /// Tells of an access to an item of `bytes` by the request with this number, and returns whether the item was resident.
    /// An item always has the same size. `next_use` is when it is accessed again, as a count of the accesses before that,
    /// and is meant for policies that may look into the future.
    fn access(&mut self, key: ItemKey, bytes: u64, request: u64, next_use: Option<u64>) -> bool;
}

/// How much was found resident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HitRates {
    /// Requests.
    pub requests: u64,
    /// Requests that found all of their items; a request for none counts.
    pub request_hits: u64,
    /// Accesses to items.
    pub items: u64,
    /// Accesses that found the item.
    pub item_hits: u64,
    /// Bytes of the accessed items.
    pub bytes: u64,
    /// Bytes of the accessed items that were found.
    pub byte_hits: u64,
}

impl HitRates {
    /// Share of the requests that missed nothing, 0 to 1.
    pub fn by_requests(&self) -> f64 {
        share(self.request_hits, self.requests)
    }

    /// Share of the accesses to items that were hits, 0 to 1.
    pub fn by_items(&self) -> f64 {
        share(self.item_hits, self.items)
    }

    /// Share of the bytes that were found, 0 to 1.
    pub fn by_bytes(&self) -> f64 {
        share(self.byte_hits, self.bytes)
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Runs `trace` against `policy`, which brings its own capacity and should be empty.
///
/// # Panics
/// If the trace has more than 2³² different items.
pub fn simulate(trace: &Trace, policy: &mut impl Policy) -> HitRates {
    let Items { keys, bytes } = Items::of(trace);
    let mut accesses = keys.iter().zip(next_uses(&keys, bytes.len()));
    let mut rates = HitRates::default();
    for request in trace.requests() {
        let mut all_hit = true;
        let items = request.accesses.iter().map(|access| access.columns.len()).sum();
        for (&key, next_use) in accesses.by_ref().take(items) {
            let bytes = bytes[key as usize];
            let hit = policy.access(key, bytes, request.number, next_use);
            all_hit &= hit;
            rates.items += 1;
            rates.item_hits += u64::from(hit);
            rates.bytes = rates.bytes.saturating_add(bytes);
            rates.byte_hits = rates.byte_hits.saturating_add(if hit { bytes } else { 0 });
        }
        rates.requests += 1;
        rates.request_hits += u64::from(all_hit);
    }
    rates
}

/// Bytes of all items together: with this capacity nothing is evicted.
pub fn footprint_bytes(trace: &Trace) -> u64 {
    Items::of(trace).bytes.into_iter().fold(0, u64::saturating_add)
}

/// The items of a trace.
struct Items {
    /// By access.
    keys: Vec<ItemKey>,
    /// By item: the most that any access says, as decoding may say a little less or more each time.
    bytes: Vec<u64>,
}

impl Items {
    fn of(trace: &Trace) -> Self {
        let (mut keys, mut bytes, mut known) = (Vec::new(), Vec::new(), HashMap::new());
        for access in &trace.accesses {
            for (column, &size) in access.columns.iter().zip(&access.bytes) {
                let new = ItemKey::try_from(bytes.len()).expect("fewer than 2^32 items, as documented");
                let key = *known.entry((&access.url, access.row_group, column)).or_insert(new);
                if key == new {
                    bytes.push(size);
                }
                bytes[key as usize] = size.max(bytes[key as usize]);
                keys.push(key);
            }
        }
        Self { keys, bytes }
    }
}

/// For each access, the position of the next one to the same of `items` items; found in one pass from the end.
fn next_uses(keys: &[ItemKey], items: usize) -> Vec<Option<u64>> {
    let mut upcoming = vec![None; items];
    let mut next_uses: Vec<_> =
        keys.iter().enumerate().rev().map(|(position, &key)| upcoming[key as usize].replace(position as u64)).collect();
    next_uses.reverse();
    next_uses
}
