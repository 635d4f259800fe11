//! Simulations of one situation each, where the random ones seldom or never get.

use super::kernel::World;
use super::*;
use crate::relay::copy::WAKES_PER_PASS;
use crate::relay::pair::PairId;
use crate::ring::Group;

/// The first session of a simulation, between sockets 0 and 1.
pub(super) const FIRST: PairId = PairId {
    slot: 0,
    generation: 0,
};
/// More than a pass may deliver.
const ROOM_BYTES: u64 = 10_000;
/// Between two rounds.
pub(super) const ROUND_US: u64 = 100;

impl Simulation {
    /// One that uses this mover, and whose sockets have room for everything.
    fn with_mover(mover: MoverChoice) -> Self {
        let simulation = (0..)
            .map(|seed| Self::with(seed, None))
            .find(|it| it.relay.options.mover == mover && !it.ages)
            .expect("every fourth or so");
        simulation.make_room();
        simulation
    }

    pub(super) fn make_room(&self) {
        for endpoint in &mut self.world.0.borrow_mut().endpoints {
            endpoint.stalled = false;
            endpoint.room = ROOM_BYTES;
        }
    }

    /// The client sends so many bytes, and may send more later.
    fn client_sends(&self, bytes: u64) {
        self.sends(0, bytes);
    }

    /// The client of a session does.
    pub(super) fn sends(&self, session: usize, bytes: u64) {
        let client = &mut self.world.0.borrow_mut().endpoints[2 * session];
        client.peer_sent += bytes;
        client.peer_will_send = u64::MAX;
    }

    /// What there is for the first session's upload happens; the server acknowledges everything.
    fn round(&mut self) {
        self.upload(0);
        self.next_round();
    }

    pub(super) fn upload(&self, session: usize) {
        let mut world = self.world.0.borrow_mut();
        let (from, to) = (2 * session, 2 * session + 1);
        world.endpoints[to].acknowledged = world.endpoints[to].taken;
        world.complete_receive(from);
        world.complete_readable(from);
        world.complete_send(to);
        world.complete_writable(to);
    }

    pub(super) fn next_round(&mut self) {
        self.now_us += ROUND_US;
        self.pass();
    }

    pub(super) fn look<T>(&self, at: impl FnOnce(&World) -> T) -> T {
        at(&self.world.0.borrow())
    }
}

/// Two hundred tails of random length after a steady stream, and no FIN behind them.
#[test]
fn no_tail_waits_below_a_low_water_mark() {
    let mut guarded = 0;
    for seed in 0..200 {
        let mut simulation = Simulation::with(seed, None);
        simulation.make_room();
        let tail = simulation
            .world
            .0
            .borrow_mut()
            .random
            .below(u64::from(THRESHOLDS.mark_bytes))
            + 1;
        simulation.client_sends(4_000 + tail);
        // 50 ms: the guard is 1 ms.
        for _ in 0..500 {
            simulation.round();
        }
        let (sent, taken) =
            simulation.look(|it| (it.endpoints[0].peer_sent, it.endpoints[1].taken));
        assert_eq!(taken, sent, "seed {seed}");
        guarded += simulation.relay.low_water_guards_total();
    }
    assert!(guarded > 50, "the guards were hardly needed: {guarded}");
}

/// A goodbye leaves no mark behind: what receives and throws away has no guard.
#[test]
fn a_goodbye_lowers_the_mark() {
    let mut simulation = Simulation::with_mover(MoverChoice::Auto);
    while !simulation.look(|it| it.endpoints[0].low_water > 1 && it.endpoints[0].readable.is_some())
    {
        assert!(simulation.now_us < 1_000_000, "no mark was ever raised");
        simulation.client_sends(100);
        simulation.round();
    }
    {
        // Nothing is left, so that the goodbye is a FIN.
        let client = &mut simulation.world.0.borrow_mut().endpoints[0];
        client.peer_sent = client.received;
    }
    simulation.relay.options.max_age_ms = Some(0);
    simulation.relay.on_timer(simulation.now_us, FIRST);
    let (fin_sent, low_water) =
        simulation.look(|it| (it.endpoints[1].fin_sent, it.endpoints[0].low_water));
    assert_eq!((fin_sent, low_water), (true, 1));
    simulation.client_sends(1);
    simulation.world.0.borrow_mut().complete_readable(0);
    simulation.pass();
}

/// Bytes that were received, and whose completion nobody has handled yet, are not behind a FIN.
#[test]
fn a_goodbye_waits_for_completions_that_are_left() {
    let mut simulation = Simulation::with_mover(MoverChoice::Copy);
    simulation.client_sends(1);
    while simulation.look(|it| it.completions.is_empty()) {
        simulation.world.0.borrow_mut().complete_receive(0);
    }
    simulation.relay.options.max_age_ms = Some(0);
    simulation.now_us = 10_000;
    simulation.relay.on_timer(simulation.now_us, FIRST);
    assert!(!simulation.look(|it| it.endpoints[1].fin_sent));
    // Once it is handled, the timer comes again.
    for _ in 0..200 {
        simulation.round();
    }
    let said = simulation.look(|it| it.endpoints[1].fin_sent || it.endpoints[1].linger_zero);
    assert!(said, "it never came");
}

/// A stream whose pipe is full each time does not keep its core for itself.
#[test]
fn a_spliced_stream_spends_its_budget_and_no_more() {
    let mut was_put_off = false;
    for seed in 0..100 {
        let mut simulation = Simulation::with(seed, None);
        if simulation.relay.options.mover != MoverChoice::Splice {
            continue;
        }
        simulation.make_room();
        simulation.client_sends(8_000);
        for _ in 0..20 {
            let before = simulation.look(|it| it.endpoints[1].taken);
            simulation.round();
            let moved = simulation.look(|it| it.endpoints[1].taken) - before;
            let most = THRESHOLDS.budget_bytes + u64::from(THRESHOLDS.chunk_bytes);
            assert!(moved <= most, "seed {seed}: {moved} bytes in one pass");
            was_put_off |= !simulation.relay.put_off.is_empty();
        }
    }
    assert!(was_put_off, "no stream was fast enough");
}

/// More directions wait for a buffer than are woken in one pass: the core does not sleep on the others.
#[test]
fn the_core_stays_awake_for_directions_that_can_have_a_buffer() {
    let mut simulation = Simulation::with_mover(MoverChoice::Copy);
    assert!(simulation.look(|it| it.pool.offered(Group::Fast) > 0));
    let gone = PairId {
        slot: 0,
        generation: 1,
    };
    for _ in 0..WAKES_PER_PASS + 1 {
        simulation.relay.waiting[Group::Fast as usize].push_back((gone, End::Upstream));
    }
    simulation.pass();
    assert_eq!(simulation.relay.waiting(), 1);
    assert!(simulation.relay.is_busy());
    simulation.pass();
    assert_eq!(simulation.relay.waiting(), 0);
}

/// The last shot of a receive that is not wanted any more says that no buffer is left.
#[test]
fn a_spliced_stream_waits_for_no_buffer() {
    let mut simulation = Simulation::with_mover(MoverChoice::Splice);
    {
        let mut world = simulation.world.0.borrow_mut();
        while world.pool.kernel_fills(Group::Fast, &[0]).is_some() || world.pool.widen(Group::Fast)
        {
        }
    }
    simulation.relay.on_no_buffer(FIRST, End::Downstream);
    assert_eq!(simulation.relay.waiting(), 0);
}

/// Probes are switched on when the first could be due, and not before.
#[test]
fn a_session_is_kept_alive_once_it_is_old_enough() {
    let mut simulation = Simulation::with_mover(MoverChoice::Copy);
    let idle_us = KEEPALIVE.idle_ms() * 1_000;
    for (now_us, is_kept_alive) in [(idle_us - 1_000, false), (idle_us, true)] {
        simulation.now_us = now_us;
        simulation.pass();
        let sides = simulation.look(|it| [0, 1].map(|side| it.endpoints[side].is_kept_alive));
        assert_eq!(sides, [is_kept_alive; 2], "{now_us} us");
    }
}
