//! What arrays really hold.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray as _, MutableArrayData, make_array};
use arrow::array::{GenericByteArray, GenericListArray, OffsetSizeTrait};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{ByteArrayType, DataType};
use arrow::error::ArrowError;

/// Allocations round up to as much, and a few bytes more are not worth a copy.
const SLACK_BYTES_PER_BUFFER: usize = 64;

/// Bytes of memory the arrays keep alive: the capacity of every distinct buffer, counted once.
///
/// A buffer made from a slice of a foreign allocation, such as `bytes::Bytes`, counts as that slice: Arrow does not know what
/// lies behind it.
pub fn buffers_weight<'a>(arrays: impl IntoIterator<Item = &'a ArrayRef>) -> usize {
    let mut seen = HashMap::new();
    for array in arrays {
        collect(&array.to_data(), &mut seen);
    }
    seen.values().sum()
}

/// Capacities by allocation.
fn collect(data: &ArrayData, seen: &mut HashMap<usize, usize>) {
    for buffer in data.buffers().iter().chain(data.nulls().map(NullBuffer::buffer)) {
        let capacity = seen.entry(buffer.data_ptr().as_ptr() as usize).or_default();
        *capacity = buffer.capacity().max(*capacity);
    }
    for child in data.child_data() {
        collect(child, seen);
    }
}

/// The same values in buffers of their own and of the right size, or the same array if its buffers are about that already:
/// at most a quarter, and 64 bytes a buffer, more than its rows need.
///
/// Buffers that nobody shares are shrunk in place. Union, run-end encoded and list view arrays are always copied. The values
/// of a dictionary all stay, used or not.
pub fn compact(mut array: ArrayRef) -> ArrayRef {
    array.shrink_to_fit();
    let mut held = HashMap::new();
    collect(&array.to_data(), &mut held);
    let held_bytes: usize = held.values().sum();
    let tight = |needed: usize| held_bytes <= needed + needed / 4 + SLACK_BYTES_PER_BUFFER * held.len().max(1);
    if needed_bytes(&array).is_some_and(tight) {
        return array;
    }
    // Every type can be copied; if one could not, its array is good as it is.
    let Ok(copy) = copy(&array.to_data()) else { return array };
    let mut copied = make_array(copy);
    copied.shrink_to_fit();
    // Views may share bytes among them, which a copy unfolds.
    if buffers_weight([&copied]) < held_bytes { copied } else { array }
}

/// Bytes of right-sized buffers for these rows; none where counting them is harder than copying.
fn needed_bytes(array: &ArrayRef) -> Option<usize> {
    let rows = array.len();
    let values = match array.data_type() {
        DataType::Null => 0,
        DataType::Boolean => rows.div_ceil(8),
        DataType::Utf8 => of_bytes(array.as_string::<i32>()),
        DataType::LargeUtf8 => of_bytes(array.as_string::<i64>()),
        DataType::Binary => of_bytes(array.as_binary::<i32>()),
        DataType::LargeBinary => of_bytes(array.as_binary::<i64>()),
        DataType::Utf8View => size_of::<u128>() * rows + array.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => size_of::<u128>() * rows + array.as_binary_view().total_buffer_bytes_used(),
        DataType::FixedSizeBinary(width) => usize::try_from(*width).ok()? * rows,
        DataType::List(_) => of_list(array.as_list::<i32>())?,
        DataType::LargeList(_) => of_list(array.as_list::<i64>())?,
        DataType::Map(..) => {
            let map = array.as_map();
            let (first, last) = ends(map.offsets());
            let entries: ArrayRef = Arc::new(map.entries().slice(first, last - first));
            size_of_val::<[i32]>(map.offsets()) + needed_bytes(&entries)?
        }
        DataType::FixedSizeList(..) => needed_bytes(array.as_fixed_size_list().values())?,
        DataType::Struct(_) => array.as_struct().columns().iter().map(needed_bytes).sum::<Option<usize>>()?,
        DataType::Dictionary(key, _) => key.primitive_width()? * rows + needed_bytes(array.as_any_dictionary().values())?,
        DataType::Union(..) | DataType::RunEndEncoded(..) | DataType::ListView(_) | DataType::LargeListView(_) => return None,
        primitive => primitive.primitive_width()? * rows,
    };
    Some(values + array.nulls().map_or(0, |_| rows.div_ceil(8)))
}

fn of_bytes<T: ByteArrayType>(array: &GenericByteArray<T>) -> usize {
    let (first, last) = ends(array.value_offsets());
    size_of_val(array.value_offsets()) + last - first
}

fn of_list<O: OffsetSizeTrait>(array: &GenericListArray<O>) -> Option<usize> {
    let (first, last) = ends(array.value_offsets());
    Some(size_of_val(array.value_offsets()) + needed_bytes(&array.values().slice(first, last - first))?)
}

fn ends<O: OffsetSizeTrait>(offsets: &[O]) -> (usize, usize) {
    (offsets.first().map_or(0, |first| first.as_usize()), offsets.last().map_or(0, |last| last.as_usize()))
}

/// Copies the rows, and what a plain copy still shares: the data buffers of views, the values of dictionaries.
fn copy(data: &ArrayData) -> Result<ArrayData, ArrowError> {
    let mut copied = MutableArrayData::new(vec![data], false, data.len());
    copied.try_extend(0, 0, data.len())?;
    let copied = copied.freeze();
    match copied.data_type() {
        DataType::Utf8View => return Ok(make_array(copied).as_string_view().gc().into_data()),
        DataType::BinaryView => return Ok(make_array(copied).as_binary_view().gc().into_data()),
        _ if !is_shared_by_copies(&copied) => return Ok(copied),
        _ => {}
    }
    let children = copied.child_data().iter().map(copy).collect::<Result<_, _>>()?;
    copied.into_builder().child_data(children).build()
}

/// Whether there are views or dictionaries in it.
fn is_shared_by_copies(data: &ArrayData) -> bool {
    matches!(data.data_type(), DataType::Utf8View | DataType::BinaryView | DataType::Dictionary(..))
        || data.child_data().iter().any(is_shared_by_copies)
}
