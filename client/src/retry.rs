//! When to try again, and the errors that decide it.

use std::error::Error as _;
use std::time::Duration;

use flightcache_proto::error::ERROR_KIND_METADATA;
use flightcache_proto::{Error, ErrorKind};
use tonic::{Code, Status};

/// Times a request is sent at most.
pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// The error a status stands for: by the kind the server states, or else by its code.
///
/// A status with a source was made here, not by the server: the connection broke.
pub(crate) fn from_status(status: &Status) -> Error {
    if let Some(kind) = stated_kind(status) {
        return Error::new(kind, status.message()).stated();
    }
    let kind = match status.code() {
        Code::Cancelled | Code::Unknown if status.source().is_some() => ErrorKind::Unavailable,
        code => ErrorKind::from_grpc_code(code as i32),
    };
    Error::new(kind, status.message())
}

/// The kind of error that a server of ours states.
fn stated_kind(status: &Status) -> Option<ErrorKind> {
    let stated = status.metadata().get(ERROR_KIND_METADATA)?.to_str().ok()?;
    ErrorKind::ALL.into_iter().find(|kind| kind.as_str() == stated)
}

/// Waits before attempt `attempt` (the second is 2): up to 200 ms, doubling, and 800 ms at most, with full jitter.
pub(crate) async fn back_off(attempt: u32) {
    let bound_ms = 50_u64 << attempt.min(4);
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..bound_ms))).await;
}

/// Sends a request that can safely be repeated, again where its error kind allows.
pub(crate) async fn retrying<T, F: Future<Output = Result<T, Error>>>(mut send: impl FnMut() -> F) -> Result<T, Error> {
    let mut attempt = 1;
    loop {
        match send().await {
            Err(error) if error.kind.is_retryable() && attempt < MAX_ATTEMPTS => {
                attempt += 1;
                back_off(attempt).await;
            }
            answer => return answer,
        }
    }
}
