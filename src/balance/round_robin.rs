//! Weighted round robin, smooth as in nginx: the turns of a heavy server lie between those of the
//! others.
//!
//! Two sequences of turns. First choices take theirs from one, whatever becomes of them, so that
//! they are exact: over one cycle (the sum of the weights) each server is the first choice as often
//! as its weight. Retries take theirs from the other, among the servers that the session has left.
//! A failing server's sessions so spread over all others by weight instead of doubling the load of
//! whichever comes next, and retries do not disturb anyone's first choices.
//!
//! Equal weights, the usual case, need no account per server: their turns are a cursor, which costs
//! the plain pick one comparison and one addition where the smooth rule walks over all servers.

use super::pool::Pool;
use crate::units::ServerId;

#[derive(Clone, Debug)]
pub(super) struct WeightedRoundRobin {
    first: Turns,
    retry: Turns,
}

impl WeightedRoundRobin {
    /// Turns that begin as if `offset` picks had been made.
    pub(super) fn new(pool: &Pool, offset: usize) -> Self {
        let turns = Turns::new(pool, offset);
        Self {
            first: turns.clone(),
            retry: turns,
        }
    }

    /// Keeps the account of each server that stays.
    ///
    /// With the same servers and weights the turns go on as if nothing had happened. After a change,
    /// the counts over one cycle may be off by one until the new cycle has settled.
    pub(super) fn replace(&mut self, old: &Pool, new: &Pool, offset: usize) {
        if old.is_empty() {
            *self = Self::new(new, offset);
            return;
        }
        self.first.replace(old, new);
        self.retry.replace(old, new);
    }

    /// The position of the next server in a pool that is not empty.
    pub(super) fn pick(&mut self, pool: &Pool, now_us: u64, tried: &[ServerId]) -> Option<usize> {
        // A session that tried ordinary servers only still makes its first choice among backups.
        let turns = if pool.has_any(tried) {
            &mut self.retry
        } else {
            &mut self.first
        };
        turns.fit(pool, now_us);
        match turns {
            Turns::Cursor(next) => cursor_pick(next, pool, tried),
            Turns::Smooth(accounts) => smooth_pick(accounts, pool, now_us, tried),
        }
    }
}

#[derive(Clone, Debug)]
enum Turns {
    /// Equal shares: the position of the next server.
    Cursor(usize),
    /// What each server is owed, in shares times picks. Each pick owes every server its share, and
    /// the picked one pays the sum; so the accounts always sum to 0.
    Smooth(Vec<i64>),
}

impl Turns {
    fn new(pool: &Pool, offset: usize) -> Self {
        if pool.is_empty() {
            return Self::Cursor(0);
        }
        if pool.is_even(u64::MAX) {
            return Self::Cursor(offset % pool.len());
        }
        let mut accounts = vec![0; pool.len()];
        for _ in 0..offset {
            smooth_pick(&mut accounts, pool, u64::MAX, &[]);
        }
        Self::Smooth(accounts)
    }

    /// The form that the shares of this moment need: a slow start makes equal weights uneven for a
    /// while.
    fn fit(&mut self, pool: &Pool, now_us: u64) {
        match self {
            Self::Cursor(next) if !pool.is_even(now_us) => {
                *self = Self::Smooth(accounts_of(*next, pool));
            }
            Self::Smooth(accounts) if pool.is_even(now_us) => {
                *self = Self::Cursor(most_owed(accounts));
            }
            Self::Cursor(_) | Self::Smooth(_) => {}
        }
    }

    fn replace(&mut self, old: &Pool, new: &Pool) {
        match self {
            Self::Cursor(next) if new.is_even(u64::MAX) => {
                // The next server, or whichever comes next of those that stay.
                let turns = (*next..old.len()).chain(0..*next);
                let mut staying = turns.filter_map(|at| new.position(old.servers()[at].id));
                *next = staying.next().unwrap_or(0);
            }
            Self::Cursor(next) => {
                *self = Self::Smooth(moved(&accounts_of(*next, old), old, new));
            }
            Self::Smooth(accounts) => *accounts = moved(accounts, old, new),
        }
    }
}

fn cursor_pick(next: &mut usize, pool: &Pool, tried: &[ServerId]) -> Option<usize> {
    let mut at = *next;
    for _ in 0..pool.len() {
        let here = at;
        at = if here + 1 == pool.len() { 0 } else { here + 1 };
        if !tried.contains(&pool.servers()[here].id) {
            *next = at;
            return Some(here);
        }
    }
    None
}

/// The most owed server that was not tried; of equals the first. Only the servers left take part:
/// they run a round among themselves.
fn smooth_pick(
    accounts: &mut [i64],
    pool: &Pool,
    now_us: u64,
    tried: &[ServerId],
) -> Option<usize> {
    let mut total = 0;
    let mut best: Option<usize> = None;
    for (at, server) in pool.left(tried) {
        let share = server.share(now_us) as i64;
        total += share;
        accounts[at] += share;
        if best.is_none_or(|best| accounts[at] > accounts[best]) {
            best = Some(at);
        }
    }
    accounts[best?] -= total;
    best
}

/// The accounts that lead to the same turns as a cursor: as if the servers before it had just had
/// their turn and the others had not.
fn accounts_of(next: usize, pool: &Pool) -> Vec<i64> {
    let total = pool.full_total() as i64;
    let servers = pool.servers().iter().enumerate();
    servers
        .map(|(at, server)| {
            let owed = server.full_share() as i64 * next as i64;
            if at < next { owed - total } else { owed }
        })
        .collect()
}

/// The server whose turn is next by accounts; of equals the first.
fn most_owed(accounts: &[i64]) -> usize {
    let positions = 0..accounts.len();
    positions.rev().max_by_key(|at| accounts[*at]).unwrap_or(0)
}

/// The accounts of servers that stay, newcomers being owed nothing.
fn moved(accounts: &[i64], old: &Pool, new: &Pool) -> Vec<i64> {
    let (old_total, new_total) = (old.full_total() as i64, new.full_total() as i64);
    // In connections a server is owed what it was: the unit of an account is one sum of shares.
    let rescaled = |owed: i64| {
        let rescaled = i128::from(owed) * i128::from(new_total) / i128::from(old_total);
        rescaled as i64
    };
    let mut moved: Vec<i64> = new
        .servers()
        .iter()
        .map(|server| {
            old.position(server.id)
                .map_or(0, |at| rescaled(accounts[at]))
        })
        .collect();
    // What those that left owed or were owed is shared out by weight, so that the sum is 0 again.
    // Each takes the difference of two rounded running sums: the parts then sum to the whole.
    let excess = i128::from(moved.iter().sum::<i64>());
    let mut before: i128 = 0;
    for (account, server) in moved.iter_mut().zip(new.servers()) {
        let after = before + i128::from(server.full_share());
        let part = excess * after / i128::from(new_total) - excess * before / i128::from(new_total);
        *account -= part as i64;
        before = after;
    }
    moved
}

#[cfg(test)]
mod tests;
