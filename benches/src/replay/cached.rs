//! Flightcache: servers in this process, or ones that run already.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytesize::ByteSize;
use flightcache::Client;
use flightcache_proto::{Part, SLOT_COUNT, Slot};
use flightcache_server::Server;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore;

use super::side::{Answer, AskError, Clients, InTurn, Read, Side, StoreCounts};
use crate::place::{self, SOURCE};
use crate::server_threads::ServerThreads;
use crate::slow_store::SlowStore;

/// Evictions under way at a time.
const EVICTIONS_AT_A_TIME: usize = 16;

/// Which of `count` servers answers for an object: the slot of its footer, scaled.
pub(super) fn owner(url: &str, count: usize) -> usize {
    usize::from(Slot::of(url, Part::Footer).get()) * count / usize::from(SLOT_COUNT)
}

/// One client of each location, which connects when it is needed; of a cluster, one that knows who owns what.
async fn clients(locations: &[String], is_cluster: bool) -> flightcache_proto::Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(locations.len());
    for location in locations {
        clients.push(if is_cluster { Client::connect(location).await? } else { Client::lazy(location)? });
    }
    Ok(clients)
}

/// Servers, and who connects to them.
pub struct Cached {
    /// Of servers that know nothing of each other; of a cluster, one.
    locations: Vec<String>,
    is_cluster: bool,
    connecting: Clients,
    /// One of each location, or several times so many: for requests, if they share them, and for what is not measured.
    clients: InTurn<Vec<Client>>,
    /// What stands before an object's name in its URL.
    prefix: String,
    counts: Counts,
}

enum Counts {
    /// Servers in this process, all over one store.
    Own { servers: Mutex<Vec<Server>>, store: Arc<SlowStore>, _threads: ServerThreads },
    /// Running ones: their figures at the last look.
    Running(Mutex<StoreCounts>),
}

impl Cached {
    /// Starts `count` servers in this process: a cluster, if they are several.
    pub async fn start(
        store: Arc<SlowStore>,
        count: usize,
        capacity: ByteSize,
        connecting: Clients,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let threads = ServerThreads::new()?;
        let shared = Arc::clone(&store) as Arc<dyn ObjectStore>;
        let starting = async move { place::serve_all(&shared, capacity, count).await.map_err(|e| e.to_string()) };
        let servers = threads.spawn(starting).await??;
        let locations = servers.iter().take(1).map(|server| format!("grpc://{}", server.flight_addr())).collect();
        let counts = Counts::Own { servers: Mutex::new(servers), store, _threads: threads };
        Ok(Self::new(locations, count > 1, connecting, SOURCE.to_owned(), counts).await?)
    }

    async fn new(
        locations: Vec<String>,
        is_cluster: bool,
        connecting: Clients,
        prefix: String,
        counts: Counts,
    ) -> Result<Self, AskError> {
        let count = if let Clients::Kept(count) = connecting { count.get() } else { 1 };
        let mut kept = Vec::with_capacity(count);
        for _ in 0..count {
            kept.push(clients(&locations, is_cluster).await?);
        }
        let clients = InTurn::new(kept);
        Ok(Self { locations, is_cluster, connecting, clients, prefix, counts })
    }

    /// Uses running servers, which know an object by `prefix` and its name.
    pub async fn connect(mut locations: Vec<String>, prefix: String, connecting: Clients) -> Result<Self, AskError> {
        let is_cluster = match locations.first() {
            Some(first) => Client::connect(first).await?.slot_map().await?.nodes().len() > 1,
            None => false,
        };
        if is_cluster {
            locations.truncate(1);
        }
        let cached = Self::new(locations, is_cluster, connecting, prefix, Counts::Running(Mutex::default())).await?;
        cached.take_counts().await?;
        Ok(cached)
    }

    async fn server_counts(&self) -> Result<StoreCounts, AskError> {
        let mut sum = StoreCounts::default();
        for client in self.clients.first() {
            for (_, stats) in client.cluster_stats().await? {
                let stats = stats?;
                sum.requests += stats.store_requests;
                sum.bytes += stats.store_bytes;
            }
        }
        Ok(sum)
    }
}

#[async_trait]
impl Side for Cached {
    fn name(&self) -> &'static str {
        "flightcache"
    }

    async fn ask(&self, read: &Read) -> Result<Answer, AskError> {
        let started = Instant::now();
        let own = match self.connecting {
            Clients::PerRequest => Some(clients(&self.locations, self.is_cluster).await?),
            Clients::Kept(_) => None,
        };
        let clients = own.as_ref().unwrap_or_else(|| self.clients.next());
        let mut answer = Answer::default();
        for object in &read.objects {
            let url = format!("{}{}", self.prefix, object.name);
            let owner = owner(&url, clients.len());
            let mut scan = clients[owner].scan(url).in_one_request();
            if let Some(columns) = &object.columns {
                scan = scan.columns(columns.iter().cloned());
            }
            let mut batches = scan.send().await?;
            while let Some(batch) = batches.try_next().await? {
                answer.rows += batch.num_rows() as u64;
            }
            let stats = batches.stats();
            answer.fetch += Duration::from_micros(stats.fetch_us);
            answer.decode += Duration::from_micros(stats.decode_us);
            answer.server += Duration::from_micros(stats.filter_us + stats.aggregate_us + stats.encode_us);
            answer.hits += stats.chunks_hit;
            answer.misses += stats.chunks_missed;
        }
        Ok(answer.within(started.elapsed()))
    }

    async fn empty(&self, objects: &[String]) -> Result<(), AskError> {
        for client in self.clients.first() {
            let urls: Vec<String> = objects.iter().map(|object| format!("{}{object}", self.prefix)).collect();
            let evictions = futures::stream::iter(urls).map(|url| async move { client.evict(&url).await });
            evictions.buffer_unordered(EVICTIONS_AT_A_TIME).try_for_each(|_| std::future::ready(Ok(()))).await?;
        }
        Ok(())
    }

    async fn take_counts(&self) -> Result<StoreCounts, AskError> {
        match &self.counts {
            Counts::Own { store, .. } => Ok(store.take_counts().into()),
            Counts::Running(last) => {
                let now = self.server_counts().await?;
                let before = std::mem::replace(&mut *last.lock().unwrap_or_else(PoisonError::into_inner), now);
                Ok(StoreCounts {
                    requests: now.requests.saturating_sub(before.requests),
                    bytes: now.bytes.saturating_sub(before.bytes),
                })
            }
        }
    }

    async fn stop(&self) {
        if let Counts::Own { servers, .. } = &self.counts {
            let servers = std::mem::take(&mut *servers.lock().unwrap_or_else(PoisonError::into_inner));
            futures::future::join_all(servers.into_iter().map(Server::shutdown)).await;
        }
    }
}
