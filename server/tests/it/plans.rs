//! Plans that are kept: they hold as long as what they were made of, and no longer.

use std::sync::Arc;

use flightcache::ScanRequest;
use flightcache_proto::Ticket;
use flightcache_server::Settings;
use flightcache_server::admin::ScanMeter;
use flightcache_server::object::Freshness;
use flightcache_server::scan::ScanPlan;
use futures::FutureExt as _;

use crate::store::TestStore;
use crate::support::{Cache, file, settings};

const URL: &str = "s3://lake/t.parquet";

async fn start() -> Cache {
    let cache = Cache::with(Settings { freshness: Freshness::Always, ..settings() }, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 40_000, 10_000, 2)).await;
    cache
}

async fn plan(cache: &Cache, request: &ScanRequest) -> Arc<ScanPlan> {
    cache.server.engine().plan(&Ticket::Scan(request.clone()), &Arc::new(ScanMeter::default())).await.unwrap()
}

fn filtered(filter: &str) -> ScanRequest {
    ScanRequest { filter: Some(filter.into()), ..ScanRequest::new(URL) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_ticket_has_the_same_plan_until_the_object_is_another() {
    let cache = start().await;
    for request in [ScanRequest::new(URL), filtered("c0 < 15000"), ScanRequest::new("s3://lake/")] {
        let first = plan(&cache, &request).await;
        assert!(Arc::ptr_eq(&first, &plan(&cache, &request).await), "{request:?}");
        cache.store.put("t.parquet", file(0, 30_000, 10_000, 2)).await;
        let second = plan(&cache, &request).await;
        assert!(!Arc::ptr_eq(&first, &second), "{request:?}");
        assert!(second.exact_rows().is_none_or(|rows| rows == 30_000));
        cache.client.evict(URL).await.unwrap();
        assert!(!Arc::ptr_eq(&second, &plan(&cache, &request).await), "{request:?}");
        cache.store.put("t.parquet", file(0, 40_000, 10_000, 2)).await;
    }
    // Another object joins the prefix.
    let request = ScanRequest::new("s3://lake/");
    assert_eq!(plan(&cache, &request).await.exact_rows(), Some(40_000));
    cache.store.put("u.parquet", file(0, 5, 5, 2)).await;
    assert_eq!(plan(&cache, &request).await.exact_rows(), Some(40_005));
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_depends_on_the_time_holds_once() {
    let cache = start().await;
    for (filter, is_kept) in
        [("c0 < 5", true), ("c0 < 5 and now() > '2020-01-01'", false), ("current_date() > '2020-01-01'", false)]
    {
        let first = plan(&cache, &filtered(filter)).await;
        assert_eq!(Arc::ptr_eq(&first, &plan(&cache, &filtered(filter)).await), is_kept, "{filter}");
    }
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_plan_tells_what_was_pruned() {
    let cache = start().await;
    let pruned = async || {
        let mut scan = cache.client.scan(URL).filter("c0 < 15000").in_one_request().send().await.unwrap();
        while futures::TryStreamExt::try_next(&mut scan).await.unwrap().is_some() {}
        scan.stats().row_groups_pruned
    };
    assert_eq!((pruned().await, pruned().await), (2, 2));
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_not_made_where_its_request_arrives() {
    let cache = Cache::with(Settings { freshness: Freshness::Immutable, ..settings() }, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 400, 100, 2)).await;
    let (first, other) = (filtered("c0 < 5"), filtered("c0 < 6"));
    plan(&cache, &first).await;
    assert!(plan(&cache, &first).now_or_never().is_some(), "it is there");
    assert!(plan(&cache, &other).now_or_never().is_none(), "it is made");
    plan(&cache, &other).await;
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_take_what_their_filters_take() {
    // Room for many plans, and for 256 KiB of them.
    let small = Settings { footer_capacity: bytesize::ByteSize::mib(2), freshness: Freshness::Immutable, ..settings() };
    let cache = Cache::with(small, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 400, 100, 2)).await;
    let among = |first: i64, count: i64| {
        let numbers: Vec<String> = (first..first + count).map(|number| number.to_string()).collect();
        filtered(&format!("c0 in ({})", numbers.join(",")))
    };
    let short = plan(&cache, &among(10, 3)).await;
    assert!(Arc::ptr_eq(&short, &plan(&cache, &among(10, 3)).await));
    // Of 1,000 literals each, in as many bytes as filters may have.
    for first in 10..12 {
        let long = plan(&cache, &among(first, 1_000)).await;
        assert!(!Arc::ptr_eq(&long, &plan(&cache, &among(first, 1_000)).await));
    }
    assert!(Arc::ptr_eq(&short, &plan(&cache, &among(10, 3)).await));
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_take_a_part_of_the_footers_room() {
    let small = Settings { footer_capacity: bytesize::ByteSize::kib(200), freshness: Freshness::Immutable, ..settings() };
    let cache = Cache::with(small, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 400, 100, 2)).await;
    let first = plan(&cache, &filtered("c0 < 0")).await;
    for bound in 1..50 {
        plan(&cache, &filtered(&format!("c0 < {bound}"))).await;
    }
    assert!(!Arc::ptr_eq(&first, &plan(&cache, &filtered("c0 < 0")).await));
    assert_eq!(Arc::strong_count(&first), 1, "a plan that was let go is still held");
    let last = plan(&cache, &filtered("c0 < 49")).await;
    assert!(Arc::ptr_eq(&last, &plan(&cache, &filtered("c0 < 49")).await));
    cache.stop().await;
}
