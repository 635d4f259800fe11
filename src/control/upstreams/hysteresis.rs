//! A fact that turns to and fro, and what is believed of it: only what has held for a while.
//!
//! ```text
//!            the fact is otherwise                 for long enough
//!   settled ───────────────────────> in question ──────────────────> settled, the other way round
//!      ^──────────────────────────────────┘ it is as before: nothing has happened
//! ```
//!
//! Pure: the time is passed in.

/// Whether there is something, with hysteresis.
#[derive(Clone, Debug)]
pub(super) struct Hysteresis {
    /// How long a lack must last to be believed.
    lack_us: u64,
    /// How long it must have been there again.
    again_us: u64,
    is_there: bool,
    /// Since when it is otherwise than believed.
    otherwise_since_us: Option<u64>,
}

impl Hysteresis {
    /// It is there to begin with.
    pub(super) fn new(lack_us: u64, again_us: u64) -> Self {
        Self {
            lack_us,
            again_us,
            is_there: true,
            otherwise_since_us: None,
        }
    }

    /// How it is now. The same twice is nothing new.
    pub(super) fn note(&mut self, is_there: bool, now_us: u64) {
        if is_there == self.is_there {
            self.otherwise_since_us = None;
        } else {
            self.otherwise_since_us.get_or_insert(now_us);
        }
    }

    /// Believes what has held for long enough.
    pub(super) fn settle(&mut self, now_us: u64) {
        if self.next_us().is_some_and(|at_us| at_us <= now_us) {
            self.is_there = !self.is_there;
            self.otherwise_since_us = None;
        }
    }

    /// What is believed.
    pub(super) fn is_there(&self) -> bool {
        self.is_there
    }

    /// When [`Hysteresis::settle`] has something to do, if nothing happens before.
    pub(super) fn next_us(&self) -> Option<u64> {
        let wait_us = if self.is_there {
            self.lack_us
        } else {
            self.again_us
        };
        Some(self.otherwise_since_us?.saturating_add(wait_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LACK_US: u64 = 3_000;
    const AGAIN_US: u64 = 10_000;

    #[test]
    fn a_lack_counts_after_its_time_and_a_return_after_its_own() {
        let mut it = Hysteresis::new(LACK_US, AGAIN_US);
        assert_eq!(it.next_us(), None);
        it.note(false, 100);
        // Told again, it has not begun anew.
        it.note(false, 2_000);
        assert_eq!(it.next_us(), Some(3_100));
        it.settle(3_099);
        assert!(it.is_there());
        it.settle(3_100);
        assert!(!it.is_there());
        assert_eq!(it.next_us(), None);

        it.note(true, 5_000);
        assert_eq!(it.next_us(), Some(15_000));
        it.settle(14_999);
        assert!(!it.is_there());
        it.settle(15_000);
        assert!(it.is_there());
    }

    #[test]
    fn what_turns_back_in_time_has_not_happened() {
        let mut it = Hysteresis::new(LACK_US, AGAIN_US);
        for start_us in (0..100_000).step_by(5_000) {
            it.note(false, start_us);
            it.settle(start_us + LACK_US - 1);
            it.note(true, start_us + LACK_US - 1);
            assert_eq!(it.next_us(), None);
            it.settle(start_us + LACK_US);
            assert!(it.is_there());
        }
        it.note(false, 200_000);
        it.settle(200_000 + LACK_US);
        for start_us in (300_000..400_000).step_by(20_000) {
            it.note(true, start_us);
            it.settle(start_us + AGAIN_US - 1);
            it.note(false, start_us + AGAIN_US - 1);
            it.settle(start_us + AGAIN_US);
            assert!(!it.is_there());
        }
    }

    #[test]
    fn a_turn_that_is_due_and_turned_back_before_anybody_looked_has_not_happened() {
        let mut it = Hysteresis::new(LACK_US, AGAIN_US);
        it.note(false, 0);
        it.note(true, LACK_US + 50);
        it.settle(LACK_US + 50);
        assert!(it.is_there());
    }
}
