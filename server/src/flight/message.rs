//! gRPC messages whose bodies share the memory of the arrays they show.

use std::any::Any;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use arrow::buffer::Buffer;
use bytes::{Buf, BufMut as _, Bytes};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

/// Smaller buffers are copied together: a part of its own costs as much as copying this many bytes.
pub(super) const GATHER_BYTES: usize = 4 << 10;

/// Fields of `arrow.flight.protocol.FlightData`.
const DATA_HEADER: u32 = 2;
const APP_METADATA: u32 = 3;
const DATA_BODY: u32 = 1000;

/// Where in its HTTP/2 frame a body begins is a multiple of this: a reader that has the frame in one piece need not copy it.
const BODY_ALIGNMENT_BYTES: usize = 64;
/// Bytes before a message in its HTTP/2 frame.
const HTTP2_FRAME_HEAD_BYTES: usize = 9;
/// Bytes before a message in gRPC: whether it is compressed, and its length.
const GRPC_PREFIX_BYTES: usize = 5;

/// Keeps memory accounted for as long as a message shows it.
pub type Held = Arc<dyn Any + Send + Sync>;

/// One frame of a Flight stream: an IPC message.
#[derive(Clone, Debug)]
pub struct Frame {
    header: Buffer,
    parts: Vec<Buffer>,
    body_bytes: usize,
    rows: usize,
}

/// A frame's body while it is put together.
#[derive(Default)]
pub(super) struct Body {
    parts: Vec<Buffer>,
    gathered: Vec<u8>,
    bytes: usize,
}

/// Bytes in parts, to be written in one go.
#[derive(Default)]
pub struct Message {
    parts: VecDeque<Buffer>,
    remaining: usize,
    /// Let go when the last byte has been taken by the connection.
    _held: Option<Held>,
}

impl Body {
    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, buffer: Buffer) {
        if buffer.len() < GATHER_BYTES {
            return self.gather(&buffer);
        }
        self.bytes += buffer.len();
        if !self.gathered.is_empty() {
            self.parts.push(std::mem::take(&mut self.gathered).into());
        }
        self.parts.push(buffer);
    }

    /// Zeros up to the next multiple of the alignment.
    pub(super) fn pad(&mut self, alignment: usize) {
        let len = self.bytes.next_multiple_of(alignment) - self.bytes;
        self.bytes += len;
        self.gathered.resize(self.gathered.len() + len, 0);
    }

    fn gather(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.gathered.extend_from_slice(bytes);
    }
}

/// The buffers of a body in order, with their padding.
impl FromIterator<Buffer> for Body {
    fn from_iter<I: IntoIterator<Item = Buffer>>(buffers: I) -> Self {
        let mut body = Self::default();
        buffers.into_iter().for_each(|buffer| body.push(buffer));
        body
    }
}

impl Frame {
    /// A frame of IPC metadata and a body.
    pub(super) fn new(header: Buffer, body: Body) -> Self {
        let Body { mut parts, gathered, bytes } = body;
        if !gathered.is_empty() {
            parts.push(gathered.into());
        }
        Self { header, parts, body_bytes: bytes, rows: 0 }
    }

    /// The same, of a batch of so many rows.
    pub(super) fn with_rows(self, rows: usize) -> Self {
        Self { rows, ..self }
    }

    /// Rows of its batch.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of its IPC metadata and body.
    pub fn len(&self) -> usize {
        self.header.len() + self.body_bytes
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The body, in the parts it is written in.
    #[cfg(test)]
    pub(super) fn parts(&self) -> &[Buffer] {
        &self.parts
    }

    /// Bytes of the body that are not copied, but shared with the arrays.
    #[cfg(test)]
    pub(super) fn shared_bytes(&self) -> usize {
        self.parts.iter().map(Buffer::len).filter(|len| *len >= GATHER_BYTES).sum()
    }

    /// As a gRPC message of one `FlightData`, uncompressed.
    pub fn into_message(self, app_metadata: &[u8], held: Option<Held>) -> Message {
        let field = |tag: u32, len: usize| key_len(tag) + encoded_len_varint(len as u64) + len;
        let after_header = if app_metadata.is_empty() { 0 } else { field(APP_METADATA, app_metadata.len()) }
            + key_len(DATA_BODY)
            + encoded_len_varint(self.body_bytes as u64);
        let body_at = |header_len: usize| GRPC_PREFIX_BYTES + field(DATA_HEADER, header_len) + after_header;
        // What follows a Flatbuffer is ignored.
        let mut header_len = self.header.len();
        while self.body_bytes > 0 && !(HTTP2_FRAME_HEAD_BYTES + body_at(header_len)).is_multiple_of(BODY_ALIGNMENT_BYTES) {
            header_len += 1;
        }
        let body_at = body_at(header_len);
        let len = body_at - GRPC_PREFIX_BYTES + self.body_bytes;
        let mut head = Vec::with_capacity(body_at);
        head.put_u8(0);
        head.put_u32(len as u32);
        let begin = |tag: u32, len: usize, head: &mut Vec<u8>| {
            encode_key(tag, WireType::LengthDelimited, head);
            encode_varint(len as u64, head);
        };
        begin(DATA_HEADER, header_len, &mut head);
        head.extend_from_slice(&self.header);
        head.resize(head.len() + header_len - self.header.len(), 0);
        if !app_metadata.is_empty() {
            begin(APP_METADATA, app_metadata.len(), &mut head);
            head.extend_from_slice(app_metadata);
        }
        begin(DATA_BODY, self.body_bytes, &mut head);
        let mut parts = VecDeque::with_capacity(1 + self.parts.len());
        parts.push_back(head.into());
        parts.extend(self.parts);
        Message { parts, remaining: GRPC_PREFIX_BYTES + len, _held: held }
    }
}

impl Message {
    /// A gRPC message of a `FlightData` that has app metadata only.
    pub(super) fn of_metadata(app_metadata: &[u8]) -> Self {
        let len = key_len(APP_METADATA) + encoded_len_varint(app_metadata.len() as u64) + app_metadata.len();
        let mut bytes = Vec::with_capacity(GRPC_PREFIX_BYTES + len);
        bytes.put_u8(0);
        bytes.put_u32(len as u32);
        encode_key(APP_METADATA, WireType::LengthDelimited, &mut bytes);
        encode_varint(app_metadata.len() as u64, &mut bytes);
        bytes.extend_from_slice(app_metadata);
        Bytes::from(bytes).into()
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self { remaining: bytes.len(), parts: VecDeque::from([bytes.into()]), _held: None }
    }
}

impl Buf for Message {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(self.parts.iter().filter(|part| !part.is_empty()));
        filled.map(|(slice, part)| *slice = IoSlice::new(part)).count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced past the end");
        self.remaining -= count;
        while let Some(front) = self.parts.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.parts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow_flight::FlightData;
    use prost::Message as _;

    use super::*;

    fn frame(sizes: &[usize]) -> Frame {
        let body = sizes.iter().enumerate().map(|(i, &len)| Buffer::from(vec![i as u8; len]));
        Frame::new(Buffer::from(b"header"), body.collect())
    }

    #[test]
    fn a_message_is_flight_data() {
        for sizes in [&[][..], &[0], &[64, 64], &[5_000], &[64, 100_000, 64, 64, 8_000, 4_096, 1]] {
            let frame = frame(sizes);
            let body: Vec<u8> = sizes.iter().enumerate().flat_map(|(i, &len)| vec![i as u8; len]).collect();
            for metadata in [&b""[..], b"metadata"] {
                let mut message = frame.clone().into_message(metadata, None);
                assert_eq!(message.get_u8(), 0);
                assert_eq!(message.get_u32() as usize, message.remaining());
                let body_at = HTTP2_FRAME_HEAD_BYTES + GRPC_PREFIX_BYTES + message.remaining() - body.len();
                assert!(body.is_empty() || body_at.is_multiple_of(BODY_ALIGNMENT_BYTES), "{body_at}");
                let data = FlightData::decode(message).unwrap();
                assert_eq!((&*data.app_metadata, &*data.data_body), (metadata, &*body));
                assert_eq!(data.data_header.strip_prefix(b"header").map(|rest| rest.iter().all(|byte| *byte == 0)), Some(true));
            }
        }
    }

    #[test]
    fn metadata_needs_no_frame() {
        let mut message = Message::of_metadata(b"metadata");
        assert_eq!((message.get_u8(), message.get_u32() as usize), (0, message.remaining()));
        assert_eq!(FlightData::decode(message).unwrap(), FlightData::new().with_app_metadata("metadata"));
    }

    #[test]
    fn large_buffers_are_shared_and_small_ones_gathered() {
        let large = Buffer::from(vec![1_u8; 10_000]);
        let small = Buffer::from(vec![2_u8; 10]);
        let body = std::iter::repeat_n(small, 1_000).chain([large.clone()]);
        let frame = Frame::new(Buffer::default(), body.collect());
        assert_eq!((frame.parts.len(), frame.len(), frame.shared_bytes()), (2, 20_000, 20_000));
        assert_eq!(frame.parts[1].as_ptr(), large.as_ptr());
    }

    #[test]
    fn it_is_written_in_any_steps() {
        let mut whole = frame(&[64, 5_000, 64, 6_000]).into_message(b"", None);
        let whole = whole.copy_to_bytes(whole.remaining());
        for step in [1, 63, 4_097, 20_000] {
            let mut message = frame(&[64, 5_000, 64, 6_000]).into_message(b"", None);
            let mut written = Vec::new();
            while message.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = message.chunks_vectored(&mut slices);
                let joined: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).take(step).collect();
                written.extend_from_slice(&joined);
                message.advance(joined.len());
            }
            assert_eq!(written, whole);
        }
    }

    #[test]
    fn what_it_holds_goes_when_it_goes() {
        let held: Held = Arc::new(());
        let message = frame(&[64]).into_message(b"", Some(Arc::clone(&held)));
        assert_eq!(Arc::strong_count(&held), 2);
        drop(message);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
