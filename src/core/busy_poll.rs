//! Whether to look for more work before going to sleep: pure policy, no ring, no clock.
//!
//! A core that sleeps must be woken, which costs both sides: the one that wakes it an interrupt to another
//! CPU, and it the way out of idling. Where the next message is microseconds away, looking for it is
//! cheaper and much sooner. Where it is not, looking is CPU thrown away. So a core looks only after it
//! has had work, and each time that it looks in vain several times running it sleeps twice as often
//! without looking before the next try.

use std::time::Duration;

/// Looks in vain, in a row, after which sleeps follow without a look.
const MISSES_MAX: u32 = 4;
/// Most sleeps without a look between two tries.
const PAUSE_MAX: u32 = 1_024;

/// See the head of this file.
#[derive(Clone, Copy, Debug)]
pub struct BusyPoll {
    /// How long one look may last; zero is never.
    limit: Duration,
    misses: u32,
    /// Sleeps without a look that the next misses lead to, and those left of the present ones.
    pause: u32,
    sleeps_left: u32,
}

impl BusyPoll {
    /// Looks may last that long.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            misses: 0,
            pause: 1,
            sleeps_left: 0,
        }
    }

    /// The core is about to sleep: how long to look before.
    pub fn next_look(&mut self) -> Option<Duration> {
        if self.limit.is_zero() {
            return None;
        }
        if self.sleeps_left > 0 {
            self.sleeps_left -= 1;
            return None;
        }
        Some(self.limit)
    }

    /// A look is over; `found` is whether there was work.
    pub fn on_looked(&mut self, found: bool) {
        if found {
            *self = Self::new(self.limit);
            return;
        }
        self.misses += 1;
        if self.misses >= MISSES_MAX {
            self.sleeps_left = self.pause;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_micros(50);

    /// Sleeps without a look before the next one.
    fn sleeps_before_a_look(policy: &mut BusyPoll) -> u32 {
        let mut sleeps = 0;
        while policy.next_look().is_none() {
            sleeps += 1;
            assert!(sleeps <= PAUSE_MAX, "it never looks again");
        }
        sleeps
    }

    #[test]
    fn switched_off_it_never_looks() {
        let mut policy = BusyPoll::new(Duration::ZERO);
        assert!((0..100).all(|_| policy.next_look().is_none()));
    }

    #[test]
    fn looks_in_vain_become_rare_and_one_that_finds_makes_them_frequent_again() {
        let mut policy = BusyPoll::new(LOOK);
        for _ in 1..MISSES_MAX {
            assert_eq!(policy.next_look(), Some(LOOK));
            policy.on_looked(false);
        }
        assert_eq!(sleeps_before_a_look(&mut policy), 0);
        policy.on_looked(false);
        let mut expected = 1;
        for _ in 0..20 {
            assert_eq!(sleeps_before_a_look(&mut policy), expected);
            policy.on_looked(false);
            expected = (expected * 2).min(PAUSE_MAX);
        }
        sleeps_before_a_look(&mut policy);
        policy.on_looked(true);
        assert_eq!(sleeps_before_a_look(&mut policy), 0);
    }
}
