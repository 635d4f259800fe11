//! `route` of a listener: names and where they go. The upstreams' names are looked up by `cross`.

use std::time::Duration;

use super::within;
use crate::config::limits::{DEFAULT_ROUTE_TIMEOUT, ROUTE_NAMES_MAX, TIMEOUT};
use crate::config::model::RouteBy;
use crate::config::read::{Cursor, Place, Report};
use crate::units::{is_host_name, shorten};

pub(super) const ROUTE_KEYS: [&str; 5] = ["by", "names", "no_name", "other_protocol", "timeout"];

/// The words of `by`.
pub(in crate::config) const ROUTE_BYS: [(&str, RouteBy); 2] =
    [("sni", RouteBy::Sni), ("host", RouteBy::Host)];

/// As written; upstreams are still names.
pub(super) struct RouteDraft {
    pub(super) by: RouteBy,
    /// Name, upstream, place of the upstream.
    pub(super) names: Vec<(String, String, Place)>,
    pub(super) no_name: Option<(String, Place)>,
    pub(super) other_protocol: Option<(String, Place)>,
    pub(super) timeout: Duration,
}

impl RouteDraft {
    /// Every upstream that is named.
    pub(super) fn upstreams(&self) -> impl Iterator<Item = (&String, &Place)> {
        let names = self
            .names
            .iter()
            .map(|(_, upstream, place)| (upstream, place));
        let others = self.no_name.iter().chain(&self.other_protocol);
        names.chain(others.map(|(upstream, place)| (upstream, place)))
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
    let names_at = section.require(report, "names", "names: { app.example.com: app }");
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
    Some(RouteDraft {
        by: by?,
        names,
        no_name,
        other_protocol,
        timeout,
    })
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
