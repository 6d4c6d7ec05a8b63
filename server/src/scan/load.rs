//! Getting column chunks: from the cache, from a load under way, or from the store.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use flightcache_proto::{Error, ErrorKind, ObjectId, Part, Populate, Result, Slot};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::peers::Pulled;
use super::resident::{ChunkKey, Form, PinnedChunk, Resident};
use super::{ChunkPermit, Engine};
use crate::admin::{ScanMeter, add_time};
use crate::cache::buffers_weight;
use crate::cache::{DerivedLookup, DerivedUse, Flight, FlightError, LoadGroup, Lookup, Pinned, Reservation, ReserveError};
use crate::object::{Reads, Segments, read_bytes};
use crate::parquet::{Chunk, DecodeError, Footer, decode_chunk, decoder_panic};
use crate::record::{LookedUp, Place, RowGroupRecord};
use crate::settings::Residency;

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
    /// It is read for another server of the cluster.
    pub(crate) is_for_peer: bool,
}

/// What a request reads chunks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To hand out all of it.
    Answer,
    /// To find rows in it: decoded for every request, it would cost many times what is asked for.
    Find,
}

impl Purpose {
    /// What a use counts for when not all chunks can rest decoded.
    fn uses(self) -> u32 {
        match self {
            Self::Answer => 1,
            Self::Find => 4,
        }
    }
}

type ChunkFlight = Flight<Resident, LoadError>;

enum Wanted {
    Ready(PinnedChunk),
    /// The flight of the bytes it is made of, if this call began that, is held so that others can join it.
    Coming(ChunkFlight, Option<ChunkFlight>),
}

impl Wanted {
    fn resident_bytes(&self) -> Option<u64> {
        match self {
            Self::Ready(chunk) => Some(chunk.weight_bytes()),
            Self::Coming(..) => None,
        }
    }
}

/// Where the bytes of a chunk that is to be decoded come from.
enum Origin {
    /// From the store; they do not stay.
    Store,
    /// From the store, to the cache.
    Kept(ChunkPermit),
    /// From the cache.
    Resident(Pinned<Resident>),
    /// Somebody is loading them.
    Coming(ChunkFlight),
}

impl Origin {
    fn is_read(&self) -> bool {
        matches!(self, Self::Store | Self::Kept(_))
    }

    fn fail(self, error: LoadError) {
        if let Self::Kept(permit) = self {
            permit.fail(error);
        }
    }
}

impl RowGroupRef {
    pub(crate) fn slot(&self) -> Slot {
        Slot::of(self.footer.object.url(), Part::RowGroup(self.row_group))
    }

    /// Bytes that are read for these columns, the gaps between them included.
    pub(crate) fn fetched_bytes(&self, columns: &[usize]) -> u64 {
        read_bytes(&self.ranges(columns))
    }

    /// Memory an array takes at its height: what it holds, and what it grows by while it is built.
    fn decoded_bytes(&self, column: usize) -> u64 {
        let decoded = self.footer.decoded_bytes_estimate(self.row_group, column);
        decoded.saturating_add(decoded / 4)
    }

    /// Memory the Parquet bytes of a column take in the cache.
    fn kept_bytes(&self, column: usize) -> u64 {
        self.footer.compressed_bytes(self.row_group, column) + CHUNK_OVERHEAD_BYTES
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
    fn loaded(&self, columns: &[usize], chunks: &[PinnedChunk]) {
        let Some(record) = &self.record else { return };
        record.loaded(columns.iter().zip(chunks).map(|(&column, chunk)| (column as u32, chunk.weight_bytes())));
    }

    /// Waits for a load.
    async fn landed(&self, flight: ChunkFlight) -> Result<Pinned<Resident>, LoadError> {
        flight.wait().await.map_err(|error| match error {
            FlightError::Failed(error) => error,
            FlightError::Abandoned => self.failed("the load ended without an answer"),
        })
    }

    /// Puts the bytes of a chunk into the cache.
    fn keep(
        &self,
        permit: ChunkPermit,
        segments: &Segments,
        reservation: Option<Reservation>,
    ) -> Result<Pinned<Resident>, LoadError> {
        let Some(own) = segments.copy_of(&self.ranges(&[permit.key().column as usize])) else {
            let error = self.failed("bytes are missing of what was read");
            permit.fail(error.clone());
            return Err(error);
        };
        let weight = own.len() + CHUNK_OVERHEAD_BYTES;
        Ok(permit.complete(Resident::Encoded(own), weight, reservation))
    }

    /// The bytes of chunks that were looked up as such, once they are all there.
    async fn all_encoded(&self, found: Vec<Result<Pinned<Resident>, ChunkFlight>>) -> Result<(Segments, Held), LoadError> {
        let mut entries = Vec::with_capacity(found.len());
        for found in found {
            entries.push(match found {
                Ok(entry) => entry,
                Err(flight) => self.landed(flight).await?,
            });
        }
        let segments = entries.iter().filter_map(|entry| match &***entry {
            Resident::Encoded(segments) => Some(segments.clone()),
            Resident::Decoded(_) => None,
        });
        Ok((Segments::join(segments), Box::new(entries)))
    }

    fn mistaken(&self) -> LoadError {
        self.failed("a chunk is not in the form it was asked for in")
    }

    pub(crate) fn failed(&self, what: &str) -> LoadError {
        LoadError::Failed(Error::internal(format!("{} row group {}: {what}", self.footer.object.url(), self.row_group)))
    }

    pub(crate) fn error(&self, error: &ReserveError) -> Error {
        let message = format!("{} row group {}: {error}", self.footer.object.url(), self.row_group);
        Error::new(ErrorKind::ResourceExhausted, message)
    }
}

impl Engine {
    /// The chunks of file columns `columns`, decoded, in that order. What is missing is loaded together, by one task that goes
    /// on as long as anybody waits for any of it.
    ///
    /// `reserved` is told once the memory for what this call loads is reserved, or at once if it loads nothing.
    pub(crate) async fn chunks(
        self: &Arc<Self>,
        group: &RowGroupRef,
        columns: &[usize],
        purpose: Purpose,
        reserved: oneshot::Sender<()>,
    ) -> Result<Vec<PinnedChunk>, LoadError> {
        let Some(object) = group.footer.id.clone() else {
            return self.uncached(group, columns, reserved).await;
        };
        let load = LoadGroup::new();
        let mut making = Vec::new();
        // What this call holds while it waits: it cannot become free for it.
        let mut held_bytes = 0;
        let mut hit = |entry: &Pinned<Resident>| {
            group.meter.chunks_hit.fetch_add(1, Ordering::Relaxed);
            self.metrics.hit_bytes.inc_by(entry.weight_bytes());
            held_bytes += entry.weight_bytes();
        };
        let missed = || group.meter.chunks_missed.fetch_add(1, Ordering::Relaxed);
        let ready = |entry| PinnedChunk::new(entry).map(Wanted::Ready).ok_or_else(|| group.mistaken());
        let key = |&column: &usize| ChunkKey {
            object: Arc::clone(&object),
            row_group: group.row_group,
            column: column as u32,
            form: Form::Decoded,
        };
        let keys = columns.iter().map(key);
        let populate = group.populate == Populate::Auto;
        let mut wanted = Vec::with_capacity(columns.len());
        if self.residency == Residency::Arrow {
            let keys: Vec<ChunkKey> = keys.collect();
            for found in self.chunks.lookup_all(&keys, group.request, populate, &load) {
                wanted.push(match found {
                    Lookup::Hit(entry) => {
                        hit(&entry);
                        ready(entry)?
                    }
                    Lookup::Wait(flight) => {
                        missed();
                        Wanted::Coming(flight, None)
                    }
                    Lookup::Lead(permit, flight) => {
                        missed();
                        making.push((permit, Origin::Store));
                        Wanted::Coming(flight, None)
                    }
                });
            }
        } else {
            let keys: Vec<(ChunkKey, ChunkKey)> = keys.map(|key| (key.clone(), key.encoded())).collect();
            let asked = DerivedUse {
                request: group.request,
                count: purpose.uses(),
                populate,
                populate_derived: self.residency == Residency::Auto,
            };
            for found in self.chunks.lookup_derived(&keys, asked, &load) {
                wanted.push(match found {
                    DerivedLookup::Hit(entry) => {
                        hit(&entry);
                        ready(entry)?
                    }
                    DerivedLookup::Wait(flight, is_resident) => {
                        let counter = if is_resident { &group.meter.chunks_hit } else { &group.meter.chunks_missed };
                        counter.fetch_add(1, Ordering::Relaxed);
                        Wanted::Coming(flight, None)
                    }
                    DerivedLookup::Lead(permit, flight, source) => {
                        let (origin, source_flight) = match source {
                            Lookup::Hit(entry) => {
                                hit(&entry);
                                (Origin::Resident(entry), None)
                            }
                            Lookup::Wait(flight) => {
                                missed();
                                (Origin::Coming(flight), None)
                            }
                            Lookup::Lead(permit, flight) => {
                                missed();
                                (Origin::Kept(permit), Some(flight))
                            }
                        };
                        making.push((permit, origin));
                        Wanted::Coming(flight, source_flight)
                    }
                });
            }
        }
        group.looked_up(columns, wanted.iter().map(Wanted::resident_bytes));
        self.touched(group, columns);
        if making.is_empty() {
            drop(reserved);
        } else {
            // The load may outlive this request, whose record ends with it.
            let group = RowGroupRef { record: None, ..group.clone() };
            load.spawn(Arc::clone(self).load(group, making, held_bytes, reserved));
        }
        // From here on only the flights keep the load alive.
        drop(load);
        let mut chunks = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            chunks.push(match wanted {
                Wanted::Ready(chunk) => chunk,
                Wanted::Coming(flight, _source) => {
                    PinnedChunk::new(group.landed(flight).await?).ok_or_else(|| group.mistaken())?
                }
            });
        }
        group.loaded(columns, &chunks);
        Ok(chunks)
    }

    /// Counts that somebody asks for columns of a row group. What another server asks for would not go to another owner.
    fn touched(&self, group: &RowGroupRef, columns: &[usize]) {
        if group.is_for_peer {
            return;
        }
        let bytes = || columns.iter().map(|&column| group.footer.decoded_bytes_estimate(group.row_group, column)).sum();
        self.cluster.touched(|| group.slot(), bytes);
    }

    /// The task of one load: reserve, fetch, decode, hand over.
    async fn load(
        self: Arc<Self>,
        group: RowGroupRef,
        making: Vec<(ChunkPermit, Origin)>,
        held_bytes: u64,
        reserved: oneshot::Sender<()>,
    ) {
        let (permits, origins): (Vec<ChunkPermit>, Vec<Origin>) = making.into_iter().unzip();
        let origins = permits.iter().map(|permit| permit.key().column as usize).zip(origins).collect();
        let read = self.read(&group, origins, held_bytes, reserved).await;
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
                    permit.complete(Resident::Decoded(Arc::new(chunk)), weight, reservation);
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
    ) -> Result<Vec<PinnedChunk>, LoadError> {
        group.meter.chunks_missed.fetch_add(columns.len() as u64, Ordering::Relaxed);
        group.looked_up(columns, std::iter::repeat(None));
        let origins = columns.iter().map(|&column| (column, Origin::Store)).collect();
        let mut decoding = self.read(group, origins, 0, reserved).await?;
        let mut chunks: Vec<Option<PinnedChunk>> = vec![None; columns.len()];
        while let Some(decoded) = decoding.join_next().await {
            let (at, decoded) = decoded.map_err(|e| LoadError::Failed(Error::internal(format!("decode: {e}"))))?;
            let (chunk, weight, reservation) = decoded?;
            drop(reservation);
            chunks[at] = PinnedChunk::new(self.chunks.detached(Resident::Decoded(Arc::new(chunk)), weight));
        }
        let chunks = chunks
            .into_iter()
            .map(|chunk| chunk.ok_or_else(|| LoadError::Failed(Error::internal("a column was not decoded"))))
            .collect::<Result<Vec<_>, _>>()?;
        group.loaded(columns, &chunks);
        Ok(chunks)
    }

    /// Starts to decode file columns.
    async fn read(
        self: &Arc<Self>,
        group: &RowGroupRef,
        origins: Vec<(usize, Origin)>,
        held_bytes: u64,
        reserved: oneshot::Sender<()>,
    ) -> Result<JoinSet<Decoded>, LoadError> {
        let of = |is_wanted: fn(&Origin) -> bool| {
            origins.iter().filter(move |(_, origin)| is_wanted(origin)).map(|(column, _)| *column).collect::<Vec<_>>()
        };
        let read_columns = of(Origin::is_read);
        let fetched_bytes = group.fetched_bytes(&read_columns);
        let kept: u64 = of(|origin| matches!(origin, Origin::Kept(_))).into_iter().map(|column| group.kept_bytes(column)).sum();
        let decoded = origins.iter().map(|(column, _)| group.decoded_bytes(*column)).fold(0, u64::saturating_add);
        let wanted_bytes = decoded.saturating_add(fetched_bytes).saturating_add(kept);
        let reservation = if wanted_bytes.saturating_add(held_bytes) > self.chunks.budget().limit() {
            Err(LoadError::TooLarge)
        } else {
            // What does not become free in time can still be read in bands.
            self.chunks.reserve(wanted_bytes).await.map_err(|_| LoadError::TooLarge)
        };
        let mut reservation = match reservation {
            Ok(reservation) => reservation,
            Err(error) => {
                for (_, origin) in origins {
                    origin.fail(error.clone());
                }
                return Err(error);
            }
        };
        // The receiver is gone when the scan is: then nobody needs to be told.
        let _ = reserved.send(());
        let mut pulled = self.pulled(group, &read_columns, reservation.split(0)).await;
        let of_store: Vec<usize> = read_columns.into_iter().filter(|column| !pulled.contains_key(column)).collect();
        let of_store = Arc::new(Fetched { reads: self.reads(group, &of_store), _reservation: reservation.split(fetched_bytes) });
        let mut decoding = JoinSet::new();
        for (at, (column, origin)) in origins.into_iter().enumerate() {
            let pulled = pulled.remove(&column);
            let is_of_store = origin.is_read() && pulled.is_none();
            let fetched = match pulled {
                Some(Pulled::Decoded(chunk, weight, held)) => {
                    drop(reservation.split(group.decoded_bytes(column)));
                    decoding.spawn(std::future::ready((at, Ok((chunk, weight, held)))));
                    continue;
                }
                Some(Pulled::Encoded(segments, held)) => Some(Arc::new(Fetched { reads: segments.into(), _reservation: held })),
                None => is_of_store.then(|| Arc::clone(&of_store)),
            };
            let kept = matches!(origin, Origin::Kept(_)).then(|| reservation.split(group.kept_bytes(column)));
            let share = reservation.split(group.decoded_bytes(column));
            let bytes = Arc::clone(self).encoded(group.clone(), column, origin, fetched, kept);
            let decoded = Arc::clone(self).decode(at, group.clone(), column, bytes, share);
            let metrics = Arc::clone(&self.metrics);
            decoding.spawn(async move {
                let decoded = decoded.await;
                if let (_, Ok((_, weight, _))) = &decoded
                    && is_of_store
                {
                    metrics.miss_bytes.inc_by(*weight);
                }
                decoded
            });
        }
        Ok(decoding)
    }

    /// The bytes of a column, as soon as they are there.
    async fn encoded(
        self: Arc<Self>,
        group: RowGroupRef,
        column: usize,
        origin: Origin,
        fetched: Option<Arc<Fetched>>,
        kept: Option<Reservation>,
    ) -> Result<Encoded, LoadError> {
        let resident = match origin {
            Origin::Resident(entry) => entry,
            Origin::Coming(flight) => group.landed(flight).await?,
            origin => {
                let reads = fetched.as_ref().map_or_else(|| Segments::default().into(), |fetched| fetched.reads.clone());
                let segments = match self.fetched(&group, &reads, &[column]).await {
                    Ok(segments) => segments,
                    Err(error) => {
                        let error = LoadError::Failed(error);
                        origin.fail(error.clone());
                        return Err(error);
                    }
                };
                let Origin::Kept(permit) = origin else {
                    return Ok(Encoded { segments, _fetched: fetched, _resident: None });
                };
                group.keep(permit, &segments, kept)?
            }
        };
        let Resident::Encoded(segments) = &**resident else { return Err(group.mistaken()) };
        let segments = segments.clone();
        Ok(Encoded { segments, _fetched: None, _resident: Some(resident) })
    }

    /// The bytes of file columns, to be decoded in bands, and what keeps them accounted. From the cache, if it keeps bytes.
    pub(crate) async fn bytes(self: &Arc<Self>, group: &RowGroupRef, columns: &[usize]) -> Result<(Segments, Held)> {
        if self.residency != Residency::Arrow
            && let Some(object) = &group.footer.id
        {
            let found = self.look_up_encoded(group, object, columns, oneshot::channel().0);
            match group.all_encoded(found).await {
                Ok(bytes) => return Ok(bytes),
                // There may be room to read them, if not to keep them as well.
                Err(LoadError::TooLarge) => {}
                Err(LoadError::Failed(error)) => return Err(error),
            }
        }
        let reservation = self.chunks.reserve(group.fetched_bytes(columns)).await.map_err(|error| match error {
            ReserveError::TooLarge { wanted, limit } => {
                let message = format!(
                    "{} row group {}: its columns need {wanted} compressed bytes in memory, the bound is {limit}; name fewer columns or raise --capacity",
                    group.footer.object.url(),
                    group.row_group,
                );
                Error::new(ErrorKind::ResourceExhausted, message)
            }
            ReserveError::TimedOut { .. } => group.error(&error),
        })?;
        let segments = self.fetched(group, &self.reads(group, columns), columns).await?;
        Ok((segments, Box::new(reservation)))
    }

    /// The bytes of file columns of an object that has a version, from the cache or to it, and what keeps them accounted. Looked
    /// up, counted and recorded as decoded chunks are; `reserved` is told likewise.
    pub(crate) async fn encoded_chunks(
        self: &Arc<Self>,
        group: &RowGroupRef,
        columns: &[usize],
        reserved: oneshot::Sender<()>,
    ) -> Result<(Segments, Held), LoadError> {
        let Some(object) = &group.footer.id else { return Err(group.failed("it has no version")) };
        let found = self.look_up_encoded(group, object, columns, reserved);
        for found in &found {
            match found {
                Ok(entry) => {
                    group.meter.chunks_hit.fetch_add(1, Ordering::Relaxed);
                    self.metrics.hit_bytes.inc_by(entry.weight_bytes());
                }
                Err(_) => drop(group.meter.chunks_missed.fetch_add(1, Ordering::Relaxed)),
            }
        }
        // A trace tells decoded sizes, whatever the form.
        let decoded = |column: usize| group.footer.decoded_bytes_estimate(group.row_group, column);
        let resident = columns.iter().zip(&found).map(|(&column, found)| found.is_ok().then(|| decoded(column)));
        group.looked_up(columns, resident);
        self.touched(group, columns);
        group.all_encoded(found).await
    }

    /// Looks up the chunks of file columns as Parquet bytes. What is missing is loaded together.
    fn look_up_encoded(
        self: &Arc<Self>,
        group: &RowGroupRef,
        object: &Arc<ObjectId>,
        columns: &[usize],
        reserved: oneshot::Sender<()>,
    ) -> Vec<Result<Pinned<Resident>, ChunkFlight>> {
        let key = |&column: &usize| ChunkKey {
            object: Arc::clone(object),
            row_group: group.row_group,
            column: column as u32,
            form: Form::Encoded,
        };
        let keys: Vec<ChunkKey> = columns.iter().map(key).collect();
        let load = LoadGroup::new();
        let mut permits = Vec::new();
        let found = self
            .chunks
            .lookup_all(&keys, group.request, group.populate == Populate::Auto, &load)
            .into_iter()
            .map(|found| match found {
                Lookup::Hit(entry) => Ok(entry),
                Lookup::Wait(flight) => Err(flight),
                Lookup::Lead(permit, flight) => {
                    permits.push(permit);
                    Err(flight)
                }
            })
            .collect();
        if !permits.is_empty() {
            // The load may outlive this request, whose record ends with it.
            load.spawn(Arc::clone(self).keep_all(RowGroupRef { record: None, ..group.clone() }, permits, reserved));
        }
        found
    }

    /// The task of a load that decodes nothing.
    async fn keep_all(self: Arc<Self>, group: RowGroupRef, permits: Vec<ChunkPermit>, reserved: oneshot::Sender<()>) {
        let columns: Vec<usize> = permits.iter().map(|permit| permit.key().column as usize).collect();
        let fetched_bytes = group.fetched_bytes(&columns);
        let wanted_bytes = columns.iter().map(|&column| group.kept_bytes(column)).fold(fetched_bytes, u64::saturating_add);
        let fail =
            |permits: Vec<ChunkPermit>, error: &LoadError| permits.into_iter().for_each(|permit| permit.fail(error.clone()));
        let Ok(mut reservation) = self.chunks.reserve(wanted_bytes).await else { return fail(permits, &LoadError::TooLarge) };
        // The receiver is gone when the scan is: then nobody needs to be told.
        let _ = reserved.send(());
        let mut pulled = self.pulled(&group, &columns, reservation.split(0)).await;
        let mut keep = |permit: ChunkPermit, segments: &Segments| {
            let share = reservation.split(group.kept_bytes(permit.key().column as usize));
            // An error has been told to those who wait.
            let _ = group.keep(permit, segments, Some(share));
        };
        let mut of_store = Vec::new();
        for permit in permits {
            match pulled.remove(&(permit.key().column as usize)) {
                Some(Pulled::Encoded(segments, _held)) => keep(permit, &segments),
                _ => of_store.push(permit),
            }
        }
        if of_store.is_empty() {
            return;
        }
        let columns: Vec<usize> = of_store.iter().map(|permit| permit.key().column as usize).collect();
        match self.fetched(&group, &self.reads(&group, &columns), &columns).await {
            Ok(segments) => of_store.into_iter().for_each(|permit| keep(permit, &segments)),
            Err(error) => fail(of_store, &LoadError::Failed(error)),
        }
    }

    fn reads(&self, group: &RowGroupRef, columns: &[usize]) -> Reads {
        let footer = &group.footer;
        match self.footers.take_whole(footer) {
            Some(bytes) => Segments::whole(bytes).into(),
            None => footer.object.reads(footer.version(), &group.ranges(columns), &self.limits, &group.meter),
        }
    }

    /// Waits for the bytes of file columns. An object that turns out overwritten is forgotten, so that the next request sees
    /// its new version whatever the source's freshness.
    async fn fetched(&self, group: &RowGroupRef, reads: &Reads, columns: &[usize]) -> Result<Segments> {
        let fetched = reads.covering(&group.ranges(columns)).await;
        fetched.map_err(|error| self.of_footer(&group.footer, error))
    }

    /// The error of reading by a footer. The footer is forgotten if it is of a version that is gone, or if another server told it and it
    /// does not fit the object: then the store's own is to tell whose fault that is. What was read by it is nothing to that one.
    pub(super) fn of_footer(&self, footer: &Footer, error: Error) -> Error {
        use ErrorKind::{Changed, Corrupt, NotFound, Unsupported};
        match error.kind {
            Changed | NotFound => self.footers.forget_changed(footer.object.url()),
            Corrupt | Unsupported if footer.is_told => {
                self.footers.forget_this(footer);
                return Error::new(Changed, format!("{} (by a footer that another server told)", error.message));
            }
            _ => {}
        }
        error
    }

    /// Decodes a column as soon as its bytes are there.
    async fn decode(
        self: Arc<Self>,
        at: usize,
        group: RowGroupRef,
        column: usize,
        encoded: impl Future<Output = Result<Encoded, LoadError>>,
        mut reservation: Reservation,
    ) -> Decoded {
        let encoded = match encoded.await {
            Ok(encoded) => encoded,
            Err(error) => return (at, Err(error)),
        };
        let Ok(permit) = Arc::clone(&self.cpu).acquire_owned().await else {
            return (at, Err(LoadError::Failed(Error::internal("the decoders are shut down"))));
        };
        let (metrics, footer) = (Arc::clone(&self.metrics), Arc::clone(&group.footer));
        // What is reserved goes with the work: it cannot be stopped, and holds its memory until it ends.
        let work = tokio::task::spawn_blocking(move || {
            let (_permit, encoded) = (permit, encoded);
            let started = Instant::now();
            let mut grow = |bytes: u64| reservation.try_grow(bytes.saturating_sub(reservation.bytes()));
            let chunk = decode_chunk(&footer, group.row_group, column, &encoded.segments, &mut grow)?;
            let weight = buffers_weight(chunk.pieces()) as u64 + CHUNK_OVERHEAD_BYTES;
            add_time(&group.meter.decode_us, started.elapsed());
            metrics.decode_seconds.observe(started.elapsed().as_secs_f64());
            Ok((chunk, weight, reservation))
        });
        let gave_up = |panic| {
            let what = format!("row group {}", group.row_group);
            Err(DecodeError::Failed(decoder_panic(group.footer.object.url(), &what, panic)))
        };
        let decoded = work.await.unwrap_or_else(gave_up).map_err(|error| match error {
            DecodeError::TooLarge => LoadError::TooLarge,
            DecodeError::Failed(error) => LoadError::Failed(self.of_footer(&group.footer, error)),
        });
        (at, decoded)
    }
}

/// The bytes of a column, and what keeps them accounted.
struct Encoded {
    segments: Segments,
    _fetched: Option<Arc<Fetched>>,
    _resident: Option<Pinned<Resident>>,
}

/// The bytes of a load, reserved for as long as any of its decoders reads them.
struct Fetched {
    reads: Reads,
    _reservation: Reservation,
}

/// Keeps bytes accounted.
pub(crate) type Held = Box<dyn Any + Send + Sync>;

/// Keys, list links and array headers, roughly.
pub(super) const CHUNK_OVERHEAD_BYTES: u64 = 512;

type Decoded = (usize, Result<(Chunk, u64, Reservation), LoadError>);
