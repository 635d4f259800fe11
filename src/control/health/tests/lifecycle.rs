//! Many checks, changes of the list, and the end.

use std::collections::HashSet;
use std::fs;

use super::*;

/// A server that takes connections and says nothing, for as long as the test keeps it.
fn silent() -> (TcpListener, Address) {
    let (listener, address) = listen();
    SockRef::from(&listener).listen(1024).unwrap();
    (listener, address)
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The connections from or to this address in /proc/net/tcp, by both their ends: open, and in TIME_WAIT.
fn connections(address: &Address) -> [HashSet<String>; 2] {
    const TIME_WAIT: &str = "06";
    const LISTEN: &str = "0A";
    let Address::Tcp(address) = address else {
        unreachable!("a TCP address")
    };
    let port = format!(":{:04X}", address.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut found = [HashSet::new(), HashSet::new()];
    for line in table.lines().skip(1) {
        let fields: Vec<_> = line.split_whitespace().collect();
        let ours = fields[1].ends_with(&port) || fields[2].ends_with(&port);
        if ours && fields[3] != LISTEN {
            let waits = fields[3] == TIME_WAIT;
            found[usize::from(waits)].insert(format!("{} {}", fields[1], fields[2]));
        }
    }
    found
}

#[test]
fn hundreds_of_checks_leave_nothing_behind_not_even_time_wait() {
    let (address, _answered) = http_server("200 OK", 100);
    // Somebody else may have had the port just before.
    let [_, earlier] = connections(&address);
    let mut spec = spec(http());
    spec.pace.interval_us = 5 * MS_US;
    let targets = (0..8)
        .map(|id| target(id, &address, spec.clone()))
        .collect();
    let (checker, results) = start(Options::default(), targets);
    for _ in 0..50 {
        let (_, result) = results.recv_timeout(DEADLINE).unwrap();
        assert_eq!(result.outcome, CheckOutcome::Passed);
    }
    drop(checker);
    // The server works through what was begun.
    wait_until("no connection is left", || {
        connections(&address)[0].is_empty()
    });
    let [_, waiting] = connections(&address);
    let ours: Vec<_> = waiting.difference(&earlier).collect();
    assert!(ours.is_empty(), "in TIME_WAIT: {ours:?}");
}

#[test]
fn no_more_run_at_once_than_allowed_and_all_have_their_turn() {
    let (_listener, address) = silent();
    let mut spec = spec(expecting(b"", b"220 "));
    spec.timeout_us = 30 * MS_US;
    let targets = (0..100)
        .map(|id| target(id, &address, spec.clone()))
        .collect();
    let options = Options {
        in_flight_max: 8,
        ..Options::default()
    };
    let (checker, results) = start(options, targets);
    let mut seen = HashSet::new();
    while seen.len() < 100 {
        let (server, result) = results.recv_timeout(DEADLINE).unwrap();
        assert_eq!(result.outcome, failed(CheckFailure::Timeout));
        assert!(seen.insert(server), "once an hour");
        assert!(checker.stats().in_flight <= 8);
    }
    let stats = checker.stats();
    assert_eq!(stats.checks_total, 100);
    // 100 begin within a second, of which 8 run for 30 ms each: the list is not quite worked off.
    assert!(stats.late_us < 5_000 * MS_US, "{stats:?}");
}

#[test]
fn a_full_house_shows_as_lateness() {
    let (_listener, address) = silent();
    let mut spec = spec(expecting(b"", b"220 "));
    spec.timeout_us = 200 * MS_US;
    let targets = (0..4)
        .map(|id| target(id, &address, spec.clone()))
        .collect();
    let options = Options {
        in_flight_max: 1,
        ..Options::default()
    };
    let (checker, results) = start(options, targets);
    for _ in 0..4 {
        results.recv_timeout(DEADLINE).unwrap();
    }
    assert!(
        checker.stats().late_us >= 500 * MS_US,
        "{:?}",
        checker.stats()
    );
}

#[test]
fn thousands_of_servers_are_checked_by_one_thread() {
    let (_listener, address) = silent();
    let mut spec = spec(CheckKind::Tcp);
    spec.pace.interval_us = 1_000 * MS_US;
    let targets = (0..2_000)
        .map(|id| target(id, &address, spec.clone()))
        .collect();
    let begin = Instant::now();
    let (_checker, results) = start(Options::default(), targets);
    let mut seen = HashSet::new();
    while seen.len() < 2_000 {
        let (server, result) = results.recv_timeout(DEADLINE).unwrap();
        assert_eq!(result.outcome, CheckOutcome::Passed);
        seen.insert(server);
    }
    assert!(begin.elapsed() >= Duration::from_millis(900), "spread out");
}

#[test]
fn a_server_that_leaves_the_list_has_its_check_given_up() {
    let (listener, address) = silent();
    let mut patient = spec(expecting(b"", b"220 "));
    patient.timeout_us = HOUR_US;
    let (checker, results) = start(Options::default(), vec![target(0, &address, patient)]);
    let (mut stream, _) = listener.accept().unwrap();
    let (_other, next) = silent();
    checker.set(vec![target(1, &next, spec(CheckKind::Tcp))]);
    let (server, _) = results.recv_timeout(DEADLINE).unwrap();
    assert_eq!(server, ServerId(1), "the other one is not reported");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let end = stream.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(end.err(), Some(io::ErrorKind::ConnectionReset));
    checker.set(Vec::new());
    wait_until("idle", || checker.stats().in_flight == 0);
}

#[test]
fn the_fast_interval_is_switched_on_and_off() {
    let (_listener, address) = silent();
    let (checker, results) = start(
        Options::default(),
        vec![target(0, &address, spec(CheckKind::Tcp))],
    );
    results.recv_timeout(DEADLINE).unwrap();
    checker.fast(ServerId(0), true);
    for _ in 0..5 {
        results.recv_timeout(DEADLINE).expect("every 20 ms");
    }
    checker.fast(ServerId(0), false);
    checker.fast(ServerId(9), true);
    // At most one more was put down at the fast interval, and one on its way here.
    let more = (0..3).map_while(|_| results.recv_timeout(Duration::from_millis(300)).ok());
    assert!(more.count() <= 2);
}

#[test]
fn a_drop_does_not_wait_for_running_checks() {
    let (listener, address) = silent();
    let mut spec = spec(expecting(b"", b"220 "));
    spec.timeout_us = HOUR_US;
    let (checker, results) = start(Options::default(), vec![target(0, &address, spec)]);
    let (_stream, _) = listener.accept().unwrap();
    let begin = Instant::now();
    drop(checker);
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(
        results.recv().is_err(),
        "the report is gone with its thread"
    );
}

/// The whole process may stand still, or a report be slow: what then looks late is not the servers'
/// doing.
#[test]
fn time_in_which_the_checker_stood_still_is_not_counted() {
    const STALL: Duration = Duration::from_millis(600);
    let (stalled, stall_over) = mpsc::channel();
    let quick = serve(|mut stream| {
        thread::sleep(Duration::from_millis(50));
        let _ = stream.write_all(b"220 ");
    });
    let slow = serve(move |mut stream| {
        stall_over.recv().unwrap();
        let _ = stream.write_all(b"220 ");
        let _ = stream.read(&mut [0]);
    });
    let mut hasty = spec(expecting(b"", b"220 "));
    hasty.timeout_us = 300 * MS_US;
    let (sender, results) = mpsc::channel();
    let report = move |server, result: CheckResult| {
        if server == ServerId(0) {
            thread::sleep(STALL);
            stalled.send(()).unwrap();
        }
        let _ = sender.send((server, result.outcome));
    };
    let targets = vec![target(0, &quick, hasty.clone()), target(1, &slow, hasty)];
    let _checker = Checker::start(Options::default(), targets, report).unwrap();
    for id in [0, 1] {
        let told = results.recv_timeout(DEADLINE).unwrap();
        assert_eq!(told, (ServerId(id), CheckOutcome::Passed));
    }
}
