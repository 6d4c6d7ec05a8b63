//! Access traces: what was asked of a cache, when, and how much of it any cache of a given size could have held.
//!
//! ```text
//!  original (embedded CSV) --\
//!  import (CSV of others) ----+--> Trace <--> JSON Lines (recorded by a server, played by the bench)
//!  generate (seeded) --------/       |
//!                                simulate (Lru | Belady | any Policy) --> HitRates
//! ```
//!
//! Nothing here opens a file or a socket, and no clock is read.
//!
//! Reading order: [`trace`] (the format), [`original`] and [`import`] (traces of others), [`generate`] (synthetic ones),
//! [`mod@simulate`] (what hit rate was possible), [`error`] (how reading fails).

pub mod error;
pub mod generate;
pub mod import;
mod lines;
pub mod original;
pub mod simulate;
pub mod trace;

pub use error::{Error, Problem, Result};
pub use simulate::{Belady, HitRates, ItemKey, Lru, Policy, footprint_bytes, simulate};
pub use trace::{Access, Columns, Request, Trace, WHOLE_OBJECT};
