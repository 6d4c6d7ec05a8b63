//! The clock of an open loop.

use std::thread;
use std::time::Duration;

use futures::channel::mpsc;
use tokio::time::Instant;

/// Each instant of `due`, which counts from `started`, once it is reached.
///
/// A thread of its own sleeps until then: Tokio's timer counts in milliseconds, which is as long as an answer takes.
pub(crate) fn paced(started: Instant, due: impl Iterator<Item = Duration> + Send + 'static) -> mpsc::UnboundedReceiver<Instant> {
    let (sender, receiver) = mpsc::unbounded();
    // It ends with the times, or soon after nobody listens any more.
    thread::spawn(move || {
        for due in due.map(|due| started + due) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.unbounded_send(due).is_err() {
                return;
            }
        }
    });
    receiver
}
