//! The admin listener's answers, as numbers: a small HTTP client and a Prometheus text parser.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::DEADLINE;

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// GETs a path; `None` if nobody answers.
pub(crate) fn get(admin: SocketAddr, path: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect_timeout(&admin, DEADLINE).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer {
        status,

        body: body.to_owned(),
    })
}

/// One sample.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// A whole scrape.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) samples: Vec<Sample>,
}

impl Metrics {
    /// Parses the text format; fails the test on a line that is not of it.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self {
            samples: lines.map(parse_sample).collect(),
        }
    }

    /// The samples of this name that have these labels.
    pub(crate) fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|has| has == value))
        })
    }

    /// The sum of the samples of this name that have these labels; 0 if there is none, for a
    /// counter that has not counted yet may be absent.
    pub(crate) fn sum_where(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|sample| sample.value).sum()
    }

    /// The sum of the samples of this name, of which there must be one.
    #[track_caller]
    pub(crate) fn sum(&self, name: &str) -> f64 {
        assert!(self.select(name, &[]).next().is_some(), "no metric {name}");
        self.sum_where(name, &[])
    }
}

#[track_caller]
fn parse_sample(line: &str) -> Sample {
    let (series, value) = line
        .rsplit_once(' ')
        .unwrap_or_else(|| panic!("no value: {line:?}"));
    let value = value
        .parse()
        .unwrap_or_else(|_| panic!("not a number: {line:?}"));
    let Some((name, rest)) = series.split_once('{') else {
        return Sample {
            name: series.to_owned(),
            labels: BTreeMap::new(),
            value,
        };
    };
    let rest = rest
        .strip_suffix('}')
        .unwrap_or_else(|| panic!("no closing brace: {line:?}"));
    Sample {
        name: name.to_owned(),
        labels: parse_labels(rest, line),
        value,
    }
}

#[track_caller]
fn parse_labels(text: &str, line: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, after) = rest
            .split_once("=\"")
            .unwrap_or_else(|| panic!("a bad label: {line:?}"));
        let (value, after) = after
            .split_once('"')
            .unwrap_or_else(|| panic!("no quote: {line:?}"));
        assert!(
            !value.contains('\\'),
            "no test needs an escaped label: {line:?}"
        );
        labels.insert(key.to_owned(), value.to_owned());
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    labels
}
