//! How each key is written. One line a key, in the order of the index in `docs/configuration.md`, which says
//! the same in the column of values; a test compares the two.

use super::form::{Form, name_pattern, route_pattern};
use crate::config::limits::{
    ACCEPT_DEFER, BACKLOG, BUFFER_SIZE_BYTES, BUFFER_SIZE_STEP_BYTES, BUFFERS_PER_CORE, BUSY_POLL,
    CHECK_COUNT, CHECK_PORT, CHECK_TIME, CONNECTION_RATE, CPUS_MAX, DNS_INTERVAL, DNS_TIMEOUT,
    DSCP_MAX, EJECT_FAILURES, EJECT_PERCENT, FAST_OPEN, HTTP_STATUS, JITTER_PERCENT,
    KEEPALIVE_COUNT, KEEPALIVE_TIME, KERNEL_NAME_MAX_BYTES, LISTENER_CONNECTIONS, LISTENERS_MAX,
    MARK, MAX_CONNECTIONS, NAMESERVERS_MAX, QUEUE_MAX, RETRIES, ROUTE_NAMES_MAX, SERVERS_MAX,
    SOURCE_TABLE, TIMEOUT, UNIX_MODE_MAX, USER_TIMEOUT, V4_PREFIX_BITS, V6_PREFIX_BITS, WEIGHT,
};
use crate::config::validate::{
    ACCESS_ALL, ACCESS_FILE_PREFIX, ACCESS_LOGS, ACCESS_TO_STDOUT, ALL, BALANCES, CHECK_TYPES,
    CHECKS, DSCPS, FAMILIES, HANDOFFS, LOG_FORMATS, LOG_LEVELS, MOVERS, ON_DOWNS, ON_FULLS,
    ON_NO_SERVERS, ON_REFUSES, ROUTE_BYS, SENT_VERSIONS, SPLITS_BY, STEERS, VERSIONS, WORKERS_AUTO,
};
use Form::{Bool, Duration, Number, Section, Words};

/// A key's path, and the forms that it may be written in.
type Key = (&'static str, Vec<Form>);

/// Every key of the full form.
pub(super) fn keys() -> Vec<Key> {
    let groups = [
        process(),
        listeners(),
        admission(),
        upstreams(),
        health(),
        towards_servers(),
        around(),
    ];
    groups.into_iter().flatten().collect()
}

/// The keys that a section must have, by its path.
pub(super) fn required(section: &str) -> &'static [&'static str] {
    match section {
        "" => &["listeners", "upstreams"],
        "listeners.NAME" => &["bind"],
        "listeners.NAME.proxy_protocol" => &["trusted"],
        "listeners.NAME.route" => &["by", "names"],
        "upstreams.NAME" => &["servers"],
        "upstreams.NAME.queue" => &["max"],
        "upstreams.NAME.proxy_protocol" => &["version"],
        "upstreams.NAME.servers[]" => &["address"],
        "admin" => &["bind"],
        _ => &[],
    }
}

/// The keys of which a section must have exactly one.
pub(super) fn either(section: &str) -> &'static [&'static str] {
    match section {
        "listeners.NAME" => &["upstream", "upstreams"],
        "listeners.NAME.access[]" => &["allow", "deny"],
        _ => &[],
    }
}

/// `listen` of the compact form.
pub(super) fn listen() -> Vec<Form> {
    vec![Form::bind(), Number(0..=u64::from(u16::MAX))]
}

fn process() -> Vec<Key> {
    let off = Form::off;
    let cpus = CPUS_MAX as u64;
    let cpu_list = Form::list("list of CPUs", 1, vec![Number(0..=cpus - 1)]);
    let size = Form::Size {
        range: BUFFER_SIZE_BYTES,
        step: BUFFER_SIZE_STEP_BYTES,
    };
    vec![
        (
            "workers",
            vec![Words(vec![WORKERS_AUTO]), Number(1..=cpus), cpu_list],
        ),
        ("buffers", vec![Section]),
        ("buffers.size", vec![size]),
        ("buffers.per_core", vec![Number(BUFFERS_PER_CORE)]),
        ("timeouts", vec![Section]),
        ("timeouts.connect", vec![Duration(TIMEOUT)]),
        ("timeouts.idle", vec![Duration(TIMEOUT)]),
        ("timeouts.half_close", vec![Duration(TIMEOUT)]),
        ("timeouts.max_age", vec![Duration(TIMEOUT), off()]),
        ("timeouts.drain", vec![Duration(TIMEOUT)]),
        ("relay", vec![Section]),
        ("relay.mover", vec![Form::words(&MOVERS)]),
        ("relay.zero_copy_send", vec![Bool]),
        ("relay.busy_poll", vec![Duration(BUSY_POLL), off()]),
        ("tcp", vec![Section]),
        ("tcp.nodelay", vec![Bool]),
        ("tcp.keepalive", vec![Section, off()]),
        ("tcp.keepalive.idle", vec![Duration(KEEPALIVE_TIME)]),
        ("tcp.keepalive.interval", vec![Duration(KEEPALIVE_TIME)]),
        ("tcp.keepalive.count", vec![Number(KEEPALIVE_COUNT)]),
        ("tcp.user_timeout", vec![Duration(USER_TIMEOUT), off()]),
    ]
}

fn listeners() -> Vec<Key> {
    let off = Form::off;
    let sections = || Form::Names {
        what: "mapping",
        names: name_pattern(),
        values: vec![Section],
        count: 1..=LISTENERS_MAX,
    };
    let weights = Form::Names {
        what: "mapping of names to weights",
        names: name_pattern(),
        values: vec![Number(WEIGHT)],
        count: 1..=usize::MAX,
    };
    let routes = Form::Names {
        what: "mapping",
        names: route_pattern(),
        values: vec![Form::name()],
        count: 0..=ROUTE_NAMES_MAX,
    };
    let digits = format!("{UNIX_MODE_MAX:o}").len();
    let mode = Form::text_like("octal", &format!("0+[0-7]{{0,{digits}}}"));
    let all = || Words(vec![ALL]);
    let trusted = Form::list("list", 1, vec![all(), Form::network()]);
    vec![
        ("listeners", vec![sections()]),
        ("listeners.NAME.bind", vec![Form::bind()]),
        ("listeners.NAME.upstream", vec![Form::name()]),
        ("listeners.NAME.upstreams", vec![weights]),
        ("listeners.NAME.split_by", vec![Form::words(&SPLITS_BY)]),
        ("listeners.NAME.backlog", vec![Number(BACKLOG)]),
        ("listeners.NAME.unix_mode", vec![mode]),
        (
            "listeners.NAME.defer_connect",
            vec![Duration(TIMEOUT), off()],
        ),
        ("listeners.NAME.accept", vec![Section]),
        ("listeners.NAME.accept.steer", vec![Form::words(&STEERS)]),
        (
            "listeners.NAME.accept.defer",
            vec![Duration(ACCEPT_DEFER), off()],
        ),
        (
            "listeners.NAME.accept.fast_open",
            vec![Number(FAST_OPEN), off()],
        ),
        (
            "listeners.NAME.accept.handoff",
            vec![Form::words(&HANDOFFS)],
        ),
        ("listeners.NAME.proxy_protocol", vec![off(), Section]),
        (
            "listeners.NAME.proxy_protocol.trusted",
            vec![all(), Form::network(), trusted],
        ),
        (
            "listeners.NAME.proxy_protocol.versions",
            vec![Form::words(&VERSIONS)],
        ),
        (
            "listeners.NAME.proxy_protocol.timeout",
            vec![Duration(TIMEOUT)],
        ),
        ("listeners.NAME.route", vec![off(), Section]),
        ("listeners.NAME.route.by", vec![Form::words(&ROUTE_BYS)]),
        ("listeners.NAME.route.names", vec![routes]),
        ("listeners.NAME.route.no_name", vec![Form::name()]),
        ("listeners.NAME.route.other_protocol", vec![Form::name()]),
        ("listeners.NAME.route.timeout", vec![Duration(TIMEOUT)]),
        ("upstreams", vec![sections()]),
    ]
}

/// Who may connect, how many and how fast.
fn admission() -> Vec<Key> {
    let off = Form::off;
    let rules = Form::list("list", 1, vec![Section]);
    let file = || Form::pattern("file:/path", &format!("{ACCESS_FILE_PREFIX}/.*"));
    let sources = || {
        let list = Form::list("list of them", 1, vec![Form::network(), file()]);
        vec![Words(vec![ACCESS_ALL]), Form::network(), file(), list]
    };
    let rate = || vec![Number(CONNECTION_RATE), off()];
    vec![
        ("listeners.NAME.access", vec![rules, off()]),
        ("listeners.NAME.access[].allow", sources()),
        ("listeners.NAME.access[].deny", sources()),
        ("listeners.NAME.limits", vec![Section, off()]),
        (
            "listeners.NAME.limits.connections",
            vec![Number(LISTENER_CONNECTIONS), off()],
        ),
        ("listeners.NAME.limits.rate", rate()),
        ("listeners.NAME.limits.burst", rate()),
        ("listeners.NAME.limits.per_source", vec![Section, off()]),
        (
            "listeners.NAME.limits.per_source.connections",
            vec![Number(LISTENER_CONNECTIONS), off()],
        ),
        ("listeners.NAME.limits.per_source.rate", rate()),
        ("listeners.NAME.limits.per_source.burst", rate()),
        (
            "listeners.NAME.limits.per_source.v4_prefix",
            vec![Number(V4_PREFIX_BITS)],
        ),
        (
            "listeners.NAME.limits.per_source.v6_prefix",
            vec![Number(V6_PREFIX_BITS)],
        ),
        (
            "listeners.NAME.limits.per_source.table",
            vec![Number(SOURCE_TABLE)],
        ),
        (
            "listeners.NAME.limits.per_source.on_full",
            vec![Form::words(&ON_FULLS)],
        ),
        ("listeners.NAME.on_refuse", vec![Form::words(&ON_REFUSES)]),
    ]
}

fn upstreams() -> Vec<Key> {
    let off = Form::off;
    let servers = Form::List {
        what: "list",
        items: vec![Form::server(), Section],
        count: 1..=SERVERS_MAX,
    };
    vec![
        ("upstreams.NAME.balance", vec![Form::words(&BALANCES)]),
        ("upstreams.NAME.retries", vec![Number(RETRIES)]),
        ("upstreams.NAME.queue", vec![Section, off()]),
        ("upstreams.NAME.queue.max", vec![Number(QUEUE_MAX)]),
        ("upstreams.NAME.queue.timeout", vec![Duration(TIMEOUT)]),
        ("upstreams.NAME.slow_start", vec![Duration(TIMEOUT), off()]),
        ("upstreams.NAME.on_down", vec![Form::words(&ON_DOWNS)]),
        (
            "upstreams.NAME.on_no_server",
            vec![Form::words(&ON_NO_SERVERS)],
        ),
        ("upstreams.NAME.fallback", vec![Form::name()]),
        ("upstreams.NAME.servers", vec![servers]),
        ("upstreams.NAME.servers[].address", vec![Form::server()]),
        ("upstreams.NAME.servers[].weight", vec![Number(WEIGHT)]),
        ("upstreams.NAME.servers[].backup", vec![Bool]),
        (
            "upstreams.NAME.servers[].max_connections",
            vec![Number(MAX_CONNECTIONS), off()],
        ),
    ]
}

fn health() -> Vec<Key> {
    let off = Form::off;
    let range = || Form::pattern("200-399", "[0-9]{3}(-[0-9]{3})?");
    let statuses = Form::list("list", 0, vec![Number(HTTP_STATUS), range()]);
    let bytes = || vec![Form::text("text, hex:…")];
    vec![
        (
            "upstreams.NAME.check",
            vec![off(), Form::words(&CHECKS), Section],
        ),
        ("upstreams.NAME.check.type", vec![Form::words(&CHECK_TYPES)]),
        ("upstreams.NAME.check.interval", vec![Duration(CHECK_TIME)]),
        (
            "upstreams.NAME.check.fast_interval",
            vec![Duration(CHECK_TIME)],
        ),
        (
            "upstreams.NAME.check.jitter_percent",
            vec![Number(JITTER_PERCENT)],
        ),
        ("upstreams.NAME.check.timeout", vec![Duration(CHECK_TIME)]),
        ("upstreams.NAME.check.rise", vec![Number(CHECK_COUNT)]),
        ("upstreams.NAME.check.fall", vec![Number(CHECK_COUNT)]),
        ("upstreams.NAME.check.port", vec![Number(CHECK_PORT)]),
        ("upstreams.NAME.check.send", bytes()),
        ("upstreams.NAME.check.expect", bytes()),
        ("upstreams.NAME.check.contains", bytes()),
        (
            "upstreams.NAME.check.path",
            vec![Form::pattern("path", "/[!-~]*")],
        ),
        (
            "upstreams.NAME.check.host",
            vec![Form::text_like("name", "[!-~]+")],
        ),
        (
            "upstreams.NAME.check.status",
            vec![Number(HTTP_STATUS), range(), statuses],
        ),
        ("upstreams.NAME.check.server_name", vec![Form::host()]),
        ("upstreams.NAME.eject", vec![off(), Section]),
        (
            "upstreams.NAME.eject.failures",
            vec![Number(EJECT_FAILURES)],
        ),
        ("upstreams.NAME.eject.period", vec![Duration(TIMEOUT)]),
        ("upstreams.NAME.eject.max", vec![Duration(TIMEOUT)]),
        (
            "upstreams.NAME.eject.max_percent",
            vec![Number(EJECT_PERCENT)],
        ),
    ]
}

/// What servers see of us.
fn towards_servers() -> Vec<Key> {
    let off = Form::off;
    let addresses = Form::list("list", 1, vec![Form::ip_range()]);
    // Printable, without `/` and `:`.
    let kernel_name = || {
        let pattern = format!("[!-.0-9;-~]{{1,{KERNEL_NAME_MAX_BYTES}}}");
        vec![Form::text_like("name", &pattern)]
    };
    let dscps = Form::words_in_any_case("cs0 to cs7, af11 to af43, ef, va, le", &DSCPS);
    let mark = Number(u64::from(*MARK.start())..=u64::from(*MARK.end()));
    let hexadecimal = Form::pattern("also 0x…", "0[xX][0-9A-Fa-f]+");
    vec![
        (
            "upstreams.NAME.proxy_protocol",
            vec![off(), Form::words(&SENT_VERSIONS), Section],
        ),
        (
            "upstreams.NAME.proxy_protocol.version",
            vec![Form::words(&SENT_VERSIONS)],
        ),
        ("upstreams.NAME.proxy_protocol.crc32c", vec![Bool]),
        ("upstreams.NAME.proxy_protocol.pass_tlvs", vec![Bool]),
        ("upstreams.NAME.source", vec![off(), Section]),
        (
            "upstreams.NAME.source.address",
            vec![Form::ip_range(), addresses],
        ),
        ("upstreams.NAME.source.interface", kernel_name()),
        ("upstreams.NAME.source.mark", vec![mark, hexadecimal]),
        (
            "upstreams.NAME.source.dscp",
            vec![Number(0..=DSCP_MAX.into()), dscps],
        ),
        ("upstreams.NAME.source.congestion", kernel_name()),
        ("upstreams.NAME.source.transparent", vec![Bool]),
    ]
}

fn around() -> Vec<Key> {
    let nameservers = Form::List {
        what: "list of IP or ip:port",
        items: vec![Form::ip_or_socket()],
        count: 0..=NAMESERVERS_MAX,
    };
    let path = Form::text_like("path", r"[^\x00-\x1f]*[^/\x00-\x1f]");
    vec![
        ("dns", vec![Section]),
        ("dns.nameservers", vec![nameservers]),
        ("dns.interval", vec![Duration(DNS_INTERVAL), Form::off()]),
        ("dns.timeout", vec![Duration(DNS_TIMEOUT)]),
        ("dns.family", vec![Form::words(&FAMILIES)]),
        ("admin", vec![Section]),
        ("admin.bind", vec![Form::admin_bind()]),
        ("log", vec![Section]),
        ("log.level", vec![Form::words(&LOG_LEVELS)]),
        ("log.format", vec![Form::words(&LOG_FORMATS)]),
        ("log.access", vec![Form::words(&ACCESS_LOGS)]),
        ("log.access_file", vec![Words(vec![ACCESS_TO_STDOUT]), path]),
    ]
}
