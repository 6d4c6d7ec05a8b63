//! The values of a predicate: Arrow arrays, as one record batch of lists.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, LargeListArray, RecordBatch, RecordBatchOptions};
use arrow::buffer::{Buffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::read_record_batch;
use arrow::ipc::root_as_message;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use flightcache_proto::predicate::Values;
use flightcache_proto::{Error, Result};

/// Whether values of a type have a form that every reader knows: neither nested nor encoded.
pub(super) fn is_sendable(data_type: &DataType) -> bool {
    !data_type.is_nested() && !matches!(data_type, DataType::Dictionary(..) | DataType::RunEndEncoded(..))
}

/// Lists of values as a message. `None` where Arrow cannot say them.
pub(super) fn write(lists: Vec<ArrayRef>) -> Option<Values> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (number, items) in lists.into_iter().enumerate() {
        let item = Arc::new(Field::new("item", items.data_type().clone(), true));
        let list = LargeListArray::try_new(item, OffsetBuffer::from_lengths([items.len()]), items, None).ok()?;
        fields.push(Field::new(number.to_string(), list.data_type().clone(), false));
        columns.push(Arc::new(list));
    }
    let schema = Arc::new(Schema::new(fields));
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options).ok()?;
    let (generator, options, mut tracker) =
        (IpcDataGenerator::default(), IpcWriteOptions::default(), DictionaryTracker::new(false));
    let encoded = generator.schema_to_bytes_with_dictionary_tracker(&schema, &mut tracker, &options);
    let (_, batch) = generator.encode(&batch, &mut tracker, &options, &mut IpcWriteContext::default()).ok()?;
    Some(Values { schema: encoded.ipc_message, batch: batch.ipc_message, body: batch.arrow_data })
}

/// The lists of a message from anywhere.
pub(super) fn read(values: &Values) -> Result<Vec<ArrayRef>> {
    // The readers trust lengths and types to agree.
    let read = std::panic::catch_unwind(AssertUnwindSafe(|| try_read(values)));
    let read = read.unwrap_or_else(|_| Err("their lengths and types contradict each other".to_owned()));
    read.map_err(|e| Error::invalid(format!("the values of the predicate cannot be read: {e}")))
}

fn try_read(values: &Values) -> Result<Vec<ArrayRef>, String> {
    let schema = root_as_message(&values.schema).map_err(|e| e.to_string())?;
    let schema = Arc::new(fb_to_schema(schema.header_as_schema().ok_or("their schema is none")?));
    if !schema
        .fields()
        .iter()
        .all(|field| matches!(field.data_type(), DataType::LargeList(item) if is_sendable(item.data_type())))
    {
        return Err("they are not lists of plain values".to_owned());
    }
    let message = root_as_message(&values.batch).map_err(|e| e.to_string())?;
    let batch = message.header_as_record_batch().ok_or("their batch is none")?;
    if batch.compression().is_some() {
        return Err("they are compressed".to_owned());
    }
    let within = |buffer: &arrow::ipc::Buffer| {
        let (offset, length) = (u64::try_from(buffer.offset()).ok()?, u64::try_from(buffer.length()).ok()?);
        (offset.checked_add(length)? <= values.body.len() as u64).then_some(())
    };
    if batch.length() != 1 || !batch.buffers().into_iter().flatten().all(|buffer| within(buffer).is_some()) {
        return Err("they are not one row within their body".to_owned());
    }
    let body = Buffer::from(values.body.as_slice());
    let batch =
        read_record_batch(&body, batch, schema, &HashMap::default(), None, &message.version()).map_err(|e| e.to_string())?;
    let lists = batch.columns().iter().map(|column| column.as_list::<i64>().value(0));
    let lists: Vec<_> = lists.collect();
    for items in &lists {
        items.to_data().validate_full().map_err(|e| e.to_string())?;
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringViewArray, TimestampMicrosecondArray};

    use super::*;

    fn lists() -> Vec<ArrayRef> {
        vec![
            Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])),
            Arc::new(StringViewArray::from(vec![Some("a"), Some("a string of more than twelve bytes")])),
            Arc::new(TimestampMicrosecondArray::from(vec![7]).with_timezone("Europe/Berlin")),
        ]
    }

    #[test]
    fn lists_arrive_as_they_are() {
        assert_eq!(read(&write(lists()).unwrap()).unwrap(), lists());
    }

    #[test]
    fn garbage_is_refused() {
        let good = write(lists()).unwrap();
        for part in 0..3 {
            let bytes = [&good.schema, &good.batch, &good.body][part];
            for at in 0..bytes.len() {
                for bit in [1, 0x40, 0x80] {
                    let mut bad = good.clone();
                    [&mut bad.schema, &mut bad.batch, &mut bad.body][part][at] ^= bit;
                    // Typed, or other values.
                    let _ = read(&bad);
                }
            }
        }
        assert!(read(&Values { body: good.body[..good.body.len() / 2].to_vec(), ..good.clone() }).is_err());
        assert!(read(&Values::default()).is_err());
    }
}
