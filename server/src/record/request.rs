//! What one request reads, gathered line by line.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use arrow::datatypes::SchemaRef;

use super::writer::Piece;
use super::{Recorder, lock};

/// Bytes a line takes in memory, apart from what follows; roughly.
const LINE_BYTES: usize = 160;
/// Bytes a column of it takes; roughly.
const COLUMN_BYTES: usize = 32;

/// A row group, as a trace names it.
pub(crate) struct Place<'a> {
    /// Canonical URL of its object.
    pub(crate) url: &'a str,
    pub(crate) row_group: u32,
    /// Names the file's columns.
    pub(crate) schema: &'a SchemaRef,
}

/// What a look-up found of one column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LookedUp {
    /// Place among the file's columns.
    pub(crate) column: u32,
    /// What it weighs in the cache, or will by estimate.
    pub(crate) bytes: u64,
    /// Whether it was resident.
    pub(crate) hit: bool,
}

/// A line that may still grow.
pub(super) struct Line {
    pub(super) at_us: u64,
    pub(super) url: String,
    pub(super) row_group: u32,
    pub(super) schema: SchemaRef,
    /// By file column: decoded bytes, and whether it was resident.
    pub(super) columns: BTreeMap<u32, (u64, bool)>,
    pub(super) rows: u64,
    is_finished: bool,
}

impl Line {
    fn bytes(&self) -> u64 {
        (LINE_BYTES + self.url.len() + COLUMN_BYTES * self.columns.len()) as u64
    }
}

/// The lines of one request that are not handed on yet, in the order of their row groups' first look-ups.
pub(super) struct Lines {
    number: u64,
    waiting: VecDeque<Line>,
    /// Lines handed on, which is the number of the first one here.
    handed_on: u64,
    /// Bytes of those that are finished.
    finished_bytes: u64,
    dropped: Arc<AtomicBool>,
}

impl Lines {
    pub(super) fn new(number: u64) -> Self {
        Self { number, waiting: VecDeque::new(), handed_on: 0, finished_bytes: 0, dropped: Arc::default() }
    }

    /// A line, unless it was handed on.
    fn get(&mut self, number: u64) -> Option<&mut Line> {
        self.waiting.get_mut(usize::try_from(number.checked_sub(self.handed_on)?).ok()?)
    }

    /// All lines, finished or not.
    pub(super) fn take_all(&mut self) -> Piece {
        self.take(self.waiting.len())
    }

    /// The finished lines before the first one that is not.
    fn take_finished(&mut self) -> Piece {
        self.take(self.waiting.iter().take_while(|line| line.is_finished).count())
    }

    fn take(&mut self, lines: usize) -> Piece {
        let lines: Vec<Line> = self.waiting.drain(..lines).collect();
        self.handed_on += lines.len() as u64;
        self.finished_bytes -= lines.iter().filter(|line| line.is_finished).map(Line::bytes).sum::<u64>();
        let bytes = lines.iter().map(Line::bytes).sum();
        Piece { request: self.number, lines, bytes, dropped: Arc::clone(&self.dropped) }
    }
}

/// Where a request's reads are recorded.
pub(crate) struct RequestRecord {
    recorder: Arc<Recorder>,
    lines: Arc<Mutex<Lines>>,
}

impl RequestRecord {
    pub(super) fn new(recorder: Arc<Recorder>, lines: Arc<Mutex<Lines>>) -> Self {
        Self { recorder, lines }
    }

    /// A row group that may be read: it gets a line when something of it is looked up.
    pub(crate) fn row_group(self: &Arc<Self>) -> Arc<RowGroupRecord> {
        Arc::new(RowGroupRecord { request: Arc::clone(self), line: OnceLock::new() })
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let mut lines = lock(&self.lines);
        self.recorder.hand_on(lines.take_all());
        lock(&self.recorder.live).remove(&lines.number);
    }
}

/// Where the reading of one row group is recorded. Its line is finished when the last of its holders drops it.
pub(crate) struct RowGroupRecord {
    request: Arc<RequestRecord>,
    /// The number of its line.
    line: OnceLock<u64>,
}

impl RowGroupRecord {
    /// Columns were looked up. What was looked up here before stays as it is.
    pub(crate) fn looked_up(&self, place: &Place<'_>, columns: impl Iterator<Item = LookedUp>) {
        let mut lines = lock(&self.request.lines);
        let number = *self.line.get_or_init(|| {
            lines.waiting.push_back(Line {
                // Under the lock: no line is earlier than the one before.
                at_us: self.request.recorder.now_us(),
                url: place.url.to_owned(),
                row_group: place.row_group,
                schema: Arc::clone(place.schema),
                columns: BTreeMap::new(),
                rows: 0,
                is_finished: false,
            });
            lines.handed_on + lines.waiting.len() as u64 - 1
        });
        let Some(line) = lines.get(number) else { return };
        for LookedUp { column, bytes, hit } in columns {
            line.columns.entry(column).or_insert((bytes, hit));
        }
    }

    /// What columns weigh that were missing, by file column.
    pub(crate) fn loaded(&self, weights: impl Iterator<Item = (u32, u64)>) {
        self.update(|line| {
            for (column, weight) in weights {
                if let Some((bytes, _)) = line.columns.get_mut(&column) {
                    *bytes = weight;
                }
            }
        });
    }

    /// Rows of the answer that came from here.
    pub(crate) fn rows(&self, rows: u64) {
        self.update(|line| line.rows += rows);
    }

    fn update(&self, change: impl FnOnce(&mut Line)) {
        if let Some(&number) = self.line.get() {
            lock(&self.request.lines).get(number).map(change);
        }
    }
}

impl Drop for RowGroupRecord {
    fn drop(&mut self) {
        let Some(&number) = self.line.get() else { return };
        let mut lines = lock(&self.request.lines);
        let Some(line) = lines.get(number) else { return };
        line.is_finished = true;
        let bytes = line.bytes();
        lines.finished_bytes += bytes;
        if lines.finished_bytes >= self.request.recorder.bounds.piece_bytes {
            self.request.recorder.hand_on(lines.take_finished());
        }
    }
}
