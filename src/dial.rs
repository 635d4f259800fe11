//! One connection attempt to one server: with a deadline, and given up as soon as the client is
//! gone. Not here: which server (`balance`), and which comes next (`mode`).
//!
//! What goes before the client's bytes is sent here. With Fast Open some of the client's bytes are, too: they
//! are only looked at until the connection stands, and what the SYN did not take is the relay's.

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
use crate::sys::tcp_info;

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
    /// What came of Fast Open; `None` if it was not wanted or there was nothing to send.
    pub early: Option<Early>,
}

/// See [`Dialled`].
#[derive(Clone, Copy, Debug)]
pub struct Early {
    /// Bytes of the client, which are off its socket.
    pub client_bytes: usize,
    /// What became of what was to go with the SYN, the preface included.
    pub outcome: FastOpen,
}

/// Connects, and sends the preface.
///
/// Errors: [`DialError`]; what the client sent is still on its socket.
pub async fn dial(call: Call<'_>) -> Result<Dialled, DialError> {
    let is_fast = call.target.origin.is_some_and(|it| it.source.fast_open);
    if is_fast {
        let bytes = first_bytes(&call)?;
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
    let (socket, connecting) = socket::connect(call.target, call.options, third).map_err(judge)?;
    await_connected(socket, connecting, call).await
}

async fn await_connected(
    socket: OwnedFd,
    connecting: Connecting,
    call: &Call<'_>,
) -> Result<OwnedFd, DialError> {
    if connecting == Connecting::Done {
        return Ok(socket);
    }
    let socket = await_handshake(socket, call, socket::shutdown).await?;
    socket::take_error(&socket)
        .and_then(|()| socket::refuse_itself(&socket, call.target.address))
        .map(|()| socket)
        .map_err(classify)
}

/// What could go with the SYN: the preface, and what the client has sent so far.
fn first_bytes(call: &Call<'_>) -> Result<Vec<u8>, DialError> {
    let mut bytes = call.preface.to_vec();
    if call.may_take_early && bytes.len() < SYN_BYTES_MAX {
        let of_client = bytes.len();
        bytes.resize(SYN_BYTES_MAX, 0);
        let peeked = match socket::peek_bytes(call.client, &mut bytes[of_client..]) {
            Ok(peeked) => peeked,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                0
            }
            // A reset is told once; the relay would take it for the end of the stream.
            Err(_) => return Err(DialError::Left),
        };
        bytes.truncate(of_client + peeked);
    }
    Ok(bytes)
}

async fn with_syn(call: Call<'_>, bytes: Vec<u8>) -> Result<Dialled, DialError> {
    let began = fast_open::begin(call.target, call.options, &bytes);
    let (socket, sent) = began.map_err(judge)?;
    if sent < bytes.len() && tcp_info::is_connecting(socket.as_fd()) {
        socket::let_data_acknowledge(socket.as_fd());
    }
    let rest_of_preface = &call.preface[sent.min(call.preface.len())..];
    let of_client = &bytes[call.preface.len().min(sent)..sent];
    let (socket, outcome) = if sent == 0 {
        let connecting = socket::continue_connecting(&socket, call.target.address);
        let connecting = connecting.map_err(classify)?;
        let socket = await_connected(socket, connecting, &call).await?;
        (socket, FastOpen::NotSent)
    } else {
        let answered = await_answer(socket, &call).await;
        answered.map_err(|error| match error {
            DialError::Server(cause) if !of_client.is_empty() => DialError::Spent(cause),
            other => other,
        })?
    };
    introduce(&socket, rest_of_preface)?;
    if !take_off(call.client, of_client) {
        // Only a unix client that sent urgent bytes: as good as gone.
        socket::linger_zero(socket.as_fd());
        return Err(DialError::Left);
    }
    let early = Some(Early {
        client_bytes: of_client.len(),
        outcome,
    });
    Ok(Dialled { socket, early })
}

/// The end of a handshake whose SYN held bytes. A server that took them may have answered and closed or
/// reset the connection by now: that is for the relay to find, answer first.
async fn await_answer(
    mut socket: OwnedFd,
    call: &Call<'_>,
) -> Result<(OwnedFd, FastOpen), DialError> {
    if tcp_info::is_connecting(socket.as_fd()) {
        // If the handshake ends just now, FIN would make what the SYN brought look like all there is.
        socket = await_handshake(socket, call, socket::disconnect).await?;
    }
    socket::refuse_itself(&socket, call.target.address).map_err(classify)?;
    if tcp_info::took_bytes_of_syn(socket.as_fd()) {
        return Ok((socket, FastOpen::Taken));
    }
    socket::take_error(&socket).map_err(classify)?;
    Ok((socket, FastOpen::Ignored))
}

/// Takes just these bytes off the client's socket, which were only looked at before. Nobody else reads from
/// it; but on a unix socket urgent bytes may have become ordinary ones meanwhile.
fn take_off(client: BorrowedFd<'_>, bytes: &[u8]) -> bool {
    if bytes.is_empty() {
        return true;
    }
    let mut taken = vec![0; bytes.len()];
    let count = socket::take_bytes(client, &mut taken);
    count.is_ok_and(|count| count == bytes.len()) && taken == bytes
}

/// Sends what goes before the client's bytes. A new connection has room for it (the kernel takes at least a
/// page before it asks anybody to wait), so one that takes only a part has failed.
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

/// Waits until the handshake is over, whatever came of it, or until there is a reason to `end` it.
async fn await_handshake(
    socket: OwnedFd,
    call: &Call<'_>,
    end: impl Fn(BorrowedFd<'_>),
) -> Result<OwnedFd, DialError> {
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
    let writable = pending.writable();
    let end = || end(pending.as_fd());
    let given_up = readiness::wait_patiently(writable, call.timeout, LOOK_EVERY, give_up, end);
    let given_up = given_up.await;
    let socket = pending.into_fd();
    given_up.map_or(Ok(socket), Err)
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
