//! The Flight service: descriptors and tickets in, frames out.
//!
//! ```text
//!  port.rs (connections) --> service.rs (methods, by tonic) --> scan::Engine
//!      |                                                             |  batches, row groups as Parquet
//!      +--> do_get.rs (stream, figures) <-- message.rs <-- encode.rs, parquet_rows.rs (frames of at most 2 MiB)
//!      +--> exchange.rs (many requests, one stream) <--+
//!      +--> sql/ (Flight SQL: statements, tables; over crate::sql)
//! ```

mod actions;
mod batch;
mod do_get;
mod encode;
mod exchange;
mod gather;
mod message;
mod parquet_rows;
mod port;
mod service;
mod sql;
mod status;
mod unix;
mod views;

pub use encode::{Encoder, MAX_FRAME_BYTES, Prepared};
pub use message::{Frame, Held, Message};
pub(crate) use port::until;
pub use port::{FlightPort, serve};
pub use service::FlightcacheService;
pub use unix::UnixSocket;
