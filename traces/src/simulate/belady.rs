//! The bound: a cache that knows the future.

use std::collections::BTreeMap;

use super::{ItemKey, Policy};

/// Evicts the items whose next use is farthest. Not admitted is what will not be used again, what is larger than the
/// capacity, and what would push out an item that is used sooner.
///
/// For items of equal size no policy has more item hits: MIN (Belady: *A study of replacement algorithms for a
/// virtual-storage computer*, 1966), here with bypass. For items of different sizes it is a heuristic, and another policy may
/// do better: the optimum is NP-hard (Chrobak, Woeginger, Makino, Xu: *Caching is hard, even in the fault model*, 2012). Nor
/// is it a bound for hits by requests.
///
/// Works with [`super::simulate`] from the first access on: it counts accesses to know which one `next_use` means.
#[derive(Debug)]
pub struct Belady {
    capacity_bytes: u64,
    used_bytes: u64,
    accesses: u64,
    /// Bytes of the resident items by their next use. No two items are used by the same access, so this names them.
    resident: BTreeMap<u64, u64>,
}

impl Belady {
    /// An empty cache.
    pub fn new(capacity_bytes: u64) -> Self {
        Self { capacity_bytes, used_bytes: 0, accesses: 0, resident: BTreeMap::new() }
    }

    /// Makes room for `bytes` that are used next at `next_use`, or changes nothing and returns false.
    fn make_room(&mut self, bytes: u64, next_use: u64) -> bool {
        let Some(allowed) = self.capacity_bytes.checked_sub(bytes) else { return false };
        let (mut used, mut victims_from) = (self.used_bytes, None);
        for (&victim_use, &victim_bytes) in self.resident.range(next_use..).rev() {
            if used <= allowed {
                break;
            }
            used -= victim_bytes;
            victims_from = Some(victim_use);
        }
        if used > allowed {
            return false;
        }
        if let Some(victims_from) = victims_from {
            self.resident.split_off(&victims_from);
        }
        self.used_bytes = used;
        true
    }
}

impl Policy for Belady {
    fn access(&mut self, _key: ItemKey, bytes: u64, _request: u64, next_use: Option<u64>) -> bool {
        let resident = self.resident.remove(&self.accesses);
        self.accesses += 1;
        self.used_bytes -= resident.unwrap_or(0);
        if let Some(next_use) = next_use.filter(|next_use| self.make_room(bytes, *next_use)) {
            self.resident.insert(next_use, bytes);
            self.used_bytes += bytes;
        }
        resident.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::simulate::{simulate, tests::trace};

    struct Checked(Belady);

    impl Policy for Checked {
        fn access(&mut self, key: ItemKey, bytes: u64, request: u64, next_use: Option<u64>) -> bool {
            let hit = self.0.access(key, bytes, request, next_use);
            let Belady { capacity_bytes, used_bytes, accesses, resident } = &self.0;
            assert_eq!(*used_bytes, resident.values().sum::<u64>());
            assert!(used_bytes <= capacity_bytes);
            assert!(resident.keys().all(|next_use| next_use >= accesses));
            hit
        }
    }

    proptest! {
        #[test]
        fn it_stays_within_its_capacity(
            accesses in proptest::collection::vec((0..12_u8, 0..9_u64), 0..100),
            capacity in 0..24_u64,
        ) {
            simulate(&trace(&accesses), &mut Checked(Belady::new(capacity)));
        }
    }
}
