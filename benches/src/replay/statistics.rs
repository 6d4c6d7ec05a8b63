//! From what was measured to what is shown.

use std::collections::HashMap;
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
    pub kind: Kind,
    /// `None` if it failed.
    pub answer: Option<Answer>,
}

/// What a cache can have known of a request's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing of one of them: no request came before.
    Cold,
    /// The first request for one of them was still under way.
    Joined,
    /// All of them had been read.
    Repeat,
}

/// Tells the requests that came while the first one for an object of theirs was under way from those that came later.
///
/// `round` holds the samples of each side, by request; `firsts` the requests that read the objects of each first. What counts is
/// the side that took longest for such a first request, so the same requests are told on all sides.
pub fn tell_joined(firsts: &[Vec<usize>], round: &mut [Vec<Sample>]) {
    let end = |request: usize| round.iter().map(|side| side[request].due + side[request].response).max().unwrap_or_default();
    let ends: HashMap<usize, Duration> = firsts.iter().flatten().map(|first| (*first, end(*first))).collect();
    for samples in round {
        for (sample, firsts) in samples.iter_mut().zip(firsts) {
            if sample.kind == Kind::Repeat && firsts.iter().any(|first| sample.due < ends[first]) {
                sample.kind = Kind::Joined;
            }
        }
    }
}

/// A side's figures. Means and percentiles are of the requests that did not fail; not a number if all did.
pub fn side(name: &str, samples: &[Sample], counts: StoreCounts) -> report::Side {
    let ok = || samples.iter().filter_map(|sample| Some((sample, sample.answer?)));
    let mut times: Vec<f64> = ok().map(|(sample, _)| ms(sample.response)).collect();
    times.sort_by(f64::total_cmp);
    let of_stage = |stage: fn(&Answer) -> Duration| mean(ok().map(|(_, answer)| ms(stage(&answer))));
    let of_kind = |kind: Kind| {
        let mean = mean(ok().filter(|(sample, _)| sample.kind == kind).map(|(sample, _)| ms(sample.response)));
        Some(mean).filter(|mean| mean.is_finite())
    };
    let mut responses: Vec<report::Response> = samples.iter().map(response).collect();
    responses.sort_by(|one, other| one.at_s.total_cmp(&other.at_s));
    report::Side {
        name: name.to_owned(),
        mean_ms: mean(times.iter().copied()),
        p50_ms: percentile(&times, 0.5),
        p99_ms: percentile(&times, 0.99),
        cold_ms: of_kind(Kind::Cold),
        joined_ms: of_kind(Kind::Joined),
        repeat_ms: of_kind(Kind::Repeat),
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

    fn sample(response_ms: u64, kind: Kind) -> Sample {
        let time = Duration::from_millis;
        let answer = Answer { rows: 1, fetch: time(response_ms / 2), decode: time(1), server: time(2), hits: 1, misses: 3 };
        Sample { due: time(response_ms), response: time(response_ms), kind, answer: Some(answer) }
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
    fn cold_joined_and_repeated_requests_have_means_of_their_own() {
        let samples = [sample(100, Kind::Cold), sample(30, Kind::Joined), sample(10, Kind::Repeat), sample(20, Kind::Repeat)];
        let side = side("direct", &samples, StoreCounts { requests: 5, bytes: 7 });
        assert!(close(side.mean_ms, 40.0) && close(side.p50_ms, 20.0) && close(side.p99_ms, 100.0));
        assert_eq!((side.cold_ms, side.joined_ms, side.repeat_ms), (Some(100.0), Some(30.0), Some(15.0)));
        assert!(close(side.fetch_ms, 20.0) && close(side.decode_ms, 1.0) && close(side.server_ms, 2.0));
        assert_eq!((side.hits, side.misses, side.store_requests, side.store_bytes), (4, 12, 5, 7));
        assert!(close(side.responses[0].at_s, 0.01) && close(side.responses[0].hit_share, 0.25));
    }

    #[test]
    fn a_request_joins_while_the_slowest_side_reads_its_objects_first() {
        // Requests at 0 for a, 10 for b, 20 for a, 30 for b, 40 for a and b, 50 for a, 55 for c and a.
        let firsts = [vec![0], vec![1], vec![0], vec![1], vec![0, 1], vec![0], vec![6, 0]];
        let due = [0, 10, 20, 30, 40, 50, 55];
        let side = |responses: [u64; 7]| -> Vec<Sample> {
            let samples = (0..).zip(&firsts).zip(due.into_iter().zip(responses));
            let sample = |((request, firsts), (due, response)): ((usize, &Vec<usize>), (u64, u64))| Sample {
                due: Duration::from_millis(due),
                kind: if firsts.contains(&request) { Kind::Cold } else { Kind::Repeat },
                ..sample(response, Kind::Repeat)
            };
            samples.map(sample).collect()
        };
        let kinds = |sides: &[Vec<Sample>]| -> Vec<Vec<Kind>> {
            let mut round = sides.to_vec();
            tell_joined(&firsts, &mut round);
            round.iter().map(|side| side.iter().map(|sample| sample.kind).collect()).collect()
        };
        let (fast, slow) = (side([5, 5, 1, 1, 1, 1, 1]), side([20, 31, 900, 1, 1, 1, 1]));
        // Alone, the fast side has answered both first requests when the third comes.
        let [cold, joined, repeat] = [Kind::Cold, Kind::Joined, Kind::Repeat];
        assert_eq!(kinds(std::slice::from_ref(&fast)), [[cold, cold, repeat, repeat, repeat, repeat, cold]]);
        // a is there at 20, which is when the third is due; b at 41. How long a repeat takes is of no consequence.
        let expected = [cold, cold, repeat, joined, joined, repeat, cold];
        assert_eq!(kinds(&[fast.clone(), slow.clone()]), [expected; 2]);
        assert_eq!(kinds(&[slow, fast]), [expected; 2], "the order of the sides does not matter");
    }

    #[test]
    fn a_first_request_that_fails_is_under_way_until_it_has_failed() {
        let at = |due_ms, kind| Sample { due: Duration::from_millis(due_ms), ..sample(30, kind) };
        let failed = Sample { answer: None, ..at(0, Kind::Cold) };
        let mut round = [vec![failed, at(29, Kind::Repeat), at(30, Kind::Repeat)]];
        tell_joined(&[vec![0], vec![0], vec![0]], &mut round);
        assert_eq!(round[0].iter().map(|sample| sample.kind).collect::<Vec<_>>(), [Kind::Cold, Kind::Joined, Kind::Repeat]);
    }

    #[test]
    fn failed_requests_count_and_are_left_out_of_the_means() {
        let failed = Sample { answer: None, ..sample(9_000, Kind::Repeat) };
        let some = side("direct", &[sample(10, Kind::Cold), failed], StoreCounts::default());
        assert!(close(some.mean_ms, 10.0) && some.errors == 1 && some.repeat_ms.is_none() && some.joined_ms.is_none());
        assert!(!some.responses[1].ok);
        let none = side("direct", &[failed], StoreCounts::default());
        assert!(none.mean_ms.is_nan() && none.p50_ms.is_nan());
    }

    #[test]
    fn ratios_are_to_the_direct_side_wherever_it_stands() {
        let of = |name, ms| side(name, &[sample(ms, Kind::Cold)], StoreCounts::default());
        let mut sides = [of("flightcache", 10), of("direct", 40)];
        compare(&mut sides);
        assert_eq!(sides.each_ref().map(|side| side.speedup_over_direct), [Some(4.0), Some(1.0)]);
        let mut alone = [of("flightcache", 10)];
        compare(&mut alone);
        assert_eq!(alone[0].speedup_over_direct, None);
        assert_eq!([ratio(None, Some(1.0)), ratio(Some(1.0), Some(0.0)), ratio(Some(6.0), Some(4.0))], [None, None, Some(1.5)]);
    }
}
