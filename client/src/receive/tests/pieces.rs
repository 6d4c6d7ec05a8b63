//! The assembler, against prost.

use arrow_flight::{FlightData, FlightDescriptor};
use bytes::{Bytes, BytesMut};
use flightcache_proto::ErrorKind;
use proptest::prelude::*;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::super::assemble::{Assembler, Message};
use super::{MAX_BYTES, assemble, prefixed, wire};

/// A field as it is written.
#[derive(Clone, Debug)]
enum Written {
    Bytes(u32, Vec<u8>),
    Varint(u32, u64),
    Eight(u32, [u8; 8]),
    Four(u32, [u8; 4]),
}

impl Written {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Bytes(tag, bytes) => {
                encode_key(*tag, WireType::LengthDelimited, to);
                encode_varint(bytes.len() as u64, to);
                to.extend_from_slice(bytes);
            }
            Self::Varint(tag, value) => {
                encode_key(*tag, WireType::Varint, to);
                encode_varint(*value, to);
            }
            Self::Eight(tag, bytes) => {
                encode_key(*tag, WireType::SixtyFourBit, to);
                to.extend_from_slice(bytes);
            }
            Self::Four(tag, bytes) => {
                encode_key(*tag, WireType::ThirtyTwoBit, to);
                to.extend_from_slice(bytes);
            }
        }
    }
}

fn field() -> impl Strategy<Value = Written> {
    let unknown = || prop_oneof![4_u32..1000, 1001_u32..(1 << 29)];
    let bytes = || proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        6 => (prop_oneof![Just(2_u32), Just(3), Just(1000)], bytes()).prop_map(|(tag, bytes)| Written::Bytes(tag, bytes)),
        1 => "[a-z]{0,20}".prop_map(|path| {
            Written::Bytes(1, FlightDescriptor::new_path(vec![path]).encode_to_vec())
        }),
        1 => (unknown(), bytes()).prop_map(|(tag, bytes)| Written::Bytes(tag, bytes)),
        1 => (unknown(), any::<u64>()).prop_map(|(tag, value)| Written::Varint(tag, value)),
        1 => (unknown(), any::<[u8; 8]>()).prop_map(|(tag, bytes)| Written::Eight(tag, bytes)),
        1 => (unknown(), any::<[u8; 4]>()).prop_map(|(tag, bytes)| Written::Four(tag, bytes)),
    ]
}

/// Messages of fields in any order, some of them repeated.
fn messages() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let message = proptest::collection::vec(field(), 0..8).prop_map(|fields| {
        let mut bytes = Vec::new();
        for field in fields {
            field.write(&mut bytes);
        }
        bytes
    });
    proptest::collection::vec(message, 0..5)
}

fn cut(bytes: &[u8], lengths: &[usize]) -> Vec<Bytes> {
    let mut rest = Bytes::copy_from_slice(bytes);
    let mut pieces: Vec<Bytes> = lengths.iter().map(|length| rest.split_to((*length).min(rest.len()))).collect();
    pieces.push(rest);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn assert_same(messages: &[Message], expected: &[FlightData]) {
    assert_eq!(messages.len(), expected.len());
    for (message, expected) in messages.iter().zip(expected) {
        assert_eq!(
            (&message.header, &message.app_metadata, &*message.body),
            (&expected.data_header, &expected.app_metadata, &*expected.data_body)
        );
        assert!(message.body.as_ptr().addr().is_multiple_of(16));
    }
}

proptest! {
    #[test]
    fn any_messages_cut_anywhere_are_what_prost_reads(
        messages in messages(),
        lengths in proptest::collection::vec(0_usize..300, 0..40),
    ) {
        let expected: Vec<_> = messages.iter().map(|message| FlightData::decode(&**message).unwrap()).collect();
        let bytes: Vec<u8> = messages.iter().flat_map(|message| prefixed(message)).collect();
        assert_same(&assemble(cut(&bytes, &lengths)).unwrap(), &expected);
    }

    #[test]
    fn what_prost_refuses_is_refused_and_nothing_panics(
        noise in proptest::collection::vec(any::<u8>(), 0..60),
        lengths in proptest::collection::vec(0_usize..10, 0..20),
    ) {
        let assembled = assemble(cut(&prefixed(&noise), &lengths));
        match FlightData::decode(&*noise) {
            Ok(expected) => {
                // Groups, of an older protobuf, are refused.
                if let Ok(messages) = assembled {
                    assert_same(&messages, &[expected]);
                }
            }
            // The descriptor is skipped, whatever it is.
            Err(error) => prop_assert!(assembled.is_err() || error.to_string().contains("FlightData.flight_descriptor"), "{error}"),
        }
        let _ = assemble(cut(&noise, &lengths));
    }
}

fn sample() -> Vec<FlightData> {
    let data = |header: &[u8], metadata: &[u8], body: &[u8]| FlightData {
        flight_descriptor: Some(FlightDescriptor::new_cmd("command")),
        data_header: Bytes::copy_from_slice(header),
        app_metadata: Bytes::copy_from_slice(metadata),
        data_body: Bytes::copy_from_slice(body),
    };
    vec![data(b"header", b"", b""), data(&[7; 200], br#"{"rows":1}"#, &[1; 300]), data(b"", b"", b"x"), data(b"", b"", b"")]
}

#[test]
fn a_cut_at_any_byte_changes_nothing() {
    let expected = sample();
    let bytes = wire(&expected);
    for at in 0..=bytes.len() {
        assert_same(&assemble(cut(&bytes, &[at])).unwrap(), &expected);
        // Cut off there, it is never taken for whole, unless it is.
        let whole = assemble(cut(&bytes[..at], &[]));
        let ends = (0..=expected.len()).map(|count| wire(&expected[..count]).len()).collect::<Vec<_>>();
        assert_eq!(whole.is_ok(), ends.contains(&at), "{at}");
    }
    assert_same(&assemble(bytes.iter().map(|byte| Bytes::copy_from_slice(&[*byte]))).unwrap(), &expected);
}

#[test]
fn an_aligned_body_in_one_piece_is_not_copied_and_others_are_once() {
    const BODY: usize = 512 << 10;
    let data = FlightData { data_header: vec![1; 100].into(), data_body: vec![2; BODY].into(), ..FlightData::default() };
    let message = wire(std::slice::from_ref(&data));
    let body_at = message.len() - BODY;
    for shift in [0, 8, 16, 48, 63] {
        // A piece of which the body is at a multiple of 64, but for the shift.
        let mut bytes = BytesMut::zeroed(message.len() + 128);
        let start = (shift + 128 - (bytes.as_ptr().addr() + body_at) % 64) % 64;
        bytes[start..start + message.len()].copy_from_slice(&message);
        let piece = bytes.freeze().slice(start..start + message.len());
        let there = piece[body_at..].as_ptr();
        assert_eq!(there.addr() % 64, shift);
        for split in [None, Some(body_at), Some(body_at + 1)] {
            let pieces = match split {
                None => vec![piece.clone()],
                Some(at) => vec![piece.slice(..at), piece.slice(at..)],
            };
            let messages = assemble(pieces).unwrap();
            assert_same(&messages, std::slice::from_ref(&data));
            let is_shared = messages[0].body.as_ptr() == there;
            assert_eq!(is_shared, shift % 16 == 0 && split != Some(body_at + 1), "{shift} {split:?}");
        }
    }
}

#[test]
fn lengths_are_checked_before_anything_is_allocated() {
    let kind = |bytes: &[u8]| {
        let mut assembler = Assembler::new(MAX_BYTES);
        assembler.push(Bytes::copy_from_slice(bytes));
        assembler.next().unwrap_err().kind
    };
    let too_long = [&[0][..], &(MAX_BYTES as u32 + 1).to_be_bytes()].concat();
    assert_eq!(kind(&too_long), ErrorKind::ResourceExhausted);
    assert_eq!(kind(&[0, 0xff, 0xff, 0xff, 0xff]), ErrorKind::ResourceExhausted);
    assert_eq!(kind(&[1, 0, 0, 0, 1]), ErrorKind::Unsupported);
    assert_eq!(kind(b"<html>"), ErrorKind::Internal);
    for field in [
        // A body longer than its message, by one and by as much as can be written.
        &[0xc2, 0x3e, 3, 1, 2][..],
        &[0xc2, 0x3e, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        // A length, and a key, of more than 64 bits; a field without a number; one cut off.
        &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        &[0x02, 0],
        &[0x12],
        &[0x12, 0x80],
        // The header as a number; eight bytes of which three are there; a group.
        &[0x10, 1],
        &[0x21, 1, 2, 3],
        &[0x23, 0x24],
    ] {
        assert_eq!(kind(&prefixed(field)), ErrorKind::Internal, "{field:?}");
    }
    // Room for exactly the largest message.
    let largest = FlightData { data_body: vec![0; MAX_BYTES - 6].into(), ..FlightData::default() };
    assert_eq!(largest.encoded_len(), MAX_BYTES - 6 + 2 + 3);
    assert_same(&assemble([Bytes::from(wire(std::slice::from_ref(&largest)))]).unwrap(), &[largest]);
}
