//! Listeners: where clients connect, who may, and where their sessions go.

use std::path::PathBuf;
use std::time::Duration;

use crate::units::network::Network;
use crate::units::{Address, UpstreamId};

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

/// Where sessions go by the name that the client asks for, or by what it speaks. Those with other names go where the listener's
/// other sessions go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What the name is taken from.
    pub by: RouteBy,
    /// Protocols of ALPN (RFC 7301), each of 1 to 255 bytes, in the order of the file; tried before the names.
    /// Empty unless by SNI.
    pub alpn: Vec<(Vec<u8>, UpstreamId)>,
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
