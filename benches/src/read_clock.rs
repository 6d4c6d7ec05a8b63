//! Wall time during which something was under way, however many things at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A clock that runs while at least one [`Reading`] of it lives. Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct ReadClock(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    /// When the first of those under way began.
    since: Option<Instant>,
    before: Duration,
}

/// Keeps the clock running.
#[derive(Debug)]
pub struct Reading(ReadClock);

impl ReadClock {
    /// Begins a reading, which ends when it is dropped.
    pub fn start(&self) -> Reading {
        let mut state = self.lock();
        state.under_way += 1;
        state.since.get_or_insert_with(Instant::now);
        Reading(self.clone())
    }

    /// How long it has run.
    pub fn elapsed(&self) -> Duration {
        let state = self.lock();
        state.before + state.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.under_way -= 1;
        if state.under_way == 0
            && let Some(since) = state.since.take()
        {
            state.before += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn overlapping_readings_count_once_and_pauses_not_at_all() {
        let step = Duration::from_millis(20);
        let (clock, started) = (ReadClock::default(), Instant::now());
        let first = clock.start();
        let second = clock.start();
        sleep(step);
        drop(first);
        sleep(step);
        drop(second);
        let (read, all) = (clock.elapsed(), started.elapsed());
        assert!(read >= 2 * step && read <= all, "{read:?} of {all:?}");
        sleep(step);
        assert_eq!(clock.elapsed(), read);
    }
}
