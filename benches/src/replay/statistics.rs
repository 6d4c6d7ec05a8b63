//! From what was measured to what is shown.

use std::time::Duration;

use super::side::{Answer, StoreCounts};
use crate::report;

/// What one request of one round came to.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was due, from the trace's start.
    pub due: Duration,
    /// From then to its last row.
    pub response: Duration,
    /// Whether it was the first for any of its objects.
    pub cold: bool,
    /// `None` if it failed.
    pub answer: Option<Answer>,
}

/// A side's figures. Means and percentiles are of the requests that did not fail; not a number if all did.
pub fn side(name: &str, samples: &[Sample], counts: StoreCounts) -> report::Side {
    let ok = || samples.iter().filter_map(|sample| Some((sample, sample.answer?)));
    let mut times: Vec<f64> = ok().map(|(sample, _)| ms(sample.response)).collect();
    times.sort_by(f64::total_cmp);
    let of_stage = |stage: fn(&Answer) -> Duration| mean(ok().map(|(_, answer)| ms(stage(&answer))));
    let of_kind = |cold: bool| {
        let mean = mean(ok().filter(|(sample, _)| sample.cold == cold).map(|(sample, _)| ms(sample.response)));
        Some(mean).filter(|mean| mean.is_finite())
    };
    let mut responses: Vec<report::Response> = samples.iter().map(response).collect();
    responses.sort_by(|one, other| one.at_s.total_cmp(&other.at_s));
    report::Side {
        name: name.to_owned(),
        mean_ms: mean(times.iter().copied()),
        p50_ms: percentile(&times, 0.5),
        p99_ms: percentile(&times, 0.99),
        cold_ms: of_kind(true),
        repeat_ms: of_kind(false),
        fetch_ms: of_stage(|answer| answer.fetch),
        decode_ms: of_stage(|answer| answer.decode),
        server_ms: of_stage(|answer| answer.server),
        hits: ok().map(|(_, answer)| answer.hits).sum(),
        misses: ok().map(|(_, answer)| answer.misses).sum(),
        store_bytes: counts.bytes,
        store_requests: counts.requests,
        errors: samples.iter().filter(|sample| sample.answer.is_none()).count() as u64,
        speedup_over_direct: None,
        responses,
    }
}

fn response(sample: &Sample) -> report::Response {
    let answer = sample.answer.unwrap_or_default();
    report::Response {
        at_s: sample.due.as_secs_f64(),
        response_ms: ms(sample.response),
        fetch_ms: ms(answer.fetch),
        decode_ms: ms(answer.decode),
        server_ms: ms(answer.server),
        hit_share: answer.hit_share(),
        ok: sample.answer.is_some(),
    }
}

/// Fills in how many times faster than the direct side, if there is one, each is on average.
pub fn compare(sides: &mut [report::Side]) {
    let direct = sides.iter().find(|side| side.name == "direct").map(|side| side.mean_ms);
    for side in sides {
        side.speedup_over_direct = ratio(direct, Some(side.mean_ms));
    }
}

/// `one` divided by `other`, if there are both and they have a ratio.
pub fn ratio(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    let ratio = one? / other?;
    ratio.is_finite().then_some(ratio)
}

/// The smallest of ascending numbers that at least `share` of them do not exceed (nearest rank); not a number if there are none.
pub fn percentile(ascending: &[f64], share: f64) -> f64 {
    let rank = (share * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = numbers.fold((0_u64, 0.0), |(count, sum), number| (count + 1, sum + number));
    sum / count as f64
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(response_ms: u64, cold: bool) -> Sample {
        let time = Duration::from_millis;
        let answer = Answer { rows: 1, fetch: time(response_ms / 2), decode: time(1), server: time(2), hits: 1, misses: 3 };
        Sample { due: time(response_ms), response: time(response_ms), cold, answer: Some(answer) }
    }

    fn close(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-9
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        let at = |share| percentile(&hundred, share);
        assert!(
            close(at(0.5), 50.0)
                && close(at(0.99), 99.0)
                && close(at(0.991), 100.0)
                && close(at(1.0), 100.0)
                && close(at(0.0), 1.0)
        );
        assert!(close(percentile(&[7.0], 0.99), 7.0));
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn cold_and_repeated_requests_are_told_apart() {
        let samples = [sample(100, true), sample(10, false), sample(20, false), sample(30, false)];
        let side = side("direct", &samples, StoreCounts { requests: 5, bytes: 7 });
        assert!(close(side.mean_ms, 40.0) && close(side.p50_ms, 20.0) && close(side.p99_ms, 100.0));
        assert_eq!((side.cold_ms, side.repeat_ms), (Some(100.0), Some(20.0)));
        assert!(close(side.fetch_ms, 20.0) && close(side.decode_ms, 1.0) && close(side.server_ms, 2.0));
        assert_eq!((side.hits, side.misses, side.store_requests, side.store_bytes), (4, 12, 5, 7));
        assert!(close(side.responses[0].at_s, 0.01) && close(side.responses[0].hit_share, 0.25));
    }

    #[test]
    fn failed_requests_count_and_are_left_out_of_the_means() {
        let failed = Sample { answer: None, ..sample(9_000, false) };
        let some = side("direct", &[sample(10, true), failed], StoreCounts::default());
        assert!(close(some.mean_ms, 10.0) && some.errors == 1 && some.repeat_ms.is_none());
        assert!(!some.responses[1].ok);
        let none = side("direct", &[failed], StoreCounts::default());
        assert!(none.mean_ms.is_nan() && none.p50_ms.is_nan());
    }

    #[test]
    fn ratios_are_to_the_direct_side_wherever_it_stands() {
        let of = |name, ms| side(name, &[sample(ms, true)], StoreCounts::default());
        let mut sides = [of("flightcache", 10), of("direct", 40)];
        compare(&mut sides);
        assert_eq!(sides.each_ref().map(|side| side.speedup_over_direct), [Some(4.0), Some(1.0)]);
        let mut alone = [of("flightcache", 10)];
        compare(&mut alone);
        assert_eq!(alone[0].speedup_over_direct, None);
        assert_eq!([ratio(None, Some(1.0)), ratio(Some(1.0), Some(0.0)), ratio(Some(6.0), Some(4.0))], [None, None, Some(1.5)]);
    }
}
