//! A report on disk: one JSON object; and several reports made one. For people: `text`.
//!
//! The JSON holds the whole histograms (HdrHistogram V2, compressed, base64), so what is read back
//! is what was measured, and reports of several machines add up exactly.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::load::{Kind, Rates, Report};

/// What marks a file as ours; a change of meaning changes it.
const FORMAT: &str = "corelay-bench report 1";
const NS_PER_US: f64 = 1e3;

/// The file.
#[derive(Serialize, Deserialize)]
struct Record {
    format: String,
    kind: String,
    target: String,
    options: Map<String, Value>,
    elapsed_seconds: f64,
    operations: u64,
    operations_per_second: f64,
    bytes_sent: u64,
    bytes_sent_per_second: f64,
    bytes_received: u64,
    bytes_received_per_second: f64,
    errors: BTreeMap<String, u64>,
    service: Latency,
    /// Open loop only.
    intended: Option<Latency>,
    /// Long answers only.
    tail: Option<Latency>,
}

/// A histogram; the numbers beside it are for people and scripts.
#[derive(Serialize, Deserialize)]
struct Latency {
    count: u64,
    mean_us: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    /// Nanoseconds; HdrHistogram V2, compressed, base64.
    histogram: String,
}

impl Report {
    /// The report as one JSON object.
    pub fn to_json(&self) -> Value {
        let record = Record {
            format: FORMAT.to_owned(),
            kind: self.kind.name().to_owned(),
            target: self.target.clone(),
            options: self.options.clone(),
            elapsed_seconds: self.elapsed.as_secs_f64(),
            operations: self.operations,
            operations_per_second: self.rates.operations,
            bytes_sent: self.bytes_sent,
            bytes_sent_per_second: self.rates.bytes_sent,
            bytes_received: self.bytes_received,
            bytes_received_per_second: self.rates.bytes_received,
            errors: self.errors.clone(),
            service: Latency::of(&self.service_ns),
            intended: self.intended_ns.as_ref().map(Latency::of),
            tail: self.tail_ns.as_ref().map(Latency::of),
        };
        serde_json::to_value(record).expect("a record is plain values")
    }

    /// Reads what [`Report::to_json`] wrote. Fails on anything else.
    pub fn from_json(text: &str) -> Result<Self> {
        let record: Record = serde_json::from_str(text).context("not a report")?;
        ensure!(
            record.format == FORMAT,
            "a report of the format {:?}; this program reads {FORMAT:?}",
            record.format
        );
        let kind = Kind::from_name(&record.kind)
            .with_context(|| format!("a report of the unknown kind {:?}", record.kind))?;
        Ok(Report {
            kind,
            target: record.target,
            options: record.options,
            elapsed: Duration::try_from_secs_f64(record.elapsed_seconds)
                .context("elapsed_seconds")?,
            operations: record.operations,
            errors: record.errors,
            bytes_sent: record.bytes_sent,
            bytes_received: record.bytes_received,
            rates: Rates {
                operations: record.operations_per_second,
                bytes_sent: record.bytes_sent_per_second,
                bytes_received: record.bytes_received_per_second,
            },
            service_ns: record.service.histogram().context("service")?,
            intended_ns: read_optional(record.intended).context("intended")?,
            tail_ns: read_optional(record.tail).context("tail")?,
        })
    }

    /// One report of several that ran at the same time: counts, histograms and rates are sums, the
    /// time is the longest. Options that differ are listed. Fails if the kinds differ, or if some
    /// ran an open loop and others did not.
    pub fn merge(reports: Vec<Report>) -> Result<Report> {
        let mut reports = reports.into_iter();
        let mut sum = reports.next().context("nothing to merge")?;
        let mut targets = BTreeSet::from([sum.target.clone()]);
        let mut options = vec![std::mem::take(&mut sum.options)];
        for report in reports {
            ensure!(
                (report.kind == Kind::Log) == (sum.kind == Kind::Log),
                "a log and a report of --json make no sum: a log has latencies only, so rates, bytes and \
                 errors would be wrong; merge logs with logs (--hlog writes one of a report)"
            );
            ensure!(
                report.kind == sum.kind,
                "a report of {} and one of {} make no sum",
                sum.kind.name(),
                report.kind.name()
            );
            targets.insert(report.target);
            options.push(report.options);
            sum.elapsed = sum.elapsed.max(report.elapsed);
            sum.operations += report.operations;
            sum.bytes_sent += report.bytes_sent;
            sum.bytes_received += report.bytes_received;
            sum.rates.operations += report.rates.operations;
            sum.rates.bytes_sent += report.rates.bytes_sent;
            sum.rates.bytes_received += report.rates.bytes_received;
            for (kind, times) in report.errors {
                *sum.errors.entry(kind).or_default() += times;
            }
            sum.service_ns.add(&report.service_ns)?;
            add_optional(&mut sum.intended_ns, report.intended_ns)
                .context("an open loop and a closed one make no sum")?;
            add_optional(&mut sum.tail_ns, report.tail_ns)
                .context("answers with and without the wait for their tails make no sum")?;
        }
        sum.target = targets.into_iter().collect::<Vec<_>>().join(", ");
        sum.options = merge_options(options);
        Ok(sum)
    }
}

fn read_optional(latency: Option<Latency>) -> Result<Option<Histogram<u64>>> {
    latency.as_ref().map(Latency::histogram).transpose()
}

/// Both must be there, or neither.
fn add_optional(sum: &mut Option<Histogram<u64>>, part: Option<Histogram<u64>>) -> Result<()> {
    match (sum, part) {
        (Some(sum), Some(part)) => Ok(sum.add(&part)?),
        (None, None) => Ok(()),
        _ => bail!("one has a histogram that the other lacks"),
    }
}

/// Options on which all agree stay; the others become the list of what each had.
fn merge_options(all: Vec<Map<String, Value>>) -> Map<String, Value> {
    let names: BTreeSet<&String> = all.iter().flat_map(Map::keys).collect();
    let mut merged = Map::new();
    for name in names {
        let values: Vec<Value> = all
            .iter()
            .map(|options| options.get(name).cloned().unwrap_or_default())
            .collect();
        let agreed = values.iter().all(|value| *value == values[0]);
        let value = if agreed {
            values[0].clone()
        } else {
            Value::Array(values)
        };
        merged.insert(name.clone(), value);
    }
    merged
}

/// A quantile of a histogram of nanoseconds, in microseconds.
pub fn microseconds(histogram_ns: &Histogram<u64>, quantile: f64) -> f64 {
    histogram_ns.value_at_quantile(quantile) as f64 / NS_PER_US
}

impl Latency {
    fn of(histogram_ns: &Histogram<u64>) -> Self {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(histogram_ns, &mut bytes)
            .expect("a histogram fits into memory");
        let us = |quantile| microseconds(histogram_ns, quantile);
        Self {
            count: histogram_ns.len(),
            mean_us: histogram_ns.mean() / NS_PER_US,
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: histogram_ns.max() as f64 / NS_PER_US,
            histogram: BASE64.encode(bytes),
        }
    }

    fn histogram(&self) -> Result<Histogram<u64>> {
        let bytes = BASE64.decode(&self.histogram).context("not base64")?;
        let read: Histogram<u64> = Deserializer::new()
            .deserialize(&mut io::Cursor::new(bytes))
            .map_err(|error| anyhow::anyhow!("not a histogram: {error}"))?;
        // Into our own bounds, so that any two can be added.
        let mut histogram = crate::load::histogram();
        histogram.add(&read).context("another unit or range")?;
        Ok(histogram)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) fn report(latencies_us: &[u64], rate: f64) -> Report {
        let mut service_ns = crate::load::histogram();
        for us in latencies_us {
            service_ns.record(us * 1000).unwrap();
        }
        Report {
            kind: Kind::Rr,
            target: format!("127.0.0.1:{}", latencies_us.len()),
            options: Map::from_iter([
                ("size_bytes".to_owned(), 64.into()),
                ("rate".to_owned(), rate.into()),
            ]),
            elapsed: Duration::from_millis(latencies_us.len() as u64 * 500),
            operations: latencies_us.len() as u64,
            errors: [("reset".to_owned(), 2)].into(),
            bytes_sent: 10,
            bytes_received: 20,
            rates: Rates {
                operations: rate,
                bytes_sent: rate * 2.0,
                bytes_received: rate * 3.0,
            },
            intended_ns: Some(service_ns.clone()),
            tail_ns: Some(service_ns.clone()),
            service_ns,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let written = report(&[1, 100, 100, 1_000_000], 12.5);
        let read = Report::from_json(&written.to_json().to_string()).unwrap();
        assert_eq!(read.service_ns, written.service_ns);
        assert_eq!(read.intended_ns, written.intended_ns);
        assert_eq!(read.tail_ns, written.tail_ns);
        assert_eq!(read.to_json(), written.to_json());
        let closed = Report {
            intended_ns: None,
            ..written
        };
        let read = Report::from_json(&closed.to_json().to_string()).unwrap();
        assert_eq!(read.intended_ns, None);
    }

    #[test]
    fn a_merged_report_is_exactly_the_sum() {
        let parts = vec![
            report(&[1, 2, 3], 10.0),
            report(&[2, 500, 7_000, 99], 20.0),
            report(&[1], 30.0),
        ];
        let sum = Report::merge(parts).unwrap();
        let all = report(&[1, 2, 3, 2, 500, 7_000, 99, 1], 60.0);
        assert_eq!(sum.service_ns, all.service_ns);
        assert_eq!(sum.intended_ns, all.intended_ns);
        assert_eq!(sum.tail_ns, all.tail_ns);
        assert_eq!((sum.operations, sum.rates), (8, all.rates));
        assert_eq!((sum.bytes_sent, sum.bytes_received), (30, 60));
        assert_eq!(sum.errors["reset"], 6);
        assert_eq!(sum.elapsed, Duration::from_secs(2));
        assert_eq!(sum.target, "127.0.0.1:1, 127.0.0.1:3, 127.0.0.1:4");
        assert_eq!(sum.options["size_bytes"], 64);
        assert_eq!(sum.options["rate"], serde_json::json!([10.0, 20.0, 30.0]));
    }

    #[test]
    fn what_has_no_sum_is_not_merged() {
        let rr = report(&[1], 1.0);
        let crr = Report {
            kind: Kind::Crr,
            ..rr.clone()
        };
        let closed = Report {
            intended_ns: None,
            ..rr.clone()
        };
        assert!(Report::merge(vec![rr.clone(), crr]).is_err());
        let log = Report {
            kind: Kind::Log,
            ..rr.clone()
        };
        let error = Report::merge(vec![log, rr.clone()]).unwrap_err();
        assert!(error.to_string().contains("latencies only"), "{error}");
        assert!(Report::merge(vec![rr, closed]).is_err());
        assert!(Report::merge(Vec::new()).is_err());
    }

    #[test]
    fn files_of_others_and_broken_ones_are_refused() {
        let good = report(&[1], 1.0).to_json();
        for (field, value) in [
            ("format", "another".into()),
            ("kind", "none".into()),
            ("elapsed_seconds", (-1.0).into()),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            assert!(Report::from_json(&bad.to_string()).is_err(), "{field}");
        }
        let mut bad = good;
        bad["service"]["histogram"] = "AAAA".into();
        assert!(Report::from_json(&bad.to_string()).is_err());
        assert!(Report::from_json("{}").is_err());
    }
}
