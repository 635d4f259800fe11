//! The open loop against servers with known delays: what is scheduled keeps its time, and waiting
//! counts. Lower bounds are exact; upper ones leave room for a loaded machine.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::{Control, MAX_LATENCY_NS, Report, crr, rr};
use crate::servers::{Fault, Handle, Server};

const SIZE_BYTES: usize = 10;

fn ms(millis: u64) -> u64 {
    millis * 1_000_000
}

fn longer_than(histogram: &Histogram<u64>, nanoseconds: u64) -> u64 {
    histogram.count_between(nanoseconds, MAX_LATENCY_NS)
}

fn run(server: &Handle, connections: usize, rate: f64, duration: Duration) -> Report {
    let options = rr::Options {
        to: server.endpoint().clone(),
        connections,
        threads: 2,
        duration,
        size_bytes: SIZE_BYTES,
        rate: Some(rate),
        ..rr::Options::default()
    };
    rr::run(&options, &Control::new()).unwrap()
}

#[test]
fn every_scheduled_request_is_sent_once_and_its_delay_is_seen() {
    let delay = Duration::from_millis(20);
    let server = Server::faulty(Fault::Delay { delay }).start().unwrap();
    let report = run(&server, 8, 100.0, Duration::from_secs(1));
    assert_eq!(report.operations, 100);
    assert_eq!(report.errors, [].into());
    let intended_ns = report.intended_ns.unwrap();
    assert_eq!((intended_ns.len(), report.service_ns.len()), (100, 100));
    assert!(report.service_ns.min() >= ms(20));
    assert!(intended_ns.min() >= ms(20));
    // Eight connections can do 400 per second, so nothing should queue for long.
    assert!(intended_ns.value_at_quantile(0.5) < ms(200));
}

#[test]
fn waiting_for_a_free_connection_counts() {
    let delay = Duration::from_millis(20);
    let server = Server::faulty(Fault::Delay { delay }).start().unwrap();
    // One connection does at most 50 per second: the 100th request is due at 990 ms and answered
    // not before 2 s.
    let report = run(&server, 1, 100.0, Duration::from_secs(1));
    assert_eq!((report.operations, report.error_count()), (100, 0));
    let intended_ns = report.intended_ns.as_ref().unwrap();
    assert!(intended_ns.max() >= ms(1009), "{} ns", intended_ns.max());
    assert!(intended_ns.value_at_quantile(0.5) >= ms(400));
    // The service time knows nothing of it.
    assert!(report.service_ns.value_at_quantile(0.5) < ms(200));
    assert_eq!(report.latency_ns(), intended_ns);
}

#[test]
fn a_stall_is_seen_by_every_request_scheduled_during_it() {
    let server = Server::faulty(Fault::Freeze {
        after_bytes: 50 * SIZE_BYTES as u64,
        pause: Duration::from_millis(300),
    })
    .start()
    .unwrap();
    let report = run(&server, 1, 200.0, Duration::from_secs(2));
    assert_eq!((report.operations, report.error_count()), (400, 0));
    // One is due every 5 ms: 40 in the first 200 ms of the stall, which wait for 100 ms and more.
    let intended_ns = report.intended_ns.as_ref().unwrap();
    let seen = longer_than(intended_ns, ms(100));
    assert!(seen >= 39, "{seen} requests saw the stall");
    assert!(intended_ns.max() >= ms(290));
    // Only the one that was on its way has a long service time; the machine may add its own.
    let served_late = longer_than(&report.service_ns, ms(100));
    assert!(
        (1..=3).contains(&served_late),
        "{served_late} were served late"
    );
}

#[test]
fn connections_follow_a_schedule_too() {
    let echo = Server::echo().start().unwrap();
    let options = crr::Options {
        to: echo.endpoint().clone(),
        connections: 10,
        duration: Duration::from_millis(500),
        rate: Some(200.0),
        ..crr::Options::default()
    };
    let report = crr::run(&options, &Control::new()).unwrap();
    assert_eq!((report.operations, report.error_count()), (100, 0));
    assert_eq!(report.intended_ns.unwrap().len(), 100);
    assert_eq!(echo.stats().accepted, 100);
}

#[test]
fn what_is_never_answered_and_what_is_never_sent_is_counted() {
    let server = Server::faulty(Fault::Stall {
        after_bytes: 5 * SIZE_BYTES as u64,
    })
    .start()
    .unwrap();
    let options = rr::Options {
        to: server.endpoint().clone(),
        connections: 1,
        duration: Duration::from_secs(60),
        size_bytes: SIZE_BYTES,
        rate: Some(100.0),
        ..rr::Options::default()
    };
    let control = Control::new();
    let report = std::thread::scope(|scope| {
        let run = scope.spawn(|| rr::run(&options, &control));
        std::thread::sleep(Duration::from_millis(300));
        control.stop();
        run.join().unwrap().unwrap()
    });
    assert_eq!(report.operations, 5);
    assert_eq!(report.errors["unanswered"], 1);
    // Due in the 300 ms: 30 or more, of which 6 were sent.
    assert!(report.errors["unsent"] >= 20, "{:?}", report.errors);
}

#[test]
fn a_rate_of_nothing_is_refused() {
    let echo = Server::echo().start().unwrap();
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let options = rr::Options {
            to: echo.endpoint().clone(),
            rate: Some(rate),
            ..rr::Options::default()
        };
        rr::run(&options, &Control::new()).unwrap_err();
    }
}
