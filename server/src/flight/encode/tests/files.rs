//! The sample files: random rows of random columns, as a scan cuts and filters them.

use std::path::Path;
use std::sync::LazyLock;

use arrow::array::{BooleanArray, UInt32Array};
use arrow::compute::{cast, filter_record_batch, take_record_batch};
use arrow::datatypes::{Field, FieldRef, Fields, Schema};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use proptest::prelude::*;

use super::*;
use crate::parquet::announced_schema;

const ROWS: usize = 1_500;

/// What the files hold, as it is announced, with the strings' declared types and as views.
static FILES: LazyLock<Vec<(String, RecordBatch)>> = LazyLock::new(|| {
    let mut batches = Vec::new();
    for folder in ["data", "bad_data"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parquet-testing").join(folder);
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            // The large map is one row of a gigabyte.
            if name.ends_with(".parquet") && !name.starts_with("large_string_map") {
                batches.extend(read(&path, false).map(|batch| (name.clone(), batch)));
                batches.extend(read(&path, true).map(|batch| (format!("{name}, views"), batch)));
            }
        }
    }
    assert!(batches.len() > 50, "{}", batches.len());
    batches
});

/// The first rows of a file; none if it is too broken to be read.
fn read(path: &Path, views: bool) -> Option<RecordBatch> {
    let file = std::fs::File::open(path).unwrap();
    let read = || -> Result<RecordBatch, Box<dyn std::error::Error>> {
        let options = ArrowReaderOptions::new();
        let mut metadata = ArrowReaderMetadata::load(&file, options.clone())?;
        if views {
            let fields: Fields = metadata.schema().fields().iter().map(with_views).collect();
            metadata = ArrowReaderMetadata::load(&file, options.with_schema(Arc::new(Schema::new(fields))))?;
        }
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file.try_clone()?, metadata);
        let batch = reader.with_batch_size(ROWS).build()?.next().ok_or("it is empty")??;
        let announced = Arc::new(announced_schema(&batch.schema()));
        let columns = batch.columns().iter().zip(announced.fields()).map(|(column, field)| cast(column, field.data_type()));
        Ok(RecordBatch::try_new(Arc::clone(&announced), columns.collect::<Result<_, _>>()?)?)
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).ok()?.ok()
}

fn with_views(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Utf8 => DataType::Utf8View,
        DataType::Binary => DataType::BinaryView,
        DataType::List(item) => DataType::List(with_views(item)),
        DataType::Map(entries, sorted) => DataType::Map(with_views(entries), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(with_views).collect()),
        other => other.clone(),
    };
    Arc::new(Field::clone(field).with_data_type(data_type))
}

#[derive(Clone, Debug)]
enum Rows {
    All,
    /// Those whose number, hashed, is below this share of 256.
    Some(u8),
    /// These, of as many as there are.
    Taken(Vec<prop::sample::Index>),
}

fn rows() -> impl Strategy<Value = Rows> {
    let index = any::<prop::sample::Index>();
    prop_oneof![
        2 => Just(Rows::All),
        2 => prop::sample::select(vec![0, 2, 30, 128, 250]).prop_map(Rows::Some),
        1 => prop::collection::vec(index, 0..40).prop_map(Rows::Taken),
    ]
}

fn pick(batch: &RecordBatch, rows: &Rows) -> RecordBatch {
    let count = batch.num_rows();
    match rows {
        Rows::All => batch.clone(),
        Rows::Some(share) => {
            let mask = (0..count).map(|row| Some((row as u32).wrapping_mul(0x9e37_79b1) >> 24 < u32::from(*share)));
            filter_record_batch(batch, &mask.collect::<BooleanArray>()).unwrap()
        }
        Rows::Taken(_) if count == 0 || batch.num_columns() == 0 => batch.clone(),
        Rows::Taken(taken) => {
            let taken: UInt32Array = taken.iter().map(|index| index.index(count) as u32).collect();
            take_record_batch(batch, &taken).unwrap()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn samples_come_as_they_are(
        file in any::<prop::sample::Index>(),
        columns in any::<u64>(),
        ends in any::<(prop::sample::Index, prop::sample::Index)>(),
        rows in rows(),
        compression in prop_oneof![6 => Just(None), 1 => Just(Some(Compression::Lz4)), 1 => Just(Some(Compression::Zstd))],
    ) {
        let (name, whole) = file.get(&FILES);
        let columns: Vec<_> = (0..whole.num_columns()).filter(|at| columns >> (at % 64) & 1 == 1).collect();
        let (a, b) = (ends.0.index(whole.num_rows() + 1), ends.1.index(whole.num_rows() + 1));
        let cut = whole.project(&columns).unwrap().slice(a.min(b), a.abs_diff(b));
        println!("{name}: columns {columns:?}, rows {a} and {b}");
        same(&[pick(&cut, &rows), cut], compression);
    }
}

#[test]
fn every_sample_comes_whole() {
    for (name, batch) in FILES.iter() {
        println!("{name}");
        same(std::slice::from_ref(batch), None);
    }
}
