//! Slots of two owners: which of them is asked, and what becomes of a share when one fails.

use std::sync::Arc;

use flightcache::{Client, Error, ErrorKind, SlotMap};
use flightcache_proto::{Node, Slot};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Barrier, Notify};

use crate::fake::{Fake, HIGH, Step, URL, endpoint, failure, gone, halves, plan, rows, shared, then, values, versioned, whole};

/// Two servers that both own the upper half, and a client of the first, whose plans are one share there.
async fn two() -> (Fake, Fake, Client) {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&shared(1, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    let client = low.connect().await;
    (low, high, client)
}

/// The rows delivered, and the error after them if there was one.
async fn read(client: &Client) -> (Vec<i64>, Option<Error>) {
    let (mut read, mut stream) = (Vec::new(), client.scan(URL).send().await.unwrap());
    loop {
        match stream.next().await {
            Some(Ok(batch)) => read.extend(values(&[batch])),
            Some(Err(error)) => return (read, Some(error)),
            None => return (read, None),
        }
    }
}

/// Where a server was: whoever connects is hung up on.
async fn rude() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let uri = format!("grpc://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
        }
    });
    uri
}

fn broken() -> Step {
    Step::Fail(gone("killed"))
}

fn without_store() -> Step {
    Step::Fail(failure(ErrorKind::Unavailable, "the store does not answer"))
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_owner_cannot_reach_the_store_another_may() {
    let (low, high, client) = two().await;
    high.answer_get("a", vec![without_store()]);
    low.answer_get("a", rows([1, 2]));
    assert_eq!(read(&client).await, (vec![1, 2], None));
    assert_eq!((high.counts().gets.len(), low.counts().gets.len(), low.counts().maps), (1, 1, 1), "the map is right");
    // It is not held against it.
    assert_eq!(read(&client).await, (vec![1, 2], None));
    assert_eq!(high.counts().gets.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_only_owner_cannot_reach_the_store_somebody_else_may() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    high.answer_get("a", then(versioned(7, [1]), without_store()));
    low.answer_get("a", versioned(7, [1, 2]));
    assert_eq!(read(&low.connect().await).await, (vec![1, 2], None));
    assert_eq!((high.counts().epochs, low.counts().epochs), (vec![Some(1)], vec![None]), "it is told that no slot is meant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_gone_is_not_waited_for() {
    for both_own in [false, true] {
        let (low, high) = (Fake::start().await, Fake::start().await);
        let map = if both_own { shared } else { halves };
        low.answer_map(&map(1, Some(low.uri()), Some(high.uri())));
        low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
        for fake in [&low, &high] {
            fake.answer_get("a", vec![without_store()]);
        }
        let (delivered, error) = read(&low.connect().await).await;
        assert_eq!((delivered, error.unwrap().kind), (vec![], ErrorKind::Unavailable));
        assert_eq!((high.counts().gets.len(), low.counts().gets.len()), (2, 1));
        assert_eq!(low.counts().maps, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_goes_on_where_it_broke_off() {
    let (low, high, client) = two().await;
    high.answer_get("a", then(versioned(7, [1, 2]), broken()));
    low.answer_get("a", versioned(7, [1, 2, 3, 4]));
    assert_eq!(read(&client).await, (vec![1, 2, 3, 4], None));
    assert_eq!((high.counts().gets.len(), low.counts().gets.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_other_sizes_make_no_difference() {
    let (low, high, client) = two().await;
    high.answer_get("a", then(versioned(7, [1, 2, 3]), broken()));
    let stats = flightcache::ScanStats { versions: 7, ..Default::default() };
    let batches = [(crate::fake::numbers([1, 2]), stats), (crate::fake::numbers([3, 4, 5]), stats)];
    let frames = crate::fake::frames(crate::fake::numbers([]).schema_ref(), &batches);
    low.answer_get("a", frames.into_iter().map(Step::Frame).collect());
    assert_eq!(read(&client).await, (vec![1, 2, 3, 4, 5], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_follow_objects_of_which_it_sent_nothing() {
    let (_low, high, client) = two().await;
    let stats = |versions| flightcache::ScanStats { versions, ..Default::default() };
    let batches = [(crate::fake::numbers([1]), stats(7)), (crate::fake::numbers([2]), stats(8))];
    let frames = crate::fake::frames(crate::fake::numbers([]).schema_ref(), &batches);
    high.answer_get("a", frames.into_iter().map(Step::Frame).collect());
    assert_eq!(read(&client).await, (vec![1, 2], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_two_versions_are_never_joined() {
    let (low, high, client) = two().await;
    high.answer_get("a", then(versioned(7, [1, 2]), broken()));
    low.answer_get("a", versioned(8, [1, 2, 3, 4]));
    let (delivered, error) = read(&client).await;
    assert_eq!((delivered, error.unwrap().kind), (vec![1, 2], ErrorKind::Changed));

    let (low, high, client) = two().await;
    high.answer_get("a", then(versioned(7, [1, 2, 3]), broken()));
    low.answer_get("a", versioned(7, [1]));
    let (delivered, error) = read(&client).await;
    assert_eq!((delivered, error.unwrap().kind), (vec![1, 2, 3], ErrorKind::Changed), "fewer rows than came before");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_versions_what_broke_off_is_an_error() {
    let (low, high, client) = two().await;
    high.answer_get("a", then(rows([1, 2]), broken()));
    low.answer_get("a", rows([1, 2, 3, 4]));
    let (delivered, error) = read(&client).await;
    assert_eq!((delivered, error.unwrap().kind), (vec![1, 2], ErrorKind::Unavailable));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_only_owner_is_gone_who_comes_next_is_asked_at_once() {
    let (low, next, last) = (Fake::start().await, Fake::start().await, Fake::start().await);
    let rude = rude().await;
    let node = |id: u128, uri: String| Node { id: format!("{id:032x}"), uri: Some(uri), ..Node::default() };
    let nodes = [(1, low.uri()), (2, rude), (3, next.uri()), (4, last.uri())];
    let map = SlotMap::from_owners(1, nodes.map(|(id, uri)| node(id, uri)).into(), |slot| vec![u32::from(slot == HIGH)]).unwrap();
    // As servers rank them, whatever the order here.
    let heirs: Vec<&str> = map.heirs(Slot::try_from(HIGH).unwrap()).iter().filter_map(|node| node.uri.as_deref()).collect();
    let fakes = [&low, &next, &last];
    let asked = fakes.iter().position(|fake| fake.uri() == heirs[0]).unwrap();
    low.answer_map(&map);
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    fakes[asked].answer_get("a", versioned(7, [1, 2]));
    let client = low.connect().await;
    for _ in 0..2 {
        assert_eq!(read(&client).await, (vec![1, 2], None));
    }
    let gets: Vec<usize> = fakes.iter().map(|fake| fake.counts().gets.len()).collect();
    assert_eq!((gets.iter().sum::<usize>(), gets[asked]), (2, 2), "{gets:?}");
    assert_eq!(client.failed_requests(), 1, "the second time it is known");
    assert_eq!(fakes[asked].counts().epochs, [None, None], "it is told that no slot is meant");

    // In the middle of an answer.
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    high.answer_get("a", then(versioned(7, [1]), broken()));
    low.answer_get("a", versioned(7, [1, 2]));
    let client = low.connect().await;
    assert_eq!(read(&client).await, (vec![1, 2], None));
    assert_eq!(client.failed_requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_costs_one_request() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    let nodes = [low.uri(), rude().await, high.uri()];
    let nodes = nodes.map(|uri| Node { id: uri.clone(), uri: Some(uri), ..Node::default() });
    low.answer_map(&SlotMap::from_owners(1, nodes.into(), |_| vec![1]).unwrap());
    for fake in [&low, &high] {
        fake.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
        fake.answer_get("a", versioned(7, [1, 2]));
    }
    let client = low.connect().await;
    for _ in 0..4 {
        assert_eq!(read(&client).await, (vec![1, 2], None));
    }
    assert_eq!(client.failed_requests(), 1, "neither plans nor shares are asked of it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_answers_again_is_asked_again() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    low.answer_get("a", rows([1]));
    high.answer_get("a", vec![broken()]);
    high.answer_get("a", rows([2]));
    let client = low.connect().await;
    assert_eq!(read(&client).await, (vec![1], None), "in its place");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_mins(1);
    while read(&client).await.0 != [2] {
        assert!(tokio::time::Instant::now() < deadline, "it is doubted for good");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(client.failed_requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_answers_it_is_asked_again() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    low.answer_get("a", vec![broken()]);
    // More often than a server that is alone would be: the others need time to notice.
    for _ in 0..5 {
        high.answer_get("a", vec![broken()]);
    }
    high.answer_get("a", versioned(7, [1, 2]));
    let client = low.connect().await;
    assert_eq!(read(&client).await, (vec![1, 2], None));
    assert!(client.failed_requests() >= 6, "{}", client.failed_requests());
    assert!(!low.counts().gets.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_gone_has_the_other_asked_at_once() {
    let low = Fake::start().await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let deserted = format!("grpc://{}", listener.local_addr().unwrap());
    drop(listener);
    low.answer_map(&shared(1, Some(low.uri()), Some(deserted)));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    low.answer_get("a", rows([1]));
    assert_eq!(read(&low.connect().await).await, (vec![1], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_with_less_to_do_is_asked() {
    let (low, high, client) = two().await;
    for fake in [&low, &high] {
        fake.answer_get("a", then(rows([1]), Step::Hang));
    }
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = client.scan(URL).send().await.unwrap();
        stream.try_next().await.unwrap();
        open.push(stream);
    }
    assert_eq!((low.counts().gets.len(), high.counts().gets.len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_owner_does_not_keep_a_share() {
    let (low, high, client) = two().await;
    high.answer_get("a", vec![Step::Hang]);
    low.answer_get("a", rows([1, 2]));
    assert_eq!(read(&client).await, (vec![1, 2], None));
    assert_eq!(client.hedged_requests(), 1);
    high.until("what was too slow is given up", |counts| counts.abandoned == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_says_nothing_is_left_once_the_others_have_lost_it() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    high.answer_get("a", then(versioned(7, [1, 2]), Step::Hang));
    low.answer_get("a", versioned(7, [1, 2, 3]));
    let client = low.connect().await;
    low.answer_map(&whole(2, &low));
    assert_eq!(read(&client).await, (vec![1, 2, 3], None));
    assert_eq!(client.failed_requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_takes_long_is_not_left_while_the_others_know_it() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    let goes_on = Arc::new(Notify::new());
    high.answer_get("a", [vec![Step::Await(Arc::clone(&goes_on))], versioned(7, [1, 2])].concat());
    let client = low.connect().await;
    let asked = async {
        low.until("whether it is lost was asked", |counts| counts.maps == 2).await;
        goes_on.notify_one();
    };
    let (answer, ()) = tokio::join!(read(&client), asked);
    assert_eq!(answer, (vec![1, 2], None));
    assert_eq!((high.counts().gets.len(), client.failed_requests()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_that_a_slot_moved_is_asked_where_to() {
    let (seed, low, high) = (Fake::start().await, Fake::start().await, Fake::start().await);
    // The seed itself does not know yet.
    seed.answer_map(&halves(1, Some(low.uri()), Some(low.uri())));
    low.answer_map(&halves(2, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    low.answer_get("a", vec![Step::Fail(failure(ErrorKind::Moved, "not here"))]);
    high.answer_get("a", rows([7]));
    let client = seed.connect().await;
    assert_eq!(read(&client).await, (vec![7], None));
    assert_eq!((seed.counts().maps, low.counts().maps, client.failed_requests()), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_send_each_other_the_client_get_it_twice_only() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&whole(1, &low));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    for fake in [&low, &high] {
        fake.answer_get("a", vec![Step::Fail(failure(ErrorKind::Moved, "not here"))]);
        fake.answer_get("a", vec![Step::Fail(failure(ErrorKind::Moved, "not here either"))]);
        // Asked without an epoch.
        fake.answer_get("a", rows([7]));
    }
    assert_eq!(read(&low.connect().await).await, (vec![7], None));
    assert_eq!(low.counts().epochs, [Some(1), Some(1), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_server_tells_the_map_when_the_seed_is_gone() {
    let (seed, low) = (Fake::start().await, Fake::start().await);
    seed.answer_map(&halves(1, Some(low.uri()), Some(low.uri())));
    low.answer_map(&halves(2, Some(low.uri()), Some(low.uri())));
    seed.answer_map_with(Err(gone("killed")));
    let client = seed.connect().await;
    assert_eq!(client.slot_map().await.unwrap().epoch(), 2);
    assert_eq!(client.slot_map().await.unwrap().epoch(), 2);
    assert_eq!((seed.counts().maps, low.counts().maps), (2, 2), "who answered is asked first");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_that_says_it_has_less_to_do_is_asked() {
    let (low, high, client) = two().await;
    for fake in [&low, &high] {
        fake.answer_get("a", rows([1]));
    }
    high.tell_answers_beside(3);
    low.tell_answers_beside(2);
    for _ in 0..4 {
        assert_eq!(read(&client).await, (vec![1], None));
    }
    assert_eq!((high.counts().gets.len(), low.counts().gets.len()), (1, 3), "of the other nothing was known at first");
    low.tell_answers_beside(4);
    for _ in 0..2 {
        read(&client).await;
    }
    assert_eq!((high.counts().gets.len(), low.counts().gets.len()), (2, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_is_fetched_once_for_all_shares_that_moved() {
    let (seed, low, high) = (Fake::start().await, Fake::start().await, Fake::start().await);
    seed.answer_map(&halves(1, Some(low.uri()), Some(low.uri())));
    low.answer_map(&halves(2, Some(low.uri()), Some(high.uri())));
    let shares = ["0", "1", "2", "3"];
    low.answer_plan(Ok(plan(shares.map(|share| endpoint(share, HIGH, 1)))));
    // All four are told at the same time.
    let all = Arc::new(Barrier::new(shares.len()));
    for (value, share) in shares.iter().enumerate() {
        let moved = Step::Fail(failure(ErrorKind::Moved, "not here"));
        low.answer_get(share, vec![Step::Meet(Arc::clone(&all)), moved]);
        high.answer_get(share, rows([value as i64]));
    }
    let client = seed.connect().await;
    assert_eq!(read(&client).await, (vec![0, 1, 2, 3], None));
    assert_eq!((low.counts().maps, client.route_lookups()), (1, 2));
    assert_eq!((low.counts().gets.len(), high.counts().gets.len()), (4, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_of_a_part_that_is_lost_is_left() {
    let (low, high) = (Fake::start().await, Fake::start().await);
    low.answer_map(&halves(1, Some(low.uri()), Some(high.uri())));
    low.answer_plan(Ok(plan([endpoint("a", HIGH, 1)])));
    // It was cut off, took itself for the last one, and told a map of an epoch that the others do not come to for long.
    high.answer_map(&whole(1_000, &high));
    high.answer_get("a", vec![Step::Fail(failure(ErrorKind::Moved, "all is mine, as of epoch 1000"))]);
    high.answer_get("a", vec![broken()]);
    low.answer_map(&whole(2, &low));
    low.answer_get("a", rows([7]));
    let client = low.connect().await;
    assert_eq!(read(&client).await, (vec![7], None));
    assert_eq!((high.counts().gets.len(), client.slot_map().await.unwrap().epoch()), (2, 2));
}
