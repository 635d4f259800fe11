//! `check` and `eject` of an upstream.

use std::ops::RangeInclusive;

use serde_yaml::Value;

use super::{bytes_text, duration, mapping, text};
use crate::config::model::{Check, CheckKind, Eject, Expect};

pub(super) fn eject(eject: Option<&Eject>) -> Value {
    let Some(Eject {
        failures,
        period,
        max,
        max_percent,
    }) = eject
    else {
        return text("off");
    };
    mapping([
        ("failures", (*failures).into()),
        ("period", duration(*period)),
        ("max", duration(*max)),
        ("max_percent", (*max_percent).into()),
    ])
}

pub(super) fn check(check: Option<&Check>) -> Value {
    let Some(Check {
        kind,
        interval,
        fast_interval,
        jitter_percent,
        timeout,
        rise,
        fall,
        port,
    }) = check
    else {
        return text("off");
    };
    let mut entries = of_kind(kind);
    entries.extend([
        ("interval", duration(*interval)),
        ("fast_interval", duration(*fast_interval)),
        ("jitter_percent", (*jitter_percent).into()),
        ("timeout", duration(*timeout)),
        ("rise", (*rise).into()),
        ("fall", (*fall).into()),
    ]);
    if let Some(port) = port {
        entries.push(("port", (*port).into()));
    }
    mapping(entries)
}

fn of_kind(kind: &CheckKind) -> Vec<(&'static str, Value)> {
    match kind {
        CheckKind::Tcp => vec![("type", text("tcp"))],
        CheckKind::Exchange { send, expect } => {
            let mut entries = vec![("type", text("exchange"))];
            if !send.is_empty() {
                entries.push(("send", bytes(send)));
            }
            entries.push(match expect {
                Expect::Prefix(prefix) => ("expect", bytes(prefix)),
                Expect::Contains(part) => ("contains", bytes(part)),
            });
            entries
        }
        CheckKind::Http { path, host, status } => vec![
            ("type", text("http")),
            ("path", text(path)),
            ("host", text(host)),
            (
                "status",
                Value::Sequence(status.iter().map(range).collect()),
            ),
        ],
        CheckKind::Tls { server_name } => {
            let mut entries = vec![("type", text("tls"))];
            if let Some(name) = server_name {
                entries.push(("server_name", text(name)));
            }
            entries
        }
    }
}

fn range(range: &RangeInclusive<u16>) -> Value {
    text(format!("{}-{}", range.start(), range.end()))
}

fn bytes(bytes: &[u8]) -> Value {
    text(bytes_text(bytes))
}
