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

use super::side::{Answer, AskError, Clients, Read, Side, StoreCounts};
use crate::place::{self, SOURCE};
use crate::server_threads::ServerThreads;
use crate::slow_store::SlowStore;

/// Evictions under way at a time.
const EVICTIONS_AT_A_TIME: usize = 16;

/// Which of `count` servers answers for an object: the slot of its footer, scaled.
pub(super) fn owner(url: &str, count: usize) -> usize {
    usize::from(Slot::of(url, Part::Footer).get()) * count / usize::from(SLOT_COUNT)
}

/// One client of each server, which connects when it is needed.
fn clients(locations: &[String]) -> flightcache_proto::Result<Vec<Client>> {
    locations.iter().map(|location| Client::lazy(location)).collect()
}

/// Servers, and who connects to them.
pub struct Cached {
    locations: Vec<String>,
    connecting: Clients,
    /// One of each server: for all requests if they share them, and for what is not measured.
    clients: Vec<Client>,
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
    /// Starts `count` servers in this process.
    pub async fn start(
        store: Arc<SlowStore>,
        count: usize,
        capacity: ByteSize,
        connecting: Clients,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let mut servers = Vec::with_capacity(count);
        let threads = ServerThreads::new()?;
        for _ in 0..count {
            let store = Arc::clone(&store) as Arc<dyn ObjectStore>;
            let starting = async move { place::serve(store, capacity).await.map_err(|e| e.to_string()) };
            servers.push(threads.spawn(starting).await??);
        }
        let locations: Vec<String> = servers.iter().map(|server| format!("grpc://{}", server.flight_addr())).collect();
        let counts = Counts::Own { servers: Mutex::new(servers), store, _threads: threads };
        Ok(Self { clients: clients(&locations)?, locations, connecting, prefix: SOURCE.to_owned(), counts })
    }

    /// Uses running servers, which know an object by `prefix` and its name.
    pub async fn connect(locations: Vec<String>, prefix: String, connecting: Clients) -> Result<Self, AskError> {
        let counts = Counts::Running(Mutex::default());
        let cached = Self { clients: clients(&locations)?, locations, connecting, prefix, counts };
        cached.take_counts().await?;
        Ok(cached)
    }

    async fn server_counts(&self) -> Result<StoreCounts, AskError> {
        let mut sum = StoreCounts::default();
        for client in &self.clients {
            let stats = client.stats().await?;
            sum.requests += stats.store_requests;
            sum.bytes += stats.store_bytes;
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
            Clients::PerRequest => Some(clients(&self.locations)?),
            Clients::Shared => None,
        };
        let clients = own.as_ref().unwrap_or(&self.clients);
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
        for client in &self.clients {
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
