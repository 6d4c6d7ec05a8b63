//! Settings: data from defaults, one TOML file, the environment and flags, in rising order of precedence.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;
use figment::Figment;
use figment::providers::{Format as _, Serialized, Toml};
use flightcache_proto::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::cluster::Pace;
use crate::cluster::view::{MAX_REPLICAS, MAX_WEIGHT};
use crate::object::Freshness;

/// Where gossip is, unless it is said.
const GOSSIP_PORT: u16 = 50_053;
const MAX_CLUSTER_NAME_BYTES: usize = 64;
const MAX_SEEDS: usize = 64;
/// With less, no row group would ever come.
const MIN_PEER_BANDWIDTH: ByteSize = ByteSize::mib(1);

/// Everything that can be set. Field names are the keys of the TOML file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address of the Flight service.
    pub listen: SocketAddr,
    /// Unix socket that serves the same to clients of the same host, as `grpc+unix://PATH`. Who may use it is up to its directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_unix: Option<PathBuf>,
    /// Address of the admin port.
    pub admin: SocketAddr,
    /// Flight location told to clients, such as `grpc+tcp://cache-0.example:50051`; without it the listen address, unless that is a wildcard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// Capacity of the chunk cache.
    pub capacity: ByteSize,
    /// Bytes beyond the capacity for loads under way and evicted chunks that streams still hold; without it a quarter of the capacity, at least 256 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve: Option<ByteSize>,
    /// Capacity for footers, Bloom filters, and small objects that came whole with their footers.
    pub footer_capacity: ByteSize,
    /// Partitions of the chunk cache, each with a lock of its own.
    pub partitions: usize,
    /// Share of the capacity that is kept from scans for chunks used more than once; 0 is plain LRU.
    pub protected_share: f64,
    /// How chunks rest in the cache.
    pub residency: Residency,
    /// Staleness bound of sources that state none.
    pub freshness: Freshness,
    /// Requests to object stores under way at a time.
    pub store_requests: usize,
    /// Time one request to an object store may take, its body included, before it counts as failed.
    #[serde(with = "humantime_text")]
    pub store_timeout: Duration,
    /// Times a failed request to an object store is sent again, with jittered exponential backoff.
    pub store_retries: usize,
    /// Compressed bytes of row groups one scan reads ahead.
    pub read_ahead: ByteSize,
    /// How long a load waits for memory before it fails.
    #[serde(with = "humantime_text")]
    pub memory_wait: Duration,
    /// SQL statements that run at a time; the next waits for one to end, as long as a load for memory.
    pub sql_statements: usize,
    /// Memory for all running SQL statements together, beyond the cache: sorts, joins, aggregates. What needs more spills.
    pub sql_memory: ByteSize,
    /// Bytes that all running SQL statements together may spill to disk; 0 for none.
    pub sql_spill: ByteSize,
    /// Directory they spill to; without it the system's for temporary files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sql_spill_directory: Option<PathBuf>,
    /// How long running requests may go on after SIGTERM.
    #[serde(with = "humantime_text")]
    pub drain: Duration,
    /// File that the server writes its access trace to. It must not hold anything yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<PathBuf>,
    /// Log format.
    pub log_format: LogFormat,
    /// Log filter, as `tracing`'s `EnvFilter` takes it.
    pub log: String,
    /// Name of the cluster this node takes part in; without it the node is alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Gossip addresses of other nodes, as `host:port`. A name may mean several addresses, and is resolved again every 5 s.
    #[serde(rename = "seed", skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<String>,
    /// Address of gossip, over UDP; without it port 50053 beside the Flight service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gossip: Option<SocketAddr>,
    /// Directory that keeps the node's name; without it the node has another one after each start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_directory: Option<PathBuf>,
    /// Share of the slots this node wants, against the others' weights; without it the capacity in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u64>,
    /// Owners of each slot. Where nodes differ, the highest counts.
    pub replicas: u32,
    /// Bytes a second that this node takes from the others, at least 1 MiB; without it as many as the network carries. What would have to
    /// wait for long is read from the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_bandwidth: Option<ByteSize>,
    /// Time between rounds of gossip.
    #[serde(with = "humantime_text")]
    pub gossip_interval: Duration,
    /// A node that crashed is taken for gone within this time, and not before a third of it; at least 21 times `gossip_interval`.
    #[serde(with = "humantime_text")]
    pub detection_bound: Duration,
    /// What may be read.
    #[serde(rename = "source", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceSettings>,
    /// Tables of SQL: names, and the URLs they stand for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, String>,
}

/// One source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSettings {
    /// `s3://bucket/prefix/` or `file:///directory/`.
    pub url: String,
    /// Staleness bound, if not the general one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freshness: Option<Freshness>,
    /// S3 options by `object_store`'s names (`endpoint_url`, `region`, `access_key_id`, …), over the `AWS_*` variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// How chunks rest in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Residency {
    /// Decoded, once.
    #[default]
    Arrow,
    /// As the Parquet bytes they were read as, several times smaller, decoded for each request.
    Parquet,
    /// As Parquet bytes, and decoded as well where there is room: first those that filters touch or that are read most.
    Auto,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50_051)),
            listen_unix: None,
            admin: SocketAddr::from(([127, 0, 0, 1], 50_052)),
            advertise: None,
            capacity: ByteSize::gib(1),
            reserve: None,
            footer_capacity: ByteSize::mib(128),
            partitions: 16,
            protected_share: 0.8,
            residency: Residency::default(),
            freshness: Freshness::default(),
            store_requests: 64,
            store_timeout: Duration::from_secs(30),
            store_retries: 10,
            read_ahead: ByteSize::mib(64),
            memory_wait: Duration::from_secs(30),
            sql_statements: 64,
            sql_memory: ByteSize::mib(512),
            sql_spill: ByteSize::gib(8),
            sql_spill_directory: None,
            drain: Duration::from_secs(30),
            record: None,
            log_format: LogFormat::Text,
            log: "info".to_owned(),
            cluster: None,
            seeds: Vec::new(),
            gossip: None,
            data_directory: None,
            weight: None,
            replicas: 1,
            peer_bandwidth: None,
            gossip_interval: Duration::from_millis(200),
            detection_bound: Duration::from_secs(5),
            sources: Vec::new(),
            tables: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// [`Settings::reserve`], or its default.
    pub fn reserve_bytes(&self) -> u64 {
        self.reserve.map_or((self.capacity.as_u64() / 4).max(256 << 20), |reserve| reserve.as_u64())
    }

    /// [`Settings::weight`], or its default.
    pub fn weight_or_capacity(&self) -> u64 {
        self.weight.unwrap_or(self.capacity.as_u64() >> 20).clamp(1, MAX_WEIGHT)
    }

    /// [`Settings::gossip`], or its default.
    pub fn gossip_addr(&self) -> SocketAddr {
        self.gossip.unwrap_or(SocketAddr::new(self.listen.ip(), GOSSIP_PORT))
    }

    /// The settings as TOML, secrets of source options masked.
    pub fn to_toml(&self) -> Result<String> {
        let mut shown = self.clone();
        for source in &mut shown.sources {
            for (key, value) in &mut source.options {
                if key.contains("secret") || key.contains("token") {
                    "********".clone_into(value);
                }
            }
        }
        toml::to_string_pretty(&shown).map_err(|e| Error::internal(format!("settings: {e}")))
    }

    fn check(&self) -> Result<()> {
        if self.sources.is_empty() {
            return Err(Error::invalid("no source is declared: pass --source s3://bucket/ or set [[source]] in the config file"));
        }
        if !(0.0..=1.0).contains(&self.protected_share) {
            return Err(Error::invalid("protected_share must lie between 0 and 1"));
        }
        if let Some((name, url)) =
            self.tables.iter().find(|(name, url)| name.is_empty() || name.contains("://") || url.is_empty())
        {
            return Err(Error::invalid(format!("tables: {name:?} = {url:?} is not a name and a URL")));
        }
        if self.partitions == 0 || self.store_requests == 0 || self.sql_statements == 0 {
            return Err(Error::invalid("partitions, store_requests and sql_statements must be at least 1"));
        }
        self.check_cluster()
    }

    fn check_cluster(&self) -> Result<()> {
        let Some(name) = &self.cluster else {
            if self.seeds.is_empty() {
                return Ok(());
            }
            return Err(Error::invalid("seeds lead to a cluster: --cluster has to name it"));
        };
        if name.is_empty() || name.len() > MAX_CLUSTER_NAME_BYTES {
            return Err(Error::invalid(format!("cluster: a name has 1 to {MAX_CLUSTER_NAME_BYTES} bytes")));
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            return Err(Error::invalid(
                "the server listens on every address: in a cluster --advertise has to name one that others reach",
            ));
        }
        if let Some(advertise) = self.advertise.as_deref().filter(|uri| host_of(uri).is_none()) {
            return Err(Error::invalid(format!("advertise: {advertise:?} is no location such as grpc+tcp://host:50051")));
        }
        let is_seed = |seed: &str| {
            seed.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse().is_ok_and(|port: u16| port > 0))
        };
        if let Some(seed) = self.seeds.iter().find(|seed| !is_seed(seed)) {
            return Err(Error::invalid(format!("seed: {seed:?} is no host:port")));
        }
        if self.seeds.len() > MAX_SEEDS {
            return Err(Error::invalid(format!("seed: {} are more than {MAX_SEEDS}", self.seeds.len())));
        }
        if self.weight.is_some_and(|weight| !(1..=MAX_WEIGHT).contains(&weight)) {
            return Err(Error::invalid(format!("weight must lie between 1 and {MAX_WEIGHT}")));
        }
        if !(1..=MAX_REPLICAS).contains(&self.replicas) {
            return Err(Error::invalid(format!("replicas must lie between 1 and {MAX_REPLICAS}")));
        }
        if self.peer_bandwidth.is_some_and(|bandwidth| bandwidth < MIN_PEER_BANDWIDTH) {
            return Err(Error::invalid(format!("peer_bandwidth must be at least {MIN_PEER_BANDWIDTH} a second")));
        }
        if !(Duration::from_millis(10)..=Duration::from_mins(1)).contains(&self.gossip_interval) {
            return Err(Error::invalid("gossip_interval must lie between 10ms and 1m"));
        }
        let shortest = Pace::shortest_bound(self.gossip_interval);
        if !(shortest..=Duration::from_hours(1)).contains(&self.detection_bound) {
            let shortest = humantime::format_duration(shortest);
            return Err(Error::invalid(format!("detection_bound must lie between {shortest} (21 gossip intervals) and 1h")));
        }
        Ok(())
    }
}

/// Host of a Flight location.
pub(crate) fn host_of(uri: &str) -> Option<String> {
    let uri: http::Uri = uri.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    (uri.scheme().is_some() && uri.port_u16().is_some() && !host.is_empty()).then(|| host.to_owned())
}

/// Command line of `flightcache-server`.
#[derive(Debug, Parser, Serialize)]
#[command(
    name = "flightcache-server",
    version,
    about = "Shared columnar cache in front of Parquet on object stores, served over Arrow Flight"
)]
pub struct Flags {
    /// TOML file with any of the settings.
    #[arg(long, env = "FLIGHTCACHE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print the resulting settings as TOML and exit.
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
    /// Address of the Flight service.
    #[arg(long, env = "FLIGHTCACHE_LISTEN", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    /// Unix socket for clients of the same host, beside the address.
    #[arg(long, env = "FLIGHTCACHE_LISTEN_UNIX", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen_unix: Option<PathBuf>,
    /// Address of the admin port (/metrics, /healthz, /readyz).
    #[arg(long, env = "FLIGHTCACHE_ADMIN", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<SocketAddr>,
    /// Flight location told to clients.
    #[arg(long, env = "FLIGHTCACHE_ADVERTISE", value_name = "URI")]
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise: Option<String>,
    /// What may be read: <s3://bucket/prefix>/ or <file:///directory>/. Repeatable.
    #[arg(long = "source", env = "FLIGHTCACHE_SOURCE", value_name = "URL", num_args = 1.., value_delimiter = ' ')]
    #[serde(skip)]
    sources: Vec<String>,
    /// Capacity of the chunk cache, such as 4GiB.
    #[arg(long, env = "FLIGHTCACHE_CAPACITY", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity: Option<ByteSize>,
    /// Bytes beyond the capacity for loads and streams.
    #[arg(long, env = "FLIGHTCACHE_RESERVE", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    reserve: Option<ByteSize>,
    /// Capacity for footers, Bloom filters, and small objects that came whole with their footers.
    #[arg(long, env = "FLIGHTCACHE_FOOTER_CAPACITY", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    footer_capacity: Option<ByteSize>,
    /// Staleness bound: immutable, always, or a time such as ttl=60s.
    #[arg(long, env = "FLIGHTCACHE_FRESHNESS", value_name = "BOUND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    freshness: Option<Freshness>,
    /// Partitions of the chunk cache.
    #[arg(long, env = "FLIGHTCACHE_PARTITIONS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<usize>,
    /// Share of the capacity kept for chunks used more than once (0: plain LRU).
    #[arg(long, env = "FLIGHTCACHE_PROTECTED_SHARE", value_name = "0..1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    protected_share: Option<f64>,
    /// How chunks rest: arrow, parquet (smaller, decoded for each request) or auto (both, as there is room).
    #[arg(long, env = "FLIGHTCACHE_RESIDENCY", value_name = "FORM")]
    #[serde(skip_serializing_if = "Option::is_none")]
    residency: Option<Residency>,
    /// Requests to object stores under way at a time.
    #[arg(long, env = "FLIGHTCACHE_STORE_REQUESTS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    store_requests: Option<usize>,
    /// Time one request to an object store may take, such as 30s.
    #[arg(long, env = "FLIGHTCACHE_STORE_TIMEOUT", value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    store_timeout: Option<String>,
    /// Times a failed request to an object store is sent again.
    #[arg(long, env = "FLIGHTCACHE_STORE_RETRIES", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    store_retries: Option<usize>,
    /// Compressed bytes of row groups one scan reads ahead.
    #[arg(long, env = "FLIGHTCACHE_READ_AHEAD", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    read_ahead: Option<ByteSize>,
    /// How long a load waits for memory before it fails, such as 30s.
    #[arg(long, env = "FLIGHTCACHE_MEMORY_WAIT", value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_wait: Option<String>,
    /// SQL statements that run at a time.
    #[arg(long, env = "FLIGHTCACHE_SQL_STATEMENTS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sql_statements: Option<usize>,
    /// Memory for all running SQL statements together, beyond the cache.
    #[arg(long, env = "FLIGHTCACHE_SQL_MEMORY", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sql_memory: Option<ByteSize>,
    /// Bytes that all running SQL statements together may spill to disk.
    #[arg(long, env = "FLIGHTCACHE_SQL_SPILL", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sql_spill: Option<ByteSize>,
    /// Directory they spill to.
    #[arg(long, env = "FLIGHTCACHE_SQL_SPILL_DIRECTORY", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sql_spill_directory: Option<PathBuf>,
    /// How long running requests may go on after SIGTERM, such as 30s.
    #[arg(long, env = "FLIGHTCACHE_DRAIN", value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drain: Option<String>,
    /// Write an access trace to this file, which must be new or empty.
    #[arg(long, env = "FLIGHTCACHE_RECORD", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<PathBuf>,
    /// Log format.
    #[arg(long, env = "FLIGHTCACHE_LOG_FORMAT", value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<LogFormat>,
    /// Log filter, such as info or `flightcache_server=debug`.
    #[arg(long, env = "FLIGHTCACHE_LOG", value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    /// Name of the cluster to take part in.
    #[arg(long, env = "FLIGHTCACHE_CLUSTER", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    /// Gossip address of another node; a name may mean several addresses. Repeatable.
    #[arg(long = "seed", env = "FLIGHTCACHE_SEED", value_name = "HOST:PORT", num_args = 1.., value_delimiter = ' ')]
    #[serde(skip)]
    seeds: Vec<String>,
    /// Address of gossip, over UDP [default: port 50053 beside the Flight service].
    #[arg(long, env = "FLIGHTCACHE_GOSSIP", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    gossip: Option<SocketAddr>,
    /// Directory that keeps the node's name.
    #[arg(long, env = "FLIGHTCACHE_DATA_DIRECTORY", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_directory: Option<PathBuf>,
    /// Share of the slots, against other nodes' [default: the capacity in MiB].
    #[arg(long, env = "FLIGHTCACHE_WEIGHT", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u64>,
    /// Owners of each slot.
    #[arg(long, env = "FLIGHTCACHE_REPLICAS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<u32>,
    /// Bytes a second that may come from other nodes, such as 500MiB [default: as many as the network carries].
    #[arg(long, env = "FLIGHTCACHE_PEER_BANDWIDTH", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_bandwidth: Option<ByteSize>,
    /// Time between rounds of gossip, such as 200ms.
    #[arg(long, env = "FLIGHTCACHE_GOSSIP_INTERVAL", value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    gossip_interval: Option<String>,
    /// Within this time a node that crashed is taken for gone, such as 5s.
    #[arg(long, env = "FLIGHTCACHE_DETECTION_BOUND", value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    detection_bound: Option<String>,
}

impl Flags {
    /// The settings these flags, the environment and the config file amount to.
    pub fn settings(&self) -> Result<Settings> {
        let mut figment = Figment::from(Serialized::defaults(Settings::default()));
        if let Some(config) = &self.config {
            figment = figment.merge(Toml::file_exact(config));
        }
        let mut settings: Settings =
            figment.merge(Serialized::globals(self)).extract().map_err(|e| Error::invalid(format!("settings: {e}")))?;
        for url in &self.sources {
            if !settings.sources.iter().any(|source| source.url == *url) {
                settings.sources.push(SourceSettings { url: url.clone(), ..SourceSettings::default() });
            }
        }
        for seed in &self.seeds {
            if !settings.seeds.contains(seed) {
                settings.seeds.push(seed.clone());
            }
        }
        settings.check()?;
        Ok(settings)
    }
}

/// Durations as `30s`.
mod humantime_text {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        humantime::parse_duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Flags {
        Flags::try_parse_from([&["flightcache-server"], args].concat()).unwrap()
    }

    #[test]
    fn flags_win_over_the_file_and_print_what_results() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let toml = "capacity = \"2GiB\"\nfreshness = \"immutable\"\n[tables]\ntrips = \"s3://lake/trips/\"\n[[source]]\nurl = \"s3://lake/\"\n[source.options]\nsecret_access_key = \"hush\"\n";
        std::fs::write(file.path(), toml).unwrap();
        let path = file.path().to_str().unwrap();
        let settings =
            flags(&["--config", path, "--capacity", "3GiB", "--record", "t.jsonl", "--source", "file:///data/", "s3://lake/"])
                .settings()
                .unwrap();
        assert_eq!(settings.capacity, ByteSize::gib(3));
        assert_eq!(settings.freshness, Freshness::Immutable);
        assert_eq!(settings.sources.len(), 2);
        let printed = settings.to_toml().unwrap();
        assert!(!printed.contains("hush"), "{printed}");
        let again: Settings = toml::from_str(&printed).unwrap();
        assert_eq!((again.capacity, again.record), (settings.capacity, Some("t.jsonl".into())));
        assert_eq!(again.tables, [("trips".to_owned(), "s3://lake/trips/".to_owned())].into());
    }

    #[test]
    fn mistakes_are_named() {
        assert!(flags(&[]).settings().unwrap_err().message.contains("--source"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "capacty = \"2GiB\"\n").unwrap();
        let error = flags(&["--config", file.path().to_str().unwrap(), "--source", "s3://b/"]).settings().unwrap_err();
        assert!(error.message.contains("capacty"), "{error}");
        assert!(Flags::try_parse_from(["flightcache-server", "--freshness", "sometimes"]).is_err());
    }

    #[test]
    fn a_cluster_is_set_by_flags_and_printed() {
        let node =
            ["--source", "s3://b/", "--cluster", "lake", "--seed", "cache:50053", "--seed", "[::1]:50053", "--replicas", "2"];
        let node = [&node[..], &["--peer-bandwidth", "500MiB"]].concat();
        let settings = flags(&node).settings().unwrap();
        assert_eq!(settings.seeds, ["cache:50053", "[::1]:50053"]);
        assert_eq!(settings.gossip_addr(), SocketAddr::from(([127, 0, 0, 1], 50_053)));
        assert_eq!(settings.weight_or_capacity(), 1_024);
        let again: Settings = toml::from_str(&settings.to_toml().unwrap()).unwrap();
        assert_eq!((again.cluster.as_deref(), again.seeds, again.replicas), (Some("lake"), settings.seeds, 2));
        assert_eq!(again.peer_bandwidth, Some(ByteSize::mib(500)));
        assert_eq!(again.detection_bound, Duration::from_secs(5));

        let alone = ["--source", "s3://b/"];
        assert!(flags(&[&alone, ["--seed", "cache:50053"].as_slice()].concat()).settings().is_err());
        let long = "x".repeat(65);
        for (mistake, named) in [
            (["--cluster", ""], "cluster"),
            (["--cluster", &long], "cluster"),
            (["--listen", "0.0.0.0:50051"], "--advertise"),
            (["--advertise", "cache-0"], "advertise"),
            (["--advertise", "grpc+tcp://cache-0"], "advertise"),
            (["--seed", "cache"], "seed"),
            (["--seed", ":50053"], "seed"),
            (["--seed", "cache:0"], "seed"),
            (["--weight", "0"], "weight"),
            (["--replicas", "0"], "replicas"),
            (["--replicas", "17"], "replicas"),
            (["--peer-bandwidth", "0B"], "peer_bandwidth"),
            (["--peer-bandwidth", "1023KiB"], "peer_bandwidth"),
            (["--gossip-interval", "1ms"], "gossip_interval"),
            (["--gossip-interval", "300ms"], "6s 300ms"),
            (["--detection-bound", "4s"], "detection_bound"),
        ] {
            let cluster: &[_] = if mistake[0] == "--cluster" { &[] } else { &["--cluster", "lake"] };
            let error = flags(&[&alone, cluster, &mistake].concat()).settings().unwrap_err();
            assert!(error.message.contains(named), "{mistake:?}: {error}");
        }
        assert_eq!(host_of("grpc+tcp://[::1]:50051").as_deref(), Some("::1"));
        assert_eq!(host_of("grpc+unix:///a.sock"), None);
    }
}
