//! Who is there: the members seen alive, as a plain value that is the same on every node that sees the same.

use std::collections::BTreeMap;

use flightcache_proto::{Node, NodeState};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::heat::{ExtraOwners, Load};

/// Members of a cluster at most: beyond, those of the highest UUIDs are left out, by every node alike.
pub const MAX_MEMBERS: usize = 512;
/// Owners of a slot at most.
pub const MAX_REPLICAS: u32 = 16;
/// Weights are not larger: a PiB, in MiB, a thousand times over.
pub const MAX_WEIGHT: u64 = 1 << 40;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its stable name.
    pub uuid: Uuid,
    /// Time of its start in ms since 1970.
    pub incarnation: u64,
    /// Flight location.
    pub uri: String,
    /// Share of the slots it wants, against the others'.
    pub weight: u64,
    /// Whether it owns slots.
    pub state: NodeState,
    /// Owners it wants a slot to have.
    pub replicas: u32,
    /// The epoch of its slot map, and the fingerprint of the view that is of.
    pub published: Option<Published>,
    /// Bytes a second it is asked for.
    pub rate: u64,
    /// Owners it wants for some of its slots beside those that any slot has.
    pub(super) extra_owners: ExtraOwners,
}

/// An epoch, and the view it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Epoch of a slot map.
    pub epoch: u64,
    /// [`View::fingerprint`] of the view the map was made of.
    pub fingerprint: u64,
}

/// The members that are there, in the order of their UUIDs, one for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    members: Vec<Member>,
}

impl View {
    /// Of two incarnations of a UUID the later counts; who has left is not there.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Self {
        let mut latest: BTreeMap<Uuid, Member> = BTreeMap::new();
        for member in members {
            if latest.get(&member.uuid).is_none_or(|known| known.incarnation < member.incarnation) {
                latest.insert(member.uuid, member);
            }
        }
        let present = latest.into_values().filter(|member| member.state != NodeState::Left);
        Self { members: present.take(MAX_MEMBERS).collect() }
    }

    /// In the order of their UUIDs.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// One of them.
    pub fn member(&self, uuid: Uuid) -> Option<&Member> {
        let at = self.members.binary_search_by_key(&uuid, |member| member.uuid).ok()?;
        self.members.get(at)
    }

    /// Those that own slots: the active ones. Where there is none, those that drain, or else all: somebody has to answer.
    pub fn owners(&self) -> impl Iterator<Item = &Member> {
        let has = |state| self.members.iter().any(|member| member.state == state);
        let owning = [NodeState::Active, NodeState::Draining].into_iter().find(|&state| has(state));
        self.members.iter().filter(move |member| owning.is_none_or(|owning| member.state == owning))
    }

    /// Owners of a slot: as many as the member that wants most, of those that own.
    pub fn replicas(&self) -> usize {
        let wanted = self.owners().map(|member| member.replicas).max().unwrap_or(1);
        (wanted as usize).clamp(1, self.owners().count().max(1))
    }

    /// Owners that some slots have beside those that any slot has: as many as any owner wants.
    pub(super) fn extra_owners(&self) -> ExtraOwners {
        let mut extra = ExtraOwners::new();
        for (&slot, &wanted) in self.owners().flat_map(|member| &member.extra_owners) {
            let owners = extra.entry(slot).or_default();
            *owners = wanted.max(*owners);
        }
        extra
    }

    /// What the owners but one are asked for.
    pub(super) fn loads_beside(&self, uuid: Uuid) -> Vec<Load> {
        let others = self.owners().filter(|member| member.uuid != uuid);
        others.map(|member| Load { rate: member.rate, weight: member.weight }).collect()
    }

    /// Equal for views that lead to the same slot map: owners with their weights and locations, replicas, and extra owners.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(&(self.replicas() as u64).to_le_bytes());
        for member in self.owners() {
            hash.update(member.uuid.as_bytes());
            for number in [member.incarnation, member.weight, member.uri.len() as u64] {
                hash.update(&number.to_le_bytes());
            }
            hash.update(member.uri.as_bytes());
        }
        for (slot, extra) in self.extra_owners() {
            hash.update(&slot.to_le_bytes());
            hash.update(&extra.to_le_bytes());
        }
        hash.digest()
    }

    /// The members as slot maps name them.
    pub fn nodes(&self) -> Vec<Node> {
        self.members.iter().map(Member::node).collect()
    }
}

impl Member {
    /// The member as slot maps name it.
    pub fn node(&self) -> Node {
        Node {
            id: self.uuid.to_string(),
            uri: Some(self.uri.clone()),
            weight: self.weight,
            state: self.state,
            incarnation: self.incarnation,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An active member of weight 1.
    pub(in crate::cluster) fn member(uuid: u128) -> Member {
        Member {
            uuid: Uuid::from_u128(uuid),
            incarnation: 1,
            uri: format!("grpc+tcp://node-{uuid}:50051"),
            weight: 1,
            state: NodeState::Active,
            replicas: 1,
            published: None,
            rate: 0,
            extra_owners: ExtraOwners::new(),
        }
    }

    #[test]
    fn the_order_of_sight_does_not_matter() {
        let mut members = [member(3), member(1), member(2)];
        let view = View::new(members.clone());
        members.reverse();
        assert_eq!(view, View::new(members));
        let ids: Vec<_> = view.members().iter().map(|member| member.uuid.as_u128()).collect();
        assert_eq!(ids, [1, 2, 3]);
        assert_eq!(view.member(Uuid::from_u128(2)).unwrap().uuid.as_u128(), 2);
        assert_eq!(view.member(Uuid::from_u128(4)), None);
    }

    #[test]
    fn the_later_incarnation_counts_even_if_it_has_left() {
        let at = |incarnation, state, uri: &str| Member { incarnation, state, uri: uri.into(), ..member(1) };
        let (old, new) = (at(5, NodeState::Active, "a"), at(6, NodeState::Joining, "b"));
        for both in [[old.clone(), new.clone()], [new, old.clone()]] {
            assert_eq!(View::new(both).members()[0].uri, "b");
        }
        assert!(View::new([old, at(7, NodeState::Left, "c")]).members().is_empty());
    }

    #[test]
    fn owners_are_active_if_any_is() {
        use NodeState::{Active, Draining, Joining};
        let states = |states: &[NodeState]| {
            let with = |(uuid, &state)| Member { state, ..member(uuid as u128) };
            let view = View::new(states.iter().enumerate().map(with));
            view.owners().map(|member| member.uuid.as_u128()).collect::<Vec<_>>()
        };
        assert_eq!(states(&[Joining, Active, Draining, Active]), [1, 3]);
        assert_eq!(states(&[Joining, Draining]), [1]);
        assert_eq!(states(&[Joining, Joining]), [0, 1]);
        assert_eq!(states(&[]), [0; 0]);
    }

    #[test]
    fn replicas_are_bounded_by_owners() {
        let wanting = |uuid, replicas| Member { replicas, ..member(uuid) };
        assert_eq!(View::new([wanting(1, 3), wanting(2, 1)]).replicas(), 2);
        assert_eq!(View::new([wanting(1, 2), wanting(2, 1), wanting(3, 1)]).replicas(), 2);
        let drains = Member { state: NodeState::Draining, ..wanting(1, 9) };
        assert_eq!(View::new([drains, wanting(2, 1), wanting(3, 1)]).replicas(), 1);
        assert_eq!(View::default().replicas(), 1);
    }

    #[test]
    fn fingerprints_tell_what_the_map_depends_on() {
        let base = View::new([member(1), member(2)]).fingerprint();
        let with = |change: fn(&mut Member)| {
            let mut second = member(2);
            change(&mut second);
            View::new([member(1), second]).fingerprint()
        };
        assert_ne!(with(|m| m.weight = 2), base);
        assert_ne!(with(|m| m.replicas = 2), base);
        assert_ne!(with(|m| m.uri = "grpc://elsewhere:1".into()), base);
        assert_ne!(with(|m| m.state = NodeState::Draining), base);
        assert_ne!(with(|m| m.incarnation = 2), base);
        assert_ne!(with(|m| m.extra_owners = [(7, 1)].into()), base);
        assert_eq!(with(|m| m.published = Some(Published { epoch: 4, fingerprint: 4 })), base);
        assert_eq!(with(|m| m.rate = 9), base);
        // Who owns nothing changes nothing.
        let joining = Member { state: NodeState::Joining, ..member(3) };
        assert_eq!(View::new([member(1), member(2), joining]).fingerprint(), base);
    }

    #[test]
    fn members_are_bounded_alike_everywhere() {
        let crowd = |from: u128| (from..2_000).chain(0..from).map(member);
        assert_eq!(View::new(crowd(7)), View::new(crowd(900)));
        assert_eq!(View::new(crowd(0)).members().len(), MAX_MEMBERS);
    }

    #[test]
    fn extra_owners_are_what_owners_want_most() {
        let wanting = |uuid, extra: &[(u16, u32)]| Member { extra_owners: extra.iter().copied().collect(), ..member(uuid) };
        let drains = Member { state: NodeState::Draining, ..wanting(3, &[(9, 9)]) };
        let view = View::new([wanting(1, &[(1, 1), (2, 3)]), wanting(2, &[(2, 2)]), drains]);
        assert_eq!(view.extra_owners(), [(1, 1), (2, 3)].into());
    }
}
