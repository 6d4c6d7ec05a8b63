//! Scans in one request, and the requests of those in two.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use flightcache::{Client, Error, ErrorKind, Result, ScanRequest, ScanStats};
use flightcache_proto::Ticket;
use futures::TryStreamExt as _;

use crate::fake::{
    Counts, Fake, HIGH, LOW, Step, URL, endpoint, failure, frames, halves, numbers, plan, plan_of, rows, then, values, whole,
};

/// As the request travels.
fn ticket() -> String {
    String::from_utf8(Ticket::Scan(ScanRequest::new(URL)).encode()).unwrap()
}

async fn answered(scripts: impl IntoIterator<Item = Vec<Step>>) -> (Fake, Client) {
    let (fake, client) = Fake::alone().await;
    scripts.into_iter().for_each(|script| fake.answer_get(&ticket(), script));
    (fake, client)
}

async fn read(client: &Client) -> (Vec<i64>, Option<Error>) {
    let mut rows = Vec::new();
    let read = async {
        let mut stream = client.scan(URL).in_one_request().send().await?;
        while let Some(batch) = stream.try_next().await? {
            rows.extend(values(&[batch]));
        }
        Result::<()>::Ok(())
    };
    let error = read.await.err();
    (rows, error)
}

fn fail(kind: ErrorKind) -> Step {
    Step::Fail(failure(kind, "no"))
}

fn text_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Utf8, false)]))
}

fn of_text() -> Vec<Step> {
    frames(&text_schema(), &[]).into_iter().map(Step::Frame).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_is_two_requests_or_one() {
    let (fake, client) = answered([rows([1, 2])]).await;
    fake.answer_plan(Ok(plan([endpoint("a", LOW, 1)])));
    fake.answer_get("a", rows([1, 2]));
    let stream = client.scan(URL).send().await.unwrap();
    assert_eq!(values(&stream.collect().await.unwrap()), [1, 2]);
    let Counts { maps, plans, gets, .. } = fake.counts();
    assert_eq!((maps, plans.len(), gets.len()), (1, 1, 1), "the map is the connection's");

    let stream = client.scan(URL).in_one_request().send().await.unwrap();
    assert_eq!(stream.schema(), numbers([]).schema());
    assert_eq!(values(&stream.collect().await.unwrap()), [1, 2]);
    let Counts { maps, plans, gets, .. } = fake.counts();
    assert_eq!((maps, plans.len(), gets.len()), (1, 1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knows_nothing_yet_asks_for_nothing_else() {
    let (fake, _) = answered([rows([1, 2])]).await;
    let before = fake.counts().maps;
    let client = Client::lazy(&fake.uri()).unwrap();
    assert_eq!(read(&client).await, (vec![1, 2], None));
    assert_eq!((fake.counts().maps - before, fake.counts().plans.len(), fake.counts().gets.len()), (0, 0, 1));
    // Routes are learned when they are needed.
    fake.answer_plan(Ok(plan([endpoint("a", LOW, 1)])));
    fake.answer_get("a", rows([3]));
    assert_eq!(values(&client.scan(URL).send().await.unwrap().collect().await.unwrap()), [3]);
    assert_eq!((fake.counts().maps - before, client.route_lookups()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_owners_it_is_planned() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    high.answer_get("a", rows([1]));
    assert_eq!(read(&low.connect().await).await, (vec![1], None));
    assert_eq!((low.counts().plans.len(), low.counts().gets.len(), high.counts().gets.len()), (1, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_are_the_servers() {
    let stats = |rows| ScanStats { rows, ..ScanStats::default() };
    let steps = frames(numbers([]).schema_ref(), &[(numbers([1]), stats(1)), (numbers([2]), stats(2))]);
    let (_fake, client) = answered([steps.into_iter().map(Step::Frame).collect()]).await;
    let mut stream = client.scan(URL).in_one_request().send().await.unwrap();
    assert_eq!(stream.stats(), ScanStats::default());
    while stream.try_next().await.unwrap().is_some() {}
    assert_eq!(stream.stats(), stats(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_asked_for_again_while_no_row_was_delivered() {
    for kind in ErrorKind::ALL {
        let expected = if kind.is_retryable() { (vec![1], None) } else { (vec![], Some(Error::new(kind, "no"))) };
        for first in [vec![fail(kind)], then(rows([]), fail(kind))] {
            let (fake, client) = answered([first, rows([1])]).await;
            assert_eq!(read(&client).await, expected, "{kind:?}");
            assert_eq!(fake.counts().gets.len(), if kind.is_retryable() { 2 } else { 1 });
            assert_eq!(fake.counts().plans.len(), 0);
        }
        let (fake, client) = answered([then(rows([1]), fail(kind)), rows([1, 2])]).await;
        assert_eq!(read(&client).await, (vec![1], Some(Error::new(kind, "no"))));
        assert_eq!(fake.counts().gets.len(), 1, "{kind:?}");
    }
    let (fake, client) = answered([then(rows([]), fail(ErrorKind::Unavailable))]).await;
    assert_eq!(read(&client).await, (vec![], Some(Error::new(ErrorKind::Unavailable, "no"))));
    assert_eq!(fake.counts().gets.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_another_schema_is_an_error() {
    let (_fake, client) = answered([then(rows([]), fail(ErrorKind::Changed)), of_text()]).await;
    assert_eq!(read(&client).await.1.unwrap().kind, ErrorKind::Changed);
    // In the midst of rows.
    let (_fake, client) = answered([[rows([1]), of_text()].concat()]).await;
    let (rows, error) = read(&client).await;
    assert_eq!((rows, error.unwrap().kind), (vec![1], ErrorKind::Changed));
    // None at all.
    let batch = numbers([1]);
    let no_schema = frames(batch.schema_ref(), &[(batch.clone(), ScanStats::default())]).split_off(1);
    for steps in [vec![], no_schema.into_iter().map(Step::Frame).collect()] {
        let (_fake, client) = answered([steps]).await;
        assert_eq!(read(&client).await.1.unwrap().kind, ErrorKind::Internal);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_no_longer_the_only_owner_is_asked_by_plan() {
    for (schema, expected) in [(numbers([]).schema(), Ok(vec![1])), (text_schema(), Err(ErrorKind::Changed))] {
        let (low, high) = (Fake::start().await, Fake::start().await);
        low.answer_map(&whole(1, &low));
        low.answer_map(&halves(2, Some(low.uri()), Some(high.uri())));
        low.answer_get(&ticket(), then(rows([]), fail(ErrorKind::Moved)));
        low.answer_plan(Ok(plan_of(&schema, [endpoint("a", HIGH, 2)])));
        high.answer_get("a", rows([1]));
        let (rows, error) = read(&low.connect().await).await;
        assert_eq!(error.map_or(Ok(rows), |error| Err(error.kind)), expected);
        assert_eq!((low.counts().maps, low.counts().plans.len(), low.counts().gets.len()), (2, 1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_it_cancels_the_call() {
    let (fake, client) = answered([then(rows([1]), Step::Hang)]).await;
    let mut stream = client.scan(URL).in_one_request().send().await.unwrap();
    assert_eq!(stream.try_next().await.unwrap(), Some(numbers([1])));
    drop(stream);
    fake.until("the call was cancelled", |counts| counts.abandoned == 1).await;
}
