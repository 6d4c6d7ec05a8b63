//! Tables of the Flightcache columnar cache for `DataFusion`.
//!
//! ```text
//!  SQL --DataFusion--> DataSourceExec(CachedSource) --a share of row groups, a predicate--> Cache --> record batches
//! ```
//!
//! The client library implements [`Cache`] over Arrow Flight, the server for its own SQL in its own process. Everything a plan needs
//! comes from it: schema, objects, statistics. What is scanned is ordinary to `DataFusion`: a [`CachedSource`] is a `FileSource` under its own `DataSourceExec`, so partitions, ordering, repartitioning, dynamic filters and
//! display are those of native Parquet.
//!
//! Reading order: [`CachedTable`] (what is registered), [`CachedSource`] (what a plan holds), `opener.rs` (what is asked, and when),
//! [`predicate`] (filters on the wire), [`aggregate`] (states instead of rows), [`reroute`] (native Parquet scans), [`statistics`].

pub mod aggregate;
mod cache;
mod opener;
mod order;
pub mod predicate;
mod prune;
pub mod reroute;
mod schema;
mod source;
pub mod statistics;
mod table;

pub use cache::{Cache, Figures, to_datafusion};
pub use source::CachedSource;
pub use table::CachedTable;
