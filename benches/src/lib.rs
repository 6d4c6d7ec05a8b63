//! What the cache gains, measured against other ways to read the same objects in the same run.
//!
//! The binary `flightcache-bench` is the command line of this crate; the folder `benches/` holds Criterion benches of single
//! steps.

pub mod data;
pub mod import;
pub mod load;
pub mod output;
pub mod place;
pub mod quickstart;
pub mod report;
pub mod simulate;
pub mod slow_store;
