//! Maglev hashing (Eisenbud et al., 2016): a table from a client's hash to a server, in which every
//! server has as many entries as its weight deserves.
//!
//! Each server walks over the table in an order of its own and takes the next free entry when it is
//! its turn. The order depends only on the server's key, so that a server that leaves or comes
//! moves few entries of the others.
//!
//! What a change costs:
//!
//! - *Clients moved*: those of the server that leaves, or those that the newcomer takes, and a few
//!   more: less than 1 % of all clients in the tests, with 3 to 600 servers and any weights.
//! - *Time*: about 65,537 × ln 65,537 = 730,000 steps, 1 to 2 ms, at the first pick
//!   after the change. A replacement that changes no key, weight or health costs nothing.
//! - *Memory*: 128 KiB per upstream and core, once a pick was made.

use super::hash::{mix, scale};
use super::pool::{Pool, Server};
use crate::units::ServerId;

/// A prime, so that every step length visits every entry. With 655 servers each has 100 entries,
/// which makes them even to about 1 %.
const ENTRIES: usize = 65_537;
/// No server yet.
const FREE: u16 = u16::MAX;

/// The table, once it was needed.
#[derive(Clone, Debug, Default)]
pub(super) struct Maglev {
    /// Positions in the pool; empty until the first pick.
    table: Vec<u16>,
}

impl Maglev {
    /// The position of the server of `hash`, or of the next entry whose server was not tried.
    pub(super) fn pick(&mut self, pool: &Pool, hash: u64, tried: &[ServerId]) -> Option<usize> {
        // Else the walk below had no end but the table's.
        pool.left(tried).next()?;
        if self.table.is_empty() {
            self.table = build(pool);
        }
        let start = scale(hash, ENTRIES as u64) as usize;
        let entries = self.table[start..].iter().chain(&self.table[..start]);
        entries
            .map(|position| usize::from(*position))
            .find(|position| !tried.contains(&pool.servers()[*position].id))
    }
}

/// A server on its way over the table.
struct Walker {
    position: u16,
    weight: usize,
    entry: usize,
    step: usize,
    taken: usize,
}

impl Walker {
    fn new(position: usize, server: &Server) -> Self {
        let start = mix(server.key);
        let step = mix(start);
        Self {
            position: u16::try_from(position).expect("a server has a u16 for its id"),
            weight: usize::from(server.weight),
            entry: scale(start, ENTRIES as u64) as usize,
            step: 1 + scale(step, ENTRIES as u64 - 1) as usize,
            taken: 0,
        }
    }

    fn take(&mut self, table: &mut [u16]) {
        while table[self.entry] != FREE {
            self.entry += self.step;
            if self.entry >= ENTRIES {
                self.entry -= ENTRIES;
            }
        }
        table[self.entry] = self.position;
        self.taken += 1;
    }
}

fn build(pool: &Pool) -> Vec<u16> {
    assert!(pool.len() < ENTRIES - 1, "positions and FREE fit a u16");
    let servers = pool.servers().iter().enumerate();
    let mut in_order: Vec<(usize, &Server)> = servers.collect();
    // By key: a name that resolves to the same addresses in another order gives the same table.
    in_order.sort_by_key(|(_, server)| server.key);
    let mut walkers: Vec<Walker> = in_order
        .into_iter()
        .map(|(position, server)| Walker::new(position, server))
        .collect();
    let entries_per_round = weight_of_one_entry(&walkers);
    let mut table = vec![FREE; ENTRIES];
    let mut free = ENTRIES;
    for round in 1.. {
        for walker in &mut walkers {
            // Rounded up, so that even the lightest has an entry.
            let due = (round * walker.weight).div_ceil(entries_per_round);
            while walker.taken < due {
                walker.take(&mut table);
                free -= 1;
                if free == 0 {
                    return table;
                }
            }
        }
    }
    unreachable!("every round takes an entry")
}

/// The weight that is worth one entry per round: the mean, so that there are about as many turns as
/// entries however much weights differ, but rounded down to a power of two, so that it stays the
/// same when a server comes or goes.
fn weight_of_one_entry(walkers: &[Walker]) -> usize {
    let total: usize = walkers.iter().map(|walker| walker.weight).sum();
    1 << (total / walkers.len()).ilog2()
}

#[cfg(test)]
mod tests;
