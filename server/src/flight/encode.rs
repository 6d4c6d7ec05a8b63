//! Record batches as Flight frames of bounded size.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch, RecordBatchOptions, UInt32Array, make_array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Schema};
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::FlightData;
use flightcache_proto::{Error, ErrorKind, Result};

/// No encoded message is larger. gRPC clients accept 4 MiB by default.
pub const MAX_FRAME_BYTES: usize = 2 << 20;
/// What is aimed at: measured best on the wire.
const TARGET_FRAME_BYTES: usize = 1 << 20;
/// Room for protobuf field headers and app metadata.
const ENVELOPE_BYTES: usize = 4 << 10;

/// Encodes the batches of one stream. Its schema has no dictionaries: the announced one never does.
#[derive(Default)]
pub struct Encoder {
    options: IpcWriteOptions,
    generator: IpcDataGenerator,
    context: IpcWriteContext,
}

impl Encoder {
    /// The frame that opens a stream.
    pub fn schema(&self, schema: &Schema) -> Result<FlightData> {
        let mut tracker = DictionaryTracker::new(false);
        let encoded = self.generator.schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &self.options);
        let frame = FlightData { data_header: encoded.ipc_message.into(), ..FlightData::default() };
        if frame.data_header.len() + ENVELOPE_BYTES > MAX_FRAME_BYTES {
            let message = format!(
                "a schema of {} fields does not fit a message of {MAX_FRAME_BYTES} bytes; name fewer columns",
                schema.fields().len()
            );
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        Ok(frame)
    }

    /// The frames of a batch, in row order: as few as stay near the target, none above the bound.
    ///
    /// A single row that exceeds the bound is an error: no split can make it fit.
    pub fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<FlightData>> {
        let mut frames = Vec::new();
        let rows = batch.num_rows();
        let step = rows_per_frame(batch);
        let mut at = 0;
        while at < rows {
            let len = step.min(rows - at);
            self.push(&batch.slice(at, len), &mut frames)?;
            at += len;
        }
        Ok(frames)
    }

    fn push(&mut self, batch: &RecordBatch, frames: &mut Vec<FlightData>) -> Result<()> {
        let rows = batch.num_rows();
        let mut frame = self.encode(batch)?;
        if frame_bytes(&frame) > MAX_FRAME_BYTES {
            // The writer sends whole buffers of some sliced types; a copy holds only these rows.
            frame = self.encode(&own(batch)?)?;
        }
        if frame_bytes(&frame) <= MAX_FRAME_BYTES {
            frames.push(frame);
            return Ok(());
        }
        if rows == 1 {
            let widest =
                batch.columns().iter().zip(batch.schema_ref().fields()).max_by_key(|(array, _)| array.get_buffer_memory_size());
            let name = widest.map_or("", |(_, field)| field.name());
            let message = format!(
                "one row holds {} bytes, more than a message's bound of {MAX_FRAME_BYTES}; its widest column is {name:?}",
                frame_bytes(&frame)
            );
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        drop(frame);
        self.push(&batch.slice(0, rows / 2), frames)?;
        self.push(&batch.slice(rows / 2, rows - rows / 2), frames)
    }

    fn encode(&mut self, batch: &RecordBatch) -> Result<FlightData> {
        let compacted = compact_views(batch)?;
        let mut tracker = DictionaryTracker::new(false);
        let encoded = self.generator.encode(&compacted, &mut tracker, &self.options, &mut self.context);
        let (dictionaries, batch) = encoded.map_err(|e| Error::internal(format!("encoding a batch: {e}")))?;
        if !dictionaries.is_empty() {
            return Err(Error::internal("an announced schema has a dictionary"));
        }
        Ok(FlightData { data_header: batch.ipc_message.into(), data_body: batch.arrow_data.into(), ..FlightData::default() })
    }
}

fn frame_bytes(frame: &FlightData) -> usize {
    frame.data_header.len() + frame.data_body.len() + ENVELOPE_BYTES
}

/// Rows that make a frame of about the target size, by the mean row of the batch.
fn rows_per_frame(batch: &RecordBatch) -> usize {
    let rows = batch.num_rows().max(1);
    let bytes: usize = batch.columns().iter().map(sliced_bytes).sum();
    (rows * TARGET_FRAME_BYTES / bytes.max(1)).clamp(1, rows.max(1))
}

fn sliced_bytes(array: &ArrayRef) -> usize {
    let views = match array.data_type() {
        DataType::Utf8View => array.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => array.as_binary_view().total_buffer_bytes_used(),
        _ => return array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_buffer_memory_size()),
    };
    views + array.len() * 17
}

/// Views at any level, over just the bytes they show: the writer sends every buffer a view array holds, whole.
fn compact_views(batch: &RecordBatch) -> Result<RecordBatch> {
    if !batch.schema_ref().fields().iter().any(|field| has_views(field.data_type())) {
        return Ok(batch.clone());
    }
    let columns = batch.columns().iter().map(compact).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(batch.schema(), columns, &options)
        .map_err(|e| Error::internal(format!("compacting views: {e}")))
}

fn has_views(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::List(field) | DataType::LargeList(field) | DataType::ListView(field) | DataType::LargeListView(field) => {
            has_views(field.data_type())
        }
        DataType::FixedSizeList(field, _) | DataType::Map(field, _) => has_views(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_views(field.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| has_views(field.data_type())),
        _ => false,
    }
}

fn compact(array: &ArrayRef) -> Result<ArrayRef> {
    match array.data_type() {
        DataType::Utf8View => Ok(Arc::new(array.as_string_view().gc())),
        DataType::BinaryView => Ok(Arc::new(array.as_binary_view().gc())),
        nested if has_views(nested) => {
            // Taking the rows rids children of what lies outside the slice; then their views are compacted.
            let array = copy(array)?;
            let data = array.to_data();
            let children = data
                .child_data()
                .iter()
                .map(|child| compact(&make_array(child.clone())).map(|child| child.to_data()))
                .collect::<Result<Vec<_>>>()?;
            let data = data
                .into_builder()
                .child_data(children)
                .build()
                .map_err(|e| Error::internal(format!("compacting views: {e}")))?;
            Ok(make_array(data))
        }
        _ => Ok(Arc::clone(array)),
    }
}

/// A batch that holds these rows and nothing else.
fn own(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(copy).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(batch.schema(), columns, &options)
        .map_err(|e| Error::internal(format!("copying rows: {e}")))
}

fn copy(array: &ArrayRef) -> Result<ArrayRef> {
    let rows = UInt32Array::from_iter_values(0..array.len() as u32);
    take(array, &rows, None).map_err(|e| Error::internal(format!("copying rows: {e}")))
}

#[cfg(test)]
mod tests {
    use arrow::array::{BinaryArray, Int64Array, ListArray, StringArray, StringViewArray, StructArray};
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::{Field, Int64Type};
    use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
    use futures::StreamExt as _;

    use super::*;

    async fn round_trip(batch: &RecordBatch) -> (Vec<FlightData>, Vec<RecordBatch>) {
        let mut encoder = Encoder::default();
        let frames = encoder.batch(batch).unwrap();
        let schema = encoder.schema(&batch.schema()).unwrap();
        let stream = futures::stream::iter(std::iter::once(schema).chain(frames.clone()).map(Ok));
        let decoded = FlightDataDecoder::new(stream).filter_map(|decoded| async move {
            match decoded.unwrap().payload {
                DecodedPayload::RecordBatch(batch) => Some(batch),
                _ => None,
            }
        });
        (frames, decoded.collect().await)
    }

    /// `row_bytes`: what a row holds on average.
    async fn check(name: &str, row_bytes: usize, array: ArrayRef) {
        let batch = RecordBatch::try_from_iter([("c", array)]).unwrap();
        for slice in [batch.clone(), batch.slice(batch.num_rows() / 3, batch.num_rows() / 3)] {
            let (frames, decoded) = round_trip(&slice).await;
            let largest = frames.iter().map(prost::Message::encoded_len).max().unwrap_or(0);
            assert!(largest <= MAX_FRAME_BYTES, "{name}: {largest}");
            let joined = arrow::compute::concat_batches(&slice.schema(), &decoded).unwrap();
            assert_eq!(joined, slice, "{name}");
            let bytes: usize = frames.iter().map(prost::Message::encoded_len).sum();
            let needed = slice.num_rows() * row_bytes;
            assert!(bytes <= needed + needed / 4 + (16 << 10), "{name}: {bytes} bytes sent for {needed}");
        }
    }

    #[tokio::test]
    async fn every_layout_stays_within_the_bound() {
        let long = |i: usize| "x".repeat(i % 7 * 100_000);
        check("ints", 8, Arc::new((0..500_000).collect::<Int64Array>())).await;
        check("long strings", 300_000, Arc::new((0..90).map(|i| Some(long(i))).collect::<StringArray>())).await;
        check("long views", 300_000, Arc::new((0..90).map(|i| Some(long(i))).collect::<StringViewArray>())).await;
        let text = |i: i32| Some(format!("a string longer than twelve {i:06}"));
        let views: ArrayRef = Arc::new((0..60_000).map(text).collect::<StringViewArray>());
        check("short views", 50, Arc::clone(&views)).await;
        let lists = (0..3_000).map(|i| Some((0..i % 900).map(|v| Some(i64::from(v))).collect::<Vec<_>>()));
        check("lists", 450 * 9, Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))).await;
        let field = Arc::new(Field::new("v", DataType::Utf8View, true));
        check("views in structs", 50, Arc::new(StructArray::from(vec![(Arc::clone(&field), Arc::clone(&views))]))).await;
        let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(20, 3_000));
        check("views in lists", 20 * 50 + 4, Arc::new(ListArray::new(field, offsets, views, None))).await;
        check("nothing", 1, Arc::new(arrow::array::NullArray::new(100_000))).await;
    }

    #[test]
    fn a_row_that_cannot_fit_is_refused_by_name() {
        let huge = BinaryArray::from(vec![&vec![7_u8; 3 << 20][..]]);
        let batch = RecordBatch::try_from_iter([("blob", Arc::new(huge) as ArrayRef)]).unwrap();
        let error = Encoder::default().batch(&batch).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ResourceExhausted);
        assert!(error.message.contains("blob"), "{error}");
    }
}
