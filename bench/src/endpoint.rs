//! Where a stream socket listens or connects: `ip:port`, `[ip]:port` or `unix:/path`.
//!
//! A parsed address and the socket that fits it; no names, no DNS.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use socket2::{Domain, SockAddr, Socket, Type};

/// An address of a stream socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// IPv4 or IPv6 with a port.
    Tcp(SocketAddr),
    /// A path in the file system.
    Unix(PathBuf),
}

/// What was given is neither `ip:port` nor `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAnEndpoint(String);

impl fmt::Display for NotAnEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not an address: write ip:port, [ip]:port or unix:/path",
            self.0
        )
    }
}

impl std::error::Error for NotAnEndpoint {}

impl Endpoint {
    /// 127.0.0.1 with a port that the kernel chooses.
    pub fn loopback() -> Self {
        Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// The TCP address, if it is one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Endpoint::Tcp(address) => Some(*address),
            Endpoint::Unix(_) => None,
        }
    }

    /// A new non-blocking, close-on-exec stream socket of the right family, not yet bound.
    pub fn socket(&self) -> io::Result<Socket> {
        let domain = match self {
            Endpoint::Tcp(address) => Domain::for_address(*address),
            Endpoint::Unix(_) => Domain::UNIX,
        };
        Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)
    }

    /// The address as the kernel takes it; fails if a path is too long for one.
    pub fn to_sock_addr(&self) -> io::Result<SockAddr> {
        match self {
            Endpoint::Tcp(address) => Ok(SockAddr::from(*address)),
            Endpoint::Unix(path) => SockAddr::unix(path),
        }
    }

    /// Starts to connect a socket of [`Endpoint::socket`], without waiting: it becomes writable, or
    /// fails, later.
    pub fn connect(&self, socket: &Socket) -> io::Result<()> {
        match socket.connect(&self.to_sock_addr()?) {
            Err(error) if !is_in_progress(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// The address that a bound socket really has: the kernel's port in place of port 0.
    pub fn of_bound(&self, socket: &Socket) -> io::Result<Self> {
        match self {
            Endpoint::Tcp(_) => {
                let local = socket.local_addr()?;
                let address = local.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
                Ok(Endpoint::Tcp(address))
            }
            Endpoint::Unix(path) => Ok(Endpoint::Unix(path.clone())),
        }
    }
}

/// Whether a non-blocking connect is merely under way. (EAGAIN, from a unix socket whose backlog is
/// full, is a failure: nothing is under way then.)
fn is_in_progress(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Endpoint::Tcp(address)
    }
}

impl From<PathBuf> for Endpoint {
    fn from(path: PathBuf) -> Self {
        Endpoint::Unix(path)
    }
}

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(NotAnEndpoint(text.to_owned()));
            }
            return Ok(Endpoint::Unix(PathBuf::from(path)));
        }
        text.parse()
            .map(Endpoint::Tcp)
            .map_err(|_| NotAnEndpoint(text.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "{address}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_parses_back() {
        for text in ["127.0.0.1:9000", "[::1]:80", "unix:/tmp/a socket"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn names_and_bare_ports_are_refused() {
        for text in ["localhost:80", "9000", "unix:", ""] {
            assert_eq!(
                text.parse::<Endpoint>(),
                Err(NotAnEndpoint(text.to_owned()))
            );
        }
    }
}
