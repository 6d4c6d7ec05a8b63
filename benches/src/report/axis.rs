//! Axes: from the values of a plot to a range and its ticks.

use std::ops::{Range, RangeInclusive};

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use super::units;

/// What a logarithmic axis can show; anything beyond is drawn at its edge.
const DECADES: RangeInclusive<i32> = -6..=12;
/// Ticks of an axis at most, so that their labels stay apart.
const MOST_TICKS: usize = 7;
/// The least and the largest extent of a linear axis.
const LEAST: f64 = 1e-12;
const LARGEST: f64 = 1e15;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// From 0.
    Linear,
    /// Zero and less are drawn at the lower edge.
    Log,
    /// Shares from 0 to 1, labelled 0 to 100.
    Percent,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    /// What it measures, with the unit.
    pub(super) label: &'static str,
    pub(super) scale: Scale,
}

/// An axis fitted to values, as `plotters` draws it.
#[derive(Debug)]
pub(super) struct Fitted {
    scale: Scale,
    lower: f64,
    upper: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// A value in the axis's unit.
    pub(super) fn text(self, value: f64) -> String {
        units::number(if self.scale == Scale::Percent { value * 100.0 } else { value })
    }

    /// The range that holds all finite `values`.
    pub(super) fn fit(self, values: impl Iterator<Item = f64>) -> Fitted {
        let values = values.filter(|value| value.is_finite());
        match self.scale {
            Scale::Linear => linear(values.fold(0.0, f64::max).min(LARGEST)),
            Scale::Log => logarithmic(values),
            Scale::Percent => {
                let ticks = (0..=5).map(|fifth| f64::from(fifth) / 5.0).collect();
                Fitted { scale: Scale::Percent, lower: 0.0, upper: 1.0, ticks }
            }
        }
    }
}

impl Fitted {
    /// Rows without ticks, each as high as 1.
    pub(super) fn rows(count: usize) -> Self {
        Self { scale: Scale::Linear, lower: 0.0, upper: count.max(1) as f64, ticks: Vec::new() }
    }

    /// How far along the axis a value is, 0 to 1; what lies beyond is at its end.
    fn along(&self, value: f64) -> f64 {
        let value = value.clamp(self.lower, self.upper);
        match self.scale {
            Scale::Log => (value / self.lower).ln() / (self.upper / self.lower).ln(),
            Scale::Linear | Scale::Percent => (value - self.lower) / (self.upper - self.lower),
        }
    }
}

impl Ranged for Fitted {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        start + (f64::from(end - start) * self.along(*value)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.lower..self.upper
    }
}

impl ValueFormatter<f64> for Fitted {
    fn format(value: &f64) -> String {
        units::tick(*value)
    }

    fn format_ext(&self, value: &f64) -> String {
        Self::format(&if self.scale == Scale::Percent { value * 100.0 } else { *value })
    }
}

fn linear(largest: f64) -> Fitted {
    let upper = if largest > LEAST { largest * 1.03 } else { 1.0 };
    let decade = 10_f64.powf((upper / MOST_TICKS as f64).log10().floor());
    let fits = |step: &f64| upper / step < MOST_TICKS as f64;
    let step = [1.0, 2.0, 5.0].map(|multiple| multiple * decade).into_iter().find(fits).unwrap_or(10.0 * decade);
    let ticks = (0..=(upper / step) as u32).map(|multiple| f64::from(multiple) * step).collect();
    Fitted { scale: Scale::Linear, lower: 0.0, upper, ticks }
}

/// Ends at 1, 2 or 5 of a decade, and has its ticks there or at the decades.
fn logarithmic(values: impl Iterator<Item = f64>) -> Fitted {
    let (least, most) = values
        .filter(|value| *value > 0.0)
        .fold((f64::INFINITY, 0.0), |(least, most), value| (value.min(least), value.max(most)));
    let (least, most) = if most > 0.0 { (least, most) } else { (1.0, 1.0) };
    let decade = |exponent: i32| [1.0, 2.0, 5.0].map(|multiple| multiple * 10_f64.powi(exponent));
    let steps: Vec<f64> = DECADES.flat_map(decade).collect();
    let mut first = steps.partition_point(|step| *step <= least).saturating_sub(1);
    let mut last = steps.partition_point(|step| *step < most).min(steps.len() - 1);
    if first >= last {
        first = last.saturating_sub(1);
        last = (first + 2).min(steps.len() - 1);
    }
    let mut ticks = steps[first..=last].to_vec();
    if ticks.len() > MOST_TICKS {
        let decades: Vec<f64> = (first..=last).filter(|index| index % 3 == 0).map(|index| steps[index]).collect();
        ticks = decades.iter().copied().step_by(decades.len().div_ceil(MOST_TICKS)).collect();
    }
    Fitted { scale: Scale::Log, lower: steps[first], upper: steps[last], ticks }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, values: &[f64]) -> Vec<String> {
        let fitted = Axis { label: "", scale }.fit(values.iter().copied());
        assert!(fitted.lower < fitted.upper && fitted.ticks.len() <= MOST_TICKS, "{fitted:?}");
        for value in values.iter().chain(&fitted.ticks).filter(|value| value.is_finite()) {
            assert!((100..=900).contains(&fitted.map(value, (100, 900))), "{value} is outside {fitted:?}");
        }
        fitted.ticks.iter().map(|tick| fitted.format_ext(tick)).collect()
    }

    #[test]
    fn linear_ticks_are_round() {
        assert_eq!(labels(Scale::Linear, &[3.0, 47.0]), ["0", "10", "20", "30", "40"]);
        assert_eq!(labels(Scale::Linear, &[0.6]), ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]);
    }

    #[test]
    fn log_ticks_are_round() {
        assert_eq!(labels(Scale::Log, &[3.0, 47.0]), ["2", "5", "10", "20", "50"]);
        assert_eq!(labels(Scale::Log, &[0.3, 4_700.0]), ["1", "10", "100", "1\u{202f}000"]);
    }

    #[test]
    fn odd_values_still_make_an_axis() {
        let lists: [&[f64]; 6] =
            [&[], &[0.0], &[f64::NAN, f64::INFINITY], &[-1.0, 5.0], &[5e-324, f64::MAX], &[f64::MIN_POSITIVE]];
        for values in lists {
            for scale in [Scale::Linear, Scale::Log, Scale::Percent] {
                assert!(!labels(scale, values).is_empty(), "{values:?}");
            }
        }
    }

    #[test]
    fn a_log_axis_draws_zero_at_its_edge() {
        let fitted = Axis { label: "", scale: Scale::Log }.fit([0.0, 10.0, 70.0].into_iter());
        assert_eq!([0.0, 10.0, 100.0].map(|value| fitted.map(&value, (0, 300))), [0, 0, 300]);
    }
}
