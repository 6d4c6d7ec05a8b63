//! Clusters in simulated time, on a network that misbehaves.

mod network;

use std::sync::Arc;
use std::time::Duration;

use chitchat::ChitchatId;
use flightcache_proto::{NodeState, SLOT_COUNT, Slot, SlotMap};
use tokio::time::{Instant, sleep};

use self::network::{BOUND, INTERVAL, Network, Simulated, Start, Wires, address, cluster, converged, until};
use super::Pace;
use super::membership::Membership;

fn slots() -> impl Iterator<Item = Slot> {
    (0..SLOT_COUNT).map(|slot| Slot::try_from(slot).unwrap())
}

fn all<'a>(nodes: impl IntoIterator<Item = &'a Simulated>) -> Vec<&'a Simulated> {
    nodes.into_iter().collect()
}

/// Checks, from now on, that a node's epoch never falls, and grows with what the map says of owners.
fn watched(node: &Simulated) {
    let mut current = node.cluster.told.current.subscribe();
    let mut last = current.borrow_and_update().map.clone();
    tokio::spawn(async move {
        while current.changed().await.is_ok() {
            let map = current.borrow_and_update().map.clone();
            assert!(map.epoch() >= last.epoch(), "an epoch fell");
            let is_same = || slots().all(|slot| map.owner(slot) == last.owner(slot));
            let is_joining = map.nodes().iter().all(|node| node.state == NodeState::Joining) || last.epoch() == 0;
            assert!(is_joining || map.epoch() > last.epoch() || is_same(), "other owners, same epoch");
            last = map;
        }
    });
}

#[tokio::test(start_paused = true)]
async fn nodes_that_join_get_their_shares() {
    let network = Network::new(1);
    let first = Simulated::start(&network, Start::default()).await;
    let alone = converged(&[&first]).await;
    assert_eq!(alone.sole_owner().map(|node| &*node.id), Some(first.cluster.node_id()));
    let mut nodes = vec![first];
    for (port, weight) in [(2, 1_024), (3, 2_048)] {
        nodes.push(Simulated::start(&network, Start { port, weight, ..Start::default() }).await);
        let before = nodes[0].map();
        let after = converged(&all(&nodes)).await;
        assert!(after.epoch() > before.epoch());
        // What moved, moved to the new one, who knows from whom.
        let new = nodes.last().unwrap();
        for slot in slots() {
            let (had, has) = (before.owner(slot), after.owner(slot));
            let is_new = has.id == new.cluster.node_id();
            assert!(is_new || has.id == had.id);
            assert_eq!(new.cluster.previous_owners(slot).first().map(|node| &node.id), is_new.then_some(&had.id));
        }
    }
    let map = nodes[0].map();
    let share = |node: &Simulated| {
        let at = map.nodes().iter().position(|known| known.id == node.cluster.node_id()).unwrap();
        f64::from(map.slots_owned()[at].preferred) / f64::from(SLOT_COUNT)
    };
    for (node, fair) in nodes.iter().zip([0.25, 0.25, 0.5]) {
        assert!((share(node) / fair - 1.0).abs() < 0.1, "{} of {fair}", share(node));
    }
    assert_eq!(nodes[0].metrics.gossip_refused.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_owns_nothing_until_its_server_serves() {
    let network = Network::new(2);
    let nodes = cluster(&network, 2).await;
    let waiting = Simulated::start_waiting(&network, Start { port: 3, ..Start::default() }).await;
    let lists =
        |map: &SlotMap| map.nodes().iter().any(|node| node.id == waiting.cluster.node_id() && node.state == NodeState::Joining);
    until("it is listed", || nodes.iter().all(|node| lists(&node.map()))).await;
    let before = nodes[0].map();
    sleep(BOUND).await;
    assert_eq!(converged(&all(&nodes)).await, before, "nothing has changed for the others");
    assert_eq!(waiting.map(), before, "and it sees what they see");
    waiting.cluster.serve();
    converged(&[&nodes[0], &nodes[1], &waiting]).await;
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_gone_at_once() {
    let network = Network::new(3);
    let mut nodes = cluster(&network, 3).await;
    let leaving = nodes.pop().unwrap();
    let began = Instant::now();
    leaving.cluster.hand_over().await;
    let draining = converged(&all(&nodes)).await;
    assert_eq!(draining.nodes().len(), 3, "it is still there");
    assert!(slots().any(|slot| nodes[0].cluster.previous_owners(slot).iter().any(|node| node.id == leaving.cluster.node_id())));
    leaving.cluster.leave().await;
    until("it is gone", || nodes.iter().all(|node| node.map().nodes().len() == 2)).await;
    assert!(began.elapsed() < BOUND / 2, "{:?}", began.elapsed());
    assert!(slots().all(|slot| nodes[0].cluster.previous_owners(slot).is_empty()));
    // Those that stay still are one cluster long after.
    drop(leaving);
    let epoch = converged(&all(&nodes)).await.epoch();
    sleep(BOUND * 3).await;
    assert_eq!(converged(&all(&nodes)).await.epoch(), epoch);
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_seen_within_the_bound() {
    for seed in 10..16 {
        let network = Network::new(seed);
        let mut nodes = cluster(&network, 5).await;
        // Long enough for the detectors to know what is usual.
        sleep(Duration::from_millis(seed * 1_000)).await;
        nodes.iter().for_each(watched);
        let before = nodes[0].map();
        let dead = nodes.remove(seed as usize % 5);
        let id = dead.cluster.node_id().to_owned();
        drop(dead);
        let began = Instant::now();
        until("it is gone", || nodes.iter().all(|node| node.map().nodes().iter().all(|node| node.id != id))).await;
        assert!(began.elapsed() <= BOUND, "{:?} with seed {seed}", began.elapsed());
        assert!(began.elapsed() >= BOUND / 3, "{:?} with seed {seed}", began.elapsed());
        let after = converged(&all(&nodes)).await;
        for slot in slots().filter(|&slot| before.owner(slot).id != id) {
            assert_eq!(before.owner(slot), after.owner(slot));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn with_replicas_second_owners_take_over() {
    let network = Network::new(4);
    let mut nodes = Vec::new();
    for port in 1..=4 {
        nodes.push(Simulated::start(&network, Start { port, replicas: 2, ..Start::default() }).await);
    }
    let before = converged(&all(&nodes)).await;
    let dead = nodes.remove(1);
    let id = dead.cluster.node_id().to_owned();
    drop(dead);
    let after = converged(&all(&nodes)).await;
    for slot in slots() {
        let owners: Vec<_> = before.owners(slot).filter(|owner| owner.id != id).collect();
        assert_eq!(after.owner(slot), owners[0]);
        assert_eq!(after.owners(slot).len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_elsewhere_is_the_same_node() {
    let network = Network::new(5);
    let directory = tempfile::tempdir().unwrap();
    let others = cluster(&network, 2).await;
    let start = |port| Start { port, directory: Some(directory.path()), ..Start::default() };
    let first = Simulated::start(&network, start(3)).await;
    let before = converged(&[&others[0], &others[1], &first]).await;
    let id = first.cluster.node_id().to_owned();
    drop(first);
    sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    let again = Simulated::start(&network, start(4)).await;
    assert_eq!(again.cluster.node_id(), id);
    let uri = format!("grpc+tcp://{}", address(4));
    let knows = |map: &SlotMap| map.nodes().iter().any(|node| node.uri.as_ref() == Some(&uri) && node.state == NodeState::Active);
    until("it is known by its new address", || others.iter().all(|node| knows(&node.map()))).await;
    assert!(began.elapsed() < BOUND / 2, "sooner than its first life would have been given up: {:?}", began.elapsed());
    let after = converged(&[&others[0], &others[1], &again]).await;
    assert!(after.epoch() > before.epoch());
    for slot in slots() {
        assert_eq!(before.owner(slot).id, after.owner(slot).id);
    }
    sleep(BOUND * 2).await;
    assert_eq!(converged(&[&others[0], &others[1], &again]).await, after, "its first life does not come back");
}

#[tokio::test(start_paused = true)]
async fn a_reused_address_is_another_node() {
    let network = Network::new(6);
    let mut nodes = cluster(&network, 3).await;
    let dead = nodes.pop().unwrap();
    let (id, address) = (dead.cluster.node_id().to_owned(), dead.address);
    drop(dead);
    sleep(Duration::from_millis(50)).await;
    let other = Simulated::start(&network, Start { port: address.port(), ..Start::default() }).await;
    assert_ne!(other.cluster.node_id(), id);
    nodes.push(other);
    let map = converged(&all(&nodes)).await;
    assert!(map.nodes().iter().all(|node| node.id != id));
}

#[tokio::test(start_paused = true)]
async fn one_name_is_not_for_two() {
    let network = Network::new(7);
    let (directory, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |port, directory| Start { port, directory: Some(directory), ..Start::default() };
    let first = Simulated::start(&network, start(1, directory.path())).await;
    sleep(Duration::from_secs(1)).await;
    std::fs::copy(directory.path().join("node.json"), copy.path().join("node.json")).unwrap();
    let second = Simulated::start(&network, start(2, copy.path())).await;
    let error = first.cluster.failed().await;
    assert!(error.message.contains("a second time") && error.message.contains(":2"), "{error}");
    assert!(tokio::time::timeout(BOUND, second.cluster.failed()).await.is_err(), "the later one goes on");
}

#[tokio::test(start_paused = true)]
async fn a_partition_makes_two_clusters_and_heals() {
    for (seed, lasts) in [(20, Duration::from_secs(10)), (21, Duration::from_mins(5))] {
        let network = Network::new(seed);
        let nodes = cluster(&network, 5).await;
        nodes.iter().for_each(watched);
        let before = nodes[0].map();
        network.part(&nodes[3..].iter().map(|node| node.address).collect::<Vec<_>>());
        let (few, many) = (converged(&all(&nodes[3..])).await, converged(&all(&nodes[..3])).await);
        sleep(lasts).await;
        assert_eq!((nodes[4].map(), nodes[0].map()), (few.clone(), many.clone()), "each side is stable");
        assert!(few.epoch() > before.epoch() && many.epoch() > before.epoch());
        network.heal();
        let healed = converged(&all(&nodes)).await;
        assert!(healed.epoch() > few.epoch().max(many.epoch()));
        for slot in slots() {
            assert_eq!(healed.owner(slot), before.owner(slot));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_stop_is_nothing_and_a_long_one_heals() {
    let network = Network::new(8);
    let nodes = cluster(&network, 4).await;
    sleep(Duration::from_secs(10)).await;
    let before = nodes[0].map();
    network.stop(nodes[1].address);
    sleep(Duration::from_millis(1_500)).await;
    network.go_on(nodes[1].address);
    sleep(BOUND * 2).await;
    assert_eq!(converged(&all(&nodes)).await, before, "nobody was taken for dead");

    nodes.iter().for_each(watched);
    network.stop(nodes[1].address);
    let others = [&nodes[0], &nodes[2], &nodes[3]];
    converged(&others).await;
    sleep(Duration::from_secs(20)).await;
    network.go_on(nodes[1].address);
    let healed = converged(&all(&nodes)).await;
    assert!(healed.epoch() > before.epoch());
}

#[tokio::test(start_paused = true)]
async fn clocks_may_step() {
    let network = Network::new(9);
    let mut nodes = cluster(&network, 3).await;
    nodes.iter().for_each(watched);
    let (hour, day) = (3_600_000, 86_400_000);
    for (node, step) in nodes.iter().zip([-day, day, -hour]) {
        node.set_clock_ahead(step);
    }
    sleep(BOUND).await;
    let before = nodes[0].map().epoch();
    let joined = Simulated::start(&network, Start { port: 4, ..Start::default() }).await;
    joined.set_clock_ahead(-2 * day);
    nodes.push(joined);
    let ahead = converged(&all(&nodes)).await.epoch();
    assert!(ahead > before);
    // The clock that was ahead is right again, and its node gone: what it said still counts.
    nodes[1].set_clock_ahead(0);
    nodes.remove(1);
    assert!(converged(&all(&nodes)).await.epoch() > ahead);
}

#[tokio::test(start_paused = true)]
async fn names_of_seeds_may_change_their_meaning() {
    let network = Network::new(30);
    let start = |port| Start { port, seeds: &["cache.lake.svc:7"], ..Start::default() };
    // Not known to anybody yet; then the address of something else.
    let first = Simulated::start(&network, start(1)).await;
    converged(&[&first]).await;
    network.name("cache.lake.svc:7", &[address(99)]);
    let second = Simulated::start(&network, start(2)).await;
    converged(&[&second]).await;
    assert_eq!(first.map().nodes().len(), 1);
    network.name("cache.lake.svc:7", &[address(99), address(1), address(2)]);
    let both = converged(&[&first, &second]).await;
    // It is gone, and comes to mean a new one only, which in turn knows of nobody else.
    drop(first);
    network.name("cache.lake.svc:7", &[]);
    assert!(converged(&[&second]).await.epoch() > both.epoch());
    let third = Simulated::start(&network, start(3)).await;
    network.name("cache.lake.svc:7", &[address(3)]);
    converged(&[&second, &third]).await;
}

#[tokio::test(start_paused = true)]
async fn a_third_of_the_messages_may_be_lost() {
    let network = Network::new(31);
    let mut nodes = cluster(&network, 4).await;
    network.lose(333);
    nodes.push(Simulated::start(&network, Start { port: 5, ..Start::default() }).await);
    let map = converged(&all(&nodes)).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(converged(&all(&nodes)).await, map, "nobody was taken for dead");
    drop(nodes.pop());
    converged(&all(&nodes)).await;
}

#[tokio::test(start_paused = true)]
async fn other_clusters_are_not_heard() {
    let network = Network::new(32);
    let nodes = cluster(&network, 2).await;
    let map = nodes[0].map();
    let start = |port, cluster| Start { cluster, port, ..Start::default() };
    let stranger = Simulated::start(&network, start(3, "pond")).await;
    let friend = Simulated::start(&network, Start { seeds: &["10.0.0.1:3"], ..start(4, "pond") }).await;
    converged(&[&stranger, &friend]).await;
    sleep(BOUND).await;
    assert_eq!(converged(&all(&nodes)).await, map);
    assert!(nodes[0].metrics.gossip_refused.get() > 0);
}

#[tokio::test(start_paused = true)]
async fn strangers_who_know_the_name_are_no_members() {
    let network = Network::new(35);
    let nodes = cluster(&network, 2).await;
    let map = nodes[0].map();
    let id = ChitchatId::new("00000000-0000-0000-0000-000000000009", u64::MAX, address(9));
    let pace = Pace { interval: INTERVAL, detection_bound: BOUND };
    let stranger = Membership::start("lake", id, pace, &Wires(Arc::clone(&network))).await.unwrap();
    let mut says = super::view::tests::member(9);
    says.uri = "x".repeat(60_000);
    stranger.say(&says).await;
    stranger.greet(address(1));
    sleep(BOUND).await;
    assert_eq!(converged(&all(&nodes)).await, map);
    assert_eq!(nodes[0].metrics.gossip_refused.get(), 0, "its gossip was taken in");
}

#[tokio::test(start_paused = true)]
async fn gossip_that_breaks_down_begins_anew() {
    let network = Network::new(36);
    let nodes = cluster(&network, 3).await;
    nodes.iter().for_each(watched);
    let before = nodes[1].map();
    network.break_down(nodes[1].address);
    until("it is a later incarnation", || nodes.iter().all(|node| node.map().epoch() > before.epoch())).await;
    let after = converged(&all(&nodes)).await;
    assert!(after.epoch() > before.epoch());
    assert!(slots().all(|slot| after.owner(slot).id == before.owner(slot).id));
}

#[tokio::test(start_paused = true)]
async fn the_last_one_answers_while_it_drains() {
    let network = Network::new(33);
    let mut nodes = cluster(&network, 2).await;
    nodes[0].cluster.drain();
    converged(&[&nodes[1]]).await;
    nodes[1].cluster.drain();
    // Somebody has to.
    let both = converged(&all(&nodes)).await;
    assert!(both.nodes().iter().all(|node| node.state == NodeState::Draining));
    drop(nodes.pop());
    let last = converged(&all(&nodes)).await;
    assert!(last.epoch() > both.epoch());
}

#[tokio::test(start_paused = true)]
async fn epochs_outlive_their_node() {
    let network = Network::new(34);
    let directory = tempfile::tempdir().unwrap();
    let start = || Start { seeds: &[], directory: Some(directory.path()), ..Start::default() };
    let first = Simulated::start(&network, start()).await;
    converged(&[&first]).await;
    first.set_clock_ahead(1_000_000_000);
    let friend = Simulated::start(&network, Start { port: 2, ..Start::default() }).await;
    let ahead = converged(&[&first, &friend]).await.epoch();
    drop((first, friend));
    sleep(INTERVAL).await;
    let again = Simulated::start(&network, start()).await;
    assert!(again.map().epoch() >= ahead);
    assert!(converged(&[&again]).await.epoch() > ahead);
    assert!(Arc::strong_count(&network) > 0);
}

#[tokio::test(start_paused = true)]
async fn a_hot_slot_gets_extra_owners_and_loses_them_again() {
    let network = Network::new(20);
    let nodes = cluster(&network, 4).await;
    let before = converged(&all(&nodes)).await;
    let hot = Slot::try_from(77).unwrap();
    let preferred = nodes.iter().find(|node| node.cluster.node_id() == before.owner(hot).id).unwrap();
    let owners = |node: &Simulated| node.map().owners(hot).len();
    // Those that own it share what is asked of it, as clients see to.
    let asked = async {
        loop {
            let owning: Vec<_> =
                nodes.iter().filter(|node| node.map().owners(hot).any(|owner| owner.id == node.cluster.node_id())).collect();
            for node in &owning {
                node.cluster.touched(|| hot, || (100 << 20) / owning.len() as u64);
            }
            sleep(INTERVAL).await;
        }
    };
    let is_spread = until("it has owners enough", || nodes.iter().all(|node| owners(node) >= 3));
    tokio::select! {
        () = is_spread => {}
        () = asked => {}
    }
    let spread = nodes[0].map();
    assert_eq!(spread.owner(hot), before.owner(hot), "who was preferred still is");
    assert!(spread.epoch() > before.epoch());
    let mut others = slots().filter(|&slot| slot != hot);
    assert!(others.all(|slot| spread.owners(slot).eq(before.owners(slot))), "no other slot is touched");
    let extra = nodes.iter().filter(|node| !node.cluster.previous_owners(hot).is_empty());
    assert!(extra.count() >= 1, "extra owners know from whom they may have it");
    // Nothing is asked of it any more.
    until("it has one owner", || nodes.iter().all(|node| owners(node) == 1)).await;
    assert_eq!(preferred.map().owner(hot), before.owner(hot));
    converged(&all(&nodes)).await;
}

#[tokio::test(start_paused = true)]
async fn several_hot_slots_get_extra_owners_and_lose_them_again() {
    let network = Network::new(21);
    let nodes = cluster(&network, 4).await;
    let before = converged(&all(&nodes)).await;
    // All of one node, which has to give some of each away.
    let busy = nodes[0].cluster.node_id();
    let hot: Vec<Slot> = slots().filter(|&slot| before.owner(slot).id == busy).take(5).collect();
    let asked = async |hot: &[Slot]| {
        loop {
            for &slot in hot {
                let owning: Vec<_> =
                    nodes.iter().filter(|node| node.map().owners(slot).any(|owner| owner.id == node.cluster.node_id())).collect();
                for node in &owning {
                    node.cluster.touched(|| slot, || (20 << 20) / owning.len() as u64);
                }
            }
            sleep(INTERVAL).await;
        }
    };
    let owners = |node: &Simulated, slot: Slot| node.map().owners(slot).len();
    let is_spread = until("some have owners enough", || {
        let load_left: f64 = hot.iter().map(|&slot| 1.0 / owners(&nodes[0], slot) as f64).sum();
        // Of five parts, a quarter is its share.
        load_left < 5.0 / 4.0 * 1.4 + 0.2
    });
    tokio::select! {
        () = is_spread => {}
        () = asked(&hot) => {}
    }
    let spread = nodes[0].map();
    assert!(hot.iter().filter(|&&slot| spread.owners(slot).len() > 1).count() >= 2);
    assert!(slots().filter(|slot| !hot.contains(slot)).all(|slot| spread.owners(slot).eq(before.owners(slot))));
    assert!(hot.iter().all(|&slot| spread.owner(slot) == before.owner(slot)));
    // Of one only, nothing is asked any more: that one loses its extra owners.
    let extra: Vec<Slot> = hot.iter().copied().filter(|&slot| spread.owners(slot).len() > 1).collect();
    let (cool, still) = extra.split_first().unwrap();
    tokio::select! {
        () = until("it has one owner", || nodes.iter().all(|node| owners(node, *cool) == 1)) => {}
        () = asked(still) => {}
    }
    until("all have one owner", || nodes.iter().all(|node| hot.iter().all(|&slot| owners(node, slot) == 1))).await;
    converged(&all(&nodes)).await;
}
