//! The one mapping from errors to gRPC statuses.

use flightcache_proto::Error;
use flightcache_proto::error::ERROR_KIND_METADATA;
use tonic::{Code, Status};

/// The status of an error: its code, its message, its kind in the metadata.
pub(super) fn status(error: &Error) -> Status {
    let mut status = Status::new(Code::from_i32(error.kind.grpc_code()), error.message.clone());
    status.metadata_mut().insert(ERROR_KIND_METADATA, tonic::metadata::MetadataValue::from_static(error.kind.as_str()));
    status
}
