//! One check on its socket, never waiting: whoever holds it polls for what it wants.
//!
//! ```text
//! Connecting ──> Exchanging ──verdict──> over, or (HTTP) Draining ──> over
//! ```
//!
//! However a check ends, its socket is closed with SO_LINGER 0: the RST leaves TIME_WAIT on neither
//! side, where a server that closes first (HTTP) would otherwise pile it up. Before that, the rest of
//! an HTTP answer is read for a short time, lest a server that is still writing its body logs a
//! broken pipe at each check.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use socket2::Socket;

use super::answer::{Answer, Verdict};
use super::hello::client_hello;
use super::schedule::Due;
use super::spec::{CheckKind, CheckSpec};
use crate::balance::Random;
use crate::balance::health::{CheckFailure, CheckOutcome, LocalFault};
use crate::sys::socket::{self, ConnectError, Connecting, Fault, Options, Target, ThirdSegment};
use crate::sys::source::Refused;
use crate::units::Address;
use crate::wire::proxy::{Addresses, Command, Tlvs, V2Options, Version, encode_v1, encode_v2};

/// How long the rest of an HTTP answer is read after the verdict.
const DRAIN_WITHIN_US: u64 = 250_000;
/// And how many bytes of it.
const DRAIN_BYTES_MAX: usize = 256 * 1024;
const CHUNK_BYTES: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Exchanging,
    /// The verdict is out.
    Draining {
        bytes: usize,
    },
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It wants to be polled.
    Waiting,
    /// The verdict; told once. Afterwards it may still be draining.
    Verdict(CheckOutcome),
    /// It can be dropped.
    Over,
}

/// A check that runs.
pub(super) struct Probe {
    socket: Socket,
    address: Address,
    check: Arc<CheckSpec>,
    phase: Phase,
    request: Vec<u8>,
    sent: usize,
    answer: Answer,
    began_us: u64,
    deadline_us: u64,
}

impl Probe {
    /// Begins to connect. One that is connected already is to be advanced at once.
    ///
    /// Errors: the verdict, if it is known already.
    pub(super) fn start(due: Due, random: &mut Random, now_us: u64) -> Result<Self, CheckOutcome> {
        let Due { address, check, .. } = due;
        let request = request(&check.kind, due.header, random);
        // Without bytes to carry it, the ACK must not be kept back from a server that is to speak first.
        let third = match check.kind {
            CheckKind::Exchange { .. } if request.is_empty() => ThirdSegment::Ack,
            _ => ThirdSegment::Data,
        };
        let options = Options {
            nodelay: true,
            user_timeout: None,
        };
        let (socket, connecting) = socket::connect(target(&address, &check), &options, third)
            .map_err(|error| match error {
                ConnectError::Os(error) => judge_connect(&error),
                ConnectError::Origin(refused) => judge_origin(&refused),
            })?;
        Ok(Self {
            socket: socket.into(),
            address,
            phase: match connecting {
                Connecting::Done => Phase::Exchanging,
                Connecting::Pending => Phase::Connecting,
            },
            request,
            sent: 0,
            answer: Answer::default(),
            began_us: now_us,
            deadline_us: now_us.saturating_add(check.timeout_us),
            check,
        })
    }

    /// Does what can be done without waiting. After the verdict, `now_us` begins the time of the drain.
    pub(super) fn advance(&mut self, now_us: u64) -> Progress {
        if self.is_connecting() {
            let connected = socket::take_error(&self.socket)
                .and_then(|()| socket::refuse_itself(&self.socket, &self.address));
            if let Err(error) = connected {
                return Progress::Verdict(judge_connect(&error));
            }
            self.phase = Phase::Exchanging;
        }
        match self.phase {
            Phase::Draining { bytes } => self.drain(bytes),
            _ => match self.exchange() {
                Ok(None) => Progress::Waiting,
                Ok(Some(outcome)) => {
                    if matches!(self.check.kind, CheckKind::Http { .. }) {
                        self.phase = Phase::Draining { bytes: 0 };
                        self.deadline_us = now_us + DRAIN_WITHIN_US;
                    }
                    Progress::Verdict(outcome)
                }
                Err(error) => Progress::Verdict(judge_exchange(&error)),
            },
        }
    }

    fn exchange(&mut self) -> io::Result<Option<CheckOutcome>> {
        if self.check.kind == CheckKind::Tcp {
            return Ok(Some(CheckOutcome::Passed));
        }
        self.send()?;
        let mut chunk = [0; CHUNK_BYTES];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => {
                    let failure = self.answer.end(&self.check.kind);
                    return Ok(Some(CheckOutcome::Failed(failure)));
                }
                Ok(bytes) => match self.answer.add(&self.check.kind, &chunk[..bytes]) {
                    // Ends: the answer has a bound.
                    Verdict::More => {}
                    Verdict::Passed => return Ok(Some(CheckOutcome::Passed)),
                    Verdict::Failed(failure) => return Ok(Some(CheckOutcome::Failed(failure))),
                },
                Err(error) if is_nothing(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while self.sent < self.request.len() {
            let rest = &self.request[self.sent..];
            match self.socket.send_with_flags(rest, libc::MSG_NOSIGNAL) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if is_nothing(&error) => break,
                // A server may answer without listening to all of it: what it said is to be read. If it
                // said nothing, the read finds the end.
                Err(error) if is_reset(&error) => {
                    self.sent = self.request.len();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn drain(&mut self, mut bytes: usize) -> Progress {
        let mut chunk = [0; CHUNK_BYTES];
        while bytes < DRAIN_BYTES_MAX {
            match self.socket.read(&mut chunk) {
                Ok(0) => return Progress::Over,
                Ok(more) => bytes += more,
                Err(error) if is_nothing(&error) => {
                    self.phase = Phase::Draining { bytes };
                    return Progress::Waiting;
                }
                Err(_) => return Progress::Over,
            }
        }
        Progress::Over
    }

    /// What happens at [`Probe::deadline_us`].
    pub(super) fn expire(&self) -> Progress {
        if self.is_draining() {
            Progress::Over
        } else {
            Progress::Verdict(CheckOutcome::Failed(CheckFailure::Timeout))
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. })
    }

    pub(super) fn wants_write(&self) -> bool {
        match self.phase {
            Phase::Connecting => true,
            Phase::Exchanging => self.sent < self.request.len(),
            Phase::Draining { .. } => false,
        }
    }

    pub(super) fn wants_read(&self) -> bool {
        !self.is_connecting()
    }

    pub(super) fn is_connecting(&self) -> bool {
        self.phase == Phase::Connecting
    }

    pub(super) fn began_us(&self) -> u64 {
        self.began_us
    }

    pub(super) fn deadline_us(&self) -> u64 {
        self.deadline_us
    }

    /// Gives back time that the check's server had no part in.
    pub(super) fn extend_us(&mut self, us: u64) {
        self.deadline_us = self.deadline_us.saturating_add(us);
    }
}

impl AsFd for Probe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        socket::linger_zero(self.socket.as_fd());
    }
}

/// The bytes to send, the header first.
fn request(kind: &CheckKind, proxy: Option<Version>, random: &mut Random) -> Vec<u8> {
    let mut bytes = proxy.map_or_else(Vec::new, header);
    match kind {
        CheckKind::Tcp => bytes.clear(),
        CheckKind::Exchange { send, .. } => bytes.extend(send),
        CheckKind::Http { path, host, .. } => bytes.extend(format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: corelay-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        )
        .into_bytes()),
        CheckKind::Tls { server_name } => {
            let mut random_bytes = [0; 32];
            for word in random_bytes.chunks_exact_mut(8) {
                word.copy_from_slice(&random.next_u64().to_ne_bytes());
            }
            bytes.extend(client_hello(server_name.as_deref(), random_bytes));
        }
    }
    bytes
}

/// A check is on nobody's behalf: UNKNOWN in version 1 (section 2.1), LOCAL in version 2 (section 2.2).
fn header(version: Version) -> Vec<u8> {
    match version {
        Version::V1 => encode_v1(&Addresses::Unknown),
        Version::V2 => encode_v2(V2Options {
            command: Command::Local,
            addresses: &Addresses::Unknown,
            tlvs: &Tlvs::default(),
            crc32c: false,
        })
        .expect("without addresses and TLVs nothing is too long"),
    }
}

/// Nothing to be had now: the poll tells when.
fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// The other side is gone.
fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn target<'a>(address: &'a Address, check: &'a CheckSpec) -> Target<'a> {
    let source = check.source.as_deref();
    let origin = match address {
        Address::Tcp(server) => source.map(|it| it.without_client(server.is_ipv4())),
        Address::Unix(_) => None,
    };
    Target { address, origin }
}

/// A socket that could not be prepared: never the server's fault.
fn judge_origin(refused: &Refused) -> CheckOutcome {
    CheckOutcome::NotMade(match refused.error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => LocalFault::Ports,
        _ => LocalFault::Resources,
    })
}

/// What an error on a connection that stood means.
fn judge_exchange(error: &io::Error) -> CheckOutcome {
    match error.raw_os_error() {
        Some(libc::ECONNRESET | libc::EPIPE) => CheckOutcome::Failed(CheckFailure::ClosedEarly),
        _ => match judge_connect(error) {
            // It did not refuse: the connection stood.
            CheckOutcome::Failed(CheckFailure::Refused) => {
                CheckOutcome::Failed(CheckFailure::SocketError)
            }
            outcome => outcome,
        },
    }
}

/// What an error of a connect means, as for a session.
fn judge_connect(error: &io::Error) -> CheckOutcome {
    let failure = match socket::fault(error) {
        Fault::Ports => return CheckOutcome::NotMade(LocalFault::Ports),
        Fault::Resources => return CheckOutcome::NotMade(LocalFault::Resources),
        Fault::Refused => CheckFailure::Refused,
        Fault::Timeout => CheckFailure::Timeout,
        Fault::Unreachable => CheckFailure::Unreachable,
        Fault::Other => CheckFailure::SocketError,
    };
    CheckOutcome::Failed(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_errno_has_its_meaning_and_ours_are_no_failures_of_the_server() {
        use CheckFailure::{ClosedEarly, Refused, SocketError, Timeout, Unreachable};
        use CheckOutcome::{Failed, NotMade};
        let judged = |errno: i32| {
            let error = io::Error::from_raw_os_error(errno);
            (judge_connect(&error), judge_exchange(&error))
        };
        let ours = [
            (libc::EADDRNOTAVAIL, LocalFault::Ports),
            (libc::EMFILE, LocalFault::Resources),
            (libc::ENFILE, LocalFault::Resources),
            (libc::ENOMEM, LocalFault::Resources),
            (libc::ENOBUFS, LocalFault::Resources),
        ];
        for (errno, fault) in ours {
            assert_eq!(judged(errno), (NotMade(fault), NotMade(fault)));
        }
        let theirs = [
            (libc::ECONNREFUSED, Refused, SocketError),
            (libc::ENOENT, Refused, SocketError),
            (libc::ECONNRESET, Refused, ClosedEarly),
            (libc::EPIPE, SocketError, ClosedEarly),
            (libc::ETIMEDOUT, Timeout, Timeout),
            (libc::EHOSTUNREACH, Unreachable, Unreachable),
            (libc::EACCES, Unreachable, Unreachable),
            (libc::EIO, SocketError, SocketError),
        ];
        for (errno, connecting, exchanging) in theirs {
            assert_eq!(judged(errno), (Failed(connecting), Failed(exchanging)));
        }
    }
}
