//! The one thread of a server: an edge-triggered epoll set, its connections and their roles.
//!
//! ```text
//! readable / writable / tick ──> serve: send what is queued, ask the role for more, read
//!                                  │  until nothing moves, or the connection's share of the
//!                                  │  turn is used up (then it waits in `again`)
//!                                  └──> Keep | Close | Reset
//! ```
//!
//! What is sent and when is the roles' business.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::net::{RecvFlags, recv};
use socket2::Socket;

use super::role::{Next, Role, role_of};
use super::{Behaviour, Fault, Server, Shared, answers};
use crate::endpoint::Endpoint;

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
/// Events taken from the kernel at a time.
const EVENTS: usize = 1024;
/// Most bytes read by one `recv`.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Most bytes of a send queue that an idle connection keeps.
const KEPT_BYTES: usize = 1024;
/// How often a delaying server looks for what is due.
const DELAY_TICK: Duration = Duration::from_millis(1);
/// Steps (sends and receives) of one connection before the others get their turn.
const STEPS_PER_TURN: usize = 16;
/// Connections accepted before the others get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Wait before accepting again after the process ran out of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(20);
/// Reports kept for `Handle::finished`; the oldest are lost beyond it.
const MAX_REPORTS: usize = 100_000;

pub(super) struct EventLoop {
    poll: Poll,
    listener: Socket,
    endpoint: Endpoint,
    settings: Server,
    interval: Option<Duration>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    again: VecDeque<usize>,
    tools: Tools,
    accept_more: bool,
    /// Connections accepted so far.
    accepted: u64,
    /// The one standstill of a freezing server, as long as it is still to come.
    freeze: Option<(u64, Duration)>,
}

/// What the connections of a server use in common.
struct Tools {
    scratch: Vec<u8>,
    /// What the roles that make no bytes of their own send from: [`answers::block`] as a file in memory.
    /// sendfile(2) hands its pages to the sockets, so that the server copies nothing.
    block: Option<File>,
    shared: Arc<Shared>,
}

struct Connection {
    socket: Socket,
    role: Box<dyn Role>,
    out: Vec<u8>,
    out_sent: usize,
    finishing: bool,
    fin_sent: bool,
    peer_finished: bool,
    /// Everything that had come was read; what comes later raises a new edge.
    is_drained: bool,
    /// The peer's FIN is known to have come; it stands behind the bytes that are to be read.
    is_fin_announced: bool,
    is_tcp: bool,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// There is more to do: the turn's share was used up.
    Again,
    Close,
    Reset,
    /// The peer reset it, or another socket error.
    Failed,
}

impl EventLoop {
    /// Binds and listens, so that clients may connect before [`EventLoop::run`] starts.
    pub(super) fn new(
        settings: Server,
        shared: Arc<Shared>,
    ) -> io::Result<(Self, Waker, Endpoint)> {
        let listener = settings.listen.socket()?;
        if settings.listen.tcp().is_some() {
            listener.set_reuse_address(true)?;
        }
        // Inherited by accepted sockets, and part of the window offered in the handshake.
        if let Some(bytes) = settings.receive_buffer_bytes {
            listener.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = settings.send_buffer_bytes {
            listener.set_send_buffer_size(bytes)?;
        }
        listener.bind(&settings.listen.to_sock_addr()?)?;
        listener.listen(settings.backlog)?;
        let endpoint = settings.listen.of_bound(&listener)?;

        let poll = Poll::new()?;
        poll.registry().register(
            &mut SourceFd(&listener.as_raw_fd()),
            LISTENER,
            Interest::READABLE,
        )?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let interval = match &settings.behaviour {
            Behaviour::Faulty(Fault::Trickle { interval, .. }) => Some(*interval),
            Behaviour::Faulty(Fault::Delay { .. }) => Some(DELAY_TICK),
            _ => None,
        };
        let freeze = match &settings.behaviour {
            Behaviour::Faulty(Fault::Freeze { after_bytes, pause }) => Some((*after_bytes, *pause)),
            _ => None,
        };
        let block = match &settings.behaviour {
            Behaviour::Blast | Behaviour::Answers => Some(in_memory(&answers::block())?),
            _ => None,
        };
        let this = Self {
            poll,
            listener,
            endpoint: endpoint.clone(),
            settings,
            interval,
            connections: Vec::new(),
            free: Vec::new(),
            again: VecDeque::new(),
            tools: Tools {
                scratch: vec![0; SCRATCH_BYTES],
                block,
                shared,
            },
            accept_more: false,
            accepted: 0,
            freeze,
        };
        Ok((this, waker, endpoint))
    }

    /// Serves until it is told to stop.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        let mut next_tick = self.interval.map(|interval| Instant::now() + interval);
        while !self.tools.shared.is_stopping() {
            let timeout = self.timeout(next_tick);
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => panic!("epoll_wait failed: {error}"),
            }
            if self.accept_more {
                self.accept();
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKER => {}
                    Token(slot) => self.ready(slot, event.is_read_closed()),
                }
            }
            for _ in 0..self.again.len() {
                if let Some(slot) = self.again.pop_front() {
                    self.serve(slot);
                }
            }
            if let (Some(due), Some(interval)) = (next_tick, self.interval)
                && Instant::now() >= due
            {
                self.tick();
                next_tick = Some(Instant::now() + interval);
            }
        }
    }

    fn timeout(&self, next_tick: Option<Instant>) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let tick = next_tick.map(|due| due.saturating_duration_since(Instant::now()));
        match (tick, self.accept_more) {
            (Some(tick), true) => Some(tick.min(ACCEPT_BACKOFF)),
            (None, true) => Some(ACCEPT_BACKOFF),
            (tick, false) => tick,
        }
    }

    fn accept(&mut self) {
        self.accept_more = false;
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok((socket, _)) => self.open(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => break,
            }
        }
        // The readiness was an edge: what is left in the queue will not be announced again.
        self.accept_more = true;
    }

    fn open(&mut self, socket: Socket) {
        count(&self.tools.shared.counters.accepted, 1);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        let role = role_of(&self.settings.behaviour, self.accepted);
        self.accepted += 1;
        let mut connection = Connection::new(socket, role);
        let first = connection.start(&self.poll, Token(slot), self.endpoint.tcp().is_some());
        self.connections[slot] = Some(connection);
        self.settle(slot, first);
        if first == Verdict::Keep {
            self.serve(slot);
        }
    }

    /// There is news of this connection.
    fn ready(&mut self, slot: usize, is_read_closed: bool) {
        if let Some(Some(connection)) = self.connections.get_mut(slot) {
            connection.is_drained = false;
            connection.is_fin_announced |= is_read_closed;
        }
        self.serve(slot);
        if let Some((after_bytes, pause)) = self.freeze
            && self.tools.shared.counters.bytes_in.load(Ordering::Relaxed) >= after_bytes
        {
            self.freeze = None;
            std::thread::sleep(pause);
        }
    }

    fn serve(&mut self, slot: usize) {
        // An event of a connection that ended earlier in this turn finds its slot empty.
        let Some(Some(connection)) = self.connections.get_mut(slot) else {
            return;
        };
        let verdict = connection.serve(&mut self.tools);
        self.settle(slot, verdict);
    }

    fn settle(&mut self, slot: usize, verdict: Verdict) {
        match verdict {
            Verdict::Keep => return,
            Verdict::Again => {
                self.again.push_back(slot);
                return;
            }
            Verdict::Close => {}
            Verdict::Reset | Verdict::Failed => {
                if let Some(connection) = &self.connections[slot] {
                    // On a socket that failed already it changes nothing.
                    let _ = connection.socket.set_linger(Some(Duration::ZERO));
                }
            }
        }
        let Some(mut connection) = self.connections[slot].take() else {
            return;
        };
        if verdict == Verdict::Failed {
            count(&self.tools.shared.counters.resets_seen, 1);
        }
        if let Some(report) = connection.role.report(verdict == Verdict::Close) {
            let mut finished = self.tools.shared.finished();
            if finished.len() < MAX_REPORTS {
                finished.push(report);
            }
        }
        drop(connection);
        self.free.push(slot);
        count(&self.tools.shared.counters.closed, 1);
    }

    fn tick(&mut self) {
        for slot in 0..self.connections.len() {
            if let Some(connection) = &mut self.connections[slot] {
                connection.role.tick(&mut connection.out);
                self.serve(slot);
            }
        }
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        if let Endpoint::Unix(path) = &self.endpoint {
            // Someone may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Connection {
    fn new(socket: Socket, role: Box<dyn Role>) -> Self {
        Self {
            socket,
            role,
            out: Vec::new(),
            out_sent: 0,
            finishing: false,
            fin_sent: false,
            peer_finished: false,
            is_drained: false,
            is_fin_announced: false,
            is_tcp: true,
        }
    }

    fn start(&mut self, poll: &Poll, token: Token, is_tcp: bool) -> Verdict {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.socket.set_nonblocking(true).and_then(|()| {
            poll.registry()
                .register(&mut SourceFd(&self.socket.as_raw_fd()), token, interest)
        });
        if registered.is_err() {
            return Verdict::Failed;
        }
        self.is_tcp = is_tcp;
        if is_tcp {
            // A connection that is reset already refuses options; reading it will tell.
            let _ = self.socket.set_tcp_nodelay(true);
        }
        let next = self.role.opened(&mut self.out);
        self.obey(next).unwrap_or(Verdict::Keep)
    }

    /// Sends and receives until nothing moves or the turn's share is used up.
    fn serve(&mut self, tools: &mut Tools) -> Verdict {
        for _ in 0..STEPS_PER_TURN {
            let moved = match self.step(tools) {
                Ok(moved) => moved,
                Err(verdict) => return verdict,
            };
            if self.fin_sent && self.peer_finished {
                return Verdict::Close;
            }
            if !moved {
                return Verdict::Keep;
            }
        }
        Verdict::Again
    }

    /// One round of send, produce and receive. Tells whether anything moved.
    fn step(&mut self, tools: &mut Tools) -> Result<bool, Verdict> {
        let mut moved = self.send(&tools.shared)?;
        let ready_made = self.role.ready_made();
        if !ready_made.is_empty() {
            moved |= self.send_ready_made(ready_made, tools)?;
        } else if self.out.is_empty() && !self.finishing {
            let next = self.role.produce(&mut self.out);
            moved |= !self.out.is_empty() || next != Next::Continue;
            if let Some(verdict) = self.obey(next) {
                return Err(verdict);
            }
        }
        // Reading only while nothing waits to be sent bounds the queue.
        let may_read = self.out.is_empty() && self.role.reads();
        if may_read && !self.peer_finished && !self.is_drained {
            moved |= self.receive(tools)?;
        }
        if self.out.is_empty() && self.finishing && !self.fin_sent {
            self.fin_sent = true;
            // A peer that has reset the connection no longer needs a FIN.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        Ok(moved)
    }

    fn send(&mut self, shared: &Shared) -> Result<bool, Verdict> {
        if self.out.is_empty() {
            return Ok(false);
        }
        match (&self.socket).write(&self.out[self.out_sent..]) {
            Ok(sent) => {
                count(&shared.counters.bytes_out, sent as u64);
                self.out_sent += sent;
                if self.out_sent == self.out.len() {
                    self.out.clear();
                    self.out_sent = 0;
                    // An idle connection must not keep the buffer of its busiest moment.
                    self.out.shrink_to(KEPT_BYTES);
                }
                Ok(true)
            }
            Err(error) if is_not_now(&error) => Ok(false),
            Err(_) => Err(Verdict::Failed),
        }
    }

    /// Sends what no role has made.
    fn send_ready_made(&mut self, part: Range<usize>, tools: &Tools) -> Result<bool, Verdict> {
        let block = tools
            .block
            .as_ref()
            .expect("made for the roles that ask for it");
        let mut offset = part.start as u64;
        match sendfile(&self.socket, block, Some(&mut offset), part.len()) {
            Ok(sent) => {
                count(&tools.shared.counters.bytes_out, sent as u64);
                self.role.sent_ready_made(sent);
                Ok(true)
            }
            Err(error) if is_not_now(&error.into()) => Ok(false),
            Err(_) => Err(Verdict::Failed),
        }
    }

    fn receive(&mut self, tools: &mut Tools) -> Result<bool, Verdict> {
        let scratch = &mut tools.scratch[..];
        let discards = self.role.discards() && self.is_tcp;
        let received = if discards {
            recv(&self.socket, scratch, RecvFlags::TRUNC)
                .map(|(_, received)| received)
                .map_err(io::Error::from)
        } else {
            (&self.socket).read(scratch)
        };
        match received {
            Ok(0) => {
                self.peer_finished = true;
                let next = self.role.peer_finished(&mut self.out);
                self.obey(next).map_or(Ok(true), Err)
            }
            Ok(received) => {
                count(&tools.shared.counters.bytes_in, received as u64);
                // A short read has emptied the socket, see epoll(7): no further one to hear EAGAIN.
                self.is_drained = received < tools.scratch.len() && !self.is_fin_announced;
                if discards {
                    return Ok(true);
                }
                let next = self
                    .role
                    .received(&tools.scratch[..received], &mut self.out);
                self.obey(next).map_or(Ok(true), Err)
            }
            Err(error) if is_not_now(&error) => {
                self.is_drained = true;
                Ok(false)
            }
            Err(_) => Err(Verdict::Failed),
        }
    }

    fn obey(&mut self, next: Next) -> Option<Verdict> {
        match next {
            Next::Continue => None,
            Next::Finish => {
                self.finishing = true;
                None
            }
            Next::Close => Some(Verdict::Close),
            Next::Reset => Some(Verdict::Reset),
        }
    }
}

/// A file that is nowhere but in memory.
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("block", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

fn is_not_now(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn count(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
