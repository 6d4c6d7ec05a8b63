//! Scans: order, concurrency, retries, cancellation, bounds, figures, garbage.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use arrow_flight::{FlightData, FlightEndpoint, Ticket};
use flightcache::{Client, Error, ErrorKind, Populate, Result, ScanRequest, ScanStats};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::runtime::Runtime;
use tokio::sync::{Barrier, Notify};
use tonic::{Code, Status};

use crate::fake::{
    Counts, Fake, HIGH, LOW, Step, URL, endpoint, failure, frames, halves, numbers, plan, plan_of, rows, then, values, whole,
};

/// Times the client sends a request at most.
const ATTEMPTS: usize = 3;
/// Shares the client reads at a time.
const SHARES_AT_A_TIME: usize = 4;
const MIB: usize = 1 << 20;

/// The rows delivered, and the error after them if there was one.
async fn read(client: &Client) -> (Vec<i64>, Option<Error>) {
    let mut stream = match client.scan(URL).send().await {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut rows = Vec::new();
    loop {
        match stream.next().await {
            Some(Ok(batch)) => rows.extend(values(&[batch])),
            Some(Err(error)) => {
                assert!(stream.next().await.is_none(), "an error ends the stream");
                return (rows, Some(error));
            }
            None => return (rows, None),
        }
    }
}

/// A server whose plan is one share, answered so.
async fn one_share(scripts: impl IntoIterator<Item = Vec<Step>>) -> (Fake, Client) {
    let (fake, client) = Fake::alone().await;
    fake.answer_plan(Ok(plan([endpoint("a", LOW, 1)])));
    scripts.into_iter().for_each(|script| fake.answer_get("a", script));
    (fake, client)
}

fn fail(kind: ErrorKind, message: &str) -> Step {
    Step::Fail(failure(kind, message))
}

/// A stream of `count` batches of 1 MiB each, of rows from `first` on.
fn mebibytes(first: i64, count: i64) -> Vec<Step> {
    let rows = (MIB / 8) as i64;
    let batch = |i: i64| (numbers(first + i * rows..first + (i + 1) * rows), ScanStats::default());
    let batches: Vec<_> = (0..count).map(batch).collect();
    frames(numbers([]).schema_ref(), &batches).into_iter().map(Step::Frame).collect()
}

/// Fails a test that would otherwise hang.
async fn within_a_minute<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(1), future).await.unwrap_or_else(|_| panic!("{what}: not within a minute"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_arrives_as_it_was_made() {
    let (fake, client) = one_share([rows([1])]).await;
    let scan = client.scan(URL).columns(["n"]).filter("n > 0").limit(9).rows([4, 4, 1]).populate(Populate::Never);
    let expected = ScanRequest {
        url: URL.into(),
        columns: Some(vec!["n".into()]),
        filter: Some("n > 0".into()),
        limit: Some(9),
        rows: Some(vec![4, 4, 1]),
        populate: Populate::Never,
        compression: None,
        predicate: None,
        aggregation: None,
    };
    assert_eq!(scan.request(), &expected);
    let stream = scan.send().await.unwrap();
    assert_eq!(stream.schema(), numbers([]).schema());
    stream.collect().await.unwrap();
    assert_eq!(fake.counts().plans, [expected]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_without_shares_has_no_rows() {
    let (fake, client) = Fake::alone().await;
    fake.answer_plan(Ok(plan([])));
    let stream = client.scan(URL).send().await.unwrap();
    assert_eq!(stream.schema(), numbers([]).schema());
    assert_eq!(stream.collect().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_of_two_owners_are_read_concurrently_and_delivered_in_order() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("first", LOW, 1), endpoint("second", HIGH, 1)])));
    // Each waits until the other is being read, and the first then until the second is through.
    let (both, second_is_through) = (Arc::new(Barrier::new(2)), Arc::new(Notify::new()));
    let start = vec![Step::Meet(Arc::clone(&both))];
    low.answer_get("first", [start.clone(), vec![Step::Await(Arc::clone(&second_is_through))], rows([1, 2])].concat());
    high.answer_get("second", [start, rows([3, 4])].concat());

    let client = low.connect().await;
    let reading = tokio::spawn(async move { read(&client).await });
    high.until("the second share is sent", |counts| counts.finished == 1).await;
    second_is_through.notify_one();
    assert_eq!(within_a_minute("the scan", reading).await.unwrap(), (vec![1, 2, 3, 4], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_shares_are_read_at_a_time_and_no_more() {
    let (fake, client) = Fake::alone().await;
    let tickets: Vec<String> = (0..10).map(|i| i.to_string()).collect();
    fake.answer_plan(Ok(plan(tickets.iter().map(|ticket| endpoint(ticket, LOW, 1)))));
    // The first ones meet: fewer at a time would wait forever.
    let barrier = Arc::new(Barrier::new(SHARES_AT_A_TIME));
    let gate = Arc::new(Notify::new());
    for (i, ticket) in tickets.iter().enumerate() {
        let start = if i < SHARES_AT_A_TIME { vec![Step::Meet(Arc::clone(&barrier))] } else { Vec::new() };
        let wait = if i == 0 { vec![Step::Await(Arc::clone(&gate))] } else { Vec::new() };
        fake.answer_get(ticket, [start, wait, rows([i as i64])].concat());
    }
    let reading = tokio::spawn(async move { read(&client).await });
    fake.until("all but the first are sent", |counts| counts.finished == SHARES_AT_A_TIME - 1).await;
    let Counts { gets, open, connections, .. } = fake.counts();
    assert_eq!((gets.len(), open), (SHARES_AT_A_TIME, 1), "the next ones wait for the first");
    assert_eq!(connections, SHARES_AT_A_TIME, "those that were under way had a connection each");
    gate.notify_one();
    assert_eq!(within_a_minute("the scan", reading).await.unwrap(), ((0..10).collect(), None));
    assert_eq!(fake.counts().gets.len(), tickets.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_is_unavailable_is_asked_for_again() {
    // Refused outright, and refused after the schema.
    let late = then(rows([]), fail(ErrorKind::Unavailable, "late"));
    assert_eq!(late.len(), 2);
    let (fake, client) = one_share([vec![fail(ErrorKind::Unavailable, "early")], late, rows([1, 2])]).await;
    assert_eq!(read(&client).await, (vec![1, 2], None));
    assert_eq!(fake.counts().gets.len(), ATTEMPTS);
    assert_eq!(fake.counts().plans.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_stays_unavailable_fails_with_the_last_error() {
    let refusals = ["first", "second", "third", "fourth"].map(|message| vec![fail(ErrorKind::Unavailable, message)]);
    let (fake, client) = one_share(refusals).await;
    let (rows, error) = read(&client).await;
    assert_eq!((rows, error), (vec![], Some(Error::new(ErrorKind::Unavailable, "third"))));
    assert_eq!(fake.counts().gets.len(), ATTEMPTS);

    let kinds = [ErrorKind::Unavailable, ErrorKind::Moved, ErrorKind::Denied].map(|kind| vec![fail(kind, "no")]);
    let (fake, client) = one_share(kinds).await;
    assert_eq!(read(&client).await.1.unwrap().kind, ErrorKind::Denied);
    assert_eq!(fake.counts().gets.len(), ATTEMPTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_error_is_tried_again_or_not() {
    for kind in ErrorKind::ALL {
        let (gets, plans) = match kind {
            ErrorKind::Unavailable | ErrorKind::Moved => (ATTEMPTS, 1),
            // Another attempt at the share cannot help: the plan is old.
            ErrorKind::Changed => (ATTEMPTS, ATTEMPTS),
            _ => (1, 1),
        };
        // Stated by the server, and by the code alone.
        let by_code = Status::new(Code::from_i32(kind.grpc_code()), "no");
        for status in [failure(kind, "no"), by_code] {
            let (fake, client) = one_share([vec![Step::Fail(status)]]).await;
            assert_eq!(read(&client).await, (vec![], Some(Error::new(kind, "no"))));
            assert_eq!((fake.counts().gets.len(), fake.counts().plans.len()), (gets, plans), "{kind:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_tried_again_by_the_same_rule() {
    for kind in ErrorKind::ALL {
        let (fake, client) = Fake::alone().await;
        fake.answer_plan(Err(failure(kind, "no")));
        fake.answer_plan(Ok(plan([endpoint("a", LOW, 1)])));
        fake.answer_get("a", rows([1]));
        let expected = if kind.is_retryable() { (vec![1], None) } else { (vec![], Some(Error::new(kind, "no"))) };
        assert_eq!(read(&client).await, expected);
        assert_eq!(fake.counts().plans.len(), if kind.is_retryable() { 2 } else { 1 }, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kind_the_server_states_counts_more_than_the_code() {
    let mut status = Status::new(Code::Internal, "the store is away");
    status.metadata_mut().insert("flightcache-error-kind", "unavailable".parse().unwrap());
    let (fake, client) = one_share([vec![Step::Fail(status)], rows([1])]).await;
    assert_eq!(read(&client).await, (vec![1], None));
    assert_eq!(fake.counts().gets.len(), 2);

    let mut status = Status::new(Code::NotFound, "no");
    status.metadata_mut().insert("flightcache-error-kind", "of a later version".parse().unwrap());
    let (_fake, client) = one_share([vec![Step::Fail(status)]]).await;
    assert_eq!(read(&client).await.1.unwrap().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_asked_for_again_once_rows_were_delivered() {
    for kind in [ErrorKind::Unavailable, ErrorKind::Moved, ErrorKind::Changed] {
        let (fake, client) = one_share([then(rows([1, 2]), fail(kind, "gone")), rows([1, 2, 3])]).await;
        assert_eq!(read(&client).await, (vec![1, 2], Some(Error::new(kind, "gone"))));
        assert_eq!((fake.counts().gets.len(), fake.counts().plans.len()), (1, 1), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_share_is_asked_for_again_although_an_earlier_one_was_delivered() {
    let (fake, client) = Fake::alone().await;
    fake.answer_plan(Ok(plan([endpoint("a", LOW, 1), endpoint("b", LOW, 1)])));
    fake.answer_get("a", rows([1]));
    fake.answer_get("b", vec![fail(ErrorKind::Unavailable, "not yet")]);
    fake.answer_get("b", rows([2]));
    assert_eq!(read(&client).await, (vec![1, 2], None));
    let mut gets = fake.counts().gets;
    gets.sort();
    assert_eq!(gets, ["a", "b", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_overwritten_before_its_first_row_is_planned_anew() {
    let (fake, client) = Fake::alone().await;
    fake.answer_plan(Ok(plan([endpoint("old 0", LOW, 1), endpoint("old 1", LOW, 1)])));
    fake.answer_plan(Ok(plan([endpoint("new 0", LOW, 1), endpoint("new 1", LOW, 1)])));
    // The second old share is there before the first one says that the object changed.
    let gate = Arc::new(Notify::new());
    fake.answer_get("old 0", vec![Step::Await(Arc::clone(&gate)), fail(ErrorKind::Changed, "overwritten")]);
    let stats = |rows| ScanStats { rows, ..ScanStats::default() };
    let stream = |batches: &[(RecordBatch, ScanStats)]| {
        frames(numbers([]).schema_ref(), batches).into_iter().map(Step::Frame).collect::<Vec<_>>()
    };
    fake.answer_get("old 1", stream(&[(numbers([1, 2]), stats(2))]));
    fake.answer_get("new 0", stream(&[(numbers([3]), stats(1))]));
    fake.answer_get("new 1", stream(&[]));

    let mut scan = client.scan(URL).send().await.unwrap();
    let reading = tokio::spawn(async move {
        let mut rows = Vec::new();
        while let Some(batch) = scan.try_next().await? {
            rows.extend(values(&[batch]));
        }
        Ok::<_, Error>((rows, scan.stats()))
    });
    fake.until("the second old share is sent", |counts| counts.finished == 1).await;
    gate.notify_one();
    let (rows, stats) = reading.await.unwrap().unwrap();
    assert_eq!(rows, [3]);
    assert_eq!(stats.rows, 1, "the figures are those of the plan that was delivered");
    assert_eq!(fake.counts().plans.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_overwritten_after_its_first_row_is_an_error() {
    let (fake, client) = Fake::alone().await;
    fake.answer_plan(Ok(plan([endpoint("a", LOW, 1), endpoint("b", LOW, 1)])));
    fake.answer_get("a", rows([1]));
    fake.answer_get("b", vec![fail(ErrorKind::Changed, "overwritten")]);
    assert_eq!(read(&client).await, (vec![1], Some(Error::new(ErrorKind::Changed, "overwritten"))));
    assert_eq!(fake.counts().plans.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_overwritten_with_another_schema_is_an_error() {
    let (fake, client) = one_share([vec![fail(ErrorKind::Changed, "overwritten")], rows([1])]).await;
    fake.answer_plan(Ok(plan_of(&text_schema(), [endpoint("a", LOW, 1)])));
    let (rows, error) = read(&client).await;
    assert_eq!((rows, error.unwrap().kind), (vec![], ErrorKind::Changed));
}

fn text_schema() -> Schema {
    Schema::new(vec![Field::new("n", DataType::Utf8, false)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_another_schema_is_a_typed_error() {
    let renamed = RecordBatch::try_from_iter([("m", Arc::new(Int64Array::from(vec![9])) as _)]).unwrap();
    let nullable = RecordBatch::try_from_iter_with_nullable([("n", Arc::new(Int64Array::from(vec![9])) as _, true)]).unwrap();
    let text = RecordBatch::new_empty(Arc::new(text_schema()));
    for other in [renamed, nullable, text] {
        let (fake, client) = Fake::alone().await;
        fake.answer_plan(Ok(plan([endpoint("a", LOW, 1), endpoint("b", LOW, 1)])));
        fake.answer_get("a", rows([1]));
        let steps = frames(other.schema_ref(), &[(other.clone(), ScanStats::default())]);
        fake.answer_get("b", steps.into_iter().map(Step::Frame).collect());
        let mut stream = client.scan(URL).send().await.unwrap();
        assert_eq!(stream.try_next().await.unwrap(), Some(numbers([1])));
        let error = stream.try_next().await.expect_err("a batch of another schema").kind;
        assert_eq!(error, ErrorKind::Changed, "{other:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_stream_cancels_every_call() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    let tickets = ["0", "1", "2", "3", "4", "5", "6", "7"];
    let slots = [LOW, HIGH, LOW, HIGH, LOW, HIGH, LOW, HIGH];
    low.answer_plan(Ok(plan(tickets.iter().zip(slots).map(|(ticket, slot)| endpoint(ticket, slot, 1)))));
    for (ticket, slot) in tickets.iter().zip(slots) {
        let owner = if slot == LOW { &low } else { &high };
        owner.answer_get(ticket, then(rows([1]), Step::Hang));
    }
    let client = low.connect().await;

    drop(client.scan(URL).send().await.unwrap());
    let mut stream = client.scan(URL).send().await.unwrap();
    assert_eq!(low.counts().gets.len() + high.counts().gets.len(), 0, "nothing is read before it is asked for");
    // The first share is being read; five others are read ahead, of two owners.
    assert_eq!(stream.try_next().await.unwrap(), Some(numbers([1])));
    for fake in [&low, &high] {
        fake.until("three shares are open", |counts| counts.open == 3 && counts.frames == 6).await;
    }
    drop(stream);
    for fake in [&low, &high] {
        fake.until("all calls were cancelled", |counts| counts.open == 0).await;
        let Counts { abandoned, gets, .. } = fake.counts();
        assert_eq!((abandoned, gets.len()), (3, 3));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_stream_that_waits_for_its_first_batch_cancels_every_call() {
    let (fake, client) = Fake::alone().await;
    fake.answer_plan(Ok(plan(["0", "1", "2", "3"].map(|ticket| endpoint(ticket, LOW, 1)))));
    for ticket in ["0", "1", "2", "3"] {
        fake.answer_get(ticket, vec![Step::Hang]);
    }
    let reading = tokio::spawn(async move { read(&client).await });
    fake.until("all shares are open", |counts| counts.open == 4).await;
    reading.abort();
    fake.until("all calls were cancelled", |counts| counts.abandoned == 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_cancels_the_other_shares() {
    let (fake, client) = Fake::alone().await;
    fake.answer_plan(Ok(plan(["0", "1", "2"].map(|ticket| endpoint(ticket, LOW, 1)))));
    let gate = Arc::new(Notify::new());
    fake.answer_get("0", vec![Step::Await(Arc::clone(&gate)), fail(ErrorKind::Denied, "no")]);
    fake.answer_get("1", then(rows([1]), Step::Hang));
    fake.answer_get("2", vec![Step::Hang]);
    let reading = tokio::spawn(async move { read(&client).await });
    fake.until("all shares are open", |counts| counts.open == 3).await;
    gate.notify_one();
    assert_eq!(reading.await.unwrap().1.unwrap().kind, ErrorKind::Denied);
    fake.until("the others were cancelled", |counts| counts.abandoned == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_pauses_blocks_its_server_and_nobody_else() {
    // A stream's window is 8 MiB; the rest waits as batches and as frames on both sides.
    const BOUND: usize = 8 + 16;
    const VOLUME: i64 = 4 * BOUND as i64;
    let (fake, client) = Fake::alone().await;
    fake.answer_plan(Ok(plan([endpoint("endless", LOW, 1)])));
    fake.answer_plan(Ok(plan([endpoint("volume", LOW, 1)])));
    let [schema, batch] = frames(numbers([]).schema_ref(), &[(numbers(0..(MIB / 8) as i64), ScanStats::default())])
        .try_into()
        .unwrap_or_else(|_| panic!("a schema and one batch"));
    fake.answer_get("endless", vec![Step::Frame(schema), Step::Endless(batch)]);
    fake.answer_get("volume", mebibytes(0, VOLUME));

    let mut paused = client.scan(URL).send().await.unwrap();
    paused.try_next().await.unwrap().unwrap();
    // While four times the bound goes through the same connection, nothing but the bound keeps the paused one.
    let (rows, error) = within_a_minute("the scan beside it", read(&client)).await;
    assert_eq!((rows.len(), error), (VOLUME as usize * MIB / 8, None));
    let sent = fake.counts().frames - (1 + VOLUME as usize);
    assert!((2..=BOUND).contains(&sent), "{sent} frames of 1 MiB were sent to a reader of one");
    drop(paused);
    fake.until("the call was cancelled", |counts| counts.open == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_read_ahead_never_starve_the_one_being_read() {
    // Each share is larger than what is buffered of it, all of them than what a connection lets through unread.
    const SHARE_MIB: i64 = 24;
    let (fake, client) = Fake::alone().await;
    let tickets = ["0", "1", "2", "3", "4"];
    fake.answer_plan(Ok(plan(tickets.map(|ticket| endpoint(ticket, LOW, 1)))));
    let share_rows = SHARE_MIB * (MIB / 8) as i64;
    let gate = Arc::new(Notify::new());
    for (i, ticket) in tickets.iter().enumerate() {
        let wait = if i == 0 { vec![Step::Await(Arc::clone(&gate))] } else { Vec::new() };
        fake.answer_get(ticket, [wait, mebibytes(i as i64 * share_rows, SHARE_MIB)].concat());
    }
    let reading = tokio::spawn(async move { read(&client).await });
    // Those ahead fill what they may before the first one sends anything.
    fake.until("the others were sent much", |counts| counts.frames >= 3 * 8).await;
    gate.notify_one();
    let (rows, error) = within_a_minute("the scan", reading).await.unwrap();
    assert_eq!(error, None);
    assert!(rows.into_iter().eq(0..5 * share_rows));
}

/// Two owners, of which the one of the share "a" can be made to die: its runtime is beside it. The map then names the other.
async fn mortal_owner(script: Vec<Step>) -> (Fake, Fake, Runtime) {
    let runtime = Runtime::new().unwrap();
    let (low, high) = (Fake::start().await, runtime.spawn(Fake::start()).await.unwrap());
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_map(&whole(2, &low));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    low.answer_get("a", rows([1, 2, 3]));
    high.answer_get("a", script);
    (low, high, runtime)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_dies_before_the_first_row_is_replaced() {
    let (low, high, runtime) = mortal_owner(then(rows([]), Step::Hang)).await;
    let client = low.connect().await;
    let reading = tokio::spawn(async move { read(&client).await });
    high.until("the share is being read", |counts| counts.frames == 1).await;
    runtime.shutdown_background();
    assert_eq!(within_a_minute("the scan", reading).await.unwrap(), (vec![1, 2, 3], None));
    assert_eq!((low.counts().maps, low.counts().gets.len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_dies_after_rows_is_a_typed_error() {
    let (low, _high, runtime) = mortal_owner(then(rows([1]), Step::Hang)).await;
    let client = low.connect().await;
    let mut stream = client.scan(URL).send().await.unwrap();
    assert_eq!(stream.try_next().await.unwrap(), Some(numbers([1])));
    runtime.shutdown_background();
    let error = within_a_minute("the error", stream.try_next()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(within_a_minute("the end", stream.try_next()).await.unwrap().is_none());
    assert_eq!(low.counts().gets, [""; 0]);
    // The next scan finds the new owner.
    assert_eq!(within_a_minute("the next scan", read(&client)).await, (vec![1, 2, 3], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_of_the_shares_are_summed() {
    let stats = |factor: u64| ScanStats {
        rows: factor,
        bytes: 2 * factor,
        row_groups: 3 * factor,
        row_groups_as_parquet: 13 * factor,
        row_groups_pruned: 4 * factor,
        chunks_hit: 5 * factor,
        chunks_missed: 6 * factor,
        chunks_pulled: 15 * factor,
        store_bytes: 7 * factor,
        store_requests: 8 * factor,
        fetch_us: 9 * factor,
        decode_us: 10 * factor,
        filter_us: 11 * factor,
        aggregate_us: 14 * factor,
        encode_us: 12 * factor,
        versions: 0,
    };
    let (fake, client) = Fake::alone().await;
    fake.answer_plan(Ok(plan([endpoint("a", LOW, 1), endpoint("b", LOW, 1)])));
    // Each batch tells its share's figures so far.
    let share = |figures: &[u64]| -> Vec<Step> {
        let batches: Vec<_> = figures.iter().map(|&factor| (numbers([1]), stats(factor))).collect();
        frames(numbers([]).schema_ref(), &batches).into_iter().map(Step::Frame).collect()
    };
    fake.answer_get("a", share(&[1, 10]));
    fake.answer_get("b", share(&[100, 200, 1000]));
    let mut stream = client.scan(URL).send().await.unwrap();
    assert_eq!(stream.stats(), ScanStats::default());
    while stream.try_next().await.unwrap().is_some() {}
    assert_eq!(stream.stats(), stats(1010));
}

/// What a scan with this plan and this answer to its share ends with. It must not panic.
async fn outcome(endpoint: FlightEndpoint, frames: Vec<FlightData>) -> Result<Vec<i64>> {
    let (fake, client) = Fake::alone().await;
    fake.answer_plan(Ok(plan([endpoint])));
    fake.answer_get("a", frames.into_iter().map(Step::Frame).collect());
    client.scan(URL).send().await?.collect().await.map(|batches| values(&batches))
}

fn good_frames() -> Vec<FlightData> {
    frames(numbers([]).schema_ref(), &[(numbers([1, 2, 3]), ScanStats::default())])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_without_a_ticket_is_a_typed_error() {
    let endpoint = FlightEndpoint { ticket: None, ..endpoint("a", LOW, 1) };
    assert_eq!(outcome(endpoint, good_frames()).await.unwrap_err().kind, ErrorKind::Internal);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_with_an_unreadable_route_is_a_typed_error() {
    for metadata in ["{", "7", r#"{"slot": 1}"#, r#"{"slot": 16384, "epoch": 1}"#, r#"{"slot": -1, "epoch": 1}"#] {
        let endpoint = FlightEndpoint { app_metadata: metadata.into(), ..endpoint("a", LOW, 1) };
        assert_eq!(outcome(endpoint, good_frames()).await.unwrap_err().kind, ErrorKind::Internal, "{metadata}");
    }
    // No route at all is one: to the server the map came from. Fields of later versions are none of ours.
    for metadata in ["", r#"{"slot": 1, "epoch": 1, "more": []}"#] {
        let endpoint = FlightEndpoint { app_metadata: metadata.into(), ..endpoint("a", LOW, 1) };
        assert_eq!(outcome(endpoint, good_frames()).await, Ok(vec![1, 2, 3]), "{metadata}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_cannot_be_decoded_are_a_typed_error() {
    let good = good_frames();
    let with = |change: &dyn Fn(&mut Vec<FlightData>)| {
        let mut frames = good.clone();
        change(&mut frames);
        frames
    };
    let cases = [
        ("no schema", with(&|frames| drop(frames.remove(0)))),
        ("a header of noise", with(&|frames| frames[1].data_header = vec![0xff; 64].into())),
        ("an empty header", with(&|frames| frames[1].data_header = Vec::new().into())),
        ("half a header", with(&|frames| frames[1].data_header = frames[1].data_header.slice(..24))),
        ("no body", with(&|frames| frames[1].data_body = Vec::new().into())),
        ("half a body", with(&|frames| frames[1].data_body = frames[1].data_body.slice(..8))),
    ];
    for (what, frames) in cases {
        let outcome = outcome(endpoint("a", LOW, 1), frames).await;
        assert_eq!(outcome.expect_err(what).kind, ErrorKind::Internal, "{what}");
    }
    // Figures are no part of the answer: what cannot be read of them is left out.
    let frames = with(&|frames| frames[1].app_metadata = "{".into());
    assert_eq!(outcome(endpoint("a", LOW, 1), frames).await, Ok(vec![1, 2, 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_with_any_byte_changed_never_panics() {
    let (fake, client) = Fake::alone().await;
    let info = plan([endpoint("a", LOW, 1)]);
    let mut cases = Vec::new();
    for at in 0..info.schema.len() {
        for value in [0, 0x7f, 0xff, info.schema[at].wrapping_add(1)] {
            let mut schema = info.schema.to_vec();
            schema[at] = value;
            cases.push(schema);
        }
        cases.push(info.schema[..at].to_vec());
    }
    for schema in &cases {
        fake.answer_plan(Ok(arrow_flight::FlightInfo { schema: schema.clone().into(), ..info.clone() }));
    }
    let mut refused = 0;
    for schema in cases {
        let sending = tokio::spawn(client.scan(URL).send());
        match sending.await.unwrap_or_else(|e| panic!("{schema:?}: {e}")) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Internal, "{schema:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > info.schema.len(), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_with_any_byte_changed_never_end_a_scan_untyped() {
    let (fake, client) = Fake::alone().await;
    let good = good_frames();
    let mut tickets = Vec::new();
    for (frame, data) in good.iter().enumerate() {
        for at in 0..data.data_header.len() {
            for value in [0, 0x7f, 0xff] {
                let mut frames = good.clone();
                let mut header = data.data_header.to_vec();
                header[at] = value;
                frames[frame].data_header = header.into();
                let ticket = format!("{frame} {at} {value}");
                fake.answer_get(&ticket, frames.into_iter().map(Step::Frame).collect());
                tickets.push(ticket);
            }
        }
    }
    for ticket in &tickets {
        fake.answer_plan(Ok(plan([FlightEndpoint {
            ticket: Some(Ticket { ticket: ticket.clone().into() }),
            ..endpoint("", LOW, 1)
        }])));
    }
    for ticket in tickets {
        let stream = client.scan(URL).send().await.unwrap();
        let collecting = tokio::spawn(stream.collect());
        if let Err(error) = within_a_minute(&ticket, collecting).await.unwrap_or_else(|e| panic!("{ticket}: {e}")) {
            assert!(matches!(error.kind, ErrorKind::Internal | ErrorKind::Changed), "{ticket}: {error}");
        }
    }
    assert_eq!(fake.counts().open, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_outlives_a_scan_that_failed() {
    let (fake, client) = one_share([vec![fail(ErrorKind::NotFound, "no")], rows([1])]).await;
    assert_eq!(read(&client).await.1.unwrap().kind, ErrorKind::NotFound);
    assert_eq!(read(&client).await, (vec![1], None));
    assert_eq!((fake.counts().maps, fake.counts().connections), (1, 1), "the one connection is kept");
    assert_eq!(*client.slot_map().await.unwrap(), whole(1, &fake));
}
