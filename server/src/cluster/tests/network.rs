//! A network in memory, that delays and loses messages as told, and nodes on it.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chitchat::ChitchatEnvelope;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport};
use flightcache_proto::{NodeState, SlotMap};
use futures::FutureExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::{Cluster, ClusterConfig, Identity, Pace, Surroundings};
use crate::admin::Metrics;

pub(super) const INTERVAL: Duration = Duration::from_millis(200);
/// The default, which is what is promised.
pub(super) const BOUND: Duration = Duration::from_secs(5);
const QUEUED_MESSAGES: usize = 256;

/// What is wrong with the network.
#[derive(Default)]
struct Faults {
    /// Which side of a partition an address is on; all others are on side 0.
    sides: HashMap<SocketAddr, u32>,
    /// Messages of a thousand that are lost.
    loss: u64,
}

/// A network, and the world around it. Time is tokio's, paused; chance is of a seed.
pub(super) struct Network {
    faults: Mutex<Faults>,
    sockets: Mutex<HashMap<SocketAddr, mpsc::Sender<RecvOutcome>>>,
    stopped: watch::Sender<HashSet<SocketAddr>>,
    breaking: Mutex<HashSet<SocketAddr>>,
    names: Mutex<HashMap<String, Vec<SocketAddr>>>,
    seed: u64,
    sent: AtomicU64,
    /// Milliseconds at the world's beginning.
    began_ms: u64,
    began: Instant,
}

impl Network {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            faults: Mutex::default(),
            sockets: Mutex::default(),
            stopped: watch::Sender::default(),
            breaking: Mutex::default(),
            names: Mutex::default(),
            seed,
            sent: AtomicU64::new(0),
            began_ms: 1_700_000_000_000,
            began: Instant::now(),
        })
    }

    /// Parts these from all others.
    pub(super) fn part(&self, addresses: &[SocketAddr]) {
        self.faults.lock().unwrap().sides.extend(addresses.iter().map(|&address| (address, 1)));
    }

    pub(super) fn heal(&self) {
        *self.faults.lock().unwrap() = Faults::default();
    }

    pub(super) fn lose(&self, of_a_thousand: u64) {
        self.faults.lock().unwrap().loss = of_a_thousand;
    }

    /// Stops a process: it neither sends nor takes anything, and what it waits for does not come, until it goes on.
    pub(super) fn stop(&self, address: SocketAddr) {
        self.stopped.send_modify(|stopped| _ = stopped.insert(address));
    }

    pub(super) fn go_on(&self, address: SocketAddr) {
        self.stopped.send_modify(|stopped| _ = stopped.remove(&address));
    }

    /// Has the next message that an address sends panic.
    pub(super) fn break_down(&self, address: SocketAddr) {
        self.breaking.lock().unwrap().insert(address);
    }

    /// What a name means from now on.
    pub(super) fn name(&self, name: &str, addresses: &[SocketAddr]) {
        self.names.lock().unwrap().insert(name.to_owned(), addresses.to_vec());
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.began_ms + self.began.elapsed().as_millis() as u64
    }

    /// The next number of chance.
    fn draw(&self) -> u64 {
        xxh3_64_with_seed(&self.sent.fetch_add(1, Ordering::Relaxed).to_le_bytes(), self.seed)
    }

    async fn running(&self, address: SocketAddr) {
        let mut stopped = self.stopped.subscribe();
        stopped.wait_for(|stopped| !stopped.contains(&address)).await.unwrap();
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, envelope: ChitchatEnvelope) {
        let drawn = self.draw();
        let faults = self.faults.lock().unwrap();
        let side = |address| faults.sides.get(&address).copied().unwrap_or_default();
        if side(from) != side(to) || drawn % 1_000 < faults.loss {
            return;
        }
        let Some(socket) = self.sockets.lock().unwrap().get(&to).cloned() else { return };
        // Up to 20 ms: later messages overtake earlier ones.
        let delay = Duration::from_micros(drawn / 1_000 % 20_000);
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            // A queue that is full loses them.
            let _ = socket.try_send(RecvOutcome { from_addr: from, envelope, num_bytes_received: 0 });
        });
    }
}

pub(super) struct Wires(pub(super) Arc<Network>);

struct SimulatedSocket {
    network: Arc<Network>,
    address: SocketAddr,
    received: mpsc::Receiver<RecvOutcome>,
}

#[async_trait]
impl Transport for Wires {
    async fn open(&self, address: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let (sender, received) = mpsc::channel(QUEUED_MESSAGES);
        let mut sockets = self.0.sockets.lock().unwrap();
        anyhow::ensure!(sockets.get(&address).is_none_or(mpsc::Sender::is_closed), "{address} is in use");
        sockets.insert(address, sender);
        Ok(Box::new(SimulatedSocket { network: Arc::clone(&self.0), address, received }))
    }
}

#[async_trait]
impl Socket for SimulatedSocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.address)
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        self.network.running(self.address).await;
        let breaks = self.network.breaking.lock().unwrap().remove(&self.address);
        assert!(!breaks, "as the test wants it");
        self.network.send(self.address, to, envelope);
        Ok(SendOutcome { num_bytes_sent: 0 })
    }

    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        self.network.running(self.address).await;
        self.received.recv().await.ok_or_else(|| anyhow::anyhow!("closed"))
    }
}

/// How a node is started.
pub(super) struct Start<'a> {
    pub(super) cluster: &'a str,
    pub(super) port: u16,
    pub(super) seeds: &'a [&'a str],
    pub(super) directory: Option<&'a Path>,
    pub(super) weight: u64,
    pub(super) replicas: u32,
}

impl Default for Start<'_> {
    fn default() -> Self {
        Self { cluster: "lake", port: 1, seeds: &["10.0.0.1:1"], directory: None, weight: 1_024, replicas: 1 }
    }
}

/// A node, and the clock it has.
pub(super) struct Simulated {
    pub(super) cluster: Cluster,
    pub(super) address: SocketAddr,
    pub(super) metrics: Arc<Metrics>,
    /// Milliseconds that its clock is ahead of the world's.
    ahead_ms: Arc<Mutex<i64>>,
}

impl Simulated {
    /// Starts a node whose server serves at once.
    pub(super) async fn start(network: &Arc<Network>, start: Start<'_>) -> Self {
        let node = Self::start_waiting(network, start).await;
        node.cluster.serve();
        node
    }

    pub(super) async fn start_waiting(network: &Arc<Network>, start: Start<'_>) -> Self {
        let address = address(start.port);
        let ahead_ms = Arc::new(Mutex::new(0));
        let (world, ahead) = (Arc::clone(network), Arc::clone(&ahead_ms));
        let names = Arc::clone(network);
        let surroundings = Surroundings {
            transport: Arc::new(Wires(Arc::clone(network))),
            clock: Arc::new(move || world.now_ms().saturating_add_signed(*ahead.lock().unwrap())),
            resolve: Arc::new(move |name: String| {
                let literal = name.parse().ok().map(|address| vec![address]);
                let found = literal.or_else(|| names.names.lock().unwrap().get(&name).cloned());
                std::future::ready(found.ok_or_else(|| std::io::Error::other("no such name"))).boxed()
            }),
        };
        let config = ClusterConfig {
            name: start.cluster.to_owned(),
            seeds: start.seeds.iter().map(ToString::to_string).collect(),
            gossip: address,
            gossip_ip: None,
            uri: format!("grpc+tcp://{address}"),
            weight: start.weight,
            replicas: start.replicas,
            pace: Pace { interval: INTERVAL, detection_bound: BOUND },
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        let identity = Identity::load(start.directory, network.now_ms()).unwrap();
        let cluster = Cluster::start(config, identity, surroundings, &metrics).await.unwrap();
        Self { cluster, address, metrics, ahead_ms }
    }

    pub(super) fn set_clock_ahead(&self, ms: i64) {
        *self.ahead_ms.lock().unwrap() = ms;
    }

    pub(super) fn map(&self) -> Arc<SlotMap> {
        self.cluster.slot_map()
    }
}

pub(super) fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

/// Nodes on ports 1 to `count`, who all see each other.
pub(super) async fn cluster(network: &Arc<Network>, count: u16) -> Vec<Simulated> {
    let mut nodes = Vec::new();
    for port in 1..=count {
        nodes.push(Simulated::start(network, Start { port, ..Start::default() }).await);
    }
    converged(&nodes.iter().collect::<Vec<_>>()).await;
    nodes
}

/// Waits until these nodes, and no others, own slots by one and the same map; returns it.
pub(super) async fn converged(nodes: &[&Simulated]) -> Arc<SlotMap> {
    let mut ids: Vec<_> = nodes.iter().map(|node| node.cluster.node_id()).collect();
    ids.sort_unstable();
    let is_whole = |map: &SlotMap| {
        let owning = map.nodes().iter().zip(map.slots_owned()).filter(|(_, owned)| owned.total > 0);
        owning.map(|(node, _)| (&*node.id, node.state != NodeState::Joining)).eq(ids.iter().map(|&id| (id, true)))
    };
    let is_one = || {
        let map = nodes[0].map();
        is_whole(&map) && nodes.iter().all(|node| node.map() == map)
    };
    until("all have one map", is_one).await;
    nodes[0].map()
}

/// Waits, in simulated time, until a condition holds; fails when it does not within a minute.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
