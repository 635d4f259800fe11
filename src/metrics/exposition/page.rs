//! The format itself: label pairs, families, histograms.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use crate::metrics::{ClosedKey, CoreMetrics, LatencyHistogram, Names, Scrape};

/// Upper bounds of the histogram buckets, in microseconds, and as written in `le`, in seconds. From
/// below a loopback round trip to an hour, the order of magnitude of a long-lived session; about three per decade.
pub(super) const BUCKETS: [(u64, &str); 25] = [
    (50, "0.00005"),
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
    (30_000_000, "30"),
    (60_000_000, "60"),
    (120_000_000, "120"),
    (300_000_000, "300"),
    (600_000_000, "600"),
    (1_200_000_000, "1200"),
    (1_800_000_000, "1800"),
    (3_600_000_000, "3600"),
];

/// Label pairs, escaped once per scrape, by index.
pub(super) struct Labels {
    pub(super) listeners: Vec<String>,
    pub(super) upstreams: Vec<String>,
    /// Empty for an id that no server has.
    pub(super) servers: Vec<String>,
}

impl Labels {
    pub(super) fn new(names: &Names) -> Self {
        let upstreams: Vec<String> = names
            .upstreams
            .iter()
            .map(|name| format!("upstream=\"{}\"", escaped(name)))
            .collect();
        let upstream = |id: crate::units::UpstreamId| upstreams[usize::from(id.0)].clone();
        let listeners = names
            .listeners
            .iter()
            .map(|listener| format!("listener=\"{}\"", escaped(&listener.name)));
        // One address may serve twice in a group, by two DNS names for example. Two series with equal
        // labels would make the whole page invalid.
        let mut seen: HashMap<String, u32> = HashMap::new();
        let servers = names.servers.iter().map(|server| {
            let Some(server) = server else {
                return String::new();
            };
            let group = upstream(server.upstream);
            let address = escaped(&server.address);
            let times = seen.entry(format!("{group},{address}")).or_default();
            *times += 1;
            match *times {
                1 => format!("{group},server=\"{address}\""),
                n => format!("{group},server=\"{address}#{n}\""),
            }
        });
        Self {
            listeners: listeners.collect(),
            servers: servers.collect(),
            upstreams,
        }
    }

    /// `upstream` and `server` of a session; empty where there was none. `None` for a server that is forgotten, of
    /// which a core has not heard yet.
    pub(super) fn server_of(&self, key: &ClosedKey) -> Option<String> {
        match (key.server, key.upstream) {
            (Some(server), _) => {
                let label = self.servers.get(usize::from(server.0));
                label.filter(|label| !label.is_empty()).cloned()
            }
            (None, Some(upstream)) => {
                let upstream = &self.upstreams[usize::from(upstream.0)];
                Some(format!("{upstream},server=\"\""))
            }
            (None, None) => Some("upstream=\"\",server=\"\"".to_owned()),
        }
    }
}

/// As the format wants label values: backslash, double quote and line feed escaped.
pub(super) fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The text, family by family.
#[derive(Default)]
pub(super) struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    pub(super) fn into_text(self) -> String {
        self.text
    }

    pub(super) fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &str) {
        debug_assert!(name.ends_with("_total"));
        self.family(name, "counter", help);
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &str) {
        self.family(name, "gauge", help);
    }

    /// One series of the present family. `labels` is empty or `a="b",c="d"`.
    pub(super) fn sample(&mut self, labels: &str, value: impl std::fmt::Display) {
        let family = self.family;
        if labels.is_empty() {
            self.line(format_args!("{family} {value}"));
        } else {
            self.line(format_args!("{family}{{{labels}}} {value}"));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("writing to memory does not fail");
    }

    /// A whole family with one series per core.
    pub(super) fn per_core(&mut self, scrape: &Scrape<'_>, value: impl Fn(&CoreMetrics) -> u64) {
        for core in scrape.cores {
            self.sample(&format!("core=\"{}\"", core.core), value(core));
        }
    }

    /// A whole family with one series per core and entry of a list.
    pub(super) fn per_core_and<T>(
        &mut self,
        scrape: &Scrape<'_>,
        labels: &[String],
        list: impl Fn(&CoreMetrics) -> &[T],
        value: impl Fn(&T) -> u64,
    ) {
        for core in scrape.cores {
            for (entry, label) in list(core)
                .iter()
                .zip(labels)
                .filter(|(_, it)| !it.is_empty())
            {
                self.sample(&format!("core=\"{}\",{label}", core.core), value(entry));
            }
        }
    }

    pub(super) fn histogram(&mut self, label: &str, merged: &LatencyHistogram) {
        let family = self.family;
        let counts = cumulative_counts(merged);
        for ((_, le), count) in BUCKETS.iter().zip(counts) {
            self.line(format_args!(
                "{family}_bucket{{{label},le=\"{le}\"}} {count}"
            ));
        }
        let total = merged.histogram().len();
        self.line(format_args!(
            "{family}_bucket{{{label},le=\"+Inf\"}} {total}"
        ));
        let sum = seconds(Duration::from_micros(merged.sum_us()));
        self.line(format_args!("{family}_sum{{{label}}} {sum}"));
        self.line(format_args!("{family}_count{{{label}}} {total}"));
    }
}

/// How many values are at most each bucket's bound. The histogram keeps two digits, so that a value up to
/// 1 % above a bound may count as within it.
fn cumulative_counts(merged: &LatencyHistogram) -> [u64; BUCKETS.len()] {
    let histogram = merged.histogram();
    let mut counts = [0; BUCKETS.len()];
    for step in histogram.iter_recorded() {
        let value_us = histogram.lowest_equivalent(step.value_iterated_to());
        let first = BUCKETS.partition_point(|(bound_us, _)| *bound_us < value_us);
        if let Some(count) = counts.get_mut(first) {
            *count += step.count_at_value();
        }
    }
    let mut sum = 0;
    for count in &mut counts {
        sum += *count;
        *count = sum;
    }
    counts
}

/// Seconds with six decimals, exact for a whole number of microseconds.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{}.{:06}", duration.as_secs(), duration.subsec_micros())
}
