//! `on_no_server: stop_listening`: listeners that stop while there is nobody to serve, and return.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corelay::sys::affinity;
use corelay_bench::servers::{RefusedPort, Server};
use corelay_bench::signals::Signal;
use serde_json::{Value, json};

use crate::support::config::LISTENER;
use crate::support::peers::{connect, expect_bytes};
use crate::support::ports::lasting_address;
use crate::support::process::tool;
use crate::support::proxy::exit;
use crate::support::{Config, DEADLINE, Launch, Pair, Proxy, Upstream, skip, wait_until};

const AFTER: Duration = Duration::from_millis(600);
const RESUME_AFTER: Duration = Duration::from_millis(900);

fn check() -> Value {
    json!({ "type": "tcp", "interval": "50ms", "fast_interval": "20ms", "timeout": "1s", "rise": 1, "fall": 1 })
}

/// What decides whether the servers are up, beside them.
struct Gate {
    address: SocketAddr,
    open: Option<TcpListener>,
}

impl Gate {
    fn new() -> Self {
        let mut gate = Self {
            address: lasting_address(),
            open: None,
        };
        gate.open();
        gate
    }

    /// Returns when.
    fn close(&mut self) -> Instant {
        let now = Instant::now();
        self.open = None;
        now
    }

    fn open(&mut self) -> Instant {
        let now = Instant::now();
        self.open = Some(TcpListener::bind(self.address).unwrap());
        now
    }
}

/// The upstream's one server is up while the gate is open.
fn gated(server: SocketAddr, gate: &Gate) -> Config {
    let server =
        json!({ "address": server.to_string(), "check_address": gate.address.to_string() });
    Config::to([gate.address])
        .set("workers", 2)
        .set("listeners.edge.bind", lasting_address().to_string())
        .set("upstreams.app.servers", json!([server]))
        .set("upstreams.app.check", check())
        .set("upstreams.app.on_no_server", "stop_listening")
        .set(
            "upstreams.app.stop_listening",
            json!({ "after": format!("{}ms", AFTER.as_millis()), "resume_after": format!("{}ms", RESUME_AFTER.as_millis()) }),
        )
}

fn listening(proxy: &Proxy, listener: &str) -> bool {
    let label = [("listener", listener)];
    let metrics = proxy.metrics();
    metrics.sum_where("corelay_listener_listening", &label) == 1.0
}

fn is_refused(to: SocketAddr) -> bool {
    // A dropped SYN shows as a timeout.
    let connected = TcpStream::connect_timeout(&to, Duration::from_millis(100));
    connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Whoever connected before would be a session of its own.
fn wait_stopped(proxy: &Proxy) {
    wait_until("it stops", || !listening(proxy, LISTENER));
    wait_until("connects are refused", || is_refused(proxy.address()));
}

fn wait_listening(proxy: &Proxy) {
    wait_until("it listens", || listening(proxy, LISTENER));
}

fn echo_once(to: SocketAddr) {
    let mut client = connect(to);
    client.write_all(b"x").unwrap();
    expect_bytes(&mut client, b"x");
}

/// Lines of the process log with this message.
fn lines(proxy: &Proxy, message: &str) -> usize {
    let log = proxy.log();
    log.iter().filter(|line| line.contains(message)).count()
}

const STOPS: &str = "a listener stops";
const AGAIN: &str = "a listener listens again";

#[test]
fn a_listener_without_servers_refuses_connects_and_listens_again_with_them() {
    let upstream = Upstream::new();
    let mut gate = Gate::new();
    let mut proxy = Proxy::start(&gated(upstream.address(), &gate));
    assert!(listening(&proxy, LISTENER));
    assert_eq!(proxy.get("/readyz").status, 200);
    let mut pair = Pair::open(&proxy, &upstream);
    pair.greet();
    for round in 1..=2 {
        let closed_at = gate.close();
        wait_until("it stops", || !listening(&proxy, LISTENER));
        assert!(closed_at.elapsed() >= AFTER, "early");
        wait_stopped(&proxy);
        let answer = proxy.get("/readyz");
        assert_eq!(answer.status, 503);
        assert_eq!(
            answer.body,
            "not listening, for want of servers or, since, of the address (see the process log): edge\n"
        );
        assert_eq!(proxy.stats()["listeners"]["edge"]["listening"], false);
        assert_eq!(lines(&proxy, STOPS), round);
        // Who is there stays.
        pair.greet();

        let opened_at = gate.open();
        wait_until("it listens", || listening(&proxy, LISTENER));
        assert!(opened_at.elapsed() >= RESUME_AFTER, "early");
        assert_eq!(lines(&proxy, AGAIN), round);
        assert_eq!(proxy.get("/readyz").status, 200);
        pair.greet();
        // Both cores have a socket: the kernel's hash would spare one of them once in 2^20 times.
        for _ in 0..20 {
            let client = connect(proxy.address());
            drop((upstream.accept(), client));
        }
    }
    drop(pair);
    let lines = proxy.access_lines(41);
    for core in 0..2 {
        assert!(lines.iter().any(|line| line["core"] == core), "core {core}");
    }
    proxy.check_leaks();
    proxy.stop();
}

#[test]
fn what_is_shorter_than_the_hysteresis_changes_nothing() {
    let echo = Server::echo().start().unwrap();
    let mut gate = Gate::new();
    let config = gated(echo.address(), &gate);
    let proxy = Proxy::start(&config.set(
        "upstreams.app.stop_listening",
        json!({ "after": "1s", "resume_after": "3s" }),
    ));
    let transitions = || proxy.metrics().sum("corelay_server_transitions_total");
    for _ in 0..6 {
        gate.close();
        std::thread::sleep(Duration::from_millis(300));
        gate.open();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(transitions() >= 6.0, "it never flapped: {}", transitions());
    assert_eq!(lines(&proxy, STOPS), 0);
    echo_once(proxy.address());
    gate.close();
    wait_stopped(&proxy);
    for _ in 0..6 {
        gate.open();
        std::thread::sleep(Duration::from_millis(300));
        gate.close();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(lines(&proxy, AGAIN), 0);
    assert!(is_refused(proxy.address()));
    gate.open();
    wait_listening(&proxy);
    echo_once(proxy.address());
    assert_eq!((lines(&proxy, STOPS), lines(&proxy, AGAIN)), (1, 1));
    proxy.finish();
}

#[test]
fn sigterm_while_a_listener_is_stopped_or_about_to_return_is_an_orderly_stop() {
    let upstream = Upstream::new();
    for has_session in [false, true] {
        let mut gate = Gate::new();
        let mut proxy = Proxy::start(&gated(upstream.address(), &gate));
        let pair = has_session.then(|| Pair::open(&proxy, &upstream));
        gate.close();
        wait_stopped(&proxy);
        proxy.signal(Signal::TERM);
        if let Some(mut pair) = pair {
            proxy.wait_log_where("the stop", |line| {
                let message = line["message"].as_str().unwrap_or_default();
                message.starts_with("stopping")
            });
            pair.greet();
            drop(pair);
        }
        assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::OK));
    }
    // At any moment of a stop and of a return.
    for wait_ms in (0..400).step_by(40) {
        let mut gate = Gate::new();
        let config = gated(upstream.address(), &gate).set(
            "upstreams.app.stop_listening",
            json!({ "after": "1ms", "resume_after": "1ms" }),
        );
        let mut proxy = Proxy::start(&config);
        gate.close();
        std::thread::sleep(Duration::from_millis(wait_ms));
        gate.open();
        std::thread::sleep(Duration::from_millis(wait_ms / 2));
        proxy.signal(Signal::TERM);
        assert_eq!(
            proxy.wait_exit(DEADLINE).code(),
            Some(exit::OK),
            "{wait_ms}"
        );
    }
}

#[test]
fn a_listener_goes_on_while_the_fallback_has_servers() {
    let echo = Server::echo().start().unwrap();
    let (mut gate, mut other_gate) = (Gate::new(), Gate::new());
    let other = json!({ "address": echo.address().to_string(), "check_address": other_gate.address.to_string() });
    let config = gated(RefusedPort::new().unwrap().address(), &gate)
        .set("upstreams.app.fallback", "other")
        .set(
            "upstreams.other",
            json!({ "servers": [other], "check": check() }),
        );
    let proxy = Proxy::start(&config);
    gate.close();
    wait_until("the server is down", || {
        proxy.metrics().sum("corelay_server_up") == 1.0
    });
    std::thread::sleep(AFTER + Duration::from_millis(300));
    assert!(listening(&proxy, LISTENER));
    echo_once(proxy.address());
    let closed_at = other_gate.close();
    wait_stopped(&proxy);
    assert!(closed_at.elapsed() >= AFTER, "early");
    // That of the fallback is enough.
    other_gate.open();
    wait_listening(&proxy);
    echo_once(proxy.address());
    proxy.finish();
}

#[test]
fn of_two_listeners_that_one_stops_whose_upstreams_are_all_out() {
    let echo = Server::echo().start().unwrap();
    let mut gate = Gate::new();
    let config = gated(echo.address(), &gate)
        .set("listeners.both.bind", "127.0.0.1:0")
        .set("listeners.both.upstreams", json!({ "app": 1, "live": 1 }))
        .set(
            "upstreams.live",
            json!({ "servers": [echo.address().to_string()], "check": check(), "on_no_server": "stop_listening" }),
        );
    let proxy = Proxy::start(&config);
    gate.close();
    wait_stopped(&proxy);
    assert!(listening(&proxy, "both"));
    assert_eq!(lines(&proxy, STOPS), 1);
    let both: SocketAddr = proxy.listener("both").parse().unwrap();
    // Every other session finds no server, and is reset at once.
    assert!(!is_refused(both));
    gate.open();
    wait_listening(&proxy);
    proxy.finish();
}

#[test]
fn an_address_that_somebody_else_took_is_tried_again_until_it_is_free() {
    let echo = Server::echo().start().unwrap();
    let mut gate = Gate::new();
    let proxy = Proxy::start(&gated(echo.address(), &gate));
    gate.close();
    wait_stopped(&proxy);
    let squatter = TcpListener::bind(proxy.address()).unwrap();
    gate.open();
    let line = proxy.wait_log_where("the address is taken", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("a listener cannot listen again")
    });
    assert!(line["error"].as_str().unwrap().contains("in use"), "{line}");
    // Tried a second time by now, and not logged again.
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(lines(&proxy, "a listener cannot listen again"), 1);
    assert!(!listening(&proxy, LISTENER));
    drop(squatter);
    wait_listening(&proxy);
    echo_once(proxy.address());
    proxy.finish();
}

fn visit_unix(path: &Path) {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_unix_listener_takes_its_path_away_and_makes_it_again() {
    let echo = Server::echo().start().unwrap();
    let mut gate = Gate::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("listener");
    let config =
        gated(echo.address(), &gate).set("listeners.edge.bind", format!("unix:{}", path.display()));
    let mut proxy = Proxy::start(&config);
    for _ in 0..2 {
        visit_unix(&path);
        gate.close();
        wait_until("the path is gone", || !path.exists());
        wait_until("every core has closed", || {
            lines(&proxy, STOPS) > lines(&proxy, AGAIN)
        });
        gate.open();
        wait_listening(&proxy);
    }
    visit_unix(&path);
    proxy.check_leaks();
    gate.close();
    wait_until("the path is gone", || !path.exists());
    proxy.stop();
}

#[test]
fn connections_are_steered_as_before_by_a_listener_that_returned() {
    const VISITS: usize = 20;
    let [one, other, ..] = affinity::allowed_cpus()[..] else {
        return skip("steering after a return", "one CPU is not enough");
    };
    let echo = Server::echo().start().unwrap();
    let mut gate = Gate::new();
    let config = gated(echo.address(), &gate)
        .set("workers", vec![other, one])
        .set("listeners.edge.accept.steer", "cpu");
    let proxy = Proxy::start(&config);
    gate.close();
    wait_stopped(&proxy);
    gate.open();
    wait_listening(&proxy);
    let to = proxy.address();
    for (core, cpu) in [(0, other), (1, one)] {
        let visits = move || {
            affinity::pin_to(cpu).unwrap();
            (0..VISITS).for_each(|_| echo_once(to));
        };
        std::thread::spawn(visits).join().unwrap();
        let lines = proxy.access_lines((core + 1) * VISITS);
        for line in &lines[core * VISITS..] {
            assert_eq!(line["core"], core, "from CPU {cpu}: {line}");
        }
    }
    proxy.finish();
}

#[test]
fn nobody_who_connects_while_a_listener_stops_and_returns_is_left_hanging() {
    const ROUNDS: usize = 5;
    let echo = Server::echo().start().unwrap();
    let mut gate = Gate::new();
    let config = gated(echo.address(), &gate).set(
        "upstreams.app.stop_listening",
        json!({ "after": "50ms", "resume_after": "50ms" }),
    );
    let proxy = Proxy::start(&config);
    let to = proxy.address();
    let (served, turned_away) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let count = match visit(to) {
                    true => &served,
                    false => &turned_away,
                };
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let one_more = |count: &AtomicUsize| {
            let before = count.load(Ordering::Relaxed);
            wait_until("one more", || count.load(Ordering::Relaxed) > before);
        };
        for _ in 0..ROUNDS {
            one_more(&served);
            gate.close();
            wait_until("it stops", || !listening(&proxy, LISTENER));
            one_more(&turned_away);
            gate.open();
            wait_listening(&proxy);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    proxy.finish();
}

/// Whether somebody answered; that nobody does is to be known soon.
fn visit(to: SocketAddr) -> bool {
    let Ok(mut client) = TcpStream::connect_timeout(&to, Duration::from_millis(200)) else {
        return false;
    };
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    // Reset where there is no server.
    if client.write_all(b"x").is_err() {
        return false;
    }
    match client.read_exact(&mut [0]) {
        Ok(()) => true,
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::WouldBlock, "forgotten");
            false
        }
    }
}

#[test]
fn a_listener_stops_also_when_no_descriptor_is_left_for_its_queue() {
    let Some(prlimit) = tool("prlimit") else {
        return skip("stopping without descriptors", "no prlimit(1) here");
    };
    let upstream = Server::echo().start().unwrap();
    let mut gate = Gate::new();
    let launch = Launch::default().under([
        prlimit.to_str().unwrap().to_owned(),
        "--nofile=240:240".to_owned(),
    ]);
    let proxy = launch.start(&gated(upstream.address(), &gate));
    let mut served = connect(proxy.address());
    served.write_all(b"x").unwrap();
    expect_bytes(&mut served, b"x");
    // More than fit: some of them wait in the queue of either core.
    let waiting: Vec<TcpStream> = (0..150).map(|_| connect(proxy.address())).collect();
    wait_until("there is no room", || {
        proxy.metrics().sum("corelay_accept_paused_total") > 0.0
    });
    gate.close();
    wait_stopped(&proxy);
    // Who was served still is.
    served.write_all(b"y").unwrap();
    expect_bytes(&mut served, b"y");
    drop((served, waiting));
    gate.open();
    wait_listening(&proxy);
    echo_once(proxy.address());
    proxy.finish();
}
