//! The bars that Corelay is held to: each a ratio to a peer, or a figure of its own.
//!
//! A bar has two heights: `must`, and `aim`. A bar whose scenario or peer did not run has no
//! verdict, and says so.

use serde::Serialize;

use super::peers::{self, CORELAY, Family, HAPROXY_SPLICE};
use super::results::{Metric, Results, Sample};
use super::scenarios;
use super::statistics::Summary;

/// Against whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Against {
    /// One peer.
    Peer(&'static str),
    /// Whichever of a family does best there.
    BestOf(Family),
    /// Whichever of all peers does best there.
    Best,
    /// Nobody: the figure itself.
    Figure,
    /// Corelay with more workers, against itself with one.
    Workers,
}

/// Which direction is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Good {
    Low,
    High,
}

/// One row of the table of bars.
#[derive(Clone, Copy, Debug)]
struct Bar {
    what: &'static str,
    scenario: &'static str,
    against: Against,
    metric: Metric,
    good: Good,
    /// None: only reported.
    must: Option<f64>,
    aim: f64,
}

/// What came of a bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// As good as hoped for.
    Aim,
    /// Good enough.
    Must,
    /// Not good enough, or the load met errors through Corelay.
    Miss,
    /// Neither reached nor demanded.
    Reported,
    /// Scenario or peer did not run, or the load met errors through the peer.
    Unknown,
}

impl Verdict {
    pub(super) fn label(self) -> &'static str {
        match self {
            Verdict::Aim => "pass (aim)",
            Verdict::Must => "pass",
            Verdict::Miss => "MISS",
            Verdict::Reported => "reported",
            Verdict::Unknown => "not measured",
        }
    }
}

/// A bar with what was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) what: &'static str,
    pub(super) scenario: &'static str,
    /// The peer's name; none for a figure of Corelay's own.
    pub(super) against: Option<String>,
    pub(super) must: Option<f64>,
    pub(super) aim: f64,
    pub(super) measured: Option<Summary>,
    pub(super) good_is_high: bool,
    pub(super) verdict: Verdict,
}

const fn low(
    what: &'static str,
    scenario: &'static str,
    against: Against,
    metric: Metric,
    must: f64,
    aim: f64,
) -> Bar {
    Bar {
        what,
        scenario,
        against,
        metric,
        good: Good::Low,
        must: Some(must),
        aim,
    }
}

const fn high(
    what: &'static str,
    scenario: &'static str,
    against: Against,
    metric: Metric,
    must: f64,
    aim: f64,
) -> Bar {
    Bar {
        good: Good::High,
        ..low(what, scenario, against, metric, must, aim)
    }
}

const CPU_PER_GB: &str = "CPU per GB";
const CPU_PER_REQUEST: &str = "CPU per request";
const CPU_PER_CONNECTION: &str = "CPU per connection";
const THROUGHPUT: &str = "throughput";
const P99_BESIDE_BULK: &str = "rr p99 beside 4 bulk streams";
const HAPROXY: Against = Against::BestOf(Family::Haproxy);
const NGINX: Against = Against::BestOf(Family::Nginx);
/// Beside its best, which has buffers four times as large: this is what people run.
const NGINX_DEFAULT: Against = Against::Peer("nginx");
const FORCED_SPLICE: Against = Against::Peer(HAPROXY_SPLICE);

/// The bars, as agreed.
const BARS: &[Bar] = &[
    low(CPU_PER_GB, "bulk-1", FORCED_SPLICE, Sample::cpu, 0.7, 0.45),
    low(CPU_PER_GB, "bulk-4", FORCED_SPLICE, Sample::cpu, 0.7, 0.45),
    low(CPU_PER_GB, "bulk-1", NGINX_DEFAULT, Sample::cpu, 0.25, 0.12),
    low(CPU_PER_GB, "bulk-4", NGINX_DEFAULT, Sample::cpu, 0.25, 0.12),
    low(CPU_PER_GB, "bulk-1", NGINX, Sample::cpu, 0.25, 0.12),
    low(CPU_PER_GB, "bulk-4", NGINX, Sample::cpu, 0.25, 0.12),
    high(THROUGHPUT, "bulk-1", Against::Best, Sample::rate, 1.05, 1.2),
    high(THROUGHPUT, "bulk-4", Against::Best, Sample::rate, 1.05, 1.2),
    low(CPU_PER_REQUEST, "rr-8", NGINX, Sample::cpu, 0.95, 0.8),
    low(CPU_PER_REQUEST, "rr-64", NGINX, Sample::cpu, 0.95, 0.8),
    low(CPU_PER_REQUEST, "rr-8", HAPROXY, Sample::cpu, 0.85, 0.7),
    low(CPU_PER_REQUEST, "rr-64", HAPROXY, Sample::cpu, 0.85, 0.7),
    low("p50", "rr-1", Against::Best, Sample::p50, 1.0, 0.9),
    low(
        CPU_PER_CONNECTION,
        "crr-fin",
        HAPROXY,
        Sample::cpu,
        1.0,
        0.8,
    ),
    low(
        CPU_PER_CONNECTION,
        "crr-rst",
        HAPROXY,
        Sample::cpu,
        1.0,
        0.8,
    ),
    low(
        CPU_PER_CONNECTION,
        "crr-fin",
        NGINX,
        Sample::cpu,
        0.95,
        0.75,
    ),
    low(
        CPU_PER_CONNECTION,
        "crr-rst",
        NGINX,
        Sample::cpu,
        0.95,
        0.75,
    ),
    low(P99_BESIDE_BULK, "mixed", HAPROXY, Sample::p99, 0.8, 0.5),
    // At equal bytes per second: in the one above, who moves less has the quieter neighbour.
    low(
        P99_BESIDE_BULK,
        "mixed-paced",
        HAPROXY,
        Sample::p99,
        0.8,
        0.5,
    ),
    low(
        "open-loop p99",
        "open",
        Against::Best,
        Sample::p99,
        1.0,
        0.9,
    ),
    low(
        "B of user memory per idle connection",
        "idle",
        Against::Figure,
        Sample::idle_anonymous,
        1536.0,
        768.0,
    ),
    Bar {
        must: None,
        ..low(
            CPU_PER_REQUEST,
            "workers-rr-64",
            Against::Workers,
            Sample::cpu,
            0.0,
            1.1,
        )
    },
    Bar {
        must: None,
        ..low(
            CPU_PER_GB,
            "workers-bulk-4",
            Against::Workers,
            Sample::cpu,
            0.0,
            1.1,
        )
    },
];

/// All bars against these results.
pub(super) fn evaluate(results: &Results) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = BARS.iter().map(|bar| bar.evaluate(results)).collect();
    outcomes.push(io_workers(results));
    outcomes
}

impl Bar {
    fn evaluate(&self, results: &Results) -> Outcome {
        let (against, measured) = match self.against {
            Against::Figure => {
                let figure = results.summary(self.scenario, CORELAY, self.metric);
                (None, figure)
            }
            Against::Workers => {
                let many = scenarios::CORELAY_ALL_CPUS;
                let ratio = results.ratio(self.scenario, many, CORELAY, self.metric);
                (Some(format!("{many} / {CORELAY}")), ratio)
            }
            _ => match self.best(results) {
                Some(peer) => {
                    let ratio = results.ratio(self.scenario, CORELAY, peer, self.metric);
                    (Some(peer.to_owned()), ratio)
                }
                None => (None, None),
            },
        };
        let clean = results.errors(self.scenario, CORELAY).is_empty();
        let verdict = match measured {
            _ if !clean => Verdict::Miss,
            Some(measured) => self.verdict(measured),
            None => Verdict::Unknown,
        };
        Outcome {
            what: self.what,
            scenario: self.scenario,
            against,
            must: self.must,
            aim: self.aim,
            measured,
            good_is_high: self.good == Good::High,
            verdict,
        }
    }

    /// The toughest peer that this bar speaks of and that met no errors.
    fn best<'a>(&self, results: &'a Results) -> Option<&'a str> {
        let fits = |name: &&str| match self.against {
            Against::Peer(wanted) => *name == wanted,
            Against::BestOf(family) => family_of(name) == Some(family),
            _ => !matches!(
                family_of(name),
                None | Some(Family::Direct | Family::Corelay)
            ),
        };
        let rated = results
            .peers(self.scenario)
            .into_iter()
            .filter(fits)
            .filter(|name| results.errors(self.scenario, name).is_empty())
            .filter_map(|name| {
                let summary = results.summary(self.scenario, name, self.metric)?;
                Some((name, summary.median))
            });
        let best = match self.good {
            Good::Low => rated.min_by(|a, b| a.1.total_cmp(&b.1)),
            Good::High => rated.max_by(|a, b| a.1.total_cmp(&b.1)),
        };
        best.map(|(name, _)| name)
    }

    fn verdict(&self, measured: Summary) -> Verdict {
        let reaches = |height: f64| match self.good {
            Good::Low => measured.median <= height,
            Good::High => measured.median >= height,
        };
        match self.must {
            _ if reaches(self.aim) => Verdict::Aim,
            None => Verdict::Reported,
            Some(must) if reaches(must) => Verdict::Must,
            Some(_) => Verdict::Miss,
        }
    }
}

fn family_of(name: &str) -> Option<Family> {
    peers::by_name(name).ok().map(|peer| peer.family)
}

/// The most of Corelay's threads that were seen to be io_uring's workers, under any load.
fn io_workers(results: &Results) -> Outcome {
    let corelay =
        |sample: &&Sample| sample.peer == CORELAY || sample.peer == scenarios::CORELAY_ALL_CPUS;
    let most = results.samples.iter().filter(corelay);
    let most = most.map(|sample| sample.io_workers).max();
    Outcome {
        what: "io_uring worker threads",
        scenario: "all",
        against: None,
        must: Some(0.0),
        aim: 0.0,
        measured: most.and_then(|most| Summary::of([most as f64])),
        good_is_high: false,
        verdict: match most {
            None => Verdict::Unknown,
            Some(0) => Verdict::Aim,
            Some(_) => Verdict::Miss,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::sample;

    fn outcome(results: &Results, scenario: &str, must: f64) -> Outcome {
        let mut found = evaluate(results)
            .into_iter()
            .filter(|outcome| outcome.scenario == scenario && outcome.must == Some(must));
        let outcome = found.next().unwrap();
        assert!(found.next().is_none());
        outcome
    }

    #[test]
    fn a_family_is_met_at_its_best_and_verdicts_follow_the_heights() {
        for (cpu, verdict) in [
            (7.9, Verdict::Aim),
            (8.1, Verdict::Must),
            (9.5, Verdict::Must),
            (9.6, Verdict::Miss),
        ] {
            let mut results = Results::default();
            results.samples.push(sample("rr-8", "corelay", 1, cpu));
            results.samples.push(sample("rr-8", "nginx", 1, 20.0));
            results.samples.push(sample("rr-8", "nginx-64k", 1, 10.0));
            let outcome = outcome(&results, "rr-8", 0.95);
            assert_eq!(outcome.against.as_deref(), Some("nginx-64k"));
            assert_eq!(outcome.verdict, verdict, "{cpu}");
        }
    }

    #[test]
    fn the_control_is_no_peer_and_throughput_is_better_when_high() {
        let bulk = |peer: &str, gigabytes: u64| {
            let mut one = sample("bulk-1", peer, 1, 1.0);
            one.unit = crate::compare::results::Unit::Gigabyte;
            one.bytes = gigabytes * 1_000_000_000;
            one
        };
        let results = Results {
            samples: vec![
                bulk("direct", 9),
                bulk("corelay", 6),
                bulk("go", 5),
                bulk("socat", 1),
            ],
            ..Results::default()
        };
        let outcome = outcome(&results, "bulk-1", 1.05);
        assert_eq!(outcome.against.as_deref(), Some("go"));
        assert_eq!(outcome.verdict, Verdict::Aim);
    }

    #[test]
    fn a_peer_with_errors_sets_no_bar_and_corelay_with_errors_passes_none() {
        let mut results = Results::default();
        results.samples.push(sample("rr-8", "corelay", 1, 1.0));
        results.samples.push(sample("rr-8", "nginx", 1, 10.0));
        results.samples[1].errors.insert("reset".into(), 1);
        assert_eq!(outcome(&results, "rr-8", 0.95).verdict, Verdict::Unknown);
        results.samples[1].errors.clear();
        assert_eq!(outcome(&results, "rr-8", 0.95).verdict, Verdict::Aim);
        results.samples[0].errors.insert("reset".into(), 1);
        assert_eq!(outcome(&results, "rr-8", 0.95).verdict, Verdict::Miss);
    }

    #[test]
    fn one_io_worker_is_one_too_many_and_no_run_is_no_verdict() {
        let mut results = Results::default();
        assert!(
            evaluate(&results)
                .iter()
                .all(|outcome| outcome.verdict == Verdict::Unknown)
        );
        results.samples.push(sample("rr-8", "corelay", 1, 1.0));
        assert_eq!(io_workers(&results).verdict, Verdict::Aim);
        results.samples[0].io_workers = 1;
        assert_eq!(io_workers(&results).verdict, Verdict::Miss);
    }

    #[test]
    fn every_bar_names_a_scenario() {
        for bar in BARS {
            assert!(
                scenarios::by_name(bar.scenario).is_some(),
                "{}",
                bar.scenario
            );
        }
    }
}
