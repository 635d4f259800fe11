//! Request and response: a request goes out, its answer comes back and is compared. The workload of
//! [`super::rr`] and [`super::answers`] (connections stay) and of [`super::crr`] (one connection per
//! request). What is said is the business of a [`Script`].
//!
//! ```text
//!          ┌──────── closed loop: at once; open loop: when the next is due ────────┐
//!          v                                                                       │
//! free ─> begin ─> (crr: connect) ─> send ─> receive ─> compare ─> record ─> (crr: close)
//! ```
//!
//! In an open loop a request that is due while no connection is free waits here, and its wait
//! counts: its latency runs from when it was due.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use socket2::Socket;

use super::engine::{self, Broken, Context, Workload};
use super::pool::{Close, Pool};
use super::schedule::Schedule;

/// Receives of one connection before the others get their turn.
const RECEIVES_PER_TURN: usize = 16;

/// What is said: requests, and the answers that are right. It never waits.
pub(super) trait Script: Send {
    /// What an answer is called when it is wrong.
    const ANSWER: &'static str;

    /// The next message of a connection; `number` counts its requests.
    fn message(&mut self, slot: usize, number: usize) -> Message;

    /// Sends of a request what is left after `sent` bytes.
    fn send(&self, socket: &Socket, message: &Message, sent: usize) -> io::Result<usize>;

    /// Receives, of an answer of which `received` bytes have come, no more than what is missing.
    fn receive(&mut self, socket: &Socket, message: &Message, received: u64) -> io::Result<usize>;

    /// Whether the `read` bytes of the last [`Script::receive`] are those of this answer.
    fn is_right(&self, message: &Message, received: u64, read: usize) -> bool;
}

/// A request and its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub(super) request_bytes: usize,
    pub(super) answer_bytes: u64,
    /// Where in a script's pattern it begins.
    pub(super) beginning: usize,
}

/// What one connection is doing.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The request under way.
    request: Option<Request>,
    /// It stands in the queue of the free ones.
    is_queued: bool,
    requests: usize,
}

#[derive(Debug)]
struct Request {
    began: Instant,
    /// When it was due, in an open loop.
    intended: Option<Instant>,
    message: Message,
    sent: usize,
    received: u64,
    /// When some of the answer, but not its end, had come the last time.
    arrived_at: Option<Instant>,
}

impl Request {
    /// What there was has been received; `before` is what had come earlier.
    fn note_arrival(&mut self, before: u64) {
        if self.received > before {
            self.arrived_at = Some(Instant::now());
        }
    }
}

/// One thread's requests.
#[derive(Debug)]
pub(super) struct Exchange<S> {
    script: S,
    schedule: Option<Schedule>,
    /// How each connection is closed after its request; none: it stays.
    close: Option<Close>,
    free: VecDeque<usize>,
    under_way: usize,
    /// Requests are due that have not begun.
    is_behind: bool,
}

impl<S: Script> Exchange<S> {
    pub(super) fn new(
        script: S,
        connections: usize,
        schedule: Option<Schedule>,
        close: Option<Close>,
    ) -> Self {
        // Connections that stay are free once they are open.
        let mut initially_free = VecDeque::with_capacity(connections);
        if close.is_some() {
            initially_free.extend(0..connections);
        }
        Self {
            script,
            schedule,
            close,
            free: initially_free,
            under_way: 0,
            is_behind: false,
        }
    }

    fn begin(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        intended: Option<Instant>,
        began: Instant,
    ) -> Result<(), Broken> {
        self.under_way += 1;
        let state = pool.state(slot);
        state.requests = state.requests.wrapping_add(1);
        state.request = Some(Request {
            began,
            intended,
            message: self.script.message(slot, state.requests),
            sent: 0,
            received: 0,
            arrived_at: None,
        });
        if self.close.is_some() {
            engine::connect(pool, slot)
        } else {
            self.send(pool, slot)
        }
    }

    fn send(&mut self, pool: &mut Pool<State>, slot: usize) -> Result<(), Broken> {
        let Some((socket, state)) = pool.open(slot) else {
            return Ok(());
        };
        let Some(request) = &mut state.request else {
            return Ok(());
        };
        while request.sent < request.message.request_bytes {
            match self.script.send(socket, &request.message, request.sent) {
                Ok(sent) => request.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(Broken::io("send", &error)),
            }
        }
        Ok(())
    }

    /// Receives what is there; tells whether the answer is complete.
    fn receive(&mut self, pool: &mut Pool<State>, slot: usize) -> Result<bool, Broken> {
        let Some((socket, state)) = pool.open(slot) else {
            return Ok(false);
        };
        let Some(request) = &mut state.request else {
            return expect_nothing(socket, slot);
        };
        let before = request.received;
        for _ in 0..RECEIVES_PER_TURN {
            let received = request.received;
            let read = match self.script.receive(socket, &request.message, received) {
                Ok(0) => return Err(Broken::named("closed by the other side")),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    request.note_arrival(before);
                    return Ok(false);
                }
                Err(error) => return Err(Broken::io("receive", &error)),
            };
            if !self.script.is_right(&request.message, received, read) {
                let name = S::ANSWER;
                return Err(Broken::Fatal(anyhow!(
                    "connection {slot}: a wrong {name} in the {read} bytes from byte {received} on"
                )));
            }
            request.received += read as u64;
            // No further read only to be told EAGAIN: the next bytes raise a new edge.
            if request.received == request.message.answer_bytes {
                return Ok(true);
            }
        }
        request.note_arrival(before);
        pool.again(slot);
        Ok(false)
    }

    fn complete(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        context: &mut Context,
    ) -> Result<(), Broken> {
        let Some(request) = pool.state(slot).request.take() else {
            return Ok(());
        };
        self.under_way -= 1;
        pool.succeeded(slot);
        context.now = Instant::now();
        let tally = &mut context.tally;
        tally.complete(request.began, request.intended, context.now);
        tally.tail(request.arrived_at, context.now);
        tally.bytes_sent += request.message.request_bytes as u64;
        tally.bytes_received += request.message.answer_bytes;
        if let Some(close) = self.close {
            engine::close(pool, slot, close, context);
        } else if let Some(intended) = self.next_due(context) {
            return self.begin(pool, slot, intended, context.now);
        }
        self.queue(pool, slot);
        Ok(())
    }

    /// Whether a request may begin now, and if so, when it was due (in an open loop).
    fn next_due(&mut self, context: &Context) -> Option<Option<Instant>> {
        match &mut self.schedule {
            None => (!context.is_over()).then_some(None),
            Some(schedule) => {
                // What was due in time is sent after the end too: a target that stalled does not
                // get away with the requests that it held up.
                let last = context.stop_at - Duration::from_nanos(1);
                schedule
                    .take_due(context.started, context.now.min(last))
                    .map(Some)
            }
        }
    }

    fn queue(&mut self, pool: &mut Pool<State>, slot: usize) {
        if !std::mem::replace(&mut pool.state(slot).is_queued, true) {
            self.free.push_back(slot);
        }
    }

    /// A connection that can take a request.
    fn take_free(&mut self, pool: &mut Pool<State>) -> Option<usize> {
        while let Some(slot) = self.free.pop_front() {
            pool.state(slot).is_queued = false;
            let connects = self.close.is_some();
            // One that was lost while it stood in the queue comes back when it is open again.
            if pool.state(slot).request.is_none() && (connects || pool.is_open(slot)) {
                return Some(slot);
            }
        }
        None
    }
}

impl<S: Script> Workload for Exchange<S> {
    type State = State;

    fn opened(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        _context: &mut Context,
    ) -> Result<(), Broken> {
        if self.close.is_some() {
            return self.send(pool, slot);
        }
        self.queue(pool, slot);
        Ok(())
    }

    fn ready(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        context: &mut Context,
    ) -> Result<(), Broken> {
        self.send(pool, slot)?;
        if self.receive(pool, slot)? {
            self.complete(pool, slot, context)?;
        }
        Ok(())
    }

    fn broken(&mut self, pool: &mut Pool<State>, slot: usize) {
        if pool.state(slot).request.take().is_some() {
            self.under_way -= 1;
        }
    }

    fn retry(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        _context: &mut Context,
    ) -> Result<(), Broken> {
        if self.close.is_none() {
            return engine::connect(pool, slot);
        }
        self.queue(pool, slot);
        Ok(())
    }

    fn turn(
        &mut self,
        pool: &mut Pool<State>,
        context: &mut Context,
        failures: &mut Vec<(usize, Broken)>,
    ) -> Option<Instant> {
        while let Some(slot) = self.take_free(pool) {
            context.now = Instant::now();
            let Some(intended) = self.next_due(context) else {
                pool.state(slot).is_queued = true;
                self.free.push_front(slot);
                break;
            };
            if let Err(broken) = self.begin(pool, slot, intended, context.now) {
                failures.push((slot, broken));
            }
        }
        let next = self.schedule.as_ref()?.next_at(context.started);
        self.is_behind = next < context.stop_at;
        (!self.free.is_empty() && self.is_behind).then_some(next)
    }

    fn under_way(&self) -> usize {
        self.under_way + usize::from(self.is_behind)
    }

    fn finish(&mut self, _pool: &mut Pool<State>, context: &mut Context) -> Result<()> {
        context.tally.error("unanswered", self.under_way as u64);
        if let Some(schedule) = &self.schedule {
            let unsent = schedule.untaken_before(context.started, context.stop_at);
            context.tally.error("unsent", unsent);
        }
        Ok(())
    }
}

/// On a connection that waits for nothing only its end is news.
fn expect_nothing(mut socket: &Socket, slot: usize) -> Result<bool, Broken> {
    match socket.read(&mut [0]) {
        Ok(0) => Err(Broken::named("closed by the other side")),
        Ok(_) => Err(Broken::Fatal(anyhow!(
            "connection {slot}: bytes that nobody asked for"
        ))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(Broken::io("receive", &error)),
    }
}

/// Part of an open loop's schedule, if there is a rate.
pub(super) fn schedule_of(rate: Option<f64>, thread: usize, threads: usize) -> Option<Schedule> {
    rate.map(|rate| Schedule::new(rate, thread, threads))
}
