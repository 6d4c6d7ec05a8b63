//! Record batches as IPC messages, for the layouts that cached columns have.
//!
//! `arrow-ipc` sends the buffers of views whole, and what it is given in their place it would have to check for UTF-8: a pass
//! over all the bytes. It also makes the metadata anew for each batch. Here the buffers are those of the arrays, cut to the
//! rows, and the metadata is made again only when it differs from the last.

use arrow::array::{
    Array, AsArray as _, GenericByteArray, GenericListViewArray, MutableArrayData, OffsetSizeTrait, RecordBatch,
    downcast_primitive_array, make_array,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{ByteArrayType, DataType, Int32Type};
use arrow::error::ArrowError;
use arrow::ipc::{self, DictionaryBatchBuilder, FieldNode, MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder};
use flatbuffers::FlatBufferBuilder;

use super::message::{Body, Frame};
use super::views::{Slack, rebase, rebased_bytes, rebased_bytes_at_most};

/// Each buffer of a body begins at a multiple of this, as in what `arrow-ipc` writes.
const ALIGNMENT_BYTES: usize = 64;

/// Whether a type is written here.
pub(super) fn is_plain(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(field) | DataType::LargeList(field) | DataType::ListView(field) | DataType::LargeListView(field) => {
            is_plain(field.data_type())
        }
        DataType::FixedSizeList(field, _) | DataType::Map(field, _) => is_plain(field.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_plain(field.data_type())),
        DataType::Dictionary(..) | DataType::RunEndEncoded(..) | DataType::Union(..) => false,
        _ => true,
    }
}

/// Writes the batches of one stream.
#[derive(Default)]
pub(super) struct BatchWriter {
    layout: Layout,
    /// What the last batch looked like, and its metadata.
    last: Option<(Layout, Buffer)>,
}

/// All that the metadata of a batch tells.
#[derive(Clone, Default, PartialEq)]
struct Layout {
    rows: usize,
    nodes: Vec<FieldNode>,
    buffers: Vec<ipc::Buffer>,
    /// Data buffers of each array of views.
    views: Vec<i64>,
}

struct Writing<'a> {
    layout: &'a mut Layout,
    body: Body,
    slack: Slack,
}

impl BatchWriter {
    /// The message of a batch whose columns are all plain.
    pub(super) fn write(&mut self, batch: &RecordBatch, slack: Slack) -> Result<Frame, ArrowError> {
        let rows = batch.num_rows();
        self.layout.begin(rows);
        let mut writing = Writing { layout: &mut self.layout, body: Body::default(), slack };
        for column in batch.columns() {
            writing.array(column)?;
        }
        let body = writing.body;
        let metadata = match &self.last {
            Some((layout, metadata)) if *layout == self.layout => metadata.clone(),
            _ => {
                let metadata = self.layout.metadata(None, body.len());
                self.last = Some((self.layout.clone(), metadata.clone()));
                metadata
            }
        };
        Ok(Frame::new(metadata, body).with_rows(rows))
    }
}

/// The message of a dictionary's values, which are plain.
pub(super) fn write_dictionary(id: i64, values: &dyn Array) -> Result<Frame, ArrowError> {
    let mut layout = Layout { rows: values.len(), ..Layout::default() };
    let mut writing = Writing { layout: &mut layout, body: Body::default(), slack: Slack::Half };
    writing.array(values)?;
    let body = writing.body;
    Ok(Frame::new(layout.metadata(Some(id), body.len()), body))
}

impl Layout {
    fn begin(&mut self, rows: usize) {
        self.rows = rows;
        self.nodes.clear();
        self.buffers.clear();
        self.views.clear();
    }

    /// Of a record batch, or of the dictionary with an id.
    fn metadata(&self, dictionary: Option<i64>, body_bytes: usize) -> Buffer {
        let mut builder = FlatBufferBuilder::new();
        let buffers = builder.create_vector(&self.buffers);
        let nodes = builder.create_vector(&self.nodes);
        let views = (!self.views.is_empty()).then(|| builder.create_vector(&self.views));
        let mut batch = RecordBatchBuilder::new(&mut builder);
        batch.add_length(self.rows as i64);
        batch.add_nodes(nodes);
        batch.add_buffers(buffers);
        if let Some(views) = views {
            batch.add_variadicBufferCounts(views);
        }
        let batch = batch.finish();
        let (header_type, header) = match dictionary {
            None => (MessageHeader::RecordBatch, batch.as_union_value()),
            Some(id) => {
                let mut dictionary = DictionaryBatchBuilder::new(&mut builder);
                dictionary.add_id(id);
                dictionary.add_data(batch);
                (MessageHeader::DictionaryBatch, dictionary.finish().as_union_value())
            }
        };
        let mut message = MessageBuilder::new(&mut builder);
        message.add_version(MetadataVersion::V5);
        message.add_header_type(header_type);
        message.add_bodyLength(body_bytes as i64);
        message.add_header(header);
        let message = message.finish();
        builder.finish(message, None);
        Buffer::from(builder.finished_data())
    }
}

impl Writing<'_> {
    fn buffer(&mut self, buffer: Buffer) {
        self.layout.buffers.push(ipc::Buffer::new(self.body.len() as i64, buffer.len() as i64));
        self.body.push(buffer);
        self.body.pad(ALIGNMENT_BYTES);
    }

    fn array(&mut self, array: &dyn Array) -> Result<(), ArrowError> {
        let rows = array.len() as i64;
        if array.data_type() == &DataType::Null {
            self.layout.nodes.push(FieldNode::new(rows, rows));
            return Ok(());
        }
        let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
        self.layout.nodes.push(FieldNode::new(rows, nulls.map_or(0, NullBuffer::null_count) as i64));
        self.buffer(nulls.map_or_else(Buffer::default, |nulls| nulls.inner().sliced()));
        downcast_primitive_array! {
            array => self.buffer(array.values().inner().clone()),
            DataType::Boolean => self.buffer(array.as_boolean().values().sliced()),
            // Its values go before the batch, in a message of their own.
            DataType::Dictionary(..) => self.buffer(array.as_dictionary::<Int32Type>().keys().values().inner().clone()),
            DataType::FixedSizeBinary(_) => self.buffer(array.as_fixed_size_binary().values().clone()),
            DataType::Utf8 => self.bytes(array.as_string::<i32>()),
            DataType::LargeUtf8 => self.bytes(array.as_string::<i64>()),
            DataType::Binary => self.bytes(array.as_binary::<i32>()),
            DataType::LargeBinary => self.bytes(array.as_binary::<i64>()),
            DataType::Utf8View => {
                let array = array.as_string_view();
                self.views(array.views(), array.data_buffers(), nulls);
            }
            DataType::BinaryView => {
                let array = array.as_binary_view();
                self.views(array.views(), array.data_buffers(), nulls);
            }
            DataType::List(_) => self.list(array.as_list::<i32>().offsets(), array.as_list::<i32>().values())?,
            DataType::LargeList(_) => self.list(array.as_list::<i64>().offsets(), array.as_list::<i64>().values())?,
            DataType::Map(..) => self.list(array.as_map().offsets(), array.as_map().entries())?,
            DataType::ListView(_) => self.list_view(array.as_list_view::<i32>())?,
            DataType::LargeListView(_) => self.list_view(array.as_list_view::<i64>())?,
            DataType::FixedSizeList(_, width) => {
                let values = array.as_fixed_size_list().values();
                self.array(&values.slice(0, array.len() * *width as usize))?;
            }
            DataType::Struct(_) => {
                for column in array.as_struct().columns() {
                    self.array(column)?;
                }
            }
            other => return Err(ArrowError::NotYetImplemented(format!("writing {other}"))),
        }
        Ok(())
    }

    fn bytes<T: ByteArrayType>(&mut self, array: &GenericByteArray<T>) {
        let (first, len) = self.offsets(array.offsets());
        self.buffer(array.values().slice_with_length(first, len));
    }

    fn list<O: OffsetSizeTrait>(&mut self, offsets: &OffsetBuffer<O>, values: &dyn Array) -> Result<(), ArrowError> {
        let (first, len) = self.offsets(offsets);
        self.array(&values.slice(first, len))
    }

    /// Offsets that begin at zero, and what of the values they show.
    fn offsets<O: OffsetSizeTrait>(&mut self, offsets: &OffsetBuffer<O>) -> (usize, usize) {
        let (first, last) = ends(offsets);
        self.buffer(match first {
            0 => offsets.inner().inner().clone(),
            _ => offsets.iter().map(|offset| *offset - O::usize_as(first)).collect(),
        });
        (first, last - first)
    }

    fn views(&mut self, views: &ScalarBuffer<u128>, buffers: &[Buffer], nulls: Option<&NullBuffer>) {
        let (views, buffers) = rebase(views, buffers, nulls, self.slack);
        self.layout.views.push(buffers.len() as i64);
        self.buffer(views);
        for buffer in buffers {
            self.buffer(buffer);
        }
    }

    /// The values between the first and the last that are shown, or just those, in the order in which they are.
    fn list_view<O: OffsetSizeTrait>(&mut self, array: &GenericListViewArray<O>) -> Result<(), ArrowError> {
        let shown = Elements::of(array);
        let shares = self.slack.allows(shown.range(), shown.count);
        let (mut offsets, mut sizes) = (Vec::with_capacity(array.len()), Vec::with_capacity(array.len()));
        let mut at = 0;
        for (offset, size) in Elements::rows(array) {
            offsets.push(O::usize_as(match size {
                0 => 0,
                _ if shares => offset - shown.start,
                _ => at,
            }));
            sizes.push(O::usize_as(size));
            at += size;
        }
        self.buffer(Buffer::from_vec(offsets));
        self.buffer(Buffer::from_vec(sizes));
        if shares {
            return self.array(&array.values().slice(shown.first(), shown.range()));
        }
        let values = array.values().to_data();
        let mut copied = MutableArrayData::new(vec![&values], false, shown.count);
        for (offset, size) in Elements::rows(array) {
            copied.try_extend(0, offset, offset + size)?;
        }
        self.array(&make_array(copied.freeze()))
    }
}

/// What list views show of their values.
struct Elements {
    start: usize,
    end: usize,
    count: usize,
}

impl Elements {
    fn of<O: OffsetSizeTrait>(array: &GenericListViewArray<O>) -> Self {
        let mut shown = Self { start: usize::MAX, end: 0, count: 0 };
        for (offset, size) in Self::rows(array).filter(|(_, size)| *size > 0) {
            shown.start = shown.start.min(offset);
            shown.end = shown.end.max(offset + size);
            shown.count += size;
        }
        shown
    }

    /// Offset and size of each row: none where it is null.
    fn rows<O: OffsetSizeTrait>(array: &GenericListViewArray<O>) -> impl Iterator<Item = (usize, usize)> {
        let size = |row: usize| if array.is_valid(row) { array.sizes()[row].as_usize() } else { 0 };
        (0..array.len()).map(move |row| (array.offsets()[row].as_usize(), size(row)))
    }

    fn first(&self) -> usize {
        self.start.min(self.end)
    }

    fn range(&self) -> usize {
        self.end - self.first()
    }
}

/// How views are measured.
#[derive(Clone, Copy)]
pub(super) enum Measure {
    /// A bound, found sooner.
    AtMost,
    /// What they take.
    Exactly,
}

/// The bytes that a plain array takes in a message, but for padding.
pub(super) fn message_bytes(array: &dyn Array, measure: Measure) -> usize {
    let rows = array.len();
    let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
    let values = match array.data_type() {
        DataType::Null => 0,
        DataType::Boolean => rows.div_ceil(8),
        DataType::Dictionary(..) => rows * size_of::<i32>(),
        DataType::FixedSizeBinary(width) => rows * *width as usize,
        DataType::Utf8 => of_bytes(array.as_string::<i32>()),
        DataType::LargeUtf8 => of_bytes(array.as_string::<i64>()),
        DataType::Binary => of_bytes(array.as_binary::<i32>()),
        DataType::LargeBinary => of_bytes(array.as_binary::<i64>()),
        DataType::Utf8View => {
            let array = array.as_string_view();
            of_views(array.views(), array.data_buffers().len(), nulls, measure)
        }
        DataType::BinaryView => {
            let array = array.as_binary_view();
            of_views(array.views(), array.data_buffers().len(), nulls, measure)
        }
        DataType::List(_) => of_list(array.as_list::<i32>().offsets(), array.as_list::<i32>().values(), measure),
        DataType::LargeList(_) => of_list(array.as_list::<i64>().offsets(), array.as_list::<i64>().values(), measure),
        DataType::Map(..) => of_list(array.as_map().offsets(), array.as_map().entries(), measure),
        DataType::ListView(_) => of_list_view(array.as_list_view::<i32>(), measure),
        DataType::LargeListView(_) => of_list_view(array.as_list_view::<i64>(), measure),
        DataType::FixedSizeList(..) => message_bytes(array.as_fixed_size_list().values(), measure),
        DataType::Struct(_) => array.as_struct().columns().iter().map(|column| message_bytes(column, measure)).sum(),
        primitive => rows * primitive.primitive_width().unwrap_or(0),
    };
    values + nulls.map_or(0, |_| rows.div_ceil(8))
}

fn of_views(views: &ScalarBuffer<u128>, buffers: usize, nulls: Option<&NullBuffer>, measure: Measure) -> usize {
    match measure {
        _ if buffers == 0 => size_of_val::<[u128]>(views),
        Measure::AtMost => rebased_bytes_at_most(views),
        Measure::Exactly => rebased_bytes(views, buffers, nulls, Slack::Half),
    }
}

fn of_bytes<T: ByteArrayType>(array: &GenericByteArray<T>) -> usize {
    let (first, last) = ends(array.offsets());
    size_of_val(array.value_offsets()) + last - first
}

fn of_list<O: OffsetSizeTrait>(offsets: &OffsetBuffer<O>, values: &dyn Array, measure: Measure) -> usize {
    let (first, last) = ends(offsets);
    size_of_val::<[O]>(offsets) + message_bytes(&values.slice(first, last - first), measure)
}

/// The mean value stands for those that are shown more or less often.
fn of_list_view<O: OffsetSizeTrait>(array: &GenericListViewArray<O>, measure: Measure) -> usize {
    let shown = Elements::of(array);
    let values = message_bytes(&array.values().slice(shown.first(), shown.range()), measure);
    let sent = if Slack::Half.allows(shown.range(), shown.count) { shown.range() } else { shown.count };
    array.len() * 2 * size_of::<O>() + values * sent / shown.range().max(1)
}

fn ends<O: OffsetSizeTrait>(offsets: &OffsetBuffer<O>) -> (usize, usize) {
    (offsets.first().map_or(0, |first| first.as_usize()), offsets.last().map_or(0, |last| last.as_usize()))
}
