//! `flightcache.drain`: a node drains itself, or passes it on to the node that is meant. One hop, never a second.

use std::time::Duration;

use arrow_flight::Action;
use arrow_flight::flight_service_client::FlightServiceClient;
use flightcache_proto::action::{self, DrainRequest};
use flightcache_proto::{Error, ErrorKind, Node, NodeState, Result, SlotMap};
use tonic::transport::Endpoint;

use super::Cluster;

/// How long the other node may take.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Cluster {
    /// Has a node of the cluster own nothing any more; returns it as it will be.
    pub async fn drain_node(&self, request: &DrainRequest) -> Result<Node> {
        if self.gossip.is_none() {
            return Err(Error::invalid("this server is in no cluster: there is nobody to take over"));
        }
        let node = named(&self.slot_map(), &request.node)?;
        if node.id == self.id {
            tracing::info!("drain");
            self.drain();
            return Ok(Node { state: NodeState::Draining, ..node });
        }
        if request.passed_on {
            return Err(Error::new(ErrorKind::NotFound, format!("node {} is another one than {}", node.id, self.id)));
        }
        let passed_on = pass_on(&node);
        tokio::time::timeout(TIMEOUT, passed_on).await.unwrap_or_else(|_| Err(unreachable(&node, "it does not answer in time")))
    }
}

/// The one node whose id begins so.
fn named(map: &SlotMap, prefix: &str) -> Result<Node> {
    let mut nodes = map.nodes().iter().filter(|node| !prefix.is_empty() && node.id.starts_with(prefix));
    match (nodes.next(), nodes.next()) {
        (Some(node), None) => Ok(node.clone()),
        (None, _) => Err(Error::new(ErrorKind::NotFound, format!("no node's id begins with {prefix:?}"))),
        (Some(_), Some(_)) => Err(Error::invalid(format!("more than one node's id begins with {prefix:?}"))),
    }
}

async fn pass_on(node: &Node) -> Result<Node> {
    let uri = node.uri.as_deref().unwrap_or_default();
    let authority = ["grpc+tcp://", "grpc://", "http://"].iter().find_map(|scheme| uri.strip_prefix(scheme));
    let authority = authority.ok_or_else(|| unreachable(node, "its location is none that can be connected to"))?;
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(|e| unreachable(node, &e.to_string()))?;
    let channel = endpoint.connect().await.map_err(|e| unreachable(node, &e.to_string()))?;
    let request = DrainRequest { node: node.id.clone(), passed_on: true };
    let body = serde_json::to_vec(&request).map_err(|e| Error::internal(e.to_string()))?;
    let failed = |status: tonic::Status| {
        let kind = ErrorKind::from_grpc_code(status.code() as i32);
        Error::new(kind, format!("node {} at {uri}: {}", node.id, status.message()))
    };
    let answer = FlightServiceClient::new(channel).do_action(Action::new(action::DRAIN, body)).await.map_err(failed)?;
    let result = answer.into_inner().message().await.map_err(failed)?;
    let result = result.ok_or_else(|| unreachable(node, "it answers nothing"))?;
    serde_json::from_slice(&result.body).map_err(|e| unreachable(node, &format!("its answer cannot be read: {e}")))
}

fn unreachable(node: &Node, why: &str) -> Error {
    let uri = node.uri.as_deref().unwrap_or("an unknown location");
    Error::new(ErrorKind::Unavailable, format!("node {} at {uri}: {why}", node.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_by_what_is_its_own() {
        let node = |id: &str| Node { id: id.into(), ..Node::default() };
        let map = SlotMap::from_owners(1, ["abc", "abd", "xyz"].map(node).into(), |_| vec![0]).unwrap();
        assert_eq!(named(&map, "x").unwrap().id, "xyz");
        assert_eq!(named(&map, "abd").unwrap().id, "abd");
        assert_eq!(named(&map, "ab").unwrap_err().kind, ErrorKind::InvalidRequest);
        for missing in ["", "abcd", "q"] {
            assert_eq!(named(&map, missing).unwrap_err().kind, ErrorKind::NotFound);
        }
    }

    #[tokio::test]
    async fn a_node_alone_does_not_drain() {
        let alone = Cluster::fixed(SlotMap::single(1, Node { id: "a".into(), ..Node::default() }));
        let request = DrainRequest { node: "a".into(), passed_on: false };
        assert_eq!(alone.drain_node(&request).await.unwrap_err().kind, ErrorKind::InvalidRequest);
    }

    #[tokio::test]
    async fn locations_that_lead_nowhere_are_named() {
        for uri in ["", "grpc+unix:///a.sock", "grpc://a b"] {
            let error = pass_on(&Node { id: "a".into(), uri: Some(uri.into()), ..Node::default() }).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        }
    }
}
