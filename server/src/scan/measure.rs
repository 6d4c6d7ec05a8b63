//! What rows of an array take, before they are picked from it.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, OffsetSizeTrait};
use arrow::datatypes::{DataType, Int32Type};

use crate::parquet::fixed_bytes;

/// Bytes that ranges of an array's rows take as rows of their own, a dictionary's unfolded.
pub(super) fn ranges_bytes(array: &ArrayRef, ranges: &mut dyn Iterator<Item = Range<usize>>) -> u64 {
    match array.data_type() {
        DataType::Utf8 => of_values(array.as_string::<i32>().value_offsets(), ranges),
        DataType::LargeUtf8 => of_values(array.as_string::<i64>().value_offsets(), ranges),
        DataType::Binary => of_values(array.as_binary::<i32>().value_offsets(), ranges),
        DataType::LargeBinary => of_values(array.as_binary::<i64>().value_offsets(), ranges),
        DataType::Utf8View => of_views(array.as_string_view().views(), ranges),
        DataType::BinaryView => of_views(array.as_binary_view().views(), ranges),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            of_lists(list.value_offsets(), list.values(), ranges)
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            of_lists(list.value_offsets(), list.values(), ranges)
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let entries: ArrayRef = Arc::new(map.entries().clone());
            of_lists(map.value_offsets(), &entries, ranges)
        }
        DataType::ListView(_) => {
            let list = array.as_list_view::<i32>();
            of_list_views(list.value_offsets(), list.value_sizes(), list.values(), ranges)
        }
        DataType::LargeListView(_) => {
            let list = array.as_list_view::<i64>();
            of_list_views(list.value_offsets(), list.value_sizes(), list.values(), ranges)
        }
        DataType::FixedSizeList(_, len) => {
            let len = len.unsigned_abs() as usize;
            let values = array.as_fixed_size_list().values();
            ranges_bytes(values, &mut ranges.map(|rows| rows.start * len..rows.end * len))
        }
        DataType::Struct(_) => {
            let ranges: Vec<_> = ranges.collect();
            array.as_struct().columns().iter().map(|column| ranges_bytes(column, &mut ranges.iter().cloned())).sum()
        }
        // Strings rest as such, with keys of this type; nothing else does.
        DataType::Dictionary(key, _) if **key == DataType::Int32 => {
            let dictionary = array.as_dictionary::<Int32Type>();
            let keys = dictionary.keys();
            let of_key = |row: usize| keys.is_valid(row).then(|| keys.value(row) as usize..keys.value(row) as usize + 1);
            let mut rows = 0;
            let valid = ranges.flatten().inspect(|_| rows += 1).filter_map(of_key);
            let values = ranges_bytes(dictionary.values(), &mut { valid });
            values + rows * size_of::<u128>() as u64
        }
        flat if !flat.is_nested() && !matches!(flat, DataType::Dictionary(..)) => {
            let width = if matches!(flat, DataType::Boolean | DataType::Null) { 1 } else { fixed_bytes(flat) };
            ranges.map(|rows| rows.len() as u64 * width).sum()
        }
        // What Parquet does not decode to.
        _ => ranges.map(|rows| rows.len() as u64).sum::<u64>().saturating_mul(array.get_array_memory_size() as u64),
    }
}

fn of_values<O: OffsetSizeTrait>(offsets: &[O], ranges: &mut dyn Iterator<Item = Range<usize>>) -> u64 {
    let bytes = |rows: Range<usize>| {
        let values = offsets[rows.end].as_usize() - offsets[rows.start].as_usize();
        (values + rows.len() * size_of::<O>()) as u64
    };
    ranges.map(bytes).sum()
}

fn of_views(views: &[u128], ranges: &mut dyn Iterator<Item = Range<usize>>) -> u64 {
    // A view begins with its value's length.
    let bytes = |&view: &u128| size_of::<u128>() as u64 + u64::from(view as u32);
    ranges.map(|rows| views[rows].iter().map(bytes).sum::<u64>()).sum()
}

fn of_lists<O: OffsetSizeTrait>(offsets: &[O], values: &ArrayRef, ranges: &mut dyn Iterator<Item = Range<usize>>) -> u64 {
    let mut rows = 0;
    let mut within =
        ranges.inspect(|range| rows += range.len()).map(|rows| offsets[rows.start].as_usize()..offsets[rows.end].as_usize());
    let bytes = ranges_bytes(values, &mut within);
    bytes + (rows * size_of::<O>()) as u64
}

fn of_list_views<O: OffsetSizeTrait>(
    offsets: &[O],
    sizes: &[O],
    values: &ArrayRef,
    ranges: &mut dyn Iterator<Item = Range<usize>>,
) -> u64 {
    let mut rows = 0;
    let within = |row: usize| offsets[row].as_usize()..offsets[row].as_usize() + sizes[row].as_usize();
    let bytes = ranges_bytes(values, &mut ranges.flatten().inspect(|_| rows += 1).map(within));
    bytes + (rows * 2 * size_of::<O>()) as u64
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BooleanArray, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, FixedSizeListArray, Int32Array, LargeBinaryArray,
        LargeListArray, ListArray, StringArray, StringViewArray, StructArray, UInt32Array,
    };
    use arrow::buffer::{NullBuffer, OffsetBuffer};
    use arrow::compute::{cast, take};
    use arrow::datatypes::Field;

    use super::*;
    use crate::cache::{buffers_weight, compact};

    fn texts() -> impl Iterator<Item = Option<String>> {
        (0..100_usize).map(|row| (row % 7 != 3).then(|| "x".repeat(row * row)))
    }

    fn field(values: &ArrayRef) -> Arc<Field> {
        Arc::new(Field::new("item", values.data_type().clone(), true))
    }

    #[test]
    fn rows_are_measured_as_what_they_take() {
        let text: ArrayRef = Arc::new(texts().collect::<StringArray>());
        let view: ArrayRef = Arc::new(texts().collect::<StringViewArray>());
        let bytes = texts().map(|text| text.map(String::into_bytes));
        let lengths = || OffsetBuffer::from_lengths((0..25).map(|row| row % 9));
        let nulls = NullBuffer::from((0..100).map(|row| row % 3 != 0).collect::<Vec<_>>());
        let fields = vec![Field::new("a", DataType::Utf8, true), Field::new("b", DataType::Utf8View, true)];
        let pair: ArrayRef = Arc::new(StructArray::new(fields.into(), vec![Arc::clone(&text), Arc::clone(&view)], Some(nulls)));
        let large: ArrayRef = {
            let lengths = OffsetBuffer::from_lengths((0..25).map(|row| row % 9));
            Arc::new(LargeListArray::new(field(&view), lengths, Arc::clone(&view), None))
        };
        let keys = (0..100).map(|row| (row % 5 != 2).then_some(row / 3)).collect::<Int32Array>();
        let folded: ArrayRef = Arc::new(DictionaryArray::new(keys, Arc::clone(&text)));
        let arrays: Vec<ArrayRef> = vec![
            Arc::clone(&text),
            view,
            Arc::new(bytes.collect::<LargeBinaryArray>()),
            Arc::new(Int32Array::from_iter_values(0..100)),
            Arc::new((0..100).map(|row| Some(row % 2 == 0)).collect::<BooleanArray>()),
            Arc::new((0..100).map(i128::from).collect::<Decimal128Array>()),
            Arc::new(FixedSizeBinaryArray::try_from_iter((0..100).map(|row| [row; 16])).unwrap()),
            Arc::new(ListArray::new(field(&pair), lengths(), Arc::clone(&pair), None)),
            large,
            Arc::new(FixedSizeListArray::new(field(&text), 4, Arc::clone(&text), None)),
            pair,
            folded,
        ];
        for array in arrays {
            let data_type = array.data_type();
            let last = array.len() as u32 - 1;
            // The last ones are the longest; one is asked for often.
            for often in [0, 50] {
                let rows: Vec<u32> = (0..=last).rev().chain(std::iter::repeat_n(last, often)).collect();
                let measured = ranges_bytes(&array, &mut rows.iter().map(|&row| row as usize..row as usize + 1));
                let mut picked = take(&array, &UInt32Array::from(rows), None).unwrap();
                if let DataType::Dictionary(_, values) = data_type {
                    picked = cast(&picked, values).unwrap();
                }
                let taken = buffers_weight([&compact(picked)]) as u64;
                assert!(taken <= measured + measured / 4 + 1_024, "{data_type}: {taken} for {measured}");
                // Views of the same value share it.
                assert!(often > 0 || measured <= 3 * taken + 1_024, "{data_type}: {taken} for {measured}");
            }
            // A slice is measured from where it begins.
            let slice = array.slice(array.len() - 5, 5);
            let of_slice = ranges_bytes(&slice, &mut (0..5).map(|row| row..row + 1));
            let whole = ranges_bytes(&array, &mut (array.len() - 5..array.len()).map(|row| row..row + 1));
            assert_eq!(of_slice, whole, "{data_type}");
        }
    }
}
