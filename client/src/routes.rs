//! Who owns which slot, and the connections to them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use arrow_flight::Action;
use arrow_flight::flight_service_client::FlightServiceClient;
use flightcache_proto::{Error, ErrorKind, Node, Result, Slot, SlotMap, action};
use futures::future::{BoxFuture, Either, select};
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::hedge::Hedges;
use crate::link::Link;
use crate::receive::MAX_MESSAGE_BYTES;
use crate::retry::from_status;

/// A server's messages, of 2 MiB at most, come in one frame each, but at a window's edge: then their bodies need not be put
/// together.
const MAX_FRAME_BYTES: u32 = 4 << 20;
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// The largest there is: the streams' windows bound what is unread. A connection's window would let streams that wait for their
/// reader (shares read ahead, scans that pause) use it up and starve the one that is read.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// How long one server may take to tell the slot map before another is asked too.
const NEXT_CONTACT_AFTER: Duration = Duration::from_millis(500);
/// How long to connect to a server that is one of several: a request to connect is sent anew after a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// And to one that may be the only one: anew once more. A name has to be looked up as well.
const SEED_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Where nothing comes, whether the other host still acknowledges is asked this often,
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// and so many times.
const PROBES: u32 = 3;
/// How long a server may say nothing before it is given up if its host does not, or else if its cluster has lost it. By then the others
/// know, or are about to.
const SILENCE: Duration = PROBE_INTERVAL.saturating_mul(PROBES);
/// How long a server that could not be reached is asked last, if it does not answer meanwhile: several times what its cluster takes to
/// notice that it is gone.
const DOUBT: Duration = Duration::from_secs(15);

/// The slot map and the channels, cached.
///
/// The locks guard memory only, never I/O; but for `refreshing`, under which the map is asked for.
#[derive(Debug)]
pub struct Routes {
    seed: Connection,
    /// The seed is a Unix socket, which no slot map names.
    is_local: bool,
    /// A map has named it: it is not merely an address by which some server of the cluster is reached.
    seed_is_named: AtomicBool,
    map: Mutex<Option<Known>>,
    /// By host and port, or path.
    connections: Mutex<HashMap<String, Connection>>,
    lookups: AtomicU64,
    /// Held while the map is asked for, by all who need it: once for all of them. Who failed to tell it, and when.
    refreshing: tokio::sync::Mutex<Option<(Connection, Instant)>>,
    failed: AtomicU64,
    /// Of those who may be asked what any server can tell: the one that answers, as far as is known.
    contact: AtomicUsize,
    pub(crate) hedges: Hedges,
}

/// The owners of a slot, best first.
#[derive(Clone, Debug)]
pub(crate) struct Owners {
    pub(crate) connections: Vec<Connection>,
    /// Of the map that says so; `None` where nothing is known of owners.
    pub(crate) epoch: Option<u64>,
    /// There are others, which may own the slot once this map is out of date.
    pub(crate) are_of_many: bool,
}

/// How long it is believed what a server told of the answers it sends.
const TOLD_FOR: Duration = Duration::from_secs(2);

/// Connections to a server over which answers are spread. One keeps no more than a core busy at either end. And it has no more on
/// its way than the kernel's buffers hold, 4 MiB as a rule, which on a long way is little: 30 MB/s where an answer takes 100 ms.
const LANES: usize = 4;

/// The way to a server: some TCP connections, and what is known of them.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) link: Arc<Link>,
    /// Each connects when it is first used.
    lanes: Arc<[Lane]>,
    /// Answers to others that it told of, and when.
    told: Arc<Mutex<Option<(u64, Instant)>>>,
    /// When it could not be reached.
    failed_at: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug)]
struct Lane {
    channel: Channel,
    /// Answers that are being received over it.
    answers: AtomicUsize,
}

/// A lane, taken for one answer until this is dropped.
#[derive(Debug)]
pub(crate) struct TakenLane {
    lanes: Arc<[Lane]>,
    index: usize,
}

impl Connection {
    /// The first of its channels: for calls of little data.
    pub(crate) fn channel(&self) -> Channel {
        self.lanes[0].channel.clone()
    }

    /// Answers that are being received.
    fn answers(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.answers.load(Ordering::Relaxed) as u64).sum()
    }

    /// The server tells how many other answers it sends.
    pub(crate) fn told(&self, beside: u64) {
        *lock(&self.told) = Some((beside, Instant::now()));
    }

    /// How many answers the server sends, as far as is known: at least those that come here.
    pub(crate) fn load(&self) -> u64 {
        let told = lock(&self.told).filter(|(_, at)| at.elapsed() < TOLD_FOR).map_or(0, |(beside, _)| beside);
        told.max(self.answers())
    }

    /// It could not be reached: others are asked first, until it answers again, or for [`DOUBT`]. It has no answers under way, and would seem
    /// to have little to do.
    pub(crate) fn doubt(&self) {
        let before = lock(&self.failed_at).replace(Instant::now());
        if before.is_none_or(|failed_at| failed_at.elapsed() >= DOUBT) {
            tokio::spawn(self.clone().probe());
        }
    }

    pub(crate) fn is_doubtful(&self) -> bool {
        lock(&self.failed_at).is_some_and(|failed_at| failed_at.elapsed() < DOUBT)
    }

    /// Asks for something small until it answers, whatever that is, and is doubted no more.
    async fn probe(self) {
        while self.is_doubtful() {
            tokio::time::sleep(PROBE_INTERVAL).await;
            let mut flight = flight(self.channel());
            let asked = flight.do_action(Action::new(action::SOURCES, ""));
            match tokio::time::timeout(SILENCE, asked).await {
                Err(_) => {}
                Ok(Err(status)) if from_status(&status).is_unreached() => {}
                Ok(_) => break,
            }
        }
        *lock(&self.failed_at) = None;
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lanes, &other.lanes)
    }

    /// The lane of the fewest answers, the first of several: one answer at a time knows no other.
    pub(crate) fn take_lane(&self) -> TakenLane {
        loop {
            let answers = self.lanes.iter().map(|lane| lane.answers.load(Ordering::Relaxed));
            let (index, fewest) = answers.enumerate().min_by_key(|&(_, answers)| answers).unwrap_or((0, 0));
            let taken = &self.lanes[index].answers;
            // Whoever took it meanwhile leaves another one to be the one of the fewest.
            if taken.compare_exchange(fewest, fewest + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return TakenLane { lanes: Arc::clone(&self.lanes), index };
            }
        }
    }
}

impl TakenLane {
    pub(crate) fn channel(&self) -> Channel {
        self.lanes[self.index].channel.clone()
    }
}

impl Drop for TakenLane {
    fn drop(&mut self) {
        self.lanes[self.index].answers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The newest slot map that was seen.
#[derive(Debug)]
struct Known {
    map: Arc<SlotMap>,
    /// It may be out of date: ask before it is used again. It is kept, for an answer may be older still.
    is_stale: bool,
    /// A server that it names could not be reached.
    is_doubted: bool,
}

/// A Flight client over a channel, for everything but `DoGet`.
pub(crate) fn flight(channel: Channel) -> FlightServiceClient<Channel> {
    FlightServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Host and port of a location such as `grpc://host:port`, or the path of one such as `grpc+unix:///path`. Only paths begin with
/// `/`.
fn address(location: &str) -> Result<&str> {
    let authority = ["grpc+tcp://", "grpc://", "http://"].iter().find_map(|scheme| location.strip_prefix(scheme));
    let authority = authority.filter(|authority| !authority.starts_with('/'));
    let path = location.strip_prefix("grpc+unix://").filter(|path| path.starts_with('/'));
    authority.or(path).ok_or_else(|| {
        let message = format!(
            "{location:?} is not a location such as grpc://host:50051 or grpc+unix:///path/of.sock (TLS is not supported yet)"
        );
        Error::invalid(message)
    })
}

/// Connects to a Unix socket, whatever it is asked for.
#[derive(Clone, Debug)]
struct UnixConnector(Arc<Path>);

impl tower::Service<Uri> for UnixConnector {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = Arc::clone(&self.0);
        async move { UnixStream::connect(&path).await.map(TokioIo::new) }.boxed()
    }
}

/// Whether an address is one of this host, as far as it tells.
fn is_local(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    address.starts_with('/') || host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// A connection to a location, made when it is first used.
pub(crate) fn connect(location: &str) -> Result<Connection> {
    connection(address(location)?, CONNECT_TIMEOUT)
}

/// A connection to an address, made when it is first used.
fn connection(address: &str, timeout: Duration) -> Result<Connection> {
    let lane = |_| Ok(Lane { channel: channel(address, timeout)?, answers: AtomicUsize::new(0) });
    let lanes = (0..LANES).map(lane).collect::<Result<_>>()?;
    Ok(Connection { link: Arc::new(Link::new(is_local(address))), lanes, told: Arc::default(), failed_at: Arc::default() })
}

fn channel(address: &str, timeout: Duration) -> Result<Channel> {
    let is_path = address.starts_with('/');
    // HTTP/2 has to be told some host.
    let authority = if is_path { "localhost" } else { address };
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|e| Error::invalid(format!("{authority:?} is not a host and port: {e}")))?
        .connect_timeout(SEED_CONNECT_TIMEOUT)
        // A server that is stopped says nothing.
        .http2_keep_alive_interval(Duration::from_secs(10))
        // One that is very busy says it late.
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES);
    if is_path {
        return Ok(endpoint.connect_with_connector_lazy(UnixConnector(PathBuf::from(address).into())));
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timeout));
    // A host that is gone, or cut off, acknowledges nothing; one that is busy does, by its kernel.
    tcp.set_keepalive(Some(PROBE_INTERVAL));
    tcp.set_keepalive_interval(Some(PROBE_INTERVAL));
    tcp.set_keepalive_retries(Some(PROBES));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(SILENCE));
    Ok(endpoint.connect_with_connector_lazy(tcp))
}

impl Routes {
    /// Routes learned from the server at `location`.
    pub(crate) fn new(location: &str) -> Result<Self> {
        let address = address(location)?;
        let seed = connection(address, SEED_CONNECT_TIMEOUT)?;
        // A map that names the seed is served over the connection there is.
        let connections = Mutex::new(HashMap::from([(address.to_owned(), seed.clone())]));
        Ok(Self {
            seed,
            is_local: address.starts_with('/'),
            seed_is_named: AtomicBool::new(false),
            map: Mutex::default(),
            connections,
            lookups: AtomicU64::new(0),
            refreshing: tokio::sync::Mutex::default(),
            failed: AtomicU64::new(0),
            contact: AtomicUsize::new(0),
            hedges: Hedges::default(),
        })
    }

    /// The server the map comes from.
    pub(crate) fn seed(&self) -> Connection {
        self.seed.clone()
    }

    /// Who is asked what any server can tell: the seed, or another once that one does not answer.
    pub(crate) fn contact(&self) -> Connection {
        let mut contacts = self.contacts();
        let at = self.contact.load(Ordering::Relaxed) % contacts.len();
        contacts.swap_remove(at)
    }

    /// The seed, and all servers that the map names.
    fn contacts(&self) -> Vec<Connection> {
        let map = lock(&self.map).as_ref().map(|known| Arc::clone(&known.map));
        let mut contacts = vec![self.seed()];
        for connection in map.iter().flat_map(|map| map.nodes().iter().filter_map(|node| self.connection(map, node).ok())) {
            if !contacts.iter().any(|known| known.is(&connection)) {
                contacts.push(connection);
            }
        }
        contacts
    }

    /// The slot map: the cached one, or else the server's.
    pub async fn map(&self) -> Result<Arc<SlotMap>> {
        if let Some(known) = lock(&self.map).as_ref().filter(|known| !known.is_stale) {
            return Ok(Arc::clone(&known.map));
        }
        let _one = self.refreshing.lock().await;
        // Many wait for it at once where many shares are read.
        if let Some(known) = lock(&self.map).as_ref().filter(|known| !known.is_stale) {
            return Ok(Arc::clone(&known.map));
        }
        self.refresh().await
    }

    /// The map of a server that says that a slot has moved since that of `epoch`, unless a newer one has come meanwhile. One that does
    /// not tell it is left to say nothing: others wait for the map as well.
    pub(crate) async fn follow(&self, server: &Connection, epoch: Option<u64>) -> Result<()> {
        let asked_at = Instant::now();
        let mut failed = self.refreshing.lock().await;
        let is_newer = |known: &Known| !known.is_stale && epoch.is_some_and(|epoch| known.map.epoch() > epoch);
        if lock(&self.map).as_ref().is_some_and(is_newer) {
            return Ok(());
        }
        let silent = || Error::new(ErrorKind::Unavailable, "the server says that a slot has moved, and not where to");
        if failed.as_ref().is_some_and(|(at, since)| at.is(server) && *since >= asked_at) {
            return Err(silent());
        }
        let told = tokio::time::timeout(SILENCE, self.refresh_from(server)).await.unwrap_or_else(|_| Err(silent()));
        *failed = told.is_err().then(|| (server.clone(), Instant::now()));
        told.map(drop)
    }

    /// The slot map, which replaces an older one, of the first server that tells it. One that takes its time is not waited for alone.
    pub async fn refresh(&self) -> Result<Arc<SlotMap>> {
        let contacts = self.contacts();
        let first = self.contact.load(Ordering::Relaxed);
        let mut others = (first..first + contacts.len()).map(|at| at % contacts.len());
        let mut asked = FuturesUnordered::new();
        let mut failed = None;
        loop {
            let next = others.next();
            asked.extend(next.map(|at| self.refresh_from(&contacts[at]).map(move |told| (at, told))));
            let patience = if next.is_some() { NEXT_CONTACT_AFTER } else { Duration::MAX };
            match tokio::time::timeout(patience, asked.next()).await {
                // The next one is asked as well.
                Err(_) => {}
                Ok(Some((_, Err(error)))) if error.kind == ErrorKind::Unavailable => failed = failed.or(Some(error)),
                Ok(Some((at, told))) => {
                    self.contact.store(at, Ordering::Relaxed);
                    return told;
                }
                Ok(None) => return Err(failed.unwrap_or_else(|| Error::internal("there is nobody to be asked for the slot map"))),
            }
        }
    }

    /// A server's slot map, which replaces an older one.
    pub(crate) async fn refresh_from(&self, server: &Connection) -> Result<Arc<SlotMap>> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let mut results = flight(server.channel())
            .do_action(Action::new(action::SLOT_MAP, ""))
            .await
            .map_err(|e| from_status(&e))?
            .into_inner();
        let result = results.message().await.map_err(|e| from_status(&e))?;
        let body = result.ok_or_else(|| Error::internal("the server answered no slot map"))?.body;
        let map: SlotMap =
            serde_json::from_slice(&body).map_err(|e| Error::internal(format!("the server's slot map cannot be read: {e}")))?;
        let mut cached = lock(&self.map);
        let map = match cached.take() {
            // One that names a server which cannot be reached may be of a part of the cluster that is gone: nobody will tell a newer one.
            Some(known) if known.map.epoch() > map.epoch() && !known.is_doubted => known.map,
            _ => Arc::new(map),
        };
        *cached = Some(Known { map: Arc::clone(&map), is_stale: false, is_doubted: false });
        Ok(map)
    }

    /// Distrusts a map older than `epoch`: an answer was made with a newer one.
    pub(crate) fn expect_epoch(&self, epoch: u64) {
        if let Some(known) = lock(&self.map).as_mut().filter(|known| known.map.epoch() < epoch) {
            known.is_stale = true;
        }
    }

    /// Distrusts the map if an error says that it is, or may be, out of date.
    pub(crate) fn learn_from(&self, error: &Error) {
        if error.kind == ErrorKind::Unavailable {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if (error.kind == ErrorKind::Moved || error.is_unreached())
            && let Some(known) = lock(&self.map).as_mut()
        {
            known.is_stale = true;
            known.is_doubted |= error.is_unreached();
        }
    }

    /// Asks another from now on what any server can tell, if the one that was asked could not be reached.
    pub(crate) fn turn_from(&self, contact: &Connection, error: &Error) {
        if error.is_unreached() && self.contact().is(contact) {
            self.contact.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The owners of a slot, over kept connections.
    pub(crate) async fn owners(&self, slot: Slot) -> Result<Owners> {
        let map = self.map().await?;
        let connections = map.owners(slot).map(|node| self.connection(&map, node)).collect::<Result<_>>()?;
        Ok(Owners { connections, epoch: Some(map.epoch()), are_of_many: map.nodes().len() > 1 })
    }

    /// Someone who answers what no slot is known of.
    pub(crate) fn anyone(&self) -> Owners {
        Owners { connections: vec![self.contact()], epoch: None, are_of_many: self.contacts().len() > 1 }
    }

    /// Who can answer any scan whole without asking others: the preferred owner of every slot, if there is one. While nothing is
    /// known of owners, the seed, which answers in any case.
    pub(crate) async fn sole_owner(&self) -> Result<Option<Connection>> {
        if lock(&self.map).is_none() {
            return Ok(Some(self.seed()));
        }
        let map = self.map().await?;
        map.sole_owner().map(|node| self.connection(&map, node)).transpose()
    }

    /// The way to a node of a map.
    pub(crate) fn connection(&self, map: &SlotMap, node: &Node) -> Result<Connection> {
        // The map of a server that is alone names that server, by an address that its Unix socket saves us.
        let is_seed = self.is_local && map.nodes().len() == 1;
        let Some(uri) = node.uri.as_deref().filter(|_| !is_seed) else { return Ok(self.seed()) };
        let address = address(uri)?;
        let mut connections = lock(&self.connections);
        if let Some(connection) = connections.get(address) {
            if connection.is(&self.seed) {
                self.seed_is_named.store(true, Ordering::Relaxed);
            }
            return Ok(connection.clone());
        }
        // Nodes that are gone are not kept in mind.
        let is_named =
            |address: &str| map.nodes().iter().any(|node| node.uri.as_deref().is_some_and(|uri| uri.ends_with(address)));
        connections.retain(|address, known| known.is(&self.seed) || is_named(address));
        let connection = connection(address, CONNECT_TIMEOUT)?;
        connections.insert(address.to_owned(), connection.clone());
        Ok(connection)
    }

    /// Who may answer in place of servers that cannot: whom the slot goes to if its owners are gone, or else anyone. Not one that failed
    /// just now itself.
    pub(crate) fn next(&self, slot: Option<Slot>, failed: Option<&Connection>) -> Option<Connection> {
        let map = lock(&self.map).as_ref().map(|known| Arc::clone(&known.map));
        let heirs = slot.zip(map).map(|(slot, map)| {
            let heirs = map.heirs(slot).into_iter().filter_map(|node| self.connection(&map, node).ok());
            heirs.collect::<Vec<_>>()
        });
        let has_failed = |candidate: &Connection| candidate.is_doubtful() || failed.is_some_and(|failed| candidate.is(failed));
        heirs.into_iter().flatten().chain(self.contacts()).find(|candidate| !has_failed(candidate))
    }

    /// What a server answers. Where it says nothing for long, whether the cluster has lost it is asked: a server that is stopped does not tell.
    pub(crate) async fn unless_lost<T>(&self, server: &Connection, answer: impl Future<Output = Result<T>>) -> Result<T> {
        self.unless_lost_while(server, || true, answer).await
    }

    /// The same, as long as there is something that the server has to say.
    pub(crate) async fn unless_lost_while<T>(
        &self,
        server: &Connection,
        is_awaited: impl Fn() -> bool,
        answer: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut answer = pin!(answer);
        loop {
            let silence = pin!(async {
                tokio::time::sleep(SILENCE).await;
                is_awaited() && self.has_lost(server).await
            });
            match select(answer.as_mut(), silence).await {
                Either::Left((answer, _)) => return answer,
                Either::Right((false, _)) => {}
                Either::Right((true, _)) => {
                    return Err(Error::new(ErrorKind::Unavailable, "the server says nothing, and its cluster has lost it"));
                }
            }
        }
    }

    /// Whether a server that slot maps named is in the newest one no more.
    async fn has_lost(&self, server: &Connection) -> bool {
        let was_named = !server.is(&self.seed) || self.seed_is_named.load(Ordering::Relaxed);
        let Some(map) = (if was_named { self.refresh().await.ok() } else { None }) else { return false };
        !map.nodes().iter().any(|node| self.connection(&map, node).is_ok_and(|named| named.is(server)))
    }

    /// Requests that failed for want of their server.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Times the slot map was asked for.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use tokio::net::TcpListener;

    use super::*;

    /// Routes that know of a server that takes connections and says nothing.
    async fn mute() -> (TcpListener, Routes, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("grpc://{}", listener.local_addr().unwrap());
        let routes = Routes::new("grpc://127.0.0.1:1").unwrap();
        let map = SlotMap::single(1, Node { id: "a".to_owned(), uri: Some(uri), ..Node::default() });
        let server = routes.connection(&map, &map.nodes()[0]).unwrap();
        *lock(&routes.map) = Some(Known { map: Arc::new(map), is_stale: false, is_doubted: false });
        (listener, routes, server)
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_say_where_a_slot_went_is_asked_once_and_not_for_long() {
        let (_listener, routes, server) = mute().await;
        let began = Instant::now();
        let told = join_all((0..30).map(|_| routes.follow(&server, Some(1)))).await;
        assert!(told.into_iter().all(|told| told.is_err_and(|error| error.is_unreached())));
        assert!(began.elapsed() <= SILENCE + Duration::from_millis(100), "{:?}", began.elapsed());
        assert_eq!(routes.lookups(), 1);
        // Who is told later asks again.
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(routes.follow(&server, Some(1)).await.is_err());
        assert_eq!(routes.lookups(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_of_whom_nothing_is_awaited_may_be_silent() {
        let (_listener, routes, server) = mute().await;
        let later = async {
            tokio::time::sleep(Duration::from_mins(1)).await;
            Ok(7)
        };
        assert_eq!(routes.unless_lost_while(&server, || false, later).await, Ok(7));
        assert_eq!(routes.lookups(), 0);
    }

    #[tokio::test]
    async fn answers_are_spread_over_lanes() {
        let connection = connection("127.0.0.1:50051", CONNECT_TIMEOUT).unwrap();
        let index = |taken: &[TakenLane]| taken.iter().map(|lane| lane.index).collect::<Vec<_>>();
        // One at a time.
        for _ in 0..2 {
            assert_eq!(connection.take_lane().index, 0);
        }
        let mut taken: Vec<_> = (0..2 * LANES).map(|_| connection.take_lane()).collect();
        assert_eq!(index(&taken), [0, 1, 2, 3, 0, 1, 2, 3]);
        // The third is free first.
        taken.retain(|lane| lane.index != 2);
        assert_eq!(connection.take_lane().index, 2);
        drop(taken);
        assert_eq!(connection.take_lane().index, 0);
    }

    #[test]
    fn addresses_of_this_host_are_known_as_such() {
        for local in
            ["/run/flightcache.sock", "localhost:50051", "127.0.0.1:1", "127.8.8.8:1", "[::1]:50051", "[::ffff:127.0.0.1]:1"]
        {
            assert!(is_local(local), "{local}");
        }
        for remote in ["10.0.0.1:50051", "cache:50051", "localhost.example.org:1", "[fe80::1]:1", "[::]:1"] {
            assert!(!is_local(remote), "{remote}");
        }
    }
}
