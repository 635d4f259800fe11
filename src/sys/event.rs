//! eventfd(2): how other threads knock at a core's door.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::check;

/// A non-blocking, close-on-exec eventfd whose counter starts at `initial`.
pub fn eventfd(initial: u32) -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes no pointers.
    let raw = check(unsafe { libc::eventfd(initial, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: `raw` was just created and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Adds 1: whoever polls the eventfd wakes. A counter at its maximum is readable already.
pub fn signal(event: &impl AsFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: `one` is 8 readable bytes, as eventfd(2) asks.
    unsafe { libc::write(event.as_fd().as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Takes the counter back to 0.
pub fn clear(event: &impl AsFd) {
    let mut count = [0u8; 8];
    // SAFETY: `count` is 8 writable bytes, as eventfd(2) asks.
    unsafe {
        libc::read(
            event.as_fd().as_raw_fd(),
            count.as_mut_ptr().cast(),
            count.len(),
        )
    };
}
