//! Too few descriptors, and none leaked: cases 60, 61 and 66.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use corelay_bench::servers::{Fault, RefusedPort, Server};
use serde_json::json;

use crate::support::peers::{
    connect, expect_bytes, expect_rejected, read_to_end, reset, try_connect,
};
use crate::support::process::{Injection, strace, tool};
use crate::support::proxy::assert_reason;
use crate::support::{Config, DEADLINE, Launch, Proxy, size_from_env, skip, wait_until};

#[test]
fn case_60_few_descriptors_serve_who_fits_and_recover_by_themselves() {
    /// The limit of the process under test.
    const DESCRIPTORS: u64 = 120;
    /// More clients than fit.
    const CLIENTS: usize = 120;
    let Some(prlimit) = tool("prlimit") else {
        skip("case 60", "no prlimit(1) here");
        return;
    };
    let echo = Server::echo().start().unwrap();
    let mut proxy = Launch::default()
        .under([
            prlimit.to_str().unwrap().to_owned(),
            format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}"),
        ])
        .start(&Config::to([echo.address()]));
    proxy.wait_log_where("a warning of few descriptors", |line| {
        line["level"] == "WARN"
    });

    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|_| connect(proxy.address())).collect();
    for client in &mut clients {
        client.write_all(b"here").unwrap();
    }
    // Those who fit are served while the others wait in the queue.
    let served = |clients: &[TcpStream]| {
        let mut answer = [0; 4];
        clients
            .iter()
            .filter(|c| c.peek(&mut answer).is_ok_and(|count| count > 0))
            .count()
    };
    for client in &clients {
        client
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
    }
    wait_until("some are served", || served(&clients) >= 10);
    let before_ms = proxy.process().cpu_ms();
    let lines_before = proxy.log().len();
    std::thread::sleep(Duration::from_secs(1));
    let used_ms = proxy.process().cpu_ms() - before_ms;
    assert!(
        used_ms <= 200,
        "{used_ms} ms of CPU in a second of waiting for descriptors"
    );
    let lines = proxy.log().len() - lines_before;
    assert!(lines <= 4, "{lines} log lines in a second");
    let fit = served(&clients);
    assert!(
        fit < CLIENTS,
        "all {CLIENTS} fit into {DESCRIPTORS} descriptors"
    );
    assert!(proxy.is_running());
    // Admin has descriptors of its own.
    assert_eq!(proxy.get("/healthz").status, 200);

    // As the served ones leave, the others are served, in any order.
    let mut open = clients;
    let mut done = 0;
    wait_until("everyone is served", || {
        let (ready, waiting): (Vec<_>, Vec<_>) = open
            .drain(..)
            .partition(|client| served(std::slice::from_ref(client)) == 1);
        done += ready.len();
        open = waiting;
        done == CLIENTS
    });
    proxy.finish();
}

#[test]
fn case_61_the_kernels_shortage_is_waited_out_and_no_servers_fault() {
    let Some(strace) = strace("case 61") else {
        return;
    };
    let upstream = Server::echo().start().unwrap();
    // The first fault of the server's would eject it.
    let config = Config::to([upstream.address()])
        .set(
            "upstreams.app.eject",
            json!({ "failures": 1, "period": "1h", "max": "1h" }),
        )
        .set("workers", 1);
    let proxy = Proxy::start(&config);
    let core = proxy
        .process()
        .thread_id("core-0")
        .expect("a core's thread");
    let mut others = connect(proxy.address());
    let mut greet = move || {
        others.write_all(b"x").unwrap();
        expect_bytes(&mut others, b"x");
    };
    greet();
    let exhausted = |proxy: &Proxy| proxy.metrics().sum("corelay_accept_exhausted_total");
    for error in ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"] {
        let before = exhausted(&proxy);
        let inject = format!("error={error}:when=1..3");
        let shortage = Injection::into_thread(&strace, core, "accept4", &inject);
        let mut client = connect(proxy.address());
        client.write_all(b"x").unwrap();
        greet();
        expect_bytes(&mut client, b"x");
        drop(shortage);
        assert_eq!(exhausted(&proxy) - before, 3.0, "{error}");
    }
    let accepted = proxy.access_lines(4).len();
    let shortages = [
        ("socket", "EMFILE"),
        ("socket", "ENFILE"),
        ("socket", "ENOBUFS"),
        ("connect", "ENOMEM"),
        ("connect", "ENOBUFS"),
    ];
    for (index, (call, error)) in shortages.into_iter().enumerate() {
        let shortage =
            Injection::into_thread(&strace, core, call, &format!("error={error}:when=1"));
        expect_rejected(proxy.address());
        greet();
        let mut client = connect(proxy.address());
        client.write_all(b"x").unwrap();
        expect_bytes(&mut client, b"x");
        drop((client, shortage));
        let lines = proxy.access_lines(accepted + 2 * (index + 1));
        let refused = lines[accepted..].iter();
        let refused: Vec<_> = refused.filter(|line| line["server"].is_null()).collect();
        assert_eq!(refused.len(), index + 1);
        assert_reason(refused[index], "local/connect/local_resources");
    }
    assert_eq!(proxy.metrics().sum("corelay_server_up"), 1.0);
    drop(greet);
    proxy.finish();
}

#[test]
fn case_66_short_connections_of_every_kind_leak_nothing() {
    let connections = size_from_env("CORELAY_E2E_SHORT_CONNECTIONS", 10_000);
    let echo = Server::echo().start().unwrap();
    let resetting = Server::faulty(Fault::ResetAfter { bytes: 1 })
        .start()
        .unwrap();
    let closing = Server::faulty(Fault::AcceptThenClose).start().unwrap();
    let refused = RefusedPort::new().unwrap();
    let mut config = Config::to([echo.address()]).set("log.access", "off");
    for (name, address) in [
        ("resetting", resetting.address()),
        ("closing", closing.address()),
        ("refused", refused.address()),
    ] {
        config = config
            .set(&format!("listeners.{name}.bind"), "127.0.0.1:0")
            .set(&format!("listeners.{name}.upstream"), name)
            .set(
                &format!("upstreams.{name}.servers"),
                vec![address.to_string()],
            );
    }
    let proxy = Proxy::start(&config);
    let to = |name: &str| proxy.listener(name).parse().unwrap();
    let (edge, resetting, closing, refused) =
        (to("edge"), to("resetting"), to("closing"), to("refused"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..connections / 4 {
                    one_short_connection(round, [edge, resetting, closing, refused]);
                }
            });
        }
    });
    let mut client = connect(edge);
    client.write_all(b"still here").unwrap();
    expect_bytes(&mut client, b"still here");
    drop(client);
    wait_until("every session is counted as closed", || {
        let metrics = proxy.metrics();
        metrics.sum("corelay_connections_closed_total")
            == metrics.sum("corelay_connections_accepted_total")
    });
    proxy.finish();
}

/// The kinds take turns: served, reset by the client, empty, reset, closed or refused by the server.
fn one_short_connection(round: u64, to: [std::net::SocketAddr; 4]) {
    let [edge, resetting, closing, refused] = to;
    match round % 6 {
        0 => {
            let mut client = connect(edge);
            client.write_all(b"x").unwrap();
            expect_bytes(&mut client, b"x");
        }
        1 => {
            let mut client = connect(edge);
            client.write_all(b"x").unwrap();
            reset(client);
        }
        2 => drop(connect(edge)),
        kind => {
            let to = [resetting, closing, refused][kind as usize - 3];
            // The reset may come before the connect is over, or before the write.
            let Ok(mut client) = try_connect(to) else {
                return;
            };
            let _ = client.write_all(b"x");
            client.set_read_timeout(Some(DEADLINE)).unwrap();
            let (received, _) = read_to_end(&mut client);
            assert!(received.is_empty());
        }
    }
}
