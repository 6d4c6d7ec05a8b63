//! Strings that rest as dictionaries reach our client as such, and its readers as what was announced.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray, StringViewArray};
use arrow::compute::concat_batches;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use crate::support::Cache;

const URL: &str = "s3://lake/t.parquet";
const GROUP_ROWS: usize = 40_000;

/// Each row group has other words; in the third there are too many for a dictionary.
fn word(row: usize) -> Option<String> {
    let group = row / GROUP_ROWS;
    let word = if group == 2 { format!("{row}") } else { format!("{group}{}", "-word".repeat(row % 7)) };
    (row % 13 != 5).then_some(word)
}

fn table() -> RecordBatch {
    let rows = || 0..4 * GROUP_ROWS + 100;
    let short = |row: usize| ["A", "N", "R"][row % 3];
    let columns: [(&str, ArrayRef); 5] = [
        ("id", Arc::new(rows().map(|row| row as i64).collect::<Int64Array>())),
        ("flag", Arc::new(rows().map(|row| Some(short(row))).collect::<StringViewArray>())),
        ("view", Arc::new(rows().map(word).collect::<StringViewArray>())),
        ("text", Arc::new(rows().map(word).collect::<StringArray>())),
        ("large", Arc::new(rows().map(word).collect::<LargeStringArray>())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

fn parquet(table: &RecordBatch) -> Bytes {
    // Small enough for the third row group to give its dictionary up.
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_dictionary_page_size_limit(64 << 10)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), table.schema(), Some(properties)).unwrap();
    writer.write(table).unwrap();
    writer.into_inner().unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_the_same_and_fewer_bytes_come() {
    let cache = Cache::start().await;
    let table = table();
    cache.store.put("t.parquet", parquet(&table)).await;
    for columns in [&["id", "flag", "view", "text", "large"][..], &["text"], &["large", "flag"], &["id"]] {
        let indices: Vec<_> = columns.iter().map(|name| table.schema().index_of(name).unwrap()).collect();
        let expected = table.project(&indices).unwrap();
        for in_one_request in [false, true] {
            let scan = cache.client.scan(URL).columns(columns.iter().copied());
            let scan = if in_one_request { scan.in_one_request() } else { scan };
            let mut batches = scan.send().await.unwrap();
            let (schema, mut read) = (batches.schema(), Vec::new());
            while let Some(batch) = futures::TryStreamExt::try_next(&mut batches).await.unwrap() {
                assert_eq!(batch.schema(), schema);
                read.push(batch);
            }
            assert_eq!(schema.fields(), expected.schema().fields());
            assert_eq!(concat_batches(&schema, &read).unwrap().columns(), expected.columns(), "{columns:?}");
            if columns.len() > 1 {
                // Others get what was announced.
                let json = format!(r#"{{"url": "{URL}", "columns": {columns:?}}}"#);
                let plain = cache.do_get(json).await.unwrap();
                assert_eq!(concat_batches(&schema, &plain).unwrap().columns(), expected.columns(), "{columns:?}");
                let announced: usize = plain.iter().map(RecordBatch::get_array_memory_size).sum();
                let sent = batches.stats().bytes as usize;
                assert!(sent < announced * 3 / 4, "{sent} bytes of {announced}: {columns:?}");
            }
        }
    }
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_long_value_among_short_ones_is_no_reason_to_refuse() {
    let cache = Cache::start().await;
    let long = "long ".repeat(20_000);
    let text: ArrayRef = Arc::new(
        (0..GROUP_ROWS).map(|row| Some(if row == 77 { long.as_str() } else { ["a", "b"][row % 2] })).collect::<StringArray>(),
    );
    cache.store.put("t.parquet", parquet(&RecordBatch::try_from_iter([("text", text.clone())]).unwrap())).await;
    let batches = cache.client.scan(URL).send().await.unwrap().collect().await.unwrap();
    assert_eq!(concat_batches(&batches[0].schema(), &batches).unwrap().column(0), &text);
    cache.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_rows_are_those_that_were_asked_for() {
    let cache = Cache::start().await;
    let table = table();
    cache.store.put("t.parquet", parquet(&table)).await;
    let text = |batches: &[RecordBatch]| -> Vec<Option<String>> {
        let column = |batch: &RecordBatch| {
            let column = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).unwrap();
            let column = column.as_any().downcast_ref::<StringArray>().unwrap().clone();
            (0..column.len()).map(move |row| column.is_valid(row).then(|| column.value(row).to_owned())).collect::<Vec<_>>()
        };
        batches.iter().flat_map(column).collect()
    };
    for name in ["view", "text", "large"] {
        let scan = || cache.client.scan(URL).columns([name]);
        let limited = scan().limit(50_001).send().await.unwrap().collect().await.unwrap();
        assert_eq!(text(&limited), (0..50_001).map(word).collect::<Vec<_>>());
        let filtered = scan().filter("id % 1000 = 7").send().await.unwrap().collect().await.unwrap();
        assert_eq!(text(&filtered), (0..table.num_rows()).filter(|row| row % 1_000 == 7).map(word).collect::<Vec<_>>());
        let picked = scan().rows([3, 90_000, 3, 159_999]).send().await.unwrap().collect().await.unwrap();
        assert_eq!(text(&picked), [3, 90_000, 3, 159_999].map(word));
    }
    cache.stop().await;
}
