//! Partial aggregates as programs ask for them: `flightcache.v1.Aggregation`, which `proto/flightcache/v1/aggregation.proto` describes.

use prost::Message as _;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::{Error, Result};
pub use crate::pb::{Aggregate, Aggregation};
use crate::predicate::MAX_BYTES;

/// The newest version there is.
pub const VERSION: u32 = 1;

const HASH_SEED: u64 = 0x6167_6772;

/// Expressions of an aggregation that are not within others, at most: inputs, groups, arguments and filters.
pub const MAX_EXPRESSIONS: usize = 2_000;

/// The aggregates of [`VERSION`], by `DataFusion`'s names. In whatever order their rows come, and however they are cut, the merged
/// states say the same, but for how sums of floats are rounded.
pub const AGGREGATES: [&str; 14] = [
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "count",
    "max",
    "min",
    "stddev",
    "stddev_pop",
    "sum",
    "var",
    "var_pop",
];

/// What stands for the schema of a share's answer where states are asked for: never that of any schema, so a server that knows no
/// aggregations refuses the share instead of answering its rows.
pub fn schema_hash(aggregation: &[u8]) -> u64 {
    xxh3_64_with_seed(aggregation, HASH_SEED).max(1)
}

impl Aggregation {
    /// The bytes that [`Aggregation::parse`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads what was encoded, of a version that is known.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_BYTES {
            return Err(Error::invalid(format!("aggregation of {} bytes; at most {MAX_BYTES} are read", bytes.len())));
        }
        let aggregation = Self::decode(bytes).map_err(|e| Error::invalid(format!("the aggregation cannot be read: {e}")))?;
        if aggregation.version == 0 || aggregation.version > VERSION {
            return Err(Error::invalid(format!("aggregation of version {}; known are 1 to {VERSION}", aggregation.version)));
        }
        let of_aggregates = |aggregate: &Aggregate| aggregate.arguments.len() + usize::from(aggregate.filter.is_some()) + 1;
        let expressions =
            aggregation.inputs.len() + aggregation.groups.len() + aggregation.aggregates.iter().map(of_aggregates).sum::<usize>();
        if expressions > MAX_EXPRESSIONS {
            return Err(Error::invalid(format!("aggregation of {expressions} expressions; at most {MAX_EXPRESSIONS} are read")));
        }
        Ok(aggregation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predicate::Expression;

    #[test]
    fn what_is_not_known_or_too_much_is_refused() {
        for (version, is_read) in [(0, false), (1, true), (VERSION, true), (VERSION + 1, false)] {
            let bytes = Aggregation { version, ..Aggregation::default() }.to_bytes();
            assert_eq!(Aggregation::parse(&bytes).is_ok(), is_read, "{version}");
        }
        assert!(Aggregation::parse(&vec![0; MAX_BYTES + 1]).is_err());
        for (groups, is_read) in [(MAX_EXPRESSIONS, true), (MAX_EXPRESSIONS + 1, false)] {
            let groups = vec![Expression::default(); groups];
            let bytes = Aggregation { version: VERSION, groups, ..Aggregation::default() }.to_bytes();
            assert_eq!(Aggregation::parse(&bytes).is_ok(), is_read);
        }
    }

    #[test]
    fn aggregates_are_sorted() {
        assert!(AGGREGATES.is_sorted());
    }
}
