//! Idle connections: opened, used for one echo each so that both sides exist, then held.
//!
//! What memory a proxy needs for them is measured from outside, by `scripts/memory.sh`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::endpoint::Endpoint;

/// How long one connection may take to connect, and to echo.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// What is sent once through each connection: it proves that the relay stands.
const GREETING: &[u8] = b"idle";

/// Connections that are held until they are dropped.
#[derive(Debug)]
pub struct Held {
    connections: Vec<OwnedFd>,
}

/// Opens this many connections to an echo server or a proxy before one, one echo through each.
pub fn hold(to: &Endpoint, connections: usize) -> Result<Held> {
    let mut held = Held {
        connections: Vec::with_capacity(connections),
    };
    for index in 0..connections {
        let stream = open(to).with_context(|| format!("connection {index} to {to}"))?;
        held.connections.push(stream);
    }
    Ok(held)
}

fn open(to: &Endpoint) -> Result<OwnedFd> {
    match to {
        Endpoint::Tcp(address) => {
            let mut stream = TcpStream::connect_timeout(address, STEP_DEADLINE)?;
            stream.set_read_timeout(Some(STEP_DEADLINE))?;
            greet(&mut stream)?;
            Ok(stream.into())
        }
        Endpoint::Unix(path) => {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(STEP_DEADLINE))?;
            greet(&mut stream)?;
            Ok(stream.into())
        }
    }
}

fn greet(stream: &mut (impl Read + Write)) -> Result<()> {
    stream.write_all(GREETING)?;
    let mut answer = [0; GREETING.len()];
    stream
        .read_exact(&mut answer)
        .context("waiting for the echo")?;
    ensure!(answer == GREETING, "a wrong echo");
    Ok(())
}

impl Held {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::Server;

    #[test]
    fn held_connections_stay_open() {
        let echo = Server::echo().start().unwrap();
        let held = hold(echo.endpoint(), 50).unwrap();
        assert_eq!(held.len(), 50);
        assert_eq!(echo.stats().open, 50);
    }
}
