//! What one thread has counted, and its histograms. Nothing here is shared while the load runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::control::{Control, Snapshot};

/// Longest latency told apart, in nanoseconds (10 minutes); longer ones count as this.
pub const MAX_LATENCY_NS: u64 = 600 * 1_000_000_000;
/// Significant decimal digits of a latency.
const LATENCY_DIGITS: u8 = 3;
/// Significant decimal digits of the progress line's latency.
const COARSE_DIGITS: u8 = 2;
/// How often a thread's counts are published.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// A histogram as all reports use it, so that any two can be added.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(MAX_LATENCY_NS, LATENCY_DIGITS).expect("constant bounds are valid")
}

pub(super) fn coarse_histogram() -> Histogram<u64> {
    Histogram::new_with_max(MAX_LATENCY_NS, COARSE_DIGITS).expect("constant bounds are valid")
}

/// One thread's counts.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) operations: u64,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) open: u64,
    pub(super) service_ns: Histogram<u64>,
    /// Only in an open loop.
    pub(super) intended_ns: Option<Histogram<u64>>,
    /// Of operations whose answers come in parts: the wait for the last one. None before the first.
    pub(super) tail_ns: Option<Histogram<u64>>,
    /// When the last operation was complete.
    pub(super) last_at: Option<Instant>,
    /// For the progress line, if there is one.
    recent_ns: Option<Histogram<u64>>,
    error_count: u64,
    published: Snapshot,
    publish_at: Instant,
}

impl Tally {
    pub(super) fn new(open_loop: bool, control: &Control) -> Self {
        Self {
            operations: 0,
            errors: BTreeMap::new(),
            bytes_sent: 0,
            bytes_received: 0,
            open: 0,
            service_ns: histogram(),
            intended_ns: open_loop.then(histogram),
            tail_ns: None,
            last_at: None,
            recent_ns: control.is_watched().then(coarse_histogram),
            error_count: 0,
            published: Snapshot::default(),
            publish_at: Instant::now() + PUBLISH_EVERY,
        }
    }

    /// An operation is complete: it began at `began`, and in an open loop it was due at `intended`.
    pub(super) fn complete(&mut self, began: Instant, intended: Option<Instant>, now: Instant) {
        self.operations += 1;
        self.last_at = Some(now);
        let service_ns = nanoseconds(now.saturating_duration_since(began));
        self.service_ns.saturating_record(service_ns);
        let mut seen_ns = service_ns;
        if let (Some(histogram), Some(intended)) = (&mut self.intended_ns, intended) {
            seen_ns = nanoseconds(now.saturating_duration_since(intended));
            histogram.saturating_record(seen_ns);
        }
        if let Some(recent) = &mut self.recent_ns {
            recent.saturating_record(seen_ns);
        }
    }

    /// The last bytes of an answer came now, and those before them at `arrived_at`; none if it came at
    /// once.
    pub(super) fn tail(&mut self, arrived_at: Option<Instant>, now: Instant) {
        if let Some(arrived_at) = arrived_at {
            let tail_ns = nanoseconds(now.saturating_duration_since(arrived_at));
            let histogram = self.tail_ns.get_or_insert_with(histogram);
            histogram.saturating_record(tail_ns);
        }
    }

    pub(super) fn error(&mut self, kind: &str, times: u64) {
        if times == 0 {
            return;
        }
        self.error_count += times;
        match self.errors.get_mut(kind) {
            Some(count) => *count += times,
            None => {
                self.errors.insert(kind.to_owned(), times);
            }
        }
    }

    /// Publishes, unless that was done a moment ago.
    pub(super) fn publish_if_due(&mut self, control: &Control, now: Instant) {
        if now >= self.publish_at {
            self.publish_at = now + PUBLISH_EVERY;
            self.publish(control);
        }
    }

    pub(super) fn publish(&mut self, control: &Control) {
        let now = Snapshot {
            operations: self.operations,
            errors: self.error_count,
            bytes_sent: self.bytes_sent,
            bytes_received: self.bytes_received,
            open: self.open,
        };
        let before = std::mem::replace(&mut self.published, now);
        let more = Snapshot {
            operations: now.operations - before.operations,
            errors: now.errors - before.errors,
            bytes_sent: now.bytes_sent - before.bytes_sent,
            bytes_received: now.bytes_received - before.bytes_received,
            open: 0,
        };
        let open = now.open as i64 - before.open as i64;
        control.add(more, open, self.recent_ns.as_ref());
        if let Some(recent) = &mut self.recent_ns {
            recent.reset();
        }
    }
}

fn nanoseconds(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(MAX_LATENCY_NS)
}
