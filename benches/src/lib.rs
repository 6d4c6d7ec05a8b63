//! What the cache gains, measured against other ways to read the same objects in the same run.
//!
//! The binary `flightcache-bench` is the command line of this crate; the folder `benches/` holds Criterion benches of single
//! steps.
//!
//! Reading order: [`place`] and [`slow_store`] (where the data is, and how far away), [`generate`] and [`data`] (what it is),
//! [`mod@replay`], [`mod@load`], [`mod@ask`], [`mod@simulate`], [`scans`], [`residency`], [`mod@sql`] and [`wire`] (what is measured), [`workloads`],
//! [`import`] and [`export`] (the traces it is measured on), [`quickstart`] (the least of it that says something), [`report`]
//! and [`output`] (what is left behind).

pub mod ask;
mod cpu;
pub mod data;
pub mod export;
pub mod generate;
pub mod import;
pub mod load;
pub mod output;
mod paced;
pub mod place;
mod process;
pub mod quickstart;
pub mod read_clock;
pub mod replay;
pub mod report;
pub mod residency;
pub mod scans;
mod server_threads;
pub mod simulate;
pub mod slow_store;
pub mod sql;
pub mod wire;
pub mod workloads;
