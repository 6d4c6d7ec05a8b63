//! Physical expressions as predicates: exactly, or not at all; of dynamic filters a wider one, where need be.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, new_empty_array};
use arrow::datatypes::{DataType, Schema};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Operator as Op, ScalarUDF};
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, CastExpr, Column, DynamicFilterPhysicalExpr, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal,
    NegativeExpr, NotExpr, TryCastExpr,
};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use flightcache_proto::predicate::{
    Binary, Bloom, Call, Case, Cast, Expression, Expressions, FUNCTIONS, InList, Kind, Like, MAX_BYTES, MAX_DEPTH, MAX_ITEMS,
    Operator, Predicate, VERSION, Values, When,
};

use super::{bloom, values};

/// Lists longer than this go as Bloom filters, where a wider filter will do: an eighth of the bytes of 64-bit integers or less.
const LONG_LIST: usize = 1_024;

/// The functions a predicate may call, as `DataFusion` has them.
static BUILT_IN: LazyLock<HashMap<&'static str, Arc<ScalarUDF>>> = LazyLock::new(|| {
    let known = datafusion::functions::all_default_functions();
    FUNCTIONS.iter().filter_map(|name| Some((*name, Arc::clone(known.iter().find(|known| known.name() == *name)?)))).collect()
});

/// The built-in function of a name, if a predicate may call it.
pub(super) fn built_in(name: &str) -> Option<&'static Arc<ScalarUDF>> {
    BUILT_IN.get(name)
}

/// The predicate that is true where all of these are: where all `exact` ones are, which have to be sayable, and of the `dynamic`
/// ones, as they stand now, what can be said. `None` if the exact ones are not sayable together; `Some(None)` if there is nothing to
/// say.
#[allow(clippy::option_option)]
pub fn write<'a>(
    exact: impl IntoIterator<Item = &'a Arc<dyn PhysicalExpr>> + Clone,
    dynamic: impl IntoIterator<Item = &'a Arc<dyn PhysicalExpr>>,
    table: &Schema,
) -> Option<Option<Predicate>> {
    // What is too long with the dynamic ones may not be without.
    write_all(exact.clone(), dynamic, table).or_else(|| write_all(exact, [], table))
}

#[allow(clippy::option_option)]
fn write_all<'a>(
    exact: impl IntoIterator<Item = &'a Arc<dyn PhysicalExpr>>,
    dynamic: impl IntoIterator<Item = &'a Arc<dyn PhysicalExpr>>,
    table: &Schema,
) -> Option<Option<Predicate>> {
    let mut writer = Writer::new(table);
    let mut all = Vec::new();
    for expr in exact {
        all.push(writer.exact(expr, 0)?);
    }
    for expr in dynamic {
        let before = writer.lists.len();
        match writer.wider(expr, 0) {
            Some(expression) => all.push(expression),
            None => writer.lists.truncate(before),
        }
    }
    if all.is_empty() {
        return Some(None);
    }
    let values = writer.values()?;
    let predicate = Predicate { version: VERSION, expression: Some(all_of(all)), values };
    // What is longer would be refused.
    (predicate.to_bytes().len() <= MAX_BYTES).then_some(Some(predicate))
}

/// Writes expressions over a table's columns that share their values.
pub(crate) struct Writer<'a> {
    table: &'a Schema,
    lists: Vec<ArrayRef>,
}

fn all_of(mut items: Vec<Expression>) -> Expression {
    match items.len() {
        1 => items.remove(0),
        _ => Expression::new(Kind::And(Expressions { items })),
    }
}

fn one_of(mut items: Vec<Expression>) -> Expression {
    match items.len() {
        1 => items.remove(0),
        _ => Expression::new(Kind::Or(Expressions { items })),
    }
}

/// The operands of a chain of one operator.
fn operands<'a>(expr: &'a Arc<dyn PhysicalExpr>, op: Op, into: &mut Vec<&'a Arc<dyn PhysicalExpr>>) {
    match expr.downcast_ref::<BinaryExpr>() {
        Some(binary) if *binary.op() == op => {
            operands(binary.left(), op, into);
            operands(binary.right(), op, into);
        }
        _ => into.push(expr),
    }
}

impl<'a> Writer<'a> {
    /// Nothing is written yet.
    pub(crate) fn new(table: &'a Schema) -> Self {
        Self { table, lists: Vec::new() }
    }

    /// The same, whose next expressions are over other columns.
    pub(crate) fn over(self, table: &Schema) -> Writer<'_> {
        Writer { table, lists: self.lists }
    }

    /// The values of what was written. `None` if they cannot be said, or are too many.
    #[allow(clippy::option_option)]
    pub(crate) fn values(self) -> Option<Option<Values>> {
        if self.lists.iter().map(Array::len).sum::<usize>() > MAX_ITEMS {
            return None;
        }
        if self.lists.is_empty() { Some(None) } else { values::write(self.lists).map(Some) }
    }

    fn value(&mut self, list: ArrayRef) -> u32 {
        self.lists.push(list);
        (self.lists.len() - 1) as u32
    }

    fn literal(&mut self, value: &ScalarValue) -> Option<Expression> {
        let list = plain(value).to_array().ok()?;
        values::is_sendable(list.data_type()).then(|| Expression::new(Kind::Literal(self.value(list))))
    }

    /// What has the values of `expr`, of the same types but for how they are encoded.
    pub(crate) fn exact(&mut self, expr: &Arc<dyn PhysicalExpr>, depth: usize) -> Option<Expression> {
        if depth >= MAX_DEPTH {
            return None;
        }
        let deeper = depth + 1;
        if let Some(column) = expr.downcast_ref::<Column>() {
            let field = self.table.fields().get(column.index())?;
            return Some(Expression::new(Kind::Column(field.name().clone())));
        }
        if let Some(literal) = expr.downcast_ref::<Literal>() {
            return self.literal(literal.value());
        }
        if let Some(binary) = expr.downcast_ref::<BinaryExpr>() {
            return self.binary(expr, binary, deeper);
        }
        let kind = if let Some(not) = expr.downcast_ref::<NotExpr>() {
            Kind::Not(Box::new(self.exact(not.arg(), deeper)?))
        } else if let Some(is_null) = expr.downcast_ref::<IsNullExpr>() {
            Kind::IsNull(Box::new(self.exact(is_null.arg(), deeper)?))
        } else if let Some(is_not_null) = expr.downcast_ref::<IsNotNullExpr>() {
            Kind::IsNotNull(Box::new(self.exact(is_not_null.arg(), deeper)?))
        } else if let Some(negative) = expr.downcast_ref::<NegativeExpr>() {
            Kind::Negative(Box::new(self.exact(negative.arg(), deeper)?))
        } else if let Some(list) = expr.downcast_ref::<InListExpr>() {
            let expression = Some(Box::new(self.exact(list.expr(), deeper)?));
            let items = items(list)?;
            let list_number = self.value(items);
            Kind::InList(Box::new(InList { expression, list: list_number, negated: list.negated() }))
        } else if let Some(like) = expr.downcast_ref::<LikeExpr>() {
            let expression = Some(Box::new(self.exact(like.expr(), deeper)?));
            let pattern = Some(Box::new(self.exact(like.pattern(), deeper)?));
            let (negated, case_insensitive) = (like.negated(), like.case_insensitive());
            Kind::Like(Box::new(Like { expression, pattern, negated, case_insensitive }))
        } else if let Some(cast) = expr.downcast_ref::<CastExpr>() {
            let is_plain = !cast.cast_options().safe && !cast.has_explicit_metadata();
            Kind::Cast(Box::new(self.cast(cast.expr(), cast.cast_type(), false, deeper).filter(|_| is_plain)?))
        } else if let Some(cast) = expr.downcast_ref::<TryCastExpr>() {
            Kind::Cast(Box::new(self.cast(cast.expr(), cast.cast_type(), true, deeper)?))
        } else if let Some(case) = expr.downcast_ref::<CaseExpr>() {
            Kind::Case(Box::new(self.case(case, deeper)?))
        } else if let Some(call) = expr.downcast_ref::<ScalarFunctionExpr>() {
            // A function of the same name may be another's.
            built_in(call.fun().name()).filter(|known| ***known == *call.fun())?;
            let arguments = call.args().iter().map(|argument| self.exact(argument, deeper)).collect::<Option<_>>()?;
            Kind::Call(Call { function: call.fun().name().to_owned(), arguments })
        } else {
            return None;
        };
        Some(Expression::new(kind))
    }

    fn binary(&mut self, expr: &Arc<dyn PhysicalExpr>, binary: &BinaryExpr, depth: usize) -> Option<Expression> {
        let operator = match binary.op() {
            op @ (Op::And | Op::Or) => {
                let mut chain = Vec::new();
                operands(expr, *op, &mut chain);
                let items = chain.into_iter().map(|item| self.exact(item, depth)).collect::<Option<Vec<_>>>()?;
                return Some(if *op == Op::And { all_of(items) } else { one_of(items) });
            }
            op => operator(*op)?,
        };
        let left = Some(Box::new(self.exact(binary.left(), depth)?));
        let right = Some(Box::new(self.exact(binary.right(), depth)?));
        Some(Expression::new(Kind::Binary(Box::new(Binary { operator: operator.into(), left, right }))))
    }

    fn cast(&mut self, expr: &Arc<dyn PhysicalExpr>, data_type: &DataType, is_try: bool, depth: usize) -> Option<Cast> {
        let expression = Some(Box::new(self.exact(expr, depth)?));
        // How a value is encoded makes no difference to what is said of it.
        let data_type = match data_type {
            DataType::Dictionary(_, values) => values,
            data_type => data_type,
        };
        if !values::is_sendable(data_type) {
            return None;
        }
        Some(Cast { expression, r#type: self.value(new_empty_array(data_type)), r#try: is_try })
    }

    fn case(&mut self, case: &CaseExpr, depth: usize) -> Option<Case> {
        let mut boxed = |expr: &Arc<dyn PhysicalExpr>| self.exact(expr, depth).map(Box::new);
        let expression = match case.expr() {
            Some(expr) => Some(boxed(expr)?),
            None => None,
        };
        let r#else = match case.else_expr() {
            Some(expr) => Some(boxed(expr)?),
            None => None,
        };
        let mut whens = Vec::new();
        for (when, then) in case.when_then_expr() {
            whens.push(When { when: self.exact(when, depth), then: self.exact(then, depth) });
        }
        whens.iter().all(|when| when.when.is_some() && when.then.is_some()).then_some(Case { expression, whens, r#else })
    }

    /// What is true at least where `expr` is.
    fn wider(&mut self, expr: &Arc<dyn PhysicalExpr>, depth: usize) -> Option<Expression> {
        if depth >= MAX_DEPTH {
            return None;
        }
        let deeper = depth + 1;
        if let Some(dynamic) = expr.downcast_ref::<DynamicFilterPhysicalExpr>() {
            return self.wider(&dynamic.current().ok()?, depth);
        }
        if let Some(binary) = expr.downcast_ref::<BinaryExpr>() {
            let mut chain = Vec::new();
            operands(expr, *binary.op(), &mut chain);
            match binary.op() {
                Op::And => {
                    let said: Vec<_> = chain.into_iter().filter_map(|item| self.wider(item, deeper)).collect();
                    return (!said.is_empty()).then(|| all_of(said));
                }
                Op::Or => return Some(one_of(chain.into_iter().map(|item| self.wider(item, deeper)).collect::<Option<_>>()?)),
                _ => {}
            }
        }
        if let Some(list) = expr.downcast_ref::<InListExpr>()
            && !list.negated()
            && list.len() > LONG_LIST
            && let Some(filter) = items(list).and_then(|items| bloom::write(&items))
        {
            let expression = Some(Box::new(self.exact(list.expr(), deeper)?));
            return Some(Expression::new(Kind::Bloom(Box::new(Bloom { expression, filter }))));
        }
        if let Some(literal) = expr.downcast_ref::<Literal>() {
            return match literal.value() {
                // Nothing to say.
                ScalarValue::Boolean(Some(true)) => None,
                value => self.literal(value),
            };
        }
        // Which of a join's partitions a row belongs to cannot be said: it may be in any of them.
        if let Some(case) = expr.downcast_ref::<CaseExpr>() {
            let outcomes = case.when_then_expr().iter().map(|(_, then)| then).chain(case.else_expr());
            let mut said = Vec::new();
            for outcome in outcomes {
                match outcome.downcast_ref::<Literal>().map(Literal::value) {
                    Some(ScalarValue::Boolean(Some(false) | None) | ScalarValue::Null) => {}
                    _ => said.push(self.wider(outcome, deeper)?),
                }
            }
            return (!said.is_empty()).then(|| one_of(said));
        }
        self.exact(expr, depth)
    }
}

/// A value as what it stands for.
fn plain(value: &ScalarValue) -> &ScalarValue {
    match value {
        ScalarValue::Dictionary(_, value) => plain(value),
        value => value,
    }
}

/// The items of a list, if they are constants.
fn items(list: &InListExpr) -> Option<ArrayRef> {
    let values = list.list().iter().map(constant).collect::<Option<Vec<_>>>()?;
    if values.is_empty() {
        return None;
    }
    let items = ScalarValue::iter_to_array(values).ok()?;
    values::is_sendable(items.data_type()).then_some(items)
}

/// The value of a literal, or of a cast of one.
fn constant(expr: &Arc<dyn PhysicalExpr>) -> Option<ScalarValue> {
    if let Some(cast) = expr.downcast_ref::<CastExpr>() {
        return constant(cast.expr())?.cast_to(cast.cast_type()).ok().map(|value| plain(&value).clone());
    }
    Some(plain(expr.downcast_ref::<Literal>()?.value()).clone())
}

fn operator(op: Op) -> Option<Operator> {
    Some(match op {
        Op::Eq => Operator::Eq,
        Op::NotEq => Operator::NotEq,
        Op::Lt => Operator::Lt,
        Op::LtEq => Operator::LtEq,
        Op::Gt => Operator::Gt,
        Op::GtEq => Operator::GtEq,
        Op::Plus => Operator::Plus,
        Op::Minus => Operator::Minus,
        Op::Multiply => Operator::Multiply,
        Op::Divide => Operator::Divide,
        Op::Modulo => Operator::Modulo,
        Op::IsDistinctFrom => Operator::IsDistinctFrom,
        Op::IsNotDistinctFrom => Operator::IsNotDistinctFrom,
        Op::StringConcat => Operator::Concat,
        _ => return None,
    })
}
