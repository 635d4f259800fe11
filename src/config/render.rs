//! The effective configuration as YAML: every default filled in, and loadable again to an equal
//! [`Config`].
//!
//! serde_yaml does the quoting; `$` is doubled so that loading does not expand it.

mod dns;
mod health;
mod policy;
mod proxy;
mod source;

use std::time::Duration;

use serde::Serialize;
use serde_yaml::{Mapping, Value};

use super::expand::escape;
use super::model::{
    Accept, Config, Keepalive, Listener, Log, Queue, RetryBudget, Route, Server, ServerAddress,
    Target, Upstream, UpstreamPolicy, Workers,
};
use super::validate::{
    ACCESS_LOGS, ACCESS_TO_STDOUT, BALANCES, HANDOFFS, HASHES, LOG_FORMATS, LOG_LEVELS, MOVERS,
    ON_DOWNS, ON_NO_SERVERS, ON_REFUSES, ROUTE_BYS, SPLITS_BY, STEERS, VERSIONS,
};
use crate::units::{ByteSize, UpstreamId, format_duration};

/// Writes a configuration in the full form.
pub fn render(config: &Config) -> String {
    let Config {
        workers,
        buffers,
        timeouts,
        relay,
        tcp,
        listeners,
        upstreams,
        dns,
        admin,
        log,
    } = config;
    let mut root = vec![
        ("workers", render_workers(workers)),
        (
            "buffers",
            mapping([
                ("size", text(ByteSize(u64::from(buffers.size_bytes)))),
                ("per_core", buffers.per_core.into()),
            ]),
        ),
        (
            "timeouts",
            mapping([
                ("connect", duration(timeouts.connect)),
                ("idle", duration(timeouts.idle)),
                ("half_close", duration(timeouts.half_close)),
                ("max_age", duration_or_off(timeouts.max_age)),
                ("drain", duration(timeouts.drain)),
            ]),
        ),
        (
            "relay",
            mapping([
                ("mover", word(&MOVERS, &relay.mover)),
                ("zero_copy_send", relay.zero_copy_send.into()),
                ("busy_poll", duration_or_off(relay.busy_poll)),
            ]),
        ),
        (
            "tcp",
            mapping([
                ("nodelay", tcp.nodelay.into()),
                ("keepalive", render_keepalive(tcp.keepalive)),
                ("user_timeout", duration_or_off(tcp.user_timeout)),
            ]),
        ),
        (
            "listeners",
            mapping(
                listeners
                    .iter()
                    .map(|it| (it.name.as_str(), render_listener(it, upstreams))),
            ),
        ),
        (
            "upstreams",
            mapping(
                upstreams
                    .iter()
                    .map(|it| (it.name.as_str(), render_upstream(it, upstreams))),
            ),
        ),
    ];
    root.push(("dns", dns::dns(dns)));
    if let Some(admin) = admin {
        root.push(("admin", mapping([("bind", text(admin.bind))])));
    }
    root.push(("log", render_log(log)));
    to_yaml(&mapping(root))
}

fn to_yaml(value: &impl Serialize) -> String {
    serde_yaml::to_string(value).expect("a tree of plain values has a YAML form")
}

fn mapping<'k>(entries: impl IntoIterator<Item = (&'k str, Value)>) -> Value {
    Value::Mapping(
        entries
            .into_iter()
            .map(|(key, value)| (Value::from(key), value))
            .collect::<Mapping>(),
    )
}

fn text(value: impl ToString) -> Value {
    Value::String(escape(&value.to_string()))
}

fn duration(value: Duration) -> Value {
    text(format_duration(value))
}

fn duration_or_off(value: Option<Duration>) -> Value {
    value.map_or_else(|| text("off"), duration)
}

fn render_workers(workers: &Workers) -> Value {
    match workers {
        Workers::Auto => text("auto"),
        Workers::Count(count) => (*count).into(),
        Workers::Cpus(cpus) => cpus.clone().into(),
    }
}

fn render_keepalive(keepalive: Option<Keepalive>) -> Value {
    let Some(Keepalive {
        idle,
        interval,
        count,
    }) = keepalive
    else {
        return text("off");
    };
    mapping([
        ("idle", duration(idle)),
        ("interval", duration(interval)),
        ("count", count.into()),
    ])
}

fn render_listener(listener: &Listener, upstreams: &[Upstream]) -> Value {
    let Listener {
        name: _,
        bind,
        target,
        backlog,
        unix_mode,
        defer_connect,
        accept,
        proxy_protocol,
        route,
        access,
        limits,
        on_refuse,
    } = listener;
    let mut entries = vec![("bind", text(bind))];
    let name = |id: &UpstreamId| upstreams[usize::from(id.0)].name.as_str();
    match target {
        Target::One(upstream) => entries.push(("upstream", text(name(upstream)))),
        Target::Split { by, parts } => {
            let parts = parts
                .iter()
                .map(|(id, weight)| (name(id), (*weight).into()));
            entries.push(("upstreams", mapping(parts)));
            entries.push(("split_by", word(&SPLITS_BY, by)));
        }
    }
    entries.extend([
        ("backlog", (*backlog).into()),
        ("unix_mode", text(format!("{unix_mode:04o}"))),
        ("defer_connect", duration_or_off(*defer_connect)),
        ("accept", render_accept(accept)),
        ("proxy_protocol", proxy::required(proxy_protocol.as_ref())),
        ("route", render_route(route.as_ref(), upstreams)),
        ("access", policy::render_access(access.as_ref())),
        ("limits", policy::render_limits(limits)),
        ("on_refuse", word(&ON_REFUSES, on_refuse)),
    ]);
    mapping(entries)
}

fn render_route(route: Option<&Route>, upstreams: &[Upstream]) -> Value {
    let Some(Route {
        by,
        alpn,
        names,
        no_name,
        other_protocol,
        timeout,
    }) = route
    else {
        return text("off");
    };
    let name_of = |id: &UpstreamId| text(&upstreams[usize::from(id.0)].name);
    let mut entries = vec![("by", word(&ROUTE_BYS, by))];
    if !alpn.is_empty() {
        let protocols = alpn.iter().map(|(it, to)| (bytes_text(it), name_of(to)));
        let protocols: Vec<(String, Value)> = protocols.collect();
        let protocols = protocols.iter().map(|(it, to)| (it.as_str(), to.clone()));
        entries.push(("alpn", mapping(protocols)));
    }
    let names = names.iter().map(|(name, to)| (name.as_str(), name_of(to)));
    entries.push(("names", mapping(names)));
    entries.extend(no_name.iter().map(|to| ("no_name", name_of(to))));
    entries.extend(
        other_protocol
            .iter()
            .map(|to| ("other_protocol", name_of(to))),
    );
    entries.push(("timeout", duration(*timeout)));
    mapping(entries)
}

/// As text where it is plain text, else in hexadecimal digits.
fn bytes_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(plain) if !plain.starts_with("hex:") => plain.to_owned(),
        _ => {
            let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
            format!("hex:{}", digits.collect::<String>())
        }
    }
}

fn render_accept(accept: &Accept) -> Value {
    let Accept {
        steer,
        defer,
        fast_open,
        handoff,
    } = accept;
    mapping([
        ("steer", word(&STEERS, steer)),
        ("defer", duration_or_off(*defer)),
        (
            "fast_open",
            fast_open.map_or_else(|| text("off"), Value::from),
        ),
        ("handoff", word(&HANDOFFS, handoff)),
    ])
}

fn render_upstream(upstream: &Upstream, upstreams: &[Upstream]) -> Value {
    let Upstream {
        name: _,
        policy:
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
                fallback,
                proxy_protocol,
            },
        check,
        source,
        servers,
    } = upstream;
    let mut entries = vec![("balance", word(&BALANCES, balance))];
    if balance.hashes() {
        entries.push(("hash", word(&HASHES, hash)));
    }
    entries.extend([
        ("retries", (*retries).into()),
        ("retry_budget", render_retry_budget(retry_budget.as_ref())),
        ("queue", render_queue(queue)),
        ("check", health::check(check.as_ref())),
        ("eject", health::eject(eject.as_ref())),
        ("slow_start", duration_or_off(*slow_start)),
        ("on_down", word(&ON_DOWNS, on_down)),
        ("on_no_server", word(&ON_NO_SERVERS, on_no_server)),
        ("proxy_protocol", proxy::sent(proxy_protocol.as_ref())),
        ("source", source::source(source.as_ref())),
        (
            "servers",
            Value::Sequence(servers.iter().map(render_server).collect()),
        ),
    ]);
    if let Some(fallback) = fallback {
        let name = &upstreams[usize::from(fallback.0)].name;
        entries.insert(entries.len() - 1, ("fallback", text(name)));
    }
    mapping(entries)
}

fn render_retry_budget(budget: Option<&RetryBudget>) -> Value {
    let Some(budget) = budget else {
        return text("off");
    };
    let RetryBudget {
        percent,
        min_per_second,
    } = budget;
    mapping([
        ("percent", (*percent).into()),
        ("min_per_second", (*min_per_second).into()),
    ])
}

fn render_queue(queue: &Queue) -> Value {
    let Queue { max, timeout } = queue;
    mapping([("max", (*max).into()), ("timeout", duration(*timeout))])
}

fn render_server(server: &Server) -> Value {
    let Server {
        address,
        weight,
        backup,
        max_connections,
    } = server;
    let mut entries = vec![
        ("address", text(address)),
        ("backup", (*backup).into()),
        (
            "max_connections",
            max_connections.map_or_else(|| text("off"), Value::from),
        ),
    ];
    if !matches!(address, ServerAddress::Service { .. }) {
        entries.insert(1, ("weight", (*weight).into()));
    }
    mapping(entries)
}

fn render_log(log: &Log) -> Value {
    let Log {
        level,
        format,
        access,
        access_file,
    } = log;
    let access_file = match access_file {
        None => text(ACCESS_TO_STDOUT),
        // A file of that very name, in the working directory.
        Some(path) if path.as_os_str() == ACCESS_TO_STDOUT => text(format!("./{ACCESS_TO_STDOUT}")),
        Some(path) => text(path.display()),
    };
    mapping([
        ("level", word(&LOG_LEVELS, level)),
        ("format", word(&LOG_FORMATS, format)),
        ("access", word(&ACCESS_LOGS, access)),
        ("access_file", access_file),
    ])
}

/// The word that is read back as this value.
fn word<T: PartialEq>(words: &[(&str, T)], value: &T) -> Value {
    let (word, _) = words
        .iter()
        .find(|(_, candidate)| candidate == value)
        .expect("every value has its word");
    text(word)
}
