//! The object-store roots the operator declared. Nothing outside them can be read.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use flightcache_proto::{Error, ErrorKind, Result};
use globset::{GlobBuilder, GlobMatcher};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};

use super::connector::CountingConnector;
use super::fetch::ObjectRef;
use super::freshness::Freshness;
use super::url::{RequestUrl, UrlKind};
use crate::admin::Metrics;
use crate::settings::{Settings, SourceSettings};

/// One declared root.
pub struct Source {
    /// Canonical URL, ending in `/`.
    root: String,
    /// `s3://bucket/` or `file:///`: what stands before an object's key.
    base: String,
    pub(super) store: Arc<dyn ObjectStore>,
    freshness: Freshness,
    /// For `file://`: the root with symbolic links resolved, which objects may not leave.
    pub(super) local_root: Option<PathBuf>,
}

/// What a request URL stands for.
pub enum Target {
    /// One object.
    Object(ObjectRef),
    /// All objects under a prefix, or that match a glob.
    Many(Pattern),
}

/// A prefix or glob within a source.
pub struct Pattern {
    pub(super) source: Arc<Source>,
    /// The request URL: the key of the listing cache.
    pub(super) url: String,
    /// Where to list.
    pub(super) prefix: Path,
    /// Full URLs must match it; `None` for a prefix.
    pub(super) glob: Option<GlobMatcher>,
}

/// All declared roots.
#[derive(Clone, Default)]
pub struct Sources {
    sources: Vec<Arc<Source>>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({}, {})", self.root, self.freshness)
    }
}

impl Source {
    /// Canonical root URL, ending in `/`.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The stated bound on staleness.
    pub fn freshness(&self) -> Freshness {
        self.freshness
    }

    /// The object at a store path.
    pub(super) fn object(self: &Arc<Self>, path: Path) -> ObjectRef {
        let url = format!("{}{path}", self.base).into();
        ObjectRef::new(Arc::clone(self), path, url)
    }
}

impl Pattern {
    /// Whether an object with this URL could belong to it. No I/O.
    pub fn matches(&self, url: &str) -> bool {
        match &self.glob {
            Some(glob) => glob.is_match(url),
            None => url.starts_with(&self.url),
        }
    }
}

impl Sources {
    /// Opens every source of the settings. Makes no request.
    pub fn from_settings(settings: &Settings, metrics: &Metrics) -> Result<Self> {
        let mut sources = Self::default();
        for source in &settings.sources {
            let (store, local_root) = open(source, settings, metrics)?;
            sources.add(&source.url, store, source.freshness.unwrap_or(settings.freshness), local_root)?;
        }
        Ok(sources)
    }

    /// Adds a root served by a store of the caller's, whose paths are the keys after `s3://bucket/` (or `file:///`).
    pub fn with_store(mut self, root: &str, store: Arc<dyn ObjectStore>, freshness: Freshness) -> Result<Self> {
        self.add(root, store, freshness, None)?;
        Ok(self)
    }

    fn add(&mut self, url: &str, store: Arc<dyn ObjectStore>, freshness: Freshness, local_root: Option<PathBuf>) -> Result<()> {
        let root = if url.ends_with('/') { url.to_owned() } else { format!("{url}/") };
        if RequestUrl::parse(&root)?.kind != UrlKind::Prefix {
            return Err(Error::invalid(format!("source {url:?} is not a plain prefix")));
        }
        let base = match root.strip_prefix("s3://") {
            // `parse` saw to it that there is a bucket and that the root ends in `/`.
            Some(rest) => format!("s3://{}/", rest.split('/').next().unwrap_or_default()),
            None => "file:///".to_owned(),
        };
        self.sources.push(Arc::new(Source { root, base, store, freshness, local_root }));
        // The longest root wins, so that a part of a bucket can have a freshness of its own.
        self.sources.sort_by_key(|source| std::cmp::Reverse(source.root.len()));
        Ok(())
    }

    /// All roots.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.sources.iter()
    }

    /// What a URL stands for; denied, without any I/O, when it is outside every source.
    pub fn resolve(&self, url: &str) -> Result<Target> {
        let request = RequestUrl::parse(url)?;
        let scope = if request.kind == UrlKind::Glob { request.literal_prefix() } else { url };
        let source = self
            .sources
            .iter()
            .find(|source| scope.starts_with(&source.root))
            .ok_or_else(|| Error::new(ErrorKind::Denied, format!("{url:?} is outside the declared sources")))?;
        let path = |text: &str| {
            Path::parse(&text[source.base.len()..]).map_err(|e| Error::invalid(format!("{url:?} is not a valid object key: {e}")))
        };
        if request.kind == UrlKind::Object {
            return Ok(Target::Object(source.object(path(url)?)));
        }
        let glob = (request.kind == UrlKind::Glob)
            .then(|| {
                let glob = GlobBuilder::new(url).literal_separator(true).build();
                let glob = glob.map_err(|e| Error::invalid(format!("{url:?} is not a valid glob: {e}")))?;
                // The library trusts its own translation to be small enough to compile.
                std::panic::catch_unwind(|| glob.compile_matcher())
                    .map_err(|_| Error::invalid(format!("{url:?} is too large a glob")))
            })
            .transpose()?;
        Ok(Target::Many(Pattern { source: Arc::clone(source), url: url.to_owned(), prefix: path(scope)?, glob }))
    }

    /// The object at exactly this URL; prefixes and globs are refused.
    pub fn object(&self, url: &str) -> Result<ObjectRef> {
        match self.resolve(url)? {
            Target::Object(object) => Ok(object),
            Target::Many(_) => Err(Error::invalid(format!("{url:?} is not one object"))),
        }
    }
}

fn open(source: &SourceSettings, settings: &Settings, metrics: &Metrics) -> Result<(Arc<dyn ObjectStore>, Option<PathBuf>)> {
    let failed = |e: String| Error::invalid(format!("source {}: {e}", source.url));
    if let Some(root) = source.url.strip_prefix("file://") {
        let local_root = std::fs::canonicalize(root).map_err(|e| failed(e.to_string()))?;
        return Ok((Arc::new(LocalFileSystem::new()), Some(local_root)));
    }
    let bucket = source.url.strip_prefix("s3://").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let retry = RetryConfig { max_retries: settings.store_retries, ..RetryConfig::default() };
    let timeout = humantime::format_duration(settings.store_timeout).to_string();
    let mut builder = AmazonS3Builder::from_env()
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), timeout)
        .with_retry(retry)
        .with_bucket_name(bucket)
        .with_http_connector(CountingConnector {
            requests: metrics.store_http_requests.clone(),
            retried: metrics.store_retries.clone(),
        });
    for (key, value) in &source.options {
        let key: AmazonS3ConfigKey = key.parse().map_err(|_| failed(format!("unknown S3 option `{key}`")))?;
        builder = builder.with_config(key, value);
    }
    let store = builder.build().map_err(|e| failed(e.to_string()))?;
    Ok((Arc::new(store), None))
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn sources() -> Sources {
        let store = || Arc::new(InMemory::new());
        Sources::default()
            .with_store("s3://lake/public/", store(), Freshness::Always)
            .unwrap()
            .with_store("s3://lake/public/frozen", store(), Freshness::Immutable)
            .unwrap()
    }

    #[test]
    fn only_what_lies_inside_resolves() {
        let sources = sources();
        let object = sources.object("s3://lake/public/a/t.parquet").unwrap();
        assert_eq!(object.url(), "s3://lake/public/a/t.parquet");
        assert_eq!(object.key(), "public/a/t.parquet");
        for url in [
            "s3://lake/private/t",
            "s3://lake/publicity/t",
            "s3://other/public/t",
            "file:///etc/passwd",
            "s3://lake/*/t",
            "s3://lake/public",
        ] {
            assert_eq!(sources.resolve(url).map(|_| ()).unwrap_err().kind, ErrorKind::Denied, "{url}");
        }
        assert!(matches!(sources.resolve("s3://lake/public/**/*.parquet"), Ok(Target::Many(_))));
        assert!(sources.object("s3://lake/public/").is_err());
    }

    #[test]
    fn the_longest_root_decides_freshness() {
        let object = sources().object("s3://lake/public/frozen/t.parquet").unwrap();
        assert_eq!(object.source().freshness(), Freshness::Immutable);
    }
}
