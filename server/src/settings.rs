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

use crate::object::Freshness;

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
            sql_memory: ByteSize::mib(512),
            sql_spill: ByteSize::gib(8),
            sql_spill_directory: None,
            drain: Duration::from_secs(30),
            record: None,
            log_format: LogFormat::Text,
            log: "info".to_owned(),
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
        if self.partitions == 0 || self.store_requests == 0 {
            return Err(Error::invalid("partitions and store_requests must be at least 1"));
        }
        Ok(())
    }
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
}
