//! Many small row reads at once: what they have in common is planned once, looked up once, and picked into one batch.
//!
//! This is for streams of small reads. Their chunks are resident as a rule, and then nothing here waits: no task is spawned,
//! and a read costs little more than its rows. What a read asks for is the same as elsewhere, freshness included: each call
//! has its footer from [`Footers::get`](crate::parquet::Footers::get), and plans anew when that is another one.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::interleave;
use flightcache_proto::{Error, ErrorKind, Result, ScanRequest, Ticket};
use futures::{StreamExt as _, TryStreamExt as _};

use super::Engine;
use super::load::RowGroupRef;
use super::pick::{PickError, Picked, Picking, ROW_GROUPS_AT_A_TIME, batch};
use super::plan::{ObjectPlan, ScanPlan};
use super::stream::MAX_RESTARTS;
use crate::admin::ScanMeter;
use crate::cache::Reservation;
use crate::object::Target;
use crate::parquet::Footer;

/// Rows picked at a time.
const MAX_ROWS: u64 = 4_096;
/// Values picked at a time: about as long as an async thread may be busy.
const MAX_VALUES: u64 = 64 << 10;
/// Bytes picked at a time, by the footer's estimate.
const TARGET_BYTES: u64 = 512 << 10;
/// Bytes picked at most: where rows are that much longer than estimated, they are read as scans.
const MAX_BYTES: u64 = 8 << 20;

/// Row reads of the same columns of the same object.
pub struct RowReads {
    request: ScanRequest,
    planned: Mutex<Option<Arc<Planned>>>,
}

/// A plan, and what follows from its footer.
struct Planned {
    footer: Arc<Footer>,
    plan: Arc<ScanPlan>,
    /// The first row of each row group, and behind the last one the number of rows.
    starts: Vec<u64>,
    rows_at_a_time: usize,
}

/// The rows of many reads, in their order.
pub struct PickedRows {
    /// All of them.
    pub rows: RecordBatch,
    /// How many of them belong to each read; an error if that read names a row that is not there.
    pub counts: Vec<Result<u32>>,
    /// The memory they take.
    pub held: Option<Reservation>,
}

/// Rows of one row group, in any order, repeats included.
struct Group {
    row_group: u32,
    offsets: Vec<u32>,
}

impl RowReads {
    /// Reads of rows of a scan. Nothing is looked at yet.
    pub fn new(request: ScanRequest) -> Self {
        Self { request, planned: Mutex::default() }
    }

    /// What they have in common.
    pub fn request(&self) -> &ScanRequest {
        &self.request
    }

    /// Rows that one call should ask for. A read of more is better off as a scan.
    pub fn rows_at_a_time(&self) -> usize {
        self.planned().map_or(MAX_ROWS as usize, |planned| planned.rows_at_a_time)
    }

    fn planned(&self) -> Option<Arc<Planned>> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Planned {
    fn new(plan: Arc<ScanPlan>) -> Result<Self> {
        let object = plan.objects.first().ok_or_else(|| Error::internal("a plan without its object"))?;
        let footer = Arc::clone(&object.footer);
        let mut starts = vec![0_u64];
        for group in 0..footer.metadata.num_row_groups() as u32 {
            starts.push(starts[group as usize] + footer.row_group_rows(group) as u64);
        }
        let rows = starts.last().copied().unwrap_or(0).max(1);
        let row_bytes = (plan.estimated_bytes() / rows).max(1);
        let rows_at_a_time = MAX_ROWS.min(MAX_VALUES / plan.output.len().max(1) as u64).min(TARGET_BYTES / row_bytes).max(1);
        Ok(Self { footer, plan, starts, rows_at_a_time: rows_at_a_time as usize })
    }

    fn object(&self) -> &ObjectPlan {
        // `new` checked that there is one.
        &self.plan.objects[0]
    }

    fn rows(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// By row group what is asked of it, and of each row its row group's place among those and its own place within.
    fn locate(&self, rows: &[u64]) -> (Vec<Group>, Vec<(usize, usize)>) {
        let mut groups: Vec<Group> = Vec::new();
        let mut at: BTreeMap<u32, usize> = BTreeMap::new();
        let mut last: Option<(std::ops::Range<u64>, usize)> = None;
        let places = rows.iter().map(|&row| {
            let group = match &last {
                Some((range, group)) if range.contains(&row) => *group,
                _ => {
                    let row_group = self.starts.partition_point(|&start| start <= row) - 1;
                    let group = *at.entry(row_group as u32).or_insert_with(|| {
                        groups.push(Group { row_group: row_group as u32, offsets: Vec::new() });
                        groups.len() - 1
                    });
                    last = Some((self.starts[row_group]..self.starts[row_group + 1], group));
                    group
                }
            };
            let Group { row_group, offsets } = &mut groups[group];
            offsets.push((row - self.starts[*row_group as usize]) as u32);
            (group, offsets.len() - 1)
        });
        let places = places.collect();
        (groups, places)
    }
}

impl Engine {
    /// The rows of many reads; `counts` says how many of `rows` belong to each. `None` if they have to be read as scans: they
    /// have a filter or a limit, span objects, are large, or are to be recorded one by one.
    pub async fn read_rows(
        self: &Arc<Self>,
        reads: &RowReads,
        counts: &[u32],
        rows: &[u64],
        meter: &Arc<ScanMeter>,
    ) -> Result<Option<PickedRows>> {
        if reads.request.filter.is_some() || reads.request.limit.is_some() || self.recorder.is_some() {
            return Ok(None);
        }
        let mut restarts = 0;
        loop {
            let Some(planned) = self.prepared(reads, meter).await? else { return Ok(None) };
            let width = planned.plan.output.len().max(1) as u64;
            if rows.len() as u64 > MAX_ROWS || rows.len() as u64 * width > MAX_VALUES.max(width) {
                return Ok(None);
            }
            match self.pick_rows(&planned, counts, rows, meter).await {
                Ok(picked) => return Ok(Some(picked)),
                Err(PickError::GroupTooLarge | PickError::RowsTooLarge) => return Ok(None),
                Err(PickError::Failed(error)) if error.kind == ErrorKind::Changed && restarts < MAX_RESTARTS => restarts += 1,
                Err(PickError::Failed(error)) => return Err(error),
            }
        }
    }

    /// The plan of reads, on a footer that is fresh enough.
    async fn prepared(self: &Arc<Self>, reads: &RowReads, meter: &Arc<ScanMeter>) -> Result<Option<Arc<Planned>>> {
        if let Some(planned) = reads.planned() {
            let object = &planned.footer.object;
            let footer = self.footers.get(object, None, self.footer_elsewhere(object, None), meter).await?;
            if Arc::ptr_eq(&footer, &planned.footer) {
                return Ok(Some(planned));
            }
        } else if !matches!(self.sources.resolve(&reads.request.url)?, Target::Object(_)) {
            return Ok(None);
        }
        let plan = self.plan(&Ticket::Scan(reads.request.clone()), meter).await?;
        let planned = Arc::new(Planned::new(plan)?);
        *reads.planned.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&planned));
        Ok(Some(planned))
    }

    async fn pick_rows(
        self: &Arc<Self>,
        planned: &Arc<Planned>,
        counts: &[u32],
        rows: &[u64],
        meter: &Arc<ScanMeter>,
    ) -> Result<PickedRows, PickError> {
        let total = planned.rows();
        let mut counts: Vec<Result<u32>> = counts.iter().map(|&count| Ok(count)).collect();
        let mut there = std::borrow::Cow::Borrowed(rows);
        if rows.iter().any(|&row| row >= total) {
            there = retain_there(&mut counts, rows, total, &planned.plan.request.url).into();
        }
        let (groups, places) = planned.locate(&there);
        let (request, _) = self.next_request();
        let (object, schema) = (planned.object(), &planned.plan.schema);
        let (url, output) = (&planned.plan.request.url, planned.plan.output.clone());
        let picking = Arc::new(Picking::new(url, &object.columns, output, Arc::clone(schema), MAX_BYTES));
        let picks = groups.into_iter().map(|group| {
            let row_group = RowGroupRef {
                footer: Arc::clone(&planned.footer),
                row_group: group.row_group,
                request,
                populate: planned.plan.request.populate,
                meter: Arc::clone(meter),
                record: None,
                is_for_peer: false,
            };
            Arc::clone(self).pick(Arc::clone(&picking), row_group, UInt32Array::from(group.offsets))
        });
        let mut picked: Vec<Picked> = futures::stream::iter(picks).buffered(ROW_GROUPS_AT_A_TIME).try_collect().await?;
        let (rows, held) = match picked.len() {
            0 => (RecordBatch::new_empty(Arc::clone(schema)), None),
            // Picked in the order asked for.
            1 => {
                let Picked { rows, held } = picked.swap_remove(0);
                (rows, Some(held))
            }
            _ => {
                let column = |at: usize| {
                    let arrays: Vec<_> = picked.iter().map(|picked| picked.rows.column(at).as_ref()).collect();
                    interleave(&arrays, &places).map_err(|e| Error::internal(format!("{url}: row read: {e}")))
                };
                let arrays = (0..schema.fields().len()).map(column).collect::<Result<_>>()?;
                let rows = batch(schema, arrays, there.len())?;
                let mut all: Option<Reservation> = None;
                for Picked { held, .. } in picked {
                    match &mut all {
                        Some(all) => all.merge(held),
                        None => all = Some(held),
                    }
                }
                if let Some(held) = &mut all {
                    self.account(held, &rows, &picking).await?;
                }
                (rows, all)
            }
        };
        meter.rows.fetch_add(rows.num_rows() as u64, Ordering::Relaxed);
        Ok(PickedRows { rows, counts, held })
    }
}

/// The rows of those reads whose rows are all there; the others become errors.
fn retain_there(counts: &mut [Result<u32>], rows: &[u64], total: u64, url: &str) -> Vec<u64> {
    let mut there = Vec::with_capacity(rows.len());
    let mut left = rows;
    for count in counts {
        let Ok(length) = count else { continue };
        let (rows, rest) = left.split_at((*length as usize).min(left.len()));
        left = rest;
        match rows.iter().find(|&&row| row >= total) {
            None => there.extend_from_slice(rows),
            Some(row) => *count = Err(Error::invalid(format!("{url}: no row {row}, there are {total}"))),
        }
    }
    there
}
