//! A decoded column chunk.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _};
use arrow::datatypes::DataType;
use flightcache_proto::{Error, Result};

use super::decode::{unfolded_bytes, value_lengths};

/// Rows between the boundaries at which every chunk can be sliced without copying.
pub const SLICE_ROWS: usize = 8_192;

/// One root column of one row group, decoded. The unit of caching.
///
/// Held in one array, except where its bytes would overflow 32-bit offsets: then in pieces of `piece_rows` rows, a multiple
/// of [`SLICE_ROWS`].
#[derive(Debug)]
pub struct Chunk {
    pieces: Vec<ArrayRef>,
    piece_rows: usize,
    rows: usize,
    row_bytes: u64,
    /// Of the values of dictionaries, if there are any.
    longest_value_bytes: Option<u64>,
}

impl Chunk {
    /// A chunk of pieces of `piece_rows` rows each, the last one shorter.
    pub fn new(pieces: Vec<ArrayRef>, piece_rows: usize) -> Self {
        let rows = pieces.iter().map(Array::len).sum::<usize>();
        let values: Vec<Vec<u64>> =
            pieces.iter().filter_map(|piece| Some(value_lengths(piece.as_any_dictionary_opt()?.values()))).collect();
        let lengths = || values.iter().flatten().copied();
        let row_bytes = if values.is_empty() {
            pieces.iter().map(|piece| piece.get_array_memory_size() as u64).sum::<u64>() / rows.max(1) as u64
        } else {
            8 + lengths().sum::<u64>() / lengths().count().max(1) as u64
        };
        let longest_value_bytes = (!values.is_empty()).then(|| lengths().max().unwrap_or(0));
        Self { pieces, piece_rows: piece_rows.max(1), rows, row_bytes, longest_value_bytes }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The arrays.
    pub fn pieces(&self) -> &[ArrayRef] {
        &self.pieces
    }

    /// The type of the arrays as they rest here: a dictionary where strings repeat.
    pub fn data_type(&self) -> Option<&DataType> {
        self.pieces.first().map(arrow::array::Array::data_type)
    }

    /// Rows `offset..offset + len`, without copying; they must not straddle two pieces.
    pub fn slice(&self, offset: usize, len: usize) -> Result<ArrayRef> {
        let (piece, from) = (offset / self.piece_rows, offset % self.piece_rows);
        match self.pieces.get(piece) {
            Some(array) if from + len <= array.len() => Ok(array.slice(from, len)),
            _ => Err(Error::internal(format!("rows {offset}..{} are no slice of a chunk of {} rows", offset + len, self.rows))),
        }
    }

    /// Bytes a row takes in the announced type: the mean, or a guess at it for dictionaries.
    pub fn row_bytes(&self) -> u64 {
        self.row_bytes
    }

    /// Bytes that unfolding rows `offset..offset + len` takes at most; exact where the bound would exceed `exact_above`.
    pub fn unfolded_bytes(&self, offset: usize, len: usize, exact_above: u64) -> u64 {
        let Some(longest) = self.longest_value_bytes else { return 0 };
        let bound = (longest + 8) * len as u64;
        if bound <= exact_above {
            return bound;
        }
        let (mut bytes, mut start) = (0, 0);
        for piece in &self.pieces {
            let (from, to) = (offset.max(start), (offset + len).min(start + piece.len()));
            if from < to {
                bytes += unfolded_bytes(&piece.slice(from - start, to - from));
            }
            start += piece.len();
        }
        bytes
    }

    /// The whole chunk as one array, if it is held as one.
    pub fn whole(&self) -> Option<&ArrayRef> {
        match self.pieces.as_slice() {
            [array] => Some(array),
            _ => None,
        }
    }

    /// The piece that holds `row`, and the row's place in it.
    pub fn locate(&self, row: usize) -> (usize, usize) {
        (row / self.piece_rows, row % self.piece_rows)
    }

    /// Rows a piece holds.
    pub fn piece_rows(&self) -> usize {
        self.piece_rows
    }
}

impl From<ArrayRef> for Chunk {
    fn from(array: ArrayRef) -> Self {
        let rows = array.len().max(1);
        Self::new(vec![Arc::clone(&array)], rows.next_multiple_of(SLICE_ROWS))
    }
}
