//! The instance lock: an abstract unix socket named after a listening address.
//!
//! Two unrelated processes of one user can join the same SO_REUSEPORT group, and the second would
//! silently take a share of the first one's clients. The kernel drops the lock when its holder
//! dies, however it dies. Abstract names live in the network namespace, as the addresses do.

use std::io;
use std::os::fd::OwnedFd;

use socket2::{Domain, SockAddr, Socket, Type};

/// Longest address text kept in the name; sun_path holds 107 bytes.
const NAME_MAX_BYTES: usize = 90;

/// Takes the lock of `address` for as long as the descriptor lives.
///
/// Errors: `AddrInUse` when another process holds it.
pub fn acquire(address: &str) -> io::Result<OwnedFd> {
    // A long unix path keeps its end, the part that tells two sockets apart.
    let start = address.len().saturating_sub(NAME_MAX_BYTES);
    let tail = address.get(start..).unwrap_or(address);
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    socket.bind(&SockAddr::unix(format!("\0corelay/{tail}"))?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_is_gone() {
        let name = format!(
            "test-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let first = acquire(&name).unwrap();
        assert_eq!(acquire(&name).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        acquire(&name).unwrap();
    }
}
