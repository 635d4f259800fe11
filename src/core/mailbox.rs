//! How other threads reach a core: a queue and an eventfd. No waker ever crosses threads.
//!
//! Control messages only, a few a second: the lock is never taken on the data path.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::readiness::Readiness;
use crate::sys::event;

struct Shared<M> {
    queue: Mutex<VecDeque<M>>,
    event: OwnedFd,
}

/// The sending end; any thread.
pub struct Sender<M> {
    shared: Arc<Shared<M>>,
}

/// The receiving end; moves to the core's thread.
pub struct Receiver<M> {
    shared: Arc<Shared<M>>,
}

/// A mailbox.
pub fn mailbox<M>() -> io::Result<(Sender<M>, Receiver<M>)> {
    let shared = Arc::new(Shared {
        queue: Mutex::new(VecDeque::new()),
        event: event::eventfd(0)?,
    });
    Ok((
        Sender {
            shared: Arc::clone(&shared),
        },
        Receiver { shared },
    ))
}

impl<M> Clone for Sender<M> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<M> Sender<M> {
    /// Queues a message and wakes the core.
    pub fn send(&self, message: M) {
        self.shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(message);
        event::signal(&self.shared.event);
    }
}

impl<M> Receiver<M> {
    /// Handles every message, in order, for as long as the core lives.
    pub async fn run(self, mut handle: impl FnMut(M)) -> io::Result<()> {
        let readiness = Readiness::new(self.shared.event.try_clone()?)?;
        loop {
            readiness.readable().await;
            // Cleared before the queue is read: a message that comes in between signals again.
            event::clear(&readiness);
            loop {
                let message = self
                    .shared
                    .queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .pop_front();
                match message {
                    Some(message) => handle(message),
                    None => break,
                }
            }
        }
    }
}
