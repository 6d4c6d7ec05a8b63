use proptest::prelude::*;

use super::*;

fn access() -> impl Strategy<Value = Access> {
    let columns = proptest::collection::vec(("\\PC{0,8}", any::<u64>(), any::<bool>()), 0..4);
    let row_group = proptest::option::of(any::<u32>());
    (0..1_000_000_u64, 0..4_u64, "\\PC{0,20}", row_group, columns, any::<u64>(), any::<bool>()).prop_map(
        |(at_us, request, url, row_group, columns, rows, recorded)| {
            if row_group.is_none() {
                return Access::whole_object(at_us, request, url, rows, 1);
            }
            let hit = recorded.then(|| columns.iter().map(|(_, _, hit)| *hit).collect());
            let bytes = columns.iter().map(|(_, bytes, _)| *bytes).collect();
            let columns = columns.into_iter().map(|(name, ..)| Arc::from(name)).collect();
            Access { at_us, request, url: url.into(), row_group, columns, bytes, rows, hit }
        },
    )
}

fn written(trace: &Trace) -> Vec<u8> {
    let mut bytes = Vec::new();
    trace.write(&mut bytes).unwrap();
    bytes
}

fn problem(text: impl AsRef<[u8]>) -> (u64, Problem) {
    match Trace::read(text.as_ref()).unwrap_err() {
        Error::Line { line, problem } => (line, problem),
        other => panic!("{other}"),
    }
}

const GOOD: &str =
    r#"{"at_us":5,"request":1,"url":"t","row_group":0,"columns":["a","b"],"bytes":[1,2],"rows":3,"hit":[true,false]}"#;

proptest! {
    #[test]
    fn what_is_written_is_read_request_by_request(mut accesses in proptest::collection::vec(access(), 0..8)) {
        accesses.sort_by_key(|access| access.at_us);
        let read = Trace::read(&written(&Trace { accesses: accesses.clone() })[..]).unwrap();
        // Requests by their first lines: the oracle picks the lines of each in turn.
        let mut starts: Vec<(u64, u64)> = Vec::new();
        for access in &accesses {
            if starts.iter().all(|(_, request)| *request != access.request) {
                starts.push((access.at_us, access.request));
            }
        }
        starts.sort_unstable();
        let of = |request: u64| accesses.iter().filter(move |access| access.request == request);
        let expected: Vec<Access> = starts.iter().flat_map(|(_, request)| of(*request)).cloned().collect();
        prop_assert_eq!(&read.accesses, &expected);
        prop_assert_eq!(read.requests().count(), starts.len());
        prop_assert_eq!(Trace::read(&written(&read)[..]).unwrap(), read);
    }

    #[test]
    fn any_bytes_are_read_or_fail_typed(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Trace::read(&bytes[..]);
    }

    #[test]
    fn a_damaged_line_is_read_or_named(at in 0..GOOD.len(), byte in any::<u8>()) {
        let mut bytes = format!("{GOOD}\n{GOOD}\n").into_bytes();
        bytes[GOOD.len() + 1 + at] = byte;
        if let Err(error) = Trace::read(&bytes[..]) {
            // A line feed makes two lines of one.
            prop_assert!(error.to_string().starts_with("trace line 2:"), "{}", error);
        }
    }
}

#[test]
fn malformed_lines_are_named() {
    let second = |line: &str| problem(format!("{GOOD}\n{line}\n{GOOD}\n"));
    let length = |field, len| Problem::Length { columns: 2, field, len };
    assert_eq!(second(&GOOD.replace("[1,2]", "[1]")), (2, length("bytes", 1)));
    assert_eq!(second(&GOOD.replace("[true,false]", "[true,false,true]")), (2, length("hit", 3)));
    assert_eq!(second(&GOOD.replace("\"row_group\":0", "\"row_group\":null")), (2, Problem::WholeObject));
    assert_eq!(second(&GOOD.replace("\"at_us\":5", "\"at_us\":4")), (2, Problem::Time { at_us: 4, start_us: 5 }));
    assert_eq!(second(&GOOD.replace(",\"rows\":3", "")).0, 2);
    assert_eq!(second(""), (2, Problem::Json("EOF while parsing a value".to_owned())));
    assert_eq!(problem(b"\xff\n"), (1, Problem::NotUtf8));
    assert_eq!(problem(&GOOD[..40]).0, 1);
}

#[test]
fn a_line_of_a_mebibyte_is_the_longest() {
    let url = |len: usize| GOOD.replace("\"t\"", &format!("\"{}\"", "t".repeat(len)));
    let longest = MAX_LINE_BYTES - url(0).len();
    for end in ["", "\n"] {
        assert_eq!(Trace::read((url(longest) + end).as_bytes()).unwrap().accesses.len(), 1);
        assert_eq!(problem(url(longest + 1) + end), (1, Problem::TooLong));
    }
    let mut access = Access::from_line(GOOD).unwrap();
    access.url = "t".repeat(longest + 1).into();
    assert_eq!(access.to_line(), Err(Problem::TooLong));
}

#[test]
fn what_cannot_be_read_is_not_written() {
    let mut access = Access::from_line(GOOD).unwrap();
    access.bytes.pop();
    let trace = Trace { accesses: vec![Access::from_line(GOOD).unwrap(), access] };
    assert_eq!(trace.write(Vec::new()).unwrap_err().to_string(), "trace line 2: 2 columns, but 1 entries in `bytes`");
}

#[test]
fn lines_with_the_same_number_are_a_request_wherever_they_are() {
    let line = |at_us: u64, request: u64, url: &str, column: &str| Access {
        row_group: Some(0),
        columns: Arc::new([column.into()]),
        ..Access::whole_object(at_us, request, url, 8, 1)
    };
    // The second request ends first, and is written between two pieces of the third.
    let accesses =
        vec![line(12, 3, "t", "a"), line(10, 2, "t", "b"), line(30, 3, "u", "a"), line(20, 3, "t", "c"), line(0, 1, "t", "a")];
    let trace = Trace::read(&written(&Trace { accesses })[..]).unwrap();
    let requests: Vec<_> = trace.requests().map(|r| (r.number, r.at_us, r.objects(), r.accesses.len())).collect();
    assert_eq!(
        requests,
        [
            (1, 0, vec![("t", vec!["a"])], 1),
            (2, 10, vec![("t", vec!["b"])], 1),
            (3, 12, vec![("t", vec!["a", "c"]), ("u", vec!["a"])], 3)
        ]
    );
}

#[test]
fn equal_names_are_held_once() {
    let line = |request: u64, url: &str, columns: &[&str]| Access {
        row_group: Some(0),
        columns: columns.iter().copied().map(Arc::from).collect(),
        bytes: vec![1; columns.len()],
        ..Access::whole_object(0, request, url, 8, 1)
    };
    let accesses = vec![line(1, "t", &["a", "b"]), line(2, "t", &["a", "b"]), line(3, "u", &["b"])];
    let read = Trace::read(&written(&Trace { accesses: accesses.clone() })[..]).unwrap().accesses;
    assert_eq!(read, accesses);
    assert!(Arc::ptr_eq(&read[0].url, &read[1].url) && Arc::ptr_eq(&read[0].columns, &read[1].columns));
    assert!(Arc::ptr_eq(&read[0].columns[1], &read[2].columns[0]));
    // Only what is read holds them: nothing is kept for later.
    assert_eq!((Arc::strong_count(&read[0].url), Arc::strong_count(&read[0].columns)), (2, 2));
}

#[test]
fn time_scales() {
    let times = |factor: f64| {
        let trace = Trace { accesses: [0, 3, 10].map(|at_us| Access::whole_object(at_us, at_us, "t", 1, 1)).to_vec() };
        trace.scaled_time(factor).accesses.iter().map(|access| access.at_us).collect::<Vec<_>>()
    };
    assert_eq!(times(0.5), [0, 2, 5]);
    assert_eq!(times(10.0), [0, 30, 100]);
    assert_eq!(times(0.0), [0, 0, 0]);
}
