//! Waiting for a descriptor in monoio's ring.
//!
//! monoio polls only through its own I/O types, and any of them serves: the descriptor inside is
//! never read or written through it.
//!
//! A pending readiness future must never be dropped. monoio would cancel the poll and, when the
//! cancelled poll is reaped, close the descriptor with an operation pushed *during* the reaping,
//! which no count of polls sees: the core could then sleep with it unsubmitted. To give up waiting,
//! `shutdown(2)` the socket and await the future, which then completes at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::time::Duration;

use monoio::net::UnixStream;

use super::Either;
use crate::sys::fd;

/// Waits for at most `timeout`, and looks every `look_every` whether there is another reason to stop:
/// `give_up(is_over)` names one, and must if the time is over. Then `end` makes the wait complete,
/// which is awaited: a pending one must not be dropped.
pub async fn wait_patiently<R>(
    wait: impl Future<Output = ()>,
    timeout: Duration,
    look_every: Duration,
    mut give_up: impl FnMut(bool) -> Option<R>,
    end: impl FnOnce(),
) -> Option<R> {
    let mut wait = pin!(wait);
    let mut left = timeout;
    loop {
        let slice = left.min(look_every);
        let mut nap = pin!(super::sleep(slice));
        if let Either::First(()) = super::first(wait.as_mut(), nap.as_mut()).await {
            return None;
        }
        left -= slice;
        if let Some(reason) = give_up(left.is_zero()) {
            end();
            wait.as_mut().await;
            return Some(reason);
        }
        assert!(
            !left.is_zero(),
            "a wait whose time is over must be given up"
        );
    }
}

/// A descriptor whose readiness can be awaited.
pub struct Readiness {
    stream: UnixStream,
}

impl Readiness {
    /// Takes the descriptor over. It must be of a kind that can be polled.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            stream: UnixStream::from_std(fd.into())?,
        })
    }

    /// Completes when the descriptor is readable, failed or hung up.
    pub async fn readable(&self) {
        // The poll itself can only fail by being cancelled; the caller's next call tells the rest.
        let _ = self.stream.readable(false).await;
    }

    /// Completes when the descriptor is writable, failed or hung up.
    pub async fn writable(&self) {
        let _ = self.stream.writable(false).await;
    }

    /// Gives the descriptor back. No wait on it may be pending.
    pub fn into_fd(self) -> OwnedFd {
        fd::adopt(self.stream)
    }
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        fd::borrow(&self.stream)
    }
}
