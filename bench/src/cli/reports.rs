//! `merge` and `plot`: what is done with reports afterwards.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use corelay_bench::load::Report;
use corelay_bench::plot::{self, Series};

use super::load::Output;

#[derive(Args)]
pub(crate) struct Merge {
    /// Reports of loads that ran at the same time, as --json wrote them.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub(crate) struct Plot {
    /// Reports, as --json wrote them; each is a curve named after its file.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The chart: a file that ends in .svg or .png.
    #[arg(long)]
    out: PathBuf,
}

impl Merge {
    pub(crate) fn run(&self) -> Result<()> {
        let reports = self.files.iter().map(|file| read(file));
        let report = Report::merge(reports.collect::<Result<_>>()?)?;
        self.output.write(&report)
    }
}

impl Plot {
    pub(crate) fn run(&self) -> Result<()> {
        let reports: Vec<Report> = self
            .files
            .iter()
            .map(|file| read(file))
            .collect::<Result<_>>()?;
        let series: Vec<Series<'_>> = self
            .files
            .iter()
            .zip(&reports)
            .map(|(file, report)| Series {
                name: file.file_stem().unwrap_or_default().display().to_string(),
                report,
            })
            .collect();
        plot::write(&series, &self.out)
    }
}

fn read(file: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    Report::from_json(&text).with_context(|| format!("{}", file.display()))
}
