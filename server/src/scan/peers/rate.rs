//! How many bytes a second come from other servers, all of them together.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flightcache_proto::{Error, ErrorKind, Result};
use tokio::time::{Instant, sleep};

/// What may come at once, after a while in which nothing came: as much as in that time.
const BURST: Duration = Duration::from_secs(1);

/// A rate that those who take of it wait for, in the order in which they ask: the generic cell rate algorithm (ITU-T I.371), which is a
/// leaky bucket that knows only when it will be empty.
#[derive(Debug)]
pub(super) struct Rate {
    /// `None`: as many as come.
    bytes_per_second: Option<u64>,
    empty_at: Mutex<Instant>,
}

/// Bytes that were taken of a rate. What has not come of them when this is dropped is given back, and what came beyond them is taken.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    rate: &'a Rate,
    bytes: u64,
    came: u64,
}

impl Rate {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.map(|bytes| bytes.max(1)), empty_at: Mutex::new(Instant::now()) }
    }

    /// Takes `bytes`, and waits until they may come; how long that was. Fails at once, and takes nothing, where it would be longer than
    /// `patience`.
    pub(super) async fn take(&self, bytes: u64, patience: Duration) -> Result<(Taken<'_>, Duration)> {
        let now = Instant::now();
        let wait = {
            let mut empty_at = self.empty_at.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = empty_at.saturating_duration_since(now + BURST);
            if wait > patience {
                let message = format!("{bytes} bytes of other servers would have to wait {wait:?} for --peer-bandwidth");
                return Err(Error::new(ErrorKind::ResourceExhausted, message));
            }
            *empty_at = (*empty_at).max(now) + self.duration_of(bytes);
            wait
        };
        // Taken before the wait: whoever stops waiting gives it back.
        let taken = Taken { rate: self, bytes, came: 0 };
        if !wait.is_zero() {
            sleep(wait).await;
        }
        Ok((taken, wait))
    }

    fn duration_of(&self, bytes: u64) -> Duration {
        let seconds = |rate: u64| Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.bytes_per_second.map_or(Duration::ZERO, seconds)
    }
}

impl Taken<'_> {
    /// So many of them came.
    pub(super) fn came(&mut self, bytes: u64) {
        self.came += bytes;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let (missing, beyond) = (self.bytes.saturating_sub(self.came), self.came.saturating_sub(self.bytes));
        let mut empty_at = self.rate.empty_at.lock().unwrap_or_else(PoisonError::into_inner);
        *empty_at += self.rate.duration_of(beyond);
        *empty_at = empty_at.checked_sub(self.rate.duration_of(missing)).unwrap_or(*empty_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const PATIENCE: Duration = Duration::from_secs(2);

    async fn waits(rate: &Rate, bytes: u64) -> Option<f64> {
        let asked_at = Instant::now();
        let (mut taken, waited) = rate.take(bytes, PATIENCE).await.ok()?;
        assert!(asked_at.elapsed().abs_diff(waited) <= Duration::from_millis(1), "a timer has steps of a millisecond");
        taken.came(bytes);
        Some(waited.as_secs_f64())
    }

    fn is(waited: Option<f64>, seconds: f64) -> bool {
        waited.is_some_and(|waited| (waited - seconds).abs() < 0.01)
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_keeps_to_the_rate_after_a_burst() {
        let rate = Rate::new(Some(10 * MIB));
        let began = Instant::now();
        for _ in 0..100 {
            assert!(waits(&rate, 5 * MIB).await.is_some());
        }
        // 500 MiB at 10 MiB a second; the last 5 MiB come when they may, and those of the burst came at once.
        let elapsed = began.elapsed().as_secs_f64();
        assert!((48.0..50.0).contains(&elapsed), "{elapsed}");
        // After a pause, a burst of one second and no more.
        tokio::time::advance(Duration::from_mins(1)).await;
        assert!(is(waits(&rate, 10 * MIB).await, 0.0));
        assert!(is(waits(&rate, 10 * MIB).await, 0.0));
        assert!(is(waits(&rate, MIB).await, 1.0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_too_long_is_refused_at_once_and_takes_nothing() {
        let rate = Rate::new(Some(10 * MIB));
        assert!(is(waits(&rate, 35 * MIB).await, 0.0), "more than a burst may come, and the next wait for it");
        let asked_at = Instant::now();
        for _ in 0..10 {
            let error = rate.take(MIB, PATIENCE).await.map(drop).unwrap_err();
            assert_eq!(error.kind, ErrorKind::ResourceExhausted, "{error}");
        }
        assert_eq!(asked_at.elapsed(), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is(waits(&rate, MIB).await, 1.5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_is_given_back_and_more_is_taken() {
        let rate = Rate::new(Some(10 * MIB));
        let (mut taken, _) = rate.take(20 * MIB, PATIENCE).await.unwrap();
        taken.came(5 * MIB);
        drop(taken);
        assert!(is(waits(&rate, 5 * MIB).await, 0.0));
        let (mut taken, _) = rate.take(MIB, PATIENCE).await.unwrap();
        taken.came(11 * MIB);
        drop(taken);
        assert!(is(waits(&rate, MIB).await, 1.1));
        // Whoever stops waiting does so as well.
        let mut waiting = Box::pin(rate.take(100 * MIB, PATIENCE));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(rate.take(MIB, PATIENCE).await.is_err());
        drop(waiting);
        assert!(rate.take(MIB, PATIENCE).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_nobody_waits() {
        let rate = Rate::new(None);
        for _ in 0..100 {
            assert!(is(waits(&rate, 1 << 40).await, 0.0));
        }
    }
}
