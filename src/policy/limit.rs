//! How many of something there may be at once, over all cores.
//!
//! Exact: there are never more than the limit, and none is refused while one is free. For that an
//! attempt must not show while it fails: with "add, and undo if over" two cores could refuse each
//! other the same free place. A compare-exchange costs the same one locked instruction when cores do
//! not meet, and a full limit costs none: it is only read.

use std::sync::atomic::{AtomicU32, Ordering};

/// A number of places shared by all cores. The limit may change while places are taken.
#[derive(Debug)]
pub struct SharedLimit {
    in_use: AtomicU32,
    limit: AtomicU32,
}

// Relaxed throughout: the count protects no other memory, and each change of it is one atomic
// operation on it.
impl SharedLimit {
    /// `limit` places, all free. With 0 there is none to have.
    pub fn new(limit: u32) -> Self {
        Self {
            in_use: AtomicU32::new(0),
            limit: AtomicU32::new(limit),
        }
    }

    /// Takes a place if one is free. Each place taken is to be given back by [`Self::release`].
    #[must_use = "a place taken has to be released"]
    pub fn try_acquire(&self) -> bool {
        let limit = self.limit();
        let mut in_use = self.in_use();
        while in_use < limit {
            let next = in_use + 1;
            match self.in_use.compare_exchange_weak(
                in_use,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => in_use = now,
            }
        }
        false
    }

    /// Gives a place back.
    ///
    /// # Panics
    /// If none was taken.
    pub fn release(&self) {
        let before = self.in_use.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "more places released than taken");
    }

    /// Places taken now. More than the limit only where the limit was lowered below what was taken.
    pub fn in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Places there are.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes the number of places. Those taken stay taken; below their number none is free until
    /// enough came back. An attempt on another core may still go by the limit before.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::thread;

    #[test]
    fn counts_up_to_the_limit() {
        let limit = SharedLimit::new(2);
        assert!(limit.try_acquire() && limit.try_acquire());
        assert!(!limit.try_acquire());
        assert_eq!(limit.in_use(), 2);
        limit.release();
        assert!(limit.try_acquire());
        assert!(!SharedLimit::new(0).try_acquire());
    }

    #[test]
    fn a_lowered_limit_waits_for_releases() {
        let limit = SharedLimit::new(3);
        assert!((0..3).all(|_| limit.try_acquire()));
        limit.set_limit(1);
        limit.release();
        limit.release();
        assert_eq!((limit.in_use(), limit.try_acquire()), (1, false));
        limit.release();
        assert!(limit.try_acquire());
        limit.set_limit(2);
        assert!(limit.try_acquire() && !limit.try_acquire());
    }

    #[test]
    #[should_panic(expected = "more places released than taken")]
    fn releasing_what_was_not_taken_is_a_bug() {
        SharedLimit::new(1).release();
    }

    #[test]
    fn threads_never_hold_more_than_the_limit_nor_miss_a_free_place() {
        const THREADS: u32 = 4;
        const LIMIT: u32 = 3;
        /// Enough that the threads run side by side for most of it.
        const ROUNDS: u32 = 300_000;
        let start = Barrier::new(THREADS as usize);
        let limit = SharedLimit::new(LIMIT);
        let held = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..ROUNDS {
                        if limit.try_acquire() {
                            let before = held.fetch_add(1, Ordering::SeqCst);
                            assert!(before < LIMIT, "{} held at once", before + 1);
                            held.fetch_sub(1, Ordering::SeqCst);
                            limit.release();
                        }
                    }
                });
            }
        });
        assert_eq!(limit.in_use(), 0);

        // As many places as threads: nobody is ever refused, whatever the others attempt.
        let enough = SharedLimit::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..ROUNDS {
                        assert!(enough.try_acquire(), "refused while a place was free");
                        enough.release();
                    }
                });
            }
        });
        assert_eq!(enough.in_use(), 0);
    }
}
