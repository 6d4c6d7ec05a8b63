//! Aggregations as partial aggregates of a plan.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::execution::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::type_coercion::functions::fields_with_udf;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::projection::ProjectionExec;
use flightcache_proto::aggregation::{Aggregate, Aggregation};
use flightcache_proto::predicate::Expression;
use flightcache_proto::{Error, ErrorKind, Result};

use super::BUILT_IN;
use crate::predicate::Reader;
use crate::schema;

/// Plans expressions. What they may call they bring with them.
static PLANNER: LazyLock<SessionState> = LazyLock::new(|| SessionStateBuilder::new().build());

/// What becomes of an expression before it is planned, over columns.
pub type Bound<'a> = &'a dyn Fn(Expr, &DFSchema) -> Result<Expr, DataFusionError>;

/// What an aggregation says, of `rows` that have the columns it is over, each expression as `bound` makes it. Refused where its states
/// would have other types than it says.
pub fn read(aggregation: &Aggregation, rows: Arc<dyn ExecutionPlan>, bound: Bound<'_>) -> Result<AggregateExec> {
    let mut reader = Expressions { reader: Reader::new(aggregation.values.as_ref())?, over: columns(rows.schema())?, bound };
    let inputs = aggregation.inputs.iter().enumerate();
    let inputs = inputs.map(|(at, input)| Ok((reader.read(Some(input))?, at.to_string()))).collect::<Result<Vec<_>>>()?;
    // Of no columns there would be nothing to count rows by.
    let rows = if inputs.is_empty() { rows } else { Arc::new(ProjectionExec::try_new(inputs, rows).map_err(invalid)?) };
    let schema = rows.schema();
    reader.over = columns(Arc::clone(&schema))?;
    let groups = aggregation.groups.iter().enumerate();
    let groups = groups.map(|(at, group)| Ok((reader.read(Some(group))?, format!("group {at}")))).collect::<Result<Vec<_>>>()?;
    let (mut aggregates, mut filters) = (Vec::new(), Vec::new());
    for (at, aggregate) in aggregation.aggregates.iter().enumerate() {
        aggregates.push(Arc::new(reader.aggregate(aggregate, at, &schema)?));
        filters.push(aggregate.filter.as_ref().map(|filter| reader.filter(filter, &schema)).transpose()?);
    }
    let groups = PhysicalGroupBy::new_single(groups);
    let exec = AggregateExec::try_new(AggregateMode::Partial, groups, aggregates, filters, rows, schema).map_err(invalid)?;
    let state = schema::read(&aggregation.state).map_err(|e| refused(format!("the schema of its state: {e}")))?;
    let types = |schema: &Schema| schema.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>();
    let (said, ours) = (types(&state), types(&exec.schema()));
    if said != ours {
        // One of them: all of a wide aggregation would be too long for a header.
        let differing = said.iter().zip(&ours).position(|(said, ours)| said != ours);
        let message = match differing {
            Some(at) => format!("column {at} of its states would be another here: {}", ours[at]),
            None => format!("its states would be of {} columns here, not of {}", ours.len(), said.len()),
        };
        return Err(Error::new(ErrorKind::Unsupported, format!("aggregation: {message}")));
    }
    Ok(exec)
}

fn refused(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("aggregation: {what}"))
}

// Errors are mapped by value.
#[allow(clippy::needless_pass_by_value)]
fn invalid(error: DataFusionError) -> Error {
    refused(error.strip_backtrace())
}

fn columns(schema: SchemaRef) -> Result<DFSchema> {
    DFSchema::try_from(schema).map_err(invalid)
}

struct Expressions<'a> {
    reader: Reader,
    over: DFSchema,
    bound: Bound<'a>,
}

impl Expressions<'_> {
    fn read(&mut self, expression: Option<&Expression>) -> Result<Arc<dyn PhysicalExpr>> {
        let expr = self.reader.expr(expression, 0).map_err(|e| refused(e.message))?;
        let expr = (self.bound)(expr, &self.over).map_err(invalid)?;
        PLANNER.create_physical_expr(expr, &self.over).map_err(invalid)
    }

    fn filter(&mut self, filter: &Expression, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>> {
        let filter = self.read(Some(filter))?;
        match filter.data_type(schema).map_err(invalid)? {
            DataType::Boolean => Ok(filter),
            other => Err(refused(format!("a filter is of type {other}, not boolean"))),
        }
    }

    fn aggregate(&mut self, aggregate: &Aggregate, at: usize, schema: &SchemaRef) -> Result<AggregateFunctionExpr> {
        let function = BUILT_IN.get(aggregate.function.as_str());
        let function = function.ok_or_else(|| refused(format!("no aggregate {:?}", aggregate.function)))?;
        let arguments = aggregate.arguments.iter().map(|argument| self.read(Some(argument))).collect::<Result<Vec<_>>>()?;
        let fields: Vec<FieldRef> =
            arguments.iter().map(|argument| argument.return_field(schema)).collect::<Result<_, _>>().map_err(invalid)?;
        // Whoever asked has made the types agree.
        let agreed = fields_with_udf(&fields, function.as_ref()).map_err(invalid)?;
        if arguments.is_empty() || fields.iter().zip(&agreed).any(|(field, agreed)| field.data_type() != agreed.data_type()) {
            let types: Vec<_> = fields.iter().map(|field| field.data_type().to_string()).collect();
            return Err(refused(format!("no {} of ({})", aggregate.function, types.join(", "))));
        }
        let builder = AggregateExprBuilder::new(Arc::clone(function), arguments).schema(Arc::clone(schema));
        builder.alias(format!("aggregate {at}")).build().map_err(invalid)
    }
}
