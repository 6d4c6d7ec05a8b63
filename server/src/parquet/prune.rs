//! Skipping row groups that hold no match, before any of their data is read.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};
use datafusion::datasource::physical_plan::parquet::BloomFilterStatistics;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder};
use flightcache_proto::Result;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::bloom_filter::Sbbf;
use parquet::file::metadata::RowGroupMetaData;

use super::footer::Footer;
use crate::admin::ScanMeter;
use crate::object::FetchLimits;

/// Bloom filters larger than this are not worth reading.
const MAX_BLOOM_BYTES: u64 = 16 << 20;
/// What is read of a Bloom filter whose length the file does not state.
const BLOOM_HEADER_BYTES: u64 = 1 << 10;

/// The row groups of `candidates` that may hold a row for which `predicate` is true.
///
/// `constants` are the values of columns that are not in the file (partition columns, missing columns), by name. What cannot
/// be decided is kept.
pub async fn prune_row_groups(
    footer: &Footer,
    candidates: Vec<u32>,
    predicate: &Arc<dyn PhysicalExpr>,
    schema: &SchemaRef,
    constants: &[(String, ScalarValue)],
    limits: &FetchLimits,
    meter: &ScanMeter,
) -> Result<Vec<u32>> {
    let Ok(pruning) = PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema)).try_build(Arc::clone(predicate)) else {
        return Ok(candidates);
    };
    if pruning.always_true() || candidates.is_empty() {
        return Ok(candidates);
    }
    let groups = candidates.iter().map(|&index| footer.metadata.row_group(index as usize)).collect();
    let statistics = RowGroupStatistics { footer, schema, groups, constants };
    let Ok(keep) = pruning.prune(&statistics) else { return Ok(candidates) };
    let mut kept: Vec<u32> = candidates.into_iter().zip(keep).filter_map(|(index, keep)| keep.then_some(index)).collect();
    let blooms: Vec<_> = pruning.literal_columns();
    if !blooms.is_empty() {
        let mut decided = Vec::with_capacity(kept.len());
        for index in kept {
            if may_contain(footer, index, &pruning, &blooms, limits, meter).await? {
                decided.push(index);
            }
        }
        kept = decided;
    }
    Ok(kept)
}

struct RowGroupStatistics<'a> {
    footer: &'a Footer,
    schema: &'a SchemaRef,
    groups: Vec<&'a RowGroupMetaData>,
    constants: &'a [(String, ScalarValue)],
}

impl RowGroupStatistics<'_> {
    fn constant(&self, column: &Column) -> Option<&ScalarValue> {
        self.constants.iter().find(|(name, _)| *name == column.name).map(|(_, value)| value)
    }

    fn converter(&self, column: &Column) -> Option<StatisticsConverter<'_>> {
        let field = self.footer.schema.field_with_name(&column.name).ok()?;
        // Statistics of a type that was merged with another file's are not comparable.
        if self.schema.field_with_name(&column.name).ok()?.data_type() != field.data_type() {
            return None;
        }
        StatisticsConverter::try_new(&column.name, &self.footer.schema, self.footer.metadata.file_metadata().schema_descr()).ok()
    }
}

impl PruningStatistics for RowGroupStatistics<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        if let Some(value) = self.constant(column) {
            return value.to_array_of_size(self.groups.len()).ok();
        }
        self.converter(column)?.row_group_mins(self.groups.iter().copied()).ok()
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        if let Some(value) = self.constant(column) {
            return value.to_array_of_size(self.groups.len()).ok();
        }
        self.converter(column)?.row_group_maxes(self.groups.iter().copied()).ok()
    }

    fn num_containers(&self) -> usize {
        self.groups.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        if let Some(value) = self.constant(column) {
            let nulls = self.groups.iter().map(|group| if value.is_null() { group.num_rows().unsigned_abs() } else { 0 });
            return Some(Arc::new(UInt64Array::from_iter_values(nulls)));
        }
        let converter = self.converter(column)?.with_missing_null_counts_as_zero(false);
        Some(Arc::new(converter.row_group_null_counts(self.groups.iter().copied()).ok()?))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(UInt64Array::from_iter_values(self.groups.iter().map(|group| group.num_rows().unsigned_abs()))))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

async fn may_contain(
    footer: &Footer,
    row_group: u32,
    pruning: &PruningPredicate,
    columns: &[String],
    limits: &FetchLimits,
    meter: &ScanMeter,
) -> Result<bool> {
    let group = footer.metadata.row_group(row_group as usize);
    let descr = footer.metadata.file_metadata().schema_descr();
    let mut wanted: Vec<(&str, usize, Range<u64>)> = Vec::new();
    for name in columns {
        let Ok(column) = footer.schema.index_of(name) else { continue };
        let leaves = footer.leaves(column);
        if leaves.len() != 1 {
            continue;
        }
        let chunk = group.column(leaves.start);
        let Some(start) = chunk.bloom_filter_offset().and_then(|offset| u64::try_from(offset).ok()) else { continue };
        let len = chunk.bloom_filter_length().map_or(BLOOM_HEADER_BYTES, |len| u64::from(len.unsigned_abs()));
        let end = start.saturating_add(len).min(footer.size);
        if start < end && len <= MAX_BLOOM_BYTES && chunk.bloom_filter_length().is_some() {
            wanted.push((name, leaves.start, start..end));
        }
    }
    if wanted.is_empty() {
        return Ok(true);
    }
    let ranges: Vec<_> = wanted.iter().map(|(_, _, range)| range.clone()).collect();
    let segments = footer.object.ranges(footer.version(), &ranges, limits, meter).await?;
    let mut filters = BloomFilterStatistics::with_capacity(wanted.len());
    for (name, leaf, range) in wanted {
        let Some(bytes) = segments.get(range) else { continue };
        // A filter that cannot be read decides nothing.
        match Sbbf::from_bytes(&bytes) {
            Ok(filter) if filter.num_blocks() > 0 => {
                let column = descr.column(leaf);
                filters.insert(name, filter, column.physical_type(), column.type_length());
            }
            _ => {}
        }
    }
    Ok(pruning.prune(&filters).map_or(true, |keep| keep.first().copied().unwrap_or(true)))
}
