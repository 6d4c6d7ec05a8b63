//! What a full server accounts for, and what the system says that it holds once it rests.

use std::time::Duration;

use flightcache::Client;
use flightcache_server::settings::Residency;

use super::process::{Ask, Launcher};
use super::tables::{self, Table};
use crate::report::WireMemory;

/// How long the allocator is given to return what it keeps: mimalloc does so a second after it was freed, at some later call.
const REST: Duration = Duration::from_secs(3);
/// Requests after it, for those calls.
const CALLS: usize = 50;

/// Fills a server with all tables, in each form.
pub(super) async fn measure(launcher: &Launcher, tables: &[Table]) -> Result<Vec<WireMemory>, Box<dyn std::error::Error>> {
    let mut measured = Vec::new();
    for residency in [Residency::Arrow, Residency::Parquet] {
        let (server, ready) = launcher.flightcache(tables, residency, None)?;
        let [idle_rss_bytes, _] = resident(server.pid())?;
        let mut reader = launcher.reader("flightcache", None)?;
        for table in tables {
            // Twice: what is read again may rest otherwise.
            reader.ask(&Ask { address: ready.address.clone(), ticket: table.url()?, passes: 2, ..Ask::default() })?;
        }
        let client = Client::connect(&format!("grpc://{}", ready.address)).await?;
        tokio::time::sleep(REST).await;
        for _ in 0..CALLS {
            client.stats().await?;
        }
        let stats = client.stats().await?;
        let [rss_bytes, peak_rss_bytes] = resident(server.pid())?;
        measured.push(WireMemory {
            residency: tables::name_of(residency).to_owned(),
            accounted_bytes: stats.resident_bytes + stats.in_flight_bytes + stats.streaming_bytes,
            idle_rss_bytes,
            rss_bytes,
            peak_rss_bytes,
        });
    }
    Ok(measured)
}

/// Resident set of a process, now and at its largest.
fn resident(pid: u32) -> Result<[u64; 2], Box<dyn std::error::Error>> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let now = kib(&status, "VmRSS:").ok_or("no VmRSS")?;
    Ok([now, kib(&status, "VmHWM:").unwrap_or(now)].map(|kib| kib << 10))
}

fn kib(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_resident() {
        assert_eq!(kib("VmPeak:\t  9 kB\nVmRSS:\t   1234 kB\n", "VmRSS:"), Some(1_234));
        let [now, peak] = resident(std::process::id()).unwrap();
        assert!(now > 1 << 20 && peak >= now, "{now} {peak}");
    }
}
