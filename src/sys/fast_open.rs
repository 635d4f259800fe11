//! TCP Fast Open (RFC 7413): bytes that go with the SYN and reach the server a round trip earlier.
//!
//! ```text
//!   first connection     SYN, cookie? ──>       <── SYN-ACK, cookie      bytes ──>
//!   every other one      SYN, cookie, bytes ──>       <── SYN-ACK of the bytes, or of the SYN alone
//! ```
//!
//! The kernel keeps the cookies, one for each pair of an address of ours and one of a server (tcp_metrics), and
//! sends again by itself what a server did not take with the SYN.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::limits;
use super::socket::{self, ConnectError, Options, Target, set_option};

/// Whom [`allowed`] allows it: those who connect (`TFO_CLIENT_ENABLE`).
pub const CLIENTS: i64 = 1;
/// Those who listen (`TFO_SERVER_ENABLE`).
pub const SERVERS: i64 = 2;

/// `net.ipv4.tcp_fastopen`, the sum of those and of others; `None` if it cannot be read.
pub fn allowed() -> Option<i64> {
    limits::sysctl("net/ipv4/tcp_fastopen")
}

/// What fits a SYN beside its options, on a path of 1,500 bytes. The kernel takes less where less fits.
pub const SYN_BYTES_MAX: usize = 1_400;

/// Takes bytes that come with a SYN (`TCP_FASTOPEN`), for at most `queue` handshakes at a time. The
/// kernel does so only if `net.ipv4.tcp_fastopen` allows it to servers.
pub fn accept(listener: &impl AsFd, queue: u32) -> io::Result<()> {
    let queue = i32::try_from(queue).unwrap_or(i32::MAX);
    let name = libc::TCP_FASTOPEN;
    set_option(listener.as_fd(), libc::IPPROTO_TCP, name, &queue)
}

/// Begins a connection whose SYN holds as many of the bytes as fit, if there is a cookie of the server
/// (`MSG_FASTOPEN`); says how many went. The SYN has left then.
///
/// Errors: as for [`socket::connect`]. No byte went anywhere then.
pub fn begin(
    target: Target<'_>,
    options: &Options,
    bytes: &[u8],
) -> Result<(OwnedFd, usize), ConnectError> {
    let socket = socket::prepare(target, options)?;
    let server = socket::sockaddr(target.address)?;
    let flags = libc::MSG_FASTOPEN | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let mut result = socket.send_to_with_flags(bytes, &server, flags);
    if matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP)) {
        // Not allowed to clients by net.ipv4.tcp_fastopen.
        socket::let_data_acknowledge(socket.as_fd());
        result = socket.connect(&server).map(|()| 0);
    }
    match result {
        Ok(sent) => Ok((socket.into(), sent)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok((socket.into(), 0)),
        Err(error) => Err(error.into()),
    }
}
