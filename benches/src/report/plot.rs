//! Lines and stacked bars as SVG, in colours that the page's style sheet sets.
//!
//! `plotters` knows only fixed colours, so each ink is drawn in a colour of its own that stands for a CSS custom property and
//! is replaced by it at the end. Plots are drawn at twice the size they are shown at, because `plotters` rounds to whole pixels.

use std::error::Error;

use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::ReportError;
use super::axis::{Axis, Fitted};
use super::units;

/// The page's custom properties, in the order of their inks.
const PROPERTIES: [&str; 12] = [
    "ink", "grid", "series-1", "series-2", "series-3", "series-4", "series-5", "series-6", "stage-1", "stage-2", "stage-3",
    "stage-4",
];
const INK: RGBColor = ink(0);
const GRID: RGBColor = ink(1);
const SERIES: usize = 6;
const STAGES: usize = 4;

const WIDTH: u32 = 880;
const HEIGHT: u32 = 600;
const BAR_HEIGHT: u32 = 120;
/// `plotters` writes a size divided by 1.24.
const FONT: f64 = 28.0 * 1.24;
const LABEL_AREA: u32 = 84;
/// Half a label may stand out at the end of an axis.
const MARGIN: u32 = 18;
const TICK: u32 = 10;
/// Below so many points, each is marked.
const MOST_MARKS: usize = 30;
/// Letters of a bar's name that fit above it.
const NAME_LETTERS: usize = 40;

pub(super) struct Line {
    pub(super) name: String,
    /// Which of the page's line styles; they repeat after six.
    pub(super) style: usize,
    pub(super) points: Vec<(f64, f64)>,
}

pub(super) struct LinePlot {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
}

pub(super) struct Bar {
    pub(super) name: String,
    pub(super) parts: Vec<f64>,
}

pub(super) struct BarPlot {
    pub(super) title: String,
    pub(super) x: Axis,
    /// Of the whole bar, behind its number.
    pub(super) unit: &'static str,
    pub(super) parts: &'static [&'static str],
    pub(super) bars: Vec<Bar>,
}

/// The custom property of a line style.
pub(super) fn line_property(style: usize) -> String {
    format!("var(--{})", PROPERTIES[2 + style % SERIES])
}

/// The custom property of a part of a bar.
pub(super) fn part_property(part: usize) -> String {
    format!("var(--{})", PROPERTIES[2 + SERIES + part % STAGES])
}

impl LinePlot {
    /// The drawing; none if there is nothing to draw.
    pub(super) fn svg(&self) -> Result<Option<String>, ReportError> {
        let points = || self.lines.iter().flat_map(|line| &line.points).copied().filter(finite);
        if points().next().is_none() {
            return Ok(None);
        }
        let (x, y) = (self.x.fit(points().map(|point| point.0)), self.y.fit(points().map(|point| point.1)));
        let drawn = drawing(HEIGHT, |area| {
            let mut chart = ChartBuilder::on(area)
                .margin(MARGIN)
                .margin_right(40)
                .x_label_area_size(LABEL_AREA)
                .y_label_area_size(LABEL_AREA + 64)
                .build_cartesian_2d(x, y)?;
            styled(&mut chart.configure_mesh()).x_desc(self.x.label).y_desc(self.y.label).draw()?;
            for line in &self.lines {
                let points = line.points.iter().copied().filter(finite);
                let marks = if line.points.len() < MOST_MARKS { 7 } else { 0 };
                let colour = ink(2 + line.style % SERIES);
                chart.draw_series(LineSeries::new(points, colour.filled().stroke_width(5)).point_size(marks))?;
            }
            Ok(())
        });
        drawn.map(Some).map_err(|source| ReportError::Plot { plot: self.title.clone(), source })
    }

    /// The plot in words: where each line starts and ends.
    pub(super) fn description(&self) -> String {
        let ends = |line: &Line| match (line.points.first(), line.points.last()) {
            (Some(first), Some(last)) => {
                let [start, end] = [first, last].map(|(x, y)| format!("y {} at x {}", self.y.text(*y), self.x.text(*x)));
                format!("{} goes from {start} to {end}.", line.name)
            }
            _ => format!("{} has no points.", line.name),
        };
        let lines: Vec<String> = self.lines.iter().map(ends).collect();
        format!("{}: x is {}, y is {}. {}", self.title, self.x.label, self.y.label, lines.join(" "))
    }
}

impl BarPlot {
    /// The drawing; none if there is nothing to draw.
    pub(super) fn svg(&self) -> Result<Option<String>, ReportError> {
        if self.bars.iter().all(|bar| bar.total() <= 0.0) {
            return Ok(None);
        }
        let x = self.x.fit(self.bars.iter().map(Bar::total));
        let height = HEIGHT.max(LABEL_AREA + BAR_HEIGHT * self.bars.len() as u32);
        let drawn = drawing(height, |area| {
            let mut chart = ChartBuilder::on(area)
                .margin(MARGIN)
                .margin_right(40)
                .x_label_area_size(LABEL_AREA)
                .build_cartesian_2d(x, Fitted::rows(self.bars.len()))?;
            styled(&mut chart.configure_mesh()).x_desc(self.x.label).draw()?;
            for (row, bar) in self.bars.iter().rev().enumerate() {
                let bottom = row as f64;
                let mut from = 0.0;
                for (part, length) in bar.lengths().into_iter().enumerate() {
                    let corners = [(from, bottom + 0.14), (from + length, bottom + 0.56)];
                    let bar = Rectangle::new(corners, ink(2 + SERIES + part % STAGES).filled());
                    chart.draw_series((length > 0.0).then_some(bar))?;
                    from += length;
                }
                let name: String = bar.name.chars().take(NAME_LETTERS).collect();
                let label = format!("{name}: {} {}", units::number(bar.parts.iter().sum()), self.unit);
                chart.draw_series([Text::new(label, (0.0, bottom + 0.88), ("sans-serif", FONT).into_font().color(&INK))])?;
            }
            Ok(())
        });
        drawn.map(Some).map_err(|source| ReportError::Plot { plot: self.title.clone(), source })
    }

    /// The plot in words: the parts of each bar.
    pub(super) fn description(&self) -> String {
        let parts = |bar: &Bar| {
            let parts: Vec<String> =
                self.parts.iter().zip(bar.lengths()).map(|(part, length)| format!("{part} {}", units::number(length))).collect();
            format!("{}: {}.", bar.name, parts.join(", "))
        };
        let bars: Vec<String> = self.bars.iter().map(parts).collect();
        format!("{}: {}. {}", self.title, self.x.label, bars.join(" "))
    }
}

impl Bar {
    /// The parts, without what cannot be drawn.
    fn lengths(&self) -> Vec<f64> {
        self.parts.iter().map(|part| if part.is_finite() { part.max(0.0) } else { 0.0 }).collect()
    }

    fn total(&self) -> f64 {
        self.lengths().into_iter().sum()
    }
}

const fn ink(index: usize) -> RGBColor {
    RGBColor(0xFC, 0xFC, index as u8)
}

fn finite((x, y): &(f64, f64)) -> bool {
    x.is_finite() && y.is_finite()
}

/// Inks and font of the axes.
fn styled<'a, 'b, 'c, 'd>(mesh: &'a mut Mesh<'b, 'c, 'd>) -> &'a mut Mesh<'b, 'c, 'd> {
    let font = ("sans-serif", FONT).into_font().color(&INK);
    mesh.set_all_tick_mark_size(TICK)
        .axis_style(INK.stroke_width(2))
        .bold_line_style(GRID.stroke_width(2))
        .label_style(font.clone())
        .axis_desc_style(font)
}

type Mesh<'b, 'c, 'd> = MeshStyle<'b, 'c, Fitted, Fitted, SVGBackend<'d>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// An SVG element of what `draw` draws.
fn drawing(
    height: u32,
    draw: impl FnOnce(&Area) -> Result<(), Box<dyn Error + Send + Sync>>,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    draw(&area)?;
    area.present()?;
    drop(area);
    // Inside HTML, SVG needs no name space. Quotes in texts are escaped, so only attributes match.
    svg = svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
    for (index, property) in PROPERTIES.iter().enumerate() {
        svg = svg.replace(&format!("\"#FCFC{index:02X}\""), &format!("\"var(--{property})\""));
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::axis::Scale;

    const MS: Axis = Axis { label: "time, ms", scale: Scale::Linear };

    fn bars(parts: [f64; STAGES]) -> BarPlot {
        let bars = vec![Bar { name: "side".into(), parts: parts.to_vec() }];
        BarPlot { title: "T".into(), x: MS, unit: "ms", parts: &["a", "b", "c", "d"], bars }
    }

    #[test]
    fn the_style_sheet_knows_every_ink() {
        let style = include_str!("style.css");
        for property in PROPERTIES {
            assert!(style.contains(&format!("--{property}: #")), "{property}");
        }
    }

    #[test]
    fn lines_are_drawn_in_their_ink_and_told_in_words() {
        let y = Axis { label: "share, %", scale: Scale::Percent };
        let line = Line { name: "direct".into(), style: 7, points: vec![(1.0, 0.0), (2.0, f64::NAN), (4.0, 1.0)] };
        let plot = LinePlot { title: "T".into(), x: MS, y, lines: vec![line] };
        assert_eq!(plot.description(), "T: x is time, ms, y is share, %. direct goes from y 0.00 at x 1.00 to y 100 at x 4.00.");
        let svg = plot.svg().unwrap().unwrap();
        assert_eq!(svg.matches("<circle").count(), 2, "a point that is not a number has no mark");
        assert!(svg.contains("stroke=\"var(--series-2)\""), "styles repeat after six: {svg}");
    }

    #[test]
    fn a_bar_is_stacked_from_what_can_be_drawn() {
        let plot = bars([2.0, f64::NAN, 1.0, -0.5]);
        assert_eq!(plot.description(), "T: time, ms. side: a 2.00, b 0.00, c 1.00, d 0.00.");
        let svg = plot.svg().unwrap().unwrap();
        let drawn = [1, 2, 3, 4].map(|stage| svg.contains(&format!("fill=\"var(--stage-{stage})\"")));
        assert_eq!(drawn, [true, false, true, false]);
        assert_eq!(bars([0.0; STAGES]).svg().unwrap(), None);
    }
}
