//! The simulated kernel: sockets with peers that act on their own, and operations that complete when the
//! seed says so.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use super::BUFFER_BYTES;
use super::endpoint::{Endpoint, Poll, Receive, Send};
use super::lent::Lent;
use super::random::Random;
use crate::relay::io::Io;
use crate::ring::{Buffer, BufferPool, Completion, Group, Piece, Shots, Token};
use crate::sys::socket::Keepalive;

/// Byte `position` of the stream that the peer of socket `id` sends.
fn pattern(id: usize, position: u64) -> u8 {
    (position.wrapping_mul(31) ^ position >> 8 ^ (id as u64).wrapping_mul(97)) as u8
}

/// Index into [`World::endpoints`]; sockets 2n and 2n + 1 are a session's.
pub(super) struct Socket(pub usize);

/// Index into [`World::pipes`].
pub(super) struct Pipe(usize);

pub(super) struct World {
    pub endpoints: Vec<Endpoint>,
    /// What is in each pipe that was ever made; `None` if it was closed.
    pub pipes: Vec<Option<VecDeque<u8>>>,
    pub pool: BufferPool,
    pub random: Random,
    pub completions: VecDeque<Completion>,
    /// Zero-copy sends whose notification is still to come.
    pub lent: Vec<Lent>,
    /// Zero-copy sends that took bytes.
    pub zero_copy_sends: u64,
    /// Peers may send urgent data.
    pub urgent: bool,
    /// Sockets take all that they have room for.
    pub is_generous: bool,
}

impl World {
    /// Takes bytes of the opposite peer's stream for this one, checking them.
    fn take(&mut self, id: usize, bytes: &[u8]) -> usize {
        let room = self.endpoints[id].free();
        // The kernel may take less than it has room for.
        let most = room.min(bytes.len() as u64);
        let takes_all = self.random.chance(70);
        let count = if takes_all || self.is_generous {
            most
        } else {
            self.random.below(most + 1)
        } as usize;
        let start = self.endpoints[id].taken;
        for (offset, &byte) in bytes[..count].iter().enumerate() {
            let position = start + offset as u64;
            assert_eq!(
                byte,
                pattern(id ^ 1, position),
                "byte {position} towards socket {id}"
            );
        }
        self.endpoints[id].taken += count as u64;
        count
    }

    /// Lets one operation of a socket make progress, if it can.
    pub(super) fn complete_some(&mut self, id: usize) {
        match self.random.below(5) {
            0 => self.complete_receive(id),
            3 => self.complete_send(id),
            4 => self.complete_readable(id),
            1 => self.complete_writable(id),
            _ => self.complete_watch(id),
        }
    }

    fn post(&mut self, token: Token, result: i32, buffer: Option<Buffer>, more: bool) {
        self.completions.push_back(Completion {
            token,
            result,
            buffer,
            more,
        });
    }

    pub(super) fn complete_receive(&mut self, id: usize) {
        let Some(receive) = self.endpoints[id].receive.take() else {
            return;
        };
        let endpoint = &mut self.endpoints[id];
        let available = endpoint.peer_sent - endpoint.received;
        let over = receive.cancelled || endpoint.peer_fin || endpoint.peer_reset;
        if available < endpoint.low_water && !over {
            // An armed receive waits for the mark, as a poll does.
            endpoint.receive = Some(receive);
            return;
        }
        if available > 0 && !(receive.cancelled && self.random.chance(50)) {
            let len = self.random.below(available.min(u64::from(receive.most))) + 1;
            let start = self.endpoints[id].received;
            let bytes: Vec<u8> = (0..len).map(|offset| pattern(id, start + offset)).collect();
            match self.pool.kernel_fills(receive.group, &bytes) {
                Some(buffer) => {
                    self.endpoints[id].received += len;
                    let more = receive.shots == Shots::Multi && self.random.chance(90);
                    self.post(receive.token, len as i32, Some(buffer), more);
                    if more {
                        self.endpoints[id].receive = Some(receive);
                    }
                }
                None => self.post(receive.token, -libc::ENOBUFS, None, false),
            }
        } else if receive.cancelled {
            self.post(receive.token, -libc::ECANCELED, None, false);
        } else if endpoint.peer_reset {
            let result = -endpoint.reset_error(0);
            self.post(receive.token, result, None, false);
        } else if endpoint.peer_fin {
            self.post(receive.token, 0, None, false);
        } else {
            endpoint.receive = Some(receive);
        }
    }

    pub(super) fn complete_send(&mut self, id: usize) {
        let Some(send) = self.endpoints[id].send.take() else {
            return;
        };
        // Read now: a buffer that was released meanwhile is not held any more.
        let mut bytes = self.pool.bytes(&send.buffer, send.len)[send.from as usize..].to_vec();
        let endpoint = &mut self.endpoints[id];
        let failed = match send.lent {
            Some(_) if endpoint.only_copies => Some(libc::EOPNOTSUPP),
            _ if endpoint.peer_reset => Some(endpoint.reset_error(libc::EPIPE)),
            _ => None,
        };
        let taken = failed.map_or_else(|| self.take(id, &bytes), |_| 0);
        self.endpoints[id].refused |= failed.is_none() && taken < bytes.len();
        if let Some(lent) = send.lent {
            bytes.truncate(taken);
            self.zero_copy_sends += u64::from(taken > 0);
            let from = send.from as usize;
            self.lent.push(Lent {
                id: lent,
                from,
                bytes,
            });
        }
        if let Some(errno) = failed {
            return self.post(send.token, -errno, None, false);
        }
        let result = if taken == 0 {
            -libc::EAGAIN
        } else {
            taken as i32
        };
        self.post(send.token, result, None, false);
    }

    pub(super) fn complete_writable(&mut self, id: usize) {
        let has_room = self.endpoints[id].free() > 0;
        let endpoint = &mut self.endpoints[id];
        let Some(poll) = &mut endpoint.writable else {
            return;
        };
        let mut events = 0;
        if endpoint.peer_reset && !std::mem::replace(&mut poll.told_reset, true) {
            events |= libc::POLLERR | libc::POLLHUP;
        }
        if endpoint.peer_fin && !std::mem::replace(&mut poll.told_fin, true) {
            events |= libc::POLLRDHUP;
        }
        // An edge: only after a send was refused.
        if has_room && std::mem::replace(&mut endpoint.refused, false) {
            events |= libc::POLLOUT;
        }
        let (token, cancelled) = (poll.token, poll.cancelled);
        self.post_poll(token, events, cancelled);
        if cancelled {
            self.endpoints[id].writable = None;
        }
    }

    pub(super) fn complete_watch(&mut self, id: usize) {
        let endpoint = &mut self.endpoints[id];
        let Some(poll) = &mut endpoint.watch else {
            return;
        };
        let mut events = 0;
        if endpoint.peer_reset && !std::mem::replace(&mut poll.told_reset, true) {
            events |= libc::POLLERR | libc::POLLHUP;
        }
        if endpoint.peer_fin && !std::mem::replace(&mut poll.told_fin, true) {
            events |= libc::POLLRDHUP;
        }
        let (token, cancelled) = (poll.token, poll.cancelled);
        self.post_poll(token, events, cancelled);
        if cancelled {
            self.endpoints[id].watch = None;
        }
    }

    pub(super) fn complete_readable(&mut self, id: usize) {
        let endpoint = &mut self.endpoints[id];
        let Some(poll) = &endpoint.readable else {
            return;
        };
        let (token, cancelled) = (poll.token, poll.cancelled);
        let low_water = endpoint.low_water.max(1);
        let ready = endpoint.available() >= low_water || endpoint.peer_fin || endpoint.peer_reset;
        if cancelled || ready {
            let result = if ready {
                libc::POLLIN.into()
            } else {
                -libc::ECANCELED
            };
            self.endpoints[id].readable = None;
            self.post(token, result, None, false);
        }
    }

    fn post_poll(&mut self, token: Token, events: i16, cancelled: bool) {
        if cancelled {
            self.post(token, -libc::ECANCELED, None, false);
        } else if events != 0 {
            self.post(token, events.into(), None, true);
        }
    }

    /// Something happens at a peer.
    pub(super) fn peer_acts(&mut self, id: usize, resets: bool) {
        let choice = self.random.below(12);
        let amount = self.random.below(300) + 1;
        let endpoint = &mut self.endpoints[id];
        if endpoint.peer_reset {
            return;
        }
        match choice {
            11 if self.urgent && endpoint.urgent_at.is_none() => {
                endpoint.urgent_at = Some(endpoint.peer_sent);
            }
            0..=4 if !endpoint.peer_fin => {
                let left = endpoint.peer_will_send - endpoint.peer_sent;
                endpoint.peer_sent += amount.min(left);
                endpoint.peer_fin = endpoint.peer_sent == endpoint.peer_will_send && amount > left;
            }
            5..=9 if !endpoint.stalled => {
                endpoint.acknowledged += amount.min(endpoint.taken - endpoint.acknowledged);
            }
            10 if resets => endpoint.peer_reset = true,
            _ => {}
        }
    }
}

#[derive(Clone)]
pub(super) struct SharedWorld(pub Rc<RefCell<World>>);

impl Io for SharedWorld {
    type Socket = Socket;
    type Pipe = Pipe;

    fn recv(&mut self, socket: &Socket, group: Group, shots: Shots, token: Token) {
        let mut world = self.0.borrow_mut();
        let endpoint = &world.endpoints[socket.0];
        assert!(endpoint.receive.is_none() && endpoint.readable.is_none() && !endpoint.closed);
        if world.pool.offered(group) == 0 {
            // io_uring takes a buffer before it looks at the socket.
            return world.post(token, -libc::ENOBUFS, None, false);
        }
        world.endpoints[socket.0].receive = Some(Receive {
            token,
            group,
            shots,
            most: BUFFER_BYTES,
            cancelled: false,
        });
    }

    fn recv_up_to(&mut self, socket: &Socket, group: Group, len: u32, token: Token) {
        assert!(len > 0, "0 is the whole buffer");
        self.recv(socket, group, Shots::Single, token);
        if let Some(receive) = &mut self.0.borrow_mut().endpoints[socket.0].receive {
            receive.most = len.min(BUFFER_BYTES);
        }
    }

    fn await_readable(&mut self, socket: &Socket, token: Token) {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        assert!(endpoint.readable.is_none() && endpoint.receive.is_none() && !endpoint.closed);
        endpoint.readable = Some(Poll::new(token));
    }

    fn set_low_water(&mut self, socket: &Socket, bytes: u32) {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        assert!(!endpoint.closed);
        endpoint.low_water = bytes.into();
    }

    fn make_pipe(&mut self) -> io::Result<Pipe> {
        let mut world = self.0.borrow_mut();
        if world.random.chance(5) {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        world.pipes.push(Some(VecDeque::new()));
        Ok(Pipe(world.pipes.len() - 1))
    }

    fn fill(&mut self, socket: &Socket, pipe: &Pipe, len: usize) -> io::Result<usize> {
        let mut world = self.0.borrow_mut();
        let id = socket.0;
        let held = world.pipes[pipe.0].as_ref().expect("an open pipe");
        assert!(held.is_empty(), "bytes of one session behind another's");
        let endpoint = &mut world.endpoints[id];
        assert!(endpoint.receive.is_none() && endpoint.readable.is_none() && !endpoint.closed);
        let start = endpoint.received;
        let before_urgent = endpoint.before_urgent().unwrap_or(u64::MAX);
        let available = endpoint.available().min(before_urgent);
        if available == 0 {
            return match endpoint {
                // tcp_splice_read: FIN counts before the queue that is behind an urgent byte.
                Endpoint { peer_fin: true, .. } => Ok(0),
                Endpoint {
                    peer_reset: true, ..
                } => match endpoint.reset_error(0) {
                    0 => Ok(0),
                    errno => Err(io::Error::from_raw_os_error(errno)),
                },
                _ => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        // A pipe has few slots, and a slot may hold little.
        let most = available.min(len as u64);
        let count = if world.random.chance(70) {
            most
        } else {
            world.random.below(most) + 1
        };
        let bytes = (start..start + count).map(|position| pattern(id, position));
        world.pipes[pipe.0].as_mut().expect("seen").extend(bytes);
        world.endpoints[id].received += count;
        Ok(count as usize)
    }

    fn drain(&mut self, pipe: &Pipe, socket: &Socket, len: usize) -> io::Result<usize> {
        let mut world = self.0.borrow_mut();
        let endpoint = &mut world.endpoints[socket.0];
        assert!(endpoint.send.is_none() && !endpoint.closed && !endpoint.fin_sent);
        if endpoint.peer_reset {
            let errno = endpoint.reset_error(libc::EPIPE);
            return Err(io::Error::from_raw_os_error(errno));
        }
        let held = world.pipes[pipe.0].as_ref().expect("an open pipe");
        assert_eq!(held.len(), len, "the engine counts what a pipe holds");
        let bytes: Vec<u8> = held.iter().copied().collect();
        let taken = world.take(socket.0, &bytes);
        world.endpoints[socket.0].refused |= taken == 0;
        world.pipes[pipe.0].as_mut().expect("seen").drain(..taken);
        match taken {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    fn is_empty(&self, pipe: &Pipe) -> bool {
        let world = self.0.borrow();
        world.pipes[pipe.0].as_ref().is_some_and(VecDeque::is_empty)
    }

    fn discard_pipe(&mut self, pipe: Pipe) {
        let closed = self.0.borrow_mut().pipes[pipe.0].take();
        assert!(closed.is_some(), "closed twice");
    }

    fn await_writable(&mut self, socket: &Socket, token: Token) {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        assert!(endpoint.writable.is_none() && !endpoint.closed);
        endpoint.writable = Some(Poll::new(token));
        // A new poll looks for itself; room counts as an edge.
        endpoint.refused = true;
    }

    fn send(&mut self, socket: &Socket, buffer: &Buffer, from: u32, len: u32, token: Token) {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        assert!(endpoint.send.is_none() && !endpoint.closed && !endpoint.fin_sent);
        let buffer = buffer.alias();
        endpoint.send = Some(Send {
            token,
            buffer,
            from,
            len,
            lent: None,
        });
    }

    fn send_zero_copy(
        &mut self,
        socket: &Socket,
        buffer: &Buffer,
        from: u32,
        len: u32,
        token: Token,
    ) {
        self.send(socket, buffer, from, len, token);
        let world = &mut *self.0.borrow_mut();
        let send = world.endpoints[socket.0].send.as_mut().expect("just begun");
        send.lent = world.pool.lend(buffer);
    }

    fn send_now(&mut self, socket: &Socket, pieces: &[Piece<'_>]) -> io::Result<usize> {
        let mut world = self.0.borrow_mut();
        let endpoint = &mut world.endpoints[socket.0];
        assert!(endpoint.send.is_none() && !endpoint.closed && !endpoint.fin_sent);
        if endpoint.peer_reset {
            let errno = endpoint.reset_error(libc::EPIPE);
            return Err(io::Error::from_raw_os_error(errno));
        }
        let bytes: Vec<u8> = pieces
            .iter()
            .flat_map(|p| world.pool.bytes(p.buffer, p.len)[p.from as usize..].to_vec())
            .collect();
        let taken = world.take(socket.0, &bytes);
        world.endpoints[socket.0].refused |= taken < bytes.len();
        match taken {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    fn watch(&mut self, socket: &Socket, token: Token) {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        assert!(endpoint.watch.is_none() && !endpoint.closed);
        endpoint.watch = Some(Poll::new(token));
    }

    fn cancel(&mut self, target: Token) {
        let mut world = self.0.borrow_mut();
        let mut found = world.completions.iter().any(|it| it.token == target);
        for endpoint in &mut world.endpoints {
            match (
                &mut endpoint.receive,
                &mut endpoint.writable,
                &mut endpoint.watch,
                &mut endpoint.readable,
            ) {
                (Some(receive), ..) if receive.token == target => receive.cancelled = true,
                (_, Some(poll), ..) if poll.token == target => poll.cancelled = true,
                (_, _, Some(poll), _) if poll.token == target => poll.cancelled = true,
                (.., Some(poll)) if poll.token == target => poll.cancelled = true,
                _ => continue,
            }
            found = true;
        }
        assert!(found, "cancelled what is not in flight");
    }

    fn set_aside(&mut self, buffer: &mut Buffer, len: u32) {
        self.0.borrow_mut().pool.set_aside(buffer, len);
    }

    fn release(&mut self, buffer: Buffer) {
        self.0.borrow_mut().pool.release(buffer);
    }

    fn has_buffers(&self, group: Group) -> bool {
        self.0.borrow().pool.offered(group) > 0
    }

    fn widen(&mut self, group: Group) -> bool {
        self.0.borrow_mut().pool.widen(group)
    }

    fn buffer_bytes(&self) -> u32 {
        BUFFER_BYTES
    }

    fn shutdown_write(&mut self, socket: &Socket) {
        let endpoints = &mut self.0.borrow_mut().endpoints;
        let sent = endpoints[socket.0 ^ 1].peer_sent;
        let endpoint = &mut endpoints[socket.0];
        assert!(!endpoint.closed);
        assert_eq!(endpoint.taken, sent, "a FIN behind a part of what was sent");
        endpoint.fin_sent = true;
    }

    fn keep_alive(&mut self, socket: &Socket, _keepalive: Keepalive) {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        assert!(!endpoint.closed);
        let twice = std::mem::replace(&mut endpoint.is_kept_alive, true);
        assert!(!twice, "once is enough");
    }

    fn linger_zero(&mut self, socket: &Socket) {
        self.0.borrow_mut().endpoints[socket.0].linger_zero = true;
    }

    fn unacknowledged_bytes(&mut self, socket: &Socket) -> u32 {
        let endpoint = &self.0.borrow().endpoints[socket.0];
        if endpoint.peer_reset {
            0
        } else {
            (endpoint.taken - endpoint.acknowledged) as u32
        }
    }

    fn has_completions(&mut self) -> bool {
        !self.0.borrow().completions.is_empty()
    }

    fn unread_bytes(&mut self, socket: &Socket) -> u32 {
        let endpoint = &self.0.borrow().endpoints[socket.0];
        let before_urgent = endpoint.before_urgent().unwrap_or(u64::MAX);
        endpoint.available().min(before_urgent) as u32
    }

    fn has_unread(&mut self, socket: &Socket) -> bool {
        self.0.borrow().endpoints[socket.0].available() > 0
    }

    fn take_error(&mut self, socket: &Socket) -> io::Result<()> {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        if endpoint.peer_reset && !std::mem::replace(&mut endpoint.error_taken, true) {
            return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
        }
        Ok(())
    }

    fn close(&mut self, socket: Socket) {
        let endpoint = &mut self.0.borrow_mut().endpoints[socket.0];
        let idle = endpoint.receive.is_none()
            && endpoint.send.is_none()
            && endpoint.writable.is_none()
            && endpoint.readable.is_none()
            && endpoint.watch.is_none();
        assert!(
            idle,
            "socket {} closed with an operation in flight",
            socket.0
        );
        assert!(
            !std::mem::replace(&mut endpoint.closed, true),
            "closed twice"
        );
        // A close sends FIN behind what is queued, and a reset instead if it throws away what came.
        if !endpoint.linger_zero && !endpoint.peer_reset && endpoint.available() == 0 {
            endpoint.fin_sent = true;
        }
    }
}
