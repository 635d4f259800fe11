//! What to check, where and how often. Made by the configuration, which has validated it.

use std::sync::Arc;

use crate::balance::health::Pace;
use crate::sys::source::Source;
use crate::units::{Address, ServerId};
use crate::wire::proxy::Version;

pub use crate::config::model::{CheckKind, Expect};

/// One server to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which.
    pub server: ServerId,
    /// Where it serves.
    pub address: Address,
    /// Where it is checked.
    pub at: CheckAt,
    /// The PROXY header that every check but tcp begins with; `None` is none.
    pub header: Option<Version>,
    /// How it is checked; usually shared by an upstream's servers.
    pub check: Arc<CheckSpec>,
}

/// How a server is checked. How many checks decide is for `balance::health`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    /// What is asked, and what is an answer.
    pub kind: CheckKind,
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
