//! Asks name servers: over UDP, and over TCP where the answer does not fit (RFC 7766). Blocks.

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::config::limits::DNS_PORT;
use crate::wire::dns::{Answer, DnsError, Kind, Query};

/// How often the list of name servers is gone through: a packet may get lost.
const ROUNDS: usize = 2;
/// Where the host says who its name servers are: resolv.conf(5).
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// More of them are not looked at, as the C library does (MAXNS).
const OF_HOST_MAX: usize = 3;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The last name server's answer was none.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// The last name server could not be asked, or did not answer in time.
    #[error("name server {server}: {source}")]
    Io {
        /// Which.
        server: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// There was nobody to ask, or no time left for it.
    #[error("no answer in time (dns.timeout)")]
    NoTime,
}

/// See the head of this file.
pub(super) struct Client {
    /// Empty: those of the host, as its file says at the moment.
    configured: Vec<SocketAddr>,
    timeout: Duration,
    /// The place of the one that answered last: a dead one is not to cost its timeout each time.
    preferred: Cell<usize>,
    /// Of the ids, which nobody is to guess: SipHash of a counter, under keys that the kernel chose.
    random: RandomState,
    asked: Cell<u64>,
}

impl Client {
    /// `timeout` is for one answer of one name server.
    pub(super) fn new(configured: Vec<SocketAddr>, timeout: Duration) -> Self {
        Self {
            configured,
            timeout,
            preferred: Cell::new(0),
            random: RandomState::new(),
            asked: Cell::new(0),
        }
    }

    fn nameservers(&self) -> Vec<SocketAddr> {
        if self.configured.is_empty() {
            of_this_host()
        } else {
            self.configured.clone()
        }
    }

    /// When the answers for one written server must be there: time for a question of either family to be
    /// lost at every name server.
    pub(super) fn deadline(&self) -> Instant {
        const KINDS: usize = 2;
        Instant::now() + self.timeout * (self.nameservers().len() * ROUNDS * KINDS) as u32
    }

    /// Asks one name server after the other until one answers, be it that there is no such name.
    pub(super) fn ask(&self, name: &str, kind: Kind, by: Instant) -> Result<Answer, AskError> {
        let nameservers = self.nameservers();
        let mut last = AskError::NoTime;
        for turn in 0..nameservers.len() * ROUNDS {
            let index = (self.preferred.get() + turn) % nameservers.len();
            let server = nameservers[index];
            let until = by.min(Instant::now() + self.timeout);
            let query = Query::new(self.id(), name, kind)?;
            let mut result = ask_one(server, &query, true, until);
            if matches!(result, Err(AskError::Dns(DnsError::NotUnderstood))) {
                result = ask_one(server, &query, false, until);
            }
            match result {
                Ok(_) | Err(AskError::Dns(DnsError::NoSuchName)) => {
                    self.preferred.set(index);
                    return result;
                }
                Err(error) => last = error,
            }
            if Instant::now() >= by {
                break;
            }
        }
        Err(last)
    }

    fn id(&self) -> u16 {
        self.asked.set(self.asked.get() + 1);
        self.random.hash_one(self.asked.get()) as u16
    }
}

fn ask_one(
    server: SocketAddr,
    query: &Query,
    with_edns: bool,
    until: Instant,
) -> Result<Answer, AskError> {
    let question = query.bytes(with_edns);
    let io = |source| AskError::Io { server, source };
    match over_udp(server, query, &question, until).map_err(io)? {
        Err(DnsError::Truncated) => Ok(over_tcp(server, query, &question, until).map_err(io)??),
        result => Ok(result?),
    }
}

/// Each question has a socket, and so a port, of its own: one more number to guess.
fn over_udp(
    server: SocketAddr,
    query: &Query,
    question: &[u8],
    until: Instant,
) -> io::Result<Result<Answer, DnsError>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(server)?;
    socket.send(question)?;
    // Whatever a datagram holds: more than we asked for may come.
    let mut bytes = vec![0; 1 << 16];
    loop {
        let len = receive(|| {
            socket.set_read_timeout(Some(left(until)?))?;
            socket.recv(&mut bytes)
        })?;
        match query.read(&mut bytes[..len]) {
            // Ours may still come.
            Err(DnsError::NotOurs) => {}
            result => return Ok(result),
        }
    }
}

fn over_tcp(
    server: SocketAddr,
    query: &Query,
    question: &[u8],
    until: Instant,
) -> io::Result<Result<Answer, DnsError>> {
    let mut stream = TcpStream::connect_timeout(&server, left(until)?)?;
    // RFC 1035 section 4.2.2: two bytes of length first, sent together with the message.
    let mut framed = (question.len() as u16).to_be_bytes().to_vec();
    framed.extend(question);
    stream.set_write_timeout(Some(left(until)?))?;
    stream.write_all(&framed).map_err(in_words)?;
    let mut length = [0; 2];
    read_by(&mut stream, &mut length, until)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    read_by(&mut stream, &mut bytes, until)?;
    Ok(query.read(&mut bytes))
}

fn read_by(stream: &mut TcpStream, mut bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let read = receive(|| {
            stream.set_read_timeout(Some(left(deadline)?))?;
            stream.read(bytes)
        });
        match read? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => bytes = &mut bytes[len..],
        }
    }
    Ok(())
}

/// Once more after EINTR, which ends the wait of a socket with a timeout without any signal handler too:
/// after SIGCONT (signal(7)), and when the kernel takes down an io_uring that this thread had.
fn receive(mut once: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match once() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map_err(in_words),
        }
    }
}

/// Never zero, which would mean for ever.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(no_answer());
    }
    Ok(left)
}

/// A socket's timeout shows as EAGAIN.
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => no_answer(),
        _ => error,
    }
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time (dns.timeout)")
}

/// The name servers of this host. Without any, the C library asks the host itself; so do we.
fn of_this_host() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let found = nameservers(&text);
    if found.is_empty() {
        return vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT)];
    }
    found
}

/// The `nameserver` lines of a resolv.conf. An address with a zone needs the number of an interface, and is
/// left out.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        Some(SocketAddr::new(words.next()?.parse().ok()?, DNS_PORT))
    };
    text.lines().filter_map(server).take(OF_HOST_MAX).collect()
}

#[cfg(test)]
mod tests;
