//! The validated configuration: nothing optional is left that has a default, every reference is an
//! index, every value is within its limits.
//!
//! Made only by [`super::load`] and by the command line; read by everything above. It does no I/O:
//! host names are still names here and are resolved by `control`.

mod check;
mod dns;
mod listener;
mod source;
mod upstream;

use std::path::PathBuf;
use std::time::Duration;

pub use check::{Check, CheckHeader, CheckKind, Expect};
pub use dns::{Dns, Family};
pub use listener::{
    Accept, Access, AccessRule, AccessSource, Bandwidth, ConnectionRate, Handoff, Limits, Listener,
    OnRefuse, PerSource, ProxyRequired, ProxyVersions, Route, RouteBy, SplitBy, Steer, Target,
    Throughput, Verdict,
};
pub use source::{AddressRange, Source};
pub use upstream::{
    Balance, Eject, HashBy, OnDown, OnNoServer, PassedTlvs, ProxySent, Queue, RetryBudget, Server,
    ServerAddress, StopListening, Upstream, UpstreamPolicy,
};

/// A whole configuration, ready to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which CPUs get a core thread.
    pub workers: Workers,
    /// The per-core slab.
    pub buffers: Buffers,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// How bytes are moved.
    pub relay: Relay,
    /// Socket options for both sides.
    pub tcp: TcpOptions,
    /// At least one. A [`crate::units::ListenerId`] is an index into it.
    pub listeners: Vec<Listener>,
    /// At least one. An [`UpstreamId`](crate::units::UpstreamId) is an index into it.
    pub upstreams: Vec<Upstream>,
    /// How names of servers are resolved.
    pub dns: Dns,
    /// Absent: no admin listener.
    pub admin: Option<Admin>,
    /// Process log and access log.
    pub log: Log,
}

/// Which CPUs get a core thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One per CPU in the process's affinity mask.
    Auto,
    /// The first N CPUs of the affinity mask.
    Count(usize),
    /// Exactly these CPUs.
    Cpus(Vec<usize>),
}

/// The per-core slab of receive buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Size of one buffer, in bytes.
    pub size_bytes: u32,
    /// Buffers per core.
    pub per_core: u32,
}

/// Deadlines. All run on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For one connection attempt to one server.
    pub connect: Duration,
    /// No byte in either direction for this long.
    pub idle: Duration,
    /// One side closed, and no byte from the other for this long.
    pub half_close: Duration,
    /// A session's whole life; `None` is no limit.
    pub max_age: Option<Duration>,
    /// How long sessions may go on after SIGTERM.
    pub drain: Duration,
}

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Which movers may be used.
    pub mover: Mover,
    /// Whether large copied messages are sent by `SEND_ZC`.
    pub zero_copy_send: bool,
    /// How long a core that has just had work looks for more before it sleeps; none is not at all.
    pub busy_poll: Option<Duration>,
}

/// Which movers may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mover {
    /// Copy, and splice while a direction is a bulk stream.
    Auto,
    /// Copy always.
    Copy,
    /// Splice from the first byte.
    Splice,
}

/// Socket options, set on both sides of every session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// `TCP_NODELAY`.
    pub nodelay: bool,
    /// `SO_KEEPALIVE` with its three parameters; `None` is off.
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`; `None` leaves the kernel's default.
    pub user_timeout: Option<Duration>,
}

/// See tcp(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// `TCP_KEEPIDLE`.
    pub idle: Duration,
    /// `TCP_KEEPINTVL`.
    pub interval: Duration,
    /// `TCP_KEEPCNT`.
    pub count: u32,
}

/// The admin listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where to listen; TCP only.
    pub bind: std::net::SocketAddr,
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Of the process log, on stderr.
    pub level: LogLevel,
    /// Of the process log. The access log is always JSON.
    pub format: LogFormat,
    /// Which sessions get an access-log line.
    pub access: AccessLog,
    /// The access log's file; `None` is stdout.
    pub access_file: Option<PathBuf>,
}

/// Verbosity of the process log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what needs a person.
    Error,
    /// And what may soon.
    Warn,
    /// And the process's life cycle.
    Info,
    /// And each session's steps.
    Debug,
    /// And more.
    Trace,
}

/// Form of the process log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// One readable line.
    Text,
}

/// Which sessions get an access-log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Every session.
    All,
    /// Only those whose cause is not clean ([`crate::outcome::Cause::is_clean`]).
    Errors,
    /// None.
    Off,
}
