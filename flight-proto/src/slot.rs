//! Hash slots: where a part of an object lives.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Number of hash slots.
pub const SLOT_COUNT: u16 = 16_384;

/// A hash slot, in `0..SLOT_COUNT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Slot(u16);

/// The part of an object a slot is computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The file metadata.
    Footer,
    /// All column chunks of one row group.
    RowGroup(u32),
}

impl Slot {
    /// The slot of a part: XXH3-64 of the URL, seeded with the part, modulo [`SLOT_COUNT`].
    ///
    /// The version takes no part in it: an overwritten object stays with its owner.
    pub fn of(url: &str, part: Part) -> Self {
        let seed = match part {
            Part::Footer => u64::MAX,
            Part::RowGroup(index) => u64::from(index),
        };
        Self((xxh3_64_with_seed(url.as_bytes(), seed) % u64::from(SLOT_COUNT)) as u16)
    }

    /// The slot's number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// What a node, by the bytes of its UUID, draws for the slot: those that draw most own it.
    ///
    /// Weighted rendezvous hashing: −w / ln u, where u in (0, 1) is the hash of node and slot and w the node's weight (Schindelhauer and
    /// Schomaker, "Weighted Distributed Hash Tables", 2005, the logarithmic method). Half the precision of its computation: equal
    /// scores are told apart by UUIDs, the smaller first.
    pub fn score(self, node: [u8; 16], weight: u64) -> f32 {
        let mut drawn = [0; 18];
        drawn[..16].copy_from_slice(&node);
        drawn[16..].copy_from_slice(&self.0.to_le_bytes());
        // 53 bits and a half: never 0, never 1.
        let u = ((xxh3_64(&drawn) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        // The same to the last bit on every machine, unlike the system's.
        (-(weight as f64) / libm::log(u)) as f32
    }
}

impl TryFrom<u16> for Slot {
    type Error = String;

    fn try_from(value: u16) -> Result<Self, Self::Error> {
        if value < SLOT_COUNT { Ok(Self(value)) } else { Err(format!("slot {value} is not below {SLOT_COUNT}")) }
    }
}

impl From<Slot> for u16 {
    fn from(slot: Slot) -> Self {
        slot.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_the_same_everywhere() {
        // Computed apart, with Python's xxhash and math.log: nodes and clients of any version have to agree on these.
        let node = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128.to_be_bytes();
        let scores = [0, 1, 16_383].map(|slot| Slot(slot).score(node, 1_024).to_bits());
        assert_eq!(scores, [3467.8674_f32, 14344.788, 1808.1976].map(f32::to_bits));
    }

    #[test]
    fn slots_are_stable_and_spread() {
        // Fixed, by another implementation of XXH3: clients and servers of other versions compute the same.
        assert_eq!(Slot::of("s3://lake/t.parquet", Part::Footer).get(), 5052);
        assert_eq!(Slot::of("s3://lake/t.parquet", Part::RowGroup(0)).get(), 4880);
        let mut quarters = [0_u32; 4];
        for i in 0..4_000 {
            quarters[usize::from(Slot::of("s3://lake/t.parquet", Part::RowGroup(i)).get() / (SLOT_COUNT / 4))] += 1;
        }
        assert!(quarters.iter().all(|&n| (900..1_100).contains(&n)), "{quarters:?}");
        assert!(Slot::try_from(SLOT_COUNT).is_err());
    }
}
