//! Version 2: binary, with TLVs (section 2.2).
//!
//! ```text
//! 0            12         13        14      16                       16 + length
//! │ signature  │ version  │ family  │ length│ addresses │ TLV │ TLV │
//! │            │ command  │ transp. │       │ 0/12/36/216     type(1) length(2) value
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::cursor::Cursor;
use super::v1::mapped;
use super::{
    Addresses, Command, Header, Parsed, Prefix, ProxyError, Tlvs, Version, compare_prefix, crc32c,
};

/// The longest header that is read or written, in bytes with its TLVs. The format would allow 65,551; a
/// sender that wants to be read in one segment stays below 536 (section 2).
pub const HEADER_MAX_BYTES: usize = 4096;
/// Longest unique id, in bytes (section 2.2.5).
pub const UNIQUE_ID_MAX_BYTES: usize = 128;
/// One unix address on the wire, in bytes, filled up with NUL.
pub const UNIX_ADDRESS_BYTES: usize = 108;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const FIXED_BYTES: usize = 16;
const VERSION: u8 = 2;

const COMMAND_LOCAL: u8 = 0;
const COMMAND_PROXY: u8 = 1;

const FAMILY_UNSPEC: u8 = 0;
const FAMILY_INET: u8 = 1;
const FAMILY_INET6: u8 = 2;
const FAMILY_UNIX: u8 = 3;

const TRANSPORT_UNSPEC: u8 = 0;
const TRANSPORT_STREAM: u8 = 1;
const TRANSPORT_DGRAM: u8 = 2;

const TYPE_ALPN: u8 = 0x01;
const TYPE_AUTHORITY: u8 = 0x02;
const TYPE_CRC32C: u8 = 0x03;
const TYPE_UNIQUE_ID: u8 = 0x05;
const TYPE_SSL: u8 = 0x20;

/// Type and length of a TLV, in bytes.
const TLV_HEAD_BYTES: usize = 3;
const CRC_BYTES: usize = 4;
/// The client field and the verify field before the inner TLVs of PP2_TYPE_SSL (section 2.2.6).
const SSL_HEAD_BYTES: usize = 5;

/// Reads a header that begins with CR.
pub(super) fn parse(input: &[u8]) -> Parsed<Header, ProxyError> {
    match compare_prefix(input, SIGNATURE) {
        Prefix::Whole => {}
        Prefix::Part => return Parsed::NeedMore,
        Prefix::Other => return Parsed::Bad(ProxyError::Signature),
    }
    match parse_whole(input) {
        Ok(Some((value, used))) => Parsed::Done { value, used },
        Ok(None) => Parsed::NeedMore,
        Err(error) => Parsed::Bad(error),
    }
}

/// Reads what follows the signature; `None` as long as something is missing.
fn parse_whole(input: &[u8]) -> Result<Option<(Header, usize)>, ProxyError> {
    let mut fixed = Cursor::new(&input[SIGNATURE.len()..]);
    let Some(version_command) = fixed.u8() else {
        return Ok(None);
    };
    if version_command >> 4 != VERSION {
        return Err(ProxyError::Version);
    }
    let command = match version_command & 0xF {
        COMMAND_LOCAL => Command::Local,
        COMMAND_PROXY => Command::Proxy,
        _ => return Err(ProxyError::Command),
    };
    let Some(family_transport) = fixed.u8() else {
        return Ok(None);
    };
    let (family, transport) = (family_transport >> 4, family_transport & 0xF);
    // Of a local connection even the family is ignored.
    if command == Command::Proxy && (family > FAMILY_UNIX || transport > TRANSPORT_DGRAM) {
        return Err(ProxyError::Family);
    }
    let Some(length) = fixed.u16() else {
        return Ok(None);
    };
    let used = FIXED_BYTES + usize::from(length);
    if used > HEADER_MAX_BYTES {
        return Err(ProxyError::Length);
    }
    let told =
        command == Command::Proxy && family != FAMILY_UNSPEC && transport != TRANSPORT_UNSPEC;
    if told && usize::from(length) < addresses_bytes(family) {
        return Err(ProxyError::Length);
    }
    let Some(header) = input.get(..used) else {
        return Ok(None);
    };
    let (addresses, tlvs) = if told {
        let mut block = Cursor::new(&header[FIXED_BYTES..]);
        let addresses = addresses_of(family, &mut block).ok_or(ProxyError::Length)?;
        (addresses, tlvs_of(header, block)?)
    } else {
        (Addresses::Unknown, Tlvs::default())
    };
    let value = Header {
        version: Version::V2,
        command,
        addresses,
        tlvs,
    };
    Ok(Some((value, used)))
}

/// The length of the address block of a family, in bytes.
const fn addresses_bytes(family: u8) -> usize {
    match family {
        FAMILY_INET => 12,
        FAMILY_INET6 => 36,
        FAMILY_UNIX => 2 * UNIX_ADDRESS_BYTES,
        _ => 0,
    }
}

fn addresses_of(family: u8, block: &mut Cursor<'_>) -> Option<Addresses> {
    let (source, destination): (IpAddr, IpAddr) = match family {
        FAMILY_INET => (
            Ipv4Addr::from(block.array::<4>()?).into(),
            Ipv4Addr::from(block.array::<4>()?).into(),
        ),
        FAMILY_INET6 => (
            Ipv6Addr::from(block.array::<16>()?).into(),
            Ipv6Addr::from(block.array::<16>()?).into(),
        ),
        FAMILY_UNIX => {
            return Some(Addresses::Unix {
                source: unix_path(block.take(UNIX_ADDRESS_BYTES)?),
                destination: unix_path(block.take(UNIX_ADDRESS_BYTES)?),
            });
        }
        _ => return Some(Addresses::Unknown),
    };
    Some(Addresses::Inet {
        source: SocketAddr::new(source, block.u16()?),
        destination: SocketAddr::new(destination, block.u16()?),
    })
}

/// The path in a field that is filled up with NUL. An abstract name (unix(7)) begins with NUL; its length is
/// not told, so that trailing NULs are taken for filling.
fn unix_path(field: &[u8]) -> Vec<u8> {
    let is_nul = |byte: &u8| *byte == 0;
    let end = if field.first().is_some_and(is_nul) {
        field
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1)
    } else {
        field.iter().position(is_nul).unwrap_or(field.len())
    };
    field[..end].to_vec()
}

/// Walks all TLVs; `block` is what follows the addresses of `header`.
fn tlvs_of(header: &[u8], mut block: Cursor<'_>) -> Result<Tlvs, ProxyError> {
    let mut tlvs = Tlvs::default();
    let mut checksum_at = None;
    while !block.is_empty() {
        let (kind, value) = next_tlv(&mut block)?;
        let first = match kind {
            TYPE_ALPN => tlvs.alpn.replace(value.to_vec()).is_none(),
            TYPE_AUTHORITY => {
                let text = str::from_utf8(value).map_err(|_| ProxyError::Tlv)?;
                if text.contains('\0') {
                    return Err(ProxyError::Tlv);
                }
                tlvs.authority.replace(text.to_owned()).is_none()
            }
            TYPE_CRC32C if value.len() == CRC_BYTES => {
                let end = header.len() - block.len();
                checksum_at.replace(end - CRC_BYTES).is_none()
            }
            TYPE_CRC32C => false,
            TYPE_UNIQUE_ID if value.len() <= UNIQUE_ID_MAX_BYTES => {
                tlvs.unique_id.replace(value.to_vec()).is_none()
            }
            TYPE_UNIQUE_ID => false,
            TYPE_SSL => {
                let mut inner = Cursor::new(value);
                inner.take(SSL_HEAD_BYTES).ok_or(ProxyError::Tlv)?;
                while !inner.is_empty() {
                    next_tlv(&mut inner)?;
                }
                true
            }
            _ => true,
        };
        if !first {
            return Err(ProxyError::Tlv);
        }
    }
    match checksum_at {
        Some(start) if !checksum_matches(header, start) => Err(ProxyError::Crc),
        _ => Ok(tlvs),
    }
}

fn next_tlv<'a>(block: &mut Cursor<'a>) -> Result<(u8, &'a [u8]), ProxyError> {
    let mut read = || Some((block.u8()?, block.take_u16_prefixed()?));
    read().ok_or(ProxyError::Tlv)
}

/// Whether the bytes from `start` on are the checksum of the header with zeroes in their place.
fn checksum_matches(header: &[u8], start: usize) -> bool {
    let (before, rest) = header.split_at(start);
    let (value, after) = rest.split_at(CRC_BYTES);
    let expected = crc32c::checksum(&[before, &[0; CRC_BYTES], after]);
    value == expected.to_be_bytes()
}

/// What [`encode_v2`] writes.
#[derive(Clone, Copy, Debug)]
pub struct V2Options<'a> {
    /// [`Command::Local`] leaves the addresses out.
    pub command: Command,
    /// The ends to tell.
    pub addresses: &'a Addresses,
    /// The TLVs to add.
    pub tlvs: &'a Tlvs,
    /// Whether to add a checksum (PP2_TYPE_CRC32C).
    pub crc32c: bool,
}

/// Why a header cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// With these TLVs it would be longer than [`HEADER_MAX_BYTES`].
    #[error("the PROXY header would be longer than {HEADER_MAX_BYTES} bytes")]
    Header,
    /// The unique id is longer than [`UNIQUE_ID_MAX_BYTES`].
    #[error("the unique id is longer than {UNIQUE_ID_MAX_BYTES} bytes")]
    UniqueId,
    /// A unix path is longer than [`UNIX_ADDRESS_BYTES`].
    #[error("a unix path is longer than {UNIX_ADDRESS_BYTES} bytes")]
    UnixPath,
}

/// Writes a version 2 header, at most [`HEADER_MAX_BYTES`] long.
///
/// Unknown addresses are written as the unspecified family. If only one address is IPv6, the other is written
/// as its IPv4-mapped form. The transport is always a stream. Without TLVs the length is 16 bytes (no
/// addresses), 28 (IPv4), 52 (IPv6) or 232 (unix).
///
/// # Errors
/// Something is too long for the format; nothing is written then.
pub fn encode_v2(options: V2Options<'_>) -> Result<Vec<u8>, EncodeError> {
    let V2Options {
        command,
        addresses,
        tlvs,
        crc32c: with_checksum,
    } = options;
    if tlvs
        .unique_id
        .as_ref()
        .is_some_and(|id| id.len() > UNIQUE_ID_MAX_BYTES)
    {
        return Err(EncodeError::UniqueId);
    }
    let unknown = Addresses::Unknown;
    let (command, addresses) = match command {
        Command::Local => (COMMAND_LOCAL, &unknown),
        Command::Proxy => (COMMAND_PROXY, addresses),
    };
    let mut header = Vec::with_capacity(FIXED_BYTES + addresses_bytes(FAMILY_INET6));
    header.extend_from_slice(SIGNATURE);
    header.push(VERSION << 4 | command);
    // Family, transport and length are filled in when they are known.
    header.extend_from_slice(&[0; 3]);
    header[13] = put_addresses(&mut header, addresses)?;
    let kept = [
        (TYPE_ALPN, tlvs.alpn.as_deref()),
        (TYPE_AUTHORITY, tlvs.authority.as_deref().map(str::as_bytes)),
        (TYPE_UNIQUE_ID, tlvs.unique_id.as_deref()),
        (TYPE_CRC32C, with_checksum.then_some(&[0; CRC_BYTES][..])),
    ];
    for (kind, value) in kept {
        let Some(value) = value else { continue };
        if header.len() + TLV_HEAD_BYTES + value.len() > HEADER_MAX_BYTES {
            return Err(EncodeError::Header);
        }
        header.push(kind);
        header.extend_from_slice(&length_bytes(value.len()));
        header.extend_from_slice(value);
    }
    let length = length_bytes(header.len() - FIXED_BYTES);
    header[14..FIXED_BYTES].copy_from_slice(&length);
    if with_checksum {
        // It was added last, as zeroes, over which it is computed.
        let start = header.len() - CRC_BYTES;
        let checksum = crc32c::checksum(&[&header]);
        header[start..].copy_from_slice(&checksum.to_be_bytes());
    }
    Ok(header)
}

/// A length within [`HEADER_MAX_BYTES`] as it stands on the wire.
fn length_bytes(length: usize) -> [u8; 2] {
    u16::try_from(length)
        .expect("below the longest header")
        .to_be_bytes()
}

/// Appends the address block and gives the byte of family and transport.
fn put_addresses(header: &mut Vec<u8>, addresses: &Addresses) -> Result<u8, EncodeError> {
    let family = match addresses {
        Addresses::Unknown => return Ok(FAMILY_UNSPEC << 4 | TRANSPORT_UNSPEC),
        Addresses::Inet {
            source,
            destination,
        } => {
            let family = match (source.ip(), destination.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    header.extend_from_slice(&from.octets());
                    header.extend_from_slice(&to.octets());
                    FAMILY_INET
                }
                (from, to) => {
                    header.extend_from_slice(&mapped(from).octets());
                    header.extend_from_slice(&mapped(to).octets());
                    FAMILY_INET6
                }
            };
            header.extend_from_slice(&source.port().to_be_bytes());
            header.extend_from_slice(&destination.port().to_be_bytes());
            family
        }
        Addresses::Unix {
            source,
            destination,
        } => {
            for path in [source, destination] {
                let filling = UNIX_ADDRESS_BYTES
                    .checked_sub(path.len())
                    .ok_or(EncodeError::UnixPath)?;
                header.extend_from_slice(path);
                header.resize(header.len() + filling, 0);
            }
            FAMILY_UNIX
        }
    };
    Ok(family << 4 | TRANSPORT_STREAM)
}
