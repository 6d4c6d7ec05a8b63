//! The traces Flightcache is compared with its predecessor on; `original/README.md` says where they come from.

use crate::import::{ObjectSize, two_column};
use crate::trace::Trace;

const FILES: [(&str, &str); 5] = [
    ("1m", include_str!("../original/trace_1m.csv")),
    ("100m", include_str!("../original/trace_100m.csv")),
    ("parallel", include_str!("../original/trace_parallel.csv")),
    ("serial", include_str!("../original/trace_serial.csv")),
    ("repeat", include_str!("../original/trace_repeat.csv")),
];

/// Float64 columns of each file, named `0` to `19`.
pub const COLUMNS: u64 = 20;

/// The original traces by name. Objects are called `{index}.parquet`.
///
/// # Panics
/// Never: the files are part of this crate, and a test reads them all.
pub fn all() -> [(&'static str, Trace); 5] {
    FILES.map(|(name, csv)| (name, two_column(csv.as_bytes(), object_size).expect("the embedded traces are well-formed")))
}

/// Size of the file with this index; `None` if the traces have no such file.
pub fn object_size(file: u64) -> Option<ObjectSize> {
    let rows = match file {
        1..=9 => 5_500,
        10..=19 => 600_000,
        _ => return None,
    };
    Some(ObjectSize { rows, bytes: rows * COLUMNS * size_of::<f64>() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_traces_are_complete() {
        let summary = all().map(|(name, trace)| {
            let last_us = trace.accesses.last().unwrap().at_us;
            (name, trace.requests().count(), last_us, crate::footprint_bytes(&trace))
        });
        let (small, large) = (880_000, 96_000_000);
        assert_eq!(
            summary,
            [
                ("1m", 20, 5_093_000, 5 * small),
                ("100m", 20, 4_572_000, 5 * large),
                ("parallel", 160, 5_530_000, 9 * small + 4 * large),
                ("serial", 16, 60_000_000, 5 * small + 3 * large),
                ("repeat", 25, 20_038_000, 5 * large),
            ]
        );
    }

    #[test]
    fn a_line_is_a_request_for_a_whole_file() {
        let [_, (_, trace), ..] = all();
        assert_eq!(trace.accesses[1], crate::Access::whole_object(8_000, 2, "10.parquet", 96_000_000, 600_000));
        assert_eq!(trace.accesses[1].to_line().unwrap(), LINE);
    }

    const LINE: &str =
        r#"{"at_us":8000,"request":2,"url":"10.parquet","row_group":null,"columns":["*"],"bytes":[96000000],"rows":600000}"#;
}
