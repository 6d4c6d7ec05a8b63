//! What nodes tell each other, and who is alive, by chitchat: gossip over UDP with scuttlebutt reconciliation and a failure detector
//! (Hayashibara et al., "The φ Accrual Failure Detector", 2004).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use chitchat::transport::Transport;
use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ProtocolVersion};
use flightcache_proto::{Error, NodeState, Result, SLOT_COUNT};
use tokio::sync::watch;
use uuid::Uuid;

use super::heat::{ExtraOwners, MAX_HOT_SLOTS};
use super::map::MAX_EPOCH;
use super::view::{MAX_MEMBERS, MAX_REPLICAS, MAX_WEIGHT, Member, Published};

/// Keys of what a node says of itself.
const URI: &str = "uri";
const WEIGHT: &str = "weight";
const REPLICAS: &str = "replicas";
const STATE: &str = "state";
/// Epoch and fingerprint in one, so that nobody sees one without the other.
const MAP: &str = "map";
/// Bytes a second it is asked for.
const RATE: &str = "rate";
/// Slots it wants more owners for, as `slot:owners,…`.
const HOT: &str = "hot";

const MAX_URI_BYTES: usize = 1 << 10;
/// Nodes, living and dead, that gossip may tell of, and the bytes that they may say together, before it is begun anew.
const MAX_KNOWN: usize = 4 * MAX_MEMBERS;
const MAX_SAID_BYTES: usize = 64 << 20;
/// How long the dead are looked for. A partition that lasts longer heals by the seeds.
const DEAD_FOR: Duration = Duration::from_hours(1);

/// A node is taken for dead when nothing new was heard of it for this many mean intervals.
const PHI: f64 = 8.0;
/// Rounds until everybody has heard what was last to be heard of a node.
const SPREAD_ROUNDS: u32 = 5;
/// Intervals that the mean is of; as many more are taken for granted, at the longest interval that counts.
const SAMPLES: usize = 5;

/// Gossip and failure detection.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A round of gossip.
    pub interval: Duration,
    /// A node that is gone is taken for gone within this time.
    pub detection_bound: Duration,
}

impl Pace {
    /// The shortest bound for an interval: below, nodes that are only slow would be taken for dead.
    pub fn shortest_bound(interval: Duration) -> Duration {
        interval.mul_f64(2.0 * PHI) + interval * SPREAD_ROUNDS
    }

    /// The mean of intervals, half of which are the longest there is, lies between its half and itself. So a silence of PHI means is one
    /// of PHI / 2 to PHI times the longest.
    fn detector(self) -> FailureDetectorConfig {
        let longest = self.detection_bound.saturating_sub(self.interval * SPREAD_ROUNDS).div_f64(PHI);
        FailureDetectorConfig::new(PHI, SAMPLES, longest, longest, DEAD_FOR)
    }
}

/// This node among the others.
pub(super) struct Membership {
    handle: ChitchatHandle,
    live: watch::Receiver<BTreeMap<ChitchatId, chitchat::NodeState>>,
}

impl Membership {
    pub(super) async fn start(cluster: &str, id: ChitchatId, pace: Pace, transport: &dyn Transport) -> Result<Self> {
        let config = ChitchatConfig {
            listen_addr: id.gossip_advertise_addr,
            chitchat_id: id,
            cluster_id: cluster.to_owned(),
            gossip_interval: pace.interval,
            // `seeds` looks for them, more often than it would be done here.
            seed_nodes: Vec::new(),
            failure_detector_config: pace.detector(),
            marked_for_deletion_grace_period: DEAD_FOR,
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V0,
        };
        let handle = chitchat::spawn_chitchat(config, Vec::new(), transport)
            .await
            .map_err(|e| Error::internal(format!("gossip does not start: {e:#}")))?;
        let live = handle.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await;
        Ok(Self { handle, live })
    }

    /// Says what this node is. What has been said already costs nothing.
    pub(super) async fn say(&self, me: &Member) {
        let map = me.published.map(|published| format!("{}:{:016x}", published.epoch, published.fingerprint));
        let said = [
            (URI, me.uri.clone()),
            (WEIGHT, me.weight.to_string()),
            (REPLICAS, me.replicas.to_string()),
            (STATE, me.state.as_str().to_owned()),
            (RATE, me.rate.to_string()),
            (HOT, hot_slots(&me.extra_owners)),
        ];
        let said: Vec<_> = said.into_iter().chain(map.map(|map| (MAP, map))).collect();
        self.handle
            .with_chitchat(|chitchat| {
                let state = chitchat.self_node_state();
                for (key, value) in &said {
                    state.set(key, value);
                }
            })
            .await;
    }

    /// Returns when others may have changed.
    pub(super) async fn changed(&mut self) {
        if self.live.changed().await.is_err() {
            // Gossip has ended, as `ended` says.
            std::future::pending::<()>().await;
        }
    }

    /// The others that are alive, with their gossip addresses.
    pub(super) fn others(&mut self) -> Vec<(Member, SocketAddr)> {
        let me = self.handle.chitchat_id();
        let live = self.live.borrow_and_update();
        let others = live.iter().filter(|(id, _)| *id != me);
        others.filter_map(|(id, state)| Some((member(id, state)?, id.gossip_advertise_addr))).collect()
    }

    /// Begins an exchange with an address.
    pub(super) fn greet(&self, address: SocketAddr) {
        // Fails when gossip has ended, as `ended` says.
        let _ = self.handle.gossip(address);
    }

    /// Whether somebody tells more than a cluster has to tell.
    pub(super) async fn is_flooded(&self) -> bool {
        let said_bytes = |state: &chitchat::NodeState| {
            state.key_values_including_deleted().map(|(key, said)| key.len() + said.value.len()).sum::<usize>()
        };
        let is_flooded = |chitchat: &mut chitchat::Chitchat| {
            let states = chitchat.node_states();
            states.len() > MAX_KNOWN || states.values().map(said_bytes).sum::<usize>() > MAX_SAID_BYTES
        };
        self.handle.with_chitchat(is_flooded).await
    }

    /// Returns when gossip has ended by itself.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let ended = self.handle.termination_watcher();
        async move {
            let _ = ended.await;
        }
    }

    pub(super) async fn stop(self) {
        if let Err(error) = self.handle.shutdown().await {
            tracing::debug!(%error, "gossip ended before");
        }
    }

    /// Ends without a word, and frees the socket.
    pub(super) fn abort(&self) {
        self.handle.abort();
    }
}

/// What a node says of itself, if it is what a node says.
fn member(id: &ChitchatId, state: &chitchat::NodeState) -> Option<Member> {
    let uri = state.get(URI).filter(|uri| is_location(uri))?;
    let published = |text: &str| {
        let (epoch, fingerprint) = text.split_once(':')?;
        let epoch = epoch.parse().ok().filter(|&epoch| epoch < MAX_EPOCH)?;
        Some(Published { epoch, fingerprint: u64::from_str_radix(fingerprint, 16).ok()? })
    };
    Some(Member {
        uuid: Uuid::try_parse(&id.node_id).ok()?,
        incarnation: id.generation_id,
        uri: uri.to_owned(),
        weight: state.get(WEIGHT)?.parse().ok().filter(|weight| (1..=MAX_WEIGHT).contains(weight))?,
        state: NodeState::from_name(state.get(STATE)?)?,
        replicas: state.get(REPLICAS)?.parse().ok().filter(|replicas| (1..=MAX_REPLICAS).contains(replicas))?,
        published: state.get(MAP).and_then(published),
        rate: state.get(RATE).and_then(|rate| rate.parse().ok()).unwrap_or(0),
        extra_owners: state.get(HOT).map(extra_owners).unwrap_or_default(),
    })
}

fn hot_slots(extra_owners: &ExtraOwners) -> String {
    let pairs: Vec<String> = extra_owners.iter().map(|(slot, extra)| format!("{slot}:{extra}")).collect();
    pairs.join(",")
}

/// What of it is slots and numbers of owners.
fn extra_owners(hot: &str) -> ExtraOwners {
    let extra = |pair: &str| {
        let (slot, extra) = pair.split_once(':')?;
        let slot = slot.parse().ok().filter(|slot| *slot < SLOT_COUNT)?;
        Some((slot, extra.parse().ok().filter(|extra| (1..=MAX_REPLICAS).contains(extra))?))
    };
    hot.split(',').take(MAX_HOT_SLOTS).filter_map(extra).collect()
}

fn is_location(uri: &str) -> bool {
    uri.len() <= MAX_URI_BYTES && uri.contains("://") && uri.chars().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pairs: &[(&str, &str)]) -> Option<Member> {
        let mut state = chitchat::NodeState::for_test();
        for (key, value) in pairs {
            state.set(key, value);
        }
        let id = ChitchatId::new("00000000-0000-0000-0000-000000000001", 7, SocketAddr::from(([127, 0, 0, 1], 1)));
        member(&id, &state)
    }

    #[test]
    fn members_say_all_of_it_or_are_none() {
        let good = [(URI, "grpc://a:1"), (WEIGHT, "4"), (REPLICAS, "2"), (STATE, "active"), (MAP, "9:00000000000000ff")];
        let member = said(&good).unwrap();
        assert_eq!((member.uuid.as_u128(), member.incarnation, member.weight, member.replicas), (1, 7, 4, 2));
        assert_eq!(member.published, Some(Published { epoch: 9, fingerprint: 255 }));
        for missing in 0..4 {
            let rest: Vec<_> = good.iter().enumerate().filter(|&(at, _)| at != missing).map(|(_, &pair)| pair).collect();
            assert_eq!(said(&rest), None);
        }
        let long = format!("grpc://{}", "a".repeat(MAX_URI_BYTES));
        let strange = [
            (URI, "a:1"),
            (URI, "grpc://a b"),
            (URI, "grpc://a\n"),
            (URI, &long),
            (WEIGHT, "0"),
            (WEIGHT, "-1"),
            (WEIGHT, "1099511627777"),
            (REPLICAS, "0"),
            (REPLICAS, "17"),
            (STATE, "happy"),
        ];
        for pair in strange {
            assert_eq!(said(&[good.as_slice(), &[pair]].concat()), None, "{pair:?}");
        }
        for hot in ["", "x", "16384:1", "1:0", "1:17", "-1:1", "1:", ":"] {
            assert_eq!(extra_owners(hot), ExtraOwners::new(), "{hot}");
        }
        assert_eq!(
            said(&[good.as_slice(), &[(HOT, "3:1,?,16383:16"), (RATE, "8")]].concat()).unwrap().extra_owners,
            [(3, 1), (16_383, 16)].into()
        );
        let many: ExtraOwners = (0..1_000).map(|slot| (slot, 1)).collect();
        assert_eq!(extra_owners(&hot_slots(&many)).len(), MAX_HOT_SLOTS);
        for pair in [(MAP, ""), (MAP, "x:1"), (MAP, "9007199254740992:1"), (MAP, "9:zz")] {
            assert_eq!(said(&[good.as_slice(), &[pair]].concat()).unwrap().published, None, "{pair:?}");
        }
    }

    #[test]
    fn silence_is_judged_within_the_bound() {
        let interval = Duration::from_millis(200);
        assert_eq!(Pace::shortest_bound(interval), Duration::from_millis(4_200));
        let detector = Pace { interval, detection_bound: Duration::from_secs(5) }.detector();
        assert_eq!((detector.max_interval, detector.initial_interval), (Duration::from_millis(500), Duration::from_millis(500)));
    }
}
