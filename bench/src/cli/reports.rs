//! `merge` and `plot`: what is done with reports afterwards.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use corelay_bench::hlog;
use corelay_bench::load::Report;
use corelay_bench::plot::{self, Series};

use super::load::Output;

#[derive(Args)]
pub(crate) struct Merge {
    /// Of loads that ran at the same time: reports, as --json wrote them, or interval logs of
    /// HdrHistogram (.hlog), but not both together.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    logs: Logs,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub(crate) struct Plot {
    /// Reports, as --json wrote them, and interval logs of HdrHistogram (.hlog); each is a curve named
    /// after its file.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    logs: Logs,
    /// The chart: a file that ends in .svg or .png.
    #[arg(long)]
    out: PathBuf,
}

/// How interval logs are read.
#[derive(Args)]
pub(crate) struct Logs {
    /// What the values of interval logs are; they do not say it.
    #[arg(long, value_enum, default_value = "ns", value_name = "UNIT")]
    log_unit: LogUnit,
    /// Of interval logs take only what has one of these tags; - is what has none. Needed if a log has
    /// several.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "TAG",
        allow_hyphen_values = true
    )]
    log_tag: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogUnit {
    /// Nanoseconds.
    Ns,
    /// Microseconds.
    Us,
    /// Milliseconds.
    Ms,
}

impl Merge {
    pub(crate) fn run(&self) -> Result<()> {
        let reports = self.files.iter().map(|file| self.logs.read(file));
        let report = Report::merge(reports.collect::<Result<_>>()?)?;
        // When they began, reports do not say.
        self.output.write(&report, None)
    }
}

impl Plot {
    pub(crate) fn run(&self) -> Result<()> {
        let reports: Vec<Report> = self
            .files
            .iter()
            .map(|file| self.logs.read(file))
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

impl Logs {
    /// Reads a report or a log; a report begins with a brace, and no log does.
    fn read(&self, file: &Path) -> Result<Report> {
        let name = file.display().to_string();
        let text = std::fs::read(file)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| String::from_utf8(bytes).map_err(|_| anyhow!("not a text file")))
            .with_context(|| name.clone())?;
        let report = if text.trim_start().starts_with('{') {
            Report::from_json(&text)
        } else {
            hlog::read(&text, &name, &self.options())
        };
        report.with_context(|| name)
    }

    fn options(&self) -> hlog::Options {
        hlog::Options {
            unit: match self.log_unit {
                LogUnit::Ns => hlog::Unit::Nanoseconds,
                LogUnit::Us => hlog::Unit::Microseconds,
                LogUnit::Ms => hlog::Unit::Milliseconds,
            },
            tags: self.log_tag.clone(),
        }
    }
}
