//! Whole replays of small traces, all sides in this process.

use std::time::Duration;

use clap::Parser as _;
use flightcache_traces::{Access, Trace};
use tempfile::TempDir;

use super::*;
use crate::generate::{self, Files};

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

pub(super) fn options(args: &[&str]) -> Result<Options, clap::Error> {
    Ok(Cli::try_parse_from([&["replay"], args].concat())?.options)
}

/// The files of the original traces, small, and a trace in a file.
async fn data(trace: &Trace) -> (TempDir, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap().to_owned();
    let files = Files { large_rows: 300, small_rows: 200, seed: 1 };
    generate::write(&place::open(&place).unwrap(), files, |_| ()).await.unwrap();
    let path = directory.path().join("trace.jsonl");
    trace.write(std::fs::File::create(&path).unwrap()).unwrap();
    (directory, place, path.to_str().unwrap().to_owned())
}

fn whole(at_ms: u64, request: u64, url: &str) -> Access {
    Access::whole_object(at_ms * 1_000, request, url, 1, 1)
}

/// Columns of a row group.
fn part(request: u64, url: &str, row_group: u32, columns: &[&str]) -> Access {
    Access {
        row_group: Some(row_group),
        columns: columns.iter().copied().map(Arc::from).collect(),
        bytes: vec![1; columns.len()],
        ..whole(0, request, url)
    }
}

/// Times far enough apart that a repeat comes after what it repeats.
fn repeats() -> Trace {
    Trace {
        accesses: vec![
            whole(0, 1, "1.parquet"),
            whole(0, 2, "10.parquet"),
            whole(2_000, 3, "1.parquet"),
            whole(2_000, 4, "10.parquet"),
        ],
    }
}

async fn replay(args: &[&str]) -> Result<Report, Box<dyn std::error::Error>> {
    let json = tempfile::NamedTempFile::new()?;
    let path = json.path().to_str().unwrap();
    run(options(&[args, &["--latency", "5ms", "--json", path]].concat())?).await?;
    Ok(serde_json::from_slice(&std::fs::read(json.path())?)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_hit_and_ask_the_store_nothing() {
    let (_directory, place, trace) = data(&repeats()).await;
    let report = replay(&["--data", &place, "--trace", &trace, "--servers", "1,2", "--clients", "2"]).await.unwrap();
    let [alone, replay] = &report.replays[..] else { panic!("{} replays", report.replays.len()) };
    assert_eq!((alone.servers, replay.servers, alone.sides[2].hits, alone.sides[2].misses), (1, 2, 40, 40));
    assert_eq!(alone.sides[2].store_requests, 2, "files this small are read whole");
    assert_eq!(replay.requests, 4);
    let [direct, whole_file, own] = &replay.sides[..] else { panic!("{:?}", replay.sides) };
    let sizes: u64 =
        ["1.parquet", "10.parquet"].map(|name| std::fs::metadata(format!("{place}/{name}")).unwrap().len()).iter().sum();
    assert_eq!((direct.hits, direct.misses, direct.errors), (0, 0, 0));
    assert!(direct.store_bytes > sizes, "{} bytes read, twice {sizes} in the files", direct.store_bytes);
    assert_eq!((whole_file.hits, whole_file.misses, whole_file.store_bytes, whole_file.store_requests), (2, 2, sizes, 2));
    assert_eq!((own.hits, own.misses), (40, 40), "20 columns of each file, cold and again");
    // Files this small are read whole: by the server that plans, for the footer, and by the one that owns the columns.
    assert!((2..=4).contains(&own.store_requests) && own.store_bytes <= 2 * sizes, "{own:?}");
    for side in [whole_file, own] {
        let shares: Vec<_> = side.responses.iter().map(|response| response.hit_share).collect();
        assert_eq!(shares, [0.0, 0.0, 1.0, 1.0], "{}", side.name);
        assert!(side.responses[2..].iter().all(|response| response.fetch_ms < f64::EPSILON), "{}", side.name);
    }
    for side in &replay.sides {
        assert!(side.cold_ms.unwrap() >= 5.0 && side.repeat_ms.unwrap() > 0.0, "{side:?}");
        assert!(side.responses.iter().all(|response| response.ok && response.response_ms > 0.0));
    }
    assert!(direct.responses.iter().all(|response| response.fetch_ms >= 5.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_urls_and_requests_for_several_objects_are_played() {
    let trace = Trace {
        accesses: vec![
            part(1, "s3://lake/t/1.parquet", 0, &["3", "7"]),
            part(2, "s3://lake/t/2.parquet", 0, &["3"]),
            part(2, "s3://lake/t/12.parquet", 0, &["5"]),
        ],
    };
    let (_directory, place, path) = data(&trace).await;
    let args = ["--data", &place, "--trace", &path, "--url-prefix", "s3://lake/t"];
    let report = replay(&[&args[..], &["--rounds", "2"]].concat()).await.unwrap();
    let sides = &report.replays[0].sides;
    assert_eq!(report.replays[0].requests, 4);
    assert!(sides.iter().all(|side| side.errors == 0 && side.responses.len() == 4 && side.repeat_ms.is_none()), "{sides:?}");
    assert_eq!(sides[2].misses, 2 * (2 + 1 + 1), "of each file the columns that were read of it");

    let wrong = |prefix: &'static str| replay_error([&args[..4], &["--url-prefix", prefix]].concat());
    let error = wrong("s3://other/").await;
    assert!(error.contains("s3://lake/t/1.parquet") && error.contains("s3://other/"), "{error}");
    assert!(replay_error(args[..4].to_vec()).await.contains("--url-prefix"));
}

async fn replay_error(args: Vec<&str>) -> String {
    replay(&args).await.map(|_| ()).unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn running_servers_are_asked_under_their_own_urls() {
    let (_directory, place, trace) = data(&repeats()).await;
    let store = place::open(&place).unwrap();
    let server = place::serve(store, ByteSize::mb(100)).await.unwrap();
    let location = format!("grpc://{}", server.flight_addr());
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = ["--data", &place, "--trace", &trace, "--servers", &location, "--json", json.path().to_str().unwrap()];
    let run_with = |more: &[&str]| run(options(&[&args[..], more].concat()).unwrap());
    let error = run_with(&[]).await.unwrap_err().to_string();
    assert!(error.contains("--latency 0s"), "{error}");
    let error = run_with(&["--latency", "0s"]).await.unwrap_err().to_string();
    assert!(error.contains("--url-prefix"), "{error}");
    for (more, names) in [
        (&["--clients", "shared"][..], &["direct", "flightcache"][..]),
        (&["--sides", "flightcache,whole-file,flightcache"], &["whole-file cache", "flightcache"]),
    ] {
        run_with(&[&["--latency", "0s", "--url-prefix", place::SOURCE], more].concat()).await.unwrap();
        let report: Report = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
        let sides = &report.replays[0].sides;
        assert_eq!(sides.iter().map(|side| side.name.as_str()).collect::<Vec<_>>(), names);
        let own = &sides[1];
        assert_eq!((own.hits, own.misses, own.errors), (40, 40, 0));
        assert!(own.store_bytes > 0 && own.store_requests > 0);
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_requests_are_counted_and_fail_the_run() {
    let trace = Trace { accesses: vec![whole(0, 1, "1.parquet"), whole(0, 2, "trace.jsonl")] };
    let (_directory, place, path) = data(&trace).await;
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = ["--data", &place, "--trace", &path, "--latency", "0s", "--json", json.path().to_str().unwrap()];
    let error = run(options(&args).unwrap()).await.unwrap_err().to_string();
    assert!(error.starts_with("3 requests failed") && error.contains("trace.jsonl"), "{error}");
    let report: Report = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    assert!(
        report.replays[0].sides.iter().all(|side| side.errors == 1 && side.responses.iter().filter(|one| one.ok).count() == 1)
    );
}

#[tokio::test]
async fn wrong_arguments_are_named_before_anything_runs() {
    let (_directory, place, _) = data(&Trace::default()).await;
    let of = |trace: &'static str| replay_error(vec!["--data", place.as_str(), "--trace", trace]);
    let error = of("2m").await;
    assert!(error.contains("'2m'") && error.contains("1m, 100m, parallel, serial, repeat, zipf"), "{error}");
    std::fs::remove_file(format!("{place}/16.parquet")).unwrap();
    let error = of("100m").await;
    assert!(error.contains("16.parquet") && error.contains("generate") && error.contains(&place), "{error}");
    for (wrong, hint) in [
        (&["--sides", "direct,none"][..], "whole-file"),
        (&["--speed", "0"], "from 0.001 to 1000000"),
        (&["--speed", "1e-320"], "from 0.001 to 1000000"),
        (&["--speed", "inf"], "from 0.001 to 1000000"),
        (&["--speed", "NaN"], "from 0.001 to 1000000"),
        (&["--clients", "one"], "per-request"),
        (&["--rounds", "0"], "1.."),
        (&["--servers", "0"], "at least one"),
        (&["--servers", "localhost:50051"], "grpc://"),
    ] {
        let error = options(&[&["--data", "x"], wrong].concat()).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
    let empty = format!("{place}/trace.jsonl");
    assert!(replay_error(vec!["--data", &place, "--trace", &empty]).await.contains("no requests"));
    let (missing, page) = (format!("{place}/20.parquet"), format!("{place}/none/report.html"));
    let error = replay_error(vec!["--data", &missing, "--html", &page]).await;
    assert!(error.starts_with("cannot write to") && error.contains("none/report.html"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_traces_are_played_on_the_files_that_generate_makes() {
    let (_directory, place, _) = data(&Trace::default()).await;
    let report =
        replay(&["--data", &place, "--trace", "zipf", "bursts", "--speed", "100", "--sides", "flightcache"]).await.unwrap();
    let played: Vec<_> =
        report.replays.iter().map(|replay| (replay.trace.as_str(), replay.requests, replay.sides[0].errors)).collect();
    assert_eq!(played, [("zipf", 120, 0), ("bursts", 120, 0)]);
}

#[test]
fn a_schedule_knows_what_is_cold() {
    let trace =
        Trace { accesses: vec![whole(0, 1, "a"), whole(50, 2, "a"), whole(100, 3, "a"), whole(100, 3, "b"), whole(150, 4, "b")] };
    let schedule = Schedule::new("t", &trace, 2.0, None).unwrap();
    assert_eq!(schedule.firsts, [vec![0], vec![0], vec![0, 2], vec![2]]);
    assert_eq!([0, 1, 2, 3].map(|request| schedule.is_cold(request)), [true, false, true, false]);
    assert_eq!(schedule.due, [0, 25, 50, 75].map(Duration::from_millis));
    assert_eq!(schedule.span(), Duration::from_millis(75));
    assert_eq!(schedule.reads[2].names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(schedule.reads[0].objects[0].columns, None);
    assert_eq!(schedule.partial, 0);
}

#[test]
fn the_first_request_is_due_at_once_whenever_it_was_recorded() {
    // Recording began an hour before.
    let hour_ms = 3_600_000;
    let trace = Trace { accesses: vec![whole(hour_ms, 1, "a"), whole(hour_ms + 40, 2, "a"), whole(hour_ms + 100, 3, "b")] };
    let schedule = Schedule::new("t", &trace, 2.0, None).unwrap();
    assert_eq!(schedule.due, [0, 20, 50].map(Duration::from_millis));
    assert_eq!(schedule.span(), Duration::from_millis(50));
}

#[test]
fn each_object_has_the_columns_that_were_read_of_it() {
    let accesses = vec![
        part(1, "old", 0, &["a"]),
        part(1, "new", 0, &["a", "added"]),
        part(1, "old", 1, &["b", "a"]),
        part(1, "count", 0, &[]),
        whole(0, 1, "all"),
    ];
    let schedule = Schedule::new("t", &Trace { accesses }, 1.0, None).unwrap();
    let read: Vec<_> = schedule.reads[0]
        .objects
        .iter()
        .map(|object| (object.name.as_str(), object.columns.as_deref().map(|c| c.join(" "))))
        .collect();
    let some = |columns: &str| Some(columns.to_owned());
    assert_eq!(read, [("old", some("a b")), ("new", some("a added")), ("count", some("")), ("all", None)]);
}

#[test]
fn a_request_for_fewer_row_groups_than_another_one_is_partial() {
    let accesses = vec![
        part(1, "a", 0, &["x"]),
        part(1, "a", 1, &["x"]),
        part(2, "a", 1, &["x"]),
        part(3, "a", 0, &["x"]),
        part(3, "a", 1, &["x"]),
        part(3, "b", 1, &["x"]),
        part(4, "c", 0, &["x"]),
        whole(0, 5, "a"),
    ];
    let schedule = Schedule::new("t", &Trace { accesses }, 1.0, None).unwrap();
    assert_eq!((schedule.reads.len(), schedule.partial), (5, 2), "the second, and the third for b");
    let notes = options(&["--data", "s3://b/"]).unwrap().notes(&[schedule]);
    assert!(notes.last().unwrap().starts_with("Warning: at least 2 of the 5 requests of t"), "{notes:?}");
}
