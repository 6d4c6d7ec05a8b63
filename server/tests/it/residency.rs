//! Chunks as arrays, as Parquet bytes, or as both.

use bytesize::ByteSize;
use flightcache::ScanRequest;
use flightcache_server::Settings;
use flightcache_server::settings::Residency;
use futures::TryStreamExt as _;
use futures::future::try_join_all;

use crate::store::TestStore;
use crate::support::{Cache, file, settings, values};

const URL: &str = "s3://lake/t.parquet";
const ROWS: i64 = 200_000;
/// Of one column, in either form.
const COLUMN_BYTES: u64 = ROWS as u64 * 8;

async fn start(residency: Residency, capacity: ByteSize) -> Cache {
    let cache = Cache::with(Settings { residency, capacity, ..settings() }, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, ROWS, 50_000, 4)).await;
    cache
}

async fn read(cache: &Cache, column: &str, filter: Option<&str>) -> Vec<i64> {
    let scan = cache.client.scan(URL).columns([column]);
    let scan = if let Some(filter) = filter { scan.filter(filter) } else { scan };
    values(&scan.send().await.unwrap().collect().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_form_answers_the_same_and_asks_the_store_once() {
    for residency in [Residency::Arrow, Residency::Parquet, Residency::Auto] {
        let cache = start(residency, ByteSize::mib(64)).await;
        for _ in 0..3 {
            assert!(read(&cache, "c0", None).await.into_iter().eq(0..ROWS), "{residency:?}");
            assert_eq!(read(&cache, "c0", Some("c0 % 40000 = 7")).await, [7, 40_007, 80_007, 120_007, 160_007]);
        }
        let column = cache.client.scan(URL).columns(["c0"]).rows([3, 199_999, 3, 100_000]).send().await.unwrap();
        assert_eq!(values(&column.collect().await.unwrap()), [3, 199_999, 3, 100_000]);
        // The footer, and a range of each row group.
        assert_eq!(cache.store.take_reads().len(), 5, "{residency:?}");
        let stats = cache.settled().await;
        let (arrow, parquet) = (stats.resident_arrow_bytes, stats.resident_parquet_bytes);
        let expected = match residency {
            Residency::Arrow => (true, false),
            Residency::Parquet => (false, true),
            Residency::Auto => (true, true),
        };
        assert_eq!((arrow >= COLUMN_BYTES, parquet >= COLUMN_BYTES), expected, "{residency:?}: {arrow}, {parquet}");
        assert_eq!((arrow + parquet, stats.resident_chunks), (stats.resident_bytes, 4));
        assert_eq!(stats.chunks_missed, 4);
        cache.client.evict(URL).await.unwrap();
        assert_eq!(cache.server.engine().stats().resident_bytes, 0);
        cache.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn arrays_give_way_to_bytes() {
    // All columns fit as bytes, and one of them as arrays beside.
    let cache = start(Residency::Auto, ByteSize(COLUMN_BYTES * 21 / 4)).await;
    for _ in 0..3 {
        for column in ["c0", "c1", "c2", "c3"] {
            read(&cache, column, None).await;
        }
    }
    let stats = cache.server.engine().stats();
    assert_eq!((stats.chunks_missed, stats.resident_chunks), (16, 16), "each chunk was loaded once");
    assert!(stats.resident_parquet_bytes > 4 * COLUMN_BYTES);
    assert!(stats.resident_arrow_bytes > COLUMN_BYTES / 2, "{stats:?}");
    assert!(stats.resident_bytes <= stats.capacity_bytes);
    assert_eq!(cache.store.take_reads().len(), 17);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_filters_touch_is_decoded_first() {
    let cache = start(Residency::Auto, ByteSize(COLUMN_BYTES * 21 / 4)).await;
    for column in ["c0", "c1", "c2", "c3"] {
        read(&cache, column, None).await;
    }
    for round in 0..3 {
        for column in ["c1", "c2", "c3"] {
            read(&cache, column, None).await;
        }
        let before = cache.server.engine().stats().chunks_decoded;
        assert_eq!(read(&cache, "c0", Some("c0 = 60000")).await, [60_000]);
        let decoded = cache.server.engine().stats().chunks_decoded - before;
        assert!(round < 2 || decoded == 0, "the filter's column was decoded again in round {round}");
    }
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_share_what_is_decoded_for_one() {
    let cache = start(Residency::Parquet, ByteSize::mib(64)).await;
    cache.values(URL, "c0").await.unwrap();
    let before = cache.server.engine().stats();
    let all = try_join_all((0..50).map(|_| cache.values(URL, "c0"))).await.unwrap();
    assert!(all.iter().all(|column| column.iter().copied().eq(0..ROWS)));
    let after = cache.settled().await;
    assert_eq!(after.chunks_missed, before.chunks_missed);
    assert_eq!(after.store_requests, before.store_requests);
    assert_eq!(after.resident_arrow_bytes, 0);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decoded_at_once_is_read_in_bands_of_resident_bytes() {
    // Its four columns fit twice as bytes, while they are read; not as bytes and decoded.
    let small = Settings {
        residency: Residency::Parquet,
        capacity: ByteSize(COLUMN_BYTES * 9),
        reserve: Some(ByteSize(0)),
        ..settings()
    };
    let cache = Cache::with(small, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, ROWS, ROWS as usize, 4)).await;
    for _ in 0..2 {
        let batches = cache.client.scan(URL).columns(["c0", "c1", "c2", "c3"]).send().await.unwrap().collect().await.unwrap();
        assert!(values(&batches).into_iter().eq(0..ROWS));
    }
    let stats = cache.server.engine().stats();
    assert_eq!(stats.resident_chunks, 4, "{stats:?}");
    assert!(stats.store_bytes < 5 * COLUMN_BYTES, "the second scan asked the store: {stats:?}");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_fails_all_forms_and_leaves_nothing() {
    for residency in [Residency::Parquet, Residency::Auto] {
        let cache = start(residency, ByteSize::mib(64)).await;
        cache.values(URL, "c0").await.unwrap();
        cache.store.put("t.parquet", file(5, ROWS, 50_000, 4)).await;
        // Overwritten meanwhile: what is asked anew is of the new version.
        let values = cache.values(URL, "c1").await.unwrap();
        assert_eq!(values.len() as i64, ROWS);
        cache.settled().await;
        assert_eq!(cache.values(URL, "c0").await.unwrap()[0], 5);
        cache.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rests_as_parquet_is_warmed_as_such() {
    // 3.2 MB, which are read and kept; arrays beside that would be too much.
    let memory =
        Settings { residency: Residency::Parquet, capacity: ByteSize::mib(5), reserve: Some(ByteSize::mib(3)), ..settings() };
    let cache = Cache::with(memory, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 200_000, 200_000, 2)).await;
    let done: Vec<_> = cache.client.warm(&ScanRequest::new(URL)).await.unwrap().try_collect().await.unwrap();
    let last = done.last().unwrap();
    assert_eq!((last.row_groups_done, last.chunks_missed), (1, 2));
    let stats = cache.settled().await;
    assert_eq!((stats.resident_chunks, stats.resident_arrow_bytes), (2, 0));
    cache.store.take_reads();
    assert!(cache.values(URL, "c0").await.unwrap().into_iter().eq(0..200_000));
    assert_eq!(cache.store.take_reads(), []);
    cache.stop().await;
}
