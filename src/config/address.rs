//! Which addresses make sense to listen on and to connect to, and when two of them collide.
//!
//! Pure comparisons of what is written: no name is resolved and no interface is looked at.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::model::ServerAddress;
use crate::units::{Address, HostPort, UnitError, UnitErrorKind, is_host_name};

/// Stands before the name of a service.
const SERVICE_PREFIX: &str = "srv:";

/// An address that can be written but not used: the problem and the remedy.
pub(super) type Unusable = (&'static str, &'static str);

impl FromStr for ServerAddress {
    type Err = UnitError;

    /// `ip:port`, `[ip]:port`, `host:port`, `unix:/path` or `srv:NAME`.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text.starts_with("unix:") || text.parse::<SocketAddr>().is_ok() {
            return text.parse().map(ServerAddress::Known);
        }
        if let Some(name) = text.strip_prefix(SERVICE_PREFIX) {
            if !is_host_name(name.strip_suffix('.').unwrap_or(name)) {
                return Err(UnitError::new(text, UnitErrorKind::BadService));
            }
            return Ok(ServerAddress::Service {
                name: name.to_owned(),
            });
        }
        let HostPort { host, port } = text.parse()?;
        Ok(ServerAddress::Named { host, port })
    }
}

impl fmt::Display for ServerAddress {
    /// As written in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerAddress::Known(address) => write!(f, "{address}"),
            ServerAddress::Named { host, port } => write!(f, "{host}:{port}"),
            ServerAddress::Service { name } => write!(f, "{SERVICE_PREFIX}{name}"),
        }
    }
}

/// Whether an address can be listened on.
pub(super) fn check_bind(address: &Address) -> Result<(), Unusable> {
    let Address::Tcp(socket) = address else {
        return Ok(());
    };
    if is_v4_mapped(socket.ip()) {
        // Listeners on IPv6 are IPV6_V6ONLY: this one would never see a client.
        return Err((
            "is an IPv4 address in IPv6 form",
            "write the IPv4 address itself",
        ));
    }
    if is_group(socket.ip()) {
        return Err((
            "is a multicast or broadcast address",
            "listen on an address of one host",
        ));
    }
    Ok(())
}

/// Whether an address can be connected to.
pub(super) fn check_server(address: &ServerAddress) -> Result<(), Unusable> {
    const NO_PORT: Unusable = ("has port 0, which no server has", "write the server's port");
    match address {
        ServerAddress::Named { port: 0, .. } => Err(NO_PORT),
        ServerAddress::Known(Address::Tcp(socket)) => {
            if socket.port() == 0 {
                return Err(NO_PORT);
            }
            if is_v4_mapped(socket.ip()) {
                return Err((
                    "is an IPv4 address in IPv6 form",
                    "write the IPv4 address itself",
                ));
            }
            if is_group(socket.ip()) {
                return Err((
                    "is a multicast or broadcast address",
                    "write the address of one server",
                ));
            }
            if socket.ip().is_unspecified() {
                return Err((
                    "is an address to listen on, not to connect to",
                    "write 127.0.0.1 or [::1] for this host",
                ));
            }
            Ok(())
        }
        ServerAddress::Named { .. }
        | ServerAddress::Service { .. }
        | ServerAddress::Known(Address::Unix(_)) => Ok(()),
    }
}

/// Whether a server can have this address, where no configuration says so but the answer of a name server.
pub fn can_be_server(address: SocketAddr) -> bool {
    check_server(&ServerAddress::Known(Address::Tcp(address))).is_ok()
}

/// Whether connections can come from an address; `None`: they can.
pub(super) fn unusable_source(ip: IpAddr) -> Option<Unusable> {
    if is_v4_mapped(ip) {
        return Some((
            "is an IPv4 address in IPv6 form",
            "write the IPv4 address itself",
        ));
    }
    if is_group(ip) {
        return Some((
            "is a multicast or broadcast address",
            "write an address of this host",
        ));
    }
    if ip.is_unspecified() {
        return Some((
            "leaves the choice to the kernel",
            "write an address of this host, or remove the key",
        ));
    }
    if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        // It would need the number of an interface with it.
        return Some((
            "is a link-local address",
            "write a global or unique local address of this host",
        ));
    }
    None
}

fn is_v4_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

fn is_group(ip: IpAddr) -> bool {
    ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
}

/// Whether two listeners want the same address. `0.0.0.0:P` takes every IPv4 address; `[::]:P` takes
/// every IPv6 address and, being `IPV6_V6ONLY`, no other. Port 0 never collides: the kernel chooses.
pub(super) fn binds_collide(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) => {
            one.port() != 0
                && one.port() == other.port()
                && one.is_ipv4() == other.is_ipv4()
                && (one.ip() == other.ip()
                    || one.ip().is_unspecified()
                    || other.ip().is_unspecified())
        }
        (Address::Unix(one), Address::Unix(other)) => one == other,
        (Address::Tcp(_), Address::Unix(_)) | (Address::Unix(_), Address::Tcp(_)) => false,
    }
}

/// Whether connecting to `server` certainly reaches the listener on `bind`.
pub(super) fn is_loop(bind: &Address, server: &ServerAddress) -> bool {
    match (bind, server) {
        (Address::Tcp(bind), ServerAddress::Known(Address::Tcp(server))) => {
            bind.port() == server.port() && reaches(bind.ip(), server.ip())
        }
        (Address::Tcp(bind), ServerAddress::Named { host, port }) => {
            bind.port() == *port
                && host.trim_end_matches('.').eq_ignore_ascii_case("localhost")
                && (bind.ip().is_loopback() || bind.ip().is_unspecified())
        }
        (Address::Unix(bind), ServerAddress::Known(Address::Unix(server))) => bind == server,
        (
            Address::Tcp(_),
            ServerAddress::Known(Address::Unix(_)) | ServerAddress::Service { .. },
        )
        | (Address::Unix(_), _) => false,
    }
}

/// Of the addresses that a wildcard takes, only the loopback ones are known without asking the host.
fn reaches(bind: IpAddr, server: IpAddr) -> bool {
    bind == server
        || (bind.is_unspecified() && bind.is_ipv4() == server.is_ipv4() && server.is_loopback())
}

/// Whether two servers of one upstream are the same one.
pub(super) fn same_server(one: &ServerAddress, other: &ServerAddress) -> bool {
    match (one, other) {
        (
            ServerAddress::Named {
                host: one,
                port: one_port,
            },
            ServerAddress::Named {
                host: other,
                port: other_port,
            },
        ) => one_port == other_port && same_name(one, other),
        (ServerAddress::Service { name: one }, ServerAddress::Service { name: other }) => {
            same_name(one, other)
        }
        _ => one == other,
    }
}

fn same_name(one: &str, other: &str) -> bool {
    let absolute = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    absolute(one) == absolute(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(text: &str) -> Address {
        text.parse().expect(text)
    }

    fn server(text: &str) -> ServerAddress {
        text.parse().expect(text)
    }

    #[test]
    fn wildcards_collide_within_their_family_only() {
        for (one, other, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "0.0.0.0:1", true),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("[::]:1", "[::1]:1", true),
            ("[::]:1", "0.0.0.0:1", false),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("0.0.0.0:0", "0.0.0.0:0", false),
            ("unix:/a", "unix:/a", true),
            ("unix:/a//b", "unix:/a/b", true),
            ("unix:/a", "unix:/b", false),
            ("unix:/a", "127.0.0.1:1", false),
        ] {
            assert_eq!(
                binds_collide(&bind(one), &bind(other)),
                expected,
                "{one} {other}"
            );
        }
    }

    #[test]
    fn a_loop_is_named_only_where_it_is_certain() {
        for (listener, to, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "localhost:1", true),
            ("[::]:1", "LocalHost.:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("0.0.0.0:1", "192.0.2.1:1", false),
            ("0.0.0.0:1", "app:1", false),
            ("192.0.2.1:1", "localhost:1", false),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("unix:/a", "unix:/a", true),
            ("unix:/a", "127.0.0.1:1", false),
            ("127.0.0.1:1", "unix:/a", false),
        ] {
            assert_eq!(
                is_loop(&bind(listener), &server(to)),
                expected,
                "{listener} {to}"
            );
        }
    }

    #[test]
    fn names_are_equal_without_case() {
        assert!(same_server(&server("App:1"), &server("app.:1")));
        assert!(!same_server(&server("app:1"), &server("app:2")));
        assert!(!same_server(&server("127.0.0.1:1"), &server("localhost:1")));
    }
}
