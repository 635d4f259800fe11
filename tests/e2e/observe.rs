//! What is seen from outside: balance, counters, admin, access log. Case 69, and what the issue
//! asks for beside the numbered cases.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use corelay_bench::load::idle;
use corelay_bench::servers::{Fault, Server};
use corelay_bench::signals::Signal;

use crate::support::metrics;
use crate::support::peers::{connect, expect_bytes, expect_rejected, read_to_end};
use crate::support::proxy::{Output, assert_reason};
use crate::support::{Config, DEADLINE, Launch, Proxy, skip, wait_until};

#[track_caller]
fn one_echo(proxy: &Proxy) {
    let mut client = connect(proxy.address());
    client.write_all(b"x").unwrap();
    expect_bytes(&mut client, b"x");
}

#[test]
fn round_robin_is_even_on_each_core_and_cores_sum_to_what_the_servers_saw() {
    const CONNECTIONS: usize = 2000;
    let servers = [
        Server::echo().start().unwrap(),
        Server::echo().start().unwrap(),
    ];
    let proxy = Proxy::start(&Config::to(servers.iter().map(|server| server.address())));
    for _ in 0..CONNECTIONS {
        one_echo(&proxy);
    }
    let lines = proxy.access_lines(CONNECTIONS);
    let mut per_core: BTreeMap<u64, BTreeMap<String, i64>> = BTreeMap::new();
    for line in &lines {
        let core = line["core"].as_u64().unwrap();
        let server = line["server"].as_str().unwrap().to_owned();
        *per_core.entry(core).or_default().entry(server).or_default() += 1;
    }
    for (core, counts) in &per_core {
        let most = counts.values().max().unwrap();
        let least = if counts.len() == servers.len() {
            *counts.values().min().unwrap()
        } else {
            0
        };
        assert!(most - least <= 1, "core {core}: {counts:?}");
    }
    let metrics = proxy.metrics();
    for server in &servers {
        let name = server.address().to_string();
        let seen = server.stats().accepted;
        let logged: i64 = per_core
            .values()
            .filter_map(|counts| counts.get(&name))
            .sum();
        assert_eq!(logged as u64, seen, "{name} in the access log");
        let counted = metrics.sum_where("corelay_upstream_connections_total", &[("server", &name)]);
        assert_eq!(counted, seen as f64, "{name} in the metrics");
    }
    for (core, counts) in &per_core {
        let core = core.to_string();
        let accepted = metrics.sum_where("corelay_connections_accepted_total", &[("core", &core)]);
        assert_eq!(accepted, counts.values().sum::<i64>() as f64, "core {core}");
    }
    proxy.finish();
}

#[test]
fn every_listener_listens_before_ready_and_stops_being_ready_at_the_end() {
    let upstream = Server::faulty(Fault::NeverRead).start().unwrap();
    let config = Config::to([upstream.address()]).set("timeouts.drain", "1m");
    // The server does not answer the client's FIN.
    let mut proxy = Proxy::start(&config.set("timeouts.half_close", "500ms"));
    assert_eq!(proxy.get("/healthz").status, 200);
    assert_eq!(proxy.get("/readyz").status, 200);
    assert_eq!(proxy.get("/nothing").status, 404);
    let client = connect(proxy.address());
    wait_until("the session stands", || upstream.stats().accepted == 1);
    proxy.signal(Signal::TERM);
    wait_until("it is no longer ready", || {
        metrics::get(proxy.admin(), "/readyz").is_some_and(|answer| answer.status == 503)
    });
    assert_eq!(proxy.get("/healthz").status, 200);
    drop(client);
    assert!(proxy.wait_exit(DEADLINE * 2).success());
}

#[test]
fn stats_and_metrics_tell_the_same() {
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    for _ in 0..20 {
        one_echo(&proxy);
    }
    proxy.access_lines(20);
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("corelay_connections_accepted_total"), 20.0);
    assert_eq!(metrics.sum("corelay_connections_closed_total"), 20.0);
    for histogram in [
        "corelay_first_byte_seconds",
        "corelay_session_duration_seconds",
        "corelay_upstream_connect_seconds",
    ] {
        assert_eq!(
            metrics.sum(&format!("{histogram}_count")),
            20.0,
            "{histogram}"
        );
        assert!(
            metrics.sum(&format!("{histogram}_sum")) > 0.0,
            "{histogram}"
        );
        let buckets = metrics.sum_where(&format!("{histogram}_bucket"), &[("le", "+Inf")]);
        assert_eq!(buckets, 20.0, "{histogram}");
    }
    for name in [
        "corelay_build_info",
        "corelay_buffers",
        "corelay_buffers_in_ring",
        "corelay_ring_cq_overflow_total",
        "corelay_ring_enters_total",
        "corelay_ring_submissions_total",
        "corelay_ring_operations_in_flight",
        "corelay_ring_feature",
    ] {
        metrics.sum(name);
    }
    let text = proxy.stats().to_string();
    for word in [
        "edge",
        "app",
        "p50",
        "p90",
        "p99",
        "p999",
        &upstream.address().to_string(),
    ] {
        assert!(text.contains(word), "{word} is not in /stats: {text}");
    }
    proxy.finish();
}

#[test]
fn admin_answers_under_load_and_a_slow_admin_client_blocks_nobody() {
    const SCRAPES: usize = 20;
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let held = idle::hold(&proxy.address().into(), 1000).unwrap();
    // Some who never finish their request, and one who never reads its answer.
    let mut slow: Vec<TcpStream> = (0..5).map(|_| connect(proxy.admin())).collect();
    for client in &mut slow {
        client.write_all(b"GET /metr").unwrap();
    }
    let to = proxy.address();
    let stop = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while Instant::now() < stop {
                    let mut client = connect(to);
                    client.write_all(b"load").unwrap();
                    expect_bytes(&mut client, b"load");
                }
            });
        }
        for _ in 0..SCRAPES {
            assert!(proxy.metrics().sum("corelay_connections_active") >= 1000.0);
        }
    });
    drop(slow);
    drop(held);
    proxy.finish();
}

#[test]
fn access_log_errors_leaves_out_clean_ends_and_off_leaves_out_all() {
    let upstream = Server::echo().start().unwrap();
    let gone = corelay_bench::servers::RefusedPort::new().unwrap();
    for (mode, expected) in [("errors", 1), ("off", 0)] {
        let config = Config::to([upstream.address()])
            .set("log.access", mode)
            .set("listeners.dead.bind", "127.0.0.1:0")
            .set("listeners.dead.upstream", "dead")
            .set("upstreams.dead.servers", vec![gone.address().to_string()]);
        let mut proxy = Proxy::start(&config);
        one_echo(&proxy);
        drop(connect(proxy.address()));
        expect_rejected(proxy.listener("dead").parse().unwrap());
        wait_until("all sessions are over", || {
            proxy.metrics().sum("corelay_connections_closed_total") == 3.0
        });
        proxy.check_leaks();
        proxy.stop();
        let lines = proxy.access_lines(expected);
        assert_eq!(lines.len(), expected, "{mode}");
        if let Some(line) = lines.first() {
            assert_reason(line, "upstream/connect/refused");
        }
    }
}

#[test]
fn access_log_lines_have_every_field_and_unique_ids() {
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()]).set("relay.mover", "auto");
    let proxy = Proxy::start(&config);
    for _ in 0..50 {
        one_echo(&proxy);
    }
    let lines = proxy.access_lines(50);
    let mut ids: Vec<_> = lines
        .iter()
        .map(|line| line["id"].as_str().unwrap())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 50, "ids are unique");
    for line in &lines {
        let fields = [
            "time",
            "id",
            "listener",
            "upstream",
            "core",
            "downstream",
            "server",
            "attempts",
            "connect_ms",
            "first_byte_ms",
            "duration_ms",
            "bytes_to_upstream",
            "bytes_to_downstream",
            "close_reason",
            "mover",
            "spliced_bytes",
            "mover_switches",
        ];
        for field in fields {
            assert!(line.get(field).is_some(), "{field} is missing: {line}");
        }
        let connect_ms = line["connect_ms"].as_f64().unwrap();
        let first_byte_ms = line["first_byte_ms"].as_f64().unwrap();
        let duration_ms = line["duration_ms"].as_f64().unwrap();
        assert!(
            connect_ms <= first_byte_ms && first_byte_ms <= duration_ms,
            "{line}"
        );
        assert_eq!(line["mover"], "copy", "a few bytes");
    }
    proxy.finish();
}

#[test]
fn sigusr1_reopens_the_access_log_and_loses_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let (path, rotated) = (
        directory.path().join("access.log"),
        directory.path().join("access.1"),
    );
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()]).set("log.access_file", path.to_str().unwrap());
    let mut proxy = Proxy::start(&config);
    let lines_in = |path: &std::path::Path| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .count()
    };
    for _ in 0..10 {
        one_echo(&proxy);
    }
    wait_until("the first ten lines", || lines_in(&path) == 10);
    std::fs::rename(&path, &rotated).unwrap();
    proxy.signal(Signal::USR1);
    wait_until("a new file", || path.exists());
    for _ in 0..10 {
        one_echo(&proxy);
    }
    wait_until("the second ten lines", || lines_in(&path) == 10);
    assert_eq!(lines_in(&rotated), 10);
    proxy.check_leaks();
    proxy.stop();
    assert!(proxy.access_so_far().is_empty(), "nothing on stdout");
}

/// Enough sessions to overfill a pipe (64 KiB) and the queues behind it, a line being 400 bytes.
const MORE_LINES_THAN_FIT: usize = 6000;

#[track_caller]
fn serve_without_a_log(mut proxy: Proxy, sessions: usize) {
    for _ in 0..sessions {
        one_echo(&proxy);
    }
    assert!(proxy.is_running());
    assert_eq!(proxy.get("/healthz").status, 200);
    wait_until("all sessions are over", || {
        proxy.metrics().sum("corelay_connections_closed_total") == sessions as f64
    });
    proxy.check_leaks();
    proxy.stop();
}

#[test]
fn case_69_a_blocked_access_log_stalls_no_traffic() {
    let upstream = Server::echo().start().unwrap();
    let proxy = Launch::default()
        .stdout(Output::Blocked)
        .start(&Config::to([upstream.address()]));
    serve_without_a_log(proxy, MORE_LINES_THAN_FIT);
}

#[test]
fn case_69_a_closed_access_log_stops_no_traffic() {
    let upstream = Server::echo().start().unwrap();
    let proxy = Launch::default()
        .stdout(Output::Closed)
        .start(&Config::to([upstream.address()]));
    serve_without_a_log(proxy, 200);
}

#[test]
fn case_69_a_full_disk_under_the_access_log_stops_no_traffic() {
    let full = std::path::PathBuf::from("/dev/full");
    if !full.exists() {
        skip("case 69, full disk", "no /dev/full here");
        return;
    }
    let upstream = Server::echo().start().unwrap();
    let proxy = Launch::default()
        .stdout(Output::File(full.clone()))
        .start(&Config::to([upstream.address()]));
    serve_without_a_log(proxy, 200);
    let config = Config::to([upstream.address()]).set("log.access_file", full.to_str().unwrap());
    serve_without_a_log(Proxy::start(&config), 200);
}

#[test]
fn the_demo_kind_of_server_answers_through_the_proxy_by_name() {
    let servers = ["one", "two"].map(|name| Server::http(name).start().unwrap());
    let proxy = Proxy::start(&Config::to(servers.iter().map(|server| server.address())));
    let mut names = BTreeMap::<String, usize>::new();
    for _ in 0..20 {
        let mut client = connect(proxy.address());
        client
            .write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            .unwrap();
        let (answer, _) = read_to_end(&mut client);
        let text = String::from_utf8(answer).unwrap();
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("x-server: "))
            .unwrap()
            .to_owned();
        *names.entry(name).or_default() += 1;
    }
    assert_eq!(names.len(), 2, "{names:?}");
    proxy.finish();
}

#[test]
fn a_keep_alive_admin_connection_serves_several_requests() {
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let mut client = connect(proxy.admin());
    let mut answers = 0;
    for _ in 0..3 {
        if client
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: admin\r\n\r\n")
            .is_err()
        {
            break;
        }
        let mut buffer = [0; 4096];
        match client.read(&mut buffer) {
            Ok(count) if count > 0 => answers += 1,
            _ => break,
        }
    }
    // Closing after each answer is allowed; not answering is not.
    assert!(answers >= 1);
    drop(client);
    proxy.finish();
}
