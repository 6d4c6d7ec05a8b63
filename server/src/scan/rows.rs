//! Row reads: exactly the rows asked for, in the order asked for, touching only their row groups.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array, UInt64Array};
use arrow::compute::{concat_batches, filter_record_batch, take, take_record_batch};
use arrow::datatypes::{Schema, SchemaRef};
use flightcache_proto::{Error, ErrorKind, Result};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio_util::task::AbortOnDropHandle;

use super::Engine;
use super::load::{LoadError, RowGroupRef};
use super::plan::{ColumnSource, ObjectPlan, ScanPlan};
use super::row_group::Column;
use super::stream::MAX_RESTARTS;
use crate::admin::ScanMeter;
use crate::cache::Pinned;
use crate::parquet::{Chunk, SLICE_ROWS, decode_bands};

/// Row groups read at a time.
const ROW_GROUPS_AT_A_TIME: usize = 4;
/// An answer is put in order in memory, so it is bounded.
const MAX_ANSWER_BYTES: usize = 256 << 20;

impl Engine {
    /// The rows a plan names.
    pub(super) fn rows(
        self: &Arc<Self>,
        plan: Arc<ScanPlan>,
        meter: Arc<ScanMeter>,
    ) -> impl Stream<Item = Result<RecordBatch>> + Send + use<> {
        let engine = Arc::clone(self);
        async_stream::try_stream! {
            let mut object = plan.objects[0].clone();
            let mut restarts = 0;
            let answer = loop {
                match engine.pick(&plan, &object, &meter).await {
                    Err(error) if error.kind == ErrorKind::Changed && object.whole && restarts < MAX_RESTARTS => {
                        restarts += 1;
                        object = engine.replan_object(&plan, &object, &meter).await?;
                    }
                    answer => break answer?,
                }
            };
            let mut left = plan.request.limit.map_or(answer.num_rows(), |limit| usize::try_from(limit).unwrap_or(usize::MAX).min(answer.num_rows()));
            let mut at = 0;
            while left > 0 {
                let len = left.min(SLICE_ROWS);
                meter.rows.fetch_add(len as u64, Ordering::Relaxed);
                yield answer.slice(at, len);
                at += len;
                left -= len;
            }
        }
    }

    async fn pick(self: &Arc<Self>, plan: &Arc<ScanPlan>, object: &ObjectPlan, meter: &Arc<ScanMeter>) -> Result<RecordBatch> {
        let rows = plan.request.rows.as_deref().unwrap_or_default();
        let read = plan.read_columns();
        let schema: SchemaRef = Arc::new(plan.table.project(&read).map_err(|e| Error::internal(e.to_string()))?);
        let mut starts = vec![0_u64];
        for group in 0..object.footer.metadata.num_row_groups() as u32 {
            starts.push(starts[group as usize] + object.footer.row_group_rows(group) as u64);
        }
        // Distinct rows by row group, ascending; and where each ends up among all that are read.
        let mut wanted: BTreeMap<u32, BTreeMap<u32, usize>> = BTreeMap::new();
        for &row in rows {
            let group = starts.partition_point(|&start| start <= row) - 1;
            if group + 1 >= starts.len() {
                return Err(Error::invalid(format!("{}: no row {row} any more", plan.request.url)));
            }
            wanted.entry(group as u32).or_default().insert((row - starts[group]) as u32, 0);
        }
        for (place, at) in wanted.values_mut().flat_map(BTreeMap::values_mut).enumerate() {
            *at = place;
        }
        let request = self.next_request();
        let mut reads = Vec::with_capacity(wanted.len());
        for (&group, offsets) in &wanted {
            let row_group = RowGroupRef {
                footer: Arc::clone(&object.footer),
                row_group: group,
                request,
                populate: plan.request.populate,
                meter: Arc::clone(meter),
            };
            let offsets = UInt32Array::from_iter_values(offsets.keys().copied());
            let work =
                Arc::clone(self).pick_from(row_group, Arc::clone(&object.columns), read.clone(), offsets, Arc::clone(&schema));
            reads.push(async move {
                AbortOnDropHandle::new(tokio::spawn(work))
                    .await
                    .unwrap_or_else(|e| Err(Error::internal(format!("row read: {e}"))))
            });
        }
        let mut reads = futures::stream::iter(reads).buffered(ROW_GROUPS_AT_A_TIME);
        let (mut picked, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = reads.try_next().await? {
            bytes += batch.get_array_memory_size();
            if bytes > MAX_ANSWER_BYTES {
                let message = format!(
                    "{}: the rows asked for hold more than {MAX_ANSWER_BYTES} bytes; ask for fewer at a time",
                    plan.request.url
                );
                return Err(Error::new(ErrorKind::ResourceExhausted, message));
            }
            picked.push(batch);
        }
        let failed = |e: arrow::error::ArrowError| Error::internal(format!("{}: row read: {e}", plan.request.url));
        let all = concat_batches(&schema, &picked).map_err(failed)?;
        let places = rows.iter().map(|&row| {
            let group = starts.partition_point(|&start| start <= row) - 1;
            wanted[&(group as u32)][&((row - starts[group]) as u32)] as u64
        });
        let mut ordered = take_record_batch(&all, &UInt64Array::from_iter_values(places)).map_err(failed)?;
        if let Some(predicate) = &plan.predicate {
            let column = |column: &usize| {
                read.binary_search(column)
                    .map(|at| Arc::clone(ordered.column(at)))
                    .map_err(|_| Error::internal("a filter column was not read"))
            };
            let arrays = predicate.columns().iter().map(column).collect::<Result<_>>()?;
            let mask = predicate.evaluate(arrays, ordered.num_rows())?;
            ordered = filter_record_batch(&ordered, &mask).map_err(failed)?;
        }
        let places = plan
            .output
            .iter()
            .map(|column| read.binary_search(column).map_err(|_| Error::internal("an output column was not read")))
            .collect::<Result<Vec<_>>>()?;
        let arrays = places.into_iter().map(|at| Arc::clone(ordered.column(at))).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(ordered.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&plan.schema), arrays, &options).map_err(failed)
    }

    /// Rows `offsets` (ascending, distinct) of one row group, in the announced types.
    async fn pick_from(
        self: Arc<Self>,
        group: RowGroupRef,
        sources: Arc<Vec<ColumnSource>>,
        read: Vec<usize>,
        offsets: UInt32Array,
        schema: SchemaRef,
    ) -> Result<RecordBatch> {
        group.meter.row_groups.fetch_add(1, Ordering::Relaxed);
        let columns = match self.columns(&sources, &group, &read, None).await {
            Ok(columns) => columns,
            Err(LoadError::TooLarge) => return self.pick_banded(group, sources, read, offsets, schema).await,
            Err(LoadError::Failed(error)) => return Err(error),
        };
        let pick = move || {
            let arrays = read.iter().zip(schema.fields()).map(|(column, field)| {
                let array = match &columns[column] {
                    Column::Constant(value) => {
                        value.to_array_of_size(offsets.len()).map_err(|e| Error::internal(e.to_string()))?
                    }
                    Column::Chunk(chunk) => take_from(chunk, &offsets)?,
                };
                settle(array, field.data_type())
            });
            batch(&schema, arrays.collect::<Result<_>>()?, offsets.len())
        };
        tokio::task::spawn_blocking(pick).await.unwrap_or_else(|e| Err(Error::internal(format!("row read: {e}"))))
    }

    /// The same for a row group that memory may not hold.
    async fn pick_banded(
        self: &Arc<Self>,
        group: RowGroupRef,
        sources: Arc<Vec<ColumnSource>>,
        read: Vec<usize>,
        offsets: UInt32Array,
        schema: SchemaRef,
    ) -> Result<RecordBatch> {
        let mut file_columns: Vec<usize> = read.iter().filter_map(|&column| super::file_column(&sources[column])).collect();
        file_columns.sort_unstable();
        file_columns.dedup();
        let ranges = group.ranges(&file_columns);
        let compressed = ranges.iter().map(|range| range.end - range.start).sum();
        let reservation = self.chunks.reserve(compressed).await.map_err(|error| group.error(&error))?;
        let footer = Arc::clone(&group.footer);
        let segments = self.fetch(&group, &file_columns).await?;
        let pick = move || {
            let _reservation = reservation;
            let (mut start, mut picked) = (0_usize, Vec::new());
            for band in decode_bands(&footer, group.row_group, &file_columns, &segments)? {
                let band = band?;
                let end = start + band.num_rows();
                let here: UInt32Array = offsets
                    .values()
                    .iter()
                    .filter(|&&row| (start..end).contains(&(row as usize)))
                    .map(|&row| row - start as u32)
                    .collect();
                start = end;
                if here.is_empty() {
                    continue;
                }
                let arrays = read.iter().zip(schema.fields()).map(|(column, field)| {
                    let array = match &sources[*column] {
                        ColumnSource::Constant(value) => {
                            value.to_array_of_size(here.len()).map_err(|e| Error::internal(e.to_string()))?
                        }
                        ColumnSource::File(file_column) => {
                            let at =
                                file_columns.binary_search(file_column).map_err(|_| Error::internal("a band lacks a column"))?;
                            take(band.column(at), &here, None).map_err(|e| Error::internal(e.to_string()))?
                        }
                    };
                    settle(array, field.data_type())
                });
                picked.push(batch(&schema, arrays.collect::<Result<_>>()?, here.len())?);
            }
            concat_batches(&schema, &picked).map_err(|e| Error::internal(e.to_string()))
        };
        tokio::task::spawn_blocking(pick).await.unwrap_or_else(|e| Err(Error::internal(format!("row read: {e}"))))
    }
}

fn take_from(chunk: &Pinned<Chunk>, offsets: &UInt32Array) -> Result<ArrayRef> {
    let failed = |e: arrow::error::ArrowError| Error::internal(format!("row read: {e}"));
    if let Some(array) = chunk.whole() {
        return take(array, offsets, None).map_err(failed);
    }
    let places: Vec<_> = offsets.values().iter().map(|&row| chunk.locate(row as usize)).collect();
    let pieces: Vec<_> = chunk.pieces().iter().map(AsRef::as_ref).collect();
    arrow::compute::interleave(&pieces, &places).map_err(failed)
}

fn settle(array: ArrayRef, data_type: &arrow::datatypes::DataType) -> Result<ArrayRef> {
    if array.data_type() == data_type {
        Ok(array)
    } else {
        arrow::compute::cast(&array, data_type).map_err(|e| Error::internal(e.to_string()))
    }
}

fn batch(schema: &Arc<Schema>, arrays: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options).map_err(|e| Error::internal(e.to_string()))
}
