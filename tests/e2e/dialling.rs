//! Reaching a server: cases 16, 17, 32–34, and 40 for its TCP_USER_TIMEOUT.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use corelay_bench::servers::{Blackhole, RefusedPort, Server};

use crate::support::peers::{
    End, connect, expect_bytes, expect_rejected, expect_reset, finish, read_to_end, reset,
};
use crate::support::proxy::assert_reason;
use crate::support::{Config, Pair, Proxy, Upstream, child, wait_until};

#[test]
fn case_16_client_that_resets_while_the_server_is_dialled_cancels_the_dial() {
    let hole = Blackhole::new().unwrap();
    let config = Config::to([hole.address()]).set("timeouts.connect", "60s");
    let proxy = Proxy::start(&config);
    let client = connect(proxy.address());
    wait_until("the session is dialling", || {
        proxy.metrics().sum("corelay_connections_active") == 1.0
    });
    reset(client);
    let line = proxy.access_line();
    assert_reason(&line, "downstream/connect/left");
    assert_eq!(line["bytes_to_upstream"], 0);
    proxy.finish();
}

#[test]
fn case_16_client_that_closes_while_the_server_is_dialled_cancels_the_dial() {
    let hole = Blackhole::new().unwrap();
    let config = Config::to([hole.address()]).set("timeouts.connect", "60s");
    let proxy = Proxy::start(&config);
    let client = connect(proxy.address());
    wait_until("the session is dialling", || {
        proxy.metrics().sum("corelay_connections_active") == 1.0
    });
    drop(client);
    let line = proxy.access_line();
    assert_reason(&line, "downstream/connect/left");
    proxy.finish();
}

#[test]
fn case_17_data_and_fin_sent_before_the_server_is_connected_arrive_in_order() {
    let hole = Blackhole::new().unwrap();
    let upstream = Upstream::new();
    let config = Config::to([hole.address(), upstream.address()])
        .set("workers", 1)
        .set("timeouts.connect", "1s");
    let proxy = Proxy::start(&config);
    let mut attempts = Vec::new();
    for round in 0..2 {
        let mut client = connect(proxy.address());
        client.write_all(b"first ").unwrap();
        client.write_all(b"second").unwrap();
        finish(&client);
        let mut server = upstream.accept();
        assert_eq!(
            read_to_end(&mut server),
            (b"first second".to_vec(), End::Fin)
        );
        server.write_all(b"reply").unwrap();
        drop(server);
        assert_eq!(read_to_end(&mut client), (b"reply".to_vec(), End::Fin));
        let line = proxy.access_lines(round + 1).remove(round);
        assert_reason(&line, "downstream/relay/finished");
        attempts.push(line["attempts"].as_u64().unwrap());
    }
    // Round robin: one of the two began with the server that does not answer.
    attempts.sort_unstable();
    assert_eq!(attempts, [1, 2]);
    proxy.finish();
}

#[test]
fn case_32_blackholed_server_times_out_and_the_next_is_tried() {
    let hole = Blackhole::new().unwrap();
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([hole.address(), upstream.address()])
        .set("workers", 1)
        .set("timeouts.connect", "1s");
    let proxy = Proxy::start(&config);
    for _ in 0..2 {
        let mut client = connect(proxy.address());
        client.write_all(b"x").unwrap();
        expect_bytes(&mut client, b"x");
    }
    let mut lines = proxy.access_lines(2);
    lines.sort_by_key(|line| line["attempts"].as_u64());
    assert_eq!(
        (&lines[0]["attempts"], &lines[1]["attempts"]),
        (&1.into(), &2.into())
    );
    assert!(
        lines[0]["connect_ms"].as_f64().unwrap() < 900.0,
        "{}",
        lines[0]
    );
    assert!(
        lines[1]["connect_ms"].as_f64().unwrap() >= 1000.0,
        "{}",
        lines[1]
    );
    let failures = proxy.metrics().sum_where(
        "corelay_upstream_connect_failures_total",
        &[("cause", "connect_timeout")],
    );
    assert_eq!(failures, 1.0);
    proxy.finish();
}

#[test]
fn case_32_when_every_server_times_out_the_client_is_reset() {
    let hole = Blackhole::new().unwrap();
    let config = Config::to([hole.address()]).set("timeouts.connect", "500ms");
    let proxy = Proxy::start(&config);
    expect_rejected(proxy.address());
    let line = proxy.access_line();
    assert_reason(&line, "upstream/connect/connect_timeout");
    assert!(
        line["duration_ms"].as_f64().unwrap() >= 500.0,
        "early: {line}"
    );
    assert_eq!(line["connect_ms"], serde_json::Value::Null);
    proxy.finish();
}

#[test]
fn case_33_refused_goes_to_the_next_server_and_all_refused_resets_the_client() {
    let dead = RefusedPort::new().unwrap();
    let upstream = Server::http("alive").start().unwrap();
    let config = Config::to([dead.address(), upstream.address()])
        .set("workers", 1)
        .set("upstreams.app.eject", "off");
    let proxy = Proxy::start(&config);
    for _ in 0..10 {
        let mut client = connect(proxy.address());
        client
            .write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            .unwrap();
        let (answer, _) = read_to_end(&mut client);
        assert!(answer.ends_with(b"hello from alive\n"));
    }
    for line in proxy.access_lines(10) {
        assert_eq!(line["server"], upstream.address().to_string());
    }
    drop(upstream);
    expect_rejected(proxy.address());
    let line = proxy.access_lines(11).remove(10);
    assert_reason(&line, "upstream/connect/refused");
    assert_eq!(line["attempts"], 2, "each server at most once");
    assert_eq!(line["server"], serde_json::Value::Null);
    proxy.finish();
}

#[test]
fn case_33_a_server_that_comes_back_is_used_again() {
    let dead = RefusedPort::new().unwrap();
    let proxy = Proxy::start(&Config::to([dead.address()]));
    expect_rejected(proxy.address());
    dead.revive().unwrap();
    let client = connect(proxy.address());
    wait_until("the server is connected", || {
        proxy.metrics().sum("corelay_upstream_connections_active") == 1.0
    });
    drop(client);
    drop(dead);
    proxy.finish();
}

#[test]
fn case_33_a_unix_server_that_is_not_there_counts_as_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nobody.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let proxy = Proxy::start(&Config::to([format!("unix:{}", path.display())]));
    expect_rejected(proxy.address());
    assert_reason(&proxy.access_line(), "upstream/connect/refused");
    proxy.finish();
}

#[test]
fn case_34_unreachable_servers_have_a_reason_of_their_own() {
    let test = "dialling::case_34_unreachable_servers_have_a_reason_of_their_own";
    if !child::is_in_namespace(test, &[]) {
        return;
    }
    child::run_tool("ip", &["route", "add", "prohibit", "10.9.9.0/24"]);
    child::run_tool("ip", &["route", "add", "unreachable", "10.9.8.0/24"]);
    // Forbidden by policy (EACCES), host unreachable (EHOSTUNREACH), no route (ENETUNREACH).
    for server in ["10.9.9.1:80", "10.9.8.1:80", "10.9.7.1:80"] {
        let upstream = Server::echo().start().unwrap();
        let proxy = Proxy::start(&Config::to([server]));
        expect_rejected(proxy.address());
        assert_reason(&proxy.access_line(), "upstream/connect/unreachable");
        proxy.finish();

        let config =
            Config::to([server.to_owned(), upstream.address().to_string()]).set("workers", 1);
        let proxy = Proxy::start(&config);
        for _ in 0..2 {
            let mut client = connect(proxy.address());
            client.write_all(b"x").unwrap();
            expect_bytes(&mut client, b"x");
        }
        proxy.finish();
    }
}

#[test]
fn case_40_a_server_that_vanished_is_given_up_by_user_timeout() {
    if child::is_in_namespace(
        "dialling::case_40_a_server_that_vanished_is_given_up_by_user_timeout",
        &["nft"],
    ) {
        vanish(&[("tcp.user_timeout", "1s")], b"into the void");
    }
}

/// Nobody says anything, so that only a probe can notice. Probes are switched on when the session is as old as
/// the silence before the first of them.
#[test]
fn case_40_a_silent_server_that_vanished_is_given_up_by_keepalive() {
    if child::is_in_namespace(
        "dialling::case_40_a_silent_server_that_vanished_is_given_up_by_keepalive",
        &["nft"],
    ) {
        let settings = [("idle", "1s"), ("interval", "1s"), ("count", "2")];
        let settings = settings.map(|(key, value)| (format!("tcp.keepalive.{key}"), value));
        let settings: Vec<_> = settings
            .iter()
            .map(|(key, value)| (key.as_str(), *value))
            .collect();
        vanish(&settings, b"");
    }
}

/// A server from which nothing comes any more, and to which nothing goes.
fn vanish(settings: &[(&str, &str)], last_words: &[u8]) {
    let upstream = Upstream::on(SocketAddr::from(([127, 0, 0, 1], 7777)));
    let mut config = Config::to([upstream.address()]);
    for (key, value) in settings {
        config = config.set(key, *value);
    }
    let proxy = Proxy::start(&config);
    let mut pair = Pair::open(&proxy, &upstream);
    pair.greet();
    child::run_tool("nft", &["add", "table", "inet", "case40"]);
    let hook = "{ type filter hook input priority 0; }";
    child::run_tool("nft", &["add", "chain", "inet", "case40", "in", hook]);
    for port in ["sport", "dport"] {
        let rule = ["add", "rule", "inet", "case40", "in", "tcp", port, "7777"];
        child::run_tool("nft", &[&rule[..], &["drop"]].concat());
    }
    pair.client.write_all(last_words).unwrap();
    pair.client
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    expect_reset(&mut pair.client);
    assert_reason(&proxy.access_line(), "upstream/relay/peer_timeout");
    child::run_tool("nft", &["delete", "table", "inet", "case40"]);
    proxy.finish();
}

/// A session that wakes by its client's first byte and then waits for a connection pushes an entry into a ring in
/// which nobody sleeps. Debug builds refuse to sleep with it unsubmitted.
#[test]
fn a_dial_that_begins_with_the_first_byte_is_not_slept_on() {
    let hole = Blackhole::new().unwrap();
    let echo = Server::echo().start().unwrap();
    let config = Config::to([hole.address(), echo.address()])
        .set("workers", 1)
        .set("timeouts.connect", "300ms")
        .set("listeners.edge.defer_connect", "10s");
    let mut proxy = Proxy::start(&config);
    for _ in 0..6 {
        let mut client = connect(proxy.address());
        std::thread::sleep(Duration::from_millis(20));
        client.write_all(b"wake").unwrap();
        expect_bytes(&mut client, b"wake");
        assert!(proxy.is_running());
    }
    proxy.finish();
}
