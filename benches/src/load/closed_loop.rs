//! What a server can do: workers that each wait for their answer before they ask again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::Instant;

use super::tally::Answer;

/// Answers a second that `workers` reach within about `duration`. Fails as the first request does that fails.
pub(super) async fn answers_per_s<A, E>(workers: usize, duration: Duration, ask: impl Fn(u64) -> A) -> Result<f64, E>
where
    A: Future<Output = Result<Answer, E>>,
{
    let (started, asked) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let work = |_| async {
        // Each asks at least once, so there is an answer to count.
        loop {
            ask(asked.fetch_add(1, Ordering::Relaxed)).await?;
            if started.elapsed() >= duration {
                return Ok(());
            }
        }
    };
    try_join_all((0..workers).map(work)).await?;
    Ok(asked.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}
