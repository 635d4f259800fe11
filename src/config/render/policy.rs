//! Who may connect to a listener, how many and how fast.

use serde_yaml::Value;

use super::{mapping, text, word};
use crate::config::model::{
    Access, AccessSource, Bandwidth, ConnectionRate, Limits, PerSource, Throughput, Verdict,
};
use crate::config::validate::{ACCESS_ALL, ACCESS_FILE_PREFIX, ON_FULLS};
use crate::units::ByteSize;

pub(super) fn render_access(access: Option<&Access>) -> Value {
    let Some(Access { rules, otherwise }) = access else {
        return text("off");
    };
    let rule = |verdict: &Verdict, sources| {
        let key = match verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        };
        mapping([(key, sources)])
    };
    let mut items: Vec<Value> = Vec::with_capacity(rules.len() + 1);
    for it in rules {
        let sources = it.sources.iter().map(render_source).collect();
        items.push(rule(&it.verdict, Value::Sequence(sources)));
    }
    items.push(rule(otherwise, text(ACCESS_ALL)));
    Value::Sequence(items)
}

fn render_source(source: &AccessSource) -> Value {
    match source {
        AccessSource::Network(network) => text(network),
        AccessSource::File(path) => text(format!("{ACCESS_FILE_PREFIX}{}", path.display())),
    }
}

pub(super) fn render_limits(limits: &Limits) -> Value {
    let Limits {
        connections,
        rate,
        per_source:
            PerSource {
                connections: source_connections,
                rate: source_rate,
                v4_prefix_bits,
                v6_prefix_bits,
                table,
                on_full,
            },
        bandwidth:
            Bandwidth {
                connection: of_each,
                listener: of_all,
            },
    } = limits;
    let per_source = mapping([
        ("connections", number_or_off(*source_connections)),
        ("rate", number_or_off(source_rate.map(per_second))),
        ("burst", number_or_off(source_rate.map(burst))),
        ("v4_prefix", (*v4_prefix_bits).into()),
        ("v6_prefix", (*v6_prefix_bits).into()),
        ("table", (*table).into()),
        ("on_full", word(&ON_FULLS, on_full)),
    ]);
    mapping([
        ("connections", number_or_off(*connections)),
        ("rate", number_or_off(rate.map(per_second))),
        ("burst", number_or_off(rate.map(burst))),
        ("per_source", per_source),
        (
            "bandwidth",
            mapping([
                ("connection", throughput(*of_each)),
                ("listener", throughput(*of_all)),
            ]),
        ),
    ])
}

/// As short as it can be written.
fn throughput(Throughput { upload, download }: Throughput) -> Value {
    let size_or_off = |size: Option<u64>| size.map_or_else(|| text("off"), |it| text(ByteSize(it)));
    if upload == download {
        return size_or_off(upload);
    }
    mapping([
        ("upload", size_or_off(upload)),
        ("download", size_or_off(download)),
    ])
}

fn per_second(rate: ConnectionRate) -> u32 {
    rate.per_second
}

fn burst(rate: ConnectionRate) -> u32 {
    rate.burst
}

fn number_or_off(number: Option<u32>) -> Value {
    number.map_or_else(|| text("off"), Value::from)
}
