//! Clusters of servers over real sockets.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use flightcache::{Client, ErrorKind, SlotMap};
use flightcache_proto::{NodeState, Slot};
use flightcache_server::admin::Metrics;
use flightcache_server::object::Sources;
use flightcache_server::{Server, Settings};

use crate::store::{TestStore, shared};
use crate::support::{file, settings, until, values};

const URL: &str = "s3://lake/t.parquet";

/// Rounds as short as loopback allows, and a bound that holds while the machine is busy.
pub(crate) fn node(name: &str, seeds: &[&Server]) -> Settings {
    let seeds = seeds.iter().filter_map(|seed| seed.cluster().gossip_addr());
    Settings {
        cluster: Some(name.to_owned()),
        seeds: seeds.map(|seed| seed.to_string()).collect(),
        gossip: Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0))),
        gossip_interval: Duration::from_millis(50),
        detection_bound: Duration::from_secs(10),
        ..settings()
    }
}

pub(crate) async fn start(settings: &Settings, store: &Arc<TestStore>) -> Server {
    let sources = Sources::default().with_store("s3://lake/", shared(store), settings.freshness).unwrap();
    Server::start_with(settings, sources, Arc::new(Metrics::new().unwrap())).await.unwrap()
}

pub(crate) async fn client(server: &Server) -> Client {
    Client::connect(&format!("grpc://{}", server.flight_addr())).await.unwrap()
}

/// Waits until these servers, and no others, own slots, by one map.
pub(crate) async fn converged(servers: &[&Server]) -> Arc<SlotMap> {
    let mut ids: Vec<_> = servers.iter().map(|server| server.cluster().node_id()).collect();
    ids.sort_unstable();
    let owning = |map: &SlotMap| {
        let owning = map.nodes().iter().zip(map.slots_owned());
        let owning = owning.filter(|(node, owned)| owned.total > 0 && node.state != NodeState::Joining);
        owning.map(|(node, _)| node.id.clone()).collect::<Vec<_>>()
    };
    let map = || servers[0].engine().slot_map();
    until("all have one map", || owning(&map()) == ids && servers.iter().all(|server| server.engine().slot_map() == map())).await;
    map()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_share_the_slots_and_hand_them_on() {
    let store = Arc::new(TestStore::new());
    store.put("t.parquet", file(0, 40_000, 10_000, 2)).await;
    let first = start(&node("lake", &[]), &store).await;
    let second = start(&node("lake", &[&first]), &store).await;
    let third = start(&node("lake", &[&first]), &store).await;
    let map = converged(&[&first, &second, &third]).await;
    assert!(map.slots_owned().iter().all(|owned| (4_900..6_000).contains(&owned.preferred)), "{:?}", map.slots_owned());
    // Each tells the same, over Flight, where it is reached.
    for server in [&first, &second, &third] {
        let client = client(server).await;
        assert_eq!(client.slot_map().await.unwrap(), map);
        let uri = format!("grpc+tcp://{}", server.flight_addr());
        assert!(map.nodes().iter().any(|node| node.id == server.cluster().node_id() && node.uri.as_ref() == Some(&uri)));
    }
    let metrics = second.engine().metrics();
    second.engine().publish_gauges();
    assert_eq!(metrics.cluster_nodes.with_label_values(&["active"]).get(), 3);
    assert_eq!(metrics.cluster_epoch.get(), map.epoch() as i64);
    assert!(metrics.cluster_view_changes.get() > 0);

    // A scan is answered whole, whoever is asked.
    let reader = client(&second).await;
    let batches = reader.scan(URL).columns(["c0"]).send().await.unwrap().collect().await.unwrap();
    assert!(values(&batches).into_iter().eq(0..40_000));

    // Drained by another one, by the beginning of its name; its slots are left to the others, who know from whom they come.
    let id = third.cluster().node_id().to_owned();
    let drained = client(&first).await.drain(&id[..13]).await.unwrap();
    assert_eq!((&drained.id, drained.state), (&id, NodeState::Draining));
    let after = converged(&[&first, &second]).await;
    let listed = |node: &flightcache_proto::Node| node.id == id && node.state == NodeState::Draining;
    until("it is listed", || first.engine().slot_map().nodes().iter().any(listed)).await;
    let slots = || (0..16_384).map(|slot| Slot::try_from(slot).unwrap());
    for slot in slots().filter(|&slot| map.owner(slot).id == id) {
        let owner = if after.owner(slot).id == first.cluster().node_id() { &first } else { &second };
        assert_eq!(owner.cluster().previous_owners(slot)[0].id, id);
    }
    let batches = client(&third).await.scan(URL).columns(["c0"]).send().await.unwrap().collect().await.unwrap();
    assert!(values(&batches).into_iter().eq(0..40_000), "it still answers");

    let error = client(&first).await.drain("nobody").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert!(third.shutdown().await);
    until("it is gone", || [&first, &second].iter().all(|server| server.engine().slot_map().nodes().len() == 2)).await;
    drop(reader);
    assert!(second.shutdown().await);
    let began = tokio::time::Instant::now();
    converged(&[&first]).await;
    assert!(began.elapsed() < Duration::from_secs(4), "it said farewell");
    assert!(first.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_gossip_changes_nothing() {
    let store = Arc::new(TestStore::new());
    let first = start(&node("lake", &[]), &store).await;
    let second = start(&node("lake", &[&first]), &store).await;
    let map = converged(&[&first, &second]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let gossip = first.cluster().gossip_addr().unwrap();
    let magic = 45_139_u16.to_le_bytes();
    for message in [
        vec![],
        vec![0; 60_000],
        magic.to_vec(),
        [&magic[..], &[0, 0, 255, 255]].concat(),
        [&magic[..], &[1, 2, 1, 1, 0, 7]].concat(),
    ] {
        socket.send_to(&message, gossip).unwrap();
    }
    // An answer that nobody asked for: an empty delta.
    socket.send_to(&[&magic[..], &[0, 2, 0]].concat(), gossip).unwrap();
    let refused = &first.engine().metrics().gossip_refused;
    until("it is refused", || refused.get() > 0).await;
    let stranger = start(&node("pond", &[&first]), &store).await;
    let before = refused.get();
    until("another cluster is refused", || refused.get() > before).await;
    converged(&[&stranger]).await;
    assert_eq!(converged(&[&first, &second]).await, map);
    for server in [stranger, second, first] {
        assert!(server.shutdown().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_keeps_the_name_and_is_for_one() {
    let store = Arc::new(TestStore::new());
    let directory = tempfile::tempdir().unwrap();
    let first = start(&node("lake", &[]), &store).await;
    let named = Settings { data_directory: Some(directory.path().to_owned()), ..node("lake", &[&first]) };
    let second = start(&named, &store).await;
    let before = converged(&[&first, &second]).await;
    let error = Server::start_with(&named, Sources::default(), Arc::new(Metrics::new().unwrap())).await.err().unwrap();
    assert!(error.message.contains("another server runs"), "{error}");
    let id = second.cluster().node_id().to_owned();
    assert!(second.shutdown().await);
    let again = start(&named, &store).await;
    assert_eq!(again.cluster().node_id(), id);
    let after = converged(&[&first, &again]).await;
    assert!(after.epoch() > before.epoch());
    for server in [again, first] {
        assert!(server.shutdown().await);
    }
}

#[tokio::test]
async fn gossip_that_nobody_reaches_is_refused() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let wildcard = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
    let advertised =
        |uri: &str| Settings { listen: wildcard, advertise: Some(uri.to_owned()), gossip: Some(wildcard), ..node("lake", &[]) };
    for (settings, named) in [
        (Settings { gossip: Some(taken.local_addr().unwrap()), ..node("lake", &[]) }, "gossip"),
        (Settings { listen: wildcard, ..node("lake", &[]) }, "--advertise"),
        (advertised("grpc://0.0.0.0:1"), "--advertise"),
    ] {
        let error = Server::start_with(&settings, Sources::default(), Arc::new(Metrics::new().unwrap())).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::InvalidRequest);
        assert!(error.message.contains(named), "{error}");
    }
    let server = Server::start_with(&advertised("grpc://127.0.0.1:1"), Sources::default(), Arc::new(Metrics::new().unwrap()))
        .await
        .unwrap();
    assert_eq!(server.cluster().gossip_addr().unwrap().ip(), std::net::Ipv4Addr::LOCALHOST);
    assert!(server.shutdown().await);
}
