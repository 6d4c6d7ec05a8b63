//! Where the data of a run lies, how far away it is made, and servers in this process in front of it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use flightcache_proto::SlotMap;
use flightcache_server::admin::Metrics;
use flightcache_server::object::{Freshness, Sources};
use flightcache_server::{Server, Settings};
use object_store::ObjectStore;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use url::Url;

use crate::slow_store::SlowStore;

/// The source under which servers and `DataFusion` know the data, wherever it lies.
pub const SOURCE: &str = "s3://bench/";

/// How far away the store is made.
#[derive(Args, Clone, Copy, Debug)]
pub struct Distance {
    /// Latency added to each request to the store.
    #[arg(long, default_value = "30ms", value_parser = humantime::parse_duration)]
    pub latency: Duration,
    /// Bandwidth of the store's link, a second, all readers together; 0B for no bound.
    #[arg(long, default_value = "0B")]
    pub bandwidth: ByteSize,
}

impl Distance {
    /// In words, for the output.
    pub fn describe(&self) -> String {
        let latency = humantime::format_duration(self.latency);
        match self.bandwidth.as_u64() {
            0 => format!("{latency} added to each request, no bound on bandwidth"),
            _ => format!("{latency} added to each request, {} a second", self.bandwidth.display().si()),
        }
    }

    /// `store`, that far away, with its requests counted.
    pub fn apply(&self, store: Arc<dyn ObjectStore>) -> Arc<SlowStore> {
        let bandwidth = Some(self.bandwidth.as_u64()).filter(|bandwidth| *bandwidth > 0);
        Arc::new(SlowStore::new(store, self.latency, bandwidth))
    }
}

/// Opens a directory, or a `file://` or `s3://bucket/prefix/` URL (settings from `AWS_*` variables).
pub fn open(place: &str) -> Result<Arc<dyn ObjectStore>, Box<dyn std::error::Error>> {
    let url = match Url::parse(place) {
        Ok(url) => url,
        Err(url::ParseError::RelativeUrlWithoutBase) => {
            let directory = std::path::absolute(place)?;
            Url::from_directory_path(&directory).map_err(|()| format!("{place}: not a directory"))?
        }
        Err(error) => return Err(format!("{place}: {error}").into()),
    };
    let (store, prefix) = object_store::parse_url_opts(&url, aws(std::env::vars_os()))?;
    Ok(if prefix == Path::default() { Arc::from(store) } else { Arc::new(PrefixStore::new(store, prefix)) })
}

/// How long servers on one host may take to agree.
const AGREEMENT: Duration = Duration::from_secs(30);

/// The variables that may say something of S3: others that happen to be named like a setting do not.
fn aws(variables: impl Iterator<Item = (OsString, OsString)>) -> impl Iterator<Item = (String, String)> {
    variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("AWS_"))
}

/// Starts a server in this process, on real sockets of the loopback, with `store` as [`SOURCE`].
pub async fn serve(store: Arc<dyn ObjectStore>, capacity: ByteSize) -> Result<Server, Box<dyn std::error::Error>> {
    serve_with(store, Settings { capacity, ..Settings::default() }).await
}

/// The same with other settings; their addresses are not used.
pub async fn serve_with(store: Arc<dyn ObjectStore>, settings: Settings) -> Result<Server, Box<dyn std::error::Error>> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = Settings { listen: any, admin: any, ..settings };
    let sources = Sources::default().with_store(SOURCE, store, Freshness::default())?;
    Ok(Server::start_with(&settings, sources, Arc::new(Metrics::new()?)).await?)
}

/// Starts `count` servers in this process; more than one are a cluster, which has agreed who owns what.
pub async fn serve_all(
    store: &Arc<dyn ObjectStore>,
    capacity: ByteSize,
    count: usize,
) -> Result<Vec<Server>, Box<dyn std::error::Error>> {
    if count == 1 {
        return Ok(vec![serve(Arc::clone(store), capacity).await?]);
    }
    let mut servers: Vec<Server> = Vec::with_capacity(count);
    for _ in 0..count {
        let settings = Settings {
            capacity,
            cluster: Some("bench".to_owned()),
            seeds: servers.first().and_then(|first| first.cluster().gossip_addr()).iter().map(ToString::to_string).collect(),
            gossip: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            ..Settings::default()
        };
        servers.push(serve_with(Arc::clone(store), settings).await?);
    }
    let all_own = |map: &SlotMap| map.slots_owned().iter().filter(|owned| owned.preferred > 0).count() == count;
    let first = servers[0].cluster().until(all_own);
    let map = tokio::time::timeout(AGREEMENT, first).await?;
    for server in &servers[1..] {
        tokio::time::timeout(AGREEMENT, server.cluster().until(|other| other.epoch() >= map.epoch() && all_own(other))).await?;
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn only_the_variables_of_aws_are_taken() {
        let odd = || OsString::from_vec(b"\xff".to_vec());
        let named = |name: &str| (OsString::from(name), OsString::from("value"));
        let variables =
            [named("AWS_REGION"), named("REGION"), named("BUCKET"), (odd(), "value".into()), ("AWS_ODD".into(), odd())];
        assert_eq!(aws(variables.into_iter()).collect::<Vec<_>>(), [("AWS_REGION".to_owned(), "value".to_owned())]);
    }
}
