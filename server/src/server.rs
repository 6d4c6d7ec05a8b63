//! A running server: the Flight port, the admin port, and how they stop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use axum::serve::ListenerExt as _;
use flightcache_proto::{Error, FILE_DESCRIPTOR_SET, Node, Result, SlotMap};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::{Admin, Metrics};
use crate::flight::{FlightPort, FlightcacheService, UnixSocket, serve, until};
use crate::object::Sources;
use crate::record::Recorder;
use crate::scan::Engine;
use crate::settings::Settings;
use crate::sql::Sql;

/// Requests are not larger.
const MAX_REQUEST_BYTES: usize = 16 << 20;

/// A running server. Dropping it leaves it running; [`Server::shutdown`] ends it.
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
        let node = Node { id: flight_addr.to_string(), uri: settings.advertise.clone().or(reachable) };
        let recorder =
            settings.record.as_deref().map(|path| Recorder::create(path, metrics.record_dropped.clone())).transpose()?;
        let engine = Engine::recorded(settings, sources, metrics, SlotMap::single(1, node), recorder);
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
        let admin = axum::serve(admin_listener, router).with_graceful_shutdown(until(stopped)).into_future();
        Ok(Self {
            flight_addr,
            admin_addr,
            unix_path,
            engine,
            sql,
            ready,
            stop,
            flight: tokio::spawn(flight),
            admin: tokio::spawn(admin),
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

    /// What answers SQL.
    pub fn sql(&self) -> &Arc<Sql> {
        &self.sql
    }

    /// Takes no new requests, lets those under way end within the drain time, then stops
    /// and closes the access trace. Returns whether all ended in time.
    pub async fn shutdown(self) -> bool {
        self.ready.store(false, Ordering::Release);
        self.health.set_not_serving::<FlightServiceServer<FlightcacheService>>().await;
        // Fails only when both ports have stopped already.
        let _ = self.stop.send(true);
        let (flight, admin) = (self.flight.abort_handle(), self.admin.abort_handle());
        let ended = tokio::time::timeout(self.drain, async { tokio::join!(self.flight, self.admin) }).await;
        flight.abort();
        admin.abort();
        if let Some(recorder) = self.engine.recorder() {
            recorder.close().await;
        }
        ended.is_ok()
    }
}

async fn listen(addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|e| Error::invalid(format!("cannot listen on {addr}: {e}")))
}
