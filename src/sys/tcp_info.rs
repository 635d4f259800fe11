//! What the kernel tells of a TCP connection: `struct tcp_info` of its include/uapi/linux/tcp.h.

use std::os::fd::{AsRawFd, BorrowedFd};

/// States of include/net/tcp_states.h.
const TCP_SYN_SENT: u8 = 2;
const TCP_SYN_RECV: u8 = 3;
const TCP_CLOSE: u8 = 7;
/// Bit of [`Head::options`]: bytes of our SYN were acknowledged with it.
const TCPI_OPT_SYN_DATA: u8 = 32;

/// The first bytes of `struct tcp_info`.
#[repr(C)]
#[derive(Default)]
struct Head {
    state: u8,
    _congestion_state: u8,
    _retransmits: u8,
    _probes: u8,
    _backoff: u8,
    options: u8,
}

/// `None` for what is no TCP socket.
fn head(socket: BorrowedFd<'_>) -> Option<Head> {
    let mut head = Head::default();
    let mut len = size_of::<Head>() as libc::socklen_t;
    // SAFETY: `head` is writable for the bytes that `len` says, any of which may have any value; the kernel
    // copies as much as is asked for.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut head).cast(),
            &mut len,
        )
    };
    (result == 0).then_some(head)
}

/// Whether the connection is over in both directions.
pub fn is_dead(socket: BorrowedFd<'_>) -> bool {
    head(socket).is_some_and(|head| head.state == TCP_CLOSE)
}

/// Whether the handshake is under way.
pub fn is_connecting(socket: BorrowedFd<'_>) -> bool {
    head(socket).is_some_and(|head| matches!(head.state, TCP_SYN_SENT | TCP_SYN_RECV))
}

/// Whether the server acknowledged bytes that went with the SYN, be the connection over by now.
pub fn took_bytes_of_syn(socket: BorrowedFd<'_>) -> bool {
    head(socket).is_some_and(|head| head.options & TCPI_OPT_SYN_DATA != 0)
}
