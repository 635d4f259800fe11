//! The skeleton of every kind of load: threads, their loops, reconnecting, the end.
//!
//! ```text
//! run ─> thread per --threads: pin ─> connect all ─> common start ─┐
//!        ┌─────────────────────────────────────────────────────────┘
//!        └─> turn (start what is due) ─> wait ─> opened / ready ─> turn … ─> stop ─> drain ─> Tally
//! ```
//!
//! A [`Workload`] says what goes over the connections; it never waits and never counts time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::control::Control;
use super::pool::{Close, Event, Pool};
use super::tally::Tally;
use crate::endpoint::Endpoint;
use crate::pin;

/// How long all connections together may take to be established before the start.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// Longest wait for what is still under way when the time is over.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// The same wait after a stop that somebody asked for, and who does not want to wait.
const STOPPED_DRAIN_DEADLINE: Duration = Duration::from_secs(1);
/// Longest sleep, so that a stop is noticed.
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// Wait before a connection is tried again after its first failure; doubled with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest such wait.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What all kinds of load have in common.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) to: Endpoint,
    pub(super) connections: usize,
    pub(super) threads: usize,
    pub(super) cpus: Vec<usize>,
    pub(super) duration: Duration,
    pub(super) fail_fast: bool,
    /// Connect everything before the start; otherwise the workload connects.
    pub(super) connect_first: bool,
    /// Record latency from the intended time too.
    pub(super) open_loop: bool,
    /// `SO_RCVBUF` of each connection, in bytes.
    pub(super) receive_buffer_bytes: Option<usize>,
}

impl Plan {
    /// Threads that really run: none is without a connection.
    pub(super) fn thread_count(&self) -> usize {
        self.threads.clamp(1, self.connections.max(1))
    }
}

/// Why a connection came to its end.
#[derive(Debug)]
pub(super) enum Broken {
    /// It is counted under this name, and opened again after a while.
    Counted(String),
    /// The run ends: what came back is wrong.
    Fatal(anyhow::Error),
}

impl Broken {
    pub(super) fn named(kind: &str) -> Self {
        Broken::Counted(kind.to_owned())
    }

    /// An error of the operation `during`: connect, send, receive.
    pub(super) fn io(during: &str, error: &io::Error) -> Self {
        Broken::Counted(format!("{during}: {}", kind_name(error)))
    }
}

/// A short and stable name: the kernel's text would tie a report to a language.
fn kind_name(error: &io::Error) -> String {
    match error
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
    {
        Some(rustix::io::Errno::ADDRNOTAVAIL) => "no free port".to_owned(),
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
            "too many open files".to_owned()
        }
        _ => error.kind().to_string(),
    }
}

/// One thread's view of the run.
pub(super) struct Context {
    /// The present, read once per turn and after each completion.
    pub(super) now: Instant,
    pub(super) started: Instant,
    /// Nothing new begins from here on. Ctrl-C moves it to the present.
    pub(super) stop_at: Instant,
    pub(super) tally: Tally,
}

impl Context {
    pub(super) fn is_over(&self) -> bool {
        self.now >= self.stop_at
    }
}

/// What goes over one thread's connections.
pub(super) trait Workload: Send {
    /// What it keeps for each connection.
    type State: Default + Send;

    /// This connection is established. It may have become readable already.
    fn opened(
        &mut self,
        pool: &mut Pool<Self::State>,
        slot: usize,
        context: &mut Context,
    ) -> Result<(), Broken>;

    /// This connection may be read or written.
    fn ready(
        &mut self,
        pool: &mut Pool<Self::State>,
        slot: usize,
        context: &mut Context,
    ) -> Result<(), Broken>;

    /// This connection has failed, was counted and closed.
    fn broken(&mut self, pool: &mut Pool<Self::State>, slot: usize);

    /// The wait after a failure is over.
    fn retry(
        &mut self,
        pool: &mut Pool<Self::State>,
        slot: usize,
        _context: &mut Context,
    ) -> Result<(), Broken> {
        connect(pool, slot)
    }

    /// Starts what is due, and says when it is to be called again at the latest. A connection that
    /// fails meanwhile goes into `failures`.
    fn turn(
        &mut self,
        _pool: &mut Pool<Self::State>,
        _context: &mut Context,
        _failures: &mut Vec<(usize, Broken)>,
    ) -> Option<Instant> {
        None
    }

    /// Whether all work is done, before the time is over.
    fn is_complete(&self) -> bool {
        false
    }

    /// Operations under way, for which the end waits a while.
    fn under_way(&self) -> usize;

    /// The run is over; what never was answered is to be counted.
    fn finish(&mut self, _pool: &mut Pool<Self::State>, _context: &mut Context) -> Result<()> {
        Ok(())
    }
}

/// Starts a connection; its failure is named as the workloads name theirs.
pub(super) fn connect<S: Default>(pool: &mut Pool<S>, slot: usize) -> Result<(), Broken> {
    pool.connect(slot)
        .map_err(|error| Broken::io("connect", &error))
}

/// Closes a connection that the workload is done with.
pub(super) fn close<S: Default>(
    pool: &mut Pool<S>,
    slot: usize,
    how: Close,
    context: &mut Context,
) {
    if pool.close(slot, how) {
        context.tally.open -= 1;
    }
}

/// What all threads together have done.
pub(super) struct Outcome {
    pub(super) elapsed: Duration,
    pub(super) tallies: Vec<Tally>,
}

/// Runs one workload per thread. `make` is given the thread's number and its connections' count.
pub(super) fn run<W: Workload>(
    plan: &Plan,
    control: &Control,
    make: impl Fn(usize, usize) -> W,
) -> Result<Outcome> {
    ensure!(plan.connections > 0, "at least one connection is needed");
    let threads = plan.thread_count();
    let start = Start {
        barrier: Barrier::new(threads),
        at: OnceLock::new(),
        failed: AtomicBool::new(false),
    };
    let mut workers = Vec::with_capacity(threads);
    for thread in 0..threads {
        let connections = share(plan.connections, threads, thread);
        let pool = Pool::new(plan.to.clone(), connections, plan.receive_buffer_bytes)?;
        workers.push(Worker {
            plan,
            control,
            pool,
            workload: make(thread, connections),
            thread,
            retries: BinaryHeap::new(),
        });
    }
    let ended: Vec<Result<(Tally, Instant)>> = std::thread::scope(|scope| {
        let start = &start;
        let handles: Vec<_> = workers
            .into_iter()
            .map(|worker| scope.spawn(move || worker.run(start)))
            .collect();
        handles
            .into_iter()
            .map(|handle| {
                handle
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
            })
            .collect()
    });
    let mut tallies = Vec::with_capacity(threads);
    let mut last = None;
    for end in ended {
        let (tally, ended_at) = end?;
        tallies.push(tally);
        last = last.max(Some(ended_at));
    }
    let started = start.at.get().copied().unwrap_or_else(Instant::now);
    let elapsed = last.map_or(Duration::ZERO, |last| {
        last.saturating_duration_since(started)
    });
    Ok(Outcome { elapsed, tallies })
}

/// Part `index` of `total` things divided by `parts` as evenly as they can be.
pub(super) fn share(total: usize, parts: usize, index: usize) -> usize {
    total / parts + usize::from(index < total % parts)
}

/// The common beginning of all threads.
struct Start {
    barrier: Barrier,
    at: OnceLock<Instant>,
    /// A thread has failed: the others need not go on. (Not a stop of the caller's control, which
    /// may be of use to it after this run.)
    failed: AtomicBool,
}

struct Worker<'a, W: Workload> {
    plan: &'a Plan,
    control: &'a Control,
    pool: Pool<W::State>,
    workload: W,
    thread: usize,
    retries: BinaryHeap<Reverse<(Instant, usize)>>,
}

impl<W: Workload> Worker<'_, W> {
    /// The whole life of a thread. An error of one thread stops the others.
    fn run(mut self, start: &Start) -> Result<(Tally, Instant)> {
        let now = Instant::now();
        let mut context = Context {
            now,
            started: now,
            stop_at: now + self.plan.duration,
            tally: Tally::new(self.plan.open_loop, self.control),
        };
        let prepared = self.prepare(&mut context);
        start.failed.fetch_or(prepared.is_err(), Ordering::AcqRel);
        // Also after a failure: the others wait here.
        start.barrier.wait();
        prepared?;
        context.started = *start.at.get_or_init(Instant::now);
        context.stop_at = context.started + self.plan.duration;
        let driven = self.drive(&mut context, start);
        start.failed.fetch_or(driven.is_err(), Ordering::AcqRel);
        let tally = &mut context.tally;
        tally.open = 0;
        tally.publish(self.control);
        driven.map(|ended_at| (context.tally, ended_at))
    }

    fn prepare(&mut self, context: &mut Context) -> Result<()> {
        if !self.plan.cpus.is_empty() {
            let cpu = self.plan.cpus[self.thread % self.plan.cpus.len()];
            pin::this_thread(cpu).with_context(|| format!("pinning a thread to CPU {cpu}"))?;
        }
        // The kernel may round timers up by this much; the default is 50 microseconds, which would
        // show as latency in an open loop.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        if !self.plan.connect_first {
            return Ok(());
        }
        for slot in 0..self.pool.len() {
            if let Err(broken) = connect(&mut self.pool, slot) {
                self.fail(slot, broken, context)?;
            }
        }
        let deadline = context.now + CONNECT_DEADLINE;
        while !self.control.is_stopped()
            && context.now < deadline
            && (0..self.pool.len()).any(|slot| self.pool.is_connecting(slot))
        {
            let events = self.wait(deadline, context)?;
            for index in 0..events {
                match self.pool.event(index) {
                    Some((slot, Err(error))) => {
                        self.fail(slot, Broken::io("connect", &error), context)?;
                    }
                    Some((_, Ok(Event::Opened))) => context.tally.open += 1,
                    // It is read after the start, when `opened` is called.
                    Some((_, Ok(Event::Ready))) | None => {}
                }
            }
        }
        Ok(())
    }

    /// From the common start to the end; returns when it ended.
    fn drive(&mut self, context: &mut Context, start: &Start) -> Result<Instant> {
        context.now = Instant::now();
        for slot in 0..self.pool.len() {
            if self.pool.is_open(slot) {
                let result = self.workload.opened(&mut self.pool, slot, context);
                self.settle(slot, result, context)?;
            }
        }
        let mut failures = Vec::new();
        let mut drain_deadline = DRAIN_DEADLINE;
        loop {
            let is_stopped = self.control.is_stopped() || start.failed.load(Ordering::Acquire);
            if is_stopped && !context.is_over() {
                context.stop_at = context.now;
                drain_deadline = STOPPED_DRAIN_DEADLINE;
            }
            let next = self.workload.turn(&mut self.pool, context, &mut failures);
            for (slot, broken) in failures.drain(..) {
                self.fail(slot, broken, context)?;
            }
            let mut until = context.now + SLEEP_MAX;
            if context.is_over() {
                let drained_at = context.stop_at + drain_deadline;
                if self.workload.under_way() == 0 || context.now >= drained_at {
                    break;
                }
            } else {
                until = until.min(context.stop_at);
                if self.workload.is_complete() {
                    break;
                }
                self.retry_due(context)?;
                if let Some(Reverse((due, _))) = self.retries.peek() {
                    until = until.min(*due);
                }
            }
            let until = next.map_or(until, |next| next.min(until));
            self.serve(until, context)?;
        }
        self.workload.finish(&mut self.pool, context)?;
        let last_at = context.tally.last_at.unwrap_or(context.started);
        Ok(if context.is_over() {
            last_at.max(context.stop_at)
        } else {
            last_at
        })
    }

    /// Waits, and serves what has become ready.
    fn serve(&mut self, until: Instant, context: &mut Context) -> Result<()> {
        let again = self.pool.take_again();
        let until = if again.is_empty() { until } else { context.now };
        let events = self.wait(until, context)?;
        for index in 0..events {
            match self.pool.event(index) {
                Some((slot, Ok(Event::Ready))) => {
                    let result = self.workload.ready(&mut self.pool, slot, context);
                    self.settle(slot, result, context)?;
                }
                Some((slot, Ok(Event::Opened))) => {
                    context.tally.open += 1;
                    let result = self.workload.opened(&mut self.pool, slot, context);
                    self.settle(slot, result, context)?;
                }
                Some((slot, Err(error))) => {
                    self.fail(slot, Broken::io("connect", &error), context)?;
                }
                None => {}
            }
        }
        for slot in again {
            if self.pool.is_open(slot) {
                let result = self.workload.ready(&mut self.pool, slot, context);
                self.settle(slot, result, context)?;
            }
        }
        Ok(())
    }

    fn wait(&mut self, until: Instant, context: &mut Context) -> Result<usize> {
        let until = until.min(context.now + SLEEP_MAX);
        let events = self.pool.wait(until).context("epoll_wait")?;
        context.now = Instant::now();
        context.tally.publish_if_due(self.control, context.now);
        Ok(events)
    }

    fn retry_due(&mut self, context: &mut Context) -> Result<()> {
        while let Some(Reverse((due, slot))) = self.retries.peek().copied()
            && due <= context.now
        {
            self.retries.pop();
            let result = self.workload.retry(&mut self.pool, slot, context);
            self.settle(slot, result, context)?;
        }
        Ok(())
    }

    fn settle(
        &mut self,
        slot: usize,
        result: Result<(), Broken>,
        context: &mut Context,
    ) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(broken) => self.fail(slot, broken, context),
        }
    }

    fn fail(&mut self, slot: usize, broken: Broken, context: &mut Context) -> Result<()> {
        let kind = match broken {
            Broken::Counted(kind) => kind,
            Broken::Fatal(error) => return Err(error),
        };
        ensure!(
            !self.plan.fail_fast,
            "connection {slot} to {}: {kind}",
            self.plan.to
        );
        context.tally.error(&kind, 1);
        close(&mut self.pool, slot, Close::Rst, context);
        self.workload.broken(&mut self.pool, slot);
        let doublings = self.pool.failed(slot).saturating_sub(1).min(16);
        let backoff = (BACKOFF_MIN * (1 << doublings)).min(BACKOFF_MAX);
        self.retries.push(Reverse((context.now + backoff, slot)));
        Ok(())
    }
}
