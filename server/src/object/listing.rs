//! Listings of prefixes and globs, cached for a bounded time.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use flightcache_proto::{Error, ErrorKind, Result, Version};
use futures::TryStreamExt as _;
use lru::LruCache;
use tokio::time::Instant;

use super::fetch::{ObjectRef, store_error};
use super::source::Pattern;

/// Objects one prefix or glob may stand for.
const MAX_OBJECTS: usize = 100_000;
/// Listings kept.
const MAX_LISTINGS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// One object of a listing.
#[derive(Clone, Debug)]
pub struct ListedObject {
    /// The object.
    pub object: ObjectRef,
    /// The version the listing stated.
    pub version: Option<Version>,
}

/// A listing: the objects, sorted by URL, and when the store was asked.
#[derive(Debug)]
pub struct Listing {
    /// The objects, sorted by URL.
    pub objects: Vec<ListedObject>,
    /// When the request was sent: what the listing says held at that time or later.
    pub asked_at: Instant,
}

/// Listings cached by request URL.
///
/// The lock guards map operations only, never I/O.
pub struct Listings {
    cached: Mutex<LruCache<String, Arc<Listing>>>,
}

impl Default for Listings {
    fn default() -> Self {
        Self { cached: Mutex::new(LruCache::new(MAX_LISTINGS)) }
    }
}

impl Listings {
    /// The objects of a pattern, from the cache where the source's freshness allows.
    pub async fn list(&self, pattern: &Pattern) -> Result<Arc<Listing>> {
        let ttl = pattern.source.freshness().listing_ttl();
        let now = Instant::now();
        if let Some(listing) = self.lock().get(&pattern.url)
            && now.duration_since(listing.asked_at) < ttl
        {
            return Ok(Arc::clone(listing));
        }
        let listing = Arc::new(list(pattern, now).await?);
        if !ttl.is_zero() {
            self.lock().put(pattern.url.clone(), Arc::clone(&listing));
        }
        Ok(listing)
    }

    /// Forgets one listing. Returns whether there was one.
    pub fn forget(&self, url: &str) -> bool {
        self.lock().pop(url).is_some()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<String, Arc<Listing>>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn list(pattern: &Pattern, asked_at: Instant) -> Result<Listing> {
    let mut objects = Vec::new();
    let prefix = (!pattern.prefix.as_ref().is_empty()).then_some(&pattern.prefix);
    let mut metas = pattern.source.store.list(prefix);
    while let Some(meta) = metas.try_next().await.map_err(|e| store_error(&pattern.url, "listing", &e))? {
        let object = pattern.source.object(meta.location);
        let wanted = match &pattern.glob {
            Some(glob) => glob.is_match(object.url()),
            None => is_data_file(&object.url()[pattern.url.len().min(object.url().len())..]),
        };
        if wanted && object.url().starts_with(pattern.source.root()) && meta.size > 0 {
            objects.push(ListedObject { object, version: Version::new(meta.e_tag.as_deref(), meta.version.as_deref()) });
        }
        if objects.len() > MAX_OBJECTS {
            let message = format!("{}: more than {MAX_OBJECTS} objects; use a narrower prefix", pattern.url);
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
    }
    if objects.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, format!("{}: no Parquet objects there", pattern.url)));
    }
    objects.sort_by(|a, b| a.object.url().cmp(b.object.url()));
    Ok(Listing { objects, asked_at })
}

/// Under a prefix, Parquet files count, except in hidden directories (`_delta_log`, `.tmp`) or with hidden names.
fn is_data_file(key: &str) -> bool {
    let hidden = |segment: &str| segment.starts_with('.') || segment.starts_with('_') && !segment.contains('=');
    key.ends_with(".parquet") && !key.split('/').any(hidden)
}

#[cfg(test)]
mod tests {
    use super::is_data_file;

    #[test]
    fn hidden_and_foreign_files_do_not_count() {
        assert!(is_data_file("y=1/part-0.snappy.parquet"));
        assert!(is_data_file("_k=1/a.parquet"));
        for key in ["_SUCCESS", "_delta_log/1.parquet", ".tmp/a.parquet", "a.csv", "y=1/_metadata.parquet"] {
            assert!(!is_data_file(key), "{key}");
        }
    }
}
