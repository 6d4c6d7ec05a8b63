//! What a process used.

use std::time::Duration;

/// Linux counts in these for programs, whatever its own clock.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time of this process so far, user and system, of all its threads; zero where the system does not tell.
pub(crate) fn cpu_time() -> Duration {
    told("/proc/self/stat")
}

/// The same of another process.
pub(crate) fn cpu_time_of(pid: u32) -> Duration {
    told(&format!("/proc/{pid}/stat"))
}

fn told(path: &str) -> Duration {
    let ticks = std::fs::read_to_string(path).ok().and_then(|stat| ticks(&stat)).unwrap_or(0);
    Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND)
}

/// `utime` and `stime` of `proc_pid_stat(5)`: fields 14 and 15; the second field, the name, may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 70 30 5 6 20 0 1 0 100 1000 200";
        assert_eq!(ticks(stat), Some(100));
        assert_eq!(ticks("nonsense"), None);
    }

    #[test]
    fn work_takes_time() {
        let before = cpu_time();
        let started = std::time::Instant::now();
        let mut sum = 0_u64;
        while cpu_time() < before + Duration::from_millis(20) {
            sum = (0..100_000_u64).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
            assert!(started.elapsed() < Duration::from_mins(1), "no time was counted ({sum})");
        }
        assert!(cpu_time_of(std::process::id()) >= before + Duration::from_millis(20));
    }
}
