//! Active health checks: one thread that connects to servers now and then, asks, and reports.
//!
//! Not here: what a result means for a server (`balance::health`), and what the cores do about it.
//! Never on a core: a check may be as slow as it likes.
//!
//! ```text
//! set, fast ──commands──> engine ──due──> schedule
//!                           │  poll(2) over at most `in_flight_max` sockets
//!                           └──> probe ──bytes──> answer ──verdict──> report
//! ```
//!
//! Thousands of servers need one thread and a bounded number of sockets, because a check is short.
//! Where many servers do not answer at all, each holds a place for its whole timeout and the
//! checks of others wait: [`Stats::late_us`] tells. The places needed are servers × timeout /
//! interval.

mod answer;
mod engine;
mod hello;
mod probe;
mod schedule;
mod spec;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::seed;
use crate::balance::health::CheckResult;
use crate::sys::{clock, event};
use crate::units::ServerId;
use engine::Engine;
pub use spec::{CheckAt, CheckKind, CheckSpec, Expect, Target};

/// Bytes of an answer that are looked at.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Checks that run at once, unless told otherwise. Each takes a file descriptor.
pub const IN_FLIGHT_MAX_DEFAULT: usize = 64;

/// How the checker works.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Checks that run at once; at least 1.
    pub in_flight_max: usize,
    /// For the jitter; another one in each process, so that several do not check in step.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            in_flight_max: IN_FLIGHT_MAX_DEFAULT,
            seed: seed(),
        }
    }
}

/// The checker's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Checks with a verdict.
    pub checks_total: u64,
    /// Sockets that are open.
    pub in_flight: u64,
    /// How long the check that is next has been due, or the one that began last had been. Grows if `in_flight_max` is too low.
    pub late_us: u64,
}

/// A running checker. Dropping it ends its thread and closes its sockets.
pub struct Checker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Checker {
    /// File descriptors that a checker needs at most.
    pub const fn fds(options: &Options) -> usize {
        options.in_flight_max + 1
    }

    /// Starts to check. `report` is called on the checker's thread, once per check; meanwhile no
    /// other check goes on, so it should hand the result on and return.
    ///
    /// # Errors
    /// No descriptor or no thread is to be had.
    pub fn start(
        options: Options,
        targets: Vec<Target>,
        report: impl FnMut(ServerId, CheckResult) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            event: event::eventfd(0)?,
            commands: Mutex::new(vec![Command::Set(targets)]),
            stopping: AtomicBool::new(false),
            checks_total: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            late_us: AtomicU64::new(0),
            waits_since_us: AtomicU64::new(0),
        });
        let engine = Engine::new(
            Arc::clone(&shared),
            options.in_flight_max,
            options.seed,
            report,
        );
        let thread = std::thread::Builder::new()
            .name("health".to_owned())
            .spawn(move || engine.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Replaces the list; each server once. Those that did not change keep their pace, running checks
    /// of the others are given up. A result of one of them that is being reported at this moment may
    /// still arrive: the receiver has to ignore servers that it does not know.
    pub fn set(&self, targets: Vec<Target>) {
        self.shared.tell(Command::Set(targets));
    }

    /// Checks a server at its fast interval, or at the usual one again.
    pub fn fast(&self, server: ServerId, is_fast: bool) {
        self.shared.tell(Command::Fast(server, is_fast));
    }

    /// The numbers now.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Shows the numbers without the checker.
    pub fn monitor(&self) -> Monitor {
        Monitor(Arc::clone(&self.shared))
    }
}

/// The numbers of a checker, for those who do not own it.
#[derive(Clone)]
pub struct Monitor(Arc<Shared>);

impl Monitor {
    /// The numbers now.
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }
}

impl Drop for Checker {
    /// Returns when the thread has ended. A report that is running is waited for, so whoever drops the
    /// checker must not hold what the report waits for.
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        event::signal(&self.shared.event);
        let thread = self.thread.take().expect("taken here only");
        // A report that drops the checker cannot wait for itself; its thread ends when it returns.
        if thread.thread().id() != std::thread::current().id() {
            thread
                .join()
                .expect("a panic ends the process before it can be joined");
        }
    }
}

enum Command {
    Set(Vec<Target>),
    Fast(ServerId, bool),
}

struct Shared {
    event: OwnedFd,
    commands: Mutex<Vec<Command>>,
    stopping: AtomicBool,
    checks_total: AtomicU64,
    in_flight: AtomicU64,
    /// Of the check that began last.
    late_us: AtomicU64,
    /// When the check that has no place was due; 0: none is without.
    waits_since_us: AtomicU64,
}

impl Shared {
    fn commands(&self) -> MutexGuard<'_, Vec<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, command: Command) {
        self.commands().push(command);
        event::signal(&self.event);
    }

    fn stats(&self) -> Stats {
        Stats {
            checks_total: self.checks_total.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            late_us: match self.waits_since_us.load(Ordering::Relaxed) {
                0 => self.late_us.load(Ordering::Relaxed),
                // The thread sleeps meanwhile: nobody else would make the number grow.
                since_us => clock::now_us().saturating_sub(since_us),
            },
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}
