//! `listeners.NAME.accept`: which core gets a connection, and when the kernel hands it over.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use corelay::sys::affinity;
use corelay_bench::servers::Server;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::support::peers::{connect, expect_bytes};
use crate::support::{Config, Proxy, Upstream, child, skip};

/// Enough for chance to show: the kernel's hash would send all of them to one of two cores once in
/// 2^20 times.
const CONNECTIONS: usize = 20;

/// Connects from a thread on `cpu`, exchanges a byte and returns when all are closed. On loopback
/// the sender's CPU is the one that receives the SYN.
fn visit_from(cpu: usize, to: SocketAddr) {
    let visits = move || {
        affinity::pin_to(cpu).unwrap();
        for _ in 0..CONNECTIONS {
            let mut client = connect(to);
            client.write_all(b"x").unwrap();
            expect_bytes(&mut client, b"x");
        }
    };
    std::thread::spawn(visits).join().unwrap();
}

#[test]
fn connections_are_steered_to_the_core_whose_cpu_received_them() {
    let [one, other, ..] = affinity::allowed_cpus()[..] else {
        return skip("steering", "one CPU is not enough");
    };
    let upstream = Server::echo().start().unwrap();
    // Cores 0 and 1 in the order that no numbering would give by itself.
    let config = Config::to([upstream.address()])
        .set("workers", vec![other, one])
        .set("listeners.edge.accept.steer", "cpu");
    let proxy = Proxy::start(&config);
    for (core, cpu) in [(0, other), (1, one)] {
        visit_from(cpu, proxy.address());
        let lines = proxy.access_lines((core + 1) * CONNECTIONS);
        for line in &lines[core * CONNECTIONS..] {
            assert_eq!(line["core"], core, "from CPU {cpu}: {line}");
        }
    }
    proxy.finish();
}

#[test]
fn a_cpu_without_a_worker_is_warned_of_and_served() {
    let [one, other, ..] = affinity::allowed_cpus()[..] else {
        return skip("steering", "one CPU is not enough");
    };
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()])
        .set("workers", vec![one])
        .set("listeners.edge.accept.steer", "cpu");
    let proxy = Proxy::start(&config);
    let warning = |line: &serde_json::Value| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && message.starts_with("accept.steer")
    };
    proxy.wait_log_where("a warning of the CPU without a worker", warning);
    visit_from(other, proxy.address());
    proxy.access_lines(CONNECTIONS);
    proxy.finish();
}

#[test]
fn a_deferred_client_reaches_nobody_before_its_first_byte() {
    /// Long enough for the server to hear of a client, if it was let through.
    const PAUSE: Duration = Duration::from_millis(300);
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()]).set(
        "listeners.edge.accept",
        serde_json::json!({ "defer": "30s" }),
    );
    let proxy = Proxy::start(&config);
    let mut client = connect(proxy.address());
    assert!(
        upstream.accept_within(PAUSE).is_none(),
        "it was let through"
    );
    assert_eq!(
        proxy.metrics().sum("corelay_connections_accepted_total"),
        0.0
    );
    client.write_all(b"first").unwrap();
    let mut server = upstream.accept();
    expect_bytes(&mut server, b"first");
    drop((client, server));
    proxy.access_lines(1);
    proxy.finish();
}

#[test]
fn bytes_that_come_with_the_syn_are_relayed() {
    if !child::is_in_namespace("accepting::bytes_that_come_with_the_syn_are_relayed", &[]) {
        return;
    }
    std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").unwrap();
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()])
        .set("workers", 1)
        .set("listeners.edge.accept.fast_open", 16);
    let proxy = Proxy::start(&config);
    // The first connection is given a cookie, the second shows it.
    for _ in 0..2 {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let to = SockAddr::from(proxy.address());
        let sent = client.send_to_with_flags(b"early", &to, libc::MSG_FASTOPEN);
        assert_eq!(sent.unwrap(), 5);
        let mut client = TcpStream::from(client);
        expect_bytes(&mut client, b"early");
    }
    assert_eq!(fast_open_accepted(), 1, "SYNs whose bytes were taken");
    proxy.finish();
}

/// `TcpExt: TCPFastOpenPassive` of this network namespace: names in one line, values in the next.
fn fast_open_accepted() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs
        .find(|(name, _)| *name == "TCPFastOpenPassive")
        .unwrap();
    value.parse().unwrap()
}

#[test]
fn fast_open_that_the_host_forbids_is_warned_of() {
    if !child::is_in_namespace(
        "accepting::fast_open_that_the_host_forbids_is_warned_of",
        &[],
    ) {
        return;
    }
    std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1").unwrap();
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()]).set("listeners.edge.accept.fast_open", 16);
    let proxy = Proxy::start(&config);
    proxy.wait_log_where("a warning of the sysctl", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && message.starts_with("accept.fast_open")
    });
    proxy.finish();
}
