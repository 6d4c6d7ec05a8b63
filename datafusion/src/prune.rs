//! Objects that statistics rule out: nobody is asked for them.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, ColumnStatistics, ScalarValue, Statistics};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::build_pruning_predicate;
use datafusion::physical_plan::metrics::Count;

/// Of each object, whether it may have rows that pass. Goes by what is exactly known alone.
pub(crate) fn may_pass(filter: Arc<dyn PhysicalExpr>, schema: &SchemaRef, objects: &[Arc<Statistics>]) -> Vec<bool> {
    let predicate = build_pruning_predicate(filter, schema, &Count::new());
    let kept = predicate.and_then(|predicate| predicate.prune(&Objects { schema, objects }).ok());
    kept.unwrap_or_else(|| vec![true; objects.len()])
}

/// `DataFusion`'s own, `PrunableStatistics`, knows nothing of a column as soon as it is not known in one of the objects.
struct Objects<'a> {
    schema: &'a SchemaRef,
    objects: &'a [Arc<Statistics>],
}

impl Objects<'_> {
    fn of<'a>(&'a self, column: &Column) -> Option<impl Iterator<Item = &'a ColumnStatistics> + Clone + use<'a>> {
        let index = self.schema.index_of(column.name()).ok()?;
        Some(self.objects.iter().map(move |object| &object.column_statistics[index]))
    }

    fn bounds(&self, column: &Column, bound: fn(&ColumnStatistics) -> &Precision<ScalarValue>) -> Option<ArrayRef> {
        let unknown = ScalarValue::try_from(self.schema.field_with_name(column.name()).ok()?.data_type()).ok()?;
        let values = self.of(column)?.map(bound).map(|bound| match bound {
            Precision::Exact(value) => value.clone(),
            _ => unknown.clone(),
        });
        ScalarValue::iter_to_array(values).ok()
    }
}

fn counts<'a>(counts: impl Iterator<Item = &'a Precision<usize>>) -> ArrayRef {
    let exact = counts.map(|count| if let Precision::Exact(count) = count { Some(*count as u64) } else { None });
    Arc::new(exact.collect::<UInt64Array>())
}

impl PruningStatistics for Objects<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, |column| &column.min_value)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, |column| &column.max_value)
    }

    fn num_containers(&self) -> usize {
        self.objects.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        Some(counts(self.of(column)?.map(|column| &column.null_count)))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(counts(self.objects.iter().map(|object| &object.num_rows)))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
