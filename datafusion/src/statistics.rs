//! Statistics of a table's objects, as [`TableInfo`](flightcache_proto::action::TableInfo) carries them.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, NullArray, RecordBatch, RecordBatchOptions, UInt8Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, UInt8Type, UInt64Type};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DataFusionError, Result, ScalarValue, Statistics, internal_err};

/// Columns for each of the table's.
const FIGURES: usize = 5;
const MIN_IS_EXACT: u8 = 1;
const MAX_IS_EXACT: u8 = 2;

/// Writes the columns' statistics of objects, each of which has one for each column of the table.
pub fn write(table: &Schema, objects: &[Statistics]) -> Result<Vec<u8>> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (number, field) in table.fields().iter().enumerate() {
        let of_column = || objects.iter().map(|object| &object.column_statistics[number]);
        let flags = of_column().map(|column| {
            let flag = |precision: &Precision<ScalarValue>, flag| if precision.is_exact() == Some(true) { flag } else { 0 };
            flag(&column.min_value, MIN_IS_EXACT) | flag(&column.max_value, MAX_IS_EXACT)
        });
        let nulls = of_column().map(|column| match column.null_count {
            Precision::Exact(count) => Some(count as u64),
            _ => None,
        });
        let min = bounds(of_column().map(|column| &column.min_value), field.data_type())?;
        let max = bounds(of_column().map(|column| &column.max_value), field.data_type())?;
        let flags: ArrayRef = Arc::new(UInt8Array::from_iter_values(flags));
        let bytes = of_column().map(|column| column.byte_size.get_value().map(|&bytes| bytes as u64));
        let (nulls, bytes): (ArrayRef, ArrayRef) =
            (Arc::new(nulls.collect::<UInt64Array>()), Arc::new(bytes.collect::<UInt64Array>()));
        for (what, column) in [("min", min), ("max", max), ("nulls", nulls), ("exact", flags), ("bytes", bytes)] {
            fields.push(Field::new(format!("{number}.{what}"), column.data_type().clone(), true));
            columns.push(column);
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(objects.len()));
    let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?;
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

/// The values of bounds, of the column's type; all NULL where none is known.
fn bounds<'a>(values: impl Iterator<Item = &'a Precision<ScalarValue>> + Clone, data_type: &DataType) -> Result<ArrayRef> {
    let known = |value: &Precision<ScalarValue>| value.get_value().filter(|value| value.data_type() == *data_type).cloned();
    if data_type.is_nested() || values.clone().all(|value| known(value).is_none()) {
        return Ok(Arc::new(NullArray::new(values.count())));
    }
    let null = ScalarValue::try_from(data_type)?;
    ScalarValue::iter_to_array(values.map(|value| known(value).unwrap_or_else(|| null.clone())))
}

/// Writes the least and the greatest values of row groups.
pub fn write_bounds(least: ArrayRef, greatest: ArrayRef) -> Result<Vec<u8>> {
    let batch = RecordBatch::try_from_iter_with_nullable([("least", least, true), ("greatest", greatest, true)])?;
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

/// Reads what [`write_bounds`] wrote.
pub(crate) fn read_bounds(bytes: &[u8]) -> Result<[ArrayRef; 2]> {
    let mut reader = StreamReader::try_new(Cursor::new(bytes), None)?;
    let batch = reader.next().transpose()?;
    let Some([least, greatest]) = batch.as_ref().map(RecordBatch::columns) else {
        return internal_err!("bounds of other than two columns");
    };
    Ok([Arc::clone(least), Arc::clone(greatest)])
}

/// Reads what [`write()`] wrote, once or several times: for each object the statistics of all columns. Rows and bytes are left unknown.
pub fn read(table: &Schema, bytes: &[u8]) -> Result<Vec<Statistics>> {
    let mut streams = Cursor::new(bytes);
    let mut objects = Vec::new();
    while objects.is_empty() || streams.position() < bytes.len() as u64 {
        let mut reader = StreamReader::try_new(&mut streams, None)?;
        let Some(batch) = reader.next().transpose()? else { return internal_err!("statistics without a batch") };
        objects.extend(read_batch(table, &batch)?);
        if reader.next().is_some() {
            return internal_err!("statistics of several batches");
        }
        if objects.is_empty() {
            break;
        }
    }
    Ok(objects)
}

fn read_batch(table: &Schema, batch: &RecordBatch) -> Result<Vec<Statistics>> {
    // Older servers do not tell of bytes.
    let figures = if batch.num_columns() == (FIGURES - 1) * table.fields().len() { FIGURES - 1 } else { FIGURES };
    if batch.num_columns() != figures * table.fields().len() {
        return internal_err!("statistics of {} columns for a table of {}", batch.num_columns(), table.fields().len());
    }
    (0..batch.num_rows())
        .map(|row| {
            let columns = table.fields().iter().enumerate().map(|(number, field)| {
                let [min, max, nulls, exact, bytes @ ..] = &batch.columns()[figures * number..figures * (number + 1)] else {
                    return Ok(ColumnStatistics::new_unknown());
                };
                let exact =
                    exact.as_primitive_opt::<UInt8Type>().filter(|exact| exact.is_valid(row)).map_or(0, |exact| exact.value(row));
                let bound = |values: &ArrayRef, flag| {
                    if values.data_type() != field.data_type() || values.is_null(row) {
                        return Ok(Precision::Absent);
                    }
                    let value = ScalarValue::try_from_array(values, row)?;
                    Ok::<_, DataFusionError>(if exact & flag != 0 { Precision::Exact(value) } else { Precision::Inexact(value) })
                };
                let count = |counts: &ArrayRef, is_exact: bool| {
                    let count = counts.as_primitive_opt::<UInt64Type>().filter(|counts| counts.is_valid(row));
                    let count = count.map_or(Precision::Absent, |counts| Precision::Exact(counts.value(row) as usize));
                    if is_exact { count } else { count.to_inexact() }
                };
                let null_count = count(nulls, true);
                // Values of one width take what they take, of others it is estimated.
                let is_of_width = field.data_type().primitive_width().is_some();
                let byte_size = bytes.first().map_or(Precision::Absent, |bytes| count(bytes, is_of_width));
                let (min_value, max_value) = (bound(min, MIN_IS_EXACT)?, bound(max, MAX_IS_EXACT)?);
                Ok(ColumnStatistics { null_count, min_value, max_value, byte_size, ..ColumnStatistics::new_unknown() })
            });
            let column_statistics = columns.collect::<Result<_>>()?;
            Ok(Statistics { num_rows: Precision::Absent, total_byte_size: Precision::Absent, column_statistics })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_arrive_as_they_are() {
        let list = DataType::new_list(DataType::Int32, true);
        let fields =
            vec![Field::new("a", DataType::Int64, true), Field::new("s", DataType::Utf8, true), Field::new("l", list, true)];
        let table = Schema::new(fields);
        let object = |a: ColumnStatistics, s: ColumnStatistics| Statistics {
            num_rows: Precision::Absent,
            total_byte_size: Precision::Absent,
            column_statistics: vec![
                a,
                s,
                ColumnStatistics { null_count: Precision::Exact(1), ..ColumnStatistics::new_unknown() },
            ],
        };
        let known = ColumnStatistics {
            null_count: Precision::Exact(3),
            min_value: Precision::Exact(ScalarValue::Int64(Some(-5))),
            max_value: Precision::Inexact(ScalarValue::Int64(Some(7))),
            byte_size: Precision::Exact(80),
            ..ColumnStatistics::new_unknown()
        };
        let text = ColumnStatistics {
            min_value: Precision::Inexact(ScalarValue::from("a")),
            max_value: Precision::Exact(ScalarValue::from("zz")),
            byte_size: Precision::Inexact(77),
            ..ColumnStatistics::new_unknown()
        };
        let objects = vec![
            object(known.clone(), ColumnStatistics::new_unknown()),
            object(ColumnStatistics::new_unknown(), text),
            object(known, ColumnStatistics::new_unknown()),
        ];
        assert_eq!(read(&table, &write(&table, &objects).unwrap()).unwrap(), objects);
        assert_eq!(read(&table, &write(&table, &[]).unwrap()).unwrap(), []);
        let parts = [&objects[..1], &objects[1..]].map(|part| write(&table, part).unwrap()).concat();
        assert_eq!(read(&table, &parts).unwrap(), objects);
        assert!(read(&table, &parts[..parts.len() - 20]).is_err());
        let other = Schema::new(vec![Field::new("a", DataType::Int64, true)]);
        assert!(read(&other, &write(&table, &objects).unwrap()).is_err());
    }
}
