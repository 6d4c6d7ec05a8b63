//! The key of a cached column chunk.

use std::sync::Arc;

use flightcache_proto::{ObjectId, Part, Slot};

use crate::cache::CacheKey;

/// One root column of one row group of one object version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChunkKey {
    /// The object and its version.
    pub object: Arc<ObjectId>,
    /// Row group.
    pub row_group: u32,
    /// Root column.
    pub column: u32,
}

impl CacheKey for ChunkKey {
    fn partition_hash(&self) -> u64 {
        u64::from(Slot::of(&self.object.url, Part::RowGroup(self.row_group)).get())
    }
}
