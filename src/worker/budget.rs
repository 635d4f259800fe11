//! How many sessions the process can hold before it runs out of file descriptors.
//!
//! Each core publishes its own count in a cell of its own cache line and adds the cells up before
//! it accepts: a few loads, no locked instruction. Cores that accept at the same moment may each
//! take the last place, which is what the reserve is for.
//!
//! The same cells tell which core has the least to do ([`FdBudget::least_loaded`]). Sessions on
//! their way are in two more counts, one of which other cores write: without it every core would send all
//! that it has too much to the same idle one before that one could say a word.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::units::CoreId;

/// A session's descriptors: the client's and the server's.
const FDS_PER_SESSION: u64 = 2;

#[derive(Default)]
#[repr(align(128))]
struct Cell {
    /// Sessions that the core holds, and those that it hands over until it heard that they arrived.
    sessions: AtomicU32,
    /// How many of them it hands over.
    leaving: AtomicU32,
    /// Sessions that other cores have sent and that have not arrived.
    coming: AtomicU32,
}

impl Cell {
    /// What the core has to do, or is about to have. While it changes, one more or less.
    fn load(&self) -> u32 {
        let sessions = self.sessions.load(Ordering::Relaxed);
        let coming = self.coming.load(Ordering::Relaxed);
        let leaving = self.leaving.load(Ordering::Relaxed);
        (sessions + coming).saturating_sub(leaving)
    }
}

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
            .sessions
            .store(sessions, Ordering::Relaxed);
    }

    /// A core hands a session over to another one.
    pub fn sent(&self, from: CoreId, to: CoreId) {
        let leaving = &self.cells[usize::from(from.0)].leaving;
        leaving.fetch_add(1, Ordering::Relaxed);
        let coming = &self.cells[usize::from(to.0)].coming;
        coming.fetch_add(1, Ordering::Relaxed);
    }

    /// It has arrived.
    pub fn arrived(&self, at: CoreId) {
        let coming = &self.cells[usize::from(at.0)].coming;
        let before = coming.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "a session arrived that was never sent");
    }

    /// The core that handed it over has heard so, and does not count it among its sessions any more.
    pub fn left(&self, from: CoreId) {
        let leaving = &self.cells[usize::from(from.0)].leaving;
        let before = leaving.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "a session left that was never sent");
    }

    /// The sessions that a core has once everything that is under way has arrived.
    pub fn load(&self, core: CoreId) -> u32 {
        self.cells[usize::from(core.0)].load()
    }

    /// The core other than `asking` with the fewest sessions, and how many it has or will have; `None` if
    /// there is no other. Of several, the next one in the circle: cores that ask at the same moment get
    /// different answers.
    pub fn least_loaded(&self, asking: CoreId) -> Option<(CoreId, u32)> {
        let cores = self.cells.len();
        let others = (1..cores).map(|step| (usize::from(asking.0) + step) % cores);
        let loads = others.map(|core| (CoreId(core as u16), self.cells[core].load()));
        loads.min_by_key(|(_, load)| *load)
    }

    /// Whether another session fits.
    pub fn has_room(&self) -> bool {
        let sessions: u64 = self
            .cells
            .iter()
            .map(|cell| u64::from(cell.sessions.load(Ordering::Relaxed)))
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

    #[test]
    fn the_least_loaded_core_is_another_one_and_what_comes_to_it_counts() {
        assert_eq!(FdBudget::new(1).least_loaded(CoreId(0)), None);
        let budget = FdBudget::new(4);
        budget.set_limit(100, 0, 0);
        for (core, sessions) in [5, 3, 9, 3].into_iter().enumerate() {
            budget.publish(CoreId(core as u16), sessions);
        }
        // The first behind the one that asks.
        assert_eq!(budget.least_loaded(CoreId(0)), Some((CoreId(1), 3)));
        assert_eq!(budget.least_loaded(CoreId(1)), Some((CoreId(3), 3)));
        assert_eq!(budget.least_loaded(CoreId(2)), Some((CoreId(3), 3)));
        budget.sent(CoreId(2), CoreId(3));
        assert_eq!((budget.load(CoreId(2)), budget.load(CoreId(3))), (8, 4));
        assert_eq!(budget.least_loaded(CoreId(2)), Some((CoreId(1), 3)));
        assert_eq!(budget.least_loaded(CoreId(1)), Some((CoreId(3), 4)));
        budget.arrived(CoreId(3));
        budget.publish(CoreId(3), 4);
        budget.publish(CoreId(2), 8);
        budget.left(CoreId(2));
        assert_eq!((budget.load(CoreId(2)), budget.load(CoreId(3))), (8, 4));
    }
}
