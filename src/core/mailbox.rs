//! How other threads reach a core: a queue and an eventfd. No waker ever crosses threads.
//!
//! Control messages, a few a second, and sessions that other cores hand over, before a byte of theirs was
//! read: the lock is never taken where bytes move. The queue has no bound of its own; what is in it is: each
//! session counts among those that the process can hold.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::readiness::Readiness;
use crate::sys::event;

/// Messages handled before established sessions get a pass: a message may be a whole new session.
const BATCH_MAX: usize = 16;

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
            for handled in 0.. {
                if handled == BATCH_MAX {
                    // There may be more: the next wait returns at once.
                    event::signal(&readiness);
                    break;
                }
                match self.next() {
                    Some(message) => handle(message),
                    None => break,
                }
            }
        }
    }

    /// The next message, if there is one.
    pub(crate) fn next(&self) -> Option<M> {
        let queue = self.shared.queue.lock();
        queue.unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    #[test]
    fn many_messages_arrive_in_order_and_others_run_in_between() {
        const MESSAGES: usize = 5 * BATCH_MAX + 3;
        let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (sender, receiver) = mailbox().unwrap();
            (0..MESSAGES).for_each(|number| sender.send(number));
            let handled = Cell::new(0);
            let mut run = Box::pin(receiver.run(|number| {
                assert_eq!(number, handled.get());
                handled.set(handled.get() + 1);
            }));
            poll_fn(|cx| {
                let before = handled.get();
                assert!(run.as_mut().poll(cx).is_pending());
                assert!(handled.get() - before <= BATCH_MAX);
                if handled.get() == MESSAGES {
                    return Poll::Ready(());
                }
                Poll::Pending
            })
            .await;
            // A pending wait must not be dropped; see `core::readiness`.
            std::mem::forget(run);
        });
    }
}
