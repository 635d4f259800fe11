//! Active checks and file descriptors: whatever the servers do, none is left open, and their lack is
//! never held against a server. Alone in its process, so that the descriptors can be counted.

use std::fs::File;
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use corelay::balance::health::{CheckOutcome, CheckResult, LocalFault, Pace};
use corelay::control::health::{CheckAt, CheckKind, CheckSpec, Checker, Expect, Options, Target};
use corelay::units::{Address, ServerId};
use socket2::SockRef;

const DEADLINE: Duration = Duration::from_secs(20);

fn open_fds() -> usize {
    // Its own descriptor is counted each time alike.
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Processor time of this process, in hundredths of a second.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').expect("a name in parentheses").1;
    let ticks = |index: usize| -> u64 {
        let field = fields.split_whitespace().nth(index);
        field.expect("proc(5)").parse().unwrap()
    };
    // utime and stime, the 14th and 15th of all.
    ticks(11) + ticks(12)
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn kinds() -> Vec<CheckKind> {
    let status = vec![200..=299];
    vec![
        CheckKind::Tcp,
        CheckKind::Exchange {
            send: b"PING\r\n".to_vec(),
            expect: Expect::Prefix(b"+PONG".to_vec()),
        },
        CheckKind::Http {
            path: "/".to_owned(),
            host: "localhost".to_owned(),
            status,
        },
        CheckKind::Tls { server_name: None },
    ]
}

fn spec(kind: CheckKind) -> Arc<CheckSpec> {
    Arc::new(CheckSpec {
        kind,
        pace: Pace {
            interval_us: 5_000,
            fast_interval_us: 5_000,
            jitter_percent: 50,
        },
        timeout_us: 30_000,
        source: None,
    })
}

fn start(targets: Vec<Target>) -> (Checker, Receiver<(ServerId, CheckResult)>) {
    let (sender, results) = mpsc::channel();
    let report = move |server, result| {
        // A test that has seen enough has dropped its end.
        let _ = sender.send((server, result));
    };
    let checker = Checker::start(Options::default(), targets, report).unwrap();
    (checker, results)
}

/// Takes connections and closes or resets them, in turn.
fn careless() -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            if number % 2 == 0 {
                let reset = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                reset.unwrap();
            }
        }
    });
    address
}

#[test]
fn descriptors_are_given_back_and_their_lack_is_nobodys_failure() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_address = Address::Tcp(silent.local_addr().unwrap());
    let refused = Address::Unix("/nonexistent/server.sock".into());
    let addresses = [careless(), silent_address.clone(), refused];
    let base = open_fds();

    let mut targets = Vec::new();
    for address in &addresses {
        for kind in kinds() {
            targets.push(Target {
                server: ServerId(targets.len() as u16),
                address: address.clone(),
                at: CheckAt::Server,
                header: None,
                check: spec(kind),
            });
        }
    }
    let (checker, results) = start(targets.clone());
    for round in 0..1_000 {
        results.recv_timeout(DEADLINE).expect("a result");
        if round % 100 == 0 {
            // With and without its first half, whose checks are given up.
            checker.set(targets[targets.len() / 2..].to_vec());
            checker.set(targets.clone());
        }
    }
    checker.set(Vec::new());
    wait_until("idle", || checker.stats().in_flight == 0);
    let before = cpu_ticks();
    thread::sleep(Duration::from_millis(500));
    assert!(cpu_ticks() - before < 20, "with nothing to do it turns");
    drop(checker);
    wait_until("every descriptor is closed", || open_fds() == base);

    check_without_descriptors(silent_address);
    wait_until("every descriptor is closed", || open_fds() == base);
}

fn check_without_descriptors(address: Address) {
    let limited = Command::new("prlimit")
        .args(["--pid", &std::process::id().to_string(), "--nofile=64:"])
        .status();
    if !limited.is_ok_and(|status| status.success()) {
        eprintln!("skipped: check_without_descriptors: prlimit is not here");
        return;
    }
    let target = Target {
        server: ServerId(0),
        address,
        at: CheckAt::Server,
        header: None,
        check: spec(CheckKind::Tcp),
    };
    let (_checker, results) = start(vec![target]);
    let passed = |result: CheckResult| result.outcome == CheckOutcome::Passed;
    assert!(passed(results.recv_timeout(DEADLINE).unwrap().1));
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    let mut not_made = 0;
    let deadline = Instant::now() + DEADLINE;
    while not_made < 20 {
        assert!(Instant::now() < deadline, "checks still find descriptors");
        let (_, result) = results.recv_timeout(DEADLINE).unwrap();
        // A check may have held the last one meanwhile; it passes, and what it held is hoarded now.
        hoard.extend(File::open("/dev/null"));
        match result.outcome {
            CheckOutcome::NotMade(fault) => {
                assert_eq!(fault, LocalFault::Resources);
                not_made += 1;
            }
            CheckOutcome::Passed => assert_eq!(not_made, 0),
            CheckOutcome::Failed(failure) => panic!("held against the server: {failure:?}"),
        }
    }
    drop(hoard);
    wait_until("checks are made again", || {
        passed(results.recv_timeout(DEADLINE).unwrap().1)
    });
}
