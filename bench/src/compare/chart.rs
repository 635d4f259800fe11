//! The pictures of a run: CPU time as bars, latency as curves.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::peers::CORELAY;
use super::results::{Results, Sample, Unit};
use super::scenarios::{self, Scenario};
use super::statistics::Summary;
use crate::plot::{FONT, LABEL_PX, TITLE_PX, WIDTH_PX, draw_percentiles, failed, load_font, plain};

/// Scenarios whose CPU time is drawn.
const BARS: [&str; 6] = ["bulk-1", "bulk-4", "rr-8", "rr-64", "crr-fin", "crr-rst"];
/// Scenarios whose latency is drawn.
const CURVES: [&str; 5] = ["rr-1", "rr-64", "mixed", "mixed-paced", "open"];
/// Colour of Corelay's bars.
const OWN: RGBColor = RGBColor(200, 60, 40);
/// Colour of all others.
const OTHERS: RGBColor = RGBColor(150, 160, 170);
/// Height of one bar with the space around it.
const BAR_PX: i32 = 24;
/// Height of a panel's headline.
const HEAD_PX: i32 = 40;
/// Width left of the bars, for the names.
const NAME_PX: i32 = 180;
/// Width right of the longest bar, for its figure.
const FIGURE_PX: i32 = 150;
/// Height of a panel of curves.
const CURVES_PX: u32 = 480;

/// Draws what was measured into this folder; returns the names of the files.
pub(super) fn draw(results: &Results, folder: &Path) -> Result<Vec<String>> {
    load_font()?;
    let mut files = Vec::new();
    let panels: Vec<Panel> = BARS
        .iter()
        .filter_map(|name| Panel::of(results, name))
        .collect();
    if !panels.is_empty() {
        files.push("cpu.svg".to_owned());
        draw_bars(&panels, &folder.join("cpu.svg")).context("drawing cpu.svg")?;
    }
    for name in CURVES {
        let latency_of = |peer| Some((peer, results.latency_ns.get(&(name, String::from(peer)))?));
        let lines: Vec<_> = results
            .peers(name)
            .into_iter()
            .filter_map(latency_of)
            .filter(|(_, latency_ns)| !latency_ns.is_empty())
            .collect();
        if lines.is_empty() {
            continue;
        }
        let file = format!("latency-{name}.svg");
        let path = folder.join(&file);
        let root = SVGBackend::new(&path, (WIDTH_PX, CURVES_PX)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        draw_percentiles(&root, &lines, &format!("{name}: latency by percentile"))?;
        root.present().map_err(failed)?;
        files.push(file);
    }
    Ok(files)
}

/// The bars of one scenario.
struct Panel {
    scenario: &'static Scenario,
    bars: Vec<(String, Summary)>,
}

impl Panel {
    /// None if nothing was measured there.
    fn of(results: &Results, name: &str) -> Option<Self> {
        let scenario = scenarios::by_name(name)?;
        let bars: Vec<_> = results
            .peers(name)
            .into_iter()
            .filter_map(|peer| {
                let summary = results.summary(name, peer, Sample::cpu)?;
                Some((peer.to_owned(), summary))
            })
            .collect();
        (!bars.is_empty()).then_some(Self { scenario, bars })
    }

    fn height_px(&self) -> i32 {
        HEAD_PX + BAR_PX * self.bars.len() as i32
    }

    fn title(&self) -> String {
        let unit = match self.scenario.unit {
            Unit::Gigabyte => "CPU seconds per GB",
            Unit::Request => "CPU us per request",
            Unit::Connection => "CPU us per connection",
        };
        format!("{}: {unit} (median, min-max)", self.scenario.name)
    }
}

fn draw_bars(panels: &[Panel], path: &Path) -> Result<()> {
    let height: i32 = panels.iter().map(Panel::height_px).sum();
    let size = (WIDTH_PX, u32::try_from(height + BAR_PX)?);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let mut top = 0;
    for panel in panels {
        draw_panel(&root, panel, top)?;
        top += panel.height_px();
    }
    root.present().map_err(failed)
}

fn draw_panel<Backend: DrawingBackend>(
    root: &DrawingArea<Backend, Shift>,
    panel: &Panel,
    top: i32,
) -> Result<()> {
    let title = (FONT, TITLE_PX).into_text_style(root);
    let at = (NAME_PX, top + (HEAD_PX - TITLE_PX) / 2);
    root.draw_text(&panel.title(), &title, at).map_err(failed)?;
    let label = |side| {
        (FONT, LABEL_PX)
            .into_text_style(root)
            .pos(Pos::new(side, VPos::Center))
    };
    let longest = panel
        .bars
        .iter()
        .map(|(_, cpu)| cpu.max)
        .fold(0.0, f64::max);
    let width = f64::from(WIDTH_PX as i32 - NAME_PX - FIGURE_PX);
    let x = |value: f64| NAME_PX + (value / longest * width).round() as i32;
    for (index, (peer, cpu)) in panel.bars.iter().enumerate() {
        let y = top + HEAD_PX + BAR_PX * index as i32;
        let middle = y + BAR_PX / 2;
        let color = if peer == CORELAY { OWN } else { OTHERS };
        let bar = [(NAME_PX, y + 3), (x(cpu.median), y + BAR_PX - 3)];
        root.draw(&Rectangle::new(bar, color.filled()))
            .map_err(failed)?;
        let spread = vec![(x(cpu.min), middle), (x(cpu.max), middle)];
        root.draw(&PathElement::new(spread, BLACK))
            .map_err(failed)?;
        root.draw_text(peer, &label(HPos::Right), (NAME_PX - 8, middle))
            .map_err(failed)?;
        let figure = format!(
            "{} ({}-{})",
            plain(cpu.median),
            plain(cpu.min),
            plain(cpu.max)
        );
        root.draw_text(&figure, &label(HPos::Left), (x(cpu.max) + 8, middle))
            .map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::sample;
    use crate::load::histogram;

    #[test]
    fn what_was_measured_is_drawn_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::default();
        assert!(draw(&results, folder.path()).unwrap().is_empty());
        results.samples.push(sample("rr-64", "corelay", 1, 12.5));
        results.samples.push(sample("rr-64", "nginx", 1, 15.0));
        let mut latency_ns = histogram();
        latency_ns.record_n(120_000, 1000).unwrap();
        let key = ("rr-64", "corelay".to_owned());
        results.latency_ns.insert(key, latency_ns);
        let files = draw(&results, folder.path()).unwrap();
        assert_eq!(files, ["cpu.svg", "latency-rr-64.svg"]);
        let bars = std::fs::read_to_string(folder.path().join("cpu.svg")).unwrap();
        for text in [
            "rr-64: CPU us per request",
            "corelay",
            "nginx",
            "12.5 (12.5-12.5)",
        ] {
            assert!(bars.contains(text), "no {text:?} in {bars}");
        }
    }
}
