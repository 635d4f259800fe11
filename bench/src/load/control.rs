//! The caller's hold on a run: stop it early, and watch it while it goes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;

use super::tally;

/// Cloneable; every clone speaks of the same run.
#[derive(Clone, Debug, Default)]
pub struct Control {
    stopped: Arc<AtomicBool>,
    live: Arc<Live>,
}

/// Counters of a run that is going on. They lag by about 0.1 s.
#[derive(Debug, Default)]
struct Live {
    operations: AtomicU64,
    errors: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    open: AtomicU64,
    /// Of the operations since the last look; absent as long as nobody looks.
    latency_ns: Mutex<Option<Histogram<u64>>>,
}

/// What a run has done up to one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Operations completed.
    pub operations: u64,
    /// Errors of all kinds.
    pub errors: u64,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Connections that are open now.
    pub open: u64,
}

impl Control {
    /// A control of a run that has not been stopped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the run early; it reports what it has. (It may be called from a signal handler's
    /// thread, and more than once.)
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// The flag that [`Control::stop`] sets, for a signal handler, which may do no more than that.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stopped)
    }

    /// Whether [`Control::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// What the run has done so far.
    pub fn snapshot(&self) -> Snapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            operations: load(&self.live.operations),
            errors: load(&self.live.errors),
            bytes_sent: load(&self.live.bytes_sent),
            bytes_received: load(&self.live.bytes_received),
            open: load(&self.live.open),
        }
    }

    /// Latencies of the operations since the last call, in nanoseconds. The first call gives none
    /// and makes the run collect them from its start on, so call it once before.
    pub fn take_latency_ns(&self) -> Histogram<u64> {
        let mut latency = self.latency();
        latency
            .replace(tally::coarse_histogram())
            .unwrap_or_else(tally::coarse_histogram)
    }

    /// A run beside this one, with its own stop and the same counters.
    pub(super) fn beside(&self) -> Self {
        Self {
            stopped: Arc::default(),
            live: Arc::clone(&self.live),
        }
    }

    /// Whether anybody looks at latencies.
    pub(super) fn is_watched(&self) -> bool {
        self.latency().is_some()
    }

    /// Adds a thread's progress; `open` is the change of its open connections.
    pub(super) fn add(&self, more: Snapshot, open: i64, latency_ns: Option<&Histogram<u64>>) {
        let live = &self.live;
        live.operations
            .fetch_add(more.operations, Ordering::Relaxed);
        live.errors.fetch_add(more.errors, Ordering::Relaxed);
        live.bytes_sent
            .fetch_add(more.bytes_sent, Ordering::Relaxed);
        live.bytes_received
            .fetch_add(more.bytes_received, Ordering::Relaxed);
        // Wraps as two's complement does, so that a negative change subtracts.
        live.open.fetch_add(open as u64, Ordering::Relaxed);
        if let (Some(sum), Some(latency_ns)) = (self.latency().as_mut(), latency_ns) {
            sum.add(latency_ns).expect("both are coarse histograms");
        }
    }

    fn latency(&self) -> std::sync::MutexGuard<'_, Option<Histogram<u64>>> {
        self.live
            .latency_ns
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
