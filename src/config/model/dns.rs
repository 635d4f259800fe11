//! How names of servers are resolved.

use std::net::SocketAddr;
use std::time::Duration;

/// See the head of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Asked in this order; none: addresses come from the host's resolver, services from the name
    /// servers of `/etc/resolv.conf`.
    pub nameservers: Vec<SocketAddr>,
    /// From one look at a name to the next; `None` looks once, at the start.
    pub interval: Option<Duration>,
    /// For one answer of one name server.
    pub timeout: Duration,
    /// Which addresses of a name become servers.
    pub family: Family,
}

/// Which addresses of a name become servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// All.
    Both,
    /// Those of IPv4.
    V4,
    /// Those of IPv6.
    V6,
}
