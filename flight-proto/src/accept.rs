//! What a client of `DoGet` takes besides Arrow in the announced types: it says so in a header, and the server answers as it sees fit.

/// The request header, whose values are [`PARQUET`] and [`DICTIONARIES`], separated by commas.
pub const ACCEPT_HEADER: &str = "flightcache-accept";

/// An answer may hold row groups as Parquet: see [`crate::parquet`].
pub const PARQUET: &str = "parquet";

/// Columns that rest as dictionaries may come as such, to be unfolded into the announced types.
///
/// After the schema that opens the answer, another may follow before any batch: one of the same columns, some as dictionaries of 32-bit
/// keys, whose metadata has the key [`FOLDED_SCHEMA`]. It holds until the next such one. Dictionaries are numbered from zero in the
/// order of their columns, and each comes as a dictionary batch before the first batch that refers to it.
pub const DICTIONARIES: &str = "dictionaries";

/// The key in a schema's metadata that tells it from the announced one.
pub const FOLDED_SCHEMA: &str = "flightcache.folded";
