//! Columns of flat types from a batch's body, where they lie.
//!
//! `arrow-ipc` reads every type, and checks strings with a closure and a possible error per value, which for strings takes most
//! of a receiver's time. The arrays' own constructors check as much several times faster; for columns of which each has
//! just a validity, offsets and values, finding these is all there is to do. What is not flat is left to `arrow-ipc`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, FixedSizeBinaryArray, GenericByteArray, GenericByteViewArray, NullArray,
    PrimitiveArray, RecordBatch, RecordBatchOptions, downcast_primitive,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowNativeType, ArrowPrimitiveType, BinaryType, BinaryViewType, ByteArrayType, ByteViewType, DataType, Int32Type,
    LargeBinaryType, LargeUtf8Type, Schema, SchemaRef, StringViewType, Utf8Type,
};
use arrow::ipc::{self, FieldNode};

/// Whether all columns are of types that are read here. Dictionaries are if they are `numbered` in the order of their columns.
pub(super) fn is_flat(schema: &Schema, numbered: bool) -> bool {
    use DataType::{Binary, BinaryView, Boolean, FixedSizeBinary, LargeBinary, LargeUtf8, Null, Utf8, Utf8View};
    let is_flat = |data_type: &DataType| {
        let others = matches!(
            data_type,
            Null | Boolean | Utf8 | LargeUtf8 | Binary | LargeBinary | Utf8View | BinaryView | FixedSizeBinary(_)
        );
        let is_dictionary = numbered && matches!(data_type, DataType::Dictionary(keys, _) if **keys == DataType::Int32);
        others || is_dictionary || data_type.is_primitive()
    };
    schema.fields().iter().all(|field| is_flat(field.data_type()))
}

/// The batch of a body whose metadata has been checked to lie within it. Panics, as constructors of arrays do, where lengths
/// contradict each other.
pub(super) fn read(
    batch: ipc::RecordBatch<'_>,
    body: &Buffer,
    schema: &SchemaRef,
    dictionaries: &HashMap<i64, ArrayRef>,
) -> Result<RecordBatch, String> {
    let mut columns = Columns {
        dictionaries: (0..).map_while(|number| dictionaries.get(&number)),
        nodes: batch.nodes().into_iter().flatten(),
        buffers: batch.buffers().into_iter().flatten(),
        view_buffers: batch.variadicBufferCounts().into_iter().flatten(),
        body,
    };
    let arrays =
        schema.fields().iter().map(|field| columns.next(field.data_type()).map_err(|e| format!("{}: {e}", field.name())));
    let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
    let rows = usize::try_from(batch.length()).map_err(|e| e.to_string())?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options).map_err(|e| e.to_string())
}

/// What is left of a batch's columns.
struct Columns<'a, D, N, B, V> {
    /// In the order of their columns.
    dictionaries: D,
    nodes: N,
    buffers: B,
    view_buffers: V,
    body: &'a Buffer,
}

impl<'m, D, N, B, V> Columns<'_, D, N, B, V>
where
    D: Iterator<Item = &'m ArrayRef>,
    N: Iterator<Item = &'m FieldNode>,
    B: Iterator<Item = &'m ipc::Buffer>,
    V: Iterator<Item = i64>,
{
    fn next(&mut self, data_type: &DataType) -> Result<ArrayRef, String> {
        let node = self.nodes.next().ok_or("its length is missing")?;
        let len = usize::try_from(node.length()).map_err(|e| e.to_string())?;
        if *data_type == DataType::Null {
            return Ok(Arc::new(NullArray::new(len)));
        }
        let validity = self.buffer()?;
        let nulls = (node.null_count() != 0).then(|| NullBuffer::new(BooleanBuffer::new(validity, 0, len)));
        macro_rules! primitive {
            ($type:ty) => {
                self.primitive::<$type>(data_type, len, nulls)
            };
        }
        downcast_primitive! {
            data_type => (primitive),
            DataType::Boolean => Ok(Arc::new(BooleanArray::new(BooleanBuffer::new(self.buffer()?, 0, len), nulls))),
            DataType::Utf8 => self.bytes::<Utf8Type>(len, nulls),
            DataType::LargeUtf8 => self.bytes::<LargeUtf8Type>(len, nulls),
            DataType::Binary => self.bytes::<BinaryType>(len, nulls),
            DataType::LargeBinary => self.bytes::<LargeBinaryType>(len, nulls),
            DataType::Utf8View => self.views::<StringViewType>(len, nulls),
            DataType::BinaryView => self.views::<BinaryViewType>(len, nulls),
            DataType::FixedSizeBinary(width) => self.fixed_width(*width, len, nulls),
            DataType::Dictionary(..) => {
                let keys = PrimitiveArray::<Int32Type>::try_new(self.values(len)?, nulls).map_err(|e| e.to_string())?;
                let values = self.dictionaries.next().ok_or("its dictionary is missing")?;
                Ok(Arc::new(DictionaryArray::try_new(keys, Arc::clone(values)).map_err(|e| e.to_string())?))
            }
            _ => Err(format!("{data_type} is not flat")),
        }
    }

    fn primitive<T: ArrowPrimitiveType>(
        &mut self,
        data_type: &DataType,
        len: usize,
        nulls: Option<NullBuffer>,
    ) -> Result<ArrayRef, String> {
        let array = PrimitiveArray::<T>::try_new(self.values(len)?, nulls).map_err(|e| e.to_string())?;
        Ok(Arc::new(array.with_data_type(data_type.clone())))
    }

    fn bytes<T: ByteArrayType>(&mut self, len: usize, nulls: Option<NullBuffer>) -> Result<ArrayRef, String> {
        let offsets = self.buffer()?;
        // Of no values, some writers send no offsets either.
        let offsets = if len == 0 && offsets.is_empty() {
            OffsetBuffer::new_empty()
        } else {
            OffsetBuffer::new(scalars::<T::Offset>(offsets, len + 1))
        };
        let array = GenericByteArray::<T>::try_new(offsets, self.buffer()?, nulls);
        Ok(Arc::new(array.map_err(|e| e.to_string())?))
    }

    fn views<T: ByteViewType>(&mut self, len: usize, nulls: Option<NullBuffer>) -> Result<ArrayRef, String> {
        let views = self.values::<u128>(len)?;
        let count = self.view_buffers.next().ok_or("the number of its buffers is missing")?;
        let buffers = (0..count).map(|_| self.buffer()).collect::<Result<Vec<_>, _>>()?;
        let array = GenericByteViewArray::<T>::try_new(views, buffers, nulls);
        Ok(Arc::new(array.map_err(|e| e.to_string())?))
    }

    fn fixed_width(&mut self, width: i32, len: usize, nulls: Option<NullBuffer>) -> Result<ArrayRef, String> {
        let bytes = usize::try_from(width).ok().and_then(|width| width.checked_mul(len)).ok_or("it is too long")?;
        let values = self.buffer()?.slice_with_length(0, bytes);
        let array = FixedSizeBinaryArray::try_new_with_len(width, values, nulls, len);
        Ok(Arc::new(array.map_err(|e| e.to_string())?))
    }

    fn values<T: ArrowNativeType>(&mut self, len: usize) -> Result<ScalarBuffer<T>, String> {
        Ok(scalars(self.buffer()?, len))
    }

    fn buffer(&mut self) -> Result<Buffer, String> {
        let buffer = self.buffers.next().ok_or("a buffer is missing")?;
        let place = usize::try_from(buffer.offset()).and_then(|offset| Ok((offset, usize::try_from(buffer.length())?)));
        let (offset, length) = place.map_err(|e| e.to_string())?;
        Ok(self.body.slice_with_length(offset, length))
    }
}

/// The first `len` values, copied only if they are not aligned.
fn scalars<T: ArrowNativeType>(buffer: Buffer, len: usize) -> ScalarBuffer<T> {
    let is_aligned = buffer.as_ptr().align_offset(align_of::<T>()) == 0;
    ScalarBuffer::new(if is_aligned { buffer } else { Buffer::from(buffer.as_slice()) }, 0, len)
}
