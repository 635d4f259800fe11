//! A report for people: the table, and HdrHistogram's percentile text.

use std::fmt::Write as _;
use std::io::{self, Write};

use hdrhistogram::Histogram;

use super::{NS_PER_US, microseconds};
use crate::load::{Kind, Report};

/// The quantiles of every table, with their names.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];
/// Lines per halving of what is left to 100 % in the percentile text.
const TICKS_PER_HALF: u32 = 5;

const NS_PER_MS: f64 = 1e6;

impl Report {
    /// The report for a person.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut text);
        text
    }

    fn write_table(&self, text: &mut String) -> std::fmt::Result {
        let elapsed = self.elapsed.as_secs_f64();
        writeln!(
            text,
            "{} to {}, {elapsed:.1} s",
            self.kind.name(),
            self.target
        )?;
        if let Some(name) = self.operations_name() {
            let rate = self.rates.operations;
            writeln!(text, "{name:<10} {:>14}   {rate:>14.1} /s", self.operations)?;
        }
        for (name, bytes, rate) in [
            ("sent", self.bytes_sent, self.rates.bytes_sent),
            ("received", self.bytes_received, self.rates.bytes_received),
        ] {
            writeln!(text, "{name:<10} {bytes:>14} B {:>14.1} MB/s", rate / 1e6)?;
        }
        for (kind, times) in &self.errors {
            writeln!(text, "error      {times:>14}   {kind}")?;
        }
        if self.latency_ns().is_empty() {
            return Ok(());
        }
        write!(text, "{:<22}", "latency, us")?;
        for (name, _) in QUANTILES {
            write!(text, "{name:>11}")?;
        }
        writeln!(text, "{:>11}", "max")?;
        if let Some(intended_ns) = &self.intended_ns {
            write_latency(text, "from intended time", intended_ns)?;
        }
        write_latency(text, "service time", &self.service_ns)?;
        match &self.tail_ns {
            Some(tail_ns) if !tail_ns.is_empty() => {
                write_latency(text, "wait for the tail", tail_ns)
            }
            _ => Ok(()),
        }
    }

    /// What the table calls operations; none if they say nothing: streams without an end are not
    /// complete when the time is over, and are no failure.
    fn operations_name(&self) -> Option<&'static str> {
        if !matches!(self.kind, Kind::Bulk | Kind::Slow) {
            return Some("operations");
        }
        let has_end = self
            .options
            .get("bytes")
            .is_some_and(|bytes| !bytes.is_null());
        (has_end || self.operations > 0).then_some("streams")
    }

    /// Writes HdrHistogram's percentile text, in milliseconds, of [`Report::latency_ns`].
    pub fn write_hgrm(&self, out: &mut impl Write) -> io::Result<()> {
        let histogram = self.latency_ns();
        writeln!(
            out,
            "       Value     Percentile TotalCount 1/(1-Percentile)\n"
        )?;
        let mut total = 0;
        for step in histogram.iter_quantiles(TICKS_PER_HALF) {
            total += step.count_since_last_iteration();
            let value_ms = step.value_iterated_to() as f64 / NS_PER_MS;
            let quantile = step.quantile_iterated_to();
            write!(out, "{value_ms:12.6} {quantile:14.12} {total:10}")?;
            if quantile < 1.0 {
                writeln!(out, " {:14.2}", 1.0 / (1.0 - quantile))?;
            } else {
                writeln!(out)?;
            }
        }
        writeln!(
            out,
            "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
            histogram.mean() / NS_PER_MS,
            histogram.stdev() / NS_PER_MS
        )?;
        writeln!(
            out,
            "#[Max     = {:12.3}, Total count    = {:12}]",
            histogram.max() as f64 / NS_PER_MS,
            histogram.len()
        )
    }
}

fn write_latency(text: &mut String, name: &str, histogram: &Histogram<u64>) -> std::fmt::Result {
    write!(text, "{name:<22}")?;
    for (_, quantile) in QUANTILES {
        write!(text, "{:>11.1}", microseconds(histogram, quantile))?;
    }
    writeln!(text, "{:>11.1}", histogram.max() as f64 / NS_PER_US)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::report::tests::report;

    #[test]
    fn the_percentile_text_counts_every_value_once() {
        let report = report(&[1_000; 999], 1.0);
        let mut text = Vec::new();
        report.write_hgrm(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let last = text.lines().rfind(|line| !line.starts_with('#')).unwrap();
        let columns: Vec<&str> = last.split_whitespace().collect();
        // To 3 digits: 1 ms may read as 1.000447.
        assert!(columns[0].starts_with("1.000"), "{last}");
        assert_eq!(columns[1..], ["1.000000000000", "999"]);
        assert!(text.contains("Total count    =          999]"), "{text}");
    }

    #[test]
    fn streams_are_counted_where_they_have_an_end() {
        let bulk = |operations, bytes: Value| Report {
            kind: Kind::Bulk,
            operations,
            options: Map::from_iter([("bytes".to_owned(), bytes)]),
            ..report(&[], 0.0)
        };
        let counts = |report: Report| {
            let table = report.to_table();
            let mut lines = table.lines().skip(1).map(str::to_owned);
            lines.next().filter(|line| !line.starts_with("sent"))
        };
        assert_eq!(counts(bulk(0, Value::Null)), None);
        for (operations, bytes) in [(7, Value::Null), (7, 1000.into()), (0, 1000.into())] {
            let line = counts(bulk(operations, bytes)).unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words[..2], ["streams", &operations.to_string()], "{line}");
        }
        let slow = Report {
            kind: Kind::Slow,
            ..bulk(0, Value::Null)
        };
        assert_eq!(counts(slow), None);
        let rr = Report {
            kind: Kind::Rr,
            ..bulk(0, Value::Null)
        };
        assert!(counts(rr).unwrap().starts_with("operations"));
    }

    #[test]
    fn the_table_names_every_quantile_and_error() {
        let table = report(&[100; 10], 7.0).to_table();
        for part in [
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max",
            "reset",
            "from intended time",
            "wait for the tail",
        ] {
            assert!(table.contains(part), "{part} is missing:\n{table}");
        }
    }
}
