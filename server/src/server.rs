//! A running server: the Flight port, the admin port, and how they stop.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use axum::serve::ListenerExt as _;
use flightcache_proto::{Error, FILE_DESCRIPTOR_SET, Node, NodeState, Result, SlotMap};
use futures::FutureExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::admin::{Admin, Metrics};
use crate::cluster::scaling::{self, Means, Scaling};
use crate::cluster::{Cluster, ClusterConfig, Identity, Pace, Surroundings, now_ms};
use crate::flight::{FlightPort, FlightcacheService, UnixSocket, serve, until};
use crate::object::Sources;
use crate::record::Recorder;
use crate::scan::Engine;
use crate::settings::{Settings, host_of};
use crate::sql::Sql;

/// Requests are not larger.
const MAX_REQUEST_BYTES: usize = 16 << 20;
/// Times this host's own name is looked up, a second apart: names of new hosts take a while to be known.
const LOOKUPS: u32 = 30;

/// A running server. [`Server::shutdown`] ends it in order; dropping it, at once for new requests.
pub struct Server {
    flight_addr: SocketAddr,
    admin_addr: SocketAddr,
    unix_path: Option<PathBuf>,
    engine: Arc<Engine>,
    sql: Arc<Sql>,
    ready: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    flight: JoinHandle<()>,
    admin: JoinHandle<std::io::Result<()>>,
    /// What requests under way may need until they end.
    background: AbortOnDropHandle<()>,
    health: tonic_health::server::HealthReporter,
    drain: Duration,
}

impl Server {
    /// Starts a server over the sources of its settings.
    pub async fn start(settings: &Settings) -> Result<Self> {
        let metrics = Arc::new(Metrics::new().map_err(|e| Error::internal(e.to_string()))?);
        let sources = Sources::from_settings(settings, &metrics)?;
        Self::start_with(settings, sources, metrics).await
    }

    /// Starts a server over given sources, whatever its settings say of them.
    pub async fn start_with(settings: &Settings, sources: Sources, metrics: Arc<Metrics>) -> Result<Self> {
        let flight_listener = listen(settings.listen).await?;
        let admin_listener = listen(settings.admin).await?;
        let local_addr = |listener: &TcpListener| listener.local_addr().map_err(|e| Error::internal(e.to_string()));
        let unix_socket = match &settings.listen_unix {
            Some(path) => Some(UnixSocket::bind(path).await?),
            None => None,
        };
        let unix_path = unix_socket.as_ref().map(|socket| socket.path().to_owned());
        let (flight_addr, admin_addr) = (local_addr(&flight_listener)?, local_addr(&admin_listener)?);
        let reachable = (!flight_addr.ip().is_unspecified()).then(|| format!("grpc+tcp://{flight_addr}"));
        let uri = settings.advertise.clone().or(reachable);
        let recorder =
            settings.record.as_deref().map(|path| Recorder::create(path, metrics.record_dropped.clone())).transpose()?;
        let cluster = match &settings.cluster {
            None => Cluster::fixed(SlotMap::single(1, Node { id: flight_addr.to_string(), uri, ..Node::default() })),
            Some(name) => {
                let config = cluster_config(settings, name, uri).await?;
                let identity = Identity::load(settings.data_directory.as_deref(), now_ms())?;
                Cluster::start(config, identity, Surroundings::default(), &metrics).await?
            }
        };
        let engine = Engine::recorded(settings, sources, metrics, Arc::new(cluster), recorder);
        let sql = Sql::new(settings, Arc::clone(&engine), tokio::runtime::Handle::current())?;

        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<FlightServiceServer<FlightcacheService>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|e| Error::internal(format!("reflection: {e}")))?;
        // Large enough for a million row numbers.
        let flight =
            FlightServiceServer::new(FlightcacheService::new(Arc::clone(&sql))).max_decoding_message_size(MAX_REQUEST_BYTES);
        let routes = tonic::service::Routes::new(health_service).add_service(reflection).add_service(flight).prepare();
        let (stop, stopped) = watch::channel(false);
        let port = FlightPort::new(Arc::clone(&sql), routes, stopped.clone());
        // Without it a small answer waits 40 ms.
        let flight_listener = flight_listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let over_tcp = serve(flight_listener, port.clone());
        let over_unix = async move {
            if let Some(socket) = unix_socket {
                serve(socket, port.over_unix_socket()).await;
            }
        };
        let flight = async move {
            tokio::join!(over_tcp, over_unix);
        };
        let ready = Arc::new(AtomicBool::new(true));
        let router = Admin::new(Arc::clone(&engine), Arc::clone(&ready)).router();
        let admin = axum::serve(admin_listener, router).with_graceful_shutdown(until(stopped.clone())).into_future();
        let (flight, admin) = (tokio::spawn(flight), tokio::spawn(admin));
        engine.cluster().serve();
        let background = {
            let (engine, sql) = (Arc::clone(&engine), Arc::clone(&sql));
            async move {
                tokio::join!(
                    Arc::clone(&engine).pass_on_renewals(),
                    sql.pass_on_tables(),
                    async {
                        // Once this port takes no more, others could have nothing of it.
                        tokio::select! {
                            () = hand_over(Arc::clone(&engine)) => {}
                            () = until(stopped) => {}
                        }
                    },
                    recommend_nodes(Arc::clone(&engine))
                )
            }
        };
        let background = AbortOnDropHandle::new(tokio::spawn(background.map(drop)));
        Ok(Self {
            flight_addr,
            admin_addr,
            unix_path,
            engine,
            sql,
            ready,
            stop,
            flight,
            admin,
            background,
            health,
            drain: settings.drain,
        })
    }

    /// Address of the Flight port.
    pub fn flight_addr(&self) -> SocketAddr {
        self.flight_addr
    }

    /// The Unix socket beside the Flight port.
    pub fn unix_path(&self) -> Option<&Path> {
        self.unix_path.as_deref()
    }

    /// Address of the admin port.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// What the server knows.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The nodes, and this one among them.
    pub fn cluster(&self) -> &Arc<Cluster> {
        self.engine.cluster()
    }

    /// What answers SQL.
    pub fn sql(&self) -> &Arc<Sql> {
        &self.sql
    }

    /// Leaves its slots to others, takes no new requests, lets those under way end within the drain time, then stops
    /// and closes the access trace. Returns whether all ended in time.
    pub async fn shutdown(self) -> bool {
        self.ready.store(false, Ordering::Release);
        self.health.set_not_serving::<FlightServiceServer<FlightcacheService>>().await;
        let deadline = tokio::time::Instant::now() + self.drain;
        let before = self.engine.slot_map();
        self.engine.cluster().hand_over().await;
        // Others take over what is resident here, while this one still answers. Half of the time is for requests under way.
        let _ = tokio::time::timeout(self.drain / 2, self.engine.hand_over(&before)).await;
        // Fails only when both ports have stopped already.
        let _ = self.stop.send(true);
        let (flight, admin) = (self.flight.abort_handle(), self.admin.abort_handle());
        let ended = tokio::time::timeout_at(deadline, async { tokio::join!(self.flight, self.admin) }).await;
        flight.abort();
        admin.abort();
        drop(self.background);
        self.engine.cluster().leave().await;
        if let Some(recorder) = self.engine.recorder() {
            recorder.close().await;
        }
        ended.is_ok()
    }
}

async fn listen(addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|e| Error::invalid(format!("cannot listen on {addr}: {e}")))
}

/// The part of a node that is reached at `uri`.
async fn cluster_config(settings: &Settings, name: &str, uri: Option<String>) -> Result<ClusterConfig> {
    let uri = uri.ok_or_else(|| Error::invalid("in a cluster, a server that listens on every address needs --advertise"))?;
    let gossip = settings.gossip_addr();
    let gossip_ip = match host_of(&uri) {
        Some(host) if gossip.ip().is_unspecified() && settings.advertise.is_some() => Some(own_ip(&host, gossip.ip()).await?),
        _ => Some(settings.listen.ip()),
    };
    Ok(ClusterConfig {
        name: name.to_owned(),
        seeds: settings.seeds.clone(),
        gossip,
        gossip_ip,
        uri,
        weight: settings.weight_or_capacity(),
        replicas: settings.replicas,
        pace: Pace { interval: settings.gossip_interval, detection_bound: settings.detection_bound },
    })
}

/// What this host's own name means to others, of the family of `bound` if that is IPv4.
async fn own_ip(host: &str, bound: IpAddr) -> Result<IpAddr> {
    let mut attempt = 1;
    loop {
        let found = tokio::net::lookup_host((host, 0)).await;
        let ip = found.map(|mut found| found.find(|found| found.is_ipv4() || bound.is_ipv6()).map(|found| found.ip()));
        match ip {
            Ok(Some(ip)) => return Ok(ip),
            Ok(None) => return Err(Error::invalid(format!("advertise: {host} has no address that gossip can be reached at"))),
            Err(error) if attempt == LOOKUPS => return Err(Error::invalid(format!("advertise: {host}: {error}"))),
            Err(error) => tracing::info!(host, %error, "this host's name is not known yet"),
        }
        attempt += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Hands chunks over once this node drains.
async fn hand_over(engine: Arc<Engine>) {
    let cluster = Arc::clone(engine.cluster());
    let drains = |map: &SlotMap| {
        let me = map.nodes().iter().find(|node| node.id == cluster.node_id());
        me.is_some_and(|me| me.state == NodeState::Draining)
    };
    let mut before = cluster.slot_map();
    loop {
        let epoch = before.epoch();
        let map = cluster.until(|map| map.epoch() != epoch || drains(map)).await;
        if drains(&map) {
            break;
        }
        before = map;
    }
    // Who has not heard of it yet takes nothing over.
    cluster.hand_over().await;
    engine.hand_over(&before).await;
}

/// Keeps the gauge of the nodes that the cluster should have up to date, for as long as it is polled.
async fn recommend_nodes(engine: Arc<Engine>) {
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    let mut scaling = Scaling::new(Means { cores, network: scaling::network() });
    let mut looks = tokio::time::interval(scaling::INTERVAL);
    loop {
        looks.tick().await;
        let nodes = engine.slot_map().nodes().iter().filter(|node| node.state == NodeState::Active).count();
        let recommended = scaling.recommend(engine.counts(), nodes as u32);
        engine.metrics().recommended_nodes.set(i64::from(recommended));
    }
}
