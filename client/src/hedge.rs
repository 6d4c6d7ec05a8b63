//! When to ask a second owner as well: what takes much longer than usual is asked for once more, within a budget.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{Either, select};
use tokio::time::Instant;

/// Answers that tell what is usual.
const SAMPLES: usize = 64;
/// With fewer nothing is known yet.
const FEWEST_SAMPLES: usize = 16;
/// How long is long, while nothing is known.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// Shorter waits are noise, longer ones nobody wants.
const DELAYS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// Of all requests, those that may be sent twice.
const SHARE: f64 = 0.05;
/// Requests that may be sent twice in a row.
const BURST: f64 = 10.0;

/// What is usual, and what may still be spent.
#[derive(Debug)]
pub(crate) struct Hedges(Mutex<State>);

#[derive(Debug)]
struct State {
    took: VecDeque<Duration>,
    tokens: f64,
    sent: u64,
}

impl Default for Hedges {
    fn default() -> Self {
        Self(Mutex::new(State { took: VecDeque::new(), tokens: BURST, sent: 0 }))
    }
}

impl Hedges {
    /// The answer of `first`, or of `second`, which is asked if the first one takes long. The other is dropped. An error of the
    /// first before that is the answer; later the other may still save it.
    pub(crate) async fn race<T, E, S: Future<Output = Result<T, E>>>(
        &self,
        first: impl Future<Output = Result<T, E>>,
        second: impl FnOnce() -> S,
    ) -> Result<T, E> {
        let started = Instant::now();
        let delay = self.begin();
        let mut first = std::pin::pin!(first);
        let answer = match tokio::time::timeout(delay, &mut first).await {
            Ok(answer) => answer,
            Err(_) if !self.spend() => first.await,
            Err(_) => match select(first, std::pin::pin!(second())).await {
                Either::Left((Ok(answer), _)) | Either::Right((Ok(answer), _)) => Ok(answer),
                Either::Left((Err(_), other)) => other.await,
                Either::Right((Err(_), other)) => other.await,
            },
        };
        if answer.is_ok() {
            self.learn(started.elapsed());
        }
        answer
    }

    /// Requests that were sent twice.
    pub(crate) fn sent(&self) -> u64 {
        self.state().sent
    }

    /// Counts a request; tells how long it may take.
    fn begin(&self) -> Duration {
        let mut state = self.state();
        state.tokens = (state.tokens + SHARE).min(BURST);
        if state.took.len() < FEWEST_SAMPLES {
            return FIRST_DELAY;
        }
        let mut took: Vec<Duration> = state.took.iter().copied().collect();
        took.sort_unstable();
        (took[took.len() * 9 / 10] * 2).clamp(DELAYS.0, DELAYS.1)
    }

    fn spend(&self) -> bool {
        let mut state = self.state();
        let may = state.tokens >= 1.0;
        if may {
            state.tokens -= 1.0;
            state.sent += 1;
        }
        may
    }

    fn learn(&self, took: Duration) {
        let mut state = self.state();
        if state.took.len() == SAMPLES {
            state.took.pop_front();
        }
        state.took.push_back(took);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use flightcache_proto::{Error, Result};

    use super::*;

    async fn after(ms: u64, answer: Result<u32>) -> Result<u32> {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        answer
    }

    fn failed() -> Result<u32> {
        Err(Error::internal("failed"))
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_asked_for_twice_and_the_faster_answers() {
        let hedges = Hedges::default();
        assert_eq!(hedges.race(after(200, Ok(1)), || after(0, Ok(2))).await, Ok(1), "in time");
        assert_eq!(hedges.sent(), 0);
        assert_eq!(hedges.race(after(10_000, Ok(1)), || after(5, Ok(2))).await, Ok(2));
        assert_eq!(hedges.race(after(260, Ok(1)), || after(50, Ok(2))).await, Ok(1), "still the faster");
        assert_eq!(hedges.sent(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_counts_once_both_have_failed() {
        let hedges = Hedges::default();
        assert_eq!(hedges.race(after(1, failed()), || after(0, Ok(2))).await, failed(), "at once: the caller knows what to do");
        assert_eq!(hedges.race(after(300, failed()), || after(500, Ok(2))).await, Ok(2));
        assert_eq!(hedges.race(after(900, Ok(1)), || after(5, failed())).await, Ok(1));
        assert_eq!(hedges.race(after(300, failed()), || after(5, failed())).await, failed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_usual_is_learned() {
        let hedges = Hedges::default();
        for _ in 0..FEWEST_SAMPLES {
            hedges.race(after(100, Ok(1)), || after(0, Ok(2))).await.unwrap();
        }
        let asked = Cell::new(None);
        let started = Instant::now();
        let second = || {
            asked.set(Some(started.elapsed()));
            after(0, Ok(2))
        };
        hedges.race(after(1_000, Ok(1)), second).await.unwrap();
        let asked = asked.get().unwrap().as_millis();
        assert!((200..=205).contains(&asked), "{asked} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_is_kept() {
        let hedges = Hedges::default();
        for _ in 0..1_000 {
            hedges.race(after(20_000, Ok(1)), || after(30_000, Ok(2))).await.unwrap();
        }
        let bound = BURST + 1_000.0 * SHARE;
        assert!((hedges.sent() as f64) <= bound && hedges.sent() as f64 > bound * 0.9, "{}", hedges.sent());
    }
}
