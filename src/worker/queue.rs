//! Sessions that wait for a place on a server of one upstream, or for a server at all.
//!
//! Each core has its own queue, first come first served. Where a place becomes free on a core on which
//! nobody waits, the first of another core is called through its mailbox.
//!
//! **No call is lost.** A session enters the queue first and looks for a place after that; a place is
//! freed first and the queues are looked at after that; a fence stands between the two steps of each. One
//! of the two therefore sees the other. Whoever was called and does not need the place any more
//! passes the call on.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::task::{Poll, Waker};

use super::Message;
use crate::core::mailbox::Sender;
use crate::core::want_turn;
use crate::units::{CoreId, UpstreamId};

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

#[derive(Default)]
struct Waiter {
    waker: RefCell<Option<Waker>>,
    is_called: Cell<bool>,
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

    /// Whether somebody was here before.
    pub(super) fn has_waiters(&self) -> bool {
        !self.waiters.borrow().is_empty()
    }

    /// Sessions that wait on this core, called or not.
    pub(super) fn len(&self) -> usize {
        self.waiters.borrow().len()
    }

    /// A place in the queue, unless `max` sessions over all cores have one.
    pub(super) fn enter(self: &Rc<Self>, max: u32) -> Option<Ticket> {
        if self.shared.waiting.fetch_add(1, Ordering::Relaxed) >= max {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let waiter = Rc::<Waiter>::default();
        self.waiters.borrow_mut().push_back(Rc::clone(&waiter));
        self.publish();
        Some(Ticket {
            queue: Rc::clone(self),
            waiter,
        })
    }

    /// A place is free: the session that waits longest here, or one on another core, is called.
    pub(super) fn place_freed(&self) {
        // After the place was given back, before the queues are looked at.
        fence(Ordering::SeqCst);
        if self.call_first() {
            return;
        }
        let uncalled = |core: &usize| self.shared.uncalled[*core].0.load(Ordering::Relaxed) > 0;
        if let Some(core) = (0..self.cores.len()).find(uncalled) {
            self.cores[core].send(Message::PlaceFreed(self.upstream));
        }
    }

    /// Everything may have changed: each session looks again.
    pub(super) fn call_all(&self) {
        while self.call_first() {}
    }

    fn call_first(&self) -> bool {
        let first = self.waiters.borrow_mut().pop_front();
        let Some(waiter) = first else { return false };
        self.publish();
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
        if self.waiter.is_called.get() {
            self.queue.place_freed();
        }
    }
}
