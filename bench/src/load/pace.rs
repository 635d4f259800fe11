//! A stream held to a rate: how many bytes it may move now. A token bucket per stream.
//!
//! A bucket each, and not one for all: whichever stream came first would take it all. What a stream
//! could not use it may use later, but no more than [`CATCH_UP`] of it, so that one that stood still
//! does not run at full speed for as long again.
//!
//! A stream that has used up what it may is tried again at the next tick, not with the next byte that
//! comes: it would move a few bytes at a time then.

use std::time::{Duration, Instant};

/// Between two ticks.
const TICK: Duration = Duration::from_millis(1);
/// The same for a stream that may not move a byte in that time.
const TICK_MAX: Duration = Duration::from_secs(1);
/// How far a stream may have fallen behind and still catch up.
const CATCH_UP: Duration = Duration::from_millis(100);

/// The rate of each of some streams, in each direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    bytes_per_second: f64,
    most_bytes: f64,
    /// Between two ticks.
    pub(super) every: Duration,
}

impl Pace {
    /// Of one of `streams` that move so many bytes per second together.
    pub(super) fn new(bytes_per_second: f64, streams: usize) -> Self {
        let bytes_per_second = bytes_per_second / streams.max(1) as f64;
        let byte = Duration::try_from_secs_f64(1.0 / bytes_per_second).unwrap_or(TICK_MAX);
        Self {
            bytes_per_second,
            // At least one byte: else a very slow stream would never have one whole.
            most_bytes: (bytes_per_second * CATCH_UP.as_secs_f64()).max(1.0),
            every: byte.clamp(TICK, TICK_MAX),
        }
    }
}

/// What one stream may move in one direction. It begins empty.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    bytes: f64,
    filled_at: Option<Instant>,
}

impl Bucket {
    /// How many bytes may be moved now.
    pub(super) fn available(&mut self, pace: &Pace, now: Instant) -> usize {
        let filled_at = self.filled_at.unwrap_or(now);
        let passed = now.saturating_duration_since(filled_at);
        self.filled_at = Some(now.max(filled_at));
        let filled = self.bytes + passed.as_secs_f64() * pace.bytes_per_second;
        self.bytes = filled.min(pace.most_bytes);
        self.bytes as usize
    }

    /// So many were moved. The bucket of a stream without a rate stays empty, and nobody looks.
    pub(super) fn take(&mut self, bytes: usize) {
        self.bytes = (self.bytes - bytes as f64).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_move_together_is_the_rate_by_the_time() {
        let start = Instant::now();
        let pace = Pace::new(1_000_000.0, 4);
        let mut buckets = [Bucket::default(); 4];
        let mut moved = 0;
        for ms in 0..=3000 {
            for bucket in &mut buckets {
                let bytes = bucket.available(&pace, start + Duration::from_millis(ms));
                bucket.take(bytes);
                moved += bytes;
            }
            assert!(moved as u64 <= 1000 * ms, "{moved} B after {ms} ms");
        }
        // Of each stream less than a byte is left over.
        assert!(moved > 3_000_000 - 8, "{moved}");
    }

    #[test]
    fn one_that_stood_still_catches_up_a_moment_only() {
        let start = Instant::now();
        let pace = Pace::new(1000.0, 1);
        let mut bucket = Bucket::default();
        let mut at = |ms| bucket.available(&pace, start + Duration::from_millis(ms));
        assert_eq!(at(0), 0);
        assert_eq!(at(50), 50);
        assert_eq!(at(10_000), 100);
        bucket.take(100);
        assert_eq!(bucket.available(&pace, start + Duration::from_secs(10)), 0);
    }

    #[test]
    fn a_rate_below_a_byte_per_tick_moves_whole_bytes() {
        let start = Instant::now();
        let pace = Pace::new(0.5, 1);
        assert_eq!(pace.every, TICK_MAX);
        let mut bucket = Bucket::default();
        let mut moved = 0;
        for tick in 0..=20 {
            let bytes = bucket.available(&pace, start + pace.every * tick);
            bucket.take(bytes);
            moved += bytes;
        }
        assert_eq!(moved, 10);
    }
}
