//! Servers that never answer: one whose port refuses, one whose SYNs vanish.
//!
//! Neither needs a thread; both only hold sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// Connections that a listener with a backlog of 0 takes before it drops SYNs is 1; more than this
/// many would mean that the kernel does not drop them at all.
const MAX_FILLERS: usize = 64;
/// A connection that is not established on loopback after this long has had its SYN dropped.
const FILL_PATIENCE: Duration = Duration::from_millis(300);

/// A port that answers every SYN with RST: bound, so that nobody else gets it, but not listening.
#[derive(Debug)]
pub struct RefusedPort {
    socket: Socket,
    address: SocketAddr,
}

impl RefusedPort {
    /// Takes a free port of 127.0.0.1.
    pub fn new() -> io::Result<Self> {
        let (socket, address) = bound()?;
        Ok(Self { socket, address })
    }

    /// The port's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts to listen: the server has come back. Connections queue and are not accepted.
    pub fn revive(&self) -> io::Result<()> {
        self.socket.listen(128)
    }
}

/// An address whose SYNs vanish: it listens, its accept queue is full and nobody accepts.
#[derive(Debug)]
pub struct Blackhole {
    _listener: Socket,
    _fillers: Vec<Socket>,
    address: SocketAddr,
}

impl Blackhole {
    /// Takes a free port of 127.0.0.1 and fills its queue; takes about half a second.
    pub fn new() -> io::Result<Self> {
        let (listener, address) = bound()?;
        listener.listen(0)?;
        let mut fillers = Vec::new();
        while fillers.len() < MAX_FILLERS {
            let filler = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
            match filler.connect_timeout(&SockAddr::from(address), FILL_PATIENCE) {
                Ok(()) => fillers.push(filler),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Ok(Self {
                        _listener: listener,
                        _fillers: fillers,
                        address,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(
            "a full accept queue does not drop SYNs on this host",
        ))
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn bound() -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
    socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
    let address = socket
        .local_addr()?
        .as_socket()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn a_refused_port_refuses() {
        let port = RefusedPort::new().unwrap();
        let error = TcpStream::connect(port.address()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_blackhole_neither_accepts_nor_refuses() {
        let hole = Blackhole::new().unwrap();
        let error =
            TcpStream::connect_timeout(&hole.address(), Duration::from_millis(500)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
