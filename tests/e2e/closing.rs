//! How connections end, and that the ending of one side is what the other side sees: cases 3–5 and
//! 8–15. (7 is with the timeouts, 16 and 17 with dialling.)

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use corelay_bench::pattern::Pattern;
use corelay_bench::servers::Server;
use corelay_bench::signals::Signal;

use crate::support::peers::{
    End, connect, connect_with_receive_buffer, expect_bytes, expect_fin, expect_reset, finish,
    read_pattern, read_slowly, read_to_end, reset, try_connect, wait_acknowledged, wait_reset,
    write_pattern, write_until_stuck,
};
use crate::support::process::Process;
use crate::support::proxy::{assert_reason, reason};
use crate::support::{
    Config, DEADLINE, Pair, Proxy, Upstream, child, size_from_env, wait_for, wait_until,
};

/// What follows a half-close in cases 3 and 4.
const LATE_BYTES: u64 = 50 * 1000 * 1000;
/// Receive buffer of a client that cannot take much.
const SMALL_BUFFER_BYTES: usize = 4096;

fn send_in_background(
    stream: &TcpStream,
    pattern: Pattern,
    bytes: u64,
) -> std::thread::JoinHandle<()> {
    let mut writer = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        write_pattern(&mut writer, pattern, bytes).unwrap();
        finish(&writer);
    })
}

#[test]
fn case_03_downstream_fin_then_a_late_reply_of_50_mb_is_delivered() {
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let mut pair = Pair::open(&proxy, &upstream);
    pair.client.write_all(b"request").unwrap();
    finish(&pair.client);
    assert_eq!(
        read_to_end(&mut pair.server),
        (b"request".to_vec(), End::Fin)
    );
    let pattern = Pattern::new(3);
    let sender = send_in_background(&pair.server, pattern, LATE_BYTES);
    assert_eq!(
        read_pattern(&mut pair.client, pattern),
        (LATE_BYTES, End::Fin)
    );
    sender.join().unwrap();
    let line = proxy.access_line();
    assert_reason(&line, "downstream/relay/finished");
    assert_eq!(line["bytes_to_downstream"], LATE_BYTES);
    proxy.finish();
}

#[test]
fn case_04_upstream_fin_first_then_an_upload_of_50_mb_is_delivered() {
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let mut pair = Pair::open(&proxy, &upstream);
    finish(&pair.server);
    expect_fin(&mut pair.client);
    let pattern = Pattern::new(4);
    let sender = send_in_background(&pair.client, pattern, LATE_BYTES);
    assert_eq!(
        read_pattern(&mut pair.server, pattern),
        (LATE_BYTES, End::Fin)
    );
    sender.join().unwrap();
    let line = proxy.access_line();
    assert_reason(&line, "upstream/relay/finished");
    assert_eq!(line["bytes_to_upstream"], LATE_BYTES);
    proxy.finish();
}

#[test]
fn case_05_both_fin_at_once_close_both_sides() {
    const ROUNDS: usize = 200;
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    for _ in 0..ROUNDS {
        let mut pair = Pair::open(&proxy, &upstream);
        pair.greet();
        finish(&pair.client);
        finish(&pair.server);
        expect_fin(&mut pair.client);
        expect_fin(&mut pair.server);
    }
    for line in proxy.access_lines(ROUNDS) {
        assert_eq!(line["close_reason"]["cause"], "finished", "{line}");
    }
    proxy.finish();
}

#[test]
fn case_08_upstream_rst_mid_stream_delivers_every_byte_then_rst() {
    const BYTES: u64 = 100_000;
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    for round in 1..=20 {
        let mut pair = Pair::open(&proxy, &upstream);
        let pattern = Pattern::new(round);
        write_pattern(&mut pair.server, pattern, BYTES).unwrap();
        // What is not acknowledged dies with the server's socket and never was on the wire.
        wait_acknowledged(&pair.server);
        reset(pair.server);
        assert_eq!(read_pattern(&mut pair.client, pattern), (BYTES, End::Reset));
    }
    for line in proxy.access_lines(20) {
        assert_reason(&line, "upstream/relay/reset");
        assert_eq!(line["bytes_to_downstream"], BYTES);
    }
    proxy.finish();
}

#[test]
fn case_08_upstream_rst_with_4_mb_queued_for_a_slow_client_delivers_every_byte_then_rst() {
    const QUEUED_BYTES: u64 = 4 * 1024 * 1024;
    let upstream = Upstream::new();
    // Enough buffers for all of it, so that what the server sent can all be acknowledged.
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let mut pair = Pair::open_slow(&proxy, &upstream, SMALL_BUFFER_BYTES);
    let pattern = Pattern::new(8);
    let quiet = Duration::from_secs(1);
    let written = write_until_stuck(&mut pair.server, pattern, QUEUED_BYTES, quiet);
    // The client reads while the server waits for acknowledgement: some of the queue is beyond
    // what the kernel and the proxy hold while nothing moves.
    let mut client = pair.client;
    let reader = std::thread::spawn(move || {
        read_slowly(&mut client, pattern, SMALL_BUFFER_BYTES, Duration::ZERO)
    });
    wait_acknowledged(&pair.server);
    reset(pair.server);
    assert_eq!(reader.join().unwrap(), (written, End::Reset));
    let line = proxy.access_line();
    assert_reason(&line, "upstream/relay/reset");
    assert_eq!(line["bytes_to_downstream"], written);
    proxy.finish();
}

#[test]
fn case_09_downstream_rst_mid_stream_resets_the_server_and_frees_its_buffers() {
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    for round in 0..20 {
        let mut pair = Pair::open(&proxy, &upstream);
        let pattern = Pattern::new(round);
        write_pattern(&mut pair.client, pattern, 50_000).unwrap();
        wait_acknowledged(&pair.client);
        reset(pair.client);
        assert_eq!(
            read_pattern(&mut pair.server, pattern),
            (50_000, End::Reset)
        );
    }
    for line in proxy.access_lines(20) {
        assert_reason(&line, "downstream/relay/reset");
        assert_eq!(line["bytes_to_upstream"], 50_000);
    }
    proxy.finish();
}

/// The documented rule: a reset passes on after what *its* side had sent is delivered; what was
/// queued *for* that side is dropped, for nobody can receive it any more.
#[test]
fn case_10_rst_while_the_other_direction_has_queued_data_drops_the_queue_and_resets() {
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let quiet = Duration::from_millis(300);
    let limit = 64 * 1024 * 1024;

    let mut pair = Pair::open_slow(&proxy, &upstream, SMALL_BUFFER_BYTES);
    pair.client.write_all(b"last words").unwrap();
    write_until_stuck(&mut pair.server, Pattern::new(1), limit, quiet);
    wait_acknowledged(&pair.client);
    reset(pair.client);
    assert_eq!(
        read_to_end(&mut pair.server),
        (b"last words".to_vec(), End::Reset)
    );
    assert_reason(&proxy.access_line(), "downstream/relay/reset");

    let mut pair = Pair::open(&proxy, &upstream);
    pair.server.write_all(b"last words").unwrap();
    write_until_stuck(&mut pair.client, Pattern::new(2), limit, quiet);
    wait_acknowledged(&pair.server);
    reset(pair.server);
    assert_eq!(
        read_to_end(&mut pair.client),
        (b"last words".to_vec(), End::Reset)
    );
    assert_reason(&proxy.access_lines(2)[1], "upstream/relay/reset");
    proxy.finish();
}

/// Not a test of its own: the server that case 11 kills.
#[test]
fn helper_server_that_never_reads() {
    if !child::plays("never-reads") {
        return;
    }
    let upstream = Upstream::new();
    // On stderr, for the harness prints lines of its own to stdout.
    eprintln!("listening {}", upstream.address());
    let mut stream = upstream.accept();
    write_pattern(&mut stream, Pattern::new(11), 100_000).unwrap();
    wait_acknowledged(&stream);
    eprintln!("sent");
    std::thread::sleep(DEADLINE * 3);
}

#[test]
fn case_11_killed_server_with_unread_input_delivers_every_byte_then_rst() {
    use crate::support::lines::Lines;
    let mut server = child::start(
        "closing::helper_server_that_never_reads",
        "never-reads",
        Stdio::piped(),
    );
    let lines = Lines::collect(server.stderr.take().unwrap());
    let address = lines.wait(DEADLINE, |lines| {
        lines
            .iter()
            .find_map(|line| line.strip_prefix("listening ").map(str::to_owned))
    });
    let proxy = Proxy::start(&Config::to([address.expect("the helper never listened")]));
    let mut client = connect(proxy.address());
    client.write_all(&[7; 1000]).unwrap();
    let sent = lines.wait(DEADLINE, |lines| {
        lines.iter().any(|l| l == "sent").then_some(())
    });
    sent.expect("the helper never sent");
    wait_acknowledged(&client);
    wait_until("the proxy passed the 1000 bytes on", || {
        proxy.metrics().sum("corelay_upstream_sent_bytes_total") == 1000.0
    });
    Process(server.id()).signal(Signal::KILL);
    server.wait().unwrap();
    assert_eq!(
        read_pattern(&mut client, Pattern::new(11)),
        (100_000, End::Reset)
    );
    assert_reason(&proxy.access_line(), "upstream/relay/reset");
    proxy.finish();
}

#[test]
fn case_12_unread_input_on_our_side_never_truncates_the_reply() {
    const REPLY_BYTES: u64 = 4_196_352;
    let upstream = Upstream::with_receive_buffer(SMALL_BUFFER_BYTES);
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    for orderly in [true, false] {
        let mut client = connect_with_receive_buffer(proxy.address(), SMALL_BUFFER_BYTES);
        let mut server = upstream.accept();
        // More than the server's window: some of it stays unread, at the proxy or before it.
        client.write_all(&vec![7; 1000]).unwrap();
        let pattern = Pattern::new(12);
        let sender = send_in_background(&server, pattern, REPLY_BYTES);
        if !orderly {
            write_until_stuck(
                &mut client,
                Pattern::new(1),
                64 * 1024 * 1024,
                Duration::from_millis(300),
            );
        }
        assert_eq!(read_pattern(&mut client, pattern), (REPLY_BYTES, End::Fin));
        sender.join().unwrap();
        if orderly {
            finish(&client);
            expect_bytes(&mut server, &[7; 1000]);
            expect_fin(&mut server);
        }
    }
    let lines = proxy.access_lines(2);
    assert_reason(&lines[0], "upstream/relay/finished");
    for line in &lines {
        assert_eq!(line["bytes_to_downstream"], REPLY_BYTES);
    }
    proxy.finish();
}

#[test]
fn case_13_writing_to_a_peer_that_reset_kills_nothing() {
    let upstream = Upstream::new();
    let mut proxy = Proxy::start(&Config::to([upstream.address()]));
    for _ in 0..20 {
        let mut pair = Pair::open(&proxy, &upstream);
        pair.greet();
        let mut writer = pair.client.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            let chunk = [1; 4096];
            while writer.write_all(&chunk).is_ok() {}
        });
        pair.server.read_exact(&mut [0; 10_000]).unwrap();
        reset(pair.server);
        writing.join().unwrap();
    }
    for line in proxy.access_lines(20) {
        assert_reason(&line, "upstream/relay/reset");
    }
    assert!(proxy.is_running());
    proxy.finish();
}

#[test]
fn case_14_empty_connection_leaks_nothing_is_logged_once_and_counted_apart() {
    const ROUNDS: usize = 50;
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    // At once: before or while the server is dialled.
    for _ in 0..ROUNDS {
        drop(connect(proxy.address()));
    }
    proxy.access_lines(ROUNDS);
    // After the server has accepted.
    let dialled = upstream.stats().accepted;
    let client = connect(proxy.address());
    wait_until("the server is dialled", || {
        upstream.stats().accepted == dialled + 1
    });
    drop(client);
    let lines = proxy.access_lines(ROUNDS + 1);
    assert_reason(&lines[ROUNDS], "downstream/relay/empty");
    for line in &lines {
        assert!(
            matches!(
                reason(line).as_str(),
                "downstream/relay/empty"
                    | "downstream/connect/left"
                    | "downstream/connect/empty"
                    | "downstream/accept/empty"
            ),
            "{line}"
        );
        assert_eq!(line["bytes_to_upstream"], 0);
    }
    wait_until("the server has nothing left", || upstream.stats().open == 0);
    assert_eq!(
        proxy.access_so_far().len(),
        ROUNDS + 1,
        "one line per connection"
    );
    let metrics = proxy.metrics();
    assert_eq!(
        metrics.sum("corelay_connections_closed_total"),
        (ROUNDS + 1) as f64
    );
    assert!(metrics.sum_where("corelay_connections_closed_total", &[("cause", "empty")]) >= 1.0);
    proxy.finish();
}

#[test]
fn case_15_port_scan_is_tolerated() {
    let scans = size_from_env("CORELAY_E2E_SHORT_CONNECTIONS", 10_000);
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&Config::to([upstream.address()]).set("log.access", "off"));
    let to = proxy.address();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..scans / 4 {
                    reset(try_connect(to).expect("connecting"));
                }
            });
        }
    });
    let mut client = connect(to);
    client.write_all(b"still here").unwrap();
    expect_bytes(&mut client, b"still here");
    drop(client);
    // The last of them may still be in the accept queue of the other core.
    wait_until("all were accepted or aborted, and none is left", || {
        let metrics = proxy.metrics();
        let seen = metrics.sum("corelay_connections_accepted_total")
            + metrics.sum_where("corelay_accept_aborted_total", &[]);
        let expected = (scans / 4 * 4 + 1) as f64;
        assert!(seen <= expected, "{seen} of {expected}");
        seen == expected && metrics.sum("corelay_connections_active") == 0.0
    });
    proxy.finish();
}

#[test]
fn a_reset_of_a_half_closed_connection_passes_on() {
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    // The client has finished, then the server resets.
    let mut pair = Pair::open(&proxy, &upstream);
    finish(&pair.client);
    expect_fin(&mut pair.server);
    reset(pair.server);
    expect_reset(&mut pair.client);
    assert_reason(&proxy.access_line(), "upstream/relay/reset");
    // The server has finished, then the client resets.
    let mut pair = Pair::open(&proxy, &upstream);
    finish(&pair.server);
    expect_fin(&mut pair.client);
    reset(pair.client);
    expect_reset(&mut pair.server);
    assert_reason(&proxy.access_lines(2)[1], "downstream/relay/reset");
    // The client has finished, then resets what it still could have received.
    let mut pair = Pair::open(&proxy, &upstream);
    finish(&pair.client);
    expect_fin(&mut pair.server);
    reset(pair.client);
    // The kernel does not tell the proxy before it sends something.
    let _ = pair.server.write_all(b"to nobody");
    wait_reset(&pair.server);
    let line = wait_for("the third line", || {
        proxy.access_so_far().into_iter().nth(2)
    });
    assert_reason(&line, "downstream/relay/reset");
    proxy.finish();
}

/// The proxy holds a reset back until what came before it is delivered. If the receiver resets too,
/// there is nothing left to deliver to: the session ends then, not at `half_close`.
#[test]
fn a_reset_that_waits_for_delivery_ends_when_the_receiver_resets_too() {
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()]).set("timeouts.half_close", "10m");
    let proxy = Proxy::start(&config);
    let quiet = Duration::from_millis(300);
    for (round, upwards) in [true, false].into_iter().enumerate() {
        let mut pair = Pair::open_slow(&proxy, &upstream, SMALL_BUFFER_BYTES);
        let (mut writer, reader) = match upwards {
            true => (pair.client, pair.server),
            false => {
                pair.greet();
                (pair.server, pair.client)
            }
        };
        // Enough to fill the reader's window, not enough to fill the proxy.
        let bytes = 4 * 1024 * 1024;
        write_until_stuck(&mut writer, Pattern::new(1), bytes, quiet);
        reset(writer);
        std::thread::sleep(quiet);
        reset(reader);
        let line = proxy.access_lines(round + 1).remove(round);
        assert_eq!(line["close_reason"]["cause"], "reset", "{line}");
    }
    proxy.finish();
}
