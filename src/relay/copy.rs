//! The copy mover: a received buffer is sent on, and goes back to its ring.
//!
//! One piece, the common case of small messages, is sent by the ring with MSG_DONTWAIT: it completes
//! in the same system call that submits it, together with those of the other sessions, and never waits
//! in the kernel. Several pieces are sent together with one sendmsg(2), up to 16. Beside a send(2) per
//! message a prototype took 7 % less CPU per request (see `docs/design.md`).
//!
//! When the destination takes less, the direction waits for room with a multishot poll in the ring, and
//! sends again. That is not left to the send operation: with MSG_WAITALL the kernel polls on behalf of
//! one at most 128 times (APOLL_MAX_RETRY, io_uring/poll.h) and then hands it to an io-wq thread.

use std::collections::VecDeque;
use std::io::ErrorKind;

use super::io::Io;
use super::pair::{End, Operation, PairId, Phase, token};
use super::{Due, Relay, Watcher, cause_of, live};
use crate::outcome::{Cause, MoverKind};
use crate::ring::{Completion, GATHER_MAX, Group, Piece};

/// A queue that grew beyond this gives its memory back when it is empty.
const QUEUE_KEEP: usize = 16;

/// Directions woken per group and pass when buffers are short.
pub(super) const WAKES_PER_PASS: usize = 64;
/// Pause after a destination called itself writable and took nothing.
const RETRY_MS: u64 = 5;

/// What one attempt to send came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivery {
    pub sent_bytes: u64,
    /// The destination did not take all that was offered.
    pub is_full: bool,
}

impl<I: Io, W: Watcher> Relay<I, W> {
    /// Leaves the one piece of the queue to the ring: many sessions' sends share one system call.
    pub(super) fn send(&mut self, id: PairId, from: End) {
        let pair = live(&mut self.slots, id);
        pair.directions[from as usize].on_sending();
        let chunk = pair.queues[from as usize]
            .front()
            .expect("asked for by progress");
        let to = pair.socket(from.other());
        let token = token(id, Operation::Send, from);
        if pair.wants_zero_copy(from, self.options.zero_copy_min_bytes) {
            self.io
                .send_zero_copy(to, &chunk.buffer, chunk.from, chunk.len, token);
        } else {
            self.io
                .send(to, &chunk.buffer, chunk.from, chunk.len, token);
        }
    }

    /// The ring sent what the destination took at once.
    pub(super) fn on_send(&mut self, now_us: u64, id: PairId, from: End, result: i32) {
        let pair = live(&mut self.slots, id);
        pair.direction(from).on_send_completed();
        let sent = u32::try_from(result).unwrap_or(0);
        if pair.direction(from).is_discarding() {
            // The session's end was decided while the send was on its way.
            self.count(id, from, sent, MoverKind::Copy);
            return self.drop_queue(id, from);
        }
        if sent > 0 {
            pair.last_activity_ms = now_us / 1_000;
            self.consume(id, from, sent);
        }
        match -result {
            libc::ECANCELED | libc::EINTR => {}
            libc::EAGAIN => self.wait_for_peer(now_us, id, from),
            // Such as a unix socket. Nothing was sent; from now on it is asked to copy.
            libc::EOPNOTSUPP if self.live(id).zero_copy[from.other() as usize] => {
                self.live(id).zero_copy[from.other() as usize] = false;
            }
            errno @ 1.. => self.on_failure(now_us, id, from.other(), cause_of(errno)),
            // What is left of the piece is sent at once, or waits.
            _ => {}
        }
        self.progress(now_us, id, from);
    }

    /// Delivers what the destination takes at once.
    pub(super) fn deliver(&mut self, now_us: u64, id: PairId, from: End) -> Delivery {
        if self.live(id).pipes[from as usize].is_some() {
            self.drain(now_us, id, from)
        } else {
            self.send_pieces(now_us, id, from)
        }
    }

    /// Sends what the destination takes at once, from several pieces.
    fn send_pieces(&mut self, now_us: u64, id: PairId, from: End) -> Delivery {
        let pair = live(&mut self.slots, id);
        let queue = &pair.queues[from as usize];
        let first = queue
            .front()
            .expect("a direction asks to send only what is queued");
        let mut pieces = [Piece {
            buffer: &first.buffer,
            from: first.from,
            len: first.len,
        }; GATHER_MAX];
        let mut offered = 0;
        let mut count = 0;
        for (piece, chunk) in pieces.iter_mut().zip(queue) {
            *piece = Piece {
                buffer: &chunk.buffer,
                from: chunk.from,
                len: chunk.len,
            };
            offered += chunk.len - chunk.from;
            count += 1;
        }
        let socket = pair.sockets[from.other() as usize]
            .as_ref()
            .expect("open while relaying");
        let sent = match self.io.send_now(socket, &pieces[..count]) {
            Ok(sent) => sent as u32,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => 0,
                ErrorKind::Interrupted => return Delivery::default(),
                _ => {
                    let cause = error.raw_os_error().map_or(Cause::SocketError, cause_of);
                    self.on_failure(now_us, id, from.other(), cause);
                    return Delivery::default();
                }
            },
        };
        if sent > 0 {
            self.live(id).last_activity_ms = now_us / 1_000;
            self.consume(id, from, sent);
        }
        Delivery {
            sent_bytes: u64::from(sent),
            is_full: sent < offered,
        }
    }

    /// The destination is full: go on when it has room again.
    pub(super) fn wait_for_peer(&mut self, now_us: u64, id: PairId, from: End) {
        self.blocked_sends_total += 1;
        let pair = live(&mut self.slots, id);
        debug_assert_ne!(pair.phase, Phase::Closing, "nobody would cancel the wait");
        pair.directions[from as usize].on_blocked();
        pair.give_back(now_us, from);
        for chunk in &mut pair.queues[from as usize] {
            self.io.set_aside(&mut chunk.buffer, chunk.len);
        }
        let to = pair.socket(from.other());
        let unacknowledged = self.io.unacknowledged_bytes(to);
        // One that was armed before stays armed: every refused send is followed by an edge.
        if !pair.polling[from as usize] {
            self.io
                .await_writable(to, token(id, Operation::Writable, from));
            pair.polling[from as usize] = true;
        }
        pair.unacknowledged[from.other() as usize] = unacknowledged;
        // No receive is armed meanwhile, so a reset of the source would go unseen.
        self.watch(id, from);
    }

    /// The wait for room tells something, or has ended.
    pub(super) fn on_writable(
        &mut self,
        now_us: u64,
        id: PairId,
        from: End,
        completion: &Completion,
    ) {
        let pair = live(&mut self.slots, id);
        pair.polling[from as usize] = completion.more;
        if pair.phase == Phase::Closing || !pair.direction(from).is_blocked() {
            return;
        }
        // io_uring reports a FIN of the destination unasked. That is no room.
        let about_room = i32::from(libc::POLLOUT | libc::POLLERR | libc::POLLHUP);
        if completion.result < 0 || completion.result & about_room != 0 {
            self.try_again(now_us, id, from);
        } else if !completion.more {
            let to = pair.socket(from.other());
            self.io
                .await_writable(to, token(id, Operation::Writable, from));
            pair.polling[from as usize] = true;
        }
    }

    /// The pause after an attempt in vain is over.
    pub(super) fn on_retry(&mut self, now_us: u64, id: PairId, from: End) {
        let Some(pair) = self.pair(id) else { return };
        pair.retrying[from as usize] = false;
        if pair.phase != Phase::Closing && pair.direction(from).is_blocked() {
            self.try_again(now_us, id, from);
            self.settle(now_us, id);
        }
    }

    /// A destination that was full may have room, or have failed: sending tells which.
    fn try_again(&mut self, now_us: u64, id: PairId, from: End) {
        let pair = live(&mut self.slots, id);
        pair.direction(from).on_unblocked();
        let mut spent_bytes = 0;
        if pair.direction(from).queued_bytes() > 0 {
            let delivery = self.deliver(now_us, id, from);
            spent_bytes = delivery.sent_bytes;
            if delivery.is_full && delivery.sent_bytes == 0 {
                self.pause(now_us, id, from);
            }
            if delivery.is_full {
                self.wait_for_peer(now_us, id, from);
            }
        }
        self.progress_after(now_us, id, from, spent_bytes);
    }

    /// It called itself writable and took nothing: the kernel is short of memory for sockets, and
    /// may send no edge when it has some again.
    fn pause(&mut self, now_us: u64, id: PairId, from: End) {
        let pair = live(&mut self.slots, id);
        if !std::mem::replace(&mut pair.retrying[from as usize], true) {
            self.timers
                .set(now_us / 1_000 + RETRY_MS, Due::Retry(id, from));
        }
    }

    pub(super) fn count(&mut self, id: PairId, from: End, sent: u32, mover: MoverKind) {
        let sent = u64::from(sent);
        let pair = live(&mut self.slots, id);
        pair.delivered_bytes[from as usize] += sent;
        pair.directions[from.other() as usize].bulk().on_answer();
        if mover == MoverKind::Splice {
            pair.spliced_bytes += sent;
        }
        self.watcher.delivered(&pair.record, from, sent, mover);
    }

    /// The destination took `sent` bytes from the head of the queue.
    pub(super) fn consume(&mut self, id: PairId, from: End, sent: u32) {
        self.count(id, from, sent, MoverKind::Copy);
        let pair = live(&mut self.slots, id);
        pair.directions[from as usize].on_sent(sent);
        let mut left = sent;
        while left > 0 {
            let pair = self.live(id);
            let queue = &mut pair.queues[from as usize];
            let chunk = queue.front_mut().expect("no more was sent than was queued");
            let part = left.min(chunk.len - chunk.from);
            chunk.from += part;
            left -= part;
            if chunk.from == chunk.len {
                let chunk = queue.pop_front().expect("just seen");
                if queue.is_empty() && queue.capacity() > QUEUE_KEEP {
                    *queue = VecDeque::new();
                }
                self.io.release(chunk.buffer);
            }
        }
    }

    /// Lets directions that wait for a buffer try again, oldest first, as long as there are
    /// buffers. More of them than there are buffers: the kernel asks for a buffer before it looks at
    /// the socket, so that most of those who wait have nothing to receive and will take none.
    pub(super) fn wake_waiting(&mut self, now_us: u64) {
        for group in Group::ALL {
            let queued = self.waiting[group as usize].len().min(WAKES_PER_PASS);
            for _ in 0..queued {
                if !self.io.has_buffers(group) {
                    break;
                }
                let next = self.waiting[group as usize].pop_front();
                let Some((id, from)) = next else { break };
                if let Some(pair) = self.pair(id) {
                    pair.direction(from).on_buffer_back();
                    self.progress(now_us, id, from);
                    self.settle(now_us, id);
                }
            }
        }
    }
}
