//! How the ring waits, against the real kernel.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use super::*;

const TOKEN: Token = 7;

fn ring() -> RelayRing {
    let options = RingOptions {
        buffer_bytes: 4096,
        buffers: 256,
        cq_entries: 256,
        zero_copy_send: false,
        busy_poll: false,
        multishot_receive: true,
    };
    RelayRing::new(options).unwrap()
}

#[test]
fn a_pass_without_a_wait_returns_at_once_and_runs_what_was_deferred() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let mut ring = ring();
    let mut completions = Vec::new();
    ring.recv(server.as_fd(), Group::Fast, Shots::Single, TOKEN);
    ring.enter(Wait::No).unwrap();
    ring.reap(&mut completions);
    assert!(completions.is_empty());

    client.write_all(b"hello").unwrap();
    ring.enter(Wait::No).unwrap();
    ring.reap(&mut completions);
    let received = completions.pop().expect("run by this very call");
    assert_eq!((received.token, received.result), (TOKEN, 5));
    ring.buffers().release(received.buffer.unwrap());
}
