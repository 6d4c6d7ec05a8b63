//! What a query planner wants to know of a table, from the footers: rows, NULLs, least and greatest values. Exact where they leave no
//! doubt.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::datatypes::DataType;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use flightcache_proto::action::{Bounds, MoreObjects, SortedBy, SourcesInfo, TableInfo, TableObject};
use flightcache_proto::{Error, Result, ScanRequest, Ticket, aggregation, predicate};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::basic::{SortOrder, Type as PhysicalType};
use parquet::file::metadata::{RowGroupMetaData, SortingColumn};

use super::plan::ObjectPlan;
use super::{ColumnSource, Engine, ScanPlan};
use crate::admin::ScanMeter;
use crate::object::Target;
use crate::parquet::Footer;

/// About what a client is told of objects in one message, as a guess, and of their statistics: together well below the 4 MiB that plain
/// clients take.
const PART_BYTES: usize = 1 << 20;

/// Objects that are told of in one message, and their statistics.
#[derive(Debug)]
pub(super) struct TablePart {
    objects: Range<usize>,
    statistics: Vec<u8>,
    sorted_by: Vec<Vec<SortedBy>>,
}

impl Engine {
    /// What may be read, and what programs may ask of it.
    pub fn sources(&self) -> SourcesInfo {
        SourcesInfo {
            sources: self.sources.iter().map(|source| source.root().to_owned()).collect(),
            predicate_version: predicate::VERSION,
            aggregation_version: aggregation::VERSION,
        }
    }

    /// An object, a prefix or a glob as a table; as the store has it `now`, or as fresh as its source's bound says. In parts that
    /// have room in a message each.
    pub async fn table(
        self: &Arc<Self>,
        url: &str,
        now: bool,
        meter: &Arc<ScanMeter>,
    ) -> Result<(TableInfo, impl Iterator<Item = MoreObjects> + Send + use<>)> {
        if now {
            self.listings.forget(url);
            if let Target::Object(object) = self.sources.resolve(url)? {
                self.footers.forget(object.url());
            }
        }
        let plan = self.plan(&Ticket::Scan(ScanRequest::new(url)), meter).await?;
        // They are the same while the footers are.
        let parts = plan.statistics.get_or_init(|| parts(&plan).map(Arc::from));
        let parts = parts.clone().map_err(|e| Error::internal(format!("{url}: {e}")))?;
        let schema = super::ipc_schema(&plan.table)?;
        let mut more = (0..parts.len()).map({
            let plan = Arc::clone(&plan);
            move |part| {
                let TablePart { objects, statistics, sorted_by } = &parts[part];
                let objects = plan.objects[objects.clone()].iter().zip(sorted_by);
                let objects = objects.map(|(object, sorted_by)| described(&plan, object, sorted_by.clone())).collect();
                MoreObjects { objects, statistics: statistics.clone() }
            }
        });
        let first = more.next().unwrap_or_default();
        let table = TableInfo {
            predicate_version: predicate::VERSION,
            aggregation_version: aggregation::VERSION,
            schema,
            spans_objects: plan.spans_objects,
            objects: first.objects,
            objects_total: plan.objects.len() as u64,
            statistics: first.statistics,
        };
        Ok((table, more))
    }

    /// Refuses a URL outside the sources. No I/O.
    pub(crate) fn check_url(&self, url: &str) -> Result<()> {
        self.sources.resolve(url).map(drop)
    }

    /// Forgets what a table was made of, some of which turned out overwritten: the next look at it asks the store.
    pub(crate) fn forget_table(&self, url: &str, table: &TableInfo) {
        self.listings.forget(url);
        for object in &table.objects {
            self.footers.forget(&object.url);
        }
    }
}

impl Engine {
    /// Least and greatest values of a column of one object, by row group, as far as its statistics tell.
    pub async fn bounds(self: &Arc<Self>, url: &str, column: &str) -> Result<Bounds> {
        let request = ScanRequest { columns: Some(vec![column.to_owned()]), ..ScanRequest::new(url) };
        let plan = self.plan(&Ticket::Scan(request), &Arc::default()).await?;
        let ([object], [column]) = (&plan.objects[..], &plan.output[..]) else {
            return Err(Error::invalid(format!(
                "{url}: bounds are of one object's row groups, there are {}",
                plan.objects.len()
            )));
        };
        let groups = object.footer.metadata.row_groups();
        let data_type = plan.table.field(*column).data_type();
        let known = match &object.columns[*column] {
            ColumnSource::File(column) => converter(&object.footer, *column, data_type)
                .and_then(|converter| Some((converter.row_group_mins(groups).ok()?, converter.row_group_maxes(groups).ok()?))),
            ColumnSource::Constant(_) => None,
        };
        let (least, greatest) = known.unwrap_or_else(|| {
            let unknown = arrow::array::new_null_array(data_type, groups.len());
            (Arc::clone(&unknown), unknown)
        });
        let written = flightcache_datafusion::statistics::write_bounds(least, greatest);
        let bounds = written.map_err(|e| Error::internal(format!("{url}: {}", e.strip_backtrace())))?;
        Ok(Bounds { version: object.footer.version().map(ToString::to_string), bounds })
    }
}

/// Where a row group begins.
fn offset(group: &RowGroupMetaData) -> u64 {
    let first = group.columns().first();
    let offset = first.map(|column| column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset()));
    offset.unwrap_or_default().unsigned_abs()
}

/// At least one part, of none if there are no objects.
fn parts(plan: &ScanPlan) -> std::result::Result<Vec<TablePart>, String> {
    // A column's bounds and count, a row group's rows, bytes and offset, and a URL, as they are written.
    let weight = |object: &ObjectPlan| {
        let groups = object.footer.metadata.num_row_groups();
        256 + object.footer.object.url().len() + 32 * groups + 112 * plan.table.fields().len()
    };
    let mut parts = Vec::new();
    let mut start = 0;
    while start < plan.objects.len() || parts.is_empty() {
        let mut bytes = 0;
        let fits = plan.objects[start..].iter().take_while(|object| {
            let has_room = bytes < PART_BYTES;
            bytes += weight(object);
            has_room
        });
        let mut end = start + fits.count();
        let mut statistics = of_objects(plan, &plan.objects[start..end])?;
        // Bounds may be long.
        while statistics.len() > PART_BYTES && end - start > 1 {
            end = start + (end - start) / 2;
            statistics = of_objects(plan, &plan.objects[start..end])?;
        }
        let sorted_by = plan.objects[start..end].iter().map(|object| sorted_by(plan, object).unwrap_or_default()).collect();
        parts.push(TablePart { objects: start..end, statistics, sorted_by });
        start = end;
    }
    Ok(parts)
}

/// What an object says that its rows are sorted by. Each row group says it of itself: whether they follow one another is for statistics
/// to tell.
fn sorted_by(plan: &ScanPlan, object: &ObjectPlan) -> Option<Vec<SortedBy>> {
    let groups: Vec<_> = groups(object).filter(|group| group.num_rows() > 0).collect();
    let said = groups.first()?.sorting_columns()?;
    if groups.iter().any(|group| group.sorting_columns().is_none_or(|columns| columns != said)) {
        return None;
    }
    let parquet = object.footer.metadata.file_metadata().schema_descr();
    let column = |said: &SortingColumn| {
        let leaf = usize::try_from(said.column_idx).ok().filter(|&leaf| leaf < parquet.num_columns())?;
        let is_it = |source: &ColumnSource| matches!(source, ColumnSource::File(column) if object.footer.leaves(*column) == (leaf..leaf + 1));
        let column = object.columns.iter().position(is_it)?;
        let data_type = plan.table.field(column).data_type();
        // Where NaN and zeros of either sign stand is not said, nor what is not compared as values are.
        let is_plain =
            !data_type.is_nested() && !data_type.is_floating() && parquet.column(leaf).sort_order() != SortOrder::UNDEFINED;
        is_plain.then_some(SortedBy { column: column as u32, descending: said.descending, nulls_first: said.nulls_first })
    };
    let mut sorted_by: Vec<_> = said.iter().map_while(column).collect();
    if groups.len() > 1 {
        let first = *sorted_by.first()?;
        let ColumnSource::File(column) = object.columns[first.column as usize] else { return None };
        let data_type = plan.table.field(first.column as usize).data_type();
        let converter = converter(&object.footer, column, data_type)?;
        let (least, greatest) =
            (converter.row_group_mins(groups.iter().copied()).ok()?, converter.row_group_maxes(groups.iter().copied()).ok()?);
        let nulls = converter.row_group_null_counts(groups.iter().copied()).ok()?;
        if nulls.null_count() + least.null_count() + greatest.null_count() > 0 || nulls.values().iter().any(|&nulls| nulls > 0) {
            return None;
        }
        // Bounds that were cut short are bounds all the same.
        let value = |values: &ArrayRef, group: usize| ScalarValue::try_from_array(values, group).ok();
        for group in 1..groups.len() {
            let (before, after) = if first.descending {
                (value(&greatest, group)?, value(&least, group - 1)?)
            } else {
                (value(&greatest, group - 1)?, value(&least, group)?)
            };
            match before.partial_cmp(&after)? {
                Ordering::Less => {}
                // Rows that are alike in this may be in any order across row groups.
                Ordering::Equal => sorted_by.truncate(1),
                Ordering::Greater => return None,
            }
        }
    }
    Some(sorted_by)
}

fn described(plan: &ScanPlan, object: &ObjectPlan, sorted_by: Vec<SortedBy>) -> TableObject {
    TableObject {
        url: object.footer.object.url().to_owned(),
        version: object.footer.version().map(ToString::to_string),
        bytes: object.footer.size,
        row_groups: (0..object.footer.metadata.num_row_groups() as u32)
            .map(|group| (object.footer.row_group_rows(group) as u64, plan.decoded_bytes(object, group)))
            .collect(),
        offsets: object.footer.metadata.row_groups().iter().map(offset).collect(),
        columns: object.footer.schema.fields().len() as u64,
        sorted_by,
    }
}

fn of_objects(plan: &ScanPlan, objects: &[ObjectPlan]) -> std::result::Result<Vec<u8>, String> {
    let of_object = |object: &ObjectPlan| Statistics {
        num_rows: Precision::Absent,
        total_byte_size: Precision::Absent,
        column_statistics: (0..plan.table.fields().len()).map(|column| of_column(plan, object, column)).collect(),
    };
    let objects: Vec<_> = objects.iter().map(of_object).collect();
    flightcache_datafusion::statistics::write(&plan.table, &objects).map_err(|e| e.strip_backtrace())
}

fn groups(object: &ObjectPlan) -> impl Iterator<Item = &RowGroupMetaData> {
    object.row_groups.iter().map(|&group| object.footer.metadata.row_group(group as usize))
}

fn of_column(plan: &ScanPlan, object: &ObjectPlan, column: usize) -> ColumnStatistics {
    let rows: usize = groups(object).map(|group| group.num_rows() as usize).sum();
    let data_type = plan.table.field(column).data_type();
    let of_width = data_type.primitive_width().map(|width| Precision::Exact(width * rows));
    let known = match &object.columns[column] {
        ColumnSource::Constant(value) => ColumnStatistics {
            null_count: Precision::Exact(if value.is_null() { rows } else { 0 }),
            min_value: Precision::Exact(value.clone()),
            max_value: Precision::Exact(value.clone()),
            ..ColumnStatistics::new_unknown()
        },
        ColumnSource::File(file_column) => {
            let known = of_chunks(&object.footer, object, *file_column, data_type);
            known.unwrap_or_else(ColumnStatistics::new_unknown).with_byte_size(uncompressed(object, *file_column))
        }
    };
    match of_width {
        Some(bytes) => known.with_byte_size(bytes),
        None => known,
    }
}

/// What a column that is one leaf takes as uncompressed Parquet: what native scans go by.
fn uncompressed(object: &ObjectPlan, column: usize) -> Precision<usize> {
    let leaves = object.footer.leaves(column);
    if leaves.len() != 1 || object.footer.schema.field(column).data_type().is_nested() {
        return Precision::Absent;
    }
    let bytes = groups(object).map(|group| group.column(leaves.start).uncompressed_size().unsigned_abs()).sum::<u64>();
    Precision::Inexact(bytes as usize)
}

/// What reads the statistics of a root column that is one leaf.
fn converter<'a>(footer: &'a Footer, column: usize, data_type: &DataType) -> Option<StatisticsConverter<'a>> {
    let leaves = footer.leaves(column);
    if leaves.len() != 1 || data_type.is_nested() {
        return None;
    }
    let parquet = footer.metadata.file_metadata().schema_descr();
    let converter = StatisticsConverter::from_column_index(leaves.start, footer.schema.field(column), parquet).ok()?;
    Some(converter.with_missing_null_counts_as_zero(false))
}

fn of_chunks(footer: &Footer, object: &ObjectPlan, column: usize, data_type: &DataType) -> Option<ColumnStatistics> {
    let converter = converter(footer, column, data_type)?;
    let leaf = footer.leaves(column).start;
    let parquet = footer.metadata.file_metadata().schema_descr();
    let null_counts = converter.row_group_null_counts(groups(object)).ok()?;
    let null_count = if null_counts.null_count() == 0 {
        Precision::Exact(null_counts.values().iter().sum::<u64>() as usize)
    } else {
        Precision::Absent
    };
    // Old writers compared everything as signed numbers, or as they pleased.
    let column = parquet.column(leaf);
    let is_signed_number = column.sort_order() == SortOrder::SIGNED
        && matches!(column.physical_type(), PhysicalType::BOOLEAN | PhysicalType::INT32 | PhysicalType::INT64);
    let is_sound = groups(object)
        .all(|group| group.column(leaf).statistics().is_none_or(|s| !s.is_min_max_deprecated() || is_signed_number));
    // Row groups of nothing but NULLs have no least value, and need none.
    let all_null: Vec<bool> =
        groups(object).zip(null_counts.iter()).map(|(group, nulls)| nulls == Some(group.num_rows().unsigned_abs())).collect();
    let fold = |values: ArrayRef, exact: BooleanArray, is_better: fn(&ScalarValue, &ScalarValue) -> bool| {
        let mut best: Option<ScalarValue> = None;
        let mut is_exact = !data_type.is_floating();
        for (at, &is_empty) in all_null.iter().enumerate() {
            let value = ScalarValue::try_from_array(&values, at).ok()?;
            if value.is_null() && is_empty {
                continue;
            }
            if value.is_null() {
                return None;
            }
            is_exact &= exact.is_valid(at) && exact.value(at) || !is_text(data_type);
            if best.as_ref().is_none_or(|best| is_better(&value, best)) {
                best = Some(value);
            }
        }
        // Writers leave NaN out; it is greater than all numbers.
        Some(best.map_or(Precision::Absent, |best| if is_exact { Precision::Exact(best) } else { Precision::Inexact(best) }))
    };
    let min = || {
        let values = converter.row_group_mins(groups(object)).ok()?;
        fold(values, converter.row_group_is_min_value_exact(groups(object)).ok()?, |a, b| a < b)
    };
    let max = || {
        let values = converter.row_group_maxes(groups(object)).ok()?;
        fold(values, converter.row_group_is_max_value_exact(groups(object)).ok()?, |a, b| a > b)
    };
    let bounded = |value: Option<Precision<ScalarValue>>| match value {
        Some(value) if is_sound => value,
        _ => Precision::Absent,
    };
    Some(ColumnStatistics { null_count, min_value: bounded(min()), max_value: bounded(max()), ..ColumnStatistics::new_unknown() })
}

/// Types whose least and greatest values writers may cut short.
fn is_text(data_type: &DataType) -> bool {
    data_type.is_string() || data_type.is_binary() || matches!(data_type, DataType::FixedSizeBinary(_))
}
