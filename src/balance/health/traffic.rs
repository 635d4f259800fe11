//! What the sessions tell of a server.

use crate::outcome::{Cause, CloseReason, Side, Stage};

/// One thing that a session saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Observation {
    /// The server took a connection. Says nothing of what it does with it.
    Connected,
    /// A session got bytes from the server, or ended without blame on it.
    Served,
    /// The server failed a session.
    Failed(ServerFault),
}

/// A failure that counts against a server. There is none for a failure of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerFault {
    /// A connection to it could not be made.
    Connect,
    /// It reset a connection before it had sent a byte.
    EarlyReset,
}

impl ServerFault {
    /// The fault of the server in a failed connection attempt.
    ///
    /// `None` for what is ours (no local port: EADDRNOTAVAIL; no descriptor or memory: EMFILE,
    /// ENFILE, ENOMEM, ENOBUFS), the client's, or no fault at all.
    pub const fn of_attempt(cause: Cause) -> Option<Self> {
        match cause {
            Cause::Refused
            | Cause::ConnectTimeout
            | Cause::Unreachable
            | Cause::Reset
            | Cause::PeerTimeout
            | Cause::SocketError => Some(ServerFault::Connect),
            Cause::LocalPorts | Cause::LocalResources => None,
            Cause::Finished
            | Cause::Empty
            | Cause::Left
            | Cause::Denied
            | Cause::ListenerFull
            | Cause::RateLimited
            | Cause::SourceFull
            | Cause::SourceRateLimited
            | Cause::SourceTableFull
            | Cause::FirstByteTimeout
            | Cause::IdleTimeout
            | Cause::HalfCloseTimeout
            | Cause::MaxAge
            | Cause::NoServer
            | Cause::ServersFull
            | Cause::QueueTimeout
            | Cause::ServerDown
            | Cause::ProxyUntrusted
            | Cause::ProxyMalformed
            | Cause::ProxyTimeout
            | Cause::RouteMalformed
            | Cause::RouteTimeout
            | Cause::Drain => None,
        }
    }

    /// The fault of the server in a session that is over; `upstream_bytes` came from it.
    ///
    /// Only a reset of an established connection counts: its failed attempts were told one by one.
    pub const fn of_session(reason: CloseReason, upstream_bytes: u64) -> Option<Self> {
        match (reason.side, reason.stage, reason.cause) {
            (Side::Upstream, Stage::Relay, Cause::Reset) if upstream_bytes == 0 => {
                Some(ServerFault::EarlyReset)
            }
            _ => None,
        }
    }
}
