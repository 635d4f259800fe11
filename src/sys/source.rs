//! What a socket towards a server is given before it connects, besides the options of both sides: where it
//! comes from, which way it goes, and how its packets are marked.
//!
//! ```text
//!   socket(2) ──> mark, interface, congestion, DSCP ──> bind(2) to the source address ──> connect(2)
//! ```
//!
//! [`Origin::apply`] is what a dial does, [`Source::try_out`] does the same on a socket that never
//! connects, so that a refusal is told at the start and names the step. See socket(7), ip(7), tcp(7).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::socket::set_option;

/// One of the things that are asked of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// socket(2), to try the others on.
    Socket,
    /// SO_MARK.
    Mark,
    /// SO_BINDTODEVICE.
    Interface,
    /// TCP_CONGESTION.
    Congestion,
    /// IP_TOS or IPV6_TCLASS.
    Dscp,
    /// IP_TRANSPARENT or IPV6_TRANSPARENT.
    Transparent,
    /// bind(2) to this address.
    Address(IpAddr),
}

/// A step that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// Which.
    pub step: Step,
    /// Why.
    pub error: io::Error,
}

/// The options of an upstream's sockets. What is absent is left to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// IPv4 addresses to come from, in turn.
    pub v4: Vec<IpAddr>,
    /// IPv6 addresses to come from, in turn.
    pub v6: Vec<IpAddr>,
    /// SO_BINDTODEVICE.
    pub interface: Option<String>,
    /// SO_MARK.
    pub mark: Option<u32>,
    /// The six bits of DSCP.
    pub dscp: Option<u8>,
    /// TCP_CONGESTION.
    pub congestion: Option<String>,
    /// Come from the client's own address and port.
    pub transparent: bool,
    /// The SYN takes the first bytes along. Not an option of the socket: see [`super::fast_open`].
    pub fast_open: bool,
}

/// Where one connection comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The options.
    pub source: &'a Source,
    /// The address to bind to; with port 0 the kernel chooses one at connect(2). `None` leaves
    /// the address to the kernel, too.
    pub local: Option<SocketAddr>,
}

impl Source {
    /// The addresses from which a server of this family is reached.
    pub fn addresses(&self, is_ipv4: bool) -> &[IpAddr] {
        if is_ipv4 { &self.v4 } else { &self.v6 }
    }

    /// Whether an address is chosen at all, be it ours or the client's.
    pub fn binds(&self) -> bool {
        self.transparent || !self.v4.is_empty() || !self.v6.is_empty()
    }

    /// For a connection that is not made for a client: from the first address.
    pub fn without_client(&self, is_ipv4: bool) -> Origin<'_> {
        let first = self.addresses(is_ipv4).first();
        Origin {
            source: self,
            local: first.map(|ip| SocketAddr::new(*ip, 0)),
        }
    }

    /// Everything but the address.
    fn set(&self, socket: BorrowedFd<'_>, is_ipv4: bool) -> Result<(), Refused> {
        let fd = socket;
        let socket = SockRef::from(&fd);
        let at = |step| move |error| Refused { step, error };
        if let Some(mark) = self.mark {
            socket.set_mark(mark).map_err(at(Step::Mark))?;
        }
        if let Some(name) = &self.interface {
            socket
                .bind_device(Some(name.as_bytes()))
                .map_err(at(Step::Interface))?;
        }
        if let Some(name) = &self.congestion {
            socket
                .set_tcp_congestion(name.as_bytes())
                .map_err(at(Step::Congestion))?;
        }
        if let Some(dscp) = self.dscp {
            // The two lower bits are ECN's, which the kernel keeps to itself on TCP sockets.
            let bits = i32::from(dscp) << 2;
            let (level, name) = if is_ipv4 {
                (libc::IPPROTO_IP, libc::IP_TOS)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            };
            set_option(fd, level, name, &bits).map_err(at(Step::Dscp))?;
        }
        Ok(())
    }

    /// Whether the kernel lets this process have all of it, for servers of this family.
    ///
    /// Errors: the first step that is refused, or that no socket was to be had.
    pub fn try_out(&self, is_ipv4: bool) -> Result<(), Refused> {
        let scratch = || {
            scratch(is_ipv4).map_err(|error| Refused {
                step: Step::Socket,
                error,
            })
        };
        self.set(scratch()?.as_fd(), is_ipv4)?;
        if self.transparent {
            set_transparent(scratch()?.as_fd(), is_ipv4).map_err(|error| Refused {
                step: Step::Transparent,
                error,
            })?;
        }
        for &ip in self.addresses(is_ipv4) {
            let socket = scratch()?;
            let origin = Origin {
                source: self,
                local: Some(SocketAddr::new(ip, 0)),
            };
            origin.apply(&socket, is_ipv4)?;
        }
        Ok(())
    }
}

impl Origin<'_> {
    /// Prepares a socket that is not connected yet.
    ///
    /// Errors: the first step that is refused. EADDRNOTAVAIL of the last one: this host does not have
    /// the address (any more); want of ports shows at connect(2).
    pub fn apply(&self, socket: &impl AsFd, is_ipv4: bool) -> Result<(), Refused> {
        let fd = socket.as_fd();
        let socket = SockRef::from(&fd);
        let source = self.source;
        source.set(fd, is_ipv4)?;
        let Some(local) = self.local else {
            return Ok(());
        };
        let at = |step| move |error| Refused { step, error };
        if source.transparent {
            set_transparent(fd, is_ipv4).map_err(at(Step::Transparent))?;
        }
        let result = if local.port() == 0 {
            // Else bind(2) would pick the port, which then no other connection from this address
            // could have, wherever it goes.
            let name = libc::IP_BIND_ADDRESS_NO_PORT;
            set_option(fd, libc::IPPROTO_IP, name, &1i32)
        } else {
            // The client's port may be in use towards another server.
            socket.set_reuse_address(true)
        };
        result
            .and_then(|()| socket.bind(&local.into()))
            .map_err(at(Step::Address(local.ip())))
    }
}

fn set_transparent(socket: BorrowedFd<'_>, is_ipv4: bool) -> io::Result<()> {
    let (level, name) = if is_ipv4 {
        (libc::IPPROTO_IP, libc::IP_TRANSPARENT)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT)
    };
    set_option(socket, level, name, &1i32)
}

fn scratch(is_ipv4: bool) -> io::Result<Socket> {
    let domain = if is_ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::STREAM.cloexec(), Some(Protocol::TCP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn from(text: &str) -> Source {
        let ip: IpAddr = text.parse().unwrap();
        let (v4, v6) = if ip.is_ipv4() {
            (vec![ip], vec![])
        } else {
            (vec![], vec![ip])
        };
        Source {
            v4,
            v6,
            ..Source::default()
        }
    }

    #[test]
    fn a_port_is_taken_at_connect_and_not_before() {
        for (address, is_ipv4) in [("127.0.0.1", true), ("::1", false)] {
            let source = from(address);
            let socket = scratch(is_ipv4).unwrap();
            source
                .without_client(is_ipv4)
                .apply(&socket, is_ipv4)
                .unwrap();
            let bound = socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!(bound, SocketAddr::new(address.parse().unwrap(), 0));
        }
    }

    #[test]
    fn two_sessions_of_a_client_may_have_its_port_towards_different_servers() {
        let servers = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let client = TcpListener::bind("127.0.0.9:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let source = Source::default();
        let origin = Origin {
            source: &source,
            local: Some(client),
        };
        let streams = servers.each_ref().map(|server| {
            let socket = scratch(true).unwrap();
            origin.apply(&socket, true).unwrap();
            socket
                .connect(&server.local_addr().unwrap().into())
                .unwrap();
            TcpStream::from(socket)
        });
        for stream in &streams {
            assert_eq!(stream.local_addr().unwrap(), client);
        }
    }

    #[test]
    fn the_refused_step_is_named() {
        let step = |source: Source| source.try_out(true).unwrap_err().step;
        // TEST-NET-1: no host has it.
        let elsewhere = from("192.0.2.1");
        assert_eq!(step(elsewhere), Step::Address("192.0.2.1".parse().unwrap()));
        let interface = Some("nowhere0".to_owned());
        assert_eq!(
            step(Source {
                interface,
                ..from("127.0.0.1")
            }),
            Step::Interface
        );
        let congestion = Some("nothing".to_owned());
        assert_eq!(
            step(Source {
                congestion,
                ..from("127.0.0.1")
            }),
            Step::Congestion
        );
    }
}
