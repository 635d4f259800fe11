//! One simulated socket with its peer: how far each has come, and the operations in flight.

use crate::ring::{Buffer, Group, Shots, Token};

pub(super) struct Receive {
    pub(super) token: Token,
    pub(super) group: Group,
    pub(super) shots: Shots,
    pub(super) most: u32,
    pub(super) cancelled: bool,
}

pub(super) struct Send {
    pub(super) token: Token,
    pub(super) buffer: Buffer,
    pub(super) from: u32,
    pub(super) len: u32,
    /// Zero-copy, out of this lent buffer.
    pub(super) lent: Option<u16>,
}

/// A multishot poll, and what it has told.
pub(super) struct Poll {
    pub(super) token: Token,
    pub(super) cancelled: bool,
    pub(super) told_fin: bool,
    pub(super) told_reset: bool,
}

impl Poll {
    pub(super) fn new(token: Token) -> Self {
        Self {
            token,
            cancelled: false,
            told_fin: false,
            told_reset: false,
        }
    }
}

/// One of our sockets, with its peer.
#[derive(Default)]
pub(super) struct Endpoint {
    /// Bytes that the peer sent so far, and of those, that we received.
    pub peer_sent: u64,
    pub received: u64,
    pub peer_will_send: u64,
    pub peer_fin: bool,
    pub peer_reset: bool,
    /// The pending socket error was reported once.
    pub error_taken: bool,
    /// Never reads again.
    pub stalled: bool,
    /// Bytes that our kernel took for the peer, and of those, that it acknowledged.
    pub taken: u64,
    pub acknowledged: u64,
    pub room: u64,
    pub fin_sent: bool,
    pub is_kept_alive: bool,
    pub linger_zero: bool,
    pub closed: bool,
    pub receive: Option<Receive>,
    pub send: Option<Send>,
    pub writable: Option<Poll>,
    /// Waits for bytes, once.
    pub readable: Option<Poll>,
    /// Knows no zero-copy send, as a unix socket.
    pub only_copies: bool,
    /// SO_RCVLOWAT.
    pub low_water: u64,
    /// Position of the peer's byte of urgent data, which splice does not go past.
    pub urgent_at: Option<u64>,
    /// A send took less than it was offered.
    pub refused: bool,
    pub watch: Option<Poll>,
}

impl Endpoint {
    pub(super) fn free(&self) -> u64 {
        self.room - (self.taken - self.acknowledged)
    }

    pub(super) fn available(&self) -> u64 {
        self.peer_sent - self.received
    }

    /// Bytes from here to the urgent ones, if some are still to come.
    pub(super) fn before_urgent(&self) -> Option<u64> {
        self.urgent_at?.checked_sub(self.received)
    }

    /// The error that the socket reports now: the reset once, then what `after` says.
    pub(super) fn reset_error(&mut self, after: i32) -> i32 {
        if std::mem::replace(&mut self.error_taken, true) {
            after
        } else {
            libc::ECONNRESET
        }
    }
}
