//! A statement's parameters: the IPC messages they came in, checked, and carried on as they are.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Schema};
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::read_record_batch;
use arrow::ipc::root_as_message;
use bytes::Bytes;
use datafusion::common::{ParamValues, ScalarValue};
use flightcache_proto::{Error, ErrorKind, Result};

use crate::parquet::{announced_schema, check_widths};

/// The values of all parameters, at most.
const MAX_PARAMETER_BYTES: usize = 4 << 20;

/// One row, a column each.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Parameters {
    /// The header of the message that tells their schema.
    #[prost(bytes = "bytes", tag = "1")]
    pub schema: Bytes,
    /// The header of the batch of them.
    #[prost(bytes = "bytes", tag = "2")]
    pub batch: Bytes,
    /// Its body.
    #[prost(bytes = "bytes", tag = "3")]
    pub body: Bytes,
}

impl Parameters {
    /// The values: by position, or by name where all columns are named like `$name`.
    pub(super) fn values(&self) -> Result<ParamValues> {
        let bytes = self.schema.len() + self.batch.len() + self.body.len();
        if bytes > MAX_PARAMETER_BYTES {
            let message = format!("parameters of {bytes} bytes; at most {MAX_PARAMETER_BYTES} are taken");
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        // The readers trust lengths and types to agree.
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| self.try_read()));
        let read = read.unwrap_or_else(|_| Err("their lengths and types contradict each other".to_owned()));
        let (schema, values) = read.map_err(|e| Error::invalid(format!("the parameters cannot be read: {e}")))?;
        let names: Vec<Option<&str>> = schema.fields().iter().map(|field| name(field.name())).collect();
        if !names.is_empty() && names.iter().all(Option::is_some) {
            let named: Vec<(String, ScalarValue)> = names.into_iter().flatten().map(str::to_owned).zip(values).collect();
            return Ok(named.into());
        }
        Ok(values.into())
    }

    fn try_read(&self) -> Result<(Schema, Vec<ScalarValue>), String> {
        let schema = root_as_message(&self.schema).map_err(|e| e.to_string())?;
        let schema = fb_to_schema(schema.header_as_schema().ok_or("their schema is none")?);
        if announced_schema(&schema) != schema {
            return Err("they are dictionaries or run-end encoded; send their values".to_owned());
        }
        let has_unions = schema.fields().iter().any(|field| matches!(field.data_type(), DataType::Union(..)));
        check_widths(&schema).map_err(|e| e.message)?;
        let message = root_as_message(&self.batch).map_err(|e| e.to_string())?;
        let batch = message.header_as_record_batch().ok_or("their batch is none")?;
        if has_unions || batch.compression().is_some() {
            return Err("they are unions, or compressed".to_owned());
        }
        let is_within = |buffer: &arrow::ipc::Buffer| {
            let end = buffer.offset().checked_add(buffer.length());
            buffer.offset() >= 0 && buffer.length() >= 0 && end.is_some_and(|end| end <= self.body.len() as i64)
        };
        // Of no type but Null a value takes less than a bit, and those take nothing: any number of them.
        let most = 8 * self.body.len() as i64 + 1;
        let is_there = |node: &arrow::ipc::FieldNode| (0..=most).contains(&node.length());
        if !batch.nodes().into_iter().flatten().all(is_there) {
            return Err("they hold more values than their body has bits".to_owned());
        }
        if batch.length() != 1 || !batch.buffers().into_iter().flatten().all(is_within) {
            return Err("they are not one row within their body".to_owned());
        }
        let body = Buffer::from(self.body.as_ref());
        let read = read_record_batch(&body, batch, Arc::new(schema.clone()), &HashMap::default(), None, &message.version());
        let read = read.map_err(|e| e.to_string())?;
        let value = |column: &arrow::array::ArrayRef| {
            column.to_data().validate_full().map_err(|e| e.to_string())?;
            ScalarValue::try_from_array(column, 0).map_err(|e| e.strip_backtrace())
        };
        Ok((schema, read.columns().iter().map(value).collect::<Result<_, _>>()?))
    }
}

/// The name in `$name`, unless it is a position.
fn name(parameter: &str) -> Option<&str> {
    parameter.strip_prefix('$').filter(|name| !name.is_empty() && name.parse::<usize>().is_err())
}

#[cfg(test)]
pub(super) mod tests {
    use arrow::array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringArray};
    use arrow::datatypes::Int64Type;
    use arrow::ipc::CompressionType;
    use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};

    use super::*;

    pub(in crate::sql) fn of(columns: Vec<(&str, ArrayRef)>) -> Parameters {
        with_options(columns, &IpcWriteOptions::default())
    }

    fn with_options(columns: Vec<(&str, ArrayRef)>, options: &IpcWriteOptions) -> Parameters {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let (generator, mut tracker) = (IpcDataGenerator::default(), DictionaryTracker::new(false));
        let schema = generator.schema_to_bytes_with_dictionary_tracker(&batch.schema(), &mut tracker, options);
        let (_, batch) = generator.encode(&batch, &mut tracker, options, &mut IpcWriteContext::default()).unwrap();
        Parameters { schema: schema.ipc_message.into(), batch: batch.ipc_message.into(), body: batch.arrow_data.into() }
    }

    fn several() -> Parameters {
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1), None])]);
        of(vec![
            ("0", Arc::new(Int64Array::from(vec![7]))),
            ("1", Arc::new(StringArray::from(vec!["seven"]))),
            ("2", Arc::new(list)),
        ])
    }

    #[test]
    fn values_are_bound_by_position_or_by_name() {
        let ParamValues::List(values) = several().values().unwrap() else { panic!("by position") };
        assert_eq!(values.len(), 3);
        assert_eq!(values[1].value, ScalarValue::from("seven"));
        let named = of(vec![("$x", Arc::new(Int64Array::from(vec![7])))]);
        assert!(matches!(named.values().unwrap(), ParamValues::Map(values) if values.contains_key("x")));
        let numbered = of(vec![("$1", Arc::new(Int64Array::from(vec![7])))]);
        assert!(matches!(numbered.values().unwrap(), ParamValues::List(_)));
    }

    #[test]
    fn values_of_no_bytes_are_counted() {
        let nulls: ArrayRef = Arc::new(arrow::array::NullArray::new(1 << 40));
        let field = Arc::new(arrow::datatypes::Field::new_list_field(DataType::Null, true));
        let offsets = arrow::buffer::OffsetBuffer::new(vec![0_i64, 1 << 40].into());
        let list: ArrayRef = Arc::new(arrow::array::LargeListArray::new(field, offsets, nulls, None));
        let error = of(vec![("0", list)]).values().map(|_| ()).unwrap_err();
        assert!(error.kind == ErrorKind::InvalidRequest && error.message.contains("bits"), "{error}");
        let null: ArrayRef = Arc::new(arrow::array::NullArray::new(1));
        assert!(of(vec![("0", null)]).values().is_ok());
    }

    #[test]
    fn garbage_is_refused() {
        let good = several();
        for part in 0..3 {
            for at in 0..[&good.schema, &good.batch, &good.body][part].len() {
                for bit in [1, 0x40, 0x80] {
                    let mut bad = good.clone();
                    let field = [&mut bad.schema, &mut bad.batch, &mut bad.body].into_iter().nth(part).unwrap();
                    let mut bytes = field.to_vec();
                    bytes[at] ^= bit;
                    *field = bytes.into();
                    // Typed, or other values.
                    let _ = bad.values();
                }
            }
        }
        let kind = |parameters: Parameters| parameters.values().map(|_| ()).unwrap_err().kind;
        assert_eq!(kind(Parameters::default()), ErrorKind::InvalidRequest);
        assert_eq!(kind(Parameters { body: Bytes::new(), ..good.clone() }), ErrorKind::InvalidRequest);
        assert_eq!(kind(of(vec![("0", Arc::new(Int64Array::from(vec![1, 2])))])), ErrorKind::InvalidRequest);
        let long: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(5 << 20)]));
        assert_eq!(kind(of(vec![("0", long)])), ErrorKind::ResourceExhausted);
        let small: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(1 << 20)]));
        let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
        assert_eq!(kind(with_options(vec![("0", small)], &options)), ErrorKind::InvalidRequest);
    }
}
