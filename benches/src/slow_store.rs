//! A store with the latency and bandwidth of a distant one, injected in front of any other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::read_clock::ReadClock;

/// Delays each read by `latency`, and lets `bytes_per_second` through, all readers together. Counts both.
#[derive(Debug)]
pub struct SlowStore {
    inner: Arc<dyn ObjectStore>,
    latency: Duration,
    bytes_per_second: Option<u64>,
    /// When the link is free again.
    link: Arc<Mutex<Instant>>,
    counts: Arc<Counts>,
    clock: ReadClock,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl SlowStore {
    pub fn new(inner: Arc<dyn ObjectStore>, latency: Duration, bytes_per_second: Option<u64>) -> Self {
        let link = Arc::new(Mutex::new(Instant::now()));
        Self { inner, latency, bytes_per_second, link, counts: Arc::default(), clock: ReadClock::default() }
    }

    /// The same store over the same link, with the same counts, and a clock of its own.
    #[must_use]
    pub fn view(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            latency: self.latency,
            bytes_per_second: self.bytes_per_second,
            link: Arc::clone(&self.link),
            counts: Arc::clone(&self.counts),
            clock: ReadClock::default(),
        }
    }

    /// Requests and bytes since the last call.
    pub fn take_counts(&self) -> (u64, u64) {
        (self.counts.requests.swap(0, Ordering::Relaxed), self.counts.bytes.swap(0, Ordering::Relaxed))
    }

    /// Time during which at least one read through this view was under way.
    pub fn reading(&self) -> Duration {
        self.clock.elapsed()
    }
}

impl fmt::Display for SlowStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} behind {:?}", self.inner, self.latency)
    }
}

#[async_trait]
impl ObjectStore for SlowStore {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let reading = self.clock.start();
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.latency).await;
        let is_head = options.head;
        let mut result = self.inner.get_opts(location, options).await?;
        // `PrefixStore` answers with the path in the store below it.
        result.meta.location = location.clone();
        if is_head {
            return Ok(result);
        }
        let len = result.range.end - result.range.start;
        self.counts.bytes.fetch_add(len, Ordering::Relaxed);
        let (meta, range, attributes) = (result.meta.clone(), result.range.clone(), result.attributes.clone());
        let transfer =
            self.bytes_per_second.map(|bytes_per_second| Duration::from_secs_f64(len as f64 / bytes_per_second as f64));
        let link = Arc::clone(&self.link);
        let body = async move {
            let _reading = reading;
            let bytes = result.bytes().await?;
            if let Some(transfer) = transfer {
                let arrives = {
                    let mut free_at = link.lock().await;
                    *free_at = (*free_at).max(Instant::now()) + transfer;
                    *free_at
                };
                tokio::time::sleep_until(arrives).await;
            }
            Ok(bytes)
        };
        Ok(GetResult { payload: GetResultPayload::Stream(body.into_stream().boxed()), meta, range, attributes })
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}
