//! poll(2) over a few descriptors, for control threads. Cores wait in their rings.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use super::check;

/// One descriptor to wait for, and what came of it.
#[repr(transparent)]
pub struct PollFd<'a> {
    raw: libc::pollfd,
    /// Keeps the descriptor open meanwhile.
    descriptor: PhantomData<BorrowedFd<'a>>,
}

impl<'a> PollFd<'a> {
    /// Waits until `fd` can be read and, if asked for, until it can be written. Errors and a hang-up
    /// wake in any case.
    pub fn new(fd: BorrowedFd<'a>, read: bool, write: bool) -> Self {
        let mut events = 0;
        if read {
            events |= libc::POLLIN;
        }
        if write {
            events |= libc::POLLOUT;
        }
        Self {
            raw: libc::pollfd {
                fd: fd.as_raw_fd(),
                events,
                revents: 0,
            },
            descriptor: PhantomData,
        }
    }

    /// Whether something happened to it in the last [`poll`].
    pub fn is_ready(&self) -> bool {
        self.raw.revents != 0
    }
}

/// Waits until one of them is ready or the time is over; `None` waits for ever. The kernel counts in
/// milliseconds: it never returns early, and up to one late. A signal ends the wait with none ready.
///
/// Errors: ENOMEM, and EINVAL for more descriptors than RLIMIT_NOFILE.
pub fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let timeout_ms = timeout.map_or(-1, |timeout| {
        let ms = timeout.as_nanos().div_ceil(1_000_000);
        i32::try_from(ms).unwrap_or(i32::MAX)
    });
    for fd in fds.iter_mut() {
        fd.raw.revents = 0;
    }
    let count = fds.len() as libc::nfds_t;
    // SAFETY: `PollFd` is a transparent `pollfd`, and the slice holds `count` of them.
    let result = check(unsafe { libc::poll(fds.as_mut_ptr().cast(), count, timeout_ms) });
    match result {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn what_is_ready_is_told_and_the_time_is_kept() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut fds = [
            PollFd::new(far.as_fd(), true, false),
            PollFd::new(near.as_fd(), true, false),
        ];
        let begin = Instant::now();
        poll(&mut fds, Some(Duration::from_micros(1_500))).unwrap();
        assert!(begin.elapsed() >= Duration::from_micros(1_500));
        assert!(!fds[0].is_ready() && !fds[1].is_ready());
        near.write_all(b"x").unwrap();
        let mut fds = [
            PollFd::new(far.as_fd(), true, false),
            PollFd::new(near.as_fd(), true, false),
        ];
        poll(&mut fds, None).unwrap();
        assert!(fds[0].is_ready() && !fds[1].is_ready());
        let mut write = [PollFd::new(far.as_fd(), false, true)];
        poll(&mut write, None).unwrap();
        assert!(write[0].is_ready());
    }
}
