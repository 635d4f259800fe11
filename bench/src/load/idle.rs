//! Idle connections: opened, used for one echo each so that both sides exist, then held.
//!
//! What memory a proxy needs for them is measured from outside, by `corelay-bench compare --only idle`. Two ways:
//! [`run`] holds them for a time and reports; [`hold`] gives them to the caller.
//!
//! ```text
//! (ramp) ─> connect ─> greeting out ─> its echo ─> held ─> lost? counted, opened again
//! ```

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::engine::{self, Broken, Plan, Workload};
use super::pool::Pool;
use super::rr::check_rate;
use super::schedule::Schedule;
use super::{Control, Kind, Report};
use crate::endpoint::Endpoint;

/// How long one connection may take to connect, and to echo.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// What is sent once through each connection: it proves that the relay stands.
const GREETING: &[u8] = b"idle";
/// Connections of one thread that are being opened at a time: more could overflow accept queues.
const OPENING_MAX: usize = 256;

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
    /// The whole run: opening and holding.
    pub duration: Duration,
    /// The first failure of a connection ends the run with an error.
    pub fail_fast: bool,
    /// Connections opened per second, on a fixed schedule; none: as fast as it goes.
    pub ramp: Option<f64>,
    /// Whether each is used for one echo first. Without, the target need not be an echo server.
    pub greet: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            to: Endpoint::loopback(),
            connections: 1000,
            threads: 1,
            cpus: Vec::new(),
            duration: Duration::from_secs(10),
            fail_fast: false,
            ramp: None,
            greet: true,
        }
    }
}

/// Opens the connections and holds them until the end. An operation is a connection that has come to
/// stand, its service time runs from `connect` to the echo. Lost ones are counted and opened again.
pub fn run(options: &Options, control: &Control) -> Result<Report> {
    check_rate(options.ramp)?;
    let plan = Plan {
        to: options.to.clone(),
        connections: options.connections,
        threads: options.threads,
        cpus: options.cpus.clone(),
        duration: options.duration,
        fail_fast: options.fail_fast,
        connect_first: false,
        open_loop: false,
        receive_buffer_bytes: None,
    };
    let threads = plan.thread_count();
    let outcome = engine::run(&plan, control, |thread, connections| Holder {
        ramp: options
            .ramp
            .map(|rate| Schedule::new(rate, thread, threads)),
        greet: options.greet,
        connections,
        begun: 0,
        opening: 0,
    })?;
    let report = Report::new(Kind::Idle, &plan, outcome)
        .option("ramp", options.ramp)
        .option("greet", options.greet);
    Ok(report)
}

/// One connection.
#[derive(Debug, Default)]
struct State {
    /// Since when it is being opened; none: it is held, or not begun.
    opening_since: Option<Instant>,
    echoed: usize,
}

/// One thread's connections.
#[derive(Debug)]
struct Holder {
    ramp: Option<Schedule>,
    greet: bool,
    connections: usize,
    begun: usize,
    opening: usize,
}

impl Holder {
    fn begin(&mut self, pool: &mut Pool<State>, slot: usize) -> Result<(), Broken> {
        self.opening += 1;
        *pool.state(slot) = State {
            opening_since: Some(Instant::now()),
            echoed: 0,
        };
        engine::connect(pool, slot)
    }

    fn stands(&mut self, pool: &mut Pool<State>, slot: usize, context: &mut engine::Context) {
        if let Some(began) = pool.state(slot).opening_since.take() {
            self.opening -= 1;
            pool.succeeded(slot);
            context.now = Instant::now();
            context.tally.complete(began, None, context.now);
        }
    }
}

impl Workload for Holder {
    type State = State;

    fn opened(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        context: &mut engine::Context,
    ) -> Result<(), Broken> {
        if !self.greet {
            self.stands(pool, slot, context);
            return Ok(());
        }
        if let Some((mut socket, _)) = pool.open(slot) {
            // A new connection takes a few bytes at once.
            socket
                .write_all(GREETING)
                .map_err(|error| Broken::io("send", &error))?;
            context.tally.bytes_sent += GREETING.len() as u64;
        }
        Ok(())
    }

    fn ready(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        context: &mut engine::Context,
    ) -> Result<(), Broken> {
        let Some((mut socket, state)) = pool.open(slot) else {
            return Ok(());
        };
        let mut buffer = [0; GREETING.len()];
        loop {
            match socket.read(&mut buffer) {
                Ok(0) => return Err(Broken::named("closed by the other side")),
                Ok(read) => {
                    let expected = GREETING.get(state.echoed..state.echoed + read);
                    if self.greet && expected != Some(&buffer[..read]) {
                        return Err(Broken::Fatal(anyhow!("connection {slot}: a wrong echo")));
                    }
                    state.echoed += read;
                    context.tally.bytes_received += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(Broken::io("receive", &error)),
            }
        }
        if state.echoed == GREETING.len() {
            self.stands(pool, slot, context);
        }
        Ok(())
    }

    fn broken(&mut self, pool: &mut Pool<State>, slot: usize) {
        if pool.state(slot).opening_since.take().is_some() {
            self.opening -= 1;
        }
    }

    fn retry(
        &mut self,
        pool: &mut Pool<State>,
        slot: usize,
        _context: &mut engine::Context,
    ) -> Result<(), Broken> {
        self.begin(pool, slot)
    }

    fn turn(
        &mut self,
        pool: &mut Pool<State>,
        context: &mut engine::Context,
        failures: &mut Vec<(usize, Broken)>,
    ) -> Option<Instant> {
        while self.begun < self.connections && self.opening < OPENING_MAX && !context.is_over() {
            if let Some(ramp) = &mut self.ramp
                && ramp.take_due(context.started, context.now).is_none()
            {
                return Some(ramp.next_at(context.started));
            }
            let slot = self.begun;
            self.begun += 1;
            if let Err(broken) = self.begin(pool, slot) {
                failures.push((slot, broken));
            }
        }
        None
    }

    /// What is only held is not waited for.
    fn under_way(&self) -> usize {
        0
    }
}

/// Connections that are held until they are dropped.
#[derive(Debug)]
pub struct Held {
    connections: Vec<OwnedFd>,
}

/// Opens this many connections to an echo server or a proxy before one, one echo through each.
pub fn hold(to: &Endpoint, connections: usize) -> Result<Held> {
    let mut held = Held {
        connections: Vec::with_capacity(connections),
    };
    for index in 0..connections {
        let stream = open(to).with_context(|| format!("connection {index} to {to}"))?;
        held.connections.push(stream);
    }
    Ok(held)
}

fn open(to: &Endpoint) -> Result<OwnedFd> {
    match to {
        Endpoint::Tcp(address) => {
            let mut stream = TcpStream::connect_timeout(address, STEP_DEADLINE)?;
            stream.set_read_timeout(Some(STEP_DEADLINE))?;
            greet(&mut stream)?;
            Ok(stream.into())
        }
        Endpoint::Unix(path) => {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(STEP_DEADLINE))?;
            greet(&mut stream)?;
            Ok(stream.into())
        }
    }
}

fn greet(stream: &mut (impl Read + Write)) -> Result<()> {
    stream.write_all(GREETING)?;
    let mut answer = [0; GREETING.len()];
    stream
        .read_exact(&mut answer)
        .context("waiting for the echo")?;
    ensure!(answer == GREETING, "a wrong echo");
    Ok(())
}

impl Held {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::{Fault, Server};

    #[test]
    fn a_ramp_opens_them_all_and_keeps_them_until_the_stop() {
        let echo = Server::echo().start().unwrap();
        let options = Options {
            to: echo.endpoint().clone(),
            connections: 300,
            threads: 2,
            ramp: Some(600.0),
            duration: Duration::from_secs(60),
            ..Options::default()
        };
        let control = Control::new();
        let report = std::thread::scope(|scope| {
            let run = scope.spawn(|| run(&options, &control));
            let deadline = Instant::now() + STEP_DEADLINE;
            while control.snapshot().operations < 300 {
                assert!(Instant::now() < deadline, "{:?}", control.snapshot());
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(control.snapshot().open, 300);
            assert_eq!(echo.stats().open, 300);
            control.stop();
            run.join().unwrap().unwrap()
        });
        assert_eq!((report.operations, report.error_count()), (300, 0));
        // The last of 300 is due 299 / 600 s after the start.
        assert!(report.elapsed >= Duration::from_millis(498));
        assert_eq!(control.snapshot().open, 0);
    }

    #[test]
    fn a_lost_connection_is_counted_and_replaced() {
        let stingy = Server::faulty(Fault::ResetAfter { bytes: 4 })
            .start()
            .unwrap();
        let options = Options {
            to: stingy.endpoint().clone(),
            connections: 5,
            greet: false,
            duration: Duration::from_millis(50),
            ..Options::default()
        };
        let report = run(&options, &Control::new()).unwrap();
        assert_eq!((report.operations, report.error_count()), (5, 0));
        let greeted = Options {
            greet: true,
            ..options
        };
        let report = run(&greeted, &Control::new()).unwrap();
        assert_eq!(report.operations, 0);
        assert!(report.error_count() > 5, "{:?}", report.errors);
    }

    #[test]
    fn held_connections_stay_open() {
        let echo = Server::echo().start().unwrap();
        let held = hold(echo.endpoint(), 50).unwrap();
        assert_eq!(held.len(), 50);
        assert_eq!(echo.stats().open, 50);
    }
}
