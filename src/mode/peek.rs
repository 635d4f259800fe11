//! Reading the beginning of a stream without taking it: peek, parse, wait for more.
//!
//! What is peeked stays in the socket, so that whoever relays later forwards it unchanged and from its first
//! byte. The deadline is one for everything, not per byte: a client that trickles does not prolong it.
//!
//! ```text
//!   peek ──parse──> Done, Bad
//!    ^        └─need more─> SO_RCVLOWAT one above what is there ──readable──┐
//!    └──────────────────────────────────────────────────────────────────────┘
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::core::Signal;
use crate::core::readiness::{self, Readiness};
use crate::outcome::{Cause, CloseReason, Side, Stage};
use crate::sys::clock::{self, micros};
use crate::sys::socket::{self, Peer};
use crate::wire::Parsed;

/// How often a client that owes bytes looks whether the process is to end.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a client whose socket knows no low-water mark (a unix socket) is left alone before the next
/// look.
const NAP: Duration = Duration::from_millis(5);
/// What is peeked at first; a header or a ClientHello rarely is longer.
const FIRST_BYTES: usize = 2048;

/// How it is to be read.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    /// For the whole of it.
    pub timeout: Duration,
    /// The parser has its answer with so many bytes at the latest.
    pub max_bytes: usize,
    /// Ends everything at once.
    pub stop: &'a Signal,
}

/// What the beginning of a stream is.
#[derive(Debug, PartialEq, Eq)]
pub enum Peeked<T, E> {
    /// A value and the bytes that it takes.
    Done(T, usize),
    /// Not what it should be.
    Bad(E),
    /// The client closed before it was complete.
    Truncated,
    /// It was not complete in time, or is longer than the limit.
    Timeout,
    /// The process is stopping.
    Stopped,
    /// The client reset.
    Reset,
}

/// Peeks until `parse` has an answer.
///
/// # Errors
/// No descriptor or memory; the socket is closed then.
pub async fn peek<T, E>(
    downstream: OwnedFd,
    limits: Limits<'_>,
    mut parse: impl FnMut(&[u8]) -> Parsed<T, E>,
) -> Result<(OwnedFd, Peeked<T, E>), CloseReason> {
    let deadline_us = clock::now_us() + micros(limits.timeout);
    let lacking = |_| CloseReason::new(Side::Local, Stage::Accept, Cause::LocalResources);
    let waiting = Readiness::new(downstream).map_err(lacking)?;
    let mut buffer = vec![0; FIRST_BYTES.min(limits.max_bytes)];
    let (mut had, mut has_waited) = (0, false);
    let peeked = loop {
        let have = match socket::peek_bytes(waiting.as_fd(), &mut buffer) {
            Ok(0) => break Peeked::Truncated,
            Ok(have) => have,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(_) => break Peeked::Reset,
        };
        if have > had {
            match parse(&buffer[..have]) {
                Parsed::Done { value, used } => break Peeked::Done(value, used),
                Parsed::Bad(error) => break Peeked::Bad(error),
                Parsed::NeedMore if have < limits.max_bytes => {}
                Parsed::NeedMore => break Peeked::Timeout,
            }
            if have == buffer.len() {
                buffer.resize((2 * have).min(limits.max_bytes), 0);
                (had, has_waited) = (have, false);
                continue;
            }
        } else if have > 0 && socket::has_ended(waiting.as_fd()) {
            // More may have come with the end, after the look at the bytes.
            match socket::peek_bytes(waiting.as_fd(), &mut buffer) {
                Ok(now) if now > have => continue,
                _ => break Peeked::Truncated,
            }
        } else if has_waited {
            // It was said to be readable and has nothing new: a socket that knows no mark.
            crate::core::sleep(NAP).await;
        }
        if limits.stop.is_set() {
            // Not left to the wait, which bytes that trickle in may end again and again.
            break Peeked::Stopped;
        }
        (had, has_waited) = (have, true);
        if have > 0 {
            socket::set_low_water(waiting.as_fd(), have as u32 + 1);
        }
        if let Some(cause) = more(&waiting, deadline_us, limits.stop).await {
            break match cause {
                Cause::Drain => Peeked::Stopped,
                _ => Peeked::Timeout,
            };
        }
    };
    if had > 0 {
        socket::set_low_water(waiting.as_fd(), 1);
    }
    Ok((waiting.into_fd(), peeked))
}

impl<T, E> Peeked<T, E> {
    /// Why a client is sent away of whom this is all there is, and makes the coming close a reset; but not
    /// for one that never said anything, such as a port scan or a TCP health check.
    pub(super) fn refusal(
        &self,
        client: BorrowedFd<'_>,
        malformed: Cause,
        late: Cause,
    ) -> CloseReason {
        let (side, cause) = match self {
            Peeked::Truncated => match socket::peek(client) {
                Peer::Closed | Peer::Silent => {
                    return CloseReason::new(Side::Downstream, Stage::Accept, Cause::Empty);
                }
                Peer::Reset => (Side::Downstream, Cause::Reset),
                Peer::Sent => (Side::Downstream, malformed),
            },
            Peeked::Done(..) | Peeked::Bad(_) => (Side::Downstream, malformed),
            Peeked::Reset => (Side::Downstream, Cause::Reset),
            Peeked::Timeout => (Side::Local, late),
            Peeked::Stopped => (Side::Local, Cause::Drain),
        };
        socket::linger_zero(client);
        CloseReason::new(side, Stage::Accept, cause)
    }
}

/// Waits for more bytes or an end; a cause if it was given up.
pub(super) async fn more(waiting: &Readiness, deadline_us: u64, stop: &Signal) -> Option<Cause> {
    let left = Duration::from_micros(deadline_us.saturating_sub(clock::now_us()));
    let give_up = |is_over: bool| {
        if stop.is_set() {
            Some(Cause::Drain)
        } else {
            is_over.then_some(Cause::FirstByteTimeout)
        }
    };
    if left.is_zero() {
        return give_up(true);
    }
    // Shutting down the receiving half alone sends nothing, so that what follows is still ours to choose.
    let end = || socket::shutdown_read(waiting.as_fd());
    readiness::wait_patiently(waiting.readable(), left, LOOK_EVERY, give_up, end).await
}
