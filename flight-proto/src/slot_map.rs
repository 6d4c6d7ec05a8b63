//! Which node owns which slot.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::slot::{SLOT_COUNT, Slot};

/// Where a server stands between its start and its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It has begun, and owns nothing yet.
    Joining,
    /// It owns slots.
    #[default]
    Active,
    /// It owns nothing any more, and is still there.
    Draining,
    /// It is gone. No slot map names it.
    Left,
}

impl NodeState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Joining, Self::Active, Self::Draining, Self::Left];

    /// The name, as JSON has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Left => "left",
        }
    }

    /// The state of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// A server of the cluster. Servers and clients of other versions may know more or less of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Stable name.
    pub id: String,
    /// Flight location, such as `grpc+tcp://10.0.0.7:50051`; `None` where the server does not know how it is reached
    /// (then: the connection the map came from).
    pub uri: Option<String>,
    /// It owns as many slots as this is of the sum over active nodes.
    #[serde(default = "one")]
    pub weight: u64,
    /// Whether it owns slots, or will, or did.
    #[serde(default)]
    pub state: NodeState,
    /// Time of its start in ms since 1970: tells two runs under one name apart. 0 where nothing does.
    #[serde(default)]
    pub incarnation: u64,
}

impl Node {
    /// What it draws for a slot; nothing without a UUID for a name.
    fn score(&self, slot: Slot) -> f32 {
        let digits: String = self.id.split('-').collect();
        let uuid = Some(digits).filter(|digits| digits.len() == 32).and_then(|digits| u128::from_str_radix(&digits, 16).ok());
        uuid.map_or(0.0, |uuid| slot.score(uuid.to_be_bytes(), self.weight))
    }
}

const fn one() -> u64 {
    1
}

impl Default for Node {
    fn default() -> Self {
        Self { id: String::new(), uri: None, weight: one(), state: NodeState::default(), incarnation: 0 }
    }
}

/// Adjacent slots with the same owners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRange {
    /// First slot.
    pub start: u16,
    /// Last slot, inclusive.
    pub end: u16,
    /// Indexes into [`SlotMap::nodes`], preferred owner first.
    pub owners: Vec<u32>,
}

/// How many slots a node owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotsOwned {
    /// As their preferred owner.
    pub preferred: u32,
    /// As any of their owners.
    pub total: u32,
}

/// Slot → owners, valid as of an epoch that only grows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct SlotMap {
    epoch: u64,
    nodes: Vec<Node>,
    ranges: Vec<SlotRange>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Unchecked {
    epoch: u64,
    nodes: Vec<Node>,
    slots: Vec<SlotRange>,
}

impl SlotMap {
    /// The map of a cluster of one.
    pub fn single(epoch: u64, node: Node) -> Self {
        let ranges = vec![SlotRange { start: 0, end: SLOT_COUNT - 1, owners: vec![0] }];
        Self { epoch, nodes: vec![node], ranges }
    }

    /// The map with these ranges; they must cover all slots in order, each with at least one owner that exists.
    pub fn new(epoch: u64, nodes: Vec<Node>, ranges: Vec<SlotRange>) -> Result<Self> {
        let mut next = 0_u32;
        for range in &ranges {
            if u32::from(range.start) != next || range.end < range.start || range.end >= SLOT_COUNT {
                return Err(Error::invalid(format!("slot map: range {}..={} breaks the order", range.start, range.end)));
            }
            if range.owners.is_empty() || range.owners.iter().any(|&owner| owner as usize >= nodes.len()) {
                return Err(Error::invalid(format!("slot map: slots {}..={} have no known owner", range.start, range.end)));
            }
            if range.owners.iter().enumerate().any(|(at, owner)| range.owners[..at].contains(owner)) {
                return Err(Error::invalid(format!("slot map: slots {}..={} name an owner twice", range.start, range.end)));
            }
            next = u32::from(range.end) + 1;
        }
        if next != u32::from(SLOT_COUNT) {
            return Err(Error::invalid(format!("slot map: slots from {next} on are missing")));
        }
        Ok(Self { epoch, nodes, ranges })
    }

    /// The map whose slots have the owners that `owners` tells, preferred first, as indexes into `nodes`.
    pub fn from_owners(epoch: u64, nodes: Vec<Node>, mut owners: impl FnMut(u16) -> Vec<u32>) -> Result<Self> {
        let mut ranges: Vec<SlotRange> = Vec::new();
        for slot in 0..SLOT_COUNT {
            let owners = owners(slot);
            match ranges.last_mut() {
                Some(last) if last.owners == owners => last.end = slot,
                _ => ranges.push(SlotRange { start: slot, end: slot, owners }),
            }
        }
        Self::new(epoch, nodes, ranges)
    }

    /// Grows with every change of ownership.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All ranges, in slot order.
    pub fn ranges(&self) -> &[SlotRange] {
        &self.ranges
    }

    /// The preferred owner of a slot.
    pub fn owner(&self, slot: Slot) -> &Node {
        &self.nodes[self.owner_indexes(slot)[0] as usize]
    }

    /// All owners of a slot, preferred first: at least one.
    pub fn owners(&self, slot: Slot) -> impl ExactSizeIterator<Item = &Node> {
        self.owner_indexes(slot).iter().map(|&owner| &self.nodes[owner as usize])
    }

    /// Whom a slot goes to if its owners are gone, one after the other: as servers rank those that may own.
    pub fn heirs(&self, slot: Slot) -> Vec<&Node> {
        let owners = self.owner_indexes(slot);
        let others = (0..).zip(&self.nodes).filter(|(index, node)| !owners.contains(index) && node.state == NodeState::Active);
        let mut heirs: Vec<(f32, &Node)> = others.map(|(_, node)| (node.score(slot), node)).collect();
        heirs.sort_by(|(score, node), (other_score, other)| other_score.total_cmp(score).then_with(|| node.id.cmp(&other.id)));
        heirs.into_iter().map(|(_, node)| node).collect()
    }

    /// Its owners, as indexes into [`SlotMap::nodes`].
    pub fn owner_indexes(&self, slot: Slot) -> &[u32] {
        let at = self.ranges.partition_point(|range| range.end < slot.get());
        // `new` checked that the ranges cover every slot and that owners exist.
        &self.ranges[at].owners
    }

    /// Of each of [`SlotMap::nodes`]: how many slots prefer it, and how many it owns in all.
    pub fn slots_owned(&self) -> Vec<SlotsOwned> {
        let mut owned = vec![SlotsOwned::default(); self.nodes.len()];
        for range in &self.ranges {
            let slots = u32::from(range.end - range.start) + 1;
            owned[range.owners[0] as usize].preferred += slots;
            for &owner in &range.owners {
                owned[owner as usize].total += slots;
            }
        }
        owned
    }

    /// The node that is the preferred owner of every slot, if there is one.
    pub fn sole_owner(&self) -> Option<&Node> {
        let mut owners = self.ranges.iter().filter_map(|range| range.owners.first());
        let first = owners.next()?;
        if owners.all(|owner| owner == first) { self.nodes.get(*first as usize) } else { None }
    }
}

impl TryFrom<Unchecked> for SlotMap {
    type Error = Error;

    fn try_from(map: Unchecked) -> Result<Self> {
        Self::new(map.epoch, map.nodes, map.slots)
    }
}

impl From<SlotMap> for Unchecked {
    fn from(map: SlotMap) -> Self {
        Self { epoch: map.epoch, nodes: map.nodes, slots: map.ranges }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> Node {
        Node { id: id.into(), ..Node::default() }
    }

    fn range(start: u16, end: u16, owner: u32) -> SlotRange {
        SlotRange { start, end, owners: vec![owner] }
    }

    #[test]
    fn every_slot_has_its_owner() {
        let map = SlotMap::new(3, vec![node("a"), node("b")], vec![range(0, 99, 1), range(100, SLOT_COUNT - 1, 0)]).unwrap();
        assert_eq!(map.owner(Slot::try_from(99).unwrap()).id, "b");
        assert_eq!(map.owner(Slot::try_from(100).unwrap()).id, "a");
        assert_eq!(map.owner(Slot::try_from(SLOT_COUNT - 1).unwrap()).id, "a");
        assert_eq!(map.sole_owner(), None);
        let whole = SlotMap::new(3, vec![node("a"), node("b")], vec![range(0, 99, 1), range(100, SLOT_COUNT - 1, 1)]).unwrap();
        assert_eq!(whole.sole_owner().map(|owner| &*owner.id), Some("b"));
        let json = serde_json::to_string(&map).unwrap();
        assert_eq!(serde_json::from_str::<SlotMap>(&json).unwrap(), map);
    }

    #[test]
    fn holes_overlaps_and_unknown_owners_are_refused() {
        let nodes = || vec![node("a")];
        for ranges in [
            vec![],
            vec![range(0, 5, 0)],
            vec![range(1, SLOT_COUNT - 1, 0)],
            vec![range(0, 5, 0), range(5, SLOT_COUNT - 1, 0)],
            vec![range(0, SLOT_COUNT - 1, 1)],
            vec![range(0, SLOT_COUNT, 0)],
            vec![SlotRange { start: 0, end: SLOT_COUNT - 1, owners: vec![] }],
            vec![SlotRange { start: 0, end: SLOT_COUNT - 1, owners: vec![0, 0] }],
        ] {
            assert!(SlotMap::new(1, nodes(), ranges).is_err());
        }
    }

    #[test]
    fn who_may_not_own_inherits_nothing() {
        let state = |id, state| Node { state, ..node(id) };
        let nodes = vec![
            node("c"),
            node("b"),
            state("joins", NodeState::Joining),
            state("drains", NodeState::Draining),
            node("a"),
            node("\u{e9}00000000000000000000000000000000"),
        ];
        let map = SlotMap::from_owners(1, nodes, |_| vec![0]).unwrap();
        let heirs: Vec<_> = map.heirs(Slot::try_from(7).unwrap()).into_iter().map(|node| &*node.id).collect();
        assert_eq!(heirs[..2], ["a", "b"]);
        assert_eq!(heirs.len(), 3);
        assert_eq!(SlotMap::single(1, node("a")).heirs(Slot::try_from(7).unwrap()), [] as [&Node; 0]);
    }

    #[test]
    fn owners_are_gathered_into_ranges() {
        let two = |slot: u16| if slot < 100 { vec![1, 0] } else { vec![0, 1] };
        let map = SlotMap::from_owners(3, vec![node("a"), node("b"), node("c")], two).unwrap();
        assert_eq!(map.ranges().len(), 2);
        let owners = |slot| map.owners(Slot::try_from(slot).unwrap()).map(|node| &*node.id).collect::<Vec<_>>();
        assert_eq!((owners(99), owners(100)), (vec!["b", "a"], vec!["a", "b"]));
        let all = u32::from(SLOT_COUNT);
        let expected = [(all - 100, all), (100, all), (0, 0)].map(|(preferred, total)| SlotsOwned { preferred, total });
        assert_eq!(map.slots_owned(), expected);
        assert!(SlotMap::from_owners(3, vec![node("a")], |_| vec![]).is_err());
    }

    #[test]
    fn maps_of_older_servers_are_read() {
        let json = r#"{"epoch":1,"nodes":[{"id":"a","uri":null}],"slots":[{"start":0,"end":16383,"owners":[0]}]}"#;
        let map: SlotMap = serde_json::from_str(json).unwrap();
        assert_eq!(map, SlotMap::single(1, Node { id: "a".into(), weight: 1, state: NodeState::Active, ..Node::default() }));
        for state in NodeState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
            assert_eq!(NodeState::from_name(state.as_str()), Some(state));
        }
    }
}
