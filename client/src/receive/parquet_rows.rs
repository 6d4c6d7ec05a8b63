//! Row groups that come as Parquet: put together from their pieces, then decoded beside the tasks that receive.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, RecordBatchReader};
use arrow::buffer::Buffer;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use flightcache_proto::parquet::{MAX_FILE_BYTES, ParquetPiece};
use flightcache_proto::{Error, ErrorKind, Result, thrift};
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use parquet::arrow::{ProjectionMask, parquet_to_arrow_field_levels};
use parquet::basic::{Encoding, Type};
use parquet::column::page::Page;
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

/// Row groups that are there: one is being read, the next is decoded until its reader comes.
const ROW_GROUPS_AHEAD: usize = 2;
/// Batches of a row group that wait for their reader.
const BATCHES_AHEAD: usize = 2;
/// Batches aim at this many bytes.
const TARGET_BATCH_BYTES: u64 = 1 << 20;
/// And have so many rows, whatever these take, …
const BATCH_ROWS: std::ops::RangeInclusive<u64> = 8_192..=65_536;
/// … unless they could take more than this. A single row may.
const MAX_BATCH_BYTES: u64 = 64 << 20;
/// Bytes that values are taken for where nothing tells: so many that no batch is beyond what 32-bit offsets address, of values
/// that could have come as Arrow.
const UNSURE_VALUE_BYTES: u64 = 128 << 10;
/// Where values take more than this together, a few of them may be most of it.
const SURE_CHUNK_BYTES: u64 = 1 << 30;

/// The row groups of an answer that came as Parquet and are not read yet.
#[derive(Debug, Default)]
pub(super) struct ParquetRows {
    partial: Option<Partial>,
    decoding: VecDeque<Decoding>,
}

/// A file of which pieces are missing.
#[derive(Debug)]
struct Partial {
    /// What announced its first piece.
    announced: ParquetPiece,
    bytes: Vec<u8>,
}

/// A row group on its way into batches. Dropped, it stops before the next one.
#[derive(Debug)]
struct Decoding {
    batches: mpsc::Receiver<Result<RecordBatch>>,
    _task: AbortOnDropHandle<()>,
}

/// A row group that is being decoded.
struct Batches {
    reader: ParquetRecordBatchReader,
    schema: SchemaRef,
    /// Rows that its footer states beyond those handed out.
    left: u64,
    /// Rows of a batch, unless they take more than batches should.
    rows: usize,
    what: String,
}

/// How many rows are decoded.
struct Steps {
    /// For a batch, unless these take more than it should.
    rows: usize,
    /// At a time: as many as certainly do not take much more.
    at_a_time: usize,
}

/// A batch and what is left; `None` if nothing is.
type Decoded = Result<Option<(RecordBatch, Batches)>>;

impl ParquetRows {
    /// Whether all that came has been read.
    pub(super) fn is_empty(&self) -> bool {
        self.decoding.is_empty()
    }

    /// Whether pieces of another row group may come.
    pub(super) fn has_room(&self) -> bool {
        self.decoding.len() < ROW_GROUPS_AHEAD
    }

    /// Whether no row group is cut off.
    pub(super) fn is_complete(&self) -> bool {
        self.partial.is_none()
    }

    /// Takes a piece; the last one of a row group starts its decoding. Runs within Tokio.
    pub(super) fn push(&mut self, piece: &ParquetPiece, body: &Buffer, schema: &SchemaRef) -> Result<()> {
        let partial = match self.partial.take() {
            Some(partial) => partial,
            None if piece.total_bytes > MAX_FILE_BYTES => {
                return Err(malformed(piece, &format!("{} bytes, more than {MAX_FILE_BYTES}", piece.total_bytes)));
            }
            None => Partial { bytes: Vec::with_capacity(piece.total_bytes as usize), announced: piece.clone() },
        };
        let Partial { announced, mut bytes } = partial;
        if piece.offset != bytes.len() as u64 || (ParquetPiece { offset: 0, ..piece.clone() }) != announced {
            return Err(malformed(&announced, "its pieces do not follow each other"));
        }
        if body.len() as u64 > announced.total_bytes - piece.offset {
            return Err(malformed(&announced, "its pieces are longer than it"));
        }
        bytes.extend_from_slice(body);
        if (bytes.len() as u64) < announced.total_bytes {
            self.partial = Some(Partial { announced, bytes });
        } else {
            self.decoding.push_back(Decoding::start(announced, bytes.into(), Arc::clone(schema)));
        }
        Ok(())
    }

    /// The next batch of the oldest row group; `None` once it is through. May be dropped while it waits.
    pub(super) async fn next_batch(&mut self) -> Option<Result<RecordBatch>> {
        let decoding = self.decoding.front_mut()?;
        if let Some(batch) = decoding.batches.recv().await {
            return Some(batch);
        }
        self.decoding.pop_front();
        None
    }
}

fn what(piece: &ParquetPiece) -> String {
    format!("{} row group {}", piece.url, piece.row_group)
}

fn malformed(piece: &ParquetPiece, why: &str) -> Error {
    Error::internal(format!("{}: the server's Parquet cannot be put together: {why}", what(piece)))
}

impl Decoding {
    fn start(announced: ParquetPiece, file: Bytes, schema: SchemaRef) -> Self {
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let task = tokio::spawn(async move {
            let what = what(&announced);
            let mut next: Box<dyn FnOnce() -> Decoded + Send> =
                Box::new(move || Batches::open(&announced, file, schema)?.next_batch());
            // A reader is awaited here, not by the thread that decodes: there are so many of those, and one of them may be what
            // the readers wait for.
            while let Ok(room) = sender.reserve().await {
                match tokio::task::spawn_blocking(next).await {
                    Ok(Ok(Some((batch, batches)))) => {
                        room.send(Ok(batch));
                        next = Box::new(move || batches.next_batch());
                    }
                    Ok(Ok(None)) => return,
                    Ok(Err(error)) => return room.send(Err(error)),
                    Err(panic) => return room.send(Err(gave_up(&what, panic))),
                }
            }
        });
        Self { batches, _task: AbortOnDropHandle::new(task) }
    }
}

/// The error of a decoder that panicked.
fn gave_up(what: &str, panic: JoinError) -> Error {
    let why = panic.try_into_panic().ok().and_then(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        text.map(ToOwned::to_owned)
    });
    let why = why.unwrap_or_else(|| "no reason given".to_owned());
    Error::internal(format!("{what}: the decoder gave up: {why}"))
}

impl Batches {
    fn open(announced: &ParquetPiece, file: Bytes, schema: SchemaRef) -> Result<Self> {
        let what = what(announced);
        let internal = |why: &str| Error::internal(format!("{what}: the server's Parquet cannot be read: {why}"));
        if !is_footer_plausible(&file) {
            return Err(internal("its footer's lengths and sizes do not fit its bytes"));
        }
        let unreadable = |e: ParquetError| internal(&e.to_string());
        let file: Arc<dyn FileReader> = Arc::new(SerializedFileReader::new(file).map_err(unreadable)?);
        let metadata = file.metadata();
        if metadata.num_row_groups() != 1 || u64::try_from(metadata.row_group(0).num_rows()) != Ok(announced.rows) {
            return Err(internal("its rows are not those announced"));
        }
        let descriptor = metadata.file_metadata().schema_descr();
        let levels =
            parquet_to_arrow_field_levels(descriptor, ProjectionMask::all(), Some(schema.fields())).map_err(unreadable)?;
        let Some(Steps { rows, at_a_time }) = steps(&file).map_err(|e| corrupt(&what, &e.to_string()))? else {
            let message = format!("{what}: a row takes more than {MAX_BATCH_BYTES} bytes");
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        };
        let reader = ParquetRecordBatchReader::try_new_with_row_groups(&levels, &file, at_a_time, None);
        let reader = reader.map_err(|e| corrupt(&what, &e.to_string()))?;
        let types = |schema: &SchemaRef| schema.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>();
        if types(&RecordBatchReader::schema(&reader)) != types(&schema) {
            return Err(internal("its types are not those announced"));
        }
        Ok(Self { reader, schema, left: announced.rows, rows, what })
    }

    fn next_batch(mut self) -> Decoded {
        let (mut parts, mut rows, mut bytes) = (Vec::new(), 0, 0);
        while rows < self.rows && bytes < TARGET_BATCH_BYTES {
            let Some(part) = self.decode()? else { break };
            rows += part.num_rows();
            bytes += part.get_array_memory_size() as u64;
            parts.push(part);
        }
        let batch = match parts.len() {
            0 => return Ok(None),
            1 => parts.swap_remove(0),
            _ => concat_batches(&self.schema, &parts).map_err(|e| corrupt(&self.what, &e.to_string()))?,
        };
        Ok(Some((batch, self)))
    }

    fn decode(&mut self) -> Result<Option<RecordBatch>> {
        let Some(batch) = self.reader.next() else {
            return match std::mem::take(&mut self.left) {
                0 => Ok(None),
                left => Err(corrupt(&self.what, &format!("{left} rows fewer than its footer states"))),
            };
        };
        let batch = batch.map_err(|e| {
            let error = corrupt(&self.what, &e.to_string());
            // More than 2 GiB in as few rows as are decoded at a time.
            let is_too_much = error.message.contains("index overflow decoding byte array");
            if is_too_much { Error { kind: ErrorKind::ResourceExhausted, ..error } } else { error }
        })?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let (_, columns, rows) = batch.into_parts();
        let left = self.left.checked_sub(rows as u64);
        self.left = left.ok_or_else(|| corrupt(&self.what, "more rows than its footer states"))?;
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        batch.map(Some).map_err(|e| corrupt(&self.what, &e.to_string()))
    }
}

/// Whole as it came: what does not decode is the object's fault.
fn corrupt(what: &str, why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what}: {why}"))
}

/// Whether a footer may be read: the reader makes room for what it states.
fn is_footer_plausible(file: &[u8]) -> bool {
    let footer = file.strip_suffix(b"PAR1").and_then(|rest| {
        let (rest, length) = rest.split_last_chunk()?;
        rest.get(rest.len().checked_sub(u32::from_le_bytes(*length) as usize)?..)
    });
    footer.is_some_and(thrift::is_plausible)
}

/// Rows of a batch, so that it takes about as many bytes as it should, and never very many more; `None` if a single one does,
/// by its footer.
fn steps(file: &Arc<dyn FileReader>) -> Result<Option<Steps>, ParquetError> {
    let group = file.metadata().row_group(0);
    let rows = u64::try_from(group.num_rows()).unwrap_or(0).max(1);
    let (mut told, mut mean, mut most) = (0_u64, 1_u64, 1_u64);
    for (at, chunk) in group.columns().iter().enumerate() {
        let values = (u64::try_from(chunk.num_values()).unwrap_or(0) / rows).max(1);
        let width = value_bytes(file, at, chunk)?;
        told = values.saturating_mul(width.told).saturating_add(told);
        mean = values.saturating_mul(width.mean).saturating_add(mean);
        most = values.saturating_mul(width.most).saturating_add(most);
    }
    if told > MAX_BATCH_BYTES {
        return Ok(None);
    }
    let rows = (TARGET_BATCH_BYTES / mean).clamp(*BATCH_ROWS.start(), *BATCH_ROWS.end());
    Ok(Some(Steps { rows: rows as usize, at_a_time: rows.min(MAX_BATCH_BYTES / most).max(1) as usize }))
}

/// Bytes of a column's values once they are decoded.
#[derive(Clone, Copy)]
struct Width {
    /// The mean by the footer alone, which the server has seen, too.
    told: u64,
    mean: u64,
    /// Of the longest one, as far as that can be told without decoding.
    most: u64,
}

fn value_bytes(file: &Arc<dyn FileReader>, at: usize, chunk: &ColumnChunkMetaData) -> Result<Width, ParquetError> {
    let fixed = |width| Width { told: width, mean: width, most: width };
    match chunk.column_type() {
        Type::BOOLEAN => return Ok(fixed(1)),
        Type::INT32 | Type::FLOAT => return Ok(fixed(4)),
        Type::INT64 | Type::DOUBLE | Type::INT96 => return Ok(fixed(8)),
        Type::FIXED_LEN_BYTE_ARRAY => return Ok(fixed(u64::try_from(chunk.column_descr().type_length()).unwrap_or(0).max(16))),
        Type::BYTE_ARRAY => {}
    }
    let values = u64::try_from(chunk.num_values()).unwrap_or(0).max(1);
    let stated = chunk.unencoded_byte_array_data_bytes().and_then(|bytes| u64::try_from(bytes).ok());
    let bytes = stated.unwrap_or(chunk.uncompressed_size().unsigned_abs());
    let mean = 8 + bytes / values;
    if stated.is_some_and(|bytes| bytes <= MAX_BATCH_BYTES) {
        return Ok(fixed(mean));
    }
    // What is stated is shared out somehow; what is not may be many times its encoding, where values share their beginnings.
    let is_unsure = bytes > SURE_CHUNK_BYTES || (stated.is_none() && chunk.encodings_mask().is_set(Encoding::DELTA_BYTE_ARRAY));
    let width = if is_unsure { Width { most: mean.max(UNSURE_VALUE_BYTES), ..fixed(mean) } } else { fixed(mean) };
    if chunk.dictionary_page_offset().is_none() {
        return Ok(width);
    }
    // A few bytes of a page may stand for any value of the dictionary.
    let mut pages = file.get_row_group(0)?.get_column_page_reader(at)?;
    let Some(Page::DictionaryPage { buf, num_values, .. }) = pages.get_next_page()? else { return Ok(width) };
    let usual = 8 + buf.len() as u64 / u64::from(num_values.max(1));
    Ok(Width { told: mean, mean: usual.max(mean), most: longest(&buf).max(width.most) })
}

/// Bytes of the longest of values that are written one after the other, each behind its length.
fn longest(mut values: &[u8]) -> u64 {
    let mut longest = 0;
    while let Some((length, rest)) = values.split_first_chunk() {
        let length = u32::from_le_bytes(*length);
        longest = longest.max(u64::from(length));
        values = rest.get(length as usize..).unwrap_or_default();
    }
    longest
}
