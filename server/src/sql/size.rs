//! How large a plan is, and may become: text of a few hundred words can say one of 2⁴⁰ nodes.

use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::common::{Result, resources_err};
use datafusion::logical_expr::{Expr, LogicalPlan};

/// Nodes and expressions of a plan, at most. A list of values counts one each.
const MAX_NODES: usize = 100_000;
/// Expressions that a condition may become once columns are replaced by what computes them, as when it moves below.
const MAX_INLINED: u64 = 100_000;

/// Refuses a plan that is too large. Whoever walks it before this walks all of it: a common table expression that is named twice
/// is there twice.
pub(super) fn check(plan: &LogicalPlan) -> Result<()> {
    let mut nodes = 0;
    plan.apply_with_subqueries(|node| {
        nodes += 1;
        node.apply_expressions(|expr| {
            expr.apply(|_| {
                nodes += 1;
                Ok(if nodes > MAX_NODES { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })
        })?;
        Ok(if nodes > MAX_NODES { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if nodes > MAX_NODES {
        return resources_err!("the statement's plan has more than {MAX_NODES} nodes and expressions");
    }
    inlined(plan).map(drop)
}

/// For each column of a plan: expressions it is, in terms of tables' columns.
fn inlined(plan: &LogicalPlan) -> Result<Vec<u64>> {
    let inputs = plan.inputs();
    let mut columns = Vec::new();
    for input in &inputs {
        columns.push(inlined(input)?);
    }
    // A column by its name, in whichever input has it.
    let size = |expr: &Expr| {
        let mut size = 0_u64;
        expr.apply(|expr| {
            let of = match expr {
                Expr::Column(column) => inputs.iter().zip(&columns).find_map(|(input, sizes)| {
                    input.schema().maybe_index_of_column(column).and_then(|at| sizes.get(at).copied())
                }),
                _ => None,
            };
            size = size.saturating_add(of.unwrap_or(1));
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok::<_, datafusion::common::DataFusionError>(size)
    };
    let expressions = plan.expressions().iter().map(size).collect::<Result<Vec<_>>>()?;
    if let Some(largest) = expressions.iter().max().filter(|&&size| size > MAX_INLINED) {
        return resources_err!(
            "an expression of the statement would become {largest} expressions; at most {MAX_INLINED} are taken"
        );
    }
    let width = plan.schema().fields().len();
    let passed = || columns.concat();
    Ok(match plan {
        LogicalPlan::Projection(_) => expressions,
        // What it groups by comes first, then what it computes, which nothing moves through.
        LogicalPlan::Aggregate(aggregate) => {
            let groups = aggregate.group_expr.len();
            (0..width).map(|at| if at < groups { expressions.get(at).copied().unwrap_or(1) } else { 1 }).collect()
        }
        LogicalPlan::Union(_) => {
            (0..width).map(|at| columns.iter().filter_map(|sizes| sizes.get(at)).max().copied().unwrap_or(1)).collect()
        }
        // Of the same columns as what it reads, or of its inputs' side by side; anything else computes its own.
        _ if passed().len() == width => passed(),
        _ => match columns.first() {
            Some(first) if first.len() >= width => first[..width].to_vec(),
            Some(first) => first.iter().copied().chain(std::iter::repeat(1)).take(width).collect(),
            None => vec![1; width],
        },
    })
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;

    async fn checked(sql: &str) -> Result<()> {
        let context = SessionContext::new();
        context.sql("CREATE TABLE trips AS VALUES (1, 'a'), (2, 'b')").await?;
        check(&context.state().create_logical_plan(sql).await?)
    }

    /// Each step names the one before.
    fn steps(count: usize, first: &str, step: &str, last: &str) -> String {
        let steps: Vec<_> =
            (1..=count).map(|at| format!(", t{at} AS ({})", step.replace("{}", &format!("t{}", at - 1)))).collect();
        format!("WITH t0 AS ({first}){} {}", steps.concat(), last.replace("{}", &format!("t{count}")))
    }

    #[tokio::test]
    async fn what_doubles_at_each_step_is_refused() {
        let first = "SELECT column1 AS id FROM trips";
        let unions = |count| steps(count, first, "SELECT * FROM {} UNION ALL SELECT * FROM {}", "SELECT * FROM {}");
        // Making the plan takes as long as walking it: no more steps than it takes to be refused.
        let sums = |count| steps(count, first, "SELECT id + id AS id FROM {}", "SELECT * FROM {} WHERE id > 0");
        let groups = |count| {
            steps(count, first, "SELECT id + id AS id, count(*) FROM {} GROUP BY id + id", "SELECT * FROM {} WHERE id > 0")
        };
        for sql in [unions(16), sums(40), groups(40)] {
            let error = checked(&sql).await.unwrap_err();
            assert!(matches!(error, datafusion::common::DataFusionError::ResourcesExhausted(_)), "{error}");
        }
        for sql in [unions(4), sums(8), groups(8)] {
            checked(&sql).await.unwrap();
        }
    }

    #[tokio::test]
    async fn ordinary_statements_pass() {
        let values: Vec<_> = (0..50_000).map(|value| value.to_string()).collect();
        for sql in [
            "SELECT a.column1, row_number() OVER (ORDER BY b.column2) FROM trips a LEFT JOIN trips b ON a.column1 = b.column1 WHERE EXISTS (SELECT 1 FROM trips c WHERE c.column1 = a.column1)",
            "SELECT DISTINCT unnest([1, 2]) AS x FROM trips ORDER BY x LIMIT 1",
            "SELECT column2, sum(column1) AS s FROM trips GROUP BY ROLLUP (column2) HAVING sum(column1) > 1",
            &format!("SELECT * FROM trips WHERE column1 IN ({})", values.join(",")),
        ] {
            checked(sql).await.unwrap();
        }
    }
}
