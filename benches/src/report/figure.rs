//! Plots as HTML figures: a title, a legend in the page's own text, and the plot with its description in words.

use maud::{Markup, PreEscaped, html};

use super::ReportError;
use super::plot::{BarPlot, LinePlot, line_property, part_property};

pub(super) fn lines(plot: &LinePlot) -> Result<Markup, ReportError> {
    let legend = html! {
        @for line in &plot.lines {
            li {
                svg.key viewBox="0 0 72 20" aria-hidden="true" {
                    line x1="0" y1="10" x2="72" y2="10" stroke-width="5" stroke=(line_property(line.style)) {}
                }
                (line.name)
            }
        }
    };
    Ok(figure(&plot.title, &legend, &plot.description(), plot.svg()?))
}

pub(super) fn bars(plot: &BarPlot) -> Result<Markup, ReportError> {
    let legend = html! {
        @for (index, part) in plot.parts.iter().enumerate() {
            li {
                svg.key viewBox="0 0 36 20" aria-hidden="true" {
                    rect x="2" y="2" width="32" height="16" fill=(part_property(index)) {}
                }
                (part)
            }
        }
    };
    Ok(figure(&plot.title, &legend, &plot.description(), plot.svg()?))
}

fn figure(title: &str, legend: &Markup, description: &str, svg: Option<String>) -> Markup {
    html! {
        figure {
            figcaption { (title) }
            @if let Some(svg) = svg {
                ul.legend { (legend) }
                div.plot role="img" aria-label=(description) { (PreEscaped(svg)) }
            } @else {
                p.muted { "Nothing to plot." }
            }
        }
    }
}
