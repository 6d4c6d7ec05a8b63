//! The nodes: an HTTP server each, in front of its cache.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt as _;
use object_store::ObjectStoreExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::super::cached::owner;
use super::cache::Cache;
use crate::place::SOURCE;
use crate::server_threads::ServerThreads;
use crate::slow_store::SlowStore;

/// Microseconds that an answer waited for the store.
pub(super) const FETCH_HEADER: &str = "x-fetch-us";
/// 1 if the object was in the cache, 0 if not.
pub(super) const HIT_HEADER: &str = "x-cache-hit";

/// Running nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    addresses: Arc<[String]>,
    caches: Vec<Arc<Cache>>,
    tasks: Vec<JoinHandle<std::io::Result<()>>>,
    _threads: ServerThreads,
}

#[derive(Clone)]
struct Node {
    store: Arc<SlowStore>,
    cache: Arc<Cache>,
    addresses: Arc<[String]>,
}

impl Nodes {
    pub(super) async fn start(store: &Arc<SlowStore>, count: usize, capacity_bytes: u64) -> std::io::Result<Self> {
        let threads = ServerThreads::new()?;
        let mut listeners = Vec::with_capacity(count);
        for _ in 0..count {
            listeners.push(threads.spawn(TcpListener::bind(("127.0.0.1", 0))).await??);
        }
        let address = |listener: &TcpListener| Ok(format!("http://{}", listener.local_addr()?));
        let addresses: Arc<[String]> = listeners.iter().map(address).collect::<std::io::Result<_>>()?;
        let (mut caches, mut tasks) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for listener in listeners {
            let cache = Arc::new(Cache::new(capacity_bytes));
            let node = Node { store: Arc::clone(store), cache: Arc::clone(&cache), addresses: Arc::clone(&addresses) };
            let router = Router::new().route("/route/{*key}", get(route)).route("/objects/{*key}", get(object)).with_state(node);
            // Fails only for a connection that is gone already.
            let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
            tasks.push(threads.spawn(async move { axum::serve(listener, router).await }));
            caches.push(cache);
        }
        Ok(Self { addresses, caches, tasks, _threads: threads })
    }

    /// The node that clients ask first, such as `http://127.0.0.1:4711`.
    pub(super) fn seed(&self) -> &str {
        &self.addresses[0]
    }

    pub(super) fn clear(&self) {
        self.caches.iter().for_each(|cache| cache.clear());
    }

    pub(super) fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn route(State(node): State<Node>, Path(key): Path<String>) -> String {
    node.addresses[owner(&format!("{SOURCE}{key}"), node.addresses.len())].clone()
}

async fn object(State(node): State<Node>, Path(key): Path<String>) -> Response {
    let started = Instant::now();
    let loaded = node.cache.get(&key, async || {
        let path = object_store::path::Path::parse(&key)?;
        node.store.get(&path).await?.bytes().await
    });
    match loaded.await {
        Ok((object, hit)) => {
            let waited_us = if hit { 0 } else { started.elapsed().as_micros() };
            ([(HIT_HEADER, u8::from(hit).to_string()), (FETCH_HEADER, waited_us.to_string())], object).into_response()
        }
        Err(error @ object_store::Error::NotFound { .. }) => (StatusCode::NOT_FOUND, error.to_string()).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
