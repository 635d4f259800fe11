//! Limits of bandwidth: what a direction may receive, of its connection's share and its listener's.
//!
//! ```text
//!   readable ──> Claim: so many bytes are there ──> of the connection ──> of the listener ──> granted
//!                            ^                            │ later              │ later         │
//!                            │                            └──── HeldBack ──────┘               v
//!                            └──────────────────── nothing granted is left ────────────── receive, fill
//! ```
//!
//! A limited direction waits for bytes before it receives any, asks how many there are and books so
//! many, of now or of later; while it waits, nothing is received, so that the peer's TCP slows down.
//! What was not granted is never received: from its start to any later time neither limit is exceeded,
//! with any number of connections. A direction whose destination is full gives back what it was granted. The bare end of a stream costs nothing and waits for nobody.
//!
//! Bookings of a listener's limit are served in their order over all cores, and each is for a turn's
//! bytes at most. So nobody starves: a connection waits for one turn of each other at most.
//!
//! Without a limit a session has nothing of this but an empty pointer and a flag per direction.

use std::sync::Arc;

use super::io::Io;
use super::pair::{End, Operation, Pair, PairId, token};
use super::{Due, Relay, Watcher, live};
use crate::core::wheel::TimerId;
use crate::policy::bucket::{Bucket, Rate, SharedBucket};
use crate::ring::Group;

/// The limits of one listener, by the end that the bytes come from. Shared by all cores.
#[derive(Debug)]
pub struct Bandwidth {
    /// From clients, and from servers.
    pub ways: [Way; 2],
}

/// The limits of one way through a listener.
#[derive(Debug)]
pub struct Way {
    connection: Option<Rate>,
    listener: Option<SharedBucket>,
    turn_bytes: u32,
}

impl Way {
    /// Limits of each connection, and of all together; either may be none. A connection asks for at most
    /// `turn_bytes` at once, and for no more than either burst.
    pub fn new(
        connection: Option<Rate>,
        listener: Option<Rate>,
        turn_bytes: u32,
        now_us: u64,
    ) -> Self {
        let bursts = connection.iter().chain(&listener).map(Rate::burst);
        let burst = u32::try_from(bursts.min().unwrap_or(u64::MAX)).unwrap_or(u32::MAX);
        Self {
            connection,
            listener: listener.map(|rate| SharedBucket::new(rate, now_us)),
            turn_bytes: turn_bytes.min(burst).max(1),
        }
    }

    fn is_limited(&self) -> bool {
        self.connection.is_some() || self.listener.is_some()
    }
}

/// Whose share is asked next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing is booked.
    Connection,
    /// That of the connection is booked.
    Listener,
    /// All of it is booked.
    Granted,
}

/// What one direction has asked for.
#[derive(Clone, Copy, Debug)]
struct Claim {
    stage: Stage,
    asked_bytes: u32,
    granted_bytes: u32,
    /// While it is held back.
    timer: Option<TimerId>,
}

/// What a session keeps of its limits.
pub(super) struct Limits {
    shared: Arc<Bandwidth>,
    own: [Option<Bucket>; 2],
    claims: [Claim; 2],
}

impl Limits {
    pub(super) fn new(shared: &Arc<Bandwidth>, now_us: u64) -> Self {
        let bucket = |way: &Way| way.connection.map(|rate| Bucket::new(rate, now_us));
        let nothing = Claim {
            stage: Stage::Connection,
            asked_bytes: 0,
            granted_bytes: 0,
            timer: None,
        };
        Self {
            own: [bucket(&shared.ways[0]), bucket(&shared.ways[1])],
            shared: Arc::clone(shared),
            claims: [nothing; 2],
        }
    }

    pub(super) fn is_limited(&self, from: End) -> bool {
        self.shared.ways[from as usize].is_limited()
    }

    /// Books a turn of the bytes that are there, or goes on with what was booked.
    ///
    /// # Errors
    /// The microseconds after which it is to go on.
    fn claim(
        &mut self,
        now_us: u64,
        from: End,
        mut unread_bytes: impl FnMut() -> u32,
    ) -> Result<(), u64> {
        let way = &self.shared.ways[from as usize];
        let claim = &mut self.claims[from as usize];
        // Where no bytes are there it is the end, or urgent data. One that is there after all is paid for,
        // and not waited for.
        let mut waits = true;
        loop {
            let wait_us = match claim.stage {
                Stage::Connection => {
                    let unread_bytes = unread_bytes();
                    waits = unread_bytes > 0;
                    claim.asked_bytes = unread_bytes.clamp(1, way.turn_bytes);
                    claim.stage = Stage::Listener;
                    let bucket = self.own[from as usize].as_mut();
                    bucket.map_or(0, |it| it.book(now_us, claim.asked_bytes.into()))
                }
                Stage::Listener => {
                    claim.stage = Stage::Granted;
                    let bucket = way.listener.as_ref();
                    bucket.map_or(0, |it| it.book(now_us, claim.asked_bytes.into()))
                }
                Stage::Granted => {
                    claim.stage = Stage::Connection;
                    claim.granted_bytes = std::mem::take(&mut claim.asked_bytes);
                    return Ok(());
                }
            };
            if waits && wait_us > 0 {
                return Err(wait_us);
            }
        }
    }

    /// What may be received now.
    fn granted_bytes(&self, from: End) -> u32 {
        self.claims[from as usize].granted_bytes
    }

    /// The session is over, and not held back any more.
    pub(super) fn take_timers(&mut self) -> [Option<TimerId>; 2] {
        self.claims.each_mut().map(|claim| claim.timer.take())
    }

    /// What was granted and not received is of no use for now.
    fn give_back(&mut self, now_us: u64, from: End) {
        let claim = &mut self.claims[from as usize];
        let left = u64::from(std::mem::take(&mut claim.granted_bytes));
        if let Some(bucket) = &mut self.own[from as usize] {
            bucket.give_back(now_us, left);
        }
        if let Some(bucket) = &self.shared.ways[from as usize].listener {
            bucket.give_back(left);
        }
    }

    /// So much was received. Returns whether some is left.
    fn spend(&mut self, from: End, bytes: u32) -> bool {
        let granted = &mut self.claims[from as usize].granted_bytes;
        debug_assert!(bytes <= *granted, "{bytes} of {granted}");
        *granted = granted.saturating_sub(bytes);
        *granted > 0
    }
}

impl Drop for Limits {
    /// Gives the listener back what was booked and not received.
    fn drop(&mut self) {
        for (way, claim) in self.shared.ways.iter().zip(&self.claims) {
            let booked_bytes = match claim.stage {
                Stage::Granted => claim.asked_bytes,
                Stage::Connection | Stage::Listener => 0,
            };
            if let Some(bucket) = &way.listener {
                bucket.give_back(u64::from(booked_bytes) + u64::from(claim.granted_bytes));
            }
        }
    }
}

impl<I: Io, R> Pair<I, R> {
    /// What one step may receive from this end, `most` without a limit.
    pub(super) fn allowance(&self, from: End, most: u32) -> u32 {
        match &self.limits {
            Some(limits) if self.directions[from as usize].is_limited() => {
                limits.granted_bytes(from).min(most)
            }
            _ => most,
        }
    }

    /// A limited direction received so many bytes.
    pub(super) fn spend(&mut self, from: End, bytes: u32) {
        let limits = self.limits.as_mut();
        let limits = limits.expect("a direction is limited by limits");
        let is_left = limits.spend(from, bytes);
        self.directions[from as usize].on_spent(is_left);
    }

    /// Its destination is full: others may have what it was granted.
    pub(super) fn give_back(&mut self, now_us: u64, from: End) {
        if self.directions[from as usize].is_limited()
            && let Some(limits) = &mut self.limits
        {
            limits.give_back(now_us, from);
            self.directions[from as usize].on_spent(false);
        }
    }

    /// A direction that is held back has something to move: its session is not silent.
    pub(super) fn note_held_back(&mut self, now_ms: u64) {
        if self.directions.iter().any(|it| it.is_held_back()) {
            self.last_activity_ms = now_ms;
        }
    }
}

impl<I: Io, W: Watcher> Relay<I, W> {
    /// Asks for a share of the bandwidth for what the source has.
    pub(super) fn claim(&mut self, now_us: u64, id: PairId, from: End) {
        let pair = live(&mut self.slots, id);
        let socket = pair.sockets[from as usize].as_ref();
        let socket = socket.expect("open while relaying");
        let limits = pair.limits.as_mut();
        let limits = limits.expect("a direction is limited by limits");
        let unread_bytes = || self.io.unread_bytes(socket);
        let Err(wait_us) = limits.claim(now_us, from, unread_bytes) else {
            return pair.direction(from).on_granted();
        };
        let let_go_ms = now_us.saturating_add(wait_us).div_ceil(1_000);
        limits.claims[from as usize].timer = Some(self.timers.set(let_go_ms, Due::LetGo(id, from)));
        pair.direction(from).on_held_back();
        self.watcher.held_back(&pair.record, from);
        // Nothing is received meanwhile, so a reset of the source would go unseen.
        self.watch(id, from);
    }

    /// Arms a receive of what was granted.
    pub(super) fn receive_granted(&mut self, id: PairId, from: End, group: Group) {
        let most = self.io.buffer_bytes();
        let pair = live(&mut self.slots, id);
        let len = pair.allowance(from, most);
        let token = token(id, Operation::Receive, from);
        self.io.recv_up_to(pair.socket(from), group, len, token);
    }

    /// What a direction was held back for is there.
    pub(super) fn on_let_go(&mut self, now_us: u64, id: PairId, from: End) {
        let Some(pair) = self.pair(id) else { return };
        if let Some(limits) = &mut pair.limits {
            limits.claims[from as usize].timer = None;
        }
        if pair.direction(from).on_let_go() {
            // Until it is received, nothing else says that the session is not silent.
            pair.last_activity_ms = now_us / 1_000;
            self.progress(now_us, id, from);
            self.settle(now_us, id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    const FROM: End = End::Downstream;

    fn rate(per_second: u64, burst: u64) -> Rate {
        let number = |it| NonZeroU64::new(it).expect("not 0");
        Rate::new(number(per_second), number(burst))
    }

    #[test]
    fn who_meets_a_full_destination_leaves_its_grant_to_others() {
        let all = || Way::new(None, Some(rate(1_000, 100)), 100, 0);
        let shared = Arc::new(Bandwidth {
            ways: [all(), all()],
        });
        let mut one = Limits::new(&shared, 0);
        let mut other = Limits::new(&shared, 0);
        assert_eq!(one.claim(0, FROM, || 500), Ok(()));
        assert!(one.spend(FROM, 30));
        one.give_back(0, FROM);
        assert_eq!(one.granted_bytes(FROM), 0);
        assert_eq!(other.claim(0, FROM, || 70), Ok(()));
        assert_eq!(other.granted_bytes(FROM), 70);
        // All of it is booked now, and nothing is given back twice.
        drop(one);
        let mut third = Limits::new(&shared, 0);
        assert_eq!(third.claim(0, FROM, || 10), Err(10_000));
    }

    #[test]
    fn each_stage_is_booked_once_and_waited_for() {
        let way = || Way::new(Some(rate(1_000, 100)), Some(rate(500, 100)), 100, 0);
        let shared = Arc::new(Bandwidth {
            ways: [way(), way()],
        });
        let mut limits = Limits::new(&shared, 0);
        assert_eq!(limits.claim(0, FROM, || 100), Ok(()));
        limits.spend(FROM, 100);
        // First its own, then that of all, which has come meanwhile but for a half.
        assert_eq!(limits.claim(0, FROM, || 100), Err(100_000));
        let asked_again = || panic!("what it asked for is booked");
        assert_eq!(limits.claim(100_000, FROM, asked_again), Err(100_000));
        assert_eq!(limits.claim(200_000, FROM, asked_again), Ok(()));
        assert_eq!(limits.granted_bytes(FROM), 100);
        // A bare end waits for nobody.
        limits.spend(FROM, 100);
        assert_eq!(limits.claim(200_000, FROM, || 0), Ok(()));
    }
}
