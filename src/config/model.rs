//! The validated configuration: nothing optional is left that has a default, every reference is an
//! index, every value is within its limits.
//!
//! Made only by [`super::load`] and by the command line; read by everything above. It does no I/O:
//! host names are still names here and are resolved once, at start, by `control`.

mod source;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::units::network::Network;
use crate::units::{Address, UpstreamId};

pub use source::{AddressRange, Source};

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
    /// At least one. An [`UpstreamId`] is an index into it.
    pub upstreams: Vec<Upstream>,
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

/// One address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// As written in the configuration; a metric label.
    pub name: String,
    /// Where to listen.
    pub bind: Address,
    /// Where sessions go.
    pub target: Target,
    /// The length of the accept queue of each core's socket.
    pub backlog: u32,
    /// Permission bits of a unix socket's path.
    pub unix_mode: u32,
    /// Dial only after the client's first byte, and give up after this long; `None` dials at once.
    pub defer_connect: Option<Duration>,
    /// How connections reach the cores.
    pub accept: Accept,
    /// A PROXY header comes first and tells who the client is; `None`: none comes.
    pub proxy_protocol: Option<ProxyRequired>,
    /// Sessions go by the name that the client asks for; `None`: all to the target.
    pub route: Option<Route>,
    /// Who may connect; `None` is everybody.
    pub access: Option<Access>,
    /// How many may, and how fast new ones.
    pub limits: Limits,
    /// How somebody who may not connect is sent away.
    pub on_refuse: OnRefuse,
}

/// Where sessions go by the name that the client asks for. Those with other names go where the listener's
/// other sessions go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What the name is taken from.
    pub by: RouteBy,
    /// Names in lower case, and wildcards like `*.example.com`, in the order of the file.
    pub names: Vec<(String, UpstreamId)>,
    /// For clients that ask for no name; `None`: where the listener's other sessions go.
    pub no_name: Option<UpstreamId>,
    /// For clients that speak another protocol.
    pub other_protocol: Option<UpstreamId>,
    /// For the whole of what is looked at.
    pub timeout: Duration,
}

/// What the name is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteBy {
    /// The server name of a TLS ClientHello.
    Sni,
    /// The host of an HTTP/1 request.
    Host,
}

/// The PROXY header that a listener's clients must send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRequired {
    /// Which versions.
    pub versions: ProxyVersions,
    /// Who may send one; everybody else is refused.
    pub trusted: Vec<Network>,
    /// For the whole header.
    pub timeout: Duration,
}

/// Versions of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersions {
    /// Either.
    Any,
    /// The line of text.
    V1,
    /// The binary header.
    V2,
}

/// The PROXY header that an upstream's servers get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxySent {
    /// Not [`ProxyVersions::Any`].
    pub version: ProxyVersions,
    /// With a checksum; version 2 only.
    pub crc32c: bool,
    /// With the name, protocol and id of the header that came in; version 2 only.
    pub pass_tlvs: bool,
}

impl Listener {
    /// Whether a core may hand a new connection to another one. Steering by CPU has chosen the core already;
    /// for a unix socket it is without meaning.
    pub fn may_hand_over(&self) -> bool {
        let is_steered = self.accept.steer == Steer::Cpu && matches!(self.bind, Address::Tcp(_));
        self.accept.handoff == Handoff::Auto && !is_steered
    }
}

/// How a listener's connections reach the cores. All but `handoff` is without meaning for a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Which core gets a connection.
    pub steer: Steer,
    /// `TCP_DEFER_ACCEPT`: the kernel keeps a connection back until its first byte, for about this
    /// long; whole seconds. `None` is off.
    pub defer: Option<Duration>,
    /// Whether a core hands new connections to cores that have far fewer sessions.
    pub handoff: Handoff,
    /// `TCP_FASTOPEN`: connections per core that may have sent bytes with their SYN and are not
    /// established yet. `None` is off.
    pub fast_open: Option<u32>,
}

/// Which core gets a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    /// The kernel spreads them by a hash of the addresses.
    Hash,
    /// The core whose CPU received the SYN.
    Cpu,
}

/// Where a listener's sessions go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To one upstream.
    One(UpstreamId),
    /// To several; at least one of them has a weight.
    Split {
        /// What decides.
        by: SplitBy,
        /// Each upstream once, and its share: 0 to 256.
        parts: Vec<(UpstreamId, u16)>,
    },
}

/// What decides on a session's upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitBy {
    /// Each session is drawn by itself.
    Random,
    /// A client's address always leads to the same upstream while the weights stay.
    Source,
}

/// Who may connect, by address. List files are still paths here; `control` reads them at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Tried in this order, the first that holds an address decides.
    pub rules: Vec<AccessRule>,
    /// Where none does: the rule for `all` at the end of the list.
    pub otherwise: Verdict,
}

/// One rule of an access list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    /// What is to be done.
    pub verdict: Verdict,
    /// With whom; at least one.
    pub sources: Vec<AccessSource>,
}

/// Addresses that an access rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessSource {
    /// Those of one network.
    Network(Network),
    /// Those of every network in this file.
    File(PathBuf),
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is served.
    Allow,
    /// It is refused.
    Deny,
}

/// How many clients may be connected, over all cores, and how fast new ones may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At a time; `None` is no limit.
    pub connections: Option<u32>,
    /// New ones; `None` is no limit.
    pub rate: Option<ConnectionRate>,
    /// The same for the clients of one network.
    pub per_source: PerSource,
}

/// New connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionRate {
    /// In every second.
    pub per_second: u32,
    /// At once, after a pause.
    pub burst: u32,
}

/// Limits for the clients of one network. Without a limit nothing of it is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerSource {
    /// At a time; `None` is no limit.
    pub connections: Option<u32>,
    /// New ones; `None` is no limit.
    pub rate: Option<ConnectionRate>,
    /// Leading bits of an IPv4 address that make up its network.
    pub v4_prefix_bits: u8,
    /// The same of an IPv6 address.
    pub v6_prefix_bits: u8,
    /// Most networks that are known at a time.
    pub table: u32,
    /// What becomes of a client of one more.
    pub on_full: Verdict,
}

/// How a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRefuse {
    /// With RST.
    Reset,
    /// With FIN, as if the server had nothing to say.
    Close,
}

/// Whether a core hands new connections to cores that have far fewer sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handoff {
    /// While the spread of the sessions is too wide; never with [`Steer::Cpu`].
    Auto,
    /// Never: the core that accepts a connection keeps it.
    Off,
}

/// A group of interchangeable servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// As written in the configuration; a metric label.
    pub name: String,
    /// How a server is chosen, and what happens when the first choice does not take the session.
    pub policy: UpstreamPolicy,
    /// Asking servers whether they live; `None` asks nobody.
    pub check: Option<Check>,
    /// Options of the sockets towards the servers; `None` leaves them to the kernel.
    pub source: Option<Source>,
    /// At least one.
    pub servers: Vec<Server>,
}

/// What an upstream does with a session, whatever its servers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamPolicy {
    /// How a server is chosen.
    pub balance: Balance,
    /// Further servers that are tried after the first has failed.
    pub retries: u16,
    /// Sessions that wait for a place on a server while every server is full.
    pub queue: Queue,
    /// Setting servers aside that fail sessions; `None` sets nobody aside.
    pub eject: Option<Eject>,
    /// How long the share of a server that came back rises; `None`: it has all of it at once.
    pub slow_start: Option<Duration>,
    /// What becomes of the sessions of a server that went down.
    pub on_down: OnDown,
    /// What becomes of a session for which there is no server.
    pub on_no_server: OnNoServer,
    /// Where such sessions go first.
    pub fallback: Option<UpstreamId>,
    /// The PROXY header that servers get before the client's bytes.
    pub proxy_protocol: Option<ProxySent>,
}

/// What becomes of the sessions of a server that went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDown {
    /// They go on.
    Keep,
    /// They may finish within `timeouts.drain`, and are reset then.
    Drain,
    /// They are reset at once.
    Close,
}

/// What becomes of a session for which there is no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnNoServer {
    /// RST.
    Reset,
    /// FIN.
    Close,
    /// It waits in the queue until there is one, as if every server were full.
    Hold,
}

/// Setting servers aside that fail sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eject {
    /// Failed connects in a row, or early resets in a row, that eject a server.
    pub failures: u32,
    /// The first ejection; the second in a row is twice as long, and so on.
    pub period: Duration,
    /// The longest.
    pub max: Duration,
    /// Share of an upstream's servers that may be ejected at a time.
    pub max_percent: u8,
}

/// Asking servers whether they live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is asked, and what is an answer.
    pub kind: CheckKind,
    /// From one check to the next.
    pub interval: Duration,
    /// The same while a server is between up and down.
    pub fast_interval: Duration,
    /// How far either varies, in percent.
    pub jitter_percent: u8,
    /// For a whole check.
    pub timeout: Duration,
    /// Passes in a row that bring a server up.
    pub rise: u32,
    /// Failures in a row that take it down.
    pub fall: u32,
    /// Another port than the one that serves.
    pub port: Option<u16>,
}

/// What is asked, and what counts as an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// The handshake alone. A server that accepts and closes at once passes: its kernel did answer.
    ///
    /// It is ended by RST before the ACK that would complete it, so that the server's process
    /// never hears of it, and a full accept queue fails the check (the kernel drops the SYN). A unix
    /// socket's server sees a connection that ends at once.
    Tcp,
    /// Bytes to send, if any, and bytes to get back.
    Exchange {
        /// Sent first; may be empty where the server speaks first.
        send: Vec<u8>,
        /// What must come back.
        expect: Expect,
    },
    /// `GET path` over HTTP/1.1. Only the final status line is read.
    Http {
        /// Begins with `/`; no spaces, no control characters.
        path: String,
        /// For the `Host` header; no control characters.
        host: String,
        /// What passes.
        status: Vec<RangeInclusive<u16>>,
    },
    /// A ClientHello for TLS 1.2 or 1.3; a ServerHello (HelloRetryRequest is one) passes.
    ///
    /// A fatal alert fails: the hello offers what every common client offers, so that a server that
    /// turns it down turns clients down. A server that needs a name to answer needs `server_name`.
    Tls {
        /// For SNI; a host name in ASCII, never an IP address.
        server_name: Option<String>,
    },
}

/// Which bytes must come back. At least one byte must, whatever is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// These first. The usual choice (`+PONG`, `220 `, `SSH-2.0-`): a wrong answer is known at its
    /// first wrong byte, and an error page that happens to hold the word does not pass.
    Prefix(Vec<u8>),
    /// These somewhere, within 64 KiB (`role:master`).
    Contains(Vec<u8>),
}

/// Sessions that wait for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// At most so many, over all cores; 0 is no queue.
    pub max: u32,
    /// How long each may wait.
    pub timeout: Duration,
}

/// How a server is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// In turn, by weight; each core takes its own turns.
    RoundRobin,
    /// The one with the fewest connections for its weight.
    LeastConnections,
    /// The better of two that are drawn by weight.
    RandomTwoChoices,
    /// By the client's address: rendezvous hashing.
    SourceHash,
    /// By the client's address: a Maglev table.
    Maglev,
    /// The first in the list that has a place.
    FirstAvailable,
}

/// One server, before names are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it is.
    pub address: ServerAddress,
    /// Its share, 0 to 256; 0 takes no new sessions.
    pub weight: u16,
    /// Serves only while no other server can.
    pub backup: bool,
    /// Connections that it may have at a time, over all cores; `None` is no limit.
    pub max_connections: Option<u32>,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// Already an address.
    Known(Address),
    /// A DNS name and port, resolved once at start; each address becomes a server.
    Named {
        /// Host name.
        host: String,
        /// TCP port.
        port: u16,
    },
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
