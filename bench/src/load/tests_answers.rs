//! Long answers: that lengths and bytes are as drawn, and that a tail that is held back shows.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use super::answers::{self, Options};
use super::{Control, rr};
use crate::endpoint::Endpoint;
use crate::servers::answers::{REQUEST_BYTES, block, slice};
use crate::servers::{Handle, Server};

const SHORT: Duration = Duration::from_millis(200);
/// How long the server below keeps the end of an answer.
const HELD: Duration = Duration::from_millis(40);

fn answers_of(server: &Handle) -> Options {
    Options {
        to: server.endpoint().clone(),
        duration: SHORT,
        ..Options::default()
    }
}

#[test]
fn every_answer_is_counted_with_its_length() {
    let server = Server::answers().start().unwrap();
    for discard in [false, true] {
        let options = Options {
            bytes: 700_000,
            spread_bytes: 1000,
            threads: 2,
            discard,
            ..answers_of(&server)
        };
        let report = answers::run(&options, &Control::new()).unwrap();
        assert!(report.operations >= 4);
        assert_eq!(report.errors, [].into());
        assert_eq!(report.service_ns.len(), report.operations);
        assert_eq!(report.bytes_sent, report.operations * REQUEST_BYTES as u64);
        let extra = report.bytes_received - report.operations * 700_000;
        assert!(extra > 0 && extra <= report.operations * 1000, "{extra}");
        let tails = report.tail_ns.unwrap().len();
        assert!(tails <= report.operations, "{tails}");
        assert!(report.intended_ns.is_none());
    }
    // Four connections each time, which stay.
    assert_eq!(server.stats().accepted, 8);
}

#[test]
fn answers_longer_than_a_turn_come_back_whole() {
    let server = Server::answers().start().unwrap();
    let options = Options {
        duration: Duration::from_millis(50),
        ..answers_of(&server)
    };
    let report = answers::run(&options, &Control::new()).unwrap();
    assert!(report.operations >= 4);
    assert!(report.bytes_received >= report.operations * options.bytes);
    assert_eq!(report.errors, [].into());
    assert!(!report.tail_ns.unwrap().is_empty());
}

#[test]
fn an_open_loop_has_both_latencies() {
    let server = Server::answers().start().unwrap();
    let options = Options {
        bytes: 1000,
        spread_bytes: 0,
        rate: Some(500.0),
        ..answers_of(&server)
    };
    let report = answers::run(&options, &Control::new()).unwrap();
    assert_eq!((report.operations, report.bytes_received), (100, 100_000));
    assert_eq!(report.intended_ns.unwrap().len(), 100);
    // They came in one piece each: nothing was held back.
    assert!(report.tail_ns.unwrap().is_empty());
}

/// Answers one connection's requests, and keeps the last bytes of each answer for a while; those of
/// the last request are never sent.
fn holding_back(answers: usize, tail: u64) -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let block = block();
        for answer in 0..=answers {
            let mut request = [0; REQUEST_BYTES];
            stream.read_exact(&mut request).unwrap();
            let length = u64::from_be_bytes(request);
            let mut done = 0;
            while done < length {
                if done == length - tail {
                    if answer == answers {
                        return;
                    }
                    std::thread::sleep(HELD);
                }
                let slice = slice(length, done);
                let left = if done < length - tail {
                    length - tail - done
                } else {
                    tail
                };
                let part = slice.len().min(left as usize);
                stream.write_all(&block[slice.start..][..part]).unwrap();
                done += part as u64;
            }
        }
    });
    endpoint
}

#[test]
fn a_tail_that_is_held_back_is_seen_as_long_as_it_was() {
    let options = Options {
        to: holding_back(3, 1000),
        connections: 1,
        bytes: 600_000,
        duration: Duration::from_secs(10),
        fail_fast: false,
        ..Options::default()
    };
    let control = Control::new();
    let report = std::thread::scope(|scope| {
        let load = scope.spawn(|| answers::run(&options, &control));
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while control.snapshot().errors == 0 && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        control.stop();
        load.join().unwrap().unwrap()
    });
    assert_eq!(report.operations, 3);
    // The fourth answer never ended.
    assert_eq!(report.errors["closed by the other side"], 1);
    let tail_ns = report.tail_ns.unwrap();
    assert_eq!(tail_ns.len(), 3);
    // The client may have seen the part before it late, but not by much of this.
    let least_ns = HELD.as_nanos() as u64 / 2;
    assert!(tail_ns.min() >= least_ns, "{} ns", tail_ns.min());
    assert!(report.service_ns.min() >= tail_ns.min());
    assert!(tail_ns.max() <= report.service_ns.max());
}

#[test]
fn a_wrong_answer_ends_the_run() {
    // What it sends back is the request, not the answer.
    let echo = Server::echo().start().unwrap();
    let options = Options {
        bytes: REQUEST_BYTES as u64,
        spread_bytes: 0,
        ..answers_of(&echo)
    };
    let error = answers::run(&options, &Control::new()).unwrap_err();
    assert!(error.to_string().contains("wrong answer"), "{error}");
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    for (bytes, spread_bytes) in [(0, 1), (u64::MAX, 1), (1, u64::MAX)] {
        let options = Options {
            bytes,
            spread_bytes,
            ..Options::default()
        };
        assert!(answers::run(&options, &Control::new()).is_err());
    }
}

#[test]
fn other_loads_have_no_wait_for_a_tail() {
    let echo = Server::echo().start().unwrap();
    let options = rr::Options {
        to: echo.endpoint().clone(),
        size_bytes: 2_000_000,
        connections: 1,
        duration: Duration::from_millis(20),
        ..rr::Options::default()
    };
    let report = rr::run(&options, &Control::new()).unwrap();
    assert!(report.operations > 0 && report.tail_ns.is_none());
}
