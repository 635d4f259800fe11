//! The servers that one choice is made among: all of one rank (ordinary or backup) that are healthy
//! and have a weight. What is not in a pool cannot be picked, whatever the algorithm.

use super::{Candidate, SlowStart, WEIGHT_MAX};
use crate::units::ServerId;

/// Shares are weights times this, so that a server of weight 1 can have a tenth of it.
const SHARE_PER_WEIGHT: u64 = 256;
/// A slow start begins with one part in this many. As in Envoy; from nothing, a server whose share
/// is small would see no connection for much of its slow start.
const SLOW_START_FIRST_PART: u64 = 10;

/// One server that may be given connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) id: ServerId,
    /// 1 to 256.
    pub(super) weight: u16,
    pub(super) key: u64,
    slow_start: Option<SlowStart>,
}

impl Server {
    /// Its part of the connections at a time, relative to the other servers' shares: the weight,
    /// in finer units, lowered during slow start. Never 0, at most 65,536.
    pub(super) fn share(&self, now_us: u64) -> u64 {
        let full = self.full_share();
        match self.slow_start {
            Some(slow) if now_us < slow.end_us() => {
                let first = full / SLOW_START_FIRST_PART;
                // Not before its beginning: `since_us` may be a moment ahead of a core's clock.
                let elapsed_us = now_us.saturating_sub(slow.since_us);
                let gained = u128::from(full - first) * u128::from(elapsed_us)
                    / u128::from(slow.duration_us);
                // Less than `full`, as less than the duration has elapsed.
                first + gained as u64
            }
            _ => full,
        }
    }

    /// Its share without a slow start.
    pub(super) fn full_share(&self) -> u64 {
        u64::from(self.weight) * SHARE_PER_WEIGHT
    }
}

/// The servers of one rank in configuration order, and what the plain paths need to know of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    servers: Vec<Server>,
    equal_weights: bool,
    slow_until_us: u64,
}

impl Pool {
    /// Of `candidates`, those of the rank that may be given connections.
    pub(super) fn new(candidates: &[Candidate], backup: bool) -> Self {
        let servers: Vec<Server> = candidates
            .iter()
            .filter(|candidate| candidate.backup == backup)
            .filter(|candidate| candidate.available && candidate.weight > 0)
            .map(|candidate| {
                assert!(
                    candidate.weight <= WEIGHT_MAX,
                    "checked by the configuration"
                );
                Server {
                    id: candidate.id,
                    weight: candidate.weight,
                    key: candidate.key,
                    slow_start: candidate.slow_start,
                }
            })
            .collect();
        let slow_starts = servers.iter().filter_map(|server| server.slow_start);
        Self {
            equal_weights: servers
                .windows(2)
                .all(|pair| pair[0].weight == pair[1].weight),
            slow_until_us: slow_starts.map(SlowStart::end_us).max().unwrap_or(0),
            servers,
        }
    }

    pub(super) fn servers(&self) -> &[Server] {
        &self.servers
    }

    pub(super) fn len(&self) -> usize {
        self.servers.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    pub(super) fn position(&self, id: ServerId) -> Option<usize> {
        self.servers.iter().position(|server| server.id == id)
    }

    /// Whether a session that has tried these servers tried one of this pool.
    pub(super) fn has_any(&self, tried: &[ServerId]) -> bool {
        tried.iter().any(|id| self.position(*id).is_some())
    }

    /// The servers that such a session has left, with their positions.
    pub(super) fn left<'a>(
        &'a self,
        tried: &'a [ServerId],
    ) -> impl Iterator<Item = (usize, &'a Server)> {
        let servers = self.servers.iter().enumerate();
        servers.filter(move |(_, server)| !tried.contains(&server.id))
    }

    /// Whether all shares are equal at this time.
    pub(super) fn is_even(&self, now_us: u64) -> bool {
        self.equal_weights && now_us >= self.slow_until_us
    }

    /// The sum of all shares, without slow starts.
    pub(super) fn full_total(&self) -> u64 {
        self.servers.iter().map(Server::full_share).sum()
    }

    /// Whether hashing among these servers gives the same positions as among the others.
    pub(super) fn hashes_like(&self, other: &Self) -> bool {
        fn hashed(pool: &Pool) -> impl Iterator<Item = (u64, u16)> {
            let servers = pool.servers.iter();
            servers.map(|server| (server.key, server.weight))
        }
        hashed(self).eq(hashed(other))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{candidate, pool};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_servers_of_the_rank_that_are_available_and_have_a_weight() {
        let mut candidates: Vec<Candidate> = (0..5).map(|id| candidate(id, 1)).collect();
        candidates[1].available = false;
        candidates[2].weight = 0;
        candidates[3].backup = true;
        let ids = |pool: &Pool| -> Vec<u16> { pool.servers().iter().map(|s| s.id.0).collect() };
        assert_eq!(ids(&Pool::new(&candidates, false)), [0, 4]);
        assert_eq!(ids(&Pool::new(&candidates, true)), [3]);
    }

    #[test]
    fn a_slow_start_rises_from_a_tenth_to_the_weight() {
        let mut slow = candidate(0, 100);
        slow.slow_start = Some(SlowStart {
            since_us: 1_000,
            duration_us: 10_000,
        });
        let pool = Pool::new(&[slow], false);
        let share = |now_us| pool.servers()[0].share(now_us);
        assert_eq!(share(0), 2_560);
        assert_eq!(share(1_000), 2_560);
        assert_eq!(share(6_000), 14_080);
        assert_eq!(share(11_000), 25_600);
        assert_eq!(share(u64::MAX), 25_600);
        assert!(!pool.is_even(10_999) && pool.is_even(11_000));
    }

    #[test]
    fn evenness_is_equal_weights_whatever_they_are() {
        assert!(pool(&[7, 7, 7]).is_even(0));
        assert!(pool(&[7]).is_even(0));
        assert!(!pool(&[7, 7, 8]).is_even(u64::MAX));
        let mut slow = [candidate(0, 1), candidate(1, 1)];
        for (server, since_us) in slow.iter_mut().zip([0, 50]) {
            let duration_us = 100;
            server.slow_start = Some(SlowStart {
                since_us,
                duration_us,
            });
        }
        let slow = Pool::new(&slow, false);
        assert!(!slow.is_even(149) && slow.is_even(150));
    }

    proptest! {
        #[test]
        fn a_slow_start_only_rises_and_never_leaves_its_bounds(
            weight in 1u16..=WEIGHT_MAX,
            since_us in 0..u64::MAX,
            duration_us in 0..u64::MAX,
            mut times_us in prop::collection::vec(any::<u64>(), 2..20),
        ) {
            let mut slow = candidate(0, weight);
            slow.slow_start = Some(SlowStart { since_us, duration_us });
            let pool = Pool::new(&[slow], false);
            let server = &pool.servers()[0];
            times_us.extend([since_us, since_us.saturating_add(duration_us / 2)]);
            times_us.sort_unstable();
            let shares: Vec<u64> = times_us.iter().map(|now| server.share(*now)).collect();
            prop_assert!(shares.is_sorted(), "{shares:?}");
            prop_assert!(shares[0] >= server.full_share() / 10);
            prop_assert!(shares[shares.len() - 1] <= server.full_share());
        }
    }
}
