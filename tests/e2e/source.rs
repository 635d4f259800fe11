//! Where connections to servers come from and what they carry: `upstreams.NAME.source`, and case 63.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::support::peers::{expect_bytes, expect_rejected};
use crate::support::process::tool;
use crate::support::proxy::{assert_one_clear_line, assert_reason, exit};
use crate::support::{Config, DEADLINE, Launch, Pair, Proxy, Upstream, child, skip, wait_until};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Opens sessions, and tells from where the server saw them.
fn sources(proxy: &Proxy, upstream: &Upstream, count: usize) -> Vec<IpAddr> {
    let sessions = (0..count).map(|_| {
        let mut pair = Pair::open(proxy, upstream);
        pair.greet();
        pair.server.peer_addr().unwrap().ip()
    });
    sessions.collect()
}

/// One connection from an address and port of its own choice.
fn connect_from(client: SocketAddr, to: SocketAddr, is_ours: bool) -> TcpStream {
    let socket = Socket::new(Domain::for_address(client), Type::STREAM.cloexec(), None).unwrap();
    socket.set_reuse_address(true).unwrap();
    if !is_ours {
        socket.set_ip_transparent_v4(true).unwrap();
    }
    socket.bind(&client.into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn the_server_sees_the_source_address() {
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()]).set("upstreams.app.source.address", "127.0.0.77");
    let proxy = Proxy::start(&config);
    assert_eq!(sources(&proxy, &upstream, 3), [ip("127.0.0.77"); 3]);
    proxy.finish();
}

#[test]
fn addresses_are_taken_in_turn_by_family() {
    let upstream = Upstream::new();
    let addresses = json!(["127.0.0.20-127.0.0.22", "::1"]);
    let config = Config::to([upstream.address()])
        .set("workers", 1)
        .set("upstreams.app.source.address", addresses.clone());
    let proxy = Proxy::start(&config);
    let expected = [20, 21, 22, 20, 21, 22, 20].map(|last| IpAddr::from([127, 0, 0, last]));
    assert_eq!(sources(&proxy, &upstream, 7), expected);
    proxy.finish();

    let upstream = Upstream::on("[::1]:0".parse().unwrap());
    let config = Config::to([upstream.address()]).set("upstreams.app.source.address", addresses);
    let proxy = Proxy::start(&config);
    assert_eq!(sources(&proxy, &upstream, 2), [ip("::1"); 2]);
    proxy.finish();
}

/// A check that came from elsewhere would test another path than the sessions'.
#[test]
fn checks_come_from_the_source_address_too() {
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()])
        .set("upstreams.app.source.address", "127.0.0.78")
        .set(
            "upstreams.app.check",
            json!({ "type": "exchange", "contains": "x", "interval": "100ms" }),
        );
    let proxy = Proxy::start(&config);
    let mut check = upstream.accept();
    assert_eq!(check.peer_addr().unwrap().ip(), ip("127.0.0.78"));
    check.write_all(b"x").unwrap();
    drop(check);
    drop(upstream);
    proxy.finish();
}

/// What ss(8) tells of the connections to a port.
fn shown(ss: &std::path::Path, port: u16) -> String {
    let filter = format!("dport = :{port}");
    let output = Command::new(ss).args(["-tniH", &filter]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_congestion_control_is_the_one_that_was_asked_for() {
    let Some(ss) = tool("ss") else {
        return skip("source.congestion", "no ss(8) here");
    };
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
    let default = read("tcp_congestion_control");
    let allowed = read("tcp_allowed_congestion_control");
    let mut allowed = allowed.split_whitespace();
    let Some(other) = allowed.find(|name| *name != default.trim()) else {
        return skip("source.congestion", "there is only one here");
    };
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()]);
    for (config, expected) in [
        (config.clone(), default.trim()),
        (config.set("upstreams.app.source.congestion", other), other),
    ] {
        let proxy = Proxy::start(&config);
        let mut pair = Pair::open(&proxy, &upstream);
        pair.greet();
        let shown = shown(&ss, upstream.address().port());
        assert!(
            shown.contains(&format!(" {expected} ")),
            "no {expected} in {shown}"
        );
        drop(pair);
        proxy.finish();
    }
}

#[test]
fn the_interface_is_the_one_that_was_asked_for() {
    if !child::is_in_namespace(
        "source::the_interface_is_the_one_that_was_asked_for",
        &["ss"],
    ) {
        return;
    }
    let upstream = Upstream::new();
    let port = upstream.address().port();
    let config = Config::to([upstream.address()]).set("upstreams.app.source.interface", "lo");
    let proxy = Proxy::start(&config);
    let mut pair = Pair::open(&proxy, &upstream);
    pair.greet();
    let shown = shown(&tool("ss").unwrap(), port);
    assert!(shown.contains("127.0.0.1%lo:"), "{shown}");
    drop(pair);
    proxy.finish();
}

/// Packets that a rule of nft(8) has counted.
fn counted(table: &str, chain: &str) -> Vec<u64> {
    let output = Command::new(tool("nft").unwrap())
        .args(["-j", "list", "chain", "inet", table, chain])
        .output()
        .unwrap();
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rules = list["nftables"].as_array().unwrap().iter();
    let counters = rules.filter_map(|it| {
        let parts = it["rule"]["expr"].as_array()?;
        parts
            .iter()
            .find_map(|part| part["counter"]["packets"].as_u64())
    });
    counters.collect()
}

#[test]
fn every_packet_has_the_mark_and_the_dscp() {
    if !child::is_in_namespace("source::every_packet_has_the_mark_and_the_dscp", &["nft"]) {
        return;
    }
    child::run_tool("nft", &["add", "table", "inet", "source"]);
    for (server, family, chain) in [("127.0.0.1:0", "ip", "v4"), ("[::1]:0", "ip6", "v6")] {
        let upstream = Upstream::on(server.parse().unwrap());
        let port = upstream.address().port();
        let hook = "{ type filter hook output priority 0; }";
        child::run_tool("nft", &["add", "chain", "inet", "source", chain, hook]);
        for rule in [
            format!("tcp dport {port} counter"),
            format!("tcp dport {port} meta mark 0x2a counter"),
            format!("tcp dport {port} {family} dscp ef counter"),
        ] {
            child::run_tool("nft", &["add", "rule", "inet", "source", chain, &rule]);
        }
        let config = Config::to([upstream.address()]).set(
            "upstreams.app.source",
            json!({ "mark": "0x2a", "dscp": "ef" }),
        );
        let proxy = Proxy::start(&config);
        let mut pair = Pair::open(&proxy, &upstream);
        pair.greet();
        let counted = counted("source", chain);
        assert!(counted[0] >= 3, "SYN, ACK, bytes: {counted:?}");
        assert_eq!(counted, [counted[0]; 3], "{family}");
        drop(pair);
        proxy.finish();
    }
}

/// The client's address is not one of this host, as on a router: the replies find back by a rule, as
/// docs/configuration.md has it.
#[test]
fn a_transparent_upstream_sees_the_client_itself() {
    if !child::is_in_namespace("source::a_transparent_upstream_sees_the_client_itself", &[]) {
        return;
    }
    let rule = [
        "rule",
        "add",
        "pref",
        "10",
        "to",
        "10.77.0.0/24",
        "lookup",
        "100",
    ];
    child::run_tool("ip", &rule);
    let route = [
        "route",
        "add",
        "local",
        "10.77.0.0/24",
        "dev",
        "lo",
        "table",
        "100",
    ];
    child::run_tool("ip", &route);
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()]).set("upstreams.app.source.transparent", true);
    let proxy = Proxy::start(&config);
    let client = SocketAddr::from(([10, 77, 0, 5], 45_678));
    for _ in 0..2 {
        let mut stream = connect_from(client, proxy.address(), false);
        let mut server = upstream.accept();
        assert_eq!(server.peer_addr().unwrap(), client);
        stream.write_all(b"there").unwrap();
        expect_bytes(&mut server, b"there");
        server.write_all(b"back").unwrap();
        expect_bytes(&mut stream, b"back");
        // The client's own port again, at once.
        crate::support::peers::reset(stream);
        crate::support::peers::expect_reset(&mut server);
    }
    drop(upstream);
    proxy.finish();
}

/// Twenty ports for connections.
fn few_ports() {
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40019").unwrap();
}

/// A configuration that takes none of those ports for itself.
fn with_fixed_ports(servers: &[&Upstream]) -> Config {
    Config::to(servers.iter().map(|it| it.address()))
        .set("workers", 1)
        .set("listeners.edge.bind", "127.0.0.1:9000")
        .set("admin.bind", "127.0.0.1:9001")
}

fn server_on(port: u16) -> Upstream {
    Upstream::on(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// So many clients, each from an address of its own.
fn clients(proxy: &Proxy, count: u8) -> Vec<TcpStream> {
    let client = |last| SocketAddr::from(([127, 0, 1, last], 50_000));
    let connected = (1..=count).map(|last| connect_from(client(last), proxy.address(), true));
    connected.collect()
}

fn wait_served(proxy: &Proxy, count: u8) {
    wait_until("every session has its server", || {
        proxy.metrics().sum("corelay_upstream_connections_active") == f64::from(count)
    });
}

#[test]
fn case_63_each_source_address_has_ports_of_its_own_towards_each_server() {
    let test = "source::case_63_each_source_address_has_ports_of_its_own_towards_each_server";
    if !child::is_in_namespace(test, &[]) {
        return;
    }
    few_ports();
    let (one, other) = (server_on(7001), server_on(7002));
    // Three addresses, one server; then one address, two servers.
    let address = "upstreams.app.source.address";
    for (config, count) in [
        (
            with_fixed_ports(&[&one]).set(address, "127.0.0.20-127.0.0.22"),
            45,
        ),
        (
            with_fixed_ports(&[&one, &other]).set(address, "127.0.0.30"),
            30,
        ),
    ] {
        let proxy = Proxy::start(&config);
        let clients = clients(&proxy, count);
        wait_served(&proxy, count);
        for client in clients {
            crate::support::peers::reset(client);
        }
        proxy.finish();
    }
}

#[test]
fn case_63_a_lack_of_ports_or_of_the_address_is_our_own_fault() {
    let test = "source::case_63_a_lack_of_ports_or_of_the_address_is_our_own_fault";
    if !child::is_in_namespace(test, &[]) {
        return;
    }
    few_ports();
    child::run_tool("ip", &["address", "add", "10.5.0.1/32", "dev", "lo"]);
    let server = server_on(7001);
    let config = with_fixed_ports(&[&server]).set("upstreams.app.source.address", "10.5.0.1");
    let proxy = Proxy::start(&config);
    let kept = clients(&proxy, 30);
    for line in proxy.access_lines(10) {
        assert_reason(&line, "local/connect/local_ports");
    }
    for client in kept {
        crate::support::peers::reset(client);
    }
    wait_until("they are gone", || {
        proxy.metrics().sum("corelay_connections_active") == 0.0
    });
    let client = SocketAddr::from(([127, 0, 1, 99], 50_000));
    let stream = connect_from(client, proxy.address(), true);
    wait_served(&proxy, 1);
    crate::support::peers::reset(stream);
    wait_until("it is gone", || {
        proxy.metrics().sum("corelay_connections_active") == 0.0
    });
    child::run_tool("ip", &["address", "del", "10.5.0.1/32", "dev", "lo"]);
    // 10 without a port, 20 with one, one more.
    proxy.access_lines(31);
    expect_rejected(proxy.address());
    let line = proxy.access_lines(32).remove(31);
    assert_reason(&line, "local/connect/local_ports");
    proxy.finish();
}

/// The one line of a start that is refused.
#[track_caller]
fn assert_refused(launch: Launch, source: serde_json::Value, must_name: &[&str]) {
    let config = Config::to(["127.0.0.1:1"]).set("upstreams.app.source", source);
    assert_refused_config(launch, &config, must_name);
}

#[track_caller]
fn assert_refused_config(launch: Launch, config: &Config, must_name: &[&str]) {
    let mut proxy = launch.spawn(config);
    let code = proxy.wait_exit(DEADLINE).code();
    assert_eq!(code, Some(exit::HOST), "{:?}", proxy.log());
    for part in must_name {
        assert_one_clear_line(&proxy, part);
    }
}

#[test]
fn what_this_host_does_not_have_is_refused_at_the_start() {
    let refused = |source, must_name: &[&str]| {
        assert_refused(Launch::default(), source, must_name);
    };
    refused(
        json!({ "address": ["127.0.0.9", "192.0.2.1"] }),
        &["upstream app: source.address", "192.0.2.1", "ip address"],
    );
    refused(
        json!({ "interface": "nowhere0" }),
        &["source.interface", "nowhere0", "ip link"],
    );
    refused(
        json!({ "congestion": "nothing" }),
        &[
            "source.congestion",
            "nothing",
            "tcp_available_congestion_control",
        ],
    );
    let config = Config::to(["localhost:1"]).set("upstreams.app.source.address", "::1");
    assert_refused_config(Launch::default(), &config, &["source.address", "IPv4"]);
}

#[test]
fn what_this_process_may_not_do_is_refused_at_the_start() {
    let Some(setpriv) = tool("setpriv") else {
        return skip("source", "no setpriv(1) here");
    };
    let without = || {
        let setpriv = setpriv.to_str().unwrap();
        let caps = "-net_admin,-net_raw";
        Launch::default().under([
            setpriv.to_owned(),
            format!("--inh-caps={caps}"),
            format!("--bounding-set={caps}"),
        ])
    };
    for (key, value) in [("mark", json!(42)), ("transparent", json!(true))] {
        let must_name = [
            &*format!("source.{key}"),
            "CAP_NET_ADMIN",
            "AmbientCapabilities=",
        ];
        assert_refused(without(), json!({ key: value }), &must_name);
    }
}
