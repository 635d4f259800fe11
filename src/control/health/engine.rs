//! The checker's thread: begins what is due, polls what runs, reports what is over.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::probe::{Probe, Progress};
use super::schedule::Schedule;
use super::{Command, Shared};
use crate::balance::Random;
use crate::balance::health::{CheckOutcome, CheckResult};
use crate::sys::poll::{PollFd, poll};
use crate::sys::{clock, event};
use crate::units::ServerId;

/// Time that this thread did not spend polling, beyond which the running checks get it back. The
/// whole process may have been stopped, or a report have waited for a lock: no server's doing.
const STALL_US: u64 = 20_000;
/// Checks that begin before the running ones and the commands are looked at again: near servers answer
/// at once, and there may be thousands.
const BEGIN_PER_TURN: usize = 64;
/// Pause after a failed poll: it fails for want of kernel memory, which does not come at once.
const POLL_BACKOFF: Duration = Duration::from_millis(20);

struct Running {
    server: ServerId,
    probe: Probe,
}

pub(super) struct Engine<R> {
    shared: Arc<Shared>,
    schedule: Schedule,
    running: Vec<Running>,
    in_flight_max: usize,
    random: Random,
    report: R,
    /// When the time was last looked at by [`Engine::forgive`].
    seen_us: u64,
}

impl<R: FnMut(ServerId, CheckResult)> Engine<R> {
    pub(super) fn new(shared: Arc<Shared>, in_flight_max: usize, seed: u64, report: R) -> Self {
        let mut random = Random::new(seed);
        Self {
            shared,
            schedule: Schedule::new(random.next_u64()),
            running: Vec::new(),
            in_flight_max: in_flight_max.max(1),
            random,
            report,
            seen_us: clock::now_us(),
        }
    }

    /// Until told to stop. Sockets that are still open are closed by the drop.
    pub(super) fn run(mut self) {
        while !self.shared.is_stopping() {
            self.obey();
            self.begin_due();
            let ready = self.wait();
            // What is ready first: a late look at the clock must not make an answer that is here late.
            self.advance_ready(&ready);
            self.expire();
        }
    }

    fn obey(&mut self) {
        let commands = std::mem::take(&mut *self.shared.commands());
        for command in commands {
            let now_us = clock::now_us();
            match command {
                Command::Set(targets) => {
                    let void = self.schedule.set(targets, now_us);
                    self.running
                        .retain(|running| !void.contains(&running.server));
                }
                Command::Fast(server, is_fast) => self.schedule.fast(server, is_fast, now_us),
            }
        }
    }

    fn begin_due(&mut self) {
        self.shared.waits_since_us.store(0, Ordering::Relaxed);
        for _ in 0..BEGIN_PER_TURN {
            if self.shared.is_stopping() {
                return;
            }
            let now_us = clock::now_us();
            let Some(due_us) = self.schedule.next_due_us().filter(|&due| due <= now_us) else {
                break;
            };
            if !self.has_slot() {
                self.shared.waits_since_us.store(due_us, Ordering::Relaxed);
                break;
            }
            self.shared
                .late_us
                .store(now_us - due_us, Ordering::Relaxed);
            let due = self.schedule.take_due(now_us).expect("one is due");
            let server = due.server;
            match Probe::start(due, &mut self.random, now_us) {
                Err(outcome) => self.told(server, outcome, now_us),
                Ok(mut probe) => {
                    if probe.is_connecting() || self.advance(server, &mut probe) {
                        self.running.push(Running { server, probe });
                    }
                }
            }
        }
        let running = self.running.len() as u64;
        self.shared.in_flight.store(running, Ordering::Relaxed);
    }

    /// Whether one more may run. One whose verdict is out makes room if need be.
    fn has_slot(&mut self) -> bool {
        if self.running.len() < self.in_flight_max {
            return true;
        }
        let draining = self.running.iter().position(|r| r.probe.is_draining());
        match draining {
            Some(index) => {
                self.running.swap_remove(index);
                true
            }
            None => false,
        }
    }

    /// Waits for an event, a deadline or a due check; which of the running ones are ready.
    fn wait(&mut self) -> Vec<bool> {
        self.forgive(0);
        let timeout_us = self
            .next_wake_us()
            .map(|wake_us| wake_us.saturating_sub(self.seen_us));
        let mut fds = vec![PollFd::new(self.shared.event.as_fd(), true, false)];
        fds.extend(self.running.iter().map(|Running { probe, .. }| {
            PollFd::new(probe.as_fd(), probe.wants_read(), probe.wants_write())
        }));
        let polled = poll(&mut fds, timeout_us.map(Duration::from_micros));
        let is_told = fds[0].is_ready();
        let ready = fds[1..].iter().map(PollFd::is_ready).collect();
        if is_told {
            event::clear(&self.shared.event);
        }
        if polled.is_err() {
            std::thread::sleep(POLL_BACKOFF);
        }
        self.forgive(timeout_us.unwrap_or(u64::MAX));
        ready
    }

    /// Gives the running checks back the time since the last call in which nobody looked at them, beyond
    /// the `planned_us` that were slept.
    fn forgive(&mut self, planned_us: u64) {
        let now_us = clock::now_us();
        let passed_us = now_us.saturating_sub(std::mem::replace(&mut self.seen_us, now_us));
        let stall_us = passed_us.saturating_sub(planned_us);
        if stall_us > STALL_US {
            for running in &mut self.running {
                running.probe.extend_us(stall_us);
            }
        }
    }

    fn next_wake_us(&self) -> Option<u64> {
        let deadline_us = self.running.iter().map(|r| r.probe.deadline_us()).min();
        let is_full = self.running.len() >= self.in_flight_max
            && !self.running.iter().any(|r| r.probe.is_draining());
        let due_us = self.schedule.next_due_us().filter(|_| !is_full);
        deadline_us.into_iter().chain(due_us).min()
    }

    fn advance_ready(&mut self, ready: &[bool]) {
        let mut running = std::mem::take(&mut self.running);
        let mut ready = ready.iter();
        running.retain_mut(|running| {
            let is_ready = *ready.next().expect("one per running check");
            !is_ready || self.advance(running.server, &mut running.probe)
        });
        self.running = running;
    }

    fn expire(&mut self) {
        self.forgive(0);
        let now_us = self.seen_us;
        let mut running = std::mem::take(&mut self.running);
        running.retain(|running| {
            if now_us < running.probe.deadline_us() {
                return true;
            }
            if let Progress::Verdict(outcome) = running.probe.expire() {
                self.told(running.server, outcome, running.probe.began_us());
            }
            false
        });
        self.running = running;
    }

    /// Whether it goes on.
    fn advance(&mut self, server: ServerId, probe: &mut Probe) -> bool {
        match probe.advance(clock::now_us()) {
            Progress::Waiting => true,
            Progress::Over => false,
            Progress::Verdict(outcome) => {
                self.told(server, outcome, probe.began_us());
                probe.is_draining()
            }
        }
    }

    fn told(&mut self, server: ServerId, outcome: CheckOutcome, began_us: u64) {
        let at_us = clock::now_us();
        self.schedule.finished(server, at_us);
        self.shared.checks_total.fetch_add(1, Ordering::Relaxed);
        let latency_us = at_us.saturating_sub(began_us);
        (self.report)(
            server,
            CheckResult {
                outcome,
                latency_us,
                at_us,
            },
        );
    }
}
