//! The splice mover: what a bulk stream's source received goes through a pipe to its destination,
//! and user space never sees it.
//!
//! ```text
//!   poll for POLLIN (ring) ──> fill: splice(socket -> pipe) ──> drain: splice(pipe -> socket) ─┐
//!        ^                                                          │ destination full          │
//!        └────────────────────── pipe empty ────────────────────────┴─> wait for room ──────────┘
//! ```
//!
//! Both calls return at once. (IORING_OP_SPLICE is no substitute: the kernel always hands it to a
//! worker thread.) A pipe is filled only while it is empty, so that EAGAIN from a fill can only mean an
//! empty source; and it is borrowed only while it holds bytes, so that a core needs few of them
//! however many streams it has. One that is not proven empty is closed and never lent again: what is in
//! it belongs to one session.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use super::bulk::Verdict;
use super::copy::Delivery;
use super::direction::Awaited;
use super::io::Io;
use super::pair::{End, Operation, PairId, Phase, token};
use super::{Relay, Watcher, cause_of, live};
use crate::outcome::{Cause, MoverKind};

/// Raised low-water marks per core. A mark of 1 MiB lets a socket's receive buffer grow to about
/// 2 MiB for as long as it lives (tcp_set_rcvlowat).
const MARKS_MAX: usize = 128;

/// The pipes of one core.
pub(super) struct Pipes<P> {
    idle: Vec<P>,
    lent: usize,
    /// Of both together.
    max: usize,
}

impl<P> Pipes<P> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            idle: Vec::new(),
            lent: 0,
            max,
        }
    }

    /// The pipe used last, whose memory is still in the CPU's cache; or a new one. `None`: no more
    /// of them are allowed, or the process is out of descriptors or memory.
    fn borrow(&mut self, make: impl FnOnce() -> io::Result<P>) -> Option<P> {
        let pipe = match self.idle.pop() {
            Some(pipe) => Some(pipe),
            None if self.lent < self.max => make().ok(),
            None => None,
        }?;
        self.lent += 1;
        Some(pipe)
    }

    fn give_back(&mut self, empty: P) {
        self.lent -= 1;
        self.idle.push(empty);
    }

    /// Forgets a pipe that its borrower closed.
    fn lost(&mut self) {
        self.lent -= 1;
    }
}

/// A raised mark must be lowered at this moment, unless the wait that it belongs to has ended.
struct Guard {
    at_us: u64,
    id: PairId,
    from: End,
    wait: u32,
}

/// Guards in the order in which they were set, which is that of their deadlines: all last equally
/// long.
#[derive(Default)]
pub(super) struct Guards(VecDeque<Guard>);

impl Guards {
    pub(super) fn next_us(&self) -> Option<u64> {
        self.0.front().map(|guard| guard.at_us)
    }
}

impl<I: Io, W: Watcher> Relay<I, W> {
    /// Open pipes.
    pub fn pipes(&self) -> usize {
        self.pipes.lent + self.pipes.idle.len()
    }

    /// Pipes that hold bytes.
    pub fn pipes_lent(&self) -> usize {
        self.pipes.lent
    }

    /// Arms the wait for bytes, and its guard if the low-water mark is raised.
    pub(super) fn await_readable(&mut self, now_us: u64, id: PairId, from: End) {
        let pair = live(&mut self.slots, id);
        pair.waits[from as usize] = pair.waits[from as usize].wrapping_add(1);
        if pair.directions[from as usize].bulk().is_marked() {
            self.guards.0.push_back(Guard {
                at_us: now_us + self.options.thresholds.guard_us,
                id,
                from,
                wait: pair.waits[from as usize],
            });
        }
        let token = token(id, Operation::Readable, from);
        self.io.await_readable(pair.socket(from), token);
    }

    /// The wait for bytes is over: there are some, or FIN, or an error, or it was cancelled.
    pub(super) fn on_readable(&mut self, now_us: u64, id: PairId, from: End) {
        let pair = live(&mut self.slots, id);
        pair.direction(from).on_readable();
        if pair.phase != Phase::Closing {
            self.progress(now_us, id, from);
        }
    }

    /// Moves what the source received into a pipe.
    pub(super) fn fill(&mut self, now_us: u64, id: PairId, from: End) {
        let Some(pipe) = self.pipes.borrow(|| self.io.make_pipe()) else {
            let now_ms = now_us / 1_000;
            self.live(id).direction(from).bulk().on_no_pipe(now_ms);
            return self.demoted(id, from);
        };
        let pair = live(&mut self.slots, id);
        debug_assert!(pair.pipes[from as usize].is_none());
        let chunk = pair.allowance(from, self.options.thresholds.chunk_bytes);
        let filled = self.io.fill(pair.socket(from), &pipe, chunk as usize);
        match filled {
            Ok(0) => {
                // FIN, or urgent data with FIN behind it: tcp_splice_read() looks at the flag before
                // it looks at what is queued.
                self.pipes.give_back(pipe);
                self.stop_splicing(id, from);
            }
            Ok(filled) => {
                pair.pipes[from as usize] = Some(pipe);
                self.on_filled(now_us, id, from, filled as u32);
            }
            Err(error) => {
                self.pipes.give_back(pipe);
                self.on_not_filled(now_us, id, from, &error);
            }
        }
    }

    fn on_filled(&mut self, now_us: u64, id: PairId, from: End, filled: u32) {
        let limits = &self.options.thresholds;
        let pair = live(&mut self.slots, id);
        pair.last_activity_ms = now_us / 1_000;
        pair.note_first_byte(now_us, from);
        let direction = &mut pair.directions[from as usize];
        let verdict = direction.bulk().on_filled(now_us / 1_000, filled, limits);
        // A pipe of few slots leaves bytes behind that must not wait for the mark.
        let below_mark = direction.bulk().is_marked() && filled < limits.mark_bytes;
        direction.on_filled(filled, below_mark || filled >= limits.chunk_bytes);
        if direction.is_limited() {
            pair.spend(from, filled);
        }
        match verdict {
            Verdict::GoOn => {}
            Verdict::RaiseMark => self.raise_mark(id, from),
            Verdict::Demote => self.demoted(id, from),
        }
    }

    fn on_not_filled(&mut self, now_us: u64, id: PairId, from: End, error: &io::Error) {
        let pair = live(&mut self.slots, id);
        let direction = &mut pair.directions[from as usize];
        match (error.kind(), error.raw_os_error()) {
            (ErrorKind::Interrupted, _) => direction.on_readable(),
            (ErrorKind::WouldBlock, _) => {
                if direction.bulk().on_empty() == Verdict::Demote {
                    self.demoted(id, from);
                }
            }
            // No memory just now: copying needs none.
            (_, Some(libc::ENOMEM)) => {
                direction.bulk().demote();
                self.demoted(id, from);
            }
            // Not a kind of socket that can be spliced.
            (_, Some(libc::EINVAL)) => {
                direction.bulk().refuse();
                self.demoted(id, from);
            }
            (_, errno) => {
                // What is behind an urgent byte is still to be received; then comes 0.
                self.stop_splicing(id, from);
                self.on_failure(now_us, id, from, errno.map_or(Cause::SocketError, cause_of));
            }
        }
    }

    /// Moves what the pipe holds to the destination.
    pub(super) fn drain(&mut self, now_us: u64, id: PairId, from: End) -> Delivery {
        let pair = live(&mut self.slots, id);
        let held = pair.directions[from as usize].queued_bytes();
        let pipe = pair.pipes[from as usize].as_ref().expect("seen by deliver");
        let to = pair.sockets[from.other() as usize].as_ref();
        let to = to.expect("open while relaying");
        match self.io.drain(pipe, to, held as usize) {
            Ok(sent @ 1..) => {
                let sent = sent as u32;
                pair.last_activity_ms = now_us / 1_000;
                self.count(id, from, sent, MoverKind::Splice);
                let pair = live(&mut self.slots, id);
                pair.directions[from as usize].on_sent(sent);
                if sent == held
                    && let Some(empty) = pair.pipes[from as usize].take()
                {
                    debug_assert!(
                        self.io.is_empty(&empty),
                        "the next session would get the rest"
                    );
                    self.pipes.give_back(empty);
                }
                // Less than all: the next attempt tells whether the destination is full.
                Delivery {
                    sent_bytes: u64::from(sent),
                    is_full: false,
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Delivery {
                sent_bytes: 0,
                is_full: true,
            },
            Err(error) if error.kind() == ErrorKind::Interrupted => Delivery::default(),
            failed => {
                // A pipe that holds bytes never gives none; if it did, the stream would be broken.
                let errno = failed.err().and_then(|error| error.raw_os_error());
                let cause = errno.map_or(Cause::SocketError, cause_of);
                self.on_failure(now_us, id, from.other(), cause);
                Delivery::default()
            }
        }
    }

    /// Closes a direction's pipe together with what is in it.
    pub(super) fn drop_pipe(&mut self, id: PairId, from: End) {
        let pair = live(&mut self.slots, id);
        if let Some(pipe) = pair.pipes[from as usize].take() {
            self.io.discard_pipe(pipe);
            self.pipes.lost();
        }
    }

    /// A receive tells how the stream ends.
    fn stop_splicing(&mut self, id: PairId, from: End) {
        self.lower_mark(id, from);
        self.live(id).direction(from).bulk().refuse();
    }

    /// Splicing of a direction began.
    pub(super) fn promoted(&mut self, id: PairId, from: End) {
        let pair = live(&mut self.slots, id);
        pair.directions[from as usize].fill_next();
        self.switched(id, MoverKind::Splice);
    }

    /// Splicing of a direction ended. What its pipe holds is still delivered from there.
    fn demoted(&mut self, id: PairId, from: End) {
        self.lower_mark(id, from);
        self.switched(id, MoverKind::Copy);
    }

    fn switched(&mut self, id: PairId, to: MoverKind) {
        let pair = live(&mut self.slots, id);
        pair.mover_switches = pair.mover_switches.saturating_add(1);
        self.watcher.switched(&pair.record, to);
    }

    fn raise_mark(&mut self, id: PairId, from: End) {
        let pair = live(&mut self.slots, id);
        let is_limited = pair.directions[from as usize].is_limited();
        let bit = &mut pair.was_marked[from as usize];
        // A limited stream pauses anyway, and may not take as much as the mark.
        if is_limited || (!*bit && self.marks == MARKS_MAX) {
            return pair.directions[from as usize].bulk().on_mark_lowered();
        }
        self.marks += usize::from(!std::mem::replace(bit, true));
        let mark = self.options.thresholds.mark_bytes;
        self.io.set_low_water(pair.socket(from), mark);
    }

    /// Before anything else waits for bytes: a receive waits for the mark as well.
    pub(super) fn lower_mark(&mut self, id: PairId, from: End) {
        let pair = live(&mut self.slots, id);
        if pair.directions[from as usize].bulk().is_marked() {
            self.io.set_low_water(pair.socket(from), 1);
            pair.direction(from).bulk().on_mark_lowered();
        }
    }

    /// Lowers the marks whose streams did not reach them in time.
    pub(super) fn fire_guards(&mut self, now_us: u64) {
        while let Some(guard) = self.guards.0.pop_front_if(|guard| guard.at_us <= now_us) {
            let Guard { id, from, wait, .. } = guard;
            let slot = &mut self.slots[id.slot as usize];
            let Some(pair) = slot
                .pair
                .as_deref_mut()
                .filter(|_| slot.generation == id.generation)
            else {
                continue;
            };
            let is_same = pair.waits[from as usize] == wait;
            if is_same && pair.directions[from as usize].awaited() == Some(Awaited::Readiness) {
                // The kernel looks at once whether the wait is over now.
                self.io.set_low_water(pair.socket(from), 1);
                pair.direction(from).bulk().on_guard_fired();
                self.low_water_guards_total += 1;
            }
        }
    }
}
