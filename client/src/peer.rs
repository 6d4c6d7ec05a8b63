//! A server of a cluster, as the others ask it.

use arrow_flight::Action;
use bytes::{Bytes, BytesMut};
use flightcache_proto::action::{self, FooterRequest, ToldFooter};
use flightcache_proto::{Error, PeerAsk, Result};
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

    /// Asks for a footer that is resident there: what is told of it, and its bytes, which are the ones that were told, and not too many.
    pub async fn footer(&self, request: &FooterRequest) -> Result<(ToldFooter, Bytes)> {
        let body = serde_json::to_vec(request).map_err(|e| Error::internal(e.to_string()))?;
        let results = flight(self.0.channel()).do_action(Action::new(action::FOOTER, body)).await.map_err(|e| from_status(&e))?;
        let mut results = results.into_inner();
        let told = results.message().await.map_err(|e| from_status(&e))?;
        let told = told.ok_or_else(|| Error::internal("the server told nothing of a footer"))?;
        let told: ToldFooter = serde_json::from_slice(&told.body)
            .map_err(|e| Error::internal(format!("what is told of a footer cannot be read: {e}")))?;
        let (total, mut bytes) = (told.total_bytes()?, BytesMut::new());
        while let Some(result) = results.message().await.map_err(|e| from_status(&e))? {
            if (bytes.len() + result.body.len()) as u64 > total {
                return Err(Error::internal("more bytes of a footer came than were told"));
            }
            bytes.extend_from_slice(&result.body);
        }
        told.check(&request.url, &bytes)?;
        Ok((told, bytes.freeze()))
    }
}
