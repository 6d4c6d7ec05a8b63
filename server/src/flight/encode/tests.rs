use arrow::array::{BinaryArray, Int64Array, ListArray, StringArray, StringViewArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{Field, Int64Type};
use arrow_flight::FlightData;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use bytes::Buf as _;
use futures::StreamExt as _;

use super::*;

fn flight_data(frame: Frame) -> FlightData {
    let mut message = frame.into_message(b"", None);
    message.advance(5);
    prost::Message::decode(message).unwrap()
}

async fn round_trip(batch: &RecordBatch, compression: Option<Compression>) -> (Vec<FlightData>, Vec<RecordBatch>) {
    let mut encoder = Encoder::new(&batch.schema(), compression).unwrap();
    let frames: Vec<_> = encoder.batch(batch).unwrap().into_iter().map(flight_data).collect();
    let schema = flight_data(encoder.schema());
    let stream = futures::stream::iter(std::iter::once(schema).chain(frames.clone()).map(Ok));
    let decoded = FlightDataDecoder::new(stream).filter_map(|decoded| async move {
        match decoded.unwrap().payload {
            DecodedPayload::RecordBatch(batch) => Some(batch),
            _ => None,
        }
    });
    (frames, decoded.collect().await)
}

/// `row_bytes`: what a row holds on average.
async fn check(name: &str, row_bytes: usize, array: ArrayRef) {
    let batch = RecordBatch::try_from_iter([("c", array)]).unwrap();
    for slice in [batch.clone(), batch.slice(batch.num_rows() / 3, batch.num_rows() / 3)] {
        for compression in [Compression::Lz4, Compression::Zstd] {
            let (frames, decoded) = round_trip(&slice, Some(compression)).await;
            assert!(frames.iter().all(|frame| prost::Message::encoded_len(frame) <= MAX_FRAME_BYTES), "{name}, {compression:?}");
            let joined = arrow::compute::concat_batches(&slice.schema(), &decoded).unwrap();
            assert_eq!(joined, slice, "{name}, {compression:?}");
        }
        let (frames, decoded) = round_trip(&slice, None).await;
        let largest = frames.iter().map(prost::Message::encoded_len).max().unwrap_or(0);
        assert!(largest <= MAX_FRAME_BYTES, "{name}: {largest}");
        let joined = arrow::compute::concat_batches(&slice.schema(), &decoded).unwrap();
        assert_eq!(joined, slice, "{name}");
        let bytes: usize = frames.iter().map(prost::Message::encoded_len).sum();
        let needed = slice.num_rows() * row_bytes;
        assert!(bytes <= needed + needed / 4 + (16 << 10), "{name}: {bytes} bytes sent for {needed}");
    }
}

#[tokio::test]
async fn every_layout_stays_within_the_bound() {
    let long = |i: usize| "x".repeat(i % 7 * 100_000);
    check("ints", 8, Arc::new((0..500_000).collect::<Int64Array>())).await;
    check("long strings", 300_000, Arc::new((0..90).map(|i| Some(long(i))).collect::<StringArray>())).await;
    check("long views", 300_000, Arc::new((0..90).map(|i| Some(long(i))).collect::<StringViewArray>())).await;
    let text = |i: i32| Some(format!("a string longer than twelve {i:06}"));
    let views: ArrayRef = Arc::new((0..60_000).map(text).collect::<StringViewArray>());
    check("short views", 50, Arc::clone(&views)).await;
    let lists = (0..3_000).map(|i| Some((0..i % 900).map(|v| Some(i64::from(v))).collect::<Vec<_>>()));
    check("lists", 450 * 9, Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))).await;
    let field = Arc::new(Field::new("v", DataType::Utf8View, true));
    check("views in structs", 50, Arc::new(StructArray::from(vec![(Arc::clone(&field), Arc::clone(&views))]))).await;
    let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(20, 3_000));
    check("views in lists", 20 * 50 + 4, Arc::new(ListArray::new(field, offsets, views, None))).await;
    check("nothing", 1, Arc::new(arrow::array::NullArray::new(100_000))).await;
}

#[test]
fn a_row_that_cannot_fit_is_refused_by_name() {
    let huge = BinaryArray::from(vec![&vec![7_u8; 3 << 20][..]]);
    let batch = RecordBatch::try_from_iter([("blob", Arc::new(huge) as ArrayRef)]).unwrap();
    let error = Encoder::new(&batch.schema(), None).unwrap().batch(&batch).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ResourceExhausted);
    assert!(error.message.contains("blob"), "{error}");
}
