//! Arrays weigh what they keep alive, and rest in buffers of their own.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, BooleanArray, DictionaryArray, FixedSizeBinaryArray, FixedSizeListArray, Int32Array, ListArray,
    ListViewArray, MapArray, NullArray, RunArray, StringArray, StructArray, UnionArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, Int32Type, IntervalUnit, TimeUnit, UnionFields};

use crate::cache::{buffers_weight, compact};

const ROWS: usize = 4_096;
/// A slice that starts and ends inside bytes of bitmaps.
const SLICE: (usize, usize) = (1_003, 61);
const BITS: usize = 8;
/// Each is longer than what a view holds in itself.
const STRING_BYTES: usize = 21;
const KEEPS: i32 = 7;

fn field(data_type: &DataType) -> Arc<Field> {
    Arc::new(Field::new("item", data_type.clone(), true))
}

fn nulls() -> NullBuffer {
    (0..ROWS).map(|row| row % 5 != 0).collect()
}

fn integers(rows: usize) -> ArrayRef {
    Arc::new((0..rows as i32).map(|row| (row % KEEPS != 0).then_some(row)).collect::<Int32Array>())
}

fn strings(rows: usize) -> ArrayRef {
    Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("value number {row:08}"))))
}

fn to(array: &ArrayRef, data_type: &DataType) -> ArrayRef {
    cast(array, data_type).unwrap()
}

/// Lists of three.
fn lists(values: ArrayRef) -> ArrayRef {
    let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(3, values.len() / 3));
    Arc::new(ListArray::new(field(values.data_type()), offsets, values, None))
}

fn dictionary(values: ArrayRef) -> ArrayRef {
    let keys = (0..ROWS).map(|row| (row % 9 != 0).then_some((row % values.len()) as i32)).collect::<Int32Array>();
    Arc::new(DictionaryArray::<Int32Type>::new(keys, values))
}

fn union(sparse: bool) -> ArrayRef {
    let fields =
        UnionFields::try_new([0, 1], [Field::new("i", DataType::Int32, true), Field::new("s", DataType::Utf8, true)]).unwrap();
    let types: ScalarBuffer<i8> = (0..ROWS).map(|row| (row % 2) as i8).collect();
    let offsets = (!sparse).then(|| (0..ROWS).map(|row| (row / 2) as i32).collect());
    let rows = if sparse { ROWS } else { ROWS / 2 };
    Arc::new(UnionArray::try_new(fields, types, offsets, vec![integers(rows), strings(rows)]).unwrap())
}

/// Every kind of layout, and the bytes its slice needs.
fn zoo() -> Vec<(ArrayRef, usize)> {
    let rows = SLICE.1;
    let nulls_bytes = rows.div_ceil(BITS);
    let (words, ints) = (strings(ROWS), integers(ROWS));
    let some_words: ArrayRef =
        Arc::new((0..ROWS).map(|row| (row % 2 == 0).then(|| "w".repeat(STRING_BYTES))).collect::<StringArray>());
    let int_bytes = 4 * rows + nulls_bytes;
    let word_bytes = 4 * (rows + 1) + STRING_BYTES * rows;
    let mut zoo: Vec<(ArrayRef, usize)> = vec![
        (Arc::new(NullArray::new(ROWS)), 0),
        (Arc::new((0..ROWS).map(|row| (row % 3 != 0).then_some(row % 2 == 0)).collect::<BooleanArray>()), 2 * nulls_bytes),
        (Arc::clone(&ints), int_bytes),
        (Arc::clone(&words), word_bytes),
        (to(&words, &DataType::LargeUtf8), 8 * (rows + 1) + STRING_BYTES * rows),
        (to(&words, &DataType::Binary), word_bytes),
        (to(&words, &DataType::LargeBinary), 8 * (rows + 1) + STRING_BYTES * rows),
        (to(&words, &DataType::Utf8View), (16 + STRING_BYTES) * rows),
        (to(&words, &DataType::BinaryView), (16 + STRING_BYTES) * rows),
        // Views with nulls: long, short, and nothing else.
        (to(&some_words, &DataType::Utf8View), 16 * rows + nulls_bytes + STRING_BYTES * (rows - rows.div_ceil(2))),
        (to(&to(&ints, &DataType::Utf8), &DataType::Utf8View), 16 * rows + nulls_bytes),
        (to(&(Arc::new(NullArray::new(ROWS)) as ArrayRef), &DataType::BinaryView), 16 * rows + nulls_bytes),
        (dictionary(strings(32)), int_bytes + 4 * 33 + STRING_BYTES * 32),
        // Values that are a slice of something larger.
        (dictionary(strings(ROWS).slice(7, 32)), int_bytes + 4 * 33 + STRING_BYTES * 32),
        (dictionary(to(&strings(ROWS), &DataType::Utf8View).slice(7, 32)), int_bytes + (16 + STRING_BYTES) * 32),
        (union(true), rows + int_bytes + word_bytes),
        (union(false), 5 * rows + usize::midpoint(int_bytes, word_bytes)),
    ];
    for data_type in [
        DataType::Int8,
        DataType::Int64,
        DataType::Float16,
        DataType::Float64,
        DataType::Date64,
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Decimal32(9, 0),
        DataType::Decimal128(20, 2),
        DataType::Decimal256(40, 2),
        DataType::Interval(IntervalUnit::MonthDayNano),
    ] {
        let narrow: ArrayRef =
            Arc::new((0..ROWS as i32).map(|row| (row % KEEPS != 0).then_some(row % 100)).collect::<Int32Array>());
        let narrow = match data_type {
            DataType::Date64 | DataType::Timestamp(..) => to(&narrow, &DataType::Int64),
            DataType::Interval(_) => to(&to(&narrow, &DataType::Int64), &DataType::Duration(TimeUnit::Nanosecond)),
            _ => narrow,
        };
        zoo.push((to(&narrow, &data_type), data_type.primitive_width().unwrap() * rows + nulls_bytes));
    }
    let fixed = FixedSizeBinaryArray::try_from_iter((0..ROWS).map(|row| (row as u64).to_be_bytes())).unwrap();
    zoo.push((Arc::new(fixed), 8 * rows));
    nested(&mut zoo);
    zoo
}

fn nested(zoo: &mut Vec<(ArrayRef, usize)>) {
    let rows = SLICE.1;
    let bitmap = |rows: usize| rows.div_ceil(BITS);
    let three = 3 * rows;
    let (int_bytes, three_ints) = (4 * rows + bitmap(rows), 4 * three + bitmap(three));
    let views = || to(&strings(3 * ROWS), &DataType::Utf8View);
    let list = lists(integers(3 * ROWS));
    let large = to(&list, &DataType::LargeList(field(&DataType::Int32)));
    let fixed = FixedSizeListArray::new(field(&DataType::Int32), 3, integers(3 * ROWS), Some(nulls()));
    let list_view = ListViewArray::from(list.as_any().downcast_ref::<ListArray>().unwrap().clone());
    let fields = Fields::from(vec![Field::new("i", DataType::Int32, true), Field::new("v", DataType::Utf8View, true)]);
    let of_views = StructArray::new(fields, vec![integers(ROWS), views().slice(0, ROWS)], Some(nulls()));
    let entry = Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Int32, true)]);
    let entries = StructArray::new(entry.clone(), vec![strings(3 * ROWS), integers(3 * ROWS)], None);
    let entry = Arc::new(Field::new("entries", DataType::Struct(entry), false));
    let map = MapArray::new(entry, OffsetBuffer::from_lengths(std::iter::repeat_n(3, ROWS)), entries, None, false);
    let ends: Int32Array = (1..=ROWS as i32 / 4).map(|run| run * 4).collect();
    let runs = RunArray::<Int32Type>::try_new(&ends, &strings(ROWS / 4)).unwrap();
    let view_bytes = 16 + STRING_BYTES;
    zoo.extend::<[(ArrayRef, usize); 9]>([
        (list, 4 * (rows + 1) + three_ints),
        (large, 8 * (rows + 1) + three_ints),
        (lists(views()), 4 * (rows + 1) + view_bytes * three),
        (lists(lists(views()).slice(0, 3 * (ROWS / 3))), 4 * (rows + 1) + 4 * (three + 1) + view_bytes * 3 * three),
        (Arc::new(list_view), 8 * rows + three_ints),
        (Arc::new(fixed), bitmap(rows) + three_ints),
        (Arc::new(of_views), bitmap(rows) + int_bytes + view_bytes * rows),
        (Arc::new(map), 4 * (rows + 1) + 4 * (three + 1) + STRING_BYTES * three + three_ints),
        (Arc::new(runs), (rows / 4 + 2) * (4 + 4 + STRING_BYTES)),
    ]);
}

fn buffers(data: &ArrayData, found: &mut HashMap<usize, usize>) {
    let all = data.buffers().iter().chain(data.nulls().map(NullBuffer::buffer));
    found.extend(
        all.filter(|buffer| buffer.capacity() > 0).map(|buffer| (buffer.data_ptr().as_ptr() as usize, buffer.capacity())),
    );
    data.child_data().iter().for_each(|child| buffers(child, found));
}

fn buffers_of(array: &ArrayRef) -> HashMap<usize, usize> {
    let mut found = HashMap::new();
    buffers(&array.to_data(), &mut found);
    found
}

#[test]
fn a_slice_of_anything_rests_in_buffers_of_its_own() {
    for (array, needed) in zoo() {
        let name = array.data_type().to_string();
        let rows = SLICE.1.min(array.len() / 2);
        let slice = array.slice(SLICE.0.min(array.len() - rows), rows);
        let compacted = compact(Arc::clone(&slice));
        assert_eq!(&compacted, &slice, "{name}");
        compacted.to_data().validate_full().unwrap();
        let (parent, own) = (buffers_of(&array), buffers_of(&compacted));
        assert!(own.keys().all(|buffer| !parent.contains_key(buffer)), "{name} shares buffers");
        let weight = buffers_weight([&compacted]);
        assert_eq!(weight, own.values().sum::<usize>(), "{name}");
        let bound = needed + needed / 4 + 64 * own.len();
        assert!(weight <= bound && weight + weight / 4 >= needed, "{name} weighs {weight}, needs {needed}");
    }
}

#[test]
fn what_is_compact_is_left_alone() {
    for (array, _) in zoo() {
        let name = array.data_type().to_string();
        let once = compact(Arc::clone(&array));
        assert_eq!(&once, &array, "{name}");
        let weight = buffers_weight([&once]);
        let twice = compact(once.clone());
        assert_eq!(buffers_weight([&twice]), weight, "{name}");
        let always_copied = name.contains("Union") || name.contains("RunEnd") || name.contains("ListView");
        assert!(always_copied || buffers_of(&once) == buffers_of(&twice), "{name} was copied again");
    }
}

#[test]
fn empty_slices_hold_nothing() {
    for (array, _) in zoo() {
        let name = array.data_type().to_string();
        let empty = compact(array.slice(SLICE.0.min(array.len()), 0));
        assert_eq!((empty.len(), empty.data_type()), (0, array.data_type()));
        // A dictionary's values stay.
        assert!(name.contains("Dictionary") || buffers_weight([&empty]) <= 512, "{name}: {}", buffers_weight([&empty]));
    }
}

#[test]
fn spare_capacity_is_given_back() {
    let mut spare = Vec::with_capacity(10_000);
    spare.extend(0..100_i32);
    let array: ArrayRef = Arc::new(Int32Array::from(spare));
    assert_eq!(buffers_weight([&array]), 40_000);
    let other = Arc::clone(&array);
    for array in [array, other] {
        let compacted = compact(Arc::clone(&array));
        assert_eq!(&compacted, &array);
        assert!(buffers_weight([&compacted]) <= 448);
    }
}

#[test]
fn shared_buffers_weigh_once() {
    let array = integers(ROWS);
    let (left, right) = (array.slice(0, 10), array.slice(10, 10));
    assert_eq!(buffers_weight([&left, &right, &array]), buffers_weight([&array]));
    assert!(buffers_weight([&left]) >= 4 * ROWS);
}

#[test]
fn views_that_share_bytes_stay_folded() {
    let word = Arc::new(StringArray::from(vec!["x".repeat(10_000)])) as ArrayRef;
    let view = to(&word, &DataType::Utf8View);
    let many = arrow::compute::take(&view, &Int32Array::from(vec![0; 1_000]), None).unwrap();
    let compacted = compact(Arc::clone(&many));
    assert_eq!(&compacted, &many);
    assert!(buffers_weight([&compacted]) < 100_000);
}
