//! The power of two choices: of two servers drawn at random, the less loaded one.
//!
//! Two is enough to keep the most loaded server close to the mean (Mitzenmacher, 2001), and does
//! not send every core to the one server that has just become the least loaded, as a comparison of
//! all would with counts that are a moment old.

use super::Session;
use super::pool::Pool;
use crate::units::ServerId;

/// The position of the winner of two distinct servers drawn by share among those not tried: the one
/// with fewer connections for its share, or the first drawn if equal. Idle servers are so picked by
/// their shares.
///
/// The draw walks over the servers. Sums prepared for a binary search would have to leave out the
/// tried ones and follow slow starts, to save a fraction of what one connection costs.
pub(super) fn pick(
    pool: &Pool,
    session: &mut Session<'_>,
    load: impl Fn(ServerId) -> u32,
) -> Option<usize> {
    let (now_us, tried) = (session.now_us, session.tried);
    let left = || {
        let left = pool.left(tried);
        left.map(move |(at, server)| (at, server.share(now_us)))
    };
    let total: u64 = left().map(|(_, share)| share).sum();
    if total == 0 {
        return None;
    }
    let (first, first_share) = drawn(session.random.below(total), left());
    let rest = total - first_share;
    if rest == 0 {
        return Some(first);
    }
    let others = left().filter(|(at, _)| *at != first);
    let (second, second_share) = drawn(session.random.below(rest), others);
    let load = |at: usize| u64::from(load(pool.servers()[at].id));
    // a / b > c / d without a division; the factors have 32 and 17 bits.
    let second_wins = load(first) * second_share > load(second) * first_share;
    Some(if second_wins { second } else { first })
}

/// The entry that `number` falls into, laid end to end by their shares.
fn drawn(mut number: u64, entries: impl Iterator<Item = (usize, u64)>) -> (usize, u64) {
    for (at, share) in entries {
        if number < share {
            return (at, share);
        }
        number -= share;
    }
    unreachable!("drawn below the sum of these shares")
}
