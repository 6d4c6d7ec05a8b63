//! Bounds on memory.

use arrow_flight::Ticket;
use arrow_flight::flight_service_client::FlightServiceClient;
use bytesize::ByteSize;
use flightcache::Populate;
use flightcache_server::Settings;
use futures::TryStreamExt as _;
use futures::future::try_join_all;
use tonic::transport::Endpoint;

use crate::store::TestStore;
use crate::support::{Cache, file, settings, values};

fn small(capacity: ByteSize, reserve: ByteSize) -> Settings {
    Settings { capacity, reserve: Some(reserve), ..settings() }
}

#[tokio::test(flavor = "multi_thread")]
async fn accounted_bytes_stay_bounded_under_churn() {
    // 20 objects of 3.2 MB decoded, a tenth of which fits.
    let cache = Cache::with(small(ByteSize::mib(6), ByteSize::mib(24)), TestStore::new()).await;
    for i in 0..20 {
        cache.store.put(&format!("t{i}.parquet"), file(i * 1_000_000, 100_000, 25_000, 4)).await;
    }
    let engine = cache.server.engine().clone();
    let watch = tokio::spawn(async move {
        let mut highest = (0, 0);
        loop {
            let stats = engine.stats();
            highest.0 = highest.0.max(stats.resident_bytes);
            highest.1 = highest.1.max(stats.resident_bytes + stats.in_flight_bytes + stats.streaming_bytes);
            assert!(highest.0 <= 6 << 20 && highest.1 <= 30 << 20, "{highest:?}");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    });
    for round in 0..3 {
        let scans = (0..20).map(|i| {
            let cache = &cache;
            async move {
                let i = (i * 7 + round) % 20;
                let column = cache.values(&format!("s3://lake/t{i}.parquet"), "c0").await?;
                assert!(column.into_iter().eq(i * 1_000_000..i * 1_000_000 + 100_000));
                let whole = cache.client.scan(format!("s3://lake/t{i}.parquet")).send().await?.collect().await?;
                assert_eq!(whole.iter().map(arrow::array::RecordBatch::num_rows).sum::<usize>(), 100_000);
                Ok::<_, flightcache::Error>(())
            }
        });
        try_join_all(scans).await.unwrap();
    }
    assert!(!watch.is_finished(), "a bound was exceeded");
    watch.abort();
    assert!(cache.server.engine().stats().evictions > 0);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_group_larger_than_memory_streams_through() {
    // Loading it takes its compressed bytes and its arrays, 3.6 MB; its compressed bytes alone fit.
    let cache = Cache::with(small(ByteSize::mib(1), ByteSize::mib(1)), TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 100_000, 100_000, 2)).await;
    assert!(cache.values("s3://lake/t.parquet", "c0").await.unwrap().into_iter().eq(0..100_000));
    let some = cache.client.scan("s3://lake/t.parquet").filter("c0 % 1000 = 7").columns(["c0"]).send().await.unwrap();
    assert!(values(&some.collect().await.unwrap()).into_iter().eq((0..100).map(|i| i * 1_000 + 7)));
    let rows = cache.client.scan("s3://lake/t.parquet").rows([99_999, 0, 8_192]).send().await.unwrap();
    assert_eq!(values(&rows.collect().await.unwrap()), [99_999, 0, 8_192]);
    assert_eq!(cache.server.engine().stats().resident_chunks, 0);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_groups_wait_for_memory_in_the_order_of_their_scan() {
    // Each row group fits, no two do: 3 MB compressed and as much decoded, and a quarter, of 8 MB.
    let settings = Settings { memory_wait: std::time::Duration::from_hours(1), ..small(ByteSize::mib(2), ByteSize::mib(6)) };
    let cache = Cache::with(settings, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 1_000_000, 100_000, 4)).await;
    let scan = cache.client.scan("s3://lake/t.parquet").filter("c0 >= 0 AND c0 % 2 = 0").columns(["c1", "c2", "c3", "c0"]);
    let mut stream = scan.send().await.unwrap();
    let mut rows = 0;
    while let Some(batch) = stream.try_next().await.unwrap() {
        rows += batch.num_rows();
    }
    assert_eq!(rows, 500_000);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_holds_little_and_lets_go() {
    let cache = Cache::with(small(ByteSize::mib(8), ByteSize::mib(16)), TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 4_000_000, 100_000, 2)).await;
    let mut stream = cache.client.scan("s3://lake/t.parquet").send().await.unwrap();
    assert!(stream.try_next().await.unwrap().is_some());
    let read = || cache.server.engine().stats().store_bytes;
    let mut before = 0;
    // The reader stalls: soon nothing more is read for it.
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        if std::mem::replace(&mut before, read()) == read() {
            break;
        }
    }
    // What the server may hold, a stream's window of 16 MiB, and what the kernel and the reader's channel buffer.
    assert!(before < 52 << 20, "{before} of 64 MB were read for a reader that stalls");
    drop(stream);
    cache.settled().await;
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_may_not_populate_leave_nothing_and_use_what_is_there() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 10_000, 10_000, 2)).await;
    let scan = || cache.client.scan("s3://lake/t.parquet").columns(["c0"]).populate(Populate::Never);
    scan().send().await.unwrap().collect().await.unwrap();
    assert_eq!(cache.server.engine().stats().resident_chunks, 0);
    cache.values("s3://lake/t.parquet", "c0").await.unwrap();
    cache.store.take_reads();
    scan().send().await.unwrap().collect().await.unwrap();
    assert_eq!(cache.store.take_reads(), []);
    cache.client.set_capacity(0).await.unwrap();
    assert_eq!(cache.server.engine().stats().resident_bytes, 0);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_larger_than_memory_spares_what_two_requests_used() {
    let cache = Cache::with(small(ByteSize::mib(2), ByteSize::mib(24)), TestStore::new()).await;
    cache.store.put("hot.parquet", file(0, 10_000, 10_000, 2)).await;
    for _ in 0..2 {
        cache.values("s3://lake/hot.parquet", "c0").await.unwrap();
    }
    // 6.4 MB decoded, in row groups of 0.4 MB.
    cache.store.put("cold.parquet", file(0, 400_000, 25_000, 2)).await;
    cache.client.scan("s3://lake/cold.parquet").send().await.unwrap().collect().await.unwrap();
    assert!(cache.server.engine().stats().evictions > 0);
    cache.store.take_reads();
    cache.values("s3://lake/hot.parquet", "c0").await.unwrap();
    assert_eq!(cache.store.take_reads(), []);
    cache.stop().await;
}

#[test]
fn scans_in_bands_that_nobody_reads_keep_no_thread_from_others() {
    // As many threads as there are scans that stall.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(2).enable_all().build();
    let scanning = async {
        // 28 MB compressed, and as much decoded, and a quarter: two row groups may be held, none loaded.
        let cache = Cache::with(small(ByteSize::mib(1), ByteSize::mib(57)), TestStore::new()).await;
        cache.store.put("large.parquet", file(0, 3_500_000, 3_500_000, 1)).await;
        cache.store.put("t.parquet", file(0, 1_000, 1_000, 1)).await;
        let mut stalled = Vec::new();
        for _ in 0..2 {
            let client = flightcache::Client::connect(&format!("grpc://{}", cache.server.flight_addr())).await.unwrap();
            let mut stream = client.scan("s3://lake/large.parquet").send().await.unwrap();
            assert!(stream.try_next().await.unwrap().is_some());
            stalled.push(stream);
        }
        assert!(cache.server.engine().stats().in_flight_bytes > 2 * 28_000_000, "they are under way");
        assert!(cache.values("s3://lake/t.parquet", "c0").await.unwrap().into_iter().eq(0..1_000));
        for stream in stalled {
            let rows: usize = stream.collect().await.unwrap().iter().map(arrow::array::RecordBatch::num_rows).sum();
            assert!(rows > 3_400_000, "{rows}");
        }
        cache.stop().await;
    };
    let runtime = runtime.unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(std::time::Duration::from_mins(1), scanning).await });
    runtime.shutdown_background();
    ended.expect("all of them are answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_few_row_groups_of_what_is_evicted() {
    // 40 row groups of 800 KB, all resident.
    let cache = Cache::with(Settings { read_ahead: ByteSize::mib(1), ..settings() }, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 2_000_000, 50_000, 2)).await;
    cache.client.scan("s3://lake/t.parquet").send().await.unwrap().collect().await.unwrap();
    assert!(cache.settled().await.resident_bytes > 32_000_000);
    let channel = Endpoint::from_shared(format!("http://{}", cache.server.flight_addr())).unwrap().connect_lazy();
    let ticket = Ticket { ticket: r#"{"url": "s3://lake/t.parquet"}"#.into() };
    let mut stream = FlightServiceClient::new(channel).do_get(ticket).await.unwrap().into_inner();
    for _ in 0..2 {
        assert!(stream.message().await.unwrap().is_some());
    }
    cache.client.evict("s3://lake/t.parquet").await.unwrap();
    // Two messages, of one row group each, the one that is cut into messages, and two that are ready.
    let streaming = cache.server.engine().stats().streaming_bytes;
    assert!((1..=5 * 810_000).contains(&streaming), "{streaming}");
    while stream.message().await.unwrap().is_some() {}
    cache.settled().await;
    cache.stop().await;
}
