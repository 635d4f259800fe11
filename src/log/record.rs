//! One session's access-log record, as a core hands it over: fixed size, no allocation, no text.
//!
//! The writer thread turns it into a line; see [`super`].

use std::net::SocketAddr;
use std::time::SystemTime;

use crate::outcome::{CloseReason, MoverKind};
use crate::units::{CoreId, ListenerId, ServerId, UpstreamId};

/// Everything that an access-log line says about one session.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Unique on its core: see [`super::SessionId`].
    pub sequence: u64,
    /// The core that served it.
    pub core: CoreId,
    /// Where it was accepted.
    pub listener: ListenerId,
    /// Where it was to go; `None` if it was refused before that was decided.
    pub upstream: Option<UpstreamId>,
    /// The server that took it; `None` if none did.
    pub server: Option<ServerId>,
    /// The client's address; `None` for a unix socket.
    pub downstream: Option<SocketAddr>,
    /// The proxy in front that told who the client is; `None` without a PROXY header.
    pub via: Option<SocketAddr>,
    /// When the session ended. Wall clock, for people; every duration is monotonic.
    pub ended_at: SystemTime,
    /// From accept to the established upstream connection, in microseconds.
    pub connect_us: Option<u64>,
    /// From accept to the first byte of the server, in microseconds.
    pub first_byte_us: Option<u64>,
    /// From accept to the end, in microseconds.
    pub duration_us: u64,
    /// Bytes delivered from the client to the server.
    pub bytes_to_upstream: u64,
    /// Bytes delivered from the server to the client.
    pub bytes_to_downstream: u64,
    /// Servers tried.
    pub attempts: u16,
    /// Why it ended.
    pub close_reason: CloseReason,
    /// Bytes of both directions that were spliced; `None` if it never relayed.
    pub spliced_bytes: Option<u64>,
    /// How often a direction changed its mover.
    pub mover_switches: u16,
}

impl Record {
    /// What moved the most bytes; `None` if it never relayed.
    pub fn mover(&self) -> Option<MoverKind> {
        let spliced = self.spliced_bytes?;
        let copied = self.bytes_to_upstream + self.bytes_to_downstream - spliced;
        Some(if spliced > copied {
            MoverKind::Splice
        } else {
            MoverKind::Copy
        })
    }
}

/// The time of day, for people who read logs. Nothing else in the program may depend on it.
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}
