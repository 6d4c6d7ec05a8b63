//! How many nodes the cluster should have, as one of them sees it.
//!
//! Each node takes itself for a typical one: slots are spread by hash, so what is too much for one is, about, too much for all. It goes
//! by three things, over the last [`WINDOW`]:
//!
//! - memory: while chunks are evicted and more than a tenth of the bytes asked for are not there, so much is missing; otherwise what
//!   was used of the capacity, which has room for a tenth more;
//! - processor time and bytes sent, of which 70 % is as much as leaves room for bursts.
//!
//! The greatest of the three, times the nodes there are, is what is recommended: at most twice as many at once. The gauge holds the
//! highest recommendation of the window, so that it rises at once and falls slowly.

use std::collections::VecDeque;
use std::time::Duration;

/// How often a node looks at itself.
pub const INTERVAL: Duration = Duration::from_secs(15);
/// What it goes by, and how long a recommendation is held.
pub const WINDOW: Duration = Duration::from_mins(10);
/// Of the capacity, what a working set may fill.
const FULL: f64 = 0.9;
/// Of the processors and the network, what may be in use.
const BUSY: f64 = 0.7;
/// Of the bytes asked for, what may be missing although chunks are evicted.
const MISSING: f64 = 0.1;
/// Looks that make a mean of processors and network: a minute.
const LOOKS: usize = 4;

/// What a node counts, since its start but for what is said otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Bytes of chunks found.
    pub hit_bytes: u64,
    /// Bytes of chunks that were not there, nor at another node.
    pub miss_bytes: u64,
    /// Chunks evicted for space.
    pub evictions: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Processor time.
    pub cpu: Duration,
    /// Bytes that are resident now.
    pub resident_bytes: u64,
    /// Bytes that may be, now.
    pub capacity_bytes: u64,
}

/// What a node has.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// Processors.
    pub cores: f64,
    /// Bytes a second its network takes; `None` where that is not known.
    pub network: Option<f64>,
}

/// What a node counted lately, and recommended.
#[derive(Debug)]
pub struct Scaling {
    means: Means,
    /// Since the number of nodes changed.
    counted: VecDeque<Counts>,
    nodes: u32,
    recommended: VecDeque<u32>,
}

impl Scaling {
    /// Of a node that has counted nothing yet.
    pub fn new(means: Means) -> Self {
        Self { means, counted: VecDeque::new(), nodes: 0, recommended: VecDeque::new() }
    }

    /// Takes the counts after one more [`INTERVAL`]; the nodes recommended where there are `nodes` now.
    pub fn recommend(&mut self, counts: Counts, nodes: u32) -> u32 {
        if std::mem::replace(&mut self.nodes, nodes) != nodes {
            // What was too much for fewer says nothing of these; nor does what was recommended then.
            self.counted.clear();
            self.recommended.clear();
        }
        let looks = (WINDOW.as_secs() / INTERVAL.as_secs()) as usize;
        self.counted.push_back(counts);
        if self.counted.len() > looks + 1 {
            self.counted.pop_front();
        }
        let wanted = (f64::from(nodes) * self.memory().max(self.load())).ceil();
        let wanted = (wanted as u32).clamp(1, nodes.saturating_mul(2).max(1));
        self.recommended.push_back(wanted);
        if self.recommended.len() > looks {
            self.recommended.pop_front();
        }
        self.recommended.iter().copied().max().unwrap_or(1)
    }

    /// The working set, of what the memory is for.
    fn memory(&self) -> f64 {
        let (Some(first), Some(last)) = (self.counted.front(), self.counted.back()) else { return 0.0 };
        let hit = last.hit_bytes.saturating_sub(first.hit_bytes);
        let missed = last.miss_bytes.saturating_sub(first.miss_bytes);
        let used = (hit + missed) as f64;
        let missing = if used > 0.0 { missed as f64 / used } else { 0.0 };
        if last.evictions > first.evictions && missing > MISSING {
            return 1.0 + missing;
        }
        // What was used more than once counts as often: no more than what is there.
        (used.min(last.resident_bytes as f64) / (last.capacity_bytes.max(1) as f64 * FULL)).min(1.0)
    }

    /// Processors or network, of what they are for.
    fn load(&self) -> f64 {
        let Some(last) = self.counted.back() else { return 0.0 };
        let looks = LOOKS.min(self.counted.len() - 1);
        if looks == 0 {
            return 0.0;
        }
        let first = &self.counted[self.counted.len() - 1 - looks];
        let seconds = INTERVAL.as_secs_f64() * looks as f64;
        let cpu = last.cpu.saturating_sub(first.cpu).as_secs_f64() / seconds / self.means.cores.max(1.0);
        let sent = last.sent_bytes.saturating_sub(first.sent_bytes) as f64 / seconds;
        let network = self.means.network.map_or(0.0, |network| sent / network.max(1.0));
        cpu.max(network) / BUSY
    }
}

/// Processor time of this process, from `proc_pid_stat(5)`; zero where the system does not tell.
pub fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field, the name, may hold anything.
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks() + ticks()) * 10)
}

/// Bytes a second of this host's fastest network interface, as Linux tells it.
pub fn network() -> Option<f64> {
    let interfaces = std::fs::read_dir("/sys/class/net").ok()?;
    let speed = |path: std::path::PathBuf| std::fs::read_to_string(path.join("speed")).ok()?.trim().parse::<f64>().ok();
    let fastest = interfaces.flatten().filter_map(|interface| speed(interface.path())).filter(|mbits| *mbits > 0.0);
    fastest.reduce(f64::max).map(|mbits| mbits * 1e6 / 8.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn scaling() -> Scaling {
        Scaling::new(Means { cores: 4.0, network: Some(1e9) })
    }

    /// What three nodes recommend after some looks, at which so much more was counted.
    fn after(looks: u32, more: Counts) -> u32 {
        let mut scaling = scaling();
        let counts = |look: u32| Counts {
            hit_bytes: more.hit_bytes * u64::from(look),
            miss_bytes: more.miss_bytes * u64::from(look),
            evictions: more.evictions * u64::from(look),
            sent_bytes: more.sent_bytes * u64::from(look),
            cpu: more.cpu * look,
            ..more
        };
        (0..looks).map(|look| scaling.recommend(counts(look), 3)).last().unwrap()
    }

    #[test]
    fn what_fits_and_is_not_busy_stays() {
        let full = Counts { hit_bytes: GIB, resident_bytes: 8 * GIB, capacity_bytes: 8 * GIB, ..Counts::default() };
        assert_eq!(after(40, full), 3, "full, and all that is asked for is there");
        let turning_over = Counts { miss_bytes: GIB / 20, evictions: 10, ..full };
        assert_eq!(after(40, turning_over), 3, "a few misses are what an LRU is for");
    }

    #[test]
    fn what_does_not_fit_wants_more() {
        let thrashing = Counts {
            hit_bytes: GIB,
            miss_bytes: GIB,
            evictions: 50,
            resident_bytes: 8 * GIB,
            capacity_bytes: 8 * GIB,
            ..Counts::default()
        };
        assert_eq!(after(8, thrashing), 5, "half of it is missing");
        let cold = Counts { evictions: 0, ..thrashing };
        assert_eq!(after(8, cold), 3, "that it is missing at first says nothing");
        let nothing_stays = Counts { hit_bytes: 0, ..thrashing };
        assert_eq!(after(8, nothing_stays), 6, "no more than twice at once");
    }

    #[test]
    fn what_is_busy_wants_more() {
        let idle = Counts { resident_bytes: GIB, capacity_bytes: 8 * GIB, ..Counts::default() };
        assert_eq!(after(8, Counts { cpu: Duration::from_secs(54), ..idle }), 4, "90 % of four processors");
        assert_eq!(after(8, Counts { sent_bytes: 15 * 1_000_000_000, ..idle }), 5, "all of the network");
        assert_eq!(after(8, Counts { cpu: Duration::from_secs(30), ..idle }), 3, "half");
    }

    #[test]
    fn once_there_are_as_many_as_were_recommended_it_stays() {
        let mut scaling = scaling();
        let thrashing = |look: u64| Counts {
            hit_bytes: GIB * look,
            miss_bytes: GIB * look,
            evictions: 50 * look,
            resident_bytes: 8 * GIB,
            capacity_bytes: 8 * GIB,
            ..Counts::default()
        };
        let wanted = (0..8).map(|look| scaling.recommend(thrashing(look), 3)).last().unwrap();
        // Now all that is asked for is there.
        let calm = |look: u64| Counts { hit_bytes: thrashing(7).hit_bytes + GIB * look, ..thrashing(7) };
        for look in 0..10 {
            assert!(scaling.recommend(calm(look), wanted) <= wanted);
        }
    }

    #[test]
    fn it_falls_slowly() {
        let idle = Counts { hit_bytes: 0, resident_bytes: 8 * GIB, capacity_bytes: 8 * GIB, ..Counts::default() };
        assert_eq!(after(1, idle), 1, "nothing was ever asked");
        let mut scaling = scaling();
        let busy = |look: u32| Counts { cpu: Duration::from_secs(54) * look, ..idle };
        for look in 0..5 {
            scaling.recommend(busy(look), 3);
        }
        for _ in 0..39 {
            assert_eq!(scaling.recommend(busy(4), 3), 4);
        }
        // What was a minute's mean of both goes last.
        let after = (0..LOOKS).map(|_| scaling.recommend(busy(4), 3)).last();
        assert_eq!(after, Some(1), "once the window has passed");
    }
}
