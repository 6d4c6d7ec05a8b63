//! Receiving an answer: this client's receiver against tonic with `arrow-flight`'s decoder, over the same prepared frames.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, StringViewArray};
use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_service_client::FlightServiceClient;
use bytes::{Buf as _, Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flightcache::receive::{MAX_MESSAGE_BYTES, Payload, do_get};
use flightcache_server::flight::Encoder;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::body::Body;

/// 16 columns of them are 64 MiB.
const ROWS: usize = 524_288;

/// Answers with these DATA frames, again and again.
#[derive(Clone)]
struct Canned(Arc<Vec<Bytes>>);

impl tower::Service<Request<Body>> for Canned {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let good = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        let frames: Vec<_> = self.0.iter().cloned().map(Frame::data).chain([Frame::trailers(good)]).collect();
        ready(Ok(Response::new(Body::new(StreamBody::new(futures::stream::iter(frames).map(Ok::<_, Infallible>))))))
    }
}

/// The answer with these batches, as our server sends it, in DATA frames of this size.
fn canned(whole: &RecordBatch, frame_bytes: usize) -> Canned {
    let mut encoder = Encoder::new(&whole.schema(), None).unwrap();
    let mut messages = vec![encoder.schema()];
    for at in (0..ROWS).step_by(8_192) {
        messages.extend(encoder.batch(&whole.slice(at, 8_192)).unwrap());
    }
    let mut frames = Vec::new();
    for message in messages {
        let mut message = message.into_message(b"", None);
        // As h2 reads them: a header of nine bytes in front of each, in one buffer.
        while message.has_remaining() {
            let count = message.remaining().min(frame_bytes);
            let mut read = BytesMut::with_capacity(9 + count);
            read.extend_from_slice(&[0; 9]);
            read.extend_from_slice(&message.copy_to_bytes(count));
            frames.push(read.freeze().slice(9..));
        }
    }
    Canned(Arc::new(frames))
}

async fn ours(answers: Canned) -> usize {
    let mut answer = do_get(answers, Bytes::new()).await.unwrap();
    let mut rows = 0;
    while let Some(frame) = answer.next().await.unwrap() {
        if let Payload::Batch(batch) = frame.payload {
            rows += batch.num_rows();
        }
    }
    rows
}

async fn theirs(answers: Canned) -> usize {
    let mut client = FlightServiceClient::new(answers).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let frames = client.do_get(Ticket::default()).await.unwrap().into_inner();
    let mut batches = FlightRecordBatchStream::new_from_flight_data(frames.map_err(Into::into));
    let mut rows = 0;
    while let Some(batch) = batches.next().await {
        rows += batch.unwrap().num_rows();
    }
    rows
}

fn receive(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let text = |i: usize| format!("a string longer than twelve {i:06}");
    let numbers = (0..16_u32).map(|i| -> (String, ArrayRef) {
        let values = if i % 2 == 0 {
            Arc::new((0..ROWS as i64).collect::<Int64Array>()) as ArrayRef
        } else {
            Arc::new((0..ROWS).map(|row| Some(row as f64)).collect::<Float64Array>())
        };
        (format!("c{i}"), values)
    });
    let strings: ArrayRef = Arc::new((0..ROWS).map(|i| Some(text(i))).collect::<StringArray>());
    let views: ArrayRef = Arc::new((0..ROWS).map(|i| Some(text(i))).collect::<StringViewArray>());
    let cases = [
        ("16 numbers", RecordBatch::try_from_iter(numbers).unwrap()),
        ("strings", RecordBatch::try_from_iter([("s", strings)]).unwrap()),
        ("string views", RecordBatch::try_from_iter([("v", views)]).unwrap()),
    ];
    let mut group = criterion.benchmark_group("receive");
    for (name, whole) in cases {
        for frame_kib in [16, 1_024] {
            let answers = canned(&whole, frame_kib << 10);
            let case = format!("{name}, frames of {frame_kib} KiB");
            group.throughput(Throughput::Bytes(answers.0.iter().map(|frame| frame.len() as u64).sum()));
            assert_eq!((runtime.block_on(ours(answers.clone())), runtime.block_on(theirs(answers.clone()))), (ROWS, ROWS));
            group.bench_function(BenchmarkId::new("ours", &case), |b| b.iter(|| runtime.block_on(ours(answers.clone()))));
            group.bench_function(BenchmarkId::new("tonic and arrow-flight", &case), |b| {
                b.iter(|| runtime.block_on(theirs(answers.clone())));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, receive);
criterion_main!(benches);
