//! Objects by name within a bound on their bytes; the one that was used longest ago goes first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::OnceCell;

/// The objects that one node holds, and those that it is loading.
#[derive(Debug)]
pub(super) struct Cache {
    capacity_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    objects: LruCache<String, Bytes>,
    bytes: u64,
    loading: HashMap<String, Arc<OnceCell<Bytes>>>,
}

impl Cache {
    pub(super) fn new(capacity_bytes: u64) -> Self {
        let state = State { objects: LruCache::unbounded(), bytes: 0, loading: HashMap::new() };
        Self { capacity_bytes, state: Mutex::new(state) }
    }

    /// An object, and whether it was here. One that is not is loaded once, whoever asks; if a load fails or is given up, the
    /// next of those who wait for it tries.
    pub(super) async fn get<E>(&self, key: &str, load: impl AsyncFnOnce() -> Result<Bytes, E>) -> Result<(Bytes, bool), E> {
        let loading = {
            let mut state = self.lock();
            if let Some(object) = state.objects.get(key) {
                return Ok((object.clone(), true));
            }
            Arc::clone(state.loading.entry(key.to_owned()).or_default())
        };
        let loaded = loading
            .get_or_try_init(async || {
                let object = load().await?;
                self.keep(key, &object);
                Ok(object)
            })
            .await;
        Ok((loaded?.clone(), false))
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.objects.clear();
        state.bytes = 0;
    }

    fn keep(&self, key: &str, object: &Bytes) {
        let mut state = self.lock();
        state.loading.remove(key);
        let bytes = object.len() as u64;
        if bytes > self.capacity_bytes {
            return;
        }
        state.bytes += bytes;
        if let Some(replaced) = state.objects.put(key.to_owned(), object.clone()) {
            state.bytes -= replaced.len() as u64;
        }
        while state.bytes > self.capacity_bytes
            && let Some((_, evicted)) = state.objects.pop_lru()
        {
            state.bytes -= evicted.len() as u64;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    async fn is_hit(cache: &Cache, key: &str, bytes: usize) -> bool {
        let (object, hit) = cache.get(key, async || Ok::<_, Infallible>(Bytes::from(vec![0; bytes]))).await.unwrap();
        assert_eq!(object.len(), bytes);
        hit
    }

    #[tokio::test]
    async fn a_miss_then_hits_until_it_is_evicted_for_bytes() {
        let cache = Cache::new(100);
        assert!(!is_hit(&cache, "a", 40).await);
        assert!(!is_hit(&cache, "b", 40).await);
        assert!(is_hit(&cache, "a", 40).await);
        assert!(!is_hit(&cache, "c", 60).await, "makes room by evicting b, used longest ago");
        assert!(is_hit(&cache, "a", 40).await);
        assert!(is_hit(&cache, "c", 60).await);
        assert!(!is_hit(&cache, "b", 40).await);
        assert!(!is_hit(&cache, "huge", 101).await);
        assert!(!is_hit(&cache, "huge", 101).await, "what cannot fit is not kept");
        assert!(is_hit(&cache, "b", 40).await, "nor does it evict anything");
        cache.clear();
        assert!(!is_hit(&cache, "b", 40).await);
    }

    #[tokio::test]
    async fn all_who_ask_share_one_load() {
        let (cache, loads, go) = (Cache::new(100), AtomicUsize::new(0), Notify::new());
        let ask = || {
            cache.get("a", async || {
                loads.fetch_add(1, Ordering::Relaxed);
                go.notified().await;
                Ok::<_, Infallible>(Bytes::from_static(b"a"))
            })
        };
        let asked = futures::future::join_all((0..50).map(|_| ask()));
        let (answers, ()) = futures::join!(asked, async { go.notify_one() });
        assert_eq!(loads.into_inner(), 1);
        assert!(answers.into_iter().all(|answer| answer.is_ok_and(|(_, hit)| !hit)));
    }

    #[tokio::test]
    async fn a_failed_load_leaves_nothing_behind() {
        let cache = Cache::new(100);
        assert_eq!(cache.get("a", async || Err("gone")).await, Err("gone"));
        assert!(!is_hit(&cache, "a", 1).await);
        assert!(is_hit(&cache, "a", 1).await);
    }
}
