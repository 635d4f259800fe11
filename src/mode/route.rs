//! Routing by the name that a client asks for, without ending its TLS: the SNI of a ClientHello, or the Host of
//! an HTTP/1 request. What is looked at stays in the socket and is forwarded unchanged.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::peek::{self, Limits, Peeked};
use crate::core::Signal;
use crate::outcome::{Cause, CloseReason};
use crate::policy::names::Names;
use crate::units::UpstreamId;
use crate::wire::Parsed;
use crate::wire::client_hello::{self, HELLO_MAX_BYTES, HelloError};
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
enum Asked {
    Name(ServerName),
    NoName,
    OtherProtocol,
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
    let parse = |bytes: &[u8]| asked(routes.by, bytes);
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
            let (upstream, name) = match asked {
                Asked::Name(name) => (routes.names.get(name.as_str()), Some(name)),
                Asked::NoName => (routes.no_name, None),
                Asked::OtherProtocol => (routes.other_protocol, None),
            };
            return Ok(Routed {
                downstream,
                upstream,
                name,
            });
        }
        Peeked::Bad(error) => Some(error),
        _ => None,
    };
    let (malformed, late) = (Cause::RouteMalformed, Cause::RouteTimeout);
    let reason = peeked.refusal(downstream.as_fd(), malformed, late);
    Err(Unrouted { reason, error })
}

fn asked(by: By, bytes: &[u8]) -> Parsed<Asked, &'static str> {
    let done = |value| Parsed::Done { value, used: 0 };
    match by {
        By::Sni => match client_hello::peek(bytes, HELLO_MAX_BYTES) {
            Parsed::Done { value, .. } => {
                done(value.server_name.map_or(Asked::NoName, Asked::Name))
            }
            Parsed::NeedMore => Parsed::NeedMore,
            Parsed::Bad(HelloError::NotTls) => done(Asked::OtherProtocol),
            Parsed::Bad(error) => Parsed::Bad(error.as_str()),
        },
        By::Host => match http_head::peek(bytes, HEAD_MAX_BYTES) {
            Parsed::Done { value, .. } => done(match value.host {
                Some(Host::Name(name)) => Asked::Name(name),
                Some(Host::Ip(_)) | None => Asked::NoName,
            }),
            Parsed::NeedMore => Parsed::NeedMore,
            Parsed::Bad(HeadError::NotHttp | HeadError::Http2) => done(Asked::OtherProtocol),
            Parsed::Bad(error) => Parsed::Bad(error.as_str()),
        },
    }
}
