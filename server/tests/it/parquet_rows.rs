//! Row groups that travel as Parquet: the same values, from the same chunks, under the same bounds.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Float64Array, Int64Array, LargeStringArray,
    ListArray, RecordBatch, StringArray, StringViewArray, StructArray, TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int32Type};
use arrow_flight::FlightData;
use arrow_flight::flight_service_client::FlightServiceClient;
use bytes::Bytes;
use bytesize::ByteSize;
use flightcache::{ErrorKind, Populate, ScanStats, Transfer};
use flightcache_proto::accept::{ACCEPT_HEADER, PARQUET};
use flightcache_proto::parquet::ParquetPiece;
use flightcache_server::Settings;
use flightcache_server::flight::MAX_FRAME_BYTES;
use flightcache_server::object::Freshness;
use flightcache_server::settings::Residency;
use futures::TryStreamExt as _;
use object_store::GetRange;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Encoding;
use parquet::file::properties::WriterProperties;
use tonic::transport::Endpoint;

use crate::store::{Fate, TestStore};
use crate::support::{Cache, file, settings, until, values};

const URL: &str = "s3://lake/t.parquet";
const FORMS: [Residency; 3] = [Residency::Arrow, Residency::Parquet, Residency::Auto];

async fn start(residency: Residency) -> Cache {
    Cache::with(Settings { residency, ..settings() }, TestStore::new()).await
}

/// A table of many types, `rows` long, with NULLs at every level.
fn many_types(rows: i64) -> RecordBatch {
    let some = |row: i64, value: String| (row % 7 != 3).then_some(value);
    let ids = || 0..rows;
    let strings = || ids().map(move |row| some(row, format!("station-{}", row % 40)));
    let inner: ArrayRef = Arc::new(strings().collect::<StringArray>());
    let nested = StructArray::from(vec![
        (Arc::new(Field::new("s", DataType::Utf8, true)), inner),
        (Arc::new(Field::new("i", DataType::Int64, false)), Arc::new(ids().collect::<Int64Array>()) as ArrayRef),
    ]);
    let lists = ids().map(|row| (row % 5 != 4).then(|| (0..row % 4).map(move |item| (item != 2).then_some(item as i32))));
    let widths = ids().map(|row| (row % 9 != 1).then_some([row as u8; 16]));
    RecordBatch::try_from_iter([
        ("id", Arc::new(ids().collect::<Int64Array>()) as ArrayRef),
        ("text", Arc::new(strings().collect::<StringArray>())),
        ("large", Arc::new(ids().map(|row| some(row, row.to_string())).collect::<LargeStringArray>())),
        ("view", Arc::new(strings().collect::<StringViewArray>())),
        ("bytes", Arc::new(strings().map(|text| text.map(String::into_bytes)).collect::<BinaryArray>())),
        ("flag", Arc::new(ids().map(|row| (row % 3 != 0).then_some(row % 2 == 0)).collect::<BooleanArray>())),
        ("float", Arc::new(ids().map(|row| if row % 11 == 0 { f64::NAN } else { row as f64 / 3.0 }).collect::<Float64Array>())),
        (
            "money",
            Arc::new(
                ids()
                    .map(|row| i128::from(row) * 1_000_001)
                    .collect::<Decimal128Array>()
                    .with_precision_and_scale(25, 4)
                    .unwrap(),
            ),
        ),
        ("time", Arc::new(TimestampMicrosecondArray::from_iter_values(ids()).with_timezone("Europe/Paris"))),
        ("fixed", Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(widths, 16).unwrap())),
        ("list", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists))),
        ("nested", Arc::new(nested)),
    ])
    .unwrap()
}

fn parquet(batch: &RecordBatch, group_rows: usize) -> Bytes {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group_rows)).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes.into()
}

/// A scan's rows in one batch, and its figures.
async fn read(
    cache: &Cache,
    url: &str,
    columns: Option<&[&str]>,
    transfer: Transfer,
) -> flightcache::Result<(RecordBatch, ScanStats)> {
    let scan = cache.client.scan(url).transfer(transfer);
    let scan = if let Some(columns) = columns { scan.columns(columns.iter().copied()) } else { scan };
    let mut stream = scan.send().await?;
    let mut batches = Vec::new();
    while let Some(batch) = stream.try_next().await? {
        batches.push(batch);
    }
    Ok((concat_batches(&stream.schema(), &batches).unwrap(), stream.stats()))
}

/// The messages of an answer to a client that takes Parquet.
async fn raw(cache: &Cache, json: String) -> tonic::Streaming<FlightData> {
    let channel = Endpoint::from_shared(format!("http://{}", cache.server.flight_addr())).unwrap().connect_lazy();
    let mut request = tonic::Request::new(arrow_flight::Ticket { ticket: json.into() });
    request.metadata_mut().insert(ACCEPT_HEADER, PARQUET.parse().unwrap());
    FlightServiceClient::new(channel).do_get(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_and_types_are_those_of_arrow_in_each_form() {
    let table = many_types(30_000);
    for residency in FORMS {
        let cache = start(residency).await;
        cache.store.put("t.parquet", parquet(&table, 8_000)).await;
        let picked: &[&[&str]] = &[&["list", "id"], &["nested"], &["view", "text", "view"], &["money", "fixed", "time"], &[]];
        for columns in std::iter::once(None).chain(picked.iter().copied().map(Some)) {
            // Cold, and resident.
            for _ in 0..2 {
                let (rows, stats) = read(&cache, URL, columns, Transfer::Parquet).await.unwrap();
                let (expected, plain) = read(&cache, URL, columns, Transfer::Arrow).await.unwrap();
                assert_eq!(rows.schema(), expected.schema());
                assert_eq!(rows.columns(), expected.columns(), "{residency:?} {columns:?}");
                assert_eq!((rows.num_rows(), stats.rows, plain.row_groups_as_parquet), (30_000, 30_000, 0));
                let is_parquet = residency != Residency::Arrow && columns != Some(&[]);
                assert_eq!(stats.row_groups_as_parquet, if is_parquet { 4 } else { 0 }, "{residency:?} {columns:?}");
                assert!(!is_parquet || stats.bytes < plain.bytes, "{} {}", stats.bytes, plain.bytes);
            }
        }
        let (whole, _) = read(&cache, URL, None, Transfer::Parquet).await.unwrap();
        assert_eq!(whole.columns(), table.columns());
        cache.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_picked_or_made_up_comes_as_arrow() {
    let cache = start(Residency::Auto).await;
    cache.store.put("p/k=1/a.parquet", file(0, 1_000, 500, 2)).await;
    cache.store.put("p/k=2/a.parquet", file(1_000, 1_000, 500, 2)).await;
    let url = "s3://lake/p/";
    let (rows, stats) = read(&cache, url, None, Transfer::Parquet).await.unwrap();
    assert_eq!((rows.num_columns(), stats.row_groups_as_parquet), (3, 0), "the directory's column is no chunk");
    let (rows, stats) = read(&cache, url, Some(&["c1", "c0"]), Transfer::Parquet).await.unwrap();
    assert_eq!((rows.num_rows(), stats.row_groups_as_parquet), (2_000, 4));
    assert_eq!(rows.columns(), read(&cache, url, Some(&["c1", "c0"]), Transfer::Arrow).await.unwrap().0.columns());
    let scan = || cache.client.scan("s3://lake/p/k=1/a.parquet").columns(["c0"]).transfer(Transfer::Parquet);
    for (scan, expected) in
        [(scan().filter("c0 >= 998"), vec![998, 999]), (scan().limit(2), vec![0, 1]), (scan().rows([999, 3]), vec![999, 3])]
    {
        let mut stream = scan.send().await.unwrap();
        let batches: Vec<RecordBatch> = (&mut stream).try_collect().await.unwrap();
        assert_eq!((values(&batches), stream.stats().row_groups_as_parquet), (expected, 0));
    }
    // Loopback: nobody who is not told otherwise asks for Parquet.
    let (_, stats) = read(&cache, url, Some(&["c0"]), Transfer::Auto).await.unwrap();
    assert_eq!(stats.row_groups_as_parquet, 0);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_unfolds_into_nobody_knows_how_much_comes_as_arrow() {
    let cache = start(Residency::Parquet).await;
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parquet-testing/data/delta_encoding_required_column.parquet");
    cache.store.put("t.parquet", std::fs::read(sample).unwrap()).await;
    let (rows, stats) = read(&cache, URL, None, Transfer::Parquet).await.unwrap();
    assert_eq!((rows.num_rows(), stats.row_groups_as_parquet), (100, 0));
    let columns = rows.schema();
    let number = columns.fields().iter().position(|field| field.data_type().is_integer()).unwrap();
    let (_, stats) = read(&cache, URL, Some(&[columns.field(number).name()]), Transfer::Parquet).await.unwrap();
    assert_eq!(stats.row_groups_as_parquet, 1, "the others share nothing");
    // Of what states its size, it is known.
    let delta = WriterProperties::builder().set_dictionary_enabled(false).set_encoding(Encoding::DELTA_BYTE_ARRAY).build();
    let mut bytes = Vec::new();
    let text: ArrayRef = Arc::new(StringArray::from_iter_values((0..1_000).map(|row| format!("station-{row}"))));
    let table = RecordBatch::try_from_iter([("s", text)]).unwrap();
    let mut writer = ArrowWriter::try_new(&mut bytes, table.schema(), Some(delta)).unwrap();
    writer.write(&table).unwrap();
    writer.close().unwrap();
    cache.store.put("u.parquet", bytes).await;
    let (rows, stats) = read(&cache, "s3://lake/u.parquet", None, Transfer::Parquet).await.unwrap();
    assert_eq!((rows.columns(), stats.row_groups_as_parquet), (table.columns(), 1));
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_lack_a_column_are_answered_beside_those_that_have_it() {
    let cache = start(Residency::Parquet).await;
    cache.store.put("m/a.parquet", file(0, 1_000, 500, 2)).await;
    cache.store.put("m/b.parquet", file(1_000, 1_000, 500, 1)).await;
    cache.store.put("m/c.parquet", file(2_000, 1_000, 500, 2)).await;
    let (rows, stats) = read(&cache, "s3://lake/m/", None, Transfer::Parquet).await.unwrap();
    assert_eq!(stats.row_groups_as_parquet, 4);
    assert_eq!(rows.columns(), read(&cache, "s3://lake/m/", None, Transfer::Arrow).await.unwrap().0.columns());
    assert!(values(&[rows]).into_iter().eq(0..3_000), "in the order of the objects");
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_counted_kept_and_asked_for_once() {
    for residency in [Residency::Parquet, Residency::Auto] {
        let cache = start(residency).await;
        cache.store.put("t.parquet", file(0, 40_000, 10_000, 3)).await;
        let ask = || read(&cache, URL, Some(&["c0", "c2"]), Transfer::Parquet);
        let together = futures::future::try_join_all((0..8).map(|_| ask())).await.unwrap();
        assert!(together.iter().all(|(rows, _)| values(std::slice::from_ref(rows)).into_iter().eq(0..40_000)));
        // The footer, and each row group: the gap between its columns is less than another request.
        assert_eq!(cache.store.take_reads().len(), 5, "each chunk was read once");
        let (_, stats) = ask().await.unwrap();
        assert_eq!((stats.chunks_hit, stats.chunks_missed, stats.store_requests), (8, 0, 0));
        let resident = cache.settled().await;
        assert_eq!((resident.resident_chunks, resident.resident_arrow_bytes), (8, 0), "nothing was decoded here");
        // Nothing of this stays.
        cache.client.evict(URL).await.unwrap();
        let scan = cache.client.scan(URL).columns(["c1"]).populate(Populate::Never).transfer(Transfer::Parquet);
        assert_eq!(scan.send().await.unwrap().collect().await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 40_000);
        assert_eq!(cache.settled().await.resident_chunks, 0);
        cache.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_sent_though_arrays_are_resident() {
    let cache = start(Residency::Auto).await;
    cache.store.put("t.parquet", file(0, 40_000, 10_000, 1)).await;
    assert_eq!(read(&cache, URL, None, Transfer::Arrow).await.unwrap().0.num_rows(), 40_000);
    assert!(cache.settled().await.resident_arrow_bytes > 0);
    let (_, stats) = read(&cache, URL, None, Transfer::Parquet).await.unwrap();
    assert_eq!((stats.row_groups_as_parquet, stats.chunks_missed, stats.decode_us), (4, 0, 0));
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overwrite_during_the_scan_never_mixes_versions() {
    let (old, new) = (file(0, 60_000, 10_000, 2), file(1_000_000, 60_000, 10_000, 2));
    let mut restarted = 0;
    for nth in 0..4 {
        let cache = start(Residency::Parquet).await;
        cache.store.put("t.parquet", old.clone()).await;
        let (mut seen, replacement) = (0, new.clone());
        cache.store.script(move |options, _| match options.range {
            Some(GetRange::Bounded(_)) => {
                seen += 1;
                if seen == nth + 1 { Fate::Overwrite(replacement.clone()) } else { Fate::Serve }
            }
            _ => Fate::Serve,
        });
        match read(&cache, URL, Some(&["c0"]), Transfer::Parquet).await {
            Err(error) => assert_eq!(error.kind, ErrorKind::Changed, "{error}"),
            Ok((rows, stats)) => {
                restarted += 1;
                assert!(stats.row_groups_as_parquet >= 6, "{stats:?}");
                assert!(values(&[rows]).into_iter().eq(1_000_000..1_060_000), "one version, the new one");
            }
        }
        cache.stop().await;
    }
    assert!(restarted > 0, "before anything is sent, the server starts over");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_bounded_and_make_files_of_their_own() {
    let cache = start(Residency::Parquet).await;
    cache.store.put("t.parquet", file(0, 400_000, 400_000, 2)).await;
    let mut stream = raw(&cache, format!(r#"{{"url": "{URL}", "columns": ["c1", "c0"]}}"#)).await;
    let (mut bytes, mut pieces) = (Vec::new(), 0);
    while let Some(data) = stream.try_next().await.unwrap() {
        assert!(prost::Message::encoded_len(&data) <= MAX_FRAME_BYTES);
        let Some(piece) = ParquetPiece::parse(&data.data_header).unwrap() else { continue };
        assert_eq!((piece.offset, piece.rows, &*piece.url, piece.row_group), (bytes.len() as u64, 400_000, URL, 0));
        bytes.extend_from_slice(&data.data_body);
        pieces += 1;
        assert_eq!(piece.total_bytes == bytes.len() as u64, pieces == 7, "{} {}", piece.total_bytes, bytes.len());
    }
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).unwrap();
    assert_eq!(reader.schema().fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), ["c1", "c0"]);
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let (expected, _) = read(&cache, URL, Some(&["c1", "c0"]), Transfer::Arrow).await.unwrap();
    assert_eq!(concat_batches(&batches[0].schema(), &batches).unwrap().columns(), expected.columns());
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_slow_reader_holds_stays_accounted_until_it_leaves() {
    let cache = start(Residency::Parquet).await;
    // One row group of 16 MB: more than the connection takes unread.
    cache.store.put("t.parquet", file(0, 1_000_000, 1_000_000, 2)).await;
    let mut stream = raw(&cache, format!(r#"{{"url": "{URL}"}}"#)).await;
    let first = stream.try_next().await.unwrap().unwrap();
    assert!(ParquetPiece::parse(&first.data_header).unwrap().is_none(), "the schema comes first");
    assert!(ParquetPiece::parse(&stream.try_next().await.unwrap().unwrap().data_header).unwrap().is_some());
    let stats = || cache.server.engine().stats();
    assert_eq!((stats().streaming_bytes, stats().resident_chunks), (0, 2));
    cache.client.evict(URL).await.unwrap();
    assert!(stats().streaming_bytes > 16_000_000, "{:?}", stats());
    assert_eq!(stats().resident_bytes, 0);
    drop(stream);
    until("what was held is free", || stats().streaming_bytes == 0).await;

    // The same of the client's own stream, which reads ahead of its reader, but not far.
    let mut stream = cache.client.scan(URL).transfer(Transfer::Parquet).send().await.unwrap();
    assert!(stream.try_next().await.unwrap().is_some());
    drop(stream);
    cache.settled().await;
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_stops_the_loads() {
    let cache = start(Residency::Parquet).await;
    cache.store.put("t.parquet", file(0, 400_000, 10_000, 2)).await;
    cache.client.info(URL).await.unwrap();
    cache.store.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let mut stream = cache.client.scan(URL).transfer(Transfer::Parquet).send().await.unwrap();
    let first = tokio::spawn(async move { stream.try_next().await.map(|batch| batch.is_some()) });
    // Row groups are read ahead, side by side.
    until("several loads are under way", || cache.server.engine().stats().in_flight_bytes > 3 * 160_000).await;
    first.abort();
    until("the loads are gone", || cache.server.engine().stats().in_flight_bytes == 0).await;
    cache.store.gate.add_permits(1_000);
    assert_eq!(cache.values(URL, "c0").await.unwrap().len(), 400_000);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_memory_cannot_keep_comes_in_bands() {
    let small = Settings {
        residency: Residency::Parquet,
        capacity: ByteSize::mib(1),
        reserve: Some(ByteSize::mib(1)),
        memory_wait: Duration::from_millis(200),
        ..settings()
    };
    let cache = Cache::with(small, TestStore::new()).await;
    cache.store.put("t.parquet", file(0, 100_000, 100_000, 2)).await;
    let (rows, stats) = read(&cache, URL, Some(&["c0"]), Transfer::Parquet).await.unwrap();
    assert!(values(&[rows]).into_iter().eq(0..100_000));
    assert!(stats.row_groups_as_parquet <= 1);
    let (rows, _) = read(&cache, URL, Some(&["c0", "c1"]), Transfer::Parquet).await.unwrap();
    assert!(values(&[rows]).into_iter().eq(0..100_000));
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_without_a_version_and_corrupt_ones() {
    let cache = Cache::with(Settings { residency: Residency::Parquet, ..settings() }, TestStore::without_versions()).await;
    cache.store.put("t.parquet", file(0, 10_000, 5_000, 1)).await;
    let (rows, stats) = read(&cache, URL, None, Transfer::Parquet).await.unwrap();
    assert_eq!((rows.num_rows(), stats.row_groups_as_parquet), (10_000, 0));
    cache.stop().await;

    let always = Settings { residency: Residency::Parquet, freshness: Freshness::Always, ..settings() };
    let cache = Cache::with(always, TestStore::new()).await;
    // The first page's header is overwritten.
    let mut bytes = file(0, 10_000, 5_000, 1).to_vec();
    bytes[4..40].fill(0xff);
    cache.store.put("t.parquet", bytes).await;
    for transfer in [Transfer::Arrow, Transfer::Parquet] {
        let error = read(&cache, URL, None, transfer).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        assert!(error.message.contains(URL) && error.message.contains("row group 0"), "{error}");
    }
    cache.stop().await;
}
