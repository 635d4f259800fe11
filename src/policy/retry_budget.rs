//! How many sessions may try a further server: a share of those that began lately, and a few besides.
//!
//! When much fails at once, retries multiply the load on what is left: with three of them, four times the
//! connections meet servers that could not bear the first. A budget bounds that by what really comes in.
//!
//! One core's own: it counts the last 5 to 10 seconds, in two halves of which the older is forgotten as a
//! whole, so that it costs two additions per session.

/// Length of one of the two halves.
const HALF_US: u64 = 5_000_000;
/// What `min_per_second` is granted for, all at once.
const WINDOW_SECONDS: u64 = 2 * HALF_US / 1_000_000;

/// What is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Retries per 100 sessions.
    pub percent: u32,
    /// Retries that this core grants in ten seconds, however few sessions begin.
    pub reserve: u32,
}

impl Grant {
    /// One core's part, where `min_per_second` is for all of them. A part of less than one retry is one.
    pub fn of_core(percent: u32, min_per_second: u32, cores: usize) -> Self {
        let all = u64::from(min_per_second) * WINDOW_SECONDS;
        let part = (all / cores as u64).max(u64::from(all > 0));
        Self {
            percent,
            reserve: u32::try_from(part).unwrap_or(u32::MAX),
        }
    }
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    grant: Grant,
    /// When the younger half began.
    since_us: u64,
    /// The younger half and the older: sessions, and retries.
    sessions: [u64; 2],
    retries: [u64; 2],
}

impl RetryBudget {
    /// With all of its reserve.
    pub fn new(grant: Grant, now_us: u64) -> Self {
        Self {
            grant,
            since_us: now_us,
            sessions: [0; 2],
            retries: [0; 2],
        }
    }

    /// A session begins.
    pub fn begin(&mut self, now_us: u64) {
        self.age(now_us);
        self.sessions[0] += 1;
    }

    /// Takes a retry, if there is one.
    #[must_use]
    pub fn try_retry(&mut self, now_us: u64) -> bool {
        self.age(now_us);
        let sum = |halves: [u64; 2]| halves[0] + halves[1];
        let share = sum(self.sessions) * u64::from(self.grant.percent) / 100;
        let granted = share + u64::from(self.grant.reserve);
        let is_granted = sum(self.retries) < granted;
        self.retries[0] += u64::from(is_granted);
        is_granted
    }

    fn age(&mut self, now_us: u64) {
        let elapsed_us = now_us.saturating_sub(self.since_us);
        if elapsed_us < HALF_US {
            return;
        }
        let is_recent = elapsed_us < 2 * HALF_US;
        for halves in [&mut self.sessions, &mut self.retries] {
            *halves = [0, if is_recent { halves[0] } else { 0 }];
        }
        self.since_us = if is_recent {
            self.since_us + HALF_US
        } else {
            now_us
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn budget(percent: u32, min_per_second: u32, cores: usize) -> RetryBudget {
        RetryBudget::new(Grant::of_core(percent, min_per_second, cores), 0)
    }

    fn retries(budget: &mut RetryBudget, now_us: u64) -> usize {
        (0..10_000).take_while(|_| budget.try_retry(now_us)).count()
    }

    #[test]
    fn a_share_of_the_sessions_and_a_reserve_that_cores_share() {
        let mut few = budget(20, 0, 1);
        assert_eq!(retries(&mut few, 0), 0);
        for _ in 0..100 {
            few.begin(1);
        }
        assert_eq!(retries(&mut few, 2), 20);
        assert_eq!(retries(&mut budget(0, 3, 1), 0), 30);
        assert_eq!(retries(&mut budget(0, 3, 4), 0), 7);
        assert_eq!(retries(&mut budget(0, 1, 64), 0), 1, "never nothing");
    }

    #[test]
    fn what_was_spent_comes_back_after_ten_seconds_and_so_goes_what_was_earned() {
        let mut budget = budget(50, 1, 1);
        for _ in 0..100 {
            budget.begin(0);
        }
        assert_eq!(retries(&mut budget, 0), 60);
        assert_eq!(retries(&mut budget, 9_999_999), 0);
        assert_eq!(retries(&mut budget, 10_000_000), 10, "the reserve alone");
        // A long pause leaves no riches behind.
        for _ in 0..100 {
            budget.begin(11_000_000);
        }
        assert_eq!(retries(&mut budget, 60_000_000), 10);
    }

    proptest! {
        /// In any time, no more than a share of the sessions of that time and of the ten seconds before
        /// it, and one reserve for each five seconds begun.
        #[test]
        fn retries_stay_within_the_grant(
            steps in prop::collection::vec((0u64..3_000_000, any::<bool>()), 1..400),
            percent in 0u32..=100,
        ) {
            let mut budget = budget(percent, 1, 1);
            let (mut now_us, mut sessions, mut retries) = (0, 0u64, 0u64);
            for (gap_us, begins) in steps {
                now_us += gap_us;
                if begins {
                    budget.begin(now_us);
                    sessions += 1;
                } else if budget.try_retry(now_us) {
                    retries += 1;
                }
                let reserves = 2 + now_us / HALF_US;
                prop_assert!(retries <= sessions * u64::from(percent) / 100 * 2 + 10 * reserves);
            }
        }
    }
}
