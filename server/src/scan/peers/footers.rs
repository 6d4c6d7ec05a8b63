//! Footers that other servers have: asked for before the store, where nothing is known of an object.
//!
//! Who owns an object's row groups has its footer, and so has who plans its scans. They are asked for what is resident there; nobody
//! reads a footer for another.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flightcache_proto::action::{FooterRequest, ToldFooter};
use flightcache_proto::{Error, ErrorKind, Node, ObjectShare, Part, Result, Slot, SlotMap};
use futures::FutureExt as _;
use tokio::time::{Instant, timeout};

use super::Way;
use crate::object::{ObjectRef, Segments};
use crate::parquet::{Elsewhere, Footers, Told, Wanted};
use crate::scan::Engine;

/// How long servers may be asked for a footer, one after the other: a few are as a rule, none of which reads anything for it.
const PATIENCE: Duration = Duration::from_secs(3);
/// What a footer is expected to be, before it is known.
const EXPECTED_BYTES: u64 = 64 << 10;
/// Bytes of one message.
const MESSAGE_BYTES: usize = 1 << 20;

/// What another server is told: the head, and the bytes that follow it.
pub(crate) struct FooterAnswer {
    pub(crate) told: ToldFooter,
    pub(crate) bytes: Vec<Bytes>,
}

impl Engine {
    /// A footer that another server has, for who is to read that share of the object: of the version that the share is of.
    pub(in crate::scan) fn footer_elsewhere(
        self: &Arc<Self>,
        object: &ObjectRef,
        share: Option<&ObjectShare>,
    ) -> impl Fn(Wanted) -> Elsewhere {
        move |mut wanted| {
            let (engine, url) = (Arc::clone(self), object.shared_url());
            let row_groups = share.and_then(|share| share.row_groups.as_ref());
            let row_group = row_groups.and_then(|groups| groups.first()).copied().unwrap_or_default();
            wanted.version = wanted.version.or_else(|| share.and_then(|share| share.version.clone()));
            async move { timeout(PATIENCE, engine.ask_for_footer(&url, row_group, wanted)).await.ok()? }.boxed()
        }
    }

    async fn ask_for_footer(&self, url: &str, row_group: u32, wanted: Wanted) -> Option<Told> {
        let max_age_ms = wanted.since.map(|since| since.elapsed().as_millis() as u64);
        // It was forgotten just now, or nothing is fresh enough.
        if max_age_ms == Some(0) {
            return None;
        }
        let map = self.slot_map();
        let request = FooterRequest { url: url.to_owned(), version: wanted.version, max_age_ms };
        for node in self.who_may_have_footer(url, row_group, &map) {
            let told = self.unless_lost(&node, self.pull_footer(&node, &map, &request)).await;
            let outcome = told.as_ref().err().map_or("ok", |error| error.kind.as_str());
            self.metrics.peer_pulls.with_label_values(&["footer", outcome]).inc();
            match told {
                Ok(told) => return Some(told),
                Err(error) => tracing::debug!(url, node = node.id, cause = %error, "no footer from a peer"),
            }
        }
        None
    }

    /// Who plans scans of the object, and who owns the row group; of what is this server's own, who had it before. Six at most.
    fn who_may_have_footer(&self, url: &str, row_group: u32, map: &SlotMap) -> Vec<Node> {
        let mut nodes: Vec<Node> = Vec::new();
        for part in [Part::Footer, Part::RowGroup(row_group)] {
            for node in self.whom_to_ask(Slot::of(url, part), map).0 {
                if !nodes.iter().any(|known| known.id == node.id) {
                    nodes.push(node);
                }
            }
        }
        nodes
    }

    async fn pull_footer(&self, node: &Node, map: &SlotMap, request: &FooterRequest) -> Result<Told> {
        let Way { peer, pulls } = self.peers.way(node, map)?;
        let _permit = pulls.acquire().await.map_err(|e| Error::internal(e.to_string()))?;
        let taken = self.peers.rate.take(EXPECTED_BYTES, PATIENCE).await;
        let (mut taken, waited) = taken.inspect_err(|_| self.metrics.peer_refusals.inc())?;
        self.metrics.peer_wait_seconds.observe(waited.as_secs_f64());
        let asked_at = Instant::now();
        let (told, mut bytes) = peer.footer(request).await?;
        if request.version.as_ref().is_some_and(|version| *version != told.version) {
            return Err(Error::internal("a footer of another version than was asked for"));
        }
        taken.came(bytes.len() as u64);
        self.metrics.peer_bytes.inc_by(bytes.len() as u64);
        // It was that old when it was told, which was later.
        let confirmed_at = asked_at.checked_sub(Duration::from_millis(told.age_ms));
        let confirmed_at = confirmed_at.ok_or_else(|| Error::internal("a footer was told that is older than clocks tell"))?;
        let parts = told.pieces.iter().map(|&(start, len)| Segments::at(start, bytes.split_to(len as usize)));
        let tail = Segments::join(parts.collect::<Vec<_>>());
        Ok(Told { version: told.version.parse()?, size: told.size, tail, confirmed_at })
    }

    /// What another server asks for, if it is resident.
    pub(crate) fn tell_footer(&self, request: &FooterRequest) -> Result<FooterAnswer> {
        told(&self.footers, request).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{}: no such footer is resident, of a version that is fresh enough", request.url),
            )
        })
    }
}

fn told(footers: &Footers, request: &FooterRequest) -> Option<FooterAnswer> {
    let (footer, confirmed_at) = footers.resident_of(&request.url)?;
    let version = footer.version()?.to_string();
    // Rounded up: it must not seem fresher than it is.
    let age_ms = confirmed_at.elapsed().as_millis() as u64 + 1;
    let is_wanted = request.version.as_ref().is_none_or(|wanted| *wanted == version);
    if !is_wanted || request.max_age_ms.is_some_and(|max_age_ms| age_ms > max_age_ms) {
        return None;
    }
    let tail = footer.tail.as_ref()?;
    let parts: Vec<(u64, &[u8])> = tail.pieces().iter().map(|(start, bytes)| (*start, &**bytes)).collect();
    let told = ToldFooter::new(&request.url, version, footer.size, age_ms, &parts);
    let message = |bytes: &Bytes, at: usize| bytes.slice(at..bytes.len().min(at + MESSAGE_BYTES));
    let messages =
        tail.pieces().iter().flat_map(|(_, bytes)| (0..bytes.len()).step_by(MESSAGE_BYTES).map(move |at| message(bytes, at)));
    Some(FooterAnswer { told, bytes: messages.collect() })
}
