//! The upstreams of the full form, and their servers.

use super::cross::{ServerDraft, UpstreamDraft};
use super::health::{ON_DOWNS, ON_NO_SERVERS, check, eject};
use super::source::source;
use super::{parse_server, proxy, within};
use crate::config::limits::{
    DEFAULT_UPSTREAM, LISTENERS_MAX, MAX_CONNECTIONS, QUEUE_MAX, RETRIES, SERVERS_MAX, TIMEOUT,
    WEIGHT,
};
use crate::config::model::{Balance, OnNoServer, Queue, ServerAddress, UpstreamPolicy};
use crate::config::raw::Value;
use crate::config::read::{Cursor, Report, Section};

pub(super) const UPSTREAM_KEYS: [&str; 12] = [
    "balance",
    "retries",
    "queue",
    "check",
    "eject",
    "slow_start",
    "on_down",
    "on_no_server",
    "fallback",
    "proxy_protocol",
    "source",
    "servers",
];
pub(super) const SERVER_KEYS: [&str; 4] = ["address", "weight", "backup", "max_connections"];
pub(super) const QUEUE_KEYS: [&str; 2] = ["max", "timeout"];

/// The words of `balance`.
pub(in crate::config) const BALANCES: [(&str, Balance); 6] = [
    ("round_robin", Balance::RoundRobin),
    ("least_connections", Balance::LeastConnections),
    ("random_two_choices", Balance::RandomTwoChoices),
    ("source_hash", Balance::SourceHash),
    ("maglev", Balance::Maglev),
    ("first_available", Balance::FirstAvailable),
];

pub(super) fn upstreams(report: &mut Report<'_>, at: &Cursor<'_>) -> Vec<UpstreamDraft> {
    let Some(named) = report.named(at) else {
        return Vec::new();
    };
    if named.is_empty() {
        report.add(
            at.place(),
            "there is no upstream",
            "add one, like `app: { servers: [127.0.0.1:9090] }`",
        );
    }
    if !within(report, at, named.len(), LISTENERS_MAX, "upstreams") {
        return Vec::new();
    }
    let mut drafts = Vec::with_capacity(named.len());
    for (name, at) in &named {
        // An upstream with an error inside still exists: references to it do not dangle.
        let section = report.section(at, &UPSTREAM_KEYS);
        let policy = section
            .as_ref()
            .map_or(DEFAULT_UPSTREAM, |section| policy(report, section));
        let check_at = section.as_ref().and_then(|section| section.get("check"));
        let check = check_at.and_then(|at| check(report, at)).flatten();
        let fallback_at = section.as_ref().and_then(|section| section.get("fallback"));
        let fallback = fallback_at.and_then(|at| Some((report.text(at)?, at.place())));
        let source_at = section.as_ref().and_then(|section| section.get("source"));
        let source = source_at.and_then(|at| Some((source(report, at)??, at.place())));
        let servers_at = section
            .as_ref()
            .and_then(|section| section.require(report, "servers", "servers: [127.0.0.1:9090]"));
        let servers = servers_at.map_or_else(Vec::new, |at| servers(report, at));
        drafts.push(UpstreamDraft {
            name: (*name).to_owned(),
            place: at.place(),
            policy,
            check,
            check_place: check_at.map(Cursor::place),
            fallback,
            source,
            servers,
        });
    }
    let count: usize = drafts.iter().map(|upstream| upstream.servers.len()).sum();
    within(report, at, count, SERVERS_MAX, "servers");
    drafts
}

fn policy(report: &mut Report<'_>, section: &Section<'_>) -> UpstreamPolicy {
    let balance = section
        .get("balance")
        .and_then(|at| report.choice(at, &BALANCES))
        .unwrap_or(DEFAULT_UPSTREAM.balance);
    let retries = section
        .get("retries")
        .and_then(|at| report.number(at, &RETRIES))
        .unwrap_or(DEFAULT_UPSTREAM.retries);
    let queue = section
        .get("queue")
        .and_then(|at| queue(report, at))
        .unwrap_or(DEFAULT_UPSTREAM.queue);
    let eject = section
        .get("eject")
        .and_then(|at| eject(report, at))
        .unwrap_or(DEFAULT_UPSTREAM.eject);
    let slow_start = section
        .get("slow_start")
        .and_then(|at| report.duration_or_off(at, &TIMEOUT))
        .unwrap_or(DEFAULT_UPSTREAM.slow_start);
    let on_down = section
        .get("on_down")
        .and_then(|at| report.choice(at, &ON_DOWNS))
        .unwrap_or(DEFAULT_UPSTREAM.on_down);
    let on_no_server = section
        .get("on_no_server")
        .and_then(|at| report.choice(at, &ON_NO_SERVERS))
        .unwrap_or(DEFAULT_UPSTREAM.on_no_server);
    if on_no_server == OnNoServer::Hold && queue.max == 0 {
        report.add(
            section.place.clone(),
            "`on_no_server: hold` needs a queue to hold sessions in",
            "add one, like `queue: { max: 100 }`",
        );
    }
    UpstreamPolicy {
        balance,
        retries,
        queue,
        eject,
        slow_start,
        on_down,
        on_no_server,
        fallback: None,
        proxy_protocol: section
            .get("proxy_protocol")
            .and_then(|at| proxy::sent(report, at))
            .flatten(),
    }
}

/// `off`, or a section.
fn queue(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Queue> {
    if report.is_off(at) {
        return Some(DEFAULT_UPSTREAM.queue);
    }
    let section = report.section(at, &QUEUE_KEYS)?;
    let max_at = section.require(report, "max", "max: 100");
    let max = max_at.and_then(|at| report.number(at, &QUEUE_MAX));
    let timeout = section
        .get("timeout")
        .and_then(|at| report.duration(at, &TIMEOUT))
        .unwrap_or(DEFAULT_UPSTREAM.queue.timeout);
    Some(Queue { max: max?, timeout })
}

pub(super) fn servers(report: &mut Report<'_>, at: &Cursor<'_>) -> Vec<ServerDraft> {
    let Some(items) = report.list(at) else {
        return Vec::new();
    };
    if items.is_empty() {
        report.add(
            at.place(),
            "there is no server",
            "add one, like [127.0.0.1:9090]",
        );
    }
    items.iter().map(|item| server(report, item)).collect()
}

/// The short form, an address, or the long form.
fn server(report: &mut Report<'_>, at: &Cursor<'_>) -> ServerDraft {
    let section = match at.node.value {
        Value::Map(_) => report.section(at, &SERVER_KEYS),
        _ => None,
    };
    let address_at = match (&section, &at.node.value) {
        (Some(section), _) => section
            .require(report, "address", "address: 127.0.0.1:9090")
            .cloned(),
        (None, Value::Map(_)) => None,
        (None, _) => Some(at.clone()),
    };
    let address = address_at.as_ref().and_then(|at| {
        let text = report.text(at)?;
        parse_server(report, &at.place(), &text)
    });
    let place = address_at.unwrap_or_else(|| at.clone()).place();
    let mut draft = ServerDraft::plain(address, place);
    let Some(section) = section else {
        return draft;
    };
    if let (Some(ServerAddress::Service { .. }), Some(at)) = (&draft.address, section.get("weight"))
    {
        report.add(
            at.place(),
            "the servers of a service have the weights of its SRV records",
            "remove it",
        );
    }
    if let Some(weight) = section
        .get("weight")
        .and_then(|at| report.number(at, &WEIGHT))
    {
        draft.weight = weight;
    }
    if let Some(backup) = section.get("backup").and_then(|at| report.boolean(at)) {
        draft.backup = backup;
    }
    draft.max_connections = section
        .get("max_connections")
        .and_then(|at| report.number_or_off(at, &MAX_CONNECTIONS))
        .flatten();
    draft
}
