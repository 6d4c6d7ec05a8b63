//! Decoding a column chunk whole, as the cache wants it, against the Parquet reader's own batches of 8,192 rows.

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flightcache_bench::data;
use flightcache_server::admin::{Metrics, ScanMeter};
use flightcache_server::object::{FetchLimits, Freshness, Sources};
use flightcache_server::parquet::{Footers, SLICE_ROWS, decode_chunk, nowhere};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

const ROWS: usize = 100_000;

fn decode(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let file = bytes::Bytes::from(data::parquet(ROWS).unwrap());
    let store = Arc::new(InMemory::new());
    runtime.block_on(store.put(&Path::from("t.parquet"), file.clone().into())).unwrap();
    let sources = Sources::default().with_store("s3://bench/", store as Arc<dyn ObjectStore>, Freshness::Immutable).unwrap();
    let limits = FetchLimits::new(16, Arc::new(Metrics::new().unwrap()));
    let meter = Arc::new(ScanMeter::default());
    let object = sources.object("s3://bench/t.parquet").unwrap();
    let footer = runtime.block_on(Footers::new(1 << 20, limits.clone(), false).0.get(&object, None, nowhere, &meter)).unwrap();
    let mut group = criterion.benchmark_group("decode");
    for (name, column) in [("sorted int64", 0), ("repeated strings", 1), ("float64", 2)] {
        let ranges: Vec<_> = footer.chunk_ranges(0, column).collect();
        let segments = runtime.block_on(object.ranges(footer.version(), &ranges, &limits, &meter)).unwrap();
        group.throughput(Throughput::Bytes(footer.decoded_bytes_estimate(0, column)));
        group.bench_function(BenchmarkId::new("chunk", name), |b| {
            b.iter(|| decode_chunk(&footer, 0, column, &segments, &mut |_| true).unwrap());
        });
        group.bench_function(BenchmarkId::new("reader's batches", name), |b| {
            b.iter(|| {
                let builder = ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap();
                let mask = ProjectionMask::roots(builder.parquet_schema(), [column]);
                let reader = builder.with_row_groups(vec![0]).with_projection(mask).with_batch_size(SLICE_ROWS).build().unwrap();
                reader.map(|batch| batch.unwrap()).collect::<Vec<_>>()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
