//! The head of an HTTP/1 request: which host a client asks for.
//!
//! Peeked, never answered: the bytes go on to the server unchanged, and only the first request of a connection
//! is seen. Later requests on the same connection go where the first one went.
//!
//! | case | answer |
//! |---|---|
//! | the first bytes are no request line of HTTP/1 | [`HeadError::NotHttp`] at the first byte that cannot be |
//! | a method over [`METHOD_MAX_BYTES`], HTTP/0.9 | [`HeadError::NotHttp`] |
//! | the preface of HTTP/2 (RFC 9113 section 3.4) | [`HeadError::Http2`]: its host is compressed and comes later |
//! | empty lines before the request line (RFC 9112 section 2.2) | passed over |
//! | lines that end with LF alone | accepted, as RFC 9112 section 2.2 allows |
//! | folded lines, space before a colon, bytes that a field must not have | [`HeadError::Syntax`] |
//! | more than [`FIELDS_MAX`] fields | [`HeadError::Fields`] |
//! | more than `max_bytes` up to the empty line | [`HeadError::TooLarge`] |
//! | `GET http://a/` (absolute form) or `CONNECT a:443` | that host; a `Host` field is not looked at (RFC 9112 section 3.2.2) |
//! | a target of no known form, user information in it | [`HeadError::Target`] |
//! | `Host` twice, whatever the values and the target | [`HeadError::HostTwice`] |
//! | no `Host`, or an empty one | no host: HTTP/1.0 may, and what HTTP/1.1 may not is the server's to refuse |
//! | a `Host` that is neither a name nor an address | [`HeadError::Host`] |
//! | upper case, one final dot, a port | lower case, without dot and port |

use super::Parsed;
use super::name::Host;

#[cfg(test)]
mod tests;

/// A `max_bytes` for [`peek`] that suits most servers, which have limits of 8 to 16 KiB themselves.
pub const HEAD_MAX_BYTES: usize = 16 << 10;
/// Longest method, in bytes; the longest that is registered has 17.
pub const METHOD_MAX_BYTES: usize = 32;
/// Most header fields of a request.
pub const FIELDS_MAX: usize = 100;

const HTTP2_REQUEST_LINE: &[u8] = b"PRI * HTTP/2.0";

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The host, if the request names one.
    pub host: Option<Host>,
}

/// Why bytes are no request head to route by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[repr(u8)]
pub enum HeadError {
    /// Another protocol.
    #[error("not HTTP/1")]
    NotHttp,
    /// HTTP/2 without TLS.
    #[error("HTTP/2 without TLS")]
    Http2,
    /// It is longer than the caller allows.
    #[error("an HTTP head over the limit")]
    TooLarge,
    /// Too many header fields.
    #[error("an HTTP head with more than {FIELDS_MAX} fields")]
    Fields,
    /// A line that is no header field.
    #[error("a malformed HTTP head")]
    Syntax,
    /// The request target has no form that RFC 9112 section 3.2 knows.
    #[error("a malformed HTTP request target")]
    Target,
    /// More than one `Host`.
    #[error("an HTTP head with several Host fields")]
    HostTwice,
    /// The `Host` is neither a name nor an address.
    #[error("an HTTP head with a malformed Host field")]
    Host,
}

impl HeadError {
    /// Every error, in the order of the discriminants.
    pub const ALL: [HeadError; 8] = [
        HeadError::NotHttp,
        HeadError::Http2,
        HeadError::TooLarge,
        HeadError::Fields,
        HeadError::Syntax,
        HeadError::Target,
        HeadError::HostTwice,
        HeadError::Host,
    ];

    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            HeadError::NotHttp => "not_http",
            HeadError::Http2 => "http_2",
            HeadError::TooLarge => "http_too_large",
            HeadError::Fields => "http_fields",
            HeadError::Syntax => "http_syntax",
            HeadError::Target => "http_target",
            HeadError::HostTwice => "http_host_twice",
            HeadError::Host => "http_host",
        }
    }
}

/// Reads the request head at the beginning of `input`, of which at most `max_bytes` are looked at
/// ([`HEAD_MAX_BYTES`] is a good choice).
///
/// `used` counts up to the empty line, which is included. With `max_bytes` at hand the answer is not
/// [`Parsed::NeedMore`].
///
/// # Errors
/// [`Parsed::Bad`]; [`HeadError::NotHttp`] and [`HeadError::Http2`] as soon as the request line shows it.
pub fn peek(input: &[u8], max_bytes: usize) -> Parsed<Head, HeadError> {
    let within = &input[..input.len().min(max_bytes)];
    match read(within) {
        Ok(Some((value, used))) => Parsed::Done { value, used },
        Ok(None) if within.len() == max_bytes => Parsed::Bad(HeadError::TooLarge),
        Ok(None) => Parsed::NeedMore,
        Err(error) => Parsed::Bad(error),
    }
}

fn read(input: &[u8]) -> Result<Option<(Head, usize)>, HeadError> {
    if !request_line_is_whole(input)? {
        return Ok(None);
    }
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let used = match request.parse(input) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::Fields),
        Err(httparse::Error::Token | httparse::Error::Version) => return Err(HeadError::NotHttp),
        Err(_) => return Err(HeadError::Syntax),
    };
    let (method, target) = (
        request.method.unwrap_or_default(),
        request.path.unwrap_or_default(),
    );
    let mut hosts = request
        .headers
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("host"));
    let field = hosts.next().map(|field| field.value.trim_ascii());
    if hosts.next().is_some() {
        return Err(HeadError::HostTwice);
    }
    let host = match authority(method, target)? {
        Some(authority) => Some(Host::parse_with_port(authority).ok_or(HeadError::Target)?),
        None => match field {
            None | Some(b"") => None,
            Some(value) => Some(Host::parse_with_port(value).ok_or(HeadError::Host)?),
        },
    };
    Ok(Some((Head { host }, used)))
}

/// Whether a whole request line of HTTP/1 is there, up to its version. Everything that is not is found at its
/// first byte that cannot belong to one: `httparse` alone would ask another protocol for a whole line first.
fn request_line_is_whole(input: &[u8]) -> Result<bool, HeadError> {
    let empty_lines_bytes = input
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count();
    let line = &input[empty_lines_bytes..];
    if line.starts_with(HTTP2_REQUEST_LINE) {
        return Err(HeadError::Http2);
    }
    let Some(method_bytes) = line.iter().position(|byte| !is_token(*byte)) else {
        return if line.len() > METHOD_MAX_BYTES {
            Err(HeadError::NotHttp)
        } else {
            Ok(false)
        };
    };
    if line[method_bytes] != b' ' || !(1..=METHOD_MAX_BYTES).contains(&method_bytes) {
        return Err(HeadError::NotHttp);
    }
    let target = &line[method_bytes + 1..];
    let is_target = |byte: u8| byte > b' ' && byte != 0x7F;
    let Some(target_bytes) = target.iter().position(|byte| !is_target(*byte)) else {
        return Ok(false);
    };
    if target[target_bytes] != b' ' || target_bytes == 0 {
        return Err(HeadError::NotHttp);
    }
    let version = &target[target_bytes + 1..];
    let mut possible = false;
    for expected in [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"] {
        let common = version.len().min(expected.len());
        // The third is the preface's alone, and is not whole yet: that was looked for above.
        let applies = expected != b"HTTP/2.0" || HTTP2_REQUEST_LINE.starts_with(line);
        if applies && version[..common] == expected[..common] {
            if common == expected.len() {
                return Ok(true);
            }
            possible = true;
        }
    }
    if possible {
        Ok(false)
    } else {
        Err(HeadError::NotHttp)
    }
}

/// A byte of a token (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The authority in a request target: there in absolute form and for CONNECT, absent in origin and asterisk form
/// (RFC 9112 section 3.2).
fn authority<'a>(method: &str, target: &'a str) -> Result<Option<&'a [u8]>, HeadError> {
    if method == "CONNECT" {
        return Ok(Some(target.as_bytes()));
    }
    if target.starts_with('/') || target == "*" {
        return Ok(None);
    }
    let (scheme, rest) = target.split_once("://").ok_or(HeadError::Target)?;
    // RFC 3986 section 3.1.
    let valid = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if !valid {
        return Err(HeadError::Target);
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Ok(Some(&rest.as_bytes()[..end]))
}
