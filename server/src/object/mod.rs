//! Object stores: what may be read, which version of it, and how its bytes are fetched.
//!
//! ```text
//!  URL --url.rs--> canonical --source.rs--> Target --listing.rs--> ObjectRef --fetch.rs--> bytes of one version
//! ```

mod connector;
mod fetch;
mod freshness;
mod hive;
mod listing;
mod source;
mod url;

pub use fetch::{FetchLimits, ObjectRef, Reads, Segments, Suffix, read_bytes};
pub use freshness::Freshness;
pub use hive::HiveColumns;
pub(crate) use hive::value_of as hive_value;
pub use listing::{ListedObject, Listings};
pub use source::{Pattern, Source, Sources, Target};
