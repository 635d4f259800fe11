//! The relay engine: what happens to a session's bytes once both of its sockets are connected.
//!
//! [`Relay::start`] takes a session over; its task ends there. From then on every step is a
//! completion of the relay ring or a timer, handled inside the pump, until [`Watcher::closed`]
//! reports the end. No task, no allocation and no lock per byte moved.
//!
//! [`direction`] decides what one direction does next and [`bulk`] with which mover, this file carries
//! it out, `copy` and `splice` move the bytes, [`bandwidth`] holds them back, `ending` takes sessions down.
//! The engine is generic over [`io::Io`], so that `simulation` can drive it with a kernel that
//! behaves as badly as a seed tells it to.
//!
//! The two movers meet at `Relay::progress`: a direction's `Step` says *what*, `copy` or `splice` how.

pub mod bandwidth;
pub mod bulk;
mod copy;
pub mod direction;
mod ending;
pub mod io;
pub mod pair;
#[cfg(test)]
mod simulation;
mod splice;
mod watcher;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::core::pump::Engine;
use crate::core::wheel::Wheel;
use crate::outcome::{Cause, MoverKind};
use crate::ring::{Buffer, Completion, Group, RelayRing};
use crate::sys::socket::Keepalive;
use bandwidth::{Bandwidth, Limits};
use bulk::{MoverChoice, Thresholds};
use direction::{Direction, Source, Step};
use io::Io;
use pair::{Chunk, End, Operation, Pair, PairId, Phase, parse_token, token};
use splice::{Guards, Pipes};

pub use watcher::{Summary, Watcher};

/// Up to so many messages in one pass are sent with send(2), more by the ring. A send of the ring
/// spares a system call per message, and costs one per pass: that which submits it returns at once, with
/// its completion, instead of sleeping.
const INLINE_SENDS_MAX: usize = 2;

/// How every session is relayed. Times are in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct RelayOptions {
    /// No byte in either direction for this long.
    pub idle_ms: u64,
    /// One end closed, and no byte from the other for this long.
    pub half_close_ms: u64,
    /// A session's whole life from the start of relaying.
    pub max_age_ms: Option<u64>,
    /// Which movers may be used.
    pub mover: MoverChoice,
    /// When which one is.
    pub thresholds: Thresholds,
    /// Pipes of this core, at most; two descriptors each.
    pub pipes_max: usize,
    /// Probes for a dead peer, on both sockets.
    pub keepalive: Option<Keepalive>,
    /// Sends of at least this many bytes are zero-copy; `u32::MAX` is none.
    pub zero_copy_min_bytes: u32,
}

/// A session that stands: two connected sockets.
#[derive(Debug)]
pub struct Handover<'a, S> {
    /// By [`End`].
    pub sockets: [S; 2],
    /// The limits of its listener.
    pub bandwidth: Option<&'a Arc<Bandwidth>>,
    /// Bytes of the client that went to the server while it was dialled.
    pub early_bytes: u64,
}

/// The engine of one core.
pub struct Relay<I: Io, W: Watcher> {
    io: I,
    watcher: W,
    options: RelayOptions,
    slots: Vec<Slot<I, W::Record>>,
    free: Vec<u32>,
    active: usize,
    timers: Wheel<Due>,
    /// Directions that spent their budget, oldest first.
    put_off: VecDeque<(PairId, End)>,
    /// Of those, the ones whose turn comes at the end of this pass.
    resumed: usize,
    /// Directions that wait for a buffer, by group, oldest first.
    waiting: [VecDeque<(PairId, End)>; 2],
    pipes: Pipes<I::Pipe>,
    guards: Guards,
    /// Ends of live sessions whose low-water mark was raised at some time.
    marks: usize,
    low_water_guards_total: u64,
    /// Few messages are in hand: sending each with a system call of its own is cheaper.
    send_inline: bool,
    blocked_sends_total: u64,
    due: Vec<Due>,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// One of the session's deadlines may have come.
    Session(PairId),
    /// A direction may try to send again.
    Retry(PairId, End),
    /// A direction's bandwidth is there.
    LetGo(PairId, End),
}

struct Slot<I: Io, R> {
    generation: u32,
    pair: Option<Box<Pair<I, R>>>,
}

impl<I: Io, W: Watcher> Relay<I, W> {
    /// An engine without sessions.
    pub fn new(io: I, watcher: W, options: RelayOptions, now_us: u64) -> Self {
        Self {
            io,
            watcher,
            options,
            slots: Vec::new(),
            free: Vec::new(),
            active: 0,
            timers: Wheel::new(now_us / 1_000),
            put_off: VecDeque::new(),
            resumed: 0,
            waiting: [VecDeque::new(), VecDeque::new()],
            pipes: Pipes::new(options.pipes_max),
            guards: Guards::default(),
            marks: 0,
            low_water_guards_total: 0,
            send_inline: false,
            blocked_sends_total: 0,
            due: Vec::new(),
        }
    }

    /// Takes a session over, and what to report at its end.
    pub fn start(
        &mut self,
        now_us: u64,
        handover: Handover<'_, I::Socket>,
        record: W::Record,
    ) -> PairId {
        let Handover {
            sockets,
            bandwidth,
            early_bytes,
        } = handover;
        if early_bytes > 0 {
            let (from, mover) = (End::Downstream, MoverKind::Copy);
            self.watcher.delivered(&record, from, early_bytes, mover);
        }
        let now_ms = now_us / 1_000;
        let limits = bandwidth.map(|it| Box::new(Limits::new(it, now_us)));
        let direction = |from| {
            let is_limited = limits.as_ref().is_some_and(|it| it.is_limited(from));
            Direction::new(self.options.mover).limited(is_limited)
        };
        let pair = Box::new(Pair {
            sockets: sockets.map(Some),
            directions: End::BOTH.map(direction),
            limits,
            queues: [VecDeque::new(), VecDeque::new()],
            pipes: [None, None],
            waits: [0; 2],
            was_marked: [false; 2],
            spliced_bytes: 0,
            mover_switches: 0,
            delivered_bytes: [early_bytes, 0],
            put_off: [false; 2],
            zero_copy: [true; 2],
            is_kept_alive: false,
            watching: [false; 2],
            polling: [false; 2],
            retrying: [false; 2],
            unacknowledged: [0; 2],
            phase: Phase::Relaying,
            first_fin: None,
            reason: None,
            failed: [false; 2],
            timer: None,
            started_ms: now_ms,
            last_activity_ms: now_ms,
            first_byte_us: None,
            record,
        });
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                pair: None,
            });
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        debug_assert!(entry.pair.is_none());
        entry.pair = Some(pair);
        let id = PairId {
            slot,
            generation: entry.generation,
        };
        self.active += 1;
        self.rearm_timer(now_ms, id);
        for end in End::BOTH {
            self.progress(now_us, id, end);
        }
        id
    }

    /// Sessions alive.
    pub fn active(&self) -> usize {
        self.active
    }

    /// The I/O it drives.
    pub fn io(&mut self) -> &mut I {
        &mut self.io
    }

    /// The watcher.
    pub fn watcher(&mut self) -> &mut W {
        &mut self.watcher
    }

    /// Sends that had to wait for their peer.
    pub fn blocked_sends_total(&self) -> u64 {
        self.blocked_sends_total
    }

    /// Directions waiting for a buffer. Sessions that ended meanwhile may still be counted.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    /// Low-water marks that were lowered because their streams did not reach them in time.
    pub fn low_water_guards_total(&self) -> u64 {
        self.low_water_guards_total
    }

    /// When [`Relay::end_of_pass`] must run at the latest, in microseconds.
    pub fn next_deadline_us(&self) -> Option<u64> {
        let timer_us = self.timers.next_ms().map(|ms| ms.saturating_mul(1_000));
        [timer_us, self.guards.next_us()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether there is work that no completion announces.
    pub fn is_busy(&self) -> bool {
        let can_wake =
            |group: Group| !self.waiting[group as usize].is_empty() && self.io.has_buffers(group);
        !self.put_off.is_empty() || Group::ALL.into_iter().any(can_wake)
    }

    /// A pass begins in which so many receives are handled.
    pub fn begin_pass(&mut self, receives: usize) {
        self.send_inline = receives <= INLINE_SENDS_MAX;
        self.resumed = self.put_off.len();
    }

    /// Handles one completion.
    pub fn complete(&mut self, now_us: u64, completion: Completion) {
        let (id, operation, end) = parse_token(completion.token);
        let slot = &self.slots[id.slot as usize];
        let pair = slot
            .pair
            .as_deref()
            .filter(|_| slot.generation == id.generation);
        let pair = pair.expect("a session closes only after the last completion of its operations");
        self.watcher.in_hand(&pair.record);
        match operation {
            Operation::Receive => self.on_receive(now_us, id, end, completion),
            Operation::Writable => self.on_writable(now_us, id, end, &completion),
            Operation::Send => self.on_send(now_us, id, end, completion.result),
            Operation::Readable => self.on_readable(now_us, id, end),
            Operation::Watch => self.on_watch(now_us, id, end, completion.more),
        }
        self.settle(now_us, id);
    }

    /// Fires timers and goes on with directions that were put off.
    pub fn end_of_pass(&mut self, now_us: u64) {
        let mut due = std::mem::take(&mut self.due);
        self.timers.expire(now_us / 1_000, &mut due);
        for timer in due.drain(..) {
            match timer {
                Due::Session(id) => self.on_timer(now_us, id),
                Due::Retry(id, from) => self.on_retry(now_us, id, from),
                Due::LetGo(id, from) => self.on_let_go(now_us, id, from),
            }
        }
        self.due = due;
        self.fire_guards(now_us);
        self.wake_waiting(now_us);
        // Only those that were put off by an earlier pass: a budget is for a whole pass.
        for _ in 0..std::mem::take(&mut self.resumed) {
            let Some((id, end)) = self.put_off.pop_front() else {
                break;
            };
            if let Some(pair) = self.pair(id) {
                pair.put_off[end as usize] = false;
                self.progress(now_us, id, end);
                self.settle(now_us, id);
            }
        }
    }

    fn pair(&mut self, id: PairId) -> Option<&mut Pair<I, W::Record>> {
        let slot = &mut self.slots[id.slot as usize];
        if slot.generation == id.generation {
            slot.pair.as_deref_mut()
        } else {
            None
        }
    }

    /// A session that the caller knows to be there.
    fn live(&mut self, id: PairId) -> &mut Pair<I, W::Record> {
        live(&mut self.slots, id)
    }

    fn on_receive(&mut self, now_us: u64, id: PairId, from: End, completion: Completion) {
        let Completion {
            result,
            buffer,
            more,
            ..
        } = completion;
        match (buffer, u32::try_from(result)) {
            (Some(buffer), Ok(len @ 1..)) => {
                self.on_bytes(now_us, id, from, buffer, len, more);
                return self.progress(now_us, id, from);
            }
            (Some(unused), _) => self.io.release(unused),
            (None, _) => {}
        }
        let pair = self.live(id);
        let direction = pair.direction(from);
        direction.on_receive_completed(more);
        if pair.phase == Phase::Closing {
            return;
        }
        match result {
            0 => self.on_end_of_stream(id, from),
            negative => match -negative {
                libc::ENOBUFS => self.on_no_buffer(id, from),
                // Cancelled by us, or interrupted: `next` decides whether to receive again.
                libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
                errno => {
                    pair.direction(from).on_failed();
                    self.on_failure(now_us, id, from, cause_of(errno));
                }
            },
        }
        self.progress(now_us, id, from);
    }

    fn on_end_of_stream(&mut self, id: PairId, from: End) {
        let pair = self.live(id);
        if pair.failed[from as usize] {
            // A side that failed has no FIN left to send: after its error was reported once, by a
            // send, the kernel answers a receive with 0.
            pair.direction(from).on_failed();
        } else {
            pair.direction(from).on_fin();
            pair.first_fin.get_or_insert(from);
        }
    }

    fn on_bytes(
        &mut self,
        now_us: u64,
        id: PairId,
        from: End,
        buffer: Buffer,
        len: u32,
        more: bool,
    ) {
        let full = len == self.io.buffer_bytes();
        let pair = live(&mut self.slots, id);
        pair.last_activity_ms = now_us / 1_000;
        pair.note_first_byte(now_us, from);
        let direction = &mut pair.directions[from as usize];
        if direction.on_received(len, full, more) {
            let thresholds = &self.options.thresholds;
            let promote = direction
                .bulk()
                .on_received(now_us / 1_000, len, thresholds);
            if direction.is_limited() {
                pair.spend(from, len);
            }
            pair.queues[from as usize].push_back(Chunk {
                buffer,
                from: 0,
                len,
            });
            if pair.directions[from as usize].must_leave_multishot() {
                self.io.cancel(token(id, Operation::Receive, from));
            }
            if pair.directions[from as usize].is_blocked()
                && let Some(late) = pair.queues[from as usize].back_mut()
            {
                // A shot that a multishot receive fired before it was cancelled.
                self.io.set_aside(&mut late.buffer, late.len);
            }
            if promote {
                self.promoted(id, from);
            }
        } else {
            self.io.release(buffer);
        }
    }

    fn on_no_buffer(&mut self, id: PairId, from: End) {
        let direction = self.live(id).direction(from);
        if !direction.wants_buffer() {
            // It was the last shot of a receive that is not wanted any more.
            return;
        }
        let group = direction.group();
        if !self.io.widen(group) {
            self.live(id).direction(from).on_no_buffer();
            self.waiting[group as usize].push_back((id, from));
            self.watch(id, from);
        }
    }

    /// Learns of a reset of an end on which no receive is armed.
    fn watch(&mut self, id: PairId, end: End) {
        let pair = live(&mut self.slots, id);
        debug_assert_ne!(pair.phase, Phase::Closing, "nobody would cancel it");
        if !std::mem::replace(&mut pair.watching[end as usize], true) {
            let token = token(id, Operation::Watch, end);
            self.io.watch(pair.socket(end), token);
        }
    }

    fn on_watch(&mut self, now_us: u64, id: PairId, end: End, more: bool) {
        let pair = live(&mut self.slots, id);
        pair.watching[end as usize] = more;
        // A FIN completes it as well, and says nothing new.
        if let Err(error) = self.io.take_error(pair.socket(end)) {
            let cause = error.raw_os_error().map_or(Cause::SocketError, cause_of);
            self.on_failure(now_us, id, end, cause);
        }
    }

    /// The pass's budget is spent: the neighbours' turn.
    fn put_off(&mut self, id: PairId, from: End) {
        self.live(id).put_off[from as usize] = true;
        self.put_off.push_back((id, from));
    }

    /// Does whatever the direction asks for, until it rests or has spent its budget.
    fn progress(&mut self, now_us: u64, id: PairId, from: End) {
        self.progress_after(now_us, id, from, 0);
    }

    /// As [`Relay::progress`], for a direction that has spent some of its budget in this pass.
    fn progress_after(&mut self, now_us: u64, id: PairId, from: End, mut spent_bytes: u64) {
        let send_inline = self.send_inline;
        let budget_bytes = self.options.thresholds.budget_bytes;
        let zero_copy_min_bytes = self.options.zero_copy_min_bytes;
        while let Some(pair) = self.pair(id) {
            if pair.phase == Phase::Closing || pair.put_off[from as usize] {
                return;
            }
            match pair.direction(from).next_step() {
                Step::Rest => return,
                Step::Receive(group, shots) => {
                    let pair = live(&mut self.slots, id);
                    let is_marked = pair.direction(from).bulk().is_marked();
                    debug_assert!(!is_marked, "a receive waits for the mark, and has no guard");
                    let token = token(id, Operation::Receive, from);
                    self.io.recv(pair.socket(from), group, shots, token);
                }
                Step::StopReceiving => self.io.cancel(token(id, Operation::Receive, from)),
                Step::AwaitReadable => self.await_readable(now_us, id, from),
                Step::Claim => self.claim(now_us, id, from),
                Step::ReceiveGranted(group) => self.receive_granted(id, from, group),
                Step::Fill if spent_bytes >= budget_bytes => {
                    pair.direction(from).fill_next();
                    self.put_off(id, from);
                    return;
                }
                Step::Fill => self.fill(now_us, id, from),
                Step::Send if spent_bytes >= budget_bytes => {
                    self.put_off(id, from);
                    return;
                }
                Step::Send
                    if pair.queues[from as usize].len() == 1
                        && (!send_inline || pair.wants_zero_copy(from, zero_copy_min_bytes)) =>
                {
                    self.send(id, from);
                }
                Step::Send => {
                    let delivery = self.deliver(now_us, id, from);
                    spent_bytes += delivery.sent_bytes;
                    if delivery.is_full {
                        self.wait_for_peer(now_us, id, from);
                    }
                }
                Step::PassFin => {
                    pair.last_activity_ms = now_us / 1_000;
                    let is_last = pair.directions.iter().all(|d| d.is_finished());
                    if is_last && pair.phase == Phase::Relaying {
                        // The session is over: `settle` closes it, and the close sends this FIN.
                        return;
                    }
                    let pair = live(&mut self.slots, id);
                    self.io.shutdown_write(pair.socket(from.other()));
                    self.rearm_timer(now_us / 1_000, id);
                }
            }
        }
    }
}

impl<W: Watcher> Engine for Relay<RelayRing, W> {
    fn ring(&mut self) -> &mut RelayRing {
        &mut self.io
    }

    fn begin_pass(&mut self, receives: usize) {
        Relay::begin_pass(self, receives);
    }

    fn complete(&mut self, now_us: u64, completion: Completion) {
        Relay::complete(self, now_us, completion);
    }

    fn end_of_pass(&mut self, now_us: u64) {
        Relay::end_of_pass(self, now_us);
    }

    fn is_busy(&self) -> bool {
        Relay::is_busy(self)
    }

    fn next_deadline_us(&self) -> Option<u64> {
        Relay::next_deadline_us(self)
    }
}

/// A session that the caller knows to be there. It borrows the table alone, so that the I/O stays
/// free.
fn live<I: Io, R>(slots: &mut [Slot<I, R>], id: PairId) -> &mut Pair<I, R> {
    let slot = &mut slots[id.slot as usize];
    assert_eq!(
        slot.generation, id.generation,
        "the slot has been given away"
    );
    slot.pair
        .as_deref_mut()
        .expect("of this generation, and not closed")
}

/// What a socket error says about the peer.
fn cause_of(errno: i32) -> Cause {
    match errno {
        // EPIPE: the peer reset the connection and the error was already reported once.
        libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED => Cause::Reset,
        libc::ETIMEDOUT => Cause::PeerTimeout,
        libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN => {
            Cause::Unreachable
        }
        libc::ENOMEM | libc::ENOBUFS | libc::EMFILE | libc::ENFILE => Cause::LocalResources,
        _ => Cause::SocketError,
    }
}

fn is_over(direction: &Direction) -> bool {
    direction.queued_bytes() == 0
        && !direction.is_blocked()
        && (direction.source() == Source::Failed || direction.is_finished())
}
