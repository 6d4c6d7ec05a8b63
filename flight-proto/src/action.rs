//! `DoAction`: names, and the JSON that goes in and out.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::error::{Error, Result};

/// Server-wide figures → [`Stats`].
pub const STATS: &str = "flightcache.stats";
/// The slot map → [`crate::SlotMap`].
pub const SLOT_MAP: &str = "flightcache.slot_map";
/// [`UrlRequest`] → one [`ObjectInfo`] per object.
pub const INFO: &str = "flightcache.info";
/// [`crate::ScanRequest`] → a stream of [`WarmProgress`].
pub const WARM: &str = "flightcache.warm";
/// [`UrlRequest`] → [`TableInfo`], then [`MoreObjects`] for as long as there are any.
pub const TABLE: &str = "flightcache.table";
/// The sources, and what programs may ask of them → [`SourcesInfo`].
pub const SOURCES: &str = "flightcache.sources";
/// [`BoundsRequest`] → [`Bounds`].
pub const BOUNDS: &str = "flightcache.bounds";
/// [`UrlRequest`] → [`Evicted`].
pub const EVICT: &str = "flightcache.evict";
/// [`SetCapacity`] → [`Stats`].
pub const SET_CAPACITY: &str = "flightcache.set_capacity";
/// [`DrainRequest`] → the [`crate::Node`] that drains.
pub const DRAIN: &str = "flightcache.drain";
/// [`Renewed`], of one server to the others → `null`.
pub const RENEWED: &str = "flightcache.renewed";
/// [`FooterRequest`], of one server to another → a [`ToldFooter`], and then its bytes, in as many results as they need.
pub const FOOTER: &str = "flightcache.footer";
/// [`NamedTables`], of one server to the others → `null`.
pub const TABLES: &str = "flightcache.tables";

/// Every action with one line for `ListActions`.
pub const ALL: [(&str, &str); 13] = [
    (STATS, "Server-wide figures. In: nothing. Out: JSON."),
    (SLOT_MAP, "Which node owns which hash slot. In: nothing. Out: JSON."),
    (INFO, "Schema, row groups, sizes and what is resident. In: {\"url\"}. Out: JSON, one result per object."),
    (
        TABLE,
        "What a query planner wants to know: schema, objects, row groups, statistics. In: {\"url\"}. Out: JSON, of many objects in several results.",
    ),
    (SOURCES, "What may be read, and which versions of predicates and aggregations are. In: nothing. Out: JSON."),
    (BOUNDS, "Least and greatest values of a column, by row group. In: {\"url\", \"column\"} of one object. Out: JSON."),
    (WARM, "Load columns into the cache. In: a scan as JSON. Out: a stream of JSON progress."),
    (EVICT, "Forget an object, prefix or glob, on all nodes. In: {\"url\"}. Out: JSON."),
    (SET_CAPACITY, "Change the cache's capacity. In: {\"capacity_bytes\"}. Out: the new figures as JSON."),
    (
        DRAIN,
        "Have a node of the cluster own nothing any more. In: {\"node\"}, its id or the beginning of it. Out: the node as JSON.",
    ),
    (
        RENEWED,
        "Told by a server to the others: objects that were overwritten. In: {\"objects\": [{\"url\", \"version\"}]}. Out: null.",
    ),
    (FOOTER, "Asked by a server of another: a footer that is resident. In: {\"url\"}. Out: JSON, and then the footer's bytes."),
    (
        TABLES,
        "Told by a server to the others: names of tables that were made or dropped. In: {\"tables\": [{\"name\", \"url\", \"at\"}]}. Out: null.",
    ),
];

/// Input of [`INFO`], [`TABLE`] and [`EVICT`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UrlRequest {
    /// An object, a prefix ending in `/`, or a glob.
    pub url: String,
    /// For [`TABLE`]: the store is to be asked, however fresh what is known may be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
    /// For [`EVICT`]: another server passed it on; it is not to be passed on again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passed_on: bool,
}

impl UrlRequest {
    /// What concerns a URL, as it is asked first.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), now: false, passed_on: false }
    }
}

/// Input of [`RENEWED`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renewed {
    /// At most [`MAX_RENEWED`].
    pub objects: Vec<RenewedObject>,
}

/// Objects one [`Renewed`] names at most.
pub const MAX_RENEWED: usize = 1_000;

/// An object that was overwritten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewedObject {
    /// Its canonical URL.
    pub url: String,
    /// Display form of the version it has now, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Input of [`TABLES`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedTables {
    /// What was said of names, in any order.
    pub tables: Vec<NamedTable>,
}

/// What was said last of a table's name. Of two sayings the later one holds; of two at the same time, the greater URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedTable {
    /// The name.
    pub name: String,
    /// What it stands for; nothing once it is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// When that was said: milliseconds since 1970, and later than all that was known there.
    pub at: u64,
}

/// Input of [`FOOTER`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FooterRequest {
    /// The object's canonical URL.
    pub url: String,
    /// Display form of the version it has to be of; any, if that is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The store must not have confirmed that version longer ago than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// Output of [`FOOTER`]: what the bytes are that follow it, which a file ends with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToldFooter {
    /// Display form of the version they are of.
    pub version: String,
    /// Size of the object, in bytes.
    pub size: u64,
    /// How long ago the store was asked, at most, when it confirmed that version.
    pub age_ms: u64,
    /// Where in the object they lie: start and length of each piece.
    pub pieces: Vec<(u64, u64)>,
    /// A fingerprint of them, and of what is said here.
    pub hash: u64,
}

/// Longer footers are not told: each server reads them itself.
pub const MAX_TOLD_FOOTER_BYTES: u64 = 4 << 20;

impl ToldFooter {
    /// What is told of bytes that come in parts.
    pub fn new(url: &str, version: String, size: u64, age_ms: u64, parts: &[(u64, &[u8])]) -> Self {
        let pieces = parts.iter().map(|(start, bytes)| (*start, bytes.len() as u64)).collect();
        let mut told = Self { version, size, age_ms, pieces, hash: 0 };
        told.hash = told.hash_of(url, parts.iter().map(|(_, bytes)| *bytes));
        told
    }

    /// A fingerprint of the bytes, and of what is said of them.
    fn hash_of<'a>(&self, url: &str, parts: impl Iterator<Item = &'a [u8]>) -> u64 {
        let mut hasher = Xxh3Default::new();
        hasher.update(format!("{url} {} {} {:?}", self.version, self.size, self.pieces).as_bytes());
        parts.for_each(|part| hasher.update(part));
        hasher.digest()
    }

    /// The number of bytes that follow; an error if they cannot be those of a footer.
    pub fn total_bytes(&self) -> Result<u64> {
        let is_inside = |&(start, len): &(u64, u64)| len > 0 && start.checked_add(len).is_some_and(|end| end <= self.size);
        let total = self.pieces.iter().fold(0, |sum: u64, (_, len)| sum.saturating_add(*len));
        if !self.pieces.iter().all(is_inside) || total == 0 || total > MAX_TOLD_FOOTER_BYTES {
            return Err(Error::internal("a footer was told that cannot be one"));
        }
        Ok(total)
    }

    /// Refuses bytes that are not the ones that were told.
    pub fn check(&self, url: &str, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 != self.total_bytes()? || self.hash_of(url, std::iter::once(bytes)) != self.hash {
            return Err(Error::internal(format!("{url}: a footer came garbled")));
        }
        Ok(())
    }
}

/// Input of [`BOUNDS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundsRequest {
    /// One object.
    pub url: String,
    /// One of its columns.
    pub column: String,
}

/// Output of [`BOUNDS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Display form of the object's version; absent where the store gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// An Arrow IPC stream with a row for each row group: its least and its greatest value, or what bounds them, as its statistics
    /// have it. NULL: not known.
    #[serde(with = "crate::base64_bytes")]
    pub bounds: Vec<u8>,
}

/// Output of [`SOURCES`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourcesInfo {
    /// Canonical URLs of the roots, which end in `/`.
    pub sources: Vec<String>,
    /// The newest [`crate::predicate::Predicate`] the server reads.
    pub predicate_version: u32,
    /// The newest [`crate::aggregation::Aggregation`] the server reads.
    pub aggregation_version: u32,
}

/// Input of [`SET_CAPACITY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetCapacity {
    /// New capacity of the chunk cache, in bytes.
    pub capacity_bytes: u64,
}

/// Input of [`DRAIN`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Its id, or the beginning of it that no other node shares.
    pub node: String,
    /// Another server passed it on: it is not to be passed on again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passed_on: bool,
}

/// Output of [`TABLE`]: an object, a prefix or a glob as one table, as its objects are now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableInfo {
    /// The newest [`crate::predicate::Predicate`] the server reads.
    pub predicate_version: u32,
    /// The newest [`crate::aggregation::Aggregation`] the server reads; zero: none.
    #[serde(default)]
    pub aggregation_version: u32,
    /// The columns, as an Arrow IPC message's metadata.
    #[serde(with = "crate::base64_bytes")]
    pub schema: Vec<u8>,
    /// The columns are not those of one object: shares of it have to name them.
    pub spans_objects: bool,
    /// In the order of their rows.
    pub objects: Vec<TableObject>,
    /// How many there are, of which [`MoreObjects`] may follow.
    #[serde(default)]
    pub objects_total: u64,
    /// Arrow IPC streams, one after the other, with a row for each object and, for each column of the table, five columns: its least
    /// and its greatest value (NULL: not known), how many values are NULL (NULL: not known), whether the least (1) and the
    /// greatest (2) are values of the column and not mere bounds, and about how many bytes its values take (NULL: not known).
    #[serde(with = "crate::base64_bytes")]
    pub statistics: Vec<u8>,
}

/// Objects of a [`TableInfo`] that are too many for one message: those after the ones that were told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoreObjects {
    /// As [`TableInfo::objects`].
    pub objects: Vec<TableObject>,
    /// Of them, as [`TableInfo::statistics`].
    #[serde(with = "crate::base64_bytes")]
    pub statistics: Vec<u8>,
}

impl TableInfo {
    /// Takes further objects up.
    pub fn extend(&mut self, more: MoreObjects) {
        self.objects.extend(more.objects);
        self.statistics.extend(more.statistics);
    }
}

/// One object of a [`TableInfo`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableObject {
    /// Canonical URL.
    pub url: String,
    /// Display form of its version; absent where the store gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Size of the object.
    pub bytes: u64,
    /// Rows and estimated bytes as Arrow of each row group.
    pub row_groups: Vec<(u64, u64)>,
    /// Where in the object each row group begins: with the first page of its first column.
    #[serde(default)]
    pub offsets: Vec<u64>,
    /// Columns of its own. Where it is alone, they are the table's first ones.
    #[serde(default)]
    pub columns: u64,
    /// What its rows are sorted by, as it says itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sorted_by: Vec<SortedBy>,
}

/// One column that rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SortedBy {
    /// Its number among the table's.
    pub column: u32,
    /// From the greatest to the least.
    pub descending: bool,
    /// NULLs come before all values.
    pub nulls_first: bool,
}

/// Output of [`EVICT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// Column chunks dropped.
    pub chunks: u64,
    /// Bytes they held.
    pub bytes: u64,
    /// Footers dropped.
    pub footers: u64,
}

/// Output of [`WARM`], once per row group and once at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmProgress {
    /// Row groups done.
    pub row_groups_done: u64,
    /// Row groups in all.
    pub row_groups_total: u64,
    /// Column chunks found resident.
    pub chunks_hit: u64,
    /// Column chunks loaded.
    pub chunks_missed: u64,
    /// Bytes read from the object store.
    pub store_bytes: u64,
}

/// Output of [`STATS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Version of the server.
    pub version: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Capacity of the chunk cache.
    pub capacity_bytes: u64,
    /// Bytes beyond the capacity that loads and evicted-but-streaming chunks may hold.
    pub reserve_bytes: u64,
    /// Bytes of resident chunks.
    pub resident_bytes: u64,
    /// Bytes reserved by loads under way.
    pub in_flight_bytes: u64,
    /// Bytes of evicted chunks that streams still hold.
    pub streaming_bytes: u64,
    /// Of them: bytes of Arrow arrays.
    pub resident_arrow_bytes: u64,
    /// Of them: Parquet bytes.
    pub resident_parquet_bytes: u64,
    /// Resident chunks, in whichever forms.
    pub resident_chunks: u64,
    /// Resident footers.
    pub resident_footers: u64,
    /// Bytes of resident footers.
    pub footer_bytes: u64,
    /// Chunk look-ups that hit.
    pub chunks_hit: u64,
    /// Chunk look-ups that missed (joined loads included).
    pub chunks_missed: u64,
    /// Of the misses: those that joined a load already under way.
    pub chunks_joined: u64,
    /// Times a chunk was decoded of Parquet bytes that rest in the cache, or came to.
    pub chunks_decoded: u64,
    /// Entries evicted for space: chunks, or one form of them.
    pub evictions: u64,
    /// Of the misses: chunks that came from other servers of the cluster.
    pub chunks_pulled: u64,
    /// Bytes that came from other servers, of arrays or of Parquet.
    pub pulled_bytes: u64,
    /// Requests sent to object stores, retries not counted.
    pub store_requests: u64,
    /// Bytes read from object stores.
    pub store_bytes: u64,
    /// Encoded bytes sent to clients.
    pub served_bytes: u64,
    /// Scans answered or under way.
    pub scans: u64,
}

macro_rules! sum_of_stats {
    ($($field:ident),*) => {
        /// Of several servers: figures are added; the version is the lowest, the time up the longest.
        impl std::iter::Sum for Stats {
            fn sum<I: Iterator<Item = Self>>(servers: I) -> Self {
                servers
                    .reduce(|a, b| Self {
                        version: a.version.min(b.version),
                        uptime_s: a.uptime_s.max(b.uptime_s),
                        $($field: a.$field.saturating_add(b.$field),)*
                    })
                    .unwrap_or_default()
            }
        }
    };
}

sum_of_stats!(
    capacity_bytes,
    reserve_bytes,
    resident_bytes,
    in_flight_bytes,
    streaming_bytes,
    resident_arrow_bytes,
    resident_parquet_bytes,
    resident_chunks,
    resident_footers,
    footer_bytes,
    chunks_hit,
    chunks_missed,
    chunks_joined,
    chunks_decoded,
    evictions,
    chunks_pulled,
    pulled_bytes,
    store_requests,
    store_bytes,
    served_bytes,
    scans
);

/// Output of [`INFO`]: one object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectInfo {
    /// Canonical URL.
    pub url: String,
    /// Version, if it has one.
    pub version: Option<String>,
    /// Size of the object.
    pub size_bytes: u64,
    /// Rows.
    pub rows: u64,
    /// Columns, as the schema announces them.
    pub columns: Vec<ColumnInfo>,
    /// Row groups.
    pub row_groups: Vec<RowGroupInfo>,
    /// Bytes of its chunks that are resident, decoded.
    pub resident_bytes: u64,
}

/// One column of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnInfo {
    /// Name.
    pub name: String,
    /// Arrow type, in Arrow's notation.
    pub data_type: String,
    /// Whether it may hold NULL.
    pub nullable: bool,
    /// Compressed bytes in the file, all row groups.
    pub compressed_bytes: u64,
    /// Row groups whose chunk is resident.
    pub resident_chunks: u64,
    /// Decoded bytes resident.
    pub resident_bytes: u64,
}

/// One row group of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowGroupInfo {
    /// Rows.
    pub rows: u64,
    /// Compressed bytes in the file.
    pub compressed_bytes: u64,
    /// Uncompressed bytes, as the file states them.
    pub uncompressed_bytes: u64,
    /// Hash slot.
    pub slot: u16,
    /// Column chunks resident.
    pub resident_chunks: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_footer_that_was_changed_on_its_way_is_refused(
            bytes in proptest::collection::vec(any::<u8>(), 2..200),
            at in any::<prop::sample::Index>(),
            bit in 0_u32..8,
            what in 0..6,
        ) {
            let url = "s3://lake/t.parquet";
            let (first, second) = bytes.split_at(bytes.len() / 2);
            let parts = [(900, first), (2_000 - second.len() as u64, second)];
            let mut told = ToldFooter::new(url, "etag:1".to_owned(), 2_000, 7, &parts);
            prop_assert!(told.check(url, &bytes).is_ok());
            let mut sent = bytes.clone();
            match what {
                0 => sent[at.index(bytes.len())] ^= 1_u8 << bit,
                1 => sent.push(0),
                2 => drop(sent.pop()),
                3 => told.size += 1,
                4 => told.pieces[0].0 -= 1,
                _ => told.version = "etag:2".to_owned(),
            }
            prop_assert!(told.check(url, &sent).is_err());
        }

        #[test]
        fn pieces_that_cannot_be_are_refused(pieces in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..4), size in any::<u64>()) {
            let is_inside = |&(start, len): &(u64, u64)| len > 0 && u128::from(start) + u128::from(len) <= u128::from(size);
            let total: u128 = pieces.iter().map(|(_, len)| u128::from(*len)).sum();
            let may_be = !pieces.is_empty() && pieces.iter().all(is_inside) && total <= u128::from(MAX_TOLD_FOOTER_BYTES);
            let told = ToldFooter { version: String::new(), size, age_ms: 0, pieces, hash: 0 };
            prop_assert_eq!(told.total_bytes().is_ok(), may_be);
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<_> = ALL.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
