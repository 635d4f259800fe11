//! The PROXY protocol on both sides: who the client is, told by whoever is in front of us, and told on to the
//! servers.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::peek::{self, Limits, Peeked};
use crate::config::model::PassedTlvs;
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
    /// Version 2: what goes along of what is known of the client.
    pub pass_tlvs: PassedTlvs,
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
        let received = received.map(|header| &header.tlvs);
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
        let mut passed = own;
        if self.pass_tlvs.authority {
            let found = || name.map(|name| name.as_str().to_owned());
            passed.authority = received.and_then(|it| it.authority.clone()).or_else(found);
        }
        if self.pass_tlvs.alpn {
            let found = || protocol.map(<[u8]>::to_vec);
            passed.alpn = received.and_then(|it| it.alpn.clone()).or_else(found);
        }
        if self.pass_tlvs.unique_id {
            let received = received.and_then(|it| it.unique_id.clone());
            let received = received.filter(|id| !id.is_empty());
            passed.unique_id = received.or(passed.unique_id);
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
    use crate::wire::name::Host;

    #[test]
    fn only_the_chosen_tlvs_are_told_on() {
        let addresses = || Addresses::Inet {
            source: "192.0.2.1:1".parse().expect("an address"),
            destination: "192.0.2.2:2".parse().expect("an address"),
        };
        let theirs = Tlvs {
            alpn: Some(b"h2".to_vec()),
            authority: Some("theirs.example".to_owned()),
            unique_id: Some(b"theirs".to_vec()),
        };
        let received = Header {
            version: proxy::Version::V2,
            command: Command::Proxy,
            addresses: addresses(),
            tlvs: theirs.clone(),
        };
        let bare = Header {
            tlvs: Tlvs::default(),
            ..received.clone()
        };
        let found = Tlvs {
            alpn: Some(b"http/1.1".to_vec()),
            authority: Some("found.example".to_owned()),
            unique_id: None,
        };
        let Some(Host::Name(name)) = Host::parse(b"found.example") else {
            panic!("it is a name");
        };
        let (socket, _) = std::os::unix::net::UnixStream::pair().expect("a pair");
        for choice in 0..8 {
            let chosen = PassedTlvs {
                authority: choice & 1 != 0,
                alpn: choice & 2 != 0,
                unique_id: choice & 4 != 0,
            };
            let told = Told {
                version: proxy::Version::V2,
                crc32c: false,
                pass_tlvs: chosen,
                unique_id: false,
            };
            for (received, known) in [(&received, &theirs), (&bare, &found)] {
                let introduced = Introduced {
                    client: None,
                    received: Some(received),
                    name: Some(&name),
                    protocol: Some(b"http/1.1"),
                    id: SessionId {
                        nonce: 1,
                        core: CoreId(0),
                        sequence: 0,
                    },
                };
                let header = told.header(introduced, socket.as_fd());
                let Parsed::Done { value, .. } = proxy::parse(Mode::V2, &header) else {
                    panic!("a header that cannot be read");
                };
                let expected = Tlvs {
                    alpn: known.alpn.clone().filter(|_| chosen.alpn),
                    authority: known.authority.clone().filter(|_| chosen.authority),
                    unique_id: known.unique_id.clone().filter(|_| chosen.unique_id),
                };
                assert_eq!(value.tlvs, expected, "{chosen:?}");
            }
        }
    }

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
                pass_tlvs: PassedTlvs::ALL,
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
