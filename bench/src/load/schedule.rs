//! When the requests of an open loop are due: a fixed schedule, made in advance, that no slow answer
//! can shift.
//!
//! Request `n` of all threads together is due at `start + n / rate`; thread `t` of `k` sends the
//! requests `t, t + k, t + 2k, …`. So the schedule of the whole does not depend on the number of
//! threads.

use std::time::{Duration, Instant};

/// One thread's part of a schedule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    rate_per_second: f64,
    first: u64,
    step: u64,
    taken: u64,
}

impl Schedule {
    /// Part `thread` of `threads` of a schedule with this many requests per second.
    pub(super) fn new(rate_per_second: f64, thread: usize, threads: usize) -> Self {
        Self {
            rate_per_second,
            first: thread as u64,
            step: threads as u64,
            taken: 0,
        }
    }

    /// When the next request is due.
    pub(super) fn next_at(&self, started: Instant) -> Instant {
        let index = self.first + self.taken * self.step;
        started + Duration::from_secs_f64(index as f64 / self.rate_per_second)
    }

    /// Takes the next request, if it is due.
    pub(super) fn take_due(&mut self, started: Instant, now: Instant) -> Option<Instant> {
        let due = self.next_at(started);
        if due > now {
            return None;
        }
        self.taken += 1;
        Some(due)
    }

    /// How many requests are due before `end` and were never taken.
    pub(super) fn untaken_before(&self, started: Instant, end: Instant) -> u64 {
        let mut rest = *self;
        let mut count = 0;
        while rest.next_at(started) < end {
            rest.taken += 1;
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_share_one_even_schedule() {
        let started = Instant::now();
        let end = started + Duration::from_secs(1);
        let mut due = Vec::new();
        for thread in 0..3 {
            let mut schedule = Schedule::new(1000.0, thread, 3);
            while let Some(at) = schedule.take_due(started, end - Duration::from_nanos(1)) {
                due.push(at - started);
            }
        }
        due.sort_unstable();
        let wanted: Vec<Duration> = (0..1000).map(Duration::from_millis).collect();
        assert_eq!(due, wanted);
    }

    #[test]
    fn nothing_is_due_early_and_what_is_late_keeps_its_time() {
        let started = Instant::now();
        let mut schedule = Schedule::new(10.0, 0, 1);
        let at = |millis| started + Duration::from_millis(millis);
        assert_eq!(schedule.take_due(started, at(0)), Some(at(0)));
        assert_eq!(schedule.take_due(started, at(99)), None);
        assert_eq!(schedule.take_due(started, at(5000)), Some(at(100)));
        assert_eq!(schedule.take_due(started, at(5000)), Some(at(200)));
        assert_eq!(schedule.untaken_before(started, at(1000)), 7);
    }
}
