//! `flightcache.v1.Predicate` from and to `DataFusion`'s expressions.
//!
//! ```text
//!  PhysicalExpr --write--> Predicate --(the wire)--> Predicate --read--> Expr
//! ```

mod bloom;
mod read;
#[cfg(test)]
mod tests;
mod values;
mod write;

pub(crate) use read::Reader;
pub use read::read;
pub(crate) use write::Writer;
pub use write::write;
