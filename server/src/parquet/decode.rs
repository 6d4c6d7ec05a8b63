//! Decoding column chunks: whole, for the cache; in bands of rows, for what cannot fit.

use arrow::array::{Array, ArrayRef, AsArray as _, OffsetSizeTrait, RecordBatch, new_empty_array};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use bytes::Bytes;
use flightcache_proto::{Error, ErrorKind, Result};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use super::chunk::{Chunk, SLICE_ROWS};
use super::footer::{Footer, Rest, parquet_error};
use crate::cache::compact;
use crate::object::Segments;

/// Arrays are kept below this, so that 32-bit offsets do not overflow.
const MAX_PIECE_BYTES: u64 = 1 << 30;
/// Strings with at most this many distinct values, each used four times or more on average, rest as dictionaries.
const MAX_DICTIONARY_VALUES: usize = 65_536;

/// A dictionary is unfolded into at most as many times its bytes.
const MAX_UNFOLDING: u64 = 4;
/// Rows decoded before the size is looked at, where the metadata does not tell it.
const UNSURE_PIECE_ROWS: usize = 8 * SLICE_ROWS;
/// Rows of a band in that case.
const UNSURE_BAND_ROWS: usize = 512;

/// Page headers are shorter.
const HEADER_WINDOW: u64 = 64 << 10;

/// The fetched bytes of an object, as the Parquet reader wants them.
#[derive(Clone)]
struct Bytewise {
    segments: Segments,
    size: u64,
}

impl Length for Bytewise {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Bytewise {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        // Pages are read through `get_bytes`; this serves page headers, which are short.
        let tail = self.segments.tail(start).ok_or_else(|| outside(start))?;
        if (tail.len() as u64) < HEADER_WINDOW
            && let Some(joined) = (tail.len() as u64 + 1..=HEADER_WINDOW)
                .rev()
                .step_by(4 << 10)
                .find_map(|len| self.segments.get(start..start + len))
        {
            return Ok(bytes::Buf::reader(joined));
        }
        Ok(bytes::Buf::reader(tail))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let end = start.checked_add(length as u64).ok_or_else(|| outside(start))?;
        self.segments.get(start..end).ok_or_else(|| outside(start))
    }
}

fn outside(start: u64) -> ParquetError {
    ParquetError::EOF(format!("a page at byte {start} reaches beyond its column chunk"))
}

/// A reader of some root columns of one row group, `batch_rows` rows at a time.
fn reader(
    footer: &Footer,
    row_group: u32,
    mask: ProjectionMask,
    rest: Rest,
    segments: &Segments,
    batch_rows: usize,
) -> ParquetResult<ParquetRecordBatchReader> {
    let bytes = Bytewise { segments: segments.clone(), size: footer.size };
    ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, footer.reader_metadata(rest).clone())
        .with_row_groups(vec![row_group as usize])
        .with_projection(mask)
        .with_batch_size(batch_rows)
        .build()
}

/// Why a chunk was not decoded.
#[derive(Debug)]
pub enum DecodeError {
    /// It holds more bytes than it may grow to.
    TooLarge,
    /// Anything else.
    Failed(Error),
}

/// Decodes root column `column` of a row group from its bytes, in one go: sizes are right only then.
///
/// CPU-bound; run it off the async threads. Strings whose pages are all dictionary-encoded and whose values repeat stay
/// dictionaries. The result owns right-sized buffers. `grow` is asked whether the chunk may hold that many bytes, wherever
/// the metadata does not tell how many it will.
pub fn decode_chunk(
    footer: &Footer,
    row_group: u32,
    column: usize,
    segments: &Segments,
    grow: &mut dyn FnMut(u64) -> bool,
) -> Result<Chunk, DecodeError> {
    let url = footer.object.url();
    let field = footer.schema.field(column);
    let what = || format!("row group {row_group}, column {:?}", field.name());
    let fail = |kind, text: String| DecodeError::Failed(Error::new(kind, format!("{url} {}: {text}", what())));
    let rows = footer.row_group_rows(row_group);
    if rows == 0 {
        return Ok(Chunk::new(vec![new_empty_array(field.data_type())], SLICE_ROWS));
    }
    let rest = if footer.rests_as_dictionary(row_group, column) { Rest::Dictionaries } else { Rest::Plain };
    let is_size_unknown = footer.is_size_unknown(row_group, column);
    let estimate = footer.decoded_bytes_estimate(row_group, column).max(1);
    let mut piece_rows = match estimate.div_ceil(MAX_PIECE_BYTES) {
        1 => rows.next_multiple_of(SLICE_ROWS),
        pieces => (rows / pieces as usize).max(1).next_multiple_of(SLICE_ROWS),
    };
    if is_size_unknown {
        piece_rows = piece_rows.min(UNSURE_PIECE_ROWS);
    }
    let chunk = loop {
        let mut pieces = Vec::new();
        let mut bytes = 0;
        let mut read = || {
            let reader = reader(footer, row_group, footer.mask(column), rest, segments, piece_rows)
                .map_err(|e| DecodeError::Failed(parquet_error(url, &what(), &e)))?;
            for batch in reader {
                let batch = batch.map_err(|e| DecodeError::Failed(arrow_error(url, &what(), &e)))?;
                if batch.num_columns() != 1 {
                    return Err(fail(ErrorKind::Unsupported, "no Arrow type".to_owned()));
                }
                // Out of the batch, so that nothing else holds the array and it can be shrunk in place.
                let (_, mut columns, _) = batch.into_parts();
                let Some(array) = columns.pop() else { continue };
                let array =
                    settle(array, field.data_type(), &mut |more| grow(bytes + more)).map_err(|(kind, text)| fail(kind, text))?;
                if is_size_unknown {
                    bytes += array.get_array_memory_size() as u64;
                    if !grow(bytes) {
                        return Err(DecodeError::TooLarge);
                    }
                }
                pieces.push(array);
            }
            Ok(())
        };
        match read() {
            Ok(()) => break Chunk::new(pieces, piece_rows),
            // Dictionaries can unfold beyond what 32-bit offsets address; the error says so and smaller pieces help.
            Err(DecodeError::Failed(error)) if error.message.contains("overflow") && piece_rows > SLICE_ROWS => {
                piece_rows = (piece_rows / 4).next_multiple_of(SLICE_ROWS);
            }
            Err(error) => return Err(error),
        }
    };
    let short = chunk.pieces().iter().rev().skip(1).any(|piece| piece.len() != piece_rows);
    if chunk.rows() != rows || short {
        return Err(fail(ErrorKind::Corrupt, format!("{} rows decoded, the footer states {rows}", chunk.rows())));
    }
    Ok(chunk)
}

/// How an array rests in the cache: a dictionary that hardly repeats is unfolded, if that does not make it much larger and
/// `grow` allows it; buffers are right-sized.
fn settle(array: ArrayRef, announced: &DataType, grow: &mut dyn FnMut(u64) -> bool) -> Result<ArrayRef, (ErrorKind, String)> {
    let unfold = match array.as_any_dictionary_opt() {
        Some(dictionary) => {
            let values = dictionary.values().len();
            let repeats = values <= MAX_DICTIONARY_VALUES && values.saturating_mul(4) <= array.len();
            let unfolded = unfolded_bytes(&array);
            !repeats
                && unfolded <= MAX_PIECE_BYTES
                && unfolded <= array.get_array_memory_size() as u64 * MAX_UNFOLDING
                && grow(unfolded)
        }
        None => array.data_type() != announced,
    };
    let array = if unfold {
        cast(&array, announced).map_err(|e| {
            let kind = if array.as_any_dictionary_opt().is_some() { ErrorKind::Corrupt } else { ErrorKind::Unsupported };
            (kind, e.to_string())
        })?
    } else {
        array
    };
    Ok(compact(array))
}

/// Bytes the rows of a dictionary take once unfolded; 0 for other arrays.
pub(super) fn unfolded_bytes(array: &ArrayRef) -> u64 {
    let Some(dictionary) = array.as_any_dictionary_opt() else { return 0 };
    let lengths = value_lengths(dictionary.values());
    if lengths.is_empty() {
        return array.len() as u64 * 8;
    }
    let nulls = dictionary.logical_nulls();
    let is_valid = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
    let keys = dictionary.normalized_keys();
    keys.iter().enumerate().filter(|(row, _)| is_valid(*row)).map(|(_, &key)| lengths[key]).sum::<u64>() + 8 * keys.len() as u64
}

/// Lengths of the strings a dictionary holds, in bytes.
pub(super) fn value_lengths(values: &ArrayRef) -> Vec<u64> {
    fn of<O: OffsetSizeTrait>(offsets: &[O]) -> Vec<u64> {
        offsets.windows(2).map(|pair| (pair[1].as_usize() - pair[0].as_usize()) as u64).collect()
    }
    match values.data_type() {
        DataType::Utf8 => of(values.as_string::<i32>().value_offsets()),
        DataType::LargeUtf8 => of(values.as_string::<i64>().value_offsets()),
        // Only strings rest as dictionaries, so there are no others.
        _ => vec![values.get_array_memory_size() as u64; values.len()],
    }
}

/// The rows of some root columns, at most [`SLICE_ROWS`] at a time.
pub struct Bands {
    reader: ParquetRecordBatchReader,
    url: String,
    /// Rows the footer states beyond those handed out.
    left: usize,
}

/// Decodes root columns of a row group band by band: memory stays at the fetched bytes plus one band.
///
/// The batches hold the columns in file order.
pub fn decode_bands(footer: &Footer, row_group: u32, columns: &[usize], segments: &Segments) -> Result<Bands> {
    let url = footer.object.url().to_owned();
    let mask = ProjectionMask::leaves(
        footer.metadata.file_metadata().schema_descr(),
        columns.iter().flat_map(|&column| footer.leaves(column)),
    );
    let unsure =
        columns.iter().any(|&column| footer.is_size_unknown(row_group, column) || footer.rests_as_dictionary(row_group, column));
    let band_rows = if unsure { UNSURE_BAND_ROWS } else { SLICE_ROWS };
    let reader =
        reader(footer, row_group, mask, Rest::Plain, segments, band_rows).map_err(|e| parquet_error(&url, "row group", &e))?;
    Ok(Bands { reader, url, left: footer.row_group_rows(row_group) })
}

impl Iterator for Bands {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let short = |left| Error::new(ErrorKind::Corrupt, format!("{}: {left} rows fewer than the footer states", self.url));
        match self.reader.next() {
            Some(Ok(band)) => {
                self.left = self.left.saturating_sub(band.num_rows());
                Some(Ok(band))
            }
            Some(Err(error)) => Some(Err(arrow_error(&self.url, "row group", &error))),
            None => (self.left > 0).then(|| Err(short(std::mem::take(&mut self.left)))),
        }
    }
}

fn arrow_error(url: &str, what: &str, error: &arrow::error::ArrowError) -> Error {
    let text = error.to_string();
    let kind = if text.contains("not yet implemented") || text.contains("NYI") || text.contains("not supported") {
        ErrorKind::Unsupported
    } else if text.contains("index overflow decoding byte array") {
        // More than 2 GiB of strings in the fewest rows that are decoded at a time.
        ErrorKind::ResourceExhausted
    } else {
        ErrorKind::Corrupt
    };
    Error::new(kind, format!("{url} {what}: {text}"))
}
