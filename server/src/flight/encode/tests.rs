//! Frames are read by other readers and compared value by value.

mod files;
mod generated;
mod views;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use arrow::array::{BinaryArray, Int64Array, ListArray, StringArray, StringViewArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{Field, Int64Type};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow_flight::FlightData;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use http_body_util::StreamBody;

use super::*;

fn flight_data(frame: Frame) -> FlightData {
    let mut message = frame.into_message(b"", None);
    message.advance(5);
    prost::Message::decode(message).unwrap()
}

/// The frames of some batches after their schema's.
fn frames(batches: &[RecordBatch], compression: Option<Compression>) -> Vec<Frame> {
    let mut encoder = Encoder::new(&batches[0].schema(), compression).unwrap();
    let schema = encoder.schema();
    let frames = batches.iter().flat_map(|batch| encoder.batch(batch).unwrap());
    std::iter::once(schema).chain(frames).collect()
}

/// As `arrow-flight` reads it, which checks everything.
async fn decoded(data: impl IntoIterator<Item = FlightData>) -> Vec<RecordBatch> {
    let stream = futures::stream::iter(data.into_iter().map(Ok).collect::<Vec<_>>());
    let decoded = FlightDataDecoder::new(stream).filter_map(|decoded| async move {
        match decoded.unwrap().payload {
            DecodedPayload::RecordBatch(batch) => Some(batch),
            _ => None,
        }
    });
    decoded.collect().await
}

/// As our client reads it.
async fn received(frames: Vec<Frame>) -> Vec<RecordBatch> {
    let mut answer = flightcache::receive::do_get(Canned(frames), Bytes::new()).await.unwrap();
    let mut batches = Vec::new();
    while let Some(frame) = answer.next().await.unwrap() {
        if let flightcache::receive::Payload::Batch(batch) = frame.payload {
            batches.push(batch);
        }
    }
    batches
}

/// A connection to a server that sends these.
struct Canned(Vec<Frame>);

impl tower::Service<http::Request<tonic::body::Body>> for Canned {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<tonic::body::Body>) -> Self::Future {
        let data = self.0.drain(..).map(|frame| {
            let mut message = frame.into_message(b"", None);
            http_body::Frame::data(message.copy_to_bytes(message.remaining()))
        });
        let good = http::HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), 0.into())]);
        let frames: Vec<_> = data.chain([http_body::Frame::trailers(good)]).map(Ok::<_, Infallible>).collect();
        ready(Ok(http::Response::new(tonic::body::Body::new(StreamBody::new(futures::stream::iter(frames))))))
    }
}

fn assert_same(expected: &[RecordBatch], read: &[RecordBatch]) {
    let mut read = read.iter();
    for batch in expected {
        let mut at = 0;
        while at < batch.num_rows() {
            let part = read.next().expect("rows are missing");
            assert!(part.num_rows() > 0 && at + part.num_rows() <= batch.num_rows());
            assert_eq!(part, &batch.slice(at, part.num_rows()));
            at += part.num_rows();
        }
    }
    assert_eq!(read.next(), None);
}

/// Our frames hold what the batches do, for `arrow-flight` and for our client, and are not much longer than frames of copies.
fn same(batches: &[RecordBatch], compression: Option<Compression>) {
    let frames = frames(batches, compression);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        assert_same(batches, &decoded(frames.iter().cloned().map(flight_data)).await);
        if compression.is_none() {
            assert_same(batches, &received(frames.clone()).await);
        }
    });
    let mut theirs = StreamWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
    for batch in batches {
        theirs.write(batch).unwrap();
    }
    let theirs = StreamReader::try_new(&*theirs.into_inner().unwrap(), None).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let with_rows: Vec<_> = batches.iter().zip(&theirs).filter(|(batch, _)| batch.num_rows() > 0).collect();
    assert!(with_rows.iter().all(|(batch, theirs)| batch == theirs));
    for frame in &frames {
        assert!(frame.len() + ENVELOPE_BYTES <= MAX_FRAME_BYTES, "{}", frame.len());
    }
    // The library sends list views' values whole; and a copy of values of no width loses their number.
    let types = || batches[0].schema_ref().fields().iter().map(|field| field.data_type());
    if compression.is_none() && types().all(is_plain) && !types().any(has_no_width) {
        let (sent, copied) = (bytes(&frames[1..]), batches.iter().map(copied_bytes).sum::<usize>());
        assert!(sent <= 2 * copied + (frames.len() << 10), "{sent} bytes sent, a copy has {copied}");
    }
}

fn has_no_width(data_type: &DataType) -> bool {
    match data_type {
        DataType::FixedSizeBinary(0) => true,
        DataType::FixedSizeList(item, width) => *width == 0 || has_no_width(item.data_type()),
        DataType::List(item) | DataType::LargeList(item) | DataType::ListView(item) | DataType::LargeListView(item) => {
            has_no_width(item.data_type())
        }
        DataType::Map(entries, _) => has_no_width(entries.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_no_width(field.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| has_no_width(field.data_type())),
        _ => false,
    }
}

fn bytes(frames: &[Frame]) -> usize {
    frames.iter().map(Frame::len).sum()
}

/// What arrow-rs makes of a copy of just these rows.
fn copied_bytes(batch: &RecordBatch) -> usize {
    let copied = compact_views(&own(batch).unwrap()).unwrap();
    let mut stream = StreamEncoder::try_new(&batch.schema()).unwrap();
    stream.encode(&RecordBatch::new_empty(batch.schema())).unwrap();
    stream.encode(&copied).unwrap().iter().map(Buffer::len).sum()
}

async fn round_trip(batch: &RecordBatch, compression: Option<Compression>) -> (Vec<FlightData>, Vec<RecordBatch>) {
    let frames: Vec<_> = frames(std::slice::from_ref(batch), compression).into_iter().map(flight_data).collect();
    let decoded = decoded(frames.clone()).await;
    (frames[1..].to_vec(), decoded)
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
