//! Suites, answers, and a run over tables that were written here.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use bytesize::ByteSize;
use object_store::ObjectStoreExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;

use super::*;

fn answer(names: &[&str], numbers: &[f64]) -> Answer {
    let names: ArrayRef = Arc::new(StringArray::from(names.to_vec()));
    let numbers: ArrayRef = Arc::new(Float64Array::from(numbers.to_vec()));
    let batch = RecordBatch::try_from_iter([("name", names), ("number", numbers)]).unwrap();
    Answer::new(&batch.schema(), &[batch]).unwrap()
}

#[test]
fn suites_are_whole() {
    for (suite, count) in [(Suite::Tpch, 22), (Suite::Clickbench, 43)] {
        let queries = suite.queries(&[]).unwrap();
        assert_eq!(queries.len(), count);
        assert_eq!(suite.queries(&[count, 2]).unwrap().iter().map(|query| query.number).collect::<Vec<_>>(), [2, count]);
        assert!(suite.queries(&[count + 1]).unwrap_err().contains("1 to"));
    }
}

#[test]
fn the_last_limit_is_the_querys_own() {
    let unlimited = |sql: &str| Query { number: 1, sql: sql.to_owned() }.unlimited();
    assert_eq!(unlimited("select a from t order by a\nlimit 10"), Some("select a from t order by a".to_owned()));
    assert_eq!(unlimited("SELECT a FROM t LIMIT 10 OFFSET 5"), Some("SELECT a FROM t".to_owned()));
    assert_eq!(unlimited("select * from (select a from t limit 10)"), None);
    assert_eq!(unlimited("select 1"), None);
}

#[test]
fn answers_differ_by_rows_and_by_the_order_they_are_sorted_in() {
    let expected = answer(&["a", "b", "b"], &[1.0, 2.0, 2.0]);
    assert_eq!(answer(&["b", "a", "b"], &[2.0, 1.0 + 1e-13, 2.0]).check(&expected, None, &[]), Ok(()));
    for (names, numbers) in [(["a", "a", "b"], [1.0, 1.0, 2.0]), (["a", "b", "b"], [1.0, 2.0, 2.001])] {
        assert!(answer(&names, &numbers).check(&expected, None, &[]).unwrap_err().contains("not plain's"));
    }
    assert_eq!(answer(&["a"], &[1.0]).check(&expected, None, &[]), Err("1 rows instead of 3".to_owned()));
    // A limit may choose among rows, but not make any.
    let [one, other] = [answer(&["a", "b"], &[1.0, 2.0]), answer(&["b", "b"], &[2.0, 2.0])];
    assert_eq!(one.check(&other, Some(&expected), &[]), Ok(()));
    assert!(answer(&["a", "a"], &[1.0, 1.0]).check(&other, Some(&expected), &[]).is_err());
    // Ties are in no order.
    let [tied, swapped, misplaced] =
        [([1.0, 2.0, 2.0], ["a", "b", "c"]), ([1.0, 2.0, 2.0], ["a", "c", "b"]), ([2.0, 2.0, 1.0], ["b", "c", "a"])]
            .map(|(numbers, names)| answer(&names, &numbers));
    assert_eq!(swapped.check(&tied, None, &[1]), Ok(()));
    assert!(swapped.check(&tied, None, &[1, 0]).unwrap_err().contains("row 1 is sorted by"));
    assert!(misplaced.check(&tied, None, &[1]).unwrap_err().contains("row 0 is sorted by"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_side_answers_and_leaves_its_figures() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalFileSystem::new_with_prefix(directory.path()).unwrap();
    // What queries 4, 20 and 21 ask for.
    let users: ArrayRef =
        Arc::new(Int64Array::from_iter_values((0..1_000).map(|at| if at == 7 { 435_090_932_899_640_449 } else { at % 90 })));
    let urls: ArrayRef =
        Arc::new(StringArray::from_iter_values((0..1_000).map(|at| format!("http://{}/{at}", ["google", "example"][at % 2]))));
    let batch = RecordBatch::try_from_iter([("UserID", users), ("URL", urls)]).unwrap();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    store.put(&Path::from("hits.parquet"), file.into()).await.unwrap();

    let json = directory.path().join("report.json");
    let data = directory.path().to_str().unwrap().to_owned();
    let options = Options {
        local: Some(data.clone()),
        data,
        suite: Suite::Clickbench,
        queries: vec![4, 20, 21],
        // Python's needs its package, and has a test beside it.
        doors: vec![side::Door::Plain, side::Door::Provider, side::Door::Rule, side::Door::FlightSql],
        python: None,
        capacity: ByteSize::mib(64),
        rounds: 1,
        distance: Distance { latency: Duration::ZERO, bandwidth: ByteSize(0) },
        output: Output { json: Some(json.clone()), html: Some(directory.path().join("report.html")) },
    };
    run(options).await.unwrap();
    let report: crate::report::Report = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let [sql] = &report.sql[..] else { panic!("{report:?}") };
    assert_eq!(sql.queries, [4, 20, 21]);
    let provider = sql.sides.iter().find(|side| side.name == "provider").unwrap();
    assert!(provider.queries.iter().all(|query| query.warm_ms > 0.0 && query.cold_ms > 0.0));
    assert!(provider.total().cold_store_requests > 0);
}
