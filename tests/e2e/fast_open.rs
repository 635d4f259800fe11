//! `upstreams.NAME.source.fast_open`: the client's first bytes go with the SYN, and to one server alone.
//!
//! Each in a network namespace, in which every listening socket takes bytes of SYNs. Cookies are kept by
//! address, so that one server's is the other's here.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use corelay_bench::pattern::Pattern;
use corelay_bench::servers::{Blackhole, RefusedPort, Server};
use corelay_bench::signals::Signal;
use serde_json::json;

use crate::support::peers::{
    End, connect, expect_bytes, expect_reset, finish, read_pattern, read_to_end, reset,
    wait_acknowledged, write_pattern,
};
use crate::support::process::{Injection, strace};
use crate::support::proxy::assert_reason;
use crate::support::{Config, Pair, Proxy, Upstream, child, wait_until};

/// Bits of `net.ipv4.tcp_fastopen`: clients, servers, and servers without the socket option.
const EVERYBODY: &str = "0x403";
const CLIENTS: &str = "1";
const SERVERS: &str = "0x402";

fn allow(whom: &str) {
    std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", whom).unwrap();
}

/// Whether this is the test's part in a network namespace, in which everybody may do it.
fn is_inside(test: &str, tools: &[&str]) -> bool {
    let is_inside = child::is_in_namespace(&format!("fast_open::{test}"), tools);
    if is_inside {
        allow(EVERYBODY);
    }
    is_inside
}

/// One core; sessions dial with the client's first byte.
fn fast(servers: &[SocketAddr]) -> Config {
    Config::to(servers)
        .set("workers", 1)
        .set("upstreams.app.eject", "off")
        .set("upstreams.app.source.fast_open", true)
        .set("listeners.edge.defer_connect", "10s")
}

fn count(proxy: &Proxy, result: &str) -> f64 {
    let labels = [("result", result)];
    proxy
        .metrics()
        .sum_where("corelay_upstream_fast_open_total", &labels)
}

/// Connections that were not made with bytes in the SYN, made so but in vain, and made so.
fn counts(proxy: &Proxy) -> [f64; 3] {
    ["not_sent", "ignored", "taken"].map(|result| count(proxy, result))
}

/// A session that says this first.
fn say(proxy: &Proxy, bytes: &[u8]) -> TcpStream {
    let mut client = connect(proxy.address());
    client.write_all(bytes).unwrap();
    client
}

/// A first session, by which the kernel gets the cookie.
fn get_cookie(proxy: &Proxy, upstream: &Upstream) {
    let client = say(proxy, b"cookie");
    expect_bytes(&mut upstream.accept(), b"cookie");
    drop(client);
    proxy.access_lines(1);
}

#[test]
fn the_first_bytes_go_with_the_syn_as_soon_as_there_is_a_cookie() {
    if !is_inside(
        "the_first_bytes_go_with_the_syn_as_soon_as_there_is_a_cookie",
        &[],
    ) {
        return;
    }
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let address: SocketAddr = address.parse().unwrap();
        let upstream = Server::echo().listen(address).start().unwrap();
        let proxy = Proxy::start(&fast(&[upstream.address()]));
        let expected = [[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [1.0, 0.0, 2.0]];
        // The last is more than a SYN holds.
        for (bytes, expected) in [1, 700, 1 << 20].into_iter().zip(expected) {
            let pattern = Pattern::new(bytes);
            let mut client = connect(proxy.address());
            let mut sender = client.try_clone().unwrap();
            let sent = std::thread::spawn(move || {
                write_pattern(&mut sender, pattern, bytes).unwrap();
                finish(&sender);
            });
            assert_eq!(read_pattern(&mut client, pattern), (bytes, End::Fin));
            sent.join().unwrap();
            assert_eq!(counts(&proxy), expected, "{bytes} bytes");
        }
        check_accounts(&proxy, 1 + 700 + (1 << 20));
        proxy.finish();
    }
}

/// What went with a SYN is in every count, once: of three echoed streams.
fn check_accounts(proxy: &Proxy, said: u64) {
    let lines = proxy.access_lines(3);
    let logged = |key: &str| {
        lines
            .iter()
            .map(|it| it[key].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(logged("bytes_to_upstream"), said);
    assert_eq!(logged("bytes_to_downstream"), said);
    for line in &lines {
        assert_reason(line, "downstream/relay/finished");
    }
    let metrics = proxy.metrics();
    for name in [
        "corelay_downstream_received_bytes_total",
        "corelay_upstream_sent_bytes_total",
        "corelay_downstream_sent_bytes_total",
    ] {
        assert_eq!(metrics.sum(name), said as f64, "{name}");
    }
    assert_eq!(
        metrics.sum("corelay_relayed_bytes_total"),
        2.0 * said as f64
    );
}

/// All of the client's bytes went with the SYN, and the server says nothing.
#[test]
fn a_client_whose_bytes_all_went_with_the_syn_has_said_something() {
    if !is_inside(
        "a_client_whose_bytes_all_went_with_the_syn_has_said_something",
        &[],
    ) {
        return;
    }
    let upstream = Upstream::new();
    let proxy = Proxy::start(&fast(&[upstream.address()]));
    get_cookie(&proxy, &upstream);
    let mut client = say(&proxy, b"bye");
    finish(&client);
    let mut server = upstream.accept();
    assert_eq!(read_to_end(&mut server), (b"bye".to_vec(), End::Fin));
    drop(server);
    assert_eq!(read_to_end(&mut client), (Vec::new(), End::Fin));
    assert_eq!(counts(&proxy), [1.0, 0.0, 1.0]);
    let line = &proxy.access_lines(2)[1];
    assert_reason(line, "downstream/relay/finished");
    assert_eq!(line["bytes_to_upstream"], 3);
    proxy.finish();
}

#[test]
fn a_server_that_speaks_first_is_not_kept_waiting() {
    if !is_inside("a_server_that_speaks_first_is_not_kept_waiting", &[]) {
        return;
    }
    let upstream = Upstream::new();
    let config = fast(&[upstream.address()]).set("listeners.edge.defer_connect", "off");
    let proxy = Proxy::start(&config);
    for _ in 0..3 {
        let Pair {
            mut client,
            mut server,
        } = Pair::open(&proxy, &upstream);
        server.write_all(b"220 hello").unwrap();
        expect_bytes(&mut client, b"220 hello");
    }
    assert_eq!(counts(&proxy), [0.0; 3]);
    proxy.finish();
}

fn header_of(client: &TcpStream, proxy: &Proxy) -> String {
    let (from, to) = (client.local_addr().unwrap(), proxy.address());
    let ports = format!("{} {}", from.port(), to.port());
    format!("PROXY TCP4 {} {} {ports}\r\n", from.ip(), to.ip())
}

#[test]
fn a_proxy_header_and_bytes_behind_it_arrive_in_order_and_once() {
    if !is_inside(
        "a_proxy_header_and_bytes_behind_it_arrive_in_order_and_once",
        &[],
    ) {
        return;
    }
    let upstream = Upstream::new();
    let config = fast(&[upstream.address()]).set("upstreams.app.proxy_protocol", "v1");
    let proxy = Proxy::start(&config);
    for (round, length) in [5, 5, 1_300, 1_400, 4_000].into_iter().enumerate() {
        let body = Pattern::new(7).bytes(0, length);
        let client = say(&proxy, &body);
        finish(&client);
        let mut server = upstream.accept();
        expect_bytes(&mut server, header_of(&client, &proxy).as_bytes());
        let (received, end) = read_to_end(&mut server);
        assert_eq!((received.len(), end), (length, End::Fin));
        assert!(received == body);
        drop((server, client));
        assert_eq!(counts(&proxy), [1.0, 0.0, round as f64]);
        let line = &proxy.access_lines(round + 1)[round];
        assert_eq!(line["bytes_to_upstream"], length, "{line}");
    }
    proxy.finish();
}

#[test]
fn a_proxy_header_goes_with_the_syn_and_may_go_to_the_next_server_too() {
    if !is_inside(
        "a_proxy_header_goes_with_the_syn_and_may_go_to_the_next_server_too",
        &[],
    ) {
        return;
    }
    let (dead, upstream) = (RefusedPort::new().unwrap(), Upstream::new());
    let config = fast(&[dead.address(), upstream.address()])
        .set("upstreams.app.balance", "first_available")
        .set("upstreams.app.proxy_protocol", "v1")
        .set("listeners.edge.defer_connect", "off");
    let proxy = Proxy::start(&config);
    for taken in [0.0, 1.0, 2.0] {
        let Pair {
            mut client,
            mut server,
        } = Pair::open(&proxy, &upstream);
        expect_bytes(&mut server, header_of(&client, &proxy).as_bytes());
        assert_eq!(counts(&proxy), [1.0, 0.0, taken]);
        client.write_all(b"after").unwrap();
        expect_bytes(&mut server, b"after");
    }
    for line in proxy.access_lines(3) {
        assert_eq!(line["attempts"], 2, "{line}");
        assert_eq!(line["bytes_to_upstream"], 5, "{line}");
    }
    // With bytes of the client behind it, it may not.
    drop(proxy);
    let proxy = Proxy::start(&config.set("listeners.edge.defer_connect", "10s"));
    expect_reset(&mut say(&proxy, b"x"));
    let line = proxy.access_line();
    assert_reason(&line, "upstream/connect/refused");
    assert_eq!(line["attempts"], 1);
    proxy.finish();
}

#[test]
fn bytes_that_a_server_refused_with_the_syn_go_to_no_other() {
    if is_inside(
        "bytes_that_a_server_refused_with_the_syn_go_to_no_other",
        &[],
    ) {
        goes_to_no_other(RefusedPort::new().unwrap().address(), "refused");
    }
}

#[test]
fn bytes_that_a_server_left_unanswered_go_to_no_other() {
    if is_inside("bytes_that_a_server_left_unanswered_go_to_no_other", &[]) {
        let hole = Blackhole::new().unwrap();
        goes_to_no_other(hole.address(), "connect_timeout");
    }
}

fn goes_to_no_other(server: SocketAddr, cause: &str) {
    let other = Upstream::new();
    let config = fast(&[server, other.address()])
        .set("upstreams.app.balance", "first_available")
        .set("timeouts.connect", "300ms");
    let proxy = Proxy::start(&config);
    // Without a cookie nothing goes with the SYN: the next server may have it, and brings the cookie.
    let client = say(&proxy, b"cookie");
    expect_bytes(&mut other.accept(), b"cookie");
    drop(client);
    assert_eq!(proxy.access_line()["attempts"], 2);
    expect_reset(&mut say(&proxy, b"once"));
    let line = &proxy.access_lines(2)[1];
    assert_reason(line, &format!("upstream/connect/{cause}"));
    assert_eq!(line["attempts"], 1, "{line}");
    assert!(other.accept_within(Duration::from_millis(100)).is_none());
    proxy.finish();
}

/// The hazard itself: the server has the bytes, and its answer is lost.
#[test]
fn a_server_whose_answer_is_lost_has_the_bytes_and_nobody_else() {
    if !is_inside(
        "a_server_whose_answer_is_lost_has_the_bytes_and_nobody_else",
        &["nft"],
    ) {
        return;
    }
    let [first, other] = [(); 2].map(|()| Upstream::new());
    let config = fast(&[first.address(), other.address()])
        .set("upstreams.app.balance", "first_available")
        .set("timeouts.connect", "500ms");
    let proxy = Proxy::start(&config);
    get_cookie(&proxy, &first);
    lose_answers(first.address());
    let mut client = say(&proxy, b"once");
    expect_bytes(&mut first.accept(), b"once");
    expect_reset(&mut client);
    let line = &proxy.access_lines(2)[1];
    assert_reason(line, "upstream/connect/connect_timeout");
    assert_eq!(line["attempts"], 1, "{line}");
    assert!(other.accept_within(Duration::from_millis(100)).is_none());
    find_answers();
    proxy.finish();
}

#[test]
fn what_a_server_does_not_take_with_the_syn_arrives_once() {
    if !is_inside("what_a_server_does_not_take_with_the_syn_arrives_once", &[]) {
        return;
    }
    let upstream = Upstream::new();
    let proxy = Proxy::start(&fast(&[upstream.address()]));
    get_cookie(&proxy, &upstream);
    allow(CLIENTS);
    let mut client = say(&proxy, b"again");
    finish(&client);
    let mut server = upstream.accept();
    assert_eq!(read_to_end(&mut server), (b"again".to_vec(), End::Fin));
    server.write_all(b"reply").unwrap();
    drop(server);
    assert_eq!(read_to_end(&mut client), (b"reply".to_vec(), End::Fin));
    assert_eq!(counts(&proxy), [1.0, 1.0, 0.0]);
    proxy.finish();
}

#[test]
fn a_host_that_forbids_it_is_warned_of_and_connects_as_usual() {
    if !is_inside(
        "a_host_that_forbids_it_is_warned_of_and_connects_as_usual",
        &[],
    ) {
        return;
    }
    allow(SERVERS);
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&fast(&[upstream.address()]));
    proxy.wait_log_where("a warning of the sysctl", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && message.starts_with("source.fast_open")
    });
    for _ in 0..2 {
        expect_bytes(&mut say(&proxy, b"x"), b"x");
    }
    assert_eq!(counts(&proxy), [2.0, 0.0, 0.0]);
    proxy.finish();
}

/// Bytes that count against a limit are not sent past it.
#[test]
fn with_a_bandwidth_limit_no_byte_of_the_client_goes_with_the_syn() {
    if !is_inside(
        "with_a_bandwidth_limit_no_byte_of_the_client_goes_with_the_syn",
        &[],
    ) {
        return;
    }
    let upstream = Server::echo().start().unwrap();
    let config = fast(&[upstream.address()]).set(
        "listeners.edge.limits.bandwidth.connection",
        json!({ "upload": "1MiB" }),
    );
    let proxy = Proxy::start(&config);
    for _ in 0..2 {
        expect_bytes(&mut say(&proxy, b"x"), b"x");
    }
    assert_eq!(counts(&proxy), [0.0; 3]);
    proxy.finish();

    // A header that Corelay makes counts against none.
    let upstream = Upstream::new();
    let config = config
        .set(
            "upstreams.app.servers",
            json!([upstream.address().to_string()]),
        )
        .set("upstreams.app.proxy_protocol", "v1");
    let proxy = Proxy::start(&config);
    for _ in 0..2 {
        let client = say(&proxy, b"x");
        let mut server = upstream.accept();
        expect_bytes(&mut server, header_of(&client, &proxy).as_bytes());
        expect_bytes(&mut server, b"x");
    }
    assert_eq!(counts(&proxy), [1.0, 0.0, 1.0]);
    proxy.finish();
}

/// No answer of the server's comes through any more.
fn lose_answers(server: SocketAddr) {
    let nft = |arguments: &[&str]| child::run_tool("nft", arguments);
    nft(&["add", "table", "inet", "lost"]);
    let hook = "{ type filter hook input priority 0; }";
    nft(&["add", "chain", "inet", "lost", "in", hook]);
    let port = server.port().to_string();
    let rule = ["add", "rule", "inet", "lost", "in", "tcp", "sport", &port];
    nft(&[&rule[..], &["drop"]].concat());
}

fn find_answers() {
    child::run_tool("nft", &["delete", "table", "inet", "lost"]);
}

/// It is looked at while its bytes are on the way, and none of it stays behind.
#[test]
fn a_client_that_leaves_while_its_bytes_are_on_the_way_frees_everything() {
    if !is_inside(
        "a_client_that_leaves_while_its_bytes_are_on_the_way_frees_everything",
        &["nft"],
    ) {
        return;
    }
    let [first, other] = [(); 2].map(|()| Upstream::new());
    let config =
        fast(&[first.address(), other.address()]).set("upstreams.app.balance", "first_available");
    let proxy = Proxy::start(&config);
    get_cookie(&proxy, &first);
    lose_answers(first.address());
    let client = say(&proxy, b"once");
    expect_bytes(&mut first.accept(), b"once");
    reset(client);
    assert_reason(&proxy.access_lines(2)[1], "downstream/connect/left");
    assert!(other.accept_within(Duration::from_millis(100)).is_none());
    find_answers();
    proxy.finish();
}

/// A look at a socket takes its error away: whoever finds it must act on it.
#[test]
fn a_client_that_was_reset_before_the_dial_is_not_served() {
    if !is_inside("a_client_that_was_reset_before_the_dial_is_not_served", &[]) {
        return;
    }
    let upstream = Upstream::new();
    let config = fast(&[upstream.address()]).set("listeners.edge.defer_connect", "off");
    let proxy = Proxy::start(&config);
    proxy.signal(Signal::STOP);
    wait_until("it stands still", || proxy.process().threads_are('T'));
    reset(connect(proxy.address()));
    proxy.signal(Signal::CONT);
    assert_reason(&proxy.access_line(), "downstream/connect/left");
    assert!(upstream.accept_within(Duration::from_millis(100)).is_none());
    proxy.finish();
}

/// It answered what came with the SYN and reset the connection, all before the core looked again.
#[test]
fn the_answer_of_a_server_that_resets_at_once_arrives_and_is_no_failed_connect() {
    if !is_inside(
        "the_answer_of_a_server_that_resets_at_once_arrives_and_is_no_failed_connect",
        &[],
    ) {
        return;
    }
    let Some(strace) = strace("source.fast_open") else {
        return;
    };
    let upstream = Upstream::new();
    let proxy = Proxy::start(&fast(&[upstream.address()]));
    get_cookie(&proxy, &upstream);
    let core = proxy
        .process()
        .thread_id("core-0")
        .expect("a core's thread");
    let late = Injection::into_thread(&strace, core, "sendto", "delay_exit=300000");
    let mut client = say(&proxy, b"much too long");
    let mut server = upstream.accept();
    expect_bytes(&mut server, b"much too long");
    server.write_all(b"400 too long").unwrap();
    wait_acknowledged(&server);
    reset(server);
    assert_eq!(
        read_to_end(&mut client),
        (b"400 too long".to_vec(), End::Reset)
    );
    drop(late);
    let line = &proxy.access_lines(2)[1];
    assert_reason(line, "upstream/relay/reset");
    assert_eq!(line["bytes_to_upstream"], 13);
    assert_eq!(line["bytes_to_downstream"], 12);
    let failures = "corelay_upstream_connect_failures_total";
    assert_eq!(proxy.metrics().sum_where(failures, &[]), 0.0);
    assert_eq!(counts(&proxy), [1.0, 0.0, 1.0]);
    proxy.finish();
}
