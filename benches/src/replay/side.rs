//! What all ways to answer a request have in common.

use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::error::DataFusionError;
use parquet::errors::ParquetError;
use tokio::task::JoinError;

/// What a request reads: objects, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    pub objects: Vec<ObjectRead>,
}

/// What a request reads of one object: columns, of all its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectRead {
    /// Relative to where the data lies.
    pub name: String,
    /// `None` for all.
    pub columns: Option<Vec<String>>,
}

impl Read {
    /// The names of its objects, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.objects.iter().map(|object| object.name.as_str())
    }
}

/// Who opens the connections to a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Each request, with a client of its own, as in the original measurements.
    PerRequest,
    /// So many clients, with their connections and routes, in turn.
    Kept(NonZeroUsize),
}

impl Clients {
    /// Clients that all requests share.
    pub const SHARED: Self = Self::Kept(NonZeroUsize::MIN);
}

impl FromStr for Clients {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "per-request" => Ok(Self::PerRequest),
            "shared" => Ok(Self::SHARED),
            _ => text
                .parse()
                .map(Self::Kept)
                .map_err(|_| format!("{text:?} is neither per-request, shared, nor a number of clients")),
        }
    }
}

/// Which of several is next.
#[derive(Debug)]
pub struct InTurn<T> {
    all: Vec<T>,
    next: AtomicUsize,
}

impl<T> InTurn<T> {
    /// All of them, the first one first.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(all: Vec<T>) -> Self {
        assert!(!all.is_empty(), "nobody's turn");
        Self { all, next: AtomicUsize::new(0) }
    }

    pub fn next(&self) -> &T {
        &self.all[self.next.fetch_add(1, Ordering::Relaxed) % self.all.len()]
    }

    pub fn first(&self) -> &T {
        &self.all[0]
    }
}

/// What a request got, and where its time went. The stages do not overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub rows: u64,
    /// Reading from the store.
    pub fetch: Duration,
    /// Parquet to Arrow.
    pub decode: Duration,
    /// The server's time outside the other two.
    pub server: Duration,
    /// What was looked up in a cache: column chunks, or whole objects.
    pub hits: u64,
    pub misses: u64,
}

impl Answer {
    /// Share of the look-ups that hit, 0 to 1; 0 without any.
    pub fn hit_share(&self) -> f64 {
        let lookups = self.hits + self.misses;
        if lookups == 0 { 0.0 } else { self.hits as f64 / lookups as f64 }
    }

    /// The same with its stages shrunk, all alike, to what took `elapsed` together, if they are sums over concurrent work.
    #[must_use]
    pub fn within(self, elapsed: Duration) -> Self {
        let sum = self.fetch + self.decode + self.server;
        if sum <= elapsed {
            return self;
        }
        let factor = elapsed.as_secs_f64() / sum.as_secs_f64();
        let [fetch, decode, server] = [self.fetch, self.decode, self.server].map(|stage| stage.mul_f64(factor));
        Self { fetch, decode, server, ..self }
    }
}

/// What reached the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    pub requests: u64,
    pub bytes: u64,
}

impl From<(u64, u64)> for StoreCounts {
    fn from((requests, bytes): (u64, u64)) -> Self {
        Self { requests, bytes }
    }
}

/// Why a request, or something else that was asked of a side, failed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("DataFusion: {0}")]
    DataFusion(#[from] DataFusionError),
    #[error("HTTP: {}", chain(.0))]
    Http(#[from] reqwest::Error),
    #[error("HTTP {status}: {body}")]
    Refused { status: u16, body: String },
    #[error("not a URL: {0}")]
    Url(#[from] url::ParseError),
    #[error("Parquet: {0}")]
    Parquet(#[from] ParquetError),
    #[error("Flightcache: {0}")]
    Flightcache(#[from] flightcache::Error),
    #[error("gave up: {0}")]
    GaveUp(#[from] JoinError),
}

/// Its message names the URL only; why is in its sources.
fn chain(error: &reqwest::Error) -> String {
    let sources = std::iter::successors(std::error::Error::source(error), |error| error.source());
    std::iter::once(error.to_string()).chain(sources.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

/// One way to answer requests.
#[async_trait]
pub trait Side: Send + Sync {
    /// As tables and figures call it.
    fn name(&self) -> &'static str;

    /// Answers; returns when the last row has been received.
    async fn ask(&self, read: &Read) -> Result<Answer, AskError>;

    /// Forgets these objects, if it caches.
    async fn empty(&self, objects: &[String]) -> Result<(), AskError>;

    /// What reached the store since the last call.
    async fn take_counts(&self) -> Result<StoreCounts, AskError>;

    /// Stops what runs for this side.
    async fn stop(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_fit_into_the_time_a_request_took() {
        let ms = Duration::from_millis;
        let summed = Answer { fetch: ms(60), decode: ms(30), server: ms(10), ..Answer::default() };
        assert_eq!(summed.within(ms(100)), summed);
        let fitted = summed.within(ms(50));
        assert_eq!([fitted.fetch, fitted.decode, fitted.server], [ms(30), ms(15), ms(5)]);
        assert_eq!(summed.within(Duration::ZERO).fetch, Duration::ZERO);
    }

    #[test]
    fn a_hit_share_is_of_all_lookups() {
        assert!(Answer { hits: 3, misses: 1, ..Answer::default() }.hit_share() > 0.74);
        assert!(Answer::default().hit_share().abs() < f64::EPSILON);
    }
}
