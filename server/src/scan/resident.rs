//! What rests in the cache: column chunks, decoded or as the Parquet bytes they come from.

use std::ops::Deref;
use std::sync::Arc;

use flightcache_proto::{ObjectId, Part, Slot};

use crate::cache::{CacheKey, Pinned};
use crate::object::Segments;
use crate::parquet::Chunk;

/// One root column of one row group of one object version, in one form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChunkKey {
    /// The object and its version.
    pub object: Arc<ObjectId>,
    /// Row group.
    pub row_group: u32,
    /// Root column.
    pub column: u32,
    /// How it rests.
    pub form: Form,
}

/// How a chunk rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// As Arrow arrays.
    Decoded,
    /// As the Parquet bytes it was read as, which are decoded for each request.
    Encoded,
}

/// A chunk in one of its forms.
#[derive(Debug)]
pub(crate) enum Resident {
    /// Arrow arrays.
    Decoded(Arc<Chunk>),
    /// Parquet pages, in memory of their own.
    Encoded(Segments),
}

/// A decoded chunk that stays in memory while this is held.
#[derive(Clone, Debug)]
pub(crate) struct PinnedChunk {
    chunk: Arc<Chunk>,
    entry: Pinned<Resident>,
}

impl CacheKey for ChunkKey {
    /// Both forms of a chunk, and all chunks of a row group, lie in one partition.
    fn partition_hash(&self) -> u64 {
        u64::from(Slot::of(&self.object.url, Part::RowGroup(self.row_group)).get())
    }
}

impl ChunkKey {
    /// The same chunk as Parquet bytes.
    #[must_use]
    pub fn encoded(&self) -> Self {
        Self { form: Form::Encoded, ..self.clone() }
    }
}

impl PinnedChunk {
    /// The chunk of an entry, if it is a decoded one.
    pub(crate) fn new(entry: Pinned<Resident>) -> Option<Self> {
        match &**entry {
            Resident::Decoded(chunk) => Some(Self { chunk: Arc::clone(chunk), entry }),
            Resident::Encoded(_) => None,
        }
    }

    /// Bytes it is charged with.
    pub(crate) fn weight_bytes(&self) -> u64 {
        self.entry.weight_bytes()
    }
}

impl Deref for PinnedChunk {
    type Target = Chunk;

    fn deref(&self) -> &Chunk {
        &self.chunk
    }
}

#[cfg(test)]
mod tests {
    use flightcache_proto::Version;

    use super::*;

    #[test]
    fn the_forms_of_a_row_groups_chunks_share_a_partition() {
        let object = Arc::new(ObjectId { url: "s3://lake/a.parquet".into(), version: Version::ETag("1".into()), footer: 0 });
        let key = |column, form| ChunkKey { object: Arc::clone(&object), row_group: 3, column, form };
        let first = key(0, Form::Decoded);
        assert_ne!(first, first.encoded());
        for other in [first.encoded(), key(1, Form::Decoded), key(1, Form::Encoded)] {
            assert_eq!(first.partition_hash(), other.partition_hash());
        }
    }
}
