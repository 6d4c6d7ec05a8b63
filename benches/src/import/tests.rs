use std::path::Path;

use clap::Parser;
use flightcache_traces::Access;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn import(directory: &Path, csv: &str, args: &[&str]) -> Result<Trace, String> {
    let (input, output) = (directory.join("in.csv"), directory.join("out.jsonl"));
    std::fs::write(&input, csv).unwrap();
    let files = [input.to_str().unwrap(), output.to_str().unwrap()];
    let cli = Cli::try_parse_from([&["import", "--format"], args, &files].concat()).map_err(|error| error.to_string())?;
    run(&cli.options).map_err(|error| error.to_string())?;
    Ok(Trace::read(BufReader::new(File::open(&output).unwrap())).unwrap())
}

#[test]
fn what_is_written_reads_back() {
    let directory = tempfile::tempdir().unwrap();
    let import = |csv, args: &[&str]| import(directory.path(), csv, args).unwrap().accesses;
    let two_column = "timestamp,file_index\n5,1\n9,10\n";
    assert_eq!(
        import(two_column, &["two-column"]),
        [
            Access::whole_object(0, 1, "1.parquet", 880_000, 5_500),
            Access::whole_object(4_000, 2, "10.parquet", 96_000_000, 600_000)
        ]
    );
    assert_eq!(
        import(two_column, &["two-column", "--bytes", "800", "--rows", "5"])[1],
        Access::whole_object(4_000, 2, "10.parquet", 800, 5)
    );
    let expected = [Access::whole_object(0, 1, "a.parquet", 17, 0), Access::whole_object(500_000, 2, "b.parquet", 4, 0)];
    assert_eq!(import("2,a,17\n2.5,b,4\n", &["libcachesim"]), expected);
    let params = "time-col=2,obj-id-col=3,obj-size-col=1,delimiter=;,has-header=true";
    assert_eq!(import("size;t;id\n17;2;a\n4;2.5;b\n", &["libcachesim", "--params", params]), expected);
}

#[test]
fn errors_name_the_file_and_the_line() {
    let directory = tempfile::tempdir().unwrap();
    let import = |csv, args: &[&str]| import(directory.path(), csv, args).unwrap_err();
    let error = import("timestamp,file_index\n5,1\n9,ten\n", &["two-column"]);
    assert!(error.contains("in.csv: trace line 3: column 2 is not a file index"), "{error}");
    assert!(!directory.path().join("out.jsonl").exists(), "nothing is written");
    let error = import("timestamp,file_index\n5,77\n", &["two-column"]);
    assert!(error.contains("line 2: no size is known for file 77"), "{error}");
    let error = import("1,a,1\n0,a,1\n", &["libcachesim"]);
    assert!(error.contains("line 2: time 0 µs"), "{error}");
}

#[test]
fn options_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let import = |args: &[&str]| import(directory.path(), "", args).unwrap_err();
    assert!(import(&["csv"]).contains("possible values: libcachesim, two-column"));
    assert!(import(&["two-column", "--bytes", "1"]).contains("--rows"));
    assert!(import(&["two-column", "--params", "time-col=1"]).contains("--params is of no use"));
    assert!(import(&["libcachesim", "--bytes", "1", "--rows", "1"]).contains("--bytes is of no use"));
    assert!(import(&["libcachesim", "--params", "time-col=0"]).contains("time-col=0"));
}

#[test]
fn a_missing_input_is_named() {
    let cli = Cli::try_parse_from(["import", "--format", "two-column", "/nowhere/in.csv", "-"]).unwrap();
    assert!(run(&cli.options).unwrap_err().to_string().starts_with("/nowhere/in.csv: No such file"));
}
