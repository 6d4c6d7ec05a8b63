//! Messages from the pieces a connection delivers: gRPC prefixes and the fields of `FlightData`, cut anywhere.

use arrow::buffer::{Buffer, MutableBuffer};
use bytes::{Buf as _, Bytes};
use flightcache_proto::{Error, ErrorKind, Result};

/// What the widest values need: 128-bit numbers and views.
const ALIGNMENT_BYTES: usize = 16;
/// Smaller bodies are copied even when they are aligned: shared, they would keep a connection's whole read buffer.
const MIN_SHARED_BYTES: usize = 256 << 10;

/// One `arrow.flight.protocol.FlightData`, without its descriptor.
#[derive(Debug, Default)]
pub(crate) struct Message {
    /// IPC metadata.
    pub(crate) header: Bytes,
    pub(crate) app_metadata: Bytes,
    /// IPC body, aligned.
    pub(crate) body: Buffer,
}

/// Turns pieces into messages. Each byte of a body is copied once at most.
#[derive(Debug)]
pub(super) struct Assembler {
    max_message_bytes: usize,
    /// What was delivered and not yet taken.
    piece: Bytes,
    /// Bytes of the message under way that are not yet taken.
    left: usize,
    step: Step,
    message: Message,
}

/// Where in a message the next byte belongs.
#[derive(Debug)]
enum Step {
    Prefix { bytes: [u8; 5], filled: usize },
    Key(Varint),
    Length(Field, Varint),
    Begin(Field, usize),
    Gather(Field, Vec<u8>, usize),
    Body(MutableBuffer, usize),
    SkipVarint(Varint),
    Skip(usize),
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Header,
    AppMetadata,
    Body,
    Other,
}

#[derive(Clone, Copy, Debug, Default)]
struct Varint {
    value: u64,
    bits: u32,
}

impl Varint {
    /// The value, with its last byte.
    fn push(&mut self, byte: u8) -> Result<Option<u64>> {
        // Ten bytes hold 64 bits: of the last one, only the lowest counts.
        if self.bits == 63 && byte > 1 {
            return Err(malformed("a number has more than 64 bits"));
        }
        self.value |= u64::from(byte & 0x7f) << self.bits;
        self.bits += 7;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}

impl Field {
    fn of(tag: u64) -> Self {
        match tag {
            2 => Self::Header,
            3 => Self::AppMetadata,
            1000 => Self::Body,
            _ => Self::Other,
        }
    }
}

pub(super) fn malformed(why: &str) -> Error {
    Error::internal(format!("the server's answer cannot be decoded: {why}"))
}

const START: Step = Step::Prefix { bytes: [0; 5], filled: 0 };
const NEXT_FIELD: Step = Step::Key(Varint { value: 0, bits: 0 });

impl Assembler {
    pub(super) fn new(max_message_bytes: usize) -> Self {
        Self { max_message_bytes, piece: Bytes::new(), left: 0, step: START, message: Message::default() }
    }

    /// Adds what was delivered. The piece before must be used up: `next` said that there is no message.
    pub(super) fn push(&mut self, piece: Bytes) {
        debug_assert!(self.piece.is_empty(), "messages of the piece before are left");
        self.piece = piece;
    }

    /// Whether everything that was delivered belongs to a message that is complete.
    pub(super) fn is_complete(&self) -> bool {
        self.piece.is_empty() && matches!(self.step, Step::Prefix { filled: 0, .. })
    }

    /// The next message, if all of it is there. Nothing can be read after an error.
    pub(super) fn next(&mut self) -> Result<Option<Message>> {
        loop {
            if matches!(self.step, Step::Key(Varint { bits: 0, .. })) && self.left == 0 {
                self.step = START;
                return Ok(Some(std::mem::take(&mut self.message)));
            }
            if self.left == 0 && matches!(self.step, Step::Key(_) | Step::Length(..) | Step::SkipVarint(_)) {
                return Err(malformed("a field is cut off"));
            }
            let needs_none = matches!(self.step, Step::Begin(_, 0) | Step::Gather(_, _, 0) | Step::Body(_, 0) | Step::Skip(0));
            if self.piece.is_empty() && !needs_none {
                return Ok(None);
            }
            self.step = match std::mem::replace(&mut self.step, START) {
                Step::Prefix { mut bytes, filled } => {
                    let count = self.piece.len().min(bytes.len() - filled);
                    self.piece.copy_to_slice(&mut bytes[filled..filled + count]);
                    if filled + count < bytes.len() {
                        Step::Prefix { bytes, filled: filled + count }
                    } else {
                        self.left = self.length(bytes)?;
                        NEXT_FIELD
                    }
                }
                Step::Key(mut varint) => match varint.push(self.byte())? {
                    None => Step::Key(varint),
                    Some(key) => self.field(key)?,
                },
                Step::Length(field, mut varint) => match varint.push(self.byte())? {
                    None => Step::Length(field, varint),
                    Some(length) => Step::Begin(field, self.claim(length)?),
                },
                Step::Begin(field, length) => self.begin(field, length),
                Step::Gather(field, mut bytes, rest) => {
                    let part = self.take(rest);
                    bytes.extend_from_slice(&part);
                    if part.len() < rest { Step::Gather(field, bytes, rest - part.len()) } else { self.set(field, bytes.into()) }
                }
                Step::Body(mut bytes, rest) => {
                    let part = self.take(rest);
                    bytes.extend_from_slice(&part);
                    if part.len() < rest {
                        Step::Body(bytes, rest - part.len())
                    } else {
                        self.message.body = bytes.into();
                        NEXT_FIELD
                    }
                }
                Step::SkipVarint(mut varint) => match varint.push(self.byte())? {
                    None => Step::SkipVarint(varint),
                    Some(_) => NEXT_FIELD,
                },
                Step::Skip(rest) => {
                    let skipped = self.take(rest).len();
                    if skipped < rest { Step::Skip(rest - skipped) } else { NEXT_FIELD }
                }
            };
        }
    }

    /// The length in a message's prefix, checked before anything is allocated for it.
    fn length(&self, [flag, length @ ..]: [u8; 5]) -> Result<usize> {
        match flag {
            0 => {}
            1 => return Err(Error::new(ErrorKind::Unsupported, "the server's answer is compressed, which was not asked for")),
            _ => return Err(malformed("it is not gRPC")),
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.max_message_bytes {
            let message =
                format!("the server sent a message of {length} bytes, more than the {} allowed", self.max_message_bytes);
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        Ok(length)
    }

    /// What follows a field's key.
    fn field(&self, key: u64) -> Result<Step> {
        let (tag, wire_type) = (key >> 3, key & 7);
        if tag == 0 || key > u64::from(u32::MAX) {
            return Err(malformed("a field has an impossible number"));
        }
        match (Field::of(tag), wire_type) {
            (field, 2) => Ok(Step::Length(field, Varint::default())),
            (Field::Other, 0) => Ok(Step::SkipVarint(Varint::default())),
            (Field::Other, 1) => Ok(Step::Skip(self.claim(8)?)),
            (Field::Other, 5) => Ok(Step::Skip(self.claim(4)?)),
            _ => Err(malformed("a field has another type than it should")),
        }
    }

    /// A value's length, if the message has room for it.
    fn claim(&self, length: u64) -> Result<usize> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.left);
        length.ok_or_else(|| malformed("a field is longer than its message"))
    }

    /// Starts a value of which the first byte is there.
    fn begin(&mut self, field: Field, length: usize) -> Step {
        let is_whole = self.piece.len() >= length;
        match field {
            Field::Other => Step::Skip(length),
            Field::Header | Field::AppMetadata if is_whole => {
                let bytes = self.take(length);
                self.set(field, bytes)
            }
            Field::Header | Field::AppMetadata => Step::Gather(field, Vec::with_capacity(length), length),
            Field::Body
                if is_whole && length >= MIN_SHARED_BYTES && self.piece.as_ptr().addr().is_multiple_of(ALIGNMENT_BYTES) =>
            {
                self.message.body = self.take(length).into();
                NEXT_FIELD
            }
            Field::Body => Step::Body(MutableBuffer::with_capacity(length), length),
        }
    }

    fn set(&mut self, field: Field, bytes: Bytes) -> Step {
        if matches!(field, Field::Header) {
            self.message.header = bytes;
        } else {
            self.message.app_metadata = bytes;
        }
        NEXT_FIELD
    }

    /// What is there of the next `count` bytes, which the message has room for.
    fn take(&mut self, count: usize) -> Bytes {
        let part = self.piece.split_to(count.min(self.piece.len()));
        self.left -= part.len();
        part
    }

    /// The next byte, which is there and belongs to the message.
    fn byte(&mut self) -> u8 {
        self.left -= 1;
        self.piece.get_u8()
    }
}
