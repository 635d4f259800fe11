//! HdrHistogram's interval logs (`.hlog`, format V1.x), as HdrHistogram's own tools and others write
//! and read them: a line per interval, with its histogram.
//!
//! ```text
//! #[StartTime: 1441812279.474 (seconds since epoch), …]
//! "StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"
//! Tag=reads,0.127,1.007,2.769,HISTFAAAA…
//! ```
//!
//! A log does not say what its values are. They are nanoseconds unless the reader says otherwise, which
//! is also what is written here. The maximum beside each histogram is for people, divided by whatever
//! its writer liked, and is not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogHistogram, IntervalLogIterator, IntervalLogWriterBuilder, IntervalLogWriterError,
    LogEntry,
};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};
use serde_json::Map;

use crate::load::{Kind, Rates, Report, histogram};

/// How intervals without a tag are asked for.
pub const UNTAGGED: &str = "-";
/// The maximum of an interval is written in milliseconds, as HdrHistogram's own writer does.
const MAX_DIVISOR: f64 = 1e6;

/// What the values of a log are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds.
    #[default]
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
}

impl Unit {
    fn nanoseconds(self) -> u64 {
        match self {
            Unit::Nanoseconds => 1,
            Unit::Microseconds => 1_000,
            Unit::Milliseconds => 1_000_000,
        }
    }
}

/// How a log is to be read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What its values are.
    pub unit: Unit,
    /// Only intervals with one of these tags, [`UNTAGGED`] for those without. Empty: all, if they
    /// have the same tag or none has any.
    pub tags: Vec<String>,
}

/// Intervals of one tag, added up.
struct Sum {
    latency_ns: Histogram<u64>,
    from: Duration,
    to: Duration,
}

/// Reads a log as a report of the kind [`Kind::Log`]: its intervals are added up, its time is that
/// from the beginning of the first to the end of the last. The target is `name`.
pub fn read(text: &str, name: &str, options: &Options) -> Result<Report> {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        add_line(line, options, &mut sums).with_context(|| format!("line {}", index + 1))?;
    }
    ensure!(
        !sums.is_empty(),
        "no intervals: neither a report of --json nor a log of HdrHistogram"
    );
    let found: BTreeSet<&str> = sums.keys().map(String::as_str).collect();
    let names = found.iter().copied().collect::<Vec<_>>().join(", ");
    let wanted: BTreeSet<&str> = if options.tags.is_empty() {
        ensure!(
            found.len() == 1,
            "intervals of several tags ({names}; {UNTAGGED} is none): choose those to add up with \
             --log-tag"
        );
        found
    } else {
        options.tags.iter().map(String::as_str).collect()
    };
    let mut latency_ns = histogram();
    let (mut from, mut to) = (Duration::MAX, Duration::ZERO);
    for tag in &wanted {
        let Some(sum) = sums.get(*tag) else {
            bail!("no interval has the tag {tag:?}; there are: {names}");
        };
        latency_ns.add(&sum.latency_ns)?;
        (from, to) = (from.min(sum.from), to.max(sum.to));
    }
    Ok(report(name, &wanted, latency_ns, to.saturating_sub(from)))
}

/// Adds the interval of a line to its tag's; other lines say nothing of use.
fn add_line(line: &str, options: &Options, sums: &mut BTreeMap<String, Sum>) -> Result<()> {
    // One line at a time: so an error knows its line. The parser wants to see the end of it.
    let line = format!("{line}\n");
    for entry in IntervalLogIterator::new(line.as_bytes()) {
        let entry = entry.map_err(|_| {
            anyhow!("neither a comment nor start,length,max,histogram of an interval log")
        })?;
        let LogEntry::Interval(interval) = entry else {
            continue;
        };
        let tag = interval.tag().map_or(UNTAGGED, |tag| tag.as_str());
        let from = interval.start_timestamp();
        let to = from
            .checked_add(interval.duration())
            .context("an interval that never ends")?;
        let sum = sums.entry(tag.to_owned()).or_insert_with(|| Sum {
            latency_ns: histogram(),
            from,
            to,
        });
        (sum.from, sum.to) = (sum.from.min(from), sum.to.max(to));
        add_histogram(&interval, options.unit, &mut sum.latency_ns)?;
    }
    Ok(())
}

fn add_histogram(
    interval: &IntervalLogHistogram<'_>,
    unit: Unit,
    sum: &mut Histogram<u64>,
) -> Result<()> {
    let bytes = BASE64
        .decode(interval.encoded_histogram().trim_end())
        .context("the histogram is not base64")?;
    let read: Histogram<u64> = Deserializer::new()
        .deserialize(&mut io::Cursor::new(bytes))
        .map_err(|error| anyhow!("not a histogram in HdrHistogram's V2 encoding: {error}"))?;
    for step in read.iter_recorded() {
        let value = read.median_equivalent(step.value_iterated_to());
        let value_ns = value.saturating_mul(unit.nanoseconds());
        // Into our own bounds, as everywhere: what is longer than they are counts as their end.
        sum.saturating_record_n(value_ns, step.count_at_value());
    }
    Ok(())
}

fn report(
    name: &str,
    tags: &BTreeSet<&str>,
    latency_ns: Histogram<u64>,
    elapsed: Duration,
) -> Report {
    let operations = latency_ns.len();
    let per_second = match elapsed.as_secs_f64() {
        0.0 => 0.0,
        seconds => operations as f64 / seconds,
    };
    let tags: Vec<&str> = tags.iter().copied().collect();
    Report {
        kind: Kind::Log,
        target: name.to_owned(),
        options: Map::from_iter([("tags".to_owned(), tags.into())]),
        elapsed,
        operations,
        errors: BTreeMap::new(),
        bytes_sent: 0,
        bytes_received: 0,
        rates: Rates {
            operations: per_second,
            ..Rates::default()
        },
        service_ns: latency_ns,
        intended_ns: None,
        tail_ns: None,
    }
}

/// Writes [`Report::latency_ns`] as the one interval of a log, in nanoseconds. `started` is when the
/// load began, if that is known.
pub fn write(report: &Report, started: Option<SystemTime>, out: &mut impl Write) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder
        .add_comment("[Histogram log format version 1.3]")
        .add_comment(&format!(
            "[corelay-bench {}, values in nanoseconds]",
            report.kind.name()
        ))
        .with_max_value_divisor(MAX_DIVISOR);
    if let Some(started) = started {
        builder.with_start_time(started).with_base_time(started);
    }
    let mut log = builder.begin_log_with(out, &mut serializer)?;
    log.write_histogram(report.latency_ns(), Duration::ZERO, report.elapsed, None)
        .map_err(|error| match error {
            IntervalLogWriterError::IoError(error) => error,
            IntervalLogWriterError::SerializeError(error) => io::Error::other(error),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::{Serializer, V2Serializer};

    fn encoded(values: &[u64]) -> String {
        // Of other bounds and another precision than ours.
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 1_000_000_000_000, 2).unwrap();
        for value in values {
            histogram.record(*value).unwrap();
        }
        let mut bytes = Vec::new();
        V2Serializer::new()
            .serialize(&histogram, &mut bytes)
            .unwrap();
        BASE64.encode(bytes)
    }

    /// Three untagged intervals with a gap, as the tools in Java write them, and no last line end.
    fn log() -> String {
        format!(
            "#[Histogram log format version 1.3]\n#[StartTime: 1441812279.474 (seconds since epoch), \
             Wed]\n\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\
             \"Interval_Compressed_Histogram\"\r\n0.500,1.000,0.000,{}\r\n\n1.500,1.000,0.1,{}\n\
             9.000,1.500,99.0,{}",
            encoded(&[100, 120]),
            encoded(&[50, 100]),
            encoded(&[7_000_000]),
        )
    }

    fn read_as(text: &str, unit: Unit, tags: &[&str]) -> Result<Report> {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        read(text, "a.hlog", &Options { unit, tags })
    }

    fn error_of(text: &str, tags: &[&str]) -> String {
        format!("{:#}", read_as(text, Unit::Nanoseconds, tags).unwrap_err())
    }

    #[test]
    fn intervals_are_added_up_in_the_unit_of_the_log() {
        for (unit, ns) in [
            (Unit::Nanoseconds, 1),
            (Unit::Microseconds, 1_000),
            (Unit::Milliseconds, 1_000_000),
        ] {
            let report = read_as(&log(), unit, &[]).unwrap();
            assert_eq!(report.operations, 5);
            let latency_ns = &report.service_ns;
            assert_eq!((latency_ns.len(), report.kind), (5, Kind::Log));
            assert_eq!(latency_ns.count_at(100 * ns), 2, "{unit:?}");
            assert_eq!(latency_ns.count_at(50 * ns), 1, "{unit:?}");
            // To two digits; 7,000 s are more than is told apart.
            let longest = (7_000_000.0 * ns as f64).min(600e9);
            assert!((latency_ns.max() as f64 / longest - 1.0).abs() < 0.02);
            assert_eq!(report.elapsed, Duration::from_secs(10));
            assert_eq!(report.rates.operations, 0.5);
        }
    }

    #[test]
    fn tags_are_added_up_only_if_somebody_asks_for_it() {
        let reads = format!("Tag=reads,0.0,1.0,0.0,{}\n", encoded(&[1, 2]));
        let writes = format!("Tag=writes,4.0,2.0,0.0,{}\n", encoded(&[3]));
        let plain = format!("1.0,1.0,0.0,{}\n", encoded(&[4, 5, 6]));
        let count = |text: &str, tags: &[&str]| {
            let report = read_as(text, Unit::Nanoseconds, tags).unwrap();
            (report.operations, report.elapsed.as_secs())
        };
        assert_eq!(count(&reads, &[]), (2, 1));
        let all = [reads, writes, plain].concat();
        let error = error_of(&all, &[]);
        assert!(error.contains("-, reads, writes"), "{error}");
        assert_eq!(count(&all, &["reads"]), (2, 1));
        assert_eq!(count(&all, &["-"]), (3, 1));
        assert_eq!(count(&all, &["reads", "writes"]), (3, 6));
        assert_eq!(count(&all, &["reads", "writes", "-", "-"]), (6, 6));
        let error = error_of(&all, &["scans"]);
        assert!(error.contains("\"scans\"; there are: -, "), "{error}");
    }

    #[test]
    fn an_error_says_which_line_and_what() {
        let good = log();
        let cut = &good[..good.len() - 9];
        let other = "HISTIgAAAFB42pNpmSzMwMDAxQABzFCaEUoz2X+AMIK1AO";
        for (text, line, what) in [
            (format!("{good}\nnonsense\n"), "line 8", "interval log"),
            (format!("{good}\n1.0,2.0\n"), "line 8", "interval log"),
            (cut.to_owned(), "line 7", ""),
            ("#x\n1.0,1.0,1.0,!!!\n".to_owned(), "line 2", "base64"),
            ("1.0,1.0,1.0,AAAA\n".to_owned(), "line 1", "V2"),
            (format!("\n1.0,1.0,1.0,{other}==\n"), "line 2", ""),
            ("#only a comment\n".to_owned(), "no intervals", ""),
            (String::new(), "no intervals", ""),
        ] {
            let error = error_of(&text, &[]);
            assert!(error.starts_with(line) && error.contains(what), "{error}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut report = read_as(&log(), Unit::Microseconds, &[]).unwrap();
        report.kind = Kind::Rr;
        for started in [None, Some(SystemTime::now())] {
            let mut bytes = Vec::new();
            write(&report, started, &mut bytes).unwrap();
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(text.contains("#[StartTime: "), started.is_some(), "{text}");
            let read = read_as(&text, Unit::Nanoseconds, &[]).unwrap();
            assert_eq!(read.service_ns, report.service_ns);
            assert_eq!(read.elapsed, report.elapsed);
        }
    }
}
