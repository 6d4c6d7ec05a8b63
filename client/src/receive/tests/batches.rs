//! The decoder: values, and where they lie.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, Float64Array, Int8Array,
    Int32Array, Int64Array, ListArray, NullArray, RecordBatch, StringArray, StringViewArray, StructArray,
};
use arrow::buffer::{Buffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, TimeUnit};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::FlightData;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::utils::batches_to_flight_data;
use bytes::Bytes;
use flightcache_proto::{ErrorKind, Result};
use futures::{StreamExt as _, TryStreamExt as _};

use super::super::assemble::Message;
use super::super::decode::{Decoder, Payload};
use super::super::flat::{self, is_flat};
use super::{assemble, data, numbers, wire};

fn decode(messages: &[Message]) -> Result<Vec<RecordBatch>> {
    let mut decoder = Decoder::default();
    let mut batches = Vec::new();
    for message in messages {
        if let Payload::Batch(batch) = decoder.decode(message)? {
            batches.push(batch);
        }
    }
    Ok(batches)
}

fn received(data: &[FlightData]) -> Result<Vec<RecordBatch>> {
    // As it comes: no body is at a multiple of anything.
    let bytes = [&[0][..], &wire(data)].concat();
    decode(&assemble(bytes[1..].chunks(999).map(Bytes::copy_from_slice))?)
}

fn many_types(rows: usize) -> RecordBatch {
    let text = |i: usize| (!i.is_multiple_of(3)).then(|| format!("a text longer than twelve bytes {i}"));
    let lists = (0..rows).map(|i| (i % 5 > 0).then(|| vec![Some(i as i64), None]));
    let inner: ArrayRef = Arc::new((0..rows as i64).map(|i| (i % 2 == 0).then_some(i)).collect::<Int64Array>());
    let columns: [(&str, ArrayRef); 9] = [
        ("i64", Arc::new((0..rows as i64).collect::<Int64Array>())),
        ("i8", Arc::new((0..rows).map(|i| Some(i as i8)).collect::<Int8Array>())),
        ("f64", Arc::new((0..rows).map(|i| (i % 7 > 0).then_some(i as f64)).collect::<Float64Array>())),
        ("bool", Arc::new((0..rows).map(|i| Some(i % 2 == 0)).collect::<BooleanArray>())),
        ("decimal", Arc::new((0..rows).map(|i| Some(i as i128)).collect::<Decimal128Array>())),
        ("text", Arc::new((0..rows).map(text).collect::<StringArray>())),
        ("view", Arc::new((0..rows).map(text).collect::<StringViewArray>())),
        ("list", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))),
        ("struct", Arc::new(StructArray::from(vec![(Arc::new(Field::new("inner", DataType::Int64, true)), inner)]))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap()
}

/// Columns that need no `arrow-ipc`.
fn flat_types(rows: usize) -> RecordBatch {
    let numbers: ArrayRef = Arc::new((0..rows as i64).map(|i| (i % 4 > 0).then_some(i)).collect::<Int64Array>());
    let texts: ArrayRef = many_types(rows).column_by_name("text").unwrap().clone();
    let fixed = (0..rows).map(|i| (i % 3 > 0).then_some([i as u8; 5]));
    let fixed = FixedSizeBinaryArray::try_from_sparse_iter_with_size(fixed, 5).unwrap();
    let mut columns: Vec<(String, ArrayRef)> = vec![
        ("null".into(), Arc::new(NullArray::new(rows))),
        ("bool".into(), Arc::new((0..rows).map(|i| (i % 3 > 0).then_some(i % 2 == 0)).collect::<BooleanArray>())),
        ("fixed".into(), Arc::new(fixed)),
    ];
    let of_numbers = [
        DataType::UInt16,
        DataType::Float32,
        DataType::Int64,
        DataType::Decimal128(20, 2),
        DataType::Decimal256(40, 0),
        DataType::Timestamp(TimeUnit::Microsecond, Some("Europe/Paris".into())),
        DataType::Date32,
        DataType::Duration(TimeUnit::Second),
    ];
    let of_texts =
        [DataType::Utf8, DataType::LargeUtf8, DataType::Binary, DataType::LargeBinary, DataType::Utf8View, DataType::BinaryView];
    for (array, data_types) in [(numbers, &of_numbers[..]), (texts, &of_texts[..])] {
        let cast = |data_type: &DataType| (data_type.to_string(), arrow::compute::cast(&array, data_type).unwrap());
        columns.extend(data_types.iter().map(cast));
    }
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn buffers(array: &dyn Array) -> Vec<Buffer> {
    fn collect(data: &arrow::array::ArrayData, to: &mut Vec<Buffer>) {
        to.extend(data.buffers().iter().cloned());
        to.extend(data.nulls().map(|nulls| nulls.buffer().clone()));
        data.child_data().iter().for_each(|child| collect(child, to));
    }
    let mut all = Vec::new();
    collect(&array.to_data(), &mut all);
    all
}

#[test]
fn every_column_lies_in_one_aligned_buffer() {
    lies_in_one_aligned_buffer(many_types(1_000));
    lies_in_one_aligned_buffer(flat_types(1_000));
}

fn lies_in_one_aligned_buffer(batch: RecordBatch) {
    let bytes = [&[0][..], &wire(&data(std::slice::from_ref(&batch)))].concat();
    let messages = assemble(bytes[1..].chunks(999).map(Bytes::copy_from_slice)).unwrap();
    let body = &messages[1].body;
    let body_at = body.as_ptr().addr();
    assert!(body_at.is_multiple_of(64));
    let decoded = decode(&messages).unwrap();
    assert_eq!(decoded, [batch]);
    for (column, field) in decoded[0].columns().iter().zip(decoded[0].schema_ref().fields()) {
        let buffers = buffers(column);
        assert!(!buffers.is_empty() || *field.data_type() == DataType::Null);
        for buffer in buffers.iter().filter(|buffer| !buffer.is_empty()) {
            let at = buffer.as_ptr().addr();
            assert!((body_at..body_at + body.len()).contains(&at), "{field}: a buffer was copied");
            assert!((at - body_at).is_multiple_of(64) || matches!(field.data_type(), DataType::Struct(_)), "{field}");
        }
    }
}

#[test]
fn batches_of_any_size_and_shape_are_what_was_sent() {
    for rows in [0, 1, 7, 1_000] {
        let batches = [many_types(rows), many_types(rows).slice(rows / 3, rows / 2), many_types(2)];
        assert_eq!(received(&data(&batches)).unwrap(), batches);
        let batches = [flat_types(rows), flat_types(rows).slice(rows / 3, rows / 2), flat_types(2)];
        assert_eq!(received(&data(&batches)).unwrap(), batches);
    }
    let no_columns = RecordBatch::try_new_with_options(
        Arc::new(arrow::datatypes::Schema::empty()),
        vec![],
        &arrow::array::RecordBatchOptions::new().with_row_count(Some(5)),
    );
    let no_columns = no_columns.unwrap();
    assert_eq!(received(&data(std::slice::from_ref(&no_columns))).unwrap(), [no_columns]);
}

#[test]
fn flat_columns_are_read_without_arrow_ipc() {
    assert!(!is_flat(many_types(1).schema_ref(), false));
    let batch = flat_types(100).slice(9, 80);
    assert!(is_flat(batch.schema_ref(), false));
    let messages = assemble([wire(&data(std::slice::from_ref(&batch))).into()]).unwrap();
    let Message { header, body, .. } = &messages[1];
    let header = arrow::ipc::root_as_message(header).unwrap().header_as_record_batch().unwrap();
    assert_eq!(flat::read(header, body, &batch.schema(), &std::collections::HashMap::new()).unwrap(), batch);
}

#[test]
fn strings_that_are_none_are_refused() {
    for (bytes, at, is_refused) in [("ab", 1, false), ("ä", 1, true), ("äö", 2, false)] {
        let offsets = OffsetBuffer::new(vec![0, at, bytes.len() as i32].into());
        let array = BinaryArray::new(offsets, Buffer::from(bytes.as_bytes()), None);
        let sent = RecordBatch::try_from_iter([("t", Arc::new(array) as ArrayRef)]).unwrap();
        let mut frames = data(&[sent]);
        // Announced as text.
        frames[0] =
            data(&[RecordBatch::try_from_iter([("t", Arc::new(StringArray::from(vec![""])) as ArrayRef)]).unwrap()])[0].clone();
        assert_eq!(received(&frames).is_err(), is_refused, "{bytes} cut at {at}");
    }
}

#[tokio::test]
async fn dictionaries_are_kept_replaced_and_forgotten() {
    let words = |words: &[&str]| -> RecordBatch {
        let array: DictionaryArray<Int32Type> = words.iter().copied().collect();
        RecordBatch::try_from_iter([("d", Arc::new(array) as _)]).unwrap()
    };
    let batches = [words(&["a", "b", "a"]), words(&["c"]), words(&["b", "b"])];
    let frames = FlightDataEncoderBuilder::new()
        .with_dictionary_handling(arrow_flight::encode::DictionaryHandling::Resend)
        .build(futures::stream::iter(batches.clone()).map(Ok));
    let frames: Vec<FlightData> = frames.try_collect().await.unwrap();
    assert!(frames.len() > 1 + batches.len(), "no dictionary was sent");
    assert_eq!(received(&frames).unwrap(), batches);

    // A schema starts anew: a batch then lacks its dictionary.
    let again = [&frames[..], &frames[..1], &frames[frames.len() - 1..]].concat();
    assert_eq!(received(&again).unwrap_err().kind, ErrorKind::Internal);
    // A dictionary before the schema.
    assert_eq!(received(&frames[1..]).unwrap_err().kind, ErrorKind::Internal);
}

#[test]
fn bytes_that_contradict_each_other_are_a_typed_error() {
    contradict_each_other(&many_types(10));
    contradict_each_other(&flat_types(10));
}

fn contradict_each_other(batch: &RecordBatch) {
    let good = data(std::slice::from_ref(batch));
    let mut refused = 0;
    for (frame, FlightData { data_header, .. }) in good.iter().enumerate() {
        for at in 0..data_header.len() {
            for value in [0, 0x7f, 0xff] {
                let mut changed = good.clone();
                let mut header = data_header.to_vec();
                header[at] = value;
                changed[frame].data_header = header.into();
                if let Err(error) = received(&changed) {
                    assert_eq!(error.kind, ErrorKind::Internal, "{error}");
                    refused += 1;
                }
            }
        }
        for length in 0..data_header.len() {
            let mut changed = good.clone();
            changed[frame].data_header = data_header.slice(..length);
            refused += usize::from(received(&changed).is_err());
        }
    }
    assert!(refused > 100, "{refused}");
    for length in [0, 8, good[1].data_body.len() - 64] {
        let mut changed = good.clone();
        changed[1].data_body = good[1].data_body.slice(..length);
        let error = received(&changed).unwrap_err();
        assert!(error.message.contains("more than its body"), "{error}");
    }
    assert!(received(&good[1..]).unwrap_err().message.contains("before the schema"));
    // A schema in the middle replaces the one before.
    let both = [&good[..], &batches_to_flight_data(numbers([]).schema_ref(), vec![numbers([1])]).unwrap()].concat();
    assert_eq!(received(&both).unwrap(), [batch.clone(), numbers([1])]);
}

#[test]
fn compressed_batches_and_dictionaries_are_refused() {
    // Of no rows and no values: there is nothing to compress, which needs no codec, but the headers say that it is.
    let of = |codec| {
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values([]));
        let column = DictionaryArray::<Int32Type>::try_new(Int32Array::from_iter_values([]), values).unwrap();
        let batch = RecordBatch::try_from_iter([("d", Arc::new(column) as ArrayRef)]).unwrap();
        let options = IpcWriteOptions::default().try_with_compression(codec).unwrap();
        let (generator, mut tracker) = (IpcDataGenerator::default(), DictionaryTracker::new(false));
        let schema = generator.schema_to_bytes_with_dictionary_tracker(batch.schema_ref(), &mut tracker, &options);
        let (dictionaries, rows) = generator.encode(&batch, &mut tracker, &options, &mut IpcWriteContext::default()).unwrap();
        let [dictionary] = <[_; 1]>::try_from(dictionaries).unwrap_or_else(|_| panic!("one dictionary"));
        [schema, dictionary, rows].map(FlightData::from)
    };
    let plain = of(None);
    assert_eq!(received(&plain).unwrap()[0].num_rows(), 0);
    for codec in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        let [_, dictionary, rows] = of(Some(codec));
        for changed in [[&plain[0], &dictionary, &plain[2]], [&plain[0], &plain[1], &rows]] {
            let error = received(&changed.map(FlightData::clone)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Internal);
            assert!(error.message.contains("compressed"), "{error}");
        }
    }
}
