//! One relayed session: two sockets, two directions, and how far its end has come.
//!
//! ```text
//!   Relaying ──both FIN passed──────────────────────────────> Closing ──no operation left──> gone
//!      ├──a side failed──> Failing: deliver what it had sent ──┤
//!      ├──idle, max age──> Lingering: FIN to both, 1 s ────────┤
//!      └──half-close timeout, drain: RST to both ──────────────┘
//! ```

use std::collections::VecDeque;

use super::bandwidth::Limits;
use super::direction::Direction;
use super::io::Io;
use crate::core::wheel::TimerId;
use crate::outcome::{Cause, CloseReason, Side, Stage};
use crate::ring::{Buffer, Token};

/// One of a session's two sockets; also the direction whose bytes come from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// The client.
    Downstream = 0,
    /// The server.
    Upstream = 1,
}

impl End {
    /// Both ends.
    pub const BOTH: [End; 2] = [End::Downstream, End::Upstream];

    /// The opposite one.
    pub fn other(self) -> End {
        match self {
            End::Downstream => End::Upstream,
            End::Upstream => End::Downstream,
        }
    }

    /// The side to blame when this end misbehaves.
    pub fn side(self) -> Side {
        match self {
            End::Downstream => Side::Downstream,
            End::Upstream => Side::Upstream,
        }
    }
}

/// A session in the table: the slot alone may have been given to another one since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// Bits of a token that hold the generation; 24 of them, between the slot and the operation.
pub(super) const GENERATION_MASK: u32 = 0x00FF_FFFF;

/// What an operation was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    /// Receiving from the end.
    Receive = 0,
    /// Waiting until what came from the end can be delivered.
    Writable = 1,
    /// Watching the end for failure.
    Watch = 2,
    /// Sending what came from the end.
    Send = 3,
    /// Waiting for bytes of the end, to splice them.
    Readable = 4,
}

/// operation (7 bits) and end (1 bit) | generation (24 bits) | slot (32 bits)
pub(super) fn token(id: PairId, operation: Operation, end: End) -> Token {
    let kind = (operation as u64) << 1 | end as u64;
    kind << 56 | u64::from(id.generation & GENERATION_MASK) << 32 | u64::from(id.slot)
}

pub(super) fn parse_token(token: Token) -> (PairId, Operation, End) {
    let kind = (token >> 56) as u8;
    let end = if kind & 1 == 0 {
        End::Downstream
    } else {
        End::Upstream
    };
    let operation = match kind >> 1 {
        0 => Operation::Receive,
        1 => Operation::Writable,
        2 => Operation::Watch,
        3 => Operation::Send,
        4 => Operation::Readable,
        other => unreachable!("a token of operation {other} was never made"),
    };
    let generation = (token >> 32) as u32 & GENERATION_MASK;
    (
        PairId {
            slot: token as u32,
            generation,
        },
        operation,
        end,
    )
}

/// How far a session's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Bytes move.
    Relaying,
    /// This end is gone without FIN; what it had sent is still being delivered.
    Failing {
        end: End,
        check_ms: u64,
        backoff_ms: u64,
    },
    /// We sent FIN to both and throw away what still arrives; RST at the deadline.
    Lingering { deadline_ms: u64 },
    /// Every operation was cancelled; the sockets close when the last one completes.
    Closing,
}

/// Received bytes that are not delivered yet.
pub(super) struct Chunk {
    pub buffer: Buffer,
    pub from: u32,
    pub len: u32,
}

/// See the head of this file.
pub(super) struct Pair<I: Io, R> {
    /// Indexed by [`End`]; taken when closed.
    pub sockets: [Option<I::Socket>; 2],
    /// Indexed by the end that the bytes come from.
    pub directions: [Direction; 2],
    pub queues: [VecDeque<Chunk>; 2],
    /// Without it, no direction is limited.
    pub limits: Option<Box<Limits>>,
    /// Pipes with bytes in them, by the end that the bytes come from. Their bytes are queued behind
    /// none: such a direction's queue is empty.
    pub pipes: [Option<I::Pipe>; 2],
    /// Waits for bytes so far, to tell the one that a guard belongs to.
    pub waits: [u32; 2],
    /// The end's low-water mark was raised at some time.
    pub was_marked: [bool; 2],
    pub spliced_bytes: u64,
    pub mover_switches: u16,
    pub delivered_bytes: [u64; 2],
    /// A timer will try to send again, by the end that the bytes come from.
    pub retrying: [bool; 2],
    /// Put off to a later pass because the pass's budget was spent.
    pub put_off: [bool; 2],
    /// Waits for room in flight, by the end that the bytes come from.
    pub polling: [bool; 2],
    /// The end's socket can do zero-copy sends, as far as is known.
    pub zero_copy: [bool; 2],
    /// Keepalive probes are switched on.
    pub is_kept_alive: bool,
    /// Watches in flight, by end.
    pub watching: [bool; 2],
    /// Unacknowledged bytes when they were last looked at, by the end that they go to.
    pub unacknowledged: [u32; 2],
    pub phase: Phase,
    /// The end whose FIN came first.
    pub first_fin: Option<End>,
    pub reason: Option<CloseReason>,
    pub failed: [bool; 2],
    pub timer: Option<TimerId>,
    pub started_ms: u64,
    pub last_activity_ms: u64,
    pub first_byte_us: Option<u64>,
    pub record: R,
}

impl<I: Io, R> Pair<I, R> {
    pub(super) fn socket(&self, end: End) -> &I::Socket {
        self.sockets[end as usize]
            .as_ref()
            .expect("closed only when the pair is removed")
    }

    pub(super) fn direction(&mut self, from: End) -> &mut Direction {
        &mut self.directions[from as usize]
    }

    pub(super) fn note_first_byte(&mut self, now_us: u64, from: End) {
        if from == End::Upstream && self.first_byte_us.is_none() {
            self.first_byte_us = Some(now_us);
        }
    }

    /// Whether the head of the queue is worth a zero-copy send.
    pub(super) fn wants_zero_copy(&self, from: End, min_bytes: u32) -> bool {
        let head = self.queues[from as usize].front();
        head.is_some_and(|chunk| chunk.len - chunk.from >= min_bytes)
            && self.zero_copy[from.other() as usize]
    }

    /// Operations in flight, notifications of zero-copy sends aside: those outlive a session.
    pub(super) fn operations(&self) -> usize {
        End::BOTH
            .iter()
            .map(|&end| {
                let direction = &self.directions[end as usize];
                usize::from(direction.is_receiving())
                    + usize::from(direction.is_sending())
                    + usize::from(self.polling[end as usize])
                    + usize::from(self.watching[end as usize])
            })
            .sum()
    }

    /// Exactly one end sent FIN, and it was passed on.
    pub(super) fn is_half_closed(&self) -> bool {
        self.directions[0].is_finished() != self.directions[1].is_finished()
    }

    /// Whether it relays for longer than the limit, if there is one.
    pub(super) fn is_older_than(&self, now_ms: u64, max_age_ms: Option<u64>) -> bool {
        max_age_ms.is_some_and(|max| now_ms > self.started_ms + max)
    }

    /// Whether the session ends because this end reset it: its socket is dead.
    pub(super) fn was_reset_by(&self, end: End) -> bool {
        let by_it = |reason: CloseReason| reason.side == end.side() && reason.cause == Cause::Reset;
        self.failed[end as usize] && self.reason.is_some_and(by_it)
    }

    /// Whether bytes were received that the other end has not taken.
    pub(super) fn has_undelivered(&self) -> bool {
        self.directions
            .iter()
            .any(|direction| direction.queued_bytes() > 0)
    }

    /// The first reason given is the one that is reported.
    pub(super) fn blame(&mut self, side: Side, cause: Cause) {
        self.reason
            .get_or_insert(CloseReason::new(side, Stage::Relay, cause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_carry_slot_generation_operation_and_end() {
        for operation in [
            Operation::Receive,
            Operation::Writable,
            Operation::Watch,
            Operation::Send,
            Operation::Readable,
        ] {
            for end in End::BOTH {
                let id = PairId {
                    slot: 0xFFFF_FFFE,
                    generation: GENERATION_MASK,
                };
                let token = token(id, operation, end);
                assert!(token < crate::ring::TOKEN_RESERVED);
                assert_eq!(parse_token(token), (id, operation, end));
            }
        }
    }
}
