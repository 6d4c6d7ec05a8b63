//! The vocabulary that Flightcache's servers and clients share. No I/O happens here.
//!
//! ```text
//!  ScanRequest --plan--> Ticket (scan | share) --DoGet--> batches + ScanStats
//!      |                    |
//!      url                  slot --SlotMap--> owner
//! ```
//!
//! Reading order: [`scan`] (what a user asks), [`predicate`] and [`aggregation`] (what
//! a program asks), [`object`] and [`slot`] (what it means),
//! [`slot_map`] (who owns it), [`route`] (who is asked), [`ticket`] (what travels), [`accept`] and [`parquet`] (how rows may travel), [`exchange`] (many over
//! one stream), [`action`] (the rest of the protocol), [`error`] (how things fail). [`thrift`] checks Parquet's metadata before it is
//! read.

pub mod accept;
pub mod action;
pub mod aggregation;
mod base64_bytes;
pub mod error;
pub mod exchange;
pub mod object;
pub mod parquet;
pub mod predicate;
pub mod route;
pub mod scan;
pub mod slot;
pub mod slot_map;
pub mod thrift;
pub mod ticket;

pub use error::{Error, ErrorKind, Result};
pub use object::{ObjectId, Version};
pub use route::PeerAsk;
pub use scan::{Compression, Populate, ScanRequest, ScanStats};
pub use slot::{Part, SLOT_COUNT, Slot};
pub use slot_map::{Node, NodeState, SlotMap};
pub use ticket::{ObjectShare, Share, Ticket};

/// Serialized `FileDescriptorSet` of Arrow Flight and `flightcache.v1`, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Generated protobuf messages.
pub(crate) mod pb {
    #![allow(clippy::pedantic, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/flightcache.v1.rs"));
}
