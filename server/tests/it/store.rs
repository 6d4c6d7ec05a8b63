//! An object store for tests.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use tokio::sync::Semaphore;

/// What happens to a read.
pub(crate) enum Fate {
    Serve,
    /// Answered as by a store that went on failing after all retries.
    Fail,
    /// The body ends early.
    Truncate,
    /// The object is replaced first.
    Overwrite(Bytes),
    /// The object is deleted first.
    Delete,
}

type Script = Box<dyn FnMut(&GetOptions, usize) -> Fate + Send>;

/// A store in memory, whose reads are counted and follow a script.
pub(crate) struct TestStore {
    inner: InMemory,
    reads: Mutex<Vec<Option<GetRange>>>,
    script: Mutex<Option<Script>>,
    /// Reads wait for a permit.
    pub(crate) gate: Semaphore,
    has_versions: bool,
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let gate = Semaphore::new(Semaphore::MAX_PERMITS);
        Self { inner: InMemory::new(), reads: Mutex::default(), script: Mutex::default(), gate, has_versions: true }
    }

    /// A store that states no versions.
    pub(crate) fn without_versions() -> Self {
        Self { has_versions: false, ..Self::new() }
    }

    pub(crate) async fn put(&self, key: &str, bytes: impl Into<Bytes>) {
        self.inner.put(&Path::from(key), PutPayload::from(bytes.into())).await.unwrap();
    }

    /// Decides the fate of each read from now on; the number counts them from 0.
    pub(crate) fn script(&self, script: impl FnMut(&GetOptions, usize) -> Fate + Send + 'static) {
        self.reads.lock().unwrap().clear();
        *self.script.lock().unwrap() = Some(Box::new(script));
    }

    /// Reads since the last call.
    pub(crate) fn take_reads(&self) -> Vec<Option<GetRange>> {
        std::mem::take(&mut *self.reads.lock().unwrap())
    }

    /// Bytes asked for by ranges.
    pub(crate) fn bytes_of(reads: &[Option<GetRange>]) -> u64 {
        reads.iter().map(|read| if let Some(GetRange::Bounded(Range { start, end })) = read { end - start } else { 0 }).sum()
    }
}

impl fmt::Debug for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestStore")
    }
}

impl fmt::Display for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestStore")
    }
}

#[async_trait]
impl ObjectStore for TestStore {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let number = {
            let mut reads = self.reads.lock().unwrap();
            reads.push(options.range.clone());
            reads.len() - 1
        };
        let _open = self.gate.acquire().await.unwrap();
        let fate = self.script.lock().unwrap().as_mut().map_or(Fate::Serve, |script| script(&options, number));
        match &fate {
            Fate::Fail => {
                return Err(object_store::Error::Generic { store: "test", source: "503 Slow Down, after 10 retries".into() });
            }
            Fate::Overwrite(bytes) => drop(self.inner.put(location, PutPayload::from(bytes.clone())).await?),
            Fate::Delete => self.inner.delete(location).await?,
            Fate::Serve | Fate::Truncate => {}
        }
        let mut result = self.inner.get_opts(location, options).await?;
        if !self.has_versions {
            result.meta.e_tag = None;
        }
        if matches!(fate, Fate::Truncate) {
            let meta = result.meta.clone();
            let (range, attributes) = (result.range.clone(), result.attributes.clone());
            let bytes = result.bytes().await?;
            let half = bytes.slice(..bytes.len() / 2);
            let payload = object_store::GetResultPayload::Stream(Box::pin(futures::stream::once(async { Ok(half) })));
            return Ok(GetResult { payload, meta, range, attributes });
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

/// For sources.
pub(crate) fn shared(store: &Arc<TestStore>) -> Arc<dyn ObjectStore> {
    Arc::clone(store) as Arc<dyn ObjectStore>
}
