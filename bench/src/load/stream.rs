//! One stream per connection, as fast as it goes or at a rate: the workload of [`super::bulk`].
//!
//! ```text
//! up:    send … FIN ─> wait for the sink's FIN (verify: its digest before it)
//! down:  receive … until the bytes are there or FIN
//! both:  send … FIN, and receive … until the bytes are there or FIN
//! ```
//!
//! Without a number of bytes a stream has no end of its own: the end of the run closes it.
//!
//! With a rate ([`super::pace`]) a stream that has moved what it may waits for the next tick, whether or
//! not its socket could go on.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use anyhow::anyhow;
use rustix::net::RecvFlags;
use sha2::{Digest, Sha256};
use socket2::Socket;

use super::bulk::{Direction, Options};
use super::engine::{self, Broken, Context, Workload};
use super::pace::{Bucket, Pace};
use super::pool::{Close, Pool};
use crate::pattern::Pattern;
use crate::servers::DIGEST_BYTES;

/// Most bytes of one send.
const SEND_BYTES: usize = 256 * 1024;
/// Most bytes of one receive that copies: it stays in the cache.
const RECEIVE_BYTES: usize = 256 * 1024;
/// Most bytes of one receive that discards in the kernel.
const DISCARD_BYTES: usize = 4 * 1024 * 1024;
/// Sends and receives of one connection before the others get their turn.
const STEPS_PER_TURN: usize = 8;

/// How far one stream has come.
#[derive(Debug, Default)]
pub(super) struct State {
    began: Option<Instant>,
    sent: u64,
    received: u64,
    is_fin_sent: bool,
    is_peer_finished: bool,
    /// What was sent, and what the sink says of it.
    check: Option<Box<Check>>,
    streams: u64,
    /// What it may send and receive, if it has a rate.
    up: Bucket,
    down: Bucket,
    /// For the next tick.
    is_waiting: bool,
}

#[derive(Debug)]
struct Check {
    pattern: Pattern,
    sent: Sha256,
    digest: Vec<u8>,
}

/// One thread's streams.
#[derive(Debug)]
pub(super) struct Streams {
    direction: Direction,
    bytes: Option<u64>,
    is_verified: bool,
    is_discarded: bool,
    seed: u64,
    send_buffer: Vec<u8>,
    receive_buffer: Vec<u8>,
    unfinished: usize,
    pace: Option<Pace>,
    /// Streams that wait for the next tick, and when it is due.
    waiting: Vec<usize>,
    tick_at: Option<Instant>,
}

impl Streams {
    pub(super) fn new(options: &Options, thread: usize, connections: usize) -> Self {
        let discards = options.discard && !options.verify && options.to.tcp().is_some();
        Self {
            direction: options.direction,
            bytes: options.bytes,
            is_verified: options.verify,
            is_discarded: discards,
            // In `down` the source chooses one seed for all; else streams must differ.
            seed: match options.direction {
                Direction::Down => options.seed,
                _ => options.seed.wrapping_add((thread as u64) << 32),
            },
            send_buffer: Pattern::new(options.seed).bytes(0, SEND_BYTES),
            // Discarding needs a length, not memory: these pages are never touched.
            receive_buffer: vec![
                0;
                if discards {
                    DISCARD_BYTES
                } else {
                    RECEIVE_BYTES
                }
            ],
            unfinished: connections,
            pace: options
                .bytes_per_second
                .map(|rate| Pace::new(rate, options.connections)),
            waiting: Vec::new(),
            tick_at: None,
        }
    }

    fn sends(&self) -> bool {
        self.direction != Direction::Down
    }

    /// Moves bytes until nothing moves or the turn's share is used up; tells whether the stream is
    /// complete.
    fn pump(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        context: &mut Context,
    ) -> Result<bool, Broken> {
        let Some((socket, state)) = pool.open(slot) else {
            return Ok(false);
        };
        if state.is_waiting {
            return Ok(false);
        }
        let mut has_moved = true;
        for _ in 0..STEPS_PER_TURN {
            let sent = self.send(socket, state, context)?;
            let received = self.receive(socket, state, slot, context)?;
            if self.is_stream_complete(state)? {
                return Ok(true);
            }
            has_moved = sent || received;
            if !has_moved {
                break;
            }
        }
        if state.is_waiting {
            self.waiting.push(slot);
        } else if has_moved {
            pool.again(slot);
        }
        Ok(false)
    }

    /// How much of what it could move a stream may move now.
    fn paced(&self, could_bytes: usize, bucket: &mut Bucket, context: &Context) -> usize {
        match &self.pace {
            Some(pace) => could_bytes.min(bucket.available(pace, context.now)),
            None => could_bytes,
        }
    }

    /// Tells whether anything moved.
    fn send(
        &mut self,
        mut socket: &Socket,
        state: &mut State,
        context: &mut Context,
    ) -> Result<bool, Broken> {
        if !self.sends() || state.is_fin_sent {
            return Ok(false);
        }
        let left = self.bytes.map_or(u64::MAX, |bytes| bytes - state.sent);
        // A verified stream is ended in order also when the time is over, to be compared.
        if left == 0 || (self.is_verified && context.is_over()) {
            state.is_fin_sent = true;
            return match socket.shutdown(Shutdown::Write) {
                Ok(()) => Ok(true),
                Err(error) => Err(Broken::io("shutdown", &error)),
            };
        }
        let chunk = usize::try_from(left).unwrap_or(usize::MAX).min(SEND_BYTES);
        let chunk = self.paced(chunk, &mut state.up, context);
        if chunk == 0 {
            state.is_waiting = true;
            return Ok(false);
        }
        if let Some(check) = &state.check {
            check
                .pattern
                .fill(state.sent, &mut self.send_buffer[..chunk]);
        }
        match socket.write(&self.send_buffer[..chunk]) {
            Ok(sent) => {
                if let Some(check) = &mut state.check {
                    check.sent.update(&self.send_buffer[..sent]);
                }
                state.up.take(sent);
                state.sent += sent as u64;
                context.tally.bytes_sent += sent as u64;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(Broken::io("send", &error)),
        }
    }

    /// Tells whether anything moved.
    fn receive(
        &mut self,
        mut socket: &Socket,
        state: &mut State,
        slot: usize,
        context: &mut Context,
    ) -> Result<bool, Broken> {
        // A sink says nothing before the end.
        if state.is_peer_finished || (self.direction == Direction::Up && !state.is_fin_sent) {
            return Ok(false);
        }
        // What a sink says at the end is not part of the stream.
        let most = match self.direction {
            Direction::Up => RECEIVE_BYTES,
            _ => self.paced(self.receive_buffer.len(), &mut state.down, context),
        };
        if most == 0 {
            state.is_waiting = true;
            return Ok(false);
        }
        let buffer = &mut self.receive_buffer[..most];
        let received = if self.is_discarded {
            rustix::net::recv(socket, buffer, RecvFlags::TRUNC)
                .map(|(_, received)| received)
                .map_err(io::Error::from)
        } else {
            socket.read(buffer)
        };
        let received = match received {
            Ok(0) => {
                state.is_peer_finished = true;
                return Ok(true);
            }
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(Broken::io("receive", &error)),
        };
        if self.direction != Direction::Up {
            state.down.take(received);
            context.tally.bytes_received += received as u64;
        }
        if let Some(check) = &mut state.check {
            let bytes = &self.receive_buffer[..received];
            if self.direction == Direction::Up {
                check.digest.extend_from_slice(bytes);
            } else if let Some(at) = check.pattern.first_difference(state.received, bytes) {
                let offset = state.received + at as u64;
                return Err(Broken::Fatal(anyhow!(
                    "connection {slot}: byte {offset} of the stream is wrong"
                )));
            }
        }
        state.received += received as u64;
        Ok(true)
    }

    fn is_stream_complete(&self, state: &State) -> Result<bool, Broken> {
        let is_all_sent = !self.sends() || self.bytes.is_some_and(|bytes| state.sent == bytes);
        if self.direction != Direction::Up {
            let is_all_received = self.bytes.is_some_and(|bytes| state.received >= bytes);
            if is_all_sent && is_all_received {
                return Ok(true);
            }
        }
        if !state.is_peer_finished {
            return Ok(false);
        }
        let is_short = match self.direction {
            Direction::Up => !state.is_fin_sent,
            Direction::Down => self.bytes.is_some_and(|bytes| state.received < bytes),
            Direction::Both => !state.is_fin_sent || state.received < state.sent,
        };
        if is_short {
            return Err(Broken::named("ended too early by the other side"));
        }
        if let Some(check) = &state.check
            && self.direction == Direction::Up
        {
            let wanted = check.sent.clone().finalize();
            if check.digest.len() != DIGEST_BYTES || check.digest[..] != wanted[..] {
                return Err(Broken::Fatal(anyhow!(
                    "the SHA-256 of {} bytes sent is not what the sink received",
                    state.sent
                )));
            }
        }
        Ok(true)
    }

    fn ended(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        context: &mut Context,
    ) -> Result<(), Broken> {
        context.now = Instant::now();
        let began = pool.state(slot).began.unwrap_or(context.now);
        context.tally.complete(began, None, context.now);
        pool.succeeded(slot);
        engine::close(pool, slot, Close::Fin, context);
        pool.state(slot).began = None;
        if self.bytes.is_some() || context.is_over() {
            self.unfinished -= 1;
            return Ok(());
        }
        // The other side has ended it (a source with an end): the next one.
        engine::connect(pool, slot)
    }
}

impl Workload for Streams {
    type State = State;

    fn opened(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        context: &mut Context,
    ) -> Result<(), Broken> {
        let streams = pool.state(slot).streams + 1;
        let seed = match self.direction {
            Direction::Down => self.seed,
            _ => self
                .seed
                .wrapping_add((slot as u64) << 16)
                .wrapping_add(streams),
        };
        let check = self.is_verified.then(|| {
            Box::new(Check {
                pattern: Pattern::new(seed),
                sent: Sha256::new(),
                digest: Vec::with_capacity(DIGEST_BYTES),
            })
        });
        *pool.state(slot) = State {
            began: Some(Instant::now()),
            check,
            streams,
            ..State::default()
        };
        self.ready(pool, slot, context)
    }

    fn ready(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        context: &mut Context,
    ) -> Result<(), Broken> {
        if self.pump(pool, slot, context)? {
            self.ended(pool, slot, context)?;
        }
        Ok(())
    }

    fn broken(&mut self, pool: &mut Pool<State>, slot: usize) {
        pool.state(slot).began = None;
    }

    fn turn(
        &mut self,
        pool: &mut Pool<State>,
        context: &mut Context,
        _failures: &mut Vec<(usize, Broken)>,
    ) -> Option<Instant> {
        if context.is_over() && self.is_verified && self.bytes.is_none() {
            // Those that wait for nothing but the end are told of it.
            for slot in 0..pool.len() {
                if pool.is_open(slot) && !pool.state(slot).is_fin_sent {
                    pool.again(slot);
                }
            }
        }
        let pace = self.pace?;
        if self.tick_at.is_none_or(|tick_at| context.now >= tick_at) {
            self.tick_at = Some(context.now + pace.every);
            for slot in self.waiting.drain(..) {
                pool.state(slot).is_waiting = false;
                pool.again(slot);
            }
        }
        self.tick_at
    }

    fn is_complete(&self) -> bool {
        self.unfinished == 0
    }

    /// At the end only streams that are to be compared are waited for.
    fn under_way(&self) -> usize {
        let compares = self.is_verified && self.sends() && self.bytes.is_none();
        if compares { self.unfinished } else { 0 }
    }

    fn finish(&mut self, _pool: &mut Pool<State>, context: &mut Context) -> anyhow::Result<()> {
        if self.bytes.is_some() || self.under_way() > 0 {
            context.tally.error("unfinished", self.unfinished as u64);
        }
        Ok(())
    }
}
