//! What arrays really hold.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray as _, MutableArrayData, make_array};
use arrow::datatypes::DataType;

/// Bytes of memory the arrays keep alive: the capacity of every distinct buffer, counted once.
pub fn buffers_weight<'a>(arrays: impl IntoIterator<Item = &'a ArrayRef>) -> usize {
    let mut seen = HashMap::new();
    for array in arrays {
        collect(&array.to_data(), &mut seen);
    }
    seen.values().sum()
}

fn collect(data: &ArrayData, seen: &mut HashMap<usize, usize>) {
    for buffer in data.buffers().iter().chain(data.nulls().map(|nulls| nulls.buffer())) {
        seen.insert(buffer.data_ptr().as_ptr() as usize, buffer.capacity());
    }
    for child in data.child_data() {
        collect(child, seen);
    }
}

/// The same values in buffers of their own and of the right size.
///
/// Over-allocated buffers are shrunk in place where nobody shares them; what is a small part of a shared or larger
/// allocation is copied.
pub fn compact(mut array: ArrayRef) -> ArrayRef {
    array = match array.data_type() {
        DataType::Utf8View => compact_views(array.as_string_view()).map_or(array.clone(), |compacted| Arc::new(compacted) as ArrayRef),
        DataType::BinaryView => compact_views(array.as_binary_view()).map_or(array.clone(), |compacted| Arc::new(compacted) as ArrayRef),
        _ => array,
    };
    array.shrink_to_fit();
    let data = array.to_data();
    let Ok(needed) = data.get_slice_memory_size() else { return array };
    if is_view(array.data_type()) || buffers_weight([&array]) <= needed + needed / 4 + 1_024 {
        return array;
    }
    let mut copy = MutableArrayData::new(vec![&data], false, data.len());
    if copy.try_extend(0, 0, data.len()).is_err() {
        return array;
    }
    let mut copied = make_array(copy.freeze());
    drop(data);
    copied.shrink_to_fit();
    if buffers_weight([&copied]) < buffers_weight([&array]) { copied } else { array }
}

fn is_view(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8View | DataType::BinaryView)
}

/// Views over buffers of which they use less than three quarters are rewritten.
fn compact_views<T: arrow::datatypes::ByteViewType>(array: &arrow::array::GenericByteViewArray<T>) -> Option<arrow::array::GenericByteViewArray<T>> {
    let held: usize = array.data_buffers().iter().map(arrow::buffer::Buffer::capacity).sum();
    (array.total_buffer_bytes_used() < held / 4 * 3).then(|| array.gc())
}
