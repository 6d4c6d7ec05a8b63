//! Filters as programs send them: `flightcache.v1.Predicate`, which `proto/flightcache/v1/predicate.proto` describes.

use prost::Message as _;

use crate::error::{Error, Result};
pub use crate::pb::expression::Kind;
pub use crate::pb::{Binary, Bloom, Call, Case, Cast, Expression, Expressions, InList, Like, Operator, Predicate, Values, When};

/// The newest version there is.
pub const VERSION: u32 = 1;

/// Levels an expression may nest. Protobuf's readers stop at 100 messages, and a level may take three.
pub const MAX_DEPTH: usize = 30;

/// A predicate longer than this is refused.
pub const MAX_BYTES: usize = 4 << 20;

/// Items of lists that a predicate refers to, all references together: each becomes an expression.
pub const MAX_ITEMS: usize = 1 << 18;

/// The functions of [`VERSION`], by `DataFusion`'s names: of their arguments alone, and the same everywhere and always.
pub const FUNCTIONS: [&str; 37] = [
    "abs",
    "ascii",
    "bit_length",
    "btrim",
    "ceil",
    "character_length",
    "chr",
    "coalesce",
    "concat",
    "contains",
    "date_part",
    "date_trunc",
    "ends_with",
    "floor",
    "isnan",
    "iszero",
    "left",
    "lower",
    "lpad",
    "ltrim",
    "nanvl",
    "nullif",
    "octet_length",
    "repeat",
    "replace",
    "reverse",
    "right",
    "round",
    "rpad",
    "rtrim",
    "signum",
    "split_part",
    "starts_with",
    "strpos",
    "substr",
    "trunc",
    "upper",
];

impl Predicate {
    /// The bytes that [`Predicate::parse`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads what was encoded, of a version that is known.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_BYTES {
            return Err(Error::invalid(format!("predicate of {} bytes; at most {MAX_BYTES} are read", bytes.len())));
        }
        let predicate = Self::decode(bytes).map_err(|e| Error::invalid(format!("the predicate cannot be read: {e}")))?;
        if predicate.version == 0 || predicate.version > VERSION {
            return Err(Error::invalid(format!("predicate of version {}; known are 1 to {VERSION}", predicate.version)));
        }
        Ok(predicate)
    }
}

impl Expression {
    /// An expression of this kind.
    pub fn new(kind: Kind) -> Self {
        Self { kind: Some(kind) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_are_not_known_are_refused() {
        for (version, is_read) in [(0, false), (1, true), (VERSION, true), (VERSION + 1, false)] {
            let bytes = Predicate { version, ..Predicate::default() }.encode_to_vec();
            assert_eq!(Predicate::parse(&bytes).is_ok(), is_read, "{version}");
        }
        assert!(Predicate::parse(&vec![0; MAX_BYTES + 1]).is_err());
    }

    #[test]
    fn functions_are_sorted() {
        assert!(FUNCTIONS.is_sorted());
    }
}
