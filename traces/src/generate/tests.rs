use std::collections::HashMap;

use super::*;

const LOAD: Load = Load { seed: 7, requests: 20_000, rate_per_s: 100.0 };
const HOT: Hot = Hot { objects: 100, exponent: 1.0, object_bytes: 16_000 };
const SCANS: Scans = Scans { share: 0.3, length: 50, objects: 400, object_bytes: 160_000 };
const ON_OFF: OnOff = OnOff { mean_on_s: 2.0, mean_off_s: 8.0 };

fn seconds(trace: &Trace) -> f64 {
    trace.accesses.last().unwrap().at_us as f64 / 1e6
}

/// The value is within `tolerance`, a share, of what is expected.
fn assert_near(value: f64, expected: f64, tolerance: f64) {
    assert!((value / expected - 1.0).abs() < tolerance, "{value} is not near {expected}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let generators: [fn(Load) -> Trace; 3] =
        [|load| zipf(load, HOT).unwrap(), |load| scan_mix(load, HOT, SCANS).unwrap(), |load| bursts(load, HOT, ON_OFF).unwrap()];
    for generate in generators {
        let trace = generate(LOAD);
        assert_eq!(trace, generate(LOAD));
        assert_ne!(trace, generate(Load { seed: 8, ..LOAD }));
        let mut lines = Vec::new();
        trace.write(&mut lines).unwrap();
        assert_eq!(Trace::read(&lines[..]).unwrap(), trace);
        assert_eq!(trace.requests().count() as u64, LOAD.requests);
    }
}

#[test]
fn ranks_follow_zipfs_law() {
    let trace = zipf(Load { requests: 200_000, ..LOAD }, HOT).unwrap();
    let mut counts = HashMap::new();
    for access in &trace.accesses {
        assert_eq!((access.bytes[0], access.rows), (16_000, 100));
        *counts.entry(&*access.url).or_insert(0_u32) += 1;
    }
    let harmonic: f64 = (1..=HOT.objects).map(|rank| 1.0 / rank as f64).sum();
    for rank in [1, 2, 3, 10, 30, 100] {
        let count = f64::from(counts[format!("{rank}.parquet").as_str()]);
        assert_near(count, 200_000.0 / harmonic / f64::from(rank), 0.2);
    }
}

#[test]
fn arrivals_are_poisson() {
    let trace = zipf(LOAD, HOT).unwrap();
    let times = trace.accesses.iter().map(|access| access.at_us as f64 / 1e6);
    let gaps: Vec<f64> = times.clone().skip(1).zip(times).map(|(next, time)| next - time).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
    assert_near(mean, 0.01, 0.05);
    assert_near(variance.sqrt(), 0.01, 0.05);
}

#[test]
fn scans_take_their_share_in_whole_sequences() {
    for share in [0.0, 0.3, 1.0] {
        let trace = scan_mix(Load { requests: 100_000, ..LOAD }, HOT, Scans { share, ..SCANS }).unwrap();
        let scanned: Vec<&str> = trace.accesses.iter().map(|a| &*a.url).filter(|url| url.starts_with("scan")).collect();
        assert!((scanned.len() as f64 / 1e5 - share).abs() < 0.03, "{} of {share}", scanned.len());
        for (position, url) in scanned.iter().enumerate() {
            assert_eq!(*url, format!("scan-{}.parquet", position as u64 % SCANS.objects + 1));
        }
        let runs = trace.accesses.chunk_by(|a, b| a.url.starts_with("scan") == b.url.starts_with("scan"));
        let mut scans = runs.filter(|run| run[0].url.starts_with("scan")).map(<[Access]>::len);
        // The trace may end within the last.
        scans.next_back();
        assert!(scans.all(|run| (run as u64).is_multiple_of(SCANS.length)));
    }
}

#[test]
fn bursts_pause() {
    let steady = seconds(&zipf(LOAD, HOT).unwrap());
    let trace = bursts(LOAD, HOT, ON_OFF).unwrap();
    // On for a fifth of the time.
    assert_near(seconds(&trace), 5.0 * steady, 0.3);
    let pauses = trace.accesses.windows(2).filter(|pair| pair[1].at_us - pair[0].at_us > 1_000_000).count();
    assert!((50..150).contains(&pauses), "{pauses} pauses in about 100 bursts");
}

#[test]
fn impossible_parameters_are_refused() {
    for rate_per_s in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(zipf(Load { rate_per_s, ..LOAD }, HOT).is_err());
    }
    assert!(zipf(LOAD, Hot { objects: 0, ..HOT }).is_err());
    assert!(zipf(LOAD, Hot { exponent: -1.0, ..HOT }).is_err());
    assert!(zipf(LOAD, Hot { exponent: f64::NAN, ..HOT }).is_err());
    for scans in [Scans { share: 1.1, ..SCANS }, Scans { share: f64::NAN, ..SCANS }, Scans { length: 0, ..SCANS }] {
        assert!(scan_mix(LOAD, HOT, scans).is_err());
    }
    assert!(bursts(LOAD, HOT, OnOff { mean_on_s: 0.0, ..ON_OFF }).is_err());
}
