//! Zero-copy sends (SEND_ZC) out of the slab, which is registered as fixed buffers for them.
//!
//! The network card reads such a buffer itself, for longer than the send takes: until the peer has
//! acknowledged the bytes, or the connection is reset. So an operation completes twice:
//!
//! ```text
//!   send ──> result ─────────────────────────────────> notification
//!              │ the engine's; it goes on, releases       │ the pool's: the kernel returns the buffer,
//!              │ the buffer, may close the socket          │ which is free from now on
//! ```
//!
//! The engine never sees a notification: what has to outlive a session is the buffer, and the pool
//! keeps it.
//!
//! Not every path can do it: loopback, a tap such as tcpdump, or a card without scatter-gather make the
//! kernel copy after all, which costs more than copying at once. Each notification tells; when most of
//! them say so, zero copy is switched off. See io_uring_enter(2), IORING_OP_SEND_ZC.

use std::os::fd::RawFd;

use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};

use super::{BufferPool, Token};

/// Smaller sends are copied: pinning and the second completion cost more than so many bytes.
pub const ZERO_COPY_MIN_BYTES: u32 = 8 * 1024;
/// The operation's token is this plus its buffer's number.
pub(super) const TOKEN_FIRST: Token = Token::MAX - 0x1_FFFF;
const TOKEN_LAST: Token = TOKEN_FIRST + 0xFFFF;
/// Notifications that are judged together.
const WINDOW: u32 = 64;
/// IORING_SEND_ZC_REPORT_USAGE: the notification says whether the kernel copied. Since Linux 6.2.
const REPORT_USAGE: u16 = 1 << 3;
/// IORING_NOTIF_USAGE_ZC_COPIED, in a notification's result.
const COPIED: u32 = 1 << 31;

/// Counters of zero-copy sends.
#[derive(Clone, Copy, Debug, Default)]
pub struct ZeroCopyStats {
    /// Asked for, and not switched off.
    pub is_on: bool,
    /// Sends that the kernel did not copy.
    pub zero_copy_total: u64,
    /// Sends that the kernel copied after all.
    pub copied_total: u64,
}

/// Zero-copy sends of one ring.
pub(super) struct ZeroCopy {
    /// Indexed by buffer: a buffer is in at most one such operation.
    sends: Vec<Send>,
    stats: ZeroCopyStats,
    judged: u32,
    judged_copied: u32,
}

#[derive(Clone, Copy, Default)]
struct Send {
    /// The engine's.
    token: Token,
    /// A send that took nothing is reported as copied.
    took_bytes: bool,
}

impl ZeroCopy {
    /// For a slab of so many buffers.
    pub(super) fn new(buffers: usize) -> Self {
        Self {
            sends: vec![Send::default(); buffers],
            stats: ZeroCopyStats {
                is_on: true,
                ..ZeroCopyStats::default()
            },
            judged: 0,
            judged_copied: 0,
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.stats.is_on
    }

    pub(super) fn stats(&self) -> ZeroCopyStats {
        self.stats
    }

    /// The operation that sends `bytes` of a lent buffer, and its token in the ring.
    pub(super) fn send(
        &mut self,
        fd: RawFd,
        id: u16,
        fixed_index: u16,
        bytes: &[u8],
        token: Token,
    ) -> (squeue::Entry, Token) {
        self.sends[usize::from(id)].token = token;
        let entry = opcode::SendZc::new(Fd(fd), bytes.as_ptr(), bytes.len() as u32)
            .buf_index(Some(fixed_index))
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .zc_flags(REPORT_USAGE)
            .build();
        (entry, TOKEN_FIRST + Token::from(id))
    }

    /// One of the two completions. Returns the engine's token if it is the engine's.
    pub(super) fn on_completion(
        &mut self,
        entry: &cqueue::Entry,
        buffers: &mut BufferPool,
    ) -> Option<Token> {
        let id = (entry.user_data() - TOKEN_FIRST) as u16;
        let send = &mut self.sends[usize::from(id)];
        if cqueue::notif(entry.flags()) {
            buffers.returned(id);
            if send.took_bytes {
                self.judge(entry.result() as u32 & COPIED != 0);
            }
            return None;
        }
        send.took_bytes = entry.result() > 0;
        let token = send.token;
        if !cqueue::more(entry.flags()) {
            // No notification will come.
            buffers.returned(id);
        }
        Some(token)
    }

    fn judge(&mut self, copied: bool) {
        if copied {
            self.stats.copied_total += 1;
        } else {
            self.stats.zero_copy_total += 1;
        }
        self.judged += 1;
        self.judged_copied += u32::from(copied);
        if self.judged < WINDOW {
            return;
        }
        if self.stats.is_on && self.judged_copied > WINDOW / 2 {
            self.stats.is_on = false;
            let thread = std::thread::current();
            tracing::info!(
                core = thread.name(),
                copied = self.judged_copied,
                of = WINDOW,
                "zero-copy sends are switched off: the kernel copies them, as it does over loopback"
            );
        }
        self.judged = 0;
        self.judged_copied = 0;
    }
}

/// Whether this token is of a zero-copy send.
pub(super) fn is_zero_copy(token: Token) -> bool {
    (TOKEN_FIRST..=TOKEN_LAST).contains(&token)
}
