//! Input made to harm: files, filters, tickets. A typed error, and the server goes on.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use bytes::Bytes;
use flightcache::ErrorKind;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, ParquetMetaDataWriter};

use crate::support::{Cache, file};

const URL: &str = "s3://lake/t.parquet";

/// The file with its footer changed.
fn forged(bytes: &Bytes, forge: impl FnOnce(ParquetMetaData) -> ParquetMetaData) -> Bytes {
    let metadata = forge(ParquetMetaDataReader::new().parse_and_finish(bytes).unwrap());
    let footer_bytes = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
    let mut forged = bytes[..bytes.len() - 8 - footer_bytes].to_vec();
    ParquetMetaDataWriter::new(&mut forged, &metadata).finish().unwrap();
    forged.into()
}

async fn is_refused(bytes: Bytes) {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", bytes).await;
    for columns in [vec![], vec!["c0"]] {
        let error = async { cache.client.scan(URL).columns(columns).send().await?.collect().await }.await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        assert!(error.message.contains(URL), "{error}");
    }
    cache.store.put("u.parquet", file(0, 100, 100, 1)).await;
    assert_eq!(cache.values("s3://lake/u.parquet", "c0").await.unwrap().len(), 100);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_footer_of_two_thousand_million_row_groups() {
    // Field 4, the row groups: a list of structures that states 2^31 - 1 of them.
    let footer =
        [0x15, 0x02, 0x19, 0x1c, 0x48, 0x01, b'r', 0x15, 0x00, 0x00, 0x16, 0x00, 0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0x00];
    let len = u32::try_from(footer.len()).unwrap().to_le_bytes();
    is_refused([b"PAR1".as_slice(), &footer, &len, b"PAR1"].concat().into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_rows_than_values() {
    let bytes = forged(&file(0, 100, 100, 1), |metadata| {
        let mut builder = metadata.into_builder();
        let groups = builder
            .take_row_groups()
            .into_iter()
            .map(|group| group.into_builder().set_num_rows(i64::from(u32::MAX)).build().unwrap());
        let groups = groups.collect();
        builder.set_row_groups(groups).build()
    });
    is_refused(bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dictionary_before_the_file() {
    let bytes = forged(&file(0, 100, 100, 1), |metadata| {
        let mut builder = metadata.into_builder();
        let groups = builder.take_row_groups().into_iter().map(|group| {
            let mut group = group.into_builder();
            let columns = group
                .take_columns()
                .into_iter()
                .map(|column| column.into_builder().set_dictionary_page_offset(Some(-5)).build().unwrap());
            let columns = columns.collect();
            group.set_column_metadata(columns).build().unwrap()
        });
        let groups = groups.collect();
        builder.set_row_groups(groups).build()
    });
    is_refused(bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_object() {
    is_refused(Bytes::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_messages_still_arrive_with_their_kind() {
    let cache = Cache::start().await;
    cache.store.put("t.parquet", file(0, 10, 10, 2_000)).await;
    let refused = |filter: String| {
        let scan = cache.client.scan(URL).filter(filter);
        async move { scan.send().await.map(|_| ()).unwrap_err().kind }
    };
    assert_eq!(refused("nosuch = 1".into()).await, ErrorKind::NotFound);
    assert_eq!(refused(format!("c0 = '{}' AND", "é".repeat(100_000))).await, ErrorKind::InvalidRequest);
    assert_eq!(refused(vec!["c0 = 1"; 20_000].join(" OR ")).await, ErrorKind::InvalidRequest);
    let glob = format!("s3://lake/{}", "?".repeat(500_000));
    assert_eq!(cache.client.info(&glob).await.unwrap_err().kind, ErrorKind::InvalidRequest);
    let glob = format!("s3://lake/{}", "{a,b}".repeat(700));
    assert!(matches!(cache.client.info(&glob).await.unwrap_err().kind, ErrorKind::InvalidRequest | ErrorKind::NotFound));
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_a_hundred_thousand_times() {
    use arrow::array::{RecordBatch, StringArray};
    let cache = Cache::start().await;
    let text: StringArray = (0..100).map(|i| Some(format!("{i:03000}"))).collect();
    let batch = RecordBatch::try_from_iter([("s", Arc::new(text) as _)]).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    cache.store.put("t.parquet", writer.into_inner().unwrap()).await;
    let mut stream = cache.client.scan(URL).rows(std::iter::repeat_n(5, 100_000)).send().await.unwrap();
    let (mut rows, mut largest) = (0, 0);
    while let Some(batch) = futures::TryStreamExt::try_next(&mut stream).await.unwrap() {
        rows += batch.num_rows();
        largest = largest.max(batch.num_rows());
    }
    assert_eq!(rows, 100_000);
    assert!(largest <= (8 << 20) / 3_000, "300 MB in one batch of {largest} rows");
    let few = cache.client.scan(URL).rows([7, 7, 3]).limit(2).filter("s LIKE '%7'").send().await.unwrap();
    assert_eq!(few.collect().await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_no_message_holds_is_one_failure() {
    let cache = Cache::start().await;
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10));
    let batch = RecordBatch::try_from_iter([("c".repeat(3 << 20), values)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    cache.store.put("t.parquet", writer.into_inner().unwrap()).await;
    let error = cache.do_get(format!(r#"{{"url": "{URL}"}}"#)).await.unwrap_err().to_string();
    assert!(error.contains("does not fit a message"), "{error}");
    let metrics = cache.server.engine().metrics();
    let count = |status: &str| metrics.requests.with_label_values(&["do_get", status]).get();
    assert_eq!((count("resource_exhausted"), count("cancelled"), metrics.active_scans.get()), (1, 0, 0));
    cache.stop().await;
}
