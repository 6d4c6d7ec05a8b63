//! Which node owns which slot.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::slot::{SLOT_COUNT, Slot};

/// A server of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Stable name.
    pub id: String,
    /// Flight location, such as `grpc+tcp://10.0.0.7:50051`; `None` where the server does not know how it is reached
    /// (then: the connection the map came from).
    pub uri: Option<String>,
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
            next = u32::from(range.end) + 1;
        }
        if next != u32::from(SLOT_COUNT) {
            return Err(Error::invalid(format!("slot map: slots from {next} on are missing")));
        }
        Ok(Self { epoch, nodes, ranges })
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
        let at = self.ranges.partition_point(|range| range.end < slot.get());
        // `new` checked that the ranges cover every slot and that owners exist.
        &self.nodes[self.ranges[at].owners[0] as usize]
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
        Node { id: id.into(), uri: None }
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
        ] {
            assert!(SlotMap::new(1, nodes(), ranges).is_err());
        }
    }
}
