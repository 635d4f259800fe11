//! The engine against a kernel that is as awkward as a seed makes it: sockets that fill up, operations that complete
//! late and in any order, resets at every moment, buffers that run out.
//!
//! Replay one seed with `CORELAY_SEED=n cargo test simulation`. What is checked, always: bytes arrive in order and unchanged; no
//! operation is started twice, or on a closed socket; no socket is closed with an operation in flight; a clean
//! end means that everything was delivered; an abort is passed on as an abort, after what came before it;
//! every session ends; no buffer is lost.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use super::io::Io;
use super::pair::End;
use super::{Relay, RelayOptions, Summary, Watcher};
use crate::outcome::{Cause, Side};
use crate::ring::{Buffer, BufferPool, Completion, Group, Piece, Shots, Token};

const SEEDS: u64 = 3_000;
const BUFFER_BYTES: u32 = 64;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Byte `position` of the stream that the peer of socket `id` sends.
fn pattern(id: usize, position: u64) -> u8 {
    (position.wrapping_mul(31) ^ position >> 8 ^ (id as u64).wrapping_mul(97)) as u8
}

struct Receive {
    token: Token,
    group: Group,
    shots: Shots,
    cancelled: bool,
}

struct Send {
    token: Token,
    bytes: Vec<u8>,
    sent: usize,
    cancelled: bool,
}

/// One of our sockets, with its peer.
#[derive(Default)]
struct Endpoint {
    /// Bytes that the peer sent so far, and of those, that we received.
    peer_sent: u64,
    received: u64,
    peer_will_send: u64,
    peer_fin: bool,
    peer_reset: bool,
    /// The pending socket error was reported once.
    error_taken: bool,
    /// Never reads again.
    stalled: bool,
    /// Bytes that our kernel took for the peer, and of those, that it acknowledged.
    taken: u64,
    acknowledged: u64,
    room: u64,
    fin_sent: bool,
    linger_zero: bool,
    closed: bool,
    receive: Option<Receive>,
    send: Option<Send>,
    watch: Option<(Token, bool)>,
}

impl Endpoint {
    fn free(&self) -> u64 {
        self.room - (self.taken - self.acknowledged)
    }
}

/// Index into [`World::endpoints`]; sockets 2n and 2n + 1 are a session's.
struct Socket(usize);

struct World {
    endpoints: Vec<Endpoint>,
    pool: BufferPool,
    random: Random,
    completions: VecDeque<Completion>,
}

impl World {
    /// Takes bytes of the opposite peer's stream for this one, checking them.
    fn take(&mut self, id: usize, bytes: &[u8]) -> usize {
        let room = self.endpoints[id].free();
        // The kernel may take less than it has room for.
        let most = room.min(bytes.len() as u64);
        let count = if self.random.chance(70) {
            most
        } else {
            self.random.below(most + 1)
        } as usize;
        let start = self.endpoints[id].taken;
        for (offset, &byte) in bytes[..count].iter().enumerate() {
            let position = start + offset as u64;
            assert_eq!(
                byte,
                pattern(id ^ 1, position),
                "byte {position} towards socket {id}"
            );
        }
        self.endpoints[id].taken += count as u64;
        count
    }

    /// Lets one operation of a socket make progress, if it can.
    fn complete_some(&mut self, id: usize) {
        match self.random.below(3) {
            0 => self.complete_receive(id),
            1 => self.complete_send(id),
            _ => self.complete_watch(id),
        }
    }

    fn post(&mut self, token: Token, result: i32, buffer: Option<Buffer>, more: bool) {
        self.completions.push_back(Completion {
            token,
            result,
            buffer,
            more,
        });
    }

    fn complete_receive(&mut self, id: usize) {
        let Some(receive) = self.endpoints[id].receive.take() else {
            return;
        };
        let endpoint = &mut self.endpoints[id];
        let available = endpoint.peer_sent - endpoint.received;
        if available > 0 && !(receive.cancelled && self.random.chance(50)) {
            let len = self.random.below(available.min(u64::from(BUFFER_BYTES))) + 1;
            let start = self.endpoints[id].received;
            let bytes: Vec<u8> = (0..len).map(|offset| pattern(id, start + offset)).collect();
            match self.pool.kernel_fills(receive.group, &bytes) {
                Some(buffer) => {
                    self.endpoints[id].received += len;
                    let more = receive.shots == Shots::Multi && self.random.chance(90);
                    self.post(receive.token, len as i32, Some(buffer), more);
                    if more {
                        self.endpoints[id].receive = Some(receive);
                    }
                }
                None => self.post(receive.token, -libc::ENOBUFS, None, false),
            }
        } else if receive.cancelled {
            self.post(receive.token, -libc::ECANCELED, None, false);
        } else if endpoint.peer_reset {
            let result = if std::mem::replace(&mut endpoint.error_taken, true) {
                0
            } else {
                -libc::ECONNRESET
            };
            self.post(receive.token, result, None, false);
        } else if endpoint.peer_fin {
            self.post(receive.token, 0, None, false);
        } else {
            endpoint.receive = Some(receive);
        }
    }

    fn complete_send(&mut self, id: usize) {
        let Some(mut send) = self.endpoints[id].send.take() else {
            return;
        };
        if self.endpoints[id].peer_reset {
            if send.sent > 0 {
                // io_uring reports what it had sent, and the error to the next operation.
                return self.post(send.token, send.sent as i32, None, false);
            }
            let endpoint = &mut self.endpoints[id];
            let errno = if std::mem::replace(&mut endpoint.error_taken, true) {
                libc::EPIPE
            } else {
                libc::ECONNRESET
            };
            return self.post(send.token, -errno, None, false);
        }
        let rest = send.bytes[send.sent..].to_vec();
        send.sent += self.take(id, &rest);
        if send.sent == send.bytes.len() {
            self.post(send.token, send.sent as i32, None, false);
        } else if send.cancelled {
            let result = if send.sent > 0 {
                send.sent as i32
            } else {
                -libc::ECANCELED
            };
            self.post(send.token, result, None, false);
        } else {
            self.endpoints[id].send = Some(send);
        }
    }

    fn complete_watch(&mut self, id: usize) {
        let endpoint = &mut self.endpoints[id];
        let hung_up = endpoint.peer_reset || (endpoint.peer_fin && endpoint.fin_sent);
        match endpoint.watch {
            Some((token, _)) if hung_up => {
                endpoint.watch = None;
                self.post(token, libc::POLLHUP.into(), None, false);
            }
            Some((token, true)) => {
                endpoint.watch = None;
                self.post(token, -libc::ECANCELED, None, false);
            }
            _ => {}
        }
    }

    /// Something happens at a peer.
    fn peer_acts(&mut self, id: usize, resets: bool) {
        let choice = self.random.below(12);
        let amount = self.random.below(300) + 1;
        let endpoint = &mut self.endpoints[id];
        if endpoint.peer_reset {
            return;
        }
        match choice {
            0..=4 if !endpoint.peer_fin => {
                let left = endpoint.peer_will_send - endpoint.peer_sent;
                endpoint.peer_sent += amount.min(left);
                endpoint.peer_fin = endpoint.peer_sent == endpoint.peer_will_send && amount > left;
            }
            5..=9 if !endpoint.stalled => {
                endpoint.acknowledged += amount.min(endpoint.taken - endpoint.acknowledged);
            }
            10 if resets => endpoint.peer_reset = true,
            _ => {}
        }
    }
}

#[derive(Clone)]
struct SharedWorld(Rc<RefCell<World>>);

impl Io for SharedWorld {
    type Socket = Socket;

    fn recv(&mut self, socket: &Socket, group: Group, shots: Shots, token: Token) {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        assert!(endpoint.receive.is_none() && !endpoint.closed);
        endpoint.receive = Some(Receive {
            token,
            group,
            shots,
            cancelled: false,
        });
    }

    fn send(&mut self, socket: &Socket, buffer: &Buffer, from: u32, len: u32, token: Token) {
        let mut world = self.0.borrow_mut();
        let bytes = world.pool.bytes(buffer, len)[from as usize..].to_vec();
        let endpoint = &mut world.endpoints[socket.0];
        assert!(
            endpoint.send.is_none() && !endpoint.closed,
            "two sends may reorder"
        );
        endpoint.send = Some(Send {
            token,
            bytes,
            sent: 0,
            cancelled: false,
        });
    }

    fn send_now(&mut self, socket: &Socket, pieces: &[Piece<'_>]) -> io::Result<usize> {
        let mut world = self.0.borrow_mut();
        let endpoint = &mut world.endpoints[socket.0];
        assert!(endpoint.send.is_none() && !endpoint.closed && !endpoint.fin_sent);
        if endpoint.peer_reset {
            let errno = if std::mem::replace(&mut endpoint.error_taken, true) {
                libc::EPIPE
            } else {
                libc::ECONNRESET
            };
            return Err(io::Error::from_raw_os_error(errno));
        }
        let bytes: Vec<u8> = pieces
            .iter()
            .flat_map(|p| world.pool.bytes(p.buffer, p.len)[p.from as usize..].to_vec())
            .collect();
        match world.take(socket.0, &bytes) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    fn watch(&mut self, socket: &Socket, token: Token) {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        assert!(endpoint.watch.is_none() && !endpoint.closed);
        endpoint.watch = Some((token, false));
    }

    fn cancel(&mut self, target: Token) {
        for endpoint in &mut self.0.borrow_mut().endpoints {
            match (
                &mut endpoint.receive,
                &mut endpoint.send,
                &mut endpoint.watch,
            ) {
                (Some(receive), ..) if receive.token == target => receive.cancelled = true,
                (_, Some(send), _) if send.token == target => send.cancelled = true,
                (.., Some((token, cancelled))) if *token == target => *cancelled = true,
                _ => {}
            }
        }
    }

    fn release(&mut self, buffer: Buffer) -> Group {
        self.0.borrow_mut().pool.release(buffer)
    }

    fn widen(&mut self, group: Group) -> bool {
        self.0.borrow_mut().pool.widen(group)
    }

    fn buffer_bytes(&self) -> u32 {
        BUFFER_BYTES
    }

    fn shutdown_write(&mut self, socket: &Socket) {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        assert!(
            !endpoint.closed && endpoint.send.is_none(),
            "FIN before the last byte"
        );
        endpoint.fin_sent = true;
    }

    fn linger_zero(&mut self, socket: &Socket) {
        self.0.borrow_mut().endpoints[socket.0].linger_zero = true;
    }

    fn unacknowledged_bytes(&mut self, socket: &Socket) -> u32 {
        let endpoint = &self.0.borrow().endpoints[socket.0];
        if endpoint.peer_reset {
            0
        } else {
            (endpoint.taken - endpoint.acknowledged) as u32
        }
    }

    fn take_error(&mut self, socket: &Socket) -> io::Result<()> {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        if endpoint.peer_reset && !std::mem::replace(&mut endpoint.error_taken, true) {
            return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
        }
        Ok(())
    }

    fn close(&mut self, socket: Socket) {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        let idle =
            endpoint.receive.is_none() && endpoint.send.is_none() && endpoint.watch.is_none();
        assert!(
            idle,
            "socket {} closed with an operation in flight",
            socket.0
        );
        assert!(
            !std::mem::replace(&mut endpoint.closed, true),
            "closed twice"
        );
    }
}

/// Collects the ends of sessions.
#[derive(Default)]
struct Ends {
    summaries: Vec<Option<Summary>>,
    delivered: Vec<[u64; 2]>,
}

impl Watcher for Ends {
    type Record = usize;

    fn delivered(&mut self, &session: &usize, from: End, bytes: u64) {
        self.delivered[session][from as usize] += bytes;
    }

    fn in_hand(&mut self, _: &usize) {}

    fn closed(&mut self, _: u64, session: usize, summary: Summary) {
        assert!(
            self.summaries[session].replace(summary).is_none(),
            "reported twice"
        );
    }
}

struct Simulation {
    world: SharedWorld,
    relay: Relay<SharedWorld, Ends>,
    now_us: u64,
    sessions: usize,
    resets: bool,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let sessions = random.below(6) as usize + 1;
        let buffers = [8, 16, 64, 1_024][random.below(4) as usize];
        let resets = random.chance(50);
        let stalls = random.chance(30);
        let mut pool = BufferPool::new(BUFFER_BYTES, buffers).unwrap();
        pool.offer_first_windows();
        let endpoints = (0..2 * sessions)
            .map(|_| Endpoint {
                peer_will_send: random.below(3_000),
                room: random.below(500) + 20,
                stalled: stalls && random.chance(30),
                ..Endpoint::default()
            })
            .collect();
        let world = World {
            endpoints,
            pool,
            random,
            completions: VecDeque::new(),
        };
        let world = SharedWorld(Rc::new(RefCell::new(world)));
        let options = RelayOptions {
            idle_ms: 5_000,
            half_close_ms: 2_000,
            max_age_ms: None,
        };
        let ends = Ends {
            summaries: vec![None; sessions],
            delivered: vec![[0; 2]; sessions],
        };
        let mut relay = Relay::new(world.clone(), ends, options, 0);
        for session in 0..sessions {
            relay.start(0, Socket(2 * session), Socket(2 * session + 1), session);
        }
        Self {
            world,
            relay,
            now_us: 0,
            sessions,
            resets,
        }
    }

    /// One pass of the pump.
    fn pass(&mut self) {
        loop {
            let completion = self.world.0.borrow_mut().completions.pop_front();
            let Some(completion) = completion else { break };
            self.relay.complete(self.now_us, completion);
        }
        self.relay.end_of_pass(self.now_us);
    }

    fn run(mut self) {
        for _ in 0..3_000 {
            let mut world = self.world.0.borrow_mut();
            let id = world.random.below(2 * self.sessions as u64) as usize;
            // Resets are rare, or nothing else would be seen.
            let resets = self.resets && world.random.chance(3);
            world.peer_acts(id, resets);
            let other = world.random.below(2 * self.sessions as u64) as usize;
            world.complete_some(other);
            let pass = world.random.chance(60);
            self.now_us += world.random.below(400);
            drop(world);
            if pass {
                self.pass();
            }
        }
        self.finish();
        self.check();
    }

    /// Peers send and read what they still have to; then time passes until every deadline is over.
    fn finish(&mut self) {
        for round in 0..40_000 {
            for id in 0..2 * self.sessions {
                let mut world = self.world.0.borrow_mut();
                world.peer_acts(id, false);
                world.complete_receive(id);
                world.complete_send(id);
                world.complete_watch(id);
            }
            self.pass();
            if self.relay.active() == 0 {
                return;
            }
            // Little time at first, so that what can be delivered is delivered before a deadline.
            self.now_us += if round < 5_000 { 100 } else { 5_000 };
        }
        panic!("{} sessions never ended", self.relay.active());
    }

    fn check(mut self) {
        let world = self.world.0.borrow();
        let ends = self.relay.watcher();
        // A peer that never reads may keep a tiny pool's buffers until the deadlines.
        let any_stalled = world.endpoints.iter().any(|endpoint| endpoint.stalled);
        for session in 0..self.sessions {
            let summary = ends.summaries[session].expect("every session is reported");
            let sides = [
                &world.endpoints[2 * session],
                &world.endpoints[2 * session + 1],
            ];
            let counted = [summary.to_upstream_bytes, summary.to_downstream_bytes];
            assert_eq!(counted, ends.delivered[session]);
            assert_eq!(
                counted,
                [sides[1].taken, sides[0].taken],
                "session {session}"
            );
            for (index, this) in sides.into_iter().enumerate() {
                check_end(session, index, this, sides[1 - index], summary, any_stalled);
            }
        }
        assert_eq!(world.pool.held(), 0, "buffers were lost");
    }
}

/// What the peer behind `to` must have seen of the other one, `from`.
fn check_end(
    session: usize,
    index: usize,
    to: &Endpoint,
    from: &Endpoint,
    summary: Summary,
    any_stalled: bool,
) {
    let reason = summary.reason;
    assert!(to.closed);
    let saw_clean_end = to.fin_sent && !to.linger_zero;
    // A FIN reads as the end of the stream even if a reset follows it.
    if to.fin_sent && reason.side != Side::Local {
        assert!(
            from.peer_fin,
            "session {session}: socket {index} got a FIN nobody sent"
        );
        assert_eq!(
            to.taken, from.peer_sent,
            "session {session}: truncated, and looks clean"
        );
    }
    match reason.cause {
        Cause::Finished | Cause::Empty => assert!(saw_clean_end),
        Cause::Reset => {
            let blamed = if index == 1 {
                Side::Downstream
            } else {
                Side::Upstream
            };
            let gone = to.peer_reset || any_stalled;
            if reason.side == blamed && !gone {
                assert!(
                    to.linger_zero,
                    "session {session}: an abort became a clean end"
                );
                assert_eq!(
                    to.taken, from.peer_sent,
                    "session {session}: cut by the abort"
                );
                assert_eq!(
                    to.taken, to.acknowledged,
                    "session {session}: reset too early"
                );
            }
        }
        _ => assert_eq!(reason.side, Side::Local, "{reason}"),
    }
}

#[test]
fn thousands_of_seeds() {
    if let Ok(seed) = std::env::var("CORELAY_SEED") {
        return Simulation::new(seed.parse().expect("CORELAY_SEED is a number")).run();
    }
    for seed in 0..SEEDS {
        // The failing seed is the last one printed.
        let said = std::panic::catch_unwind(|| Simulation::new(seed).run());
        if let Err(panic) = said {
            eprintln!("replay with CORELAY_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
