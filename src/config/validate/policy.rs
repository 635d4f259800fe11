//! Who may connect to a listener, how many and how fast: `access`, `limits` and `on_refuse`.

use std::path::PathBuf;

use super::cross::ListenerDraft;
use super::{bandwidth, within};
use crate::config::limits::{
    ACCESS_ITEMS_MAX, CONNECTION_RATE, DEFAULT_LIMITS, DEFAULT_ON_REFUSE, LISTENER_CONNECTIONS,
    SOURCE_TABLE, V4_PREFIX_BITS, V6_PREFIX_BITS,
};
use crate::config::model::{
    Access, AccessRule, AccessSource, ConnectionRate, Limits, OnRefuse, PerSource, Verdict,
};
use crate::config::read::{Cursor, Place, Report, Section};
use crate::units::network::Network;
use crate::units::{Address, shorten};

pub(super) const ACCESS_KEYS: [&str; 2] = ["allow", "deny"];
pub(super) const LIMITS_KEYS: [&str; 5] =
    ["connections", "rate", "burst", "per_source", "bandwidth"];
pub(super) const PER_SOURCE_KEYS: [&str; 7] = [
    "connections",
    "rate",
    "burst",
    "v4_prefix",
    "v6_prefix",
    "table",
    "on_full",
];

/// The words of `on_refuse`.
pub(in crate::config) const ON_REFUSES: [(&str, OnRefuse); 2] =
    [("reset", OnRefuse::Reset), ("close", OnRefuse::Close)];
/// The words of `on_full`.
pub(in crate::config) const ON_FULLS: [(&str, Verdict); 2] =
    [("allow", Verdict::Allow), ("refuse", Verdict::Deny)];
/// Every address.
pub(in crate::config) const ACCESS_ALL: &str = "all";
/// Marks a path of a list file, as `unix:` marks that of a socket.
pub(in crate::config) const ACCESS_FILE_PREFIX: &str = "file:";

/// The part of a listener that is read here.
pub(super) struct ListenerPolicy {
    pub(super) access: Option<Access>,
    access_place: Option<Place>,
    pub(super) limits: Limits,
    per_source_place: Option<Place>,
    pub(super) on_refuse: OnRefuse,
}

impl Default for ListenerPolicy {
    fn default() -> Self {
        Self {
            access: None,
            access_place: None,
            limits: DEFAULT_LIMITS,
            per_source_place: None,
            on_refuse: DEFAULT_ON_REFUSE,
        }
    }
}

pub(super) fn read(report: &mut Report<'_>, listener: &Section<'_>) -> ListenerPolicy {
    let mut policy = ListenerPolicy::default();
    if let Some(at) = listener.get("access")
        && !report.is_off(at)
    {
        policy.access = access(report, at);
        policy.access_place = Some(at.place());
    }
    if let Some(at) = listener.get("limits")
        && !report.is_off(at)
        && let Some(section) = report.section(at, &LIMITS_KEYS)
    {
        policy.limits = limits(report, &section);
        // What sets no limit means nothing, wherever it stands.
        let per_source = policy.limits.per_source;
        if per_source.connections.is_some() || per_source.rate.is_some() {
            policy.per_source_place = section.get("per_source").map(Cursor::place);
        }
    }
    if let Some(at) = listener.get("on_refuse") {
        policy.on_refuse = report.choice(at, &ON_REFUSES).unwrap_or(policy.on_refuse);
    }
    policy
}

/// What needs a client's address has no meaning where clients have none.
pub(super) fn check_policies(report: &mut Report<'_>, listeners: &[ListenerDraft]) {
    for listener in listeners {
        let Some(Address::Unix(_)) = listener.bind else {
            continue;
        };
        let policy = &listener.policy;
        for place in policy.access_place.iter().chain(&policy.per_source_place) {
            report.add(
                place.clone(),
                "clients of a unix socket have no address",
                "remove it, and say with unix_mode and the directory's permissions who may connect",
            );
        }
    }
}

fn limits(report: &mut Report<'_>, section: &Section<'_>) -> Limits {
    let connections = connections(report, section);
    let rate = rate(report, section);
    let per_source = match section.get("per_source") {
        Some(at) if !report.is_off(at) => per_source(report, at),
        _ => None,
    };
    let bandwidth = section.get("bandwidth");
    Limits {
        connections,
        rate,
        per_source: per_source.unwrap_or(DEFAULT_LIMITS.per_source),
        bandwidth: bandwidth.map_or(DEFAULT_LIMITS.bandwidth, |at| bandwidth::read(report, at)),
    }
}

fn connections(report: &mut Report<'_>, section: &Section<'_>) -> Option<u32> {
    let at = section.get("connections")?;
    report.number_or_off(at, &LISTENER_CONNECTIONS).flatten()
}

/// `rate` and `burst`, which is one second of the rate if it is not said.
fn rate(report: &mut Report<'_>, section: &Section<'_>) -> Option<ConnectionRate> {
    let mut number = |key| {
        let at = section.get(key)?;
        report.number_or_off(at, &CONNECTION_RATE).flatten()
    };
    let (rate, burst) = (number("rate"), number("burst"));
    let is_without_rate = section.get("rate").is_none_or(|at| report.is_off(at));
    if let (Some(at), Some(_), true) = (section.get("burst"), burst, is_without_rate) {
        report.add(
            at.place(),
            "means nothing without a rate",
            "set `rate` beside it, or remove it",
        );
    }
    let per_second = rate?;
    Some(ConnectionRate {
        per_second,
        burst: burst.unwrap_or(per_second),
    })
}

fn per_source(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<PerSource> {
    let section = report.section(at, &PER_SOURCE_KEYS)?;
    let default = DEFAULT_LIMITS.per_source;
    let connections = connections(report, &section);
    let rate = rate(report, &section);
    let mut bits = |key, range, default| {
        let at = section.get(key);
        at.and_then(|at| report.number(at, range))
            .unwrap_or(default)
    };
    let v4_prefix_bits = bits("v4_prefix", &V4_PREFIX_BITS, default.v4_prefix_bits);
    let v6_prefix_bits = bits("v6_prefix", &V6_PREFIX_BITS, default.v6_prefix_bits);
    let table = section
        .get("table")
        .and_then(|at| report.number(at, &SOURCE_TABLE));
    let on_full = section
        .get("on_full")
        .and_then(|at| report.choice(at, &ON_FULLS));
    Some(PerSource {
        connections,
        rate,
        v4_prefix_bits,
        v6_prefix_bits,
        table: table.unwrap_or(default.table),
        on_full: on_full.unwrap_or(default.on_full),
    })
}

/// What one rule is about.
enum Sources {
    All,
    Some(Vec<AccessSource>),
}

/// The list must say what happens to whom no rule names: the end of a list that somebody else reads
/// another way is an open door, or a closed one.
fn access(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Access> {
    let items = report.list(at)?;
    let mut rules = Vec::new();
    let mut otherwise = None;
    let mut is_whole = true;
    for item in &items {
        if otherwise.is_some() {
            report.add(
                item.place(),
                "is never reached: the rule before it is for all",
                "remove it, or move it up",
            );
            return None;
        }
        match rule(report, item) {
            Some((verdict, Sources::All)) => otherwise = Some(verdict),
            Some((verdict, Sources::Some(sources))) => rules.push(AccessRule { verdict, sources }),
            None => is_whole = false,
        }
    }
    let count = rules.iter().map(|rule| rule.sources.len()).sum();
    is_whole &= within(report, at, count, ACCESS_ITEMS_MAX, "networks and files");
    if otherwise.is_none() && is_whole {
        report.add(
            at.place(),
            "does not say what happens to everybody else",
            "end the list with `- deny: all` or `- allow: all`",
        );
    }
    otherwise
        .filter(|_| is_whole)
        .map(|otherwise| Access { rules, otherwise })
}

fn rule(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<(Verdict, Sources)> {
    let section = report.section(at, &ACCESS_KEYS)?;
    let (verdict, at) = match (section.get("allow"), section.get("deny")) {
        (Some(allow), None) => (Verdict::Allow, allow),
        (None, Some(deny)) => (Verdict::Deny, deny),
        (Some(_), Some(_)) => {
            report.add(
                at.place(),
                "is two rules in one",
                "give each an item of its own, like `- allow: 10.0.0.0/8` and `- deny: all`",
            );
            return None;
        }
        (None, None) => {
            report.add(
                at.place(),
                "is neither `allow` nor `deny`",
                "write a rule like `allow: 10.0.0.0/8`",
            );
            return None;
        }
    };
    if report.is_word(at, ACCESS_ALL) {
        return Some((verdict, Sources::All));
    }
    let items = report.one_or_list(at, "name a network, or remove the rule")?;
    let read = |item| {
        let text = report.text(item)?;
        source(report, item, &text)
    };
    // Every mistake is told, not only the first.
    let sources: Vec<_> = items.iter().map(read).collect();
    let sources: Option<Vec<_>> = sources.into_iter().collect();
    Some((verdict, Sources::Some(sources?)))
}

fn source(report: &mut Report<'_>, at: &Cursor<'_>, text: &str) -> Option<AccessSource> {
    if let Some(path) = text.strip_prefix(ACCESS_FILE_PREFIX) {
        if path.starts_with('/') {
            return Some(AccessSource::File(PathBuf::from(path)));
        }
        report.add(
            at.place(),
            format!("`{}` is not an absolute path", shorten(text)),
            "write the whole path, like file:/etc/corelay/blocked.txt",
        );
        return None;
    }
    if text == ACCESS_ALL {
        report.add(
            at.place(),
            "`all` stands in a list of networks",
            "write `allow: all` or `deny: all` as the last rule",
        );
        return None;
    }
    match text.parse::<Network>() {
        Ok(network) => Some(AccessSource::Network(network)),
        Err(error) => {
            let remedy = format!(
                "{}; `all` is everybody, file:/PATH a list of networks",
                error.remedy()
            );
            report.add(at.place(), error.to_string(), remedy);
            None
        }
    }
}
