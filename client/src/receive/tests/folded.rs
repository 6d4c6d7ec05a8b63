//! Dictionaries, as a server of ours sends them, and as one that errs does.

use std::sync::Arc;

use arrow::array::{Array, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::{FlightData, SchemaAsIpc};
use bytes::Bytes;
use flightcache_proto::accept::FOLDED_SCHEMA;
use flightcache_proto::{ErrorKind, Result};
use http::{HeaderMap, StatusCode};

use super::super::{Payload, get_with};
use super::answers::{OK, canned, piece, trailers};
use super::{data, wire};

fn announced() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int32, true), Field::new("s", DataType::Utf8View, true)]))
}

/// As frames: the announced schema, the folded one, a dictionary, a batch.
fn frames(marker: &str, values: StringArray, keys: Vec<Option<i32>>) -> Vec<FlightData> {
    let numbers: Int32Array = (0..keys.len() as i32).collect();
    let dictionary = DictionaryArray::<Int32Type>::new(Int32Array::from(keys), Arc::new(values));
    let fields = vec![Field::new("n", DataType::Int32, true), Field::new("s", dictionary.data_type().clone(), true)];
    let schema = Schema::new_with_metadata(fields, [(marker.to_owned(), String::new())].into());
    let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(numbers), Arc::new(dictionary)]).unwrap();
    let opening = data(&[RecordBatch::new_empty(announced())]).swap_remove(0);
    let options = IpcWriteOptions::default();
    let folded = SchemaAsIpc::new(batch.schema_ref(), &options).into();
    let generator = IpcDataGenerator::default();
    let mut tracker = DictionaryTracker::new(false);
    generator.schema_to_bytes_with_dictionary_tracker(batch.schema_ref(), &mut tracker, &options);
    let (dictionaries, batch) = generator.encode(&batch, &mut tracker, &options, &mut IpcWriteContext::default()).unwrap();
    [opening, folded].into_iter().chain(dictionaries.into_iter().chain([batch]).map(Into::into)).collect()
}

async fn read(frames: &[FlightData]) -> Result<Vec<RecordBatch>> {
    let answer = vec![Ok(piece(wire(frames))), Ok(trailers([OK]))];
    let mut answer = get_with(canned(StatusCode::OK, HeaderMap::new(), answer), Bytes::new(), None, false).await?;
    let mut batches = Vec::new();
    let mut schemas = 0;
    while let Some(frame) = answer.next().await? {
        match frame.payload {
            Payload::Schema(_) => schemas += 1,
            Payload::Batch(batch) => batches.push(batch),
            Payload::Nothing => {}
        }
    }
    assert!(schemas <= 1);
    Ok(batches)
}

fn words() -> StringArray {
    StringArray::from(vec![Some("a"), None, Some("a word that does not fit into a view")])
}

#[tokio::test]
async fn dictionaries_arrive_as_what_was_announced() {
    let keys = vec![Some(2), None, Some(0), Some(1), Some(2)];
    let batches = read(&frames(FOLDED_SCHEMA, words(), keys)).await.unwrap();
    let [batch] = &batches[..] else { panic!("{batches:?}") };
    assert_eq!(batch.schema(), announced());
    let long = "a word that does not fit into a view";
    let strings: arrow::array::StringViewArray = [Some(long), None, Some("a"), None, Some(long)].into_iter().collect();
    assert_eq!(batch.column(1).as_ref(), &strings as &dyn Array);
}

#[tokio::test]
async fn servers_that_err_are_told_from_those_that_do_not() {
    let good = frames(FOLDED_SCHEMA, words(), vec![Some(2), Some(0)]);
    assert_eq!(good.len(), 4);
    let refused = async |frames: &[FlightData]| read(frames).await.unwrap_err().kind;
    // Before the schema; before its dictionary; other types than announced; a schema that is not marked is another one.
    assert_eq!(refused(&good[1..]).await, ErrorKind::Internal);
    assert_eq!(refused(&[good[0].clone(), good[1].clone(), good[3].clone()]).await, ErrorKind::Internal);
    let numbers =
        data(&[RecordBatch::new_empty(Arc::new(Schema::new(vec![Field::new("s", DataType::Int32, true)])))]).swap_remove(0);
    assert_eq!(refused(&[&[numbers][..], &good[1..]].concat()).await, ErrorKind::Internal);
    // A key that the dictionary does not have.
    let bad = frames(FOLDED_SCHEMA, StringArray::from(vec!["a"; 9]), vec![Some(8), Some(0)]);
    let mixed = [&good[..3], &bad[3..]].concat();
    assert_eq!(refused(&mixed).await, ErrorKind::Internal);
    // One may be replaced.
    let other = frames(FOLDED_SCHEMA, words(), vec![Some(0)]);
    assert!(read(&[&good[..], &other[2..]].concat()).await.is_ok());
}
