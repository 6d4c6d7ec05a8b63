//! Row groups that are answered as the Parquet bytes they rest as, to clients that decode them.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flightcache_proto::Result;
use flightcache_proto::parquet::{MAX_FILE_BYTES, MAX_MEAN_ROW_BYTES};
use tokio::sync::oneshot;

use super::Engine;
use super::load::{LoadError, RowGroupRef};
use super::plan::{ColumnSource, ScanPlan};
use crate::parquet::{Footer, RowGroupFile, RowGroupLayout, row_group_layout};
use crate::settings::Residency;

/// A row group of an answer, as a Parquet file.
#[derive(Clone)]
pub struct ParquetRows {
    /// The file. It holds the answer's columns, in order, in types that a reader gives as the announced ones.
    pub file: RowGroupFile,
    /// What keeps its bytes accounted.
    pub held: Arc<dyn Any + Send + Sync>,
}

impl Engine {
    /// Whether row groups of an object may be answered as Parquet, for all that the plan says: nothing picks or cuts rows, all
    /// columns are the file's own, in the announced types, and their bytes rest in the cache.
    pub(super) fn may_answer_parquet(&self, plan: &ScanPlan, footer: &Footer, sources: &[ColumnSource]) -> bool {
        self.residency != Residency::Arrow
            && footer.id.is_some()
            && plan.predicate.is_none()
            && plan.request.limit.is_none()
            && plan.request.rows.is_none()
            && !plan.output.is_empty()
            && plan.output.iter().all(|&column| matches!(sources[column], ColumnSource::File(_)))
            && footer.reads_as_announced()
    }

    /// How a row group is answered as Parquet; `None` if it is answered as Arrow.
    pub(super) fn parquet_layout(
        &self,
        plan: &ScanPlan,
        sources: &[ColumnSource],
        group: &RowGroupRef,
    ) -> Option<RowGroupLayout> {
        if !self.may_answer_parquet(plan, &group.footer, sources) {
            return None;
        }
        let columns = file_columns(plan, sources);
        let decoded = columns.iter().map(|&column| group.footer.decoded_bytes_estimate(group.row_group, column));
        let rows = group.footer.row_group_rows(group.row_group).max(1) as u64;
        // A client makes room for a few rows at least, and cannot tell what prefixes unfold into.
        if decoded.fold(0, u64::saturating_add) / rows > MAX_MEAN_ROW_BYTES
            || columns.iter().any(|&column| group.footer.shares_prefixes(group.row_group, column))
        {
            return None;
        }
        let layout = row_group_layout(&group.footer, group.row_group, &columns);
        layout.filter(|layout| layout.total_bytes() <= MAX_FILE_BYTES)
    }

    /// A row group as Parquet. `reserved` is told once the memory for what has to be loaded is reserved.
    pub(super) async fn parquet_rows(
        self: &Arc<Self>,
        plan: &ScanPlan,
        sources: &[ColumnSource],
        group: &RowGroupRef,
        layout: RowGroupLayout,
        reserved: oneshot::Sender<()>,
    ) -> Result<ParquetRows, LoadError> {
        let mut columns = file_columns(plan, sources);
        columns.sort_unstable();
        columns.dedup();
        let (segments, held) = self.encoded_chunks(group, &columns, reserved).await?;
        let file = layout.fill(&segments).ok_or_else(|| group.failed("bytes are missing of what was read"))?;
        group.meter.row_groups_as_parquet.fetch_add(1, Ordering::Relaxed);
        Ok(ParquetRows { file, held: held.into() })
    }
}

/// The answer's columns in the file, in order.
fn file_columns(plan: &ScanPlan, sources: &[ColumnSource]) -> Vec<usize> {
    plan.output.iter().filter_map(|&column| super::file_column(&sources[column])).collect()
}
