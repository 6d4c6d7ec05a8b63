//! The files of the original traces, made anew: random numbers of the same shape.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch};
use bytesize::ByteSize;
use clap::Args;
use flightcache_traces::original;
use indicatif::{ProgressBar, ProgressStyle};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::place;

/// Indexes of the small files, and of the large ones.
const SMALL: std::ops::RangeInclusive<u64> = 1..=9;
const LARGE: std::ops::RangeInclusive<u64> = 10..=19;

/// Rows that are made at a time.
const BATCH_ROWS: u64 = 50_000;

/// Arguments of `generate`.
#[derive(Args, Debug)]
pub struct Options {
    /// A directory, or a file:// or `s3://bucket/prefix/` URL (settings from AWS_* variables).
    target: String,
    #[command(flatten)]
    files: Files,
}

/// What the files hold.
#[derive(Args, Clone, Copy, Debug)]
pub struct Files {
    /// Rows of each of the files 10 to 19 (about 168 bytes a row).
    #[arg(long, default_value_t = 600_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub large_rows: u64,
    /// Rows of each of the files 1 to 9.
    #[arg(long, default_value_t = 5_500, value_parser = clap::value_parser!(u64).range(1..))]
    pub small_rows: u64,
    /// The same seed makes the same files.
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its name, below the target.
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// Its bytes.
    pub size: u64,
}

/// Writes the files, and says what was written.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let store = place::open(&options.target)?;
    let mut total = 0;
    write(&store, options.files, |file| {
        total += file.size;
        println!("{:>10}  {:>7} rows  {:>11} bytes", file.name, file.rows, file.size);
    })
    .await?;
    println!("{} in {}", ByteSize(total).display().si(), options.target);
    Ok(())
}

/// Writes the files to `store` one after another, with progress on standard error, and tells of each when it is there.
pub async fn write(
    store: &Arc<dyn ObjectStore>,
    files: Files,
    mut written: impl FnMut(&Written),
) -> Result<(), Box<dyn std::error::Error>> {
    let sizes = SMALL.map(|index| (index, files.small_rows)).chain(LARGE.map(|index| (index, files.large_rows)));
    let sizes: Vec<(u64, u64)> = sizes.collect();
    let style = ProgressStyle::with_template("{msg:>10} {bar:40} {percent}% of all rows, {eta} left")?;
    let progress = ProgressBar::new(sizes.iter().map(|(_, rows)| rows).sum()).with_style(style);
    for (index, rows) in sizes {
        let name = format!("{index}.parquet");
        progress.set_message(name.clone());
        let (seed, of_file) = (files.seed.wrapping_mul(1_000).wrapping_add(index), progress.clone());
        let file = tokio::task::spawn_blocking(move || parquet(rows, seed, |rows| of_file.inc(rows))).await??;
        let size = file.len() as u64;
        store.put(&Path::from(name.as_str()), file.into()).await?;
        progress.suspend(|| written(&Written { name, rows, size }));
    }
    progress.finish_and_clear();
    Ok(())
}

/// A file of `rows` rows as pyarrow writes one by default: Snappy, dictionaries while they stay small, here in one row group.
fn parquet(rows: u64, seed: u64, made: impl Fn(u64)) -> Result<Vec<u8>, ParquetError> {
    let mut random = StdRng::seed_from_u64(seed);
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(usize::try_from(rows).unwrap_or(usize::MAX)))
        .build();
    let mut batch = |rows: u64| {
        let columns = (0..original::COLUMNS).map(|column| {
            let values: Float64Array = (0..rows).map(|_| Some(random.random::<f64>())).collect();
            (column.to_string(), Arc::new(values) as ArrayRef, true)
        });
        RecordBatch::try_from_iter_with_nullable(columns)
    };
    let mut left = rows;
    let first = batch(left.min(BATCH_ROWS))?;
    let mut writer = ArrowWriter::try_new(Vec::new(), first.schema(), Some(properties))?;
    let mut next = Some(first);
    while let Some(batch_now) = next {
        writer.write(&batch_now)?;
        let written = batch_now.num_rows() as u64;
        made(written);
        left -= written;
        next = (left > 0).then(|| batch(left.min(BATCH_ROWS))).transpose()?;
    }
    writer.into_inner()
}

#[cfg(test)]
mod tests {
    use flightcache_traces::original::object_size;
    use object_store::memory::InMemory;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    #[tokio::test]
    async fn the_files_are_those_of_the_traces() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut names = Vec::new();
        let files = Files { large_rows: 6_000, small_rows: 5_500, seed: 7 };
        write(&store, files, |file| names.push((file.name.clone(), file.size))).await.unwrap();
        assert_eq!(names.len(), 19);
        assert!(
            (1..=20)
                .all(|index| object_size(index).is_some() == names.iter().any(|(name, _)| *name == format!("{index}.parquet")))
        );
        // What pyarrow makes of 5,500 rows.
        let (small, pyarrow) = (names[0].1 as f64, 1_065_281.0);
        assert!((small / pyarrow - 1.0).abs() < 0.03, "{small}");
        let file = store.get(&Path::from("10.parquet")).await.unwrap().bytes().await.unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 1);
        let fields: Vec<_> = reader.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(fields, (0..20).map(|column| column.to_string()).collect::<Vec<_>>());
        assert_eq!(reader.build().unwrap().map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 6_000);
    }

    #[test]
    fn a_seed_makes_the_same_file() {
        let file = |seed| parquet(100, seed, |_| ()).unwrap();
        assert_eq!(file(1), file(1));
        assert_ne!(file(1), file(2));
    }
}
