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

pub use read::read;
pub use write::write;
