//! Sessions that wait for a place on a server of one upstream, or for a server at all.
//!
//! Each core has its own queue, first come first served. Where a place becomes free on a core on which
//! nobody waits for it, the first of another core is called through its mailbox.
//!
//! A session that waits after a failed attempt cannot use a place on a server that it has tried. It is not
//! called for one, and keeps nobody behind it from taking one.
//!
//! **No call is lost.** A session enters the queue first and looks for a place after that; a place is
//! freed first and the queues are looked at after that; a fence stands between the two steps of each. One
//! of the two therefore sees the other. Whoever was called and does not need the place any more
//! passes the call on. A call that finds nobody goes around the cores once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::task::{Poll, Waker};

use super::Message;
use crate::core::mailbox::Sender;
use crate::core::want_turn;
use crate::policy::limit::SharedLimit;
use crate::units::{CoreId, ServerId, UpstreamId};

/// How many sessions of one core wait uncalled; written by that core alone.
#[derive(Default)]
#[repr(align(128))]
struct Uncalled(AtomicU32);

/// What the cores share of one upstream's queues.
pub struct SharedQueue {
    /// Over all cores, called or not.
    waiting: SharedLimit,
    uncalled: Box<[Uncalled]>,
}

impl SharedQueue {
    /// Nobody waits; so many may.
    pub fn new(cores: usize, max: u32) -> Self {
        Self {
            waiting: SharedLimit::new(max),
            uncalled: (0..cores).map(|_| Uncalled::default()).collect(),
        }
    }
}

/// One core's queue of one upstream.
pub(super) struct Queue {
    upstream: UpstreamId,
    core: CoreId,
    shared: Arc<SharedQueue>,
    cores: Arc<[Sender<Message>]>,
    /// In the order of arrival.
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
    next_number: Cell<u64>,
}

struct Waiter {
    /// Its number in the order of arrival.
    number: u64,
    /// Servers that are of no use to it.
    tried: Vec<ServerId>,
    waker: RefCell<Option<Waker>>,
    state: Cell<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the queue.
    Waiting,
    /// Out of the queue, for a place on this server; `None` for a call that all got.
    Called(Option<ServerId>),
    /// Out of the queue, with a place.
    Served,
}

impl Queue {
    pub(super) fn new(
        upstream: UpstreamId,
        core: CoreId,
        shared: Arc<SharedQueue>,
        cores: Arc<[Sender<Message>]>,
    ) -> Self {
        Self {
            upstream,
            core,
            shared,
            cores,
            waiters: RefCell::default(),
            next_number: Cell::default(),
        }
    }

    pub(super) fn upstream(&self) -> UpstreamId {
        self.upstream
    }

    /// Whether somebody waits whom every server would do: then none has a place.
    pub(super) fn has_waiters(&self) -> bool {
        let waiters = self.waiters.borrow();
        waiters.iter().any(|waiter| waiter.tried.is_empty())
    }

    /// Sessions of this core that nobody has called yet.
    pub(super) fn len(&self) -> usize {
        self.waiters.borrow().len()
    }

    /// A place in the queue for a session that has tried these servers, if one is left.
    pub(super) fn enter(self: &Rc<Self>, tried: &[ServerId]) -> Option<Ticket> {
        if !self.shared.waiting.try_acquire() {
            return None;
        }
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        let waiter = Rc::new(Waiter {
            number,
            tried: tried.to_vec(),
            waker: RefCell::default(),
            state: Cell::new(State::Waiting),
        });
        self.waiters.borrow_mut().push_back(Rc::clone(&waiter));
        self.publish();
        Some(Ticket {
            queue: Rc::clone(self),
            waiter,
        })
    }

    /// A place on this server is free: the session that waits longest for it here, or one on another core,
    /// is called.
    pub(super) fn place_freed(&self, server: ServerId) {
        self.offer(server, self.core);
    }

    /// As [`Queue::place_freed`], on the way around the cores that began at `origin`.
    pub(super) fn offer(&self, server: ServerId, origin: CoreId) {
        // After the place was given back, before the queues are looked at.
        fence(Ordering::SeqCst);
        if self.shared.waiting.in_use() == 0 || self.call_first(Some(server)) {
            return;
        }
        let count = self.cores.len();
        let others = (1..count).map(|step| (usize::from(self.core.0) + step) % count);
        let mut others = others.take_while(|core| *core != usize::from(origin.0));
        let waits = |core: &usize| self.shared.uncalled[*core].0.load(Ordering::Relaxed) > 0;
        if let Some(core) = others.find(waits) {
            let upstream = self.upstream;
            self.cores[core].send(Message::PlaceFreed {
                upstream,
                server,
                origin,
            });
        }
    }

    /// Everything may have changed: each session looks again.
    pub(super) fn call_all(&self) {
        while self.call_first(None) {}
    }

    fn call_first(&self, place: Option<ServerId>) -> bool {
        let mut waiters = self.waiters.borrow_mut();
        let is_useful =
            |waiter: &Rc<Waiter>| place.is_none_or(|server| !waiter.tried.contains(&server));
        let Some(waiter) = waiters
            .iter()
            .position(is_useful)
            .and_then(|at| waiters.remove(at))
        else {
            return false;
        };
        drop(waiters);
        self.publish();
        waiter.state.set(State::Called(place));
        if let Some(waker) = waiter.waker.borrow_mut().take() {
            want_turn();
            waker.wake();
        }
        true
    }

    fn publish(&self) {
        let count = self.waiters.borrow().len() as u32;
        let cell = &self.shared.uncalled[usize::from(self.core.0)].0;
        cell.store(count, Ordering::Relaxed);
        // After the queue was entered, before a place is looked for.
        fence(Ordering::SeqCst);
    }
}

/// One session's place in the queue.
pub(super) struct Ticket {
    queue: Rc<Queue>,
    waiter: Rc<Waiter>,
}

impl Ticket {
    /// Completes when a place is, or was, free for this session.
    pub(super) async fn called(&self) {
        std::future::poll_fn(|cx| {
            if self.is_called() {
                return Poll::Ready(());
            }
            *self.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub(super) fn is_called(&self) -> bool {
        matches!(self.waiter.state.get(), State::Called(_))
    }

    /// Somebody else took the place: back to where it was, before those who came later.
    pub(super) fn wait_again(&self) {
        self.waiter.state.set(State::Waiting);
        let mut waiters = self.queue.waiters.borrow_mut();
        let at = waiters.partition_point(|other| other.number < self.waiter.number);
        waiters.insert(at, Rc::clone(&self.waiter));
        drop(waiters);
        self.queue.publish();
    }

    /// The session has its place.
    pub(super) fn served(self) {
        self.leave();
        self.waiter.state.set(State::Served);
    }

    fn leave(&self) {
        if self.waiter.state.get() == State::Waiting {
            let mut waiters = self.queue.waiters.borrow_mut();
            waiters.retain(|other| !Rc::ptr_eq(other, &self.waiter));
            drop(waiters);
            self.queue.publish();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave();
        self.queue.shared.waiting.release();
        if let State::Called(Some(server)) = self.waiter.state.get() {
            self.queue.place_freed(server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::mailbox::{self, Receiver};

    const UPSTREAM: UpstreamId = UpstreamId(0);
    const A: ServerId = ServerId(1);
    const B: ServerId = ServerId(2);

    /// The queues of some cores, all on one thread.
    fn queues(count: usize, max: u32) -> (Vec<Rc<Queue>>, Vec<Receiver<Message>>) {
        let mailboxes = (0..count).map(|_| mailbox::mailbox().expect("an eventfd"));
        let (senders, receivers): (Vec<_>, Vec<_>) = mailboxes.unzip();
        let cores: Arc<[Sender<Message>]> = senders.into();
        let shared = Arc::new(SharedQueue::new(count, max));
        let queue = |core: usize| {
            let (shared, cores) = (Arc::clone(&shared), Arc::clone(&cores));
            Rc::new(Queue::new(UPSTREAM, CoreId(core as u16), shared, cores))
        };
        ((0..count).map(queue).collect(), receivers)
    }

    /// Lets each core read its mailbox until nothing is sent any more; returns how many messages that were.
    fn deliver(queues: &[Rc<Queue>], mailboxes: &[Receiver<Message>]) -> usize {
        let mut count = 0;
        loop {
            let before = count;
            for (queue, mailbox) in queues.iter().zip(mailboxes) {
                while let Some(message) = mailbox.next() {
                    let Message::PlaceFreed { server, origin, .. } = message else {
                        panic!("another message");
                    };
                    count += 1;
                    queue.offer(server, origin);
                }
            }
            if count == before {
                return count;
            }
        }
    }

    #[test]
    fn the_first_whom_the_place_serves_is_called() {
        let (queues, _mailboxes) = queues(1, 100);
        let queue = &queues[0];
        let tried = queue.enter(&[A]).expect("room");
        assert!(!queue.has_waiters(), "it keeps nobody from taking a place");
        let fresh = queue.enter(&[]).expect("room");
        let last = queue.enter(&[]).expect("room");
        assert!(queue.has_waiters());
        queue.place_freed(A);
        assert_eq!(
            [&tried, &fresh, &last].map(Ticket::is_called),
            [false, true, false]
        );
        queue.place_freed(B);
        assert_eq!(
            [&tried, &fresh, &last].map(Ticket::is_called),
            [true, true, false]
        );
        // Whoever does not need it passes it on.
        drop(fresh);
        assert!(last.is_called());
    }

    #[test]
    fn who_was_called_in_vain_waits_on_in_the_old_order() {
        let (queues, _mailboxes) = queues(1, 100);
        let tickets = [(); 3].map(|()| queues[0].enter(&[]).expect("room"));
        queues[0].call_all();
        tickets.iter().for_each(Ticket::wait_again);
        for expected in [[true, false, false], [true, true, false]] {
            queues[0].place_freed(A);
            assert_eq!(tickets.each_ref().map(Ticket::is_called), expected);
        }
    }

    #[test]
    fn a_place_goes_to_the_core_where_somebody_waits_for_it() {
        let (queues, mailboxes) = queues(3, 100);
        let tried = queues[1].enter(&[A]).expect("room");
        let fresh = queues[2].enter(&[]).expect("room");
        queues[0].place_freed(A);
        assert_eq!(deliver(&queues, &mailboxes), 2);
        assert!(!tried.is_called() && fresh.is_called());
    }

    #[test]
    fn a_place_that_nobody_can_use_goes_around_once() {
        let (queues, mailboxes) = queues(4, 100);
        let tickets: Vec<_> = queues
            .iter()
            .map(|queue| queue.enter(&[A]).expect("room"))
            .collect();
        queues[2].place_freed(A);
        assert_eq!(deliver(&queues, &mailboxes), 3);
        assert!(tickets.iter().all(|ticket| !ticket.is_called()));
    }

    #[test]
    fn a_call_passed_on_reaches_another_core_and_max_counts_all() {
        let (queues, mailboxes) = queues(2, 2);
        let first = queues[0].enter(&[]).expect("room");
        let second = queues[1].enter(&[]).expect("room");
        assert!(queues[0].enter(&[]).is_none(), "full");
        queues[0].place_freed(A);
        drop(first);
        assert_eq!(deliver(&queues, &mailboxes), 1);
        assert!(second.is_called());
        second.served();
        assert!(queues[0].enter(&[]).is_some());
    }
}
