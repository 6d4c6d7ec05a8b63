//! Getting column chunks: from the cache, from a load under way, or from the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use flightcache_proto::{Error, ErrorKind, Populate, Result};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{ChunkKey, ChunkPermit, Engine};
use crate::admin::{ScanMeter, add_time};
use crate::cache::{Flight, FlightError, LoadGroup, Lookup, Pinned, Reservation, ReserveError, buffers_weight};
use crate::object::{Reads, Segments, read_bytes};
use crate::parquet::{Chunk, DecodeError, Footer, decode_chunk, decoder_panic};
use crate::record::{LookedUp, Place, RowGroupRecord};

/// Why a chunk could not be had.
#[derive(Clone, Debug)]
pub(crate) enum LoadError {
    /// It is larger than memory may ever hold: read it in bands.
    TooLarge,
    /// Anything else.
    Failed(Error),
}

/// A row group of an object version, and for whom it is read.
#[derive(Clone)]
pub(crate) struct RowGroupRef {
    pub(crate) footer: Arc<Footer>,
    pub(crate) row_group: u32,
    pub(crate) request: u64,
    pub(crate) populate: Populate,
    pub(crate) meter: Arc<ScanMeter>,
    pub(crate) record: Option<Arc<RowGroupRecord>>,
}

enum Wanted {
    Ready(Pinned<Chunk>),
    Coming(Flight<Chunk, LoadError>),
}

impl Wanted {
    fn resident_bytes(&self) -> Option<u64> {
        match self {
            Self::Ready(chunk) => Some(chunk.weight_bytes()),
            Self::Coming(_) => None,
        }
    }
}

impl RowGroupRef {
    /// Bytes that are read for these columns, the gaps between them included.
    pub(crate) fn fetched_bytes(&self, columns: &[usize]) -> u64 {
        read_bytes(&self.ranges(columns))
    }

    /// Memory an array takes at its height: what it holds, and what it grows by while it is built.
    fn decoded_bytes(&self, column: usize) -> u64 {
        let decoded = self.footer.decoded_bytes_estimate(self.row_group, column);
        decoded.saturating_add(decoded / 4)
    }

    pub(crate) fn ranges(&self, columns: &[usize]) -> Vec<std::ops::Range<u64>> {
        columns.iter().flat_map(|&column| self.footer.chunk_ranges(self.row_group, column)).collect()
    }

    /// Records a look-up of file columns; `resident` says of each what it weighs, or that it was missing.
    pub(crate) fn looked_up(&self, columns: &[usize], resident: impl Iterator<Item = Option<u64>>) {
        let Some(record) = &self.record else { return };
        let place = Place { url: self.footer.object.url(), row_group: self.row_group, schema: &self.footer.schema };
        let found = columns.iter().zip(resident).map(|(&column, resident)| {
            let bytes = resident.unwrap_or_else(|| self.footer.decoded_bytes_estimate(self.row_group, column));
            LookedUp { column: column as u32, bytes, hit: resident.is_some() }
        });
        record.looked_up(&place, found);
    }

    /// Records what those that were missing turned out to weigh.
    fn loaded(&self, columns: &[usize], chunks: &[Pinned<Chunk>]) {
        let Some(record) = &self.record else { return };
        record.loaded(columns.iter().zip(chunks).map(|(&column, chunk)| (column as u32, chunk.weight_bytes())));
    }

    pub(crate) fn error(&self, error: &ReserveError) -> Error {
        let message = format!("{} row group {}: {error}", self.footer.object.url(), self.row_group);
        Error::new(ErrorKind::ResourceExhausted, message)
    }
}

impl Engine {
    /// The chunks of file columns `columns`, in that order. What is missing is loaded together, by one task that goes on as
    /// long as anybody waits for any of it.
    ///
    /// `reserved` is told once the memory for what this call loads is reserved, or at once if it loads nothing.
    pub(crate) async fn chunks(
        self: &Arc<Self>,
        group: &RowGroupRef,
        columns: &[usize],
        reserved: oneshot::Sender<()>,
    ) -> Result<Vec<Pinned<Chunk>>, LoadError> {
        let Some(object) = group.footer.id.clone() else {
            return self.uncached(group, columns, reserved).await;
        };
        let load = LoadGroup::new();
        let mut permits = Vec::new();
        // What this call holds while it waits: it cannot become free for it.
        let mut held_bytes = 0;
        let mut wanted = Vec::with_capacity(columns.len());
        let key = |&column: &usize| ChunkKey { object: Arc::clone(&object), row_group: group.row_group, column: column as u32 };
        let keys: Vec<ChunkKey> = columns.iter().map(key).collect();
        for found in self.chunks.lookup_all(&keys, group.request, group.populate == Populate::Auto, &load) {
            wanted.push(match found {
                Lookup::Hit(chunk) => {
                    group.meter.chunks_hit.fetch_add(1, Ordering::Relaxed);
                    self.metrics.hit_bytes.inc_by(chunk.weight_bytes());
                    held_bytes += chunk.weight_bytes();
                    Wanted::Ready(chunk)
                }
                Lookup::Wait(flight) => {
                    group.meter.chunks_missed.fetch_add(1, Ordering::Relaxed);
                    Wanted::Coming(flight)
                }
                Lookup::Lead(permit, flight) => {
                    group.meter.chunks_missed.fetch_add(1, Ordering::Relaxed);
                    permits.push(permit);
                    Wanted::Coming(flight)
                }
            });
        }
        group.looked_up(columns, wanted.iter().map(Wanted::resident_bytes));
        if permits.is_empty() {
            drop(reserved);
        } else {
            // The load may outlive this request, whose record ends with it.
            let group = RowGroupRef { record: None, ..group.clone() };
            load.spawn(Arc::clone(self).load(group, permits, held_bytes, reserved));
        }
        // From here on only the flights keep the load alive.
        drop(load);
        let mut chunks = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            chunks.push(match wanted {
                Wanted::Ready(chunk) => chunk,
                Wanted::Coming(flight) => flight.wait().await.map_err(|error| match error {
                    FlightError::Failed(error) => error,
                    FlightError::Abandoned => {
                        let message = format!(
                            "{} row group {}: the load ended without an answer",
                            group.footer.object.url(),
                            group.row_group
                        );
                        LoadError::Failed(Error::internal(message))
                    }
                })?,
            });
        }
        group.loaded(columns, &chunks);
        Ok(chunks)
    }

    /// The task of one load: reserve, fetch, decode, hand over.
    async fn load(
        self: Arc<Self>,
        group: RowGroupRef,
        permits: Vec<ChunkPermit>,
        held_bytes: u64,
        reserved: oneshot::Sender<()>,
    ) {
        let columns: Vec<usize> = permits.iter().map(|permit| permit.key().column as usize).collect();
        let read = self.read(&group, &columns, held_bytes, reserved).await;
        let mut decoding = match read {
            Ok(decoding) => decoding,
            Err(error) => return permits.into_iter().for_each(|permit| permit.fail(error.clone())),
        };
        let mut permits: Vec<Option<ChunkPermit>> = permits.into_iter().map(Some).collect();
        while let Some(decoded) = decoding.join_next().await {
            // A decoder that panicked was turned into an error inside its task; a join error is a shutdown, and dropping the
            // permits tells who waits.
            let Ok((at, decoded)) = decoded else { continue };
            let Some(permit) = permits.get_mut(at).and_then(Option::take) else { continue };
            match decoded {
                Ok((chunk, weight, reservation)) => {
                    self.metrics.miss_bytes.inc_by(weight);
                    permit.complete(chunk, weight, reservation);
                }
                Err(error) => permit.fail(error),
            }
        }
    }

    /// Objects without a version: read, counted, never cached.
    async fn uncached(
        self: &Arc<Self>,
        group: &RowGroupRef,
        columns: &[usize],
        reserved: oneshot::Sender<()>,
    ) -> Result<Vec<Pinned<Chunk>>, LoadError> {
        group.meter.chunks_missed.fetch_add(columns.len() as u64, Ordering::Relaxed);
        group.looked_up(columns, std::iter::repeat(None));
        let mut decoding = self.read(group, columns, 0, reserved).await?;
        let mut chunks: Vec<Option<Pinned<Chunk>>> = vec![None; columns.len()];
        while let Some(decoded) = decoding.join_next().await {
            let (at, decoded) = decoded.map_err(|e| LoadError::Failed(Error::internal(format!("decode: {e}"))))?;
            let (chunk, weight, reservation) = decoded?;
            drop(reservation);
            chunks[at] = Some(self.chunks.detached(chunk, weight));
        }
        let chunks = chunks
            .into_iter()
            .map(|chunk| chunk.ok_or_else(|| LoadError::Failed(Error::internal("a column was not decoded"))))
            .collect::<Result<Vec<_>, _>>()?;
        group.loaded(columns, &chunks);
        Ok(chunks)
    }

    async fn read(
        self: &Arc<Self>,
        group: &RowGroupRef,
        columns: &[usize],
        held_bytes: u64,
        reserved: oneshot::Sender<()>,
    ) -> Result<JoinSet<Decoded>, LoadError> {
        let fetched_bytes = group.fetched_bytes(columns);
        let wanted_bytes = columns.iter().map(|&column| group.decoded_bytes(column)).fold(fetched_bytes, u64::saturating_add);
        if wanted_bytes.saturating_add(held_bytes) > self.chunks.budget().limit() {
            return Err(LoadError::TooLarge);
        }
        // What does not become free in time can still be read in bands.
        let mut reservation = self.chunks.reserve(wanted_bytes).await.map_err(|_| LoadError::TooLarge)?;
        // The receiver is gone when the scan is: then nobody needs to be told.
        let _ = reserved.send(());
        let fetched = Arc::new(Fetched { reads: self.reads(group, columns), _reservation: reservation.split(fetched_bytes) });
        let mut decoding = JoinSet::new();
        for (at, &column) in columns.iter().enumerate() {
            let share = reservation.split(group.decoded_bytes(column));
            decoding.spawn(Arc::clone(self).decode(at, group.clone(), column, Arc::clone(&fetched), share));
        }
        Ok(decoding)
    }

    fn reads(&self, group: &RowGroupRef, columns: &[usize]) -> Reads {
        let footer = &group.footer;
        match self.footers.take_whole(footer) {
            Some(bytes) => Segments::whole(bytes).into(),
            None => footer.object.reads(footer.version(), &group.ranges(columns), &self.limits, &group.meter),
        }
    }

    /// The bytes of file columns.
    pub(crate) async fn fetch(&self, group: &RowGroupRef, columns: &[usize]) -> Result<Segments> {
        self.fetched(group, &self.reads(group, columns), columns).await
    }

    /// Waits for the bytes of file columns. An object that turns out overwritten is forgotten, so that the next request sees
    /// its new version whatever the source's freshness.
    async fn fetched(&self, group: &RowGroupRef, reads: &Reads, columns: &[usize]) -> Result<Segments> {
        let fetched = reads.covering(&group.ranges(columns)).await;
        if fetched.as_ref().is_err_and(|error| matches!(error.kind, ErrorKind::Changed | ErrorKind::NotFound)) {
            self.footers.forget(group.footer.object.url());
        }
        fetched
    }

    /// Decodes a column as soon as its bytes are there.
    async fn decode(
        self: Arc<Self>,
        at: usize,
        group: RowGroupRef,
        column: usize,
        fetched: Arc<Fetched>,
        mut reservation: Reservation,
    ) -> Decoded {
        let segments = match self.fetched(&group, &fetched.reads, &[column]).await {
            Ok(segments) => segments,
            Err(error) => return (at, Err(LoadError::Failed(error))),
        };
        let Ok(permit) = Arc::clone(&self.cpu).acquire_owned().await else {
            return (at, Err(LoadError::Failed(Error::internal("the decoders are shut down"))));
        };
        let footer = Arc::clone(&group.footer);
        // What is reserved goes with the work: it cannot be stopped, and holds its memory until it ends.
        let work = tokio::task::spawn_blocking(move || {
            let (_permit, _fetched) = (permit, fetched);
            let started = Instant::now();
            let mut grow = |bytes: u64| reservation.try_grow(bytes.saturating_sub(reservation.bytes()));
            let chunk = match decode_chunk(&footer, group.row_group, column, &segments, &mut grow) {
                Ok(chunk) => chunk,
                Err(DecodeError::TooLarge) => return Err(LoadError::TooLarge),
                Err(DecodeError::Failed(error)) => return Err(LoadError::Failed(error)),
            };
            let weight = buffers_weight(chunk.pieces()) as u64 + CHUNK_OVERHEAD_BYTES;
            add_time(&group.meter.decode_us, started.elapsed());
            self.metrics.decode_seconds.observe(started.elapsed().as_secs_f64());
            Ok((chunk, weight, reservation))
        });
        let what = format!("row group {}", group.row_group);
        let gave_up = |panic| LoadError::Failed(decoder_panic(group.footer.object.url(), &what, panic));
        (at, work.await.unwrap_or_else(|panic| Err(gave_up(panic))))
    }
}

/// The bytes of a load, reserved for as long as any of its decoders reads them.
struct Fetched {
    reads: Reads,
    _reservation: Reservation,
}

/// Keys, list links and array headers, roughly.
const CHUNK_OVERHEAD_BYTES: u64 = 512;

type Decoded = (usize, Result<(Chunk, u64, Reservation), LoadError>);
