//! The access log's thread: drain the queues, render, write, and sleep when there is nothing to do.
//!
//! ```text
//!            ┌───────────── records found ─────────────┐
//!            ▼                                         │
//!         WORKING ── nothing for LINGER ──> ASLEEP ── a core's push wakes it
//!            │  ▲
//!  the target│  │it takes bytes again
//!  takes none▼  │
//!         STALLED: the buffer is full, queues fill, cores count; retried every RETRY
//! ```
//!
//! Bytes that were rendered are never thrown away while the thread runs, so that a line is written
//! whole or not at all: what a full disk loses, it loses at the queues.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::line::Renderer;
use super::sink::{Sink, Target};
use super::{RateLimit, Record, WriterStats};
use crate::units::ServerId;

/// How long the thread stays awake after it found a record. Within that time a push costs no system
/// call, and a line waits no longer than this.
pub(super) const LINGER: Duration = Duration::from_millis(20);
/// How often a target that takes nothing is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// A reader may be slow for this long before it counts as stalled.
const STALL: Duration = Duration::from_secs(1);
/// Bytes rendered and not yet written.
const BUFFER_BYTES: usize = 64 * 1024;
/// Records taken from one queue before the next has its turn.
const BATCH_RECORDS: usize = 64;

/// One message a second about a target that takes nothing.
static STALLED: RateLimit = RateLimit::per_second();
/// One message a second about a file that cannot be opened anew.
static REOPEN_FAILED: RateLimit = RateLimit::per_second();

/// The one word that cores write; on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Asleep(AtomicBool);

/// What the thread shares with the producers and with its handle.
#[derive(Default)]
pub(super) struct Shared {
    asleep: Asleep,
    thread: OnceLock<Thread>,
    reopen: AtomicBool,
    /// Names that the renderer does not know yet, and whether there are any.
    names: Mutex<HashMap<ServerId, String>>,
    has_names: AtomicBool,
    /// Set when the thread is to end, with the time by which it must.
    close: Mutex<Option<Instant>>,
    lines_written_total: AtomicU64,
    stalled: AtomicBool,
}

impl Shared {
    pub(super) fn set_thread(&self, thread: Thread) {
        self.thread
            .set(thread)
            .expect("there is one thread per writer");
        // It may have gone to sleep, and a request may have come, before its name was known.
        self.wake();
    }

    /// The producer's half of the sleeping protocol, after its push.
    pub(super) fn wake_if_asleep(&self) {
        // Pairs with the fence in `Writer::sleep`: either this load sees the flag, or the writer's
        // look at the queues sees the push. Without both fences each could miss the other.
        fence(Ordering::SeqCst);
        if self.asleep.0.load(Ordering::Relaxed) && self.asleep.0.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    pub(super) fn request_reopen(&self) {
        self.reopen.store(true, Ordering::Release);
        self.wake();
    }

    /// In force for every record that is pushed after it.
    pub(super) fn name_server(&self, id: ServerId, address: &str) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(id, address.to_owned());
        // Before the lock is free: the writer takes all that the flag speaks of.
        self.has_names.store(true, Ordering::Release);
    }

    /// The names that came since the last call.
    fn take_names(&self) -> HashMap<ServerId, String> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_names.store(false, Ordering::Relaxed);
        std::mem::take(&mut *names)
    }

    pub(super) fn request_close(&self, deadline: Instant) {
        *self.close.lock().unwrap_or_else(PoisonError::into_inner) = Some(deadline);
        self.wake();
    }

    pub(super) fn stats(&self) -> WriterStats {
        WriterStats {
            lines_written_total: self.lines_written_total.load(Ordering::Relaxed),
            stalled: self.stalled.load(Ordering::Relaxed),
        }
    }

    #[cfg(test)]
    pub(super) fn is_asleep(&self) -> bool {
        self.asleep.0.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn reopen_is_requested(&self) -> bool {
        self.reopen.load(Ordering::Relaxed)
    }

    fn close_deadline(&self) -> Option<Instant> {
        *self.close.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// What a look at the queues brought.
enum Found {
    Nothing,
    /// And the queues are empty now.
    Some,
    /// The buffer is full; there may be more.
    More,
}

/// The thread's own state.
pub(super) struct Writer {
    queues: Vec<rtrb::Consumer<Record>>,
    renderer: Renderer,
    sink: Sink,
    target: Target,
    shared: Arc<Shared>,
    /// Rendered lines; those before `written` are with the kernel.
    buffer: Vec<u8>,
    written: usize,
    /// Since when the target has taken nothing.
    stuck_since: Option<Instant>,
}

impl Writer {
    pub(super) fn new(
        queues: Vec<rtrb::Consumer<Record>>,
        renderer: Renderer,
        sink: Sink,
        target: Target,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            queues,
            renderer,
            sink,
            target,
            shared,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            written: 0,
            stuck_since: None,
        }
    }

    /// The thread's body. Returns the lines given up when the time to close was over.
    pub(super) fn run(mut self) -> u64 {
        loop {
            let close_by = self.shared.close_deadline();
            let reopen = self.shared.reopen.swap(false, Ordering::Acquire);
            let found = self.drain();
            self.flush();
            if reopen {
                self.reopen();
            }
            let stuck = self.stuck_since.is_some();
            if let Some(deadline) = close_by {
                let empty = self.buffer.is_empty() && self.queues_are_empty();
                if empty || Instant::now() >= deadline {
                    return self.lines_left();
                }
                if stuck {
                    let left = deadline.saturating_duration_since(Instant::now());
                    std::thread::park_timeout(RETRY.min(left));
                }
            } else if stuck {
                std::thread::park_timeout(RETRY);
            } else {
                match found {
                    // Only the buffer's size ended the turn, and the buffer is free again.
                    Found::More => {}
                    Found::Some => std::thread::park_timeout(LINGER),
                    Found::Nothing => self.sleep(),
                }
            }
        }
    }

    /// Renders what is queued, until the buffer is full or the queues are empty.
    fn drain(&mut self) -> Found {
        let mut found = Found::Nothing;
        loop {
            let mut progress = false;
            for queue in &mut self.queues {
                for _ in 0..BATCH_RECORDS {
                    if self.buffer.len() >= BUFFER_BYTES {
                        return Found::More;
                    }
                    let Ok(record) = queue.pop() else { break };
                    // Looked at after the pop: the names of this record's ids came before its push.
                    if self.shared.has_names.load(Ordering::Acquire) {
                        for (id, address) in self.shared.take_names() {
                            self.renderer.name_server(id, &address);
                        }
                    }
                    self.renderer.render(&record, &mut self.buffer);
                    progress = true;
                }
            }
            if !progress {
                return found;
            }
            found = Found::Some;
        }
    }

    /// Writes the buffer as far as the target takes it.
    fn flush(&mut self) {
        while self.written < self.buffer.len() {
            match self.sink.write(&self.buffer[self.written..]) {
                Ok(0) => return self.note_stuck(&io::Error::from(io::ErrorKind::WriteZero)),
                Ok(bytes) => self.note_progress(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.note_stuck(&error),
            }
        }
        self.buffer.clear();
        self.written = 0;
    }

    fn note_progress(&mut self, bytes: usize) {
        let end = self.written + bytes;
        let lines = count_lines(&self.buffer[self.written..end]);
        self.written = end;
        self.shared
            .lines_written_total
            .fetch_add(lines, Ordering::Relaxed);
        self.stuck_since = None;
        if self.shared.stalled.swap(false, Ordering::Relaxed) {
            tracing::info!(target = %self.target, "the access log is written again");
        }
    }

    fn note_stuck(&mut self, error: &io::Error) {
        let since = *self.stuck_since.get_or_insert_with(Instant::now);
        let slow_reader = error.kind() == io::ErrorKind::WouldBlock;
        if slow_reader && since.elapsed() < STALL {
            return;
        }
        self.shared.stalled.store(true, Ordering::Relaxed);
        if let Some(suppressed) = STALLED.allow() {
            tracing::warn!(
                target = %self.target,
                error = %error,
                suppressed,
                "the access log cannot be written: lines are dropped once the queues are full, sessions are not affected; free the disk or restart the reader"
            );
        }
    }

    fn reopen(&mut self) {
        if !matches!(self.target, Target::File(_)) {
            return;
        }
        match Sink::open(&self.target) {
            Ok(sink) => {
                self.sink = sink;
                // The rest of a line whose beginning is in the old file would be noise in the new one.
                self.forget_half_line();
                self.stuck_since = None;
                tracing::info!(target = %self.target, "the access log was opened anew");
            }
            Err(error) => {
                if let Some(suppressed) = REOPEN_FAILED.allow() {
                    tracing::warn!(target = %self.target, error = %error, suppressed, "the access log cannot be opened anew; lines still go to the old file");
                }
            }
        }
    }

    fn forget_half_line(&mut self) {
        let in_a_line = self.written > 0 && self.buffer[self.written - 1] != b'\n';
        if in_a_line {
            let rest = &self.buffer[self.written..];
            let end = rest.iter().position(|byte| *byte == b'\n');
            self.written += end.expect("the buffer ends with a whole line") + 1;
        }
    }

    /// The writer's half of the sleeping protocol.
    fn sleep(&self) {
        self.shared.asleep.0.store(true, Ordering::Relaxed);
        // Pairs with the fence in `Shared::wake_if_asleep`.
        fence(Ordering::SeqCst);
        let nothing_to_do = self.queues_are_empty()
            && !self.shared.reopen.load(Ordering::Acquire)
            && self.shared.close_deadline().is_none();
        if nothing_to_do {
            // A request that comes after the look above unparks this thread, and a park after an
            // unpark returns at once.
            std::thread::park();
        }
        self.shared.asleep.0.store(false, Ordering::Relaxed);
    }

    fn queues_are_empty(&self) -> bool {
        self.queues.iter().all(rtrb::Consumer::is_empty)
    }

    fn lines_left(&self) -> u64 {
        let queued: usize = self.queues.iter().map(rtrb::Consumer::slots).sum();
        count_lines(&self.buffer[self.written..]) + queued as u64
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}
