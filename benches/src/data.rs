//! The data set: measurements with a sorted key, numbers that do not compress well, and strings that repeat.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Rows of a row group.
const GROUP_ROWS: usize = 100_000;

/// A Parquet file of `rows` rows: `id` (sorted), `station` (500 names), `m0`…`m17` (floats). The same for the same arguments.
pub fn parquet(rows: usize) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut random = StdRng::seed_from_u64(7);
    let properties =
        WriterProperties::builder().set_compression(Compression::SNAPPY).set_max_row_group_row_count(Some(GROUP_ROWS)).build();
    let mut writer = None;
    for start in (0..rows).step_by(GROUP_ROWS) {
        let here = GROUP_ROWS.min(rows - start);
        let ids: Int64Array = (start as i64..(start + here) as i64).collect();
        let stations: StringArray = (0..here).map(|_| Some(format!("station-{:03}", random.random_range(0..500)))).collect();
        let mut columns: Vec<(String, ArrayRef)> = vec![("id".into(), Arc::new(ids)), ("station".into(), Arc::new(stations))];
        for m in 0..18 {
            let values: Float64Array = (0..here).map(|_| Some(random.random::<f64>())).collect();
            columns.push((format!("m{m}"), Arc::new(values)));
        }
        let batch = RecordBatch::try_from_iter(columns)?;
        if writer.is_none() {
            writer = Some(ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties.clone()))?);
        }
        if let Some(writer) = &mut writer {
            writer.write(&batch)?;
        }
    }
    let writer = writer.ok_or("a file of no rows")?;
    Ok(writer.into_inner()?)
}
