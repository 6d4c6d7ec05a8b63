use super::*;

fn size(file: u64) -> Option<ObjectSize> {
    (file < 3).then_some(ObjectSize { bytes: 10 * file, rows: file })
}

fn problem(result: Result<Trace>) -> (u64, Problem) {
    match result.unwrap_err() {
        Error::Line { line, problem } => (line, problem),
        other => panic!("{other}"),
    }
}

#[test]
fn two_columns_are_read() {
    let trace = two_column(&b"timestamp,file_index\r\n7,2\r\n7,1\r\n\r\n19,2"[..], size).unwrap();
    let expected = [(0, 1, 2), (0, 2, 1), (12_000, 3, 2)];
    let expected = expected.map(|(at_us, n, file)| Access::whole_object(at_us, n, format!("{file}.parquet"), 10 * file, file));
    assert_eq!(trace.accesses, expected);
}

#[test]
fn malformed_two_columns_are_named() {
    let read = |lines: &str| problem(two_column(format!("timestamp,file_index\r\n0,1\r\n{lines}").as_bytes(), size));
    let field = |column, expected| Problem::Field { column, expected };
    assert_eq!(read("1,x"), (3, field(2, "a file index")));
    assert_eq!(read("\r\n1"), (4, field(2, "a file index")));
    assert_eq!(read("-1,1"), (3, field(1, "milliseconds")));
    assert_eq!(read("1,3"), (3, Problem::UnknownFile(3)));
    assert_eq!(read("5,1\n4,1\n"), (4, Problem::Time { at_us: 4_000, start_us: 5_000 }));
    assert_eq!(problem(two_column(&b"0,1\n"[..], size)), (1, Problem::Header(TWO_COLUMN_HEADER)));
}

#[test]
fn lib_cache_sim_is_read_as_its_parameters_say() {
    let layout = "time-col=2, obj-id-col=4,obj-size-col=1, obj-id-is-num=true, delimiter=;, has-header=true".parse().unwrap();
    let trace = lib_cache_sim(&b"size;time;op;id\n4096;1633046400;r;\"a/b\"\n512;1633046400.25;w;17\n"[..], &layout).unwrap();
    let expected = [(0, 1, "a/b.parquet", 4096), (250_000, 2, "17.parquet", 512)];
    assert_eq!(trace.accesses, expected.map(|(at_us, n, url, bytes)| Access::whole_object(at_us, n, url, bytes, 0)));
    let plain = lib_cache_sim(&b"0,a,1\n1,b,2\n"[..], &LibCacheSim::default()).unwrap();
    assert_eq!(plain.requests().count(), 2);
}

#[test]
fn malformed_lib_cache_sim_is_named() {
    let read = |lines: &str| problem(lib_cache_sim(format!("3,a,1\n{lines}").as_bytes(), &LibCacheSim::default()));
    let field = |column, expected| Problem::Field { column, expected };
    for seconds in ["x", "", "-1", "NaN", "inf"] {
        assert_eq!(read(&format!("{seconds},a,1")), (2, field(1, "seconds")));
    }
    assert_eq!(read("3,,1"), (2, field(2, "an object id")));
    assert_eq!(read("3,a,1.5"), (2, field(3, "a number of bytes")));
    assert_eq!(read("2,a,1"), (2, Problem::Time { at_us: 2_000_000, start_us: 3_000_000 }));
    let none = LibCacheSim { time_col: 0, ..LibCacheSim::default() };
    assert_eq!(problem(lib_cache_sim(&b"3,a,1\n"[..], &none)), (1, field(0, "seconds")));
}

#[test]
fn parameters_are_parsed_or_refused() {
    let parse = |text: &str| text.parse::<LibCacheSim>();
    assert_eq!(parse("").unwrap(), LibCacheSim::default());
    assert_eq!(parse("delimiter=,, has-header=true").unwrap(), LibCacheSim { has_header: true, ..LibCacheSim::default() });
    assert_eq!(parse("delimiter=\\t").unwrap().delimiter, '\t');
    for text in ["time-col=0", "time-col", "obj-id-col=x", "has-header=maybe", "delimiter=ab", "size-col=3"] {
        assert_eq!(parse(text).unwrap_err().to_string(), format!("trace parameters: cannot use `{text}`"));
    }
}
