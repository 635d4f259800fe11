//! Servers to put behind a proxy: well-behaved ones and ones that misbehave on purpose.
//!
//! Each server is one thread with one epoll set and serves thousands of connections. A server
//! stops, and its thread is joined, when its [`Handle`] is dropped.
//!
//! ```
//! use corelay_bench::servers::Server;
//!
//! let echo = Server::echo().start()?;
//! println!("listening on {}", echo.address());
//! assert_eq!(echo.stats().accepted, 0);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Two kinds of dead server need no thread: [`RefusedPort`] and [`Blackhole`].

pub mod answers;
mod dead;
mod event_loop;
mod http;
mod role;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::Waker;

pub use dead::{Blackhole, RefusedPort};

use crate::endpoint::Endpoint;
use crate::pin;
use event_loop::EventLoop;

/// Accept queue of a server that is not told otherwise: bursts of a thousand connects must fit.
const DEFAULT_BACKLOG: i32 = 4096;

/// Length of the answer of a digest sink: a SHA-256.
pub const DIGEST_BYTES: usize = 32;

/// What a server does with each connection.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Sends back what it receives; answers FIN with FIN once everything is sent back.
    Echo,
    /// Reads everything and answers FIN with FIN.
    Sink {
        /// Whether to hash what each connection sent; see [`Handle::finished`].
        hash: bool,
    },
    /// Sends the pattern of this seed, then FIN; reads and drops what it receives.
    Source {
        /// How much.
        bytes: u64,
        /// Which; see [`crate::pattern::Pattern`].
        seed: u64,
    },
    /// Reads everything and has the kernel drop it (`MSG_TRUNC`), answers FIN with FIN: the cheapest
    /// sink. On unix sockets it reads like [`Behaviour::Sink`].
    Discard,
    /// Reads everything; answers FIN with the SHA-256 of it and FIN.
    Digest,
    /// Sends the same bytes again and again for as long as the client stays, and reads and drops
    /// what it receives: the cheapest source, and a full-duplex load.
    Blast,
    /// Answers each request with as many bytes as it asks for, then is silent and keeps the connection
    /// open; see [`answers`].
    Answers,
    /// Answers HTTP/1.1 requests with its own name, in the body and in the header `x-server`.
    Http {
        /// The name.
        name: String,
    },
    /// Misbehaves.
    Faulty(Fault),
    /// Misbehaves in another way on each connection, drawn from this seed.
    FaultyMix {
        /// Connection `n` of two servers with one seed misbehaves alike.
        seed: u64,
    },
}

/// Ways to misbehave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Accepts and never reads.
    NeverRead,
    /// Resets the connection once this many bytes have come; at once if 0.
    ResetAfter {
        /// How many.
        bytes: u64,
    },
    /// Sends FIN at once and goes on reading.
    HalfCloseEarly,
    /// Sends a few bytes at a time for as long as the client stays.
    Trickle {
        /// Bytes at a time.
        bytes: usize,
        /// Time between.
        interval: Duration,
    },
    /// Echoes this many bytes, then neither reads nor writes.
    Stall {
        /// How many.
        after_bytes: u64,
    },
    /// Speaks first, then echoes.
    Banner {
        /// What it says.
        text: Vec<u8>,
    },
    /// Closes (FIN) at once.
    AcceptThenClose,
    /// Echoes, each piece this much later (to about a millisecond).
    Delay {
        /// How much.
        delay: Duration,
    },
    /// Echoes; once, the whole server stands still.
    Freeze {
        /// After so many bytes received over all connections.
        after_bytes: u64,
        /// For how long.
        pause: Duration,
    },
    /// Echoes with one bit of one byte wrong.
    Corrupt {
        /// Which byte of each connection, from 0.
        at: u64,
    },
}

/// A server that is not started yet.
#[derive(Clone, Debug)]
pub struct Server {
    behaviour: Behaviour,
    listen: Endpoint,
    backlog: i32,
    receive_buffer_bytes: Option<usize>,
    send_buffer_bytes: Option<usize>,
    cpu: Option<usize>,
}

impl Server {
    /// A server on 127.0.0.1 and a port that the kernel chooses.
    pub fn new(behaviour: Behaviour) -> Self {
        Self {
            behaviour,
            listen: Endpoint::loopback(),
            backlog: DEFAULT_BACKLOG,
            receive_buffer_bytes: None,
            send_buffer_bytes: None,
            cpu: None,
        }
    }

    /// See [`Behaviour::Echo`].
    pub fn echo() -> Self {
        Self::new(Behaviour::Echo)
    }

    /// See [`Behaviour::Sink`], without hashing.
    pub fn sink() -> Self {
        Self::new(Behaviour::Sink { hash: false })
    }

    /// See [`Behaviour::Sink`], with hashing.
    pub fn hashing_sink() -> Self {
        Self::new(Behaviour::Sink { hash: true })
    }

    /// See [`Behaviour::Discard`].
    pub fn discard() -> Self {
        Self::new(Behaviour::Discard)
    }

    /// See [`Behaviour::Digest`].
    pub fn digest() -> Self {
        Self::new(Behaviour::Digest)
    }

    /// See [`Behaviour::Blast`].
    pub fn blast() -> Self {
        Self::new(Behaviour::Blast)
    }

    /// See [`Behaviour::Answers`].
    pub fn answers() -> Self {
        Self::new(Behaviour::Answers)
    }

    /// See [`Behaviour::Source`].
    pub fn source(bytes: u64, seed: u64) -> Self {
        Self::new(Behaviour::Source { bytes, seed })
    }

    /// See [`Behaviour::Http`].
    pub fn http(name: impl Into<String>) -> Self {
        Self::new(Behaviour::Http { name: name.into() })
    }

    /// See [`Fault`].
    pub fn faulty(fault: Fault) -> Self {
        Self::new(Behaviour::Faulty(fault))
    }

    /// Listens there instead. A unix path must not exist; it is removed at the end.
    pub fn listen(mut self, endpoint: impl Into<Endpoint>) -> Self {
        self.listen = endpoint.into();
        self
    }

    /// Length of the accept queue.
    pub fn backlog(mut self, connections: i32) -> Self {
        self.backlog = connections;
        self
    }

    /// `SO_RCVBUF` of each connection, in bytes (the kernel doubles it).
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer_bytes = Some(bytes);
        self
    }

    /// `SO_SNDBUF` of each connection, in bytes (the kernel doubles it).
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer_bytes = Some(bytes);
        self
    }

    /// Binds the server's thread to this CPU.
    pub fn cpu(mut self, cpu: usize) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Binds, listens and starts the thread. Clients may connect as soon as it returns.
    pub fn start(self) -> io::Result<Handle> {
        let shared = Arc::new(Shared::default());
        let cpu = self.cpu;
        let (event_loop, waker, endpoint) = EventLoop::new(self, Arc::clone(&shared))?;
        let (pinned, is_pinned) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("bench-server".into())
            .spawn(move || {
                let result = cpu.map_or(Ok(()), pin::this_thread);
                let is_ready = result.is_ok();
                // The one who waits for it is in the call that made this thread.
                let _ = pinned.send(result);
                if is_ready {
                    event_loop.run();
                }
            })?;
        is_pinned.recv().map_err(io::Error::other)??;
        Ok(Handle {
            endpoint,
            shared,
            waker,
            thread: Some(thread),
        })
    }
}

/// A running server. Dropping it stops the server and closes its connections.
#[derive(Debug)]
pub struct Handle {
    endpoint: Endpoint,
    shared: Arc<Shared>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Where it listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Where it listens.
    ///
    /// # Panics
    ///
    /// If it listens on a unix socket.
    pub fn address(&self) -> SocketAddr {
        self.endpoint
            .tcp()
            .expect("this server listens on a unix socket")
    }

    /// What it has seen so far.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            accepted: load(&counters.accepted),
            open: load(&counters.accepted).saturating_sub(load(&counters.closed)),
            resets_seen: load(&counters.resets_seen),
            bytes_in: load(&counters.bytes_in),
            bytes_out: load(&counters.bytes_out),
        }
    }

    /// Takes what hashing sinks learned of connections that ended since the last call.
    pub fn finished(&self) -> Vec<Finished> {
        std::mem::take(&mut *self.shared.finished())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop();
        // It can fail only if the thread has closed its epoll set, that is, if it is gone.
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed already, and a second one here would abort.
            let _ = thread.join();
        }
    }
}

/// A server's counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections accepted.
    pub accepted: u64,
    /// Of those, still open.
    pub open: u64,
    /// Connections that ended with RST or another socket error.
    pub resets_seen: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
}

/// One connection of a hashing sink, after its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Bytes received.
    pub bytes: u64,
    /// SHA-256 of them.
    pub sha256: [u8; 32],
    /// Whether it ended with FIN; otherwise it was reset.
    pub clean: bool,
}

/// What the thread and the handle share.
#[derive(Debug, Default)]
struct Shared {
    stopping: std::sync::atomic::AtomicBool,
    counters: Counters,
    finished: Mutex<Vec<Finished>>,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    closed: AtomicU64,
    resets_seen: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl Shared {
    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn finished(&self) -> std::sync::MutexGuard<'_, Vec<Finished>> {
        self.finished
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
