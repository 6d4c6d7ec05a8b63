//! Row reads: exactly the rows asked for, in the order asked for, touching only their row groups.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, AsArray as _, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use flightcache_proto::{Error, ErrorKind, Result};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio_util::task::AbortOnDropHandle;

use super::Engine;
use super::load::RowGroupRef;
use super::pick::{PickError, Picked, Picking, ROW_GROUPS_AT_A_TIME, batch};
use super::plan::{ObjectPlan, ScanPlan};
use super::stream::{Batch, MAX_RESTARTS};
use crate::admin::ScanMeter;
use crate::cache::Reservation;
use crate::parquet::{SLICE_ROWS, fixed_bytes};
use crate::record::RequestRecord;

/// The distinct rows of an answer are held in memory until it is sent, so they are bounded.
const MAX_ANSWER_BYTES: u64 = 256 << 20;
/// Rows may be asked for many times; batches are bounded all the same.
const MAX_BATCH_BYTES: u64 = 8 << 20;

/// The rows of an answer, each once, and the order they are asked for in.
struct Answer {
    /// Columns `read`, rows in the order of the object.
    distinct: RecordBatch,
    /// Table columns.
    read: Vec<usize>,
    /// By row of the answer, its place among the distinct ones.
    places: Vec<u64>,
    /// Rows of a batch: as many as stay within bounds even if all were the longest.
    step: usize,
    /// Of all that the rows show: views may show what the cache holds no more.
    _reservation: Option<Reservation>,
}

impl Answer {
    /// The rows from `at` on that the filter lets through, some at a time.
    fn next_batch(&self, plan: &ScanPlan, at: &mut usize) -> Result<RecordBatch> {
        let failed = |e: arrow::error::ArrowError| Error::internal(format!("{}: row read: {e}", plan.request.url));
        let places = &self.places[*at..self.places.len().min(*at + self.step)];
        *at += places.len();
        let mut rows = if self.read.is_empty() {
            // Of no columns, nothing tells how many rows were taken.
            batch(self.distinct.schema_ref(), Vec::new(), places.len())?
        } else {
            take_record_batch(&self.distinct, &UInt64Array::from(places.to_vec())).map_err(failed)?
        };
        let column = |rows: &RecordBatch, column: &usize| match self.read.binary_search(column) {
            Ok(at) => Ok(Arc::clone(rows.column(at))),
            Err(_) => Err(Error::internal("a column was not read")),
        };
        if let Some(predicate) = &plan.predicate {
            let arrays = predicate.columns().iter().map(|at| column(&rows, at)).collect::<Result<_>>()?;
            let mask = predicate.evaluate(arrays, rows.num_rows())?;
            rows = filter_record_batch(&rows, &mask).map_err(failed)?;
        }
        let arrays = plan.output.iter().map(|at| column(&rows, at)).collect::<Result<_>>()?;
        batch(&plan.schema, arrays, rows.num_rows())
    }
}

/// Bytes the longest value of an array takes, or more.
fn longest_value_bytes(array: &ArrayRef) -> u64 {
    let longest = |offsets: &mut dyn Iterator<Item = u64>| offsets.max().unwrap_or(0) + 8;
    match array.data_type() {
        DataType::Utf8 => longest(&mut array.as_string::<i32>().iter().map(|value| value.map_or(0, str::len) as u64)),
        DataType::LargeUtf8 => longest(&mut array.as_string::<i64>().iter().map(|value| value.map_or(0, str::len) as u64)),
        DataType::Utf8View => longest(&mut array.as_string_view().lengths().map(u64::from)),
        DataType::Binary => longest(&mut array.as_binary::<i32>().iter().map(|value| value.map_or(0, <[u8]>::len) as u64)),
        DataType::LargeBinary => longest(&mut array.as_binary::<i64>().iter().map(|value| value.map_or(0, <[u8]>::len) as u64)),
        DataType::BinaryView => longest(&mut array.as_binary_view().lengths().map(u64::from)),
        nested if nested.is_nested() => array.get_array_memory_size() as u64,
        flat => fixed_bytes(flat),
    }
}

impl Engine {
    /// The rows a plan names.
    pub(super) fn rows(
        self: &Arc<Self>,
        plan: Arc<ScanPlan>,
        meter: Arc<ScanMeter>,
    ) -> impl Stream<Item = Result<Batch>> + Send + use<> {
        let engine = Arc::clone(self);
        async_stream::try_stream! {
            let mut object = plan.objects[0].clone();
            let mut restarts = 0;
            let (request, record) = engine.next_request();
            let answer = loop {
                match engine.answer_of(&plan, &object, &meter, request, record.as_ref()).await {
                    Err(error) if error.kind == ErrorKind::Changed && object.whole && restarts < MAX_RESTARTS => {
                        restarts += 1;
                        object = engine.replan_object(&plan, &object, &meter).await?;
                    }
                    answer => break Arc::new(answer?),
                }
            };
            let mut left = plan.request.limit.unwrap_or(u64::MAX);
            let mut at = 0;
            while left > 0 && at < answer.places.len() {
                let mut batch = answer.next_batch(&plan, &mut at)?;
                if batch.num_rows() as u64 > left {
                    batch = batch.slice(0, left as usize);
                }
                left -= batch.num_rows() as u64;
                meter.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                if batch.num_rows() > 0 {
                    yield Batch { rows: batch, held: Some(Arc::clone(&answer) as Arc<_>) };
                }
            }
        }
    }

    async fn answer_of(
        self: &Arc<Self>,
        plan: &Arc<ScanPlan>,
        object: &ObjectPlan,
        meter: &Arc<ScanMeter>,
        request: u64,
        record: Option<&Arc<RequestRecord>>,
    ) -> Result<Answer> {
        let rows = plan.request.rows.as_deref().unwrap_or_default();
        let read = plan.read_columns();
        let schema: SchemaRef = Arc::new(plan.table.project(&read).map_err(|e| Error::internal(e.to_string()))?);
        let mut starts = vec![0_u64];
        for group in 0..object.footer.metadata.num_row_groups() as u32 {
            starts.push(starts[group as usize] + object.footer.row_group_rows(group) as u64);
        }
        // Distinct rows by row group, ascending; and where each ends up among all that are read.
        let mut wanted: BTreeMap<u32, BTreeMap<u32, usize>> = BTreeMap::new();
        // Rows of the answer by row group, where no filter leaves it open. For the record.
        let mut answered: BTreeMap<u32, u64> = BTreeMap::new();
        let limit = if record.is_some() && plan.predicate.is_none() { plan.request.limit.unwrap_or(u64::MAX) } else { 0 };
        for (&row, at) in rows.iter().zip(0..) {
            let group = starts.partition_point(|&start| start <= row) - 1;
            if group + 1 >= starts.len() {
                return Err(Error::invalid(format!("{}: no row {row} any more", plan.request.url)));
            }
            wanted.entry(group as u32).or_default().insert((row - starts[group]) as u32, 0);
            if at < limit {
                *answered.entry(group as u32).or_default() += 1;
            }
        }
        for (place, at) in wanted.values_mut().flat_map(BTreeMap::values_mut).enumerate() {
            *at = place;
        }
        let picking =
            Arc::new(Picking::new(&plan.request.url, &object.columns, read.clone(), Arc::clone(&schema), MAX_ANSWER_BYTES));
        let mut reads = Vec::with_capacity(wanted.len());
        for (&group, offsets) in &wanted {
            let row_group = RowGroupRef {
                footer: Arc::clone(&object.footer),
                row_group: group,
                request,
                populate: plan.request.populate,
                meter: Arc::clone(meter),
                record: record.map(RequestRecord::row_group),
                is_for_peer: false,
            };
            let answered = answered.get(&group).copied().unwrap_or(0);
            let offsets = UInt32Array::from_iter_values(offsets.keys().copied());
            let of_record = row_group.record.clone();
            let pick = Arc::clone(self).pick_distinct(Arc::clone(&picking), row_group, offsets);
            let work = async move {
                let picked = pick.await;
                if let Some(record) = of_record {
                    record.rows(answered);
                }
                picked
            };
            reads.push(async move {
                AbortOnDropHandle::new(tokio::spawn(work))
                    .await
                    .unwrap_or_else(|e| Err(Error::internal(format!("row read: {e}"))))
            });
        }
        let mut reads = futures::stream::iter(reads).buffered(ROW_GROUPS_AT_A_TIME);
        let (mut picked, mut reservation): (_, Option<Reservation>) = (Vec::new(), None);
        while let Some(Picked { rows, held }) = reads.try_next().await? {
            match &mut reservation {
                Some(reservation) => reservation.merge(held),
                None => reservation = Some(held),
            }
            picked.push(rows);
        }
        let failed = |e: arrow::error::ArrowError| Error::internal(format!("{}: row read: {e}", plan.request.url));
        let distinct = concat_batches(&schema, &picked).map_err(failed)?;
        let places = rows.iter().map(|&row| {
            let group = starts.partition_point(|&start| start <= row) - 1;
            wanted[&(group as u32)][&((row - starts[group]) as u32)] as u64
        });
        let longest = distinct.columns().iter().map(longest_value_bytes).sum::<u64>().max(1);
        let step = (MAX_BATCH_BYTES / longest).clamp(1, SLICE_ROWS as u64) as usize;
        Ok(Answer { places: places.collect(), distinct, read, step, _reservation: reservation })
    }

    /// Rows `offsets` (ascending, distinct) of one row group, whether memory may hold that or not.
    async fn pick_distinct(self: Arc<Self>, picking: Arc<Picking>, group: RowGroupRef, offsets: UInt32Array) -> Result<Picked> {
        let url = group.footer.object.url().to_owned();
        let picked = match Arc::clone(&self).pick(Arc::clone(&picking), group.clone(), offsets.clone()).await {
            Err(PickError::GroupTooLarge) => self.pick_banded(picking, group, offsets).await,
            picked => picked,
        };
        picked.map_err(|error| match error {
            PickError::Failed(error) => error,
            PickError::GroupTooLarge => Error::internal(format!("{url}: a row group is too large for bands")),
            PickError::RowsTooLarge => {
                let message = format!(
                    "{url}: the rows asked for hold more than {MAX_ANSWER_BYTES} bytes, or than memory may; ask for fewer at a time"
                );
                Error::new(ErrorKind::ResourceExhausted, message)
            }
        })
    }
}
