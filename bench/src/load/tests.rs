//! Each kind of load against servers whose behaviour is known.

use std::time::{Duration, Instant};

use super::bulk::{self, Direction};
use super::crr::{self, Close};
use super::{Control, mixed, rr, slow};
use crate::endpoint::Endpoint;
use crate::servers::{Fault, Handle, Server};

const DEADLINE: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(200);

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn rr_to(server: &Handle) -> rr::Options {
    rr::Options {
        to: server.endpoint().clone(),
        connections: 20,
        threads: 2,
        duration: SHORT,
        size_bytes: 100,
        ..rr::Options::default()
    }
}

fn bulk_to(server: &Handle, direction: Direction) -> bulk::Options {
    bulk::Options {
        to: server.endpoint().clone(),
        connections: 3,
        threads: 2,
        direction,
        duration: DEADLINE,
        bytes: Some(3_000_001),
        ..bulk::Options::default()
    }
}

#[test]
fn every_request_to_an_echo_server_is_counted() {
    let echo = Server::echo().start().unwrap();
    let report = rr::run(&rr_to(&echo), &Control::new()).unwrap();
    assert!(report.operations >= 20);
    assert_eq!(report.service_ns.len(), report.operations);
    assert_eq!(report.errors, [].into());
    assert_eq!(echo.stats().accepted, 20);
    // The server counts after it has sent, so the last echo may be here before its count.
    wait_until("all is counted", || {
        echo.stats().bytes_out == report.operations * 100
    });
    assert_eq!(report.bytes_received, report.operations * 100);
}

#[test]
fn messages_larger_than_the_buffers_come_back_whole() {
    let echo = Server::echo().receive_buffer(8192).start().unwrap();
    let options = rr::Options {
        connections: 2,
        size_bytes: 2_000_000,
        ..rr_to(&echo)
    };
    let report = rr::run(&options, &Control::new()).unwrap();
    assert!(report.operations >= 2);
}

#[test]
fn a_server_that_closes_is_counted_or_fails_the_run_if_asked_to() {
    let closing = Server::faulty(Fault::AcceptThenClose).start().unwrap();
    let report = rr::run(&rr_to(&closing), &Control::new()).unwrap();
    assert_eq!(report.operations, 0);
    assert!(report.error_count() >= 20, "{:?}", report.errors);
    // Opened again and again, with growing waits.
    assert!(closing.stats().accepted > 40);
    let options = rr::Options {
        fail_fast: true,
        ..rr_to(&closing)
    };
    rr::run(&options, &Control::new()).unwrap_err();
}

#[test]
fn a_wrong_echo_ends_the_run() {
    let corrupt = Server::faulty(Fault::Corrupt { at: 5000 }).start().unwrap();
    let error = rr::run(&rr_to(&corrupt), &Control::new()).unwrap_err();
    assert!(error.to_string().contains("wrong echo"), "{error}");
}

#[test]
fn a_thread_that_fails_ends_the_others_but_not_the_callers_control() {
    let echo = Server::echo().start().unwrap();
    let options = rr::Options {
        // The second thread finds no such CPU.
        cpus: vec![0, usize::MAX],
        duration: DEADLINE * 3,
        ..rr_to(&echo)
    };
    let control = Control::new();
    let began = Instant::now();
    let error = rr::run(&options, &control).unwrap_err();
    assert!(error.to_string().contains("pinning"), "{error}");
    assert!(began.elapsed() < DEADLINE * 3, "the first thread went on");
    assert!(!control.is_stopped());
}

#[test]
fn crr_makes_one_connection_per_request_and_closes_it_as_asked() {
    for close in [Close::Fin, Close::Rst] {
        let echo = Server::echo().start().unwrap();
        let options = crr::Options {
            to: echo.endpoint().clone(),
            connections: 4,
            threads: 2,
            duration: SHORT,
            close,
            ..crr::Options::default()
        };
        let report = crr::run(&options, &Control::new()).unwrap();
        assert!(report.operations > 0);
        assert_eq!(report.errors, [].into());
        wait_until("the server has seen every end", || echo.stats().open == 0);
        let seen = echo.stats();
        assert_eq!(seen.accepted, report.operations);
        let resets = if close == Close::Rst {
            report.operations
        } else {
            0
        };
        assert_eq!(seen.resets_seen, resets);
    }
}

#[test]
fn fixed_work_moves_exactly_its_bytes_each_way() {
    let total = 3 * 3_000_001;
    for discard in [false, true] {
        let sink = Server::discard().start().unwrap();
        let up = bulk_to(&sink, Direction::Up);
        let report = bulk::run(&up, &Control::new()).unwrap();
        assert_eq!((report.operations, report.bytes_sent), (3, total));
        assert_eq!(sink.stats().bytes_in, total);

        let source = Server::source(3_000_001, 1).start().unwrap();
        let down = bulk::Options {
            discard,
            ..bulk_to(&source, Direction::Down)
        };
        let report = bulk::run(&down, &Control::new()).unwrap();
        assert_eq!((report.operations, report.bytes_received), (3, total));

        let echo = Server::echo().start().unwrap();
        let both = bulk::Options {
            discard,
            ..bulk_to(&echo, Direction::Both)
        };
        let report = bulk::run(&both, &Control::new()).unwrap();
        assert_eq!((report.bytes_sent, report.bytes_received), (total, total));
        assert_eq!(report.errors, [].into());
    }
}

#[test]
fn endless_streams_end_with_the_time() {
    let blast = Server::blast().start().unwrap();
    for direction in [Direction::Down, Direction::Both] {
        let options = bulk::Options {
            bytes: None,
            duration: SHORT,
            ..bulk_to(&blast, direction)
        };
        let report = bulk::run(&options, &Control::new()).unwrap();
        assert!(report.bytes_received > 0);
        assert_eq!(report.bytes_sent > 0, direction == Direction::Both);
        assert_eq!(report.errors, [].into());
    }
}

#[test]
fn requests_beside_streams_report_both() {
    let echo = Server::echo().start().unwrap();
    let sink = Server::discard().start().unwrap();
    let options = mixed::Options {
        rr: rr_to(&echo),
        bulk: bulk_to(&sink, Direction::Up),
    };
    let report = mixed::run(&options, &Control::new()).unwrap();
    assert_eq!(report.service_ns.len(), report.operations);
    assert!(report.bytes_sent > 0);
    assert_eq!(echo.stats().accepted, 20);
    assert_eq!(sink.stats().accepted, 3);
}

#[test]
fn requests_wait_for_their_own_streams_whatever_the_control_has_seen() {
    let echo = Server::echo().start().unwrap();
    let late = Server::faulty(Fault::Trickle {
        bytes: 1000,
        interval: Duration::from_millis(300),
    });
    let late = late.start().unwrap();
    let control = Control::new();
    rr::run(&rr_to(&echo), &control).unwrap();
    let before = echo.stats().accepted;
    let options = mixed::Options {
        rr: rr_to(&echo),
        bulk: bulk_to(&late, Direction::Down),
    };
    std::thread::scope(|scope| {
        let run = scope.spawn(|| mixed::run(&options, &control));
        wait_until("the requests begin", || echo.stats().accepted > before);
        assert!(late.stats().bytes_out > 0, "before the streams");
        run.join().unwrap().unwrap();
    });
}

#[test]
fn nobody_there_is_an_error_of_its_kind() {
    let gone = crate::servers::RefusedPort::new().unwrap();
    let options = crr::Options {
        to: Endpoint::Tcp(gone.address()),
        duration: SHORT,
        ..crr::Options::default()
    };
    let report = crr::run(&options, &Control::new()).unwrap();
    assert_eq!(report.operations, 0);
    assert_eq!(
        report.errors.keys().collect::<Vec<_>>(),
        ["connect: connection refused"]
    );
}

#[test]
fn slow_readers_read_at_their_rate_whatever_is_offered() {
    let blast = Server::blast().start().unwrap();
    let options = slow::Options {
        to: blast.endpoint().clone(),
        connections: 5,
        threads: 2,
        duration: Duration::from_millis(500),
        bytes_per_second: 50_000.0,
        receive_buffer_bytes: Some(16 * 1024),
        ..slow::Options::default()
    };
    let report = slow::run(&options, &Control::new()).unwrap();
    // At most the rate times the time; a loaded machine may read less, but something.
    let most = 5.0 * 50_000.0 * report.elapsed.as_secs_f64();
    assert!(report.bytes_received > 0 && report.bytes_received as f64 <= most);
    assert_eq!(report.errors, [].into());
}
