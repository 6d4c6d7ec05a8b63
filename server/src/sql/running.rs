//! Statements that are being answered, to be cancelled by others than those who read the answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// By the id in their handles. Several answers may be read of one handle.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<HashMap<Vec<u8>, (CancellationToken, usize)>>);

/// One answer. It is known until it is dropped.
pub(super) struct Known {
    running: Arc<Running>,
    id: Vec<u8>,
    token: CancellationToken,
}

impl Running {
    /// Makes an answer known by its id; one without an id is nobody's to cancel.
    pub(super) fn begin(self: &Arc<Self>, id: &[u8]) -> Known {
        let token = if id.is_empty() {
            CancellationToken::new()
        } else {
            let mut running = self.lock();
            let (token, answers) = running.entry(id.to_owned()).or_default();
            *answers += 1;
            token.clone()
        };
        Known { running: Arc::clone(self), id: id.to_owned(), token }
    }

    /// Cancels the answers of an id. Returns whether there were any.
    pub(super) fn cancel(&self, id: &[u8]) -> bool {
        let found = self.lock().get(id).map(|(token, _)| token.clone());
        found.inspect(CancellationToken::cancel).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, (CancellationToken, usize)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Is cancelled when the statement is.
    pub(super) fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Waits until it is cancelled.
    pub(super) async fn cancelled(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        if let Some((_, answers)) = running.get_mut(&self.id) {
            *answers -= 1;
            if *answers == 0 {
                running.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn all_answers_of_an_id_are_cancelled() {
        let running = Arc::new(Running::default());
        let (one, two, other) = (running.begin(b"a"), running.begin(b"a"), running.begin(b"b"));
        let nameless = running.begin(b"");
        assert!(running.cancel(b"a") && !running.cancel(b"c") && !running.cancel(b""));
        assert!(one.cancelled().now_or_never().is_some() && two.cancelled().now_or_never().is_some());
        assert!(other.cancelled().now_or_never().is_none() && nameless.cancelled().now_or_never().is_none());
        drop(one);
        assert!(running.cancel(b"a"), "one is left");
        drop((two, other, nameless));
        assert!(!running.cancel(b"a") && running.lock().is_empty());
    }
}
