//! Predicates as logical expressions, to be planned over whatever types the columns rest in.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::expr::{BinaryExpr, Case, Cast, InList, Like, ScalarFunction, TryCast};
use datafusion::logical_expr::{Expr, Operator as Op, ScalarUDF};
use flightcache_proto::predicate::{
    self as wire, Expression, Kind, MAX_BYTES, MAX_DEPTH, MAX_ITEMS, Operator, Predicate, Values,
};
use flightcache_proto::{Error, Result};

use super::bloom::InBloom;
use super::values;
use super::write::built_in;

/// Expressions of a predicate, at most.
const MAX_EXPRESSIONS: usize = 100_000;

/// What a predicate says. Column names are those of the table; whether it has them is for the planner to say.
pub fn read(predicate: &Predicate) -> Result<Expr> {
    Reader::new(predicate.values.as_ref())?.expr(predicate.expression.as_ref(), 0)
}

/// Reads expressions that share their values.
pub(crate) struct Reader {
    lists: Vec<ArrayRef>,
    expressions: usize,
    /// Of lists that were referred to: one may be so many times.
    items: usize,
    bytes: usize,
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("predicate: {what}"))
}

impl Reader {
    /// Reads the values.
    pub(crate) fn new(values: Option<&Values>) -> Result<Self> {
        let lists = values.map(values::read).transpose()?.unwrap_or_default();
        Ok(Self { lists, expressions: 0, items: 0, bytes: 0 })
    }

    fn boxed(&mut self, expression: Option<&Expression>, depth: usize) -> Result<Box<Expr>> {
        self.expr(expression, depth).map(Box::new)
    }

    /// Reads an expression that is within so many others.
    pub(crate) fn expr(&mut self, expression: Option<&Expression>, depth: usize) -> Result<Expr> {
        self.expressions += 1;
        if depth > MAX_DEPTH || self.expressions > MAX_EXPRESSIONS {
            return Err(invalid(format!("more than {MAX_DEPTH} levels or {MAX_EXPRESSIONS} expressions")));
        }
        let depth = depth + 1;
        let kind = expression.and_then(|expression| expression.kind.as_ref());
        Ok(match kind.ok_or_else(|| invalid("an expression of no known kind"))? {
            Kind::Column(name) => Expr::Column(Column::new_unqualified(name)),
            Kind::Literal(number) => {
                let list = self.taken(*number)?;
                if list.len() != 1 {
                    return Err(invalid(format!("value {number} is a list of {}", list.len())));
                }
                Expr::Literal(scalar(&list, 0)?, None)
            }
            Kind::And(all) => self.chain(&all.items, Op::And, depth)?,
            Kind::Or(any) => self.chain(&any.items, Op::Or, depth)?,
            Kind::Not(expression) => Expr::Not(self.boxed(Some(expression), depth)?),
            Kind::IsNull(expression) => Expr::IsNull(self.boxed(Some(expression), depth)?),
            Kind::IsNotNull(expression) => Expr::IsNotNull(self.boxed(Some(expression), depth)?),
            Kind::Negative(expression) => Expr::Negative(self.boxed(Some(expression), depth)?),
            Kind::Binary(binary) => Expr::BinaryExpr(BinaryExpr::new(
                self.boxed(binary.left.as_deref(), depth)?,
                operator(binary.operator)?,
                self.boxed(binary.right.as_deref(), depth)?,
            )),
            Kind::InList(in_list) => {
                let expr = self.boxed(in_list.expression.as_deref(), depth)?;
                let list = self.taken(in_list.list)?;
                let items = (0..list.len()).map(|at| Ok(Expr::Literal(scalar(&list, at)?, None))).collect::<Result<_>>()?;
                Expr::InList(InList::new(expr, items, in_list.negated))
            }
            Kind::Like(like) => {
                let expr = self.boxed(like.expression.as_deref(), depth)?;
                let pattern = self.boxed(like.pattern.as_deref(), depth)?;
                Expr::Like(Like::new(like.negated, expr, pattern, None, like.case_insensitive))
            }
            Kind::Cast(cast) => {
                let expr = self.boxed(cast.expression.as_deref(), depth)?;
                let data_type = self.list(cast.r#type)?.data_type().clone();
                if cast.r#try { Expr::TryCast(TryCast::new(expr, data_type)) } else { Expr::Cast(Cast::new(expr, data_type)) }
            }
            Kind::Case(case) => {
                let expr = case.expression.as_deref().map(|expr| self.boxed(Some(expr), depth)).transpose()?;
                let mut whens = Vec::new();
                for wire::When { when, then } in &case.whens {
                    whens.push((self.boxed(when.as_ref(), depth)?, self.boxed(then.as_ref(), depth)?));
                }
                if whens.is_empty() {
                    return Err(invalid("a CASE without WHEN"));
                }
                let otherwise = case.r#else.as_deref().map(|expr| self.boxed(Some(expr), depth)).transpose()?;
                Expr::Case(Case::new(expr, whens, otherwise))
            }
            Kind::Call(call) => {
                let function = built_in(&call.function).ok_or_else(|| invalid(format!("no function {:?}", call.function)))?;
                let arguments = call.arguments.iter().map(|argument| self.expr(Some(argument), depth)).collect::<Result<_>>()?;
                Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(function), arguments))
            }
            Kind::Bloom(bloom) => {
                let expr = self.expr(bloom.expression.as_deref(), depth)?;
                let filter = InBloom::new(&bloom.filter).ok_or_else(|| invalid("a Bloom filter that cannot be read"))?;
                Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::new_from_impl(filter)), vec![expr]))
            }
        })
    }

    fn list(&self, number: u32) -> Result<&ArrayRef> {
        self.lists.get(number as usize).ok_or_else(|| invalid(format!("no value {number}")))
    }

    /// A list whose items are about to be copied.
    fn taken(&mut self, number: u32) -> Result<ArrayRef> {
        let list = Arc::clone(self.list(number)?);
        self.items = self.items.saturating_add(list.len());
        self.bytes = self.bytes.saturating_add(list.to_data().get_slice_memory_size().unwrap_or(usize::MAX));
        if self.items > MAX_ITEMS || self.bytes > 2 * MAX_BYTES {
            return Err(invalid(format!("it refers to more than {MAX_ITEMS} items, or {} bytes of them", 2 * MAX_BYTES)));
        }
        Ok(list)
    }

    /// A chain of one operator, nested as little as can be.
    fn chain(&mut self, items: &[Expression], op: Op, depth: usize) -> Result<Expr> {
        let mut level = items.iter().map(|item| self.expr(Some(item), depth)).collect::<Result<Vec<_>>>()?;
        while level.len() > 1 {
            let mut pairs = level.into_iter();
            level = Vec::new();
            while let Some(left) = pairs.next() {
                level.push(match pairs.next() {
                    Some(right) => Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right))),
                    None => left,
                });
            }
        }
        level.pop().ok_or_else(|| invalid("a chain of nothing"))
    }
}

fn scalar(list: &dyn Array, at: usize) -> Result<ScalarValue> {
    ScalarValue::try_from_array(list, at).map_err(|e| invalid(e.strip_backtrace()))
}

fn operator(operator: i32) -> Result<Op> {
    Ok(match Operator::try_from(operator) {
        Ok(Operator::Eq) => Op::Eq,
        Ok(Operator::NotEq) => Op::NotEq,
        Ok(Operator::Lt) => Op::Lt,
        Ok(Operator::LtEq) => Op::LtEq,
        Ok(Operator::Gt) => Op::Gt,
        Ok(Operator::GtEq) => Op::GtEq,
        Ok(Operator::Plus) => Op::Plus,
        Ok(Operator::Minus) => Op::Minus,
        Ok(Operator::Multiply) => Op::Multiply,
        Ok(Operator::Divide) => Op::Divide,
        Ok(Operator::Modulo) => Op::Modulo,
        Ok(Operator::IsDistinctFrom) => Op::IsDistinctFrom,
        Ok(Operator::IsNotDistinctFrom) => Op::IsNotDistinctFrom,
        Ok(Operator::Concat) => Op::StringConcat,
        Ok(Operator::Unknown) | Err(_) => return Err(invalid(format!("unknown operator {operator}"))),
    })
}
