//! The client of Flightcache: connect, scan, warm, evict.
//!
//! ```text
//!  Client --scan(url)--> ScanBuilder --send--> plan at the footer's owner (GetFlightInfo)
//!    |                                            |  shares
//!  Routes: slot map by epoch, one channel a node  +--> owners, concurrently (DoGet) --> ScanStream, in order
//! ```
//!
//! ```no_run
//! # async fn example() -> flightcache::Result<()> {
//! use futures::TryStreamExt as _;
//!
//! let cache = flightcache::Client::connect("grpc://127.0.0.1:50051").await?;
//! let mut rows = cache.scan("s3://lake/trips/").columns(["fare"]).filter("fare > 100").limit(10).send().await?;
//! while let Some(batch) = rows.try_next().await? {
//!     println!("{} rows", batch.num_rows());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Reading order: [`client`], [`scan`], [`exchange`] (many small requests), [`routes`], [`link`] (what travels over which way), [`receive`].

pub mod client;
#[cfg(feature = "datafusion")]
pub mod datafusion;
mod direct;
pub mod exchange;
mod hedge;
pub mod link;
pub mod peer;
pub mod receive;
mod retry;
pub mod routes;
pub mod scan;
mod share;
mod sql;

pub use client::Client;
pub use exchange::{Exchange, RowTemplate};
pub use flightcache_proto::{Error, ErrorKind, Populate, Result, ScanRequest, ScanStats, SlotMap, action};
pub use link::Transfer;
pub use scan::{ScanBuilder, ScanStream};
