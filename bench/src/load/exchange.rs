//! Request and response: a message goes out, its echo comes back and is compared. The workload of
//! [`super::rr`] (connections stay) and of [`super::crr`] (one connection per request).
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
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::engine::{self, Broken, Context, Workload};
use super::pool::{Close, Pool};
use super::schedule::Schedule;
use crate::pattern::Pattern;

/// Most bytes received at a time.
const RECEIVE_BYTES: usize = 256 * 1024;
/// Messages differ by where in the pattern they begin, so that an answer that belongs to another
/// connection or to an earlier request is seen. So many beginnings there are.
const BEGINNINGS: usize = 251;

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
    beginning: usize,
    sent: usize,
    received: usize,
}

/// One thread's requests.
#[derive(Debug)]
pub(super) struct Exchange {
    size_bytes: usize,
    pattern: Vec<u8>,
    scratch: Vec<u8>,
    schedule: Option<Schedule>,
    /// How each connection is closed after its request; none: it stays.
    close: Option<Close>,
    free: VecDeque<usize>,
    under_way: usize,
    /// Requests are due that have not begun.
    is_behind: bool,
}

impl Exchange {
    pub(super) fn new(
        size_bytes: usize,
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
            size_bytes,
            pattern: Pattern::new(size_bytes as u64).bytes(0, size_bytes + BEGINNINGS),
            scratch: vec![0; size_bytes.min(RECEIVE_BYTES)],
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
            beginning: slot.wrapping_add(state.requests) % BEGINNINGS,
            sent: 0,
            received: 0,
        });
        if self.close.is_some() {
            engine::connect(pool, slot)
        } else {
            self.send(pool, slot)
        }
    }

    fn send(&mut self, pool: &mut Pool<State>, slot: usize) -> Result<(), Broken> {
        let Some((mut socket, state)) = pool.open(slot) else {
            return Ok(());
        };
        let Some(request) = &mut state.request else {
            return Ok(());
        };
        while request.sent < self.size_bytes {
            let rest = request.beginning + request.sent..request.beginning + self.size_bytes;
            match socket.write(&self.pattern[rest]) {
                Ok(sent) => request.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(Broken::io("send", &error)),
            }
        }
        Ok(())
    }

    /// Receives what is there; tells whether the answer is complete.
    fn receive(&mut self, pool: &mut Pool<State>, slot: usize) -> Result<bool, Broken> {
        let Some((mut socket, state)) = pool.open(slot) else {
            return Ok(false);
        };
        loop {
            let missing = match &state.request {
                Some(request) => self.size_bytes - request.received,
                // Nothing is asked: only the end of the connection is news.
                None => 1,
            };
            let wanted = missing.min(self.scratch.len());
            let read = match socket.read(&mut self.scratch[..wanted]) {
                Ok(0) => return Err(Broken::named("closed by the other side")),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(Broken::io("receive", &error)),
            };
            let Some(request) = &mut state.request else {
                return Err(Broken::Fatal(anyhow!(
                    "connection {slot}: bytes that nobody asked for"
                )));
            };
            let start = request.beginning + request.received;
            if self.scratch[..read] != self.pattern[start..start + read] {
                let at = request.received;
                return Err(Broken::Fatal(anyhow!(
                    "connection {slot}: a wrong echo in the {read} bytes from byte {at} on"
                )));
            }
            request.received += read;
            // No further read only to be told EAGAIN: the next bytes raise a new edge.
            if request.received == self.size_bytes {
                return Ok(true);
            }
        }
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
        tally.bytes_sent += self.size_bytes as u64;
        tally.bytes_received += self.size_bytes as u64;
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

impl Workload for Exchange {
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

/// Part of an open loop's schedule, if there is a rate.
pub(super) fn schedule_of(rate: Option<f64>, thread: usize, threads: usize) -> Option<Schedule> {
    rate.map(|rate| Schedule::new(rate, thread, threads))
}
