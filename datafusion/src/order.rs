//! The order in which what a `LIMIT` will cut is read: what may hold the first rows comes first, so that the rest need not.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array as _, UInt32Array};
use arrow::compute::{SortOptions, sort_to_indices, take};
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalSortExpr};
use flightcache_proto::action::TableObject;

use crate::cache::Cache;
use crate::statistics;

/// How to read files and row groups whose rows will be sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Least values of a column first, or greatest.
    By { column: String, descending: bool },
    /// Last row groups first.
    Backwards,
}

/// What is to be done for rows that are wanted in an order.
pub(crate) enum Wanted {
    /// They come so.
    AsIs,
    /// A prefix of it holds as it is, which is worth more than what could be done.
    InPart,
    /// It helps to read them so.
    Roughly(Order),
    Unknown,
}

impl Wanted {
    /// Follows what native scans of Parquet do (`ParquetSource::try_pushdown_sort`).
    pub(crate) fn of(order: &[PhysicalSortExpr], properties: &EquivalenceProperties) -> Result<Self> {
        let Some(first) = order.first() else { return Ok(Self::Unknown) };
        if properties.ordering_satisfy(order.iter().cloned())? {
            return Ok(Self::AsIs);
        }
        for end in 1..order.len() {
            if properties.ordering_satisfy(order[..end].iter().cloned())? {
                return Ok(Self::InPart);
            }
        }
        if let Some(column) = first.expr.downcast_ref::<Column>() {
            let (column, descending) = (column.name().to_owned(), first.options.descending);
            return Ok(Self::Roughly(Order::By { column, descending }));
        }
        let mut reversed = properties.clone();
        reversed.clear_orderings();
        let orderings = properties.oeq_class().iter();
        let orderings: Vec<Vec<_>> = orderings.map(|ordering| ordering.iter().map(PhysicalSortExpr::reverse).collect()).collect();
        reversed.add_orderings(orderings);
        let is_reversed = reversed.ordering_satisfy(order.iter().cloned())?;
        Ok(if is_reversed { Self::Roughly(Order::Backwards) } else { Self::Unknown })
    }
}

impl Order {
    /// Files whose statistics promise most first; those that promise nothing last.
    pub(crate) fn files(&self, mut files: Vec<PartitionedFile>, columns: &arrow::datatypes::Schema) -> Vec<PartitionedFile> {
        match self {
            Self::Backwards => files.reverse(),
            Self::By { column, descending } => {
                let Ok(at) = columns.index_of(column) else { return files };
                let bound = |file: &PartitionedFile| -> Option<ScalarValue> {
                    let statistics = file.statistics.as_ref()?.column_statistics.get(at)?;
                    let bound = if *descending { &statistics.max_value } else { &statistics.min_value };
                    // Of other types they would not compare.
                    let is_of_column = |value: &&ScalarValue| value.data_type() == *columns.field(at).data_type();
                    bound.get_value().filter(|value| !value.is_null()).filter(is_of_column).cloned()
                };
                files.sort_by_cached_key(|file| Promise { bound: bound(file), descending: *descending });
            }
        }
        files
    }

    /// Row groups of an object likewise. What cannot be learned of them leaves them as they are.
    pub(crate) async fn row_groups(&self, cache: &Arc<dyn Cache>, object: &TableObject, mut groups: Vec<u32>) -> Vec<u32> {
        match self {
            Self::Backwards => {
                groups.reverse();
                groups
            }
            Self::By { .. } if groups.len() < 2 => groups,
            Self::By { column, descending } => match cache.bounds(&object.url, column).await {
                Ok(bounds) if bounds.version == object.version => sorted(&bounds.bounds, &groups, *descending).unwrap_or(groups),
                Ok(_) | Err(_) => groups,
            },
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By { column, descending } => write!(f, "{column} {}", if *descending { "DESC" } else { "ASC" }),
            Self::Backwards => f.write_str("backwards"),
        }
    }
}

fn sorted(bounds: &[u8], groups: &[u32], descending: bool) -> Option<Vec<u32>> {
    let [least, greatest] = statistics::read_bounds(bounds).ok()?;
    let bounds = if descending { greatest } else { least };
    if groups.iter().any(|&group| group as usize >= bounds.len()) {
        return None;
    }
    let groups = UInt32Array::from(groups.to_vec());
    let bounds = take(&bounds, &groups, None).ok()?;
    let order = sort_to_indices(&bounds, Some(SortOptions { descending, nulls_first: false }), None).ok()?;
    Some(order.values().iter().map(|&at| groups.value(at as usize)).collect())
}

/// How soon a file is worth reading.
struct Promise {
    bound: Option<ScalarValue>,
    descending: bool,
}

impl Ord for Promise {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.bound, &other.bound) {
            (Some(a), Some(b)) => {
                let order = a.partial_cmp(b).unwrap_or(Ordering::Equal);
                if self.descending { order.reverse() } else { order }
            }
            (a, b) => a.is_none().cmp(&b.is_none()),
        }
    }
}

impl PartialOrd for Promise {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Promise {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Promise {}
