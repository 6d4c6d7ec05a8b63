//! Least recently used.

use ::lru::LruCache;

use super::{ItemKey, Policy};

/// Evicts what was not used for longest until the new item fits. An item larger than the capacity is not admitted.
#[derive(Debug)]
pub struct Lru {
    capacity_bytes: u64,
    used_bytes: u64,
    bytes_of: LruCache<ItemKey, u64>,
}

impl Lru {
    /// An empty cache.
    pub fn new(capacity_bytes: u64) -> Self {
        Self { capacity_bytes, used_bytes: 0, bytes_of: LruCache::unbounded() }
    }
}

impl Policy for Lru {
    fn access(&mut self, key: ItemKey, bytes: u64, _request: u64, _next_use: Option<u64>) -> bool {
        if self.bytes_of.get(&key).is_some() {
            return true;
        }
        if bytes > self.capacity_bytes {
            return false;
        }
        while self.used_bytes > self.capacity_bytes - bytes {
            let (_, evicted) = self.bytes_of.pop_lru().expect("used bytes belong to resident items");
            self.used_bytes -= evicted;
        }
        self.used_bytes += bytes;
        self.bytes_of.put(key, bytes);
        false
    }
}
