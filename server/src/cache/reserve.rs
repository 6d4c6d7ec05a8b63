//! Reserving memory for loads.

use std::sync::Arc;

use super::budget::Budget;
use super::lookup::{Cache, CacheKey};

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
#[must_use = "dropping it releases the bytes"]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Reservation {
    pub(super) fn granted(budget: Arc<Budget>, bytes: u64) -> Self {
        Self { budget, bytes }
    }

    /// Bytes still reserved.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        let given = self.bytes.saturating_sub(bytes);
        if given > 0 {
            self.bytes -= given;
            self.budget.unreserve(given);
        }
    }

    /// Adds `bytes` if they are free. Neither evicts nor waits, and passes those who queue in [`Cache::reserve`]: a load
    /// under way should end before another starts.
    pub fn try_grow(&mut self, bytes: u64) -> bool {
        let Some(mut more) = self.budget.try_reserve(bytes) else { return false };
        self.bytes += std::mem::take(&mut more.bytes);
        true
    }

    /// Adds another reservation of the same cache.
    pub fn merge(&mut self, other: Self) {
        self.bytes += other.surrender(&self.budget);
    }

    /// Takes up to `bytes` out, as a reservation of its own.
    pub fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { budget: Arc::clone(&self.budget), bytes }
    }

    /// Leaves its bytes to the caller, who accounts for them in `budget`. None if they are another budget's.
    pub(super) fn surrender(mut self, budget: &Arc<Budget>) -> u64 {
        if Arc::ptr_eq(&self.budget, budget) { std::mem::take(&mut self.bytes) } else { 0 }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

impl<K: CacheKey, V: Send + Sync + 'static, E: Clone + Send + Sync + 'static> Cache<K, V, E> {
    /// Reserves memory for a load: waits its turn, first come first served, evicts what is needed, then waits for releases.
    ///
    /// What can never fit fails at once; else it waits for as long as the configuration says. Nothing is evicted while
    /// reservations and entries in use alone leave too little.
    pub async fn reserve(&self, bytes: u64) -> Result<Reservation, ReserveError> {
        let fits_ever = || {
            let limit = self.budget.limit();
            if bytes <= limit { Ok(()) } else { Err(ReserveError::TooLarge { wanted: bytes, limit }) }
        };
        fits_ever()?;
        let wait = async {
            let _turn = self.turnstile.lock().await;
            loop {
                // No release is missed from here on, though it is awaited below.
                let released = self.budget.released.notified();
                // The capacity may have shrunk meanwhile.
                fits_ever()?;
                if let Some(reservation) = self.evict_and_reserve(bytes) {
                    return Ok(reservation);
                }
                released.await;
            }
        };
        tokio::time::timeout(self.reserve_timeout, wait).await.unwrap_or(Err(ReserveError::TimedOut { wanted: bytes }))
    }

    /// Reserves memory if eviction alone can make room and nobody waits for any.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let _turn = self.turnstile.try_lock().ok()?;
        self.evict_and_reserve(bytes)
    }

    fn evict_and_reserve(&self, bytes: u64) -> Option<Reservation> {
        loop {
            let reservation = self.budget.try_reserve(bytes);
            if reservation.is_some() || !self.budget.eviction_may_help(bytes) || !self.evict_one() {
                return reservation;
            }
        }
    }
}
