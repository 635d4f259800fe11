//! Request/response on connections that stay: each carries one message at a time and waits for its
//! echo.
//!
//! Without a rate the loop is closed: every connection sends its next request when it has its
//! answer. That compares proxies under equal concurrency; it does not say what a user would wait,
//! since a slow answer holds back the requests that would have met the same slowness (coordinated
//! omission). With a rate the loop is open and that wait is recorded.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::echo::Echo;
use super::engine::{self, Plan};
use super::exchange::{Exchange, schedule_of};
use super::{Control, Kind, Report};
use crate::endpoint::Endpoint;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whom to connect to: an echo server, or a proxy before one.
    pub to: Endpoint,
    /// How many connections.
    pub connections: usize,
    /// Threads that share them.
    pub threads: usize,
    /// The CPUs that the threads are bound to, in turn; none: not bound.
    pub cpus: Vec<usize>,
    /// How long to send requests, not counting connecting.
    pub duration: Duration,
    /// The first failure of a connection ends the run with an error.
    pub fail_fast: bool,
    /// Bytes per message.
    pub size_bytes: usize,
    /// Open loop: requests per second over all connections, on a fixed schedule.
    pub rate: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            to: Endpoint::loopback(),
            connections: 64,
            threads: 1,
            cpus: Vec::new(),
            duration: Duration::from_secs(5),
            fail_fast: false,
            size_bytes: 64,
            rate: None,
        }
    }
}

/// Runs the load. Connections that fail are counted and opened again; a wrong echo is an error.
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
        connect_first: true,
        open_loop: options.rate.is_some(),
        receive_buffer_bytes: None,
    };
    let threads = plan.thread_count();
    let outcome = engine::run(&plan, control, |thread, connections| {
        let schedule = schedule_of(options.rate, thread, threads);
        Exchange::new(Echo::new(options.size_bytes), connections, schedule, None)
    })?;
    let report = Report::new(Kind::Rr, &plan, outcome)
        .option("size_bytes", options.size_bytes)
        .option("rate", options.rate);
    Ok(report)
}

/// A rate must be above zero.
pub(super) fn check_rate(rate: Option<f64>) -> Result<()> {
    ensure!(
        rate.is_none_or(|rate| rate.is_finite() && rate > 0.0),
        "a rate is above 0 requests per second"
    );
    Ok(())
}
