//! The one mapping from errors to gRPC statuses.

use flightcache_proto::Error;
use flightcache_proto::error::ERROR_KIND_METADATA;
use tonic::{Code, Status};

/// Trailers are bounded, by 8 KiB in some clients; percent-encoding may triple a message.
const MAX_MESSAGE_BYTES: usize = 2 << 10;

/// The status of an error: its code, its message, its kind in the metadata.
pub(super) fn status(error: &Error) -> Status {
    let mut message = error.message.clone();
    if message.len() > MAX_MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        message.push('…');
    }
    let mut status = Status::new(Code::from_i32(error.kind.grpc_code()), message);
    status.metadata_mut().insert(ERROR_KIND_METADATA, tonic::metadata::MetadataValue::from_static(error.kind.as_str()));
    status
}
