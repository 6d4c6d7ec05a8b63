//! Picks rows of one row group: measured first, so that neither a long value nor a row that is asked for many times makes
//! more than there is room for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{cast, concat_batches, interleave, take};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::error::ArrowError;
use flightcache_proto::{Error, ErrorKind, Result};

use super::Engine;
use super::load::{LoadError, Purpose, RowGroupRef};
use super::measure::ranges_bytes;
use super::plan::ColumnSource;
use super::resident::PinnedChunk;
use super::row_group::Column;
use crate::cache::{Reservation, ReserveError, compact};
use crate::parquet::{decode_bands, decoder_panic};

/// Row groups picked from at a time.
pub(super) const ROW_GROUPS_AT_A_TIME: usize = 4;
/// Values that are measured on an async thread, and bytes that are picked on one: about as long as it may be busy.
const MAX_INLINE_VALUES: usize = 64 << 10;
const MAX_INLINE_BYTES: u64 = 4 << 20;
/// What an array takes beside its values: itself, and its buffers' padding.
const ARRAY_BYTES: u64 = 256;

/// The rows of one answer, which are picked row group by row group.
pub(super) struct Picking {
    url: String,
    /// Of table columns.
    sources: Arc<Vec<ColumnSource>>,
    /// The table columns that are picked, in the order of `schema`.
    columns: Vec<usize>,
    schema: SchemaRef,
    /// Bytes that may yet be picked, of all row groups together.
    room_bytes: AtomicU64,
}

/// Rows of one row group, in the announced types and in memory of their own.
pub(super) struct Picked {
    pub(super) rows: RecordBatch,
    pub(super) held: Reservation,
}

/// Why rows were not picked.
pub(super) enum PickError {
    /// The row group is larger than memory may ever hold: read it in bands.
    GroupTooLarge,
    /// The rows of all row groups take more than there is room for, or than memory may ever hold.
    RowsTooLarge,
    /// Anything else.
    Failed(Error),
}

impl From<LoadError> for PickError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::TooLarge => Self::GroupTooLarge,
            LoadError::Failed(error) => Self::Failed(error),
        }
    }
}

impl From<Error> for PickError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Columns = BTreeMap<usize, Column>;

impl Picking {
    /// Table columns `columns` of an object of `sources`, whose fields are `schema`'s, in at most `room_bytes`.
    pub(super) fn new(
        url: &str,
        sources: &Arc<Vec<ColumnSource>>,
        columns: Vec<usize>,
        schema: SchemaRef,
        room_bytes: u64,
    ) -> Self {
        Self { url: url.to_owned(), sources: Arc::clone(sources), columns, schema, room_bytes: room_bytes.into() }
    }

    fn take_room(&self, bytes: u64) -> Result<(), PickError> {
        let taken = self.room_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes));
        taken.map(drop).map_err(|_| PickError::RowsTooLarge)
    }

    /// Bytes that rows `offsets` take once they are picked.
    fn bytes(&self, columns: &Columns, offsets: &UInt32Array) -> u64 {
        let of_column = |column| match &columns[column] {
            Column::Constant(value) => value.size() as u64 * offsets.len() as u64,
            Column::Chunk(chunk) => chunk_bytes(chunk, offsets),
        };
        self.columns.iter().map(|column| of_column(column) + ARRAY_BYTES).fold(0, u64::saturating_add)
    }

    fn pick(&self, columns: &Columns, offsets: &UInt32Array) -> Result<RecordBatch> {
        self.rows(offsets.len(), |column| match &columns[&column] {
            Column::Constant(value) => value.to_array_of_size(offsets.len()).map_err(|e| Error::internal(e.to_string())),
            Column::Chunk(chunk) => take_from(chunk, offsets).map_err(|e| self.failed(&e)),
        })
    }

    /// A batch of table columns as they rest.
    fn rows(&self, rows: usize, array: impl Fn(usize) -> Result<ArrayRef>) -> Result<RecordBatch> {
        let arrays = self.columns.iter().zip(self.schema.fields()).map(|(&column, field)| {
            let mut array = array(column)?;
            if array.data_type() != field.data_type() {
                array = cast(&array, field.data_type()).map_err(|e| self.failed(&e))?;
            }
            // Views keep all that they were picked from.
            Ok(if has_views(array.data_type()) { compact(array) } else { array })
        });
        batch(&self.schema, arrays.collect::<Result<_>>()?, rows)
    }

    fn failed(&self, error: &ArrowError) -> Error {
        Error::internal(format!("{}: row read: {error}", self.url))
    }

    fn no_memory(&self, error: &ReserveError) -> Error {
        Error::new(ErrorKind::ResourceExhausted, format!("{}: row read: {error}; ask for fewer rows at a time", self.url))
    }
}

impl Engine {
    /// Rows `offsets` of one row group, in any order, repeats included.
    pub(super) async fn pick(
        self: Arc<Self>,
        picking: Arc<Picking>,
        group: RowGroupRef,
        offsets: UInt32Array,
    ) -> Result<Picked, PickError> {
        group.meter.row_groups.fetch_add(1, Ordering::Relaxed);
        let is_short = offsets.len() * picking.columns.len() <= MAX_INLINE_VALUES;
        let offsets = Arc::new(offsets);
        let (mut room, mut reserved) = (None, None);
        let (columns, bytes, mut held) = loop {
            let columns = Arc::new(self.columns(&picking.sources, &group, &picking.columns, Purpose::Find, None).await?);
            let measure = {
                let (picking, columns, offsets) = (Arc::clone(&picking), Arc::clone(&columns), Arc::clone(&offsets));
                move || picking.bytes(&columns, &offsets)
            };
            let bytes = run(is_short, measure).await?;
            if room != Some(bytes) {
                picking.take_room(bytes)?;
                room = Some(bytes);
            }
            if let Some(held) = reserved.take().or_else(|| self.chunks.try_reserve(bytes)) {
                break (columns, bytes, held);
            }
            // Not with the row group in hand: what is waited for may be its memory.
            drop(columns);
            reserved = Some(self.chunks.reserve(bytes).await.map_err(|error| match error {
                ReserveError::TooLarge { .. } => PickError::RowsTooLarge,
                ReserveError::TimedOut { .. } => PickError::Failed(picking.no_memory(&error)),
            })?);
        };
        let pick = {
            let picking = Arc::clone(&picking);
            move || picking.pick(&columns, &offsets)
        };
        let rows = run(is_short && bytes <= MAX_INLINE_BYTES, pick).await??;
        self.account(&mut held, &rows, &picking).await?;
        Ok(Picked { rows, held })
    }

    /// The same for a row group that memory may not hold; `offsets` ascend.
    pub(super) async fn pick_banded(
        self: &Arc<Self>,
        picking: Arc<Picking>,
        group: RowGroupRef,
        offsets: UInt32Array,
    ) -> Result<Picked, PickError> {
        let file_column = |column: &usize| super::file_column(&picking.sources[*column]);
        let mut file_columns: Vec<usize> = picking.columns.iter().filter_map(file_column).collect();
        file_columns.sort_unstable();
        file_columns.dedup();
        group.looked_up(&file_columns, std::iter::repeat(None));
        let footer = Arc::clone(&group.footer);
        let (segments, held) = self.bytes(&group, &file_columns).await?;
        let pick = {
            let picking = Arc::clone(&picking);
            move || {
                let _held = held;
                let (mut start, mut picked) = (0_usize, Vec::new());
                for band in decode_bands(&footer, group.row_group, &file_columns, &segments)? {
                    let band = band?;
                    let end = start + band.num_rows();
                    let here = offsets.values().iter().filter(|&&row| (start..end).contains(&(row as usize)));
                    let here: UInt32Array = here.map(|&row| row - start as u32).collect();
                    start = end;
                    if here.is_empty() {
                        continue;
                    }
                    let rows = here.values().iter().map(|&row| row as usize..row as usize + 1);
                    let bytes = band.columns().iter().map(|array| ranges_bytes(array, &mut rows.clone())).sum();
                    picking.take_room(bytes)?;
                    picked.push(picking.rows(here.len(), |column| match &picking.sources[column] {
                        ColumnSource::Constant(value) => {
                            value.to_array_of_size(here.len()).map_err(|e| Error::internal(e.to_string()))
                        }
                        ColumnSource::File(column) => {
                            let lacking = |_| Error::internal("a band lacks a column");
                            let at = file_columns.binary_search(column).map_err(lacking)?;
                            take(band.column(at), &here, None).map_err(|e| picking.failed(&e))
                        }
                    })?);
                }
                concat_batches(&picking.schema, &picked).map_err(|e| PickError::Failed(picking.failed(&e)))
            }
        };
        let of_footer = |error| match error {
            PickError::Failed(error) => PickError::Failed(self.of_footer(&group.footer, error)),
            too_large => too_large,
        };
        let gave_up = |panic| Err(PickError::Failed(decoder_panic(group.footer.object.url(), "row group", panic)));
        let rows = tokio::task::spawn_blocking(pick).await.unwrap_or_else(gave_up).map_err(of_footer)?;
        let mut held = self.chunks.reserve(0).await.map_err(|e| picking.no_memory(&e))?;
        self.account(&mut held, &rows, &picking).await?;
        Ok(Picked { rows, held })
    }

    /// Makes a reservation be what rows take.
    pub(super) async fn account(&self, held: &mut Reservation, rows: &RecordBatch, picking: &Picking) -> Result<()> {
        let bytes = rows.get_array_memory_size() as u64;
        held.shrink_to(bytes);
        if held.bytes() < bytes {
            held.merge(self.chunks.reserve(bytes - held.bytes()).await.map_err(|e| picking.no_memory(&e))?);
        }
        Ok(())
    }
}

/// Does what is short at once, and what is not beside the async threads.
async fn run<T: Send + 'static>(is_short: bool, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    if is_short {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal(format!("row read: {e}")))
}

fn take_from(chunk: &PinnedChunk, offsets: &UInt32Array) -> Result<ArrayRef, ArrowError> {
    if let Some(array) = chunk.whole() {
        return take(array, offsets, None);
    }
    let places: Vec<_> = offsets.values().iter().map(|&row| chunk.locate(row as usize)).collect();
    let pieces: Vec<_> = chunk.pieces().iter().map(AsRef::as_ref).collect();
    interleave(&pieces, &places)
}

pub(super) fn batch(schema: &Arc<Schema>, arrays: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options).map_err(|e| Error::internal(e.to_string()))
}

fn has_views(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => has_views(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_views(field.data_type())),
        _ => false,
    }
}

fn chunk_bytes(chunk: &PinnedChunk, offsets: &UInt32Array) -> u64 {
    let rows = offsets.values().iter().map(|&row| row as usize);
    if let Some(array) = chunk.whole() {
        return ranges_bytes(array, &mut rows.map(|row| row..row + 1));
    }
    let of_row = |row| {
        let (piece, at) = chunk.locate(row);
        ranges_bytes(&chunk.pieces()[piece], &mut std::iter::once(at..at + 1))
    };
    rows.map(of_row).sum()
}
