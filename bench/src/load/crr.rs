//! Connect, request, response, close: one connection per request.
//!
//! Latency runs from the call to `connect` to the last byte of the answer; closing is not in it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::echo::Echo;
use super::engine::{self, Plan};
use super::exchange::{Exchange, schedule_of};
pub use super::pool::Close;
use super::rr::check_rate;
use super::{Control, Kind, Report};
use crate::endpoint::Endpoint;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whom to connect to: an echo server, or a proxy before one.
    pub to: Endpoint,
    /// How many connections at a time.
    pub connections: usize,
    /// Threads that share them.
    pub threads: usize,
    /// The CPUs that the threads are bound to, in turn; none: not bound.
    pub cpus: Vec<usize>,
    /// How long to open connections.
    pub duration: Duration,
    /// The first failure of a connection ends the run with an error.
    pub fail_fast: bool,
    /// Bytes per message.
    pub size_bytes: usize,
    /// How each connection is closed. With FIN the ports of the last minute stay in TIME_WAIT.
    pub close: Close,
    /// Open loop: connections per second, on a fixed schedule.
    pub rate: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            to: Endpoint::loopback(),
            connections: 16,
            threads: 1,
            cpus: Vec::new(),
            duration: Duration::from_secs(5),
            fail_fast: false,
            size_bytes: 64,
            close: Close::Fin,
            rate: None,
        }
    }
}

/// Runs the load. Connections that fail are counted; a wrong echo is an error.
pub fn run(options: &Options, control: &Control) -> Result<Report> {
    ensure!(options.size_bytes > 0, "a message has at least one byte");
    check_rate(options.rate)?;
    let plan = Plan {
        to: options.to.clone(),
        connections: options.connections,
        threads: options.threads,
        cpus: options.cpus.clone(),
        duration: options.duration,
        fail_fast: options.fail_fast,
        connect_first: false,
        open_loop: options.rate.is_some(),
        receive_buffer_bytes: None,
    };
    let threads = plan.thread_count();
    let outcome = engine::run(&plan, control, |thread, connections| {
        let schedule = schedule_of(options.rate, thread, threads);
        Exchange::new(
            Echo::new(options.size_bytes),
            connections,
            schedule,
            Some(options.close),
        )
    })?;
    let report = Report::new(Kind::Crr, &plan, outcome)
        .option("size_bytes", options.size_bytes)
        .option("close", options.close.name())
        .option("rate", options.rate);
    Ok(report)
}
