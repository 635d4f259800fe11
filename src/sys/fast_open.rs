//! TCP Fast Open (RFC 7413): bytes that go with the SYN and reach the server a round trip earlier.
//!
//! ```text
//!   first connection     SYN, cookie? ──>       <── SYN-ACK, cookie      bytes ──>
//!   every other one      SYN, cookie, bytes ──>       <── SYN-ACK of the bytes, or of the SYN alone
//! ```
//!
//! The kernel keeps the cookies, one per address of a server, and sends again by itself what a server did
//! not take with the SYN.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use socket2::SockRef;

use super::socket::{self, ConnectError, Options, Target, ThirdSegment, set_option};
use crate::outcome::FastOpen;

/// What fits a SYN beside its options, on a path of 1,500 bytes (RFC 7413 section 4.2.1: no more than the
/// server's MSS). The kernel takes less where less fits.
pub const SYN_BYTES_MAX: usize = 1_400;

/// Takes bytes that come with a SYN (`TCP_FASTOPEN`), for at most `queue` handshakes at a time. The
/// kernel does so only if `net.ipv4.tcp_fastopen` allows it to servers.
pub fn accept(listener: &impl AsFd, queue: u32) -> io::Result<()> {
    let queue = i32::try_from(queue).unwrap_or(i32::MAX);
    let name = libc::TCP_FASTOPEN;
    set_option(listener.as_fd(), libc::IPPROTO_TCP, name, &queue)
}

/// Begins a connection whose SYN holds as many of the bytes as fit, if there is a cookie of the server
/// (`MSG_FASTOPEN`); says how many went. Go on with [`socket::continue_connecting`].
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
    let sent = match SockRef::from(&socket).send_to_with_flags(bytes, &server, flags) {
        Ok(sent) => sent,
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => 0,
        // Not allowed to clients by net.ipv4.tcp_fastopen. The next call begins as any other does.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    if sent < bytes.len() {
        socket::set_third_segment(&socket, ThirdSegment::Data)?;
    }
    Ok((socket.into(), sent))
}

/// Of an established connection, for which [`begin`] said how many bytes went.
pub fn outcome(socket: BorrowedFd<'_>, sent: usize) -> FastOpen {
    if sent == 0 {
        FastOpen::NotSent
    } else if took_bytes_of_syn(socket) {
        FastOpen::Taken
    } else {
        FastOpen::Ignored
    }
}

/// Whether the server acknowledged bytes of the SYN (tcp_info of tcp(7)).
fn took_bytes_of_syn(socket: BorrowedFd<'_>) -> bool {
    /// The kernel's include/uapi/linux/tcp.h.
    const TCPI_OPT_SYN_DATA: u8 = 32;
    /// Of `tcpi_options` in `struct tcp_info`, behind five other bytes.
    const OPTIONS_AT: usize = 5;
    // The kernel copies as much as is asked for.
    let mut info = [0u8; OPTIONS_AT + 1];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: `info` is writable for the bytes that `len` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut len,
        )
    };
    result == 0 && info[OPTIONS_AT] & TCPI_OPT_SYN_DATA != 0
}
