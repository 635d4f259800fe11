//! Upstreams: groups of servers, how one is chosen, and what becomes of a session without one.

use std::time::Duration;

use super::check::Check;
use super::listener::ProxyVersions;
use super::source::Source;
use crate::units::{Address, UpstreamId};

/// The PROXY header that an upstream's servers get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxySent {
    /// Not [`ProxyVersions::Any`].
    pub version: ProxyVersions,
    /// With a checksum; version 2 only.
    pub crc32c: bool,
    /// What is told on of what is known of the client; version 2 only.
    pub pass_tlvs: PassedTlvs,
    /// With the session's id in the access log, unless one came in and is passed on; version 2 only.
    pub unique_id: bool,
}

/// TLVs that are told on: of the header that came in, else what routing found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassedTlvs {
    /// The name that the client asked for (PP2_TYPE_AUTHORITY).
    pub authority: bool,
    /// The protocol spoken inside (PP2_TYPE_ALPN).
    pub alpn: bool,
    /// The id that a proxy in front gave the connection (PP2_TYPE_UNIQUE_ID).
    pub unique_id: bool,
}

impl PassedTlvs {
    /// Every one.
    pub const ALL: Self = Self {
        authority: true,
        alpn: true,
        unique_id: true,
    };
    /// Not one.
    pub const NONE: Self = Self {
        authority: false,
        alpn: false,
        unique_id: false,
    };
    /// The name alone.
    pub const AUTHORITY: Self = Self {
        authority: true,
        ..Self::NONE
    };
    /// The protocol alone.
    pub const ALPN: Self = Self {
        alpn: true,
        ..Self::NONE
    };
    /// The id alone.
    pub const UNIQUE_ID: Self = Self {
        unique_id: true,
        ..Self::NONE
    };

    /// Those of either.
    pub fn union(self, other: Self) -> Self {
        Self {
            authority: self.authority || other.authority,
            alpn: self.alpn || other.alpn,
            unique_id: self.unique_id || other.unique_id,
        }
    }

    /// Whether all of `other` are among these.
    pub fn contains(self, other: Self) -> bool {
        self.union(other) == self
    }
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
    /// What a hash is of; [`HashBy::Source`] where nothing hashes.
    pub hash: HashBy,
    /// Further servers that are tried after the first has failed.
    pub retries: u16,
    /// How many of its sessions may try a further server; `None` is all.
    pub retry_budget: Option<RetryBudget>,
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
    /// In force with [`OnNoServer::StopListening`].
    pub stop_listening: StopListening,
    /// Where such sessions go first.
    pub fallback: Option<UpstreamId>,
    /// The PROXY header that servers get before the client's bytes.
    pub proxy_protocol: Option<ProxySent>,
}

/// How many sessions of an upstream may try a further server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Retries per 100 sessions that began lately.
    pub percent: u8,
    /// Retries per second however few began.
    pub min_per_second: u32,
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
    /// RST, and before long the listeners that lead here listen no more: see [`StopListening`].
    StopListening,
}

/// When listeners stop for want of servers, and when they listen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopListening {
    /// There has been no server for so long.
    pub after: Duration,
    /// There has been one again for so long.
    pub resume_after: Duration,
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
    /// By a hash of the client: rendezvous hashing.
    SourceHash,
    /// By a hash of the client: a Maglev table.
    Maglev,
    /// The first in the list that has a place.
    FirstAvailable,
}

impl Balance {
    /// Whether it goes by a hash of the client.
    pub fn hashes(self) -> bool {
        matches!(self, Balance::SourceHash | Balance::Maglev)
    }
}

/// What of a client is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashBy {
    /// Its address.
    Source,
    /// The name that it asks for, or its address if it asks for none.
    Name,
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
    /// Where its checks go; `None`: where the check says.
    pub check_address: Option<Address>,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// Already an address.
    Known(Address),
    /// A DNS name and port; each of its addresses becomes a server.
    Named {
        /// Host name.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// The name of a service, whose SRV records (RFC 2782) name hosts, ports and weights.
    Service {
        /// Like `_app._tcp.example.com`.
        name: String,
    },
}
