//! How sessions end: failures, deadlines, and the close itself.
//!
//! An abort is passed on as an abort, after every byte that came before it: the last one is sent
//! *and* the peer has acknowledged all (`SIOCOUTQ` is 0), for a reset drops what is still
//! queued. A socket closes only when no operation on it is in flight; `shutdown(2)` is never called
//! on a socket that is to be reset, for the peer would read a clean end.

use super::direction::{Awaited, Source};
use super::io::Io;
use super::pair::{End, GENERATION_MASK, Operation, Pair, PairId, Phase, token};
use super::{Due, Relay, Summary, Watcher, cause_of, is_over, live};
use crate::outcome::{Cause, CloseReason, Side, Stage};

/// After our own FIN to both ends, they have this long to close before they are reset.
const LINGER_MS: u64 = 1_000;
/// How often an end that sent FIN is looked at for a reset.
const LOOK_MS: u64 = 1_000;
/// First pause between two looks at a peer's unacknowledged bytes; doubled each time.
const CHECK_FIRST_MS: u64 = 1;
/// Longest such pause.
const CHECK_MAX_MS: u64 = 250;

impl<I: Io, W: Watcher> Relay<I, W> {
    /// An end is gone without FIN. What it had sent is delivered; nothing more goes to it.
    pub(super) fn on_failure(&mut self, now_us: u64, id: PairId, end: End, cause: Cause) {
        let now_ms = now_us / 1_000;
        let pair = self.live(id);
        let known = std::mem::replace(&mut pair.failed[end as usize], true);
        match pair.phase {
            Phase::Relaying if !known => {
                pair.blame(end.side(), cause);
                pair.phase = Phase::Failing {
                    end,
                    check_ms: now_ms,
                    backoff_ms: CHECK_FIRST_MS,
                };
                pair.last_activity_ms = now_ms;
                self.stop_towards(id, end);
                self.rearm_timer(now_ms, id);
            }
            // Both are gone, or one of those to whom we had said goodbye already.
            Phase::Failing { end: first, .. } if first != end => self.close(id, Closing::Reset),
            Phase::Lingering { .. } => self.close(id, Closing::Reset),
            _ => {}
        }
    }

    /// Nothing more is delivered to `end`: throw away what waits, stop receiving for it.
    fn stop_towards(&mut self, id: PairId, end: End) {
        let from = end.other();
        let pair = self.live(id);
        pair.direction(from).discard();
        let polling = pair.polling[from as usize];
        self.cancel_receive(id, from);
        // Marks the source so that `next` does not arm another receive.
        self.live(id).direction(from).on_failed();
        if polling {
            self.io.cancel(token(id, Operation::Writable, from));
        }
        self.drop_queue(id, from);
    }

    /// Cancels the operation on the source, if there is one.
    fn cancel_receive(&mut self, id: PairId, from: End) {
        let operation = match self.live(id).direction(from).on_cancel() {
            None => return,
            Some(Awaited::Bytes) => Operation::Receive,
            Some(Awaited::Readiness) => Operation::Readable,
        };
        self.io.cancel(token(id, operation, from));
    }

    /// Drops what is queued, except the piece that a send in the ring is about to read.
    pub(super) fn drop_queue(&mut self, id: PairId, from: End) {
        let pair = live(&mut self.slots, id);
        let keep = usize::from(pair.direction(from).is_sending());
        let queue = &mut pair.queues[from as usize];
        while queue.len() > keep
            && let Some(chunk) = queue.pop_back()
        {
            self.io.release(chunk.buffer);
        }
        self.drop_pipe(id, from);
    }

    /// Looks whether the session's end can go a step further.
    pub(super) fn settle(&mut self, now_us: u64, id: PairId) {
        let Some(pair) = self.pair(id) else { return };
        match pair.phase {
            Phase::Relaying => {
                if pair.directions.iter().all(|d| d.is_finished()) {
                    let (side, cause) = clean_end(pair);
                    pair.blame(side, cause);
                    self.close(id, Closing::Orderly);
                }
            }
            Phase::Failing { end, check_ms, .. } => {
                if is_over(&pair.directions[end as usize]) && now_us / 1_000 >= check_ms {
                    self.check_acknowledged(now_us, id, end);
                }
            }
            Phase::Lingering { .. } => {
                if pair.directions.iter().all(|d| d.source() != Source::Open) {
                    self.close(id, Closing::Orderly);
                }
            }
            Phase::Closing => {}
        }
        self.finish(now_us, id);
    }

    /// All that the failed end had sent was handed to the kernel: once the other end has
    /// acknowledged it, the reset may follow.
    fn check_acknowledged(&mut self, now_us: u64, id: PairId, failed: End) {
        let now_ms = now_us / 1_000;
        let survivor = failed.other();
        self.note_acknowledged(now_ms, id);
        let pair = self.live(id);
        if pair.unacknowledged[survivor as usize] == 0 {
            return self.close(id, Closing::Reset);
        }
        if let Phase::Failing {
            check_ms,
            backoff_ms,
            ..
        } = &mut pair.phase
        {
            *check_ms = now_ms + *backoff_ms;
            *backoff_ms = (*backoff_ms * 2).min(CHECK_MAX_MS);
        }
        self.rearm_timer(now_ms, id);
    }

    pub(super) fn on_timer(&mut self, now_us: u64, id: PairId) {
        let now_ms = now_us / 1_000;
        let Some(pair) = self.pair(id) else { return };
        pair.timer = None;
        match pair.phase {
            Phase::Relaying => self.on_relaying_timer(now_us, id),
            Phase::Failing { .. } => self.on_failing_timer(now_ms, id),
            Phase::Lingering { deadline_ms } if now_ms >= deadline_ms => {
                self.close(id, Closing::Reset);
            }
            Phase::Lingering { .. } | Phase::Closing => {}
        }
        self.rearm_timer(now_ms, id);
        self.settle(now_us, id);
    }

    /// The rest is delivered for as long as the survivor takes any of it.
    fn on_failing_timer(&mut self, now_ms: u64, id: PairId) {
        self.note_acknowledged(now_ms, id);
        let options = self.options;
        let pair = self.live(id);
        pair.note_held_back(now_ms);
        let stuck = now_ms > pair.last_activity_ms + options.half_close_ms;
        if stuck || pair.is_older_than(now_ms, options.max_age_ms) {
            self.close(id, Closing::Reset);
        }
    }

    fn on_relaying_timer(&mut self, now_us: u64, id: PairId) {
        let now_ms = now_us / 1_000;
        let options = self.options;
        if let Some((end, cause)) = self.reset_after_fin(id) {
            return self.on_failure(now_us, id, end, cause);
        }
        self.note_acknowledged(now_ms, id);
        self.keep_alive(now_ms, id);
        let pair = self.live(id);
        pair.note_held_back(now_ms);
        // Moments are rounded down to milliseconds: only one more than the limit is surely over.
        let silent_ms = now_ms.saturating_sub(pair.last_activity_ms);
        if pair.is_older_than(now_ms, options.max_age_ms) {
            self.say_goodbye(now_us, id, Cause::MaxAge);
        } else if pair.is_half_closed() && silent_ms > options.half_close_ms {
            pair.blame(Side::Local, Cause::HalfCloseTimeout);
            self.close(id, Closing::Reset);
        } else if silent_ms > options.idle_ms {
            self.say_goodbye(now_us, id, Cause::IdleTimeout);
        }
    }

    /// Switches keepalive on for a session as old as the silence that calls for the first probe. Most
    /// sessions are over by then and are spared eight system calls and two timers of the kernel's. The
    /// probes come no later for it, but for the time of the dial: they are due by what was received last
    /// (tcp_set_keepalive, tcp_sock_set_keepidle_locked).
    fn keep_alive(&mut self, now_ms: u64, id: PairId) {
        let pair = live(&mut self.slots, id);
        let Some(keepalive) = self.options.keepalive else {
            return;
        };
        if !pair.is_kept_alive && now_ms >= pair.started_ms + keepalive.idle_ms() {
            pair.is_kept_alive = true;
            for end in End::BOTH {
                self.io.keep_alive(pair.socket(end), keepalive);
            }
        }
    }

    /// An end that sent FIN and was reset since. No receive is armed on it, and a poll is no help:
    /// io_uring's always reports the FIN (POLLRDHUP).
    fn reset_after_fin(&mut self, id: PairId) -> Option<(End, Cause)> {
        End::BOTH.into_iter().find_map(|end| {
            let slot = &mut self.slots[id.slot as usize];
            let pair = slot.pair.as_deref_mut()?;
            if pair.directions[end as usize].source() != Source::Ended {
                return None;
            }
            let error = self.io.take_error(pair.socket(end)).err()?;
            Some((
                end,
                error.raw_os_error().map_or(Cause::SocketError, cause_of),
            ))
        })
    }

    /// A peer that slowly drains what the kernel holds for it is not silent: a change of its
    /// unacknowledged bytes counts as activity.
    fn note_acknowledged(&mut self, now_ms: u64, id: PairId) {
        for end in End::BOTH {
            let pair = live(&mut self.slots, id);
            if pair.was_reset_by(end) {
                // What was sent to it is gone.
                continue;
            }
            let now = self.io.unacknowledged_bytes(pair.socket(end));
            if std::mem::replace(&mut pair.unacknowledged[end as usize], now) != now {
                pair.last_activity_ms = now_ms;
            }
        }
    }

    /// Ends a session that we have had enough of: FIN to both ends, RST a second later. If bytes
    /// are left that a FIN would make look like the whole of it, RST at once.
    fn say_goodbye(&mut self, now_us: u64, id: PairId, cause: Cause) {
        if self.io.has_completions() {
            // Bytes of it may be among them. The timer comes again in a millisecond.
            return;
        }
        let now_ms = now_us / 1_000;
        let pair = self.live(id);
        pair.blame(Side::Local, cause);
        if pair.has_undelivered() || self.has_unread(id) {
            return self.close(id, Closing::Reset);
        }
        let pair = self.live(id);
        pair.phase = Phase::Lingering {
            deadline_ms: now_ms + LINGER_MS,
        };
        for end in End::BOTH {
            self.lower_mark(id, end);
            let pair = live(&mut self.slots, id);
            pair.directions[end as usize].discard();
            self.io.shutdown_write(pair.socket(end));
        }
        for end in End::BOTH {
            // One that was held back has no receive that would see the other's FIN.
            self.progress(now_us, id, end);
        }
    }

    /// Whether bytes lie in a source's socket: below its low-water mark, or because no buffer is left, or
    /// because they have just come.
    fn has_unread(&mut self, id: PairId) -> bool {
        End::BOTH.into_iter().any(|end| {
            let pair = live(&mut self.slots, id);
            let is_open = pair.direction(end).source() == Source::Open;
            is_open && self.io.has_unread(pair.socket(end))
        })
    }

    /// Ends every session now, with a reset to both ends.
    pub fn abort_all(&mut self, now_us: u64, cause: Cause) {
        self.abort_where(now_us, cause, |_| true);
    }

    /// Ends the sessions whose record is one of these, with a reset to both ends.
    pub fn abort_where(&mut self, now_us: u64, cause: Cause, is_one: impl Fn(&W::Record) -> bool) {
        for slot in 0..self.slots.len() as u32 {
            let id = PairId {
                slot,
                generation: self.slots[slot as usize].generation,
            };
            if let Some(pair) = self.pair(id)
                && is_one(&pair.record)
            {
                pair.blame(Side::Local, cause);
                self.close(id, Closing::Reset);
                self.finish(now_us, id);
            }
        }
    }

    /// Cancels every operation; the sockets close when the last one has completed.
    fn close(&mut self, id: PairId, how: Closing) {
        let pair = self.live(id);
        if pair.phase == Phase::Closing {
            return;
        }
        pair.phase = Phase::Closing;
        if let Some(timer) = pair.timer.take() {
            self.timers.cancel(timer);
        }
        let limits = live(&mut self.slots, id).limits.as_mut();
        let timers = limits.map(|limits| limits.take_timers());
        for timer in timers.into_iter().flatten().flatten() {
            self.timers.cancel(timer);
        }
        for end in End::BOTH {
            let pair = live(&mut self.slots, id);
            // An end that reset us has nothing left to reset.
            if how == Closing::Reset && !pair.was_reset_by(end) {
                self.io.linger_zero(pair.socket(end));
            }
            self.cancel_receive(id, end);
            let pair = live(&mut self.slots, id);
            if pair.polling[end as usize] {
                self.io.cancel(token(id, Operation::Writable, end));
            }
            if pair.watching[end as usize] {
                self.io.cancel(token(id, Operation::Watch, end));
            }
            pair.directions[end as usize].discard();
            self.drop_queue(id, end);
        }
    }

    /// Removes a closing session once nothing of it is in flight.
    pub(super) fn finish(&mut self, now_us: u64, id: PairId) {
        let Some(pair) = self.pair(id) else { return };
        if pair.phase != Phase::Closing || pair.operations() > 0 {
            return;
        }
        let slot = &mut self.slots[id.slot as usize];
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        let mut pair = slot.pair.take().expect("just seen");
        for end in End::BOTH {
            if let Some(socket) = pair.sockets[end as usize].take() {
                self.io.close(socket);
            }
        }
        self.marks -= pair.was_marked.iter().filter(|&&was| was).count();
        self.free.push(id.slot);
        self.active -= 1;
        let summary = Summary {
            reason: pair.reason.unwrap_or(CloseReason::new(
                Side::Local,
                Stage::Relay,
                Cause::SocketError,
            )),
            to_upstream_bytes: pair.delivered_bytes[End::Downstream as usize],
            to_downstream_bytes: pair.delivered_bytes[End::Upstream as usize],
            first_byte_us: pair.first_byte_us,
            spliced_bytes: pair.spliced_bytes,
            mover_switches: pair.mover_switches,
        };
        let Pair { record, .. } = *pair;
        self.watcher.closed(now_us, record, summary);
    }

    /// Sets the session's one timer to the next moment at which something can be due. Activity
    /// does not touch it: a timer that fires early looks again.
    pub(super) fn rearm_timer(&mut self, now_ms: u64, id: PairId) {
        let options = self.options;
        let Some(pair) = self.pair(id) else { return };
        let deadline_ms = match pair.phase {
            Phase::Closing => return,
            Phase::Lingering { deadline_ms } => deadline_ms,
            Phase::Failing { end, check_ms, .. } => {
                let oldest = options
                    .max_age_ms
                    .map_or(u64::MAX, |max| pair.started_ms + max + 1);
                let stuck_ms = pair.last_activity_ms + options.half_close_ms + 1;
                let stuck_ms = stuck_ms.min(oldest);
                let drained = is_over(&pair.directions[end as usize]);
                if drained {
                    check_ms.min(stuck_ms)
                } else {
                    stuck_ms
                }
            }
            Phase::Relaying => {
                let half_closed = pair.is_half_closed();
                let silence_ms = if half_closed {
                    options.half_close_ms
                } else {
                    options.idle_ms
                };
                let silent = pair.last_activity_ms + silence_ms.min(options.idle_ms);
                let oldest = options
                    .max_age_ms
                    .map_or(u64::MAX, |max| pair.started_ms + max);
                let keepalive = options.keepalive.filter(|_| !pair.is_kept_alive);
                let keepalive_ms = keepalive.map_or(u64::MAX, |it| pair.started_ms + it.idle_ms());
                let deadline_ms = silent.min(oldest).saturating_add(1).min(keepalive_ms);
                let ended = pair.directions.iter().any(|d| d.source() == Source::Ended);
                if ended {
                    deadline_ms.min(now_ms + LOOK_MS)
                } else {
                    deadline_ms
                }
            }
        };
        if let Some(timer) = pair.timer.take() {
            self.timers.cancel(timer);
        }
        let timer = self
            .timers
            .set(deadline_ms.max(now_ms + 1), Due::Session(id));
        self.live(id).timer = Some(timer);
    }
}

/// How a session's sockets close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    /// FIN was sent and received, or both ends had their second to answer ours.
    Orderly,
    /// RST.
    Reset,
}

/// The side whose FIN came first, and whether anything was ever said.
fn clean_end<I: Io, R>(pair: &Pair<I, R>) -> (Side, Cause) {
    let first = pair.first_fin.map_or(Side::Local, End::side);
    let silent = pair.delivered_bytes == [0, 0];
    if silent && first == Side::Downstream {
        (first, Cause::Empty)
    } else {
        (first, Cause::Finished)
    }
}
