//! What a statement needs, in bytes that a client carries: any server answers it, and none keeps anything.

use std::collections::BTreeMap;

use datafusion::common::ParamValues;
use flightcache_proto::{Error, Result};
use prost::Message as _;

use super::parameters::Parameters;

/// Length of an id.
const ID_BYTES: usize = 16;

/// A statement with its parameters. As bytes, a protobuf message, opaque to clients.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Handle {
    /// The statement's text.
    #[prost(string, tag = "1")]
    pub sql: String,
    /// Its parameters, if any were bound.
    #[prost(message, optional, tag = "2")]
    pub parameters: Option<Parameters>,
    /// The tables it names that were created at run time, and their URLs: another server may not know them.
    #[prost(btree_map = "string, string", tag = "3")]
    pub tables: BTreeMap<String, String>,
    /// Tells the answers of one flight from all others, so that they can be cancelled: 16 random bytes, or none.
    #[prost(bytes = "vec", tag = "4")]
    pub id: Vec<u8>,
}

impl Handle {
    /// A statement without parameters.
    pub fn of(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), ..Self::default() }
    }

    /// Reads what [`prost::Message::encode_to_vec`] made.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let handle = Self::decode(bytes).map_err(|e| Error::invalid(format!("the statement's handle cannot be read: {e}")))?;
        match handle.id.len() {
            0 | ID_BYTES => Ok(handle),
            other => Err(Error::invalid(format!("the statement's handle has an id of {other} bytes"))),
        }
    }

    /// The same statement with values in the places of its parameters.
    pub fn bind(self, parameters: Parameters) -> Result<Self> {
        parameters.values()?;
        Ok(Self { parameters: Some(parameters), ..self })
    }

    /// The bound values.
    pub(super) fn values(&self) -> Result<Option<ParamValues>> {
        self.parameters.as_ref().map(Parameters::values).transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int64Array;
    use datafusion::common::ScalarValue;

    use super::super::parameters::tests::of;
    use super::*;

    #[test]
    fn parameters_travel_in_the_handle() {
        let bound = Handle::of("select $1").bind(of(vec![("0", Arc::new(Int64Array::from(vec![7])))])).unwrap();
        let read = Handle::parse(&bound.encode_to_vec()).unwrap();
        assert_eq!(read, bound);
        assert!(
            matches!(read.values().unwrap(), Some(ParamValues::List(values)) if values[0].value == ScalarValue::Int64(Some(7)))
        );
        assert!(Handle::of("select 1").values().unwrap().is_none());
    }

    #[test]
    fn what_is_none_is_refused() {
        let forged = Handle { parameters: Some(Parameters::default()), ..Handle::of("select $1") };
        assert!(Handle::parse(&forged.encode_to_vec()).unwrap().values().is_err());
        assert!(Handle::of("select $1").bind(Parameters::default()).is_err());
        assert!(Handle::parse(b"\x0a\xff").is_err());
        let long = Handle { id: vec![0; 1_000], ..Handle::of("select 1") };
        assert!(Handle::parse(&long.encode_to_vec()).is_err());
    }
}
