//! What of the views' buffers is shared, what copied, what left out.

use arrow::array::{BooleanArray, StringViewBuilder, UInt32Array};
use arrow::compute::{filter, take};

use super::*;

const LEN: usize = 40;

fn text(row: usize) -> String {
    format!("{row:0LEN$}")
}

/// Rows of `LEN` bytes, in buffers of so many.
fn views(rows: usize, block_bytes: u32) -> StringViewArray {
    let mut builder = StringViewBuilder::new().with_fixed_block_size(block_bytes);
    (0..rows).for_each(|row| builder.append_value(text(row)));
    builder.finish()
}

fn batch(views: impl Into<ArrayRef>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([("v", views.into(), true)]).unwrap()
}

fn frame(views: ArrayRef) -> Frame {
    let batch = batch(views);
    same(std::slice::from_ref(&batch), None);
    let mut frames = frames(&[batch], None);
    assert_eq!(frames.len(), 2);
    frames.pop().unwrap()
}

/// Whether a frame has bytes of this memory.
fn shows(frame: &Frame, memory: &Buffer) -> bool {
    let memory = memory.as_ptr_range();
    frame.parts().iter().any(|part| memory.contains(&part.as_ptr()))
}

#[test]
fn an_array_that_fits_is_shared_with_its_views() {
    let array = views(10_000, 1 << 20);
    let frame = frame(Arc::new(array.clone()));
    assert!(shows(&frame, &array.data_buffers()[0]) && shows(&frame, array.views().inner()));
    assert_eq!(frame.shared_bytes(), 10_000 * (16 + LEN));
}

#[test]
fn of_a_slice_the_range_is_shared_and_the_views_are_new() {
    let array = views(20_000, 1 << 20);
    let frame = frame(Arc::new(array.slice(5_000, 1_000)));
    assert!(shows(&frame, &array.data_buffers()[0]) && !shows(&frame, array.views().inner()));
    assert!(frame.len() < 1_000 * (16 + LEN) + 1_000, "{}", frame.len());
}

#[test]
fn of_several_buffers_those_that_are_shown_are_shared() {
    // Thousand rows a buffer.
    let array = views(10_000, 1_000 * LEN as u32);
    let rows = (2_500..2_700).chain(4_000..4_990).chain(6_000..7_000).chain((8_000..9_000).step_by(5)).chain([9_999, 3_999]);
    let rows: UInt32Array = rows.collect();
    let frame = frame(take(&array, &rows, None).unwrap());
    let shown: Vec<_> = (0..10).filter(|at| shows(&frame, &array.data_buffers()[*at])).collect();
    assert_eq!(shown, [2, 4, 6]);
}

#[test]
fn of_filtered_rows_what_is_shown_is_copied_unless_it_is_most() {
    let array = views(20_000, 1 << 20);
    for (every, is_shared) in [(2, true), (3, false), (50, false)] {
        let mask: BooleanArray = (0..20_000).map(|row| Some(row % every == 0)).collect();
        let frame = frame(filter(&array, &mask).unwrap());
        assert_eq!(shows(&frame, &array.data_buffers()[0]), is_shared, "{every}");
        let rows = 20_000_usize.div_ceil(every);
        let allowed = rows * (16 + if is_shared { 2 * LEN } else { LEN });
        assert!(frame.len() <= allowed + 1_000, "{every}: {}", frame.len());
    }
}

#[test]
fn values_shown_again_and_again_are_sent_once() {
    let values = views(1_000, 1 << 20);
    let rows: UInt32Array = (0..30_000).map(|row| row * 7 % 1_000).collect();
    let frame = frame(take(&values, &rows, None).unwrap());
    assert!(shows(&frame, &values.data_buffers()[0]));
    assert!(frame.len() <= 30_000 * 16 + 1_000 * LEN + 1_000, "{}", frame.len());
}

#[test]
fn small_buffers_become_one() {
    let array = views(4_000, 10 * LEN as u32);
    assert_eq!(array.data_buffers().len(), 400);
    let frame = frame(Arc::new(array));
    assert!(frame.parts().len() <= 3 && frame.len() < 4_000 * (16 + LEN) + 1_000, "{} {}", frame.parts().len(), frame.len());
}

#[test]
fn copies_are_cut_before_their_offsets_overflow() {
    // One of a list's row shows 5 MB of 15, too much for any message: what matters is that it is not garbled before that.
    let array = views(375_000, 16 << 20);
    let mask: BooleanArray = (0..375_000).map(|row| Some(row % 3 == 0)).collect();
    let rows = filter(&array, &mask).unwrap();
    let shown = rows.as_string_view();
    let (views, buffers) = super::super::super::views::rebase(shown.views(), shown.data_buffers(), None, Slack::Half);
    assert_eq!(buffers.iter().map(Buffer::len).sum::<usize>(), 125_000 * LEN);
    assert!(buffers.len() == 3 && buffers.iter().all(|buffer| buffer.len() <= 2 << 20));
    let rebased = StringViewArray::new(views.into(), buffers, None);
    assert_eq!(&rebased, shown);
}

#[test]
fn a_row_that_fits_only_without_gaps_is_sent_without() {
    // Every other value of 2.4 MB, in one list.
    let array = views(60_000, 16 << 20);
    let mask: BooleanArray = (0..60_000).map(|row| Some(row % 2 == 0)).collect();
    let values = filter(&array, &mask).unwrap();
    let field = Arc::new(Field::new("item", DataType::Utf8View, true));
    let list = ListArray::new(field, OffsetBuffer::from_lengths([30_000]), values, None);
    let batch = batch(Arc::new(list) as ArrayRef);
    assert!(batch.column(0).as_list::<i32>().values().as_string_view().data_buffers()[0].len() > MAX_FRAME_BYTES);
    same(&[batch], None);
}

#[test]
fn null_rows_show_nothing() {
    let array = views(2_000, 1 << 20);
    for every in [1, 2, 1_000] {
        let nulls = (0..2_000).map(|row| row % every != 0).collect();
        let with_nulls = StringViewArray::new(array.views().clone(), array.data_buffers().to_vec(), Some(nulls));
        let frame = frame(Arc::new(with_nulls));
        if every == 1 {
            assert!(frame.len() < 2_000 * 16 + 1_000, "{}", frame.len());
        }
    }
}
