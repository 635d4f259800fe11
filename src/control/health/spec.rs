//! What to check, where and how often. Made by the configuration, which has validated it.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::balance::health::Pace;
use crate::sys::source::Source;
use crate::units::{Address, ServerId};

/// One server to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which.
    pub server: ServerId,
    /// Where it serves.
    pub address: Address,
    /// How it is checked; usually shared by an upstream's servers.
    pub check: Arc<CheckSpec>,
}

/// How a server is checked. How many checks decide is for `balance::health`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    /// What is asked, and what is an answer.
    pub kind: CheckKind,
    /// Where.
    pub at: CheckAt,
    /// How often.
    pub pace: Pace,
    /// For the whole check, from the connect to the verdict. Bytes that trickle in do not prolong it.
    pub timeout_us: u64,
    /// Options of the check's socket, those of sessions; `None` is a plain one.
    pub source: Option<Arc<Source>>,
}

/// Where a server is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckAt {
    /// Where it serves.
    Server,
    /// At another port of its address. Means nothing for a unix socket, which is then checked where
    /// it serves; the configuration refuses it.
    Port(u16),
    /// Elsewhere.
    Address(Address),
}

impl CheckAt {
    /// The address to connect to.
    pub fn resolve(&self, server: &Address) -> Address {
        match (self, server) {
            (CheckAt::Address(address), _) => address.clone(),
            (CheckAt::Port(port), Address::Tcp(server)) => {
                let mut address = *server;
                address.set_port(*port);
                Address::Tcp(address)
            }
            (CheckAt::Port(_), Address::Unix(_)) | (CheckAt::Server, _) => server.clone(),
        }
    }
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
        status: StatusSet,
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
    /// These somewhere, within [`super::ANSWER_BYTES_MAX`] (`role:master`).
    Contains(Vec<u8>),
}

/// HTTP statuses that pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusSet(Vec<RangeInclusive<u16>>);

impl StatusSet {
    /// The union of these.
    pub fn new(ranges: Vec<RangeInclusive<u16>>) -> Self {
        Self(ranges)
    }

    /// Whether a status is among them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}
