//! `proxy_protocol` of listeners and upstreams.

use serde_yaml::Value;

use super::{VERSIONS, duration, mapping, text, word};
use crate::config::model::{PassedTlvs, ProxyRequired, ProxySent};
use crate::config::validate::TLVS;

pub(super) fn required(required: Option<&ProxyRequired>) -> Value {
    let Some(ProxyRequired {
        versions,
        trusted,
        timeout,
    }) = required
    else {
        return text("off");
    };
    let trusted = trusted.iter().map(text);
    mapping([
        ("versions", word(&VERSIONS, versions)),
        ("trusted", Value::Sequence(trusted.collect())),
        ("timeout", duration(*timeout)),
    ])
}

pub(super) fn sent(sent: Option<&ProxySent>) -> Value {
    let Some(ProxySent {
        version,
        crc32c,
        pass_tlvs,
        unique_id,
    }) = sent
    else {
        return text("off");
    };
    mapping([
        ("version", word(&VERSIONS, version)),
        ("crc32c", (*crc32c).into()),
        ("pass_tlvs", tlvs(*pass_tlvs)),
        ("unique_id", (*unique_id).into()),
    ])
}

fn tlvs(passed: PassedTlvs) -> Value {
    match passed {
        PassedTlvs::ALL => true.into(),
        PassedTlvs::NONE => false.into(),
        _ => {
            let words = TLVS.iter().filter(|(_, one)| passed.contains(*one));
            Value::Sequence(words.map(|(word, _)| text(word)).collect())
        }
    }
}
