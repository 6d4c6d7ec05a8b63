//! Column chunks of other servers of the cluster, asked for before the store.
//!
//! A slot's chunks are read from the store by its preferred owner; any other server asks that one, which loads what it lacks. The
//! preferred owner itself asks whom the slot came from, as long as that is not long ago, for what is resident there. Who is asked asks
//! nobody to load: there are no circles. While two servers' maps differ, one may wait for a load that waits for it; what gets
//! nothing for half a minute reads the store.
//!
//! Chunks come as they rest: as Parquet bytes from a server that keeps such, otherwise as arrays, which are of use only where nothing
//! else is kept. Nothing depends on an answer: whatever goes wrong, the store is asked instead.
//!
//! ```text
//!  plan.rs, nothing known of an object --footers.rs, DoAction--> footers.rs of another server --> its footers
//!  load.rs --a row group's columns--> pull.rs --rate.rs, DoGet--> answer.rs of another server --> its cache, or its load
//!  drain, SIGTERM --> hand_over.rs --DoGet, warm--> answer.rs of the next owner --> its load --> pull.rs, from here
//! ```

mod answer;
mod footers;
mod hand_over;
mod pull;
mod rate;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flightcache::peer::Peer;
use flightcache_proto::action::{self, Evicted, MAX_RENEWED, Renewed, UrlRequest};
use flightcache_proto::{Error, ErrorKind, Node, ObjectShare, Part, PeerAsk, Result, Slot, SlotMap, Ticket};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub(crate) use self::answer::ForPeer;
pub(crate) use self::footers::FooterAnswer;
pub(super) use self::pull::Pulled;
use self::rate::Rate;
use super::Engine;

/// Row groups asked of one server at a time.
const PULLS: usize = 16;
/// How long nothing may come of an answer that has begun, or of one for which nothing has to be loaded.
const STALL: Duration = Duration::from_secs(10);
/// Servers an action is sent to at a time.
const TOLD_AT_A_TIME: usize = 16;

/// The ways to other servers, and how much may come over all of them.
#[derive(Debug)]
pub(super) struct Peers {
    known: Mutex<HashMap<String, Way>>,
    rate: Rate,
}

/// To one server, and a permit for each row group that may be asked for.
#[derive(Clone, Debug)]
struct Way {
    peer: Peer,
    pulls: Arc<Semaphore>,
}

impl Peers {
    /// Nobody is known yet. At most `bytes_per_second` may come, if that is said.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { known: Mutex::default(), rate: Rate::new(bytes_per_second) }
    }

    /// The way to a node, kept for the next time. Those of nodes that are gone are forgotten.
    fn way(&self, node: &Node, map: &SlotMap) -> Result<Way> {
        let unreachable = || Error::new(ErrorKind::Unavailable, format!("node {} has no location", node.id));
        let uri = node.uri.as_deref().ok_or_else(unreachable)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = known.get(uri) {
            return Ok(way.clone());
        }
        known.retain(|uri, _| map.nodes().iter().any(|node| node.uri.as_ref() == Some(uri)));
        let way = Way { peer: Peer::at(uri)?, pulls: Arc::new(Semaphore::new(PULLS)) };
        known.insert(uri.to_owned(), way.clone());
        Ok(way)
    }
}

impl Engine {
    /// Refuses what was sent here by an older map, if by the newer one here it is others'.
    pub(crate) fn check_route(&self, ticket: &Ticket, epoch: u64) -> Result<()> {
        let Ticket::Share(share) = ticket else { return Ok(()) };
        let (map, me) = (self.slot_map(), self.cluster.node_id());
        let Some(slot) = share.objects.first().and_then(slot_of).filter(|_| map.epoch() > epoch) else { return Ok(()) };
        if map.owners(slot).any(|owner| owner.id == me) {
            return Ok(());
        }
        Err(moved(slot, &map))
    }

    /// Whom to ask for chunks of a slot, one after the other, and what for.
    fn whom_to_ask(&self, slot: Slot, map: &SlotMap) -> (Vec<Node>, PeerAsk) {
        let preferred = map.owner(slot);
        if map.nodes().len() < 2 {
            (Vec::new(), PeerAsk::Resident)
        } else if preferred.id == self.cluster.node_id() {
            (self.cluster.previous_owners(slot), PeerAsk::Resident)
        } else {
            (vec![preferred.clone()], PeerAsk::Load)
        }
    }

    /// Forgets a URL here and, unless that was done already, on all other servers; how much that was. An error names the servers that
    /// could not be reached; the others have forgotten it.
    pub(crate) async fn evict_everywhere(&self, request: &UrlRequest) -> Result<Evicted> {
        let mut evicted = self.evict(&request.url)?;
        if request.passed_on {
            return Ok(evicted);
        }
        let passed_on = UrlRequest { passed_on: true, ..request.clone() };
        let body = serde_json::to_vec(&passed_on).map_err(|e| Error::internal(e.to_string()))?;
        let mut failed = Vec::new();
        for (node, answer) in self.tell_peers(action::EVICT, &body).await {
            let there = answer.and_then(|bodies| {
                let body = bodies.first().ok_or_else(|| Error::internal("it answered nothing"))?;
                serde_json::from_slice::<Evicted>(body).map_err(|e| Error::internal(e.to_string()))
            });
            match there {
                Ok(there) => {
                    evicted.chunks += there.chunks;
                    evicted.bytes += there.bytes;
                    evicted.footers += there.footers;
                }
                Err(error) => failed.push(format!("{}: {error}", node.id)),
            }
        }
        // Meanwhile chunks may have come from one that had not forgotten them yet.
        let late = self.evict(&request.url)?;
        evicted.chunks += late.chunks;
        evicted.bytes += late.bytes;
        evicted.footers += late.footers;
        if failed.is_empty() {
            return Ok(evicted);
        }
        let message = format!("{}: forgotten, but not on {}", request.url, failed.join("; "));
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// Forgets footers of objects that another server saw overwritten.
    pub(crate) fn forget_renewed(&self, renewed: &Renewed) -> Result<()> {
        if renewed.objects.len() > MAX_RENEWED {
            return Err(Error::invalid(format!("{} objects; at most {MAX_RENEWED} at a time", renewed.objects.len())));
        }
        if self.footers.forget_renewed(&renewed.objects) > 0 {
            self.listings.clear();
        }
        Ok(())
    }

    /// Tells all other servers of objects that turn out overwritten here, for as long as it is polled. A server validates for itself
    /// whatever it is told, or not told: this has it see sooner what it would see in the end.
    pub(crate) async fn pass_on_renewals(self: Arc<Self>) {
        let renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut renewed) = renewed else { return };
        let mut objects = Vec::new();
        while renewed.recv_many(&mut objects, MAX_RENEWED).await > 0 {
            let told = Renewed { objects: std::mem::take(&mut objects) };
            if self.slot_map().nodes().len() < 2 {
                continue;
            }
            let Ok(body) = serde_json::to_vec(&told) else { continue };
            for (node, answer) in self.tell_peers(action::RENEWED, &body).await {
                if let Err(error) = answer {
                    tracing::debug!(node = node.id, cause = %error, "not told of overwritten objects");
                }
            }
        }
    }

    /// What another server answers, which is not waited for once the cluster has lost it.
    async fn unless_lost<T>(&self, node: &Node, answer: impl Future<Output = Result<T>>) -> Result<T> {
        let is_lost = self.cluster.until(|map| !map.nodes().iter().any(|other| other.id == node.id));
        tokio::select! {
            answer = answer => answer,
            _ = is_lost => Err(Error::new(ErrorKind::Unavailable, format!("node {} is gone", node.id))),
        }
    }

    /// Sends an action to all other servers; what each answered.
    async fn tell_peers(&self, action: &str, body: &[u8]) -> Vec<(Node, Result<Vec<Bytes>>)> {
        let (map, me) = (self.slot_map(), self.cluster.node_id());
        let others: Vec<Node> = map.nodes().iter().filter(|node| node.id != me).cloned().collect();
        let told = others.into_iter().map(|node| {
            let map = Arc::clone(&map);
            async move {
                let answer = self.tell_peer(&node, &map, action, body.to_vec(), STALL).await;
                (node, answer)
            }
        });
        futures::stream::iter(told).buffer_unordered(TOLD_AT_A_TIME).collect().await
    }

    /// Sends an action to another server, once, which has so long to answer.
    pub(crate) async fn tell_peer(
        &self,
        node: &Node,
        map: &SlotMap,
        action: &str,
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<Bytes>> {
        let stalled = |_| Error::new(ErrorKind::Unavailable, format!("node {} did not answer within {within:?}", node.id));
        let way = self.peers.way(node, map)?;
        let answer = timeout(within, way.peer.act(action, body)).map(|answer| answer.map_err(stalled).flatten());
        self.unless_lost(node, answer).await
    }
}

/// Of the first row group of a share, where it names one.
fn slot_of(object: &ObjectShare) -> Option<Slot> {
    let first = object.row_groups.as_ref().and_then(|groups| groups.first());
    first.map(|&group| Slot::of(&object.url, Part::RowGroup(group)))
}

fn moved(slot: Slot, map: &SlotMap) -> Error {
    let message = format!("slot {} belongs to node {} as of epoch {}", slot.get(), map.owner(slot).id, map.epoch());
    Error::new(ErrorKind::Moved, message)
}
