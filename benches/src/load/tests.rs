use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use clap::Parser;
use tokio::time::{Instant, sleep, sleep_until};

use super::*;

const ANSWER: Answer = Answer { rows: 1, bytes: 1_000 };
const LIMITS: Limits = Limits { max_outstanding: 1_000, drain: Duration::from_secs(20) };
const SECOND: Duration = Duration::from_secs(1);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn parse(args: &[&str]) -> Result<Options, String> {
    let cli = Cli::try_parse_from([&["load"], args].concat());
    cli.map(|cli| cli.options).map_err(|error| error.to_string())
}

/// A hundred requests a second for one second.
async fn hundred<A>(limits: Limits, ask: impl Fn(u64) -> A) -> Tally
where
    A: Future<Output = io::Result<Answer>> + Send + 'static,
{
    open_loop(100.0, SECOND, Arrivals::Constant.due(100.0, SECOND, 0), limits, ask, |_, _| {}).await.unwrap()
}

#[tokio::test]
async fn a_stalled_answer_delays_no_other() {
    let (asked, asked_at_stall_end) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let ask = |request| {
        asked.fetch_add(1, Ordering::Relaxed);
        let (asked, at_stall_end) = (Arc::clone(&asked), Arc::clone(&asked_at_stall_end));
        async move {
            if request == 2 {
                sleep(2 * SECOND).await;
                at_stall_end.store(asked.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            Ok(ANSWER)
        }
    };
    let tally = hundred(LIMITS, ask).await;
    assert_eq!((tally.requests, tally.answered(), tally.errors()), (100, 100, 0));
    assert_eq!(asked_at_stall_end.load(Ordering::Relaxed), 100, "all were sent while one stalled");
    assert!(tally.latency_ms(1.0) >= 2_000.0 && tally.latency_ms(0.5) < 1_000.0, "{:?}", tally.step());
    // The rate is over the time until the last answer.
    let step = tally.step();
    assert!((30.0..50.0).contains(&step.achieved_per_s), "{step:?}");
    assert!((step.mb_per_s - step.achieved_per_s / 1e3).abs() < 1e-9);
}

#[tokio::test]
async fn a_stalled_server_shows_in_the_latencies_of_all_that_were_due_meanwhile() {
    let opens = Instant::now() + SECOND;
    let tally = hundred(LIMITS, |_| async move {
        sleep_until(opens).await;
        Ok(ANSWER)
    })
    .await;
    assert_eq!((tally.answered(), tally.errors()), (100, 0));
    // The requests were due 10 ms apart, so at least every tenth waited for 0.9 s, and so on.
    for (share, at_least_ms) in [(1.0, 990.0), (0.99, 970.0), (0.9, 880.0), (0.5, 480.0)] {
        assert!(tally.latency_ms(share) >= at_least_ms, "{share}: {}", tally.latency_ms(share));
    }
}

#[tokio::test]
async fn latency_counts_from_when_a_request_was_due_not_from_when_it_was_sent() {
    let tally = hundred(LIMITS, |request| {
        if request == 0 {
            std::thread::sleep(SECOND);
        }
        std::future::ready(Ok(ANSWER))
    })
    .await;
    assert_eq!(tally.answered(), 100);
    assert!(tally.latency_ms(0.5) >= 480.0 && tally.late_ms(0.5) >= 480.0, "{:?}", tally.step());
}

#[tokio::test]
async fn what_is_due_beyond_the_bound_is_refused_not_delayed() {
    let most = Mutex::new(0);
    let due = Arrivals::Constant.due(100.0, SECOND, 0);
    let limits = Limits { max_outstanding: 3, drain: Duration::from_millis(50) };
    let never = |_| std::future::pending::<io::Result<Answer>>();
    let tally = open_loop(100.0, SECOND, due, limits, never, |_, outstanding| {
        let mut most = most.lock().unwrap();
        *most = outstanding.max(*most);
    })
    .await
    .unwrap();
    assert_eq!(*most.lock().unwrap(), 3);
    assert_eq!((tally.requests, tally.answered(), tally.refused, tally.unanswered, tally.failed), (100, 0, 97, 3, 0));
    assert_eq!(tally.first_error.as_deref(), Some("no answer within 50ms after the last request"));
    assert!(tally.latency_ms(0.5).is_nan());
    assert_eq!(
        show::failures(&[tally]),
        ["100/s: 97 refused, 3 not answered; first: no answer within 50ms after the last request"]
    );
}

#[tokio::test]
async fn errors_and_panics_are_counted() {
    let ask = |request| async move {
        match request % 10 {
            0 => Err(io::Error::other(format!("number {request}"))),
            5 => panic!("as a test"),
            _ => Ok(ANSWER),
        }
    };
    let tally = hundred(LIMITS, ask).await;
    assert_eq!((tally.answered(), tally.failed, tally.errors()), (80, 20, 20));
    assert_eq!(tally.first_error.as_deref(), Some("number 0"));
}

#[tokio::test]
async fn the_closed_loop_counts_answers() {
    let duration = Duration::from_millis(200);
    let ask = |_| async {
        sleep(Duration::from_millis(20)).await;
        Ok::<_, io::Error>(ANSWER)
    };
    let per_s = closed_loop::answers_per_s(2, duration, ask).await.unwrap();
    assert!(per_s > 0.0 && per_s <= 100.0, "two workers that wait 20 ms each: {per_s}");
    let failing = |_| async { Err::<Answer, _>(io::Error::other("gone")) };
    assert_eq!(closed_loop::answers_per_s(2, duration, failing).await.unwrap_err().to_string(), "gone");
}

#[test]
fn requests_are_due_at_the_rate() {
    let constant: Vec<_> = Arrivals::Constant.due(4.0, SECOND, 0).collect();
    assert_eq!(constant, [0, 250, 500, 750].map(Duration::from_millis));
    let poisson = |seed| Arrivals::Poisson.due(1_000.0, 10 * SECOND, seed).collect::<Vec<_>>();
    assert!((9_500..10_500).contains(&poisson(1).len()), "{}", poisson(1).len());
    assert!(poisson(1).is_sorted() && poisson(1) == poisson(1) && poisson(1) != poisson(2));
    assert_eq!(poisson(1)[0], Duration::ZERO);
    // Exponential intervals: one of e is longer than the mean.
    let long = poisson(1).windows(2).filter(|pair| pair[1] > pair[0] + Duration::from_millis(1)).count();
    assert!((3_300..4_100).contains(&long), "{long}");
}

#[test]
fn arguments_are_checked() {
    assert_eq!(parse(&[]).unwrap().rates, Rates::Auto);
    assert_eq!(parse(&["--rates", "50,100.5"]).unwrap().rates, Rates::Given(vec![50.0, 100.5]));
    assert_eq!(parse(&["--rates", "0.001,1e6"]).unwrap().rates, Rates::Given(vec![1e-3, 1e6]));
    for rates in ["", "0", "-5", "fast", "10,", "NaN", "1e7", "1e-4", "1e-320"] {
        let error = parse(&[&format!("--rates={rates}")]).unwrap_err();
        assert!(error.contains("is no rate") && error.contains("nor auto"), "{error}");
    }
    assert!(parse(&["--server", "grpc://127.0.0.1:1"]).unwrap_err().contains("--url"));
    assert!(parse(&["--url", "s3://b/t.parquet"]).unwrap_err().contains("--server"));
    assert!(parse(&["--server", "grpc://127.0.0.1:1", "--url", "s3://b/t", "--servers", "2"]).is_err());
    assert!(parse(&["--connections", "0"]).is_err() && parse(&["--max-outstanding", "0"]).is_err());
    let error = parse(&["--server", "grpc://127.0.0.1:1", "--url", "s3://b/t.parquet", "--latency", "1ms"]).unwrap_err();
    assert!(error.contains("cannot be used with"), "{error}");
    let rates = [0.123_45, 7.891, 104.26, 1_234.5].map(|rate| rounded(rate).to_string());
    assert_eq!(rates, ["0.123", "7.89", "104", "1230"]);
    assert!(parse(&["--duration", "0s"]).unwrap_err().contains("must be longer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_this_process_answers_all() {
    let args = ["--file-rows", "2000", "--columns", "id,m3", "--filter", "id >= 500", "--latency", "0ms"];
    let rates = ["--rates", "20,50", "--duration", "1s", "--arrivals", "poisson"];
    let options = parse(&[&args[..], &rates[..]].concat()).unwrap();
    let target = Target::start(&options, 1).await.unwrap();
    assert_eq!(target.columns(), 2);
    assert!(target.describe_answer().starts_with("1500 rows of 2 columns"), "{}", target.describe_answer());
    let tallies = offer(&options, &target).await.unwrap();
    target.shutdown().await;
    assert_eq!(tallies.len(), 2);
    for tally in &tallies {
        assert_eq!((tally.answered(), tally.errors()), (tally.requests, 0), "{:?}", tally.step());
        let step = tally.step();
        assert!(step.p50_ms > 0.0 && step.p50_ms <= step.p99_ms && step.p99_ms <= step.max_ms, "{step:?}");
        assert!(step.mb_per_s > 0.0 && step.late_p99_ms >= 0.0, "{step:?}");
    }
    let text = show::table(&tallies).to_string();
    assert!(text.contains("p99.9 ms") && text.contains("50.0"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_in_this_process_answers_all() {
    let args =
        ["--file-rows", "500", "--files", "5", "--servers", "1,2", "--rates", "40", "--duration", "1s", "--latency", "0ms"];
    let json = tempfile::NamedTempFile::new().unwrap();
    let options = parse(&[&args[..], &["--json", json.path().to_str().unwrap()]].concat()).unwrap();
    run(&options).await.unwrap();
    let report: Report = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    let loads: Vec<_> = report.loads.iter().map(|load| (load.servers, load.steps[0].requests, load.steps[0].errors)).collect();
    assert_eq!(loads, [(1, 40, 0), (2, 40, 0)]);
    let text = show::growth(&report.loads).to_string();
    assert!(text.contains("2 servers") && text.contains("1.00×"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_not_there_and_an_object_that_is_not_there_are_told() {
    let options = parse(&["--server", "grpc://127.0.0.1:1", "--url", "s3://b/t.parquet"]).unwrap();
    let error = Target::start(&options, 1).await.err().unwrap().to_string();
    assert!(error.contains("127.0.0.1:1"), "{error}");
    let options = parse(&["--columns", "nonsense", "--file-rows", "10", "--latency", "0ms"]).unwrap();
    let error = Target::start(&options, 1).await.err().unwrap().to_string();
    assert!(error.contains("nonsense"), "{error}");
}
