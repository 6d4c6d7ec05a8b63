//! `DataFusion`'s errors as ours.

use std::error::Error as StdError;

use datafusion::common::{DataFusionError, SchemaError};
use flightcache_proto::{Error, ErrorKind};

/// The error of ours within, or the kind that fits `DataFusion`'s.
pub(super) fn from_datafusion(error: &DataFusionError) -> Error {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(at) = cause {
        if let Some(ours) = at.downcast_ref::<Error>() {
            return ours.clone();
        }
        cause = at.source();
    }
    let kind = match error.find_root() {
        DataFusionError::ResourcesExhausted(_) => ErrorKind::ResourceExhausted,
        DataFusionError::SchemaError(error, _) if matches!(**error, SchemaError::FieldNotFound { .. }) => ErrorKind::NotFound,
        // The planner has no other way to say so.
        DataFusionError::Plan(message) if message.starts_with("table '") && message.ends_with("' not found") => {
            ErrorKind::NotFound
        }
        DataFusionError::NotImplemented(_) => ErrorKind::Unsupported,
        // What cannot be planned, and values that cannot be computed: a division by zero, a cast that fails.
        DataFusionError::SQL(..)
        | DataFusionError::Plan(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::Configuration(_)
        | DataFusionError::Execution(_)
        | DataFusionError::ArrowError(..) => ErrorKind::InvalidRequest,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, error.strip_backtrace())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::error::ArrowError;
    use flightcache_datafusion::to_datafusion;

    use super::*;

    #[test]
    fn ours_come_back_from_any_depth() {
        let ours = Error::new(ErrorKind::Changed, "s3://lake/t: overwritten");
        let arrow = ArrowError::ExternalError(Box::new(to_datafusion(ours.clone())));
        let wrapped = DataFusionError::Shared(Arc::new(DataFusionError::from(arrow))).context("while sorting");
        assert_eq!(from_datafusion(&wrapped), ours);
    }

    #[test]
    fn kinds_say_what_to_do() {
        let kind = |error: DataFusionError| from_datafusion(&error).kind;
        assert_eq!(kind(DataFusionError::ResourcesExhausted("pool".into())), ErrorKind::ResourceExhausted);
        assert_eq!(kind(DataFusionError::Plan("table 'flightcache.public.t' not found".into())), ErrorKind::NotFound);
        assert_eq!(kind(DataFusionError::from(ArrowError::DivideByZero)), ErrorKind::InvalidRequest);
        assert_eq!(kind(DataFusionError::Internal("bug".into())), ErrorKind::Internal);
    }
}
