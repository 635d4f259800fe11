//! Choosing a server: pure, per core, no I/O, no clock and no randomness of its own.
//!
//! A [`Balancer`] belongs to one upstream on one core. It is told the upstream's servers
//! ([`Balancer::replace`]) whenever their health, their weights or their addresses change, and picks
//! one of them per attempt of a session ([`Balancer::pick`]). It does not know how a server became
//! unavailable, and does not count connections: it asks for them.
//!
//! ```text
//! candidates ─> Pool of ordinary servers ─> algorithm ─┬─> server
//!            └> Pool of backups ──────────> algorithm ─┘   (only if no ordinary server is left)
//! ```
//!
//! What holds for every algorithm:
//!
//! - A server that is unavailable or has weight 0 is in no pool and never picked.
//! - A server that the session has tried is not picked again. Whoever tries it twice, does so
//!   without asking here.
//! - A backup is picked only if no ordinary server is left: each is unavailable, has weight 0 or was
//!   tried. So a retry reaches the backups too, after every ordinary server, and so does a session
//!   that found every ordinary server at its limit. Among backups the same algorithm applies.
//! - A slow start lowers a server's weight for a while ([`SlowStart`]). The hashing algorithms and
//!   [`Algorithm::FirstAvailable`] ignore it: the former would move clients twice, the latter has no
//!   weights.
//!
//! [`Split`] chooses one of several upstreams before all this. Which servers are available is judged in
//! [`health`].

mod hash;
pub mod health;
mod least_connections;
mod maglev;
mod pool;
mod random;
mod rank;
mod rendezvous;
mod round_robin;
mod split;
mod two_choices;

pub use hash::{hash_address, hash_text};
pub use random::{Random, varied_us};
pub use split::{Part, Split, SplitBy};

use crate::units::ServerId;
use rank::Rank;

/// The greatest weight of a server or of an upstream in a split.
pub const WEIGHT_MAX: u16 = 256;

/// One server as the balancer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What a pick returns; unique among an upstream's servers.
    pub id: ServerId,
    /// Its share of the connections, 0 to [`WEIGHT_MAX`]; 0 means no new ones.
    pub weight: u16,
    /// Used only while no ordinary server is left.
    pub backup: bool,
    /// Its health.
    pub available: bool,
    /// Set when it has just become available or was just added.
    pub slow_start: Option<SlowStart>,
    /// A stable hash of its address as text ([`hash_text`]), the same on every host. To the hashing
    /// algorithms a server *is* its key; two servers should not share one.
    pub key: u64,
}

/// A time in which a server's share rises evenly from a tenth to the whole of its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// On the clock of [`Balancer::pick`]'s `now_us`.
    pub since_us: u64,
    /// From there to the full weight.
    pub duration_us: u64,
}

impl SlowStart {
    fn end_us(self) -> u64 {
        self.since_us.saturating_add(self.duration_us)
    }
}

/// How to choose among the servers of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// In turn, by weight. O(1) with equal weights, else O(servers).
    RoundRobin,
    /// Fewest connections for the weight; see [`Options::sample`]. O(servers).
    LeastConnections,
    /// The less loaded of two drawn by weight. O(servers).
    RandomTwoChoices,
    /// By the client's hash, weighted rendezvous hashing: a change moves only the clients it must.
    /// O(servers), some 20 ns each.
    SourceHash,
    /// By the client's hash and a table: O(1), but each change rebuilds the table and moves a few
    /// clients more than it must. For many servers.
    Maglev,
    /// The first in configuration order; weights other than 0 do not matter. Pass servers that have
    /// no room as tried.
    FirstAvailable,
}

/// What a balancer is, apart from its servers.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How it chooses.
    pub algorithm: Algorithm,
    /// The core's index. Cores begin their turns at different servers, and draw different random
    /// numbers from one seed.
    pub offset: usize,
    /// Of the random algorithms.
    pub seed: u64,
    /// Least connections: compare two servers drawn by weight instead of all. For many cores, as
    /// every server compared costs a cache line per core. More than 16 servers are always sampled.
    pub sample: bool,
}

/// Picks servers of one upstream for the sessions of one core.
#[derive(Clone, Debug)]
pub struct Balancer {
    ordinary: Rank,
    backups: Rank,
    random: Random,
}

impl Balancer {
    /// Over an upstream's servers in configuration order.
    pub fn new(options: Options, candidates: &[Candidate]) -> Self {
        Self {
            ordinary: Rank::new(options, candidates, false),
            backups: Rank::new(options, candidates, true),
            random: Random::stream(options.seed, options.offset),
        }
    }

    /// A new set of servers. Those that stay, by id, keep their place in the turns; the same set
    /// again changes nothing.
    pub fn replace(&mut self, candidates: &[Candidate]) {
        self.ordinary.replace(candidates, false);
        self.backups.replace(candidates, true);
    }

    /// The next server for a session that has tried `tried`, or `None` if none is left.
    ///
    /// `now_us` is a monotonic clock's, for slow starts. `hash` is of what the hashing algorithms
    /// go by, such as [`hash_address`] of the client; it must be well mixed. `load` gives a
    /// server's connections over all cores; only the algorithms that compare load ask for it.
    pub fn pick(
        &mut self,
        now_us: u64,
        hash: u64,
        tried: &[ServerId],
        load: impl Fn(ServerId) -> u32,
    ) -> Option<ServerId> {
        let mut session = Session {
            now_us,
            hash,
            tried,
            random: &mut self.random,
        };
        self.ordinary
            .pick(&mut session, &load)
            .or_else(|| self.backups.pick(&mut session, &load))
    }
}

/// What a pick is made for, as the algorithms see it.
struct Session<'a> {
    now_us: u64,
    hash: u64,
    tried: &'a [ServerId],
    random: &'a mut Random,
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
