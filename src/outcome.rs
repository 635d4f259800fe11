//! How a connection ended, as closed enums.
//!
//! Every session ends in exactly one [`CloseReason`]. The access log, the metric labels and the
//! tests all print it through [`Side::as_str`], [`Stage::as_str`] and [`Cause::as_str`], so that a
//! word seen in a log can be searched for in a dashboard and in the source.
//!
//! This module holds no text built ad hoc and knows nothing of sockets.

/// Who is to blame, seen from Corelay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Side {
    /// The client that connected to us.
    Downstream,
    /// The server that we connected to.
    Upstream,
    /// Corelay itself: a timeout, a limit, a shutdown.
    Local,
}

/// How far the session had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Accepted; nothing has been dialled yet.
    Accept,
    /// Connecting to a server.
    Connect,
    /// Moving bytes.
    Relay,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Cause {
    /// Both sides sent FIN and every byte was delivered. The side tells whose FIN came first.
    Finished,
    /// The client closed without ever sending a byte and without receiving one.
    Empty,
    /// The side reset the connection (RST).
    Reset,
    /// The side stopped acknowledging: keepalive or `TCP_USER_TIMEOUT` gave up (ETIMEDOUT).
    PeerTimeout,
    /// The client left while the server was still being dialled.
    Left,
    /// Every server refused (ECONNREFUSED, or a full unix backlog).
    Refused,
    /// No server answered within `timeouts.connect`.
    ConnectTimeout,
    /// No route to the server, or a local policy forbids it (EHOSTUNREACH, ENETUNREACH, EACCES, EPERM).
    Unreachable,
    /// No local port left for the server's address (EADDRNOTAVAIL): ours to mend, not the server's.
    LocalPorts,
    /// No server may take sessions: each is down, drained or of weight 0.
    NoServer,
    /// Every server has its `max_connections`, and the queue is off or full.
    ServersFull,
    /// Every server had its `max_connections` for the whole `queue.timeout`.
    QueueTimeout,
    /// The server's checks found it down, and `on_down` ends its sessions.
    ServerDown,
    /// No file descriptor or kernel memory left (EMFILE, ENFILE, ENOMEM, ENOBUFS).
    LocalResources,
    /// The listener's access list denies the client's address.
    Denied,
    /// The listener has its `limits.connections`.
    ListenerFull,
    /// More new connections than the listener's `limits.rate`.
    RateLimited,
    /// The client's network has its `limits.per_source.connections`.
    SourceFull,
    /// More new connections from the client's network than `limits.per_source.rate`.
    SourceRateLimited,
    /// The table of networks is full, and `limits.per_source.on_full` is `refuse`.
    SourceTableFull,
    /// The client sent nothing within `defer_connect`.
    FirstByteTimeout,
    /// The client is none of those that may send a PROXY header, which the listener requires.
    ProxyUntrusted,
    /// The PROXY header is missing, malformed or cut short.
    ProxyMalformed,
    /// The PROXY header was not complete within its timeout.
    ProxyTimeout,
    /// What the client is to be routed by is malformed, cut short or too long.
    RouteMalformed,
    /// What the client is to be routed by was not complete within its timeout.
    RouteTimeout,
    /// No byte moved for `timeouts.idle`.
    IdleTimeout,
    /// One side had closed and the other stayed silent for `timeouts.half_close`.
    HalfCloseTimeout,
    /// The session reached `timeouts.max_age`.
    MaxAge,
    /// The process is stopping and `timeouts.drain` is over, or a second signal came.
    Drain,
    /// A socket error that none of the causes above names.
    SocketError,
}

impl Side {
    /// Every side, in the order of the discriminants.
    pub const ALL: [Side; 3] = [Side::Downstream, Side::Upstream, Side::Local];

    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Side::Downstream => "downstream",
            Side::Upstream => "upstream",
            Side::Local => "local",
        }
    }
}

impl Stage {
    /// Every stage, in the order of the discriminants.
    pub const ALL: [Stage; 3] = [Stage::Accept, Stage::Connect, Stage::Relay];

    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Accept => "accept",
            Stage::Connect => "connect",
            Stage::Relay => "relay",
        }
    }
}

impl Cause {
    /// Every cause, in the order of the discriminants.
    pub const ALL: [Cause; 31] = [
        Cause::Finished,
        Cause::Empty,
        Cause::Reset,
        Cause::PeerTimeout,
        Cause::Left,
        Cause::Refused,
        Cause::ConnectTimeout,
        Cause::Unreachable,
        Cause::LocalPorts,
        Cause::NoServer,
        Cause::ServersFull,
        Cause::QueueTimeout,
        Cause::ServerDown,
        Cause::LocalResources,
        Cause::Denied,
        Cause::ListenerFull,
        Cause::RateLimited,
        Cause::SourceFull,
        Cause::SourceRateLimited,
        Cause::SourceTableFull,
        Cause::FirstByteTimeout,
        Cause::ProxyUntrusted,
        Cause::ProxyMalformed,
        Cause::ProxyTimeout,
        Cause::RouteMalformed,
        Cause::RouteTimeout,
        Cause::IdleTimeout,
        Cause::HalfCloseTimeout,
        Cause::MaxAge,
        Cause::Drain,
        Cause::SocketError,
    ];

    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Finished => "finished",
            Cause::Empty => "empty",
            Cause::Reset => "reset",
            Cause::PeerTimeout => "peer_timeout",
            Cause::Left => "left",
            Cause::Refused => "refused",
            Cause::ConnectTimeout => "connect_timeout",
            Cause::Unreachable => "unreachable",
            Cause::LocalPorts => "local_ports",
            Cause::NoServer => "no_server",
            Cause::ServersFull => "servers_full",
            Cause::QueueTimeout => "queue_timeout",
            Cause::ServerDown => "server_down",
            Cause::LocalResources => "local_resources",
            Cause::Denied => "denied",
            Cause::ListenerFull => "listener_full",
            Cause::RateLimited => "rate_limited",
            Cause::SourceFull => "source_full",
            Cause::SourceRateLimited => "source_rate_limited",
            Cause::SourceTableFull => "source_table_full",
            Cause::FirstByteTimeout => "first_byte_timeout",
            Cause::ProxyUntrusted => "proxy_untrusted",
            Cause::ProxyMalformed => "proxy_malformed",
            Cause::ProxyTimeout => "proxy_timeout",
            Cause::RouteMalformed => "route_malformed",
            Cause::RouteTimeout => "route_timeout",
            Cause::IdleTimeout => "idle_timeout",
            Cause::HalfCloseTimeout => "half_close_timeout",
            Cause::MaxAge => "max_age",
            Cause::Drain => "drain",
            Cause::SocketError => "socket_error",
        }
    }

    /// Whether `log.access: errors` leaves this end out: nothing went wrong.
    pub const fn is_clean(self) -> bool {
        matches!(self, Cause::Finished | Cause::Empty)
    }
}

/// The one reason for which a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseReason {
    /// Who is to blame.
    pub side: Side,
    /// How far the session had come.
    pub stage: Stage,
    /// What happened.
    pub cause: Cause,
}

impl CloseReason {
    /// A reason from its three parts.
    pub const fn new(side: Side, stage: Stage, cause: Cause) -> Self {
        Self { side, stage, cause }
    }
}

impl std::fmt::Display for CloseReason {
    /// `side/stage/cause`, as in the process log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.side.as_str(),
            self.stage.as_str(),
            self.cause.as_str()
        )
    }
}

/// Which mover carried a session's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MoverKind {
    /// Received into a buffer of the slab and sent on.
    Copy,
    /// Moved through a pipe with splice(2).
    Splice,
}

impl MoverKind {
    /// All of them, in order.
    pub const ALL: [Self; 2] = [MoverKind::Copy, MoverKind::Splice];

    /// The word used in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            MoverKind::Copy => "copy",
            MoverKind::Splice => "splice",
        }
    }
}

/// What became of bytes that were to go to a server with the SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastOpen {
    /// None went: the kernel has no cookie of the server (it may give none), does not allow it, or pauses
    /// after losses.
    NotSent,
    /// The server, or something on the way, acknowledged the SYN alone: they were sent once more.
    Ignored,
    /// The server took them.
    Taken,
}

impl FastOpen {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [FastOpen::NotSent, FastOpen::Ignored, FastOpen::Taken];

    /// The word used in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            FastOpen::NotSent => "not_sent",
            FastOpen::Ignored => "ignored",
            FastOpen::Taken => "taken",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_word_is_distinct_and_every_list_is_in_order() {
        for (index, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, index);
        }
        let words: HashSet<_> = Cause::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(words.len(), Cause::ALL.len());
        for (index, outcome) in FastOpen::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
        }
        for (index, side) in Side::ALL.iter().enumerate() {
            assert_eq!(*side as usize, index);
        }
        for (index, stage) in Stage::ALL.iter().enumerate() {
            assert_eq!(*stage as usize, index);
        }
    }
}
