//! How each key is written, one line a key. The index in `docs/configuration.md` says the same in its column
//! of values; a test compares the two.

use super::form::{Form, name_pattern, route_pattern};
use crate::config::limits::{
    ACCEPT_DEFER, BACKLOG, BANDWIDTH_BYTES, BUFFER_SIZE_BYTES, BUFFER_SIZE_STEP_BYTES,
    BUFFERS_PER_CORE, BUSY_POLL, CHECK_COUNT, CHECK_PORT, CHECK_TIME, CONNECTION_RATE, CPUS_MAX,
    DNS_INTERVAL, DNS_TIMEOUT, DSCP_MAX, EJECT_FAILURES, EJECT_PERCENT, FAST_OPEN, HTTP_STATUS,
    JITTER_PERCENT, KEEPALIVE_COUNT, KEEPALIVE_TIME, KERNEL_NAME_MAX_BYTES, LISTENER_CONNECTIONS,
    LISTENERS_MAX, MARK, MAX_CONNECTIONS, NAMESERVERS_MAX, PROTOCOL_MAX_BYTES, QUEUE_MAX, RETRIES,
    RETRIES_PER_SECOND, RETRY_PERCENT, ROUTE_NAMES_MAX, ROUTE_PROTOCOLS_MAX, SERVERS_MAX,
    SOURCE_TABLE, TIMEOUT, UNIX_MODE_MAX, USER_TIMEOUT, V4_PREFIX_BITS, V6_PREFIX_BITS, WEIGHT,
};
use crate::config::validate::{
    ACCESS_ALL, ACCESS_FILE_PREFIX, ACCESS_LOGS, ACCESS_TO_STDOUT, ALL, BALANCES, CHECK_HEADERS,
    CHECK_TYPES, CHECKS, DSCPS, FAMILIES, HANDOFFS, HASHES, LOG_FORMATS, LOG_LEVELS, MOVERS,
    ON_DOWNS, ON_FULLS, ON_NO_SERVERS, ON_REFUSES, ROUTE_BYS, SENT_VERSIONS, SPLITS_BY, STEERS,
    TLVS, VERSIONS, WORKERS_AUTO,
};
use Form::{Bool, Duration, Number, Section, Words};

/// A key's path below that of its group, and the forms that it may be written in.
type Key = (&'static str, Vec<Form>);

/// Every key of the full form, by its path.
pub(super) fn keys() -> Vec<(String, Vec<Form>)> {
    let groups = [
        ("", process()),
        ("listeners.NAME.", listeners()),
        ("listeners.NAME.", admission()),
        ("listeners.NAME.", first_bytes()),
        ("upstreams.NAME.", upstreams()),
        ("upstreams.NAME.check.", checks()),
        ("upstreams.NAME.", towards_servers()),
    ];
    let whole = |(group, keys): (&str, Vec<Key>)| {
        let whole = |(key, forms): Key| (format!("{group}{key}"), forms);
        keys.into_iter().map(whole).collect::<Vec<_>>()
    };
    groups.into_iter().flat_map(whole).collect()
}

/// The keys that a section must have, by its path.
pub(super) fn required(section: &str) -> &'static [&'static str] {
    match section {
        "" => &["listeners", "upstreams"],
        "listeners.NAME" => &["bind"],
        "listeners.NAME.proxy_protocol" => &["trusted"],
        "listeners.NAME.route" => &["by"],
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
    let sections = || Form::Names {
        what: "mapping",
        names: name_pattern(),
        values: vec![Section],
        count: 1..=LISTENERS_MAX,
    };
    let nameservers = Form::List {
        what: "list of IP or ip:port",
        items: vec![Form::ip_or_socket()],
        count: 0..=NAMESERVERS_MAX,
    };
    let path = Form::text_like("path", r"[^\x00-\x1f]*[^/\x00-\x1f]");
    let auto = Words(vec![WORKERS_AUTO]);
    vec![
        ("workers", vec![auto, Number(1..=cpus), cpu_list]),
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
        ("listeners", vec![sections()]),
        ("upstreams", vec![sections()]),
        ("dns", vec![Section]),
        ("dns.nameservers", vec![nameservers]),
        ("dns.interval", vec![Duration(DNS_INTERVAL), off()]),
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

fn listeners() -> Vec<Key> {
    let off = Form::off;
    let weights = Form::Names {
        what: "mapping of names to weights",
        names: name_pattern(),
        values: vec![Number(WEIGHT)],
        count: 1..=usize::MAX,
    };
    let digits = format!("{UNIX_MODE_MAX:o}").len();
    let mode = Form::text_like("octal", &format!("0+[0-7]{{0,{digits}}}"));
    vec![
        ("bind", vec![Form::bind()]),
        ("upstream", vec![Form::name()]),
        ("upstreams", vec![weights]),
        ("split_by", vec![Form::words(&SPLITS_BY)]),
        ("backlog", vec![Number(BACKLOG)]),
        ("unix_mode", vec![mode]),
        ("defer_connect", vec![Duration(TIMEOUT), off()]),
        ("accept", vec![Section]),
        ("accept.steer", vec![Form::words(&STEERS)]),
        ("accept.defer", vec![Duration(ACCEPT_DEFER), off()]),
        ("accept.fast_open", vec![Number(FAST_OPEN), off()]),
        ("accept.handoff", vec![Form::words(&HANDOFFS)]),
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
    let connections = || vec![Number(LISTENER_CONNECTIONS), off()];
    let rate = || vec![Number(CONNECTION_RATE), off()];
    let bytes = || Form::Size {
        range: BANDWIDTH_BYTES,
        step: 1,
    };
    let of_way = || vec![bytes(), off()];
    let of_both = || vec![bytes(), Section, off()];
    vec![
        ("access", vec![rules, off()]),
        ("access[].allow", sources()),
        ("access[].deny", sources()),
        ("limits", vec![Section, off()]),
        ("limits.connections", connections()),
        ("limits.rate", rate()),
        ("limits.burst", rate()),
        ("limits.per_source", vec![Section, off()]),
        ("limits.per_source.connections", connections()),
        ("limits.per_source.rate", rate()),
        ("limits.per_source.burst", rate()),
        ("limits.per_source.v4_prefix", vec![Number(V4_PREFIX_BITS)]),
        ("limits.per_source.v6_prefix", vec![Number(V6_PREFIX_BITS)]),
        ("limits.per_source.table", vec![Number(SOURCE_TABLE)]),
        ("limits.per_source.on_full", vec![Form::words(&ON_FULLS)]),
        ("limits.bandwidth", vec![Section, off()]),
        ("limits.bandwidth.connection", of_both()),
        ("limits.bandwidth.connection.upload", of_way()),
        ("limits.bandwidth.connection.download", of_way()),
        ("limits.bandwidth.listener", of_both()),
        ("limits.bandwidth.listener.upload", of_way()),
        ("limits.bandwidth.listener.download", of_way()),
        ("on_refuse", vec![Form::words(&ON_REFUSES)]),
    ]
}

/// What a listener reads before it relays.
fn first_bytes() -> Vec<Key> {
    let off = Form::off;
    let all = || Words(vec![ALL]);
    let trusted = Form::list("list", 1, vec![all(), Form::network()]);
    let routes = Form::Names {
        what: "mapping",
        names: route_pattern(),
        values: vec![Form::name()],
        count: 0..=ROUTE_NAMES_MAX,
    };
    let protocols = Form::Names {
        what: "mapping",
        names: format!(r"[\s\S]{{1,{}}}", "hex:".len() + 3 * PROTOCOL_MAX_BYTES),
        values: vec![Form::name()],
        count: 1..=ROUTE_PROTOCOLS_MAX,
    };
    vec![
        ("proxy_protocol", vec![off(), Section]),
        (
            "proxy_protocol.trusted",
            vec![all(), Form::network(), trusted],
        ),
        ("proxy_protocol.versions", vec![Form::words(&VERSIONS)]),
        ("proxy_protocol.timeout", vec![Duration(TIMEOUT)]),
        ("route", vec![off(), Section]),
        ("route.by", vec![Form::words(&ROUTE_BYS)]),
        ("route.alpn", vec![protocols]),
        ("route.names", vec![routes]),
        ("route.no_name", vec![Form::name()]),
        ("route.other_protocol", vec![Form::name()]),
        ("route.timeout", vec![Duration(TIMEOUT)]),
    ]
}

fn upstreams() -> Vec<Key> {
    let off = Form::off;
    let servers = Form::List {
        what: "list",
        items: vec![Form::server(), Section],
        count: 1..=SERVERS_MAX,
    };
    let most = || vec![Number(MAX_CONNECTIONS), off()];
    vec![
        ("balance", vec![Form::words(&BALANCES)]),
        ("hash", vec![Form::words(&HASHES)]),
        ("retries", vec![Number(RETRIES)]),
        ("retry_budget", vec![Section, off()]),
        ("retry_budget.percent", vec![Number(RETRY_PERCENT)]),
        (
            "retry_budget.min_per_second",
            vec![Number(RETRIES_PER_SECOND)],
        ),
        ("queue", vec![Section, off()]),
        ("queue.max", vec![Number(QUEUE_MAX)]),
        ("queue.timeout", vec![Duration(TIMEOUT)]),
        ("check", vec![off(), Form::words(&CHECKS), Section]),
        ("eject", vec![off(), Section]),
        ("eject.failures", vec![Number(EJECT_FAILURES)]),
        ("eject.period", vec![Duration(TIMEOUT)]),
        ("eject.max", vec![Duration(TIMEOUT)]),
        ("eject.max_percent", vec![Number(EJECT_PERCENT)]),
        ("slow_start", vec![Duration(TIMEOUT), off()]),
        ("on_down", vec![Form::words(&ON_DOWNS)]),
        ("on_no_server", vec![Form::words(&ON_NO_SERVERS)]),
        ("stop_listening", vec![Section]),
        ("stop_listening.after", vec![Duration(TIMEOUT)]),
        ("stop_listening.resume_after", vec![Duration(TIMEOUT)]),
        ("fallback", vec![Form::name()]),
        ("servers", vec![servers]),
        ("servers[].address", vec![Form::server()]),
        ("servers[].weight", vec![Number(WEIGHT)]),
        ("servers[].backup", vec![Bool]),
        ("servers[].max_connections", most()),
        ("servers[].check_address", vec![Form::known_server()]),
    ]
}

fn checks() -> Vec<Key> {
    let range = || Form::pattern("200-399", "[0-9]{3}(-[0-9]{3})?");
    let statuses = Form::list("list", 1, vec![Number(HTTP_STATUS), range()]);
    let bytes = || vec![Form::text("text, hex:…")];
    vec![
        ("type", vec![Form::words(&CHECK_TYPES)]),
        ("interval", vec![Duration(CHECK_TIME)]),
        ("fast_interval", vec![Duration(CHECK_TIME)]),
        ("jitter_percent", vec![Number(JITTER_PERCENT)]),
        ("timeout", vec![Duration(CHECK_TIME)]),
        ("rise", vec![Number(CHECK_COUNT)]),
        ("fall", vec![Number(CHECK_COUNT)]),
        ("port", vec![Number(CHECK_PORT)]),
        ("proxy_protocol", vec![Form::words(&CHECK_HEADERS)]),
        ("send", bytes()),
        ("expect", bytes()),
        ("contains", bytes()),
        ("path", vec![Form::pattern("path", "/[!-~]*")]),
        ("host", vec![Form::text_like("name", "[!-~]+")]),
        ("status", vec![Number(HTTP_STATUS), range(), statuses]),
        ("server_name", vec![Form::host()]),
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
    let versions = || Form::words(&SENT_VERSIONS);
    let tlvs = Form::list(
        "list of authority, alpn, unique_id",
        1,
        vec![Form::words(&TLVS)],
    );
    let dscps = Form::words_in_any_case("cs0 to cs7, af11 to af43, ef, va, le", &DSCPS);
    let mark = Number(u64::from(*MARK.start())..=u64::from(*MARK.end()));
    let hexadecimal = Form::pattern("also 0x…", "0[xX][0-9A-Fa-f]+");
    vec![
        ("proxy_protocol", vec![off(), versions(), Section]),
        ("proxy_protocol.version", vec![versions()]),
        ("proxy_protocol.crc32c", vec![Bool]),
        ("proxy_protocol.pass_tlvs", vec![Bool, tlvs]),
        ("proxy_protocol.unique_id", vec![Bool]),
        ("source", vec![off(), Section]),
        ("source.address", vec![Form::ip_range(), addresses]),
        ("source.interface", kernel_name()),
        ("source.mark", vec![mark, hexadecimal]),
        ("source.dscp", vec![Number(0..=DSCP_MAX.into()), dscps]),
        ("source.congestion", kernel_name()),
        ("source.transparent", vec![Bool]),
        ("source.fast_open", vec![Bool]),
    ]
}
