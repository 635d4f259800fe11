//! Request/response, closed loop: each connection sends a message, waits for its echo, repeats.
//!
//! One thread, one epoll set. The latency of a closed loop hides queueing (coordinated omission):
//! it compares proxies under equal concurrency, it does not say what a user would wait.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::Socket;

use crate::endpoint::Endpoint;
use crate::pattern::Pattern;

/// Longest latency told apart, in nanoseconds (10 minutes).
const MAX_LATENCY_NS: u64 = 600 * 1_000_000_000;
/// Significant decimal digits of a latency.
const LATENCY_DIGITS: u8 = 3;
/// How long all connections together may take to be established.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// Longest wait for the echoes that are still due when the time is over.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// Events taken from the kernel at a time.
const EVENTS: usize = 1024;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whom to connect to: an echo server, or a proxy before one.
    pub to: Endpoint,
    /// How many connections.
    pub connections: usize,
    /// Bytes per message.
    pub size_bytes: usize,
    /// How long to send requests, not counting connecting.
    pub duration: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// As asked for.
    pub options: Options,
    /// Echoes received completely.
    pub requests: u64,
    /// From the first request to the last echo.
    pub elapsed: Duration,
    /// Request sent to echo complete, in nanoseconds.
    pub latency_ns: Histogram<u64>,
}

/// Runs the load. Any connection that fails, ends or echoes wrongly fails the run.
pub fn run(options: Options) -> Result<Report> {
    ensure!(options.connections > 0, "at least one connection is needed");
    ensure!(options.size_bytes > 0, "a message has at least one byte");
    let mut load = Load::connect(&options)?;
    let started = Instant::now();
    load.exchange(options.duration)?;
    Ok(Report {
        requests: load.latency_ns.len(),
        elapsed: started.elapsed(),
        latency_ns: load.latency_ns,
        options,
    })
}

struct Load {
    poll: Poll,
    connections: Vec<Connection>,
    message: Vec<u8>,
    scratch: Vec<u8>,
    latency_ns: Histogram<u64>,
}

struct Connection {
    socket: Socket,
    sent: usize,
    received: usize,
    asked_at: Instant,
    waiting: bool,
}

impl Load {
    fn connect(options: &Options) -> Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(options.connections);
        for index in 0..options.connections {
            let socket = options
                .to
                .start_connect()
                .with_context(|| format!("connecting to {}", options.to))?;
            if options.to.tcp().is_some() {
                socket.set_tcp_nodelay(true)?;
            }
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry()
                .register(&mut SourceFd(&socket.as_raw_fd()), Token(index), interest)?;
            let asked_at = Instant::now();
            connections.push(Connection {
                socket,
                sent: 0,
                received: 0,
                asked_at,
                waiting: false,
            });
        }
        let mut load = Self {
            poll,
            connections,
            message: Pattern::new(options.size_bytes as u64).bytes(0, options.size_bytes),
            scratch: vec![0; options.size_bytes],
            latency_ns: Histogram::new_with_max(MAX_LATENCY_NS, LATENCY_DIGITS)?,
        };
        load.wait_connected(&options.to)?;
        Ok(load)
    }

    fn wait_connected(&mut self, to: &Endpoint) -> Result<()> {
        let deadline = Instant::now() + CONNECT_DEADLINE;
        let mut events = Events::with_capacity(EVENTS);
        let mut connected = vec![false; self.connections.len()];
        let mut missing = connected.len();
        while missing > 0 {
            poll_until(&mut self.poll, &mut events, deadline)
                .with_context(|| format!("{missing} connections to {to} not established"))?;
            for event in events.iter().filter(|event| event.is_writable()) {
                let Token(index) = event.token();
                if let Some(error) = self.connections[index].socket.take_error()? {
                    return Err(error).with_context(|| format!("connecting to {to}"));
                }
                if !std::mem::replace(&mut connected[index], true) {
                    missing -= 1;
                }
            }
        }
        Ok(())
    }

    fn exchange(&mut self, duration: Duration) -> Result<()> {
        let stop_at = Instant::now() + duration;
        let mut events = Events::with_capacity(EVENTS);
        for index in 0..self.connections.len() {
            self.ask(index)?;
        }
        let mut waiting = self.connections.len();
        while waiting > 0 {
            poll_until(&mut self.poll, &mut events, stop_at + DRAIN_DEADLINE)
                .with_context(|| format!("{waiting} echoes never came"))?;
            for event in &events {
                let Token(index) = event.token();
                if self.progress(index, stop_at)? {
                    waiting -= 1;
                }
            }
        }
        Ok(())
    }

    fn ask(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        connection.sent = 0;
        connection.received = 0;
        connection.waiting = true;
        connection.asked_at = Instant::now();
        connection.send(&self.message)
    }

    /// Moves one connection on; tells whether it has just finished for good.
    fn progress(&mut self, index: usize, stop_at: Instant) -> Result<bool> {
        let connection = &mut self.connections[index];
        if !connection.waiting {
            return Ok(false);
        }
        loop {
            connection.send(&self.message)?;
            let missing = self.message.len() - connection.received;
            let read = match (&connection.socket).read(&mut self.scratch[..missing]) {
                Ok(0) => bail!("connection {index} was closed by the other side"),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).with_context(|| format!("connection {index}")),
            };
            let expected = &self.message[connection.received..connection.received + read];
            ensure!(
                self.scratch[..read] == *expected,
                "connection {index}: a wrong echo"
            );
            connection.received += read;
            if connection.received < self.message.len() {
                continue;
            }
            let now = Instant::now();
            let latency = now.duration_since(connection.asked_at);
            let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(MAX_LATENCY_NS);
            self.latency_ns.saturating_record(latency_ns);
            connection.waiting = false;
            if now >= stop_at {
                return Ok(true);
            }
            connection.sent = 0;
            connection.received = 0;
            connection.waiting = true;
            connection.asked_at = now;
        }
    }
}

impl Connection {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        while self.sent < message.len() {
            match (&self.socket).write(&message[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("sending a request"),
            }
        }
        Ok(())
    }
}

/// Waits for events; an error if there is none before the deadline.
pub(super) fn poll_until(poll: &mut Poll, events: &mut Events, deadline: Instant) -> Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll.poll(events, Some(left)) {
            Ok(()) if !events.is_empty() => return Ok(()),
            Ok(()) => bail!("nothing happened before the deadline"),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
    }
}

impl Report {
    /// Echoes per second.
    pub fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// A latency quantile in microseconds.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.latency_ns.value_at_quantile(quantile) as f64 / 1e3
    }

    /// The report as one JSON object.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "to": self.options.to.to_string(),
            "connections": self.options.connections,
            "size_bytes": self.options.size_bytes,
            "elapsed_seconds": self.elapsed.as_secs_f64(),
            "requests": self.requests,
            "requests_per_second": self.requests_per_second(),
            "latency_p50_us": self.quantile_us(0.5),
            "latency_p90_us": self.quantile_us(0.9),
            "latency_p99_us": self.quantile_us(0.99),
            "latency_p999_us": self.quantile_us(0.999),
            "latency_max_us": self.latency_ns.max() as f64 / 1e3,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} connections x {} B to {} for {:.1} s",
            self.options.connections,
            self.options.size_bytes,
            self.options.to,
            self.elapsed.as_secs_f64()
        )?;
        writeln!(
            f,
            "requests   {}  ({:.0}/s)",
            self.requests,
            self.requests_per_second()
        )?;
        write!(
            f,
            "latency us p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
            self.quantile_us(0.5),
            self.quantile_us(0.9),
            self.quantile_us(0.99),
            self.quantile_us(0.999),
            self.latency_ns.max() as f64 / 1e3
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::{Fault, Server};

    fn options(to: Endpoint) -> Options {
        Options {
            to,
            connections: 20,
            size_bytes: 100,
            duration: Duration::from_millis(100),
        }
    }

    #[test]
    fn every_request_to_an_echo_server_is_counted() {
        let echo = Server::echo().start().unwrap();
        let report = run(options(echo.endpoint().clone())).unwrap();
        assert!(report.requests >= 20);
        assert_eq!(echo.stats().accepted, 20);
        // The server counts after it has sent, so the last echo may be here before its count.
        let deadline = Instant::now() + Duration::from_secs(10);
        while echo.stats().bytes_out != report.requests * 100 {
            assert!(
                Instant::now() < deadline,
                "{} != {} * 100",
                echo.stats().bytes_out,
                report.requests
            );
            std::thread::yield_now();
        }
        assert_eq!(report.to_json()["requests"], report.requests);
    }

    #[test]
    fn a_server_that_closes_fails_the_run() {
        let closing = Server::faulty(Fault::AcceptThenClose).start().unwrap();
        assert!(run(options(closing.endpoint().clone())).is_err());
    }
}
