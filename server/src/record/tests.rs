use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use flightcache_traces::{Access, Trace};

use super::*;

/// What the outputs of a test wrote, and what they are told to do.
#[derive(Clone, Default)]
struct Disk {
    written: Arc<Mutex<Vec<u8>>>,
    /// Writes beyond this many bytes fail, what fits having been written.
    size: Option<usize>,
}

/// An output that waits before each write until it is told to go on, if somebody may tell.
struct TestOutput {
    disk: Disk,
    gate: Option<Receiver<()>>,
}

impl Write for TestOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(gate) = &self.gate {
            // The other end is gone: all may pass.
            let _ = gate.recv();
        }
        let mut written = lock(&self.disk.written);
        let room = self.disk.size.map_or(usize::MAX, |size| size - written.len());
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let taken = bytes.len().min(room);
        written.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for TestOutput {
    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        lock(&self.disk.written).truncate(bytes as usize);
        Ok(())
    }
}

impl Disk {
    fn recorder(&self, bounds: Bounds) -> (Arc<Recorder>, IntCounter) {
        self.gated(bounds, None)
    }

    fn gated(&self, bounds: Bounds, gate: Option<Receiver<()>>) -> (Arc<Recorder>, IntCounter) {
        let dropped = IntCounter::new("dropped", "Requests").unwrap();
        let recorder = Recorder::over(TestOutput { disk: self.clone(), gate }, dropped.clone(), bounds).unwrap();
        (recorder, dropped)
    }

    fn lines(&self) -> Vec<Access> {
        let text = String::from_utf8(lock(&self.written).clone()).unwrap();
        text.lines().map(|line| Access::from_line(line).unwrap()).collect()
    }

    fn trace(&self) -> Trace {
        Trace::read(&lock(&self.written)[..]).unwrap()
    }

    fn requests(&self) -> Vec<u64> {
        self.trace().requests().map(|request| request.number).collect()
    }
}

fn schema(names: impl IntoIterator<Item = String>) -> SchemaRef {
    Arc::new(Schema::new(names.into_iter().map(|name| Field::new(name, DataType::Int64, false)).collect::<Vec<_>>()))
}

fn look_up(record: &RowGroupRecord, row_group: u32, schema: &SchemaRef, columns: &[(u32, u64, bool)]) {
    let place = Place { url: "s3://lake/t.parquet", row_group, schema };
    record.looked_up(&place, columns.iter().map(|&(column, bytes, hit)| LookedUp { column, bytes, hit }));
}

/// A request that reads one column of `row_groups` row groups, and ends.
fn small(recorder: &Arc<Recorder>, number: u64, row_groups: u32) {
    let request = recorder.request(number);
    let schema = schema(["a".to_owned()]);
    for row_group in 0..row_groups {
        look_up(&request.row_group(), row_group, &schema, &[(0, 8, true)]);
    }
}

#[tokio::test]
async fn requests_are_read_in_the_order_of_their_starts() {
    let disk = Disk::default();
    let (recorder, dropped) = disk.recorder(Bounds::default());
    let names = schema(["a", "b", "c"].map(str::to_owned));
    let first = recorder.request(7);
    let (zero, one, untouched) = (first.row_group(), first.row_group(), first.row_group());
    look_up(&zero, 0, &names, &[(2, 100, false)]);
    small(&recorder, 8, 1);
    look_up(&one, 1, &names, &[(2, 100, true)]);
    zero.loaded([(2, 90)].into_iter());
    zero.rows(3);
    // The answer's columns, the filter's among them, which is resident by now.
    look_up(&zero, 0, &names, &[(0, 40, true), (2, 90, true)]);
    zero.rows(2);
    drop((zero, one, untouched, first));
    recorder.close().await;
    assert_eq!(disk.lines()[0].request, 8, "it ended first");
    let trace = disk.trace();
    let [first, second] = &trace.requests().collect::<Vec<_>>()[..] else { panic!("two requests") };
    assert_eq!((first.number, second.number), (7, 8));
    let [zero, one] = first.accesses else { panic!("the untouched row group has no line") };
    let expected = Access {
        at_us: zero.at_us,
        request: 7,
        url: "s3://lake/t.parquet".into(),
        row_group: Some(0),
        columns: Arc::new(["a".into(), "c".into()]),
        bytes: vec![40, 90],
        rows: 5,
        hit: Some(vec![true, false]),
    };
    assert_eq!(*zero, expected);
    assert_eq!((one.row_group, one.rows, one.hit.as_deref()), (Some(1), 0, Some(&[true][..])));
    assert_eq!(dropped.get(), 0);
}

#[tokio::test]
async fn a_long_request_is_written_in_pieces_and_read_as_one() {
    let disk = Disk::default();
    let (recorder, _) = disk.recorder(Bounds { piece_bytes: 1, ..Bounds::default() });
    let names = schema(["a".to_owned()]);
    let long = recorder.request(1);
    let slow = long.row_group();
    look_up(&slow, 0, &names, &[(0, 8, false)]);
    look_up(&long.row_group(), 1, &names, &[(0, 8, false)]);
    small(&recorder, 2, 1);
    drop(slow);
    look_up(&long.row_group(), 2, &names, &[(0, 8, false)]);
    small(&recorder, 3, 1);
    look_up(&long.row_group(), 3, &names, &[(0, 8, false)]);
    drop(long);
    recorder.close().await;
    let written: Vec<_> = disk.lines().iter().map(|line| (line.request, line.row_group.unwrap())).collect();
    assert_eq!(written, [(2, 0), (1, 0), (1, 1), (1, 2), (3, 0), (1, 3)]);
    let read: Vec<_> = disk.trace().accesses.iter().map(|line| (line.request, line.row_group.unwrap())).collect();
    assert_eq!(read, [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (3, 0)]);
}

#[tokio::test]
async fn a_stuck_writer_drops_requests_whole_and_stops_nobody() {
    let disk = Disk::default();
    let (open, gate): (Sender<()>, _) = channel();
    // Each piece is written at once; the queue takes another one while one of them waits.
    let bounds = Bounds { piece_bytes: 250, queue_bytes: 1, flush_every: Duration::ZERO };
    let (recorder, dropped) = disk.gated(bounds, Some(gate));
    let taken = || recorder.queue.bytes.load(Ordering::Acquire) == 0;
    small(&recorder, 1, 1);
    until(taken);
    // The writer is in its first write now, and the queue takes one piece more.
    let long = recorder.request(2);
    let names = schema(["a".to_owned()]);
    look_up(&long.row_group(), 0, &names, &[(0, 8, true)]);
    look_up(&long.row_group(), 1, &names, &[(0, 8, true)]);
    small(&recorder, 3, 40);
    look_up(&long.row_group(), 2, &names, &[(0, 8, true)]);
    look_up(&long.row_group(), 3, &names, &[(0, 8, true)]);
    assert_eq!(dropped.get(), 2);
    drop(open);
    until(taken);
    // There is room again, but not for what lacks its middle.
    look_up(&long.row_group(), 4, &names, &[(0, 8, true)]);
    look_up(&long.row_group(), 5, &names, &[(0, 8, true)]);
    drop(long);
    small(&recorder, 4, 1);
    recorder.close().await;
    assert_eq!(dropped.get(), 2);
    assert_eq!(disk.requests(), [1, 4], "the piece that had found room went with the rest");
}

#[tokio::test]
async fn a_line_that_is_too_long_becomes_several() {
    let disk = Disk::default();
    let (recorder, dropped) = disk.recorder(Bounds::default());
    let names: Vec<String> = (0..30_000).map(|i| format!("{i:0100}")).collect();
    let wide = schema(names.clone());
    let request = recorder.request(1);
    let columns: Vec<_> = (0..30_000).map(|i| (i, u64::from(i), i % 3 == 0)).collect();
    let record = request.row_group();
    look_up(&record, 0, &wide, &columns);
    record.rows(9);
    drop((record, request));
    let request = recorder.request(2);
    look_up(&request.row_group(), 0, &schema(["n".repeat(2 << 20)]), &[(0, 8, true)]);
    drop(request);
    small(&recorder, 3, 1);
    recorder.close().await;
    assert_eq!(disk.requests(), [1, 3], "a name that no line can hold is no reason to stop");
    assert_eq!(dropped.get(), 1);
    let lines = disk.lines();
    let lines = &lines[..lines.len() - 1];
    assert!(lines.len() > 1 && lines.iter().all(|line| line.row_group == Some(0)));
    assert!(lines.iter().flat_map(|line| line.columns.iter()).map(|name| &**name).eq(names.iter()));
    assert!(lines.iter().flat_map(|line| &line.bytes).copied().eq(0..30_000));
    assert!(lines.iter().flat_map(|line| line.hit.iter().flatten()).copied().eq((0..30_000).map(|i| i % 3 == 0)));
    assert_eq!(lines.iter().map(|line| line.rows).sum::<u64>(), 9);
}

#[tokio::test]
async fn a_full_disk_ends_recording_after_a_whole_request() {
    let disk = Disk { size: Some(1_000), ..Disk::default() };
    let (recorder, dropped) = disk.recorder(Bounds { flush_every: Duration::ZERO, ..Bounds::default() });
    for number in 0..50 {
        small(&recorder, number, 2);
    }
    until(|| recorder.queue.bytes.load(Ordering::Acquire) == 0);
    small(&recorder, 50, 2);
    recorder.close().await;
    let kept = disk.requests().len() as u64;
    assert!((1..5).contains(&kept), "{kept}");
    assert!(disk.trace().requests().all(|request| request.accesses.len() == 2));
    assert_eq!(dropped.get(), 51 - kept);
}

#[test]
fn lines_reach_the_file_by_themselves() {
    let disk = Disk::default();
    let (recorder, _) = disk.recorder(Bounds { flush_every: Duration::from_millis(20), ..Bounds::default() });
    small(&recorder, 1, 1);
    until(|| disk.requests() == [1]);
    small(&recorder, 2, 1);
    drop(recorder);
    until(|| disk.requests() == [1, 2]);
}

#[tokio::test]
async fn closing_writes_what_goes_on_and_nothing_after() {
    let disk = Disk::default();
    let (recorder, dropped) = disk.recorder(Bounds::default());
    let request = recorder.request(1);
    let record = request.row_group();
    look_up(&record, 0, &schema(["a".to_owned()]), &[(0, 8, false)]);
    record.rows(1);
    recorder.close().await;
    record.rows(1);
    drop((record, request));
    small(&recorder, 2, 1);
    recorder.close().await;
    assert_eq!(disk.lines().iter().map(|line| (line.request, line.rows)).collect::<Vec<_>>(), [(1, 1)]);
    assert_eq!(dropped.get(), 0);
    assert!(lock(&recorder.live).is_empty());
}

#[tokio::test]
async fn only_new_or_empty_files_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let create = |path: &Path| Recorder::create(path, IntCounter::new("dropped", "Requests").unwrap());
    let refused = |path: &Path| create(path).err().unwrap().message;
    let path = directory.path().join("trace.jsonl");
    create(&path).unwrap().close().await;
    let recorder = create(&path).unwrap();
    small(&recorder, 1, 1);
    recorder.close().await;
    assert!(refused(&path).contains("trace.jsonl: it already holds"), "{}", refused(&path));
    assert!(refused(directory.path()).contains("not a regular file"));
    let missing = refused(&directory.path().join("no/such.jsonl"));
    assert!(missing.contains("no/such.jsonl: No such file"), "{missing}");
    assert_eq!(Trace::read(&std::fs::read(&path).unwrap()[..]).unwrap().accesses.len(), 1);
}

/// Waits until a condition holds; fails when it does not within a minute.
fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "not within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}
