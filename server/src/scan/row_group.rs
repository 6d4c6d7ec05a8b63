//! One row group of a scan: load the filter's columns, decide, load the rest, hand out batches.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arrow::array::{Array, ArrayRef, AsArray as _, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{FilterBuilder, cast, take};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use flightcache_proto::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::Engine;
use super::load::{Held, LoadError, Purpose, RowGroupRef};
use super::parquet_rows::ParquetRows;
use super::plan::{ColumnSource, ScanPlan};
use super::predicate::Predicate;
use super::resident::PinnedChunk;
use super::stream::Takes;
use crate::admin::add_time;
use crate::parquet::{Bands, SLICE_ROWS, decode_bands, decoder_panic};

/// Batches aim at this many encoded bytes: measured best on the wire.
const TARGET_BATCH_BYTES: usize = 1 << 20;
/// Bytes one batch may unfold from dictionaries and constants, unless a single row takes more.
const MAX_UNFOLDED_BYTES: u64 = 8 << 20;
/// Bytes of the values of a dictionary that is sent as such: they go in one message.
const MAX_SENT_DICTIONARY_BYTES: usize = 512 << 10;
/// Bands decoded ahead of their reader.
const BANDS_AHEAD: usize = 2;

/// A place in a queue: it has come when the one before has passed it on, or is gone.
pub(crate) struct Turn {
    mine: oneshot::Receiver<()>,
    next: oneshot::Sender<()>,
}

/// A row group's turns to reserve memory.
pub(crate) struct Turns {
    pub(crate) filter: Turn,
    pub(crate) answer: Turn,
}

impl Turn {
    /// The place after `last`, which is replaced by what the place after this one waits for.
    pub(crate) fn after(last: &mut oneshot::Receiver<()>) -> Self {
        let (next, after) = oneshot::channel();
        Self { mine: std::mem::replace(last, after), next }
    }

    async fn come(self) -> oneshot::Sender<()> {
        // An error means that the one before has gone its way: our turn as well.
        let _ = self.mine.await;
        self.next
    }
}

/// A table column within one row group.
#[derive(Clone)]
pub(crate) enum Column {
    Chunk(PinnedChunk),
    Constant(ScalarValue),
}

/// A row group, ready to be handed out.
pub(crate) enum Loaded {
    /// No row matches.
    NoMatch,
    /// All in memory.
    Resident(ResidentRows),
    /// Larger than memory may hold: filtered and projected band by band.
    Banded(BandedRows),
    /// All in memory, to be decoded by the client.
    Parquet(ParquetRows),
}

/// Batches of a row group from the task that decodes it band by band.
pub(crate) struct BandedRows {
    batches: mpsc::Receiver<Result<RecordBatch>>,
    _task: AbortOnDropHandle<()>,
}

/// What that task is at.
struct Banding {
    plan: Arc<ScanPlan>,
    sources: Arc<Vec<ColumnSource>>,
    /// Table columns and the file's, in the order of the bands.
    files: Vec<(usize, usize)>,
    bands: Bands,
    /// Keeps what the bands are decoded from accounted.
    _held: Held,
}

/// A batch and what is left; `None` if nothing is.
type Banded = Result<Option<(RecordBatch, Banding)>>;

/// The columns of a row group, and which of its rows match.
pub(crate) struct ResidentRows {
    /// Shared with the batches made of it.
    columns: Arc<BTreeMap<usize, Column>>,
    rows: usize,
    /// `None`: every row.
    mask: Option<BooleanArray>,
    at: usize,
    window: usize,
}

impl Engine {
    /// Loads what a scan needs of a row group. Memory is reserved in the order of the scan's row groups, first for the
    /// filter's columns, then for the answer's, so that none waits for what a later one holds. What can be answered as Parquet
    /// is, if the client `takes_parquet`.
    pub(crate) async fn row_group(
        self: Arc<Self>,
        plan: Arc<ScanPlan>,
        sources: Arc<Vec<ColumnSource>>,
        group: RowGroupRef,
        turns: Turns,
        takes_parquet: bool,
    ) -> Result<Loaded> {
        let Turns { filter, answer } = turns;
        let mut filter_next = Some(filter.come().await);
        group.meter.row_groups.fetch_add(1, Ordering::Relaxed);
        let rows = group.footer.row_group_rows(group.row_group);
        let mut mask = None;
        if let Some(predicate) = &plan.predicate {
            let wanted = predicate.columns().to_vec();
            let columns = match self.columns(&sources, &group, &wanted, Purpose::Find, filter_next.take()).await {
                Ok(columns) => columns,
                Err(LoadError::TooLarge) => return self.banded(plan, sources, group).await,
                Err(LoadError::Failed(error)) => return Err(error),
            };
            let matching = self.evaluate(Arc::clone(predicate), columns, rows, &group).await?;
            match matching.true_count() {
                0 => {
                    self.count_pruned(1, &group.meter);
                    return Ok(Loaded::NoMatch);
                }
                all if all == rows => {}
                _ => mask = Some(matching),
            }
            // The filter's columns are let go here, so that nothing is held while memory for the rest is awaited.
        }
        let answer_next = answer.come().await;
        drop(filter_next);
        if takes_parquet && let Some(layout) = self.parquet_layout(&plan, &sources, &group) {
            return match self.parquet_rows(&plan, &sources, &group, layout, answer_next).await {
                Ok(rows) => Ok(Loaded::Parquet(rows)),
                Err(LoadError::TooLarge) => self.banded(plan, sources, group).await,
                Err(LoadError::Failed(error)) => Err(error),
            };
        }
        match self.columns(&sources, &group, &plan.output, Purpose::Answer, Some(answer_next)).await {
            Ok(columns) => Ok(Loaded::Resident(ResidentRows::new(columns, rows, mask, &plan))),
            Err(LoadError::TooLarge) => self.banded(plan, sources, group).await,
            Err(LoadError::Failed(error)) => Err(error),
        }
    }

    /// Table columns `wanted`, by table column.
    pub(crate) async fn columns(
        self: &Arc<Self>,
        sources: &[ColumnSource],
        group: &RowGroupRef,
        wanted: &[usize],
        purpose: Purpose,
        next: Option<oneshot::Sender<()>>,
    ) -> Result<BTreeMap<usize, Column>, LoadError> {
        let mut columns = BTreeMap::new();
        let mut files: BTreeMap<usize, usize> = BTreeMap::new();
        for &column in wanted {
            match &sources[column] {
                ColumnSource::File(file_column) => drop(files.insert(column, *file_column)),
                ColumnSource::Constant(value) => drop(columns.insert(column, Column::Constant(value.clone()))),
            }
        }
        let file_columns: Vec<usize> = files.values().copied().collect();
        let reserved = next.unwrap_or_else(|| oneshot::channel().0);
        let chunks = self.chunks(group, &file_columns, purpose, reserved).await?;
        columns.extend(files.into_keys().zip(chunks).map(|(column, chunk)| (column, Column::Chunk(chunk))));
        Ok(columns)
    }

    async fn evaluate(
        self: &Arc<Self>,
        predicate: Arc<Predicate>,
        columns: BTreeMap<usize, Column>,
        rows: usize,
        group: &RowGroupRef,
    ) -> Result<BooleanArray> {
        let Ok(_permit) = self.cpu.acquire().await else { return Err(Error::internal("the filters are shut down")) };
        let (meter, metrics) = (Arc::clone(&group.meter), Arc::clone(&self.metrics));
        let work = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let mask = mask(&predicate, &columns, rows);
            add_time(&meter.filter_us, started.elapsed());
            metrics.filter_seconds.observe(started.elapsed().as_secs_f64());
            mask
        });
        work.await
            .unwrap_or_else(|panic| Err(Error::internal(format!("{}: the filter gave up: {panic}", group.footer.object.url()))))
    }

    /// Reads a row group without ever holding it whole: its compressed bytes and a few bands.
    async fn banded(
        self: &Arc<Self>,
        plan: Arc<ScanPlan>,
        sources: Arc<Vec<ColumnSource>>,
        group: RowGroupRef,
    ) -> Result<Loaded> {
        let file_column = |column: &usize| match sources[*column] {
            ColumnSource::File(file_column) => Some((*column, file_column)),
            ColumnSource::Constant(_) => None,
        };
        let mut files: Vec<(usize, usize)> = plan.read_columns().iter().filter_map(file_column).collect();
        // Bands hold the columns in file order.
        files.sort_by_key(|(_, file_column)| *file_column);
        let file_columns: Vec<usize> = files.iter().map(|(_, file_column)| *file_column).collect();
        group.looked_up(&file_columns, std::iter::repeat(None));
        let footer = Arc::clone(&group.footer);
        let (segments, held) = self.bytes(&group, &file_columns).await?;
        let (sender, batches) = mpsc::channel(BANDS_AHEAD);
        let (engine, of_object) = (Arc::clone(self), Arc::clone(&footer));
        let open = move || {
            let bands = decode_bands(&footer, group.row_group, &file_columns, &segments)?;
            Banding { plan, sources, files, bands, _held: held }.next_batch()
        };
        let task = tokio::spawn(async move {
            let mut next: Box<dyn FnOnce() -> Banded + Send> = Box::new(open);
            // A reader is awaited here, not by the thread that decodes: there are so many of those, and one of them may be what
            // the readers wait for.
            while let Ok(room) = sender.reserve().await {
                match tokio::task::spawn_blocking(next).await {
                    Ok(Ok(Some((batch, banding)))) => {
                        room.send(Ok(batch));
                        next = Box::new(move || banding.next_batch());
                    }
                    Ok(Ok(None)) => return,
                    Ok(Err(error)) => return room.send(Err(engine.of_footer(&of_object, error))),
                    Err(panic) => {
                        let error = decoder_panic(of_object.object.url(), "row group", panic);
                        return room.send(Err(engine.of_footer(&of_object, error)));
                    }
                }
            }
        });
        Ok(Loaded::Banded(BandedRows { batches, _task: AbortOnDropHandle::new(task) }))
    }
}

impl Banding {
    /// The next batch that is not empty.
    fn next_batch(mut self) -> Banded {
        while let Some(band) = self.bands.next() {
            let band = band?;
            let batch = filter_band(&self.plan, &self.sources, &self.files, &band, band.num_rows())?;
            if batch.num_rows() > 0 {
                return Ok(Some((batch, self)));
            }
        }
        Ok(None)
    }
}

fn mask(predicate: &Predicate, columns: &BTreeMap<usize, Column>, rows: usize) -> Result<BooleanArray> {
    let whole = |column: &usize| -> Result<Option<ArrayRef>> {
        match &columns[column] {
            Column::Chunk(chunk) => Ok(chunk.whole().cloned()),
            // Slice by slice, where it is large.
            Column::Constant(value) if (value.size() * rows) as u64 > MAX_UNFOLDED_BYTES => Ok(None),
            Column::Constant(value) => value.to_array_of_size(rows).map(Some).map_err(|e| Error::internal(e.to_string())),
        }
    };
    let arrays: Option<Vec<ArrayRef>> = predicate.columns().iter().map(whole).collect::<Result<_>>()?;
    if let Some(arrays) = arrays {
        return predicate.evaluate(arrays, rows);
    }
    // Some chunk is held in pieces: slice by slice.
    let mut masks = Vec::new();
    for start in (0..rows).step_by(SLICE_ROWS) {
        let len = SLICE_ROWS.min(rows - start);
        let arrays = predicate.columns().iter().map(|column| columns[column].slice(start, len)).collect::<Result<_>>()?;
        masks.push(predicate.evaluate(arrays, len)?);
    }
    let masks: Vec<&dyn Array> = masks.iter().map(|mask| mask as &dyn Array).collect();
    let joined = arrow::compute::concat(&masks).map_err(|e| Error::internal(e.to_string()))?;
    Ok(arrow::array::AsArray::as_boolean(&joined).clone())
}

fn filter_band(
    plan: &ScanPlan,
    sources: &[ColumnSource],
    files: &[(usize, usize)],
    band: &RecordBatch,
    rows: usize,
) -> Result<RecordBatch> {
    let array = |column: usize| -> Result<ArrayRef> {
        match &sources[column] {
            ColumnSource::Constant(value) => value.to_array_of_size(rows).map_err(|e| Error::internal(e.to_string())),
            ColumnSource::File(_) => {
                let at = files
                    .iter()
                    .position(|(table, _)| *table == column)
                    .ok_or_else(|| Error::internal("a band lacks a column"))?;
                Ok(Arc::clone(band.column(at)))
            }
        }
    };
    let mask = match &plan.predicate {
        Some(predicate) => {
            Some(predicate.evaluate(predicate.columns().iter().map(|&column| array(column)).collect::<Result<_>>()?, rows)?)
        }
        None => None,
    };
    let arrays = plan.output.iter().map(|&column| array(column)).collect::<Result<_>>()?;
    assemble(plan, arrays, rows, mask.as_ref(), |_| false)
}

impl Loaded {
    /// What the batches of it may share.
    pub(crate) fn held(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        match self {
            Self::Resident(rows) => Some(rows.held()),
            Self::NoMatch | Self::Banded(_) | Self::Parquet(_) => None,
        }
    }
}

impl BandedRows {
    /// The next batch of matching rows. A decoder that panicked is an error, not the end.
    pub(crate) async fn next_batch(&mut self) -> Option<Result<RecordBatch>> {
        self.batches.recv().await
    }
}

impl Column {
    /// Rows `start..start + len` in the type they rest in.
    pub(crate) fn slice(&self, start: usize, len: usize) -> Result<ArrayRef> {
        match self {
            Self::Chunk(chunk) => chunk.slice(start, len),
            Self::Constant(value) => value.to_array_of_size(len).map_err(|e| Error::internal(e.to_string())),
        }
    }

    /// Bytes a row takes in the announced type, about.
    pub(crate) fn row_bytes(&self) -> u64 {
        match self {
            Self::Chunk(chunk) => chunk.row_bytes(),
            Self::Constant(value) => value.size() as u64,
        }
    }

    /// Bytes that are not held but made for rows `start..start + len`: unfolded dictionaries, constants.
    fn unfolded_bytes(&self, start: usize, len: usize) -> u64 {
        match self {
            Self::Chunk(chunk) => chunk.unfolded_bytes(start, len, MAX_UNFOLDED_BYTES / 8),
            Self::Constant(value) => (value.size() * len) as u64,
        }
    }
}

impl ResidentRows {
    pub(super) fn new(columns: BTreeMap<usize, Column>, rows: usize, mask: Option<BooleanArray>, plan: &ScanPlan) -> Self {
        let row_bytes = columns.values().map(Column::row_bytes).sum::<u64>().max(plan.output.len() as u64).max(1) as usize;
        let window = (TARGET_BATCH_BYTES / row_bytes / SLICE_ROWS).clamp(1, 128) * SLICE_ROWS;
        Self { columns: Arc::new(columns), rows, mask, at: 0, window }
    }

    /// What its batches may share.
    pub(super) fn held(&self) -> Arc<dyn Any + Send + Sync> {
        Arc::clone(&self.columns) as Arc<dyn Any + Send + Sync>
    }

    /// The next batch of matching rows, in the announced types; if the reader `takes_dictionaries`, whole batches with those that
    /// their columns rest in.
    pub(crate) fn next_batch(&mut self, plan: &ScanPlan, takes: Takes) -> Option<Result<RecordBatch>> {
        while self.at < self.rows {
            let start = self.at;
            let mut len = self.window.min(self.rows - start);
            // A slice may not straddle two pieces of a chunk.
            for column in self.columns.values() {
                if let Column::Chunk(chunk) = column {
                    len = len.min(chunk.piece_rows() - start % chunk.piece_rows());
                }
            }
            // Nor may what rests folded unfold into more than can be held: dictionaries, constants.
            while len > 1
                && self.columns.values().map(|column| column.unfolded_bytes(start, len)).sum::<u64>() > MAX_UNFOLDED_BYTES
            {
                len = len.div_ceil(2);
            }
            self.at += len;
            let mask = self.mask.as_ref().map(|mask| mask.slice(start, len));
            if mask.as_ref().is_some_and(|mask| mask.true_count() == 0) {
                continue;
            }
            let arrays = plan.output.iter().map(|column| self.columns[column].slice(start, len)).collect::<Result<Vec<_>>>();
            // Of few rows, a dictionary may be longer than what they show of it. To another server, chunks go as they rest, or not at all.
            let fits = |array: &ArrayRef| if takes.is_for_peer { fits_message(array) } else { is_small_dictionary(array) };
            let stays = |array: &ArrayRef| takes.dictionaries && self.mask.is_none() && fits(array);
            let as_they_rest = |arrays: &Vec<ArrayRef>| {
                let is_unfolded = |array: &ArrayRef| array.as_any_dictionary_opt().is_some() && !stays(array);
                if takes.is_for_peer && arrays.iter().any(is_unfolded) {
                    let message = format!("{}: a dictionary is too large to be sent as it rests", plan.request.url);
                    return Err(Error::new(ErrorKind::Unsupported, message));
                }
                Ok(())
            };
            let arrays = arrays.and_then(|arrays| as_they_rest(&arrays).map(|()| arrays));
            return Some(arrays.and_then(|arrays| assemble(plan, arrays, len, mask.as_ref(), stays)));
        }
        None
    }
}

/// A batch of the answer: the rows of `mask`, in the announced types, but for dictionaries that may stay. Copies nothing that is neither
/// filtered nor a dictionary.
pub(crate) fn assemble(
    plan: &ScanPlan,
    arrays: Vec<ArrayRef>,
    rows: usize,
    mask: Option<&BooleanArray>,
    stays: impl Fn(&ArrayRef) -> bool,
) -> Result<RecordBatch> {
    let failed = |e: arrow::error::ArrowError| Error::internal(format!("{}: assembling a batch: {e}", plan.request.url));
    let filter = mask.map(|mask| FilterBuilder::new(mask).optimize().build());
    let rows = mask.map_or(rows, BooleanArray::true_count);
    let settle = |(array, data_type): (ArrayRef, &DataType)| -> Result<ArrayRef> {
        let array = match &filter {
            Some(filter) => filter.filter(&array).map_err(failed)?,
            None => array,
        };
        if array.data_type() == data_type || stays(&array) { Ok(array) } else { unfold(&array, data_type).map_err(failed) }
    };
    let types = plan.schema.fields().iter().map(|field| field.data_type());
    let arrays = arrays.into_iter().zip(types).map(settle).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema_of(plan, &arrays), arrays, &options).map_err(failed)
}

/// The announced schema, with the dictionaries that stayed.
fn schema_of(plan: &ScanPlan, arrays: &[ArrayRef]) -> SchemaRef {
    let announced = &plan.schema;
    let differs = |(array, field): (&ArrayRef, &Arc<Field>)| array.data_type() != field.data_type();
    if !arrays.iter().zip(announced.fields()).any(differs) {
        return Arc::clone(announced);
    }
    let fields = arrays.iter().zip(announced.fields()).map(|(array, field)| {
        if array.data_type() == field.data_type() {
            Arc::clone(field)
        } else {
            Arc::new(field.as_ref().clone().with_data_type(array.data_type().clone()))
        }
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Fields>(), announced.metadata().clone()))
}

/// Whether an array is a dictionary whose values fit a message with room to spare.
fn fits_message(array: &ArrayRef) -> bool {
    array
        .as_any_dictionary_opt()
        .is_some_and(|dictionary| dictionary.values().get_buffer_memory_size() <= MAX_SENT_DICTIONARY_BYTES)
}

/// Whether, besides, they are fewer than its rows.
fn is_small_dictionary(array: &ArrayRef) -> bool {
    array.as_any_dictionary_opt().is_some_and(|dictionary| dictionary.values().len() < array.len()) && fits_message(array)
}

/// An array in another type. Views of a dictionary's values are made once and then picked, where there are fewer than rows.
fn unfold(array: &ArrayRef, data_type: &DataType) -> std::result::Result<ArrayRef, arrow::error::ArrowError> {
    match array.as_any_dictionary_opt() {
        Some(dictionary) if *data_type == DataType::Utf8View && dictionary.values().len() < array.len() => {
            let values = cast(dictionary.values(), data_type)?;
            // Without a buffer where all values fit into their views: then nobody has to look for what they show of it.
            take(&values.as_string_view().gc(), dictionary.keys(), None)
        }
        _ => cast(array, data_type),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, Int32Array, StringArray};

    use super::*;

    #[test]
    fn dictionaries_unfold_to_views_of_what_they_hold() {
        let long = "a value that does not fit into its view";
        for values in [vec![Some("a"), None, Some("")], vec![Some("a"), None, Some(long)], vec![Some(long); 9]] {
            let values = StringArray::from(values);
            let keys = Int32Array::from(vec![Some(0), Some(2), None, Some(1), Some(2), Some(0)]);
            let array: ArrayRef = Arc::new(DictionaryArray::new(keys, Arc::new(values)));
            for array in [array.slice(0, 6), array.slice(1, 4)] {
                let unfolded = unfold(&array, &DataType::Utf8View).unwrap();
                // From dictionaries straight to views, values that are NULL become empty.
                let strings = cast(&array, &DataType::Utf8).unwrap();
                assert_eq!(&unfolded, &cast(&strings, &DataType::Utf8View).unwrap());
            }
        }
    }
}
