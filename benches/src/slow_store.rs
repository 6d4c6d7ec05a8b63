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

/// Delays each read by `latency`, and lets `bytes_per_second` through, all readers together. Counts both.
#[derive(Debug)]
pub struct SlowStore {
    inner: Arc<dyn ObjectStore>,
    latency: Duration,
    bytes_per_second: Option<u64>,
    /// When the link is free again.
    link: Arc<Mutex<Instant>>,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl SlowStore {
    pub fn new(inner: Arc<dyn ObjectStore>, latency: Duration, bytes_per_second: Option<u64>) -> Self {
        let link = Arc::new(Mutex::new(Instant::now()));
        Self { inner, latency, bytes_per_second, link, requests: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Requests and bytes since the last call.
    pub fn take_counts(&self) -> (u64, u64) {
        (self.requests.swap(0, Ordering::Relaxed), self.bytes.swap(0, Ordering::Relaxed))
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
        self.requests.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.latency).await;
        let is_head = options.head;
        let mut result = self.inner.get_opts(location, options).await?;
        if is_head {
            return Ok(result);
        }
        let len = result.range.end - result.range.start;
        self.bytes.fetch_add(len, Ordering::Relaxed);
        if let Some(bytes_per_second) = self.bytes_per_second {
            let (meta, range, attributes) = (result.meta.clone(), result.range.clone(), result.attributes.clone());
            let link = Arc::clone(&self.link);
            let paced = async move {
                let bytes = result.bytes().await?;
                let arrives = {
                    let mut free_at = link.lock().await;
                    *free_at =
                        (*free_at).max(Instant::now()) + Duration::from_secs_f64(bytes.len() as f64 / bytes_per_second as f64);
                    *free_at
                };
                tokio::time::sleep_until(arrives).await;
                Ok(bytes)
            };
            result = GetResult { payload: GetResultPayload::Stream(paced.into_stream().boxed()), meta, range, attributes };
        }
        Ok(result)
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
