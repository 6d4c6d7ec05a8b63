//! The Flightcache server: Parquet from object stores, decoded once, kept as column chunks, served over Arrow Flight.
//!
//! ```text
//!  flight/ --ticket--> scan.rs --key--> cache/
//!     ^                 |   \--ranges--> object/ --> S3 | files
//!     |              batches  \--bytes--> parquet/ --> arrays
//!     +--- frames <-----+
//! ```
//!
//! Data moves one way: object → bytes → chunk → cache → batch → Flight frame. Calls go the other way, and only [`scan`]
//! knows all rooms.
//!
//! Reading order: [`settings`] and [`server`] (how it starts), [`flight`] (what comes in), [`scan`] (what happens), then
//! [`object`], [`parquet`] and [`cache`], each of which stands alone; [`cluster`], who else there is; [`sql`], which asks [`scan`] as clients do; [`admin`] and
//! [`record`] look on.

pub mod admin;
pub mod cache;
pub mod cluster;
pub mod flight;
pub mod object;
pub mod parquet;
pub mod record;
pub mod scan;
pub mod server;
pub mod settings;
pub mod sql;

pub use server::Server;
pub use settings::Settings;
