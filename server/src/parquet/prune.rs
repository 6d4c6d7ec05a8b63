//! Skipping row groups that hold no match, before any of their data is read.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};
use datafusion::datasource::physical_plan::parquet::BloomFilterStatistics;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column as ColumnExpr, InListExpr, Literal};
use datafusion::physical_expr::{PhysicalExpr, split_conjunction};
use datafusion::physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder};
use flightcache_proto::{ErrorKind, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::file::metadata::RowGroupMetaData;

use super::bloom::BloomFilters;
use super::footer::Footer;
use crate::admin::ScanMeter;

/// Row groups whose Bloom filters are read at a time.
const ROW_GROUPS_AT_A_TIME: usize = 16;

/// The row groups of `candidates` that may hold a row for which `predicate` is true.
///
/// `constants` are the values of columns that are not in the file (partition columns, missing columns), by name. What cannot
/// be decided is kept.
pub async fn prune_row_groups(
    footer: &Arc<Footer>,
    candidates: Vec<u32>,
    predicate: &Arc<dyn PhysicalExpr>,
    schema: &SchemaRef,
    constants: &[(String, ScalarValue)],
    filters: &BloomFilters,
    meter: &Arc<ScanMeter>,
) -> Result<Vec<u32>> {
    let Ok(pruning) = PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema)).try_build(Arc::clone(predicate)) else {
        return Ok(candidates);
    };
    if pruning.always_true() || candidates.is_empty() {
        return Ok(candidates);
    }
    let bounded = bounded_columns(predicate);
    let groups = candidates.iter().map(|&index| footer.metadata.row_group(index as usize)).collect();
    let statistics = RowGroupStatistics { footer, schema, groups, constants, bounded };
    let Ok(keep) = pruning.prune(&statistics) else { return Ok(candidates) };
    let mut kept: Vec<u32> = candidates.into_iter().zip(keep).filter_map(|(index, keep)| keep.then_some(index)).collect();
    // Only columns of one leaf have a Bloom filter of their own.
    let columns: Vec<(String, usize)> = pruning
        .literal_columns()
        .into_iter()
        .filter_map(|name| {
            let index = footer.schema.index_of(&name).ok()?;
            let leaves = footer.leaves(index);
            // Zeros of both signs are equal, as some functions have it, and NaN of any bits; filters know bits.
            let is_exact = !footer.schema.field(index).data_type().is_floating();
            (leaves.len() == 1 && is_exact).then_some((name, leaves.start))
        })
        .collect();
    if !columns.is_empty() {
        let decisions = futures::stream::iter(kept).map(|index| {
            let (pruning, columns) = (&pruning, &columns);
            async move { Ok((index, may_contain(footer, index, pruning, columns, filters, meter).await?)) }
        });
        let decided: Vec<(u32, bool)> = decisions.buffered(ROW_GROUPS_AT_A_TIME).try_collect().await?;
        kept = decided.into_iter().filter_map(|(index, keep)| keep.then_some(index)).collect();
    }
    Ok(kept)
}

struct RowGroupStatistics<'a> {
    footer: &'a Footer,
    schema: &'a SchemaRef,
    groups: Vec<&'a RowGroupMetaData>,
    constants: &'a [(String, ScalarValue)],
    /// Columns of which the filter lets no NaN through.
    bounded: HashSet<String>,
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

    /// Whether the least and greatest values of a column mean what the filter's comparisons mean.
    fn is_ordered(&self, column: &Column) -> bool {
        let Ok(index) = self.footer.schema.index_of(&column.name) else { return false };
        // Writers leave NaN out of statistics; comparisons do not.
        if self.footer.schema.field(index).data_type().is_floating() && !self.bounded.contains(&column.name) {
            return false;
        }
        // Old writers compared all bytes and unsigned numbers as signed.
        let leaf = self.footer.leaves(index).start;
        let is_sound = |group: &&RowGroupMetaData| {
            group.column(leaf).statistics().is_none_or(|s| !s.is_min_max_deprecated() || s.is_min_max_backwards_compatible())
        };
        self.groups.iter().all(is_sound)
    }
}

impl PruningStatistics for RowGroupStatistics<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        if let Some(value) = self.constant(column) {
            return value.to_array_of_size(self.groups.len()).ok();
        }
        self.converter(column).filter(|_| self.is_ordered(column))?.row_group_mins(self.groups.iter().copied()).ok()
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        if let Some(value) = self.constant(column) {
            return value.to_array_of_size(self.groups.len()).ok();
        }
        self.converter(column).filter(|_| self.is_ordered(column))?.row_group_maxes(self.groups.iter().copied()).ok()
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

/// The columns that the filter bounds from below and from above by plain comparisons: no NaN, which orders before or after all
/// numbers, gets through, and so statistics that leave NaN out decide rightly.
fn bounded_columns(predicate: &Arc<dyn PhysicalExpr>) -> HashSet<String> {
    let (mut below, mut above) = (HashSet::new(), HashSet::new());
    for conjunct in split_conjunction(predicate) {
        if let Some(list) = conjunct.downcast_ref::<InListExpr>()
            && let Some(column) = list.expr().downcast_ref::<ColumnExpr>()
            && !list.negated()
            && list.list().iter().all(is_number)
        {
            below.insert(column.name().to_owned());
            above.insert(column.name().to_owned());
        }
        let Some(comparison) = conjunct.downcast_ref::<BinaryExpr>() else { continue };
        let (left, right) = (comparison.left(), comparison.right());
        let (column, op) = match (left.downcast_ref::<ColumnExpr>(), right.downcast_ref::<ColumnExpr>()) {
            (Some(column), None) if is_number(right) => (column, Some(*comparison.op())),
            (None, Some(column)) if is_number(left) => (column, comparison.op().swap()),
            _ => continue,
        };
        if matches!(op, Some(Operator::Gt | Operator::GtEq | Operator::Eq)) {
            below.insert(column.name().to_owned());
        }
        if matches!(op, Some(Operator::Lt | Operator::LtEq | Operator::Eq)) {
            above.insert(column.name().to_owned());
        }
    }
    below.intersection(&above).cloned().collect()
}

/// Whether an expression is a number other than NaN and the infinities.
fn is_number(expr: &Arc<dyn PhysicalExpr>) -> bool {
    match expr.downcast_ref::<Literal>().map(Literal::value) {
        Some(ScalarValue::Float64(Some(value))) => value.is_finite(),
        Some(ScalarValue::Float32(Some(value))) => value.is_finite(),
        Some(ScalarValue::Float16(Some(value))) => value.is_finite(),
        _ => false,
    }
}

/// Whether the Bloom filters of `columns` leave it possible that a row group holds a match.
async fn may_contain(
    footer: &Arc<Footer>,
    row_group: u32,
    pruning: &PruningPredicate,
    columns: &[(String, usize)],
    filters: &BloomFilters,
    meter: &Arc<ScanMeter>,
) -> Result<bool> {
    let found = match filters.get(footer, row_group, columns.iter().map(|(_, leaf)| *leaf), meter).await {
        Ok(found) => found,
        Err(error) if error.kind == ErrorKind::Changed => return Err(error),
        // The scan does not depend on them.
        Err(error) => {
            tracing::warn!(cause = %error, "Bloom filters cannot be read");
            return Ok(true);
        }
    };
    if found.is_empty() {
        return Ok(true);
    }
    let mut statistics = BloomFilterStatistics::with_capacity(found.len());
    for (leaf, filter) in found {
        let column = footer.metadata.file_metadata().schema_descr().column(leaf);
        let name = columns.iter().find_map(|(name, at)| (*at == leaf).then_some(name)).map_or("", String::as_str);
        statistics.insert(name, filter, column.physical_type(), column.type_length());
    }
    Ok(pruning.prune(&statistics).map_or(true, |keep| keep.first().copied().unwrap_or(true)))
}
