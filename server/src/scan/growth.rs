//! Functions whose results may be far larger than what they are given: what one call makes is measured before it is made.
//!
//! Memory pools know what operators keep, not what an expression makes of a batch: `repeat('x', 2000000000)` is a short one. For filters and for
//! statements of SQL.

mod measure;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, exec_datafusion_err, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable as _, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};

use self::measure::{Growth, MAX_CONSTANT_BYTES, check};
use crate::parquet::fixed_bytes;

/// Bytes a value of a cast's type may take though it is NULL.
const MAX_FIXED_BYTES: u64 = 4 << 10;

/// Puts such functions under measure, and refuses constants and types that are too large.
#[derive(Debug)]
pub(crate) struct BoundGrowth;

/// A function under measure. It is the same in all else, but is not looked into while planning: what it became then would be
/// without.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Measured {
    function: Arc<ScalarUDF>,
    growth: Growth,
}

impl ScalarUDFImpl for Measured {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.function.inner().schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.function.inner().return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.function.inner().return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.function.inner().coerce_types(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        check(self.name(), self.growth, &args.args, args.number_rows)?;
        self.function.inner().invoke_with_args(args)
    }
}

/// What it is given, measured: for operators, which are no functions.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    signature: Signature,
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &'static str {
        "bounded"
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        args.first().map_or_else(|| plan_err!("nothing to measure"), |inner| Ok(inner.schema_name().to_string()))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(|| exec_datafusion_err!("nothing to measure"))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        args.arg_fields.first().cloned().ok_or_else(|| exec_datafusion_err!("nothing to measure"))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        check("||", Growth::Sum, &args.args, args.number_rows)?;
        args.args.into_iter().next().ok_or_else(|| exec_datafusion_err!("nothing to measure"))
    }
}

impl FunctionRewrite for BoundGrowth {
    fn name(&self) -> &'static str {
        "bound_growth"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        match expr {
            Expr::ScalarFunction(ScalarFunction { func, args }) => {
                if matches!(func.name(), "arrow_cast" | "arrow_try_cast") {
                    let cast = Expr::ScalarFunction(ScalarFunction { func, args });
                    let data_type = cast.get_type(schema)?;
                    if fixed_bytes(&data_type) > MAX_FIXED_BYTES {
                        return plan_err!("a cast to {data_type}, of which each value takes {} bytes", fixed_bytes(&data_type));
                    }
                    return Ok(Transformed::no(cast));
                }
                let Some(growth) = Growth::of(func.name()) else {
                    return Ok(Transformed::no(Expr::ScalarFunction(ScalarFunction { func, args })));
                };
                let measured = Arc::new(ScalarUDF::new_from_impl(Measured { function: func, growth }));
                Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func: measured, args })))
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => {
                let (left, right) = (checked(*left), checked(*right));
                let joined = BinaryExpr { left: Box::new(left), op: Operator::StringConcat, right: Box::new(right) };
                Ok(Transformed::yes(Expr::BinaryExpr(joined)))
            }
            Expr::Cast(_) | Expr::TryCast(_) => {
                let data_type = expr.get_type(schema)?;
                if fixed_bytes(&data_type) > MAX_FIXED_BYTES {
                    return plan_err!("a cast to {data_type}, of which each value takes {} bytes", fixed_bytes(&data_type));
                }
                Ok(Transformed::no(expr))
            }
            Expr::Literal(value, _) if value.size() as u128 > MAX_CONSTANT_BYTES => {
                plan_err!("a constant of {} bytes; at most {MAX_CONSTANT_BYTES} are taken", value.size())
            }
            other => Ok(Transformed::no(other)),
        }
    }
}

fn checked(expr: Expr) -> Expr {
    if matches!(expr, Expr::Literal(..)) {
        return expr;
    }
    let function = ScalarUDF::new_from_impl(Checked { signature: Signature::any(1, Volatility::Immutable) });
    Expr::ScalarFunction(ScalarFunction { func: Arc::new(function), args: vec![expr] })
}
