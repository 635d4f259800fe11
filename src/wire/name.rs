//! Host names as clients send them, brought into one form so that they can be compared byte by byte.
//!
//! Used for the server name of TLS and the host of HTTP. No resolving, no punycode: an internationalised
//! name arrives as its `xn--` form (RFC 6066 section 3, RFC 3986 section 3.2.2) and is compared as that.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest host name, in bytes without the final dot (RFC 1035 section 2.3.4: 255 on the wire).
pub const NAME_MAX_BYTES: usize = 253;
/// Longest label of a host name, in bytes (RFC 1035 section 2.3.4).
pub const LABEL_MAX_BYTES: usize = 63;

/// A host name in lower case, without a final dot: 1 to [`NAME_MAX_BYTES`] bytes of ASCII letters, digits,
/// `-`, `_` and single dots.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerName(Box<str>);

impl ServerName {
    /// The name, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name or an address, where either may stand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A host name.
    Name(ServerName),
    /// A literal address.
    Ip(IpAddr),
}

impl Host {
    /// Reads a name or a bare address: `example.com`, `EXAMPLE.com.`, `192.0.2.1`, `2001:db8::1`.
    ///
    /// `None`: empty, only a dot, too long, an empty or too long label, or a byte that host names do not
    /// have (NUL, space, anything beyond ASCII). The underscore is no letter of RFC 1123, but names with it
    /// are in use. One final dot is removed: it makes the name absolute (RFC 1034 section 3.1), which a name
    /// from a client is anyway.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = str::from_utf8(bytes).ok()?;
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Some(Host::Ip(IpAddr::V6(address)));
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Host::Ip(IpAddr::V4(address)));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let valid = text.len() <= NAME_MAX_BYTES
            && text.split('.').all(|label| {
                (1..=LABEL_MAX_BYTES).contains(&label.len()) && label.bytes().all(allowed)
            });
        valid.then(|| Host::Name(ServerName(text.to_ascii_lowercase().into_boxed_str())))
    }

    /// Reads `host`, `host:port`, `[v6]` or `[v6]:port`, as in an HTTP `Host` field (RFC 9110 section 7.2,
    /// RFC 3986 section 3.2). The port may be empty, is checked (0 to 65535) and left out.
    ///
    /// `None`: as for [`Host::parse`], a v6 address without brackets or with a zone, a port that is none.
    pub fn parse_with_port(bytes: &[u8]) -> Option<Self> {
        if let Some(rest) = bytes.strip_prefix(b"[") {
            let end = rest.iter().position(|byte| *byte == b']')?;
            let address: Ipv6Addr = str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
            let port = &rest[end + 1..];
            let valid = port.is_empty() || port.strip_prefix(b":").is_some_and(is_port);
            return valid.then_some(Host::Ip(IpAddr::V6(address)));
        }
        match bytes.iter().position(|byte| *byte == b':') {
            None => Self::parse(bytes),
            Some(colon) if is_port(&bytes[colon + 1..]) => Self::parse(&bytes[..colon]),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => name.fmt(f),
            Host::Ip(address) => address.fmt(f),
        }
    }
}

/// Whether these are the digits of a port, or none at all. `u16::from_str` alone would take a plus sign.
fn is_port(digits: &[u8]) -> bool {
    digits.is_empty()
        || digits.iter().all(u8::is_ascii_digit)
            && str::from_utf8(digits).is_ok_and(|text| text.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<String> {
        Host::parse(text.as_bytes()).map(|host| match host {
            Host::Name(name) => name.to_string(),
            Host::Ip(address) => format!("ip {address}"),
        })
    }

    #[test]
    fn names_take_one_form() {
        let label = "a".repeat(LABEL_MAX_BYTES);
        let longest = [&*label, &label, &label, &label[..61]].join(".");
        assert_eq!(longest.len(), NAME_MAX_BYTES);
        for (text, expected) in [
            ("example.com", Some("example.com")),
            ("EXAMPLE.Com", Some("example.com")),
            ("example.com.", Some("example.com")),
            ("localhost", Some("localhost")),
            (
                "_sip.xn--bcher-kva.example",
                Some("_sip.xn--bcher-kva.example"),
            ),
            ("127.0.0.1", Some("ip 127.0.0.1")),
            ("127.0.0.1.", Some("ip 127.0.0.1")),
            ("2001:DB8::1", Some("ip 2001:db8::1")),
            ("127.0.0.01", Some("127.0.0.01")),
            (&longest, Some(&longest)),
            (&format!("{longest}."), Some(&longest)),
            (&format!("{longest}a"), None),
            (&format!("{label}a.example"), None),
            ("", None),
            (".", None),
            ("example..com", None),
            (".example.com", None),
            ("example.com..", None),
            ("example.com\0", None),
            ("exa mple.com", None),
            ("bücher.example", None),
            ("example.com:443", None),
            ("*.example.com", None),
        ] {
            assert_eq!(parsed(text).as_deref(), expected, "{text:?}");
        }
        assert_eq!(Host::parse(b"ex\xffample"), None);
    }

    #[test]
    fn ports_are_checked_and_left_out() {
        let parsed =
            |text: &str| Host::parse_with_port(text.as_bytes()).map(|host| host.to_string());
        for (text, expected) in [
            ("example.com:443", Some("example.com")),
            ("example.com.:443", Some("example.com")),
            ("example.com:", Some("example.com")),
            ("example.com:65535", Some("example.com")),
            ("192.0.2.1:80", Some("192.0.2.1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[2001:db8::1]:80", Some("2001:db8::1")),
            ("[::ffff:192.0.2.1]:", Some("::ffff:192.0.2.1")),
            ("example.com:65536", None),
            ("example.com:+80", None),
            ("example.com:80:80", None),
            (":80", None),
            ("2001:db8::1", None),
            ("[2001:db8::1", None),
            ("[2001:db8::1]80", None),
            ("[fe80::1%eth0]", None),
            ("[v1.x]", None),
            ("user@example.com", None),
            ("a.example, b.example", None),
        ] {
            assert_eq!(parsed(text).as_deref(), expected, "{text:?}");
        }
    }
}
