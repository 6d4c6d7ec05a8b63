//! Scans: what to read, and what reading it took.

use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pb;

/// Whether what a scan reads may stay in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Populate {
    /// Chunks enter the cache as its admission rule says.
    #[default]
    Auto,
    /// Resident chunks are used; nothing this scan loads stays.
    Never,
}

/// How the record batches of an answer are compressed, as Arrow IPC has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Frames of LZ4: fast.
    Lz4,
    /// Zstandard: smaller, and slower.
    Zstd,
}

/// What to read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanRequest {
    /// One object (`s3://bucket/key.parquet`), a prefix ending in `/`, or a glob.
    pub url: String,
    /// Columns to return, in this order; `None`: all; empty: none, only row counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// SQL boolean expression over the columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// At most this many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Row numbers of the (one) object, answered in this order, repeats included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<u64>>,
    /// Whether what this scan reads may stay in the cache.
    #[serde(default)]
    pub populate: Populate,
    /// How the answer is to be compressed. It costs the server CPU, and pays on links slower than a few Gbit/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// A [`crate::predicate::Predicate`], encoded, beside the filter or instead of it. Base64 in JSON.
    #[serde(default, with = "crate::base64_bytes::optional", skip_serializing_if = "Option::is_none")]
    pub predicate: Option<Vec<u8>>,
    /// A [`crate::aggregation::Aggregation`] over the columns returned, encoded: the answer is its states, not the rows. Base64 in JSON.
    #[serde(default, with = "crate::base64_bytes::optional", skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Vec<u8>>,
}

impl ScanRequest {
    /// All of `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// Reads the JSON form when the bytes start with `{`, otherwise the protobuf form `flightcache.v1.ScanRequest`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.first() == Some(&b'{') {
            return serde_json::from_slice(bytes).map_err(|e| Error::invalid(format!("scan request is not valid JSON: {e}")));
        }
        let message = pb::ScanRequest::decode(bytes)
            .map_err(|e| Error::invalid(format!("scan request is neither JSON nor flightcache.v1.ScanRequest: {e}")))?;
        Self::try_from(message)
    }

    /// The protobuf form.
    pub fn to_protobuf(&self) -> Vec<u8> {
        pb::ScanRequest::from(self.clone()).encode_to_vec()
    }
}

impl From<ScanRequest> for pb::ScanRequest {
    fn from(scan: ScanRequest) -> Self {
        let no_rows = scan.rows.as_ref().is_some_and(Vec::is_empty);
        Self {
            url: scan.url,
            no_columns: scan.columns.as_ref().is_some_and(Vec::is_empty),
            columns: scan.columns.unwrap_or_default(),
            filter: scan.filter.unwrap_or_default(),
            // An empty row list has no protobuf form of its own; no rows is what a limit of zero says.
            limit: if no_rows { Some(0) } else { scan.limit },
            rows: scan.rows.unwrap_or_default(),
            populate: match scan.populate {
                Populate::Auto => pb::Populate::Auto,
                Populate::Never => pb::Populate::Never,
            }
            .into(),
            compression: match scan.compression {
                None => pb::Compression::None,
                Some(Compression::Lz4) => pb::Compression::Lz4,
                Some(Compression::Zstd) => pb::Compression::Zstd,
            }
            .into(),
            predicate: scan.predicate.unwrap_or_default(),
            aggregation: scan.aggregation.unwrap_or_default(),
        }
    }
}

impl TryFrom<pb::ScanRequest> for ScanRequest {
    type Error = Error;

    fn try_from(message: pb::ScanRequest) -> Result<Self> {
        let populate = match pb::Populate::try_from(message.populate) {
            Ok(pb::Populate::Auto) => Populate::Auto,
            Ok(pb::Populate::Never) => Populate::Never,
            Err(_) => return Err(Error::invalid(format!("scan request: unknown populate value {}", message.populate))),
        };
        let compression = match pb::Compression::try_from(message.compression) {
            Ok(pb::Compression::None) => None,
            Ok(pb::Compression::Lz4) => Some(Compression::Lz4),
            Ok(pb::Compression::Zstd) => Some(Compression::Zstd),
            Err(_) => return Err(Error::invalid(format!("scan request: unknown compression {}", message.compression))),
        };
        if message.no_columns && !message.columns.is_empty() {
            return Err(Error::invalid("scan request: columns are named although no_columns is set"));
        }
        Ok(Self {
            url: message.url,
            columns: (message.no_columns || !message.columns.is_empty()).then_some(message.columns),
            filter: (!message.filter.is_empty()).then_some(message.filter),
            limit: message.limit,
            rows: (!message.rows.is_empty()).then_some(message.rows),
            populate,
            compression,
            predicate: (!message.predicate.is_empty()).then_some(message.predicate),
            aggregation: (!message.aggregation.is_empty()).then_some(message.aggregation),
        })
    }
}

/// What serving a scan took, so far. Travels as JSON in the app metadata of each batch and in the trailer
/// [`SCAN_STATS_TRAILER`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScanStats {
    /// Rows sent.
    pub rows: u64,
    /// Encoded bytes sent.
    pub bytes: u64,
    /// Row groups read at least in part.
    pub row_groups: u64,
    /// Row groups sent as Parquet.
    pub row_groups_as_parquet: u64,
    /// Row groups skipped by statistics, Bloom filters or because no row of their filter columns matched.
    pub row_groups_pruned: u64,
    /// Column chunks found in the cache.
    pub chunks_hit: u64,
    /// Column chunks that had to be loaded, or whose load by another request was waited for.
    pub chunks_missed: u64,
    /// Of the missed ones: those that came from another server of the cluster.
    pub chunks_pulled: u64,
    /// Bytes read from the object store on behalf of this scan.
    pub store_bytes: u64,
    /// Requests sent to the object store on behalf of this scan.
    pub store_requests: u64,
    /// Time spent fetching, in microseconds, summed over concurrent work.
    pub fetch_us: u64,
    /// Time spent decoding, in microseconds, summed over concurrent work.
    pub decode_us: u64,
    /// Time spent filtering and assembling batches, in microseconds.
    pub filter_us: u64,
    /// Time spent aggregating, in microseconds.
    pub aggregate_us: u64,
    /// Time spent encoding, in microseconds.
    pub encode_us: u64,
    /// A fingerprint of the objects that are read and their versions; zero where some have none. Nothing to sum.
    #[serde(skip_serializing_if = "is_zero")]
    pub versions: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's shape")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl std::iter::Sum for ScanStats {
    fn sum<I: Iterator<Item = Self>>(shares: I) -> Self {
        shares.fold(Self::default(), |a, b| Self {
            rows: a.rows.saturating_add(b.rows),
            bytes: a.bytes.saturating_add(b.bytes),
            row_groups: a.row_groups.saturating_add(b.row_groups),
            row_groups_as_parquet: a.row_groups_as_parquet.saturating_add(b.row_groups_as_parquet),
            row_groups_pruned: a.row_groups_pruned.saturating_add(b.row_groups_pruned),
            chunks_hit: a.chunks_hit.saturating_add(b.chunks_hit),
            chunks_missed: a.chunks_missed.saturating_add(b.chunks_missed),
            chunks_pulled: a.chunks_pulled.saturating_add(b.chunks_pulled),
            store_bytes: a.store_bytes.saturating_add(b.store_bytes),
            store_requests: a.store_requests.saturating_add(b.store_requests),
            fetch_us: a.fetch_us.saturating_add(b.fetch_us),
            decode_us: a.decode_us.saturating_add(b.decode_us),
            filter_us: a.filter_us.saturating_add(b.filter_us),
            aggregate_us: a.aggregate_us.saturating_add(b.aggregate_us),
            encode_us: a.encode_us.saturating_add(b.encode_us),
            versions: 0,
        })
    }
}

/// Name of the response trailer that carries [`ScanStats`] as JSON.
pub const SCAN_STATS_TRAILER: &str = "flightcache-scan-stats";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan() -> impl Strategy<Value = ScanRequest> {
        (
            "[a-z:/*]{0,20}",
            proptest::option::of(proptest::collection::vec("\\PC{0,8}", 0..4)),
            proptest::option::of("[a-z<> 0-9]{1,12}"),
            proptest::option::of(any::<u64>()),
            proptest::option::of(proptest::collection::vec(any::<u64>(), 1..4)),
            any::<bool>(),
            proptest::option::of(prop_oneof![Just(Compression::Lz4), Just(Compression::Zstd)]),
            [(); 2].map(|()| proptest::option::of(proptest::collection::vec(any::<u8>(), 1..9))),
        )
            .prop_map(|(url, columns, filter, limit, rows, never, compression, [predicate, aggregation])| ScanRequest {
                url,
                columns,
                filter,
                limit,
                rows,
                populate: if never { Populate::Never } else { Populate::Auto },
                compression,
                predicate,
                aggregation,
            })
    }

    proptest! {
        #[test]
        fn both_forms_round_trip(scan in scan()) {
            prop_assert_eq!(&ScanRequest::parse(&scan.to_protobuf()).unwrap(), &scan);
            let json = serde_json::to_vec(&scan).unwrap();
            prop_assert_eq!(&ScanRequest::parse(&json).unwrap(), &scan);
        }

        #[test]
        fn any_bytes_parse_or_fail_typed(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = ScanRequest::parse(&bytes);
        }
    }

    #[test]
    fn figures_are_summed_whatever_a_server_tells() {
        let told = |rows| ScanStats { rows, fetch_us: 1, ..ScanStats::default() };
        assert_eq!([told(1), told(2)].into_iter().sum::<ScanStats>(), ScanStats { fetch_us: 2, ..told(3) });
        assert_eq!([told(1), told(u64::MAX)].into_iter().sum::<ScanStats>().rows, u64::MAX);
    }

    #[test]
    fn the_contract_json_is_read() {
        let scan =
            ScanRequest::parse(br#"{"url": "s3://lake/t.parquet", "columns": ["a"], "filter": "a < 24", "limit": 10}"#).unwrap();
        assert_eq!(scan.columns.as_deref(), Some(&["a".to_owned()][..]));
        assert_eq!(scan.limit, Some(10));
        let typo = ScanRequest::parse(br#"{"url": "s3://lake/t.parquet", "colums": ["a"]}"#).unwrap_err();
        assert!(typo.message.contains("colums"), "{typo}");
    }
}
