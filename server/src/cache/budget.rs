//! The one byte budget.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

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
#[derive(Debug)]
pub struct Budget {
    state: Mutex<State>,
    pub(super) released: Notify,
}

#[derive(Debug)]
struct State {
    usage: Usage,
    capacity: u64,
    reserve: u64,
}

/// Why memory could not be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// It can never fit.
    #[error("{wanted} bytes are more than the cache's capacity and reserve of {limit} bytes")]
    TooLarge {
        /// Bytes asked for.
        wanted: u64,
        /// Capacity plus reserve.
        limit: u64,
    },
    /// It did not fit in time.
    #[error("{wanted} bytes of memory did not become free in time")]
    TimedOut {
        /// Bytes asked for.
        wanted: u64,
    },
}

/// Bytes reserved for a load. Released on drop.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
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
        let state = self.lock();
        state.capacity.saturating_add(state.reserve)
    }

    pub(super) fn set_capacity(&self, capacity: u64) {
        self.lock().capacity = capacity;
        self.released.notify_waiters();
    }

    /// Charges a resident entry if it fits.
    pub(super) fn try_admit(&self, weight: u64) -> bool {
        let mut state = self.lock();
        let fits = state.usage.resident.saturating_add(weight) <= state.capacity;
        if fits {
            state.usage.resident += weight;
        }
        fits
    }

    pub(super) fn charge_streaming(&self, weight: u64) {
        self.lock().usage.streaming += weight;
    }

    pub(super) fn resident_to_streaming(&self, weight: u64) {
        let mut state = self.lock();
        state.usage.resident -= weight;
        state.usage.streaming += weight;
    }

    pub(super) fn release(&self, weight: u64, resident: bool) {
        {
            let mut state = self.lock();
            if resident {
                state.usage.resident -= weight;
            } else {
                state.usage.streaming -= weight;
            }
        }
        self.released.notify_waiters();
    }

    /// Reserves without waiting.
    pub fn try_reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut state = self.lock();
        let fits = state.usage.total().saturating_add(bytes) <= state.capacity.saturating_add(state.reserve);
        fits.then(|| {
            state.usage.in_flight += bytes;
            Reservation { budget: Arc::clone(self), bytes }
        })
    }

    /// Whether evicting could make room: what cannot be evicted leaves enough.
    pub(super) fn eviction_may_help(&self, bytes: u64) -> bool {
        let state = self.lock();
        let fixed = state.usage.in_flight + state.usage.streaming;
        state.usage.resident > 0 && fixed.saturating_add(bytes) <= state.capacity.saturating_add(state.reserve)
    }

    /// Whether more is held than capacity and reserve.
    pub(super) fn is_over(&self) -> bool {
        let state = self.lock();
        state.usage.total() > state.capacity.saturating_add(state.reserve)
    }

    pub(super) fn residents_are_over(&self) -> bool {
        let state = self.lock();
        state.usage.resident > state.capacity
    }
}

impl Reservation {
    /// Bytes still reserved.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        let given = self.bytes.saturating_sub(bytes);
        if given > 0 {
            self.bytes -= given;
            self.budget.lock().usage.in_flight -= given;
            self.budget.released.notify_waiters();
        }
    }

    /// Takes up to `bytes` out, as a reservation of its own.
    pub fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { budget: Arc::clone(&self.budget), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}
