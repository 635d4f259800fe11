//! A pipe between two sockets: what splice(2) moves bytes through without copying them.
//!
//! Both ends belong to the one who moves the bytes, so that a pipe never ends and never breaks. How
//! many bytes are in it is for its owner to count.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Wanted size: the most that an unprivileged process may ask for by default
/// (/proc/sys/fs/pipe-max-size).
const WANTED_BYTES: libc::c_int = 1 << 20;

/// See the head of this file. Close-on-exec, non-blocking.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// A pipe of 1 MiB; of 8 KiB for a user whose pipes together have more pages than
    /// /proc/sys/fs/pipe-user-pages-soft (unless privileged).
    ///
    /// The size counts pages, not bytes: each slot holds one fragment of a socket's queue, which
    /// after small segments is less than a page.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM; see pipe(2).
    pub fn new() -> io::Result<Self> {
        let mut fds: [RawFd; 2] = [-1; 2];
        // SAFETY: `fds` has room for the two descriptors that the call writes.
        let result = unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) };
        super::check(result)?;
        // SAFETY: the call has just made it, and nobody else knows of it.
        let read = unsafe { OwnedFd::from_raw_fd(fds[0]) };
        // SAFETY: as above.
        let write = unsafe { OwnedFd::from_raw_fd(fds[1]) };
        // Refused: the default size serves as well, only slower.
        // SAFETY: F_SETPIPE_SZ takes an int and touches no memory of ours.
        let _ = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, WANTED_BYTES) };
        Ok(Self { read, write })
    }

    /// Moves up to `len` bytes of a socket's receive queue into the pipe; 0 after FIN, and also where
    /// urgent data is in the way and FIN behind it.
    ///
    /// # Errors
    /// `WouldBlock`: nothing was received, *or* the pipe is full, *or* urgent data is in the way
    /// (tcp_read_sock stops at it). Else the socket's.
    pub fn fill(&self, from: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        splice(from.as_raw_fd(), self.write.as_raw_fd(), len)
    }

    /// Moves up to `len` bytes out of the pipe to a socket, which must be non-blocking: the kernel
    /// asks the socket, not this call. A broken connection raises SIGPIPE, which Rust's runtime
    /// ignores.
    ///
    /// # Errors
    /// `WouldBlock`: the socket has no room (or the pipe is empty). Else the socket's.
    pub fn drain(&self, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        splice(self.read.as_raw_fd(), to.as_raw_fd(), len)
    }

    /// Bytes in it (FIONREAD).
    pub fn buffered_bytes(&self) -> io::Result<usize> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int, to a valid place.
        let result = unsafe { libc::ioctl(self.read.as_raw_fd(), libc::FIONREAD, &mut bytes) };
        super::check(result)?;
        Ok(usize::try_from(bytes).unwrap_or(0))
    }
}

/// Never SPLICE_F_MORE: it would keep the end of a message back for 200 ms. Between the parts of one
/// call the kernel says MSG_MORE by itself.
fn splice(from: RawFd, to: RawFd, len: usize) -> io::Result<usize> {
    let no_offset = std::ptr::null_mut();
    let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
    // SAFETY: no offsets are given, as neither end has one; the call touches no memory of ours.
    let moved = unsafe { libc::splice(from, no_offset, to, no_offset, len, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        far.set_nonblocking(true).unwrap();
        (near, far)
    }

    #[test]
    fn bytes_go_through_and_fin_is_zero() {
        let (mut client, from) = connection();
        let (mut server, to) = connection();
        let pipe = Pipe::new().unwrap();
        let nothing = pipe.fill(from.as_fd(), 100).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
        client.write_all(b"hello").unwrap();
        assert_eq!(pipe.fill(from.as_fd(), 100).unwrap(), 5);
        assert_eq!(pipe.buffered_bytes().unwrap(), 5);
        assert_eq!(pipe.drain(to.as_fd(), 100).unwrap(), 5);
        assert_eq!(pipe.buffered_bytes().unwrap(), 0);
        let mut got = [0; 5];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        drop(client);
        assert_eq!(pipe.fill(from.as_fd(), 100).unwrap(), 0);
    }
}
