//! The upstreams of the full form, and their servers.

use super::cross::{ServerDraft, UpstreamDraft};
use super::health::{ON_DOWNS, ON_NO_SERVERS, check, eject};
use super::source::source;
use super::stop_listening::stop_listening;
use super::{parse_server, proxy, within};
use crate::config::address::check_server;
use crate::config::limits::{
    DEFAULT_RETRY_BUDGET, DEFAULT_UPSTREAM, LISTENERS_MAX, MAX_CONNECTIONS, QUEUE_MAX, RETRIES,
    RETRIES_PER_SECOND, RETRY_PERCENT, SERVERS_MAX, TIMEOUT, WEIGHT,
};
use crate::config::model::{
    Balance, HashBy, OnNoServer, Queue, RetryBudget, ServerAddress, UpstreamPolicy,
};
use crate::config::raw::Value;
use crate::config::read::{Cursor, Report, Section};
use crate::units::Address;

pub(super) const UPSTREAM_KEYS: [&str; 15] = [
    "balance",
    "hash",
    "retries",
    "retry_budget",
    "queue",
    "check",
    "eject",
    "slow_start",
    "on_down",
    "on_no_server",
    "stop_listening",
    "fallback",
    "proxy_protocol",
    "source",
    "servers",
];
pub(super) const SERVER_KEYS: [&str; 5] = [
    "address",
    "weight",
    "backup",
    "max_connections",
    "check_address",
];
pub(super) const RETRY_BUDGET_KEYS: [&str; 2] = ["percent", "min_per_second"];
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

/// The words of `hash`.
pub(in crate::config) const HASHES: [(&str, HashBy); 2] =
    [("source", HashBy::Source), ("name", HashBy::Name)];

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
        let hash_at = section.as_ref().and_then(|section| section.get("hash"));
        let check_at = section.as_ref().and_then(|section| section.get("check"));
        let check = check_at.and_then(|at| check(report, at));
        let check_at = check_at.filter(|_| check != Some(None));
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
            hash_place: hash_at.map(Cursor::place),
            check: check.flatten(),
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
    let (balance, hash) = balance(report, section);
    let retries = section
        .get("retries")
        .and_then(|at| report.number(at, &RETRIES))
        .unwrap_or(DEFAULT_UPSTREAM.retries);
    let retry_budget = section
        .get("retry_budget")
        .and_then(|at| retry_budget(report, at))
        .unwrap_or(DEFAULT_UPSTREAM.retry_budget);
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
        hash,
        retries,
        retry_budget,
        queue,
        eject,
        slow_start,
        on_down,
        on_no_server,
        stop_listening: stop_listening(report, section, on_no_server),
        fallback: None,
        proxy_protocol: section
            .get("proxy_protocol")
            .and_then(|at| proxy::sent(report, at))
            .flatten(),
    }
}

fn balance(report: &mut Report<'_>, section: &Section<'_>) -> (Balance, HashBy) {
    let balance = match section.get("balance") {
        Some(at) => report.choice(at, &BALANCES),
        None => Some(DEFAULT_UPSTREAM.balance),
    };
    let hash_at = section.get("hash");
    let hash = hash_at.and_then(|at| report.choice(at, &HASHES));
    if let (Some(at), Some(false)) = (hash_at, balance.map(Balance::hashes)) {
        report.add(
            at.place(),
            "means nothing here: this upstream's `balance` does not hash",
            "set balance to source_hash or maglev, or remove it",
        );
    }
    (
        balance.unwrap_or(DEFAULT_UPSTREAM.balance),
        hash.unwrap_or(DEFAULT_UPSTREAM.hash),
    )
}

/// `off`, or a section.
fn retry_budget(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Option<RetryBudget>> {
    if report.is_off(at) {
        return Some(None);
    }
    let section = report.section(at, &RETRY_BUDGET_KEYS)?;
    let percent = section
        .get("percent")
        .and_then(|at| report.number(at, &RETRY_PERCENT));
    let min_per_second = section
        .get("min_per_second")
        .and_then(|at| report.number(at, &RETRIES_PER_SECOND));
    Some(Some(RetryBudget {
        percent: percent.unwrap_or(DEFAULT_RETRY_BUDGET.percent),
        min_per_second: min_per_second.unwrap_or(DEFAULT_RETRY_BUDGET.min_per_second),
    }))
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
    let check_at = section.get("check_address");
    draft.check_address = check_at.and_then(|at| {
        let address = check_address(report, at, draft.address.as_ref()?)?;
        Some((address, at.place()))
    });
    draft
}

/// Where one server is checked. A name may be several servers, and others tomorrow: one address that
/// answers for all of them would tell nothing of any.
fn check_address(
    report: &mut Report<'_>,
    at: &Cursor<'_>,
    server: &ServerAddress,
) -> Option<Address> {
    let text = report.text(at)?;
    let ServerAddress::Known(_) = server else {
        report.add(
            at.place(),
            "a name may lead to several servers, which cannot all be checked at one address",
            "set check.port for another port of each, or write the servers by their addresses",
        );
        return None;
    };
    let checked: Address = match text.parse() {
        Ok(address) => address,
        Err(error) => {
            report.add(at.place(), error.to_string(), error.remedy());
            return None;
        }
    };
    if let Err((problem, remedy)) = check_server(&ServerAddress::Known(checked.clone())) {
        report.add(at.place(), format!("`{checked}` {problem}"), remedy);
        return None;
    }
    Some(checked)
}
