//! From what was measured to the lines of the plots.

use super::plot::Line;
use super::{LoadStep, ResidencyPoint, Response, Side, SimulationPoint, WireRate};

/// Points of a curve at most: finer than a pixel of the plot, and the page stays small.
const MOST_POINTS: usize = 400;

/// A line a side; `names` tells each name's line style.
pub(super) fn of_sides<'a>(
    names: &[&str],
    sides: impl IntoIterator<Item = &'a Side>,
    points: fn(&Side) -> Vec<(f64, f64)>,
) -> Vec<Line> {
    let style = |side: &Side| names.iter().position(|name| *name == side.name).unwrap_or_default();
    sides.into_iter().map(|side| Line { name: side.name.clone(), style: style(side), points: points(side) }).collect()
}

/// A line a policy: hit rate by bytes against capacity in percent of the footprint.
pub(super) fn of_policies(names: &[&str], points: &[SimulationPoint]) -> Vec<Line> {
    let line = |(style, name): (usize, &&str)| {
        let own = points.iter().filter(|point| point.policy == *name);
        let mut points: Vec<_> = own.map(|point| (point.capacity_share * 100.0, point.hit_rate_by_bytes)).collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        Line { name: (*name).into(), style, points }
    };
    names.iter().enumerate().map(line).filter(|line| !line.points.is_empty()).collect()
}

/// A line a form of residency: a figure against the capacity as a share of what is read.
pub(super) fn of_forms(points: &[ResidencyPoint], value: fn(&ResidencyPoint) -> f64) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for point in points {
        let at = lines.iter().position(|line| line.name == point.form).unwrap_or_else(|| {
            lines.push(Line { name: point.form.clone(), style: lines.len(), points: Vec::new() });
            lines.len() - 1
        });
        lines[at].points.push((point.capacity_share, value(point)));
    }
    lines
}

/// A line a side: requests a second against how many are under way.
pub(super) fn of_rates(rates: &[WireRate]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for rate in rates {
        let at = lines.iter().position(|line| line.name == rate.side).unwrap_or_else(|| {
            lines.push(Line { name: rate.side.clone(), style: lines.len(), points: Vec::new() });
            lines.len() - 1
        });
        lines[at].points.push((rate.in_flight as f64, rate.requests_per_s));
    }
    lines
}

/// A line a percentile of the response times against the offered rate.
pub(super) fn percentiles(steps: &[LoadStep]) -> Vec<Line> {
    let line = |style, name: &str, time| Line { name: name.into(), style, points: against_offered(steps, time) };
    vec![
        line(0, "p50", |step| step.p50_ms),
        line(1, "p90", |step| step.p90_ms),
        line(2, "p99", |step| step.p99_ms),
        line(3, "p99.9", |step| step.p999_ms),
        line(4, "max", |step| step.max_ms),
    ]
}

/// The achieved rate against the offered one, and what it would be if the server kept up.
pub(super) fn throughput(steps: &[LoadStep]) -> Vec<Line> {
    let kept_up = Line { name: "as offered".into(), style: 0, points: against_offered(steps, |step| step.offered_per_s) };
    vec![kept_up, Line { name: "achieved".into(), style: 2, points: against_offered(steps, |step| step.achieved_per_s) }]
}

fn against_offered(steps: &[LoadStep], value: fn(&LoadStep) -> f64) -> Vec<(f64, f64)> {
    steps.iter().map(|step| (step.offered_per_s, value(step))).collect()
}

/// Share of the successful responses (y, 0 to 1) that took at most x milliseconds.
pub(super) fn response_times(side: &Side) -> Vec<(f64, f64)> {
    let mut times: Vec<f64> = successful(side).map(|response| response.response_ms).filter(|time| time.is_finite()).collect();
    times.sort_by(f64::total_cmp);
    let all = times.len() as f64;
    let steps = times.iter().enumerate().map(|(before, time)| (*time, (before + 1) as f64 / all));
    thinned(times.first().map(|first| (*first, 0.0)).into_iter().chain(steps).collect())
}

/// Mean hit share (y, 0 to 1) of the successful responses up to x seconds after the trace's start.
pub(super) fn hit_rate(side: &Side) -> Vec<(f64, f64)> {
    let mut shares: Vec<(f64, f64)> = successful(side)
        .map(|response| (response.at_s, response.hit_share))
        .filter(|(at, share)| at.is_finite() && share.is_finite())
        .collect();
    shares.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut sum = 0.0;
    for (count, (_, share)) in (1_u32..).zip(&mut shares) {
        sum += *share;
        *share = sum / f64::from(count);
    }
    thinned(shares)
}

fn successful(side: &Side) -> impl Iterator<Item = &Response> {
    side.responses.iter().filter(|response| response.ok)
}

/// Evenly spaced points of a curve, with its first and last.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points;
    }
    let last = points.len() - 1;
    (0..MOST_POINTS).map(|index| points[index * last / (MOST_POINTS - 1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(responses: impl IntoIterator<Item = (f64, f64, f64, bool)>) -> Side {
        let responses = responses
            .into_iter()
            .map(|(at_s, response_ms, hit_share, ok)| Response { at_s, response_ms, hit_share, ok, ..Response::default() })
            .collect();
        Side { responses, ..Side::default() }
    }

    #[test]
    fn curves_leave_out_failures_and_what_is_not_a_number() {
        let side =
            side([(2.0, 30.0, 1.0, true), (1.0, 10.0, 0.0, true), (0.0, 1.0, 1.0, false), (3.0, f64::NAN, f64::NAN, true)]);
        assert_eq!(response_times(&side), [(10.0, 0.0), (10.0, 0.5), (30.0, 1.0)]);
        assert_eq!(hit_rate(&side), [(1.0, 0.0), (2.0, 0.5)]);
    }

    #[test]
    fn nothing_makes_no_points() {
        assert_eq!(response_times(&side([])), []);
        assert_eq!(hit_rate(&side([])), []);
    }

    #[test]
    fn long_curves_are_thinned_and_keep_their_ends() {
        let side = side((0..100_000).map(|at| (f64::from(at), f64::from(at) + 1.0, 1.0, true)));
        let times = response_times(&side);
        assert_eq!(times.len(), MOST_POINTS);
        assert_eq!((times[0], times[MOST_POINTS - 1]), ((1.0, 0.0), (100_000.0, 1.0)));
        assert_eq!(hit_rate(&side).last(), Some(&(99_999.0, 1.0)));
    }
}
