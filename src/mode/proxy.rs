//! The PROXY protocol on both sides: who the client is, told by whoever is in front of us, and told on to the
//! servers.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::peek::{self, Limits, Peeked};
use crate::core::Signal;
use crate::log::SessionId;
use crate::outcome::{Cause, CloseReason, Side, Stage};
use crate::policy::access::{Access, Action};
use crate::sys::socket;
use crate::wire::name::ServerName;
use crate::wire::proxy::{
    self, Addresses, Command, HEADER_MAX_BYTES, Header, Mode, ProxyError, Tlvs, V2Options,
};

/// What a listener wants of its clients.
#[derive(Debug)]
pub struct Required {
    /// Which versions.
    pub mode: Mode,
    /// For the whole header.
    pub timeout: Duration,
    /// Who may send one; [`Action::Deny`] for everybody else.
    pub trusted: Access,
}

/// Why there is no header.
#[derive(Debug)]
pub struct Refused {
    /// For the record.
    pub reason: CloseReason,
    /// What is wrong with the header, if there is one.
    pub error: Option<ProxyError>,
}

/// Takes the header off the stream. On error the socket is closed with a reset.
///
/// # Errors
/// A sender that is not trusted, and a header that is missing, malformed, cut short or late.
pub async fn receive(
    downstream: OwnedFd,
    peer: Option<SocketAddr>,
    required: &Required,
    stop: &Signal,
) -> Result<(OwnedFd, Header), Refused> {
    // A unix socket's clients are this host's: its file mode says who may.
    let is_trusted = peer.is_none_or(|peer| required.trusted.decide(peer.ip()) == Action::Allow);
    if !is_trusted {
        socket::linger_zero(downstream.as_fd());
        let (side, cause) = (Side::Downstream, Cause::ProxyUntrusted);
        return Err(Refused {
            reason: CloseReason::new(side, Stage::Accept, cause),
            error: None,
        });
    }
    let limits = Limits {
        timeout: required.timeout,
        max_bytes: HEADER_MAX_BYTES,
        stop,
    };
    let parse = |bytes: &[u8]| proxy::parse(required.mode, bytes);
    let peeked = peek::peek(downstream, limits, parse).await;
    let (downstream, mut peeked) = peeked.map_err(|reason| Refused {
        reason,
        error: None,
    })?;
    if let Peeked::Done(header, used) = peeked {
        let mut bytes = vec![0; used];
        // They were there a moment ago: only a reset takes them away.
        let took = socket::take_bytes(downstream.as_fd(), &mut bytes);
        if took.is_ok_and(|took| took == used) {
            return Ok((downstream, header));
        }
        peeked = Peeked::Reset;
    }
    let error = match &peeked {
        Peeked::Bad(error) => Some(*error),
        _ => None,
    };
    let (malformed, late) = (Cause::ProxyMalformed, Cause::ProxyTimeout);
    let reason = peeked.refusal(downstream.as_fd(), malformed, late);
    Err(Refused { reason, error })
}

/// What an upstream's servers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// In which form.
    pub version: proxy::Version,
    /// Version 2: with a checksum.
    pub crc32c: bool,
    /// Version 2: with what the header that came in said of the name, the protocol and the id.
    pub pass_tlvs: bool,
    /// Version 2: with the session's id in the access log, unless an id came in and is passed on.
    pub unique_id: bool,
}

/// What is known of a client.
#[derive(Clone, Copy, Debug)]
pub struct Introduced<'a> {
    /// Its address; `None` for a unix socket.
    pub client: Option<SocketAddr>,
    /// The header that came in.
    pub received: Option<&'a Header>,
    /// The name that it asked for.
    pub name: Option<&'a ServerName>,
    /// The protocol of ALPN by which it was routed.
    pub protocol: Option<&'a [u8]>,
    /// What its session is called.
    pub id: SessionId,
}

impl Told {
    /// The bytes that go before the client's. Addresses are those of the header that came in, else those of
    /// the client's socket; a client of a unix socket is told as unknown. The name that the client asked for
    /// goes along if the header that came in told none, and so does the protocol by which it was routed.
    pub fn header(self, introduced: Introduced<'_>, downstream: BorrowedFd<'_>) -> Vec<u8> {
        let Introduced {
            client,
            received,
            name,
            protocol,
            id,
        } = introduced;
        let command = received.map_or(Command::Proxy, |header| header.command);
        let addresses = match received {
            Some(header) if header.addresses != Addresses::Unknown => header.addresses.clone(),
            _ => match (client, socket::local_address(&downstream)) {
                (Some(source), Ok(Some(destination))) => Addresses::Inet {
                    source,
                    destination,
                },
                _ => Addresses::Unknown,
            },
        };
        if self.version == proxy::Version::V1 {
            return proxy::encode_v1(&addresses);
        }
        let own = Tlvs {
            unique_id: self.unique_id.then(|| id.to_string().into_bytes()),
            ..Tlvs::default()
        };
        let options = |tlvs| V2Options {
            command,
            addresses: &addresses,
            tlvs,
            crc32c: self.crc32c,
        };
        let mut passed = own.clone();
        if self.pass_tlvs {
            passed = received.map_or(Tlvs::default(), |it| it.tlvs.clone());
            let received_id = passed.unique_id.filter(|id| !id.is_empty());
            passed.unique_id = received_id.or_else(|| own.unique_id.clone());
            let name = || name.map(|name| name.as_str().to_owned());
            passed.authority = passed.authority.or_else(name);
            passed.alpn = passed.alpn.or_else(|| protocol.map(<[u8]>::to_vec));
        }
        // TLVs that fitted a header once may not fit beside a checksum or an id: then they stay out.
        let id_alone = Tlvs {
            unique_id: passed.unique_id.clone(),
            ..Tlvs::default()
        };
        proxy::encode_v2(options(&passed))
            .or_else(|_| proxy::encode_v2(options(&id_alone)))
            .unwrap_or_else(|_| proxy::encode_v1(&Addresses::Unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::CoreId;
    use crate::wire::Parsed;

    #[test]
    fn what_came_in_makes_room_for_the_id_if_both_are_too_long() {
        let longest_fitting = HEADER_MAX_BYTES - 28 - 3;
        let with_id = longest_fitting - 3 - "000000ab-1-2".len();
        let own = b"000000ab-1-2".to_vec();
        let theirs = b"theirs".to_vec();
        for (length, received_id, is_kept, expected_id) in [
            (longest_fitting, None, false, &own),
            (with_id, None, true, &own),
            // An id that came in goes on, if it is one.
            (longest_fitting, Some(theirs.clone()), false, &theirs),
            (with_id, Some(theirs.clone()), true, &theirs),
            (with_id, Some(Vec::new()), true, &own),
        ] {
            let received = Header {
                version: proxy::Version::V2,
                command: Command::Proxy,
                addresses: Addresses::Inet {
                    source: "192.0.2.1:1".parse().expect("an address"),
                    destination: "192.0.2.2:2".parse().expect("an address"),
                },
                tlvs: Tlvs {
                    alpn: Some(vec![b'x'; length]),
                    unique_id: received_id,
                    ..Tlvs::default()
                },
            };
            let told = Told {
                version: proxy::Version::V2,
                crc32c: false,
                pass_tlvs: true,
                unique_id: true,
            };
            let introduced = Introduced {
                client: None,
                received: Some(&received),
                name: None,
                protocol: None,
                id: SessionId {
                    nonce: 0xab,
                    core: CoreId(1),
                    sequence: 2,
                },
            };
            let (socket, _) = std::os::unix::net::UnixStream::pair().expect("a pair");
            let header = told.header(introduced, socket.as_fd());
            let Parsed::Done { value, used } = proxy::parse(Mode::V2, &header) else {
                panic!("a header of {} bytes cannot be read", header.len());
            };
            assert_eq!(used, header.len());
            assert_eq!(value.tlvs.unique_id.as_ref(), Some(expected_id), "{length}");
            assert_eq!(value.tlvs.alpn, received.tlvs.alpn.filter(|_| is_kept));
        }
    }
}
