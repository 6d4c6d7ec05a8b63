//! The slot map and the connections.

use flightcache::{Client, ErrorKind};
use tokio::net::TcpListener;

use crate::fake::{Fake, HIGH, LOW, Step, URL, endpoint, failure, halves, plan, rows, then, values, whole};

async fn scan(client: &Client) -> Vec<i64> {
    values(&client.scan(URL).send().await.unwrap().collect().await.unwrap())
}

/// A location at which nobody listens.
async fn deserted() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    format!("grpc://{}", listener.local_addr().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_scans_need_one_slot_map() {
    let (fake, client) = Fake::alone().await;
    fake.answer_plan(Ok(plan([endpoint("a", LOW, 1), endpoint("b", HIGH, 1)])));
    fake.answer_get("a", rows([1]));
    fake.answer_get("b", rows([2]));
    for _ in 0..5 {
        assert_eq!(scan(&client.clone()).await, [1, 2]);
    }
    assert_eq!(fake.counts().maps, 1);
    assert_eq!(client.route_lookups(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_a_newer_epoch_has_the_map_fetched_once_more() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&whole(1, &low));
    low.answer_map(&halves(2, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("old", HIGH, 1)])));
    low.answer_plan(Ok(plan([endpoint("new", HIGH, 2)])));
    low.answer_get("old", rows([1]));
    high.answer_get("new", rows([2]));

    let client = low.connect().await;
    assert_eq!(scan(&client).await, [1]);
    assert_eq!((low.counts().maps, high.counts().gets.len()), (1, 0));
    for _ in 0..3 {
        assert_eq!(scan(&client).await, [2]);
    }
    assert_eq!(low.counts().maps, 2);
    assert_eq!(low.counts().gets, ["old"]);
    assert_eq!(high.counts().gets, ["new"; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_map_never_replaces_a_newer_one() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    let newer = halves(5, Some(low.uri()), Some(high.uri()));
    low.answer_map(&newer);
    low.answer_map(&whole(4, &low));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 5)])));
    high.answer_get("a", vec![Step::Fail(failure(ErrorKind::Moved, "not here"))]);
    high.answer_get("a", rows([1]));

    let client = low.connect().await;
    assert_eq!(*client.slot_map().await.unwrap(), newer, "asked for anew");
    // What had the map forgotten must not forget its epoch.
    assert_eq!(scan(&client).await, [1]);
    assert_eq!(*client.slot_map().await.unwrap(), newer);
    assert_eq!(low.counts().gets, [""; 0]);
    assert_eq!(high.counts().gets, ["a"; 2]);
    assert_eq!(low.counts().maps, 4, "at connect, twice by the test, and once because of the error");
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_go_to_their_owners_over_kept_connections() {
    let (seed, low, high) = (Fake::start().await, Fake::start().await, Fake::start().await);
    seed.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    let shares = ["0", "1", "2", "3", "4", "5"];
    let slots = [LOW, HIGH, HIGH, LOW, HIGH, LOW];
    low.answer_plan(Ok(plan(shares.iter().zip(slots).map(|(ticket, slot)| endpoint(ticket, slot, 1)))));
    for (value, (ticket, slot)) in shares.iter().zip(slots).enumerate() {
        let owner = if slot == LOW { &low } else { &high };
        owner.answer_get(ticket, rows([value as i64]));
    }

    let client = seed.connect().await;
    for _ in 0..2 {
        assert_eq!(scan(&client.clone()).await, [0, 1, 2, 3, 4, 5]);
    }
    let sorted = |fake: &Fake| {
        let mut tickets = fake.counts().gets;
        tickets.sort();
        tickets
    };
    assert_eq!(sorted(&low), ["0", "0", "3", "3", "5", "5"]);
    assert_eq!(sorted(&high), ["1", "1", "2", "2", "4", "4"]);
    assert_eq!(seed.counts().connections, 1);
    for _ in 0..8 {
        scan(&client).await;
    }
    // One a lane, however many scans there are.
    assert!([&low, &high].iter().all(|fake| (1..=4).contains(&fake.counts().connections)));
    // The footer's owner plans.
    assert_eq!([&seed, &low, &high].map(|fake| fake.counts().plans.len()), [0, 10, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_without_location_is_the_server_the_map_came_from() {
    let (seed, high) = (Fake::start().await, Fake::start().await);
    seed.answer_map(&halves(1, None, Some(high.uri())));
    seed.answer_plan(Ok(plan([endpoint("a", LOW, 1), endpoint("b", HIGH, 1)])));
    seed.answer_get("a", rows([1]));
    high.answer_get("b", rows([2]));
    assert_eq!(scan(&seed.connect().await).await, [1, 2]);
    assert_eq!((seed.counts().connections, high.counts().connections), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_moved_is_read_from_its_new_owner() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&whole(1, &low));
    low.answer_map(&halves(2, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    low.answer_get("a", vec![Step::Fail(failure(ErrorKind::Moved, "not here"))]);
    high.answer_get("a", rows([7]));

    assert_eq!(scan(&low.connect().await).await, [7]);
    assert_eq!((low.counts().maps, low.counts().gets.len(), high.counts().gets.len()), (2, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_moved_is_asked_of_the_new_owner() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    high.answer_map(&whole(1, &high));
    high.answer_map(&halves(2, Some(low.uri()), Some(high.uri())));
    high.answer_plan(Err(failure(ErrorKind::Moved, "not here")));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 2)])));
    high.answer_get("a", rows([7]));

    assert_eq!(scan(&high.connect().await).await, [7]);
    assert_eq!((high.counts().maps, high.counts().plans.len(), low.counts().plans.len()), (2, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_cannot_be_reached_is_looked_up_again() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(deserted().await)));
    low.answer_map(&halves(2, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    high.answer_get("a", rows([7]));

    assert_eq!(scan(&low.connect().await).await, [7]);
    assert_eq!((low.counts().maps, high.counts().gets.len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_hangs_up_is_looked_up_again() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let rude = format!("grpc://{}", listener.local_addr().unwrap());
    let hangs_up = tokio::spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
        }
    });
    low.answer_map(&halves(1, Some(low.uri()), Some(rude)));
    low.answer_map(&halves(2, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    high.answer_get("a", rows([7]));

    assert_eq!(scan(&low.connect().await).await, [7]);
    hangs_up.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_is_tried_again_up_to_the_bound() {
    let fake = Fake::start().await;
    fake.answer_map_with(Err(failure(ErrorKind::Unavailable, "starting")));
    fake.answer_map_with(Err(failure(ErrorKind::Unavailable, "still starting")));
    fake.answer_map(&whole(1, &fake));
    assert_eq!(fake.connect().await.slot_map().await.unwrap().epoch(), 1);
    assert_eq!(fake.counts().maps, 4, "thrice to connect and once by the test");

    let location = deserted().await;
    let error = Client::connect(&location).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains(&location), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn locations_that_are_none_are_invalid() {
    for location in ["127.0.0.1:50051", "grpc+tls://127.0.0.1:1", "grpc://", "grpc://a b", ""] {
        let error = Client::connect(location).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest, "{location:?}: {error}");
    }
    // As locations of an owner.
    let fake = Fake::start().await;
    fake.answer_map(&halves(1, None, Some("s3://high".into())));
    fake.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    let error = fake.connect().await.scan(URL).send().await.unwrap().collect().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
    assert!(error.message.contains("s3://high"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_map_that_is_none_is_a_typed_error() {
    let unreadable: [&[u8]; 7] = [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        br#"{"epoch": 1, "nodes": []}"#,
        br#"{"epoch": 1, "nodes": [], "slots": []}"#,
        br#"{"epoch": 1, "nodes": [{"id": "a", "uri": null}], "slots": [{"start": 0, "end": 16383, "owners": [1]}]}"#,
    ];
    for body in unreadable.map(Some).into_iter().chain([None]) {
        let fake = Fake::start().await;
        fake.answer_map_with(Ok(body.map(Into::into)));
        let error = Client::connect(&fake.uri()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal, "{error}");
        assert!(error.message.contains("slot map"), "{error}");
        assert_eq!(fake.counts().maps, 1, "asking again cannot help");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_becomes_unreadable_fails_the_scan_that_needs_it() {
    let fake = Fake::start().await;
    fake.answer_map(&whole(1, &fake));
    fake.answer_map_with(Ok(Some("{".into())));
    fake.answer_plan(Ok(plan([endpoint("a", LOW, 1)])));
    fake.answer_get("a", then(vec![], Step::Fail(failure(ErrorKind::Moved, "not here"))));
    let error = fake.connect().await.scan(URL).send().await.unwrap().collect().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(error.message.contains("slot map"), "{error}");
}
