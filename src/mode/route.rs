//! Routing by the name that a client asks for, without ending its TLS: the SNI of a ClientHello, or the Host of
//! an HTTP/1 request; and before that by the protocols that a ClientHello offers (ALPN). What is looked at stays
//! in the socket and is forwarded unchanged.
//!
//! Protocols come first because `acme-tls/1` (RFC 8737) is asked for under the very name that is to get a
//! certificate: the name alone would lead it to the server that has none yet.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::peek::{self, Limits, Peeked};
use crate::core::Signal;
use crate::outcome::{Cause, CloseReason};
use crate::policy::names::Names;
use crate::units::UpstreamId;
use crate::wire::Parsed;
use crate::wire::client_hello::{self, HELLO_MAX_BYTES, Hello, HelloError};
use crate::wire::http_head::{self, HEAD_MAX_BYTES, HeadError};
use crate::wire::name::{Host, ServerName};

/// What the name is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The server name of a TLS ClientHello (RFC 6066).
    Sni,
    /// The host of an HTTP/1 request (RFC 9112).
    Host,
}

/// Where the sessions of a listener go.
#[derive(Debug)]
pub struct Routes {
    /// What the name is taken from.
    pub by: By,
    /// Protocols of ALPN, tried before the names; none by host.
    pub protocols: HashMap<Vec<u8>, UpstreamId>,
    /// Names, and wildcards.
    pub names: Names<UpstreamId>,
    /// For clients that ask for no name; `None`: where the listener's other sessions go.
    pub no_name: Option<UpstreamId>,
    /// For clients that speak another protocol.
    pub other_protocol: Option<UpstreamId>,
    /// For the whole of what is looked at.
    pub timeout: Duration,
}

/// A client and where it goes.
#[derive(Debug)]
pub struct Routed {
    /// The client.
    pub downstream: OwnedFd,
    /// Where it goes, if its name or the lack of one says so.
    pub upstream: Option<UpstreamId>,
    /// What it asked for.
    pub name: Option<ServerName>,
    /// The protocol that decided.
    pub protocol: Option<Vec<u8>>,
}

/// Why a client goes nowhere.
#[derive(Debug)]
pub struct Unrouted {
    /// For the record.
    pub reason: CloseReason,
    /// The word for what is wrong with what it sent, if it is that.
    pub error: Option<&'static str>,
}

/// What the beginning of the stream says.
struct Asked {
    upstream: Option<UpstreamId>,
    name: Option<ServerName>,
    protocol: Option<Vec<u8>>,
}

impl Routes {
    fn by_hello(&self, hello: Hello) -> Asked {
        let mut offered = hello.alpn.iter();
        // The client's order is its preference.
        let found = offered.find_map(|it| self.protocols.get_key_value(it));
        let asked = self.by_name(hello.server_name);
        match found {
            None => asked,
            Some((protocol, upstream)) => Asked {
                upstream: Some(*upstream),
                protocol: Some(protocol.clone()),
                ..asked
            },
        }
    }

    fn by_name(&self, name: Option<ServerName>) -> Asked {
        let upstream = match &name {
            Some(name) => self.names.get(name.as_str()),
            None => self.no_name,
        };
        Asked {
            upstream,
            name,
            protocol: None,
        }
    }
}

/// Finds out where a client goes. On error its socket is closed with a reset.
///
/// # Errors
/// What it sent is malformed, cut short, too long or late.
pub async fn route(
    downstream: OwnedFd,
    routes: &Routes,
    stop: &Signal,
) -> Result<Routed, Unrouted> {
    let limits = Limits {
        timeout: routes.timeout,
        max_bytes: match routes.by {
            By::Sni => HELLO_MAX_BYTES,
            By::Host => HEAD_MAX_BYTES,
        },
        stop,
    };
    let parse = |bytes: &[u8]| asked(routes, bytes);
    let (downstream, peeked) = match peek::peek(downstream, limits, parse).await {
        Ok(peeked) => peeked,
        Err(reason) => {
            return Err(Unrouted {
                reason,
                error: None,
            });
        }
    };
    let error = match peeked {
        Peeked::Done(asked, _) => {
            return Ok(Routed {
                downstream,
                upstream: asked.upstream,
                name: asked.name,
                protocol: asked.protocol,
            });
        }
        Peeked::Bad(error) => Some(error),
        _ => None,
    };
    let (malformed, late) = (Cause::RouteMalformed, Cause::RouteTimeout);
    let reason = peeked.refusal(downstream.as_fd(), malformed, late);
    Err(Unrouted { reason, error })
}

fn asked(routes: &Routes, bytes: &[u8]) -> Parsed<Asked, &'static str> {
    let done = |value| Parsed::Done { value, used: 0 };
    let other = || Asked {
        upstream: routes.other_protocol,
        name: None,
        protocol: None,
    };
    match routes.by {
        By::Sni => match client_hello::peek(bytes, HELLO_MAX_BYTES) {
            Parsed::Done { value, .. } => done(routes.by_hello(value)),
            Parsed::NeedMore => Parsed::NeedMore,
            Parsed::Bad(HelloError::NotTls) => done(other()),
            Parsed::Bad(error) => Parsed::Bad(error.as_str()),
        },
        By::Host => match http_head::peek(bytes, HEAD_MAX_BYTES) {
            Parsed::Done { value, .. } => done(routes.by_name(match value.host {
                Some(Host::Name(name)) => Some(name),
                Some(Host::Ip(_)) | None => None,
            })),
            Parsed::NeedMore => Parsed::NeedMore,
            Parsed::Bad(HeadError::NotHttp | HeadError::Http2) => done(other()),
            Parsed::Bad(error) => Parsed::Bad(error.as_str()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::UpstreamId;

    fn upstream(routes: &Routes, name: Option<&str>, alpn: &[&[u8]]) -> Option<u16> {
        let name = name.and_then(|name| match Host::parse(name.as_bytes()) {
            Some(Host::Name(name)) => Some(name),
            _ => None,
        });
        let asked = routes.by_hello(Hello {
            server_name: name.clone(),
            alpn: alpn.iter().map(|it| it.to_vec()).collect(),
            has_ech: false,
        });
        assert_eq!(asked.name, name, "the name is told whatever decides");
        asked.upstream.map(|it| it.0)
    }

    #[test]
    fn the_first_protocol_of_the_client_that_has_an_entry_wins_over_every_name() {
        let mut names = Names::default();
        names.insert("a.example", UpstreamId(1));
        let protocols = [
            (b"acme-tls/1".to_vec(), 2),
            (b"h2".to_vec(), 3),
            (vec![0, 255], 4),
        ];
        let routes = Routes {
            by: By::Sni,
            protocols: protocols.map(|(it, to)| (it, UpstreamId(to))).into(),
            names,
            no_name: Some(UpstreamId(5)),
            other_protocol: None,
            timeout: Duration::ZERO,
        };
        let name = Some("a.example");
        for (name, alpn, expected) in [
            (name, &[][..], Some(1)),
            (name, &[b"acme-tls/1".as_slice()][..], Some(2)),
            (Some("b.example"), &[b"acme-tls/1"], Some(2)),
            (None, &[b"acme-tls/1"], Some(2)),
            (name, &[b"h2", b"acme-tls/1"], Some(3)),
            (name, &[b"acme-tls/1", b"h2"], Some(2)),
            (name, &[b"http/1.1", b"h2"], Some(3)),
            (name, &[&[0x0A, 0x0A], &[0, 255]], Some(4)),
            (name, &[b"H2", b"h2c", b"h", b"\x1A\x1A"], Some(1)),
            (Some("b.example"), &[b"http/1.1"], None),
            (None, &[b"http/1.1"], Some(5)),
        ] {
            assert_eq!(upstream(&routes, name, alpn), expected, "{name:?} {alpn:?}");
        }
    }
}
