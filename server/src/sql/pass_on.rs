//! Names made and dropped at run time, passed on to the other servers.
//!
//! One task a server tells each other what that has not been told yet: all of it to one that is new, or begun anew, and what has changed
//! since to the others, again and again until they have taken it. Who is told passes it on in turn, so that it also reaches whom the
//! first one does not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flightcache_proto::action::{self, NamedTables};
use flightcache_proto::{Error, ErrorKind, Node, Result, SlotMap};
use futures::StreamExt as _;
use tokio::time::{sleep, timeout};

use super::Sql;

/// How long a server may take to be told.
const PATIENCE: Duration = Duration::from_secs(2);
/// After which the ones that were not reached are told again.
const PAUSE: Duration = Duration::from_secs(1);
/// Names in one message, which gRPC bounds: 2 MiB of the longest.
const MAX_A_MESSAGE: usize = 500;
/// Servers told at a time.
const TOLD_AT_A_TIME: usize = 16;

/// A node, as long as it runs.
type Running = (String, u64);

fn running(node: &Node) -> Running {
    (node.id.clone(), node.incarnation)
}

impl Sql {
    /// Tells the other servers of names that are made and dropped, for as long as it is polled.
    pub(crate) async fn pass_on_tables(self: Arc<Self>) {
        let cluster = self.engine.cluster();
        let mut version = self.tables.version();
        // How much of it each knows.
        let mut known: HashMap<Running, u64> = HashMap::new();
        loop {
            let now = *version.borrow_and_update();
            let map = self.engine.slot_map();
            let others: Vec<&Node> = map.nodes().iter().filter(|node| node.id != cluster.node_id()).collect();
            known.retain(|node, _| others.iter().any(|other| running(other) == *node));
            let behind = others.iter().filter_map(|&node| {
                let since = known.get(&running(node)).copied().unwrap_or_default();
                (since < now).then_some((node, since))
            });
            let told: Vec<(Running, Result<()>)> =
                futures::stream::iter(behind.map(|(node, since)| self.tell(node, &map, since)).collect::<Vec<_>>())
                    .buffer_unordered(TOLD_AT_A_TIME)
                    .collect()
                    .await;
            let mut all_know = true;
            for (node, told) in told {
                match told {
                    Err(error) if !matches!(error.kind, ErrorKind::InvalidRequest | ErrorKind::Unsupported) => {
                        tracing::debug!(node = node.0, cause = %error, "not told of tables");
                        all_know = false;
                    }
                    // It does not take them: one of another version. Its tables are its own.
                    Err(error) => {
                        tracing::warn!(node = node.0, cause = %error, "a server refuses the tables made on others");
                        known.insert(node, now);
                    }
                    Ok(()) => _ = known.insert(node, now),
                }
            }
            if all_know {
                self.tables.all_know(now);
            }
            let before: Vec<Running> = map.nodes().iter().map(running).collect();
            tokio::select! {
                // The sender lives as long as this does.
                _ = version.changed() => {}
                _ = cluster.until(|map| !map.nodes().iter().map(running).eq(before.iter().cloned())) => {}
                () = sleep(PAUSE), if !all_know => {}
            }
        }
    }

    async fn tell(&self, node: &Node, map: &SlotMap, since: u64) -> (Running, Result<()>) {
        let tell = async {
            for tables in self.tables.since(since).chunks(MAX_A_MESSAGE) {
                let body = serde_json::to_vec(&NamedTables { tables: tables.to_vec() });
                let body = body.map_err(|e| Error::internal(e.to_string()))?;
                self.engine.tell_peer(node, map, action::TABLES, body, PATIENCE).await?;
            }
            Ok(())
        };
        let late = |_| Error::new(ErrorKind::Unavailable, format!("it was not told within {PATIENCE:?}"));
        (running(node), timeout(PATIENCE, tell).await.map_err(late).flatten())
    }

    /// Takes names that another server knows.
    pub(crate) fn take_tables(&self, told: &NamedTables) -> Result<()> {
        self.tables.take(&told.tables)
    }

    /// Returns once all other servers know what was made and dropped here so far, or when some of them would have to be waited for too long:
    /// they hear of it later.
    pub(super) async fn until_all_know(&self) {
        if self.engine.slot_map().nodes().len() < 2 {
            return;
        }
        let version = *self.tables.version().borrow();
        let mut told = self.tables.told();
        if timeout(PATIENCE + PAUSE, told.wait_for(|told| *told >= version)).await.is_err() {
            tracing::warn!("some servers have not been told yet which tables were made and dropped");
        }
    }
}
