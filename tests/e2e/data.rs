//! Bytes arrive, all of them, in order, and only where they belong: cases 1, 2, 6, 19, 20, and the
//! kinds of sockets on either side. Large amounts are in `integrity`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use corelay_bench::endpoint::Endpoint;
use corelay_bench::pattern::{Pattern, Random};
use corelay_bench::servers::{Fault, Server};
use socket2::SockRef;

use crate::support::peers::{
    End, connect, expect_bytes, expect_fin, finish, read_pattern, read_to_end, write_pattern,
};
use crate::support::proxy::assert_reason;
use crate::support::{Config, DEADLINE, Pair, Proxy, Upstream, wait_until};

/// A usual segment's payload on Ethernet.
const ETHERNET_MSS_BYTES: usize = 1460;
/// A segment's payload on loopback.
const LOOPBACK_MSS_BYTES: usize = 65_483;

#[test]
fn case_01_echo_of_every_size_comes_back_and_is_counted() {
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let sizes = [
        1,
        ETHERNET_MSS_BYTES,
        64 * 1024,
        LOOPBACK_MSS_BYTES,
        3_000_001,
    ];
    for (index, size) in sizes.into_iter().enumerate() {
        let pattern = Pattern::new(index as u64);
        let mut client = connect(proxy.address());
        let mut writer = client.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            write_pattern(&mut writer, pattern, size as u64).unwrap();
            finish(&writer);
        });
        assert_eq!(read_pattern(&mut client, pattern), (size as u64, End::Fin));
        sender.join().unwrap();
        let line = proxy.access_lines(index + 1).remove(index);
        assert_eq!(line["bytes_to_upstream"], size);
        assert_eq!(line["bytes_to_downstream"], size);
        assert_reason(&line, "downstream/relay/finished");
    }
    let total: usize = sizes.iter().sum();
    let metrics = proxy.metrics();
    for name in [
        "corelay_downstream_received_bytes_total",
        "corelay_downstream_sent_bytes_total",
        "corelay_upstream_received_bytes_total",
        "corelay_upstream_sent_bytes_total",
    ] {
        assert_eq!(metrics.sum(name), total as f64, "{name}");
    }
    proxy.finish();
}

#[test]
fn case_02_server_speaks_first_and_a_silent_client_hears_it() {
    let text = b"220 ready\r\n".to_vec();
    let upstream = Server::faulty(Fault::Banner { text: text.clone() })
        .start()
        .unwrap();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let mut client = connect(proxy.address());
    expect_bytes(&mut client, &text);
    drop(client);
    let line = proxy.access_line();
    assert_eq!(line["bytes_to_downstream"], text.len());
    assert_eq!(line["bytes_to_upstream"], 0);
    proxy.finish();
}

#[test]
fn case_06_fin_in_the_segment_of_the_last_byte_comes_after_it() {
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    for size in [1, 100, ETHERNET_MSS_BYTES, 30_000] {
        let mut pair = Pair::open(&proxy, &upstream);
        let pattern = Pattern::new(size as u64);
        // Corked, the bytes wait in the kernel until the FIN takes them along.
        SockRef::from(&pair.client).set_tcp_cork(true).unwrap();
        pair.client.write_all(&pattern.bytes(0, size)).unwrap();
        finish(&pair.client);
        assert_eq!(
            read_pattern(&mut pair.server, pattern),
            (size as u64, End::Fin)
        );
        SockRef::from(&pair.server).set_tcp_cork(true).unwrap();
        pair.server.write_all(&pattern.bytes(0, size)).unwrap();
        drop(pair.server);
        assert_eq!(
            read_pattern(&mut pair.client, pattern),
            (size as u64, End::Fin)
        );
    }
    proxy.finish();
}

#[test]
fn case_19_urgent_byte_does_not_shift_the_stream() {
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let mut pair = Pair::open(&proxy, &upstream);
    for upwards in [true, false] {
        let (from, to) = match upwards {
            true => (&mut pair.client, &mut pair.server),
            false => (&mut pair.server, &mut pair.client),
        };
        from.write_all(b"before").unwrap();
        SockRef::from(&*from).send_out_of_band(b"!").unwrap();
        from.write_all(b"after").unwrap();
        expect_bytes(to, b"before");
        let mut next = [0; 1];
        to.read_exact(&mut next).unwrap();
        // Dropped or inline, as the README says; nothing else may happen to it.
        let rest: &[u8] = match next[0] {
            b'!' => b"after",
            b'a' => b"fter",
            other => panic!("{:?} in place of the urgent byte", char::from(other)),
        };
        expect_bytes(to, rest);
    }
    finish(&pair.client);
    expect_fin(&mut pair.server);
    drop(pair.server);
    expect_fin(&mut pair.client);
    proxy.finish();
}

#[test]
fn case_20_one_byte_segments_and_random_sizes_keep_their_content() {
    const BYTES: usize = 20_000;
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let mut random = Random::new(20);
    for largest in [1, 3, 4000] {
        let pattern = Pattern::new(largest);
        let mut client = connect(proxy.address());
        let mut writer = client.try_clone().unwrap();
        let content = pattern.bytes(0, BYTES);
        let sizes: Vec<usize> = (0..BYTES)
            .map(|_| 1 + random.below(largest) as usize)
            .collect();
        let sender = std::thread::spawn(move || {
            let mut rest = &content[..];
            for size in sizes {
                let (piece, after) = rest.split_at(size.min(rest.len()));
                writer.write_all(piece).unwrap();
                rest = after;
            }
            finish(&writer);
        });
        assert_eq!(read_pattern(&mut client, pattern), (BYTES as u64, End::Fin));
        sender.join().unwrap();
    }
    proxy.finish();
}

#[test]
fn unix_sockets_work_on_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let server_path = directory.path().join("server.sock");
    let listen_path = directory.path().join("edge.sock");
    let upstream = Server::echo()
        .listen(Endpoint::Unix(server_path.clone()))
        .start()
        .unwrap();
    let config = Config::to([upstream.endpoint()]).set(
        "listeners.edge.bind",
        format!("unix:{}", listen_path.display()),
    );
    let proxy = Proxy::start(&config);
    assert_eq!(
        proxy.listener("edge"),
        format!("unix:{}", listen_path.display())
    );
    for round in 0..10 {
        let pattern = Pattern::new(round);
        let mut client = UnixStream::connect(&listen_path).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.write_all(&pattern.bytes(0, 100_000)).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 100_000);
        assert_eq!(pattern.first_difference(0, &received), None);
    }
    for line in proxy.access_lines(10) {
        assert_reason(&line, "downstream/relay/finished");
        assert_eq!(line["server"], format!("unix:{}", server_path.display()));
    }
    proxy.finish();
    assert!(!listen_path.exists(), "the listener's path is left behind");
}

#[test]
fn a_stale_unix_path_is_taken_over_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("edge.sock");
    // Dropping a std listener leaves its path behind: as after a crash.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()])
        .set("listeners.edge.bind", format!("unix:{}", path.display()));
    let proxy = Proxy::start(&config);
    let mut second = crate::support::Launch::default().spawn(&config);
    let status = second.wait_exit(DEADLINE);
    assert_eq!(status.code(), Some(crate::support::proxy::exit::ADDRESS));
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0; 1]).unwrap();
    drop(client);
    proxy.finish();
}

#[test]
fn a_unix_listener_shares_its_connections_between_cores() {
    const CONNECTIONS: usize = 100;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("edge.sock");
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()])
        .set("listeners.edge.bind", format!("unix:{}", path.display()));
    let proxy = Proxy::start(&config);
    let mut clients: Vec<UnixStream> = (0..CONNECTIONS)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    for client in &mut clients {
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0; 1]).unwrap();
    }
    drop(clients);
    let lines = proxy.access_lines(CONNECTIONS);
    let mut cores: Vec<u64> = lines
        .iter()
        .map(|line| line["core"].as_u64().unwrap())
        .collect();
    cores.sort_unstable();
    cores.dedup();
    let workers = proxy
        .process()
        .thread_names()
        .iter()
        .filter(|n| n.starts_with("core-"))
        .count();
    assert_eq!(cores.len(), workers, "cores that served: {cores:?}");
    proxy.finish();
}

#[test]
fn ipv6_works_on_both_sides() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        crate::support::skip("ipv6", "no IPv6 loopback here");
        return;
    }
    let any: std::net::SocketAddr = "[::1]:0".parse().unwrap();
    let upstream = Server::echo().listen(any).start().unwrap();
    let config = Config::to([upstream.address()]).set("listeners.edge.bind", "[::1]:0");
    let proxy = Proxy::start(&config);
    assert!(proxy.address().is_ipv6());
    let mut client = connect(proxy.address());
    client.write_all(b"six").unwrap();
    finish(&client);
    assert_eq!(read_to_end(&mut client), (b"six".to_vec(), End::Fin));
    let line = proxy.access_line();
    assert!(
        line["downstream"].as_str().unwrap().starts_with("[::1]:"),
        "{line}"
    );
    proxy.finish();
}

/// The regression for a core that sleeps with work pending: the session waits for the client's
/// first byte and then connects, and nothing else happens on the core.
#[test]
fn defer_connect_dials_on_the_first_byte_thirty_times_in_a_row() {
    const ROUNDS: usize = 30;
    /// Long enough for the core to go to sleep.
    const PAUSE: Duration = Duration::from_millis(60);
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()])
        .set("workers", 1)
        .set("listeners.edge.defer_connect", "20s");
    let proxy = Proxy::start(&config);
    for round in 0..ROUNDS {
        let mut client = connect(proxy.address());
        assert!(
            upstream.accept_within(PAUSE).is_none(),
            "round {round}: the server was dialled before the first byte"
        );
        client.write_all(b"first").unwrap();
        let mut server = upstream.accept();
        expect_bytes(&mut server, b"first");
        server.write_all(b"second").unwrap();
        drop(server);
        expect_bytes(&mut client, b"second");
        expect_fin(&mut client);
    }
    for line in proxy.access_lines(ROUNDS) {
        assert_eq!(line["bytes_to_upstream"], 5);
    }
    proxy.finish();
}

#[test]
fn one_listener_per_upstream_keeps_them_apart() {
    let one = Server::http("one").start().unwrap();
    let two = Server::http("two").start().unwrap();
    let config = Config::to([one.address()])
        .set("listeners.other.bind", "127.0.0.1:0")
        .set("listeners.other.upstream", "second")
        .set("upstreams.second.servers", vec![two.address().to_string()]);
    let proxy = Proxy::start(&config);
    for (listener, name) in [("edge", "one"), ("other", "two")] {
        let mut client = connect(proxy.listener(listener).parse().unwrap());
        client
            .write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            .unwrap();
        let (answer, end) = read_to_end(&mut client);
        assert_eq!(end, End::Fin);
        assert!(
            String::from_utf8(answer)
                .unwrap()
                .ends_with(&format!("hello from {name}\n"))
        );
    }
    let lines = proxy.access_lines(2);
    for (line, (listener, upstream)) in lines.iter().zip([("edge", "app"), ("other", "second")]) {
        assert_eq!(line["listener"], listener);
        assert_eq!(line["upstream"], upstream);
    }
    proxy.finish();
}

/// A core that looks for more work before it sleeps finds it while there is a conversation, and does not look
/// when there is none.
#[test]
fn a_busy_poll_finds_answers_and_leaves_an_idle_core_asleep() {
    const MESSAGES: u64 = 500;
    const IDLE: Duration = Duration::from_millis(500);
    /// Each scrape wakes a core.
    const LOOKS_MAX: f64 = 20.0;
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()])
        .set("workers", 1)
        .set("relay.busy_poll", "1ms");
    let proxy = Proxy::start(&config);
    let mut client = connect(proxy.address());
    let looks = |result| {
        let labels = [("result", result)];
        proxy
            .metrics()
            .sum_where("corelay_busy_polls_total", &labels)
    };
    // On a busy machine a look is over before the next message is there, now and then for long.
    wait_until("it has found something", || {
        for message in 0..MESSAGES {
            let bytes = Pattern::new(1).bytes(message, 64);
            client.write_all(&bytes).unwrap();
            expect_bytes(&mut client, &bytes);
        }
        looks("found") > 0.0
    });
    let before = looks("found") + looks("vain");
    std::thread::sleep(IDLE);
    let after = looks("found") + looks("vain");
    assert!(after - before < LOOKS_MAX, "{before} looks, then {after}");
    drop(client);
    proxy.finish();
}
