//! Quantities and identities: byte sizes, durations, addresses, and the newtypes that keep one
//! index from being used for another.
//!
//! Parsing and printing only; no I/O. What is printed here parses again to the same value, and what
//! cannot be parsed comes back as a [`UnitError`] that says how to write it. Whether a value is
//! *sensible* is not decided here but by the configuration's limits.

pub mod network;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A core thread's index, from 0; not the CPU number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CoreId(pub u16);

/// An index into `Config::listeners`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u16);

/// An index into `Config::upstreams`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId(pub u16);

/// An index into the process's list of resolved servers, over all upstreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub u16);

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where a stream socket listens or connects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// IPv4 or IPv6 with a port.
    Tcp(SocketAddr),
    /// A path in the file system.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    /// As written in the configuration: `ip:port`, `[ip]:port` or `unix:/path`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Marks an address as a path in the file system.
const UNIX_PREFIX: &str = "unix:";
/// Longest path of a unix socket, in bytes: `sun_path` has 108, one of which ends it. See unix(7).
pub const UNIX_PATH_MAX_BYTES: usize = 107;
/// Longest host name, in bytes (RFC 1035, as text without the final dot).
const HOST_MAX_BYTES: usize = 253;
/// Longest label of a host name, in bytes (RFC 1035).
const HOST_LABEL_MAX_BYTES: usize = 63;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const MILLISECOND_US: u64 = 1_000;
const SECOND_US: u64 = 1_000 * MILLISECOND_US;
const MINUTE_US: u64 = 60 * SECOND_US;
const HOUR_US: u64 = 60 * MINUTE_US;
const DAY_US: u64 = 24 * HOUR_US;

/// Text that is not the quantity it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` {kind}", shorten(text))]
pub struct UnitError {
    text: String,
    kind: UnitErrorKind,
}

/// What is wrong with the text, as the end of a sentence about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitErrorKind {
    /// A byte size that does not start with digits, or has a unit that is not one.
    #[error("is not a byte size")]
    NotAByteSize,
    /// `KB`, `MB`, `GB`: 1000 to some, 1024 to others.
    #[error("has an ambiguous unit")]
    AmbiguousUnit,
    /// A duration that does not start with digits, or has a unit that is not one.
    #[error("is not a duration")]
    NotADuration,
    /// A duration without a unit.
    #[error("has no unit")]
    NoUnit,
    /// A decimal fraction.
    #[error("is a fraction")]
    Fraction,
    /// Does not fit in 64 bits.
    #[error("is too large")]
    TooLarge,
    /// Not `ip:port`, `[ip]:port` or `unix:/path`.
    #[error("is not an address")]
    NotAnAddress,
    /// A host name where only an IP address will do.
    #[error("is a host name, not an IP address")]
    HostName,
    /// Not even `host:port`.
    #[error("is not the address of a server")]
    NotAServer,
    /// An IPv6 address without brackets: where does the port begin?
    #[error("is an IPv6 address without brackets")]
    NoBrackets,
    /// An address without a port.
    #[error("has no port")]
    NoPort,
    /// Not a number from 0 to 65535.
    #[error("has a port that is not a number from 0 to 65535")]
    BadPort,
    /// A host name with a character or a label that no host name has.
    #[error("is not a valid host name with a port")]
    BadHost,
    /// Behind `srv:` stands what is no DNS name.
    #[error("is not the name of a service")]
    BadService,
    /// A unix path that depends on the working directory.
    #[error("is not an absolute path")]
    RelativePath,
    /// A unix path that the kernel would cut.
    #[error("has a path longer than 107 bytes, the kernel's limit for a unix socket")]
    LongPath,
    /// A unix path with a NUL or another control character.
    #[error("has a control character in its path")]
    ControlCharacter,
}

impl UnitError {
    pub(crate) fn new(text: &str, kind: UnitErrorKind) -> Self {
        Self {
            text: text.to_owned(),
            kind,
        }
    }

    /// What is wrong, without the text.
    pub fn kind(&self) -> UnitErrorKind {
        self.kind
    }

    /// How to write it instead.
    pub fn remedy(&self) -> &'static str {
        match self.kind {
            UnitErrorKind::NotAByteSize => {
                "write a number of bytes or a size like 16KiB, 64k or 1MiB"
            }
            UnitErrorKind::AmbiguousUnit => "write KiB, MiB or GiB, which are powers of 1024",
            UnitErrorKind::NotADuration | UnitErrorKind::NoUnit => {
                "write a whole number with a unit: us, ms, s, m, h or d, like 500ms or 10m"
            }
            UnitErrorKind::Fraction => {
                "write a whole number of a smaller unit, like 1500ms or 512KiB"
            }
            UnitErrorKind::TooLarge => "write a smaller value",
            UnitErrorKind::NotAnAddress => "write ip:port, [ip]:port or unix:/path",
            UnitErrorKind::HostName => {
                "write the IP address, like 127.0.0.1:9000, or 0.0.0.0 for every one of this host"
            }
            UnitErrorKind::NotAServer => {
                "write ip:port, [ip]:port, host:port, srv:NAME or unix:/path"
            }
            UnitErrorKind::NoBrackets => {
                "put the IPv6 address in brackets and quotes, like \"[::1]:9000\""
            }
            UnitErrorKind::NoPort => "add the port, like 127.0.0.1:9000",
            UnitErrorKind::BadPort => "write a port, a number up to 65535, and nothing behind it",
            UnitErrorKind::BadHost => "use letters, digits, `-` and `.`, and end with a port",
            UnitErrorKind::BadService => {
                "write the name of its SRV records, like srv:_app._tcp.example.com; the port comes from them"
            }
            UnitErrorKind::RelativePath => "write the path from the root, like unix:/run/app.sock",
            UnitErrorKind::LongPath => "use a shorter path",
            UnitErrorKind::ControlCharacter => "remove it from the path",
        }
    }
}

/// User text for a message: escaped so that it stays on one line, and cut where nobody reads on.
pub fn shorten(text: &str) -> String {
    /// Enough to recognise the value.
    const SHOWN_MAX_CHARS: usize = 80;
    let mut shown: String = text
        .chars()
        .take(SHOWN_MAX_CHARS)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN_MAX_CHARS).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Splits `10ms` into `10` and `ms`.
fn split_number(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = UnitError;

    /// `4096`, `16KiB`, `64k`, `1MiB`: units are powers of 1024, in either case.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = |kind| UnitError::new(text, kind);
        let (digits, unit) = split_number(text);
        if digits.is_empty() {
            return Err(fail(UnitErrorKind::NotAByteSize));
        }
        if unit.starts_with('.') {
            return Err(fail(UnitErrorKind::Fraction));
        }
        let unit_bytes = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => KIB,
            "m" | "mib" => MIB,
            "g" | "gib" => GIB,
            "kb" | "mb" | "gb" => return Err(fail(UnitErrorKind::AmbiguousUnit)),
            _ => return Err(fail(UnitErrorKind::NotAByteSize)),
        };
        // Digits only, so that the one way to fail is to be too large.
        let number: u64 = digits.parse().map_err(|_| fail(UnitErrorKind::TooLarge))?;
        number
            .checked_mul(unit_bytes)
            .map(ByteSize)
            .ok_or(fail(UnitErrorKind::TooLarge))
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that divides it: `16KiB`, `1MiB`, `1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit_bytes, unit) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 != 0 && self.0.is_multiple_of(unit_bytes) {
                return write!(f, "{}{unit}", self.0 / unit_bytes);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Reads `50us`, `500ms`, `3s`, `10m`, `1h` or `7d`. The unit is mandatory except for `0`.
///
/// # Errors
/// Says whether the unit, the number or both are wrong.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let fail = |kind| UnitError::new(text, kind);
    let (digits, unit) = split_number(text);
    if digits.is_empty() {
        return Err(fail(UnitErrorKind::NotADuration));
    }
    let unit_us = match unit.trim_start() {
        "" if digits.bytes().all(|digit| digit == b'0') => 1,
        "" => return Err(fail(UnitErrorKind::NoUnit)),
        "us" => 1,
        "ms" => MILLISECOND_US,
        "s" => SECOND_US,
        "m" => MINUTE_US,
        "h" => HOUR_US,
        "d" => DAY_US,
        other if other.starts_with('.') => return Err(fail(UnitErrorKind::Fraction)),
        _ => return Err(fail(UnitErrorKind::NotADuration)),
    };
    let number: u64 = digits.parse().map_err(|_| fail(UnitErrorKind::TooLarge))?;
    let us = number
        .checked_mul(unit_us)
        .ok_or(fail(UnitErrorKind::TooLarge))?;
    Ok(Duration::from_micros(us))
}

/// Writes a duration in the largest unit that divides it: `500ms`, `90s`, `10m`. Rounded up to a
/// whole microsecond, the smallest unit that [`parse_duration`] reads.
pub fn format_duration(duration: Duration) -> String {
    let us = duration
        .as_nanos()
        .div_ceil(Duration::from_micros(1).as_nanos());
    if us == 0 {
        return "0".to_owned();
    }
    for (unit_us, unit) in [
        (DAY_US, "d"),
        (HOUR_US, "h"),
        (MINUTE_US, "m"),
        (SECOND_US, "s"),
        (MILLISECOND_US, "ms"),
    ] {
        if us.is_multiple_of(u128::from(unit_us)) {
            return format!("{}{unit}", us / u128::from(unit_us));
        }
    }
    format!("{us}us")
}

impl FromStr for Address {
    type Err = UnitError;

    /// `ip:port`, `[ip]:port` or `unix:/path`; never a host name.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        if let Some(path) = text.strip_prefix(UNIX_PREFIX) {
            return parse_unix_path(text, path).map(Address::Unix);
        }
        if let Ok(address) = text.parse() {
            return Ok(Address::Tcp(address));
        }
        let kind = match why_not_a_socket_address(text) {
            Some(kind) => kind,
            None if text.parse::<HostPort>().is_ok() => UnitErrorKind::HostName,
            None => UnitErrorKind::NotAnAddress,
        };
        Err(UnitError::new(text, kind))
    }
}

fn parse_unix_path(text: &str, path: &str) -> Result<PathBuf, UnitError> {
    if !path.starts_with('/') {
        return Err(UnitError::new(text, UnitErrorKind::RelativePath));
    }
    if path.chars().any(char::is_control) {
        return Err(UnitError::new(text, UnitErrorKind::ControlCharacter));
    }
    if path.len() > UNIX_PATH_MAX_BYTES {
        return Err(UnitError::new(text, UnitErrorKind::LongPath));
    }
    Ok(PathBuf::from(path))
}

/// The commonest slips, told apart; `None` if it is none of them.
fn why_not_a_socket_address(text: &str) -> Option<UnitErrorKind> {
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Some(UnitErrorKind::NoBrackets);
    }
    if text
        .trim_matches(['[', ']'])
        .parse::<std::net::IpAddr>()
        .is_ok()
    {
        return Some(UnitErrorKind::NoPort);
    }
    let (host, port) = text.rsplit_once(':')?;
    // Only what is made of hexadecimal groups was meant as one: `http://host:80` was not.
    if host.contains(':')
        && host
            .bytes()
            .all(|byte| byte == b':' || byte.is_ascii_hexdigit())
    {
        return Some(UnitErrorKind::NoBrackets);
    }
    let host_is_ip = host
        .trim_matches(['[', ']'])
        .parse::<std::net::IpAddr>()
        .is_ok();
    (host_is_ip && port.parse::<u16>().is_err()).then_some(UnitErrorKind::BadPort)
}

/// A host name and a port, not resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// A syntactically valid host name; never an IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = UnitError;

    /// `host:port`.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = |kind| UnitError::new(text, kind);
        if let Some(kind) = why_not_a_socket_address(text) {
            return Err(fail(kind));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            let kind = if is_host_name(text.strip_suffix('.').unwrap_or(text)) {
                UnitErrorKind::NoPort
            } else {
                UnitErrorKind::NotAServer
            };
            return Err(fail(kind));
        };
        if !is_host_name(host.strip_suffix('.').unwrap_or(host)) {
            return Err(fail(UnitErrorKind::BadHost));
        }
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(fail(UnitErrorKind::BadPort));
        }
        let port = port.parse().map_err(|_| fail(UnitErrorKind::BadPort))?;
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// RFC 1123 with `_`, which container networks use. A last label of digits alone is a mistyped IPv4
/// address (`256.0.0.1`), not a name. Without the final dot that makes a name absolute.
pub fn is_host_name(host: &str) -> bool {
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= HOST_LABEL_MAX_BYTES
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let last = host.rsplit('.').next().unwrap_or(host);
    host.len() <= HOST_MAX_BYTES
        && host.split('.').all(label_ok)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests;
