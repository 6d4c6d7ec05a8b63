//! How often the store is asked.

use arrow::array::{Array as _, RecordBatch};
use futures::TryStreamExt as _;
use futures::future::try_join_all;
use object_store::GetRange;

use crate::store::TestStore;
use crate::support::{Cache, file, values};

const URL: &str = "s3://lake/t.parquet";

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_clients_of_a_cold_object_cost_what_one_costs() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 40_000, 10_000, 4)).await;
    // In another directory, so that neither knows what the other was like.
    cache.store.put("one/t.parquet", file(0, 40_000, 10_000, 4)).await;
    cache.values("s3://lake/one/t.parquet", "c0").await.unwrap();
    let alone = cache.store.take_reads().len();
    let all = try_join_all((0..200).map(|_| cache.values(URL, "c0"))).await.unwrap();
    assert!(all.iter().all(|column| column.iter().copied().eq(0..40_000)));
    assert_eq!(cache.store.take_reads().len(), alone);
    cache.settled().await;
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_scan_asks_nothing() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(5, 20_000, 20_000, 3)).await;
    cache.values(URL, "c0").await.unwrap();
    let [suffix, data] = &cache.store.take_reads()[..] else { panic!("one read of the footer, one of the data") };
    assert!(matches!(suffix, Some(GetRange::Suffix(_))) && matches!(data, Some(GetRange::Bounded(_))));
    assert_eq!(cache.values(URL, "c0").await.unwrap()[0], 5);
    assert_eq!(cache.store.take_reads(), []);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_objects_are_read_whole_once_their_directory_is_known() {
    let cache = Cache::start().await;
    for (name, first, rows) in [("a", 0, 40_000), ("b", 7, 40_000), ("large", 9, 600_000)] {
        cache.store.put(&format!("{name}.parquet"), file(first, rows, 10_000, 4)).await;
    }
    let mut reads = Vec::new();
    for name in ["a", "b", "large", "a"] {
        let url = format!("s3://lake/{name}.parquet");
        cache.client.evict(&url).await.unwrap();
        cache.values(&url, "c0").await.unwrap();
        reads.push(cache.store.take_reads().len());
    }
    // The footer and four row groups; all at once; the large one's tail and its row groups; as with the first.
    assert_eq!(reads, [5, 1, 61, 5]);
    let values = cache.values("s3://lake/b.parquet", "c3").await.unwrap();
    assert_eq!((values.len(), cache.store.take_reads().len()), (40_000, 4), "what came whole is not kept beyond its first use");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_answers_what_two_do() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 200_000, 50_000, 4)).await;
    let scan = || cache.client.scan(URL).columns(["c1", "c0"]).filter("c0 % 3 = 0");
    let mut answers = Vec::new();
    for scan in [scan(), scan().in_one_request()] {
        let mut stream = scan.send().await.unwrap();
        let mut batches = Vec::new();
        while let Some(batch) = stream.try_next().await.unwrap() {
            batches.push(batch);
        }
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
        assert_eq!(stream.stats().rows, rows);
        assert_eq!(rows, 66_667);
        answers.push(arrow::compute::concat_batches(&stream.schema(), &batches).unwrap());
    }
    assert_eq!(answers[0], answers[1]);
    cache.stop().await;
}

/// Whether the first column's numbers lie in memory that is not Arrow's own: in what the connection read.
fn is_shared(batch: RecordBatch) -> bool {
    let buffer = batch.column(0).to_data().buffers()[0].clone();
    drop(batch);
    // Nobody else holds it and it begins where its memory does: only memory of another kind cannot be changed now.
    assert_eq!((buffer.strong_count(), buffer.ptr_offset()), (1, 0));
    buffer.into_mutable().is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn most_of_a_large_answer_is_not_copied_by_the_client() {
    let cache = Cache::start().await;
    // Batches of a MiB, a message each.
    cache.store.put("t.parquet", file(0, 245_760, 245_760, 16)).await;
    let shared = async |scan: flightcache::ScanBuilder| {
        let mut stream = scan.in_one_request().send().await.unwrap();
        let mut shared = Vec::new();
        while let Some(batch) = stream.try_next().await.unwrap() {
            shared.push(is_shared(batch));
        }
        shared
    };
    let whole = shared(cache.client.scan(URL)).await;
    assert_eq!(whole.len(), 30);
    // A message at a window's edge comes in two frames, and is put together.
    let count = whole.iter().filter(|shared| **shared).count();
    assert!(count >= 20, "{count} of 30 bodies stayed where they came");
    assert_eq!(shared(cache.client.scan(URL).columns(["c0"]).limit(8_192)).await, [false], "small ones are copied");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_columns_of_twenty_read_two_columns() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 50_000, 50_000, 20)).await;
    let stream = cache.client.scan(URL).columns(["c3", "c17"]).send().await.unwrap();
    assert_eq!(stream.collect().await.unwrap().iter().map(arrow::array::RecordBatch::num_rows).sum::<usize>(), 50_000);
    let reads = cache.store.take_reads();
    assert_eq!(reads.len(), 3, "{reads:?}");
    let bytes = TestStore::bytes_of(&reads);
    assert!((800_000..900_000).contains(&bytes), "{bytes} bytes for two columns of 400,000");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_filter_on_a_sorted_column_reads_one_row_group() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 100_000, 10_000, 4)).await;
    let rows = cache.client.scan(URL).filter("c0 = 54321").columns(["c0", "c2"]).send().await.unwrap().collect().await.unwrap();
    assert_eq!(values(&rows), [54_321]);
    let bytes = TestStore::bytes_of(&cache.store.take_reads());
    assert!(bytes < 3 * 80_100, "{bytes}");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_row_groups_without_a_match_are_not_read() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 100_000, 10_000, 4)).await;
    // Statistics cannot decide this one.
    let scan = cache.client.scan(URL).filter("c0 % 100000 = 77").columns(["c1", "c2", "c3"]);
    let mut stream = scan.send().await.unwrap();
    let mut rows = 0;
    while let Some(batch) = futures::TryStreamExt::try_next(&mut stream).await.unwrap() {
        rows += batch.num_rows();
    }
    assert_eq!(rows, 1);
    let bytes = TestStore::bytes_of(&cache.store.take_reads());
    assert!(bytes < 10 * 80_200 + 3 * 80_200, "{bytes}: the filter's column, and three columns of one row group");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_stops_the_work() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 1_000_000, 10_000, 2)).await;
    let rows = cache.client.scan(URL).limit(5).send().await.unwrap().collect().await.unwrap();
    assert_eq!(values(&rows), [0, 1, 2, 3, 4]);
    let bytes = TestStore::bytes_of(&cache.store.take_reads());
    assert!(bytes < 500_000, "{bytes}");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_reads_touch_only_their_row_groups_and_keep_the_order() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 100_000, 10_000, 2)).await;
    let rows = cache.client.scan(URL).rows([99_999, 3, 3, 50_000]).columns(["c0"]).send().await.unwrap().collect().await.unwrap();
    assert_eq!(values(&rows), [99_999, 3, 3, 50_000]);
    assert_eq!(cache.server.engine().stats().resident_chunks, 3);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_map_is_looked_up_once() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 1)).await;
    for _ in 0..5 {
        cache.values(URL, "c0").await.unwrap();
    }
    assert_eq!(cache.client.route_lookups(), 1);
    cache.stop().await;
}
