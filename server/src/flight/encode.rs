//! Record batches as Flight frames of bounded size, which share the arrays' memory wherever the format allows.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch, RecordBatchOptions, UInt32Array, make_array};
use arrow::buffer::Buffer;
use arrow::compute::take;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{IpcWriteOptions, StreamEncoder};
use flightcache_proto::{Compression, Error, ErrorKind, Result};

use super::message::Frame;

/// No encoded message is larger. gRPC clients accept 4 MiB by default.
pub const MAX_FRAME_BYTES: usize = 2 << 20;
/// What is aimed at: measured best on the wire.
const TARGET_FRAME_BYTES: usize = 1 << 20;
/// Room for protobuf field headers and app metadata.
const ENVELOPE_BYTES: usize = 4 << 10;

/// Bytes between an IPC stream's messages and in front of them: a marker and a length.
const PREFIX_BYTES: usize = 8;

/// Encodes the batches of one stream. Its schema has no dictionaries: the announced one never does.
pub struct Encoder {
    stream: StreamEncoder,
    schema: Frame,
}

impl Encoder {
    /// An encoder of batches of this schema. What is compressed shares no memory.
    pub fn new(schema: &SchemaRef, compression: Option<Compression>) -> Result<Self> {
        let codec = compression.map(|compression| match compression {
            Compression::Lz4 => CompressionType::LZ4_FRAME,
            Compression::Zstd => CompressionType::ZSTD,
        });
        let stream = IpcWriteOptions::default()
            .try_with_compression(codec)
            .and_then(|options| StreamEncoder::try_new_with_options(schema, options));
        let mut stream = stream.map_err(|e| Error::internal(format!("encoding a schema: {e}")))?;
        // The library sends the schema with the first batch; it is needed before there is one.
        let encoded = stream.encode(&RecordBatch::new_empty(Arc::clone(schema)));
        let mut encoded = encoded.map_err(|e| Error::internal(format!("encoding a schema: {e}")))?.into_iter();
        let schema_frame = Frame::new(header(&mut encoded)?, []);
        if schema_frame.len() + ENVELOPE_BYTES > MAX_FRAME_BYTES {
            let message = format!(
                "a schema of {} fields does not fit a message of {MAX_FRAME_BYTES} bytes; name fewer columns",
                schema.fields().len()
            );
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        Ok(Self { stream, schema: schema_frame })
    }

    /// The frame that opens a stream.
    pub fn schema(&self) -> Frame {
        self.schema.clone()
    }

    /// The frames of a batch, in row order: as few as stay near the target, none above the bound.
    ///
    /// A single row that exceeds the bound is an error: no split can make it fit.
    pub fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<Frame>> {
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

    fn push(&mut self, batch: &RecordBatch, frames: &mut Vec<Frame>) -> Result<()> {
        let rows = batch.num_rows();
        let mut frame = self.encode(batch)?;
        if frame.len() + ENVELOPE_BYTES > MAX_FRAME_BYTES {
            // The writer sends whole buffers of some sliced types; a copy holds only these rows.
            frame = self.encode(&own(batch)?)?;
        }
        if frame.len() + ENVELOPE_BYTES <= MAX_FRAME_BYTES {
            frames.push(frame);
            return Ok(());
        }
        if rows == 1 {
            let widest =
                batch.columns().iter().zip(batch.schema_ref().fields()).max_by_key(|(array, _)| array.get_buffer_memory_size());
            let name = widest.map_or("", |(_, field)| field.name());
            let message = format!(
                "one row holds {} bytes, more than a message's bound of {MAX_FRAME_BYTES}; its widest column is {name:?}",
                frame.len()
            );
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        drop(frame);
        self.push(&batch.slice(0, rows / 2), frames)?;
        self.push(&batch.slice(rows / 2, rows - rows / 2), frames)
    }

    fn encode(&mut self, batch: &RecordBatch) -> Result<Frame> {
        let encoded = self.stream.encode(&compact_views(batch)?);
        let mut encoded = encoded.map_err(|e| Error::internal(format!("encoding a batch: {e}")))?.into_iter();
        let header = header(&mut encoded)?;
        Ok(Frame::new(header, encoded).with_rows(batch.num_rows()))
    }
}

/// Takes the metadata of the next message off the buffers of a stream, with what surrounds it.
fn header(encoded: &mut impl Iterator<Item = Buffer>) -> Result<Buffer> {
    let mut next = || encoded.next().ok_or_else(|| Error::internal("encoding: a message is cut off"));
    let prefix = next()?;
    let length: Option<[u8; 4]> = prefix.get(PREFIX_BYTES - 4..).and_then(|length| length.try_into().ok());
    let padded = length.map_or(0, |length| u32::from_le_bytes(length) as usize);
    let metadata = next()?;
    if metadata.len() < padded {
        next()?;
    }
    Ok(metadata)
}

/// Rows that make a frame of about the target size, by the mean row of the batch.
fn rows_per_frame(batch: &RecordBatch) -> usize {
    let rows = batch.num_rows().max(1);
    let bytes: usize = batch.columns().iter().map(sliced_bytes).sum();
    let fitting = (rows * TARGET_FRAME_BYTES / bytes.max(1)).clamp(1, rows);
    // Bits are shared only from one byte boundary to the next.
    if fitting < rows && fitting > 64 { fitting / 64 * 64 } else { fitting }
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
    use arrow_flight::FlightData;
    use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
    use bytes::Buf as _;
    use futures::StreamExt as _;

    use super::*;

    fn flight_data(frame: Frame) -> FlightData {
        let mut message = frame.into_message(b"", None);
        message.advance(5);
        prost::Message::decode(message).unwrap()
    }

    async fn round_trip(batch: &RecordBatch, compression: Option<Compression>) -> (Vec<FlightData>, Vec<RecordBatch>) {
        let mut encoder = Encoder::new(&batch.schema(), compression).unwrap();
        let frames: Vec<_> = encoder.batch(batch).unwrap().into_iter().map(flight_data).collect();
        let schema = flight_data(encoder.schema());
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
            for compression in [Compression::Lz4, Compression::Zstd] {
                let (frames, decoded) = round_trip(&slice, Some(compression)).await;
                assert!(
                    frames.iter().all(|frame| prost::Message::encoded_len(frame) <= MAX_FRAME_BYTES),
                    "{name}, {compression:?}"
                );
                let joined = arrow::compute::concat_batches(&slice.schema(), &decoded).unwrap();
                assert_eq!(joined, slice, "{name}, {compression:?}");
            }
            let (frames, decoded) = round_trip(&slice, None).await;
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
        let error = Encoder::new(&batch.schema(), None).unwrap().batch(&batch).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ResourceExhausted);
        assert!(error.message.contains("blob"), "{error}");
    }
}
