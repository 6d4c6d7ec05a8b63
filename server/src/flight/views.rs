//! String and binary views over little more than the bytes they show.
//!
//! A view array holds whole buffers: of a page, of a dictionary, of a file's chunk. Of each, what a message needs is the range
//! that its rows show. Where they show most of it, the message shares that range and the views are written anew (16 bytes a
//! row); where they do not, after a filter for instance, the values are copied. Views may show the same bytes many times:
//! they are sent once then.

use arrow::buffer::{Buffer, NullBuffer, ScalarBuffer};

use super::message::GATHER_BYTES;

/// Longer values lie in a buffer, shorter ones in their view.
const MAX_INLINE_BYTES: u32 = 12;
/// Bytes of the buffers that copies go to: a message holds no more. A longer value has one of its own.
const MAX_COPIED_BYTES: usize = 2 << 20;

/// How much may be sent that no row shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slack {
    /// As much again as is shown.
    Half,
    /// Nothing.
    None,
}

impl Slack {
    /// Whether a range of so many bytes is shared, of which so many are shown.
    pub(super) fn allows(self, range: usize, shown: usize) -> bool {
        match self {
            Self::Half => range / 2 <= shown,
            Self::None => range <= shown,
        }
    }
}

/// What views show of one buffer.
#[derive(Clone, Copy)]
struct Extent {
    start: usize,
    end: usize,
    /// The sum of the values' lengths: more than there is between start and end where they overlap.
    shown: usize,
}

impl Extent {
    const NOTHING: Self = Self { start: usize::MAX, end: 0, shown: 0 };

    fn range(&self) -> usize {
        self.end.saturating_sub(self.start)
    }
}

/// Where views into one buffer point afterwards.
#[derive(Clone, Copy)]
enum Place {
    /// Byte `from` of the old buffer is byte `to` of the new one.
    Moved { index: u32, from: u32, to: u32 },
    /// Each value is copied.
    Copied,
}

/// The buffers that values are copied to. They come after those that are shared.
struct Copies {
    index: u32,
    full: Vec<Buffer>,
    open: Vec<u8>,
}

impl Copies {
    /// The buffer and the offset at which these bytes lie then.
    fn add(&mut self, bytes: &[u8]) -> (u32, u32) {
        if !self.open.is_empty() && self.open.len() + bytes.len() > MAX_COPIED_BYTES {
            self.full.push(std::mem::take(&mut self.open).into());
        }
        let offset = self.open.len() as u32;
        self.open.extend_from_slice(bytes);
        (self.index + self.full.len() as u32, offset)
    }

    fn finish(self, buffers: &mut Vec<Buffer>) {
        buffers.extend(self.full);
        if !self.open.is_empty() {
            buffers.push(self.open.into());
        }
    }
}

/// The views and the buffers of an array as a message has them.
pub(super) fn rebase(
    views: &ScalarBuffer<u128>,
    buffers: &[Buffer],
    nulls: Option<&NullBuffer>,
    slack: Slack,
) -> (Buffer, Vec<Buffer>) {
    if buffers.is_empty() {
        return (views.inner().clone(), Vec::new());
    }
    let (extents, null_points) = extents(views, buffers.len(), nulls);
    let ranges: usize = extents.iter().map(Extent::range).sum();
    if ranges == 0 && !null_points {
        return (views.inner().clone(), Vec::new());
    }
    if fits_already(buffers, &extents, ranges, slack) {
        return (views.inner().clone(), buffers.to_vec());
    }
    let is_shared = |extent: &Extent| extent.range() >= GATHER_BYTES && slack.allows(extent.range(), extent.shown);
    let shared: Vec<_> = extents.iter().zip(buffers).filter(|(extent, _)| is_shared(extent)).collect();
    let copied: usize = extents.iter().filter(|extent| !is_shared(extent)).map(|extent| extent.shown.max(extent.range())).sum();
    let open = Vec::with_capacity(copied.min(MAX_COPIED_BYTES));
    let mut copies = Copies { index: shared.len() as u32, full: Vec::new(), open };
    let mut rebased: Vec<_> =
        shared.into_iter().map(|(extent, buffer)| buffer.slice_with_length(extent.start, extent.range())).collect();
    let mut index = 0;
    let places: Vec<_> = extents
        .iter()
        .zip(buffers)
        .map(|(extent, buffer)| {
            if is_shared(extent) {
                index += 1;
                return Place::Moved { index: index - 1, from: extent.start as u32, to: 0 };
            }
            if extent.range() > 0 && slack.allows(extent.range(), extent.shown) {
                // Sent by copying anyway: a message gathers what is small.
                let (index, to) = copies.add(&buffer[extent.start..extent.end]);
                return Place::Moved { index, from: extent.start as u32, to };
            }
            Place::Copied
        })
        .collect();
    let mut moved = |view: u128| {
        let (length, old) = (length(view), buffer_index(view));
        if length <= MAX_INLINE_BYTES {
            return view;
        }
        let (index, offset) = match places[old] {
            Place::Moved { index, from, to } => (index, offset(view) - from + to),
            Place::Copied => copies.add(&buffers[old][offset(view) as usize..][..length as usize]),
        };
        view & u128::from(u64::MAX) | u128::from(index) << 64 | u128::from(offset) << 96
    };
    let views: Vec<u128> = match nulls {
        None => views.iter().map(|view| moved(*view)).collect(),
        Some(nulls) => views.iter().zip(nulls).map(|(view, is_valid)| if is_valid { moved(*view) } else { 0 }).collect(),
    };
    copies.finish(&mut rebased);
    (views.into(), rebased)
}

/// Bytes that [`rebase`] makes of an array.
pub(super) fn rebased_bytes(views: &ScalarBuffer<u128>, buffers: usize, nulls: Option<&NullBuffer>, slack: Slack) -> usize {
    let (extents, _) = extents(views, buffers, nulls);
    let sent = |extent: &Extent| if slack.allows(extent.range(), extent.shown) { extent.range() } else { extent.shown };
    size_of_val::<[u128]>(views) + extents.iter().map(sent).sum::<usize>()
}

/// A bound on that which is found sooner: ranges are at most twice as long as what they show.
pub(super) fn rebased_bytes_at_most(views: &ScalarBuffer<u128>) -> usize {
    size_of_val::<[u128]>(views) + 2 * views.iter().map(|view| length(*view) as usize).sum::<usize>()
}

/// What the views of valid rows show of each buffer, and whether those of others point into one.
fn extents(views: &[u128], buffers: usize, nulls: Option<&NullBuffer>) -> (Vec<Extent>, bool) {
    let mut extents = vec![Extent::NOTHING; buffers];
    let mut null_points = false;
    // Neighbours mostly point into one buffer.
    let (mut current, mut extent) = (0, Extent::NOTHING);
    let mut see = |view: u128| {
        let length = length(view);
        if length > MAX_INLINE_BYTES {
            if buffer_index(view) != current {
                extents[current] = extent;
                current = buffer_index(view);
                extent = extents[current];
            }
            let start = offset(view) as usize;
            extent.start = extent.start.min(start);
            extent.end = extent.end.max(start + length as usize);
            extent.shown += length as usize;
        }
    };
    match nulls {
        None => views.iter().for_each(|view| see(*view)),
        Some(nulls) => {
            for (view, is_valid) in views.iter().zip(nulls) {
                if is_valid {
                    see(*view);
                } else {
                    null_points |= length(*view) > MAX_INLINE_BYTES;
                }
            }
        }
    }
    if let Some(last) = extents.get_mut(current) {
        *last = extent;
    }
    (extents, null_points)
}

/// Whether the buffers hold little else than what is shown, and are not many small ones: the views need not be written anew.
fn fits_already(buffers: &[Buffer], extents: &[Extent], ranges: usize, slack: Slack) -> bool {
    let bytes: usize = buffers.iter().map(Buffer::len).sum();
    let allowed = if slack == Slack::None { ranges } else { ranges + ranges / 8 };
    bytes <= allowed
        && buffers.len() <= 1 + bytes / GATHER_BYTES
        && extents.iter().all(|extent| slack.allows(extent.range(), extent.shown))
}

fn length(view: u128) -> u32 {
    view as u32
}

fn buffer_index(view: u128) -> usize {
    (view >> 64) as u32 as usize
}

fn offset(view: u128) -> u32 {
    (view >> 96) as u32
}
