//! Streams that are held to a rate: never above it, all bytes carried, the time of the run kept.

use std::time::Duration;

use super::bulk::{self, Direction};
use super::{Control, Report, mixed, rr};
use crate::servers::{Handle, Server};

const RATE: f64 = 20_000_000.0;

fn paced(server: &Handle, direction: Direction) -> bulk::Options {
    bulk::Options {
        to: server.endpoint().clone(),
        connections: 5,
        threads: 2,
        duration: Duration::from_millis(300),
        direction,
        bytes_per_second: Some(RATE),
        ..bulk::Options::default()
    }
}

/// Nothing faster than the rate, and something: how close it comes is up to the machine.
#[track_caller]
fn assert_held(report: &Report) {
    let most = RATE * report.elapsed.as_secs_f64();
    let Report {
        bytes_sent,
        bytes_received,
        ..
    } = report;
    assert!((*bytes_sent as f64) <= most, "{bytes_sent} > {most}");
    assert!(
        (*bytes_received as f64) <= most,
        "{bytes_received} > {most}"
    );
    assert!(bytes_sent + bytes_received > 100_000);
    assert_eq!(report.errors, [].into());
}

#[test]
fn all_streams_together_keep_to_the_rate() {
    let blast = Server::blast().start().unwrap();
    let sink = Server::discard().start().unwrap();
    let echo = Server::echo().start().unwrap();
    for discard in [false, true] {
        for (server, direction) in [
            (&sink, Direction::Up),
            (&blast, Direction::Down),
            (&blast, Direction::Both),
            (&echo, Direction::Both),
        ] {
            let options = bulk::Options {
                discard,
                ..paced(server, direction)
            };
            let report = bulk::run(&options, &Control::new()).unwrap();
            assert_held(&report);
            assert_eq!(report.bytes_sent > 0, direction != Direction::Down);
            assert_eq!(report.bytes_received > 0, direction != Direction::Up);
        }
    }
}

#[test]
fn paced_streams_are_compared_to_their_end() {
    let digest = Server::digest().start().unwrap();
    let echo = Server::echo().start().unwrap();
    for (server, direction) in [(&digest, Direction::Up), (&echo, Direction::Both)] {
        let options = bulk::Options {
            verify: true,
            ..paced(server, direction)
        };
        let report = bulk::run(&options, &Control::new()).unwrap();
        assert_held(&report);
        assert_eq!(report.operations, 5);
    }
}

#[test]
fn fixed_work_takes_at_least_its_time() {
    let bytes = 400_000;
    let source = Server::source(bytes, 1).start().unwrap();
    let options = bulk::Options {
        bytes: Some(bytes),
        verify: true,
        duration: Duration::from_secs(20),
        ..paced(&source, Direction::Down)
    };
    let report = bulk::run(&options, &Control::new()).unwrap();
    assert_held(&report);
    assert_eq!((report.operations, report.bytes_received), (5, 5 * bytes));
}

#[test]
fn streams_that_begin_again_do_not_begin_with_more() {
    let source = Server::source(10_000, 1).start().unwrap();
    let options = paced(&source, Direction::Down);
    let report = bulk::run(&options, &Control::new()).unwrap();
    assert_held(&report);
    assert!(report.operations > 5);
}

#[test]
fn requests_beside_paced_streams_report_the_rate_of_the_streams() {
    let echo = Server::echo().start().unwrap();
    let blast = Server::blast().start().unwrap();
    let options = mixed::Options {
        rr: rr::Options {
            to: echo.endpoint().clone(),
            connections: 2,
            duration: Duration::from_millis(300),
            ..rr::Options::default()
        },
        bulk: paced(&blast, Direction::Down),
    };
    let report = mixed::run(&options, &Control::new()).unwrap();
    assert!(report.operations > 0);
    // The streams begin before the requests: only their own time gives their rate.
    assert!(report.rates.bytes_received > 0.0 && report.rates.bytes_received <= RATE);
    assert_eq!(report.options["bulk"]["bytes_per_second"], RATE);
}

#[test]
fn a_rate_that_is_none_is_refused() {
    let sink = Server::discard().start().unwrap();
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let options = bulk::Options {
            bytes_per_second: Some(rate),
            ..paced(&sink, Direction::Up)
        };
        let error = bulk::run(&options, &Control::new()).unwrap_err();
        assert!(error.to_string().contains("bytes per second"), "{error}");
    }
}
