//! What the cache counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),*) => {
        /// Counts since start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CacheStats { $($(#[$doc])* pub $name: u64,)* }

        #[derive(Debug, Default)]
        pub(super) struct Counters { $(pub(super) $name: AtomicU64,)* }

        impl Counters {
            pub(super) fn snapshot(&self) -> CacheStats {
                CacheStats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters!(
    /// Look-ups that found an entry.
    hits,
    /// Look-ups that did not, joined ones included.
    misses,
    /// Look-ups that joined a load under way.
    joined,
    /// Entries made of others, or begun to be.
    derived,
    /// Entries added.
    inserts,
    /// Loaded values that were not kept: too large, not wanted, or invalidated meanwhile.
    rejected,
    /// Entries evicted for space.
    evictions,
    /// Their bytes.
    evicted_bytes,
    /// Entries added that were protected at once, as they had been evicted not long before.
    returned
);
