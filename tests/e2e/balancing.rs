//! Choosing a server: weights, backups, connection counts, hashes; how often another one is tried;
//! `max_connections` over two cores (case 46), and the queue before it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use corelay_bench::servers::{Handle, RefusedPort, Server};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::peers::{connect, expect_bytes, expect_rejected, expect_reset, try_connect};
use crate::support::proxy::assert_reason;
use crate::support::{Config, DEADLINE, Proxy, Upstream, wait_until};

/// A client whose byte came back: its session has a server.
#[track_caller]
fn client_at(to: SocketAddr) -> TcpStream {
    let mut client = connect(to);
    client.write_all(b"x").unwrap();
    expect_bytes(&mut client, b"x");
    client
}

fn echoes<const N: usize>() -> [Handle; N] {
    std::array::from_fn(|_| Server::echo().start().unwrap())
}

/// One worker, whose choices can be foretold, and these servers in the long form.
fn config(balance: &str, servers: Vec<Value>) -> Config {
    Config::to(["127.0.0.1:1"])
        .set("workers", 1)
        .set("upstreams.app.balance", balance)
        .set("upstreams.app.servers", servers)
}

/// Connections that each server has seen.
fn accepted(servers: &[Handle]) -> Vec<u64> {
    let stats = servers.iter().map(|server| server.stats().accepted);
    stats.collect()
}

#[test]
fn weights_hold_exactly_over_a_cycle_and_weight_0_gets_nothing() {
    let servers = echoes::<3>();
    let list = servers.iter().zip([3, 1, 0]);
    let list = list.map(|(it, weight)| json!({ "address": it.address(), "weight": weight }));
    let proxy = Proxy::start(&config("round_robin", list.collect()));
    for cycle in 1..=3 {
        for _ in 0..4 {
            drop(client_at(proxy.address()));
        }
        assert_eq!(accepted(&servers), [3 * cycle, cycle, 0]);
    }
    proxy.finish();
}

#[test]
fn a_backup_serves_only_after_the_others_have_failed() {
    let refused = RefusedPort::new().unwrap();
    let [backup] = echoes();
    let list = vec![
        json!({ "address": backup.address(), "backup": true }),
        json!({ "address": refused.address() }),
    ];
    let proxy = Proxy::start(&config("round_robin", list));
    drop(client_at(proxy.address()));
    let line = proxy.access_line();
    assert_eq!(line["attempts"], 2, "{line}");
    assert_eq!(line["server"], backup.address().to_string());
    proxy.finish();

    let [backup, first] = echoes();
    let list = vec![
        json!({ "address": backup.address(), "backup": true }),
        json!({ "address": first.address() }),
    ];
    let proxy = Proxy::start(&config("least_connections", list));
    let clients: Vec<_> = (0..5).map(|_| client_at(proxy.address())).collect();
    assert_eq!(accepted(&[backup, first]), [0, 5]);
    drop(clients);
    proxy.finish();
}

#[test]
fn the_server_with_the_fewest_connections_for_its_weight_is_next() {
    let servers = echoes::<2>();
    let list = vec![
        json!({ "address": servers[0].address(), "weight": 2 }),
        json!({ "address": servers[1].address() }),
    ];
    // Two workers: the connections of both count.
    let config = config("least_connections", list).set("workers", "auto");
    let proxy = Proxy::start(&config);
    let clients: Vec<_> = (0..30).map(|_| client_at(proxy.address())).collect();
    assert_eq!(accepted(&servers), [20, 10]);
    drop(clients);
    wait_until("every session is over", || {
        proxy.metrics().sum("corelay_upstream_connections_active") == 0.0
    });
    // With nothing held, ties are broken in turn and by weight.
    let clients: Vec<_> = (0..3).map(|_| client_at(proxy.address())).collect();
    assert_eq!(accepted(&servers), [22, 11]);
    drop(clients);
    proxy.finish();
}

/// From one of the addresses of 127.0.0.0/8.
fn client_from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect_timeout(&to.into(), DEADLINE).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"x").unwrap();
    expect_bytes(&mut stream, b"x");
    stream
}

#[test]
fn a_client_address_reaches_the_same_server_on_every_core_and_in_every_process() {
    for balance in ["source_hash", "maglev"] {
        let servers = echoes::<4>();
        let list: Vec<_> = servers
            .iter()
            .map(|server| json!({ "address": server.address() }))
            .collect();
        let mut choices: Vec<Vec<String>> = Vec::new();
        for _ in 0..2 {
            let config = config(balance, list.clone()).set("workers", "auto");
            let proxy = Proxy::start(&config);
            let mut chosen = Vec::new();
            for host in 1..=40 {
                for _ in 0..2 {
                    drop(client_from([127, 0, 0, host], proxy.address()));
                }
            }
            let mut lines = proxy.access_lines(80);
            lines.sort_by_key(|line| line["downstream"].as_str().unwrap().to_owned());
            for pair in lines.chunks(2) {
                let host = |line: &Value| {
                    let client = line["downstream"].as_str().unwrap().to_owned();
                    client.split(':').next().unwrap().to_owned()
                };
                assert_eq!(host(&pair[0]), host(&pair[1]));
                assert_eq!(pair[0]["server"], pair[1]["server"], "{balance}");
                chosen.push(pair[0]["server"].as_str().unwrap().to_owned());
            }
            proxy.finish();
            choices.push(chosen);
        }
        assert_eq!(choices[0], choices[1], "{balance}");
        assert!(
            accepted(&servers).iter().all(|&count| count > 0),
            "{balance}"
        );
    }
}

#[test]
fn the_first_server_is_filled_before_the_next_gets_any() {
    let servers = echoes::<3>();
    let list = servers
        .iter()
        .map(|server| json!({ "address": server.address(), "max_connections": 2 }));
    let proxy = Proxy::start(&config("first_available", list.collect()));
    let clients: Vec<_> = (0..5).map(|_| client_at(proxy.address())).collect();
    assert_eq!(accepted(&servers), [2, 2, 1]);
    drop(clients);
    proxy.finish();
}

#[test]
fn case_41_retries_bound_the_servers_that_one_session_tries() {
    let refused: Vec<_> = (0..6).map(|_| RefusedPort::new().unwrap()).collect();
    let list: Vec<_> = refused
        .iter()
        .map(|port| json!({ "address": port.address() }))
        .collect();
    for (retries, attempts) in [(0, 1), (2, 3), (100, 6)] {
        let config = config("round_robin", list.clone()).set("upstreams.app.retries", retries);
        let proxy = Proxy::start(&config);
        expect_rejected(proxy.address());
        let line = proxy.access_line();
        assert_eq!(line["attempts"], attempts, "{line}");
        assert_reason(&line, "upstream/connect/refused");
        assert_eq!(
            proxy.metrics().sum("corelay_upstream_retries_total"),
            f64::from(attempts - 1)
        );
        proxy.finish();
    }
}

#[test]
fn case_41_a_budget_bounds_the_retries_of_all_sessions() {
    let refused: Vec<_> = (0..6).map(|_| RefusedPort::new().unwrap()).collect();
    let list = refused
        .iter()
        .map(|port| json!({ "address": port.address() }));
    let config = config("round_robin", list.collect())
        .set("workers", 1)
        .set("upstreams.app.retries", 5)
        .set(
            "upstreams.app.retry_budget",
            json!({ "percent": 0, "min_per_second": 1 }),
        );
    let proxy = Proxy::start(&config);
    for _ in 0..4 {
        expect_rejected(proxy.address());
    }
    let lines = proxy.access_lines(4);
    let attempts: Vec<_> = lines.iter().map(|line| line["attempts"].clone()).collect();
    assert_eq!(attempts, [6, 6, 1, 1], "ten seconds' worth of retries");
    assert_reason(&lines[3], "upstream/connect/refused");
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("corelay_upstream_retries_total"), 10.0);
    assert_eq!(metrics.sum("corelay_upstream_retries_denied_total"), 2.0);
    proxy.finish();

    // Two cores have no more between them; each has its part.
    let list = refused
        .iter()
        .map(|port| json!({ "address": port.address() }));
    let config = self::config("round_robin", list.collect())
        .set("workers", 2)
        .set("upstreams.app.retries", 5)
        .set(
            "upstreams.app.retry_budget",
            json!({ "percent": 0, "min_per_second": 1 }),
        );
    let proxy = Proxy::start(&config);
    for _ in 0..40 {
        expect_rejected(proxy.address());
    }
    proxy.access_lines(40);
    let metrics = proxy.metrics();
    let retries = metrics.sum("corelay_upstream_retries_total");
    assert!((5.0..=10.0).contains(&retries), "{retries} retries");
    for core in ["0", "1"] {
        let of_core = metrics.sum_where("corelay_upstream_retries_total", &[("core", core)]);
        assert!(of_core <= 5.0, "core {core} made {of_core}");
    }
    proxy.finish();

    // Where no server is left, nothing is denied, and nothing taken.
    let list = vec![json!({ "address": refused[0].address() })];
    let config = self::config("round_robin", list).set(
        "upstreams.app.retry_budget",
        json!({ "percent": 0, "min_per_second": 0 }),
    );
    let proxy = Proxy::start(&config);
    expect_rejected(proxy.address());
    assert_reason(&proxy.access_line(), "upstream/connect/refused");
    let denied = "corelay_upstream_retries_denied_total";
    assert_eq!(proxy.metrics().sum(denied), 0.0);
    proxy.finish();
}

/// Servers with room for `most` connections each, and this queue.
fn limited(servers: &[Handle], most: u32, queue: u32, timeout: &str) -> Config {
    let list: Vec<_> = servers
        .iter()
        .map(|server| json!({ "address": server.address(), "max_connections": most }))
        .collect();
    Config::to(["127.0.0.1:1"])
        .set("upstreams.app.servers", list)
        .set(
            "upstreams.app.queue",
            json!({ "max": queue, "timeout": timeout }),
        )
}

#[test]
fn case_46_max_connections_holds_exactly_over_all_cores_and_the_rest_is_refused() {
    let servers = echoes::<2>();
    let proxy = Proxy::start(&limited(&servers, 7, 0, "5s"));
    let mut served = Vec::new();
    let mut refused = 0;
    for _ in 0..60 {
        // The reset may come before the client has finished connecting.
        let came_back = try_connect(proxy.address()).and_then(|mut client| {
            client.write_all(b"x")?;
            client.read_exact(&mut [0])?;
            Ok(client)
        });
        match came_back {
            Ok(client) => served.push(client),
            Err(_) => refused += 1,
        }
    }
    assert_eq!((served.len(), refused), (14, 46));
    assert_eq!(accepted(&servers), [7, 7]);
    for line in proxy.access_lines(46) {
        assert_reason(&line, "local/connect/servers_full");
        assert_eq!(line["attempts"], 0);
    }
    // Each place that is given back can be had again.
    drop(served.pop());
    wait_until("a place is free", || {
        proxy.metrics().sum("corelay_upstream_connections_active") == 13.0
    });
    drop(client_at(proxy.address()));
    drop(served);
    proxy.finish();
}

/// An echo server that knows exactly how many connections it has: one is over for it when it has read
/// FIN, and only then it sends its own.
struct Counting {
    address: SocketAddr,
    peak: Arc<AtomicU32>,
}

impl Counting {
    fn start(connections: usize) -> Self {
        let upstream = Upstream::new();
        let address = upstream.address();
        let peak = Arc::new(AtomicU32::new(0));
        let highest = Arc::clone(&peak);
        std::thread::spawn(move || {
            let open = Arc::new(AtomicU32::new(0));
            for _ in 0..connections {
                let mut stream = upstream.accept();
                highest.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let open = Arc::clone(&open);
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read(&mut byte).unwrap() == 1 {
                        stream.write_all(&byte).unwrap();
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, peak }
    }
}

#[test]
fn case_46_max_connections_is_never_exceeded_while_sessions_come_and_go_on_two_cores() {
    const MOST: u32 = 5;
    const CLIENTS: usize = 16;
    const SESSIONS: usize = 40;
    let server = Counting::start(CLIENTS * SESSIONS);
    let list = vec![json!({ "address": server.address, "max_connections": MOST })];
    let config = Config::to(["127.0.0.1:1"])
        .set("upstreams.app.servers", list)
        .set(
            "upstreams.app.queue",
            json!({ "max": 1000, "timeout": "20s" }),
        );
    let proxy = Proxy::start(&config);
    let to = proxy.address();
    let client = move || (0..SESSIONS).for_each(|_| drop(client_at(to)));
    let clients: Vec<_> = (0..CLIENTS).map(|_| std::thread::spawn(client)).collect();
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(server.peak.load(Ordering::SeqCst), MOST);
    assert!(proxy.metrics().sum("corelay_upstream_queued_total") > 0.0);
    proxy.finish();
}

#[test]
fn who_waits_is_served_in_turn_when_places_become_free_on_either_core() {
    let servers = echoes::<1>();
    let proxy = Proxy::start(&limited(&servers, 4, 100, "20s"));
    let first: Vec<_> = (0..4).map(|_| client_at(proxy.address())).collect();
    // Eight on the two cores, whoever holds a place where.
    let mut waiting: Vec<_> = (0..8).map(|_| connect(proxy.address())).collect();
    for client in &mut waiting {
        client.write_all(b"y").unwrap();
    }
    wait_until("eight wait", || {
        proxy.metrics().sum("corelay_upstream_queued") == 8.0
    });
    drop(first);
    let mut served = 0;
    while served < 8 {
        let before = waiting.len();
        waiting.retain_mut(|client| {
            client
                .set_read_timeout(Some(Duration::from_millis(20)))
                .unwrap();
            let mut byte = [0];
            !client.read(&mut byte).is_ok_and(|count| count == 1)
        });
        served += before - waiting.len();
    }
    assert_eq!(proxy.metrics().sum("corelay_upstream_queued"), 0.0);
    proxy.finish();
}

#[test]
fn the_queue_is_bounded_and_its_timeout_and_a_client_that_leaves_end_the_wait() {
    let servers = echoes::<1>();
    let proxy = Proxy::start(&limited(&servers, 1, 2, "1500ms").set("workers", 1));
    let holder = client_at(proxy.address());
    let began = Instant::now();
    let mut patient = connect(proxy.address());
    let leaver = connect(proxy.address());
    wait_until("two wait", || {
        proxy.metrics().sum("corelay_upstream_queued") == 2.0
    });
    // A third finds the queue full.
    expect_rejected(proxy.address());
    drop(leaver);
    let lines = proxy.access_lines(2);
    assert_reason(&lines[0], "local/connect/servers_full");
    assert_reason(&lines[1], "downstream/connect/left");
    let lines = proxy.access_lines(3);
    expect_reset(&mut patient);
    assert_reason(&lines[2], "local/connect/queue_timeout");
    assert!(began.elapsed() >= Duration::from_millis(1500));
    // Its place in the queue is free again.
    let next = try_connect(proxy.address()).unwrap();
    wait_until("one waits", || {
        proxy.metrics().sum("corelay_upstream_queued") == 1.0
    });
    drop((holder, next));
    proxy.finish();
}
