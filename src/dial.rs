//! One connection attempt to one server: with a deadline, and given up as soon as the client is
//! gone. Not here: which server (`balance`), and which comes next (`mode`).
//!
//! What goes before the client's bytes is sent here. With Fast Open some of the client's bytes are, too: they
//! are only looked at until the connection stands, for a client that is not served keeps its bytes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::core::Signal;
use crate::core::readiness::{self, Readiness};
use crate::outcome::{Cause, FastOpen};
use crate::sys::fast_open::{self, SYN_BYTES_MAX};
use crate::sys::socket::{
    self, ConnectError, Connecting, Fault, Options, Peer, Target, ThirdSegment,
};

/// How often a pending attempt looks whether anybody still waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialError {
    /// The server did not take the connection: another one may.
    Server(Cause),
    /// As [`DialError::Server`], but bytes of the client went along and may have reached it: no other
    /// server may get them.
    Spent(Cause),
    /// It is our own lack of something: another server would not help.
    Local(Cause),
    /// The client is gone.
    Left,
    /// The process is stopping.
    Stopped,
}

/// What one attempt needs.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Whom to connect to.
    pub target: Target<'a>,
    /// Options of the socket.
    pub options: &'a Options,
    /// For this attempt alone.
    pub timeout: Duration,
    /// What goes to the server before the client's bytes.
    pub preface: &'a [u8],
    /// Who waits. Only looked at, but for what goes with the SYN.
    pub client: BorrowedFd<'a>,
    /// Whether bytes of the client may go with the SYN, if the target's source wants that at all.
    pub may_take_early: bool,
    /// Ends the attempt.
    pub stop: &'a Signal,
}

/// A connection that stands.
#[derive(Debug)]
pub struct Dialled {
    /// Towards the server.
    pub socket: OwnedFd,
    /// What went with the SYN, if Fast Open was wanted and there was something to send.
    pub early: Option<Early>,
}

/// See [`Dialled`].
#[derive(Clone, Copy, Debug)]
pub struct Early {
    /// Bytes of the client, which are off its socket.
    pub client_bytes: usize,
    /// What the server did with them.
    pub outcome: FastOpen,
}

/// Connects, and sends the preface.
pub async fn dial(call: Call<'_>) -> Result<Dialled, DialError> {
    let is_fast = call.target.origin.is_some_and(|it| it.source.fast_open);
    if is_fast {
        let bytes = first_bytes(&call);
        // A server that speaks first would wait for a SYN that waits for bytes.
        if !bytes.is_empty() {
            return with_syn(call, bytes).await;
        }
    }
    let socket = connect(&call).await?;
    introduce(&socket, call.preface)?;
    let early = None;
    Ok(Dialled { socket, early })
}

async fn connect(call: &Call<'_>) -> Result<OwnedFd, DialError> {
    // Bytes that are here already are sent as soon as the connection stands, and can carry its ACK:
    // one segment less, and the server's process wakes once instead of twice.
    let third = if socket::unread_bytes(call.client) > 0 {
        ThirdSegment::Data
    } else {
        ThirdSegment::Ack
    };
    match socket::connect(call.target, call.options, third).map_err(judge)? {
        (socket, Connecting::Done) => Ok(socket),
        (socket, Connecting::Pending) => await_connected(socket, call).await,
    }
}

/// What could go with the SYN: the preface, and what the client has sent so far.
fn first_bytes(call: &Call<'_>) -> Vec<u8> {
    let mut bytes = call.preface.to_vec();
    if call.may_take_early && bytes.len() < SYN_BYTES_MAX {
        let of_client = bytes.len();
        bytes.resize(SYN_BYTES_MAX, 0);
        let peeked = socket::peek_bytes(call.client, &mut bytes[of_client..]);
        bytes.truncate(of_client + peeked.unwrap_or(0));
    }
    bytes
}

async fn with_syn(call: Call<'_>, mut bytes: Vec<u8>) -> Result<Dialled, DialError> {
    let began = fast_open::begin(call.target, call.options, &bytes);
    let (socket, sent) = began.map_err(judge)?;
    let preface = &call.preface[sent.min(call.preface.len())..];
    let client_bytes = sent.saturating_sub(call.preface.len());
    let spent = |error| match error {
        DialError::Server(cause) if client_bytes > 0 => DialError::Spent(cause),
        other => other,
    };
    let connecting = socket::continue_connecting(&socket, call.target.address);
    let socket = match connecting.map_err(|error| spent(classify(error)))? {
        Connecting::Done => socket,
        Connecting::Pending => await_connected(socket, &call).await.map_err(spent)?,
    };
    introduce(&socket, preface)?;
    if client_bytes > 0 {
        // The same that were looked at before: nobody else reads from this socket.
        match socket::take_bytes(call.client, &mut bytes[..client_bytes]) {
            Ok(taken) if taken == client_bytes => {}
            _ => return Err(DialError::Left),
        }
    }
    let outcome = fast_open::outcome(socket.as_fd(), sent);
    let early = Some(Early {
        client_bytes,
        outcome,
    });
    Ok(Dialled { socket, early })
}

/// Sends what goes before the client's bytes. A new connection has room for it: the kernel takes at least
/// a page before it asks anybody to wait.
/// One that took only a part failed.
fn introduce(upstream: &OwnedFd, preface: &[u8]) -> Result<(), DialError> {
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

async fn await_connected(socket: OwnedFd, call: &Call<'_>) -> Result<OwnedFd, DialError> {
    // A descriptor that monoio cannot take (it never refuses one) is a local failure.
    let pending = Readiness::new(socket).map_err(classify)?;
    let give_up = |is_over: bool| {
        if call.stop.is_set() {
            Some(DialError::Stopped)
        } else if matches!(socket::peek(call.client), Peer::Closed | Peer::Reset) {
            Some(DialError::Left)
        } else {
            is_over.then_some(DialError::Server(Cause::ConnectTimeout))
        }
    };
    let end = || socket::shutdown(pending.as_fd());
    let patiently =
        readiness::wait_patiently(pending.writable(), call.timeout, LOOK_EVERY, give_up, end);
    let given_up = patiently.await;
    let socket = pending.into_fd();
    match given_up {
        Some(reason) => Err(reason),
        None => socket::take_error(&socket)
            .and_then(|()| socket::refuse_itself(&socket, call.target.address))
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
