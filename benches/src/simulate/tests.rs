use clap::Parser;
use flightcache_traces::{Access, Belady, ItemKey, Lru, Policy, Trace, footprint_bytes, simulate};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn parse(args: &[&str]) -> Result<Options, String> {
    let cli = Cli::try_parse_from([&["simulate"], args].concat());
    cli.map(|cli| cli.options).map_err(|error| error.to_string())
}

/// Requests for whole objects, skewed towards the first; sizes by object.
fn random_trace(seed: u64, requests: u64, sizes: &[u64]) -> Trace {
    let mut random = StdRng::seed_from_u64(seed);
    let access = |request| {
        let object = random.random_range(0..sizes.len()).min(random.random_range(0..sizes.len()));
        Access::whole_object(request, request, object.to_string(), sizes[object], 1)
    };
    Trace { accesses: (1..=requests).map(access).collect() }
}

/// Checks the capacity after each access.
struct Checked<'a>(SegmentedLru<'a>, u64);

impl Policy for Checked<'_> {
    fn access(&mut self, key: ItemKey, bytes: u64, request: u64, next_use: Option<u64>) -> bool {
        let hit = self.0.access(key, bytes, request, next_use);
        assert!(self.0.resident_bytes() <= self.1);
        hit
    }
}

#[test]
fn without_a_protected_share_it_is_plain_lru() {
    for seed in 0..6 {
        let sizes: Vec<u64> = (0..40).map(|object| 1 + (object * 7 + seed) % 9).collect();
        let trace = random_trace(seed, 1_000, &sizes);
        let slots = SegmentedLru::slots(&trace);
        // The smallest hold less than the largest items.
        for capacity in [0, 5, 8, 40, 100, footprint_bytes(&trace)] {
            for partitions in [1, 16] {
                let ours = simulate(&trace, &mut Checked(SegmentedLru::new(capacity, 0.0, partitions, &slots), capacity));
                assert_eq!(ours, simulate(&trace, &mut Lru::new(capacity)), "seed {seed}, capacity {capacity}");
            }
        }
    }
}

#[test]
fn the_capacity_holds_and_partitions_change_nothing() {
    for seed in 0..4 {
        let sizes: Vec<u64> = (0..40).map(|object| 1 + (object * 5 + seed) % 20).collect();
        let trace = random_trace(seed, 1_000, &sizes);
        let slots = SegmentedLru::slots(&trace);
        for capacity in [10, 60, 200] {
            let [one, many] = [1, 16]
                .map(|partitions| simulate(&trace, &mut Checked(SegmentedLru::new(capacity, 0.8, partitions, &slots), capacity)));
            assert_eq!(one, many);
        }
    }
}

#[test]
fn with_items_of_one_size_it_is_never_above_belady() {
    for seed in 0..4 {
        let trace = random_trace(seed, 1_000, &[3; 60]);
        let slots = SegmentedLru::slots(&trace);
        for capacity in [3, 30, 90, 180] {
            let belady = simulate(&trace, &mut Belady::new(capacity)).item_hits;
            for share in [0.0, 0.5, 0.8, 1.0] {
                let ours = simulate(&trace, &mut SegmentedLru::new(capacity, share, 16, &slots)).item_hits;
                assert!(ours <= belady, "{ours} of {belady} with {share} at {capacity}");
            }
        }
    }
}

#[test]
fn items_have_the_slots_of_their_row_groups() {
    let line = |request, row_group, columns: &[&str]| Access {
        row_group,
        columns: columns.iter().copied().map(std::sync::Arc::from).collect(),
        bytes: vec![1; columns.len()],
        ..Access::whole_object(0, request, "t", 0, 1)
    };
    let accesses = vec![line(1, Some(0), &["a", "b"]), line(1, Some(1), &["a"]), line(2, Some(0), &["b"]), line(3, None, &["*"])];
    let trace = Trace { accesses };
    let slots = SegmentedLru::slots(&trace).iter().map(|slot| slot.get()).collect::<Vec<_>>();
    assert_eq!(slots.len(), 4);
    assert_eq!((slots[0], slots[0]), (slots[1], slots[3]));
    assert_ne!(slots[0], slots[2]);
    // Every item of the trace has a slot.
    simulate(&trace, &mut SegmentedLru::new(2, 0.8, 16, &SegmentedLru::slots(&trace)));
}

#[test]
fn a_scan_spares_what_was_used_twice() {
    let request = |(request, object): (u64, u64)| Access::whole_object(0, request, object.to_string(), 1, 1);
    // Ten objects twice, a scan of a hundred others, the ten again.
    let objects = (0..10).chain(0..10).chain(100..200).chain(0..10);
    let trace = Trace { accesses: (1..).zip(objects).map(request).collect() };
    let simulation = measure("t".to_owned(), &trace, &[20.0], &[0.8]);
    let rates: Vec<_> = simulation.points.iter().map(|point| (point.policy.as_str(), point.hit_rate_by_requests)).collect();
    assert_eq!(rates, [("LRU", 10.0 / 130.0), ("segmented LRU 0.8", 20.0 / 130.0), ("Belady", 20.0 / 130.0)]);
    assert_eq!(simulation.points[0].capacity_bytes, 22);
    let text = table(&simulation).to_string();
    assert!(text.contains("+7.7") && text.contains("100.0"), "{text}");
}

#[test]
fn the_known_traces_are_what_they_say() {
    for (name, requests, objects) in [("serial", 16, 8), ("rounds", 40_000, 2_000)] {
        let Workload { trace, .. } = workload(name, Scale::Simulated).unwrap();
        assert_eq!((trace.requests().count(), SegmentedLru::slots(&trace).len()), (requests, objects), "{name}");
    }
    let Workload { trace, .. } = workload("shift", Scale::Simulated).unwrap();
    assert!(trace.accesses.is_sorted_by_key(|access| access.at_us));
    assert_eq!(trace.requests().count(), 40_000);
}

#[test]
fn it_stays_near_lru_and_gains_where_scans_are() {
    let above_lru = |name: &str, percents: &[f64]| {
        let simulation = measure(name.to_owned(), &workload(name, Scale::Simulated).unwrap().trace, percents, &[0.8]);
        let points = simulation.points.chunks(3).map(|point| (point[1].hit_rate_by_bytes - point[0].hit_rate_by_bytes) * 100.0);
        points.collect::<Vec<_>>()
    };
    for (name, at_least) in [
        ("zipf", [6.5, 0.5]),
        ("scan-mix", [6.5, 2.0]),
        ("hot-scan", [1.0, 10.0]),
        ("shift", [2.0, -1.0]),
        ("rounds", [0.0, -3.0]),
    ] {
        let above = above_lru(name, &[5.0, 40.0]);
        assert!(above.iter().zip(at_least).all(|(above, least)| *above >= least), "{name}: {above:?}");
    }
}

#[test]
fn traces_come_from_files_too() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let trace = random_trace(1, 10, &[1, 2]);
    trace.write(&mut file).unwrap();
    assert_eq!(workload(&path, Scale::Simulated).unwrap().trace, trace);

    std::fs::write(&path, format!("{}\nnonsense\n", trace.accesses[0].to_line().unwrap())).unwrap();
    let error = workload(&path, Scale::Simulated).err().unwrap().to_string();
    assert!(error.starts_with(&format!("{path}: trace line 2: ")), "{error}");

    let error = workload("zipfian", Scale::Simulated).err().unwrap().to_string();
    assert!(
        error.contains("'zipfian'") && error.contains("serial, repeat, zipf, scan-mix, hot-scan, shift, rounds, bursts"),
        "{error}"
    );

    let directory = tempfile::tempdir().unwrap();
    let error = workload(directory.path().to_str().unwrap(), Scale::Simulated).err().unwrap().to_string();
    assert!(error.contains("directory"), "{error}");
}

#[test]
fn arguments_are_checked() {
    let options = parse(&["--shares", "100,5,5", "--protected-share", "0,0.8", "--trace", "1m", "--trace", "zipf"]).unwrap();
    assert_eq!(ascending(&options.shares), [5.0, 100.0]);
    assert_eq!(options.protected_share, [0.0, 0.8]);
    assert_eq!(options.traces, ["1m", "zipf"]);
    for shares in ["0", "1001", "-1", "5,,10", "half", "NaN"] {
        let error = parse(&[&format!("--shares={shares}")]).unwrap_err();
        assert!(error.contains("above 0 and at most 1000"), "{error}");
    }
    assert!(parse(&["--protected-share", "1.1"]).unwrap_err().contains("must be 0 to 1"));
}

#[test]
fn bytes_fit_where_arrays_do_not() {
    // A circle that fits as bytes, and not as arrays.
    let trace = Trace { accesses: (0..400).map(|at| Access::whole_object(at, at, (at % 40).to_string(), 1_000, 1)).collect() };
    let simulation = measure_forms("circle".to_owned(), &trace, &[50.0, 200.0], 5.0);
    let [arrow, parquet, auto, full @ ..] = &simulation.points[..] else { panic!("three forms at two capacities") };
    let first_round = 0.1;
    for point in [parquet, auto] {
        assert!((point.hit_rate_by_bytes - (1.0 - first_round)).abs() < 1e-9, "{point:?}");
    }
    assert!(arrow.hit_rate_by_bytes < 0.5);
    assert_eq!(parquet.decoded_share, Some(1.0));
    // What fits beside the bytes stays as arrays.
    assert!(auto.decoded_share.is_some_and(|share| share < 0.85), "{auto:?}");
    for point in full.iter().filter(|point| point.policy != "parquet") {
        assert!(point.decoded_share.is_some_and(|share| (share - first_round).abs() < 1e-9), "{point:?}");
    }
}
