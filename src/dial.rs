//! One connection attempt to one server: with a deadline, and given up as soon as the client is
//! gone. Not here: which server (`balance`), and which comes next (`mode`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::core::Signal;
use crate::core::readiness::{self, Readiness};
use crate::outcome::Cause;
use crate::sys::socket::{
    self, ConnectError, Connecting, Fault, Options, Peer, Target, ThirdSegment,
};
use crate::units::Address;

/// How often a pending attempt looks whether anybody still waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialError {
    /// The server did not take the connection: another one may.
    Server(Cause),
    /// It is our own lack of something: another server would not help.
    Local(Cause),
    /// The client is gone.
    Left,
    /// The process is stopping.
    Stopped,
}

/// Connects to `target`.
///
/// `client` is only looked at, `stop` ends the attempt. The deadline covers this attempt alone.
pub async fn connect(
    target: Target<'_>,
    options: &Options,
    timeout: Duration,
    client: BorrowedFd<'_>,
    stop: &Signal,
) -> Result<OwnedFd, DialError> {
    // Bytes that are here already are sent as soon as the connection stands, and can carry its ACK:
    // one segment less, and the server's process wakes once instead of twice.
    let third = if socket::unread_bytes(client) > 0 {
        ThirdSegment::Data
    } else {
        ThirdSegment::Ack
    };
    match socket::connect(target, options, third).map_err(judge)? {
        (socket, Connecting::Done) => Ok(socket),
        (socket, Connecting::Pending) => {
            // A descriptor that monoio cannot take (it never refuses one) is a local failure.
            let pending = Readiness::new(socket).map_err(classify)?;
            await_connected(pending, target.address, timeout, client, stop).await
        }
    }
}

/// Sends what goes before the client's bytes. A new connection has room for it: the kernel takes at least
/// a page before it asks anybody to wait.
///
/// # Errors
/// The connection failed already, or took only a part.
pub fn introduce(upstream: &OwnedFd, preface: &[u8]) -> Result<(), DialError> {
    if preface.is_empty() {
        return Ok(());
    }
    match socket::send_bytes(upstream.as_fd(), preface) {
        Ok(sent) if sent == preface.len() => Ok(()),
        // No memory for a socket that has nothing queued is a lack of ours.
        Ok(_) => Err(DialError::Local(Cause::LocalResources)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(DialError::Local(Cause::LocalResources))
        }
        Err(error) => Err(classify(error)),
    }
}

async fn await_connected(
    pending: Readiness,
    address: &Address,
    timeout: Duration,
    client: BorrowedFd<'_>,
    stop: &Signal,
) -> Result<OwnedFd, DialError> {
    let give_up = |is_over: bool| {
        if stop.is_set() {
            Some(DialError::Stopped)
        } else if matches!(socket::peek(client), Peer::Closed | Peer::Reset) {
            Some(DialError::Left)
        } else {
            is_over.then_some(DialError::Server(Cause::ConnectTimeout))
        }
    };
    let end = || socket::shutdown(pending.as_fd());
    let given_up =
        readiness::wait_patiently(pending.writable(), timeout, LOOK_EVERY, give_up, end).await;
    let socket = pending.into_fd();
    match given_up {
        Some(reason) => Err(reason),
        None => socket::take_error(&socket)
            .and_then(|()| socket::refuse_itself(&socket, address))
            .map(|()| socket)
            .map_err(classify),
    }
}

fn judge(error: ConnectError) -> DialError {
    match error {
        ConnectError::Os(error) => classify(error),
        ConnectError::Origin(refused) => match refused.error.raw_os_error() {
            // The source address is gone, or the client's port has a connection to this server already.
            Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => DialError::Server(Cause::LocalPorts),
            // It was possible at the start: an interface that is gone (ENODEV), a privilege that
            // was taken away (EPERM). Another server would not help.
            _ => DialError::Local(Cause::LocalResources),
        },
    }
}

/// What a connection error means for the session.
fn classify(error: io::Error) -> DialError {
    match socket::fault(&error) {
        Fault::Refused => DialError::Server(Cause::Refused),
        Fault::Timeout => DialError::Server(Cause::ConnectTimeout),
        Fault::Unreachable => DialError::Server(Cause::Unreachable),
        // Ports are counted per destination: another server may still have some.
        Fault::Ports => DialError::Server(Cause::LocalPorts),
        Fault::Resources => DialError::Local(Cause::LocalResources),
        Fault::Other => DialError::Server(Cause::SocketError),
    }
}
