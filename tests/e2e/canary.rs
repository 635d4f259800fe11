//! A listener split over upstreams by weight.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use corelay_bench::servers::{Handle, RefusedPort, Server};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::peers::{connect, expect_bytes, expect_rejected};
use crate::support::proxy::assert_reason;
use crate::support::{Config, DEADLINE, Proxy};

fn config(app: &Handle, canary: SocketAddr, weights: Value) -> Config {
    Config::to([app.address()])
        .set(
            "listeners.edge",
            json!({ "bind": "127.0.0.1:0", "upstreams": weights }),
        )
        .set(
            "upstreams.canary",
            json!({ "servers": [canary.to_string()] }),
        )
}

fn session(mut client: TcpStream) {
    client.write_all(b"x").unwrap();
    expect_bytes(&mut client, b"x");
    drop(client);
}

#[test]
fn a_random_split_follows_the_weights_and_every_number_tells_the_upstreams_apart() {
    const SESSIONS: usize = 600;
    let (app, canary) = (
        Server::echo().start().unwrap(),
        Server::echo().start().unwrap(),
    );
    let weights = json!({ "app": 80, "canary": 20 });
    let proxy = Proxy::start(&config(&app, canary.address(), weights));
    for _ in 0..SESSIONS {
        session(connect(proxy.address()));
    }
    let lines = proxy.access_lines(SESSIONS);
    let counts = (
        app.stats().accepted as usize,
        canary.stats().accepted as usize,
    );
    assert_eq!(counts.0 + counts.1, SESSIONS);
    // 120 are expected, with a standard deviation of 9.8: five of them are missed once in two million.
    assert!(counts.1.abs_diff(120) <= 49, "{counts:?}");
    let named = |name: &str| lines.iter().filter(|line| line["upstream"] == name).count();
    assert_eq!((named("app"), named("canary")), counts);
    let metrics = proxy.metrics();
    for (name, count) in [("app", counts.0), ("canary", counts.1)] {
        let labels = [("upstream", name)];
        for family in [
            "corelay_connections_closed_total",
            "corelay_upstream_connections_total",
            "corelay_upstream_connect_seconds_count",
            "corelay_upstream_first_byte_seconds_count",
        ] {
            assert_eq!(
                metrics.sum_where(family, &labels),
                count as f64,
                "{family} {name}"
            );
        }
    }
    let stats = proxy.stats();
    assert_eq!(
        stats["listeners"]["edge"]["upstreams"],
        json!(["app", "canary"])
    );
    proxy.finish();
}

#[test]
fn a_failing_canary_fails_under_its_own_name_and_weight_0_gets_nothing() {
    let app = Server::echo().start().unwrap();
    let dead = RefusedPort::new().unwrap();
    let weights = json!({ "app": 0, "canary": 1 });
    let proxy = Proxy::start(&config(&app, dead.address(), weights));
    for n in 1..=10 {
        expect_rejected(proxy.address());
        let lines = proxy.access_lines(n);
        assert_reason(&lines[n - 1], "upstream/connect/refused");
        assert_eq!(lines[n - 1]["upstream"], "canary");
    }
    let labels = [("upstream", "canary"), ("server", ""), ("cause", "refused")];
    let closed = proxy
        .metrics()
        .sum_where("corelay_connections_closed_total", &labels);
    assert_eq!(closed, 10.0);
    assert_eq!(app.stats().accepted, 0);
    proxy.finish();
}

/// From one of the addresses of 127.0.0.0/8, one session.
fn session_from(source: [u8; 4], to: SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect_timeout(&to.into(), DEADLINE).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

/// Which upstream each of these clients reaches, whatever the core and the time.
fn choices(config: &Config, hosts: u8) -> BTreeMap<String, String> {
    const TIMES: usize = 3;
    let proxy = Proxy::start(config);
    for _ in 0..TIMES {
        for host in 1..=hosts {
            session_from([127, 0, 0, host], proxy.address());
        }
    }
    let mut chosen: BTreeMap<String, String> = BTreeMap::new();
    for line in proxy.access_lines(TIMES * usize::from(hosts)) {
        let client = line["downstream"].as_str().unwrap();
        let client = client.split(':').next().unwrap().to_owned();
        let upstream = line["upstream"].as_str().unwrap();
        let before = chosen.entry(client).or_insert_with(|| upstream.to_owned());
        assert_eq!(before, upstream, "a client moved: {line}");
    }
    proxy.finish();
    chosen
}

#[test]
fn a_split_by_source_keeps_a_client_and_a_greater_weight_only_takes() {
    const HOSTS: u8 = 60;
    let (app, canary) = (
        Server::echo().start().unwrap(),
        Server::echo().start().unwrap(),
    );
    let with =
        |weights| config(&app, canary.address(), weights).set("listeners.edge.split_by", "source");
    let few = choices(&with(json!({ "app": 80, "canary": 20 })), HOSTS);
    // Another upstream in front of them moves nobody: a client's choice goes by names.
    let weights = json!({ "aaa": 0, "app": 80, "canary": 20 });
    let in_front = json!({ "servers": [app.address().to_string()] });
    let shifted = choices(&with(weights).set("upstreams.aaa", in_front), HOSTS);
    assert_eq!(few, shifted);
    let more = choices(&with(json!({ "app": 80, "canary": 80 })), HOSTS);
    let at_canary = |of: &BTreeMap<_, String>| of.values().filter(|it| *it == "canary").count();
    assert!((1..=25).contains(&at_canary(&few)), "{few:?}");
    assert!(at_canary(&more) > at_canary(&few));
    for (client, upstream) in &few {
        assert!(
            upstream == "app" || more[client] == "canary",
            "{client} was given away"
        );
    }
}
