//! Case 18: random steps against a model.
//!
//! The model of a relayed connection is two byte streams. Each end writes, half-closes, reads or
//! resets as a seeded generator says; whatever an end has received must at every moment be the
//! start of what the other has written, and after the last step it must be all of it, ended by FIN
//! if the writer finished and by RST if it reset.
//!
//! A failure prints the seed; `CORELAY_SEED=… cargo test --test e2e case_18` replays it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use corelay_bench::pattern::{Pattern, Random};

use crate::support::peers::{End, finish, read_pattern_from, reset, wait_acknowledged};
use crate::support::{Config, DEADLINE, Pair, Proxy, Upstream, size_from_env};

/// Most connections open at a time.
const CONNECTIONS: usize = 40;
/// Largest single write, in bytes.
const LARGEST_WRITE_BYTES: u64 = 100_000;
/// A read that finds nothing waits this long.
const PEEK: Duration = Duration::from_millis(1);

/// One end of a connection and what the model knows of it.
struct Side {
    stream: Option<TcpStream>,
    pattern: Pattern,
    written: u64,
    finished: bool,
    received: u64,
    seen: Option<End>,
}

impl Side {
    fn new(stream: TcpStream, seed: u64) -> Self {
        Self {
            stream: Some(stream),
            pattern: Pattern::new(seed),
            written: 0,
            finished: false,
            received: 0,
            seen: None,
        }
    }

    fn stream(&mut self) -> &mut TcpStream {
        self.stream
            .as_mut()
            .expect("a side that has reset takes no more steps")
    }

    /// Writes as much of `bytes` as is taken without waiting long.
    fn write(&mut self, bytes: u64) {
        if self.finished {
            return;
        }
        let content = self.pattern.bytes(self.written, bytes as usize);
        let stream = self.stream();
        stream.set_write_timeout(Some(PEEK)).unwrap();
        match stream.write(&content) {
            Ok(count) => self.written += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("a write to a connection that nobody reset: {error}"),
        }
    }

    /// Reads at most `bytes` of what is there and compares.
    fn read(&mut self, from: Pattern, bytes: u64) {
        if self.seen.is_some() {
            return;
        }
        let mut buffer = vec![0; bytes as usize];
        let offset = self.received;
        let stream = self.stream();
        stream.set_read_timeout(Some(PEEK)).unwrap();
        match stream.read(&mut buffer) {
            Ok(0) => self.seen = Some(End::Fin),
            Ok(count) => {
                assert_eq!(
                    from.first_difference(offset, &buffer[..count]),
                    None,
                    "other bytes"
                );
                self.received += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("a read from a connection that nobody reset: {error}"),
        }
    }

    /// Reads to the end.
    fn drain(&mut self, from: Pattern) {
        if self.seen.is_some() {
            return;
        }
        let offset = self.received;
        let stream = self.stream();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let (count, end) = read_pattern_from(stream, from, offset);
        self.received += count;
        self.seen = Some(end);
    }
}

struct Connection {
    sides: [Side; 2],
}

impl Connection {
    fn open(proxy: &Proxy, upstream: &Upstream, seed: u64) -> Self {
        let Pair { client, server } = Pair::open(proxy, upstream);
        Self {
            sides: [Side::new(client, seed), Side::new(server, seed ^ u64::MAX)],
        }
    }

    /// One random step. Tells whether the connection is over.
    fn step(&mut self, random: &mut Random) -> bool {
        let me = random.below(2) as usize;
        let size = 1 + random.below(LARGEST_WRITE_BYTES);
        let small = 1 + random.below(100);
        let from = self.sides[1 - me].pattern;
        match random.below(100) {
            0..30 => self.sides[me].write(size),
            30..50 => self.sides[me].write(small),
            50..85 => self.sides[me].read(from, size),
            85..93 => self.sides[me].read(from, small),
            93..96 if !self.sides[me].finished => {
                self.sides[me].finished = true;
                finish(self.sides[me].stream());
            }
            96..98 => {
                self.end_by_reset(me);
                return true;
            }
            _ => {}
        }
        false
    }

    /// The side resets: the other receives all that was written, then RST.
    fn end_by_reset(&mut self, me: usize) {
        let [a, b] = &mut self.sides;
        let (resetting, other) = if me == 0 { (a, b) } else { (b, a) };
        let stream = resetting.stream.take().expect("it has not reset yet");
        let receiver_pattern = resetting.pattern;
        let already_ended = other.seen.is_some() || resetting.finished;
        // Both must run at once: what the other does not read may not fit the buffers between.
        std::thread::scope(|scope| {
            let drain = scope.spawn(|| {
                if !already_ended {
                    other.drain(receiver_pattern);
                }
            });
            wait_acknowledged(&stream);
            reset(stream);
            drain
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        if !already_ended {
            assert_eq!(other.seen, Some(End::Reset), "the end after a reset");
            assert_eq!(other.received, resetting.written, "bytes before a reset");
        }
    }

    /// Both sides finish: each receives all that the other wrote, then FIN.
    fn end_in_order(mut self) {
        let [a, b] = &mut self.sides;
        for side in [&mut *a, &mut *b] {
            if !side.finished {
                side.finished = true;
                finish(side.stream());
            }
        }
        let (a_pattern, b_pattern) = (a.pattern, b.pattern);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| a.drain(b_pattern));
            b.drain(a_pattern);
            other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        for (receiver, sender) in [(&*a, &*b), (&*b, &*a)] {
            assert_eq!(receiver.seen, Some(End::Fin), "the end after FIN");
            assert_eq!(receiver.received, sender.written, "bytes before FIN");
        }
    }
}

#[test]
fn case_18_random_steps_never_diverge_from_the_model() {
    let steps = size_from_env("CORELAY_FUZZ_STEPS", 4000);
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    let seed = size_from_env("CORELAY_SEED", clock);
    // Printed only if the test fails, for the harness captures it otherwise.
    eprintln!("CORELAY_SEED={seed}");
    let mut random = Random::new(seed);
    let upstream = Upstream::new();
    // Few and small buffers: waiting for one is part of what is tried.
    let config = Config::to([upstream.address()])
        .set("buffers.size", "4KiB")
        .set("buffers.per_core", 64)
        .set("log.access", "off");
    let proxy = Proxy::start(&config);
    let mut connections: Vec<Connection> = Vec::new();
    let mut opened = 0;
    for _ in 0..steps {
        let pick = random.below(CONNECTIONS as u64) as usize;
        if pick >= connections.len() {
            opened += 1;
            connections.push(Connection::open(&proxy, &upstream, random.next_u64()));
        } else if connections[pick].step(&mut random) {
            connections.swap_remove(pick);
        }
    }
    for connection in connections {
        connection.end_in_order();
    }
    wait_closed(&proxy, opened);
    proxy.finish();
}

/// Every connection ended in exactly one close reason.
fn wait_closed(proxy: &Proxy, opened: u64) {
    crate::support::wait_until("every connection is counted as closed", || {
        proxy.metrics().sum("corelay_connections_closed_total") == opened as f64
    });
}
