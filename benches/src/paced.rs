//! The clock of an open loop.

use std::thread;
use std::time::Duration;

use futures::StreamExt as _;
use futures::channel::mpsc;
use tokio::time::Instant;

/// The clock gave up before all instants were told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the clock stopped before all requests were sent")]
pub struct Stopped;

/// Instants, each told once it is reached.
#[derive(Debug)]
pub(crate) struct Paced {
    /// `None` after the last: a channel that closes without it was left by a thread that gave up.
    instants: mpsc::UnboundedReceiver<Option<Instant>>,
}

impl Paced {
    /// The next instant; `None` after the last. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Result<Option<Instant>, Stopped> {
        self.instants.next().await.ok_or(Stopped)
    }
}

/// Each instant of `due`, which counts from `started`, once it is reached.
///
/// A thread of its own sleeps until then: Tokio's timer counts in milliseconds, which is as long as an answer takes.
pub(crate) fn paced(started: Instant, due: impl Iterator<Item = Duration> + Send + 'static) -> Paced {
    let (sender, instants) = mpsc::unbounded();
    // It ends with the times, or soon after nobody listens any more.
    thread::spawn(move || {
        for due in due.map(|due| started + due) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.unbounded_send(Some(due)).is_err() {
                return;
            }
        }
        // Nobody may listen.
        let _ = sender.unbounded_send(None);
    });
    Paced { instants }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(5);

    #[tokio::test]
    async fn all_instants_come_in_order_and_not_before_their_time() {
        let started = Instant::now();
        let mut paced = paced(started, [Duration::ZERO, STEP, STEP, 2 * STEP].into_iter());
        for due in [Duration::ZERO, STEP, STEP, 2 * STEP] {
            let instant = paced.next().await.unwrap().unwrap();
            assert_eq!(instant, started + due);
            assert!(Instant::now() >= instant);
        }
        assert_eq!(paced.next().await, Ok(None));
    }

    #[tokio::test]
    async fn a_clock_that_gives_up_is_an_error_and_no_end() {
        let due = (0..3).map(|request| if request < 2 { STEP } else { panic!("made to fail") });
        let mut paced = paced(Instant::now(), due);
        assert!(paced.next().await.unwrap().is_some() && paced.next().await.unwrap().is_some());
        assert_eq!(paced.next().await, Err(Stopped));
    }
}
