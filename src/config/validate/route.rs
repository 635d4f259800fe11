//! `route` of a listener: protocols, names and where they go. The upstreams' names are looked up by `cross`.

use std::time::Duration;

use super::bytes::bytes;
use super::within;
use crate::config::limits::{
    DEFAULT_ROUTE_TIMEOUT, PROTOCOL_MAX_BYTES, ROUTE_NAMES_MAX, ROUTE_PROTOCOLS_MAX, TIMEOUT,
};
use crate::config::model::{Route, RouteBy};
use crate::config::read::{Cursor, Place, Report};
use crate::units::{UpstreamId, is_host_name, shorten};

pub(super) const ROUTE_KEYS: [&str; 6] = [
    "by",
    "alpn",
    "names",
    "no_name",
    "other_protocol",
    "timeout",
];

/// The words of `by`.
pub(in crate::config) const ROUTE_BYS: [(&str, RouteBy); 2] =
    [("sni", RouteBy::Sni), ("host", RouteBy::Host)];

/// As written; upstreams are still names.
pub(super) struct RouteDraft {
    pub(super) place: Place,
    /// Nothing says where sessions go: the name is for somebody else.
    pub(super) is_bare: bool,
    pub(super) by: RouteBy,
    /// Protocol, upstream, place of the upstream.
    pub(super) alpn: Vec<(Vec<u8>, String, Place)>,
    /// Name, upstream, place of the upstream.
    pub(super) names: Vec<(String, String, Place)>,
    pub(super) no_name: Option<(String, Place)>,
    pub(super) other_protocol: Option<(String, Place)>,
    pub(super) timeout: Duration,
}

impl RouteDraft {
    /// With indices for the names of upstreams.
    pub(super) fn model(&self, id_of: &impl Fn(&str) -> UpstreamId) -> Route {
        let named = |named: &Option<(String, Place)>| named.as_ref().map(|(name, _)| id_of(name));
        let names = self.names.iter();
        let protocols = self.alpn.iter();
        Route {
            by: self.by,
            alpn: protocols
                .map(|(protocol, to, _)| (protocol.clone(), id_of(to)))
                .collect(),
            names: names
                .map(|(name, to, _)| (name.clone(), id_of(to)))
                .collect(),
            no_name: named(&self.no_name),
            other_protocol: named(&self.other_protocol),
            timeout: self.timeout,
        }
    }

    /// Every upstream that is named.
    pub(super) fn upstreams(&self) -> impl Iterator<Item = (&String, &Place)> {
        let protocols = self.alpn.iter().map(|(_, to, place)| (to, place));
        let names = self.names.iter().map(|(_, to, place)| (to, place));
        let others = self.no_name.iter().chain(&self.other_protocol);
        let others = others.map(|(to, place)| (to, place));
        protocols.chain(names).chain(others)
    }
}

/// `off`, or a section.
pub(super) fn route(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<RouteDraft> {
    if report.is_off(at) {
        return None;
    }
    let section = report.section(at, &ROUTE_KEYS)?;
    let by_at = section.require(report, "by", "by: sni");
    let by = by_at.and_then(|at| report.choice(at, &ROUTE_BYS));
    let alpn_at = section.get("alpn");
    if let (Some(RouteBy::Host), Some(at)) = (by, alpn_at) {
        report.add(
            at.place(),
            "only a ClientHello names protocols",
            "write `by: sni`, or remove it",
        );
    }
    let alpn = alpn_at.map_or_else(Vec::new, |at| protocols(report, at));
    let names_at = section.get("names");
    let names = names_at.map_or_else(Vec::new, |at| names(report, at));
    let mut named = |key| {
        let at = section.get(key)?;
        Some((report.text(at)?, at.place()))
    };
    let no_name = named("no_name");
    let other_protocol = named("other_protocol");
    let timeout = section
        .get("timeout")
        .and_then(|at| report.duration(at, &TIMEOUT))
        .unwrap_or(DEFAULT_ROUTE_TIMEOUT);
    let ways = ["alpn", "names", "no_name", "other_protocol"];
    Some(RouteDraft {
        place: at.place(),
        is_bare: ways.iter().all(|key| section.get(key).is_none()),
        by: by?,
        alpn,
        names,
        no_name,
        other_protocol,
        timeout,
    })
}

fn protocols(report: &mut Report<'_>, at: &Cursor<'_>) -> Vec<(Vec<u8>, String, Place)> {
    let Some(entries) = report.pairs(at) else {
        return Vec::new();
    };
    if entries.is_empty() {
        report.add(
            at.place(),
            "there is no protocol",
            "add one, like `acme-tls/1: acme`, or remove the key",
        );
    }
    if !within(report, at, entries.len(), ROUTE_PROTOCOLS_MAX, "protocols") {
        return Vec::new();
    }
    let mut protocols: Vec<(Vec<u8>, String, Place)> = Vec::new();
    for (written, at) in entries {
        let Some(protocol) = bytes(report, &at.place(), written, PROTOCOL_MAX_BYTES) else {
            continue;
        };
        if is_grease(&protocol) {
            report.add(
                at.place(),
                format!(
                    "`{}` is no protocol: clients offer it at random",
                    shorten(written)
                ),
                "remove it; it is one of the values that RFC 8701 (GREASE) keeps meaningless",
            );
            continue;
        }
        if protocols.iter().any(|(other, _, _)| *other == protocol) {
            report.add(
                at.place(),
                format!("`{}` stands here a second time", shorten(written)),
                "keep one; text and `hex:` of the same bytes are the same protocol",
            );
            continue;
        }
        if let Some(upstream) = report.text(&at) {
            protocols.push((protocol, upstream, at.place()));
        }
    }
    protocols
}

/// 0x0A0A, 0x1A1A and so on to 0xFAFA (RFC 8701 section 2), some of which are letters.
fn is_grease(protocol: &[u8]) -> bool {
    matches!(protocol, [one, other] if one == other && one & 0x0F == 0x0A)
}

fn names(report: &mut Report<'_>, at: &Cursor<'_>) -> Vec<(String, String, Place)> {
    let entries = report.pairs(at).unwrap_or_default();
    if !within(report, at, entries.len(), ROUTE_NAMES_MAX, "names") {
        return Vec::new();
    }
    let mut names: Vec<(String, String, Place)> = Vec::new();
    for (written, at) in entries {
        let name = written.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
        if !is_host_name(name.strip_prefix("*.").unwrap_or(&name)) {
            report.add(
                at.place(),
                format!("`{}` is not a name to route by", shorten(written)),
                "write a host name like app.example.com, or *.example.com for every name below it",
            );
            continue;
        }
        if names.iter().any(|(other, _, _)| *other == name) {
            report.add(
                at.place(),
                format!("`{}` stands here a second time", shorten(written)),
                "keep one; upper and lower case are the same name",
            );
            continue;
        }
        if let Some(upstream) = report.text(&at) {
            names.push((name, upstream, at.place()));
        }
    }
    names
}
