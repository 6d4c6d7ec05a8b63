//! Filtering resident chunks against reading and decoding them again for each scan (from a store in memory: no network).

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flightcache::{Populate, ScanRequest};
use flightcache_bench::data;
use flightcache_proto::{Node, SlotMap, Ticket};
use flightcache_server::Settings;
use flightcache_server::admin::{Metrics, ScanMeter};
use flightcache_server::object::{Freshness, Sources};
use flightcache_server::scan::Engine;
use futures::TryStreamExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

const ROWS: usize = 400_000;
const URL: &str = "s3://bench/t.parquet";

fn slot_map() -> SlotMap {
    SlotMap::single(1, Node { id: "bench".into(), ..Node::default() })
}

async fn scan(engine: &Arc<Engine>, filter: &str, populate: Populate) -> usize {
    let columns = Some(vec!["id".into(), "m1".into()]);
    let request = ScanRequest { columns, filter: Some(filter.into()), populate, ..ScanRequest::new(URL) };
    let meter = Arc::new(ScanMeter::default());
    let plan = engine.plan(&Ticket::Scan(request), &meter).await.unwrap();
    engine.execute(plan, meter).try_fold(0, |rows, batch| async move { Ok(rows + batch.rows.num_rows()) }).await.unwrap()
}

fn filter(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Arc::new(InMemory::new());
    runtime.block_on(store.put(&Path::from("t.parquet"), data::parquet(ROWS).unwrap().into())).unwrap();
    let engine = || {
        let store = Arc::clone(&store) as Arc<dyn ObjectStore>;
        let sources = Sources::default().with_store("s3://bench/", store, Freshness::Immutable).unwrap();
        Engine::new(&Settings::default(), sources, Arc::new(Metrics::new().unwrap()), slot_map())
    };
    let mut group = criterion.benchmark_group("filter");
    for filter in ["m0 < 0.01", "station = 'station-042'", "station LIKE '%-04_' AND m0 > 0.5", "id % 1000 = 7"] {
        let (cached, cold) = (engine(), engine());
        let rows = runtime.block_on(scan(&cached, filter, Populate::Auto));
        assert_eq!(rows, runtime.block_on(scan(&cold, filter, Populate::Never)));
        group.throughput(Throughput::Elements(ROWS as u64));
        group.bench_function(BenchmarkId::new("cached", filter), |b| {
            b.iter(|| runtime.block_on(scan(&cached, filter, Populate::Auto)));
        });
        group.bench_function(BenchmarkId::new("decoded again", filter), |b| {
            b.iter(|| runtime.block_on(scan(&cold, filter, Populate::Never)));
        });
    }
    group.finish();
}

criterion_group!(benches, filter);
criterion_main!(benches);
