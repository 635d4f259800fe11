//! Stream sockets: making, accepting, connecting and ending them, non-blocking and close-on-exec
//! throughout.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockRef, Socket, TcpKeepalive, Type};

use super::check;
use super::source::{Origin, Refused};
use super::tcp_info::is_dead;
use crate::units::Address;

/// Probes for a peer that is gone without a word (tcp(7): TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT).
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// Silence before the first probe; whole seconds.
    pub idle: Duration,
    /// Between two probes; whole seconds.
    pub interval: Duration,
    /// Unanswered probes after which the connection is given up.
    pub probes: u32,
}

impl Keepalive {
    /// [`Keepalive::idle`] in milliseconds.
    pub fn idle_ms(&self) -> u64 {
        u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Options for one side of a session. Set on a listener, Linux hands all of them to the sockets
/// that it accepts, which saves system calls per connection.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `TCP_NODELAY`.
    pub nodelay: bool,
    /// `TCP_USER_TIMEOUT`.
    pub user_timeout: Option<Duration>,
}

impl Options {
    fn apply(&self, socket: &Socket) -> io::Result<()> {
        if self.nodelay {
            socket.set_tcp_nodelay(true)?;
        }
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        Ok(())
    }
}

/// The kernel's form of an address.
///
/// Errors: a unix path longer than `sun_path` (107 bytes).
pub fn sockaddr(address: &Address) -> io::Result<SockAddr> {
    match address {
        Address::Tcp(address) => Ok((*address).into()),
        Address::Unix(path) => SockAddr::unix(path),
    }
}

fn stream_socket(address: &Address) -> io::Result<Socket> {
    let flags = Type::STREAM.nonblocking().cloexec();
    match address {
        Address::Tcp(ip) => Socket::new(Domain::for_address(*ip), flags, Some(Protocol::TCP)),
        Address::Unix(_) => Socket::new(Domain::UNIX, flags, None),
    }
}

/// A bound socket that does not listen yet.
///
/// `reuse_port` joins the address's SO_REUSEPORT group; without it the bind fails if anyone, a
/// group included, holds the address. IPv6 sockets are IPV6_V6ONLY.
pub fn bind(address: &Address, reuse_port: bool, options: &Options) -> io::Result<OwnedFd> {
    let socket = stream_socket(address)?;
    if let Address::Tcp(ip) = address {
        if ip.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Connections of a former instance in TIME_WAIT must not block a restart. A listening
        // socket still conflicts, which is what the caller wants to hear about.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        options.apply(&socket)?;
    }
    socket.bind(&sockaddr(address)?)?;
    Ok(socket.into())
}

/// Keeps connections back until their first byte came, for about this long (`TCP_DEFER_ACCEPT`).
/// The kernel counts in retransmitted SYN-ACKs, so that it is at least so long.
pub fn defer_accept(listener: &impl AsFd, wait: Duration) -> io::Result<()> {
    let seconds = i32::try_from(wait.as_secs()).unwrap_or(i32::MAX);
    let name = libc::TCP_DEFER_ACCEPT;
    set_option(listener.as_fd(), libc::IPPROTO_TCP, name, &seconds)
}

/// Starts listening.
pub fn listen(socket: &impl AsFd, backlog: u32) -> io::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    SockRef::from(socket).listen(backlog)
}

/// The address that a socket is bound to; `None` for a unix socket.
pub fn local_address(socket: &impl AsFd) -> io::Result<Option<SocketAddr>> {
    Ok(SockRef::from(socket).local_addr()?.as_socket())
}

/// Takes one connection out of the accept queue.
///
/// Errors: those of accept(2); `WouldBlock` when the queue is empty.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    let mut accepted = None;
    let fill = |storage: *mut SockAddrStorage, len: *mut libc::socklen_t| {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: `storage` is writable for `*len` bytes, and accept4 writes no more than that.
        let raw = unsafe { libc::accept4(listener.as_raw_fd(), storage.cast(), len, flags) };
        accepted = Some(check(raw)?);
        Ok(())
    };
    // SAFETY: after `fill`, the kernel has written an address and its length.
    let ((), address) = unsafe { SockAddr::try_init(fill) }?;
    let raw: RawFd = accepted.expect("set whenever try_init returned Ok");
    // SAFETY: accept4 has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    Ok((socket, address.as_socket()))
}

/// Why a connection cannot be made, or does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens (ECONNREFUSED, ECONNRESET), a unix path is not there (ENOENT), or its backlog is full
    /// (EAGAIN).
    Refused,
    /// No answer (ETIMEDOUT).
    Timeout,
    /// No way there. A prohibit route says EACCES, a filter EPERM.
    Unreachable,
    /// Ours: no local port is left for the destination (EADDRNOTAVAIL).
    Ports,
    /// Ours: no descriptor or memory (EMFILE, ENFILE, ENOMEM, ENOBUFS).
    Resources,
    /// None of these.
    Other,
}

/// What an error of a socket means. See connect(2), tcp(7), unix(7).
pub fn fault(error: &io::Error) -> Fault {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ECONNRESET | libc::ENOENT | libc::EAGAIN) => Fault::Refused,
        Some(libc::ETIMEDOUT) => Fault::Timeout,
        Some(
            libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENETDOWN
            | libc::EACCES
            | libc::EPERM,
        ) => Fault::Unreachable,
        Some(libc::EADDRNOTAVAIL) => Fault::Ports,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => Fault::Resources,
        _ => Fault::Other,
    }
}

/// How a connection attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connecting {
    /// Established.
    Done,
    /// The handshake is under way; wait until the socket is writable.
    Pending,
}

/// What the third segment of a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThirdSegment {
    /// A bare ACK, at once: the server hears of the connection whether we send anything or not.
    Ack,
    /// The first bytes, which carry the ACK. They must follow at once: a server that heard no ACK
    /// for 200 ms (the kernel's delayed-ACK timer) gets a bare one.
    Data,
}

/// Where a connection goes, and where it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The server.
    pub address: &'a Address,
    /// What the socket is given first; means nothing for a unix socket. `None` leaves all to the kernel.
    pub origin: Option<Origin<'a>>,
}

impl<'a> From<&'a Address> for Target<'a> {
    fn from(address: &'a Address) -> Self {
        let origin = None;
        Self { address, origin }
    }
}

/// Why a connection could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The [`Origin`] could not be had. Never the server's fault.
    #[error(transparent)]
    Origin(#[from] Refused),
    /// socket(2), connect(2).
    #[error(transparent)]
    Os(#[from] io::Error),
}

/// Begins a connection and, where the handshake is over at once (loopback, unix), ends it.
///
/// Errors: those of socket(2) and connect(2). A unix socket with a full backlog says `WouldBlock`.
pub fn connect(
    target: Target<'_>,
    options: &Options,
    third: ThirdSegment,
) -> Result<(OwnedFd, Connecting), ConnectError> {
    let socket = prepare(target, options)?;
    if matches!(target.address, Address::Tcp(_)) && third == ThirdSegment::Data {
        let_data_acknowledge(socket.as_fd());
    }
    let connecting = match socket.connect(&sockaddr(target.address)?) {
        Ok(()) => {
            refuse_itself(&socket, target.address)?;
            Connecting::Done
        }
        // The SYN-ACK of a local server was handled when the first call let go of the socket, so a
        // second call finds the connection established (or refused) and saves a round through a ring.
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {
            continue_connecting(&socket, target.address)?
        }
        Err(error) => return Err(error.into()),
    };
    Ok((socket.into(), connecting))
}

/// A socket that has everything but a connection.
pub(super) fn prepare(target: Target<'_>, options: &Options) -> Result<Socket, ConnectError> {
    let socket = stream_socket(target.address)?;
    if let Address::Tcp(server) = target.address {
        options.apply(&socket)?;
        if let Some(origin) = target.origin {
            origin.apply(&socket, server.is_ipv4())?;
        }
    }
    Ok(socket)
}

/// The first bytes are to carry the ACK of the handshake: see [`ThirdSegment::Data`]. In SYN-SENT, or before, it
/// means just this (tcp_rcv_synsent_state_process); later it would hold back other ACKs. It only saves a
/// segment: a kernel that refuses it sends one more.
pub fn let_data_acknowledge(socket: BorrowedFd<'_>) {
    let _ = SockRef::from(&socket).set_tcp_quickack(false);
}

/// How a connection that was begun stands.
///
/// Errors: those of connect(2).
pub fn continue_connecting(socket: &impl AsFd, address: &Address) -> io::Result<Connecting> {
    let result = SockRef::from(socket).connect(&sockaddr(address)?);
    match result.map_err(|error| (error.raw_os_error(), error)) {
        Err((Some(libc::EALREADY | libc::EINPROGRESS), _)) => return Ok(Connecting::Pending),
        Err((errno, error)) if errno != Some(libc::EISCONN) => return Err(error),
        _ => {}
    }
    refuse_itself(socket, address)?;
    Ok(Connecting::Done)
}

/// A dead local server whose port is an ephemeral one can be "reached" by a socket that the kernel
/// happened to give the same port: it is connected to itself (TCP simultaneous open, RFC 9293
/// section 3.5) and would echo its client.
///
/// Errors: `ConnectionRefused`, which is what the server's absence means.
pub fn refuse_itself(socket: &impl AsFd, address: &Address) -> io::Result<()> {
    match address {
        Address::Tcp(peer) if local_address(socket)? == Some(*peer) => {
            Err(io::Error::from_raw_os_error(libc::ECONNREFUSED))
        }
        _ => Ok(()),
    }
}

/// Reads and clears `SO_ERROR`.
pub fn take_error(socket: &impl AsFd) -> io::Result<()> {
    match SockRef::from(socket).take_error()? {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Bytes that wait to be read, up to urgent data (`FIONREAD`).
pub fn unread_bytes(socket: BorrowedFd<'_>) -> u32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which `bytes` is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &mut bytes) };
    if result == 0 {
        u32::try_from(bytes).unwrap_or(0)
    } else {
        0
    }
}

/// Waits until the peer has closed or reset the connection, whatever of its bytes is still to be read, or
/// until the time is over.
pub fn await_end(socket: BorrowedFd<'_>, timeout_ms: i32) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: `poll` is one valid entry for the duration of the call.
    check(unsafe { libc::poll(&mut poll, 1, timeout_ms) })?;
    Ok(())
}

/// What can be told of a peer without reading its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Connected, nothing to read.
    Silent,
    /// Bytes are waiting.
    Sent,
    /// It closed (FIN) and sent nothing that is not read yet.
    Closed,
    /// It reset the connection.
    Reset,
}

/// Looks at a socket without consuming anything but its pending error.
pub fn peek(socket: BorrowedFd<'_>) -> Peer {
    let mut byte = 0u8;
    // SAFETY: `byte` is one writable byte, as the length says.
    let result = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            (&raw mut byte).cast(),
            1,
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    };
    match result {
        0 => Peer::Closed,
        1.. => {
            if has_failed(socket) {
                Peer::Reset
            } else {
                Peer::Sent
            }
        }
        _ => match io::Error::last_os_error().kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Peer::Silent,
            _ => Peer::Reset,
        },
    }
}

/// Copies what waits to be read into `buffer` and leaves it there (`MSG_PEEK`); 0 is FIN, or nothing asked for.
///
/// Errors: those of recv(2); `WouldBlock` when nothing waits.
pub fn peek_bytes(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    receive(socket, buffer, libc::MSG_PEEK)
}

/// Takes as many bytes as fit into `buffer`, of those that wait.
///
/// Errors: those of recv(2); `WouldBlock` when nothing waits.
pub fn take_bytes(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    receive(socket, buffer, 0)
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: `buffer` is writable for its length.
    let result = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags | libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sends what the socket takes at once. A peer that is gone is an error and no signal.
///
/// Errors: those of send(2); `WouldBlock` when it takes nothing.
pub fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: `bytes` is readable for its length.
    let result = unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether the peer has closed or reset the connection, whatever of its bytes is still to be read.
pub fn has_ended(socket: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one valid pollfd, as the count says; a timeout of 0 never blocks.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    ready == 1
}

/// Whether the socket reports POLLERR: a reset that waits behind unread bytes.
fn has_failed(socket: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: one valid pollfd, as the count says; a timeout of 0 never blocks.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLERR != 0
}

/// Sends FIN after what is queued (`shutdown(2)`, SHUT_WR).
pub fn shutdown_write(socket: BorrowedFd<'_>) {
    // A peer that reset the connection makes this fail with ENOTCONN; the receive side reports it.
    let _ = SockRef::from(&socket).shutdown(std::net::Shutdown::Write);
}

/// Ends the receiving half without telling the peer: a poll on the socket completes.
pub fn shutdown_read(socket: BorrowedFd<'_>) {
    let _ = SockRef::from(&socket).shutdown(std::net::Shutdown::Read);
}

/// Ends both directions at once: a poll on the socket completes.
pub fn shutdown(socket: BorrowedFd<'_>) {
    let _ = SockRef::from(&socket).shutdown(std::net::Shutdown::Both);
}

/// Switches probes on. Sockets that know none, such as unix ones, are left as they are.
pub fn keep_alive(socket: BorrowedFd<'_>, keepalive: Keepalive) {
    let pace = TcpKeepalive::new()
        .with_interval(keepalive.interval)
        .with_retries(keepalive.probes);
    let socket = SockRef::from(&socket);
    let _ = socket.set_tcp_keepalive(&pace);
    // Last, for it takes off what has passed since something was received: the first probe may be due now.
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive.idle));
}

/// Ends both directions at once (connect(2) to AF_UNSPEC; ABORT of RFC 9293 section 3.10.5): RST to a peer whose
/// handshake is over, nothing in SYN-SENT, where a late SYN-ACK gets RST. A poll on the socket completes. For TCP;
/// what fails on a connection that is over already is no loss.
pub fn disconnect(socket: BorrowedFd<'_>) {
    let nowhere = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let len = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: `nowhere` is readable for `len` bytes.
    unsafe { libc::connect(socket.as_raw_fd(), &nowhere, len) };
}

/// Makes the coming `close(2)` send RST and drop what is queued (`SO_LINGER` with 0 seconds).
pub fn linger_zero(socket: BorrowedFd<'_>) {
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// Sets SO_RCVLOWAT: below so many bytes the socket does not count as readable, FIN and errors aside
/// (socket(7)). The kernel grows the receive buffer to fit, and looks at once whether a waiter is to be
/// woken. Sockets that know no such mark are left as they are.
pub fn set_low_water(socket: BorrowedFd<'_>, bytes: u32) {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the option's value is one int, which outlives the call.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
}

/// Bytes that were sent and that the peer has not acknowledged yet (`SIOCOUTQ`, tcp(7)); 0 on a
/// connection that is dead, where the kernel's count stays what it was.
pub fn unacknowledged_bytes(socket: BorrowedFd<'_>) -> u32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int, which `bytes` is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if result == -1 || bytes <= 0 || is_dead(socket) {
        0
    } else {
        bytes as u32
    }
}

pub(super) fn set_option<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is readable for `len` bytes, and every caller passes the type that the option
    // asks for; a program's instructions live until the call returns.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            len,
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    const PLAIN: Options = Options {
        nodelay: true,
        user_timeout: None,
    };

    fn connected(listener: &TcpListener, third: ThirdSegment) -> TcpStream {
        let address = Address::Tcp(listener.local_addr().unwrap());
        let (socket, connecting) = connect((&address).into(), &PLAIN, third).unwrap();
        assert_eq!(connecting, Connecting::Done, "loopback answers at once");
        socket.into()
    }

    #[test]
    fn the_first_bytes_carry_the_ack_of_the_handshake() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();

        let _plain = connected(&listener, ThirdSegment::Ack);
        listener.accept().expect("acknowledged at once");

        let mut client = connected(&listener, ThirdSegment::Data);
        let early = listener.accept().map_err(|error| error.kind());
        assert_eq!(early.err(), Some(io::ErrorKind::WouldBlock), "no ACK yet");
        client.write_all(b"hello").unwrap();
        let (mut server, _) = listener.accept().expect("the bytes acknowledged it");
        server.set_nonblocking(false).unwrap();
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn unread_bytes_are_seen_and_a_fin_is_not_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(unread_bytes(server.as_fd()), 0);
        client.write_all(b"xyz").unwrap();
        assert_eq!(unread_bytes(server.as_fd()), 3);
        server.read_exact(&mut [0; 3]).unwrap();
        drop(client);
        assert_eq!(unread_bytes(server.as_fd()), 0);
    }
}
