//! Error kinds, named by what the caller should do, and their one mapping to gRPC status codes.

use serde::{Deserialize, Serialize};

/// Name of the gRPC metadata key that carries [`ErrorKind::as_str`].
pub const ERROR_KIND_METADATA: &str = "flightcache-error-kind";

/// What went wrong, by what the caller should do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is malformed: fix it.
    InvalidRequest,
    /// No such object or column.
    NotFound,
    /// Outside the declared sources, or refused by the store.
    Denied,
    /// The object was overwritten while it was read, or since the ticket was made: ask again.
    Changed,
    /// The file is corrupt.
    Corrupt,
    /// The file uses a feature this build does not read.
    Unsupported,
    /// A bound was hit: ask for less, or later.
    ResourceExhausted,
    /// The store cannot be reached after retries: retry later.
    Unavailable,
    /// The route is stale: refresh the slot map and retry at the owner.
    Moved,
    /// The caller went away.
    Cancelled,
    /// A defect of the server.
    Internal,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::InvalidRequest,
        Self::NotFound,
        Self::Denied,
        Self::Changed,
        Self::Corrupt,
        Self::Unsupported,
        Self::ResourceExhausted,
        Self::Unavailable,
        Self::Moved,
        Self::Cancelled,
        Self::Internal,
    ];

    /// The numeric gRPC status code (see the gRPC status code registry).
    pub const fn grpc_code(self) -> i32 {
        match self {
            Self::Cancelled => 1,
            Self::InvalidRequest => 3,
            Self::NotFound => 5,
            Self::Denied => 7,
            Self::ResourceExhausted => 8,
            Self::Moved => 9,
            Self::Changed => 10,
            Self::Unsupported => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::Corrupt => 15,
        }
    }

    /// The kind a gRPC status code stands for; codes this project never sends are [`ErrorKind::Internal`].
    pub fn from_grpc_code(code: i32) -> Self {
        Self::ALL.into_iter().find(|kind| kind.grpc_code() == code).unwrap_or(Self::Internal)
    }

    /// Stable name, used in metadata, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Changed => "changed",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::ResourceExhausted => "resource_exhausted",
            Self::Unavailable => "unavailable",
            Self::Moved => "moved",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }

    /// Whether the same request may succeed when it is simply sent again.
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::Changed | Self::Moved)
    }
}

/// An error of any Flightcache crate: a kind, and a message that names the object and the cause.
#[derive(Clone, Debug, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What the caller should do.
    pub kind: ErrorKind,
    /// For people: names the object, the range and the cause; never a credential.
    pub message: String,
    /// A server stated it: it was reached, whatever it could not reach itself.
    pub is_stated: bool,
}

/// Whoever says it, it is the same.
impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.message) == (other.kind, &other.message)
    }
}

/// Shorthand for results with [`struct@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` with `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), is_stated: false }
    }

    /// The same as a server stated it.
    #[must_use]
    pub fn stated(self) -> Self {
        Self { is_stated: true, ..self }
    }

    /// Whether no server answered.
    pub fn is_unreached(&self) -> bool {
        self.kind == ErrorKind::Unavailable && !self.is_stated
    }

    /// Shorthand for [`ErrorKind::InvalidRequest`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message)
    }

    /// Shorthand for [`ErrorKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_distinct_and_round_trip() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_grpc_code(kind.grpc_code()), kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert_eq!(ErrorKind::from_grpc_code(2), ErrorKind::Internal);
    }
}
