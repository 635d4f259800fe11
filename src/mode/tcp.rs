//! Plain TCP: wait for a first byte if asked to, then dial the servers in turn.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::core::Signal;
use crate::core::readiness::{self, Readiness};
use crate::dial::{self, DialError};
use crate::outcome::{Cause, CloseReason, Side, Stage};
use crate::sys::clock;
use crate::sys::socket::{self, Options, Peer};
use crate::units::{Address, ServerId};

/// How often a client that owes its first byte looks whether the process is to end. Thousands may
/// wait, so that it is as rare as an end by second signal allows.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a session needs to reach a server.
pub struct Plan<'a> {
    /// The servers in the order in which they are tried, each at most once.
    pub servers: &'a mut dyn Iterator<Item = (ServerId, &'a Address)>,
    /// Options of the upstream socket.
    pub options: &'a Options,
    /// For each attempt.
    pub connect_timeout: Duration,
    /// Dial only after the client's first byte.
    pub defer_connect: Option<Duration>,
    /// Ends everything at once.
    pub stop: &'a Signal,
}

/// A session that found its server.
pub struct Connected {
    /// The client.
    pub downstream: OwnedFd,
    /// The server.
    pub upstream: OwnedFd,
    /// Which.
    pub server: ServerId,
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
}

/// Connects a client to a server, or says why not. The client's socket is closed on error: with a
/// reset, unless the client is gone already.
pub async fn serve(
    downstream: OwnedFd,
    plan: Plan<'_>,
    attempts: &mut Attempts,
) -> Result<Connected, CloseReason> {
    let downstream = match plan.defer_connect {
        Some(timeout) => first_byte(downstream, timeout, plan.stop).await?,
        None => downstream,
    };
    let mut reason = CloseReason::new(Side::Upstream, Stage::Connect, Cause::Refused);
    for (server, address) in plan.servers {
        attempts.count += 1;
        let started_us = clock::now_us();
        let client = downstream.as_fd();
        match dial::connect(
            address,
            plan.options,
            plan.connect_timeout,
            client,
            plan.stop,
        )
        .await
        {
            Ok(upstream) => {
                attempts.connect_us = clock::now_us() - started_us;
                return Ok(Connected {
                    downstream,
                    upstream,
                    server,
                });
            }
            Err(DialError::Server(cause)) => {
                attempts.failed.push((server, cause));
                // Running out of ports is nobody's fault but ours.
                let side = if cause == Cause::LocalPorts {
                    Side::Local
                } else {
                    Side::Upstream
                };
                reason = CloseReason::new(side, Stage::Connect, cause);
            }
            Err(DialError::Local(cause)) => {
                attempts.failed.push((server, cause));
                reason = CloseReason::new(Side::Local, Stage::Connect, cause);
                break;
            }
            Err(DialError::Left) => {
                return Err(CloseReason::new(
                    Side::Downstream,
                    Stage::Connect,
                    Cause::Left,
                ));
            }
            Err(DialError::Stopped) => {
                reason = CloseReason::new(Side::Local, Stage::Connect, Cause::Drain);
                break;
            }
        }
    }
    // A client that gets FIN may take nothing for an answer: what failed must look failed.
    socket::linger_zero(downstream.as_fd());
    Err(reason)
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
    let give_up = |is_over: bool| {
        if stop.is_set() {
            Some(Cause::Drain)
        } else {
            is_over.then_some(Cause::FirstByteTimeout)
        }
    };
    // Shutting down the receiving half alone sends nothing, so that the reset still follows.
    let end = || socket::shutdown_read(waiting.as_fd());
    let given_up =
        readiness::wait_patiently(waiting.readable(), timeout, LOOK_EVERY, give_up, end).await;
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
