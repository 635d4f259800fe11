//! Defaults and limits of every setting, with the reason for each.
//!
//! The commented `config.yaml` at the top of the repository states the same defaults; a test
//! compares the two.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::model::{
    Accept, AccessLog, Balance, Bandwidth, Buffers, Check, CheckHeader, CheckKind, Dns, Eject,
    Family, Handoff, HashBy, Keepalive, Limits, Log, LogFormat, LogLevel, Mover, OnDown,
    OnNoServer, OnRefuse, PerSource, Queue, Relay, RetryBudget, Steer, StopListening, TcpOptions,
    Throughput, Timeouts, UpstreamPolicy, Verdict,
};

/// Longest configuration text, in bytes: ten times what the most servers that are allowed need.
pub const TEXT_MAX_BYTES: usize = 4 << 20;
/// Most YAML values in one configuration. Aliases can make a short text expand to very many.
pub const NODES_MAX: u32 = 200_000;
/// Longest name of a listener or an upstream, in bytes. Names are metric labels.
pub const NAME_MAX_BYTES: usize = 64;
/// Most listeners, and most upstreams.
pub const LISTENERS_MAX: usize = 1024;
/// Most servers over all upstreams, as written.
pub const SERVERS_MAX: usize = 4096;
/// CPU numbers that `sched_setaffinity(2)` can name with the fixed-size set of the C library.
pub const CPUS_MAX: usize = 1024;

/// Size of one buffer, in bytes. Below, system calls dominate; above, nothing is gained.
pub const BUFFER_SIZE_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 20;
/// A buffer's size is a multiple of this, in bytes, so that buffers share cache lines with nobody.
pub const BUFFER_SIZE_STEP_BYTES: u64 = 1 << 10;
/// Buffers per core. The kernel's buffer ring has at most 32,768 entries.
pub const BUFFERS_PER_CORE: RangeInclusive<u64> = 64..=32_768;
/// Largest slab of one core, in bytes: beyond it, somebody mixed up the two numbers.
pub const SLAB_MAX_BYTES: u64 = 4 << 30;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Every deadline. One millisecond is the resolution; a month is beyond any session worth its slot.
pub const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=DAY.saturating_mul(30);
/// `TCP_USER_TIMEOUT` is a signed 32-bit number of milliseconds: 24.8 days.
pub const USER_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(1)..=DAY.saturating_mul(24);
/// `TCP_KEEPIDLE` and `TCP_KEEPINTVL`: whole seconds, `MAX_TCP_KEEPIDLE` of the kernel.
pub const KEEPALIVE_TIME: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(32_767);
/// `TCP_KEEPCNT`: `MAX_TCP_KEEPCNT` of the kernel.
pub const KEEPALIVE_COUNT: RangeInclusive<u64> = 1..=127;
/// Length of an accept queue. The kernel cuts it to `net.core.somaxconn` without a word.
pub const BACKLOG: RangeInclusive<u64> = 1..=65_535;
/// `TCP_DEFER_ACCEPT`: whole seconds, which the kernel turns into retransmitted SYN-ACKs. A minute
/// is what it waits for a handshake by default (`net.ipv4.tcp_synack_retries` = 5: 63 s).
pub const ACCEPT_DEFER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// Length of the queue of Fast Open connections, like that of any other.
pub const FAST_OPEN: RangeInclusive<u64> = BACKLOG;
/// Permission bits of a unix socket's path.
pub const UNIX_MODE_MAX: u32 = 0o777;

/// 16 KiB holds a full TLS record; 4,096 of them are 64 MiB of address space per core, of which only
/// a window is touched.
pub const DEFAULT_BUFFERS: Buffers = Buffers {
    size_bytes: 16 << 10,
    per_core: 4096,
};

/// Connect: one SYN retransmission (1 s) and its answer. Idle: longer than usual keepalives of
/// applications. Half-close: what a late reply may take. Drain: below systemd's 90 s stop timeout.
pub const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(3),
    idle: Duration::from_secs(10 * 60),
    half_close: Duration::from_secs(30),
    max_age: None,
    drain: Duration::from_secs(30),
};

/// Small messages are cheaper to copy, streams to splice; which one it is shows in the traffic.
/// Zero copy pins the slab and pays only on real network cards: somebody has to want it.
pub const DEFAULT_RELAY: Relay = Relay {
    mover: Mover::Auto,
    zero_copy_send: false,
    busy_poll: None,
};
/// Below it a sleep costs less; above it the CPU is better given to others.
pub const BUSY_POLL: RangeInclusive<Duration> = Duration::from_micros(1)..=Duration::from_millis(1);
/// Smaller sends are never zero-copy, so that smaller buffers make the option pointless, in bytes.
pub const ZERO_COPY_MIN_BYTES: u32 = 8 << 10;

/// A dead peer is noticed after 60 + 3 × 10 = 90 s of silence.
pub const DEFAULT_KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(60),
    interval: Duration::from_secs(10),
    count: 3,
};

/// A relay must not add Nagle's delay to what the two ends chose.
pub const DEFAULT_TCP: TcpOptions = TcpOptions {
    nodelay: true,
    keepalive: Some(DEFAULT_KEEPALIVE),
    user_timeout: None,
};

/// Half a minute is what most records of changing servers live, and a burden for no name server. Two
/// seconds are time enough for a name server's own questions.
pub const DEFAULT_DNS: Dns = Dns {
    nameservers: Vec::new(),
    interval: Some(Duration::from_secs(30)),
    timeout: Duration::from_secs(2),
    family: Family::Both,
};
/// Between two looks at a name.
pub const DNS_INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY;
/// For an answer. A start waits for it, as often as there are name servers.
pub const DNS_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(30);
/// As many as anybody has; a name that none of them knows costs the timeout of each.
pub const NAMESERVERS_MAX: usize = 8;
/// Where name servers listen (RFC 1035 section 4.2).
pub const DNS_PORT: u16 = 53;

/// The default of `net.core.somaxconn` since Linux 5.4.
pub const DEFAULT_BACKLOG: u32 = 4096;
/// Fast Open and deferring need clients that fit, steering needs workers on the CPUs that receive.
pub const DEFAULT_ACCEPT: Accept = Accept {
    steer: Steer::Hash,
    defer: None,
    fast_open: None,
    handoff: Handoff::Auto,
};
/// A client that was refused should know at once, and count it as an error.
pub const DEFAULT_ON_REFUSE: OnRefuse = OnRefuse::Reset;
/// Clients of one listener, or of one network, at a time.
pub const LISTENER_CONNECTIONS: RangeInclusive<u64> = MAX_CONNECTIONS;
/// New connections per second, and at once: more than a host can accept.
pub const CONNECTION_RATE: RangeInclusive<u64> = 1..=10_000_000;
/// Leading bits of an IPv4 address.
pub const V4_PREFIX_BITS: RangeInclusive<u64> = 1..=32;
/// Leading bits of an IPv6 address.
pub const V6_PREFIX_BITS: RangeInclusive<u64> = 1..=128;
/// Networks known at a time: at 180 bytes each from nothing to 3 GB.
pub const SOURCE_TABLE: RangeInclusive<u64> = 64..=1 << 24;
/// No limit unless somebody sets one. An IPv4 client is its address, an IPv6 one its /64, which is what
/// one subscriber has. 65,536 networks are 12 MB at most; whoever can fill that should not be able to
/// lock everybody else out.
pub const DEFAULT_LIMITS: Limits = Limits {
    connections: None,
    rate: None,
    per_source: PerSource {
        connections: None,
        rate: None,
        v4_prefix_bits: 32,
        v6_prefix_bits: 64,
        table: 1 << 16,
        on_full: Verdict::Allow,
    },
    bandwidth: Bandwidth {
        connection: NO_LIMIT,
        listener: NO_LIMIT,
    },
};
const NO_LIMIT: Throughput = Throughput {
    upload: None,
    download: None,
};
/// Bytes per second. Below, a segment is more than a second's worth; above is more than a host can move.
pub const BANDWIDTH_BYTES: RangeInclusive<u64> = 1 << 10..=64 << 30;
/// Most items of one access list as written: networks and files. A longer list belongs in a file.
pub const ACCESS_ITEMS_MAX: usize = 10_000;
/// The owner and the group may connect.
pub const DEFAULT_UNIX_MODE: u32 = 0o660;

/// A server's share. More steps than percent, few enough for a cycle that one can wait for.
pub const WEIGHT: RangeInclusive<u64> = 0..=256;
/// Every server is alike until told otherwise.
pub const DEFAULT_WEIGHT: u16 = 1;
/// Connections to one server, from one address of ours: as many as there are ports, and some room for
/// servers with several addresses behind them.
pub const MAX_CONNECTIONS: RangeInclusive<u64> = 1..=10_000_000;
/// Further servers tried after the first.
pub const RETRIES: RangeInclusive<u64> = 0..=100;
/// Sessions that wait for a place: each holds a descriptor and a task.
pub const QUEUE_MAX: RangeInclusive<u64> = 0..=1_000_000;

/// How often servers are asked, and how long one may take. Below a millisecond it would be load.
pub const CHECK_TIME: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(24 * 60 * 60);
/// Checks in a row that decide.
pub const CHECK_COUNT: RangeInclusive<u64> = 1..=100;
/// How far the interval varies: up to all of it.
pub const JITTER_PERCENT: RangeInclusive<u64> = 0..=100;
/// Where a check asks, if not where the server listens. No server has port 0.
pub const CHECK_PORT: RangeInclusive<u64> = 1..=65_535;
/// Bytes that a check sends or expects, in bytes.
pub const CHECK_BYTES_MAX: usize = 4096;
/// A dead server is noticed within 5 + 2 × 1 + 2 = 9 s, a live one costs it a handshake every 5 s.
pub const DEFAULT_CHECK: Check = Check {
    kind: CheckKind::Tcp,
    interval: Duration::from_secs(5),
    fast_interval: Duration::from_secs(1),
    jitter_percent: 10,
    timeout: Duration::from_secs(2),
    rise: 2,
    fall: 3,
    port: None,
    header: CheckHeader::AsSessions,
};
/// HTTP statuses.
pub const HTTP_STATUS: RangeInclusive<u64> = 100..=599;
/// Failures in a row.
pub const EJECT_FAILURES: RangeInclusive<u64> = 1..=10_000;
/// Share of an upstream's servers.
pub const EJECT_PERCENT: RangeInclusive<u64> = 1..=100;
/// Five in a row are no accident; ten seconds cost little if they were one. Half of the servers must
/// carry the load of all, so that no fault of the path to them takes more away.
pub const DEFAULT_EJECT: Eject = Eject {
    failures: 5,
    period: Duration::from_secs(10),
    max: Duration::from_secs(5 * 60),
    max_percent: 50,
};

/// Whoever is in front needs seconds to notice either: three more before a host gives its clients up, for a
/// server that restarts is back by then, and ten before it takes them back, for one that has just come up
/// may fall again.
pub const DEFAULT_STOP_LISTENING: StopListening = StopListening {
    after: Duration::from_secs(3),
    resume_after: Duration::from_secs(10),
};

/// Three further servers reach a live one unless most are dead, and a client waits for four connect
/// timeouts at most. A session beyond every server's limit is refused at once, unless somebody says how
/// long a client may wait; a few seconds outlast a burst and not a client's patience.
pub const DEFAULT_UPSTREAM: UpstreamPolicy = UpstreamPolicy {
    balance: Balance::RoundRobin,
    hash: HashBy::Source,
    retries: 3,
    retry_budget: None,
    queue: Queue {
        max: 0,
        timeout: Duration::from_secs(5),
    },
    eject: Some(DEFAULT_EJECT),
    slow_start: None,
    on_down: OnDown::Keep,
    on_no_server: OnNoServer::Reset,
    stop_listening: DEFAULT_STOP_LISTENING,
    fallback: None,
    proxy_protocol: None,
};
/// What Linkerd grants: load grows by a fifth at most, and an upstream with few sessions has its retries.
pub const DEFAULT_RETRY_BUDGET: RetryBudget = RetryBudget {
    percent: 20,
    min_per_second: 10,
};
/// More than all is no budget.
pub const RETRY_PERCENT: RangeInclusive<u64> = 0..=100;
/// Retries per second: more than a host can begin.
pub const RETRIES_PER_SECOND: RangeInclusive<u64> = 0..=1_000_000;
/// Most names that one listener routes by.
pub const ROUTE_NAMES_MAX: usize = 10_000;
/// Most protocols that one listener routes by: several times as many as are registered.
pub const ROUTE_PROTOCOLS_MAX: usize = 256;
/// Longest name of a protocol, in bytes (RFC 7301 section 3.1).
pub const PROTOCOL_MAX_BYTES: usize = 255;
/// As HAProxy's documentation advises: longer than one lost segment takes to come again.
pub const DEFAULT_ROUTE_TIMEOUT: Duration = Duration::from_secs(5);
/// See [`DEFAULT_ROUTE_TIMEOUT`].
pub const DEFAULT_PROXY_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses that an upstream's connections come from: 28 million connections to each server. Each is bound
/// once at the start.
pub const SOURCE_ADDRESSES_MAX: usize = 1024;
/// SO_MARK; 0 is no mark.
pub const MARK: RangeInclusive<u32> = 1..=u32::MAX;
/// Six bits.
pub const DSCP_MAX: u8 = 63;
/// Longest name of a network interface or of a congestion control, in bytes (IFNAMSIZ and
/// TCP_CA_NAME_MAX, one of which ends it).
pub const KERNEL_NAME_MAX_BYTES: usize = 15;

/// Made for a log collector.
pub const DEFAULT_LOG: Log = Log {
    level: LogLevel::Info,
    format: LogFormat::Json,
    access: AccessLog::All,
    access_file: None,
};
