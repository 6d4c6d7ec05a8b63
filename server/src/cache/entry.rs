//! A cached value and what it weighs.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::budget::Budget;
use super::reserve::Reservation;

/// A value that stays in memory while this is held, whether or not it is evicted meanwhile.
pub type Pinned<V> = Arc<Entry<V>>;

/// A value charged to the budget: as resident while the cache holds it, as streaming before and afterwards.
#[derive(Debug)]
pub struct Entry<V> {
    // Dropped in this order: bytes are free once the value is.
    value: V,
    charge: Charge,
}

#[derive(Debug)]
struct Charge {
    weight: u64,
    resident: AtomicBool,
    budget: Arc<Budget>,
}

impl<V> Entry<V> {
    /// An entry that is not in the cache. Takes over what was reserved for it.
    pub(super) fn detached(value: V, weight: u64, reservation: Option<Reservation>, budget: &Arc<Budget>) -> Self {
        let reserved = reservation.map_or(0, |reservation| reservation.surrender(budget));
        budget.reserved_to_streaming(reserved, weight);
        Self { value, charge: Charge { weight, resident: AtomicBool::new(false), budget: Arc::clone(budget) } }
    }

    /// Charges it as resident if that fits. Only for who made it, under the lock of the partition it goes to.
    pub(super) fn admit(&self) -> bool {
        let charge = &self.charge;
        let fits = charge.budget.streaming_to_resident(charge.weight);
        charge.resident.store(fits, Ordering::Release);
        fits
    }

    /// Takes it out of the residents' account. Exactly one call has an effect.
    pub(super) fn detach(&self) {
        if self.charge.resident.swap(false, Ordering::AcqRel) {
            self.charge.budget.resident_to_streaming(self.charge.weight);
        }
    }

    /// Bytes it is charged with.
    pub fn weight_bytes(&self) -> u64 {
        self.charge.weight
    }
}

impl<V> Deref for Entry<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.release(self.weight, *self.resident.get_mut());
    }
}
