//! What the engine asks of the world, so that a simulation can stand in for the kernel.
//!
//! The one implementation outside tests is [`RelayRing`] with the system calls of `sys::socket`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::ring::{Buffer, Group, Piece, RelayRing, Shots, Token};
use crate::sys::pipe::Pipe;
use crate::sys::socket::{self, Keepalive};

/// Sockets, buffers and operations. Operations complete later, each under its token.
pub trait Io {
    /// A connected stream socket, closed when dropped.
    type Socket;
    /// A pipe, closed when dropped.
    type Pipe;

    /// Arms a receive into a buffer of the group.
    fn recv(&mut self, socket: &Self::Socket, group: Group, shots: Shots, token: Token);
    /// As [`Io::recv`] with a single shot, of at most `len` bytes; not 0.
    fn recv_up_to(&mut self, socket: &Self::Socket, group: Group, len: u32, token: Token);
    /// Completes once when the socket has as many bytes as its low-water mark says, or FIN, or failed.
    fn await_readable(&mut self, socket: &Self::Socket, token: Token);
    /// Bytes below which the socket does not count as readable; 1 unless told otherwise.
    fn set_low_water(&mut self, socket: &Self::Socket, bytes: u32);
    /// A new pipe.
    fn make_pipe(&mut self) -> io::Result<Self::Pipe>;
    /// Moves what the socket received, up to `len`, into an empty pipe; 0 after FIN.
    fn fill(&mut self, from: &Self::Socket, pipe: &Self::Pipe, len: usize) -> io::Result<usize>;
    /// Moves what the socket takes at once, up to `len`, out of the pipe.
    fn drain(&mut self, pipe: &Self::Pipe, to: &Self::Socket, len: usize) -> io::Result<usize>;
    /// Whether nothing is in the pipe. For assertions: the engine counts.
    fn is_empty(&self, pipe: &Self::Pipe) -> bool;
    /// Closes a pipe that may hold bytes.
    fn discard_pipe(&mut self, pipe: Self::Pipe) {
        drop(pipe);
    }
    /// Completes each time the socket has room after it was full, sends FIN, fails or hangs up.
    fn await_writable(&mut self, socket: &Self::Socket, token: Token);
    /// Sends what the socket takes of `from..len` of a buffer when it is submitted; completes with
    /// EAGAIN if that is nothing. The buffer stays put until then.
    fn send(&mut self, socket: &Self::Socket, buffer: &Buffer, from: u32, len: u32, token: Token);
    /// As [`Io::send`], but the kernel may read the buffer for longer than the operation takes, also
    /// after [`Io::release`]; completes with EOPNOTSUPP if the socket is unable to.
    fn send_zero_copy(
        &mut self,
        socket: &Self::Socket,
        buffer: &Buffer,
        from: u32,
        len: u32,
        token: Token,
    );
    /// Sends what the socket takes at once; `WouldBlock` if nothing.
    fn send_now(&mut self, socket: &Self::Socket, pieces: &[Piece<'_>]) -> io::Result<usize>;
    /// Completes each time the socket sends FIN (io_uring reports it unasked), fails or hangs up.
    fn watch(&mut self, socket: &Self::Socket, token: Token);
    /// Makes an operation complete soon.
    fn cancel(&mut self, target: Token);
    /// Holds `len` bytes that are going to wait where they keep no buffer from others.
    fn set_aside(&mut self, buffer: &mut Buffer, len: u32);
    /// Gives a buffer back.
    fn release(&mut self, buffer: Buffer);
    /// Whether the kernel has buffers of the group to fill.
    fn has_buffers(&self, group: Group) -> bool;
    /// Asks for more buffers in a group; false if the group has none left.
    fn widen(&mut self, group: Group) -> bool;
    /// Size of one buffer, in bytes.
    fn buffer_bytes(&self) -> u32;
    /// Sends FIN behind what is queued.
    fn shutdown_write(&mut self, socket: &Self::Socket);
    /// Probes from now on whether the peer is still there.
    fn keep_alive(&mut self, socket: &Self::Socket, keepalive: Keepalive);
    /// Makes the coming close a reset.
    fn linger_zero(&mut self, socket: &Self::Socket);
    /// Bytes sent that the peer has not acknowledged and still may.
    fn unacknowledged_bytes(&mut self, socket: &Self::Socket) -> u32;
    /// Whether completions wait that were not handed out: bytes may be among them.
    fn has_completions(&mut self) -> bool;
    /// Bytes of the peer that lie in the socket, received by nobody; of those before urgent data.
    fn unread_bytes(&mut self, socket: &Self::Socket) -> u32;
    /// Whether there are any, also behind urgent data.
    fn has_unread(&mut self, socket: &Self::Socket) -> bool;
    /// The socket's pending error.
    fn take_error(&mut self, socket: &Self::Socket) -> io::Result<()>;
    /// Closes the socket. No operation on it may be in flight.
    fn close(&mut self, socket: Self::Socket) {
        drop(socket);
    }
}

impl Io for RelayRing {
    type Socket = OwnedFd;
    type Pipe = Pipe;

    fn recv(&mut self, socket: &OwnedFd, group: Group, shots: Shots, token: Token) {
        RelayRing::recv(self, socket.as_fd(), group, shots, token);
    }

    fn recv_up_to(&mut self, socket: &OwnedFd, group: Group, len: u32, token: Token) {
        RelayRing::recv_up_to(self, socket.as_fd(), group, len, token);
    }

    fn await_readable(&mut self, socket: &OwnedFd, token: Token) {
        let events = libc::POLLIN as u32;
        self.poll(socket.as_raw_fd(), events, Shots::Single, token);
    }

    fn set_low_water(&mut self, socket: &OwnedFd, bytes: u32) {
        socket::set_low_water(socket.as_fd(), bytes);
    }

    fn make_pipe(&mut self) -> io::Result<Pipe> {
        Pipe::new()
    }

    fn fill(&mut self, from: &OwnedFd, pipe: &Pipe, len: usize) -> io::Result<usize> {
        pipe.fill(from.as_fd(), len)
    }

    fn drain(&mut self, pipe: &Pipe, to: &OwnedFd, len: usize) -> io::Result<usize> {
        pipe.drain(to.as_fd(), len)
    }

    fn is_empty(&self, pipe: &Pipe) -> bool {
        pipe.buffered_bytes().is_ok_and(|bytes| bytes == 0)
    }

    fn await_writable(&mut self, socket: &OwnedFd, token: Token) {
        let events = libc::POLLOUT as u32;
        self.poll(socket.as_raw_fd(), events, Shots::Multi, token);
    }

    fn send(&mut self, socket: &OwnedFd, buffer: &Buffer, from: u32, len: u32, token: Token) {
        RelayRing::send(self, socket.as_fd(), buffer, from, len, token);
    }

    fn send_zero_copy(
        &mut self,
        socket: &OwnedFd,
        buffer: &Buffer,
        from: u32,
        len: u32,
        token: Token,
    ) {
        RelayRing::send_zero_copy(self, socket.as_fd(), buffer, from, len, token);
    }

    fn send_now(&mut self, socket: &OwnedFd, pieces: &[Piece<'_>]) -> io::Result<usize> {
        RelayRing::send_now(self, socket.as_fd(), pieces)
    }

    fn watch(&mut self, socket: &OwnedFd, token: Token) {
        // No event is asked for: POLLERR and POLLHUP are reported unasked.
        self.poll(socket.as_raw_fd(), 0, Shots::Multi, token);
    }

    fn cancel(&mut self, target: Token) {
        RelayRing::cancel(self, target);
    }

    fn set_aside(&mut self, buffer: &mut Buffer, len: u32) {
        self.buffers().set_aside(buffer, len);
    }

    fn release(&mut self, buffer: Buffer) {
        self.buffers().release(buffer);
    }

    fn has_buffers(&self, group: Group) -> bool {
        RelayRing::has_buffers(self, group)
    }

    fn widen(&mut self, group: Group) -> bool {
        self.buffers().widen(group)
    }

    fn buffer_bytes(&self) -> u32 {
        self.buffer_size_bytes()
    }

    fn shutdown_write(&mut self, socket: &OwnedFd) {
        socket::shutdown_write(socket.as_fd());
    }

    fn keep_alive(&mut self, socket: &OwnedFd, keepalive: Keepalive) {
        socket::keep_alive(socket.as_fd(), keepalive);
    }

    fn linger_zero(&mut self, socket: &OwnedFd) {
        socket::linger_zero(socket.as_fd());
    }

    fn unacknowledged_bytes(&mut self, socket: &OwnedFd) -> u32 {
        socket::unacknowledged_bytes(socket.as_fd())
    }

    fn has_completions(&mut self) -> bool {
        RelayRing::has_completions(self)
    }

    fn unread_bytes(&mut self, socket: &OwnedFd) -> u32 {
        socket::unread_bytes(socket.as_fd())
    }

    fn has_unread(&mut self, socket: &OwnedFd) -> bool {
        // FIONREAD ends at the urgent byte, which a receive skips.
        socket::unread_bytes(socket.as_fd()) > 0
            || socket::peek_bytes(socket.as_fd(), &mut [0]).is_ok_and(|bytes| bytes > 0)
    }

    fn take_error(&mut self, socket: &OwnedFd) -> io::Result<()> {
        socket::take_error(socket)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::ring::RingOptions;

    #[test]
    fn bytes_behind_an_urgent_one_are_unread() {
        let mut ring = RelayRing::new(RingOptions {
            buffer_bytes: 4096,
            buffers: 64,
            cq_entries: 64,
            zero_copy_send: false,
            busy_poll: false,
            multishot_receive: true,
        })
        .expect("a ring");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("loopback");
        let socket = OwnedFd::from(listener.accept().expect("it connected").0);
        assert!(!ring.has_unread(&socket));
        let urgent = socket2::SockRef::from(&peer).send_out_of_band(b"!");
        urgent.expect("room for a byte");
        peer.write_all(b"behind").expect("room");
        // Loopback delivers before write(2) returns.
        assert_eq!(Io::unread_bytes(&mut ring, &socket), 0);
        assert!(ring.has_unread(&socket));
    }
}
