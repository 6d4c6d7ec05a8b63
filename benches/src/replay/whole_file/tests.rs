//! The cache of whole objects over real sockets.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int32Array, RecordBatch};
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;

use super::super::side::ObjectRead;
use super::*;

async fn store(objects: &[&str]) -> Arc<SlowStore> {
    let store = SlowStore::new(Arc::new(InMemory::new()), Duration::from_millis(20), None);
    let values = || Arc::new(Int32Array::from_iter_values(0..1_000)) as _;
    let batch = RecordBatch::try_from_iter([("a", values()), ("b", values())]).unwrap();
    for object in objects {
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        store.put(&Path::from(*object), writer.into_inner().unwrap().into()).await.unwrap();
    }
    Arc::new(store)
}

fn read(object: &str) -> Read {
    Read { objects: vec![ObjectRead { name: object.to_owned(), columns: None }] }
}

async fn start(store: Arc<SlowStore>, count: usize) -> WholeFile {
    WholeFile::start(store, count, ByteSize::mb(1), Clients::SHARED).await.unwrap()
}

#[tokio::test]
async fn many_at_once_ask_the_store_once_and_later_ones_hit() {
    let side = start(store(&["dir/a b.parquet"]).await, 3).await;
    let read = read("dir/a b.parquet");
    let answers = futures::future::try_join_all((0..20).map(|_| side.ask(&read))).await.unwrap();
    assert!(answers.iter().all(|answer| answer.rows == 1_000));
    let counts = side.take_counts().await.unwrap();
    assert_eq!(counts.requests, 1);
    assert!(answers.iter().any(|answer| answer.misses == 1 && answer.fetch >= Duration::from_millis(20)), "{answers:?}");

    let answer = side.ask(&read).await.unwrap();
    assert_eq!((answer.hits, answer.misses, answer.fetch), (1, 0, Duration::ZERO));
    assert_eq!(side.take_counts().await.unwrap(), StoreCounts::default());

    side.empty(&[]).await.unwrap();
    assert_eq!(side.ask(&read).await.unwrap().misses, 1);
    side.stop().await;
}

#[tokio::test]
async fn columns_are_chosen_by_the_client() {
    let side = start(store(&["t"]).await, 1).await;
    let some = |columns: &[&str]| {
        let columns = Some(columns.iter().map(ToString::to_string).collect());
        Read { objects: vec![ObjectRead { name: "t".to_owned(), columns }] }
    };
    assert_eq!(side.ask(&some(&["b"])).await.unwrap().rows, 1_000);
    assert_eq!(side.ask(&some(&[])).await.unwrap().rows, 1_000);
    assert!(side.ask(&some(&["c"])).await.unwrap_err().to_string().contains("no column c"));
    side.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let side = start(store(&[]).await, 1).await;
    let error = side.ask(&read("gone.parquet")).await.unwrap_err();
    assert!(error.to_string().starts_with("HTTP 404") && error.to_string().contains("gone.parquet"), "{error}");
    side.stop().await;
}
