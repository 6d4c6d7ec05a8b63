//! Errors as Python's exceptions: a class for each kind, in `flightcache.errors`.

use arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};
use flightcache::{Error, ErrorKind};
use pyo3::prelude::*;

/// Why there are no more rows.
#[derive(Debug)]
pub(crate) enum Failure {
    Cache(Error),
    /// What a handler of a signal raised, such as `KeyboardInterrupt`.
    Python(PyErr),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Cache(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl Failure {
    pub(crate) fn into_exception(self, py: Python<'_>) -> PyErr {
        match self {
            Self::Cache(error) => exception(py, &error),
            Self::Python(error) => error,
        }
    }

    /// For readers of the C stream, who learn of errors by a text and a number only.
    pub(crate) fn into_arrow(self) -> ArrowError {
        match self {
            Self::Cache(Error { kind, message, .. }) => {
                ArrowError::IoError(format!("{}: {message}", kind.as_str()), std::io::Error::other(message))
            }
            Self::Python(error) => ArrowError::ExternalError(Box::new(error)),
        }
    }
}

/// The exception of an error's kind.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let class = py.import("flightcache.errors").and_then(|errors| errors.getattr("BY_KIND")?.get_item(error.kind.as_str()));
    match class.and_then(|class| class.call1((&error.message,))) {
        Ok(raised) => PyErr::from_value(raised),
        Err(raised) => raised,
    }
}

/// An error of a query: of the cache, if that is where it comes from, or else by what `DataFusion` makes of it.
pub(crate) fn of_query(error: &DataFusionError) -> Error {
    let root = error.find_root();
    let kind = match root {
        DataFusionError::External(source) => match source.downcast_ref::<Error>() {
            Some(error) => return error.clone(),
            None => ErrorKind::Internal,
        },
        DataFusionError::SchemaError(schema, _) if matches!(**schema, SchemaError::FieldNotFound { .. }) => ErrorKind::NotFound,
        // Of values that divide by zero, cannot be cast, are too large: the query asks for what cannot be.
        DataFusionError::SQL(..)
        | DataFusionError::Plan(_)
        | DataFusionError::Configuration(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::Execution(_)
        | DataFusionError::ArrowError(..) => ErrorKind::InvalidRequest,
        DataFusionError::NotImplemented(_) => ErrorKind::Unsupported,
        DataFusionError::ResourcesExhausted(_) => ErrorKind::ResourceExhausted,
        DataFusionError::IoError(_) | DataFusionError::ObjectStore(_) => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, root.strip_backtrace())
}
