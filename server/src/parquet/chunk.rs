//! A decoded column chunk.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::DataType;
use flightcache_proto::{Error, Result};

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
}

impl Chunk {
    /// A chunk of pieces of `piece_rows` rows each, the last one shorter.
    pub fn new(pieces: Vec<ArrayRef>, piece_rows: usize) -> Self {
        let rows = pieces.iter().map(arrow::array::Array::len).sum();
        Self { pieces, piece_rows: piece_rows.max(1), rows }
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
