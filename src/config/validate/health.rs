//! An upstream's health: `check`, `eject`.

use std::ops::RangeInclusive;

use super::bytes;
use crate::config::limits::{
    CHECK_BYTES_MAX, CHECK_COUNT, CHECK_PORT, CHECK_TIME, DEFAULT_CHECK, DEFAULT_EJECT,
    EJECT_FAILURES, EJECT_PERCENT, HTTP_STATUS, JITTER_PERCENT, TIMEOUT,
};
use crate::config::model::{Check, CheckHeader, CheckKind, Eject, Expect, OnDown, OnNoServer};
use crate::config::raw::Value;
use crate::config::read::{Cursor, Report, Section};
use crate::units::{is_host_name, shorten};

pub(super) const EJECT_KEYS: [&str; 4] = ["failures", "period", "max", "max_percent"];
pub(super) const CHECK_KEYS: [&str; 16] = [
    "type",
    "interval",
    "fast_interval",
    "jitter_percent",
    "timeout",
    "rise",
    "fall",
    "port",
    "proxy_protocol",
    "send",
    "expect",
    "contains",
    "path",
    "host",
    "status",
    "server_name",
];

/// The words of `proxy_protocol`; without one it is as with the sessions.
pub(in crate::config) const CHECK_HEADERS: [(&str, CheckHeader); 3] = [
    ("off", CheckHeader::Off),
    ("v1", CheckHeader::V1),
    ("v2", CheckHeader::V2),
];

/// The words of `on_down`.
pub(in crate::config) const ON_DOWNS: [(&str, OnDown); 3] = [
    ("keep", OnDown::Keep),
    ("drain", OnDown::Drain),
    ("close", OnDown::Close),
];

/// The words of `on_no_server`.
pub(in crate::config) const ON_NO_SERVERS: [(&str, OnNoServer); 4] = [
    ("reset", OnNoServer::Reset),
    ("close", OnNoServer::Close),
    ("hold", OnNoServer::Hold),
    ("stop_listening", OnNoServer::StopListening),
];

/// `off`, or a section.
pub(super) fn eject(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Option<Eject>> {
    if report.is_off(at) {
        return Some(None);
    }
    let section = report.section(at, &EJECT_KEYS)?;
    let failures = section
        .get("failures")
        .and_then(|at| report.number(at, &EJECT_FAILURES));
    let mut duration = |key, default| {
        let at = section.get(key);
        at.and_then(|at| report.duration(at, &TIMEOUT))
            .unwrap_or(default)
    };
    let period = duration("period", DEFAULT_EJECT.period);
    let max = duration("max", DEFAULT_EJECT.max);
    let max_percent = section
        .get("max_percent")
        .and_then(|at| report.number(at, &EJECT_PERCENT));
    if max < period && section.get("max").is_some() {
        report.add(
            section.place.clone(),
            "`max` is shorter than `period`",
            "make it at least as long",
        );
    }
    Some(Some(Eject {
        failures: failures.unwrap_or(DEFAULT_EJECT.failures),
        period,
        max: max.max(period),
        max_percent: max_percent.unwrap_or(DEFAULT_EJECT.max_percent),
    }))
}

/// `off`, the word of a type, or a section.
pub(super) fn check(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Option<Check>> {
    if report.is_off(at) {
        return Some(None);
    }
    if !matches!(at.node.value, Value::Map(_)) {
        if report.is_word(at, "exchange") {
            report.add(
                at.place(),
                "an exchange needs `expect` or `contains`: what the answer begins with, or has in it",
                "write a section, like `check: { type: exchange, send: \"PING\\r\\n\", expect: \"+PONG\" }`",
            );
            return None;
        }
        let kind = match report.choice(at, &CHECKS)? {
            Type::Http => CheckKind::Http {
                path: "/".to_owned(),
                host: "localhost".to_owned(),
                status: vec![DEFAULT_STATUS],
            },
            Type::Tls => CheckKind::Tls { server_name: None },
            Type::Tcp | Type::Exchange => CheckKind::Tcp,
        };
        return Some(Some(Check {
            kind,
            ..DEFAULT_CHECK
        }));
    }
    let section = report.section(at, &CHECK_KEYS)?;
    let kind = kind(report, &section);
    let mut duration = |key, default| {
        let at = section.get(key);
        at.and_then(|at| report.duration(at, &CHECK_TIME))
            .unwrap_or(default)
    };
    let interval = duration("interval", DEFAULT_CHECK.interval);
    let fast_interval = duration("fast_interval", DEFAULT_CHECK.fast_interval.min(interval));
    let timeout = duration("timeout", DEFAULT_CHECK.timeout);
    let mut count = |key, range: &RangeInclusive<u64>, default: u32| {
        let at = section.get(key);
        at.and_then(|at| report.number(at, range))
            .unwrap_or(default)
    };
    let rise = count("rise", &CHECK_COUNT, DEFAULT_CHECK.rise);
    let fall = count("fall", &CHECK_COUNT, DEFAULT_CHECK.fall);
    let jitter_percent = section
        .get("jitter_percent")
        .and_then(|at| report.number(at, &JITTER_PERCENT));
    let port = section
        .get("port")
        .and_then(|at| report.number(at, &CHECK_PORT));
    let kind = kind?;
    let header = header(report, &section, &kind);
    Some(Some(Check {
        kind,
        interval,
        fast_interval,
        jitter_percent: jitter_percent.unwrap_or(DEFAULT_CHECK.jitter_percent),
        timeout,
        rise,
        fall,
        port,
        header: header.unwrap_or(DEFAULT_CHECK.header),
    }))
}

fn header(report: &mut Report<'_>, section: &Section<'_>, kind: &CheckKind) -> Option<CheckHeader> {
    let at = section.get("proxy_protocol")?;
    let header = report.choice(at, &CHECK_HEADERS)?;
    if *kind == CheckKind::Tcp && header != CheckHeader::Off {
        report.add(
            at.place(),
            "means nothing for a check of type tcp: it sends no byte",
            "set another type, or remove it",
        );
    }
    Some(header)
}

/// A redirect is an answer of a server that lives.
const DEFAULT_STATUS: RangeInclusive<u16> = 200..=399;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum Type {
    Tcp,
    Exchange,
    Http,
    Tls,
}

/// The words of `check.type`.
pub(in crate::config) const CHECK_TYPES: [(&str, Type); 4] = [
    ("tcp", Type::Tcp),
    ("tls", Type::Tls),
    ("http", Type::Http),
    ("exchange", Type::Exchange),
];

/// The words that stand for a whole `check`. An exchange has none: it needs what to expect.
pub(in crate::config) const CHECKS: [(&str, Type); 3] =
    [CHECK_TYPES[0], CHECK_TYPES[1], CHECK_TYPES[2]];

/// Which keys belong to which type.
const OF_TYPE: [(&str, Type); 7] = [
    ("send", Type::Exchange),
    ("expect", Type::Exchange),
    ("contains", Type::Exchange),
    ("path", Type::Http),
    ("host", Type::Http),
    ("status", Type::Http),
    ("server_name", Type::Tls),
];

fn kind(report: &mut Report<'_>, section: &Section<'_>) -> Option<CheckKind> {
    let which = match section.get("type") {
        Some(at) => report.choice(at, &CHECK_TYPES)?,
        None => Type::Tcp,
    };
    for (key, belongs_to) in OF_TYPE {
        if belongs_to != which
            && let Some(at) = section.get(key)
        {
            let (word, _) = CHECK_TYPES.iter().find(|(_, it)| *it == belongs_to)?;
            report.add(
                at.place(),
                "means nothing for this type of check",
                format!("set type: {word}, or remove it"),
            );
        }
    }
    match which {
        Type::Tcp => Some(CheckKind::Tcp),
        Type::Exchange => exchange(report, section),
        Type::Http => http(report, section),
        Type::Tls => tls(report, section),
    }
}

fn exchange(report: &mut Report<'_>, section: &Section<'_>) -> Option<CheckKind> {
    let send = match section.get("send") {
        Some(at) => bytes(report, at)?,
        None => Vec::new(),
    };
    let expect = match (section.get("expect"), section.get("contains")) {
        (Some(_), Some(at)) => {
            report.add(
                at.place(),
                "stands beside `expect`",
                "keep one of the two: the first bytes of the answer, or bytes anywhere in it",
            );
            return None;
        }
        (None, Some(at)) => Expect::Contains(bytes(report, at)?),
        (expect, None) => {
            let at = match expect {
                Some(at) => at,
                None => section.require(report, "expect", "expect: \"+PONG\"")?,
            };
            Expect::Prefix(bytes(report, at)?)
        }
    };
    Some(CheckKind::Exchange { send, expect })
}

fn bytes(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Vec<u8>> {
    let text = report.text(at)?;
    bytes::bytes(report, &at.place(), &text, CHECK_BYTES_MAX)
}

fn http(report: &mut Report<'_>, section: &Section<'_>) -> Option<CheckKind> {
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    let path = match section.get("path") {
        Some(at) => {
            let path = report.text(at)?;
            if !path.starts_with('/') || !plain(&path) {
                report.add(
                    at.place(),
                    format!("`{}` is not the path of a request", shorten(&path)),
                    "begin with / and use printable ASCII without spaces, like /healthz",
                );
                return None;
            }
            path
        }
        None => "/".to_owned(),
    };
    let host = match section.get("host") {
        Some(at) => {
            let host = report.text(at)?;
            if !plain(&host) {
                report.add(
                    at.place(),
                    format!("`{}` is not the name of a host", shorten(&host)),
                    "write it as the Host header has it, like app.example.com",
                );
                return None;
            }
            host
        }
        None => "localhost".to_owned(),
    };
    let status = match section.get("status") {
        Some(at) => statuses(report, at)?,
        None => vec![DEFAULT_STATUS],
    };
    Some(CheckKind::Http { path, host, status })
}

/// `200`, `200-299`, or a list of those.
fn statuses(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Vec<RangeInclusive<u16>>> {
    let items = report.one_or_list(at, "write 200, 200-299, or remove the key")?;
    items.iter().map(|item| status(report, item)).collect()
}

fn status(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<RangeInclusive<u16>> {
    let text = report.text(at)?;
    let (from, to) = text.split_once('-').unwrap_or((&text, &text));
    match (from.parse::<u16>(), to.parse::<u16>()) {
        (Ok(from), Ok(to))
            if from <= to
                && HTTP_STATUS.contains(&from.into())
                && HTTP_STATUS.contains(&to.into()) =>
        {
            Some(from..=to)
        }
        _ => {
            report.add(
                at.place(),
                format!("`{}` is not a status or a range of them", shorten(&text)),
                "write 200, 200-299 or a list like [200, 301]",
            );
            None
        }
    }
}

fn tls(report: &mut Report<'_>, section: &Section<'_>) -> Option<CheckKind> {
    let Some(at) = section.get("server_name") else {
        return Some(CheckKind::Tls { server_name: None });
    };
    let name = report.text(at)?;
    // Not an IP address either: its last label is digits alone.
    if !is_host_name(&name) {
        report.add(
            at.place(),
            format!("`{}` is not a host name", shorten(&name)),
            "write a name like app.example.com; IP addresses have no place in SNI (RFC 6066)",
        );
        return None;
    }
    Some(CheckKind::Tls {
        server_name: Some(name),
    })
}
