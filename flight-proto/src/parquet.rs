//! Row groups that travel as Parquet: how a client says that it takes them, and what announces their pieces.
//!
//! ```text
//!  DoGet, flightcache-accept: parquet  -->  schema, then in row order, as the server sees fit:
//!                                             record batches (Arrow IPC)
//!                                             row groups: pieces of a small Parquet file each, one after the other
//! ```

use prost::Message as _;

use crate::error::{Error, Result};
use crate::pb;

/// Bytes of the largest Parquet file that travels so: what a client has to hold before it can decode the first row.
pub const MAX_FILE_BYTES: u64 = 128 << 20;

/// Bytes that a row of a row group takes on the average, at most, by all that its footer tells: one that takes more can hardly
/// be sent as Arrow, which then says so. The server's estimate, on the high side, has to be below this before it sends Parquet;
/// a client decodes few rows at a time where it cannot tell how long a row may be, and refuses only means of many times this,
/// so that it takes whatever a server may send.
pub const MAX_MEAN_ROW_BYTES: u64 = 2 << 20;

/// What a piece's header begins with: no IPC message does, whose first bytes are a position within it.
const MARKER: &[u8] = b"PAR1";

/// Announces a piece of a Parquet file, which holds one row group of exactly the answer's columns, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParquetPiece {
    /// Bytes of the whole file.
    pub total_bytes: u64,
    /// Where in the file the piece begins, in bytes.
    pub offset: u64,
    /// Rows of the file.
    pub rows: u64,
    /// The object that the row group is of.
    pub url: String,
    /// The row group's number in its object.
    pub row_group: u32,
}

impl ParquetPiece {
    /// Reads a message's header; `None` if it announces no piece.
    pub fn parse(header: &[u8]) -> Result<Option<Self>> {
        let Some(announced) = header.strip_prefix(MARKER) else { return Ok(None) };
        let piece = pb::ParquetPiece::decode_length_delimited(announced)
            .map_err(|e| Error::internal(format!("what announces a piece of Parquet cannot be read: {e}")))?;
        let pb::ParquetPiece { total_bytes, offset, rows, url, row_group } = piece;
        Ok(Some(Self { total_bytes, offset, rows, url, row_group }))
    }

    /// The header of its message.
    pub fn to_header(&self) -> Vec<u8> {
        let Self { total_bytes, offset, rows, url, row_group } = self.clone();
        let mut header = MARKER.to_vec();
        header.extend(pb::ParquetPiece { total_bytes, offset, rows, url, row_group }.encode_length_delimited_to_vec());
        header
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn announcements_round_trip_whatever_follows_them(
            (total_bytes, offset, rows, row_group) in any::<(u64, u64, u64, u32)>(),
            url in "\\PC{0,300}",
            padding in 0_usize..64,
        ) {
            let piece = ParquetPiece { total_bytes, offset, rows, url, row_group };
            let mut header = piece.to_header();
            header.resize(header.len() + padding, 0);
            prop_assert_eq!(ParquetPiece::parse(&header).unwrap(), Some(piece));
        }

        #[test]
        fn any_bytes_announce_something_nothing_or_fail_typed(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = ParquetPiece::parse(&bytes);
            let _ = ParquetPiece::parse(&[MARKER, &bytes].concat());
        }
    }

    #[test]
    fn an_announcement_that_is_cut_off_is_an_error() {
        let header = ParquetPiece { total_bytes: 9, offset: 0, rows: 1, url: "s3://lake/t".into(), row_group: 0 }.to_header();
        for len in MARKER.len()..header.len() {
            assert!(ParquetPiece::parse(&header[..len]).is_err(), "{len}");
        }
        assert_eq!(ParquetPiece::parse(&header[..MARKER.len() - 1]).unwrap(), None);
    }
}
