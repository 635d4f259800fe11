//! Servers that fail: active checks, ejection, what becomes of sessions without a server. Cases 42 to 45
//! and 63.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use corelay_bench::servers::{RefusedPort, Server};
use serde_json::{Value, json};

use crate::support::peers::{
    End, connect, expect_bytes, expect_fin, expect_rejected, expect_reset, read_to_end, reset,
};
use crate::support::ports::lasting_address;
use crate::support::proxy::assert_reason;
use crate::support::{Config, DEADLINE, Pair, Proxy, Upstream, wait_until};

/// Asks often enough for a test.
fn check(kind: &str) -> Value {
    json!({ "type": kind, "interval": "50ms", "fast_interval": "20ms", "timeout": "1s", "rise": 2, "fall": 2 })
}

fn echo_once(to: SocketAddr) {
    let mut client = connect(to);
    client.write_all(b"x").unwrap();
    expect_bytes(&mut client, b"x");
}

/// A byte each way.
fn exchange(pair: &mut Pair) {
    pair.client.write_all(b"x").unwrap();
    expect_bytes(&mut pair.server, b"x");
    pair.server.write_all(b"y").unwrap();
    expect_bytes(&mut pair.client, b"y");
}

/// One server as `/upstreams` shows it.
fn standing(proxy: &Proxy, server: SocketAddr) -> Value {
    let answer = proxy.get("/upstreams");
    let page: Value = serde_json::from_str(&answer.body).unwrap();
    let servers = page["app"].as_array().unwrap();
    let address = server.to_string();
    let found = servers.iter().find(|it| it["server"] == address);
    found
        .unwrap_or_else(|| panic!("{address} is not in {page}"))
        .clone()
}

fn wait_status(proxy: &Proxy, server: SocketAddr, status: &str) {
    wait_until(status, || standing(proxy, server)["status"] == status);
}

#[test]
fn case_42_a_server_that_its_checks_find_down_gets_nothing_until_they_find_it_up() {
    let dead = lasting_address();
    let live = Server::echo().start().unwrap();
    let config = Config::to([dead, live.address()]).set("upstreams.app.check", check("tcp"));
    let proxy = Proxy::start(&config);
    wait_status(&proxy, dead, "down");
    let page = standing(&proxy, dead);
    assert_eq!(page["reason"], "check_failed: refused");
    assert_eq!(page["last_check"]["outcome"], "refused");
    assert_eq!(page["up"], false);
    for _ in 0..6 {
        echo_once(proxy.address());
    }
    for line in proxy.access_lines(6) {
        assert_eq!(line["attempts"], 1, "nobody met the dead server: {line}");
    }
    let line = proxy.wait_log_where("the server went down", |line| line["to"] == "down");
    assert_eq!(line["server"], dead.to_string());
    assert_eq!(line["available"], 1);
    assert_eq!(proxy.metrics().sum("corelay_server_up"), 1.0);
    assert_eq!(proxy.metrics().sum("corelay_server_downs_total"), 1.0);

    // It comes back.
    let _back = Server::echo().listen(dead).start().unwrap();
    wait_status(&proxy, dead, "up");
    wait_until("it serves again", || {
        echo_once(proxy.address());
        let label = [("server", dead.to_string())];
        let label: Vec<_> = label
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        let metrics = proxy.metrics();
        metrics.sum_where("corelay_upstream_connections_total", &label) > 0.0
    });
    assert!(
        standing(&proxy, dead)["last_check"]["latency_ms"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    proxy.finish();
}

#[test]
fn case_44_an_http_check_goes_by_the_status_and_an_exchange_by_the_answer() {
    let http = Server::http("a").start().unwrap();
    for (status, wanted) in [("200", "up"), ("201-204", "down")] {
        let mut check = check("http");
        check["status"] = status.into();
        let config = Config::to([http.address()]).set("upstreams.app.check", check);
        let proxy = Proxy::start(&config);
        wait_until("a check has ended", || {
            standing(&proxy, http.address())["last_check"].is_object()
        });
        wait_status(&proxy, http.address(), wanted);
        if wanted == "down" {
            let page = standing(&proxy, http.address());
            assert_eq!(page["reason"], "check_failed: bad_status 200");
        }
        proxy.finish();
    }
    let echo = Server::echo().start().unwrap();
    for (expect, wanted) in [("PING", "up"), ("PONG", "down")] {
        let mut check = check("exchange");
        check["send"] = "PING\r\n".into();
        check["expect"] = expect.into();
        let config = Config::to([echo.address()]).set("upstreams.app.check", check);
        let proxy = Proxy::start(&config);
        wait_until("a check has ended", || {
            standing(&proxy, echo.address())["last_check"].is_object()
        });
        wait_status(&proxy, echo.address(), wanted);
        proxy.finish();
    }
}

#[test]
fn failed_connects_in_a_row_eject_a_server_for_a_time_and_never_the_last() {
    let dead = RefusedPort::new().unwrap();
    let live = Server::echo().start().unwrap();
    let config = Config::to([dead.address(), live.address()])
        .set("workers", 1)
        .set(
            "upstreams.app.eject",
            json!({ "failures": 3, "period": "300ms" }),
        );
    let proxy = Proxy::start(&config);
    // Every other session begins with the dead server.
    for _ in 0..5 {
        echo_once(proxy.address());
    }
    wait_status(&proxy, dead.address(), "ejected");
    assert_eq!(
        standing(&proxy, dead.address())["reason"],
        "connect_failures"
    );
    let line = proxy.wait_log_where("the server was ejected", |line| line["to"] == "ejected");
    assert_eq!(line["reason"], "connect_failures");
    echo_once(proxy.address());
    echo_once(proxy.address());
    let lines = proxy.access_lines(7);
    let attempts: Vec<_> = lines
        .iter()
        .map(|line| line["attempts"].as_u64().unwrap())
        .collect();
    assert_eq!(attempts, [2, 1, 2, 1, 2, 1, 1]);
    wait_status(&proxy, dead.address(), "up");
    proxy.finish();

    // Alone, it is asked to the end.
    let proxy = Proxy::start(&Config::to([dead.address()]).set(
        "upstreams.app.eject",
        json!({ "failures": 1, "period": "1h", "max": "1h" }),
    ));
    for _ in 0..5 {
        expect_rejected(proxy.address());
    }
    for line in proxy.access_lines(5) {
        assert_reason(&line, "upstream/connect/refused");
    }
    assert_eq!(standing(&proxy, dead.address())["status"], "up");
    proxy.finish();
}

#[test]
fn sessions_that_a_server_resets_before_its_first_byte_eject_it() {
    let upstream = Upstream::new();
    let live = Server::echo().start().unwrap();
    let config = Config::to([upstream.address(), live.address()])
        .set("workers", 1)
        .set(
            "upstreams.app.eject",
            json!({ "failures": 2, "period": "1h", "max": "1h" }),
        );
    let proxy = Proxy::start(&config);
    for _ in 0..2 {
        // With a byte carried: a reset that meets the connect is a failed connect.
        let mut client = connect(proxy.address());
        client.write_all(b"x").unwrap();
        let mut server = upstream.accept();
        expect_bytes(&mut server, b"x");
        reset(server);
        expect_reset(&mut client);
        echo_once(proxy.address());
    }
    wait_status(&proxy, upstream.address(), "ejected");
    assert_eq!(
        standing(&proxy, upstream.address())["reason"],
        "early_resets"
    );
    echo_once(proxy.address());
    echo_once(proxy.address());
    proxy.finish();
}

#[test]
fn case_45_on_down_keeps_or_closes_the_sessions_of_a_server() {
    for on_down in ["keep", "close"] {
        let upstream = Upstream::new();
        let gate = TcpListener::bind(lasting_address()).unwrap();
        let mut check = check("tcp");
        check["port"] = gate.local_addr().unwrap().port().into();
        let config = Config::to([upstream.address()])
            .set("upstreams.app.check", check)
            .set("upstreams.app.on_down", on_down);
        let proxy = Proxy::start(&config);
        let mut pair = Pair::open(&proxy, &upstream);
        exchange(&mut pair);
        drop(gate);
        wait_status(&proxy, upstream.address(), "down");
        if on_down == "close" {
            expect_reset(&mut pair.client);
            assert_reason(&proxy.access_line(), "local/relay/server_down");
        } else {
            exchange(&mut pair);
        }
        // Nobody new either way.
        expect_rejected(proxy.address());
        let lines = proxy.access_lines(if on_down == "close" { 2 } else { 1 });
        assert_reason(lines.last().unwrap(), "local/connect/no_server");
        drop(pair);
        proxy.finish();
    }
}

#[test]
fn case_42_without_a_server_a_session_is_closed_or_held_or_goes_to_the_fallback() {
    let dead = lasting_address();
    let down = |config: Config| config.set("upstreams.app.check", check("tcp"));

    let config = down(Config::to([dead])).set("upstreams.app.on_no_server", "close");
    let proxy = Proxy::start(&config);
    wait_status(&proxy, dead, "down");
    expect_fin(&mut connect(proxy.address()));
    assert_reason(&proxy.access_line(), "local/connect/no_server");
    proxy.finish();

    let sorry = Server::echo().start().unwrap();
    let config = down(Config::to([dead]))
        .set("upstreams.app.fallback", "sorry")
        .set(
            "upstreams.sorry",
            json!({ "servers": [sorry.address().to_string()] }),
        );
    let proxy = Proxy::start(&config);
    wait_status(&proxy, dead, "down");
    echo_once(proxy.address());
    let line = proxy.access_line();
    assert_eq!(line["upstream"], "sorry");
    assert_eq!(line["server"], sorry.address().to_string());
    proxy.finish();

    let config = down(Config::to([dead]))
        .set("upstreams.app.on_no_server", "hold")
        .set(
            "upstreams.app.queue",
            json!({ "max": 10, "timeout": "20s" }),
        );
    let proxy = Proxy::start(&config);
    wait_status(&proxy, dead, "down");
    let mut held: Vec<TcpStream> = (0..4).map(|_| connect(proxy.address())).collect();
    wait_until("four are held", || {
        proxy.metrics().sum("corelay_upstream_queued") == 4.0
    });
    let _back = Server::echo().listen(dead).start().unwrap();
    for client in &mut held {
        client.write_all(b"x").unwrap();
        expect_bytes(client, b"x");
    }
    drop(held);
    proxy.finish();
}

#[test]
fn who_waits_for_a_place_goes_to_the_fallback_when_the_last_server_goes_down() {
    for on_no_server in ["reset", "hold"] {
        let full = Server::echo().start().unwrap();
        let sorry = Server::echo().start().unwrap();
        let gate = TcpListener::bind(lasting_address()).unwrap();
        let mut check = check("tcp");
        check["port"] = gate.local_addr().unwrap().port().into();
        let server = json!({ "address": full.address().to_string(), "max_connections": 1 });
        let config = Config::to([full.address()])
            .set("workers", 1)
            .set("upstreams.app.servers", json!([server]))
            .set("upstreams.app.check", check)
            .set("upstreams.app.on_no_server", on_no_server)
            .set(
                "upstreams.app.queue",
                json!({ "max": 10, "timeout": "20s" }),
            )
            .set("upstreams.app.fallback", "sorry")
            .set(
                "upstreams.sorry",
                json!({ "servers": [sorry.address().to_string()] }),
            );
        let proxy = Proxy::start(&config);
        let mut holder = connect(proxy.address());
        holder.write_all(b"x").unwrap();
        expect_bytes(&mut holder, b"x");
        let mut waiting = connect(proxy.address());
        wait_until("one waits", || {
            proxy.metrics().sum("corelay_upstream_queued") == 1.0
        });
        drop(gate);
        waiting.write_all(b"y").unwrap();
        expect_bytes(&mut waiting, b"y");
        // And whoever comes later.
        echo_once(proxy.address());
        assert_eq!(sorry.stats().accepted, 2, "{on_no_server}");
        drop((holder, waiting));
        proxy.finish();
    }
}

#[test]
fn a_server_that_came_back_starts_slowly() {
    let on = |host| SocketAddr::from(([127, 0, 0, host], 0));
    let servers = [1, 2].map(|host| Server::echo().listen(on(host)).start().unwrap());
    // Both are asked at one port, each at its own address.
    let gate = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = gate.local_addr().unwrap().port();
    let other_gate = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let mut check = check("tcp");
    check["port"] = port.into();
    let config = Config::to(servers.iter().map(|it| it.address()))
        .set("workers", 1)
        .set("upstreams.app.check", check)
        .set("upstreams.app.slow_start", "1h");
    let proxy = Proxy::start(&config);
    drop(other_gate);
    wait_status(&proxy, servers[1].address(), "down");
    let _other_gate = TcpListener::bind(("127.0.0.2", port)).unwrap();
    wait_status(&proxy, servers[1].address(), "up");
    for _ in 0..22 {
        echo_once(proxy.address());
    }
    let accepted: Vec<_> = servers.iter().map(|it| it.stats().accepted).collect();
    assert_eq!(accepted, [20, 2], "a tenth of the other's share");
    proxy.finish();
}

#[test]
fn case_43_a_flapping_server_leaves_every_count_at_zero() {
    let live = Server::echo().start().unwrap();
    let address = lasting_address();
    let mut quick = check("tcp");
    quick["rise"] = 1.into();
    quick["fall"] = 1.into();
    let config = Config::to([live.address(), address])
        .set("upstreams.app.balance", "least_connections")
        .set("upstreams.app.check", quick);
    let proxy = Proxy::start(&config);
    let to = proxy.address();
    let load = std::thread::spawn(move || {
        for _ in 0..600 {
            // A session on the server that goes away may be cut.
            let Ok(mut client) = TcpStream::connect(to) else {
                continue;
            };
            client.set_read_timeout(Some(DEADLINE)).unwrap();
            if client.write_all(b"x").is_ok() {
                let _ = client.read(&mut [0]);
            }
        }
    });
    while !load.is_finished() {
        let server = Server::echo().listen(address).start().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        drop(server);
        std::thread::sleep(Duration::from_millis(100));
    }
    load.join().unwrap();
    wait_until("every session is over", || {
        proxy.metrics().sum("corelay_upstream_connections_active") == 0.0
    });
    assert!(
        proxy.metrics().sum("corelay_server_downs_total") > 0.0,
        "it never flapped"
    );
    // Nothing of a count is left over: with equal counts the servers take turns again.
    let back = Server::echo().listen(address).start().unwrap();
    wait_status(&proxy, address, "up");
    let before = (live.stats().accepted, back.stats().accepted);
    let held: Vec<_> = (0..10)
        .map(|_| {
            let mut client = connect(to);
            client.write_all(b"x").unwrap();
            expect_bytes(&mut client, b"x");
            client
        })
        .collect();
    let after = (live.stats().accepted, back.stats().accepted);
    assert_eq!(after.0 - before.0, 5, "{before:?} {after:?}");
    drop(held);
    proxy.finish();
}

#[test]
fn what_the_server_said_before_it_went_down_arrives() {
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()]);
    let proxy = Proxy::start(&config);
    let Pair {
        mut client,
        mut server,
    } = Pair::open(&proxy, &upstream);
    server.write_all(b"last words").unwrap();
    drop(server);
    assert_eq!(read_to_end(&mut client), (b"last words".to_vec(), End::Fin));
    drop(client);
    proxy.finish();
}
