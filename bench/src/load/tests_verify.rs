//! Streams that are compared byte for byte, and servers and relays that get one byte wrong.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::Control;
use super::bulk::{self, Direction};
use crate::endpoint::Endpoint;
use crate::servers::{Fault, Server};

const BYTES: u64 = 700_001;
const SEED: u64 = 7;

fn verified(to: &Endpoint, direction: Direction) -> bulk::Options {
    bulk::Options {
        to: to.clone(),
        connections: 3,
        threads: 2,
        direction,
        duration: Duration::from_secs(10),
        bytes: Some(BYTES),
        verify: true,
        seed: SEED,
        ..bulk::Options::default()
    }
}

/// A relay of one connection that flips one bit of what goes to the server.
fn flipping_relay(server: SocketAddr, at: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut upstream = TcpStream::connect(server).unwrap();
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).unwrap();
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1;
        }
        upstream.write_all(&bytes).unwrap();
        upstream.shutdown(Shutdown::Write).unwrap();
        std::io::copy(&mut upstream, &mut client).unwrap();
    });
    address
}

#[test]
fn what_arrives_whole_passes_in_every_direction() {
    let digest = Server::digest().start().unwrap();
    let source = Server::source(BYTES, SEED).start().unwrap();
    let echo = Server::echo().start().unwrap();
    for (server, direction) in [
        (&digest, Direction::Up),
        (&source, Direction::Down),
        (&echo, Direction::Both),
    ] {
        let options = verified(server.endpoint(), direction);
        let report = bulk::run(&options, &Control::new()).unwrap();
        assert_eq!((report.operations, report.error_count()), (3, 0));
    }
}

#[test]
fn streams_without_a_length_are_compared_at_the_end_of_the_time() {
    let digest = Server::digest().start().unwrap();
    let echo = Server::echo().start().unwrap();
    for (server, direction) in [(&digest, Direction::Up), (&echo, Direction::Both)] {
        let options = bulk::Options {
            bytes: None,
            duration: Duration::from_millis(100),
            ..verified(server.endpoint(), direction)
        };
        let report = bulk::run(&options, &Control::new()).unwrap();
        assert_eq!((report.operations, report.error_count()), (3, 0));
        assert!(report.bytes_sent > 0);
    }
}

#[test]
fn a_flipped_bit_on_the_way_up_is_seen_in_the_digest() {
    let digest = Server::digest().start().unwrap();
    for (flipped, is_seen) in [(567_890, true), (BYTES as usize, false)] {
        let relay = flipping_relay(digest.address(), flipped);
        let options = bulk::Options {
            connections: 1,
            ..verified(&relay.into(), Direction::Up)
        };
        let result = bulk::run(&options, &Control::new());
        assert_eq!(result.is_err(), is_seen, "{result:?}");
        if let Err(error) = result {
            assert!(error.to_string().contains("SHA-256"), "{error}");
        }
    }
}

#[test]
fn a_flipped_bit_on_the_way_back_is_named() {
    let corrupt = Server::faulty(Fault::Corrupt { at: 567_890 })
        .start()
        .unwrap();
    let options = verified(corrupt.endpoint(), Direction::Both);
    let error = bulk::run(&options, &Control::new()).unwrap_err();
    assert!(error.to_string().contains("byte 567890 "), "{error}");
}

#[test]
fn another_stream_than_the_expected_one_is_wrong_from_its_first_byte() {
    let source = Server::source(BYTES, SEED + 1).start().unwrap();
    let options = verified(source.endpoint(), Direction::Down);
    let error = bulk::run(&options, &Control::new()).unwrap_err();
    assert!(error.to_string().contains("byte 0 "), "{error}");
}

#[test]
fn a_stream_that_ends_early_is_an_error_of_its_own() {
    let source = Server::source(999, SEED).start().unwrap();
    let options = bulk::Options {
        bytes: Some(1000),
        duration: Duration::from_millis(100),
        ..verified(source.endpoint(), Direction::Down)
    };
    let report = bulk::run(&options, &Control::new()).unwrap();
    assert_eq!(report.operations, 0);
    assert!(report.errors["ended too early by the other side"] >= 3);
    assert_eq!(report.errors["unfinished"], 3);
}
