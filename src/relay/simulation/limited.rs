//! Limits of bandwidth under simulation: what is checked in every seed, and situations of their own.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::directed::{FIRST, ROUND_US};
use super::*;
use crate::policy::bucket::Rate;
use crate::relay::bandwidth::{Bandwidth, Way};
use crate::relay::pair::PairId;

/// Bytes that may be received unasked: one behind a peer's urgent byte.
const UNASKED_BYTES: u64 = 1;

/// Bytes per second, and at once.
type Limit = (u64, u64);

/// The limits of one way, as the check sees them.
#[derive(Clone, Copy, Default)]
pub(super) struct Limited {
    connection: Option<Limit>,
    listener: Option<Limit>,
    turn_bytes: u32,
}

fn rate((per_second, burst): Limit) -> Rate {
    let number = |it| NonZeroU64::new(it).expect("not 0");
    Rate::new(number(per_second), number(burst))
}

/// Most bytes by this time.
fn granted((per_second, burst): Limit, now_us: u64) -> u64 {
    burst + per_second * now_us / 1_000_000
}

pub(super) fn bandwidth(ways: [Limited; 2]) -> Arc<Bandwidth> {
    let ways = ways.map(|it| {
        let [connection, listener] = [it.connection, it.listener].map(|limit| limit.map(rate));
        Way::new(connection, listener, it.turn_bytes, 0)
    });
    Arc::new(Bandwidth { ways })
}

/// Half of the time none, else from slow ones to ones that hardly matter.
pub(super) fn some_limits(random: &mut Random) -> Option<[Limited; 2]> {
    let mut limit = |percent, slowest| {
        let per_second = slowest * [1_u64, 4, 20, 200][random.below(4) as usize];
        let burst = random.below(200) + 1;
        random.chance(percent).then_some((per_second, burst))
    };
    let limits = [
        limit(50, 500),
        limit(50, 500),
        limit(40, 5_000),
        limit(40, 5_000),
    ];
    let turns = [1, 64, 300, 10_000];
    let [up, down] = [0, 1].map(|from| Limited {
        connection: limits[from],
        listener: limits[2 + from],
        turn_bytes: turns[random.below(4) as usize],
    });
    random.chance(50).then_some([up, down])
}

impl Simulation {
    /// No limit was ever exceeded: not by a connection, and not by all together.
    pub(super) fn check_limits(&self) {
        let Some(limits) = &self.limits else { return };
        let world = self.world.0.borrow();
        for (from, limited) in limits.iter().enumerate() {
            let mut sum = 0;
            for session in 0..self.sessions {
                let taken = world.endpoints[2 * session + 1 - from].taken;
                sum += taken;
                if let Some(limit) = limited.connection {
                    let most = granted(limit, self.now_us) + UNASKED_BYTES;
                    assert!(taken <= most, "session {session}: {taken} of {most}");
                }
            }
            if let Some(limit) = limited.listener {
                let most = granted(limit, self.now_us) + UNASKED_BYTES * self.sessions as u64;
                assert!(sum <= most, "{sum} of {most}");
            }
        }
    }

    /// Ones with these limits, and room for everything.
    fn with_limits(mover: MoverChoice, up: Limited) -> Self {
        let mut simulation = (0..)
            .map(|seed| Self::with(seed, Some([up, Limited::default()])))
            .find(|it| it.relay.options.mover == mover && !it.ages && it.sessions > 2)
            .expect("every tenth or so");
        simulation.make_room();
        simulation.world.0.borrow_mut().urgent = false;
        // A destination that calls itself full gets what was granted later, in other turns.
        simulation.world.0.borrow_mut().is_generous = true;
        simulation.relay.options.idle_ms = 100;
        simulation.relay.options.half_close_ms = 100;
        for slot in 0..simulation.sessions as u32 {
            let id = PairId { slot, ..FIRST };
            simulation.relay.rearm_timer(0, id);
        }
        simulation
    }

    /// Rounds of every session's upload for this long.
    fn rounds(&mut self, us: u64) {
        for _ in 0..us / ROUND_US {
            for session in 0..self.sessions {
                self.upload(session);
            }
            self.next_round();
            self.check_limits();
        }
    }

    fn taken(&self, session: usize) -> u64 {
        self.look(|it| it.endpoints[2 * session + 1].taken)
    }
}

const MOVERS: [MoverChoice; 2] = [MoverChoice::Copy, MoverChoice::Splice];

/// One byte per 10 ms, 50 at a time: each wait is five times the idle timeout.
const SLOW: Limited = Limited {
    connection: Some((100, 50)),
    listener: None,
    turn_bytes: 50,
};

#[test]
fn who_is_held_back_is_not_idle_and_who_is_silent_is() {
    for mover in MOVERS {
        let mut simulation = Simulation::with_limits(mover, SLOW);
        for session in 0..simulation.sessions {
            simulation.sends(session, 150);
        }
        simulation.rounds(990_000);
        assert_eq!(simulation.taken(0), 100, "the burst and one turn");
        assert_eq!(simulation.relay.active(), simulation.sessions);
        simulation.rounds(20_000);
        assert_eq!(simulation.taken(0), 150);
        assert_eq!(simulation.relay.active(), simulation.sessions);
        simulation.rounds(200_000);
        let said = simulation.look(|it| it.endpoints[1].fin_sent || it.endpoints[1].linger_zero);
        assert!(said, "silence ends the session all the same");
    }
}

/// The bytes that it waited for are not received at once when it is let go.
#[test]
fn who_was_let_go_is_not_idle_before_its_bytes_come() {
    for mover in MOVERS {
        let mut simulation = Simulation::with_limits(mover, SLOW);
        simulation.sends(0, 150);
        simulation.rounds(300_000);
        while simulation.relay.pair(FIRST).expect("not over").directions[0].is_held_back() {
            simulation.next_round();
        }
        assert!(simulation.now_us > 400_000, "let go early");
        for _ in 0..80_000 / ROUND_US {
            simulation.next_round();
        }
        let said = simulation.look(|it| it.endpoints[1].fin_sent || it.endpoints[1].linger_zero);
        assert!(!said, "taken for idle");
    }
}

/// What may be taken can be less than the mark.
#[test]
fn a_limited_stream_never_has_a_low_water_mark() {
    let limited = Limited {
        connection: Some((10_000_000, 100_000)),
        listener: None,
        turn_bytes: 10_000,
    };
    let mut simulation = Simulation::with_limits(MoverChoice::Splice, limited);
    simulation.sends(0, 100_000);
    simulation.rounds(50_000);
    assert!(simulation.taken(0) > 20 * THRESHOLDS.patience_bytes);
    assert_eq!(simulation.relay.marks, 0);
}

/// The end of one side while the other is held back leaves it all the time that it needs.
#[test]
fn who_is_held_back_is_not_stuck_when_half_closed() {
    for mover in MOVERS {
        let mut simulation = Simulation::with_limits(mover, SLOW);
        simulation.sends(0, 150);
        simulation.rounds(10_000);
        simulation.world.0.borrow_mut().endpoints[1].peer_fin = true;
        for _ in 0..2_000 {
            simulation.world.0.borrow_mut().complete_receive(1);
            simulation.world.0.borrow_mut().complete_readable(1);
            simulation.rounds(ROUND_US * 6);
        }
        assert_eq!(simulation.taken(0), 150);
    }
}

#[test]
fn a_reset_is_seen_while_its_sender_is_held_back_and_all_before_it_is_delivered() {
    for mover in MOVERS {
        let mut simulation = Simulation::with_limits(mover, SLOW);
        simulation.sends(0, 150);
        simulation.rounds(10_000);
        assert_eq!(simulation.taken(0), 50);
        simulation.world.0.borrow_mut().endpoints[0].peer_reset = true;
        simulation.world.0.borrow_mut().complete_watch(0);
        simulation.rounds(1_000);
        let pair = simulation.relay.pair(FIRST).expect("not over");
        assert!(pair.failed[0], "nobody heard of the reset");
        simulation.rounds(1_100_000);
        let reset = simulation.look(|it| (it.endpoints[1].taken, it.endpoints[1].linger_zero));
        assert_eq!(reset, (150, true));
    }
}

/// The end behind the last byte waits for nothing but that byte.
#[test]
fn a_bare_end_waits_for_no_bandwidth() {
    for mover in MOVERS {
        let mut simulation = Simulation::with_limits(mover, SLOW);
        simulation.sends(0, 50);
        simulation.rounds(2_000);
        assert_eq!(simulation.taken(0), 50);
        {
            let client = &mut simulation.world.0.borrow_mut().endpoints[0];
            client.peer_will_send = client.peer_sent;
            client.peer_fin = true;
        }
        simulation.rounds(2_000);
        assert!(simulation.look(|it| it.endpoints[1].fin_sent));
    }
}

/// A goodbye to one that is held back sees the answer to it.
#[test]
fn a_goodbye_to_one_that_is_held_back_hears_the_other_fin() {
    let mut simulation = Simulation::with_limits(MoverChoice::Copy, SLOW);
    simulation.sends(0, 150);
    simulation.rounds(10_000);
    {
        // What it was held back for is gone, so that the goodbye is a FIN.
        let mut world = simulation.world.0.borrow_mut();
        world.endpoints[0].peer_sent = world.endpoints[0].received;
        world.endpoints[0].peer_will_send = world.endpoints[0].received;
    }
    simulation.relay.options.max_age_ms = Some(0);
    let now_us = simulation.now_us;
    simulation.relay.on_timer(now_us, FIRST);
    assert!(simulation.look(|it| it.endpoints[1].fin_sent && !it.endpoints[1].linger_zero));
    let armed = simulation.look(|it| it.endpoints[0].receive.is_some());
    assert!(armed, "nothing would tell of the other end's FIN");
}

/// Everybody at one limit, all with more to send than it allows.
#[test]
fn sessions_at_one_limit_get_equal_shares() {
    for mover in MOVERS {
        let limited = Limited {
            connection: None,
            listener: Some((100_000, 500)),
            turn_bytes: 64,
        };
        let mut simulation = Simulation::with_limits(mover, limited);
        for session in 0..simulation.sessions {
            simulation.sends(session, 1_000_000);
        }
        simulation.rounds(1_000_000);
        let sessions = simulation.sessions as u64;
        let fair = granted((100_000, 500), simulation.now_us) / sessions;
        for session in 0..simulation.sessions {
            let taken = simulation.taken(session);
            assert!(taken > fair * 8 / 10, "{taken} of {fair}");
        }
    }
}

/// What a session had booked goes to the others when it ends.
#[test]
fn what_was_booked_comes_back_at_the_end() {
    let limited = Limited {
        connection: None,
        listener: Some((1_000, 500)),
        turn_bytes: 500,
    };
    let mut simulation = Simulation::with_limits(MoverChoice::Copy, limited);
    simulation.sends(0, 1_000);
    simulation.rounds(10_000);
    assert_eq!(simulation.taken(0), 500);
    let now_us = simulation.now_us;
    simulation
        .relay
        .abort_where(now_us, Cause::Drain, |&session| session == 0);
    for id in 0..2 {
        let mut world = simulation.world.0.borrow_mut();
        world.complete_receive(id);
        world.complete_readable(id);
        world.complete_watch(id);
    }
    simulation.rounds(1_000);
    assert_eq!(simulation.relay.active(), simulation.sessions - 1);
    simulation.sends(1, 100);
    // A tenth of a second, and not behind the five tenths that were booked.
    simulation.rounds(110_000);
    assert_eq!(simulation.taken(1), 100);
}

/// The seeds hold directions back, with both movers, or they would prove nothing of it.
#[test]
fn the_seeds_hold_back() {
    let mut pauses = [0; 2];
    let mut moved = [0; 2];
    for seed in 0..100 {
        let mut simulation = Simulation::new(seed);
        simulation.act();
        let is_limited = simulation.limits.is_some();
        let ends = simulation.relay.watcher();
        for (sum, count) in pauses.iter_mut().zip(ends.pauses) {
            *sum += count;
        }
        if is_limited {
            for mover in MoverKind::ALL {
                moved[mover as usize] += ends.moved[mover as usize];
            }
        }
    }
    for count in pauses.into_iter().chain(moved) {
        assert!(count > 20, "{pauses:?} {moved:?}");
    }
}
