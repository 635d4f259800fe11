//! Slow readers: connections to a source that take less than they are offered, at a steady rate each.
//!
//! A proxy before them has to hold back the fast side without keeping what it cannot deliver. What
//! that costs in memory, and what other connections feel of it, is measured beside it.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::engine::{self, Broken, Context, Plan, Workload};
use super::pool::{Close, Pool};
use super::{Control, Kind, Report};
use crate::endpoint::Endpoint;

/// Reads of a connection per second, as long as each is of at least one byte.
const READS_PER_SECOND: f64 = 10.0;
/// Most bytes of one read.
const READ_BYTES: usize = 256 * 1024;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whom to connect to: a source, or a proxy before one.
    pub to: Endpoint,
    /// How many connections.
    pub connections: usize,
    /// Threads that share them.
    pub threads: usize,
    /// The CPUs that the threads are bound to, in turn; none: not bound.
    pub cpus: Vec<usize>,
    /// How long to read.
    pub duration: Duration,
    /// The first failure of a connection ends the run with an error.
    pub fail_fast: bool,
    /// What each connection reads, in bytes per second.
    pub bytes_per_second: f64,
    /// `SO_RCVBUF` of each connection, in bytes (the kernel doubles it); none: as the kernel likes,
    /// which takes megabytes before the other side feels anything.
    pub receive_buffer_bytes: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            to: Endpoint::loopback(),
            connections: 100,
            threads: 1,
            cpus: Vec::new(),
            duration: Duration::from_secs(5),
            fail_fast: false,
            bytes_per_second: 10_000.0,
            receive_buffer_bytes: None,
        }
    }
}

/// Runs the load. An operation is a stream that the source has ended; the next one begins then.
pub fn run(options: &Options, control: &Control) -> Result<Report> {
    ensure!(
        options.bytes_per_second.is_finite() && options.bytes_per_second > 0.0,
        "a slow reader reads more than 0 bytes per second"
    );
    let plan = Plan {
        to: options.to.clone(),
        connections: options.connections,
        threads: options.threads,
        cpus: options.cpus.clone(),
        duration: options.duration,
        fail_fast: options.fail_fast,
        connect_first: true,
        open_loop: false,
        receive_buffer_bytes: options.receive_buffer_bytes,
    };
    let reads_per_second = READS_PER_SECOND.min(options.bytes_per_second);
    let outcome = engine::run(&plan, control, |_, connections| Readers {
        every: Duration::from_secs_f64(1.0 / reads_per_second),
        bytes_per_second: options.bytes_per_second,
        connections,
        buffer: vec![0; READ_BYTES],
        next_at: None,
    })?;
    let report = Report::new(Kind::Slow, &plan, outcome)
        .option("bytes_per_second", options.bytes_per_second)
        .option("receive_buffer_bytes", options.receive_buffer_bytes);
    Ok(report)
}

/// One connection.
#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    /// What it has read of this stream.
    read: u64,
}

/// One thread's connections, all read at the same moments.
#[derive(Debug)]
struct Readers {
    every: Duration,
    bytes_per_second: f64,
    connections: usize,
    buffer: Vec<u8>,
    next_at: Option<Instant>,
}

impl Readers {
    /// Reads what a connection may have read by now; tells whether its stream has ended.
    fn read(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        context: &mut Context,
    ) -> Result<bool, Broken> {
        let Some((mut socket, state)) = pool.open(slot) else {
            return Ok(false);
        };
        let age = state.began.map_or(Duration::ZERO, |began| {
            context.now.saturating_duration_since(began)
        });
        let allowed = (age.as_secs_f64() * self.bytes_per_second) as u64;
        while state.read < allowed {
            let wanted = usize::try_from(allowed - state.read)
                .unwrap_or(READ_BYTES)
                .min(READ_BYTES);
            match socket.read(&mut self.buffer[..wanted]) {
                Ok(0) => return Ok(true),
                Ok(read) => {
                    state.read += read as u64;
                    context.tally.bytes_received += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(Broken::io("receive", &error)),
            }
        }
        Ok(false)
    }

    fn read_and_go_on(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        context: &mut Context,
    ) -> Result<(), Broken> {
        if !self.read(pool, slot, context)? {
            return Ok(());
        }
        let began = pool.state(slot).began.unwrap_or(context.now);
        context.tally.complete(began, None, context.now);
        pool.succeeded(slot);
        engine::close(pool, slot, Close::Fin, context);
        engine::connect(pool, slot)
    }
}

impl Workload for Readers {
    type State = State;

    fn opened(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        context: &mut Context,
    ) -> Result<(), Broken> {
        *pool.state(slot) = State {
            began: Some(context.now),
            read: 0,
        };
        Ok(())
    }

    /// Whether there is something to read does not matter: the time says when.
    fn ready(
        &mut self,
        _pool: &mut Pool<State>,
        _slot: usize,
        _context: &mut Context,
    ) -> Result<(), Broken> {
        Ok(())
    }

    fn broken(&mut self, _pool: &mut Pool<State>, _slot: usize) {}

    fn turn(
        &mut self,
        pool: &mut Pool<State>,
        context: &mut Context,
        failures: &mut Vec<(usize, Broken)>,
    ) -> Option<Instant> {
        let due = self.next_at.unwrap_or(context.started);
        if context.now < due || context.is_over() {
            return Some(due);
        }
        for slot in 0..self.connections {
            if let Err(broken) = self.read_and_go_on(pool, slot, context) {
                failures.push((slot, broken));
            }
        }
        self.next_at = Some(context.now + self.every);
        self.next_at
    }

    fn under_way(&self) -> usize {
        0
    }
}
