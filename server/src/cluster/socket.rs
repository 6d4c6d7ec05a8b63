//! The gossip socket, which lets in only what may be of this cluster.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport};
use chitchat::{ChitchatEnvelope, ChitchatMessage, ProtocolVersion};
use lru::LruCache;
use prometheus::IntCounter;

/// Addresses that are remembered as those of peers.
const MAX_PEERS: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();
/// How long a socket that fails is left alone.
const PAUSE: Duration = Duration::from_millis(100);

/// Drops messages of other clusters, and answers that nobody asked for. Errors of single datagrams are no end of it.
pub(super) struct Guarded {
    socket: Box<dyn Socket>,
    cluster: String,
    /// Who was greeted, or greeted us by the cluster's name: only they may tell of members.
    peers: LruCache<SocketAddr, ()>,
    refused: IntCounter,
}

impl Guarded {
    pub(super) fn new(socket: Box<dyn Socket>, cluster: String, refused: IntCounter) -> Self {
        Self { socket, cluster, peers: LruCache::new(MAX_PEERS), refused }
    }

    fn admits(&mut self, from: SocketAddr, envelope: &ChitchatEnvelope) -> bool {
        match &envelope.message {
            // What is compressed may be a thousand times larger than it came.
            _ if envelope.version != ProtocolVersion::V0 => false,
            ChitchatMessage::Syn { cluster_id, .. } if *cluster_id == self.cluster => {
                self.peers.put(from, ());
                true
            }
            ChitchatMessage::SynAck { .. } | ChitchatMessage::Ack { .. } => self.peers.contains(&from),
            ChitchatMessage::Syn { .. } | ChitchatMessage::BadCluster => false,
        }
    }
}

#[async_trait]
impl Socket for Guarded {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        self.socket.local_addr()
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        self.peers.put(to, ());
        Ok(self.socket.send(to, envelope).await.unwrap_or_else(|error| {
            tracing::debug!(%to, %error, "gossip was not sent");
            SendOutcome { num_bytes_sent: 0 }
        }))
    }

    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        loop {
            match self.socket.recv().await {
                Ok(received) if self.admits(received.from_addr, &received.envelope) => return Ok(received),
                Ok(received) => {
                    self.refused.inc();
                    tracing::debug!(from = %received.from_addr, "gossip refused");
                }
                Err(error) => {
                    tracing::warn!(%error, "gossip cannot be received");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// A transport whose one socket is open already, so that its address is known before anybody is told of it.
pub(super) struct Opened(Mutex<Option<Box<dyn Socket>>>);

impl Opened {
    pub(super) fn new(socket: Guarded) -> Self {
        Self(Mutex::new(Some(Box::new(socket))))
    }
}

#[async_trait]
impl Transport for Opened {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        socket.ok_or_else(|| anyhow::anyhow!("the socket is taken"))
    }
}
