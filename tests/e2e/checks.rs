//! Where checks go, and what stands in front of them.

use std::net::{SocketAddr, TcpListener};

use corelay_bench::servers::{RefusedPort, Server};
use serde_json::{Value, json};

use crate::support::peer_proxy::PeerProxy;
use crate::support::peers::expect_rejected;
use crate::support::{Config, Proxy, skip, wait_until};

/// Asks often enough for a test.
fn check(kind: &str) -> Value {
    json!({ "type": kind, "interval": "50ms", "fast_interval": "20ms", "timeout": "1s", "rise": 1, "fall": 1 })
}

/// One server as `/upstreams` shows it.
fn standing(proxy: &Proxy, server: SocketAddr) -> Value {
    let page: Value = serde_json::from_str(&proxy.get("/upstreams").body).unwrap();
    let mut servers = page["app"].as_array().unwrap().iter();
    let found = servers.find(|it| it["server"] == server.to_string());
    found
        .unwrap_or_else(|| panic!("{server} is not in {page}"))
        .clone()
}

/// Waits until a server's checks have found it so.
fn wait_found(proxy: &Proxy, server: SocketAddr, status: &str) {
    wait_until(&format!("{server} is {status}"), || {
        let standing = standing(proxy, server);
        standing["last_check"].is_object() && standing["status"] == status
    });
}

#[test]
fn a_server_with_a_check_address_is_asked_there_whatever_the_check_says() {
    let live = Server::echo().start().unwrap();
    let [dead, nowhere] = [(); 2].map(|()| RefusedPort::new().unwrap());
    let agent = TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let unix_agent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let by_path = RefusedPort::new().unwrap();
    // The port alone would find every server down.
    let mut check = check("tcp");
    check["port"] = nowhere.address().port().into();
    let server = |address: SocketAddr, at: String| json!({ "address": address.to_string(), "check_address": at });
    let servers = json!([
        server(dead.address(), agent.local_addr().unwrap().to_string()),
        server(live.address(), nowhere.address().to_string()),
        server(by_path.address(), format!("unix:{}", path.display())),
    ]);
    let config = Config::to([live.address()])
        .set("upstreams.app.servers", servers)
        .set("upstreams.app.check", check);
    let proxy = Proxy::start(&config);
    wait_found(&proxy, dead.address(), "up");
    wait_found(&proxy, live.address(), "down");
    wait_found(&proxy, by_path.address(), "up");
    // What the agent says is said of its server.
    drop((agent, unix_agent));
    wait_found(&proxy, dead.address(), "down");
    wait_found(&proxy, by_path.address(), "down");
    proxy.finish();
}

/// Servers that take nobody without a PROXY header, with an HTTP server behind them.
fn proxied(behind: SocketAddr) -> Vec<(&'static str, PeerProxy)> {
    let peers = [
        (
            "haproxy",
            PeerProxy::haproxy("accept-proxy", &behind.to_string()),
        ),
        (
            "nginx",
            PeerProxy::nginx("proxy_protocol", &format!("proxy_pass {behind};")),
        ),
    ];
    let here = peers.into_iter().filter_map(|(name, peer)| {
        if peer.is_none() {
            skip("checks with a PROXY header", &format!("no {name} here"));
        }
        Some((name, peer?))
    });
    here.collect()
}

#[test]
fn haproxy_and_nginx_that_require_a_header_pass_http_checks() {
    let behind = Server::http("a").start().unwrap();
    for (name, peer) in proxied(behind.address()) {
        // What the sessions send, what the check says, whether it goes to where the sessions go.
        for (sessions, said, is_there, status) in [
            ("v1", None, true, "up"),
            ("v2", None, true, "up"),
            ("v2", Some("v1"), true, "up"),
            ("v1", Some("off"), true, "down"),
            ("off", None, true, "down"),
            ("off", Some("v2"), true, "up"),
            ("v2", None, false, "down"),
            ("v2", Some("v2"), false, "up"),
            ("off", Some("v1"), false, "up"),
        ] {
            let mut check = check("http");
            if let Some(said) = said {
                check["proxy_protocol"] = said.into();
            }
            let elsewhere = RefusedPort::new().unwrap();
            let server = if is_there {
                json!(peer.address().to_string())
            } else {
                json!({ "address": elsewhere.address().to_string(), "check_address": peer.address().to_string() })
            };
            let config = Config::to([peer.address()])
                .set("upstreams.app.servers", json!([server]))
                .set("upstreams.app.proxy_protocol", sessions)
                .set("upstreams.app.check", check);
            let proxy = Proxy::start(&config);
            let server = if is_there {
                peer.address()
            } else {
                elsewhere.address()
            };
            eprintln!("{name}: sessions {sessions}, check {said:?}, there {is_there}: {status}");
            wait_found(&proxy, server, status);
            proxy.finish();
        }
    }
}

#[test]
fn checks_that_are_late_and_ejections_that_may_not_be_show_in_the_metrics() {
    // Each silent server holds a place for the whole timeout, and there are more of them than places.
    const SILENT: usize = 70;
    let silent: Vec<TcpListener> = (0..SILENT)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let dead = RefusedPort::new().unwrap();
    let addresses = silent.iter().map(|it| it.local_addr().unwrap());
    let mut check = check("tls");
    check["timeout"] = "30s".into();
    let config = Config::to(addresses)
        .set("upstreams.app.check", check)
        .set("listeners.other.bind", "127.0.0.1:0")
        .set("listeners.other.upstream", "alone")
        .set(
            "upstreams.alone",
            json!({ "servers": [dead.address().to_string()], "eject": { "failures": 2 } }),
        );
    let proxy = Proxy::start(&config);
    wait_until("every place is taken", || {
        proxy.metrics().sum("corelay_health_checks_in_flight") == 64.0
    });
    let late = || proxy.metrics().sum("corelay_health_checks_late_seconds");
    wait_until("the checks of the others are late", || late() > 1.0);

    let alone: SocketAddr = proxy.listener("other").parse().unwrap();
    for _ in 0..4 {
        expect_rejected(alone);
    }
    // The second failure in a row, and each after it.
    wait_until("ejections are denied", || {
        let denied = [("upstream", "alone")];
        let metrics = proxy.metrics();
        metrics.sum_where("corelay_ejections_denied_total", &denied) == 3.0
    });
    assert_eq!(
        proxy
            .metrics()
            .sum_where("corelay_ejections_denied_total", &[("upstream", "app")]),
        0.0
    );
    let mut proxy = proxy;
    proxy.stop();
}
