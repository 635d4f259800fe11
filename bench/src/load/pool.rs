//! One thread's connections and its epoll set: connect, wait, close. What goes over a connection is
//! the workload's business.
//!
//! ```text
//! Closed ──connect──> Connecting ──writable, no error──> Open ──close──> Closed
//! ```
//!
//! Readiness is edge-triggered and registered once per connection: no `epoll_ctl` per message.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use socket2::Socket;

use crate::endpoint::Endpoint;

/// Events taken from the kernel at a time.
const EVENTS: usize = 512;

/// How a connection is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Close {
    /// In order. (The kernel still sends RST if bytes were received and not read.)
    #[default]
    Fin,
    /// With a reset: no TIME_WAIT stays behind.
    Rst,
}

impl Close {
    /// Its name in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Close::Fin => "fin",
            Close::Rst => "rst",
        }
    }
}

/// One connection; `S` is what the workload keeps for it.
#[derive(Debug)]
pub(super) struct Link<S> {
    socket: Option<Socket>,
    phase: Phase,
    /// Tells events of this socket from those of its predecessor in the same place.
    generation: u32,
    /// Failures since the last success; the wait before the next attempt grows with it.
    pub(super) failures: u32,
    pub(super) state: S,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Connecting,
    Open,
}

/// What an event means for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It has just been established.
    Opened,
    /// It may be read or written.
    Ready,
}

/// One thread's connections.
#[derive(Debug)]
pub(super) struct Pool<S> {
    epoll: OwnedFd,
    /// The data of the last wait's events.
    events: Vec<u64>,
    to: Endpoint,
    links: Vec<Link<S>>,
    again: VecDeque<usize>,
    /// `SO_RCVBUF`, in bytes.
    receive_buffer_bytes: Option<usize>,
}

impl<S: Default> Pool<S> {
    pub(super) fn new(
        to: Endpoint,
        connections: usize,
        receive_buffer_bytes: Option<usize>,
    ) -> io::Result<Self> {
        let links = (0..connections).map(|_| Link {
            socket: None,
            phase: Phase::Closed,
            generation: 0,
            failures: 0,
            state: S::default(),
        });
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
            to,
            links: links.collect(),
            again: VecDeque::new(),
            receive_buffer_bytes,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    /// What the workload keeps for a connection.
    pub(super) fn state(&mut self, slot: usize) -> &mut S {
        &mut self.links[slot].state
    }

    /// A connection's socket and state, unless it is not open.
    pub(super) fn open(&mut self, slot: usize) -> Option<(&Socket, &mut S)> {
        let link = &mut self.links[slot];
        if link.phase != Phase::Open {
            return None;
        }
        link.socket.as_ref().map(|socket| (socket, &mut link.state))
    }

    pub(super) fn is_open(&self, slot: usize) -> bool {
        self.links[slot].phase == Phase::Open
    }

    pub(super) fn is_connecting(&self, slot: usize) -> bool {
        self.links[slot].phase == Phase::Connecting
    }

    /// An operation on it has succeeded.
    pub(super) fn succeeded(&mut self, slot: usize) {
        self.links[slot].failures = 0;
    }

    /// One more failure; tells how many there were in a row.
    pub(super) fn failed(&mut self, slot: usize) -> u32 {
        let failures = &mut self.links[slot].failures;
        *failures = failures.saturating_add(1);
        *failures
    }

    /// Starts a connection in a place that has none.
    pub(super) fn connect(&mut self, slot: usize) -> io::Result<()> {
        let link = &mut self.links[slot];
        assert!(
            link.socket.is_none(),
            "a connection in the place of another"
        );
        let socket = self.to.socket()?;
        if let Some(bytes) = self.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        self.to.connect(&socket)?;
        if self.to.tcp().is_some() {
            socket.set_tcp_nodelay(true)?;
        }
        link.generation = link.generation.wrapping_add(1);
        let data = (u64::from(link.generation) << 32) | slot as u64;
        epoll::add(
            &self.epoll,
            &socket,
            epoll::EventData::new_u64(data),
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET,
        )?;
        link.socket = Some(socket);
        link.phase = Phase::Connecting;
        Ok(())
    }

    /// Closes it, if there is one; tells whether it had been open.
    pub(super) fn close(&mut self, slot: usize, close: Close) -> bool {
        let link = &mut self.links[slot];
        if let Some(socket) = link.socket.take()
            && close == Close::Rst
        {
            // On a socket that failed already it changes nothing.
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        std::mem::replace(&mut link.phase, Phase::Closed) == Phase::Open
    }

    /// The connection has more to do than its share of one turn.
    pub(super) fn again(&mut self, slot: usize) {
        self.again.push_back(slot);
    }

    /// The connections that asked for another turn, as of now.
    pub(super) fn take_again(&mut self) -> VecDeque<usize> {
        std::mem::take(&mut self.again)
    }

    /// Waits for events, at the latest until then; see [`Pool::event`].
    pub(super) fn wait(&mut self, until: Instant) -> io::Result<usize> {
        let left = if self.again.is_empty() {
            until.saturating_duration_since(Instant::now())
        } else {
            Duration::ZERO
        };
        let timeout = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        self.events.clear();
        let mut buffer = [const { MaybeUninit::uninit() }; EVENTS];
        match epoll::wait(&self.epoll, &mut buffer, Some(&timeout)) {
            Ok((events, _)) => {
                self.events
                    .extend(events.iter().map(|event| event.data.u64()));
                Ok(self.events.len())
            }
            Err(rustix::io::Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// The event of this index of the last wait: which connection, and what it means for it. None
    /// if that connection is gone; the error is that of a connection that could not be made.
    pub(super) fn event(&mut self, index: usize) -> Option<(usize, io::Result<Event>)> {
        let data = self.events[index];
        let slot = (data & u64::from(u32::MAX)) as usize;
        let link = &mut self.links[slot];
        let socket = link.socket.as_ref()?;
        if link.generation != (data >> 32) as u32 {
            return None;
        }
        if link.phase == Phase::Open {
            return Some((slot, Ok(Event::Ready)));
        }
        let outcome = match socket.take_error() {
            Ok(Some(error)) | Err(error) => Err(error),
            Ok(None) => {
                link.phase = Phase::Open;
                Ok(Event::Opened)
            }
        };
        Some((slot, outcome))
    }
}
