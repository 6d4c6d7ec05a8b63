//! Requests at their times, whether or not earlier ones have been answered.

use std::time::Duration;

use futures::StreamExt as _;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::paced::paced;

/// An answer, and when it was complete.
#[derive(Debug)]
pub struct Answered<T> {
    /// Position of the request.
    pub index: usize,
    /// From when the request was due to when its answer was complete: a late start counts.
    pub response: Duration,
    /// The answer.
    pub answer: T,
}

/// Asks the requests due at these times, in ascending order, counted from now. Answers come in the order of the requests.
///
/// Fails if a request panicked.
pub async fn play<T, F>(due: &[Duration], ask: impl Fn(usize) -> F, answered: impl Fn()) -> Result<Vec<Answered<T>>, JoinError>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut under_way = JoinSet::new();
    let mut answers = Vec::with_capacity(due.len());
    let mut dues = paced(Instant::now(), Vec::from(due).into_iter()).enumerate();
    loop {
        tokio::select! {
            // What is due goes first.
            biased;
            due = dues.next() => {
                let Some((index, due)) = due else { break };
                let asked = ask(index);
                under_way.spawn(async move {
                    let answer = asked.await;
                    Answered { index, response: due.elapsed(), answer }
                });
            }
            Some(answer) = under_way.join_next() => {
                answers.push(answer?);
                answered();
            }
        }
    }
    while let Some(answer) = under_way.join_next().await {
        answers.push(answer?);
        answered();
    }
    answers.sort_by_key(|answer| answer.index);
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    const STEP: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_slow_answer_delays_no_request() {
        let last_asked = Arc::new(Notify::new());
        let ask = |index| {
            let last_asked = Arc::clone(&last_asked);
            async move {
                // The first answer comes only after the last request.
                match index {
                    0 => last_asked.notified().await,
                    2 => last_asked.notify_one(),
                    _ => {}
                }
                index
            }
        };
        let due = [Duration::ZERO, STEP, 2 * STEP];
        let played = play(&due, ask, || ());
        let answers =
            tokio::time::timeout(Duration::from_secs(30), played).await.expect("the first answer was waited for").unwrap();
        assert_eq!(answers.iter().map(|answered| answered.answer).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(answers[0].response >= 2 * STEP, "{answers:?}");
    }

    #[tokio::test]
    async fn a_late_start_counts() {
        let ask = |index| async move {
            if index == 0 {
                // Holds up the only thread, and with it the start of the second request.
                std::thread::sleep(3 * STEP);
            }
        };
        let answers = play(&[Duration::ZERO, STEP], ask, || ()).await.unwrap();
        assert!(answers[1].response >= STEP, "{answers:?}");
    }

    #[tokio::test]
    async fn nothing_is_asked_before_its_time() {
        let start = Instant::now();
        let answers = play(&[STEP, 3 * STEP], |_| async move { start.elapsed() }, || ()).await.unwrap();
        assert!(answers[0].answer >= STEP && answers[1].answer >= 3 * STEP, "{answers:?}");
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let ask = |index| async move { assert_ne!(index, 1, "made to fail") };
        assert!(play(&[Duration::ZERO, Duration::ZERO], ask, || ()).await.unwrap_err().is_panic());
    }
}
