//! What is served: Parquet files for our server, and the same rows as Arrow IPC for the others.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::BatchCoalescer;
use arrow::ipc::writer::FileWriter;
use bytesize::ByteSize;
use flightcache::Client;
use flightcache_server::settings::{Residency, SourceSettings};
use flightcache_server::{Server, Settings};
use futures::TryStreamExt as _;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use url::Url;

use super::Options;

/// Rows of a row group, made at a time.
const GROUP_ROWS: usize = 131_072;
/// What a generated table takes as Arrow.
const BYTES: usize = 256 << 20;
/// Room for every table.
const CAPACITY: ByteSize = ByteSize::gib(8);

/// A table that is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// 16 columns, every other one of integers, every other one of floats.
    Numeric,
    /// 4 columns of strings.
    String,
    /// Numbers, strings, times and truth values, some of them null.
    Mixed,
}

/// A Parquet file in a directory of its own.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) directory: PathBuf,
}

/// A table as our server serves it, for others to serve. Its files go with it.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) rows: u64,
    /// Of the last of the files.
    pub(super) bytes: u64,
    /// By rows of a batch.
    pub(super) files: Vec<(usize, PathBuf)>,
    directory: tempfile::TempDir,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Numeric => "numeric",
            Self::String => "string",
            Self::Mixed => "mixed",
        }
    }

    /// About.
    fn row_bytes(self) -> usize {
        match self {
            Self::Numeric => 128,
            Self::String => 144,
            Self::Mixed => 104,
        }
    }
}

/// As a setting has it.
pub(super) fn name_of(residency: Residency) -> &'static str {
    match residency {
        Residency::Arrow => "arrow",
        Residency::Parquet => "parquet",
        Residency::Auto => "auto",
    }
}

/// Settings of a server over these directories, on ports that are free.
pub(super) fn settings(directories: &[PathBuf], residency: Residency) -> Result<Settings, String> {
    let source = |directory: &PathBuf| {
        let url = Url::from_directory_path(directory).map_err(|()| format!("{}: not a directory", directory.display()))?;
        Ok(SourceSettings { url: url.into(), ..SourceSettings::default() })
    };
    let any = ([127, 0, 0, 1], 0).into();
    let sources = directories.iter().map(source).collect::<Result<_, String>>()?;
    Ok(Settings { listen: any, admin: any, capacity: CAPACITY, residency, sources, ..Settings::default() })
}

/// Writes the tables that are asked for.
pub(super) fn make(options: &Options, place: &Path) -> Result<Vec<Table>, Box<dyn std::error::Error>> {
    let mut tables = Vec::new();
    for kind in &options.data {
        let table = Table::at(place, kind.name())?;
        let rows = options.rows.unwrap_or(BYTES / kind.row_bytes()).max(1);
        write(&table.file(), rows, |random, start, rows| columns(*kind, random, start, rows))?;
        tables.push(table);
    }
    if let Some(file) = &options.lineitem {
        let table = Table::at(place, "lineitem")?;
        std::fs::copy(file, table.file()).map_err(|e| format!("{}: {e}", file.display()))?;
        tables.push(table);
    }
    Ok(tables)
}

impl Table {
    fn at(place: &Path, name: &'static str) -> std::io::Result<Self> {
        let directory = place.join(name);
        std::fs::create_dir(&directory)?;
        Ok(Self { name, directory })
    }

    /// 1 KiB: 16 rows of 8 integers.
    pub(super) fn small(place: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let table = Self::at(place, "small")?;
        write(&table.file(), 16, |random, _, rows| (0..8).map(|at| (format!("c{at}"), integers(random, rows))).collect())?;
        Ok(table)
    }

    fn file(&self) -> PathBuf {
        self.directory.join("table.parquet")
    }

    /// As our server knows it.
    pub(super) fn url(&self) -> Result<String, String> {
        let file = self.file();
        Url::from_file_path(&file).map(String::from).map_err(|()| format!("{}: not a file", file.display()))
    }

    /// Reads the table through our server and writes it as Arrow IPC, in batches of so many rows, so that every server sends the
    /// same types.
    pub(super) async fn as_served(&self, batch_rows: &[usize]) -> Result<Served, Box<dyn std::error::Error>> {
        let server = Server::start(&settings(std::slice::from_ref(&self.directory), Residency::Arrow)?).await?;
        let client = Client::connect(&format!("grpc://{}", server.flight_addr())).await?;
        let directory = tempfile::tempdir_in(&self.directory)?;
        let mut served = Served { rows: 0, bytes: 0, files: Vec::new(), directory };
        for &batch_rows in batch_rows {
            let path = served.directory.path().join(format!("{batch_rows}.arrow"));
            let mut batches = client.scan(self.url()?).in_one_request().send().await?;
            let mut writer = FileWriter::try_new_buffered(File::create(&path)?, &batches.schema())?;
            let mut coalescer = BatchCoalescer::new(batches.schema(), batch_rows.max(1));
            served.rows = 0;
            while let Some(batch) = batches.try_next().await? {
                served.rows += batch.num_rows() as u64;
                coalescer.push_batch(batch)?;
                while let Some(batch) = coalescer.next_completed_batch() {
                    writer.write(&batch)?;
                }
            }
            coalescer.finish_buffered_batch()?;
            while let Some(batch) = coalescer.next_completed_batch() {
                writer.write(&batch)?;
            }
            writer.finish()?;
            served.bytes = std::fs::metadata(&path)?.len();
            served.files.push((batch_rows, path));
        }
        drop(client);
        server.shutdown().await;
        Ok(served)
    }
}

type Columns = Vec<(String, ArrayRef)>;

/// A Parquet file of so many rows; the same for the same arguments.
fn write(
    path: &Path,
    rows: usize,
    columns: impl Fn(&mut StdRng, usize, usize) -> Columns,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut random = StdRng::seed_from_u64(7);
    let properties =
        WriterProperties::builder().set_compression(Compression::SNAPPY).set_max_row_group_row_count(Some(GROUP_ROWS)).build();
    let mut writer = None;
    for start in (0..rows).step_by(GROUP_ROWS) {
        let batch = RecordBatch::try_from_iter(columns(&mut random, start, GROUP_ROWS.min(rows - start)))?;
        if writer.is_none() {
            writer = Some(ArrowWriter::try_new(File::create(path)?, batch.schema(), Some(properties.clone()))?);
        }
        if let Some(writer) = &mut writer {
            writer.write(&batch)?;
        }
    }
    writer.ok_or("a table of no rows")?.close()?;
    Ok(())
}

/// The first column is one that can be summed up as integers.
fn columns(kind: Kind, random: &mut StdRng, start: usize, rows: usize) -> Columns {
    match kind {
        Kind::Numeric => {
            let column =
                |at: usize| (format!("c{at}"), if at.is_multiple_of(2) { integers(random, rows) } else { floats(random, rows) });
            (0..16).map(column).collect()
        }
        Kind::String => {
            let digits: StringArray = (0..rows).map(|_| Some(format!("{:012}", random.random_range(0..1_u64 << 32)))).collect();
            vec![
                ("digits".into(), Arc::new(digits)),
                ("name".into(), strings(random, rows, 8..=24)),
                ("text".into(), strings(random, rows, 16..=64)),
                ("note".into(), strings(random, rows, 0..=120)),
            ]
        }
        Kind::Mixed => {
            let ids: Int64Array = (start as i64..(start + rows) as i64).collect();
            let counts: Int64Array =
                (0..rows).map(|_| random.random_bool(0.9).then(|| random.random_range(0..1_000_000))).collect();
            let codes: StringArray = (0..rows).map(|_| Some(format!("code-{:03}", random.random_range(0..100)))).collect();
            vec![
                ("id".into(), Arc::new(ids)),
                ("price".into(), floats(random, rows)),
                ("share".into(), floats(random, rows)),
                ("count".into(), Arc::new(counts)),
                ("size".into(), Arc::new((0..rows).map(|_| Some(random.random_range(0..1_000))).collect::<Int32Array>())),
                ("is_open".into(), Arc::new((0..rows).map(|_| Some(random.random_bool(0.5))).collect::<BooleanArray>())),
                ("day".into(), Arc::new((0..rows).map(|_| Some(random.random_range(0..20_000))).collect::<Date32Array>())),
                (
                    "at".into(),
                    Arc::new((0..rows).map(|row| Some(((start + row) * 1_000) as i64)).collect::<TimestampMicrosecondArray>()),
                ),
                ("code".into(), Arc::new(codes)),
                ("text".into(), strings(random, rows, 16..=64)),
            ]
        }
    }
}

/// Small enough that their sum is exact.
fn integers(random: &mut StdRng, rows: usize) -> ArrayRef {
    Arc::new((0..rows).map(|_| random.random_range(0..1_i64 << 32)).collect::<Int64Array>())
}

fn floats(random: &mut StdRng, rows: usize) -> ArrayRef {
    Arc::new((0..rows).map(|_| Some(random.random::<f64>())).collect::<Float64Array>())
}

fn strings(random: &mut StdRng, rows: usize, lengths: std::ops::RangeInclusive<usize>) -> ArrayRef {
    let letters: String = (0..1 << 16).map(|_| char::from(random.random_range(b' '..=b'~'))).collect();
    let string = |_| {
        let length = random.random_range(lengths.clone());
        let at = random.random_range(0..letters.len() - length);
        Some(&letters[at..at + length])
    };
    Arc::new((0..rows).map(string).collect::<StringArray>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_tables_are_as_large_as_they_say() {
        for kind in [Kind::Numeric, Kind::String, Kind::Mixed] {
            let rows = 10_000;
            let batch = RecordBatch::try_from_iter(columns(kind, &mut StdRng::seed_from_u64(7), 0, rows)).unwrap();
            let again = RecordBatch::try_from_iter(columns(kind, &mut StdRng::seed_from_u64(7), 0, rows)).unwrap();
            assert_eq!(batch, again);
            let bytes: usize = batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap()).sum();
            let expected = kind.row_bytes() * rows;
            assert!(bytes.abs_diff(expected) < expected / 20, "{kind:?}: {bytes}, not {expected}");
        }
    }

    #[tokio::test]
    async fn a_table_is_written_as_it_is_served() {
        let directory = tempfile::tempdir().unwrap();
        let served = Table::small(directory.path()).unwrap().as_served(&[5, 16]).await.unwrap();
        assert_eq!(served.rows, 16);
        let batches = |path: &Path| -> Vec<RecordBatch> {
            arrow::ipc::reader::FileReader::try_new(File::open(path).unwrap(), None).unwrap().map(Result::unwrap).collect()
        };
        let (small, whole) = (batches(&served.files[0].1), batches(&served.files[1].1));
        assert_eq!(small.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [5, 5, 5, 1]);
        assert_eq!(arrow::compute::concat_batches(&small[0].schema(), &small).unwrap(), whole[0]);
    }
}
