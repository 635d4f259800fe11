//! What the engine tells of a session, and to whom.

use super::pair::End;
use crate::outcome::{CloseReason, MoverKind};

/// How a session ended.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Why.
    pub reason: CloseReason,
    /// Bytes delivered to the server.
    pub to_upstream_bytes: u64,
    /// Bytes delivered to the client.
    pub to_downstream_bytes: u64,
    /// When the server's first byte was received (monotonic clock).
    pub first_byte_us: Option<u64>,
    /// Of the bytes delivered, those that were spliced.
    pub spliced_bytes: u64,
    /// How often a direction began or ceased to be spliced.
    pub mover_switches: u16,
}

/// Who is told of what the engine does.
pub trait Watcher {
    /// What is kept with a session and handed back at its end.
    type Record;
    /// Bytes that came from `from` were delivered to the other end.
    fn delivered(&mut self, record: &Self::Record, from: End, bytes: u64, mover: MoverKind);
    /// A direction is moved by `to` from now on.
    fn switched(&mut self, record: &Self::Record, to: MoverKind);
    /// A direction has to wait for its bandwidth.
    fn held_back(&mut self, record: &Self::Record, from: End);
    /// The engine is about to handle a completion of this session.
    fn in_hand(&mut self, record: &Self::Record);
    /// The session is over and its sockets are closed.
    fn closed(&mut self, now_us: u64, record: Self::Record, summary: Summary);
}
