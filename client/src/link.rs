//! What is known of the way to a server, and what to ask for over it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How the rows of a scan travel. They are the same in every form.
///
/// `Auto` goes by what large answers showed of the way to a server: see [`SLOW_BYTES_PER_SECOND`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Transfer {
    /// As Parquet over ways that were seen to be slow, as Arrow otherwise: at first, within a host, over fast networks.
    #[default]
    Auto,
    /// As Arrow, ready to be used.
    Arrow,
    /// As Parquet wherever the server can: several times fewer bytes, which are decoded here.
    Parquet,
}

/// Links slower than this are worth decoding for.
///
/// A core decodes some 3.7 GB of Arrow a second, which took 4 to 8 times fewer bytes on the wire: as many as come at 0.46 to
/// 0.93 GB a second, 600 MiB about. Arrow needs 2.5 to 5 GB a second of the wire for the same. Above, the wire is hardly what a
/// reader waits for, and decoding takes cores that it has other uses for.
pub const SLOW_BYTES_PER_SECOND: f64 = (600 << 20) as f64;

/// Bytes of one measurement.
const SAMPLE_BYTES: u64 = 4 << 20;
/// How much of the way to a higher rate one measurement goes: what was delivered once can be delivered.
const RISE: f64 = 0.5;
/// And to a lower one: a server that reads from its store may be what was slow.
const FALL: f64 = 0.125;

/// The way to one server.
#[derive(Debug)]
pub(crate) struct Link {
    /// The server is on this host.
    is_local: bool,
    rate: Mutex<Rate>,
}

/// The rate of a link, from when its bytes arrived.
#[derive(Debug, Default)]
struct Rate {
    bytes_per_second: Option<f64>,
    bytes: u64,
    time: Duration,
    counted_until: Option<Instant>,
}

/// What one answer learns of its link.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    /// When something came that had been waited for, if nothing has come unawaited since: then all that comes next was on the
    /// way no sooner.
    last: Option<Instant>,
}

impl Link {
    pub(crate) fn new(is_local: bool) -> Self {
        Self { is_local, rate: Mutex::default() }
    }

    /// Whether to ask for Parquet.
    pub(crate) fn takes_parquet(&self, transfer: Transfer) -> bool {
        match transfer {
            Transfer::Arrow => false,
            Transfer::Parquet => true,
            Transfer::Auto => {
                let rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner).bytes_per_second;
                !self.is_local && rate.is_some_and(|rate| rate < SLOW_BYTES_PER_SECOND)
            }
        }
    }
}

impl Arrivals {
    /// Bytes that came now, and whether they were waited for.
    ///
    /// Between two pieces that were both waited for, the reader was never behind, so the time between them is the link's,
    /// whatever the reader did meanwhile. A piece that lay there already came at some other time, which is not known.
    pub(crate) fn came(&mut self, link: &Link, now: Instant, bytes: usize, was_awaited: bool) {
        if let (Some(last), true) = (self.last, was_awaited) {
            link.rate.lock().unwrap_or_else(PoisonError::into_inner).add(last, now, bytes as u64);
        }
        self.last = was_awaited.then_some(now);
    }
}

impl Rate {
    /// Counts bytes that came between two times. Time that several answers shared counts once.
    fn add(&mut self, from: Instant, to: Instant, bytes: u64) {
        let from = self.counted_until.map_or(from, |until| until.max(from));
        self.time += to.saturating_duration_since(from);
        self.counted_until = Some(to.max(from));
        self.bytes += bytes;
        if self.bytes < SAMPLE_BYTES {
            return;
        }
        let seen = self.bytes as f64 / self.time.as_secs_f64().max(1e-6);
        self.bytes_per_second = Some(match self.bytes_per_second {
            None => seen,
            Some(known) => known + (seen - known) * if seen > known { RISE } else { FALL },
        });
        (self.bytes, self.time) = (0, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn rate(link: &Link) -> Option<f64> {
        link.rate.lock().unwrap().bytes_per_second.map(|rate| rate / MIB as f64)
    }

    /// A link over which `count` pieces of 1 MiB came, `millis` apart, each of them waited for.
    fn steady(count: u64, millis: u64) -> (Link, Instant) {
        let (link, start, mut arrivals) = (Link::new(false), Instant::now(), Arrivals::default());
        for i in 0..count {
            arrivals.came(&link, start + Duration::from_millis(i * millis), MIB, true);
        }
        (link, start + Duration::from_millis(count * millis))
    }

    #[track_caller]
    fn assert_about(rate: Option<f64>, expected: f64) {
        assert!(rate.is_some_and(|rate| (rate / expected - 1.0).abs() < 0.01), "{rate:?} is not {expected}");
    }

    #[test]
    fn a_rate_is_known_after_some_mebibytes_and_decides() {
        // The first piece tells no time.
        assert_eq!(rate(&steady(4, 10).0), None);
        assert!(!steady(4, 10).0.takes_parquet(Transfer::Auto), "Arrow until something is known");
        assert_about(rate(&steady(5, 10).0), 100.0);
        assert!(steady(5, 10).0.takes_parquet(Transfer::Auto));
        assert!(steady(5, 2).0.takes_parquet(Transfer::Auto), "500 MiB a second");
        assert!(!steady(5, 1).0.takes_parquet(Transfer::Auto), "1,000 MiB a second");
    }

    #[test]
    fn what_is_told_counts_more_than_what_is_seen() {
        let (slow, fast) = (steady(5, 100).0, steady(5, 1).0);
        assert!(!slow.takes_parquet(Transfer::Arrow) && fast.takes_parquet(Transfer::Parquet));
        let local = Link { is_local: true, ..slow };
        assert!(!local.takes_parquet(Transfer::Auto) && local.takes_parquet(Transfer::Parquet));
    }

    #[test]
    fn a_slow_reader_makes_no_link_slow_or_fast() {
        // It takes 8 pieces that lie there at once, waits for two more, and is busy for a second.
        let (link, mut now, mut arrivals) = (Link::new(false), Instant::now(), Arrivals::default());
        for _ in 0..10 {
            for _ in 0..8 {
                now += Duration::from_micros(1);
                arrivals.came(&link, now, MIB, false);
            }
            for _ in 0..2 {
                now += Duration::from_millis(10);
                arrivals.came(&link, now, MIB, true);
            }
            now += Duration::from_secs(1);
        }
        assert_about(rate(&link), 100.0);
    }

    #[test]
    fn a_reader_that_is_busy_between_pieces_it_waits_for_sees_the_link_alone() {
        // Of 10 ms between pieces it waits for 1 only: the link took all of them.
        assert_about(rate(&steady(100, 10).0), 100.0);
    }

    #[test]
    fn answers_that_share_a_link_are_seen_together() {
        // Four, each of which gets a piece every 40 ms.
        let (link, start) = (Link::new(false), Instant::now());
        let mut answers: Vec<Arrivals> = (0..4).map(|_| Arrivals::default()).collect();
        for i in 0..400_u64 {
            answers[i as usize % 4].came(&link, start + Duration::from_millis(i * 10), MIB, true);
        }
        assert_about(rate(&link), 100.0);
    }

    #[test]
    fn it_rises_fast_and_falls_slowly() {
        let (link, start) = steady(5, 10);
        let mut arrivals = Arrivals::default();
        for i in 0..5 {
            arrivals.came(&link, start + Duration::from_micros(i * 1_000), MIB, true);
        }
        assert_about(rate(&link), 550.0);
        let start = start + Duration::from_secs(1);
        let mut arrivals = Arrivals::default();
        for i in 0..5 {
            arrivals.came(&link, start + Duration::from_millis(i * 10), MIB, true);
        }
        assert_about(rate(&link), 550.0 - 450.0 / 8.0);
    }
}
