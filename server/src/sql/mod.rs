//! SQL over cached chunks: `DataFusion` plans and executes, tables are read from the engine, in this process.
//!
//! ```text
//!  Handle --statement.rs--> Statement --session.rs--> plan --run.rs--> batches
//!                                          |             |
//!                        catalog.rs: names, URLs      local.rs: the engine as the tables' cache
//!                                                     (CachedTable and all below it: flightcache-datafusion)
//! ```
//!
//! What a statement may take is bounded: its text (`statement.rs`), what one call makes (`scan/growth.rs`), what operators keep, in memory and
//! on disk (`session.rs`, `kept.rs`).
//!
//! It is read only: beside queries, only names may be made and dropped (`tables.rs`), which all servers are told of (`pass_on.rs`). A statement is all there is to a request:
//! no session, nothing kept for a client ([`Handle`]) but, while an answer is read, how to cancel it (`running.rs`).

mod catalog;
mod error;
mod handle;
mod kept;
mod local;
mod parameters;
mod pass_on;
mod run;
mod running;
mod runtime;
mod session;
mod size;
mod statement;
mod tables;

pub use handle::Handle;
pub use parameters::Parameters;
pub use run::Answer;
pub use session::{Prepared, Sql};
pub use statement::MAX_SQL_BYTES;
pub use tables::{CATALOG, MAX_NAME_BYTES, SCHEMA};
