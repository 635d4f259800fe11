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

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::core::Signal;
use crate::core::readiness::{self, Readiness};
use crate::outcome::Cause;
use crate::sys::clock::{self, micros};
use crate::sys::socket;
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
    /// No descriptor or memory.
    Local,
    /// The client reset.
    Reset,
}

/// Peeks until `parse` has an answer. The socket comes back in any case but [`Peeked::Local`].
pub async fn peek<T, E>(
    downstream: OwnedFd,
    limits: Limits<'_>,
    mut parse: impl FnMut(&[u8]) -> Parsed<T, E>,
) -> (Option<OwnedFd>, Peeked<T, E>) {
    let deadline_us = clock::now_us() + micros(limits.timeout);
    let Ok(waiting) = Readiness::new(downstream) else {
        return (None, Peeked::Local);
    };
    let mut buffer = vec![0; FIRST_BYTES.min(limits.max_bytes)];
    let mut had = 0;
    let peeked = loop {
        let have = match socket::peek_bytes(waiting.as_fd(), &mut buffer) {
            Ok(have) => have,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(_) => break Peeked::Reset,
        };
        if have > had {
            match parse(&buffer[..have]) {
                Parsed::Done { value, used } => break Peeked::Done(value, used),
                Parsed::Bad(error) => break Peeked::Bad(error),
                Parsed::NeedMore => {}
            }
            if have == buffer.len() {
                if have >= limits.max_bytes {
                    break Peeked::Timeout;
                }
                buffer.resize((2 * have).min(limits.max_bytes), 0);
                had = have;
                continue;
            }
        } else if socket::has_ended(waiting.as_fd()) {
            break Peeked::Truncated;
        } else if have > 0 {
            // It was said to be readable and has nothing new: no mark, or the peer of one.
            crate::core::sleep(NAP).await;
        }
        had = have;
        socket::set_low_water(waiting.as_fd(), have as u32 + 1);
        if let Some(cause) = more(&waiting, deadline_us, limits.stop).await {
            break match cause {
                Cause::Drain => Peeked::Stopped,
                _ => Peeked::Timeout,
            };
        }
    };
    socket::set_low_water(waiting.as_fd(), 1);
    (Some(waiting.into_fd()), peeked)
}

/// Waits for more bytes or an end; a cause if it was given up.
async fn more(waiting: &Readiness, deadline_us: u64, stop: &Signal) -> Option<Cause> {
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
