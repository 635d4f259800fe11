//! Bulk streams: up to a sink, down from a source, or both ways through an echo.
//!
//! Bytes are counted where the generator hands them to the kernel or takes them from it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::engine::{self, Plan};
use super::stream::Streams;
use super::{Control, Kind, Report};
use crate::endpoint::Endpoint;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// To a sink.
    #[default]
    Up,
    /// From a source.
    Down,
    /// To an echo server and back, or to a source that also reads (an endless one).
    Both,
}

impl Direction {
    /// Its name in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Up => "up",
            Direction::Down => "down",
            Direction::Both => "both",
        }
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whom to connect to.
    pub to: Endpoint,
    /// How many connections, one stream each at a time.
    pub connections: usize,
    /// Threads that share them.
    pub threads: usize,
    /// The CPUs that the threads are bound to, in turn; none: not bound.
    pub cpus: Vec<usize>,
    /// How long to stream; with `bytes`, at most how long.
    pub duration: Duration,
    /// The first failure of a connection ends the run with an error.
    pub fail_fast: bool,
    /// Which way.
    pub direction: Direction,
    /// Fixed work: what each connection carries, per direction, once; then the run is over. Streams
    /// that are not through when the time is over count as errors ("unfinished"); one that fails
    /// begins anew.
    pub bytes: Option<u64>,
    /// At most so many bytes per second and direction, over all connections, each of which has an
    /// equal part. Up it is the sender that waits, down the reader: what is before it fills up and
    /// waits for it. None: as fast as it goes.
    pub bytes_per_second: Option<f64>,
    /// Compare every stream: `up` with the SHA-256 that a digest sink answers, `down` with the
    /// pattern of `seed`, `both` with what was sent. It costs far more than sending.
    pub verify: bool,
    /// With `verify`: the source's seed in `down`, else where the streams' own seeds begin.
    pub seed: u64,
    /// Receive with `MSG_TRUNC`: the kernel drops the bytes instead of copying them. Not with
    /// `verify`, and TCP only.
    pub discard: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            to: Endpoint::loopback(),
            connections: 1,
            threads: 1,
            cpus: Vec::new(),
            duration: Duration::from_secs(5),
            fail_fast: false,
            direction: Direction::Up,
            bytes: None,
            bytes_per_second: None,
            verify: false,
            seed: 1,
            discard: false,
        }
    }
}

/// Runs the load. Connections that fail are counted and opened again; a wrong byte is an error.
pub fn run(options: &Options, control: &Control) -> Result<Report> {
    ensure!(options.bytes != Some(0), "a stream has at least one byte");
    ensure!(
        options
            .bytes_per_second
            .is_none_or(|rate| rate.is_finite() && rate > 0.0),
        "streams move more than 0 bytes per second"
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
        receive_buffer_bytes: None,
    };
    let outcome = engine::run(&plan, control, |thread, connections| {
        Streams::new(options, thread, connections)
    })?;
    let report = Report::new(Kind::Bulk, &plan, outcome)
        .option("direction", options.direction.name())
        .option("bytes", options.bytes)
        .option("bytes_per_second", options.bytes_per_second)
        .option("verify", options.verify)
        .option("discard", options.discard);
    Ok(report)
}
