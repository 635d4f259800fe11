//! Who may connect: access lists, limits of a listener and of a source network, exact over two cores
//! (cases 62 and 64).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use corelay_bench::servers::{Handle, Server};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::support::peers::{expect_fin, expect_rejected};
use crate::support::proxy::{assert_reason, exit, reason};
use crate::support::{Config, DEADLINE, Launch, Proxy, wait_until};

/// Clients of a flood.
const FLOOD: usize = 60;

fn echo() -> Handle {
    Server::echo().start().unwrap()
}

fn from(source: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&to.into(), DEADLINE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// A client whose byte came back, or `None` for one that was refused.
fn served(source: [u8; 4], to: SocketAddr) -> Option<TcpStream> {
    // The reset may come before the client has finished connecting.
    let came_back = from(source, to).and_then(|mut client| {
        client.write_all(b"x")?;
        client.read_exact(&mut [0])?;
        Ok(client)
    });
    came_back.ok()
}

/// Two workers, and these clients one after the other from so many threads.
fn flood(to: SocketAddr, source: impl Fn(usize) -> [u8; 4] + Sync) -> Vec<TcpStream> {
    const THREADS: usize = 6;
    let source = &source;
    std::thread::scope(|scope| {
        let client = |thread| {
            move || {
                let numbers = (thread..FLOOD).step_by(THREADS);
                numbers
                    .filter_map(|n| served(source(n), to))
                    .collect::<Vec<_>>()
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(client(n))).collect();
        threads
            .into_iter()
            .flat_map(|it| it.join().unwrap())
            .collect()
    })
}

#[track_caller]
fn assert_refused(proxy: &Proxy, expected: &str, count: usize) {
    for line in proxy.access_lines(count) {
        assert_reason(&line, expected);
        assert!(
            line["upstream"].is_null() && line["server"].is_null(),
            "{line}"
        );
        assert_eq!(line["attempts"], 0);
    }
    let cause = expected.rsplit('/').next().unwrap();
    let labels = [
        ("cause", cause),
        ("stage", "accept"),
        ("upstream", ""),
        ("server", ""),
    ];
    let closed = proxy
        .metrics()
        .sum_where("corelay_connections_closed_total", &labels);
    assert_eq!(closed, count as f64);
}

#[test]
fn the_first_rule_that_holds_the_address_decides_and_no_server_hears_of_the_others() {
    let server = echo();
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&list, "# blocked\n127.0.0.4\n127.0.1.0/24\n").unwrap();
    let access = json!([
        { "allow": "127.0.0.3" },
        { "deny": ["127.0.0.2", format!("file:{}", list.path().display())] },
        { "deny": "127.0.0.3" },
        { "allow": "127.0.0.0/16" },
        { "deny": "all" },
    ]);
    let config = Config::to([server.address()]).set("listeners.edge.access", access);
    let proxy = Proxy::start(&config);
    let is_served = |source| served(source, proxy.address()).is_some();
    for (source, expected) in [
        ([127, 0, 0, 1], true),
        ([127, 0, 0, 2], false),
        ([127, 0, 0, 3], true),
        ([127, 0, 0, 4], false),
        ([127, 0, 1, 9], false),
        ([127, 0, 2, 9], true),
        ([127, 1, 0, 1], false),
    ] {
        assert_eq!(is_served(source), expected, "{source:?}");
    }
    wait_until("every session is over", || {
        proxy.metrics().sum("corelay_connections_active") == 0.0
    });
    assert_eq!(server.stats().accepted, 3);
    let lines = proxy.access_lines(7);
    let denied = lines
        .iter()
        .filter(|line| reason(line) == "local/accept/denied");
    assert_eq!(denied.count(), 4);
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("corelay_connections_accepted_total"), 7.0);
    assert_eq!(metrics.sum("corelay_session_duration_seconds_count"), 3.0);
    proxy.finish();
}

#[test]
fn on_refuse_close_sends_fin_and_reset_sends_rst() {
    let server = echo();
    let denied = json!([{ "deny": "all" }]);
    let config = Config::to([server.address()]).set("listeners.edge.access", denied);
    let proxy = Proxy::start(&config);
    expect_rejected(proxy.address());
    assert_refused(&proxy, "local/accept/denied", 1);
    proxy.finish();
    let proxy = Proxy::start(&config.set("listeners.edge.on_refuse", "close"));
    expect_fin(&mut from([127, 0, 0, 1], proxy.address()).unwrap());
    assert_refused(&proxy, "local/accept/denied", 1);
    assert_eq!(server.stats().accepted, 0);
    proxy.finish();
}

#[test]
fn a_list_file_that_cannot_be_used_is_told_before_anything_starts() {
    let server = echo();
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&list, "10.0.0.0/8\n10.0.0.1/8\n").unwrap();
    let access = json!([{ "deny": format!("file:{}", list.path().display()) }, { "allow": "all" }]);
    let config = Config::to([server.address()]).set("listeners.edge.access", access);
    let mut proxy = Launch::default().spawn(&config);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::BAD_CONFIG));
    let log = proxy.log().join("\n");
    assert!(log.contains("listeners.edge.access: /"), "{log}");
    assert!(
        log.contains("line 2: ") && log.contains("write 10.0.0.0/8"),
        "{log}"
    );
}

#[test]
fn case_62_a_listener_holds_exactly_its_connections_over_two_cores() {
    let server = echo();
    let config = Config::to([server.address()]).set("listeners.edge.limits.connections", 11);
    let proxy = Proxy::start(&config);
    let to = proxy.address();
    let mut clients = flood(to, |_| [127, 0, 0, 1]);
    assert_eq!(clients.len(), 11);
    assert_refused(&proxy, "local/accept/listener_full", FLOOD - 11);
    assert_eq!(server.stats().accepted, 11);
    // Both cores had some of them, and each place that is given back can be had again.
    let cores = proxy.metrics();
    let on = |core| cores.sum_where("corelay_connections_active", &[("core", core)]);
    assert!(on("0") > 0.0 && on("1") > 0.0, "one core served all");
    for _ in 0..3 {
        clients.truncate(clients.len() - 4);
        wait_until("four places are free", || {
            proxy.metrics().sum("corelay_connections_active") == 7.0
        });
        clients.extend((0..6).filter_map(|_| served([127, 0, 0, 1], to)));
        assert_eq!(clients.len(), 11);
    }
    drop(clients);
    proxy.finish();
}

#[test]
fn places_come_back_when_no_server_takes_the_session() {
    let refused = corelay_bench::servers::RefusedPort::new().unwrap();
    let config = Config::to([refused.address()])
        .set("listeners.edge.limits.connections", 1)
        .set("listeners.edge.limits.per_source.connections", 1);
    let proxy = Proxy::start(&config);
    for n in 1..=20 {
        expect_rejected(proxy.address());
        let lines = proxy.access_lines(n);
        assert_reason(&lines[n - 1], "upstream/connect/refused");
        wait_until("its place is free", || {
            proxy.metrics().sum("corelay_connections_active") == 0.0
        });
    }
    proxy.finish();
}

#[test]
fn a_rate_holds_over_two_cores_and_a_burst_may_come_at_once() {
    const RATE: usize = 5;
    const BURST: usize = 9;
    let server = echo();
    let limits = json!({ "rate": RATE, "burst": BURST });
    let proxy = Proxy::start(&Config::to([server.address()]).set("listeners.edge.limits", limits));
    let began = Instant::now();
    let count = flood(proxy.address(), |_| [127, 0, 0, 1]).len();
    let most = BURST + (began.elapsed().as_secs_f64() * RATE as f64).floor() as usize;
    assert!((BURST..=most).contains(&count), "{count}, at most {most}");
    let limited = [("cause", "rate_limited")];
    wait_until("the others were counted", || {
        let closed = "corelay_connections_closed_total";
        proxy.metrics().sum_where(closed, &limited) == (FLOOD - count) as f64
    });
    // Tokens come back with time.
    wait_until("one more is served", || {
        served([127, 0, 0, 1], proxy.address()).is_some()
    });
    proxy.finish();
}

#[test]
fn case_64_a_flood_from_one_network_leaves_the_others_their_share() {
    let server = echo();
    let limits = json!({ "connections": 40, "per_source": { "connections": 4, "v4_prefix": 24 } });
    let proxy = Proxy::start(&Config::to([server.address()]).set("listeners.edge.limits", limits));
    let to = proxy.address();
    // Sixty addresses of one network.
    let flooders = flood(to, |n| [127, 0, 7, n as u8 + 1]);
    assert_eq!(flooders.len(), 4);
    assert_refused(&proxy, "local/accept/source_full", FLOOD - 4);
    let others: Vec<_> = (0..4)
        .filter_map(|n| served([127, 0, 8, n + 1], to))
        .collect();
    assert_eq!(others.len(), 4);
    drop(flooders);
    wait_until("their places are free", || {
        proxy.metrics().sum("corelay_connections_active") == 4.0
    });
    assert!(served([127, 0, 7, 99], to).is_some());
    drop(others);
    proxy.finish();
}

#[test]
fn the_rate_of_one_source_takes_nothing_of_the_listeners() {
    let server = echo();
    let limits = json!({ "rate": 1, "burst": 10, "per_source": { "rate": 1, "burst": 3 } });
    let config = Config::to([server.address()]).set("listeners.edge.limits", limits);
    let proxy = Proxy::start(&config.set("workers", 1));
    let began = Instant::now();
    let one: Vec<_> = (0..30)
        .filter_map(|_| served([127, 0, 0, 9], proxy.address()))
        .collect();
    // However long a busy machine takes.
    let most = 3 + began.elapsed().as_secs() as usize + 1;
    assert!(
        (3..=most).contains(&one.len()),
        "{}, at most {most}",
        one.len()
    );
    let other: Vec<_> = (0..3)
        .filter_map(|_| served([127, 0, 0, 8], proxy.address()))
        .collect();
    assert_eq!(other.len(), 3);
    let refused = proxy.access_lines(30 - one.len());
    let causes: Vec<_> = refused.iter().map(reason).collect();
    let limited = causes
        .iter()
        .filter(|cause| *cause == "local/accept/source_rate_limited");
    assert_eq!(limited.count(), 30 - one.len());
    drop((one, other));
    proxy.finish();
}
