//! Clients and servers whose every step a test decides: plain blocking sockets with deadlines.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use corelay_bench::pattern::Pattern;
use socket2::{Domain, SockRef, Socket, Type};

use super::proxy::Proxy;
use super::{DEADLINE, POLL_INTERVAL, wait_until};

/// How a stream ended for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// FIN.
    Fin,
    /// RST.
    Reset,
    /// Nothing came before the read timeout.
    Silence,
}

/// Connects; every later read and write gives up at the deadline.
#[track_caller]
pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    try_connect(to).unwrap_or_else(|error| panic!("connecting to {to}: {error}"))
}

/// As [`connect`], for a test in which it may fail.
pub(crate) fn try_connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, DEADLINE)?;
    prepare(&stream)?;
    Ok(stream)
}

/// Connects with a receive buffer of this many bytes (the kernel doubles it), so that the window
/// is small from the handshake on.
#[track_caller]
pub(crate) fn connect_with_receive_buffer(to: SocketAddr, bytes: usize) -> TcpStream {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.cloexec(), None).unwrap();
    socket.set_recv_buffer_size(bytes).unwrap();
    socket
        .connect_timeout(&to.into(), DEADLINE)
        .expect("connecting with a small buffer");
    let stream = TcpStream::from(socket);
    prepare(&stream).unwrap();
    stream
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))
}

/// A server's listening socket.
#[derive(Debug)]
pub(crate) struct Upstream {
    listener: TcpListener,
    address: SocketAddr,
}

impl Upstream {
    /// On a free port of 127.0.0.1.
    pub(crate) fn new() -> Self {
        Self::on(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// On this address.
    pub(crate) fn on(address: SocketAddr) -> Self {
        Self::build(address, None)
    }

    /// With a receive buffer of this many bytes for each connection.
    pub(crate) fn with_receive_buffer(bytes: usize) -> Self {
        Self::build(SocketAddr::from(([127, 0, 0, 1], 0)), Some(bytes))
    }

    fn build(address: SocketAddr, receive_buffer_bytes: Option<usize>) -> Self {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None).unwrap();
        if let Some(bytes) = receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        socket.bind(&address.into()).expect("binding a test server");
        socket.listen(4096).unwrap();
        // accept(2) obeys the receive timeout of the listening socket, see socket(7).
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection; fails the test if none comes before the deadline.
    #[track_caller]
    pub(crate) fn accept(&self) -> TcpStream {
        let (stream, _) = self
            .listener
            .accept()
            .expect("no connection came to the test server");
        prepare(&stream).unwrap();
        stream
    }

    /// The next connection if one comes within this time.
    pub(crate) fn accept_within(&self, patience: Duration) -> Option<TcpStream> {
        let socket = SockRef::from(&self.listener);
        socket.set_read_timeout(Some(patience)).unwrap();
        let accepted = self.listener.accept();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        match accepted {
            Ok((stream, _)) => {
                prepare(&stream).unwrap();
                Some(stream)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("accepting on a test server: {error}"),
        }
    }
}

/// The two ends of one relayed connection.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
}

impl Pair {
    /// Connects a client to the proxy and accepts what the proxy connects. The test's only server
    /// must have no other connection waiting.
    #[track_caller]
    pub(crate) fn open(proxy: &Proxy, upstream: &Upstream) -> Self {
        let client = connect(proxy.address());
        Self {
            client,
            server: upstream.accept(),
        }
    }

    /// With a small receive buffer on the client.
    #[track_caller]
    pub(crate) fn open_slow(proxy: &Proxy, upstream: &Upstream, client_buffer: usize) -> Self {
        let client = connect_with_receive_buffer(proxy.address(), client_buffer);
        Self {
            client,
            server: upstream.accept(),
        }
    }

    /// One message each way: the relay stands.
    #[track_caller]
    pub(crate) fn greet(&mut self) {
        self.client.write_all(b"ping").unwrap();
        expect_bytes(&mut self.server, b"ping");
        self.server.write_all(b"pong").unwrap();
        expect_bytes(&mut self.client, b"pong");
    }
}

/// Reads exactly these bytes.
#[track_caller]
pub(crate) fn expect_bytes(stream: &mut TcpStream, expected: &[u8]) {
    let mut received = vec![0; expected.len()];
    if let Err(error) = stream.read_exact(&mut received) {
        panic!("expected {} bytes: {error}", expected.len());
    }
    assert!(received == expected, "other bytes came than were sent");
}

/// Reads to the end of the stream.
pub(crate) fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, End) {
    let mut received = Vec::new();
    let end = read_each(stream, |bytes| received.extend_from_slice(bytes));
    (received, end)
}

/// Reads to the end of the stream and hands on each piece.
#[track_caller]
pub(crate) fn read_each(stream: &mut TcpStream, mut piece: impl FnMut(&[u8])) -> End {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return End::Fin,
            Ok(count) => piece(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return End::Silence,
            Err(error) if is_reset(&error) => return End::Reset,
            Err(error) => panic!("reading: {error}"),
        }
    }
}

/// Reads to the end, checking every byte against the pattern; returns how many came.
#[track_caller]
pub(crate) fn read_pattern(stream: &mut TcpStream, pattern: Pattern) -> (u64, End) {
    read_pattern_from(stream, pattern, 0)
}

/// As [`read_pattern`], the next byte being the pattern's byte `start`.
#[track_caller]
pub(crate) fn read_pattern_from(
    stream: &mut TcpStream,
    pattern: Pattern,
    start: u64,
) -> (u64, End) {
    let mut offset = start;
    let end = read_each(stream, |bytes| {
        if let Some(at) = pattern.first_difference(offset, bytes) {
            panic!("byte {} of the stream is wrong", offset + at as u64);
        }
        offset += bytes.len() as u64;
    });
    (offset - start, end)
}

/// Writes this many bytes of the pattern from its start.
pub(crate) fn write_pattern(
    stream: &mut TcpStream,
    pattern: Pattern,
    bytes: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    while offset < bytes {
        let take = usize::try_from(bytes - offset)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        pattern.fill(offset, &mut buffer[..take]);
        stream.write_all(&buffer[..take])?;
        offset += take as u64;
    }
    Ok(())
}

/// Writes the pattern until the other side takes no more, or `limit` is reached; returns how much
/// was taken. Nothing taken for `quiet` counts as "no more".
pub(crate) fn write_until_stuck(
    stream: &mut TcpStream,
    pattern: Pattern,
    limit: u64,
    quiet: Duration,
) -> u64 {
    stream.set_write_timeout(Some(quiet)).unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    while offset < limit {
        let take = usize::try_from(limit - offset)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        pattern.fill(offset, &mut buffer[..take]);
        match stream.write(&buffer[..take]) {
            Ok(count) => offset += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("writing until stuck: {error}"),
        }
    }
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    offset
}

/// The next read must be FIN.
#[track_caller]
pub(crate) fn expect_fin(stream: &mut TcpStream) {
    let (received, end) = read_to_end(stream);
    assert_eq!(
        (received.len(), end),
        (0, End::Fin),
        "expected FIN and nothing before it"
    );
}

/// The next read must be RST.
#[track_caller]
pub(crate) fn expect_reset(stream: &mut TcpStream) {
    let (received, end) = read_to_end(stream);
    assert_eq!(
        (received.len(), end),
        (0, End::Reset),
        "expected RST and nothing before it"
    );
}

/// A connection that the proxy must reset before anything else happens. The reset may come before
/// the client has finished connecting.
#[track_caller]
pub(crate) fn expect_rejected(to: SocketAddr) {
    match try_connect(to) {
        Ok(mut stream) => expect_reset(&mut stream),
        Err(error) if is_reset(&error) => {}
        Err(error) => panic!("connecting to {to}: {error}"),
    }
}

/// Waits for the socket to report an error: RST after FIN does not show in `read`.
#[track_caller]
pub(crate) fn wait_reset(stream: &TcpStream) {
    wait_until("the socket is reset", || {
        stream
            .take_error()
            .expect("asking for SO_ERROR")
            .is_some_and(|error| is_reset(&error))
    });
}

fn is_reset(error: &io::Error) -> bool {
    // RST after FIN is EPIPE, see tcp_reset() in the kernel.
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

/// Closes with RST.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("SO_LINGER 0");
    drop(stream);
}

/// Ends the sending direction: FIN.
#[track_caller]
pub(crate) fn finish(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).expect("shutdown");
}

/// Waits until the peer's kernel has acknowledged everything that was written: what a reset after
/// this cuts off, it cuts off beyond the wire.
#[track_caller]
pub(crate) fn wait_acknowledged(stream: &TcpStream) {
    wait_until("everything is acknowledged", || {
        send_queue_bytes(stream) == 0
    });
}

/// Bytes written and not yet acknowledged, from /proc/net/tcp. IPv4 only.
#[track_caller]
pub(crate) fn send_queue_bytes(stream: &TcpStream) -> u64 {
    // Both FINs are acknowledged, and so is everything before them: the socket has left the table.
    let Ok(peer) = stream.peer_addr() else {
        return 0;
    };
    let local = stream.local_addr().unwrap();
    let (local, peer) = (proc_address(local), proc_address(peer));
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("reading /proc/self/net/tcp");
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields[1] == local && fields[2] == peer {
            let queue = fields[4].split(':').next().expect("tx_queue:rx_queue");
            return u64::from_str_radix(queue, 16).expect("a hexadecimal number");
        }
    }
    // It left the table since it was asked for its peer.
    0
}

fn proc_address(address: SocketAddr) -> String {
    let SocketAddr::V4(address) = address else {
        panic!("an IPv4 address is needed")
    };
    // The kernel prints the four bytes as one number of the machine's byte order.
    format!(
        "{:08X}:{:04X}",
        u32::from_ne_bytes(address.ip().octets()),
        address.port()
    )
}

/// Reads with pauses, a little at a time, until the end: a slow client.
pub(crate) fn read_slowly(
    stream: &mut TcpStream,
    pattern: Pattern,
    chunk_bytes: usize,
    pause: Duration,
) -> (u64, End) {
    let mut buffer = vec![0; chunk_bytes];
    let mut offset = 0;
    let deadline = Instant::now() + DEADLINE * 3;
    loop {
        assert!(
            Instant::now() < deadline,
            "the slow reader is not done; {offset} bytes came"
        );
        match stream.read(&mut buffer) {
            Ok(0) => return (offset, End::Fin),
            Ok(count) => {
                assert_eq!(pattern.first_difference(offset, &buffer[..count]), None);
                offset += count as u64;
            }
            Err(error) if is_reset(&error) => return (offset, End::Reset),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (offset, End::Silence),
            Err(error) => panic!("reading slowly: {error}"),
        }
        std::thread::sleep(pause.max(POLL_INTERVAL / 10));
    }
}
