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
use crate::units::{CoreId, ServerId, UpstreamId};

/// How many sessions of one core wait uncalled; written by that core alone.
#[derive(Default)]
#[repr(align(128))]
struct Uncalled(AtomicU32);

/// What the cores share of one upstream's queues.
pub struct SharedQueue {
    /// Over all cores, called or not.
    waiting: AtomicU32,
    uncalled: Box<[Uncalled]>,
}

impl SharedQueue {
    /// Nobody waits.
    pub fn new(cores: usize) -> Self {
        Self {
            waiting: AtomicU32::new(0),
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
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

struct Waiter {
    /// Servers that are of no use to it.
    tried: Vec<ServerId>,
    waker: RefCell<Option<Waker>>,
    is_called: Cell<bool>,
    /// The server whose place it was called for; `None` for a call that all got.
    place: Cell<Option<ServerId>>,
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

    /// A place in the queue for a session that has tried these servers, unless `max` sessions over all cores
    /// have one.
    pub(super) fn enter(self: &Rc<Self>, max: u32, tried: &[ServerId]) -> Option<Ticket> {
        if self.shared.waiting.fetch_add(1, Ordering::Relaxed) >= max {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let waiter = Rc::new(Waiter {
            tried: tried.to_vec(),
            waker: RefCell::default(),
            is_called: Cell::default(),
            place: Cell::default(),
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
        if self.call_first(Some(server)) {
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
        waiter.place.set(place);
        waiter.is_called.set(true);
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
            if self.waiter.is_called.get() {
                return Poll::Ready(());
            }
            *self.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub(super) fn is_called(&self) -> bool {
        self.waiter.is_called.get()
    }

    /// Somebody else took the place: back to the front.
    pub(super) fn wait_again(&self) {
        self.waiter.is_called.set(false);
        let mut waiters = self.queue.waiters.borrow_mut();
        waiters.push_front(Rc::clone(&self.waiter));
        drop(waiters);
        self.queue.publish();
    }

    /// The session has its place.
    pub(super) fn served(self) {
        self.waiter.is_called.set(false);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiters = self.queue.waiters.borrow_mut();
        waiters.retain(|other| !Rc::ptr_eq(other, &self.waiter));
        drop(waiters);
        self.queue.publish();
        self.queue.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.waiter.is_called.get()
            && let Some(server) = self.waiter.place.get()
        {
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
    const MAX: u32 = 100;

    /// The queues of some cores, all on one thread.
    fn queues(count: usize) -> (Vec<Rc<Queue>>, Vec<Receiver<Message>>) {
        let mailboxes = (0..count).map(|_| mailbox::mailbox().expect("an eventfd"));
        let (senders, receivers): (Vec<_>, Vec<_>) = mailboxes.unzip();
        let cores: Arc<[Sender<Message>]> = senders.into();
        let shared = Arc::new(SharedQueue::new(count));
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
        let (queues, _mailboxes) = queues(1);
        let queue = &queues[0];
        let tried = queue.enter(MAX, &[A]).expect("room");
        assert!(!queue.has_waiters(), "it keeps nobody from taking a place");
        let fresh = queue.enter(MAX, &[]).expect("room");
        let last = queue.enter(MAX, &[]).expect("room");
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
    fn a_place_goes_to_the_core_where_somebody_waits_for_it() {
        let (queues, mailboxes) = queues(3);
        let tried = queues[1].enter(MAX, &[A]).expect("room");
        let fresh = queues[2].enter(MAX, &[]).expect("room");
        queues[0].place_freed(A);
        assert_eq!(deliver(&queues, &mailboxes), 2);
        assert!(!tried.is_called() && fresh.is_called());
    }

    #[test]
    fn a_place_that_nobody_can_use_goes_around_once() {
        let (queues, mailboxes) = queues(4);
        let tickets: Vec<_> = queues
            .iter()
            .map(|queue| queue.enter(MAX, &[A]).expect("room"))
            .collect();
        queues[2].place_freed(A);
        assert_eq!(deliver(&queues, &mailboxes), 3);
        assert!(tickets.iter().all(|ticket| !ticket.is_called()));
    }

    #[test]
    fn a_call_passed_on_reaches_another_core_and_max_counts_all() {
        let (queues, mailboxes) = queues(2);
        let first = queues[0].enter(2, &[]).expect("room");
        let second = queues[1].enter(2, &[]).expect("room");
        assert!(queues[0].enter(2, &[]).is_none(), "full");
        queues[0].place_freed(A);
        drop(first);
        assert_eq!(deliver(&queues, &mailboxes), 1);
        assert!(second.is_called());
        second.served();
        assert!(queues[0].enter(2, &[]).is_some());
    }
}
