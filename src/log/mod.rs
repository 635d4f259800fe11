//! The access log: one line of JSON per session, at its end.
//!
//! A core hands a [`Record`] to its own bounded queue through its [`Producer`] and goes on; the
//! writer thread behind [`LogWriter`] turns records into lines ([`mod@line`]) and writes them to stdout
//! or a file ([`sink`]). Nothing that happens to the writer, be it a full disk, a closed pipe or a reader that
//! stopped reading, reaches a core: its queue fills, [`Producer::push`] says so, and the core counts
//! the loss. There is one place where lines are lost, and so one counter to watch.
//!
//! ```text
//! core 0 ── Producer ──[ bounded queue ]──┐
//! core 1 ── Producer ──[ bounded queue ]──┼── writer thread ── 64 KiB buffer ── stdout | file
//! core N ── Producer ──[ bounded queue ]──┘
//! ```
//!
//! This is not the process log, which goes through `tracing` to stderr. The only thing shared with
//! it are [`sink`], for the same promise never to block, and [`RateLimit`].

pub mod id;
pub mod line;
pub mod rate_limit;
pub mod record;
pub mod sink;
mod writer;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use id::SessionId;
pub use rate_limit::RateLimit;
pub use record::Record;
pub use sink::Target;

use crate::units::ServerId;
use sink::Sink;
use writer::{Shared, Writer};

/// Records that one core's queue holds: at 100,000 sessions per second on one core, four times what
/// arrives between two turns of the writer, in under 2 MiB.
pub const QUEUE_RECORDS_DEFAULT: usize = 8192;

/// How much longer than its deadline [`LogWriter::close`] waits for the writer to notice it.
const CLOSE_GRACE: Duration = Duration::from_millis(100);

/// Which sessions get a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Every session.
    All,
    /// Only those whose cause is not clean ([`crate::outcome::Cause::is_clean`]).
    Errors,
    /// None: no thread, no queue, and stdout is not touched.
    Off,
}

/// What the ids in a [`Record`] are called, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// By [`crate::units::ListenerId`].
    pub listeners: Vec<String>,
    /// By [`crate::units::UpstreamId`].
    pub upstreams: Vec<String>,
    /// By [`crate::units::ServerId`]: the address.
    pub servers: Vec<String>,
}

/// How to start a [`LogWriter`].
#[derive(Clone, Debug)]
pub struct Options {
    /// One [`Producer`] is made for each.
    pub cores: usize,
    /// The bound of each core's queue, in records.
    pub queue_records: usize,
    /// Which sessions get a line.
    pub filter: Filter,
    /// Where lines go.
    pub target: Target,
    /// What ids are called.
    pub names: Names,
    /// The first part of every line's `id`: [`id::start_nonce`].
    pub nonce: u32,
}

/// Why the access log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file could not be opened for appending.
    #[error(
        "the access log {target} cannot be opened: {source}; create its directory and let this user write to it, or change log.access_file"
    )]
    Open {
        /// Where it should have gone.
        target: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The writer thread could not be started.
    #[error(
        "the access log's thread cannot be started: {0}; raise the limit on threads (TasksMax, ulimit -u)"
    )]
    Thread(io::Error),
}

/// One core's end of the access log.
pub struct Producer {
    /// `None` with [`Filter::Off`].
    queue: Option<(rtrb::Producer<Record>, Arc<Shared>)>,
    filter: Filter,
}

impl Producer {
    /// Hands one session's record over; false if the queue is full, which the caller counts.
    ///
    /// Wait-free. It makes a system call (one futex wake) only when the writer sleeps, which it does
    /// not do before 20 ms without a record: an idle system has no wake-ups, and a busy
    /// one has few.
    #[must_use = "a record that did not fit is to be counted"]
    pub fn push(&mut self, record: Record) -> bool {
        let Some((queue, shared)) = &mut self.queue else {
            return true;
        };
        if self.filter == Filter::Errors && record.close_reason.cause.is_clean() {
            return true;
        }
        if queue.push(record).is_err() {
            return false;
        }
        shared.wake_if_asleep();
        true
    }
}

/// How the writer fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterStats {
    /// Lines that the kernel took.
    pub lines_written_total: u64,
    /// Whether the target takes nothing at present (disk full, pipe closed or blocked).
    pub stalled: bool,
}

/// Tells how a [`LogWriter`] fares; any thread may hold one.
#[derive(Clone)]
pub struct Monitor(Arc<Shared>);

impl Monitor {
    /// How the writer fares now.
    pub fn stats(&self) -> WriterStats {
        self.0.stats()
    }
}

/// Tells the writer what new servers are called; any thread may hold one.
#[derive(Clone)]
pub struct Namer {
    /// `None` with [`Filter::Off`].
    shared: Option<Arc<Shared>>,
}

impl Namer {
    /// A server has this id in every record that is pushed from now on.
    pub fn name_server(&self, id: ServerId, address: &str) {
        if let Some(shared) = &self.shared {
            shared.name_server(id, address);
        }
    }
}

/// What [`LogWriter::close`] left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseReport {
    /// Lines that the kernel took over the writer's whole life.
    pub lines_written_total: u64,
    /// Lines given up at the deadline; `None` if the thread hangs in a write and cannot be asked.
    pub lines_abandoned: Option<u64>,
}

/// The writer thread's handle.
pub struct LogWriter {
    shared: Arc<Shared>,
    /// `None` with [`Filter::Off`].
    thread: Option<(JoinHandle<()>, Receiver<u64>)>,
}

impl LogWriter {
    /// Opens the target and starts the thread; returns one producer per core, by index.
    ///
    /// # Errors
    /// The file cannot be opened, or no thread can be started.
    pub fn start(options: Options) -> Result<(Self, Vec<Producer>), LogError> {
        let shared = Arc::new(Shared::default());
        if options.filter == Filter::Off {
            let producers = (0..options.cores)
                .map(|_| Producer {
                    queue: None,
                    filter: Filter::Off,
                })
                .collect();
            let thread = None;
            return Ok((Self { shared, thread }, producers));
        }
        let sink = Sink::open(&options.target).map_err(|source| LogError::Open {
            target: options.target.to_string(),
            source,
        })?;
        let (ends, queues): (Vec<_>, Vec<_>) = (0..options.cores)
            .map(|_| rtrb::RingBuffer::new(options.queue_records))
            .unzip();
        let renderer = line::Renderer::new(&options.names, options.nonce);
        let writer = Writer::new(queues, renderer, sink, options.target, shared.clone());
        // The answer fits, so that the thread never waits for someone to take it.
        let (report, reported) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || {
                let abandoned = writer.run();
                // The receiver is gone only if nobody waits for the answer any more.
                let _ = report.send(abandoned);
            })
            .map_err(LogError::Thread)?;
        shared.set_thread(thread.thread().clone());
        let producers = ends
            .into_iter()
            .map(|queue| Producer {
                queue: Some((queue, shared.clone())),
                filter: options.filter,
            })
            .collect();
        let thread = Some((thread, reported));
        Ok((Self { shared, thread }, producers))
    }

    /// Asks the writer to open its file anew (SIGUSR1, after logrotate renamed it). Lines handed over before the call go to the old
    /// file unless that file is stuck. Nothing happens for stdout. If the new file cannot be opened, the old one is kept and the process log says so.
    pub fn reopen(&self) {
        self.shared.request_reopen();
    }

    /// A handle for whoever reports how the writer fares.
    pub fn monitor(&self) -> Monitor {
        Monitor(self.shared.clone())
    }

    /// A handle for whoever gives ids to servers.
    pub fn namer(&self) -> Namer {
        Namer {
            shared: self.thread.is_some().then(|| self.shared.clone()),
        }
    }

    /// Writes what is queued and ends the thread, within `limit` (and 100 ms at most).
    ///
    /// To be called when no core pushes any more. A thread that hangs in a write that cannot be
    /// interrupted (a file on a dead network mount) is left to the end of the process.
    pub fn close(self, limit: Duration) -> CloseReport {
        let Some((thread, reported)) = self.thread else {
            return CloseReport {
                lines_written_total: 0,
                lines_abandoned: Some(0),
            };
        };
        self.shared.request_close(Instant::now() + limit);
        let lines_abandoned = reported.recv_timeout(limit + CLOSE_GRACE).ok();
        if lines_abandoned.is_some() {
            thread
                .join()
                .expect("a panic ends the process before it can be joined");
        }
        CloseReport {
            lines_written_total: self.shared.stats().lines_written_total,
            lines_abandoned,
        }
    }
}

#[cfg(test)]
mod tests;
