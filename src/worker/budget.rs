//! How many sessions the process can hold before it runs out of file descriptors.
//!
//! Each core publishes its own count in a cell of its own cache line and adds the cells up before
//! it accepts: a few loads, no locked instruction. Cores that accept at the same moment may each
//! take the last place, which is what the reserve is for.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::units::CoreId;

/// A session's descriptors: the client's and the server's.
const FDS_PER_SESSION: u64 = 2;

#[derive(Default)]
#[repr(align(128))]
struct Cell(AtomicU32);

/// See the head of this file.
pub struct FdBudget {
    sessions_max: AtomicU64,
    cells: Vec<Cell>,
}

impl FdBudget {
    /// No session may be accepted until [`FdBudget::set_limit`].
    pub fn new(cores: usize) -> Self {
        Self {
            sessions_max: AtomicU64::new(0),
            cells: (0..cores).map(|_| Cell::default()).collect(),
        }
    }

    /// Fixes the limit from RLIMIT_NOFILE, once everything else that stays open is open.
    /// Returns the sessions that fit.
    pub fn set_limit(&self, fds_max: u64, fds_in_use: u64, fds_reserved: u64) -> u64 {
        let free = fds_max
            .saturating_sub(fds_in_use)
            .saturating_sub(fds_reserved);
        let sessions_max = free / FDS_PER_SESSION;
        self.sessions_max.store(sessions_max, Ordering::Relaxed);
        sessions_max
    }

    /// A core says how many sessions it holds.
    pub fn publish(&self, core: CoreId, sessions: u32) {
        self.cells[usize::from(core.0)]
            .0
            .store(sessions, Ordering::Relaxed);
    }

    /// Whether another session fits.
    pub fn has_room(&self) -> bool {
        let sessions: u64 = self
            .cells
            .iter()
            .map(|cell| u64::from(cell.0.load(Ordering::Relaxed)))
            .sum();
        sessions < self.sessions_max.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_the_limit_leaves_over_all_cores() {
        let budget = FdBudget::new(2);
        assert!(!budget.has_room());
        assert_eq!(budget.set_limit(100, 20, 10), 35);
        budget.publish(CoreId(0), 20);
        assert!(budget.has_room());
        budget.publish(CoreId(1), 15);
        assert!(!budget.has_room());
        budget.publish(CoreId(0), 19);
        assert!(budget.has_room());
        assert_eq!(budget.set_limit(10, 20, 10), 0);
    }
}
