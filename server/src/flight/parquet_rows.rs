//! A row group's Parquet file as Flight frames of bounded size, which share the cached bytes.

use bytes::Bytes;
use flightcache_proto::parquet::ParquetPiece;

use super::message::{Body, Frame};
use crate::parquet::RowGroupFile;

/// Bytes of a frame's body at most; what announces it and the figures stay far below another as many.
const PIECE_BYTES: usize = 1 << 20;

/// The frames of a file, in order: none is empty, none above the bound.
pub(super) fn frames(file: &RowGroupFile) -> Vec<Frame> {
    let total_bytes = file.parts.iter().map(|part| part.len() as u64).sum();
    let mut announced =
        ParquetPiece { total_bytes, offset: 0, rows: file.rows as u64, url: file.url.to_string(), row_group: file.row_group };
    let mut frames = Vec::new();
    let mut rest = file.parts.iter().filter(|part| !part.is_empty()).cloned();
    let mut next = rest.next();
    while next.is_some() {
        let mut body = Body::default();
        let mut room = PIECE_BYTES;
        while let Some(part) = next.as_mut().filter(|_| room > 0) {
            let taken: Bytes = part.split_to(room.min(part.len()));
            room -= taken.len();
            if part.is_empty() {
                next = rest.next();
            }
            body.push(taken.into());
        }
        frames.push(Frame::new(announced.to_header().into(), body));
        announced.offset += (PIECE_BYTES - room) as u64;
    }
    frames
}

#[cfg(test)]
mod tests {
    use arrow_flight::FlightData;
    use bytes::Buf as _;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::super::encode::MAX_FRAME_BYTES;
    use super::*;

    fn file(sizes: &[usize]) -> RowGroupFile {
        let parts = sizes.iter().enumerate().map(|(at, &size)| Bytes::from(vec![at as u8; size])).collect();
        RowGroupFile { url: "s3://lake/t.parquet".into(), row_group: 7, rows: 12, parts }
    }

    /// The pieces as a client reads them: what announces each, and its bytes.
    fn read(frames: Vec<Frame>) -> Vec<(ParquetPiece, Bytes)> {
        let piece = |frame: Frame| {
            let mut message = frame.into_message(&[b'{'; 500], None);
            assert!(message.remaining() <= MAX_FRAME_BYTES);
            message.advance(5);
            let data = FlightData::decode(message).unwrap();
            (ParquetPiece::parse(&data.data_header).unwrap().unwrap(), data.data_body)
        };
        frames.into_iter().map(piece).collect()
    }

    proptest! {
        #[test]
        fn pieces_follow_each_other_and_make_the_file(sizes in proptest::collection::vec(0_usize..3_000_000, 1..6)) {
            let file = file(&sizes);
            let (mut whole, total_bytes) = (Vec::new(), sizes.iter().sum::<usize>() as u64);
            for (piece, body) in read(frames(&file)) {
                let offset = whole.len() as u64;
                prop_assert_eq!(&piece, &ParquetPiece { total_bytes, offset, rows: 12, url: file.url.to_string(), row_group: 7 });
                whole.extend_from_slice(&body);
            }
            prop_assert!(whole == file.parts.concat());
        }
    }

    #[test]
    fn chunks_are_shared_not_copied() {
        let file = file(&[4, 2_500_000, 300]);
        let frames = frames(&file);
        assert_eq!(frames.iter().map(Frame::shared_bytes).sum::<usize>(), 2_500_000);
        assert_eq!(frames.len(), 3);
    }
}
