//! This node's part: says what it is, looks at who is there, and makes the slot map of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chitchat::ChitchatId;
use flightcache_proto::{Error, ErrorKind, NodeState, Result, Slot, SlotMap};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::heat::{ExtraOwners, Heat, Relief};
use super::identity::Identity;
use super::map::{Current, Epoch, slot_map};
use super::membership::Membership;
use super::rendezvous::Ranking;
use super::socket::{Guarded, Opened};
use super::view::{Member, Published, View};
use super::{ClusterConfig, Surroundings};
use crate::admin::Metrics;

/// Rounds of gossip after which a node that found nobody takes itself for the first.
const ROUNDS_ALONE: u32 = 10;
/// Rounds between greetings of seeds that are not among the living: they may be of another half, or come later.
const ROUNDS_BETWEEN_GREETINGS: u32 = 5;
/// Rounds between looks at what is asked of this node, against the others.
const ROUNDS_BETWEEN_LOOKS: u32 = 10;
/// Rounds that a farewell takes to spread.
const ROUNDS_OF_FAREWELL: u32 = 2;
/// How long gossip that broke down stays down.
const PAUSE: Duration = Duration::from_secs(1);

/// What this node is told to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wanted {
    /// Its server does not serve yet.
    Waiting,
    Serving,
    Draining,
    Leaving,
}

/// What everybody else reads.
pub(super) struct Told {
    pub(super) current: watch::Sender<Current>,
    /// Why this node must not go on, if there is a reason.
    pub(super) failed: watch::Sender<Option<Error>>,
    pub(super) has_left: watch::Sender<bool>,
}

pub(super) struct ThisNode {
    config: ClusterConfig,
    identity: Arc<Identity>,
    surroundings: Surroundings,
    gossip: SocketAddr,
    membership: Membership,
    seeds: watch::Receiver<Vec<SocketAddr>>,
    wanted: watch::Receiver<Wanted>,
    told: Arc<Told>,
    metrics: Arc<Metrics>,
    heat: Arc<Heat>,
    relief: Relief,
    looked_at: Instant,
    me: Member,
    view: View,
    /// What the others had published when the map was made last.
    others_say: Vec<Published>,
    epoch: Epoch,
    ranking: Ranking,
    /// Since when it could serve.
    serving_since: Option<Instant>,
    /// There are others.
    has_met: bool,
    /// One of them sees what this node sees.
    agrees: bool,
    /// Gossip addresses of the living.
    peers: Vec<SocketAddr>,
    rounds: u32,
}

/// Opens the gossip socket, at an address that is known from then on.
pub(super) async fn open(
    address: SocketAddr,
    config: &ClusterConfig,
    surroundings: &Surroundings,
    metrics: &Metrics,
) -> Result<Guarded> {
    let socket = surroundings.transport.open(address).await;
    let socket = socket.map_err(|e| Error::invalid(format!("gossip: cannot listen on {address}: {e:#}")))?;
    Ok(Guarded::new(socket, config.name.clone(), metrics.gossip_refused.clone()))
}

impl ThisNode {
    /// Joins, over a socket that the others reach at `gossip`.
    #[allow(clippy::too_many_arguments)] // Each is made by `Cluster::start`, once.
    pub(super) async fn join(
        config: ClusterConfig,
        identity: Arc<Identity>,
        surroundings: Surroundings,
        socket: Guarded,
        gossip: SocketAddr,
        seeds: watch::Receiver<Vec<SocketAddr>>,
        wanted: watch::Receiver<Wanted>,
        told: Arc<Told>,
        metrics: Arc<Metrics>,
        heat: Arc<Heat>,
    ) -> Result<Self> {
        let me = Member {
            uuid: identity.uuid(),
            incarnation: identity.incarnation(),
            uri: config.uri.clone(),
            weight: config.weight,
            state: NodeState::Joining,
            replicas: config.replicas,
            published: None,
            rate: 0,
            extra_owners: ExtraOwners::new(),
        };
        let id = ChitchatId::new(me.uuid.to_string(), me.incarnation, gossip);
        let membership = Membership::start(&config.name, id, config.pace, &Opened::new(socket)).await?;
        let epoch = Epoch::after(identity.epoch());
        let mut node = Self {
            config,
            identity,
            surroundings,
            gossip,
            membership,
            seeds,
            wanted,
            told,
            metrics,
            heat,
            relief: Relief::default(),
            looked_at: Instant::now(),
            me,
            view: View::default(),
            others_say: Vec::new(),
            epoch,
            ranking: Ranking::default(),
            serving_since: None,
            has_met: false,
            agrees: false,
            peers: Vec::new(),
            rounds: 0,
        };
        node.look().await;
        Ok(node)
    }

    /// Goes on until told to leave.
    pub(super) async fn run(mut self) {
        let mut rounds = tokio::time::interval(self.config.pace.interval);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ended = Box::pin(self.membership.ended());
        loop {
            tokio::select! {
                () = self.membership.changed() => {}
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return; // Nobody holds the cluster any more.
                    }
                }
                () = &mut ended => {
                    self.restart("it broke down").await;
                    ended = Box::pin(self.membership.ended());
                }
                _ = rounds.tick() => {
                    self.greet();
                    self.look_at_load();
                    if self.membership.is_flooded().await {
                        self.restart("somebody tells of more than a cluster has").await;
                        ended = Box::pin(self.membership.ended());
                    }
                }
            }
            self.look().await;
            if self.me.state == NodeState::Left {
                return self.leave().await;
            }
        }
    }

    /// Greets seeds that are not among the living, more often as long as there is nobody.
    fn greet(&mut self) {
        self.rounds = self.rounds.wrapping_add(1);
        if self.has_met && !self.rounds.is_multiple_of(ROUNDS_BETWEEN_GREETINGS) {
            return;
        }
        for &seed in self.seeds.borrow().iter().filter(|seed| **seed != self.gossip && !self.peers.contains(seed)) {
            self.membership.greet(seed);
        }
    }

    /// Compares what is asked of this node with what is asked of the others, from time to time.
    fn look_at_load(&mut self) {
        if !self.rounds.is_multiple_of(ROUNDS_BETWEEN_LOOKS) {
            return;
        }
        let elapsed = std::mem::replace(&mut self.looked_at, Instant::now()).elapsed();
        let (map, uuid) = (Arc::clone(&self.told.current.borrow().map), self.me.uuid.to_string());
        let owners = |slot: u16| {
            let slot = Slot::try_from(slot).ok().filter(|&slot| map.owner(slot).id == uuid)?;
            Some(map.owners(slot).len())
        };
        self.relief.look(&self.heat, elapsed, self.me.weight, &self.view.loads_beside(self.me.uuid), owners);
        (self.me.rate, self.me.extra_owners) = (self.relief.rate(), self.relief.extra_owners());
    }

    /// What this node is now.
    fn state(&mut self) -> NodeState {
        match *self.wanted.borrow_and_update() {
            Wanted::Waiting => NodeState::Joining,
            Wanted::Draining => NodeState::Draining,
            Wanted::Leaving => NodeState::Left,
            Wanted::Serving if self.me.state == NodeState::Active => NodeState::Active,
            Wanted::Serving => {
                let since = *self.serving_since.get_or_insert_with(Instant::now);
                let is_first = self.config.seeds.is_empty() || since.elapsed() >= self.config.pace.interval * ROUNDS_ALONE;
                // Who sees what the others see knows from whom its slots come.
                if self.agrees || is_first { NodeState::Active } else { NodeState::Joining }
            }
        }
    }

    /// Looks at who is there. What has changed makes a new map.
    async fn look(&mut self) {
        let state = self.state();
        if state != self.me.state {
            tracing::info!(node = %self.me.uuid, state = state.as_str(), "state");
            self.me.state = state;
        }
        let others = self.membership.others();
        let view = View::new(others.iter().map(|(member, _)| member.clone()).chain([self.me.clone()]));
        self.peers = others.iter().map(|&(_, address)| address).collect();
        self.has_met = !others.is_empty();
        if let Some(other) = view.member(self.me.uuid).filter(|member| member.incarnation > self.me.incarnation) {
            self.fail(&other.uri);
        }
        self.make_map(view).await;
        self.membership.say(&self.me).await;
    }

    async fn make_map(&mut self, view: View) {
        let others = view.members().iter().filter(|member| member.uuid != self.me.uuid);
        let mut others_say: Vec<_> = others.filter_map(|member| member.published).collect();
        others_say.sort_unstable_by_key(|published| (published.epoch, published.fingerprint));
        others_say.dedup();
        let is_known = self.is_known(&view) && others_say == self.others_say;
        // A node that has left needs no map of those who stay.
        if self.me.state == NodeState::Left || is_known {
            self.view = view;
            return;
        }
        let fingerprint = view.fingerprint();
        self.agrees = others_say.iter().any(|published| published.fingerprint == fingerprint);
        let may_begin = self.me.state != NodeState::Joining;
        let epoch = self.epoch.of_view(fingerprint, others_say.iter().copied(), (self.surroundings.clock)(), may_begin);
        let nodes = view.nodes();
        let is_same = |map: &SlotMap| map.epoch() == epoch && map.nodes() == nodes;
        if !is_same(&self.told.current.borrow().map) {
            if let Err(error) = self.replace_map(&view, epoch).await {
                tracing::error!(%error, "no slot map can be made");
                return;
            }
            self.metrics.cluster_view_changes.inc();
            tracing::info!(epoch, nodes = nodes.len(), owners = view.owners().count(), "slot map");
        }
        // Once the map is there that it is of.
        self.me.published = may_begin.then_some(Published { epoch, fingerprint });
        (self.view, self.others_say) = (view, others_say);
    }

    /// Whether nothing has changed that the map depends on.
    fn is_known(&self, view: &View) -> bool {
        let of_map = |view: &View| (view.replicas(), view.nodes(), view.extra_owners());
        of_map(view) == of_map(&self.view)
    }

    /// Many scores take their time: they are computed where nobody waits for something else.
    async fn replace_map(&mut self, view: &View, epoch: u64) -> Result<()> {
        let (view, mut ranking) = (view.clone(), std::mem::take(&mut self.ranking));
        let (current, me) = (self.told.current.borrow().clone(), self.me.uuid);
        let identity = Arc::clone(&self.identity);
        let now = Instant::now();
        let made = tokio::task::spawn_blocking(move || {
            ranking.set(view.owners().map(|member| (member.uuid, member.weight)));
            let next = slot_map(epoch, &view, &ranking).map(|map| {
                let is_newer = map.epoch() > current.map.epoch();
                if let Err(error) = is_newer.then(|| identity.keep_epoch(epoch)).transpose() {
                    tracing::warn!(%error, "the slot map's epoch was not kept");
                }
                current.next(map, me, &ranking, now)
            });
            (ranking, next)
        });
        let (ranking, next) = made.await.map_err(|e| Error::internal(e.to_string()))?;
        self.ranking = ranking;
        self.told.current.send_replace(next?);
        Ok(())
    }

    fn fail(&self, uri: &str) {
        let uuid = self.me.uuid;
        let error = Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "node {uuid} runs a second time, at {uri}, and was started there later: each server needs a data directory of its own"
            ),
        );
        self.told.failed.send_if_modified(|failed| {
            let is_new = failed.is_none();
            failed.get_or_insert(error);
            is_new
        });
    }

    /// Begins gossip anew, as a later incarnation.
    async fn restart(&mut self, why: &str) {
        tracing::error!(why, "gossip begins anew");
        self.membership.abort();
        loop {
            tokio::time::sleep(PAUSE).await;
            self.me.incarnation += 1;
            match self.membership_anew().await {
                Ok(membership) => {
                    self.membership = membership;
                    return;
                }
                Err(error) => tracing::warn!(%error, "gossip does not begin"),
            }
        }
    }

    async fn membership_anew(&self) -> Result<Membership> {
        let address = SocketAddr::new(self.config.gossip.ip(), self.gossip.port());
        let socket = open(address, &self.config, &self.surroundings, &self.metrics).await?;
        let id = ChitchatId::new(self.me.uuid.to_string(), self.me.incarnation, self.gossip);
        Membership::start(&self.config.name, id, self.config.pace, &Opened::new(socket)).await
    }

    /// Says farewell to everybody, and is silent.
    async fn leave(self) {
        for &peer in &self.peers {
            self.membership.greet(peer);
        }
        tokio::time::sleep(self.config.pace.interval * ROUNDS_OF_FAREWELL).await;
        self.membership.stop().await;
        // With its lock: from here on the node may be started anew.
        drop(self.identity);
        self.told.has_left.send_replace(true);
    }
}
