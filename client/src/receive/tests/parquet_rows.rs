//! Row groups that come as Parquet, as they should and as they should not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, Int32Array, ListArray, RecordBatch, StringArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use arrow_flight::FlightData;
use bytes::Bytes;
use flightcache_proto::parquet::{MAX_FILE_BYTES, ParquetPiece};
use flightcache_proto::{Error, ErrorKind, Result};
use futures::StreamExt as _;
use http::{HeaderMap, StatusCode};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::ParquetMetaDataWriter;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader as _, SerializedFileReader};

use super::super::{Answer, Payload, get_over, get_with};
use super::answers::{Canned, OK, canned, canned_stream, piece, trailers};
use super::{data, numbers, wire};
use crate::link::{Link, Transfer};

fn file_of(batches: &[RecordBatch], properties: WriterProperties) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batches[0].schema(), Some(properties)).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.close().unwrap();
    bytes
}

fn file(batch: &RecordBatch) -> Vec<u8> {
    file_of(std::slice::from_ref(batch), WriterProperties::default())
}

fn announced(file: &[u8], rows: u64) -> ParquetPiece {
    ParquetPiece { total_bytes: file.len() as u64, offset: 0, rows, url: "s3://lake/t.parquet".into(), row_group: 3 }
}

fn frame(announced: &ParquetPiece, body: &[u8]) -> FlightData {
    FlightData {
        data_header: announced.to_header().into(),
        data_body: Bytes::copy_from_slice(body),
        app_metadata: format!(r#"{{"bytes": {}}}"#, announced.offset + body.len() as u64).into(),
        ..FlightData::default()
    }
}

/// A file in pieces of so many bytes.
fn pieces(file: &[u8], rows: u64, piece_bytes: usize) -> Vec<FlightData> {
    let whole = announced(file, rows);
    let piece = |(at, body): (usize, &[u8])| {
        let offset = (at * piece_bytes) as u64;
        frame(&ParquetPiece { offset, ..whole.clone() }, body)
    };
    file.chunks(piece_bytes).enumerate().map(piece).collect()
}

async fn ask(frames: &[FlightData], takes_parquet: bool) -> Answer {
    let answer = vec![Ok(piece(wire(frames))), Ok(trailers([OK]))];
    get_with(canned(StatusCode::OK, HeaderMap::new(), answer), Bytes::new(), None, takes_parquet).await.unwrap()
}

async fn read(frames: &[FlightData]) -> (Vec<RecordBatch>, Result<()>) {
    let mut answer = ask(frames, true).await;
    let mut batches = Vec::new();
    loop {
        match answer.next().await {
            Ok(Some(frame)) => batches.extend(if let Payload::Batch(batch) = frame.payload { Some(batch) } else { None }),
            Ok(None) => return (batches, Ok(())),
            Err(error) => {
                assert_eq!(answer.next().await, Ok(None), "an error ends the answer");
                return (batches, Err(error));
            }
        }
    }
}

async fn refused(frames: &[FlightData]) -> Error {
    let (batches, ended) = read(frames).await;
    assert_eq!(batches, [], "nothing of it was delivered");
    ended.unwrap_err()
}

fn all(batches: &[RecordBatch]) -> RecordBatch {
    arrow::compute::concat_batches(batches[0].schema_ref(), batches).unwrap()
}

/// The schema's frame, and a frame of these rows as Arrow.
fn arrow(batch: &RecordBatch) -> [FlightData; 2] {
    data(std::slice::from_ref(batch)).try_into().unwrap()
}

#[tokio::test]
async fn it_is_asked_for_only_where_it_is_taken() {
    for takes_parquet in [false, true] {
        let service: Canned = canned(StatusCode::OK, HeaderMap::new(), vec![Ok(trailers([OK]))]);
        let asked = Arc::clone(&service.asked);
        get_with(service, Bytes::new(), None, takes_parquet).await.unwrap();
        let headers = asked.lock().unwrap().take().unwrap().into_parts().0.headers;
        assert_eq!(
            headers.get("flightcache-accept").map(|value| value.to_str().unwrap()),
            Some(if takes_parquet { "parquet, dictionaries" } else { "dictionaries" })
        );
    }
    let [schema, _] = arrow(&numbers([]));
    let frames = [&[schema][..], &pieces(&file(&numbers([1])), 1, 1_000)].concat();
    let mut answer = ask(&frames, false).await;
    answer.next().await.unwrap();
    assert_eq!(answer.next().await.unwrap_err().kind, ErrorKind::Internal, "it was not asked for");
}

#[tokio::test]
async fn a_link_that_was_slow_is_asked_for_parquet_next() {
    for (is_local, pause_ms) in [(false, 3), (false, 0), (true, 3)] {
        let link = Arc::new(Link::new(is_local));
        for has_been_read in [false, true] {
            let column: ArrayRef = Arc::new(Int32Array::from(vec![0; 1 << 18]));
            let frames = data(&[RecordBatch::try_from_iter([("n", column)]).unwrap()]);
            let frames = std::iter::once(&frames[0]).chain(std::iter::repeat_n(&frames[1], 8));
            let pieces: Vec<_> = frames.map(|frame| piece(wire(std::slice::from_ref(frame)))).chain([trailers([OK])]).collect();
            let pieces = futures::stream::iter(pieces).then(move |piece| async move {
                if pause_ms > 0 {
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                }
                Ok(piece)
            });
            let service = canned_stream(StatusCode::OK, HeaderMap::new(), pieces);
            let asked = Arc::clone(&service.asked);
            let mut answer = get_over(service, Arc::clone(&link), Bytes::new(), None, Transfer::Auto).await.unwrap();
            while answer.next().await.unwrap().is_some() {}
            let takes_parquet =
                asked.lock().unwrap().take().unwrap().headers()["flightcache-accept"].to_str().unwrap().contains("parquet");
            assert_eq!(takes_parquet, has_been_read && !is_local && pause_ms > 0, "{is_local} {pause_ms}");
        }
    }
}

#[tokio::test]
async fn row_groups_and_batches_come_in_order_however_they_are_cut() {
    let (first, second) = (numbers(0..20_000), numbers(20_000..50_000));
    let [schema, between] = arrow(&numbers([-1, -2]));
    for piece_bytes in [1_000, 65_536, usize::MAX / 2] {
        let frames = [
            &[schema.clone()][..],
            &pieces(&file(&first), 20_000, piece_bytes),
            &pieces(&file(&second), 30_000, piece_bytes),
            std::slice::from_ref(&between),
            &pieces(&file(&first), 20_000, piece_bytes),
        ]
        .concat();
        let (batches, ended) = read(&frames).await;
        ended.unwrap();
        assert!(batches.iter().all(|batch| batch.num_rows() <= 65_536));
        assert_eq!(all(&batches), all(&[first.clone(), second.clone(), numbers([-1, -2]), first.clone()]));
    }
}

#[tokio::test]
async fn figures_come_with_the_rows() {
    let [schema, _] = arrow(&numbers([]));
    let parquet = file(&numbers(0..100));
    let mut answer = ask(&[&[schema][..], &pieces(&parquet, 100, 100)].concat(), true).await;
    answer.next().await.unwrap();
    let frame = answer.next().await.unwrap().unwrap();
    assert_eq!(frame.stats.map(|stats| stats.bytes), Some(parquet.len() as u64));
}

#[tokio::test]
async fn what_does_not_fit_together_is_refused() {
    let rows = numbers(0..1_000);
    let parquet = file(&rows);
    let [schema, batch] = arrow(&rows);
    let good = pieces(&parquet, 1_000, 1_000);
    assert!(good.len() > 3);
    let after_schema = |frames: &[FlightData]| [std::slice::from_ref(&schema), frames].concat();
    let changed = |at: usize, change: &dyn Fn(&mut ParquetPiece)| {
        let mut frames = good.clone();
        let mut piece = ParquetPiece::parse(&frames[at].data_header).unwrap().unwrap();
        change(&mut piece);
        frames[at].data_header = piece.to_header().into();
        after_schema(&frames)
    };
    let whole = announced(&parquet, 1_000);
    let cases = [
        ("cut off at its end", after_schema(&good[..good.len() - 1])),
        ("cut off by a batch", after_schema(&[&good[..1], &[batch]].concat())),
        ("cut off by a schema", after_schema(&[&good[..1], std::slice::from_ref(&schema)].concat())),
        ("a piece is missing", after_schema(&[&good[..1], &good[2..]].concat())),
        ("a piece comes twice", after_schema(&[&good[..2], &good[1..]].concat())),
        ("no schema before it", good.clone()),
        ("it begins later", changed(0, &|piece| piece.offset = 1)),
        ("another length", changed(1, &|piece| piece.total_bytes += 1)),
        ("other rows", changed(1, &|piece| piece.rows += 1)),
        ("another row group", changed(1, &|piece| piece.row_group += 1)),
        ("longer than announced", after_schema(&[frame(&ParquetPiece { total_bytes: 10, ..whole.clone() }, &parquet)])),
        ("too large", after_schema(&[frame(&ParquetPiece { total_bytes: MAX_FILE_BYTES + 1, ..whole.clone() }, &parquet)])),
        ("far too large", after_schema(&[frame(&ParquetPiece { total_bytes: u64::MAX, ..whole.clone() }, &parquet)])),
        ("empty", after_schema(&[frame(&ParquetPiece { total_bytes: 0, ..whole.clone() }, &[])])),
        ("no Parquet", after_schema(&pieces(&[7; 5_000], 1_000, 1_000))),
        ("fewer rows than announced", after_schema(&pieces(&parquet, 1_001, 1_000))),
        ("more rows than announced", after_schema(&pieces(&parquet, 999, 1_000))),
        ("an announcement that is cut off", {
            let mut frames = good.clone();
            frames[0].data_header = frames[0].data_header.slice(..9);
            after_schema(&frames)
        }),
        ("two row groups", {
            let two = WriterProperties::builder().set_max_row_group_row_count(Some(500)).build();
            after_schema(&pieces(&file_of(std::slice::from_ref(&rows), two), 1_000, 1_000))
        }),
        ("another type", {
            let column: ArrayRef = Arc::new(Int32Array::from_iter_values(0..1_000));
            let other = RecordBatch::try_from_iter_with_nullable([("n", column, false)]).unwrap();
            after_schema(&pieces(&file(&other), 1_000, 1_000))
        }),
        ("another column", {
            let other = RecordBatch::try_from_iter_with_nullable([("m", Arc::clone(rows.column(0)), false)]).unwrap();
            after_schema(&pieces(&file(&other), 1_000, 1_000))
        }),
    ];
    for (what, frames) in cases {
        let error = refused(&frames).await;
        assert_eq!(error.kind, ErrorKind::Internal, "{what}: {error}");
    }
    let error = refused(&after_schema(&[&good[..1], &good[2..3], &good[1..2], &good[3..]].concat())).await;
    assert!(error.message.contains("do not follow each other"), "{error}");
    read(&after_schema(&good)).await.1.unwrap();
}

#[tokio::test]
async fn any_byte_may_be_wrong() {
    let rows = numbers(0..300);
    let parquet = file(&rows);
    let [schema, _] = arrow(&rows);
    let mut refused = 0;
    for at in (0..parquet.len()).step_by(3) {
        for value in [0, 0x7f, 0xff] {
            let mut changed = parquet.clone();
            changed[at] = value;
            let (batches, ended) = read(&[&[schema.clone()][..], &pieces(&changed, 300, 10_000)].concat()).await;
            match ended {
                Ok(()) => assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 300),
                Err(error) => {
                    assert!(matches!(error.kind, ErrorKind::Internal | ErrorKind::Corrupt), "{error}");
                    assert!(error.message.contains("s3://lake/t.parquet row group 3"), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 50, "{refused}");
}

#[tokio::test]
async fn a_dictionary_of_long_values_makes_short_batches() {
    // A file of some KB shows 500 rows of 200 KB each.
    let value = "x".repeat(200_000);
    let column: ArrayRef = Arc::new(StringArray::from_iter_values((0..100).map(|_| &value)));
    let batch = RecordBatch::try_from_iter_with_nullable([("s", column, false)]).unwrap();
    let batches: Vec<RecordBatch> = (0..5).map(|_| batch.clone()).collect();
    let parquet = file_of(&batches, WriterProperties::default());
    let [schema, _] = arrow(&batch.slice(0, 1));
    let mut answer = ask(&[&[schema.clone()][..], &pieces(&parquet, 500, 10_000)].concat(), true).await;
    answer.next().await.unwrap();
    let Payload::Batch(first) = answer.next().await.unwrap().unwrap().payload else { panic!("rows") };
    assert!(first.num_rows() * 200_000 <= 64 << 20, "{}", first.num_rows());
    assert_eq!(first, all(&batches).slice(0, first.num_rows()));

    // A row that takes more than any batch may.
    let column: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(70 << 20)]));
    let batch = RecordBatch::try_from_iter_with_nullable([("s", column, false)]).unwrap();
    let zstd = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let error = refused(&[&[schema][..], &pieces(&file_of(&[batch], zstd), 1, 100_000)].concat()).await;
    assert_eq!(error.kind, ErrorKind::ResourceExhausted, "{error}");
}

/// The same file, whose footer does not state what its values take.
fn without_sizes(file: &[u8]) -> Vec<u8> {
    let reader = SerializedFileReader::new(Bytes::copy_from_slice(file)).unwrap();
    let mut metadata = reader.metadata().clone().into_builder();
    for group in metadata.take_row_groups() {
        let columns = group.columns().iter().cloned();
        let columns = columns.map(|chunk| chunk.into_builder().set_unencoded_byte_array_data_bytes(None).build().unwrap());
        metadata = metadata.add_row_group(group.clone().into_builder().set_column_metadata(columns.collect()).build().unwrap());
    }
    let metadata = metadata.set_column_index(None).set_offset_index(None).build();
    let footer = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap()) as usize;
    let mut bytes = file[..file.len() - 8 - footer].to_vec();
    ParquetMetaDataWriter::new(&mut bytes, &metadata).finish().unwrap();
    bytes
}

#[tokio::test]
async fn one_long_value_of_a_dictionary_keeps_no_row_from_being_read() {
    // 700 tags a row, of which each might be the long one.
    let long = "x".repeat(100 << 10);
    let tag = |at: usize| if at == 5_000 { long.clone() } else { format!("tag-{}", at % 40) };
    let tags: ArrayRef = Arc::new(StringArray::from_iter_values((0..700 * 300).map(tag)));
    let item = Arc::new(Field::new("item", DataType::Utf8, true));
    let list: ArrayRef = Arc::new(ListArray::new(item, OffsetBuffer::from_lengths([700; 300]), tags, None));
    let batch = RecordBatch::try_from_iter_with_nullable([("tags", list, false)]).unwrap();
    let [schema, _] = arrow(&batch.slice(0, 1));
    let parquet = without_sizes(&file(&batch));
    let (batches, ended) = read(&[&[schema][..], &pieces(&parquet, 300, 100_000)].concat()).await;
    ended.unwrap();
    assert_eq!(all(&batches), batch);
    assert!(batches.len() < 10, "{} batches of few rows", batches.len());
}

#[tokio::test]
async fn values_that_share_their_beginnings_make_short_batches() {
    // 160 MB in a file of some KB.
    let prefix = "x".repeat(40_000);
    let column: ArrayRef = Arc::new(StringArray::from_iter_values((0..4_000).map(|row| format!("{prefix}{row:05}"))));
    let batch = RecordBatch::try_from_iter_with_nullable([("s", column, false)]).unwrap();
    let delta = WriterProperties::builder().set_dictionary_enabled(false).set_encoding(Encoding::DELTA_BYTE_ARRAY).build();
    let parquet = file_of(std::slice::from_ref(&batch), delta);
    assert!(parquet.len() < 1_000_000, "{}", parquet.len());
    let [schema, _] = arrow(&batch.slice(0, 1));
    let (batches, ended) = read(&[&[schema][..], &pieces(&without_sizes(&parquet), 4_000, 100_000)].concat()).await;
    ended.unwrap();
    assert!(batches.iter().all(|batch| batch.num_rows() * 40_000 <= 64 << 20));
    assert_eq!(all(&batches), batch);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_received_ahead_of_the_reader_but_not_far() {
    let [schema, _] = arrow(&numbers([]));
    let parquet = file(&numbers(0..500_000));
    let mut frames = vec![Bytes::from(wire(&[schema]))];
    frames.extend((0..5).flat_map(|_| pieces(&parquet, 500_000, 100_000)).map(|frame| Bytes::from(wire(&[frame]))));
    let of_one = (frames.len() - 1) / 5;
    assert!(of_one > 5);
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    let frames = frames.into_iter().map(piece).chain([trailers([OK])]).map(Ok).inspect(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let mut answer = get_with(canned(StatusCode::OK, HeaderMap::new(), frames), Bytes::new(), None, true).await.unwrap();
    answer.next().await.unwrap();
    let Payload::Batch(first) = answer.next().await.unwrap().unwrap().payload else { panic!("rows") };
    assert_eq!(first.num_rows(), 65_536);
    let taken = || taken.load(Ordering::SeqCst);
    assert!((1 + of_one..=1 + 2 * of_one).contains(&taken()), "{} of {of_one} each", taken());
    let mut rows = first.num_rows();
    while let Some(frame) = answer.next().await.unwrap() {
        if let Payload::Batch(batch) = frame.payload {
            rows += batch.num_rows();
            let group = rows.div_ceil(500_000);
            assert!(taken() <= 1 + (group + 1) * of_one + 1, "{} while row group {group} was read", taken());
        }
    }
    assert_eq!(rows, 2_500_000);
}

#[test]
fn no_reader_keeps_a_decoder_from_others() {
    // As many threads as may decode, and more answers than that, read in turn.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).max_blocking_threads(2).enable_all().build();
    let reading = async {
        let [schema, _] = arrow(&numbers([]));
        let frames = [&[schema][..], &pieces(&file(&numbers(0..600_000)), 600_000, 100_000)].concat();
        let mut answers = Vec::new();
        for _ in 0..4 {
            let mut answer = ask(&frames, true).await;
            answer.next().await.unwrap();
            answers.push((answer, 0));
        }
        while answers.iter().any(|(_, rows)| *rows < 600_000) {
            for (answer, rows) in &mut answers {
                let Payload::Batch(batch) = answer.next().await.unwrap().unwrap().payload else { panic!("rows") };
                *rows += batch.num_rows();
            }
        }
    };
    let runtime = runtime.unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(Duration::from_mins(1), reading).await });
    runtime.shutdown_background();
    ended.expect("all of them are read");
}
