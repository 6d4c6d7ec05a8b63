//! Which nodes there are, and which of them owns which slot.
//!
//! ```text
//!  socket.rs <-UDP-> membership.rs (chitchat) --members--> view.rs --owners--> rendezvous.rs --ranking--> map.rs --SlotMap--> Engine
//!                        ^   seeds.rs (where to look)                                             |
//!                        +---- node.rs: this node's state, epoch and fingerprint <---------------+
//! ```
//!
//! Every node makes the map of what it sees; nobody is asked. Nodes that see the same make the same map, and agree on its epoch
//! (`map.rs`). [`heat`] tells which slots need more owners, [`scaling`] how many nodes there should be. [`identity`] is what outlives the process, `drain.rs` passes on what another node is to do.
//!
//! One task a node (`node.rs`) owns everything that changes. It tells the current map, and takes what the node is to be, through
//! `watch` channels, whose locks are held while a value is read or replaced. chitchat's state is behind a lock of its own, which its
//! task and this one hold while a message is taken in, or the members are looked at. Nothing else is shared.

mod drain;
pub mod heat;
pub mod identity;
mod map;
mod membership;
mod node;
pub mod rendezvous;
pub mod scaling;
pub mod seeds;
mod socket;
#[cfg(test)]
mod tests;
pub mod view;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chitchat::transport::{Transport, UdpTransport};
use flightcache_proto::{Error, Node, NodeState, Result, Slot, SlotMap};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use self::heat::Heat;
pub use self::identity::Identity;
use self::map::Current;
pub use self::membership::Pace;
use self::node::{ThisNode, Told, Wanted};
use self::seeds::Resolver;
use crate::admin::Metrics;

/// Rounds of gossip until the others have heard what a node says, as a rule.
const ROUNDS_TO_HEAR: u32 = 3;

/// How a node takes part.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Name of the cluster. Gossip of others is ignored.
    pub name: String,
    /// `host:port` of other nodes' gossip. Names may mean several addresses.
    pub seeds: Vec<String>,
    /// Address of this node's gossip.
    pub gossip: SocketAddr,
    /// Where the others reach it, if that is a wildcard.
    pub gossip_ip: Option<IpAddr>,
    /// Flight location of this node.
    pub uri: String,
    /// Its share of the slots, against the others'.
    pub weight: u64,
    /// Owners it wants a slot to have.
    pub replicas: u32,
    /// Gossip and failure detection.
    pub pace: Pace,
}

/// What a node meets of the world. Simulations have another one.
#[derive(Clone)]
pub struct Surroundings {
    /// How gossip travels.
    pub transport: Arc<dyn Transport>,
    /// Milliseconds since 1970.
    pub clock: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// What the seeds' names mean.
    pub resolve: Resolver,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self { transport: Arc::new(UdpTransport), clock: Arc::new(now_ms), resolve: seeds::system_resolver() }
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// This node's place in its cluster. Dropping it ends its part without a word, as a crash does.
pub struct Cluster {
    id: String,
    wanted: watch::Sender<Wanted>,
    told: Arc<Told>,
    heat: Arc<Heat>,
    gossip: Option<SocketAddr>,
    interval: Duration,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Cluster {
    /// A node alone, or one whose map is given.
    pub fn fixed(map: SlotMap) -> Self {
        let id = map.nodes().first().map(|node| node.id.clone()).unwrap_or_default();
        Self {
            id,
            wanted: watch::Sender::new(Wanted::Serving),
            told: Arc::new(told(map)),
            heat: Arc::default(),
            gossip: None,
            interval: Duration::ZERO,
            _tasks: Vec::new(),
        }
    }

    /// Joins a cluster. The node owns nothing until [`Cluster::serve`].
    pub async fn start(
        config: ClusterConfig,
        identity: Identity,
        surroundings: Surroundings,
        metrics: &Arc<Metrics>,
    ) -> Result<Self> {
        let (identity, interval) = (Arc::new(identity), config.pace.interval);
        let socket = node::open(config.gossip, &config, &surroundings, metrics).await?;
        let gossip = reachable(&socket, &config)?;
        let (seeds, following) = seeds::follow(config.seeds.clone(), Arc::clone(&surroundings.resolve));
        let me = Node {
            id: identity.uuid().to_string(),
            uri: Some(config.uri.clone()),
            weight: config.weight,
            state: NodeState::Joining,
            incarnation: identity.incarnation(),
        };
        let told = Arc::new(told(SlotMap::single(identity.epoch(), me)));
        let wanted = watch::Sender::new(Wanted::Waiting);
        let id = identity.uuid().to_string();
        let (heard, tells, metrics) = (wanted.subscribe(), Arc::clone(&told), Arc::clone(metrics));
        let heat = Arc::new(Heat::default());
        let of_node = Arc::clone(&heat);
        let node = ThisNode::join(config, identity, surroundings, socket, gossip, seeds, heard, tells, metrics, of_node).await?;
        let running = AbortOnDropHandle::new(tokio::spawn(node.run()));
        tracing::info!(node = id, %gossip, "joining");
        Ok(Self { id, wanted, told, heat, gossip: Some(gossip), interval, _tasks: vec![following, running] })
    }

    /// This node's id.
    pub fn node_id(&self) -> &str {
        &self.id
    }

    /// Counts a request for chunks of a slot, of so many bytes. Of a node alone nobody wants to know.
    pub(crate) fn touched(&self, slot: impl FnOnce() -> Slot, bytes: impl FnOnce() -> u64) {
        if self.gossip.is_some() {
            self.heat.add(slot(), bytes());
        }
    }

    /// Where the others reach this node's gossip; `None` for a node alone.
    pub fn gossip_addr(&self) -> Option<SocketAddr> {
        self.gossip
    }

    /// The slot map as this node sees it now.
    pub fn slot_map(&self) -> Arc<SlotMap> {
        Arc::clone(&self.told.current.borrow().map)
    }

    /// Returns once the map is one that satisfies `condition`.
    pub async fn until(&self, condition: impl Fn(&SlotMap) -> bool) -> Arc<SlotMap> {
        let mut current = self.told.current.subscribe();
        match current.wait_for(|current| condition(&current.map)).await {
            Ok(current) => Arc::clone(&current.map),
            // The sender lives as long as this does.
            Err(_) => self.slot_map(),
        }
    }

    /// The nodes that owned a slot before this one came to own it, the last first, as long as that is not long ago and they are still there:
    /// what they have of the slot need not be read again.
    pub fn previous_owners(&self, slot: Slot) -> Vec<Node> {
        self.told.current.borrow().previous_owners(slot, Instant::now())
    }

    /// This node's server serves from now on: it may own slots.
    pub fn serve(&self) {
        self.want(Wanted::Serving);
    }

    /// This node owns nothing any more, and stays.
    pub fn drain(&self) {
        self.want(Wanted::Draining);
    }

    /// The same, and gives the others time to hear of it.
    pub async fn hand_over(&self) {
        self.drain();
        if self.slot_map().nodes().len() > 1 {
            tokio::time::sleep(self.interval * ROUNDS_TO_HEAR).await;
        }
    }

    /// What was asked for is never taken back.
    fn want(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|now| {
            let is_later = *now < wanted;
            *now = wanted.max(*now);
            is_later
        });
    }

    /// Tells the others that this node is gone. Returns once they may have heard it.
    pub async fn leave(&self) {
        if self.gossip.is_none() {
            return;
        }
        let mut has_left = self.told.has_left.subscribe();
        self.want(Wanted::Leaving);
        // The sender lives as long as this does.
        let _ = has_left.wait_for(|has_left| *has_left).await;
    }

    /// Returns when this node must not go on, with the reason.
    pub fn failed(&self) -> impl Future<Output = Error> + Send + use<> {
        let told = Arc::clone(&self.told);
        async move {
            let mut failed = told.failed.subscribe();
            let error = failed.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
            match error {
                Some(error) => error,
                // The sender lives as long as this does.
                None => std::future::pending().await,
            }
        }
    }

    /// Brings the metrics up to date.
    pub(crate) fn publish_gauges(&self, metrics: &Metrics) {
        let map = self.slot_map();
        for state in NodeState::ALL {
            let count = map.nodes().iter().filter(|node| node.state == state).count();
            metrics.cluster_nodes.with_label_values(&[state.as_str()]).set(count as i64);
        }
        let owned = map.nodes().iter().zip(map.slots_owned()).find(|(node, _)| node.id == self.id);
        let owned = owned.map(|(_, owned)| owned).unwrap_or_default();
        metrics.cluster_epoch.set(map.epoch() as i64);
        metrics.cluster_slots_preferred.set(i64::from(owned.preferred));
        metrics.cluster_slots_owned.set(i64::from(owned.total));
        for (first, last, bytes) in self.heat.by_range() {
            let touched = metrics.slot_touched_bytes.with_label_values(&[&format!("{first}-{last}")]);
            touched.inc_by(bytes.saturating_sub(touched.get()));
        }
    }
}

fn told(map: SlotMap) -> Told {
    Told { current: watch::Sender::new(Current::new(map)), failed: watch::Sender::new(None), has_left: watch::Sender::new(false) }
}

/// The address the others are told.
fn reachable(socket: &impl chitchat::transport::Socket, config: &ClusterConfig) -> Result<SocketAddr> {
    let bound = socket.local_addr().map_err(|e| Error::internal(format!("gossip: {e:#}")))?;
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    let ip = config.gossip_ip.filter(|ip| !ip.is_unspecified());
    let ip =
        ip.ok_or_else(|| Error::invalid("gossip listens on every address: --advertise has to name one that others reach"))?;
    Ok(SocketAddr::new(ip, bound.port()))
}
