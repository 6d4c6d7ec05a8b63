//! The access trace a server writes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use bytesize::ByteSize;
use flightcache::{Populate, ScanRequest};
use flightcache_server::admin::Metrics;
use flightcache_server::object::Sources;
use flightcache_server::{Server, Settings};
use flightcache_traces::{Access, Lru, Trace, footprint_bytes, simulate};
use futures::TryStreamExt as _;

use crate::store::TestStore;
use crate::support::{Cache, file, settings, until};

const T: &str = "s3://lake/t.parquet";
const U: &str = "s3://lake/u.parquet";

/// A server that records, and the directory its trace is in.
async fn recording(settings: Settings, store: TestStore) -> (Cache, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let record = Some(directory.path().join("trace.jsonl"));
    (Cache::with(Settings { record, ..settings }, store).await, directory)
}

/// Stops the server and reads what it wrote. Nothing may have been dropped.
async fn recorded(cache: Cache, directory: &Path) -> Trace {
    let engine = Arc::clone(cache.server.engine());
    cache.stop().await;
    assert_eq!(engine.metrics().record_dropped.get(), 0);
    Trace::read(&std::fs::read(directory.join("trace.jsonl")).unwrap()[..]).unwrap()
}

/// Row group, columns, rows and hits of each line of a request.
type Lines = Vec<(u32, Vec<String>, u64, Vec<bool>)>;

fn lines(accesses: &[Access]) -> Lines {
    let line =
        |a: &Access| (a.row_group.unwrap(), a.columns.iter().map(ToString::to_string).collect(), a.rows, a.hit.clone().unwrap());
    accesses.iter().map(line).collect()
}

fn expected(lines: &[(u32, &[&str], u64, &[bool])]) -> Lines {
    let names = |columns: &[&str]| columns.iter().map(|&column| column.to_owned()).collect();
    lines.iter().map(|&(group, columns, rows, hits)| (group, names(columns), rows, hits.to_vec())).collect()
}

fn requests(trace: &Trace) -> Vec<Lines> {
    trace.requests().map(|request| lines(request.accesses)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_says_what_clients_read() {
    let (cache, directory) = recording(settings(), TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 40_000, 10_000, 3)).await;
    cache.store.put("u.parquet", file(0, 40_000, 10_000, 3)).await;
    let whole = || async {
        let scan = cache.client.scan(T).columns(["c2", "c0"]);
        assert_eq!(scan.send().await.unwrap().collect().await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 40_000);
    };
    // Statistics cannot decide this one.
    let filtered = || async {
        let scan = cache.client.scan(U).filter("c0 % 40000 = 10077").columns(["c1"]);
        assert_eq!(scan.send().await.unwrap().collect().await.unwrap()[0].num_rows(), 1);
    };
    tokio::join!(whole(), filtered());
    tokio::join!(whole(), filtered());
    let collect = async |scan: flightcache::ScanBuilder| scan.send().await.unwrap().collect().await.unwrap();
    collect(cache.client.scan(T).filter("c0 >= 38000").columns(["c0", "c1"])).await;
    collect(cache.client.scan(T).columns(["c0"]).limit(10_005)).await;
    collect(cache.client.scan(T).filter("c0 > 99999")).await;
    collect(cache.client.scan(T).columns(Vec::<String>::new())).await;
    let mut resident = HashMap::new();
    for url in [T, U] {
        for column in &cache.client.info(url).await.unwrap()[0].columns {
            resident.insert((url.to_owned(), column.name.clone()), column.resident_bytes);
        }
    }
    let trace = recorded(cache, directory.path()).await;

    let of = |url: &str| {
        let of_url = |r: &flightcache_traces::Request<'_>| r.urls() == [url];
        trace.requests().filter(of_url).map(|r| lines(r.accesses)).collect::<Vec<_>>()
    };
    let both: &[&str] = &["c0", "c2"];
    let scan =
        |hit: bool| expected(&[0, 1, 2, 3].map(|group| (group, both, 10_000, if hit { &[true; 2] } else { &[false; 2][..] })));
    let columns_of_none: &[&str] = &[];
    let rest = [
        expected(&[(3, &["c0", "c1"], 2_000, &[true, false])]),
        expected(&[(0, &["c0"], 10_000, &[true]), (1, &["c0"], 5, &[true])]),
        expected(&[0, 1, 2, 3].map(|group| (group, columns_of_none, 10_000, &[][..]))),
    ];
    assert_eq!(of(T), [&[scan(false), scan(true)][..], &rest].concat(), "what was pruned as a whole is no request");
    let point = |hit: bool| {
        let alone: (&[&str], &[bool]) = (&["c0"], if hit { &[true] } else { &[false] });
        let matching: (&[&str], &[bool]) = (&["c0", "c1"], if hit { &[true; 2] } else { &[false; 2] });
        expected(&[(0, alone.0, 0, alone.1), (1, matching.0, 1, matching.1), (2, alone.0, 0, alone.1), (3, alone.0, 0, alone.1)])
    };
    assert_eq!(of(U), [point(false), point(true)]);

    // Bytes are what the cache holds.
    let mut chunks = HashMap::new();
    for access in &trace.accesses {
        for (column, &bytes) in access.columns.iter().zip(&access.bytes) {
            let known = *chunks.entry((access.url.to_string(), column.to_string(), access.row_group)).or_insert(bytes);
            assert_eq!(known, bytes, "a chunk weighs what it weighed when it was loaded");
        }
    }
    let mut by_column = HashMap::new();
    for ((url, column, _), bytes) in chunks {
        *by_column.entry((url, column)).or_insert(0) += bytes;
    }
    resident.retain(|_, bytes| *bytes > 0);
    assert_eq!(by_column, resident);

    // What an unbounded cache would have done is what this one did.
    let rates = simulate(&trace, &mut Lru::new(u64::MAX));
    let hits = trace.accesses.iter().flat_map(|access| access.hit.as_deref().unwrap()).filter(|hit| **hit).count() as u64;
    assert_eq!((rates.requests, rates.item_hits), (7, hits));
    assert_eq!(footprint_bytes(&trace), resident.values().sum::<u64>());
}

#[tokio::test(flavor = "multi_thread")]
async fn row_reads_warming_and_reads_that_leave_nothing_are_requests() {
    let (cache, directory) = recording(settings(), TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 40_000, 10_000, 2)).await;
    let collect = async |scan: flightcache::ScanBuilder| scan.send().await.unwrap().collect().await.unwrap();
    for _ in 0..2 {
        collect(cache.client.scan(T).columns(["c1"]).filter("c0 < 15000").populate(Populate::Never)).await;
    }
    collect(cache.client.scan(T).columns(["c0"]).rows([30_001, 3, 3, 30_000, 10_000]).limit(4)).await;
    let warm = ScanRequest { columns: Some(vec!["c0".to_owned()]), ..ScanRequest::new(T) };
    cache.client.warm(&warm).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    let trace = recorded(cache, directory.path()).await;
    let both: &[&str] = &["c0", "c1"];
    let never = expected(&[(0, both, 10_000, &[false; 2]), (1, both, 5_000, &[false; 2])]);
    let [first, second, rows, warm] = &requests(&trace)[..] else { panic!("four requests") };
    assert_eq!([first, second], [&never, &never]);
    // Row groups of these are looked up side by side.
    let sorted = |lines: &Lines| {
        let mut lines = lines.clone();
        lines.sort();
        lines
    };
    let c0: &[&str] = &["c0"];
    assert_eq!(sorted(rows), expected(&[(0, c0, 2, &[false]), (1, c0, 0, &[false]), (3, c0, 2, &[false])]));
    let found = [true, true, false, true];
    assert_eq!(sorted(warm), expected(&[0, 1, 2, 3].map(|group| (group, c0, 0, &found[group as usize..=group as usize]))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_is_left_is_recorded_as_far_as_it_went() {
    let (cache, directory) = recording(settings(), TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 400_000, 10_000, 2)).await;
    cache.client.scan(T).limit(1).send().await.unwrap().collect().await.unwrap();
    cache.store.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let mut stream = cache.client.scan(T).send().await.unwrap();
    assert_eq!(stream.try_next().await.unwrap().unwrap().num_rows(), 10_000);
    until("the next reads are under way", || cache.server.engine().stats().in_flight_bytes > 0).await;
    drop(stream);
    until("the loads are gone", || cache.server.engine().stats().in_flight_bytes == 0).await;
    cache.store.gate.add_permits(1_000);
    let trace = recorded(cache, directory.path()).await;
    let [limited, left] = &requests(&trace)[..] else { panic!("two requests") };
    let both: &[&str] = &["c0", "c1"];
    assert_eq!(*limited, expected(&[(0, both, 1, &[false; 2])]));
    assert_eq!(left[..1], expected(&[(0, both, 10_000, &[true; 2])]));
    assert!((2..40).contains(&left.len()), "{}", left.len());
    for (at, line) in (1..).zip(&left[1..]) {
        assert_eq!(*line, expected(&[(at, both, 0, &[false; 2])])[0]);
    }
    assert!(trace.accesses.iter().flat_map(|access| &access.bytes).all(|bytes| (80_000..90_000).contains(bytes)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_never_resident_is_a_miss() {
    let one = ByteSize::mib(1);
    let (banded, directory) = recording(Settings { capacity: one, reserve: Some(one), ..settings() }, TestStore::new()).await;
    banded.store.put("t.parquet", file(0, 100_000, 100_000, 2)).await;
    for _ in 0..2 {
        let batches = banded.client.scan(T).send().await.unwrap().collect().await.unwrap();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 100_000);
    }
    let trace = recorded(banded, directory.path()).await;
    assert_eq!(requests(&trace), [(); 2].map(|()| expected(&[(0, &["c0", "c1"], 100_000, &[false; 2])])));
    assert!(trace.accesses.iter().flat_map(|access| &access.bytes).all(|bytes| *bytes >= 800_000));

    let (unversioned, directory) = recording(settings(), TestStore::without_versions()).await;
    unversioned.store.put("t.parquet", file(0, 20_000, 10_000, 2)).await;
    for _ in 0..2 {
        assert_eq!(unversioned.values(T, "c0").await.unwrap().len(), 20_000);
    }
    let trace = recorded(unversioned, directory.path()).await;
    let c0: &[&str] = &["c0"];
    assert_eq!(requests(&trace), [(); 2].map(|()| expected(&[0, 1].map(|group| (group, c0, 10_000, &[false][..])))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_record_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { record: Some(directory.path().join("none/trace.jsonl")), ..settings() };
    let started = Server::start_with(&settings, Sources::default(), Arc::new(Metrics::new().unwrap())).await;
    let message = started.err().unwrap().message;
    assert!(message.contains("cannot record to") && message.contains("none/trace.jsonl"), "{message}");
}
