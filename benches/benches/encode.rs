//! Frames of a batch: this server's encoder against `arrow-flight`'s `FlightDataEncoder`.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, StringViewArray};
use arrow_flight::encode::FlightDataEncoderBuilder;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flightcache_server::flight::Encoder;
use futures::StreamExt as _;

const ROWS: usize = 131_072;

fn encode(criterion: &mut Criterion) {
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
    let mut group = criterion.benchmark_group("encode");
    for (name, whole) in cases {
        // As a scan hands them over: slices of the cached arrays.
        let batches: Vec<_> = (0..ROWS).step_by(8_192).map(|at| whole.slice(at, 8_192)).collect();
        group.throughput(Throughput::Bytes(whole.get_array_memory_size() as u64));
        group.bench_function(BenchmarkId::new("ours", name), |b| {
            let mut encoder = Encoder::new(&whole.schema(), None).unwrap();
            b.iter(|| batches.iter().map(|batch| encoder.batch(batch).unwrap().len()).sum::<usize>());
        });
        group.bench_function(BenchmarkId::new("arrow-flight", name), |b| {
            b.iter(|| {
                let stream = futures::stream::iter(batches.clone()).map(Ok);
                let frames = FlightDataEncoderBuilder::new().build(stream).map(|frame| frame.unwrap().data_body.len());
                runtime.block_on(frames.fold(0, |sum, len| async move { sum + len }))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
