//! Partial aggregates of a plan as aggregations: exactly, or not at all.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::ExecutionPlan as _;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::empty::EmptyExec;
use flightcache_proto::aggregation::{Aggregate, Aggregation, MAX_EXPRESSIONS, VERSION};
use flightcache_proto::predicate::MAX_BYTES;

use super::BUILT_IN;
use crate::predicate::Writer;
use crate::schema;

/// What is asked for instead of rows.
#[derive(Debug)]
pub(crate) struct Pushed {
    /// Over the table's columns.
    pub(crate) inputs: Vec<Arc<dyn PhysicalExpr>>,
    /// Over the inputs.
    pub(crate) exec: AggregateExec,
    /// The aggregation, encoded.
    pub(crate) aggregation: Vec<u8>,
    /// The table's columns that it is over.
    pub(crate) columns: Vec<String>,
    /// The states'.
    pub(crate) schema: TableSchema,
    shown: String,
}

impl Pushed {
    /// The partial aggregate `exec` over `inputs`, which are over the columns of `table`. `None` if it cannot be said.
    pub(crate) fn new(inputs: &[Arc<dyn PhysicalExpr>], exec: &AggregateExec, table: &Schema) -> Option<Self> {
        let mut columns: Vec<usize> = inputs.iter().flat_map(collect_columns).map(|column| column.index()).collect();
        columns.sort_unstable();
        columns.dedup();
        let rows = table.project(&columns).ok()?;
        let columns: Vec<_> = rows.fields().iter().map(|field| field.name().clone()).collect();
        // Columns go by name.
        if columns.iter().any(|name| table.fields().iter().filter(|field| field.name() == name).count() > 1) {
            return None;
        }
        let aggregation = write(inputs, exec, table)?;
        // What is read must say the same: of the states' types that is made sure here, rather than by a refusal later.
        super::read(&aggregation, Arc::new(EmptyExec::new(Arc::new(rows))), &|expr, _| Ok(expr)).ok()?;
        let aggregation = aggregation.to_bytes();
        // What is longer would be refused.
        (aggregation.len() <= MAX_BYTES).then(|| Self {
            inputs: inputs.to_vec(),
            exec: exec.clone(),
            aggregation,
            columns,
            schema: TableSchema::from(exec.schema()),
            shown: shown(exec),
        })
    }
}

impl fmt::Display for Pushed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

fn shown(exec: &AggregateExec) -> String {
    let aggregates: Vec<_> = exec.aggr_expr().iter().map(|aggregate| aggregate.name()).collect();
    let groups: Vec<_> = exec.group_expr().expr().iter().map(|(_, name)| name.as_str()).collect();
    let groups = if groups.is_empty() { String::new() } else { format!(", gby=[{}]", groups.join(", ")) };
    format!("aggregate=[{}]{groups}", aggregates.join(", "))
}

fn write(inputs: &[Arc<dyn PhysicalExpr>], exec: &AggregateExec, table: &Schema) -> Option<Aggregation> {
    let groups = exec.group_expr();
    if groups.has_grouping_set() || inputs.len() + groups.expr().len() + 3 * exec.aggr_expr().len() > MAX_EXPRESSIONS {
        return None;
    }
    let mut writer = Writer::new(table);
    let inputs = inputs.iter().map(|input| writer.exact(input, 0)).collect::<Option<Vec<_>>>()?;
    let numbers = Schema::new((0..inputs.len()).map(|at| Field::new(at.to_string(), DataType::Null, true)).collect::<Vec<_>>());
    let mut writer = writer.over(&numbers);
    let groups = groups.expr().iter().map(|(group, _)| writer.exact(group, 0)).collect::<Option<Vec<_>>>()?;
    let mut aggregates = Vec::new();
    for (aggregate, filter) in exec.aggr_expr().iter().zip(exec.filter_expr()) {
        aggregates.push(Aggregate {
            function: function(aggregate)?,
            arguments: aggregate.expressions().iter().map(|argument| writer.exact(argument, 0)).collect::<Option<_>>()?,
            filter: match filter {
                Some(filter) => Some(writer.exact(filter, 0)?),
                None => None,
            },
        });
    }
    let state: Vec<_> =
        exec.schema().fields().iter().map(|field| Field::new(field.name(), field.data_type().clone(), true)).collect();
    let state = schema::write(&Schema::new(state));
    Some(Aggregation { version: VERSION, inputs, groups, aggregates, values: writer.values()?, state })
}

/// The name of an aggregate, if it is one of those, of all rows as they come.
fn function(aggregate: &AggregateFunctionExpr) -> Option<String> {
    let is_plain =
        !aggregate.is_distinct() && !aggregate.ignore_nulls() && !aggregate.is_reversed() && aggregate.order_bys().is_empty();
    let name = aggregate.fun().name();
    // An aggregate of the same name may be another's.
    BUILT_IN.get(name).filter(|known| is_plain && ***known == *aggregate.fun())?;
    Some(name.to_owned())
}
