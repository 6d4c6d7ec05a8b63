//! A server of a cluster, as the others ask it.

use arrow_flight::Action;
use bytes::Bytes;
use flightcache_proto::{PeerAsk, Result};
use futures::TryStreamExt as _;

use crate::receive::{self, PeerAnswer};
use crate::retry::from_status;
use crate::routes::{Connection, connect, flight};

/// A way to a server. Cheap to clone; it connects when it is first used.
#[derive(Clone, Debug)]
pub struct Peer(Connection);

impl Peer {
    /// The server at a location such as `grpc+tcp://10.0.0.7:50051`.
    pub fn at(location: &str) -> Result<Self> {
        connect(location).map(Self)
    }

    /// Asks for the column chunks of a share of one row group: as Parquet bytes or, if it `takes_arrays`, as those from a server that
    /// keeps no such bytes.
    pub async fn chunks(&self, ticket: Bytes, ask: PeerAsk, takes_arrays: bool) -> Result<PeerAnswer> {
        receive::pull(&self.0, ticket, ask, takes_arrays).await
    }

    /// Sends an action, once; its results.
    pub async fn act(&self, name: &str, body: Vec<u8>) -> Result<Vec<Bytes>> {
        let results = flight(self.0.channel()).do_action(Action::new(name, body)).await.map_err(|e| from_status(&e))?;
        results.into_inner().map_ok(|result| result.body).try_collect().await.map_err(|e| from_status(&e))
    }
}
