//! At most one message per interval from one site, and how many were held back in between.
//!
//! It decides only; the caller writes. It is used as a `static` next to the message:
//!
//! ```
//! # use corelay::log::RateLimit;
//! static ACCEPT_FAILED: RateLimit = RateLimit::per_second();
//! if let Some(suppressed) = ACCEPT_FAILED.allow() {
//!     tracing::warn!(suppressed, "accept failed");
//! }
//! ```

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// "Never yet": no instant is this far from the first use.
const NEVER: u64 = u64::MAX;

/// A limiter for one site, shared by any number of threads. Lock-free.
pub struct RateLimit {
    interval: Duration,
    /// The limiter's time zero. An `Instant` cannot be made in a `const`.
    epoch: OnceLock<Instant>,
    /// When a message last went through, in nanoseconds after the epoch.
    last_ns: AtomicU64,
    suppressed: AtomicU64,
}

impl RateLimit {
    /// One message a second: what every message about a repeating failure uses.
    pub const fn per_second() -> Self {
        Self::every(Duration::from_secs(1))
    }

    /// One message per `interval`.
    pub const fn every(interval: Duration) -> Self {
        Self {
            interval,
            epoch: OnceLock::new(),
            last_ns: AtomicU64::new(NEVER),
            suppressed: AtomicU64::new(0),
        }
    }

    /// `Some(messages held back since the last one)` if this one may go out.
    pub fn allow(&self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    /// [`RateLimit::allow`] with the time given.
    pub fn allow_at(&self, now: Instant) -> Option<u64> {
        let epoch = *self.epoch.get_or_init(|| now);
        let now_ns =
            u64::try_from(now.saturating_duration_since(epoch).as_nanos()).unwrap_or(NEVER - 1);
        let last_ns = self.last_ns.load(Ordering::Relaxed);
        let due = last_ns == NEVER
            || u128::from(now_ns.saturating_sub(last_ns)) >= self.interval.as_nanos();
        // Of several threads that find the interval over, the one that moves the mark speaks.
        let mine = due
            && self
                .last_ns
                .compare_exchange(last_ns, now_ns, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if mine {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_goes_out_the_rest_of_the_second_is_counted() {
        let limit = RateLimit::per_second();
        let start = Instant::now();
        assert_eq!(limit.allow_at(start), Some(0));
        assert_eq!(limit.allow_at(start), None);
        assert_eq!(limit.allow_at(start + Duration::from_millis(999)), None);
        assert_eq!(limit.allow_at(start + Duration::from_millis(1000)), Some(2));
        assert_eq!(limit.allow_at(start + Duration::from_millis(1001)), None);
    }

    #[test]
    fn of_many_threads_one_speaks() {
        static LIMIT: RateLimit = RateLimit::every(Duration::from_secs(3600));
        let now = Instant::now();
        let spoke: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(move || usize::from(LIMIT.allow_at(now).is_some())))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(spoke, 1);
        assert_eq!(
            LIMIT.allow_at(now + Duration::from_secs(3600)),
            Some(7),
            "the seven that were held back"
        );
    }
}
