//! Stores that fail, and objects that change while they are read.

use arrow_flight::error::FlightError;
use flightcache::ErrorKind;
use flightcache_server::object::Freshness;
use futures::TryStreamExt as _;
use object_store::GetRange;

use crate::store::{Fate, TestStore};
use crate::support::{Cache, file, settings, until, values};

const URL: &str = "s3://lake/t.parquet";

#[tokio::test(flavor = "multi_thread")]
async fn an_overwrite_between_footer_and_data_gives_the_new_version_whole() {
    // Same size, other values: only the version tells them apart.
    let (old, new) = (file(0, 60_000, 10_000, 2), file(1_000_000, 60_000, 10_000, 2));
    assert_eq!(old.len(), new.len());
    for nth in 0..4 {
        let cache = Cache::start().await;
        cache.store.put("t.parquet", old.clone()).await;
        let mut seen = 0;
        let replacement = new.clone();
        cache.store.script(move |options, _| match options.range {
            Some(GetRange::Bounded(_)) => {
                seen += 1;
                if seen == nth + 1 { Fate::Overwrite(replacement.clone()) } else { Fate::Serve }
            }
            _ => Fate::Serve,
        });
        match cache.do_get(format!(r#"{{"url": "{URL}", "columns": ["c0"]}}"#)).await {
            // Rows of the old version may have left before the overwrite was met: then it is an error, never a mixture.
            Err(error) => {
                let FlightError::Tonic(status) = error else { panic!("{error}") };
                assert_eq!(status.code(), tonic::Code::Aborted, "{status}");
                assert!(nth > 0, "before any row was read the server starts over: {status}");
            }
            Ok(batches) => assert!(values(&batches).into_iter().eq(1_000_000..1_060_000), "one version, the new one"),
        }
        assert!(cache.values(URL, "c0").await.unwrap().into_iter().eq(1_000_000..1_060_000));
        cache.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_of_another_schema_are_refused() {
    let cache = Cache::with(flightcache_server::Settings { freshness: Freshness::Always, ..settings() }, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 3)).await;
    let json = format!(r#"{{"url": "{URL}"}}"#);
    let [ticket] = &cache.tickets(&json).await[..] else { panic!("one share") };
    cache.store.put("t.parquet", file(5, 1_000, 1_000, 3)).await;
    assert_eq!(values(&cache.do_get(ticket.clone()).await.unwrap())[0], 5, "a share of all of an object follows it");
    cache.store.put("t.parquet", file(0, 1_000, 1_000, 2)).await;
    let Err(FlightError::Tonic(status)) = cache.do_get(ticket.clone()).await else { panic!("another schema is an error") };
    assert_eq!(status.code(), tonic::Code::Aborted, "{status}");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_a_listing_still_names_is_passed_over() {
    let cache = Cache::start().await;
    for name in ["a", "b"] {
        cache.store.put(&format!("t/{name}.parquet"), file(0, 1_000, 1_000, 1)).await;
    }
    assert_eq!(cache.values("s3://lake/t/", "c0").await.unwrap().len(), 2_000);
    cache.client.evict("s3://lake/t/b.parquet").await.unwrap();
    let mut deleted = false;
    cache.store.script(move |options, _| {
        let fate = if options.range.is_some() && !deleted { Fate::Delete } else { Fate::Serve };
        deleted = true;
        fate
    });
    assert_eq!(cache.values("s3://lake/t/", "c0").await.unwrap().len(), 1_000);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_of_thousands_of_objects_with_a_limit() {
    let cache = Cache::start().await;
    let object = file(0, 10, 10, 1);
    for i in 0..4_200 {
        cache.store.put(&format!("many/{i:05}.parquet"), object.clone()).await;
    }
    let rows = cache.client.scan("s3://lake/many/").filter("c0 >= 5").limit(7).send().await.unwrap().collect().await.unwrap();
    assert_eq!(values(&rows), [5, 6, 7, 8, 9, 5, 6]);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_object_is_not_found() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 10_000, 10_000, 1)).await;
    cache.store.script(|options, _| if matches!(options.range, Some(GetRange::Bounded(_))) { Fate::Delete } else { Fate::Serve });
    let error = cache.values(URL, "c0").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert!(error.message.contains(URL));
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_typed_and_leave_nothing_behind() {
    for truncate in [false, true] {
        let cache = Cache::start().await;
        cache.store.put("t.parquet", file(0, 10_000, 10_000, 2)).await;
        cache.store.script(move |options, _| match (&options.range, truncate) {
            (Some(GetRange::Bounded(_)), false) => Fate::Fail,
            (Some(GetRange::Bounded(_)), true) => Fate::Truncate,
            _ => Fate::Serve,
        });
        let error = cache.values(URL, "c0").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(error.message.contains(URL), "{error}");
        assert_eq!(cache.settled().await.resident_chunks, 0);
        cache.store.script(|_, _| Fate::Serve);
        assert_eq!(cache.values(URL, "c0").await.unwrap().len(), 10_000);
        cache.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_stops_the_work() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 400_000, 10_000, 2)).await;
    cache.client.info(URL).await.unwrap();
    cache.store.take_reads();
    cache.store.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let mut stream = cache.client.scan(URL).send().await.unwrap();
    let first = tokio::spawn(async move { stream.try_next().await.map(|batch| batch.is_some()) });
    until("reads are under way", || cache.server.engine().stats().in_flight_bytes > 0).await;
    first.abort();
    until("the loads are gone", || cache.server.engine().stats().in_flight_bytes == 0).await;
    cache.store.gate.add_permits(1_000);
    assert_eq!(cache.values(URL, "c0").await.unwrap().len(), 400_000);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_that_leaves_disturbs_nobody() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 10_000, 10_000, 1)).await;
    cache.client.info(URL).await.unwrap();
    cache.store.take_reads();
    cache.store.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let scan = || {
        let client = cache.client.clone();
        tokio::spawn(async move { client.scan(URL).send().await?.collect().await })
    };
    let first = scan();
    until("the first one leads", || cache.server.engine().stats().chunks_missed == 1).await;
    let second = scan();
    until("the second one waits", || cache.server.engine().stats().chunks_joined == 1).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    cache.store.gate.add_permits(1_000);
    assert_eq!(values(&second.await.unwrap().unwrap()).len(), 10_000);
    assert_eq!(cache.store.take_reads().len(), 1, "the load went on for the second");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_without_a_version_are_read_and_never_cached() {
    let cache = Cache::with(settings(), TestStore::without_versions()).await;
    cache.store.put("t.parquet", file(0, 10_000, 5_000, 1)).await;
    for _ in 0..2 {
        cache.store.take_reads();
        assert_eq!(cache.values(URL, "c0").await.unwrap().len(), 10_000);
        assert!(!cache.store.take_reads().is_empty());
    }
    assert_eq!(cache.settled().await.resident_chunks, 0);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn always_fresh_revalidates_without_reading_again() {
    let cache = Cache::with(flightcache_server::Settings { freshness: Freshness::Always, ..settings() }, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 10_000, 10_000, 1)).await;
    assert_eq!(cache.values(URL, "c0").await.unwrap()[0], 0);
    cache.store.take_reads();
    assert_eq!(cache.values(URL, "c0").await.unwrap()[0], 0);
    assert_eq!(TestStore::bytes_of(&cache.store.take_reads()), 0, "conditional reads only");
    cache.store.put("t.parquet", file(7, 10_000, 10_000, 1)).await;
    assert_eq!(cache.values(URL, "c0").await.unwrap()[0], 7);
    cache.stop().await;
}
