//! What one check of a server gave, and when the next is due.

use crate::balance::varied_us;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckOutcome {
    /// The server answered as it should.
    Passed,
    /// It did not.
    Failed(CheckFailure),
    /// The check could not be made, for a reason of our own: it says nothing of the server and never
    /// counts. A kind of its own, so that no failure of ours can be taken for one of the server.
    NotMade(LocalFault),
}

impl CheckOutcome {
    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            CheckOutcome::Passed => "passed",
            CheckOutcome::Failed(failure) => failure.as_str(),
            CheckOutcome::NotMade(fault) => fault.as_str(),
        }
    }
}

/// What a server did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckFailure {
    /// Nobody listens (ECONNREFUSED), or a unix socket is not there or has a full backlog.
    Refused,
    /// Not over within the check's timeout.
    Timeout,
    /// No route, or a local policy forbids it (EHOSTUNREACH, ENETUNREACH, EACCES, EPERM).
    Unreachable,
    /// Closed or reset before the answer was complete.
    ClosedEarly,
    /// The answer is another one than expected.
    UnexpectedAnswer,
    /// The answer is HTTP, its status is not among those expected.
    BadStatus(u16),
    /// A socket error that none of the above names.
    SocketError,
}

impl CheckFailure {
    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            CheckFailure::Refused => "refused",
            CheckFailure::Timeout => "timeout",
            CheckFailure::Unreachable => "unreachable",
            CheckFailure::ClosedEarly => "closed_early",
            CheckFailure::UnexpectedAnswer => "unexpected_answer",
            CheckFailure::BadStatus(_) => "bad_status",
            CheckFailure::SocketError => "socket_error",
        }
    }

    /// The status that was not expected.
    pub const fn status(self) -> Option<u16> {
        match self {
            CheckFailure::BadStatus(status) => Some(status),
            _ => None,
        }
    }
}

/// What we lacked for a check. The words are those of [`crate::outcome::Cause`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalFault {
    /// A local port (EADDRNOTAVAIL).
    Ports,
    /// A file descriptor or kernel memory (EMFILE, ENFILE, ENOMEM, ENOBUFS).
    Resources,
}

impl LocalFault {
    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            LocalFault::Ports => "local_ports",
            LocalFault::Resources => "local_resources",
        }
    }
}

/// One check that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// How it ended.
    pub outcome: CheckOutcome,
    /// From the start of the connect to the verdict.
    pub latency_us: u64,
    /// When the verdict was found.
    pub at_us: u64,
}

/// How often a server is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From the start of one check to the start of the next; at least 1.
    pub interval_us: u64,
    /// The same while a server is between up and down; at least 1.
    pub fast_interval_us: u64,
    /// How far either varies, to both sides; at most 100. The mean stays what it is.
    pub jitter_percent: u8,
}

impl Pace {
    /// The time until the next check; `draw` is any 64 random bits.
    pub fn delay_us(&self, fast: bool, draw: u64) -> u64 {
        let interval_us = if fast {
            self.fast_interval_us
        } else {
            self.interval_us
        };
        varied_us(interval_us, self.jitter_percent, draw)
    }
}
