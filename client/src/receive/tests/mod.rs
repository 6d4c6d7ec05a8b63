//! Prepared answers, cut as a connection might.

mod answers;
mod batches;
mod folded;
mod parquet_rows;
mod pieces;

use arrow::array::{Int64Array, RecordBatch};
use arrow_flight::FlightData;
use bytes::{BufMut as _, Bytes};
use flightcache_proto::Result;
use prost::Message as _;

use super::assemble::{Assembler, Message};

const MAX_BYTES: usize = 1 << 20;

fn numbers(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let values: Int64Array = values.into_iter().collect();
    RecordBatch::try_from_iter_with_nullable([("n", std::sync::Arc::new(values) as _, false)]).unwrap()
}

/// The data of a stream: schema and batches.
fn data(batches: &[RecordBatch]) -> Vec<FlightData> {
    arrow_flight::utils::batches_to_flight_data(batches[0].schema_ref(), batches.to_vec()).unwrap()
}

/// A message with its prefix.
fn prefixed(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.put_u32(message.len() as u32);
    bytes.extend_from_slice(message);
    bytes
}

fn wire(data: &[FlightData]) -> Vec<u8> {
    data.iter().flat_map(|data| prefixed(&data.encode_to_vec())).collect()
}

/// All messages of these pieces, which must end with one.
fn assemble(pieces: impl IntoIterator<Item = Bytes>) -> Result<Vec<Message>> {
    let mut assembler = Assembler::new(MAX_BYTES);
    let mut messages = Vec::new();
    for piece in pieces {
        assembler.push(piece);
        while let Some(message) = assembler.next()? {
            messages.push(message);
        }
    }
    if assembler.is_complete() { Ok(messages) } else { Err(flightcache_proto::Error::internal("cut off")) }
}
