//! Handing a connection that was just accepted to a core with fewer sessions.
//!
//! SO_REUSEPORT hashes, it does not balance, and long sessions keep what chance made of them: 64 over 16
//! cores are 2 to 10 per core. Where the spread is too wide, the core that accepted a client sends the
//! descriptor on, before it has read or dialled anything. Established sessions never move.
//!
//! ```text
//!   core that accepts                      core that has the least
//!   accepted_total, handoffs_total
//!   active + 1   ───────────── Adopt ────>  active + 1; the session runs
//!   active - 1  <──────────── Adopted ───
//! ```
//!
//! **No session is without a core that counts it.** In between both do, so that the descriptor budget never
//! allows too much, and the sender does not report that it is drained before the other has the session.
//! One that has reported it already takes it back ([`Event::Resumed`]) before it answers: control hears
//! that before it hears that the sender is drained.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::session::Arrival;
use super::{Core, Event, Ledger, Message, accept, session};
use crate::core;
use crate::units::{CoreId, ListenerId};

/// A core keeps what it accepts up to this share of the least loaded core's sessions, in percent. Chance
/// alone spreads 100 sessions per core by 10 %, 400 by 5 %: with 1.25 a hand-off, which costs two wake-ups of
/// other cores, stays rare where the hash does well.
const SPREAD_MAX_PERCENT: u64 = 125;
/// And this many sessions more: few sessions are no load that is worth a hand-off.
const SPREAD_SLACK: u32 = 8;

/// A client that was just accepted.
pub(super) struct Accepted {
    pub(super) listener: ListenerId,
    pub(super) client: OwnedFd,
    pub(super) peer: Option<SocketAddr>,
    /// All of a session's times start here.
    pub(super) accepted_us: u64,
}

/// A client on its way to another core.
pub struct Adoption {
    accepted: Accepted,
    /// Who is told that it has arrived.
    from: CoreId,
}

/// Whether a core with `mine` sessions should hand over the last of them while another has `least`.
fn is_too_many(mine: u32, least: u32) -> bool {
    let above_slack = u64::from(mine.saturating_sub(SPREAD_SLACK));
    above_slack * 100 > u64::from(least) * SPREAD_MAX_PERCENT
}

impl Core {
    /// Serves a client that this core counts already.
    pub(super) fn begin(self: &Rc<Self>, accepted: Accepted) {
        let Accepted {
            listener,
            client,
            peer,
            accepted_us,
        } = accepted;
        let arrival = Arrival {
            listener,
            downstream: peer,
            accepted_us,
        };
        // Behind another proxy everybody comes from there: its header tells who it is.
        let settings = &self.service.listeners[usize::from(listener.0)];
        let passed = match settings.proxy_protocol {
            Some(_) => Ok(None),
            None => self.pass_gate(arrival),
        };
        let pass = match passed {
            Ok(pass) => pass,
            Err((cause, resets)) => {
                accept::refuse(resets, client);
                return self.ledger.refused(arrival, cause);
            }
        };
        self.ledger.metrics.borrow_mut().listener(listener).active += 1;
        core::run_or_spawn(session::run(Rc::clone(self), client, arrival, pass));
    }

    /// Who should serve the client that this core has just accepted and counted, if somebody else.
    pub(super) fn better_core(&self, listener: ListenerId) -> Option<CoreId> {
        if !self.service.listeners[usize::from(listener.0)].may_hand_over {
            return None;
        }
        let budget = &self.ledger.budget;
        let mine = budget.load(self.id);
        // Nobody can have so few that this is too many; and a core that stops sends nobody away.
        if !is_too_many(mine, 0) || self.draining.is_set() {
            return None;
        }
        let (core, least) = budget.least_loaded(self.id)?;
        is_too_many(mine, least).then_some(core)
    }

    /// Sends a client that this core counts to another one.
    pub(super) fn hand_over(&self, accepted: Accepted, to: CoreId) {
        let ledger = &self.ledger;
        let mut metrics = ledger.metrics.borrow_mut();
        metrics.listener(accepted.listener).handoffs_total += 1;
        drop(metrics);
        ledger.budget.sent(self.id, to);
        self.cores[usize::from(to.0)].send(Message::Adopt(Adoption {
            accepted,
            from: self.id,
        }));
    }

    /// Serves a client that another core has accepted, also while this one stops.
    pub(super) fn adopt(self: &Rc<Self>, adoption: Adoption) {
        let Adoption { accepted, from } = adoption;
        self.ledger.budget.arrived(self.id);
        self.ledger.count_one_more();
        if self.draining.is_set() {
            self.ledger.events.send(Event::Resumed(self.id));
        }
        // Not before: from here on the sender may report that it is drained.
        self.cores[usize::from(from.0)].send(Message::Adopted);
        self.begin(accepted);
    }
}

impl Ledger {
    /// A session that was handed over counts on its new core.
    pub(super) fn left(&self) {
        self.session_ended();
        self.budget.left(self.core);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::worker::budget::FdBudget;

    #[test]
    fn the_bound_is_a_quarter_more_and_eight() {
        assert!(!is_too_many(8, 0));
        assert!(is_too_many(9, 0));
        assert!(!is_too_many(13, 4));
        assert!(is_too_many(14, 4));
        assert!(!is_too_many(39, 25));
        assert!(is_too_many(40, 25));
        assert!(!is_too_many(133, 100));
        assert!(is_too_many(134, 100));
        assert!(!is_too_many(u32::MAX, u32::MAX));
        assert!(is_too_many(u32::MAX, 0));
    }

    /// Cores whose messages take their time, over the real cells.
    struct Cores {
        budget: FdBudget,
        active: Vec<u32>,
        /// Who is sent to, and from whom; then the answers.
        adopt: VecDeque<(usize, usize)>,
        adopted: VecDeque<usize>,
        handoffs: u32,
        random: u64,
    }

    impl Cores {
        fn new(count: usize, seed: u64) -> Self {
            Self {
                budget: FdBudget::new(count),
                active: vec![0; count],
                adopt: VecDeque::new(),
                adopted: VecDeque::new(),
                handoffs: 0,
                random: seed,
            }
        }

        fn random(&mut self, below: usize) -> usize {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005);
            self.random = self.random.wrapping_add(1_442_695_040_888_963_407);
            (self.random >> 33) as usize % below
        }

        fn change(&mut self, core: usize, by: i32) {
            self.active[core] = self.active[core].checked_add_signed(by).unwrap();
            self.budget.publish(CoreId(core as u16), self.active[core]);
        }

        fn accept(&mut self, core: usize) {
            self.change(core, 1);
            let id = CoreId(core as u16);
            let mine = self.budget.load(id);
            let (to, least) = self.budget.least_loaded(id).unwrap();
            if is_too_many(mine, least) {
                self.handoffs += 1;
                self.budget.sent(id, to);
                self.adopt.push_back((usize::from(to.0), core));
            }
        }

        /// One message arrives.
        fn deliver(&mut self) -> bool {
            if let Some(core) = self.adopted.pop_front() {
                self.change(core, -1);
                self.budget.left(CoreId(core as u16));
                return true;
            }
            let Some((to, from)) = self.adopt.pop_front() else {
                return false;
            };
            self.budget.arrived(CoreId(to as u16));
            self.change(to, 1);
            self.adopted.push_back(from);
            true
        }

        fn settle(&mut self) {
            while self.deliver() {}
        }

        #[track_caller]
        fn assert_spread(&self, what: &str) {
            let most = *self.active.iter().max().unwrap();
            let least = *self.active.iter().min().unwrap();
            assert!(!is_too_many(most, least), "{what}: {:?}", self.active);
        }
    }

    #[test]
    fn over_2_and_16_cores_the_spread_ends_within_the_bound_however_uneven_the_hash() {
        for count in [2, 16] {
            for seed in 0..200 {
                let mut cores = Cores::new(count, seed);
                let favoured = 1 + cores.random(count);
                let sessions = 64 * (1 + cores.random(16));
                for _ in 0..sessions {
                    let core = cores.random(favoured);
                    // A batch of up to 16 before anybody hears of it.
                    for _ in 0..cores.random(16) {
                        cores.accept(core);
                    }
                    for _ in 0..cores.random(40) {
                        cores.deliver();
                    }
                }
                cores.settle();
                cores.assert_spread(&format!("{count} cores, seed {seed}, {favoured} favoured"));
            }
        }
    }

    #[test]
    fn a_storm_on_every_core_but_one_does_not_bury_that_one() {
        let mut cores = Cores::new(16, 7);
        for core in 1..16 {
            for _ in 0..64 {
                cores.accept(core);
            }
        }
        // Not one message has arrived so far.
        cores.settle();
        cores.assert_spread("after the storm");
    }

    #[test]
    fn an_even_hash_needs_few_hand_offs() {
        let mut cores = Cores::new(16, 3);
        const SESSIONS: u32 = 16 * 400;
        for _ in 0..SESSIONS {
            let core = cores.random(16);
            cores.accept(core);
            cores.settle();
        }
        cores.assert_spread("an even hash");
        assert!(cores.handoffs < SESSIONS / 50, "{}", cores.handoffs);
    }
}
