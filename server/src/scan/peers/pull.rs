//! Asking another server for column chunks.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Schema};
use flightcache::receive::{Payload, PeerFrame, PeerPayload};
use flightcache_proto::parquet::ParquetPiece;
use flightcache_proto::{Error, ErrorKind, Node, ObjectShare, PeerAsk, Populate, Result, ScanRequest, Share, SlotMap, Ticket};
use tokio::time::{Instant, timeout};

use super::{STALL, Way};
use crate::cache::{Reservation, buffers_weight, compact};
use crate::object::Segments;
use crate::parquet::{Chunk, Footer};
use crate::scan::Engine;
use crate::scan::load::{CHUNK_OVERHEAD_BYTES, RowGroupRef};
use crate::settings::Residency;

/// How long a load may take to begin: as long as it may wait for memory.
const LOAD_STALL: Duration = Duration::from_secs(30);
/// How long a pull waits for `peer_bandwidth`: the store has answered by then.
const RATE_PATIENCE: Duration = Duration::from_secs(2);
/// How long maps may differ in a cluster that is whole: some rounds of gossip.
const MAPS_DIFFER: Duration = Duration::from_millis(500);
/// Larger chunks come in pieces, or as one array whose offsets would overflow.
const MAX_CHUNK_BYTES: u64 = 1 << 30;

/// A chunk that came from another server, and what keeps it accounted.
pub(in crate::scan) enum Pulled {
    /// As it rests there, and what it weighs.
    Decoded(Chunk, u64, Reservation),
    /// As Parquet bytes.
    Encoded(Segments, Reservation),
}

/// Chunks by file column.
type Chunks = HashMap<usize, Pulled>;

impl Engine {
    /// Chunks of file columns that another server has, or loads. `transit` grows by what they take, as far as that is free. What comes
    /// is counted apart from what the store gives. Arrays come only where chunks rest as such alone.
    pub(in crate::scan) async fn pulled(&self, group: &RowGroupRef, columns: &[usize], mut transit: Reservation) -> Chunks {
        match self.try_to_pull(group, columns, transit.split(0)).await {
            Ok(chunks) => chunks,
            Err(error) if error.kind == ErrorKind::Moved => {
                // Maps differ. Soon they will not, and whoever owns the slot is to be the one that reads it.
                tokio::time::sleep(MAPS_DIFFER).await;
                self.try_to_pull(group, columns, transit).await.unwrap_or_default()
            }
            Err(_) => HashMap::new(),
        }
    }

    async fn try_to_pull(&self, group: &RowGroupRef, columns: &[usize], mut transit: Reservation) -> Result<Chunks> {
        let (slot, map) = (group.slot(), self.slot_map());
        let (nodes, ask) = self.whom_to_ask(slot, &map);
        // Who is asked to load asks nobody to. What came with the footer need not be asked for.
        if (ask != PeerAsk::Resident && group.is_for_peer) || self.footers.has_whole(&group.footer) {
            return Ok(HashMap::new());
        }
        let (mut left, mut chunks, mut failed) = (columns.to_vec(), HashMap::new(), None);
        let began = Instant::now();
        for node in nodes {
            // One that stands still is enough: the store does not.
            if began.elapsed() >= STALL {
                break;
            }
            let Some(ticket) = ticket(group, &left, ask, map.epoch()).filter(|_| !left.is_empty()) else { break };
            let pulled = self.unless_lost(&node, self.pull(group, &left, (&node, &map), ask, ticket, transit.split(0))).await;
            let outcome = pulled.as_ref().err().map_or("ok", |error| error.kind.as_str());
            self.metrics.peer_pulls.with_label_values(&[ask.as_str(), outcome]).inc();
            match pulled {
                Ok(pulled) => {
                    self.metrics.peer_chunks.inc_by(pulled.len() as u64);
                    group.meter.pulled(pulled.len() as u64);
                    left.retain(|column| !pulled.contains_key(column));
                    chunks.extend(pulled);
                }
                Err(error) => {
                    let (url, row_group) = (group.footer.object.url(), group.row_group);
                    tracing::debug!(url, row_group, node = node.id, cause = %error, "not from a peer");
                    failed = Some(error);
                }
            }
        }
        failed.filter(|_| chunks.is_empty()).map_or(Ok(chunks), Err)
    }

    async fn pull(
        &self,
        group: &RowGroupRef,
        columns: &[usize],
        (node, map): (&Node, &SlotMap),
        ask: PeerAsk,
        ticket: Ticket,
        transit: Reservation,
    ) -> Result<Chunks> {
        let Way { peer, pulls } = self.peers.way(node, map)?;
        let stalled = |what: &str| Error::new(ErrorKind::Unavailable, format!("node {}: {what}", node.id));
        let permit = timeout(STALL, pulls.acquire()).await.map_err(|_| stalled("too much is asked of it already"))?;
        let _permit = permit.map_err(|e| Error::internal(e.to_string()))?;
        let takes_arrays = self.residency == Residency::Arrow;
        let expected = |&column: &usize| {
            if takes_arrays {
                group.footer.decoded_bytes_estimate(group.row_group, column)
            } else {
                group.footer.compressed_bytes(group.row_group, column)
            }
        };
        let expected = columns.iter().map(expected).fold(0, u64::saturating_add);
        let taken = self.peers.rate.take(expected, RATE_PATIENCE).await;
        let (mut taken, waited) = taken.inspect_err(|_| self.metrics.peer_refusals.inc())?;
        self.metrics.peer_wait_seconds.observe(waited.as_secs_f64());
        let first = if ask == PeerAsk::Resident { STALL } else { LOAD_STALL };
        let answer = peer.chunks(ticket.encode().into(), ask, takes_arrays);
        let mut answer = timeout(first, answer).await.map_err(|_| stalled("no answer"))??;
        let mut coming = Coming::new(group, columns, takes_arrays, transit);
        loop {
            let patience = if coming.has_begun() { STALL } else { first };
            let frame = timeout(patience, answer.next()).await.map_err(|_| stalled("its answer does not go on"))??;
            let Some(frame) = frame else { break };
            taken.came(frame.bytes);
            self.metrics.peer_bytes.inc_by(frame.bytes);
            coming.push(frame).map_err(|error| Error { message: format!("node {}: {}", node.id, error.message), ..error })?;
        }
        drop(answer);
        let Coming { sent, batches, bytes, transit, .. } = coming;
        if let Some(bytes) = bytes {
            return bytes.chunks(transit);
        }
        let Ok(permit) = Arc::clone(&self.cpu).acquire_owned().await else {
            return Err(Error::internal("the decoders are shut down"));
        };
        let (footer, row_group) = (Arc::clone(&group.footer), group.row_group);
        // What is reserved goes with the work: it cannot be stopped, and holds its memory until it ends.
        let joined = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            decoded(&footer, row_group, &sent, batches, transit)
        });
        joined.await.map_err(|e| Error::internal(format!("joining chunks gave up: {e}")))?
    }
}

/// Asks for columns of a row group; `None` if their names do not tell them apart, or some are too large.
pub(super) fn ticket(group: &RowGroupRef, columns: &[usize], ask: PeerAsk, epoch: u64) -> Option<Ticket> {
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

/// What has come of a row group's chunks.
struct Coming<'a> {
    group: &'a RowGroupRef,
    /// What was asked for.
    columns: &'a [usize],
    takes_arrays: bool,
    /// The file columns that come, in order.
    sent: Vec<usize>,
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: Option<ComingBytes>,
    transit: Reservation,
}

impl<'a> Coming<'a> {
    fn new(group: &'a RowGroupRef, columns: &'a [usize], takes_arrays: bool, transit: Reservation) -> Self {
        Self { group, columns, takes_arrays, sent: Vec::new(), batches: Vec::new(), rows: 0, bytes: None, transit }
    }

    /// Whether any of them came.
    fn has_begun(&self) -> bool {
        !self.batches.is_empty() || self.bytes.is_some()
    }

    /// What comes is reserved as it comes, and refused beyond what there should be.
    fn push(&mut self, frame: PeerFrame) -> Result<()> {
        let RowGroupRef { footer, row_group, .. } = self.group;
        match frame.payload {
            PeerPayload::Arrow(Payload::Schema(schema)) if self.sent.is_empty() => {
                self.sent = columns_of(footer, self.columns, &schema)?;
            }
            PeerPayload::Arrow(Payload::Nothing) if frame.bytes == 0 => {}
            PeerPayload::Arrow(payload) if self.takes_arrays && self.bytes.is_none() => {
                // Once as it comes, and once as it is to rest.
                self.reserve(2 * frame.bytes)?;
                let Payload::Batch(batch) = payload else { return Ok(()) };
                self.rows += batch.num_rows();
                if batch.num_rows() == 0
                    || batch.num_columns() != self.sent.len()
                    || self.rows > footer.row_group_rows(*row_group)
                {
                    return Err(Error::internal("other rows than were asked for"));
                }
                self.batches.push(batch);
            }
            PeerPayload::Parquet(piece, body) if self.batches.is_empty() => {
                if self.bytes.is_none() {
                    let parts = self
                        .sent
                        .iter()
                        .flat_map(|&column| footer.chunk_ranges(*row_group, column).map(move |range| (column, range)));
                    let parts: Vec<(usize, Range<u64>)> = parts.collect();
                    self.reserve(parts.iter().map(|(_, range)| range.end - range.start).sum())?;
                    self.bytes = Some(ComingBytes::new(parts));
                }
                let Some(bytes) = &mut self.bytes else { return Ok(()) };
                let expected = ParquetPiece {
                    total_bytes: bytes.total,
                    offset: bytes.offset,
                    rows: footer.row_group_rows(*row_group) as u64,
                    url: footer.object.url().to_owned(),
                    row_group: *row_group,
                };
                if piece != expected || !bytes.push(&body) {
                    return Err(Error::internal("other bytes than were asked for"));
                }
            }
            PeerPayload::Arrow(_) | PeerPayload::Parquet(..) => return Err(Error::internal("a form that was not asked for")),
        }
        Ok(())
    }

    fn reserve(&mut self, bytes: u64) -> Result<()> {
        if self.transit.try_grow(bytes) {
            return Ok(());
        }
        let message = format!("chunks of {} bytes and more find no room", self.transit.bytes());
        Err(Error::new(ErrorKind::ResourceExhausted, message))
    }
}

/// The file columns that a schema names, of those that were asked for.
fn columns_of(footer: &Footer, wanted: &[usize], schema: &Schema) -> Result<Vec<usize>> {
    let mut left = wanted.to_vec();
    let column = |name: &String| {
        let at = left.iter().position(|&column| footer.schema.field(column).name() == name)?;
        Some(left.swap_remove(at))
    };
    let columns: Option<Vec<usize>> = schema.fields().iter().map(|field| field.name()).map(column).collect();
    columns.filter(|columns| !columns.is_empty()).ok_or_else(|| Error::internal("other columns than were asked for"))
}

/// Parquet bytes of column chunks, of which some came.
struct ComingBytes {
    /// File columns, where in the object their bytes lie, and what came of them.
    parts: Vec<(usize, Range<u64>, Vec<u8>)>,
    /// The part that is coming.
    at: usize,
    offset: u64,
    total: u64,
}

impl ComingBytes {
    fn new(parts: Vec<(usize, Range<u64>)>) -> Self {
        let total = parts.iter().map(|(_, range)| range.end - range.start).sum();
        // Room is made for a part when it comes: what sends nothing costs nothing.
        let parts = parts.into_iter().map(|(column, range)| (column, range, Vec::new())).collect();
        Self { parts, at: 0, offset: 0, total }
    }

    /// Takes what comes next; whether it belongs to any part.
    fn push(&mut self, mut bytes: &[u8]) -> bool {
        self.offset += bytes.len() as u64;
        while !bytes.is_empty() {
            let Some((_, range, part)) = self.parts.get_mut(self.at) else { return false };
            let size = (range.end - range.start) as usize;
            part.reserve_exact(size - part.len());
            let (taken, rest) = bytes.split_at((size - part.len()).min(bytes.len()));
            part.extend_from_slice(taken);
            bytes = rest;
            if part.len() == size {
                self.at += 1;
            }
        }
        true
    }

    /// The chunks, if all came.
    fn chunks(self, mut transit: Reservation) -> Result<Chunks> {
        if self.offset != self.total {
            return Err(Error::internal(format!("{} bytes came of {}", self.offset, self.total)));
        }
        let mut columns: HashMap<usize, Vec<Segments>> = HashMap::new();
        for (column, range, bytes) in self.parts {
            columns.entry(column).or_default().push(Segments::at(range.start, bytes.into()));
        }
        let chunk = |(column, parts)| {
            let segments = Segments::join(parts);
            let held = transit.split(segments.len());
            (column, Pulled::Encoded(segments, held))
        };
        Ok(columns.into_iter().map(chunk).collect())
    }
}

/// The columns that came as arrays, whole, as they rest there.
fn decoded(
    footer: &Footer,
    row_group: u32,
    sent: &[usize],
    batches: Vec<RecordBatch>,
    mut transit: Reservation,
) -> Result<Chunks> {
    let rows = footer.row_group_rows(row_group);
    let mut arrays = Vec::new();
    for (at, &column) in sent.iter().enumerate() {
        let pieces: Vec<&dyn Array> = batches.iter().filter_map(|batch| batch.columns().get(at)).map(|array| &**array).collect();
        let announced = footer.schema.field(column).data_type();
        // One that rests in pieces may be a dictionary in some of them only: that one is read from the store.
        let Some(array) = concat(&pieces).ok().filter(|array| rests(array, announced)) else { continue };
        if array.len() != rows {
            return Err(Error::internal(format!("a peer sent {} rows of {rows}", array.len())));
        }
        arrays.push((column, Chunk::from(compact(array))));
    }
    drop(batches);
    let chunk = |(column, chunk): (usize, Chunk)| {
        let weight = buffers_weight(chunk.pieces()) as u64 + CHUNK_OVERHEAD_BYTES;
        (column, Pulled::Decoded(chunk, weight, transit.split(weight)))
    };
    Ok(arrays.into_iter().map(chunk).collect())
}

/// Whether it is of the announced type, or a dictionary of strings where such are announced.
fn rests(array: &ArrayRef, announced: &DataType) -> bool {
    let is_folded = array.as_any_dictionary_opt().is_some_and(|dictionary| {
        announced.is_string() && dictionary.values().data_type().is_string() && dictionary.keys().data_type() == &DataType::Int32
    });
    array.data_type() == announced || is_folded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::{Cache, CacheConfig};
    use crate::scan::Chunks as ChunkCache;

    fn reservation(bytes: u64) -> Reservation {
        let config = CacheConfig {
            capacity_bytes: bytes,
            reserve_bytes: 0,
            partitions: 1,
            protected_share: 0.0,
            reserve_timeout: Duration::ZERO,
        };
        let cache: Arc<ChunkCache> = Cache::new(config);
        cache.try_reserve(bytes).unwrap()
    }

    proptest! {
        #[test]
        fn bytes_that_come_in_pieces_make_the_chunks(
            sizes in proptest::collection::vec((0_usize..3, 0_u64..300), 1..6),
            cuts in proptest::collection::vec(1_usize..200, 1..40),
            beyond in 0_usize..2,
        ) {
            // Each part lies behind the one before, with a gap between them.
            let mut start = 4;
            let parts = sizes.into_iter().map(|(column, size)| {
                let range = start..start + size;
                start = range.end + 7;
                (column, range)
            });
            let parts: Vec<(usize, Range<u64>)> = parts.collect();
            let object: Vec<u8> = (0..start).map(|at| (at * 31 % 251) as u8).collect();
            let within = |range: &Range<u64>| &object[range.start as usize..range.end as usize];
            let mut sent: Vec<u8> = parts.iter().flat_map(|(_, range)| within(range)).copied().collect();
            sent.extend(std::iter::repeat_n(0, beyond));
            let mut coming = ComingBytes::new(parts.clone());
            let (mut rest, mut cuts) = (&sent[..], cuts.iter().cycle());
            let mut is_theirs = true;
            while !rest.is_empty() {
                let (piece, left) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                is_theirs &= coming.push(piece);
                rest = left;
            }
            prop_assert_eq!(is_theirs, beyond == 0);
            if beyond > 0 {
                return Ok(());
            }
            let chunks = coming.chunks(reservation(sent.len() as u64)).unwrap();
            for (column, range) in &parts {
                let Some(Pulled::Encoded(segments, _)) = chunks.get(column) else { panic!("column {column} is missing") };
                prop_assert_eq!(&*segments.get(range.clone()).unwrap_or_default(), within(range));
            }
            let held: u64 = chunks.values().map(|chunk| if let Pulled::Encoded(_, held) = chunk { held.bytes() } else { 0 }).sum();
            prop_assert_eq!(held, sent.len() as u64);
        }
    }

    #[test]
    fn bytes_that_are_missing_make_nothing() {
        let mut coming = ComingBytes::new(vec![(0, 4..14), (2, 20..25)]);
        assert!(coming.push(&[0; 14]));
        assert!(coming.chunks(reservation(15)).is_err());
    }
}
