//! A reader that is slow or absent stops the writer, costs bounded memory and delays nobody else:
//! cases 21–26 and 28.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use corelay_bench::load::idle;
use corelay_bench::pattern::Pattern;
use corelay_bench::servers::{Fault, Server};

use crate::support::peers::{
    End, connect, connect_with_receive_buffer, expect_bytes, finish, read_pattern,
    read_pattern_from, reset, write_until_stuck,
};
use crate::support::{Config, Pair, Proxy, Upstream, size_from_env, wait_until};

const MIB: u64 = 1024 * 1024;
/// A write that does not move for this long is stuck.
const QUIET: Duration = Duration::from_secs(1);
/// Receive buffer of a reader that is to be slow.
const SMALL_BUFFER_BYTES: usize = 4096;

/// CPU time that a process with nothing to do may use in a second, in milliseconds. A spin uses a
/// thousand.
const NOT_SPINNING_MS: u64 = 200;

/// User-space memory that one stuck connection may add, in bytes: its share of the slab, that is a
/// few buffers of 16 KiB in each direction, and the pages around them.
const STUCK_CONNECTION_BYTES: u64 = 4 * MIB;

#[track_caller]
fn assert_not_spinning(proxy: &Proxy) {
    let before = proxy.process().cpu_ms();
    std::thread::sleep(Duration::from_secs(1));
    let used = proxy.process().cpu_ms() - before;
    assert!(
        used <= NOT_SPINNING_MS,
        "{used} ms of CPU in a second in which nothing moved"
    );
}

#[test]
fn case_21_client_that_never_reads_stops_the_server_within_bounds() {
    let limit = size_from_env("CORELAY_E2E_STALLED_MIB", 10 * 1024) * MIB;
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let mut pair = Pair::open_slow(&proxy, &upstream, SMALL_BUFFER_BYTES);
    pair.greet();
    let before = proxy.process().anonymous_bytes();
    let pattern = Pattern::new(21);
    let sent = write_until_stuck(&mut pair.server, pattern, limit, QUIET);
    assert!(sent < limit, "all of it was taken");
    let grown = proxy.process().anonymous_bytes().saturating_sub(before);
    assert!(
        grown <= STUCK_CONNECTION_BYTES,
        "{grown} bytes for one stuck connection"
    );
    assert_not_spinning(&proxy);
    // Nothing is lost: what was taken arrives once the client reads.
    drop(pair.server);
    assert_eq!(read_pattern(&mut pair.client, pattern), (sent, End::Fin));
    drop(pair.client);
    proxy.finish();
}

#[test]
fn case_22_server_that_never_reads_stops_the_client_within_bounds() {
    let limit = size_from_env("CORELAY_E2E_STALLED_MIB", 10 * 1024) * MIB;
    let upstream = Upstream::with_receive_buffer(SMALL_BUFFER_BYTES);
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let mut pair = Pair::open(&proxy, &upstream);
    pair.greet();
    let before = proxy.process().anonymous_bytes();
    let pattern = Pattern::new(22);
    let sent = write_until_stuck(&mut pair.client, pattern, limit, QUIET);
    assert!(sent < limit, "all of it was taken");
    let grown = proxy.process().anonymous_bytes().saturating_sub(before);
    assert!(
        grown <= STUCK_CONNECTION_BYTES,
        "{grown} bytes for one stuck connection"
    );
    assert_not_spinning(&proxy);
    drop(pair.client);
    assert_eq!(read_pattern(&mut pair.server, pattern), (sent, End::Fin));
    drop(pair.server);
    proxy.finish();
}

#[test]
fn case_23_slow_readers_are_bounded_and_starve_nobody() {
    /// Per core, of 4 KiB: fewer than there are slow readers.
    const BUFFERS: u64 = 128;
    const ROUND_TRIPS: usize = 500;
    let readers = size_from_env("CORELAY_E2E_SLOW_READERS", 400) as usize;
    let source = Server::source(u64::MAX, 23)
        .send_buffer(16 * 1024)
        .start()
        .unwrap();
    let echo = Server::echo().start().unwrap();
    let config = Config::to([source.address()])
        .set("buffers.size", "4KiB")
        .set("buffers.per_core", BUFFERS)
        .set("listeners.other.bind", "127.0.0.1:0")
        .set("listeners.other.upstream", "echo")
        .set("upstreams.echo.servers", vec![echo.address().to_string()]);
    let proxy = Proxy::start(&config);
    let mut slow: Vec<TcpStream> = (0..readers)
        .map(|_| connect_with_receive_buffer(proxy.address(), SMALL_BUFFER_BYTES))
        .collect();
    let pattern = Pattern::new(23);
    let mut offsets = vec![0; readers];
    // Every one of them is stuck, and has been served from the fast group until then.
    wait_until("no more is taken from the source", || {
        let before = source.stats().bytes_out;
        std::thread::sleep(QUIET);
        source.stats().bytes_out == before
    });
    let mut fast = connect(proxy.listener("other").parse().unwrap());
    for round in 0..ROUND_TRIPS {
        // A kilobyte for one of the slow ones, then a round trip of the fast one.
        let index = round % readers;
        let mut kilobyte = [0; 1024];
        slow[index].read_exact(&mut kilobyte).unwrap();
        assert_eq!(pattern.first_difference(offsets[index], &kilobyte), None);
        offsets[index] += kilobyte.len() as u64;
        fast.write_all(b"round trip").unwrap();
        expect_bytes(&mut fast, b"round trip");
    }
    assert_eq!(
        source.stats().open,
        readers as u64,
        "no slow reader was dropped"
    );
    // The slab is all there is; beside it, a few KiB for each session.
    let metrics = proxy.metrics();
    let slab = metrics.sum("corelay_buffers") * 4096.0;
    let held = metrics.sum("corelay_buffers_held");
    assert!(
        held <= metrics.sum("corelay_buffers"),
        "{held} buffers held"
    );
    let grown = proxy.process().anonymous_bytes() as f64;
    assert!(grown < slab + 64.0 * MIB as f64, "{grown} bytes resident");
    drop(slow);
    drop(fast);
    proxy.finish();
}

#[test]
fn case_24_after_a_pause_of_seconds_every_byte_arrives_on_every_connection() {
    const BYTES: u64 = 2 * MIB;
    const PAUSE: Duration = Duration::from_secs(3);
    let connections = size_from_env("CORELAY_E2E_PAUSED_CONNECTIONS", 200);
    let source = Server::source(BYTES, 24)
        .send_buffer(16 * 1024)
        .start()
        .unwrap();
    let proxy = Proxy::start(&Config::to([source.address()]));
    let to = proxy.address();
    let mut clients: Vec<TcpStream> = (0..connections)
        .map(|_| connect_with_receive_buffer(to, SMALL_BUFFER_BYTES))
        .collect();
    let pattern = Pattern::new(24);
    for client in &mut clients {
        let mut start = [0; 1000];
        client.read_exact(&mut start).unwrap();
        assert_eq!(pattern.first_difference(0, &start), None);
    }
    std::thread::sleep(PAUSE);
    // All at once: each on a thread of its own, so that each wake-up is needed.
    std::thread::scope(|scope| {
        for mut client in clients {
            scope.spawn(move || {
                let (count, end) = read_pattern_from(&mut client, pattern, 1000);
                assert_eq!((count + 1000, end), (BYTES, End::Fin));
            });
        }
    });
    proxy.finish();
}

#[test]
fn case_25_exhausted_slab_makes_reads_wait_and_loses_nothing() {
    /// The smallest slab that the configuration allows.
    const BUFFERS: u64 = 64;
    const CONNECTIONS: usize = 200;
    const BYTES: u64 = 4 * MIB;
    let source = Server::source(BYTES, 25).start().unwrap();
    let config = Config::to([source.address()])
        .set("workers", 1)
        .set("buffers.size", "16KiB")
        .set("buffers.per_core", BUFFERS);
    let proxy = Proxy::start(&config);
    let clients: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| connect_with_receive_buffer(proxy.address(), SMALL_BUFFER_BYTES))
        .collect();
    wait_until("no more is taken from the source", || {
        let before = source.stats().bytes_out;
        std::thread::sleep(QUIET);
        source.stats().bytes_out == before
    });
    assert_not_spinning(&proxy);
    let pattern = Pattern::new(25);
    std::thread::scope(|scope| {
        for mut client in clients {
            scope.spawn(move || {
                assert_eq!(read_pattern(&mut client, pattern), (BYTES, End::Fin));
            });
        }
    });
    let metrics = proxy.metrics();
    assert!(
        metrics.sum("corelay_buffers_exhausted_total") > 0.0,
        "there were always buffers"
    );
    assert_eq!(metrics.sum("corelay_buffers_waiting"), 0.0);
    assert_eq!(metrics.sum("corelay_buffers_set_aside"), 0.0);
    assert_eq!(metrics.sum("corelay_ring_cq_overflow_total"), 0.0);
    proxy.finish();
}

#[test]
fn case_26_and_28_idle_connections_hold_no_buffer_and_start_no_thread() {
    let connections = size_from_env("CORELAY_E2E_IDLE_CONNECTIONS", 2000) as usize;
    let echo = Server::echo().start().unwrap();
    let proxy = Proxy::start(&Config::to([echo.address()]));
    let threads = proxy.process().thread_names();
    let held = idle::hold(&proxy.address().into(), connections).unwrap();
    assert_eq!(echo.stats().open, connections as u64);
    wait_until("no buffer is held", || {
        proxy.metrics().sum("corelay_buffers_held") == 0.0
    });
    assert_eq!(
        proxy.metrics().sum("corelay_connections_active"),
        connections as f64
    );
    wait_until("the thread count is what it was", || {
        proxy.process().thread_names() == threads
    });
    assert_not_spinning(&proxy);
    drop(held);
    proxy.finish();
}

#[test]
fn a_stalled_server_stalls_only_its_own_connection() {
    let stall = Server::faulty(Fault::Stall { after_bytes: 4 })
        .start()
        .unwrap();
    let proxy = Proxy::start(&Config::to([stall.address()]).set("workers", 1));
    let mut stuck = connect(proxy.address());
    stuck.write_all(b"1234").unwrap();
    expect_bytes(&mut stuck, b"1234");
    write_until_stuck(
        &mut stuck,
        Pattern::new(1),
        256 * MIB,
        Duration::from_millis(300),
    );
    for _ in 0..100 {
        let mut client = connect(proxy.address());
        client.write_all(b"abcd").unwrap();
        expect_bytes(&mut client, b"abcd");
    }
    drop(stuck);
    drop(stall);
    proxy.finish();
}

/// What stuck readers hold is set aside on the heap: more of them than there are buffers leave enough for whoever
/// keeps up. They once kept all of them.
#[test]
fn stuck_readers_beyond_the_slab_keep_no_buffer_from_the_others() {
    /// More than the 64 buffers of the slab.
    const HOGS: usize = 80;
    const BYSTANDERS: usize = 60;
    let source = Server::source(u64::MAX, 25).start().unwrap();
    let echo = Server::echo().start().unwrap();
    let config = Config::to([source.address()])
        .set("workers", 1)
        // Only the copy mover holds buffers.
        .set("relay.mover", "copy")
        .set("buffers.size", "1KiB")
        .set("buffers.per_core", 64)
        .set("listeners.other.bind", "127.0.0.1:0")
        .set("listeners.other.upstream", "echo")
        .set("upstreams.echo.servers", vec![echo.address().to_string()]);
    let proxy = Proxy::start(&config);
    let other = proxy.listener("other").parse().unwrap();
    let hogs: Vec<TcpStream> = (0..HOGS)
        .map(|_| connect_with_receive_buffer(proxy.address(), SMALL_BUFFER_BYTES))
        .collect();
    wait_until("all of them are stuck", || {
        proxy.metrics().sum("corelay_buffers_set_aside") == HOGS as f64
    });
    let mut bystanders: Vec<TcpStream> = (0..BYSTANDERS).map(|_| connect(other)).collect();
    for bystander in &mut bystanders {
        bystander.write_all(b"anyone there?").unwrap();
    }
    for bystander in &mut bystanders {
        expect_bytes(bystander, b"anyone there?");
    }
    for hog in hogs {
        reset(hog);
    }
    wait_until("nothing is set aside", || {
        proxy.metrics().sum("corelay_buffers_set_aside") == 0.0
    });
    drop(bystanders);
    proxy.finish();
}

/// io_uring reports the FIN of a polled socket unasked: taken for room, it made every stalled download whose client
/// had sent FIN a busy loop.
#[test]
fn a_stalled_download_of_a_client_that_sent_fin_does_not_spin() {
    const SESSIONS: usize = 20;
    const SECONDS: u64 = 2;
    /// A look per second and session, and what the scrapes cost; a spin makes hundreds a second.
    const ENTERS_MAX: f64 = 200.0;
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]));
    let mut pairs: Vec<Pair> = (0..SESSIONS)
        .map(|_| Pair::open_slow(&proxy, &upstream, SMALL_BUFFER_BYTES))
        .collect();
    let pattern = Pattern::new(22);
    let mut sent = Vec::new();
    for pair in &mut pairs {
        finish(&pair.client);
        sent.push(write_until_stuck(
            &mut pair.server,
            pattern,
            1024 * MIB,
            Duration::from_millis(200),
        ));
    }
    let before = proxy.metrics().sum("corelay_ring_enters_total");
    std::thread::sleep(Duration::from_secs(SECONDS));
    let enters = proxy.metrics().sum("corelay_ring_enters_total") - before;
    assert!(
        enters <= ENTERS_MAX,
        "{enters} enters in {SECONDS} s in which nothing moved"
    );
    // And none of it is lost.
    for (pair, sent) in pairs.into_iter().zip(sent) {
        let Pair { mut client, server } = pair;
        drop(server);
        assert_eq!(read_pattern(&mut client, pattern), (sent, End::Fin));
    }
    proxy.finish();
}
