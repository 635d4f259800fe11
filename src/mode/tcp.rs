//! Plain TCP: wait for a first byte if asked to, then dial one server after the other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::peek;
use crate::core::Signal;
use crate::core::readiness::Readiness;
use crate::dial::{self, Call, DialError, Early};
use crate::outcome::{Cause, CloseReason, Side, Stage};
use crate::sys::clock::{self, micros};
use crate::sys::socket::{self, Options, Peer, Target};
use crate::sys::source::Origin;
use crate::units::{Address, ServerId};

/// The servers that one session may try, each at most once.
pub trait Servers {
    /// A place on a server; given back when it is dropped.
    type Seat: AsRef<Address>;

    /// The next server. May wait for a place, for as long as the client stays.
    fn next(
        &mut self,
        client: BorrowedFd<'_>,
    ) -> impl Future<Output = Result<(ServerId, Self::Seat), NoNext>>;

    /// What goes to the server before the client's bytes; nothing if empty.
    fn preface(&self, seat: &Self::Seat, client: BorrowedFd<'_>) -> Vec<u8>;
    /// Where a connection to it comes from, if that is not left to the kernel. Once per attempt.
    fn origin(&self, seat: &Self::Seat) -> Option<Origin<'_>>;

    /// Hears how an attempt ended: connected, or failed for a reason.
    fn attempted(&mut self, seat: &Self::Seat, result: Result<(), Cause>);
}

/// Why there is no next server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoNext {
    /// Enough were tried: what went wrong with the last one is the reason.
    Tried,
    /// The session ends for this reason, with a reset.
    Reset(CloseReason),
    /// The session ends for this reason, with FIN.
    Close(CloseReason),
}

/// What a session needs to reach a server.
pub struct Plan<'a, S> {
    /// Which, in the order in which they are tried.
    pub servers: &'a mut S,
    /// Options of the upstream socket.
    pub options: &'a Options,
    /// For each attempt.
    pub connect_timeout: Duration,
    /// Dial only after the client's first byte.
    pub defer_connect: Option<Duration>,
    /// Whether bytes of the client may go to a server with the SYN, where its source wants that.
    pub may_take_early: bool,
    /// Ends everything at once.
    pub stop: &'a Signal,
}

/// A session that found its server.
pub struct Connected<S> {
    /// The client.
    pub downstream: OwnedFd,
    /// The server.
    pub upstream: OwnedFd,
    /// Which.
    pub server: ServerId,
    /// The place on it.
    pub seat: S,
}

/// What happened on the way, for the metrics.
#[derive(Debug, Default)]
pub struct Attempts {
    /// Servers tried.
    pub count: u16,
    /// Those that failed.
    pub failed: Vec<(ServerId, Cause)>,
    /// How long the successful attempt took, in microseconds.
    pub connect_us: u64,
    /// What came of Fast Open in the successful attempt.
    pub early: Option<Early>,
}

/// Connects a client to a server, or says why not. The client's socket is closed on error: with a
/// reset, unless the client is gone already.
pub async fn serve<S: Servers>(
    downstream: OwnedFd,
    plan: Plan<'_, S>,
    attempts: &mut Attempts,
) -> Result<Connected<S::Seat>, CloseReason> {
    let downstream = match plan.defer_connect {
        Some(timeout) => first_byte(downstream, timeout, plan.stop).await?,
        None => downstream,
    };
    let mut reason = CloseReason::new(Side::Upstream, Stage::Connect, Cause::Refused);
    loop {
        let (server, seat) = match plan.servers.next(downstream.as_fd()).await {
            Ok(next) => next,
            Err(NoNext::Tried) => break,
            Err(NoNext::Reset(why)) => {
                reason = why;
                break;
            }
            Err(NoNext::Close(why)) => return Err(why),
        };
        attempts.count += 1;
        let started_us = clock::now_us();
        let target = Target {
            address: seat.as_ref(),
            origin: plan.servers.origin(&seat),
        };
        let preface = plan.servers.preface(&seat, downstream.as_fd());
        let call = Call {
            target,
            options: plan.options,
            timeout: plan.connect_timeout,
            preface: &preface,
            client: downstream.as_fd(),
            may_take_early: plan.may_take_early,
            stop: plan.stop,
        };
        match dial::dial(call).await {
            Ok(dialled) => {
                attempts.connect_us = clock::now_us() - started_us;
                attempts.early = dialled.early;
                plan.servers.attempted(&seat, Ok(()));
                return Ok(Connected {
                    downstream,
                    upstream: dialled.socket,
                    server,
                    seat,
                });
            }
            Err(error) => {
                let (is_last, why) = failed(error);
                reason = why;
                if let DialError::Server(cause)
                | DialError::Spent(cause)
                | DialError::Local(cause) = error
                {
                    attempts.failed.push((server, cause));
                    plan.servers.attempted(&seat, Err(cause));
                }
                if is_last {
                    break;
                }
            }
        }
    }
    if reason.cause != Cause::Left {
        // A client that gets FIN may take nothing for an answer: what failed must look failed.
        socket::linger_zero(downstream.as_fd());
    }
    Err(reason)
}

/// Whether a failed attempt ends the session, and for which reason if it was the last.
fn failed(error: DialError) -> (bool, CloseReason) {
    let (is_last, side, cause) = match error {
        // Running out of ports is nobody's fault but ours.
        DialError::Server(Cause::LocalPorts) => (false, Side::Local, Cause::LocalPorts),
        DialError::Server(cause) => (false, Side::Upstream, cause),
        DialError::Spent(cause) => (true, Side::Upstream, cause),
        DialError::Local(cause) => (true, Side::Local, cause),
        DialError::Left => (true, Side::Downstream, Cause::Left),
        DialError::Stopped => (true, Side::Local, Cause::Drain),
    };
    (is_last, CloseReason::new(side, Stage::Connect, cause))
}

/// Waits until the client has sent something, without reading it.
async fn first_byte(
    downstream: OwnedFd,
    timeout: Duration,
    stop: &Signal,
) -> Result<OwnedFd, CloseReason> {
    let closed = |side, cause| CloseReason::new(side, Stage::Accept, cause);
    let local = |_| closed(Side::Local, Cause::LocalResources);
    let waiting = Readiness::new(downstream).map_err(local)?;
    let deadline_us = clock::now_us() + micros(timeout);
    let given_up = peek::more(&waiting, deadline_us, stop).await;
    let downstream = waiting.into_fd();
    if let Some(cause) = given_up {
        socket::linger_zero(downstream.as_fd());
        return Err(closed(Side::Local, cause));
    }
    match socket::peek(downstream.as_fd()) {
        Peer::Closed => Err(closed(Side::Downstream, Cause::Empty)),
        Peer::Reset => Err(closed(Side::Downstream, Cause::Reset)),
        Peer::Sent | Peer::Silent => Ok(downstream),
    }
}
