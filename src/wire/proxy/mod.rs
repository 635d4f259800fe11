//! The PROXY protocol: how a proxy tells the next one who the client is.
//!
//! Source: "The PROXY protocol, Versions 1 & 2" (HAProxy's `doc/proxy-protocol.txt`, revision 2020/03/05);
//! section numbers below are its. [`parse`] reads a header, [`encode_v1`] and [`encode_v2`] write one.
//! Whether a peer may send a header at all is not decided here: whoever calls [`parse`] has already decided
//! that one must come (section 2: never guess).
//!
//! Where the specification leaves a choice:
//!
//! | case | answer |
//! |---|---|
//! | v1 `UNKNOWN` | [`Command::Proxy`] without addresses; the rest of the line is ignored, whatever it is |
//! | v1 `TCP6` with a dotted tail (`::ffff:192.0.2.1`) | accepted: `inet_ntop(3)` writes it; never sent |
//! | v2 `LOCAL` | family, addresses and TLVs are skipped unread, as section 2.2 asks |
//! | v2 `PROXY` with an unspecified family or transport | no addresses; the block is skipped unread, because without a known address length nobody can say where TLVs begin |
//! | v2 datagrams | accepted; the addresses count |
//! | v2 header longer than [`HEADER_MAX_BYTES`] | [`ProxyError::Length`], known from the first 16 bytes |
//! | TLVs that do not fill the header exactly | [`ProxyError::Tlv`] |
//! | `ALPN`, `AUTHORITY`, `UNIQUE_ID` or `CRC32C` twice | [`ProxyError::Tlv`]: nothing tells which one counts |
//! | `AUTHORITY` that is not UTF-8 or contains NUL, `UNIQUE_ID` over 128 bytes | [`ProxyError::Tlv`] |
//! | `SSL` | its inner TLVs are walked for their bounds, nothing of it is kept |
//! | other TLVs | passed over |
//! | unix path | up to the first NUL; an abstract one keeps its leading NUL and loses its trailing ones |

mod crc32c;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use super::Parsed;
pub use v1::{V1_MAX_BYTES, encode_v1};
pub use v2::{
    EncodeError, HEADER_MAX_BYTES, UNIQUE_ID_MAX_BYTES, UNIX_ADDRESS_BYTES, V2Options, encode_v2,
};

/// Which versions of the header are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Version 1 only.
    V1,
    /// Version 2 only.
    V2,
    /// Either; the first byte tells which.
    Any,
}

/// The version of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// On whose behalf a connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// The sender's own, such as a health check: the socket's addresses are the true ones.
    Local,
    /// A client's.
    Proxy,
}

/// The two ends of the original connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// Not told: the socket's own addresses stand.
    #[default]
    Unknown,
    /// IPv4 or IPv6.
    Inet {
        /// The client.
        source: SocketAddr,
        /// Where the client connected to.
        destination: SocketAddr,
    },
    /// Paths of unix sockets as bytes: empty for an unnamed socket, a leading NUL for an abstract one; at most
    /// [`UNIX_ADDRESS_BYTES`].
    Unix {
        /// The client.
        source: Vec<u8>,
        /// Where the client connected to.
        destination: Vec<u8>,
    },
}

/// The TLVs of a version 2 header that are kept (section 2.2, PP2_TYPE_*).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tlvs {
    /// PP2_TYPE_ALPN: the protocol spoken inside, as sent.
    pub alpn: Option<Vec<u8>>,
    /// PP2_TYPE_AUTHORITY: the name the client asked for, as sent (not in lower case); without NUL.
    pub authority: Option<String>,
    /// PP2_TYPE_UNIQUE_ID: opaque, at most [`UNIQUE_ID_MAX_BYTES`].
    pub unique_id: Option<Vec<u8>>,
}

/// A PROXY header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// How it was written.
    pub version: Version,
    /// On whose behalf the connection was made.
    pub command: Command,
    /// The original ends; [`Addresses::Unknown`] where `command` is [`Command::Local`].
    pub addresses: Addresses,
    /// Empty for version 1.
    pub tlvs: Tlvs,
}

impl Header {
    /// The client's address, if it was told and is an IP address.
    pub fn source(&self) -> Option<SocketAddr> {
        match self.addresses {
            Addresses::Inet { source, .. } => Some(source),
            _ => None,
        }
    }

    /// The address that the client connected to, if it was told and is an IP address.
    pub fn destination(&self) -> Option<SocketAddr> {
        match self.addresses {
            Addresses::Inet { destination, .. } => Some(destination),
            _ => None,
        }
    }
}

/// Why bytes are no PROXY header that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[repr(u8)]
pub enum ProxyError {
    /// They begin like no header of an accepted version.
    #[error("no PROXY header of an accepted version")]
    Signature,
    /// The binary signature is followed by a version other than 2.
    #[error("the version of the PROXY header is not 2")]
    Version,
    /// A command other than LOCAL and PROXY.
    #[error("the command of the PROXY header is unknown")]
    Command,
    /// A family or transport that the specification does not know.
    #[error("the address family of the PROXY header is unknown")]
    Family,
    /// v1: no CRLF within 107 bytes. v2: too short for its addresses, or longer than is accepted.
    #[error("the length of the PROXY header is out of bounds")]
    Length,
    /// v1: the addresses or ports are not written as they must be.
    #[error("the addresses of the PROXY header are malformed")]
    Address,
    /// v2: the TLVs do not add up, come twice, or hold what they must not.
    #[error("the TLVs of the PROXY header are malformed")]
    Tlv,
    /// v2: the checksum does not match.
    #[error("the checksum of the PROXY header is wrong")]
    Crc,
}

impl ProxyError {
    /// Every error, in the order of the discriminants.
    pub const ALL: [ProxyError; 8] = [
        ProxyError::Signature,
        ProxyError::Version,
        ProxyError::Command,
        ProxyError::Family,
        ProxyError::Length,
        ProxyError::Address,
        ProxyError::Tlv,
        ProxyError::Crc,
    ];

    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            ProxyError::Signature => "proxy_signature",
            ProxyError::Version => "proxy_version",
            ProxyError::Command => "proxy_command",
            ProxyError::Family => "proxy_family",
            ProxyError::Length => "proxy_length",
            ProxyError::Address => "proxy_address",
            ProxyError::Tlv => "proxy_tlv",
            ProxyError::Crc => "proxy_crc",
        }
    }
}

/// Reads the header at the beginning of `input`.
///
/// What follows the header is left alone. At most [`HEADER_MAX_BYTES`] are ever needed, [`V1_MAX_BYTES`] for
/// version 1 alone: with that many at hand the answer is not [`Parsed::NeedMore`].
///
/// # Errors
/// [`Parsed::Bad`] as early as it can be known: the signature at the first wrong byte.
pub fn parse(mode: Mode, input: &[u8]) -> Parsed<Header, ProxyError> {
    let Some(first) = input.first() else {
        return Parsed::NeedMore;
    };
    match (mode, *first) {
        (Mode::V1 | Mode::Any, b'P') => v1::parse(input),
        (Mode::V2 | Mode::Any, b'\r') => v2::parse(input),
        _ => Parsed::Bad(ProxyError::Signature),
    }
}

/// How far `input` agrees with a fixed beginning.
enum Prefix {
    /// All of it is there.
    Whole,
    /// Nothing differs yet.
    Part,
    /// A byte differs.
    Other,
}

fn compare_prefix(input: &[u8], expected: &[u8]) -> Prefix {
    let common = input.len().min(expected.len());
    if input[..common] != expected[..common] {
        Prefix::Other
    } else if common == expected.len() {
        Prefix::Whole
    } else {
        Prefix::Part
    }
}
