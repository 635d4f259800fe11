//! One listener on one core: accept in bounded batches, back off when descriptors run out, and stop
//! without resetting anyone.
//!
//! monoio says when the listener is readable; `accept4(2)` takes the connections. (A dropped accept
//! future would lose a client and leak its descriptor.)

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use super::handoff::Accepted;
use super::{Core, Event};
use crate::core::readiness::Readiness;
use crate::core::{self, Either, Signal};
use crate::sys::clock::{self, micros};
use crate::sys::{filter, socket};
use crate::units::ListenerId;

/// Connections accepted before established sessions get a pass.
const BATCH_MAX: usize = 16;
/// How long accepting pauses when descriptors or memory ran out. Freed ones are noticed within it.
const PAUSE: Duration = Duration::from_millis(50);
/// A client whose handshake is under way when the listener stops has this long to finish it.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(250);
/// How long a listener that stops alone waits for descriptors for those in its queue. It is to be known as
/// closed soon; in a drain descriptors become free, or it is aborted.
const QUEUE_PATIENCE: Duration = Duration::from_secs(1);

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Batch {
    /// The queue is empty.
    Empty,
    /// There may be more.
    Full,
    /// No descriptor or memory for another one.
    Exhausted,
    /// The socket does not listen any more.
    Closed,
}

/// Starts to listen and accept.
pub(super) fn start(core: Rc<Core>, id: ListenerId, socket: OwnedFd) -> io::Result<()> {
    let listener = &core.service.listeners[usize::from(id.0)];
    socket::listen(&socket, listener.backlog)?;
    let readiness = Readiness::new(socket)?;
    core.ledger.accepting.set(core.ledger.accepting.get() + 1);
    let stopping = Signal::default();
    core.listening.borrow_mut()[usize::from(id.0)] = Some(stopping.clone());
    core::spawn(async move {
        serve(&core, id, &readiness, &stopping).await;
        drop(readiness.into_fd());
        core.listening.borrow_mut()[usize::from(id.0)] = None;
        core.ledger.listener_stopped();
        if stopping.is_set() {
            core.ledger.events.send(Event::Closed(core.id, id));
        }
    });
    Ok(())
}

/// Stops to listen and accept; [`Event::Closed`] tells when that is done.
pub(super) fn close(core: &Core, id: ListenerId) {
    match &core.listening.borrow()[usize::from(id.0)] {
        Some(stopping) => stopping.set(),
        // A unix socket is shared: another core has shut it down already. Or this one could not listen.
        None => core.ledger.events.send(Event::Closed(core.id, id)),
    }
}

async fn serve(core: &Rc<Core>, id: ListenerId, listener: &Readiness, stopping: &Signal) {
    loop {
        let mut readable = pin!(listener.readable());
        let stops = {
            let mut stopping = pin!(stopping.wait());
            core::first(readable.as_mut(), stopping.as_mut()).await
        };
        if let Either::Second(()) = stops {
            return stop(core, id, listener, readable).await;
        }
        match accept_batch(core, id, listener, false) {
            Batch::Empty | Batch::Full => {}
            Batch::Exhausted => pause(stopping).await,
            Batch::Closed => return,
        }
    }
}

async fn pause(stopping: &Signal) {
    let mut nap = pin!(core::sleep(PAUSE));
    let mut stopping = pin!(stopping.wait());
    core::first(nap.as_mut(), stopping.as_mut()).await;
}

/// Takes whom the queue holds and who is about to enter it, then closes the door.
async fn stop(
    core: &Rc<Core>,
    id: ListenerId,
    listener: &Readiness,
    waiting: Pin<&mut impl Future<Output = ()>>,
) {
    if !core.service.listeners[usize::from(id.0)].is_unix
        && let Err(error) = filter::drop_new_syns(listener.as_fd())
    {
        tracing::warn!(core = core.id.0, %error, "clients that connect while the listener closes may be reset");
    }
    let began_us = clock::now_us();
    let gives_up = || {
        let waited_us = clock::now_us() - began_us;
        core.aborting.is_set() || (!core.draining.is_set() && waited_us > micros(QUEUE_PATIENCE))
    };
    take_all(core, id, listener, gives_up).await;
    core::sleep(HANDSHAKE_GRACE).await;
    take_all(core, id, listener, gives_up).await;
    // The pending wait must complete before the socket may close; see `core::readiness`.
    socket::shutdown(listener.as_fd());
    waiting.await;
    // A unix socket still hands out those who came before it was shut down.
    take_all(core, id, listener, gives_up).await;
}

/// Accepts until the queue is empty, or descriptors are waited for in vain. New SYNs are dropped meanwhile, so
/// that it becomes empty.
async fn take_all(
    core: &Rc<Core>,
    id: ListenerId,
    listener: &Readiness,
    gives_up: impl Fn() -> bool,
) {
    loop {
        match accept_batch(core, id, listener, true) {
            Batch::Empty | Batch::Closed => return,
            // Established sessions get a pass, as they do between batches otherwise.
            Batch::Full => core::sleep(Duration::from_millis(1)).await,
            Batch::Exhausted if gives_up() => return,
            Batch::Exhausted => core::sleep(PAUSE).await,
        }
    }
}

fn accept_batch(core: &Rc<Core>, id: ListenerId, listener: &Readiness, filtered: bool) -> Batch {
    let ledger = &core.ledger;
    for _ in 0..BATCH_MAX {
        if !ledger.budget.has_room() {
            ledger.metrics.borrow_mut().listener(id).accept_paused_total += 1;
            ledger.exhausted(id, io::Error::from_raw_os_error(libc::EMFILE));
            return Batch::Exhausted;
        }
        match socket::accept(listener.as_fd()) {
            Ok((client, peer)) => {
                if filtered {
                    // Fails only if there is none to detach: a unix socket.
                    let _ = filter::detach_filter(client.as_fd());
                }
                let accepted = Accepted {
                    listener: id,
                    client,
                    peer,
                    accepted_us: clock::now_us(),
                };
                // Counted here and not in the session's task: the next look at the budget must see it.
                ledger.accepted(id);
                match core.better_core(id) {
                    None => core.begin(accepted),
                    Some(other) => core.hand_over(accepted, other),
                }
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Batch::Empty,
                Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                    ledger
                        .metrics
                        .borrow_mut()
                        .listener(id)
                        .accept_exhausted_total += 1;
                    ledger.exhausted(id, error);
                    return Batch::Exhausted;
                }
                // The listener was shut down; a unix listener is shared by all cores.
                Some(libc::EINVAL | libc::EBADF) => return Batch::Closed,
                // accept(2): the connection was gone already, or its network failed. Next.
                _ => {
                    ledger
                        .metrics
                        .borrow_mut()
                        .listener(id)
                        .accept_aborted_total += 1
                }
            },
        }
    }
    Batch::Full
}

/// Closes a client's socket, with a reset or with FIN.
pub(super) fn refuse(resets: bool, client: OwnedFd) {
    if resets {
        socket::linger_zero(client.as_fd());
    }
}
