//! Decoding column chunks: whole, for the cache; in bands of rows, for what cannot fit.

use arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch, new_empty_array};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use bytes::Bytes;
use flightcache_proto::{Error, ErrorKind, Result};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use super::chunk::{Chunk, SLICE_ROWS};
use super::footer::{Footer, Rest, is_dictionary_encoded, is_string, parquet_error};
use crate::cache::compact;
use crate::object::Segments;

/// Arrays are kept below this, so that 32-bit offsets do not overflow.
const MAX_PIECE_BYTES: u64 = 1 << 30;
/// Strings with at most this many distinct values, each used four times or more on average, rest as dictionaries.
const MAX_DICTIONARY_VALUES: usize = 65_536;

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

/// Decodes root column `column` of a row group from its bytes, in one go: sizes are right only then.
///
/// CPU-bound; run it off the async threads. Strings whose pages are all dictionary-encoded and whose values repeat stay
/// dictionaries. The result owns right-sized buffers.
pub fn decode_chunk(footer: &Footer, row_group: u32, column: usize, segments: &Segments) -> Result<Chunk> {
    let url = footer.object.url();
    let field = footer.schema.field(column);
    let what = || format!("row group {row_group}, column {:?}", field.name());
    let rows = footer.row_group_rows(row_group);
    if rows == 0 {
        return Ok(Chunk::new(vec![new_empty_array(field.data_type())], SLICE_ROWS));
    }
    let group = footer.metadata.row_group(row_group as usize);
    let dictionary = is_string(field.data_type()) && footer.leaves(column).all(|leaf| is_dictionary_encoded(group.column(leaf)));
    let rest = if dictionary { Rest::Dictionaries } else { Rest::Plain };
    let estimate = footer.decoded_bytes_estimate(row_group, column).max(1);
    let piece_rows = match estimate.div_ceil(MAX_PIECE_BYTES) {
        1 => rows.next_multiple_of(SLICE_ROWS),
        pieces => (rows / pieces as usize).max(1).next_multiple_of(SLICE_ROWS),
    };
    let mut pieces = Vec::new();
    let mut piece_rows = piece_rows;
    loop {
        let reader = reader(footer, row_group, footer.mask(column), rest, segments, piece_rows);
        let read = reader
            .map_err(|e| parquet_error(url, &what(), &e))
            .and_then(|reader| reader.map(|batch| batch.map_err(|e| arrow_error(url, &what(), &e))).collect::<Result<Vec<_>>>());
        match read {
            Ok(batches) => {
                for batch in batches {
                    if batch.num_columns() != 1 {
                        return Err(Error::new(ErrorKind::Unsupported, format!("{url} {}: no Arrow type", what())));
                    }
                    // Out of the batch, so that nothing else holds the array and it can be shrunk in place.
                    let (_, mut columns, _) = batch.into_parts();
                    pieces.extend(columns.pop().map(|array| settle(array, field.data_type())).transpose()?);
                }
                break;
            }
            // Dictionaries can unfold beyond what 32-bit offsets address; the error says so and smaller pieces help.
            Err(error) if error.message.contains("overflow") && piece_rows > SLICE_ROWS => {
                piece_rows = (piece_rows / 4).next_multiple_of(SLICE_ROWS);
            }
            Err(error) => return Err(error),
        }
    }
    let chunk = Chunk::new(pieces, piece_rows);
    let short = chunk.pieces().iter().rev().skip(1).any(|piece| piece.len() != piece_rows);
    if chunk.rows() != rows || short {
        let message = format!("{url} {}: {} rows decoded, the footer states {rows}", what(), chunk.rows());
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(chunk)
}

/// How an array rests in the cache: a dictionary that does not repeat is unfolded; buffers are right-sized.
fn settle(array: ArrayRef, announced: &DataType) -> Result<ArrayRef> {
    let array = match array.as_any_dictionary_opt() {
        Some(dictionary) => {
            let values = dictionary.values().len();
            if values <= MAX_DICTIONARY_VALUES && values.saturating_mul(4) <= array.len() {
                array
            } else {
                cast(&array, announced).map_err(|e| Error::new(ErrorKind::Corrupt, format!("dictionary: {e}")))?
            }
        }
        None if array.data_type() != announced => {
            cast(&array, announced).map_err(|e| Error::new(ErrorKind::Unsupported, format!("type: {e}")))?
        }
        None => array,
    };
    Ok(compact(array))
}

/// The rows of some root columns, [`SLICE_ROWS`] at a time.
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
    let reader =
        reader(footer, row_group, mask, Rest::Plain, segments, SLICE_ROWS).map_err(|e| parquet_error(&url, "row group", &e))?;
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
