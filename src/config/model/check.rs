//! Asking servers whether they live.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Asking servers whether they live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is asked, and what is an answer.
    pub kind: CheckKind,
    /// From one check to the next.
    pub interval: Duration,
    /// The same while a server is between up and down.
    pub fast_interval: Duration,
    /// How far either varies, in percent.
    pub jitter_percent: u8,
    /// For a whole check.
    pub timeout: Duration,
    /// Passes in a row that bring a server up.
    pub rise: u32,
    /// Failures in a row that take it down.
    pub fall: u32,
    /// Another port than the one that serves.
    pub port: Option<u16>,
    /// What comes before what is asked.
    pub header: CheckHeader,
}

/// The PROXY header at the beginning of a check. One of type tcp sends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckHeader {
    /// That of the sessions, for a check that goes where they go; none for one that goes elsewhere.
    AsSessions,
    /// None, wherever it goes.
    Off,
    /// The line of text, wherever it goes.
    V1,
    /// The binary header, wherever it goes.
    V2,
}

/// What is asked, and what counts as an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// The handshake alone. A server that accepts and closes at once passes: its kernel did answer.
    ///
    /// It is ended by RST before the ACK that would complete it, so that the server's process
    /// never hears of it, and a full accept queue fails the check (the kernel drops the SYN). A unix
    /// socket's server sees a connection that ends at once.
    Tcp,
    /// Bytes to send, if any, and bytes to get back.
    Exchange {
        /// Sent first; may be empty where the server speaks first.
        send: Vec<u8>,
        /// What must come back.
        expect: Expect,
    },
    /// `GET path` over HTTP/1.1. Only the final status line is read.
    Http {
        /// Begins with `/`; no spaces, no control characters.
        path: String,
        /// For the `Host` header; no control characters.
        host: String,
        /// What passes.
        status: Vec<RangeInclusive<u16>>,
    },
    /// A ClientHello for TLS 1.2 or 1.3; a ServerHello (HelloRetryRequest is one) passes.
    ///
    /// A fatal alert fails: the hello offers what every common client offers, so that a server that
    /// turns it down turns clients down. A server that needs a name to answer needs `server_name`.
    Tls {
        /// For SNI; a host name in ASCII, never an IP address.
        server_name: Option<String>,
    },
}

/// Which bytes must come back. At least one byte must, whatever is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// These first. The usual choice (`+PONG`, `220 `, `SSH-2.0-`): a wrong answer is known at its
    /// first wrong byte, and an error page that happens to hold the word does not pass.
    Prefix(Vec<u8>),
    /// These somewhere, within 64 KiB (`role:master`).
    Contains(Vec<u8>),
}
