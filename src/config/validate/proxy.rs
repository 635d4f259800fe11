//! `proxy_protocol` of listeners and of upstreams.

use crate::config::limits::{DEFAULT_PROXY_TIMEOUT, TIMEOUT};
use crate::config::model::{PassedTlvs, ProxyRequired, ProxySent, ProxyVersions};
use crate::config::raw::Value;
use crate::config::read::{Cursor, Report};
use crate::units::network::Network;
use crate::units::shorten;

pub(super) const REQUIRED_KEYS: [&str; 3] = ["versions", "trusted", "timeout"];
pub(super) const SENT_KEYS: [&str; 4] = ["version", "crc32c", "pass_tlvs", "unique_id"];

/// The words of `versions`.
pub(in crate::config) const VERSIONS: [(&str, ProxyVersions); 3] = [
    ("any", ProxyVersions::Any),
    ("v1", ProxyVersions::V1),
    ("v2", ProxyVersions::V2),
];

/// The words of `version`: of a header that is sent.
pub(in crate::config) const SENT_VERSIONS: [(&str, ProxyVersions); 2] =
    [("v1", ProxyVersions::V1), ("v2", ProxyVersions::V2)];

/// The words of a list in `pass_tlvs`.
pub(in crate::config) const TLVS: [(&str, PassedTlvs); 3] = [
    ("authority", PassedTlvs::AUTHORITY),
    ("alpn", PassedTlvs::ALPN),
    ("unique_id", PassedTlvs::UNIQUE_ID),
];

/// The word for every network.
pub(in crate::config) const ALL: &str = "all";

/// `off`, or a section.
pub(super) fn required(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Option<ProxyRequired>> {
    if report.is_off(at) {
        return Some(None);
    }
    if matches!(at.node.value, Value::Scalar(_)) {
        let word = report.text(at)?;
        let is_version = VERSIONS.iter().any(|(known, _)| *known == word);
        let versions = if is_version {
            format!(", versions: {word}")
        } else {
            String::new()
        };
        report.add(
            at.place(),
            format!("`{}` does not say who may send a header", shorten(&word)),
            format!("write `proxy_protocol: {{ trusted: [10.0.0.0/8]{versions} }}`, or off"),
        );
        return None;
    }
    let section = report.section(at, &REQUIRED_KEYS)?;
    let versions = section
        .get("versions")
        .and_then(|at| report.choice(at, &VERSIONS))
        .unwrap_or(ProxyVersions::Any);
    let timeout = section
        .get("timeout")
        .and_then(|at| report.duration(at, &TIMEOUT))
        .unwrap_or(DEFAULT_PROXY_TIMEOUT);
    let trusted_at = section.require(report, "trusted", "trusted: [10.0.0.0/8]");
    let trusted = trusted_at.and_then(|at| networks(report, at))?;
    Some(Some(ProxyRequired {
        versions,
        trusted,
        timeout,
    }))
}

/// `all`, one network, or a list of networks.
fn networks(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Vec<Network>> {
    let remedy = "name the networks of the proxies in front, like [10.0.0.0/8], or all";
    let items = report.one_or_list(at, remedy)?;
    let mut networks = Vec::new();
    for item in &items {
        let text = report.text(item)?;
        if text == ALL {
            let every = ["0.0.0.0/0", "::/0"].map(str::parse::<Network>);
            networks.extend(every.map(|network| network.expect("a network")));
            continue;
        }
        match text.parse::<Network>() {
            Ok(network) => networks.push(network),
            Err(error) => report.add(item.place(), error.to_string(), error.remedy()),
        }
    }
    Some(networks)
}

/// `off`, a version, or a section.
pub(super) fn sent(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Option<ProxySent>> {
    if report.is_off(at) {
        return Some(None);
    }
    if !matches!(at.node.value, Value::Map(_)) {
        return Some(Some(ProxySent {
            version: report.choice(at, &SENT_VERSIONS)?,
            crc32c: false,
            pass_tlvs: PassedTlvs::ALL,
            unique_id: false,
        }));
    }
    let section = report.section(at, &SENT_KEYS)?;
    let version_at = section.require(report, "version", "version: v2");
    let version = version_at.and_then(|at| report.choice(at, &SENT_VERSIONS))?;
    let mut flag = |key, default| {
        let at = section.get(key);
        at.and_then(|at| report.boolean(at)).unwrap_or(default)
    };
    let crc32c = flag("crc32c", false);
    let unique_id = flag("unique_id", false);
    let tlvs_at = section.get("pass_tlvs");
    let pass_tlvs = tlvs_at.and_then(|at| tlvs(report, at));
    if let (Some(at), ProxyVersions::V1) = (tlvs_at, version)
        && matches!(at.node.value, Value::List(_))
    {
        report.add(
            at.place(),
            "version 1 has no TLVs",
            "set version to v2, or remove pass_tlvs",
        );
    }
    if unique_id && version == ProxyVersions::V1 {
        report.add(
            section.place.clone(),
            "version 1 has no unique id",
            "set version to v2, or unique_id to false",
        );
    }
    if crc32c && version == ProxyVersions::V1 {
        report.add(
            section.place.clone(),
            "version 1 has no checksum",
            "set version to v2, or crc32c to false",
        );
    }
    Some(Some(ProxySent {
        version,
        crc32c,
        pass_tlvs: pass_tlvs.unwrap_or(PassedTlvs::ALL),
        unique_id,
    }))
}

/// All, none, or a list of some.
fn tlvs(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<PassedTlvs> {
    if !matches!(at.node.value, Value::List(_)) {
        let word = report.text(at)?;
        return match word.as_ref() {
            "true" => Some(PassedTlvs::ALL),
            "false" => Some(PassedTlvs::NONE),
            _ => {
                report.add(
                    at.place(),
                    format!("`{}` is not a choice", shorten(&word)),
                    "write true, false, or a list of authority, alpn and unique_id",
                );
                None
            }
        };
    }
    let mut passed = PassedTlvs::NONE;
    for item in report.one_or_list(at, "name authority, alpn or unique_id, or write false")? {
        let Some(one) = report.choice(&item, &TLVS) else {
            continue;
        };
        if passed.contains(one) {
            report.add(item.place(), "is in the list already", "remove it");
        }
        passed = passed.union(one);
    }
    Some(passed)
}
