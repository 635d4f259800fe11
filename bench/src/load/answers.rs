//! Long answers on connections that stay: how long until the last byte is there, and how long the
//! tail of the answer was waited for.
//!
//! ```text
//! request ──> … bytes … bytes … bytes ────────────> the last bytes
//! │                             └── wait for the tail ──┘│
//! └──────────────────── service time ────────────────────┘
//! ```
//!
//! A proxy that moves bytes only once enough of them have come cannot know that an answer is over when
//! neither FIN nor further bytes follow; what it does with the last part of it is what this load
//! shows. The length of each answer is drawn, so that its end falls anywhere. A server that answers:
//! [`crate::servers::answers`].

use std::io::{self, Read, Write};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::net::RecvFlags;
use socket2::Socket;

use super::engine::{self, Plan};
use super::exchange::{Exchange, Message, Script, schedule_of};
use super::rr::check_rate;
use super::{Control, Kind, Report};
use crate::endpoint::Endpoint;
use crate::pattern::Random;
use crate::servers::answers::{self, BLOCK_BYTES, REQUEST_BYTES};

/// Most bytes of one receive that copies: it stays in the cache, and no comparison crosses the end of
/// the block.
const RECEIVE_BYTES: usize = BLOCK_BYTES;
/// Most bytes of one receive that discards in the kernel.
const DISCARD_BYTES: usize = 4 * 1024 * 1024;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whom to connect to: a server of answers, or a proxy before one.
    pub to: Endpoint,
    /// How many connections, one request each at a time.
    pub connections: usize,
    /// Threads that share them.
    pub threads: usize,
    /// The CPUs that the threads are bound to, in turn; none: not bound.
    pub cpus: Vec<usize>,
    /// How long to send requests, not counting connecting.
    pub duration: Duration,
    /// The first failure of a connection ends the run with an error.
    pub fail_fast: bool,
    /// The shortest answer.
    pub bytes: u64,
    /// So much longer, at most, an answer is; how much is drawn for each, evenly.
    pub spread_bytes: u64,
    /// What the lengths are drawn from: with the same seed, the same connection gets the same ones.
    pub seed: u64,
    /// Receive with `MSG_TRUNC`: the kernel drops the bytes instead of copying them, and they are
    /// not compared. TCP only.
    pub discard: bool,
    /// Open loop: requests per second over all connections, on a fixed schedule.
    pub rate: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            to: Endpoint::loopback(),
            connections: 4,
            threads: 1,
            cpus: Vec::new(),
            duration: Duration::from_secs(5),
            fail_fast: false,
            bytes: 20 * 1024 * 1024,
            spread_bytes: 1024 * 1024,
            seed: 1,
            discard: false,
            rate: None,
        }
    }
}

/// Runs the load. Connections that fail are counted and opened again; a wrong answer is an error.
pub fn run(options: &Options, control: &Control) -> Result<Report> {
    ensure!(options.bytes > 0, "an answer has at least one byte");
    options
        .bytes
        .checked_add(options.spread_bytes)
        .and_then(|most| most.checked_add(1))
        .context("the longest answer has too many bytes to count")?;
    check_rate(options.rate)?;
    let plan = Plan {
        to: options.to.clone(),
        connections: options.connections,
        threads: options.threads,
        cpus: options.cpus.clone(),
        duration: options.duration,
        fail_fast: options.fail_fast,
        connect_first: true,
        open_loop: options.rate.is_some(),
        receive_buffer_bytes: None,
    };
    let threads = plan.thread_count();
    let outcome = engine::run(&plan, control, |thread, connections| {
        let schedule = schedule_of(options.rate, thread, threads);
        Exchange::new(Answers::new(options, thread), connections, schedule, None)
    })?;
    let report = Report::new(Kind::Answers, &plan, outcome)
        .option("bytes", options.bytes)
        .option("spread_bytes", options.spread_bytes)
        .option("seed", options.seed)
        .option("discard", options.discard)
        .option("rate", options.rate);
    Ok(report)
}

/// The lengths of one thread's answers, and how they are received.
#[derive(Debug)]
struct Answers {
    bytes: u64,
    spread_bytes: u64,
    /// Of this thread.
    seed: u64,
    /// What answers are cut from; empty if they are not compared.
    block: Vec<u8>,
    scratch: Vec<u8>,
}

impl Answers {
    fn new(options: &Options, thread: usize) -> Self {
        let is_discarded = options.discard && options.to.tcp().is_some();
        Self {
            bytes: options.bytes,
            spread_bytes: options.spread_bytes,
            seed: seed_of(options.seed, thread),
            block: if is_discarded {
                Vec::new()
            } else {
                answers::block()
            },
            // Discarding needs a length, not memory: these pages are never touched.
            scratch: vec![
                0;
                if is_discarded {
                    DISCARD_BYTES
                } else {
                    RECEIVE_BYTES
                }
            ],
        }
    }
}

/// The seed of part `index` of what has this seed.
fn seed_of(seed: u64, index: usize) -> u64 {
    Random::new(seed).next_u64().wrapping_add(index as u64)
}

impl Script for Answers {
    const ANSWER: &'static str = "answer";

    fn message(&mut self, slot: usize, number: usize) -> Message {
        let mut random = Random::new(seed_of(seed_of(self.seed, slot), number));
        Message {
            request_bytes: REQUEST_BYTES,
            answer_bytes: self.bytes + random.below(self.spread_bytes + 1),
            beginning: 0,
        }
    }

    fn send(&self, mut socket: &Socket, message: &Message, sent: usize) -> io::Result<usize> {
        socket.write(&message.answer_bytes.to_be_bytes()[sent..])
    }

    fn receive(
        &mut self,
        mut socket: &Socket,
        message: &Message,
        received: u64,
    ) -> io::Result<usize> {
        if self.block.is_empty() {
            let missing = usize::try_from(message.answer_bytes - received).unwrap_or(usize::MAX);
            let wanted = missing.min(self.scratch.len());
            let scratch = &mut self.scratch[..wanted];
            return rustix::net::recv(socket, scratch, RecvFlags::TRUNC)
                .map(|(_, received)| received)
                .map_err(io::Error::from);
        }
        let wanted = answers::slice(message.answer_bytes, received).len();
        socket.read(&mut self.scratch[..wanted])
    }

    fn is_right(&self, message: &Message, received: u64, read: usize) -> bool {
        if self.block.is_empty() {
            return true;
        }
        let expected = answers::slice(message.answer_bytes, received);
        self.scratch[..read] == self.block[expected][..read]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(seed: u64, thread: usize, slot: usize) -> Vec<u64> {
        let options = Options {
            bytes: 1000,
            spread_bytes: 9,
            seed,
            ..Options::default()
        };
        let mut answers = Answers::new(&options, thread);
        let draw = |number| answers.message(slot, number).answer_bytes;
        (1..=200).map(draw).collect()
    }

    #[test]
    fn lengths_follow_the_seed_and_reach_both_ends() {
        let drawn = lengths(7, 0, 0);
        assert_eq!(drawn, lengths(7, 0, 0));
        for other in [lengths(8, 0, 0), lengths(7, 1, 0), lengths(7, 0, 1)] {
            assert_ne!(drawn, other);
        }
        assert_eq!(drawn.iter().min(), Some(&1000));
        assert_eq!(drawn.iter().max(), Some(&1009));
    }
}
