//! What is written says the same when it is read, and garbage says nothing.

use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Int64Array, RecordBatch, StringArray};
use arrow::util::pretty::pretty_format_batches;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::col;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{SessionConfig, SessionContext};
use flightcache_proto::aggregation::Aggregation;

use super::{Pushed, read};

fn batch() -> RecordBatch {
    let columns: [(&str, ArrayRef); 3] = [
        ("key", Arc::new((0..90).map(|row| (row % 7 != 0).then(|| format!("k{}", row % 3))).collect::<StringArray>())),
        ("n", Arc::new((0..90).map(|row| (row % 4 != 0).then_some(row)).collect::<Int64Array>())),
        (
            "price",
            Arc::new(
                (0..90)
                    .map(|row| (row % 5 != 0).then_some(row * 25))
                    .collect::<Decimal128Array>()
                    .with_precision_and_scale(12, 2)
                    .unwrap(),
            ),
        ),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// The aggregate that a statement is planned with, over columns of the table.
async fn partial(select: &str) -> AggregateExec {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    context.register_batch("t", batch()).unwrap();
    let plan = context.sql(&format!("SELECT {select}")).await.unwrap().create_physical_plan().await.unwrap();
    let mut lowest = None;
    plan.apply(|node| {
        lowest = node.downcast_ref::<AggregateExec>().cloned().or(lowest.take());
        Ok(TreeNodeRecursion::Continue)
    })
    .unwrap();
    let exec = lowest.unwrap_or_else(|| panic!("{select}"));
    let (aggregates, filters) = (exec.aggr_expr().to_vec(), exec.filter_expr().to_vec());
    let (groups, rows) = (exec.group_expr().clone(), Arc::clone(exec.input()));
    AggregateExec::try_new(AggregateMode::Partial, groups, aggregates, filters, rows, exec.input_schema()).unwrap()
}

fn scan() -> Arc<dyn ExecutionPlan> {
    MemorySourceConfig::try_new_exec(&[vec![batch()]], batch().schema(), None).unwrap()
}

/// The aggregate's input, column by column of the table.
fn inputs(exec: &AggregateExec) -> Vec<Arc<dyn PhysicalExpr>> {
    exec.input_schema().fields().iter().map(|field| col(field.name(), &batch().schema()).unwrap()).collect()
}

async fn states(exec: impl ExecutionPlan + 'static) -> String {
    let states = collect(Arc::new(exec), SessionContext::new().task_ctx()).await.unwrap();
    let text = pretty_format_batches(&states).unwrap().to_string();
    // Their names are not said.
    let mut lines: Vec<_> =
        text.lines().filter(|line| !line.starts_with('+')).skip(1).map(|line| line.replace(' ', "")).collect();
    lines.sort_unstable();
    lines.join("\n")
}

const SELECTS: [&str; 5] = [
    "key, count(*), sum(n), avg(price), min(price), max(key) FROM t GROUP BY key",
    "sum(price * (1 - 0.05)), sum(n * n - 1), stddev_pop(n), bool_or(n > 88), bit_xor(n) FROM t",
    "count(*) FILTER (WHERE key LIKE '%1'), sum(n) FILTER (WHERE price > 3.5) FROM t",
    "upper(key), n % 3, count(price) FROM t GROUP BY upper(key), n % 3",
    "key FROM t GROUP BY key",
];

#[tokio::test]
async fn states_are_those_of_the_plan() {
    for select in SELECTS {
        let exec = partial(select).await;
        let pushed = Pushed::new(&inputs(&exec), &exec, &batch().schema()).unwrap_or_else(|| panic!("{select}"));
        let aggregation = Aggregation::parse(&pushed.aggregation).unwrap();
        let arrived = read(&aggregation, scan(), &|expr, _| Ok(expr)).unwrap();
        assert_eq!(states(arrived).await, states(exec).await, "{select}");
    }
}

#[tokio::test]
async fn garbage_is_refused_or_says_something_else() {
    for select in SELECTS {
        let exec = partial(select).await;
        let good = Pushed::new(&inputs(&exec), &exec, &batch().schema()).unwrap().aggregation;
        for at in 0..good.len() {
            for bit in [1, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                if let Ok(aggregation) = Aggregation::parse(&bad) {
                    let _ = read(&aggregation, scan(), &|expr, _| Ok(expr));
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_alike_is_not_said() {
    for select in [
        "count(DISTINCT n), count(DISTINCT price) FROM t",
        "array_agg(n) FROM t",
        "sum(n) FILTER (WHERE regexp_like(key, 'k[1-2]')) FROM t",
        "key, count(*) FROM t GROUP BY CUBE(key, n)",
        "median(n) FROM t",
    ] {
        let exec = partial(select).await;
        assert!(Pushed::new(&inputs(&exec), &exec, &batch().schema()).is_none(), "{select}");
    }
}
