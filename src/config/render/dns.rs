//! The section `dns`.

use serde_yaml::Value;

use super::{duration, duration_or_off, mapping, text, word};
use crate::config::model::Dns;
use crate::config::validate::FAMILIES;

pub(super) fn dns(dns: &Dns) -> Value {
    let Dns {
        nameservers,
        interval,
        timeout,
        family,
    } = dns;
    mapping([
        (
            "nameservers",
            Value::Sequence(nameservers.iter().map(text).collect()),
        ),
        ("interval", duration_or_off(*interval)),
        ("timeout", duration(*timeout)),
        ("family", word(&FAMILIES, family)),
    ])
}
