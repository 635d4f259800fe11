//! Whether this kernel's multishot receive can be trusted with the end of a stream.
//!
//! If bytes and the end come before the deferred work of a ring runs, one wake-up stands for both. Kernels
//! before commit a68ed2df7213 ("io_uring/poll: fix multishot recv missing EOF on wakeup race") then receive the
//! bytes and drop the rest of the wake-up: the end is never reported, and the session looks idle. It is
//! always the same if one lets it happen, so that it is tried once at the start.

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{Completion, Group, RelayRing, RingError, RingOptions, Shots, Wait};
use crate::sys::socket;

const TOKEN: super::Token = 1;
const BUFFER_BYTES: u32 = 4096;
const BUFFERS: u32 = 64;
/// For loopback, which answers at once or is filtered.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);
/// How long what was sent over loopback may be on its way, if it is not delivered within the call.
const DELIVERY_MS: i32 = 1_000;
/// Passes within which everything has completed; nothing here waits for anybody.
const PASSES_MAX: usize = 8;

/// Tries it with a FIN over a unix socket and with a reset over loopback. What could not be tried, such as
/// without loopback, is not trusted.
///
/// # Errors
/// The ring could not be made.
pub fn tells_ends() -> Result<bool, RingError> {
    let mut ring = small_ring()?;
    Ok(try_both(&mut ring).unwrap_or(false))
}

fn try_both(ring: &mut RelayRing) -> io::Result<bool> {
    let (near, far) = UnixStream::pair()?;
    let tells_fin = tells_end(ring, near.as_fd(), far, drop)?;
    let (near, far) = loopback()?;
    let tells_reset = tells_end(ring, near.as_fd(), far, |far| {
        socket::linger_zero(far.as_fd());
        drop(far);
    })?;
    Ok(tells_fin && tells_reset)
}

fn small_ring() -> Result<RelayRing, RingError> {
    RelayRing::new(RingOptions {
        buffer_bytes: BUFFER_BYTES,
        buffers: BUFFERS,
        cq_entries: BUFFERS,
        zero_copy_send: false,
        busy_poll: false,
        multishot_receive: true,
    })
}

fn loopback() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let far = TcpStream::connect_timeout(&listener.local_addr()?, CONNECT_TIMEOUT)?;
    let (near, _) = listener.accept()?;
    Ok((near, far))
}

fn tells_end<F: Write>(
    ring: &mut RelayRing,
    near: BorrowedFd<'_>,
    mut far: F,
    end: impl FnOnce(F),
) -> io::Result<bool> {
    ring.recv(near, Group::Fast, Shots::Multi, TOKEN);
    ring.enter(Wait::No)?;
    far.write_all(b"x")?;
    end(far);
    // Bytes and end must both be there when the deferred work runs.
    socket::await_end(near, DELIVERY_MS)?;
    let mut completions = Vec::new();
    pass(ring, &mut completions)?;
    let is_told = completions.last().is_some_and(|last| !last.more);
    if !is_told {
        ring.cancel(TOKEN);
    }
    for _ in 0..PASSES_MAX {
        if ring.stats().in_flight == 0 {
            break;
        }
        pass(ring, &mut completions)?;
    }
    Ok(is_told)
}

fn pass(ring: &mut RelayRing, completions: &mut Vec<Completion>) -> io::Result<()> {
    ring.enter(Wait::No)?;
    ring.reap(completions);
    for completion in completions {
        if let Some(buffer) = completion.buffer.take() {
            ring.buffers().release(buffer);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes bytes and sends none.
    struct Silent(#[expect(dead_code, reason = "held open")] UnixStream);

    impl Write for Silent {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_end_that_is_told_is_seen_and_one_that_is_not_is_missed() {
        // Whatever this kernel does, the answer is the same each time, and nothing is left in flight.
        let answers: Vec<bool> = (0..20).map(|_| tells_ends().unwrap()).collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]));

        let mut ring = small_ring().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let kept = far.try_clone().unwrap();
        let is_told = tells_end(&mut ring, near.as_fd(), far, drop).unwrap();
        assert!(!is_told, "no end came");
        assert_eq!(ring.stats().in_flight, 0);
        drop(kept);

        // An end without bytes, which every kernel tells.
        let (near, far) = UnixStream::pair().unwrap();
        assert!(tells_end(&mut ring, near.as_fd(), Silent(far), drop).unwrap());
        assert_eq!(ring.stats().in_flight, 0);
    }
}
