//! The ClientHello of TLS: which name a client asks for, and which protocols it speaks.
//!
//! Peeked, never answered: no key is exchanged here, and the bytes go on to the server unchanged. What the
//! server would refuse anyway is not looked at; what decides the route must be beyond doubt.
//!
//! ```text
//! record:   type 22 │ version 3.x │ length ≤ 16,384 │ fragment          RFC 8446 section 5.1
//!                                                      └┬─ over any number of records ─┐
//! message:  type 1 │ length │ version │ random │ session │ suites │ compression │ extensions
//!                                                                RFC 8446 section 4.1.2 ┘
//! ```
//!
//! | case | answer |
//! |---|---|
//! | first byte not 22, second (the version's upper half) not 3 | [`HelloError::NotTls`] at that byte |
//! | an SSLv2 hello | [`HelloError::Sslv2`], known from four bytes |
//! | record version 3.0 (SSL 3), 3.4 and above | [`HelloError::Version`]; 3.1 to 3.3 are accepted, as every client since TLS 1.0 sends them. The version *inside* the hello is the server's to judge |
//! | an empty record, one above 16,384 bytes, one of another type before the hello is whole | [`HelloError::Record`] |
//! | a handshake message other than ClientHello | [`HelloError::Message`] |
//! | more than `max_bytes` up to the hello's end | [`HelloError::TooLarge`], as soon as a length says so |
//! | a length that does not fit its surroundings, an empty name or list | [`HelloError::Length`] |
//! | `server_name` or ALPN twice, two host names in one list | [`HelloError::Duplicate`]; other extensions twice do not change the route and are the server's to refuse |
//! | no extensions, no `server_name`, no host name in it | no name |
//! | an IP address as the name (RFC 6066 section 3 forbids it, some clients send it) | no name |
//! | upper case, one final dot | lower case, without the dot |
//! | a name with NUL, with bytes that host names do not have, empty labels, over 253 bytes | [`HelloError::ServerName`] |
//! | more than [`ALPN_NAMES_MAX`] protocols | the first ones |
//! | Encrypted ClientHello, real or GREASE (they look the same) | the outer name, and [`Hello::has_ech`] |
//! | other GREASE values (RFC 8701) | passed over; in ALPN kept as sent |
//! | bytes behind the hello in its last record | left alone |

use std::borrow::Cow;

use super::Parsed;
use super::cursor::Cursor;
use super::name::{Host, ServerName};

#[cfg(test)]
mod tests;

/// A `max_bytes` for [`peek`] that suits the Internet: one full record and its header. A hello of a browser has
/// 500 to 2,000 bytes, post-quantum key share included.
pub const HELLO_MAX_BYTES: usize = RECORD_HEAD_BYTES + RECORD_MAX_BYTES;
/// Protocols that are kept of an ALPN list; clients offer two or three.
pub const ALPN_NAMES_MAX: usize = 32;

/// Type, version and length of a record.
const RECORD_HEAD_BYTES: usize = 5;
/// Longest fragment of a record, in bytes (RFC 8446 section 5.1).
const RECORD_MAX_BYTES: usize = 1 << 14;
const RECORD_HANDSHAKE: u8 = 22;
const VERSION_MAJOR: u8 = 3;
const VERSION_MINOR_TLS10: u8 = 1;
const VERSION_MINOR_TLS12: u8 = 3;

/// Type and length of a handshake message.
const MESSAGE_HEAD_BYTES: usize = 4;
const MESSAGE_CLIENT_HELLO: u8 = 1;
const RANDOM_BYTES: usize = 32;
const SESSION_ID_MAX_BYTES: usize = 32;

const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
/// RFC 9849 section 5.
const EXTENSION_ECH: u16 = 0xFE0D;
const NAME_TYPE_HOST: u8 = 0;

/// The bit that SSLv2 sets in the first byte of a record without padding.
const SSLV2_LENGTH_BIT: u8 = 0x80;
const SSLV2_CLIENT_HELLO: u8 = 1;

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The name (SNI), if the client sent one that is a name.
    pub server_name: Option<ServerName>,
    /// The protocols of ALPN in the client's order, at most [`ALPN_NAMES_MAX`], each of 1 to 255 bytes; empty
    /// without the extension.
    pub alpn: Vec<Vec<u8>>,
    /// Whether an Encrypted ClientHello came along: then `server_name` may be the name of a front only.
    pub has_ech: bool,
}

/// Why bytes are no ClientHello to route by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[repr(u8)]
pub enum HelloError {
    /// Another protocol.
    #[error("not TLS")]
    NotTls,
    /// An SSLv2 hello.
    #[error("an SSLv2 hello")]
    Sslv2,
    /// A record version other than 3.1 to 3.3.
    #[error("a TLS record of an unknown version")]
    Version,
    /// A record that is empty, too long or of another type.
    #[error("a malformed TLS record")]
    Record,
    /// The first handshake message is none of a client's.
    #[error("a TLS handshake that does not begin with a ClientHello")]
    Message,
    /// It is longer than the caller allows.
    #[error("a ClientHello over the limit")]
    TooLarge,
    /// A length inside that does not fit.
    #[error("a ClientHello with a wrong length inside")]
    Length,
    /// An extension or a name that may come once came twice.
    #[error("a ClientHello with a duplicate server name or ALPN")]
    Duplicate,
    /// The server name is no host name.
    #[error("a ClientHello with a server name that is none")]
    ServerName,
}

impl HelloError {
    /// Every error, in the order of the discriminants.
    pub const ALL: [HelloError; 9] = [
        HelloError::NotTls,
        HelloError::Sslv2,
        HelloError::Version,
        HelloError::Record,
        HelloError::Message,
        HelloError::TooLarge,
        HelloError::Length,
        HelloError::Duplicate,
        HelloError::ServerName,
    ];

    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            HelloError::NotTls => "not_tls",
            HelloError::Sslv2 => "tls_sslv2",
            HelloError::Version => "tls_version",
            HelloError::Record => "tls_record",
            HelloError::Message => "tls_message",
            HelloError::TooLarge => "tls_too_large",
            HelloError::Length => "tls_length",
            HelloError::Duplicate => "tls_duplicate",
            HelloError::ServerName => "tls_server_name",
        }
    }
}

/// Reads the ClientHello at the beginning of `input`, of which at most `max_bytes` are looked at, record headers
/// included ([`HELLO_MAX_BYTES`] is a good choice).
///
/// `used` counts up to the end of the ClientHello message. With `max_bytes` at hand the answer is not
/// [`Parsed::NeedMore`]. A call before the hello is whole only steps over record headers; a hello in one
/// record is read in place, one in several is copied together once.
///
/// # Errors
/// [`Parsed::Bad`]; [`HelloError::NotTls`] with the first byte that is not TLS.
pub fn peek(input: &[u8], max_bytes: usize) -> Parsed<Hello, HelloError> {
    let within = &input[..input.len().min(max_bytes)];
    match assemble(within, max_bytes) {
        Ok(Some((body, used))) => match read_body(&body) {
            Ok(value) => Parsed::Done { value, used },
            Err(error) => Parsed::Bad(error),
        },
        Ok(None) if within.len() == max_bytes => Parsed::Bad(HelloError::TooLarge),
        Ok(None) => Parsed::NeedMore,
        Err(error) => Parsed::Bad(error),
    }
}

/// A ClientHello without its head, and where it ends in the input.
type Assembled<'a> = (Cow<'a, [u8]>, usize);

/// Finds the whole message in the records; `None` as long as something is missing.
fn assemble(input: &[u8], max_bytes: usize) -> Result<Option<Assembled<'_>>, HelloError> {
    if input
        .first()
        .is_some_and(|byte| byte & SSLV2_LENGTH_BIT != 0)
    {
        return refuse_sslv2(input);
    }
    let mut fragments: Vec<&[u8]> = Vec::new();
    let mut assembled_bytes = 0;
    // The whole message's length with its head, once its head is there.
    let mut message_bytes: Option<usize> = None;
    let mut at = 0;
    loop {
        let is_first = at == 0;
        let Some(length) = record_head(&input[at..], is_first)? else {
            return Ok(None);
        };
        let start = at + RECORD_HEAD_BYTES;
        let fragment = &input[start..input.len().min(start + length)];
        fragments.push(fragment);
        assembled_bytes += fragment.len();
        if message_bytes.is_none() {
            message_bytes = message_length(&fragments)?;
        }
        if let Some(message_bytes) = message_bytes {
            if let Some(surplus) = assembled_bytes.checked_sub(message_bytes) {
                let used = start + fragment.len() - surplus;
                return Ok(Some((join(&fragments, message_bytes), used)));
            }
            // At least the record headers seen so far come on top.
            let headers_bytes = fragments.len() * RECORD_HEAD_BYTES;
            if headers_bytes + message_bytes > max_bytes {
                return Err(HelloError::TooLarge);
            }
        }
        if fragment.len() < length {
            return Ok(None);
        }
        at = start + length;
    }
}

/// Checks a record's head as far as it is there and gives the length of the fragment.
fn record_head(head: &[u8], is_first: bool) -> Result<Option<usize>, HelloError> {
    let other = if is_first {
        HelloError::NotTls
    } else {
        HelloError::Record
    };
    let mut head = Cursor::new(head);
    let Some(kind) = head.u8() else {
        return Ok(None);
    };
    if kind != RECORD_HANDSHAKE {
        return Err(other);
    }
    let Some(major) = head.u8() else {
        return Ok(None);
    };
    if major != VERSION_MAJOR {
        return Err(other);
    }
    let Some(minor) = head.u8() else {
        return Ok(None);
    };
    if !(VERSION_MINOR_TLS10..=VERSION_MINOR_TLS12).contains(&minor) {
        return Err(HelloError::Version);
    }
    match head.u16().map(usize::from) {
        None => Ok(None),
        Some(length) if (1..=RECORD_MAX_BYTES).contains(&length) => Ok(Some(length)),
        Some(_) => Err(HelloError::Record),
    }
}

/// The length of the handshake message with its head, once its head is there. Its first byte is checked
/// at once.
fn message_length(fragments: &[&[u8]]) -> Result<Option<usize>, HelloError> {
    let mut head = fragments.iter().copied().flatten().copied();
    match head.next() {
        None => return Ok(None),
        Some(MESSAGE_CLIENT_HELLO) => {}
        Some(_) => return Err(HelloError::Message),
    }
    let (Some(high), Some(middle), Some(low)) = (head.next(), head.next(), head.next()) else {
        return Ok(None);
    };
    let body_bytes = u32::from_be_bytes([0, high, middle, low]);
    Ok(Some(MESSAGE_HEAD_BYTES + body_bytes as usize))
}

/// The message's body in one piece.
fn join<'a>(fragments: &[&'a [u8]], message_bytes: usize) -> Cow<'a, [u8]> {
    let body = MESSAGE_HEAD_BYTES..message_bytes;
    match fragments {
        [only] => Cow::Borrowed(&only[body]),
        _ => Cow::Owned(fragments.concat()[body].to_vec()),
    }
}

/// SSLv2: two bytes of length with the upper bit set, then the message type and the version (2, or 3 for a
/// client that speaks later versions too; RFC 5246 appendix E.2).
fn refuse_sslv2(input: &[u8]) -> Result<Option<Assembled<'_>>, HelloError> {
    match input.get(2) {
        None => return Ok(None),
        Some(&SSLV2_CLIENT_HELLO) => {}
        Some(_) => return Err(HelloError::NotTls),
    }
    match input.get(3) {
        None => Ok(None),
        Some(&(0 | VERSION_MAJOR)) => Err(HelloError::Sslv2),
        Some(_) => Err(HelloError::NotTls),
    }
}

fn read_body(body: &[u8]) -> Result<Hello, HelloError> {
    let mut body = Cursor::new(body);
    let mut fixed = || {
        let _legacy_version = body.u16()?;
        let _random = body.take(RANDOM_BYTES)?;
        let session_id = body.take_u8_prefixed()?;
        let suites = body.take_u16_prefixed()?;
        let compression = body.take_u8_prefixed()?;
        let valid = session_id.len() <= SESSION_ID_MAX_BYTES
            && !suites.is_empty()
            && suites.len().is_multiple_of(2)
            && !compression.is_empty();
        valid.then_some(())
    };
    fixed().ok_or(HelloError::Length)?;
    // TLS 1.0 to 1.2 may end here.
    if body.is_empty() {
        return Ok(Hello::default());
    }
    let extensions = whole(&mut body, Cursor::take_u16_prefixed)?;
    read_extensions(Cursor::new(extensions))
}

fn read_extensions(mut extensions: Cursor<'_>) -> Result<Hello, HelloError> {
    let mut hello = Hello::default();
    let (mut seen_name, mut seen_alpn) = (false, false);
    while !extensions.is_empty() {
        let mut next = || Some((extensions.u16()?, extensions.take_u16_prefixed()?));
        let (kind, content) = next().ok_or(HelloError::Length)?;
        match kind {
            EXTENSION_SERVER_NAME => {
                if std::mem::replace(&mut seen_name, true) {
                    return Err(HelloError::Duplicate);
                }
                hello.server_name = read_server_name(content)?;
            }
            EXTENSION_ALPN => {
                if std::mem::replace(&mut seen_alpn, true) {
                    return Err(HelloError::Duplicate);
                }
                hello.alpn = read_alpn(content)?;
            }
            EXTENSION_ECH => hello.has_ech = true,
            _ => {}
        }
    }
    Ok(hello)
}

/// RFC 6066 section 3: a list of typed names. Types other than the host name have never been defined; one
/// would have a length in the same place.
fn read_server_name(content: &[u8]) -> Result<Option<ServerName>, HelloError> {
    let mut list = Cursor::new(whole(&mut Cursor::new(content), Cursor::take_u16_prefixed)?);
    if list.is_empty() {
        return Err(HelloError::Length);
    }
    let mut host_name = None;
    while !list.is_empty() {
        let mut next = || Some((list.u8()?, list.take_u16_prefixed()?));
        let (kind, name) = next().ok_or(HelloError::Length)?;
        if kind == NAME_TYPE_HOST && host_name.replace(name).is_some() {
            return Err(HelloError::Duplicate);
        }
    }
    match host_name {
        None => Ok(None),
        Some([]) => Err(HelloError::Length),
        Some(name) => match Host::parse(name) {
            Some(Host::Name(name)) => Ok(Some(name)),
            Some(Host::Ip(_)) => Ok(None),
            None => Err(HelloError::ServerName),
        },
    }
}

/// RFC 7301 section 3.1: a list of names of 1 to 255 bytes.
fn read_alpn(content: &[u8]) -> Result<Vec<Vec<u8>>, HelloError> {
    let mut list = Cursor::new(whole(&mut Cursor::new(content), Cursor::take_u16_prefixed)?);
    if list.is_empty() {
        return Err(HelloError::Length);
    }
    let mut names = Vec::new();
    while !list.is_empty() {
        match list.take_u8_prefixed() {
            None | Some([]) => return Err(HelloError::Length),
            Some(name) if names.len() < ALPN_NAMES_MAX => names.push(name.to_vec()),
            Some(_) => {}
        }
    }
    Ok(names)
}

/// What `read` gives, if nothing is left behind it.
fn whole<'a>(
    cursor: &mut Cursor<'a>,
    read: impl FnOnce(&mut Cursor<'a>) -> Option<&'a [u8]>,
) -> Result<&'a [u8], HelloError> {
    read(cursor)
        .filter(|_| cursor.is_empty())
        .ok_or(HelloError::Length)
}
