//! Zero-copy sends against the real kernel, and receives of a length. Over loopback every byte that arrives was copied; bytes that
//! wait in the sender's queue were not.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;
use crate::sys::socket;

const BUFFER_BYTES: u32 = 16 * 1024;
const BUFFERS: u32 = 256;
/// A send buffer that is soon full.
const SMALL_BYTES: usize = 64 * 1024;
const TOKEN: Token = 7;
const DEADLINE: Duration = Duration::from_secs(10);

struct Rig {
    ring: RelayRing,
    completions: Vec<Completion>,
}

impl Rig {
    fn new() -> Self {
        let options = RingOptions {
            buffer_bytes: BUFFER_BYTES,
            buffers: BUFFERS,
            cq_entries: 1024,
            zero_copy_send: true,
            busy_poll: false,
            multishot_receive: true,
        };
        Self {
            ring: RelayRing::new(options).unwrap(),
            completions: Vec::new(),
        }
    }

    fn pass(&mut self) {
        self.ring
            .enter(Wait::For(Duration::from_millis(5)))
            .unwrap();
        self.ring.reap(&mut self.completions);
    }

    /// The result of the operation in flight, and its buffer.
    fn complete(&mut self) -> (i32, Option<Buffer>) {
        let start = Instant::now();
        loop {
            if let Some(completion) = self.completions.pop() {
                assert_eq!(completion.token, TOKEN);
                assert!(!completion.more);
                return (completion.result, completion.buffer);
            }
            assert!(start.elapsed() < DEADLINE, "nothing completed");
            self.pass();
        }
    }

    /// A full buffer, whose bytes say which one it is.
    fn buffer(&mut self, mark: u8) -> Buffer {
        let (mut far, near) = UnixStream::pair().unwrap();
        far.write_all(&vec![mark; BUFFER_BYTES as usize]).unwrap();
        self.ring
            .recv(near.as_fd(), Group::Fast, Shots::Single, TOKEN);
        let (len, buffer) = self.complete();
        assert_eq!(len, BUFFER_BYTES as i32);
        buffer.unwrap()
    }

    /// Sends it and releases it as soon as the engine would.
    fn send_zero_copy(&mut self, socket: &OwnedFd, mark: u8) -> i32 {
        let buffer = self.buffer(mark);
        self.ring
            .send_zero_copy(socket.as_fd(), &buffer, 0, BUFFER_BYTES, TOKEN);
        let (sent, _) = self.complete();
        self.ring.buffers().release(buffer);
        sent
    }

    /// Sends until the socket takes nothing. Returns how many bytes it took.
    fn fill(&mut self, socket: &OwnedFd) -> usize {
        let mut taken = 0;
        for mark in 0..(BUFFERS / 8) as u8 {
            match self.send_zero_copy(socket, mark) {
                sent @ 0.. => taken += sent as usize,
                error => {
                    assert_eq!(error, -libc::EAGAIN);
                    return taken;
                }
            }
        }
        panic!("the socket takes everything");
    }

    fn wait_until(&mut self, what: &str, is_true: impl Fn(&mut RelayRing) -> bool) {
        let start = Instant::now();
        while !is_true(&mut self.ring) {
            assert!(start.elapsed() < DEADLINE, "{what}");
            self.pass();
        }
    }
}

/// Ours, with a send buffer of this size, and the peer's, with a receive buffer of a quarter.
fn tcp_pair(send_bytes: usize) -> (OwnedFd, TcpStream) {
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.set_recv_buffer_size(send_bytes / 4).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(1).unwrap();
    let listener = TcpListener::from(listener);
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let near = socket2::Socket::from(near);
    near.set_send_buffer_size(send_bytes).unwrap();
    near.set_nonblocking(true).unwrap();
    near.set_tcp_nodelay(true).unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(DEADLINE)).unwrap();
    (near.into(), far)
}

#[test]
fn loopback_copies_and_so_zero_copy_switches_itself_off() {
    let mut rig = Rig::new();
    let (near, mut far) = tcp_pair(1024 * 1024);
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        far.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let mut expected = Vec::new();
    let start = Instant::now();
    while rig.ring.zero_copy_stats().is_on {
        assert!(
            start.elapsed() < DEADLINE,
            "{:?}",
            rig.ring.zero_copy_stats()
        );
        let mark = expected.len() as u8 ^ (expected.len() >> 14) as u8;
        match rig.send_zero_copy(&near, mark) {
            sent @ 0.. => expected.extend(std::iter::repeat_n(mark, sent as usize)),
            error => assert_eq!(error, -libc::EAGAIN),
        }
    }
    rig.wait_until("buffers are lent for ever", |ring| {
        ring.buffers().held() == 0
    });
    let stats = rig.ring.zero_copy_stats();
    assert!(stats.copied_total > stats.zero_copy_total, "{stats:?}");
    // From here on it copies: one completion, and nothing is lent.
    let sent = loop {
        match rig.send_zero_copy(&near, 1) {
            error if error == -libc::EAGAIN => std::thread::sleep(Duration::from_millis(1)),
            sent => break sent,
        }
    };
    expected.extend(std::iter::repeat_n(1, sent as usize));
    assert_eq!(rig.ring.stats().in_flight, 0);
    assert_eq!(rig.ring.buffers().held(), 0);
    drop(near);
    assert!(reader.join().unwrap() == expected, "bytes were changed");
}

#[test]
fn a_buffer_is_lent_until_its_bytes_are_acknowledged_whoever_released_it() {
    let mut rig = Rig::new();
    let (near, mut far) = tcp_pair(SMALL_BYTES);
    let taken = rig.fill(&near);
    assert!(rig.ring.buffers().held() > 0, "nothing waits in the queue");
    // The socket may go before its buffers come back, and their bytes still arrive unchanged.
    drop(near);
    rig.pass();
    assert!(rig.ring.buffers().held() > 0);
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), taken);
    for (mark, part) in bytes.chunks(BUFFER_BYTES as usize).enumerate() {
        assert!(part.iter().all(|&byte| byte == mark as u8), "buffer {mark}");
    }
    rig.wait_until("not returned", |ring| ring.buffers().held() == 0);
    assert_eq!(rig.ring.stats().in_flight, 0);
}

#[test]
fn a_reset_returns_the_buffers_and_is_a_reset() {
    let mut rig = Rig::new();
    let (near, mut far) = tcp_pair(SMALL_BYTES);
    rig.fill(&near);
    assert!(rig.ring.buffers().held() > 0, "nothing waits in the queue");
    socket::linger_zero(near.as_fd());
    drop(near);
    rig.wait_until("not returned", |ring| ring.buffers().held() == 0);
    assert_eq!(rig.ring.stats().in_flight, 0);
    let error = far.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    // What was never sent was never copied either.
    let stats = rig.ring.zero_copy_stats();
    assert!(stats.zero_copy_total > 0 && stats.is_on, "{stats:?}");
}

#[test]
fn sends_that_take_nothing_say_nothing_about_copies() {
    let mut rig = Rig::new();
    let (near, far) = tcp_pair(SMALL_BYTES);
    rig.fill(&near);
    let before = rig.ring.zero_copy_stats();
    for _ in 0..200 {
        assert_eq!(rig.send_zero_copy(&near, 0), -libc::EAGAIN);
    }
    let after = rig.ring.zero_copy_stats();
    assert_eq!(after.copied_total, before.copied_total);
    assert!(after.is_on);
    drop(far);
}

#[test]
fn a_receive_of_a_length_takes_no_more_into_its_buffer() {
    let mut rig = Rig::new();
    let (mut far, near) = UnixStream::pair().unwrap();
    far.write_all(b"granted and not").unwrap();
    for (len, expected) in [(7, "granted"), (BUFFER_BYTES, " and not")] {
        rig.ring.recv_up_to(near.as_fd(), Group::Fast, len, TOKEN);
        let (received, buffer) = rig.complete();
        let buffer = buffer.expect("bytes came");
        let bytes = rig.ring.buffers().bytes(&buffer, received as u32);
        assert_eq!(bytes, expected.as_bytes());
        rig.ring.buffers().release(buffer);
    }
}

#[test]
fn a_socket_that_cannot_says_so_and_keeps_no_buffer() {
    let mut rig = Rig::new();
    let (near, _far) = UnixStream::pair().unwrap();
    let sent = rig.send_zero_copy(&near.into(), 0);
    assert_eq!(sent, -libc::EOPNOTSUPP);
    rig.wait_until("not returned", |ring| ring.buffers().held() == 0);
    assert!(rig.ring.zero_copy_stats().is_on);
}

#[test]
fn the_kernel_is_lent_an_eighth_of_the_slab_and_then_copies() {
    let mut rig = Rig::new();
    let pairs: Vec<_> = (0..BUFFERS).map(|_| tcp_pair(SMALL_BYTES)).collect();
    for (near, _) in &pairs {
        // More than the peer's receive buffer takes: the rest waits in the queue.
        for mark in 0..6 {
            rig.send_zero_copy(near, mark);
        }
    }
    let lent = rig.ring.buffers().held();
    assert!(lent > 0 && lent <= BUFFERS as usize / 8, "{lent}");
}
