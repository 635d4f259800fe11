//! The Prometheus text format, version 0.0.4, from the cores' numbers.
//!
//! Every family is listed in `docs/metrics.md`, and a test holds the two together. Counters carry a
//! `core` label: which core did the work is a question people ask of this program. Histograms are merged over
//! cores, since thousands of bucket series per core would answer none.
//!
//! Pure text: it asks no core and reads no file. See
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

mod health;
mod machinery;
mod page;
mod process;
mod traffic;

use super::{CoreMetrics, LatencyHistogram, Scrape};
use page::{Labels, Page};

/// The `Content-Type` of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders everything that a scrape shows.
pub fn render(scrape: &Scrape<'_>) -> String {
    let labels = Labels::new(scrape.names);
    let mut page = Page::default();
    process::process(&mut page, scrape);
    traffic::sessions(&mut page, scrape, &labels);
    traffic::listeners(&mut page, scrape, &labels);
    traffic::opening_errors(&mut page, scrape, &labels);
    traffic::upstreams(&mut page, scrape, &labels);
    traffic::servers(&mut page, scrape, &labels);
    health::health(&mut page, scrape, &labels);
    health::checker(&mut page, scrape);
    health::ejections(&mut page, scrape, &labels);
    health::lookups(&mut page, scrape, &labels);
    traffic::latencies(&mut page, scrape, &labels);
    machinery::buffers(&mut page, scrape);
    machinery::movers(&mut page, scrape);
    machinery::ring(&mut page, scrape);
    page.into_text()
}

/// One histogram over all cores.
pub(in crate::metrics) fn merged(
    scrape: &Scrape<'_>,
    pick: impl Fn(&CoreMetrics) -> &LatencyHistogram,
) -> LatencyHistogram {
    let mut all = LatencyHistogram::default();
    for core in scrape.cores {
        all.merge(pick(core));
    }
    all
}

#[cfg(test)]
mod tests;
