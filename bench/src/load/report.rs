//! What came of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value};

use super::engine::{Outcome, Plan};
use super::tally;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// See [`super::answers`].
    Answers,
    /// See [`super::rr`].
    Rr,
    /// See [`super::crr`].
    Crr,
    /// See [`super::bulk`].
    Bulk,
    /// See [`super::idle`].
    Idle,
    /// See [`super::mixed`].
    Mixed,
    /// See [`super::slow`].
    Slow,
    /// No load of ours, or one that is not known: read from a log of histograms; see [`crate::hlog`].
    Log,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The kind of load.
    pub kind: Kind,
    /// Whom it connected to.
    pub target: String,
    /// What was asked for, by name.
    pub options: Map<String, Value>,
    /// From the common start to the last operation, at least the whole duration unless all work was
    /// done before.
    pub elapsed: Duration,
    /// Operations completed: requests, connections, streams.
    pub operations: u64,
    /// How many of what went wrong.
    pub errors: BTreeMap<String, u64>,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// What was done per second.
    pub rates: Rates,
    /// From the beginning of each operation to its end, in nanoseconds.
    pub service_ns: Histogram<u64>,
    /// From when each operation was due to its end, in nanoseconds; open loop only.
    pub intended_ns: Option<Histogram<u64>>,
    /// From the last arrival of bytes of an answer that was not its end to the arrival of its last
    /// byte, in nanoseconds; [`Kind::Answers`] only. Answers that came in one piece are not in it.
    pub tail_ns: Option<Histogram<u64>>,
}

/// Per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Operations completed per second.
    pub operations: f64,
    /// Payload bytes sent per second.
    pub bytes_sent: f64,
    /// Payload bytes received per second.
    pub bytes_received: f64,
}

impl Report {
    pub(super) fn new(kind: Kind, plan: &Plan, outcome: Outcome) -> Self {
        let mut report = Self {
            kind,
            target: plan.to.to_string(),
            options: Map::new(),
            elapsed: outcome.elapsed,
            operations: 0,
            errors: BTreeMap::new(),
            bytes_sent: 0,
            bytes_received: 0,
            rates: Rates::default(),
            service_ns: tally::histogram(),
            intended_ns: plan.open_loop.then(tally::histogram),
            tail_ns: (kind == Kind::Answers).then(tally::histogram),
        };
        for tally in outcome.tallies {
            report.operations += tally.operations;
            report.bytes_sent += tally.bytes_sent;
            report.bytes_received += tally.bytes_received;
            for (kind, times) in tally.errors {
                *report.errors.entry(kind).or_default() += times;
            }
            add(&mut report.service_ns, &tally.service_ns);
            if let (Some(sum), Some(part)) = (&mut report.intended_ns, &tally.intended_ns) {
                add(sum, part);
            }
            if let (Some(sum), Some(part)) = (&mut report.tail_ns, &tally.tail_ns) {
                add(sum, part);
            }
        }
        let per_second = |amount: u64| match report.elapsed.as_secs_f64() {
            0.0 => 0.0,
            seconds => amount as f64 / seconds,
        };
        report.rates = Rates {
            operations: per_second(report.operations),
            bytes_sent: per_second(report.bytes_sent),
            bytes_received: per_second(report.bytes_received),
        };
        report
            .option("connections", plan.connections)
            .option("threads", plan.thread_count())
            .option("cpus", plan.cpus.clone())
            .option("duration_seconds", plan.duration.as_secs_f64())
    }

    /// Notes an option for the record.
    pub(super) fn option(mut self, name: &str, value: impl serde::Serialize) -> Self {
        let value = serde_json::to_value(value).expect("options are plain values");
        self.options.insert(name.to_owned(), value);
        self
    }

    /// Errors of all kinds.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The latency that a user would have seen: from the intended time in an open loop, else the
    /// service time. In nanoseconds.
    pub fn latency_ns(&self) -> &Histogram<u64> {
        self.intended_ns.as_ref().unwrap_or(&self.service_ns)
    }
}

impl Kind {
    const ALL: [Kind; 8] = [
        Kind::Answers,
        Kind::Rr,
        Kind::Crr,
        Kind::Bulk,
        Kind::Idle,
        Kind::Mixed,
        Kind::Slow,
        Kind::Log,
    ];

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its name in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Answers => "answers",
            Kind::Rr => "rr",
            Kind::Crr => "crr",
            Kind::Bulk => "bulk",
            Kind::Idle => "idle",
            Kind::Mixed => "mixed",
            Kind::Slow => "slow",
            Kind::Log => "log",
        }
    }
}

fn add(sum: &mut Histogram<u64>, part: &Histogram<u64>) {
    sum.add(part).expect("all histograms have the same bounds");
}
