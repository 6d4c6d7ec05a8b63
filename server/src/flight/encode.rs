//! Record batches as Flight frames of bounded size, which share the arrays' memory wherever the format allows.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, MutableArrayData, RecordBatch, RecordBatchOptions, make_array};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions, StreamEncoder};
use flightcache_proto::accept::FOLDED_SCHEMA;
use flightcache_proto::{Compression, Error, ErrorKind, Result};

use super::batch::{BatchWriter, Measure, is_plain, message_bytes, write_dictionary};
use super::message::{Body, Frame};
use super::views::Slack;

/// No encoded message is larger. gRPC clients accept 4 MiB by default.
pub const MAX_FRAME_BYTES: usize = 2 << 20;
/// What is aimed at: measured best on the wire.
const TARGET_FRAME_BYTES: usize = 1 << 20;
/// Room for protobuf field headers and app metadata.
const ENVELOPE_BYTES: usize = 4 << 10;

/// Bytes between an IPC stream's messages and in front of them: a marker and a length.
const PREFIX_BYTES: usize = 8;

/// What all answers of one schema and compression have in common, made once.
pub struct Prepared {
    schema: SchemaRef,
    opening: Frame,
    options: IpcWriteOptions,
    /// Whether batches are written without `arrow-ipc`.
    is_plain: bool,
}

impl Prepared {
    /// Of the announced schema: it has no dictionaries. What is compressed shares no memory.
    pub fn new(schema: &SchemaRef, compression: Option<Compression>) -> Result<Self> {
        let codec = compression.map(|compression| match compression {
            Compression::Lz4 => CompressionType::LZ4_FRAME,
            Compression::Zstd => CompressionType::ZSTD,
        });
        let options = IpcWriteOptions::default().try_with_compression(codec);
        let options = options.map_err(|e| Error::internal(format!("encoding a schema: {e}")))?;
        let mut dictionaries = DictionaryTracker::new(false);
        let encoded = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(schema, &mut dictionaries, &options);
        let opening = Frame::new(encoded.ipc_message.into(), Body::default());
        if opening.len() + ENVELOPE_BYTES > MAX_FRAME_BYTES {
            let message = format!(
                "a schema of {} fields does not fit a message of {MAX_FRAME_BYTES} bytes; name fewer columns",
                schema.fields().len()
            );
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        let is_plain = codec.is_none() && schema.fields().iter().all(|field| is_plain(field.data_type()));
        Ok(Self { schema: Arc::clone(schema), opening, options, is_plain })
    }

    /// The frame that opens a stream.
    pub fn schema(&self) -> Frame {
        self.opening.clone()
    }
}

/// Encodes the batches of one stream.
pub struct Encoder {
    prepared: Arc<Prepared>,
    plain: BatchWriter,
    /// For compression, and for layouts that are not plain; there once it is needed.
    stream: Option<StreamEncoder>,
    /// What the receiver knows of columns that do not come in the announced types.
    folded: Folded,
}

/// Columns as dictionaries: the schema that was sent last, and the values.
#[derive(Default)]
struct Folded {
    schema: Option<SchemaRef>,
    values: Vec<Option<ArrayRef>>,
}

impl Encoder {
    /// An encoder of batches of this schema.
    pub fn new(schema: &SchemaRef, compression: Option<Compression>) -> Result<Self> {
        Ok(Self::prepared(&Arc::new(Prepared::new(schema, compression)?)))
    }

    /// An encoder for one more stream.
    pub fn prepared(prepared: &Arc<Prepared>) -> Self {
        Self { prepared: Arc::clone(prepared), plain: BatchWriter::default(), stream: None, folded: Folded::default() }
    }

    /// The frame that opens a stream.
    pub fn schema(&self) -> Frame {
        self.prepared.schema()
    }

    /// Whether batches may have dictionaries where values are announced.
    pub fn takes_dictionaries(&self) -> bool {
        self.prepared.is_plain
    }

    /// The frames of a batch, in row order: as few as stay near the target, none above the bound. Before them what they refer to:
    /// dictionaries, and the schema that has them.
    ///
    /// A single row that exceeds the bound is an error: no split can make it fit.
    pub fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        if self.prepared.is_plain {
            self.fold(batch, &mut frames)?;
        }
        let rows = batch.num_rows();
        let step = self.rows_per_frame(batch);
        let mut at = 0;
        while at < rows {
            let len = step.min(rows - at);
            self.push(&batch.slice(at, len), &mut frames)?;
            at += len;
        }
        Ok(frames)
    }

    /// Tells the receiver of the batch's dictionaries, as far as it does not know them.
    fn fold(&mut self, batch: &RecordBatch, frames: &mut Vec<Frame>) -> Result<()> {
        let schema = batch.schema_ref();
        let known = self.folded.schema.as_ref().unwrap_or(&self.prepared.schema);
        let is_known = Arc::ptr_eq(known, schema) || known.fields() == schema.fields();
        if !is_known {
            let mut metadata = schema.metadata().clone();
            metadata.insert(FOLDED_SCHEMA.to_owned(), String::new());
            let told = Schema::new_with_metadata(schema.fields().clone(), metadata);
            let mut dictionaries = DictionaryTracker::new(false);
            let options = &self.prepared.options;
            let encoded = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(&told, &mut dictionaries, options);
            frames.push(Frame::new(encoded.ipc_message.into(), Body::default()));
            self.folded = Folded { schema: Some(Arc::clone(schema)), values: Vec::new() };
        }
        let dictionaries = batch.columns().iter().filter_map(|column| column.as_any_dictionary_opt());
        for (number, dictionary) in dictionaries.enumerate() {
            let values = dictionary.values();
            self.folded.values.resize(self.folded.values.len().max(number + 1), None);
            if self.folded.values[number].as_ref().is_some_and(|sent| Arc::ptr_eq(sent, values)) {
                continue;
            }
            let frame = write_dictionary(number as i64, values).map_err(|e| Error::internal(format!("encoding: {e}")))?;
            if frame.len() + ENVELOPE_BYTES > MAX_FRAME_BYTES {
                return Err(Error::internal(format!("a dictionary of {} bytes is no message", frame.len())));
            }
            frames.push(frame);
            self.folded.values[number] = Some(Arc::clone(values));
        }
        Ok(())
    }

    fn push(&mut self, batch: &RecordBatch, frames: &mut Vec<Frame>) -> Result<()> {
        let rows = batch.num_rows();
        let mut frame = self.encode(batch, Slack::Half)?;
        if frame.len() + ENVELOPE_BYTES > MAX_FRAME_BYTES {
            if !self.prepared.is_plain {
                // The library sends whole buffers of some sliced types; a copy holds only these rows.
                frame = self.encode(&own(batch)?, Slack::None)?;
            } else if rows == 1 {
                frame = self.encode(batch, Slack::None)?;
            }
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

    fn encode(&mut self, batch: &RecordBatch, slack: Slack) -> Result<Frame> {
        let failed = |e: ArrowError| Error::internal(format!("encoding a batch: {e}"));
        if self.prepared.is_plain {
            return self.plain.write(batch, slack).map_err(failed);
        }
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let schema = &self.prepared.schema;
                let mut stream = StreamEncoder::try_new_with_options(schema, self.prepared.options.clone()).map_err(failed)?;
                // The library sends the schema with the first batch; here it has been sent.
                stream.encode(&RecordBatch::new_empty(Arc::clone(schema))).map_err(failed)?;
                none.insert(stream)
            }
        };
        let mut encoded = stream.encode(&compact_views(batch)?).map_err(failed)?.into_iter();
        let header = header(&mut encoded)?;
        Ok(Frame::new(header, encoded.collect()).with_rows(batch.num_rows()))
    }

    /// Rows that make a frame of about the target size, by the mean row of the batch.
    fn rows_per_frame(&self, batch: &RecordBatch) -> usize {
        let rows = batch.num_rows().max(1);
        let sum = |bytes: &dyn Fn(&ArrayRef) -> usize| batch.columns().iter().map(bytes).sum::<usize>();
        let bytes = if !self.prepared.is_plain {
            sum(&sliced_bytes)
        } else if sum(&|array| message_bytes(array, Measure::AtMost)) <= TARGET_FRAME_BYTES {
            return rows;
        } else {
            sum(&|array| message_bytes(array, Measure::Exactly))
        };
        let fitting = (rows * TARGET_FRAME_BYTES / bytes.max(1)).clamp(1, rows);
        // Bits are shared only from one byte boundary to the next.
        if fitting < rows && fitting > 64 { fitting / 64 * 64 } else { fitting }
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

fn sliced_bytes(array: &ArrayRef) -> usize {
    let views = match array.data_type() {
        DataType::Utf8View => array.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => array.as_binary_view().total_buffer_bytes_used(),
        _ => return array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_buffer_memory_size()),
    };
    views + array.len() * 17
}

/// Views at any level, over just the bytes they show: the library sends every buffer a view array holds, whole.
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
            // Copying the rows rids children of what lies outside the slice; then their views are compacted.
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

/// `take` would lose the number of lists that have no width.
fn copy(array: &ArrayRef) -> Result<ArrayRef> {
    let data = array.to_data();
    let mut copied = MutableArrayData::new(vec![&data], false, data.len());
    copied.try_extend(0, 0, data.len()).map_err(|e| Error::internal(format!("copying rows: {e}")))?;
    Ok(make_array(copied.freeze()))
}

#[cfg(test)]
mod tests;
