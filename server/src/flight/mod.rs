//! The Flight service: descriptors and tickets in, frames out.
//!
//! ```text
//!  service.rs (methods) --> scan::Engine
//!      |  batches
//!  encode.rs (frames of at most 2 MiB) --> do_get.rs (stream, stats) --> trailers.rs (HTTP trailers)
//! ```

mod actions;
mod do_get;
mod encode;
mod service;
mod status;
mod trailers;

pub use encode::{Encoder, MAX_FRAME_BYTES};
pub use service::FlightcacheService;
pub use trailers::ScanTrailers;
