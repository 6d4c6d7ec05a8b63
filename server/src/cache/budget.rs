//! The one byte budget.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::reserve::Reservation;

/// Bytes by what holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Held by entries that can be found.
    pub resident: u64,
    /// Reserved by loads under way.
    pub in_flight: u64,
    /// Held by entries that are no longer in the cache, or never were, but still in use.
    pub streaming: u64,
}

impl Usage {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.resident + self.in_flight + self.streaming
    }
}

/// Counts bytes against a capacity (for residents) and a capacity plus reserve (for everything).
///
/// The three counts change under one lock, so every reader sees a sum that was true at one moment. Residents never exceed
/// the capacity, except while [`Cache::set_capacity`](super::Cache::set_capacity) shrinks it. A reservation is granted only
/// if everything then fits; a value heavier than its reservation is the one thing that can exceed the limit afterwards, and
/// residents are evicted for it at once.
#[derive(Debug)]
pub struct Budget {
    state: Mutex<State>,
    /// Told whenever a reservation that had to wait may fit.
    pub(super) released: Notify,
}

#[derive(Debug)]
struct State {
    usage: Usage,
    capacity: u64,
    reserve: u64,
}

impl State {
    fn limit(&self) -> u64 {
        self.capacity.saturating_add(self.reserve)
    }
}

impl Budget {
    pub(super) fn new(capacity: u64, reserve: u64) -> Arc<Self> {
        let state = State { usage: Usage::default(), capacity, reserve };
        Arc::new(Self { state: Mutex::new(state), released: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in use.
    pub fn usage(&self) -> Usage {
        self.lock().usage
    }

    /// Bound on resident bytes.
    pub fn capacity(&self) -> u64 {
        self.lock().capacity
    }

    /// Bytes beyond the capacity.
    pub fn reserve_bytes(&self) -> u64 {
        self.lock().reserve
    }

    /// Bound on all bytes.
    pub fn limit(&self) -> u64 {
        self.lock().limit()
    }

    pub(super) fn set_capacity(&self, capacity: u64) {
        self.lock().capacity = capacity;
        self.released.notify_waiters();
    }

    /// Charges a loaded value and takes over what was reserved for it, in one step.
    pub(super) fn reserved_to_streaming(&self, reserved: u64, weight: u64) {
        {
            let usage = &mut self.lock().usage;
            usage.in_flight -= reserved;
            usage.streaming += weight;
        }
        self.released.notify_waiters();
    }

    /// Moves a value to the residents if they then still fit.
    pub(super) fn streaming_to_resident(&self, weight: u64) -> bool {
        let mut state = self.lock();
        let fits = state.usage.resident.saturating_add(weight) <= state.capacity;
        if fits {
            state.usage.streaming -= weight;
            state.usage.resident += weight;
        }
        fits
    }

    pub(super) fn resident_to_streaming(&self, weight: u64) {
        let mut state = self.lock();
        state.usage.resident -= weight;
        state.usage.streaming += weight;
    }

    pub(super) fn release(&self, weight: u64, resident: bool) {
        {
            let usage = &mut self.lock().usage;
            if resident {
                usage.resident -= weight;
            } else {
                usage.streaming -= weight;
            }
        }
        self.released.notify_waiters();
    }

    /// Reserves if it fits as things are.
    pub(super) fn try_reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut state = self.lock();
        let fits = state.usage.total().saturating_add(bytes) <= state.limit();
        fits.then(|| {
            state.usage.in_flight += bytes;
            Reservation::granted(Arc::clone(self), bytes)
        })
    }

    pub(super) fn unreserve(&self, bytes: u64) {
        self.lock().usage.in_flight -= bytes;
        self.released.notify_waiters();
    }

    /// Whether evicting could make room: what cannot be evicted leaves enough.
    pub(super) fn eviction_may_help(&self, bytes: u64) -> bool {
        let state = self.lock();
        let fixed = state.usage.in_flight + state.usage.streaming;
        state.usage.resident > 0 && fixed.saturating_add(bytes) <= state.limit()
    }

    /// Whether more is held than capacity and reserve.
    pub(super) fn is_over(&self) -> bool {
        let state = self.lock();
        state.usage.total() > state.limit()
    }

    pub(super) fn residents_are_over(&self) -> bool {
        let state = self.lock();
        state.usage.resident > state.capacity
    }
}
