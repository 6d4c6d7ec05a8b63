//! Single flight: one load a cold key, whoever asks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use futures::FutureExt as _;
use futures::future::Shared;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::entry::{Entry, Pinned};
use super::lookup::{Cache, CacheKey};
use super::reserve::Reservation;

/// How a load ended without a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlightError<E> {
    /// The load failed.
    Failed(E),
    /// The load ended without an answer: its task panicked, was never started, or its runtime shut down.
    Abandoned,
}

/// The task that several permits' loads share. Aborted when the last flight that came of it is dropped.
#[derive(Clone, Debug, Default)]
pub struct LoadGroup {
    task: Arc<OnceLock<AbortOnDropHandle<()>>>,
}

impl LoadGroup {
    /// A group whose task is still to be started.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts the task, on the current Tokio runtime. It owns the permits, and must not own flights of this group, which
    /// would keep it alive. Once all its permits are answered it may be aborted at its next await.
    pub fn spawn(&self, load: impl Future<Output = ()> + Send + 'static) {
        let handle = AbortOnDropHandle::new(tokio::spawn(load));
        // A second task would be dropped, and with it its permits: waiters then see an abandoned load.
        let _ = self.task.set(handle);
    }
}

type Answer<V, E> = Result<Pinned<V>, E>;

#[derive(Debug)]
struct Inner<V, E> {
    answer: Shared<oneshot::Receiver<Answer<V, E>>>,
    _group: LoadGroup,
}

/// A load under way. Holding it keeps the load alive.
#[derive(Debug)]
pub struct Flight<V, E>(Arc<Inner<V, E>>);

impl<V, E> Clone for Flight<V, E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V, E: Clone> Flight<V, E> {
    /// The value, once it is loaded.
    pub async fn wait(self) -> Result<Pinned<V>, FlightError<E>> {
        match self.0.answer.clone().await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(FlightError::Failed(error)),
            Err(_) => Err(FlightError::Abandoned),
        }
    }
}

/// What a partition knows of a load under way.
#[derive(Debug)]
pub(super) struct Record<V, E> {
    flight: Weak<Inner<V, E>>,
    populate: Arc<AtomicBool>,
}

impl<V, E> Record<V, E> {
    /// The flight, unless everybody has left it.
    pub(super) fn join(&self, populate: bool) -> Option<Flight<V, E>> {
        let flight = self.flight.upgrade()?;
        if populate {
            self.populate.store(true, Ordering::Release);
        }
        Some(Flight(flight))
    }

    pub(super) fn wants_to_stay(&self) -> bool {
        self.populate.load(Ordering::Acquire)
    }

    fn belongs_to(&self, permit: &Arc<AtomicBool>) -> bool {
        Arc::ptr_eq(&self.populate, permit)
    }
}

/// What an entry is to others, and what its uses count for so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Loaded from outside.
    Source(u32),
    /// Made of another entry, which was used again or not.
    Derived { uses: u32, is_again: bool },
}

/// The right and duty to load one key. Dropping it unused abandons the load.
pub struct Permit<K: CacheKey, V: Send + Sync + 'static, E: Clone + Send + Sync + 'static> {
    cache: Arc<Cache<K, V, E>>,
    key: K,
    request: u64,
    role: Role,
    /// Shared with the record, whose identity it also is.
    populate: Arc<AtomicBool>,
    answer: Option<oneshot::Sender<Answer<V, E>>>,
}

impl<K: CacheKey, V: Send + Sync + 'static, E: Clone + Send + Sync + 'static> Permit<K, V, E> {
    pub(super) fn new(
        cache: &Arc<Cache<K, V, E>>,
        key: K,
        request: u64,
        role: Role,
        populate: bool,
        group: &LoadGroup,
    ) -> (Self, Flight<V, E>, Record<V, E>) {
        let (sender, receiver) = oneshot::channel();
        let flight = Flight(Arc::new(Inner { answer: receiver.shared(), _group: group.clone() }));
        let populate = Arc::new(AtomicBool::new(populate));
        let record = Record { flight: Arc::downgrade(&flight.0), populate: Arc::clone(&populate) };
        let permit = Self { cache: Arc::clone(cache), key, request, role, populate, answer: Some(sender) };
        (permit, flight, record)
    }

    /// The key to load.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Hands the value to everyone who waits, and to the cache if it is wanted there and fits.
    ///
    /// The reservation, if any, is exchanged for the weight in one step: at no moment do both count. A weight beyond it
    /// may exceed the limit until as much is evicted, which is done before this returns, as far as it helps.
    pub fn complete(mut self, value: V, weight_bytes: u64, reservation: impl Into<Option<Reservation>>) -> Pinned<V> {
        let entry = Arc::new(Entry::detached(value, weight_bytes, reservation.into(), &self.cache.budget));
        self.cache.admit(&self.key, &entry, self.request, self.role, |record| record.belongs_to(&self.populate));
        if let Some(answer) = self.answer.take() {
            // Nobody waits any more: then the value is in the cache, or gone.
            let _ = answer.send(Ok(Arc::clone(&entry)));
        }
        entry
    }

    /// Tells everyone who waits that the load failed. Nothing stays behind.
    pub fn fail(mut self, error: E) {
        self.forget();
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(Err(error));
        }
    }

    fn forget(&self) {
        self.cache.forget_record(&self.key, |record| record.belongs_to(&self.populate));
    }
}

impl<K: CacheKey, V: Send + Sync + 'static, E: Clone + Send + Sync + 'static> Drop for Permit<K, V, E> {
    fn drop(&mut self) {
        if self.answer.is_some() {
            self.forget();
        }
    }
}
