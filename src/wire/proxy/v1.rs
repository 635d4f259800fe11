//! Version 1: one line of text (section 2.1).

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{
    Addresses, Command, Header, Parsed, Prefix, ProxyError, Tlvs, Version, compare_prefix,
};

/// The longest line, in bytes with its CRLF (section 2.1, worst case).
pub const V1_MAX_BYTES: usize = 107;

const SIGNATURE: &[u8] = b"PROXY ";
const CRLF: &[u8] = b"\r\n";
/// What is sent where there are no addresses to tell (section 2.1, short form).
const UNKNOWN_LINE: &[u8] = b"PROXY UNKNOWN\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Tcp4,
    Tcp6,
    Unknown,
}

/// The word of each family with what must follow it; `UNKNOWN` may also end the line.
const FAMILIES: [(&[u8], Family); 4] = [
    (b"TCP4 ", Family::Tcp4),
    (b"TCP6 ", Family::Tcp6),
    (b"UNKNOWN ", Family::Unknown),
    (b"UNKNOWN\r\n", Family::Unknown),
];

/// Reads a line that begins with `P`.
pub(super) fn parse(input: &[u8]) -> Parsed<Header, ProxyError> {
    match compare_prefix(input, SIGNATURE) {
        Prefix::Whole => {}
        Prefix::Part => return Parsed::NeedMore,
        Prefix::Other => return Parsed::Bad(ProxyError::Signature),
    }
    let family = match family_of(&input[SIGNATURE.len()..]) {
        Parsed::Done { value, .. } => value,
        Parsed::NeedMore => return Parsed::NeedMore,
        Parsed::Bad(error) => return Parsed::Bad(error),
    };
    let within = &input[..input.len().min(V1_MAX_BYTES)];
    let end = within.windows(CRLF.len()).position(|pair| pair == CRLF);
    // The last byte that is allowed can only be the LF of the CRLF: a lone one there is a line that is too long,
    // and has been since the byte before.
    let line_bytes = end.unwrap_or(within.len().min(V1_MAX_BYTES - 1));
    if family != Family::Unknown
        && let Some(at) = lone_line_end(&within[..line_bytes])
    {
        // A CR that is the last byte so far may still get its LF.
        if at + 1 < within.len() || within[at] == b'\n' {
            return Parsed::Bad(ProxyError::Address);
        }
    }
    let Some(end) = end else {
        let missing = CRLF.len() - usize::from(input.ends_with(b"\r"));
        return if input.len() + missing > V1_MAX_BYTES {
            Parsed::Bad(ProxyError::Length)
        } else {
            Parsed::NeedMore
        };
    };
    let addresses = match family {
        Family::Unknown => Some(Addresses::Unknown),
        Family::Tcp4 => addresses_of::<Ipv4Addr>(&input[..end]),
        Family::Tcp6 => addresses_of::<Ipv6Addr>(&input[..end]),
    };
    match addresses {
        Some(addresses) => Parsed::Done {
            value: Header {
                version: Version::V1,
                command: Command::Proxy,
                addresses,
                tlvs: Tlvs::default(),
            },
            used: end + CRLF.len(),
        },
        None => Parsed::Bad(ProxyError::Address),
    }
}

/// The family at the beginning of what follows the signature.
fn family_of(rest: &[u8]) -> Parsed<Family, ProxyError> {
    let mut partly = false;
    for (word, family) in FAMILIES {
        match compare_prefix(rest, word) {
            Prefix::Whole => {
                return Parsed::Done {
                    value: family,
                    used: word.len(),
                };
            }
            Prefix::Part => partly = true,
            Prefix::Other => {}
        }
    }
    if partly {
        Parsed::NeedMore
    } else {
        Parsed::Bad(ProxyError::Family)
    }
}

/// Where a CR or LF stands in a line that has neither.
fn lone_line_end(line: &[u8]) -> Option<usize> {
    line.iter().position(|byte| CRLF.contains(byte))
}

/// The addresses and ports of a whole line without its CRLF: exactly six fields, exactly one space between.
fn addresses_of<A: FromStr + Into<IpAddr>>(line: &[u8]) -> Option<Addresses> {
    let line = str::from_utf8(line).ok()?;
    let mut fields = line.split(' ').skip(2);
    // The standard library's parsers take neither leading zeroes in IPv4 nor zones in IPv6, nor spaces.
    let source: A = fields.next()?.parse().ok()?;
    let destination: A = fields.next()?.parse().ok()?;
    let source_port = port(fields.next()?)?;
    let destination_port = port(fields.next()?)?;
    if fields.next().is_some() {
        return None;
    }
    Some(Addresses::Inet {
        source: SocketAddr::new(source.into(), source_port),
        destination: SocketAddr::new(destination.into(), destination_port),
    })
}

/// A decimal port without a leading zero or a sign.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = text.len() > 1 && text.starts_with('0');
    if plain && !leading_zero {
        text.parse().ok()
    } else {
        None
    }
}

/// Writes a version 1 header, at most [`V1_MAX_BYTES`] long.
///
/// Without IP addresses it is the `UNKNOWN` line. If only one of the two is IPv6, the other is written as
/// its IPv4-mapped form, so that one family covers both. Scope and flow label of an IPv6 address are not
/// part of the format.
pub fn encode_v1(addresses: &Addresses) -> Vec<u8> {
    let Addresses::Inet {
        source,
        destination,
    } = addresses
    else {
        return UNKNOWN_LINE.to_vec();
    };
    let mut line = String::with_capacity(V1_MAX_BYTES);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            write!(line, "PROXY TCP4 {from} {to}")
        }
        (from, to) => {
            line.push_str("PROXY TCP6 ");
            write_v6(&mut line, mapped(from));
            line.push(' ');
            write_v6(&mut line, mapped(to));
            Ok(())
        }
    }
    .and_then(|()| write!(line, " {} {}\r\n", source.port(), destination.port()))
    .expect("writing to a string does not fail");
    assert!(line.len() <= V1_MAX_BYTES, "longer than the longest line");
    line.into_bytes()
}

/// The address as IPv6.
pub(super) fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Writes groups of hexadecimal digits only: `Display` gives a mapped address its dotted tail, which the
/// format does not have.
fn write_v6(line: &mut String, address: Ipv6Addr) {
    let written = match address.to_ipv4_mapped() {
        None => write!(line, "{address}"),
        Some(_) => {
            let groups = address.segments();
            write!(line, "::ffff:{:x}:{:x}", groups[6], groups[7])
        }
    };
    written.expect("writing to a string does not fail");
}
