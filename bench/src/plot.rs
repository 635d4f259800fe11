//! Charts of reports: latency by percentile, and bars of throughput, as SVG or PNG.
//!
//! The horizontal axis of the percentiles counts nines: 90 %, 99 %, 99.9 % … stand equally far apart,
//! since what matters about latency lies in its tail. The font is part of the program, so that a
//! chart looks alike everywhere and no font library is needed.

use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{register_font, text_anchor};

use crate::load::{Kind, Report};

pub(crate) const FONT: &str = "sans-serif";
pub(crate) const WIDTH_PX: u32 = 1000;
/// Height of each of the panels: percentiles, operations, bytes.
const PANEL_PX: u32 = 420;
pub(crate) const TITLE_PX: i32 = 20;
pub(crate) const LABEL_PX: i32 = 14;
/// Percentile lines between one nine and the next.
const STEPS_PER_NINE: u32 = 50;
/// Nines beyond which no histogram of a run has anything to say.
const NINES_MAX: f64 = 7.0;
const NS_PER_US: f64 = 1e3;

/// One line of the chart and one bar.
#[derive(Clone, Debug)]
pub struct Series<'a> {
    /// What the legend says.
    pub name: String,
    /// What is drawn.
    pub report: &'a Report,
}

/// Writes the chart of these reports; the ending of the file says whether it is SVG or PNG.
pub fn write(series: &[Series<'_>], out: &Path) -> Result<()> {
    ensure!(!series.is_empty(), "nothing to draw");
    load_font()?;
    let panels = Panel::needed_by(series);
    let size = (WIDTH_PX, PANEL_PX * u32::try_from(panels.len())?);
    let ending = out.extension().and_then(|ending| ending.to_str());
    let drawn = match ending {
        Some("svg") => draw(SVGBackend::new(out, size), series, &panels),
        Some("png") => draw(BitMapBackend::new(out, size), series, &panels),
        _ => bail!("{}: a chart ends in .svg or .png", out.display()),
    };
    drawn.with_context(|| format!("drawing {}", out.display()))
}

/// What is drawn below one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Panel {
    Percentiles,
    Operations,
    Bytes,
}

impl Panel {
    fn needed_by(series: &[Series<'_>]) -> Vec<Self> {
        let any = |wanted: fn(&Report) -> bool| series.iter().any(|one| wanted(one.report));
        let mut panels = Vec::new();
        if any(has_percentiles) {
            panels.push(Panel::Percentiles);
            panels.push(Panel::Operations);
        }
        if any(has_streams) || panels.is_empty() {
            panels.push(Panel::Bytes);
        }
        panels
    }
}

/// Whether a report's latency is that of requests, not the length of streams.
fn has_percentiles(report: &Report) -> bool {
    !matches!(report.kind, Kind::Bulk | Kind::Slow) && !report.latency_ns().is_empty()
}

fn has_streams(report: &Report) -> bool {
    matches!(
        report.kind,
        Kind::Bulk | Kind::Slow | Kind::Mixed | Kind::Answers
    )
}

pub(crate) fn load_font() -> Result<()> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    let is_loaded = LOADED
        .get_or_init(|| register_font(FONT, FontStyle::Normal, dejavu::sans::regular()).is_ok());
    ensure!(*is_loaded, "the font of the program is broken");
    Ok(())
}

fn draw<Backend: DrawingBackend>(
    backend: Backend,
    series: &[Series<'_>],
    panels: &[Panel],
) -> Result<()> {
    let root = backend.into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    for (panel, area) in panels.iter().zip(root.split_evenly((panels.len(), 1))) {
        match panel {
            Panel::Percentiles => {
                let lines: Vec<_> = series
                    .iter()
                    .filter(|one| has_percentiles(one.report))
                    .map(|one| (one.name.as_str(), one.report.latency_ns()))
                    .collect();
                draw_percentiles(&area, &lines, "latency by percentile")?;
            }
            Panel::Operations => {
                let values = values_of(series, |report| report.rates.operations);
                draw_bars(&area, series, &values, "operations per second")?;
            }
            Panel::Bytes => {
                let values = values_of(series, |report| {
                    (report.rates.bytes_sent + report.rates.bytes_received) / 1e9
                });
                draw_bars(&area, series, &values, "throughput, GB/s (sent + received)")?;
            }
        }
    }
    root.present().map_err(failed)
}

/// Draws a curve for each of these names and histograms of nanoseconds.
pub(crate) fn draw_percentiles<Backend: DrawingBackend>(
    area: &DrawingArea<Backend, Shift>,
    lines: &[(&str, &Histogram<u64>)],
    title: &str,
) -> Result<()> {
    let curves: Vec<Vec<(f64, f64)>> = lines.iter().map(|(_, latency)| curve(latency)).collect();
    let points = || curves.iter().flatten();
    let nines = points().map(|point| point.0).fold(1.0, f64::max);
    let lowest = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let highest = points().map(|point| point.1).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, TITLE_PX))
        .margin(15)
        .x_label_area_size(45)
        .y_label_area_size(85)
        .build_cartesian_2d(0.0..nines, (lowest * 0.8..highest * 1.25).log_scale())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .y_desc("latency, us")
        .x_labels(nines.ceil() as usize + 1)
        .x_label_formatter(&|nines| percentile_name(*nines))
        .y_label_formatter(&|us| plain(*us))
        .label_style((FONT, LABEL_PX))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    for (index, points) in curves.into_iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))
            .map_err(failed)?
            .label(lines[index].0)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, LABEL_PX))
        .draw()
        .map_err(failed)
}

fn values_of(series: &[Series<'_>], value: impl Fn(&Report) -> f64) -> Vec<f64> {
    series.iter().map(|one| value(one.report)).collect()
}

fn draw_bars<Backend: DrawingBackend>(
    area: &DrawingArea<Backend, Shift>,
    series: &[Series<'_>],
    values: &[f64],
    title: &str,
) -> Result<()> {
    let highest = values.iter().copied().fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.15 } else { 1.0 };
    let count = values.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, TITLE_PX))
        .margin(15)
        .x_label_area_size(45)
        .y_label_area_size(85)
        .build_cartesian_2d(0.0..count, 0.0..top)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_label_formatter(&|value| plain(*value))
        .label_style((FONT, LABEL_PX))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    let bars = values.iter().enumerate().map(|(index, value)| {
        let left = index as f64;
        let color = Palette99::pick(index).filled();
        Rectangle::new([(left + 0.15, 0.0), (left + 0.85, *value)], color)
    });
    chart.draw_series(bars).map_err(failed)?;
    let (_, bottom) = chart.plotting_area().get_pixel_range();
    for (index, (one, value)) in series.iter().zip(values).enumerate() {
        let (x, y) = chart.backend_coord(&(index as f64 + 0.5, *value));
        let (left, top) = area.get_base_pixel();
        let place = |y| (x - left, y - top);
        let style = (FONT, LABEL_PX).into_text_style(area);
        let style = style.pos(text_anchor::Pos::new(
            text_anchor::HPos::Center,
            text_anchor::VPos::Top,
        ));
        area.draw_text(&plain(*value), &style, place(y - LABEL_PX - 4))
            .map_err(failed)?;
        area.draw_text(&one.name, &style, place(bottom.end + 8))
            .map_err(failed)?;
    }
    Ok(())
}

/// The curve of a histogram: nines and microseconds.
fn curve(histogram_ns: &Histogram<u64>) -> Vec<(f64, f64)> {
    // Beyond the last operation there is nothing to draw.
    let nines = (histogram_ns.len() as f64).log10().clamp(1.0, NINES_MAX);
    let steps = (nines * f64::from(STEPS_PER_NINE)).ceil() as u32;
    (0..=steps)
        .map(|step| {
            let at = (f64::from(step) / f64::from(STEPS_PER_NINE)).min(nines);
            let quantile = 1.0 - 10_f64.powf(-at);
            let value_ns = histogram_ns.value_at_quantile(quantile).max(1);
            (at, value_ns as f64 / NS_PER_US)
        })
        .collect()
}

/// `2.0` nines are `99%`.
fn percentile_name(nines: f64) -> String {
    let digits = (nines.ceil() as usize).saturating_sub(2);
    let percent = 100.0 * (1.0 - 10_f64.powf(-nines));
    format!("{percent:.digits$}%")
}

/// A number without needless digits.
pub(crate) fn plain(value: f64) -> String {
    match value {
        value if value >= 100.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}

pub(crate) fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nines_have_the_names_of_their_percentiles() {
        let names: Vec<_> = (0..=5).map(|n| percentile_name(f64::from(n))).collect();
        assert_eq!(names, ["0%", "90%", "99%", "99.9%", "99.99%", "99.999%"]);
    }

    #[test]
    fn a_curve_ends_at_the_highest_value() {
        let mut histogram = crate::load::histogram();
        for us in 1..=1000 {
            histogram.record(us * 1000).unwrap();
        }
        let curve = curve(&histogram);
        let near = |(nines, us): (f64, f64), wanted: (f64, f64)| {
            (nines - wanted.0).abs() < 1e-9 && (us / wanted.1 - 1.0).abs() < 0.002
        };
        assert!(near(curve[0], (0.0, 1.0)), "{:?}", curve[0]);
        assert!(curve.iter().any(|point| near(*point, (1.0, 900.0))));
        assert!(near(*curve.last().unwrap(), (3.0, 999.0)));
    }
}
