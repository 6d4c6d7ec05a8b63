//! A cached value and what it weighs.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::budget::Budget;

/// A value that stays in memory while this is held, whether or not it is evicted meanwhile.
pub type Pinned<V> = Arc<Entry<V>>;

/// A value charged to the budget: as resident while the cache holds it, as streaming afterwards.
#[derive(Debug)]
pub struct Entry<V> {
    value: V,
    weight: u64,
    resident: AtomicBool,
    budget: Arc<Budget>,
}

impl<V> Entry<V> {
    /// An entry whose weight the caller has charged as resident.
    pub(super) fn admitted(value: V, weight: u64, budget: Arc<Budget>) -> Self {
        Self { value, weight, resident: AtomicBool::new(true), budget }
    }

    /// An entry that is not in the cache.
    pub(super) fn detached(value: V, weight: u64, budget: Arc<Budget>) -> Self {
        budget.charge_streaming(weight);
        Self { value, weight, resident: AtomicBool::new(false), budget }
    }

    /// Takes it out of the residents' account. Exactly one call has an effect.
    pub(super) fn detach(&self) {
        if self.resident.swap(false, Ordering::AcqRel) {
            self.budget.resident_to_streaming(self.weight);
        }
    }

    /// Bytes it is charged with.
    pub fn weight_bytes(&self) -> u64 {
        self.weight
    }
}

impl<V> Deref for Entry<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}

impl<V> Drop for Entry<V> {
    fn drop(&mut self) {
        self.budget.release(self.weight, *self.resident.get_mut());
    }
}
