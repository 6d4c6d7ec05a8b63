//! Servers that stand still: the host acknowledges what comes, the server says nothing.

use std::time::Duration;

use flightcache::{Client, ErrorKind, ScanRequest};
use tokio::time::timeout;

use crate::fake::{Fake, LOW, URL, endpoint, halves, plan, rows, values, whole};

/// Longer than it takes to find out, and shorter than anything else takes.
const BOUND: Duration = Duration::from_secs(20);

/// A client whose contact stands still from here on, which the other server knows.
async fn stopped() -> (Fake, Fake, Client) {
    let (low, high) = (Fake::start().await, Fake::start().await);
    high.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_map(&whole(2, &low));
    let client = high.connect().await;
    high.stand_still();
    (low, high, client)
}

async fn within<T>(what: &str, answer: impl Future<Output = T>) -> T {
    timeout(BOUND, answer).await.unwrap_or_else(|_| panic!("{what} waits for the server that stands still"))
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_are_sent_to_another_server() {
    let (_low, _high, client) = stopped().await;
    within("stats", client.stats()).await.unwrap();
    let (_low, _high, client) = stopped().await;
    within("evict", client.evict(URL)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_resident_is_asked_of_another_server() {
    let (_low, _high, client) = stopped().await;
    assert_eq!(within("list", client.list("")).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(within("list", client.list("")).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_are_sent_to_another_server() {
    let (low, _high, client) = stopped().await;
    low.answer_plan(Ok(plan([endpoint("a", LOW, 1)])));
    low.answer_get("a", rows([1, 2]));
    let answer = within("sql", async { client.sql("SELECT 1").await?.collect().await }).await;
    assert_eq!(values(&answer.unwrap()), [1, 2]);

    // While its answer is read, nothing is sent again.
    let (low, high) = (Fake::start().await, Fake::start().await);
    high.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_map(&whole(2, &low));
    high.answer_plan(Ok(plan([endpoint("a", LOW, 1)])));
    let client = high.connect().await;
    let answer = client.sql("SELECT 1").await.unwrap();
    high.stand_still();
    assert_eq!(within("sql", answer.collect()).await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_is_opened_at_another_server() {
    let (low, _high, client) = stopped().await;
    let _exchange = within("exchange", client.exchange()).await.unwrap();
    assert_eq!(low.counts().exchanges, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_over_an_exchange_fails_and_the_next_goes_elsewhere() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    high.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_map(&whole(2, &low));
    let client = high.connect().await;
    let exchange = client.exchange().await.unwrap();
    high.stand_still();
    let error = within("a scan", exchange.scan(ScanRequest::new(URL))).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    let asked = tokio::spawn(async move { exchange.scan(ScanRequest::new(URL)).await });
    low.until("another stream is opened", |counts| counts.exchanges == 1).await;
    asked.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_figures_are_told() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_map(&whole(2, &low));
    let client = low.connect().await;
    high.stand_still();
    let stats = within("stats of all", client.cluster_stats()).await.unwrap();
    let told: Vec<_> = stats.iter().map(|(node, stats)| (&*node.id, stats.as_ref().err().map(|error| error.kind))).collect();
    assert_eq!(told, [("low", None), ("high", Some(ErrorKind::Unavailable))]);
}
