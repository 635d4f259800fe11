//! One rank of an upstream's servers, ordinary or backup, with the state of the algorithm over it.

use super::least_connections::LeastConnections;
use super::maglev::Maglev;
use super::pool::Pool;
use super::round_robin::WeightedRoundRobin;
use super::{Algorithm, Candidate, Options, Session, rendezvous, two_choices};
use crate::units::ServerId;

/// More servers than this are sampled by least connections: a pick sums each server's connections
/// over all cores, most of them in other cores' caches.
const COMPARED_SERVERS_MAX: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Rank {
    options: Options,
    pool: Pool,
    state: State,
}

/// The algorithm with what it remembers from pick to pick.
#[derive(Clone, Debug)]
enum State {
    RoundRobin(WeightedRoundRobin),
    LeastConnections(LeastConnections),
    RandomTwoChoices,
    SourceHash,
    Maglev(Maglev),
    FirstAvailable,
}

impl Rank {
    pub(super) fn new(options: Options, candidates: &[Candidate], backup: bool) -> Self {
        let pool = Pool::new(candidates, backup);
        let state = match options.algorithm {
            Algorithm::RoundRobin => {
                State::RoundRobin(WeightedRoundRobin::new(&pool, options.offset))
            }
            Algorithm::LeastConnections => {
                State::LeastConnections(LeastConnections::new(options.offset))
            }
            Algorithm::RandomTwoChoices => State::RandomTwoChoices,
            Algorithm::SourceHash => State::SourceHash,
            Algorithm::Maglev => State::Maglev(Maglev::default()),
            Algorithm::FirstAvailable => State::FirstAvailable,
        };
        Self {
            options,
            pool,
            state,
        }
    }

    pub(super) fn replace(&mut self, candidates: &[Candidate], backup: bool) {
        let pool = Pool::new(candidates, backup);
        match &mut self.state {
            State::RoundRobin(turns) => turns.replace(&self.pool, &pool, self.options.offset),
            // Health of a backup, say, leaves the table of the ordinary servers as it is.
            State::Maglev(maglev) if !pool.hashes_like(&self.pool) => *maglev = Maglev::default(),
            State::Maglev(_)
            | State::LeastConnections(_)
            | State::RandomTwoChoices
            | State::SourceHash
            | State::FirstAvailable => {}
        }
        self.pool = pool;
    }

    pub(super) fn pick(
        &mut self,
        session: &mut Session<'_>,
        load: impl Fn(ServerId) -> u32,
    ) -> Option<ServerId> {
        let pool = &self.pool;
        if pool.is_empty() {
            return None;
        }
        let tried = session.tried;
        let position = match &mut self.state {
            State::RoundRobin(turns) => turns.pick(pool, session.now_us, tried),
            State::LeastConnections(least) => {
                if self.options.sample || pool.len() > COMPARED_SERVERS_MAX {
                    two_choices::pick(pool, session, load)
                } else {
                    least.pick(pool, session, load)
                }
            }
            State::RandomTwoChoices => two_choices::pick(pool, session, load),
            State::SourceHash => {
                let left = pool.left(tried);
                let keyed = left.map(|(at, server)| (at, server.key, server.weight));
                rendezvous::first(session.hash, keyed)
            }
            State::Maglev(maglev) => maglev.pick(pool, session.hash, tried),
            State::FirstAvailable => pool.left(tried).next().map(|(at, _)| at),
        }?;
        Some(pool.servers()[position].id)
    }
}
