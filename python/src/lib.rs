//! The Python package `flightcache`, as far as it is Rust.
//!
//! ```text
//!  Cache --scan(url)------> Rows --__arrow_c_stream__--> pyarrow, polars, duckdb, pandas
//!    |  \--sql(query)-----> Rows    (engine.rs: DataFusion, embedded)
//!    \-----table(url)-----> Table --__datafusion_table_provider__--> the `datafusion` package, over its FFI (exact.rs)
//! ```
//!
//! Reading order: `cache.rs`, `rows.rs` (what is read, and how), `runtime.rs` (waiting without the GIL, signals, forks), `engine.rs`,
//! `table.rs`, `exact.rs`, `errors.rs`. What needs no Rust is Python: `flightcache/`.

mod cache;
mod engine;
mod errors;
mod exact;
mod rows;
mod runtime;
mod table;

#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::cache::{Cache, connect};
    #[pymodule_export]
    use crate::rows::{Batches, Rows};
    #[pymodule_export]
    use crate::table::Table;
}
