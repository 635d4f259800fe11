//! Raw tree → draft: which keys there are, what each may hold, and what stands for it when it is
//! absent.
//!
//! Every getter notes its problem and goes on; relations between the parts (dangling references,
//! colliding addresses) are [`cross`]'s, and only a draft without a single finding becomes a
//! [`Config`].

mod bandwidth;
mod bytes;
mod cross;
mod dns;
mod health;
mod listeners;
mod names;
mod policy;
mod proxy;
mod route;
mod settings;
mod source;
mod stop_listening;
mod target;
mod upstreams;

pub(super) use dns::FAMILIES;
pub(super) use health::{CHECK_HEADERS, CHECK_TYPES, CHECKS, ON_DOWNS, ON_NO_SERVERS};
pub(super) use policy::{ACCESS_ALL, ACCESS_FILE_PREFIX, ON_FULLS, ON_REFUSES};
pub(super) use proxy::{ALL, SENT_VERSIONS, TLVS, VERSIONS};
pub(super) use route::ROUTE_BYS;
pub(super) use settings::{
    ACCESS_LOGS, ACCESS_TO_STDOUT, HANDOFFS, LOG_FORMATS, LOG_LEVELS, MOVERS, STEERS, WORKERS_AUTO,
};
pub(super) use source::{DSCPS, dscp_word};
pub(super) use target::SPLITS_BY;
pub(super) use upstreams::{BALANCES, HASHES};

use super::address;
use super::limits::LISTENERS_MAX;
use super::model::{Config, ServerAddress};
use super::raw::{Node, Value};
use super::read::{Cursor, Finding, Place, Report};
use crate::units::{Address, shorten};
use cross::{Draft, ListenerDraft, ServerDraft, UpstreamDraft};
use listeners::{LISTENER_KEYS, listeners};
use target::TargetDraft;
use upstreams::{QUEUE_KEYS, RETRY_BUDGET_KEYS, SERVER_KEYS, UPSTREAM_KEYS, servers, upstreams};

const ROOT_KEYS: [&str; 10] = [
    "workers",
    "buffers",
    "timeouts",
    "relay",
    "tcp",
    "listeners",
    "upstreams",
    "dns",
    "admin",
    "log",
];
const ADMIN_KEYS: [&str; 1] = ["bind"];
/// The keys of an item of the compact form: where it listens, and where it goes.
pub(super) const COMPACT_KEYS: [&str; 2] = ["listen", "forward"];

/// Every key of the full form, as a path; `NAME` stands for a name that the user gives.
pub(super) fn known_keys() -> Vec<String> {
    let sections: [(&str, &[&str]); 28] = [
        ("", &ROOT_KEYS),
        ("buffers.", &settings::BUFFERS_KEYS),
        ("timeouts.", &settings::TIMEOUTS_KEYS),
        ("relay.", &settings::RELAY_KEYS),
        ("tcp.", &settings::TCP_KEYS),
        ("tcp.keepalive.", &settings::KEEPALIVE_KEYS),
        ("listeners.NAME.", &LISTENER_KEYS),
        ("listeners.NAME.accept.", &settings::ACCEPT_KEYS),
        ("listeners.NAME.proxy_protocol.", &proxy::REQUIRED_KEYS),
        ("listeners.NAME.route.", &route::ROUTE_KEYS),
        ("listeners.NAME.access[].", &policy::ACCESS_KEYS),
        ("listeners.NAME.limits.", &policy::LIMITS_KEYS),
        (
            "listeners.NAME.limits.per_source.",
            &policy::PER_SOURCE_KEYS,
        ),
        (
            "listeners.NAME.limits.bandwidth.",
            &bandwidth::BANDWIDTH_KEYS,
        ),
        (
            "listeners.NAME.limits.bandwidth.connection.",
            &bandwidth::THROUGHPUT_KEYS,
        ),
        (
            "listeners.NAME.limits.bandwidth.listener.",
            &bandwidth::THROUGHPUT_KEYS,
        ),
        ("upstreams.NAME.", &UPSTREAM_KEYS),
        ("upstreams.NAME.proxy_protocol.", &proxy::SENT_KEYS),
        ("upstreams.NAME.retry_budget.", &RETRY_BUDGET_KEYS),
        ("upstreams.NAME.queue.", &QUEUE_KEYS),
        ("upstreams.NAME.check.", &health::CHECK_KEYS),
        ("upstreams.NAME.eject.", &health::EJECT_KEYS),
        (
            "upstreams.NAME.stop_listening.",
            &stop_listening::STOP_LISTENING_KEYS,
        ),
        ("upstreams.NAME.source.", &source::SOURCE_KEYS),
        ("upstreams.NAME.servers[].", &SERVER_KEYS),
        ("dns.", &dns::DNS_KEYS),
        ("admin.", &ADMIN_KEYS),
        ("log.", &settings::LOG_KEYS),
    ];
    sections
        .iter()
        .flat_map(|(prefix, keys)| keys.iter().map(move |key| format!("{prefix}{key}")))
        .collect()
}

/// Reads and checks a whole tree.
///
/// # Errors
/// Everything that is wrong, in no particular order; never an empty list.
pub(super) fn validate(
    root: &Node,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Vec<Finding>> {
    let mut report = Report::new(env);
    let root = Cursor::root(root);
    let draft = match &root.node.value {
        Value::List(_) => compact(&mut report, &root),
        Value::Map(_) => full(&mut report, &root),
        Value::Null | Value::Scalar(_) => {
            let remedy = "write `listeners:` and `upstreams:`, or a list of { listen, forward }";
            report.add(root.place(), "there is no configuration here", remedy);
            None
        }
    };
    finish(report, draft)
}

/// What `corelay relay` was told.
pub(super) fn validate_relay(
    listen: &str,
    to: &[String],
    admin: Option<&str>,
) -> Result<Config, Vec<Finding>> {
    let no_env = |_: &str| None;
    let mut report = Report::new(&no_env);
    let argument = |path: &str| Place {
        id: None,
        path: path.to_owned(),
    };
    let listen_place = argument("--listen");
    let bind = parse_listen(&mut report, &listen_place, listen);
    let mut servers = Vec::new();
    for server in to {
        let place = argument("--to");
        let address = parse_server(&mut report, &place, server);
        servers.push(ServerDraft::plain(address, place));
    }
    if to.is_empty() {
        report.add(argument("--to"), "there is no server", "add --to HOST:PORT");
    }
    let admin = admin.and_then(|admin| parse_admin(&mut report, argument("--admin"), admin));
    let target = TargetDraft::one("relay".to_owned(), listen_place.clone());
    let listener = ListenerDraft::plain("relay".to_owned(), bind, listen_place, target);
    let upstream = UpstreamDraft::plain("relay".to_owned(), argument("--to"), servers);
    let draft = Draft {
        listeners: vec![listener],
        upstreams: vec![upstream],
        admin,
        ..Draft::default()
    };
    finish(report, Some(draft))
}

fn finish(mut report: Report<'_>, draft: Option<Draft>) -> Result<Config, Vec<Finding>> {
    let Some(draft) = draft else {
        return Err(report.findings);
    };
    cross::check(&mut report, &draft);
    if report.findings.is_empty() {
        Ok(draft.into_config())
    } else {
        Err(report.findings)
    }
}

/// The full form: a mapping.
fn full(report: &mut Report<'_>, root: &Cursor<'_>) -> Option<Draft> {
    let section = report.section(root, &ROOT_KEYS)?;
    let mut draft = Draft::default();
    if let Some(at) = section.get("workers") {
        draft.workers = settings::workers(report, at).unwrap_or(draft.workers);
    }
    if let Some(at) = section.get("buffers") {
        draft.buffers = settings::buffers(report, at).unwrap_or(draft.buffers);
    }
    if let Some(at) = section.get("timeouts") {
        draft.timeouts = settings::timeouts(report, at).unwrap_or(draft.timeouts);
    }
    if let Some(at) = section.get("relay") {
        draft.relay = settings::relay(report, at).unwrap_or(draft.relay);
        draft.relay_place = Some(at.place());
    }
    if let Some(at) = section.get("tcp") {
        draft.tcp = settings::tcp(report, at).unwrap_or(draft.tcp);
    }
    if let Some(at) = section.get("dns") {
        draft.dns = dns::dns(report, at).unwrap_or(draft.dns);
    }
    if let Some(at) = section.get("log") {
        draft.log = settings::log(report, at).unwrap_or(draft.log);
    }
    if let Some(at) = section.get("admin") {
        draft.admin = admin(report, at);
    }
    if let Some(at) = section.require(
        report,
        "listeners",
        "listeners: { edge: { bind: 0.0.0.0:9000, upstream: app } }",
    ) {
        draft.listeners = listeners(report, at);
    }
    if let Some(at) = section.require(
        report,
        "upstreams",
        "upstreams: { app: { servers: [127.0.0.1:9090] } }",
    ) {
        draft.upstreams = upstreams(report, at);
    }
    Some(draft)
}

/// The compact form: a list of `{ listen, forward }`. Names are made from the position.
fn compact(report: &mut Report<'_>, root: &Cursor<'_>) -> Option<Draft> {
    let items = report.list(root)?;
    let mut draft = Draft::default();
    if items.is_empty() {
        report.add(
            root.place(),
            "the list is empty",
            "add { listen: 9000, forward: [127.0.0.1:9090] }",
        );
    }
    if !within(report, root, items.len(), LISTENERS_MAX, "listeners") {
        return None;
    }
    for (index, item) in items.iter().enumerate() {
        let Some(section) = report.section(item, &COMPACT_KEYS) else {
            continue;
        };
        let name = format!("listener-{}", index + 1);
        let upstream = format!("upstream-{}", index + 1);
        let listen = section.require(report, "listen", "listen: 9000");
        let bind = listen.and_then(|at| {
            let text = report.text(at)?;
            parse_listen(report, &at.place(), &text)
        });
        let listen_place = listen.map_or_else(|| item.place(), Cursor::place);
        let forward = section.require(report, "forward", "forward: [127.0.0.1:9090]");
        let forward_place = forward.map_or_else(|| item.place(), Cursor::place);
        let target = TargetDraft::one(upstream.clone(), forward_place.clone());
        let listener = ListenerDraft::plain(name, bind, listen_place, target);
        draft.listeners.push(listener);
        let servers = forward.map_or_else(Vec::new, |at| servers(report, at));
        let upstream = UpstreamDraft::plain(upstream, forward_place, servers);
        draft.upstreams.push(upstream);
    }
    Some(draft)
}

fn within(report: &mut Report<'_>, at: &Cursor<'_>, count: usize, most: usize, what: &str) -> bool {
    if count > most {
        report.add(
            at.place(),
            format!("{count} {what} are too many"),
            format!("keep at most {most}"),
        );
    }
    count <= most
}

fn admin(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<(super::model::Admin, Place)> {
    let section = report.section(at, &ADMIN_KEYS)?;
    let bind_at = section.require(report, "bind", "bind: 127.0.0.1:9901")?;
    let text = report.text(bind_at)?;
    parse_admin(report, bind_at.place(), &text)
}

fn parse_admin(
    report: &mut Report<'_>,
    place: Place,
    text: &str,
) -> Option<(super::model::Admin, Place)> {
    match parse_bind(report, &place, text)? {
        Address::Tcp(bind) => Some((super::model::Admin { bind }, place)),
        Address::Unix(_) => {
            report.add(
                place,
                "the admin listener cannot be a unix socket",
                "write ip:port, like 127.0.0.1:9901",
            );
            None
        }
    }
}

/// As [`parse_bind`], and a bare port means every IPv4 address.
fn parse_listen(report: &mut Report<'_>, place: &Place, text: &str) -> Option<Address> {
    if is_port(text) {
        if text.parse::<u16>().is_err() {
            report.add(
                place.clone(),
                format!("`{}` is not a port", shorten(text)),
                "write a port from 0 to 65535",
            );
            return None;
        }
        return parse_bind(report, place, &format!("0.0.0.0:{text}"));
    }
    parse_bind(report, place, text)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_bind(report: &mut Report<'_>, place: &Place, text: &str) -> Option<Address> {
    let address: Address = match text.parse() {
        Ok(address) => address,
        Err(error) => {
            let port = text.strip_prefix(':').unwrap_or(text);
            let remedy = if port.parse::<u16>().is_ok() && is_port(port) {
                format!("write 0.0.0.0:{port} for every IPv4 address, or 127.0.0.1:{port}")
            } else {
                error.remedy().to_owned()
            };
            report.add(place.clone(), error.to_string(), remedy);
            return None;
        }
    };
    if let Err((problem, remedy)) = address::check_bind(&address) {
        report.add(place.clone(), format!("`{address}` {problem}"), remedy);
        return None;
    }
    Some(address)
}

fn parse_server(report: &mut Report<'_>, place: &Place, text: &str) -> Option<ServerAddress> {
    let address: ServerAddress = match text.parse::<ServerAddress>() {
        Ok(address) => address,
        Err(error) => {
            report.add(place.clone(), error.to_string(), error.remedy());
            return None;
        }
    };
    if let Err((problem, remedy)) = address::check_server(&address) {
        report.add(place.clone(), format!("`{address}` {problem}"), remedy);
        return None;
    }
    Some(address)
}
