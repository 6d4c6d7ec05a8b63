//! The same answers as without bounds, or errors.

use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;

use super::*;

fn context() -> SessionContext {
    let context = SessionContext::new();
    let state = context.state_ref();
    datafusion::execution::FunctionRegistry::register_function_rewrite(&mut *state.write(), Arc::new(BoundGrowth)).unwrap();
    context
}

async fn run(context: &SessionContext, sql: &str) -> Result<String> {
    let batches = context.sql(sql).await?.collect().await?;
    Ok(arrow::util::pretty::pretty_format_batches(&batches)?.to_string())
}

#[tokio::test]
async fn ordinary_calls_are_what_they_were() {
    let (bounded, plain) = (context(), SessionContext::new());
    for sql in [
        "SELECT repeat('ab', 3), lpad('x', 5, 'yz'), rpad('x', 5), concat('a', NULL, 'b'), concat_ws(', ', 'a', 'b')",
        "SELECT s || '-' || s AS twice, repeat(s, n) FROM (VALUES ('a', 2), (NULL, 3), ('bc', NULL)) AS t(s, n)",
        "SELECT range(3), range(1, 10, 3), generate_series(5, 1, -2), array_repeat('a', 3), array_resize([1, 2], 4, 7)",
        "SELECT range(DATE '2024-01-01', DATE '2024-03-01', INTERVAL '1' MONTH)",
        "SELECT generate_series(TIMESTAMP '2024-01-01', TIMESTAMP '2024-01-02', INTERVAL '6' HOUR)",
        "SELECT replace('banana', 'a', 'oo'), regexp_replace('banana', '(a)(n)', '\\2\\1', 'g'), overlay('abc' placing 'x' from 2)",
        "SELECT array_to_string([1, 2, NULL], '-', '?'), [1] || [2, 3], make_array(1, 2), struct(1 AS a), regexp_match('ab', '(a)(b)')",
        "SELECT arrow_cast(1, 'Int8'), arrow_cast('a', 'Utf8View') || 'b', map(['a'], [1])",
        "SELECT sum(v) FROM (SELECT unnest(range(0, 10000)) AS v)",
        "SELECT count(*) FROM range(0, 1000000)",
        "SELECT length(repeat('x', 100)), array_length(array_concat([1], [2]))",
    ] {
        assert_eq!(run(&bounded, sql).await.unwrap(), run(&plain, sql).await.unwrap(), "{sql}");
    }
}

#[tokio::test]
async fn what_would_be_too_large_is_not_made() {
    let context = context();
    let doubled = |times: usize, first: &str| {
        let steps: Vec<_> = (0..times).map(|at| format!(", t{} AS (SELECT s || s AS s FROM t{at})", at + 1)).collect();
        format!("WITH t0 AS ({first}){} SELECT length(s) FROM t{times}", steps.concat())
    };
    for sql in [
        "SELECT repeat('x', 1000000000)".to_owned(),
        "SELECT repeat('x', 9223372036854775807)".to_owned(),
        "SELECT lpad('x', 2000000000), rpad('x', 2000000000)".to_owned(),
        "SELECT range(0, 100000000000)".to_owned(),
        "SELECT generate_series(TIMESTAMP '1970-01-01', TIMESTAMP '2024-01-01', INTERVAL '1' SECOND)".to_owned(),
        "SELECT array_repeat(NULL, 10000000000), array_repeat([1], 10000000000)".to_owned(),
        "SELECT array_resize([1], 10000000000)".to_owned(),
        "SELECT repeat(s, 1000000) FROM (SELECT CAST(value AS VARCHAR) AS s FROM range(0, 100000))".to_owned(),
        "SELECT replace(repeat('a', 100000), 'a', repeat('b', 100000))".to_owned(),
        "SELECT regexp_replace(repeat('a', 100000), 'a', repeat('b', 100000), 'g')".to_owned(),
        "SELECT array_to_string(range(0, 10000), repeat('b', 100000))".to_owned(),
        "SELECT max(levenshtein(repeat('a', 100000), s || repeat('b', 100000))) FROM (SELECT CAST(value AS VARCHAR) AS s FROM range(0, 100))"
            .to_owned(),
        "SELECT to_char(TIMESTAMP '2024-01-01', repeat('%+', 60000))".to_owned(),
        doubled(60, "SELECT arrow_cast('abcd', 'LargeUtf8') AS s"),
        doubled(60, "SELECT arrow_cast(CAST(value AS VARCHAR), 'Utf8View') AS s FROM range(0, 9)"),
        format!("SELECT concat_ws(repeat('x', 100000){})", ", ''".repeat(200)),
    ] {
        let error = run(&context, &sql).await.unwrap_err();
        assert!(matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)), "{}: {error}", &sql[..sql.len().min(80)]);
    }
    for sql in [
        "SELECT arrow_cast(NULL, 'FixedSizeList(1000000000, Int64)')".to_owned(),
        "SELECT arrow_try_cast('a', 'FixedSizeBinary(1000000000)')".to_owned(),
        "SELECT CAST(NULL AS BIGINT[10000000][10000000])".to_owned(),
        "SELECT TRY_CAST(NULL AS BIGINT[1000000000])".to_owned(),
        "SELECT make_array(NULL)::BIGINT[1000000000][]".to_owned(),
        format!("SELECT '{}'", "x".repeat(200_000)),
    ] {
        assert!(
            matches!(run(&context, &sql).await.unwrap_err().find_root(), DataFusionError::Plan(_)),
            "{}",
            &sql[..60.min(sql.len())]
        );
    }
}
