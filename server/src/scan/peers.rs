//! Column chunks of other servers of the cluster, asked for before the store.
//!
//! A slot's chunks are read from the store by its preferred owner; any other server asks that one, which loads what it lacks. The
//! preferred owner itself asks whom the slot came from, as long as that is not long ago, for what is resident there. Who is asked asks
//! nobody to load: there are no circles. While two servers' maps differ, one may wait for a load that waits for it; what gets
//! nothing for [`LOAD_STALL`] reads the store.
//!
//! Nothing depends on an answer: whatever goes wrong, the store is asked instead.

mod rate;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray as _, RecordBatch};
use arrow::compute::concat;
use arrow::datatypes::DataType;
use flightcache::peer::Peer;
use flightcache::receive::{Answer, Payload};
use flightcache_proto::action::{self, Evicted, MAX_RENEWED, Renewed, UrlRequest};
use flightcache_proto::{
    Error, ErrorKind, Node, NodeState, ObjectId, ObjectShare, Part, PeerAsk, Populate, Result, ScanRequest, Share, Slot, SlotMap,
    Ticket,
};
use futures::StreamExt as _;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::rate::Rate;
use super::Engine;
use super::load::{CHUNK_OVERHEAD_BYTES, RowGroupRef};
use super::plan::ScanPlan;
use super::resident::{ChunkKey, Form};
use crate::cache::{Reservation, buffers_weight, compact};
use crate::parquet::{Chunk, Footer};

/// Row groups asked of one server at a time.
const PULLS: usize = 16;
/// How long nothing may come of an answer that has begun, or of one for which nothing has to be loaded.
const STALL: Duration = Duration::from_secs(10);
/// How long a load may take to begin: as long as it may wait for memory.
const LOAD_STALL: Duration = Duration::from_secs(30);
/// How long a pull waits for `peer_bandwidth`: the store has answered by then.
const RATE_PATIENCE: Duration = Duration::from_secs(2);
/// Larger chunks come in pieces, or as one array whose offsets would overflow.
const MAX_CHUNK_BYTES: u64 = 1 << 30;
/// Row groups handed over at a time.
const HANDED_OVER_AT_A_TIME: usize = 4;
/// Times that is tried, and the pause after the first.
const HAND_OVER_ATTEMPTS: u32 = 3;
const HAND_OVER_PAUSE: Duration = Duration::from_millis(200);
/// Servers an action is sent to at a time.
const TOLD_AT_A_TIME: usize = 16;

/// The ways to other servers, and how much may come over all of them.
#[derive(Debug)]
pub(super) struct Peers {
    known: Mutex<HashMap<String, Way>>,
    rate: Rate,
}

/// To one server, and a permit for each row group that may be asked for.
#[derive(Clone, Debug)]
struct Way {
    peer: Peer,
    pulls: Arc<Semaphore>,
}

impl Peers {
    /// Nobody is known yet. At most `bytes_per_second` may come, if that is said.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { known: Mutex::default(), rate: Rate::new(bytes_per_second) }
    }

    /// The way to a node, kept for the next time. Those of nodes that are gone are forgotten.
    fn way(&self, node: &Node, map: &SlotMap) -> Result<Way> {
        let unreachable = || Error::new(ErrorKind::Unavailable, format!("node {} has no location", node.id));
        let uri = node.uri.as_deref().ok_or_else(unreachable)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = known.get(uri) {
            return Ok(way.clone());
        }
        known.retain(|uri, _| map.nodes().iter().any(|node| node.uri.as_ref() == Some(uri)));
        let way = Way { peer: Peer::at(uri)?, pulls: Arc::new(Semaphore::new(PULLS)) };
        known.insert(uri.to_owned(), way.clone());
        Ok(way)
    }
}

impl Engine {
    /// Refuses what was sent here by an older map, if by the newer one here it is others'.
    pub(crate) fn check_route(&self, ticket: &Ticket, epoch: u64) -> Result<()> {
        let Ticket::Share(share) = ticket else { return Ok(()) };
        let (map, me) = (self.slot_map(), self.cluster.node_id());
        let Some(slot) = share.objects.first().and_then(slot_of).filter(|_| map.epoch() > epoch) else { return Ok(()) };
        if map.owners(slot).any(|owner| owner.id == me) {
            return Ok(());
        }
        Err(moved(slot, &map))
    }

    /// Refuses to load for another server what by the map here is not this one's to load.
    pub(crate) fn check_ask(&self, ticket: &Ticket, ask: PeerAsk) -> Result<()> {
        let Ticket::Share(Share { objects, .. }) = ticket else {
            return Err(Error::invalid("servers ask each other for shares of one row group"));
        };
        let [object] = &objects[..] else { return Err(Error::invalid("servers ask each other for one object's row groups")) };
        let slot = slot_of(object).ok_or_else(|| Error::invalid("servers ask each other for row groups they name"))?;
        let map = self.slot_map();
        if ask != PeerAsk::Resident && map.owner(slot).id != self.cluster.node_id() {
            return Err(moved(slot, &map));
        }
        Ok(())
    }

    /// Of the columns that a plan answers, those whose chunks are resident, all row groups'.
    pub(crate) fn resident_columns(&self, plan: &ScanPlan) -> Vec<String> {
        let is_resident = |column: usize| {
            plan.objects.iter().all(|object| {
                let (Some(id), Some(file_column)) = (&object.footer.id, super::file_column(&object.columns[column])) else {
                    return false;
                };
                object.row_groups.iter().all(|&row_group| {
                    let column = file_column as u32;
                    self.chunks.contains(&ChunkKey { object: Arc::clone(id), row_group, column, form: Form::Decoded })
                })
            })
        };
        plan.output.iter().filter(|&&column| is_resident(column)).map(|&column| plan.table.field(column).name().clone()).collect()
    }

    /// Whom to ask for chunks of a slot, and what for.
    fn whom_to_ask(&self, slot: Slot, map: &SlotMap) -> Option<(Node, PeerAsk)> {
        if map.nodes().len() < 2 {
            return None;
        }
        let preferred = map.owner(slot);
        if preferred.id == self.cluster.node_id() {
            return self.cluster.previous_owner(slot).map(|node| (node, PeerAsk::Resident));
        }
        Some((preferred.clone(), PeerAsk::Load))
    }

    /// Chunks of file columns that another server has, or loads; `transit` grows by what they take meanwhile, as far as that is free.
    /// What comes is counted apart from what the store gives.
    pub(super) async fn pulled(
        &self,
        group: &RowGroupRef,
        columns: &[usize],
        transit: Reservation,
    ) -> HashMap<usize, (Chunk, u64, Reservation)> {
        let (slot, map) = (group.slot(), self.slot_map());
        // Who is asked to load asks nobody to. What came with the footer need not be asked for.
        let may_ask = |(_, ask): &(Node, PeerAsk)| {
            (*ask == PeerAsk::Resident || !group.is_for_peer) && !self.footers.has_whole(&group.footer)
        };
        let Some((node, ask)) = self.whom_to_ask(slot, &map).filter(may_ask) else { return HashMap::new() };
        let Some(ticket) = ticket(group, columns, ask, map.epoch()) else { return HashMap::new() };
        let pulled = self.pull(group, columns, (&node, &map), ask, ticket, transit).await;
        let outcome = match &pulled {
            Ok(_) => "ok",
            Err(error) => error.kind.as_str(),
        };
        self.metrics.peer_pulls.with_label_values(&[ask.as_str(), outcome]).inc();
        match pulled {
            Ok(chunks) => {
                self.metrics.peer_bytes.inc_by(chunks.values().map(|(_, weight, _)| weight).sum());
                self.metrics.peer_chunks.inc_by(chunks.len() as u64);
                group.meter.pulled(chunks.len() as u64);
                chunks
            }
            Err(error) => {
                let (url, row_group) = (group.footer.object.url(), group.row_group);
                tracing::debug!(url, row_group, node = node.id, cause = %error, "not from a peer: the store is asked");
                HashMap::new()
            }
        }
    }

    async fn pull(
        &self,
        group: &RowGroupRef,
        columns: &[usize],
        (node, map): (&Node, &SlotMap),
        ask: PeerAsk,
        ticket: Ticket,
        mut transit: Reservation,
    ) -> Result<HashMap<usize, (Chunk, u64, Reservation)>> {
        let Way { peer, pulls } = self.peers.way(node, map)?;
        let stalled = |what: &str| Error::new(ErrorKind::Unavailable, format!("node {}: {what}", node.id));
        let permit = timeout(STALL, pulls.acquire()).await.map_err(|_| stalled("too much is asked of it already"))?;
        let _permit = permit.map_err(|e| Error::internal(e.to_string()))?;
        let expected = columns.iter().map(|&column| group.footer.decoded_bytes_estimate(group.row_group, column));
        let taken = self.peers.rate.take(expected.fold(0, u64::saturating_add), RATE_PATIENCE).await;
        let (mut taken, waited) = taken.inspect_err(|_| self.metrics.peer_refusals.inc())?;
        self.metrics.peer_wait_seconds.observe(waited.as_secs_f64());
        let first = if ask == PeerAsk::Resident { STALL } else { LOAD_STALL };
        let mut answer = timeout(first, peer.chunks(ticket.encode().into(), ask)).await.map_err(|_| stalled("no answer"))??;
        let (mut batches, mut rows, mut bytes) = (Vec::new(), 0, 0);
        loop {
            let patience = if batches.is_empty() { first } else { STALL };
            let batch = timeout(patience, next_batch(&mut answer)).await.map_err(|_| stalled("its answer does not go on"))??;
            let Some(batch) = batch else { break };
            rows += batch.num_rows();
            let more = batch.get_array_memory_size() as u64;
            bytes += more;
            taken.came(more);
            if batch.num_rows() == 0 || rows > group.footer.row_group_rows(group.row_group) {
                return Err(Error::internal(format!("node {} sent other rows than it was asked for", node.id)));
            }
            // Once as it comes, and once as it is to rest.
            if !transit.try_grow(2 * more) {
                let message = format!("chunks of {bytes} bytes and more from node {} find no room", node.id);
                return Err(Error::new(ErrorKind::ResourceExhausted, message));
            }
            batches.push(batch);
        }
        let Ok(permit) = Arc::clone(&self.cpu).acquire_owned().await else {
            return Err(Error::internal("the decoders are shut down"));
        };
        let (footer, row_group, columns) = (Arc::clone(&group.footer), group.row_group, columns.to_vec());
        // What is reserved goes with the work: it cannot be stopped, and holds its memory until it ends.
        let joined = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let chunks = chunks_of(&footer, row_group, &columns, &batches)?;
            drop(batches);
            let weighed = chunks.into_iter().map(|(column, chunk)| {
                let weight = buffers_weight(chunk.pieces()) as u64 + CHUNK_OVERHEAD_BYTES;
                (column, (chunk, weight, transit.split(weight)))
            });
            Ok(weighed.collect())
        });
        joined.await.map_err(|e| Error::internal(format!("joining chunks gave up: {e}")))?
    }

    /// Has the preferred owner of a row group load columns of it; `false` where that is this server, or cannot be asked.
    pub(super) async fn warm_at_owner(&self, group: &RowGroupRef, columns: &[usize]) -> bool {
        let slot = group.slot();
        let map = self.slot_map();
        if map.nodes().len() < 2 || map.owner(slot).id == self.cluster.node_id() {
            return false;
        }
        let Some(ticket) = ticket(group, columns, PeerAsk::Warm, map.epoch()) else { return false };
        let warm = async {
            let mut answer = self.peers.way(map.owner(slot), &map)?.peer.chunks(ticket.encode().into(), PeerAsk::Warm).await?;
            while answer.next().await?.is_some() {}
            Ok::<_, Error>(())
        };
        warm.await.is_ok()
    }

    /// Has the owners of the slots that were this server's own `before` it drains load, from here, what is resident of them. Once;
    /// whoever asks waits for it.
    pub(crate) async fn hand_over(self: &Arc<Self>, before: &SlotMap) {
        self.handed_over.get_or_init(|| self.hand_over_chunks(before)).await;
    }

    async fn hand_over_chunks(self: &Arc<Self>, before: &SlotMap) {
        let me = self.cluster.node_id();
        if !self.slot_map().nodes().iter().any(|node| node.state == NodeState::Active && node.id != me) {
            return;
        }
        let was_own = |slot: Slot| before.owners(slot).any(|owner| owner.id == me);
        let mut groups: HashMap<(Arc<ObjectId>, u32), Vec<usize>> = HashMap::new();
        self.chunks.for_each_resident(|key, _| {
            let columns = groups.entry((Arc::clone(&key.object), key.row_group)).or_default();
            if !columns.contains(&(key.column as usize)) {
                columns.push(key.column as usize);
            }
        });
        let footers = self.footers.resident().into_iter().filter_map(|footer| Some((footer.id.clone()?, footer)));
        let footers: HashMap<Arc<ObjectId>, Arc<Footer>> = footers.collect();
        let groups = groups.into_iter().filter_map(|((object, row_group), columns)| {
            let group = RowGroupRef {
                footer: Arc::clone(footers.get(&object)?),
                row_group,
                request: 0,
                populate: Populate::Auto,
                meter: Arc::default(),
                record: None,
                is_for_peer: false,
            };
            Some((group, columns))
        });
        let groups = groups.filter(|(group, _)| was_own(group.slot()));
        let (groups, started) = (groups.collect::<Vec<_>>(), std::time::Instant::now());
        let all = groups.len();
        let taken = futures::stream::iter(groups)
            .map(|(group, columns)| async move {
                for attempt in 1..=HAND_OVER_ATTEMPTS {
                    if self.warm_at_owner(&group, &columns).await {
                        return true;
                    }
                    // Its owner may not know yet that it is.
                    tokio::time::sleep(HAND_OVER_PAUSE * attempt).await;
                }
                false
            })
            .buffer_unordered(HANDED_OVER_AT_A_TIME)
            .filter(|taken| std::future::ready(*taken))
            .count()
            .await;
        tracing::info!(row_groups = all, taken, elapsed_ms = started.elapsed().as_millis() as u64, "handed over");
    }

    /// Forgets a URL here and, unless that was done already, on all other servers; how much that was. An error names the servers that
    /// could not be reached; the others have forgotten it.
    pub(crate) async fn evict_everywhere(&self, request: &UrlRequest) -> Result<Evicted> {
        let mut evicted = self.evict(&request.url)?;
        if request.passed_on {
            return Ok(evicted);
        }
        let passed_on = UrlRequest { passed_on: true, ..request.clone() };
        let body = serde_json::to_vec(&passed_on).map_err(|e| Error::internal(e.to_string()))?;
        let mut failed = Vec::new();
        for (node, answer) in self.tell_peers(action::EVICT, &body).await {
            let there = answer.and_then(|bodies| {
                let body = bodies.first().ok_or_else(|| Error::internal("it answered nothing"))?;
                serde_json::from_slice::<Evicted>(body).map_err(|e| Error::internal(e.to_string()))
            });
            match there {
                Ok(there) => {
                    evicted.chunks += there.chunks;
                    evicted.bytes += there.bytes;
                    evicted.footers += there.footers;
                }
                Err(error) => failed.push(format!("{}: {error}", node.id)),
            }
        }
        // Meanwhile chunks may have come from one that had not forgotten them yet.
        let late = self.evict(&request.url)?;
        evicted.chunks += late.chunks;
        evicted.bytes += late.bytes;
        evicted.footers += late.footers;
        if failed.is_empty() {
            return Ok(evicted);
        }
        let message = format!("{}: forgotten, but not on {}", request.url, failed.join("; "));
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// Forgets footers of objects that another server saw overwritten.
    pub(crate) fn forget_renewed(&self, renewed: &Renewed) -> Result<()> {
        if renewed.objects.len() > MAX_RENEWED {
            return Err(Error::invalid(format!("{} objects; at most {MAX_RENEWED} at a time", renewed.objects.len())));
        }
        if self.footers.forget_renewed(&renewed.objects) > 0 {
            self.listings.clear();
        }
        Ok(())
    }

    /// Tells all other servers of objects that turn out overwritten here, for as long as it is polled. A server validates for itself
    /// whatever it is told, or not told: this has it see sooner what it would see in the end.
    pub(crate) async fn pass_on_renewals(self: Arc<Self>) {
        let renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut renewed) = renewed else { return };
        let mut objects = Vec::new();
        while renewed.recv_many(&mut objects, MAX_RENEWED).await > 0 {
            let told = Renewed { objects: std::mem::take(&mut objects) };
            if self.slot_map().nodes().len() < 2 {
                continue;
            }
            let Ok(body) = serde_json::to_vec(&told) else { continue };
            for (node, answer) in self.tell_peers(action::RENEWED, &body).await {
                if let Err(error) = answer {
                    tracing::debug!(node = node.id, cause = %error, "not told of overwritten objects");
                }
            }
        }
    }

    /// Sends an action to all other servers; what each answered.
    async fn tell_peers(&self, action: &str, body: &[u8]) -> Vec<(Node, Result<Vec<bytes::Bytes>>)> {
        let (map, me) = (self.slot_map(), self.cluster.node_id());
        let others: Vec<Node> = map.nodes().iter().filter(|node| node.id != me).cloned().collect();
        let told = others.into_iter().map(|node| {
            let way = self.peers.way(&node, &map);
            async move {
                let stalled = |_| Error::new(ErrorKind::Unavailable, format!("node {} did not answer within {STALL:?}", node.id));
                let act = async { way?.peer.act(action, body.to_vec()).await };
                let answer = timeout(STALL, act).await.map_err(stalled).and_then(|answer| answer);
                (node, answer)
            }
        });
        futures::stream::iter(told).buffer_unordered(TOLD_AT_A_TIME).collect().await
    }
}

/// Of the first row group of a share, where it names one.
fn slot_of(object: &ObjectShare) -> Option<Slot> {
    let first = object.row_groups.as_ref().and_then(|groups| groups.first());
    first.map(|&group| Slot::of(&object.url, Part::RowGroup(group)))
}

fn moved(slot: Slot, map: &SlotMap) -> Error {
    let message = format!("slot {} belongs to node {} as of epoch {}", slot.get(), map.owner(slot).id, map.epoch());
    Error::new(ErrorKind::Moved, message)
}

/// Asks for columns of a row group; `None` if their names do not tell them apart, or some are too large.
fn ticket(group: &RowGroupRef, columns: &[usize], ask: PeerAsk, epoch: u64) -> Option<Ticket> {
    let footer = &group.footer;
    let names: Vec<String> = columns.iter().map(|&column| footer.schema.field(column).name().clone()).collect();
    let is_one = |name: &String| footer.schema.fields().iter().filter(|field| field.name() == name).count() == 1;
    let is_small = |&column: &usize| footer.decoded_bytes_estimate(group.row_group, column) < MAX_CHUNK_BYTES;
    let version = footer.version()?.to_string();
    if !names.iter().all(is_one) || !columns.iter().all(is_small) {
        return None;
    }
    let populate = if ask == PeerAsk::Resident { Populate::Never } else { group.populate };
    let url = footer.object.url().to_owned();
    let object = ObjectShare { url: url.clone(), version: Some(version), row_groups: Some(vec![group.row_group]) };
    Some(Ticket::Share(Share {
        scan: ScanRequest { columns: Some(names), populate, ..ScanRequest::new(url) },
        objects: vec![object],
        epoch,
        schema: None,
        schema_hash: 0,
        asked_at_us: 0,
    }))
}

async fn next_batch(answer: &mut Answer) -> Result<Option<RecordBatch>> {
    while let Some(frame) = answer.next().await? {
        if let Payload::Batch(batch) = frame.payload {
            return Ok(Some(batch));
        }
    }
    Ok(None)
}

/// The columns that came, whole, as they rest there.
fn chunks_of(footer: &Footer, row_group: u32, columns: &[usize], batches: &[RecordBatch]) -> Result<HashMap<usize, Chunk>> {
    let Some(first) = batches.first() else { return Err(Error::internal("a peer sent no rows")) };
    let mut chunks = HashMap::new();
    for (at, sent) in first.schema_ref().fields().iter().enumerate() {
        let wanted = columns.iter().find(|&&column| footer.schema.field(column).name() == sent.name());
        let Some(&column) = wanted else { return Err(Error::internal("a peer sent a column that it was not asked for")) };
        let pieces: Vec<&dyn arrow::array::Array> =
            batches.iter().filter_map(|batch| batch.columns().get(at)).map(|c| &**c).collect();
        let announced = footer.schema.field(column).data_type();
        // One that rests in pieces may be a dictionary in some of them only: that one is read from the store.
        let Some(array) = concat(&pieces).ok().filter(|array| rests(array, announced)) else { continue };
        if array.len() != footer.row_group_rows(row_group) {
            return Err(Error::internal(format!("a peer sent {} rows of {}", array.len(), footer.row_group_rows(row_group))));
        }
        chunks.insert(column, Chunk::from(compact(array)));
    }
    Ok(chunks)
}

/// Whether it is of the announced type, or a dictionary of strings where such are announced.
fn rests(array: &ArrayRef, announced: &DataType) -> bool {
    let is_folded = array.as_any_dictionary_opt().is_some_and(|dictionary| {
        announced.is_string() && dictionary.values().data_type().is_string() && dictionary.keys().data_type() == &DataType::Int32
    });
    array.data_type() == announced || is_folded
}
