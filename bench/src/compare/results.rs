//! What was measured: one sample per scenario, proxy and round, and how to look at them.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::statistics::Summary;

/// Bytes of a gigabyte, as in CPU seconds per GB.
pub(super) const BYTES_PER_GB: f64 = 1e9;

/// What CPU time is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    Gigabyte,
    Request,
    Connection,
}

impl Unit {
    /// Of a CPU time: seconds for what takes long, microseconds for what does not.
    pub(super) fn cpu_label(self) -> &'static str {
        match self {
            Unit::Gigabyte => "s/GB",
            Unit::Request => "us/request",
            Unit::Connection => "us/connection",
        }
    }

    pub(super) fn rate_label(self) -> &'static str {
        match self {
            Unit::Gigabyte => "GB/s",
            Unit::Request => "requests/s",
            Unit::Connection => "connections/s",
        }
    }

    /// How many [`Unit::cpu_label`] are a nanosecond of CPU per unit of work.
    fn per_ns(self) -> f64 {
        match self {
            Unit::Gigabyte => 1e-9,
            Unit::Request | Unit::Connection => 1e-3,
        }
    }
}

/// Latencies of one round, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Latency {
    pub(super) p50_us: f64,
    pub(super) p90_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
}

impl Latency {
    /// Of a histogram of nanoseconds; none if it is empty.
    pub(super) fn of(latency_ns: &Histogram<u64>) -> Option<Self> {
        if latency_ns.is_empty() {
            return None;
        }
        let quantile_us = |quantile| latency_ns.value_at_quantile(quantile) as f64 / 1e3;
        Some(Self {
            p50_us: quantile_us(0.5),
            p90_us: quantile_us(0.9),
            p99_us: quantile_us(0.99),
            p999_us: quantile_us(0.999),
            max_us: latency_ns.max() as f64 / 1e3,
        })
    }
}

/// One proxy in one round of one scenario.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) scenario: &'static str,
    pub(super) peer: String,
    /// From 1; the round that warms up is not kept.
    pub(super) round: usize,
    pub(super) unit: Unit,
    /// Of the work that the unit counts: beside bulk streams, requests last less long than these.
    pub(super) elapsed_seconds: f64,
    /// Requests or connections; in bulk, streams.
    pub(super) operations: u64,
    /// Payload that the load sent and received.
    pub(super) bytes: u64,
    /// Of the proxy, in all threads and children. Zero for `direct`.
    pub(super) cpu_ns: u64,
    pub(super) user_ns: u64,
    pub(super) system_ns: u64,
    pub(super) switches_voluntary: u64,
    pub(super) switches_involuntary: u64,
    /// Of the whole machine: proxy, load and servers together.
    pub(super) machine_busy_ns: u64,
    pub(super) machine_steal_ns: u64,
    /// Of that, by processes that do not belong to the comparison; exact to some ticks.
    pub(super) foreign_ns: u64,
    /// From reading the counters to reading them again.
    pub(super) measured_ns: u64,
    /// The most that was seen under load.
    pub(super) threads: u64,
    pub(super) io_workers: u64,
    pub(super) resident_bytes: u64,
    /// From the intended start in an open loop, otherwise from the real one.
    pub(super) latency: Option<Latency>,
    /// What the ends of long answers waited for; only of the scenario `tails`.
    pub(super) tail: Option<Latency>,
    /// Anonymous memory per idle connection, in bytes; only of the scenario `idle`.
    pub(super) idle_anonymous_bytes: Option<f64>,
    /// Private memory per idle connection, in bytes; only of the scenario `idle`.
    pub(super) idle_private_bytes: Option<f64>,
    pub(super) errors: BTreeMap<String, u64>,
}

impl Sample {
    pub(super) fn new(scenario: &'static str, unit: Unit, peer: &str, round: usize) -> Self {
        Self {
            scenario,
            peer: peer.to_owned(),
            round,
            unit,
            elapsed_seconds: 0.0,
            operations: 0,
            bytes: 0,
            cpu_ns: 0,
            user_ns: 0,
            system_ns: 0,
            switches_voluntary: 0,
            switches_involuntary: 0,
            machine_busy_ns: 0,
            machine_steal_ns: 0,
            foreign_ns: 0,
            measured_ns: 0,
            threads: 0,
            io_workers: 0,
            resident_bytes: 0,
            latency: None,
            tail: None,
            idle_anonymous_bytes: None,
            idle_private_bytes: None,
            errors: BTreeMap::new(),
        }
    }

    /// Work done, in the scenario's unit; none if there was none.
    fn work(&self) -> Option<f64> {
        let work = match self.unit {
            Unit::Gigabyte => self.bytes as f64 / BYTES_PER_GB,
            Unit::Request | Unit::Connection => self.operations as f64,
        };
        (work > 0.0).then_some(work)
    }

    /// Work per second.
    pub(super) fn rate(&self) -> Option<f64> {
        Some(self.work()? / self.elapsed_seconds)
    }

    /// CPU time of the proxy per unit of work; none without a proxy.
    pub(super) fn cpu(&self) -> Option<f64> {
        let cpu = self.cpu_ns as f64 * self.unit.per_ns() / self.work()?;
        (cpu > 0.0).then_some(cpu)
    }

    /// CPU time of the whole machine per unit of work.
    pub(super) fn machine(&self) -> Option<f64> {
        Some(self.machine_busy_ns as f64 * self.unit.per_ns() / self.work()?)
    }

    /// The part of the proxy's CPU time that was spent in user space, in percent.
    pub(super) fn user_percent(&self) -> Option<f64> {
        let sum = (self.user_ns + self.system_ns) as f64;
        (sum > 0.0).then(|| 100.0 * self.user_ns as f64 / sum)
    }

    /// Context switches of the proxy's own accord per unit of work.
    pub(super) fn voluntary(&self) -> Option<f64> {
        Some(self.switches_voluntary as f64 / self.work()?)
    }

    /// Context switches forced upon the proxy, per unit of work.
    pub(super) fn involuntary(&self) -> Option<f64> {
        Some(self.switches_involuntary as f64 / self.work()?)
    }

    pub(super) fn p50(&self) -> Option<f64> {
        Some(self.latency?.p50_us)
    }

    pub(super) fn p90(&self) -> Option<f64> {
        Some(self.latency?.p90_us)
    }

    pub(super) fn p99(&self) -> Option<f64> {
        Some(self.latency?.p99_us)
    }

    pub(super) fn tail_p50(&self) -> Option<f64> {
        Some(self.tail?.p50_us)
    }

    pub(super) fn tail_p90(&self) -> Option<f64> {
        Some(self.tail?.p90_us)
    }

    pub(super) fn tail_p99(&self) -> Option<f64> {
        Some(self.tail?.p99_us)
    }

    pub(super) fn idle_anonymous(&self) -> Option<f64> {
        self.idle_anonymous_bytes
    }

    pub(super) fn idle_private(&self) -> Option<f64> {
        self.idle_private_bytes
    }
}

/// One figure of a sample; none if the sample has no such figure.
pub(super) type Metric = fn(&Sample) -> Option<f64>;

/// All samples, and the latencies of all rounds together.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) samples: Vec<Sample>,
    /// In nanoseconds, by scenario and proxy.
    pub(super) latency_ns: BTreeMap<(&'static str, String), Histogram<u64>>,
    /// The same of the waits for the tail.
    pub(super) tail_ns: BTreeMap<(&'static str, String), Histogram<u64>>,
}

impl Results {
    /// Of one proxy in one scenario.
    pub(super) fn of<'a>(
        &'a self,
        scenario: &'a str,
        peer: &'a str,
    ) -> impl Iterator<Item = &'a Sample> {
        let mine = move |sample: &&Sample| sample.scenario == scenario && sample.peer == peer;
        self.samples.iter().filter(mine)
    }

    /// The proxies of a scenario, in the order of the rounds.
    pub(super) fn peers(&self, scenario: &str) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for sample in &self.samples {
            if sample.scenario == scenario && !names.contains(&sample.peer.as_str()) {
                names.push(&sample.peer);
            }
        }
        names
    }

    /// Over the rounds.
    pub(super) fn summary(&self, scenario: &str, peer: &str, metric: Metric) -> Option<Summary> {
        let values: Option<Vec<f64>> = self.of(scenario, peer).map(metric).collect();
        Summary::of(values?)
    }

    /// Of one proxy to another, round by round.
    pub(super) fn ratio(
        &self,
        scenario: &str,
        above: &str,
        below: &str,
        metric: Metric,
    ) -> Option<Summary> {
        let series = |peer| -> Vec<(usize, f64)> {
            self.of(scenario, peer)
                .filter_map(|sample| Some((sample.round, metric(sample)?)))
                .collect()
        };
        Summary::of_ratios(&series(above), &series(below))
    }

    /// Of one proxy in one scenario, as if its rounds were one.
    pub(super) fn latency_of_all_rounds(
        &self,
        scenario: &'static str,
        peer: &str,
    ) -> Option<Latency> {
        Latency::of(self.latency_ns.get(&(scenario, peer.to_owned()))?)
    }

    /// The same of the waits for the tail.
    pub(super) fn tail_of_all_rounds(&self, scenario: &'static str, peer: &str) -> Option<Latency> {
        Latency::of(self.tail_ns.get(&(scenario, peer.to_owned()))?)
    }

    /// What other processes took of one CPU while loads ran, in percent: the machine was not quiet.
    pub(super) fn foreign_percent(&self) -> f64 {
        let sum = |figure: fn(&Sample) -> u64| self.samples.iter().map(figure).sum::<u64>() as f64;
        let measured_ns = sum(|sample| sample.measured_ns);
        100.0 * sum(|sample| sample.foreign_ns) / measured_ns.max(1.0)
    }

    /// Errors of all rounds, by kind.
    pub(super) fn errors(&self, scenario: &str, peer: &str) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for sample in self.of(scenario, peer) {
            for (kind, count) in &sample.errors {
                *sum.entry(kind.clone()).or_insert(0) += count;
            }
        }
        sum
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A sample of 1000 requests in a second.
    pub(in super::super) fn sample(
        scenario: &'static str,
        peer: &str,
        round: usize,
        cpu_us: f64,
    ) -> Sample {
        Sample {
            operations: 1000,
            elapsed_seconds: 1.0,
            cpu_ns: (cpu_us * 1e6) as u64,
            ..Sample::new(scenario, Unit::Request, peer, round)
        }
    }

    #[test]
    fn cpu_is_per_unit_of_work() {
        let mut one = sample("rr-8", "corelay", 1, 9.5);
        assert_eq!(one.cpu(), Some(9.5));
        assert_eq!(one.rate(), Some(1000.0));
        one.unit = Unit::Gigabyte;
        assert_eq!(one.cpu(), None, "no bytes were moved");
        one.bytes = 500_000_000;
        one.cpu_ns = 100_000_000;
        assert_eq!(one.cpu(), Some(0.2));
        assert_eq!(one.rate(), Some(0.5));
    }

    #[test]
    fn a_round_without_a_figure_leaves_no_summary_to_trust() {
        let mut results = Results::default();
        results.samples.push(sample("rr-8", "a", 1, 2.0));
        results.samples.push(sample("rr-8", "a", 2, 4.0));
        results.samples.push(sample("rr-1", "a", 2, 9.0));
        let summary = results.summary("rr-8", "a", Sample::cpu).unwrap();
        assert_eq!((summary.median, summary.max), (3.0, 4.0));
        results.samples[0].operations = 0;
        assert_eq!(results.summary("rr-8", "a", Sample::cpu), None);
        assert_eq!(results.summary("rr-8", "b", Sample::cpu), None);
    }

    #[test]
    fn what_others_take_is_a_part_of_the_time_measured() {
        let mut results = Results::default();
        assert_eq!(results.foreign_percent(), 0.0);
        for (foreign_ns, measured_ns) in [(0, 1000), (500, 1000)] {
            let mut one = sample("rr-8", "a", 1, 2.0);
            (one.foreign_ns, one.measured_ns) = (foreign_ns, measured_ns);
            results.samples.push(one);
        }
        assert_eq!(results.foreign_percent(), 25.0);
    }

    #[test]
    fn latencies_are_microseconds() {
        let mut histogram = Histogram::new(3).unwrap();
        assert_eq!(Latency::of(&histogram), None);
        for us in 1..=100u64 {
            histogram.record(us * 1000).unwrap();
        }
        let latency = Latency::of(&histogram).unwrap();
        assert!((latency.p50_us - 50.0).abs() < 0.5, "{latency:?}");
        assert!((latency.max_us - 100.0).abs() < 0.5, "{latency:?}");
    }
}
