//! How many of an upstream's servers may be ejected at a time.
//!
//! `max_ejected_percent` is of all configured servers, whatever their state, rounded down, but
//! at least one if there are two servers or more (a limit that silently switched ejections off for
//! every small upstream would be a trap; 0 does so openly) and never all of them:
//!
//! | servers | 10 % | 50 % | 100 % |
//! |---|---|---|---|
//! | 1 | 0 | 0 | 0 |
//! | 2 | 1 | 1 | 1 |
//! | 3 | 1 | 1 | 2 |
//! | 30 | 3 | 15 | 29 |
//!
//! Besides, the last server that takes connections stays: with it ejected, the clients that it
//! might have served would be refused for certain.

/// The ejected servers of one upstream, counted against their limit.
#[derive(Clone, Debug)]
pub struct Ejections {
    max_percent: u8,
    allowed: usize,
    ejected: usize,
    denied_total: u64,
}

impl Ejections {
    /// For an upstream of so many servers.
    pub fn new(servers: usize, max_percent: u8) -> Self {
        Self {
            max_percent,
            allowed: allowed(servers, max_percent),
            ejected: 0,
            denied_total: 0,
        }
    }

    /// Takes a place for one more, of `available` servers that take connections now, itself
    /// included. `false`: it must stay.
    pub(super) fn take(&mut self, available: usize) -> bool {
        if self.ejected >= self.allowed || available <= 1 {
            self.denied_total += 1;
            return false;
        }
        self.ejected += 1;
        true
    }

    /// Gives a place back.
    pub(super) fn give_back(&mut self) {
        assert!(self.ejected > 0, "a place was given back twice");
        self.ejected -= 1;
    }

    /// The upstream now has so many servers. Returns how many ejected ones are too many.
    pub(super) fn resize(&mut self, servers: usize) -> usize {
        self.allowed = allowed(servers, self.max_percent);
        self.ejected.saturating_sub(self.allowed)
    }

    /// How many may be ejected at a time.
    pub fn allowed(&self) -> usize {
        self.allowed
    }

    /// How many are.
    pub fn ejected(&self) -> usize {
        self.ejected
    }

    /// Failures that would have ejected a server, had the limit not been reached.
    pub fn denied_total(&self) -> u64 {
        self.denied_total
    }
}

fn allowed(servers: usize, max_percent: u8) -> usize {
    if servers < 2 || max_percent == 0 {
        return 0;
    }
    let share = servers * usize::from(max_percent.min(100)) / 100;
    share.clamp(1, servers - 1)
}
