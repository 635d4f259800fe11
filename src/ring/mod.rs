//! The relay ring: one io_uring per core that carries every byte after the handshake, and in which
//! the core's thread sleeps.
//!
//! It offers the few operations that a relay needs, hands out completions, and owns the buffers.
//! Not here: what a completion means. See io_uring(7), io_uring_setup(2), io_uring_enter(2).

pub mod buffers;
pub mod multishot;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wait_tests;
pub mod zero_copy;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Submitter, cqueue, opcode, squeue};

pub use buffers::{Buffer, BufferPool, Group};
use zero_copy::{ZeroCopy, ZeroCopyStats, is_zero_copy};

/// Submission entries. A pass that needs more submits in between.
const SQ_ENTRIES: u32 = 512;
/// Largest completion queue that the kernel accepts (IORING_MAX_CQ_ENTRIES).
const CQ_ENTRIES_MAX: u32 = 65_536;
/// Completions handed out per pass; the rest waits in the queue for the next one.
const REAP_MAX: usize = 1_024;

/// What an operation is found again by; the highest values are this module's.
pub type Token = u64;
/// A cancel request's own completion, which nobody waits for.
const TOKEN_CANCEL: Token = Token::MAX;
/// Tokens from here on are reserved: callers use smaller ones.
pub const TOKEN_RESERVED: Token = zero_copy::TOKEN_FIRST;

/// Why a ring could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// io_uring_setup(2) failed.
    #[error("io_uring_setup: {0}")]
    Setup(#[source] io::Error),
    /// The slab or a buffer ring could not be mapped.
    #[error("mapping the buffer slab: {0}")]
    Slab(#[source] io::Error),
    /// IORING_REGISTER_PBUF_RING failed.
    #[error("registering the buffer ring: {0}")]
    BufferRing(#[source] io::Error),
    /// The slab could not be registered as fixed buffers, for zero-copy sends.
    #[error("registering {bytes} bytes of buffers for zero-copy sends: {source}")]
    FixedBuffers {
        /// Size of the slab.
        bytes: usize,
        /// What the kernel said; ENOMEM is RLIMIT_MEMLOCK.
        source: io::Error,
    },
}

/// How a ring is made.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Size of one buffer, in bytes.
    pub buffer_bytes: u32,
    /// Buffers in the slab.
    pub buffers: u32,
    /// Completion queue entries; rounded up to a power of two, at most 65,536.
    pub cq_entries: u32,
    /// Large sends may be zero-copy: pins the whole slab in memory.
    pub zero_copy_send: bool,
    /// [`RelayRing::has_work`] will be asked.
    pub busy_poll: bool,
    /// A receive may have several shots; see [`multishot::tells_ends`].
    pub multishot_receive: bool,
}

/// One finished operation, or one shot of a multishot one.
#[derive(Debug)]
pub struct Completion {
    /// What the operation was submitted with.
    pub token: Token,
    /// Bytes, poll events, or a negated errno.
    pub result: i32,
    /// The buffer that a receive filled; its taker must release it.
    pub buffer: Option<Buffer>,
    /// More completions of this operation will come.
    pub more: bool,
}

/// How often an operation completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shots {
    /// One completion.
    Single,
    /// Whenever there is something to tell, until a completion without [`Completion::more`].
    Multi,
}

/// How long [`RelayRing::enter`] may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until a completion, or for so long.
    For(Duration),
    /// Until a completion.
    Forever,
}

impl Wait {
    /// What is left of it after `elapsed`. Never a timeout of zero, for which the kernel would start a timer.
    pub fn less(self, elapsed: Duration) -> Self {
        match self {
            Wait::For(duration) if duration > elapsed => Wait::For(duration - elapsed),
            Wait::For(_) => Wait::No,
            unbounded => unbounded,
        }
    }
}

/// Counters of one ring.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingStats {
    /// `io_uring_enter` calls.
    pub enters_total: u64,
    /// Entries pushed.
    pub submitted_total: u64,
    /// Completions reaped.
    pub completed_total: u64,
    /// Operations in flight, cancel requests aside.
    pub in_flight: u64,
    /// Sends: operations, and system calls that moved bytes.
    pub sends_total: u64,
    /// Enters after which completions waited that did not fit the queue. The kernel keeps them
    /// (IORING_FEAT_NODROP), at a price; its own overflow counter counts only what it lost.
    pub cq_overflow_total: u64,
}

/// The relay ring of one core. Used by the thread that made it and no other (SINGLE_ISSUER).
pub struct RelayRing {
    // Field order is drop order: the ring goes before the memory that is registered with it.
    ring: IoUring,
    buffers: BufferPool,
    zero_copy: Option<ZeroCopy>,
    multishot_receive: bool,
    stats: RingStats,
}

impl RelayRing {
    /// Sets the ring up on the calling thread, which must be the only one to use it.
    pub fn new(options: RingOptions) -> Result<Self, RingError> {
        let mut buffers =
            BufferPool::new(options.buffer_bytes, options.buffers).map_err(RingError::Slab)?;
        let cq_entries = options.cq_entries.min(CQ_ENTRIES_MAX).next_power_of_two();
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(cq_entries);
        if options.busy_poll {
            builder.setup_taskrun_flag();
        }
        let ring = builder
            .build(SQ_ENTRIES.min(cq_entries))
            .map_err(RingError::Setup)?;
        buffers.register(&ring.submitter())?;
        let zero_copy = if options.zero_copy_send {
            buffers
                .register_fixed(&ring.submitter())
                .map_err(|source| RingError::FixedBuffers {
                    bytes: options.buffer_bytes as usize * options.buffers as usize,
                    source,
                })?;
            Some(ZeroCopy::new(buffers.total()))
        } else {
            None
        };
        Ok(Self {
            ring,
            buffers,
            zero_copy,
            multishot_receive: options.multishot_receive,
            stats: RingStats::default(),
        })
    }

    /// The slab.
    pub fn buffers(&mut self) -> &mut BufferPool {
        &mut self.buffers
    }

    /// Size of one buffer, in bytes.
    pub fn buffer_size_bytes(&self) -> u32 {
        self.buffers.size_bytes()
    }

    /// Whether the kernel has buffers of the group to fill.
    pub fn has_buffers(&self, group: Group) -> bool {
        self.buffers.offered(group) > 0
    }

    /// Counters.
    pub fn stats(&self) -> RingStats {
        self.stats
    }

    /// Counters of zero-copy sends.
    pub fn zero_copy_stats(&self) -> ZeroCopyStats {
        self.zero_copy
            .as_ref()
            .map_or_else(ZeroCopyStats::default, ZeroCopy::stats)
    }

    /// Whether receives have several shots here.
    pub fn is_multishot(&self) -> bool {
        self.multishot_receive
    }

    /// Receives into a buffer of `group`'s ring. Where multishot receives are not to be trusted, each has a
    /// single shot, whatever is asked for.
    pub fn recv(&mut self, socket: BorrowedFd<'_>, group: Group, shots: Shots, token: Token) {
        let fd = Fd(socket.as_raw_fd());
        let entry = match shots {
            Shots::Multi if self.multishot_receive => {
                opcode::RecvMulti::new(fd, group as u16).build()
            }
            // A length of 0 with BUFFER_SELECT means the whole buffer.
            Shots::Multi | Shots::Single => return self.recv_up_to(socket, group, 0, token),
        };
        self.push(entry, token);
    }

    /// As [`RelayRing::recv`] with a single shot, of at most `len` bytes.
    pub fn recv_up_to(&mut self, socket: BorrowedFd<'_>, group: Group, len: u32, token: Token) {
        let fd = Fd(socket.as_raw_fd());
        let entry = opcode::Recv::new(fd, std::ptr::null_mut(), len)
            .buf_group(group as u16)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push(entry, token);
    }

    /// Sends what the socket takes of `from..len` of a held buffer when the entry is submitted: it
    /// never waits, so that its completion is there when [`RelayRing::enter`] returns.
    ///
    /// The caller keeps the buffer until the completion.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        buffer: &Buffer,
        from: u32,
        len: u32,
        token: Token,
    ) {
        let bytes = &self.buffers.bytes(buffer, len)[from as usize..];
        let fd = Fd(socket.as_raw_fd());
        let entry = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .build();
        self.stats.sends_total += 1;
        self.push(entry, token);
    }

    /// As [`RelayRing::send`], without copying where that is switched on and a share of the buffers is
    /// left for it; worth it from [`zero_copy::ZERO_COPY_MIN_BYTES`] on. A socket that is unable to
    /// completes with EOPNOTSUPP.
    ///
    /// The caller may release the buffer after the completion, as always; the kernel may read it for
    /// longer, and the pool sees to that.
    pub fn send_zero_copy(
        &mut self,
        socket: BorrowedFd<'_>,
        buffer: &Buffer,
        from: u32,
        len: u32,
        token: Token,
    ) {
        if let Some(zero_copy) = self.zero_copy.as_mut().filter(|it| it.is_on())
            && let Some(id) = self.buffers.lend(buffer)
        {
            let bytes = &self.buffers.bytes(buffer, len)[from as usize..];
            let fixed = self.buffers.fixed_index(id);
            let (entry, token) = zero_copy.send(socket.as_raw_fd(), id, fixed, bytes, token);
            self.stats.sends_total += 1;
            self.push(entry, token);
        } else {
            self.send(socket, buffer, from, len, token);
        }
    }

    /// Sends what the socket takes at once from up to [`GATHER_MAX`] pieces (sendmsg(2)).
    ///
    /// Errors: `WouldBlock` when it takes nothing; else the socket's.
    pub fn send_now(&mut self, socket: BorrowedFd<'_>, pieces: &[Piece<'_>]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let mut vectors = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; GATHER_MAX];
        for (vector, piece) in vectors.iter_mut().zip(pieces) {
            let bytes = &self.buffers.bytes(piece.buffer, piece.len)[piece.from as usize..];
            *vector = libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            };
        }
        let count = pieces.len().min(GATHER_MAX);
        let sent = if count == 1 {
            // SAFETY: the vector names bytes of a held buffer, which stay put during the call.
            unsafe {
                libc::send(
                    socket.as_raw_fd(),
                    vectors[0].iov_base,
                    vectors[0].iov_len,
                    flags,
                )
            }
        } else {
            // SAFETY: msghdr is plain old data for which all zeroes is "no name, no control".
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = vectors.as_mut_ptr();
            message.msg_iovlen = count;
            // SAFETY: the first `count` vectors name bytes of held buffers, which stay put.
            unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) }
        };
        let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
        self.stats.sends_total += 1;
        Ok(sent)
    }

    /// Polls for `events` (poll(2)); errors, hang-ups and a peer's FIN (POLLRDHUP) are always
    /// reported. [`Shots::Multi`] reports edges: what was true all along is told once.
    pub fn poll(&mut self, fd: RawFd, events: u32, shots: Shots, token: Token) {
        let poll = opcode::PollAdd::new(Fd(fd), events).multi(shots == Shots::Multi);
        self.push(poll.build(), token);
    }

    /// Cancels the operation that was submitted with `target`; it still completes, if only with
    /// ECANCELED.
    pub fn cancel(&mut self, target: Token) {
        self.push(opcode::AsyncCancel::new(target).build(), TOKEN_CANCEL);
    }

    /// Whether an enter would find something: completions, or deferred work that makes some. No system call.
    pub fn has_work(&mut self) -> bool {
        // The flag is set only with IORING_SETUP_TASKRUN_FLAG.
        self.ring.submission().taskrun() || self.has_completions()
    }

    /// Whether completions were left by the last [`RelayRing::reap`], or have come since.
    pub fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Submits what was pushed, and waits.
    pub fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.stats.enters_total += 1;
        let result = match wait {
            Wait::No => enter_now(&mut self.ring),
            Wait::For(duration) => enter_for(&self.ring.submitter(), duration),
            Wait::Forever => self.ring.submitter().submit_and_wait(1),
        };
        if self.ring.submission().cq_overflow() {
            self.stats.cq_overflow_total += 1;
        }
        match result {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                // ETIME: the timeout passed. EINTR: a signal, or a tracer. EBUSY: completions
                // overflowed and must be reaped before more can be submitted. EAGAIN: no memory
                // for a request just now. In each case the caller reaps and comes again.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(e),
            },
        }
    }

    /// Moves finished operations into `into`, oldest first.
    pub fn reap(&mut self, into: &mut Vec<Completion>) {
        let buffers = &mut self.buffers;
        let mut reaped = 0;
        let mut finished = 0;
        for entry in self.ring.completion().take(REAP_MAX) {
            reaped += 1;
            let token = entry.user_data();
            if token == TOKEN_CANCEL {
                continue;
            }
            let more = cqueue::more(entry.flags());
            finished += u64::from(!more);
            if is_zero_copy(token) {
                let zero_copy = self.zero_copy.as_mut().expect("it made the token");
                if let Some(token) = zero_copy.on_completion(&entry, buffers) {
                    into.push(Completion {
                        token,
                        result: entry.result(),
                        buffer: None,
                        more: false,
                    });
                }
                continue;
            }
            into.push(Completion {
                token,
                result: entry.result(),
                buffer: cqueue::buffer_select(entry.flags()).map(|id| buffers.take(id)),
                more,
            });
        }
        self.stats.completed_total += reaped;
        self.stats.in_flight -= finished;
    }

    fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token);
        self.stats.submitted_total += 1;
        self.stats.in_flight += u64::from(token != TOKEN_CANCEL);
        loop {
            // SAFETY: receives take their buffer from a registered ring, whose memory outlives this
            // ring (see the order of the fields). A send reads a held buffer of this ring's pool,
            // inside a slab that is never unmapped before the ring, or set aside on the heap; it is over when
            // the call that submits it returns, and until then its piece stays queued. A zero-copy send reads pages that are pinned for
            // as long as the kernel needs them.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // Full: hand over what is there. What cannot be submitted now can be after a reap, but
            // there is none here: the kernel keeps what overflows, so that this ends.
            if let Err(error) = self.enter(Wait::No) {
                panic!("the relay ring is unusable: {error}");
            }
        }
    }
}

/// Most pieces that one [`RelayRing::send_now`] takes.
pub const GATHER_MAX: usize = 16;

/// A part of a held buffer.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// First byte to send.
    pub from: u32,
    /// End of the bytes to send.
    pub len: u32,
}

/// GETEVENTS makes a DEFER_TASKRUN ring run its deferred completions. A timeout of zero would do so, too,
/// but starts a timer and waits for its interrupt: a fifth of the CPU of a bulk stream.
fn enter_now(ring: &mut IoUring) -> io::Result<usize> {
    let pending = ring.submission().len() as u32;
    let flags = EnterFlags::GETEVENTS.bits();
    // SAFETY: the call takes no argument, and submits no more than what `push` wrote.
    unsafe {
        ring.submitter()
            .enter::<libc::sigset_t>(pending, 0, flags, None)
    }
}

fn enter_for(submitter: &Submitter<'_>, duration: Duration) -> io::Result<usize> {
    let timespec = Timespec::from(duration);
    submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
}
