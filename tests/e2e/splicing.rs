//! The splice mover: cases 29–31, the low-water mark's tails, and every change between the movers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use corelay_bench::pattern::{Pattern, Random};
use socket2::SockRef;

use crate::support::peers::{
    End, expect_bytes, expect_fin, expect_reset, finish, read_each, read_pattern,
    read_pattern_from, reset, write_pattern, write_until_stuck,
};
use crate::support::{Config, Pair, Proxy, Upstream, wait_until};

const MIB: u64 = 1024 * 1024;
const SMALL_BUFFER_BYTES: usize = 4096;
/// A write that does not move for this long is stuck.
const QUIET: Duration = Duration::from_millis(500);
/// More than all buffers between the two ends hold.
const MORE_THAN_FITS_BYTES: u64 = 512 * MIB;

fn splicing(upstream: &Upstream) -> Proxy {
    Proxy::start(&Config::to([upstream.address()]).set("relay.mover", "splice"))
}

/// Reads exactly this many bytes of the pattern.
#[track_caller]
fn expect_pattern(stream: &mut TcpStream, pattern: Pattern, from: u64, bytes: u64) {
    let mut buffer = vec![0; 64 * 1024];
    let mut at = from;
    while at < from + bytes {
        let most = (from + bytes - at).min(buffer.len() as u64) as usize;
        let count = stream
            .read(&mut buffer[..most])
            .expect("the rest of the message");
        assert!(count > 0, "FIN after {} of {bytes} bytes", at - from);
        assert_eq!(pattern.first_difference(at, &buffer[..count]), None);
        at += count as u64;
    }
}

fn write_from(stream: &mut TcpStream, pattern: Pattern, from: u64, bytes: u64) {
    let content = pattern.bytes(from, bytes as usize);
    stream.write_all(&content).expect("the peer reads");
}

#[test]
fn case_29_a_pipe_full_of_tiny_segments_delivers_its_tail() {
    let upstream = Upstream::new();
    let proxy = splicing(&upstream);
    let mut pair = Pair::open_slow(&proxy, &upstream, SMALL_BUFFER_BYTES);
    SockRef::from(&pair.server).set_tcp_nodelay(true).unwrap();
    let pattern = Pattern::new(29);
    // Each of these is a segment, and a segment takes a slot of the pipe, which has 256.
    let (pieces, piece) = (20_000, 100);
    let mut writer = pair.server.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for index in 0..pieces {
            write_from(&mut writer, pattern, index * piece, piece);
        }
    });
    expect_pattern(&mut pair.client, pattern, 0, pieces * piece);
    writing.join().unwrap();
    finish(&pair.server);
    expect_fin(&mut pair.client);
    drop(pair);
    proxy.finish();
}

#[test]
fn case_30_no_byte_of_a_killed_connection_reaches_another() {
    const CONNECTIONS: u64 = 24;
    let upstream = Upstream::new();
    let proxy = splicing(&upstream);
    for round in 0..3 {
        let mut stuck = Vec::new();
        for index in 0..CONNECTIONS {
            let mut pair = Pair::open_slow(&proxy, &upstream, SMALL_BUFFER_BYTES);
            let pattern = Pattern::new(30_000 + round * CONNECTIONS + index);
            let written = write_until_stuck(
                &mut pair.server,
                pattern,
                MORE_THAN_FITS_BYTES,
                Duration::from_millis(50),
            );
            stuck.push((pair, pattern, written));
        }
        assert!(proxy.metrics().sum("corelay_pipes_held") >= CONNECTIONS as f64 / 2.0);
        // Half of them die with bytes in their pipes, from either end; the others get theirs.
        for (index, (mut pair, pattern, written)) in stuck.into_iter().enumerate() {
            match index % 4 {
                0 => reset(pair.client),
                1 => {
                    reset(pair.server);
                    let (received, end) = read_pattern(&mut pair.client, pattern);
                    assert!(received <= written);
                    assert_eq!(end, End::Reset);
                }
                _ => {
                    drop(pair.server);
                    assert_eq!(read_pattern(&mut pair.client, pattern), (written, End::Fin));
                }
            }
        }
    }
    proxy.finish();
}

#[test]
fn case_31_fin_behind_bytes_in_the_pipe_truncates_nothing() {
    let upstream = Upstream::new();
    let proxy = splicing(&upstream);
    let mut pair = Pair::open_slow(&proxy, &upstream, SMALL_BUFFER_BYTES);
    let pattern = Pattern::new(31);
    let written = write_until_stuck(&mut pair.server, pattern, MORE_THAN_FITS_BYTES, QUIET);
    assert_eq!(proxy.metrics().sum("corelay_pipes_held"), 1.0);
    finish(&pair.server);
    assert_eq!(read_pattern(&mut pair.client, pattern), (written, End::Fin));
    // The other direction goes on.
    write_pattern(&mut pair.client, pattern, MIB).unwrap();
    finish(&pair.client);
    assert_eq!(read_pattern(&mut pair.server, pattern), (MIB, End::Fin));
    drop(pair);
    proxy.finish();
}

#[test]
fn a_reset_behind_bytes_in_the_pipe_comes_after_them() {
    let upstream = Upstream::new();
    let proxy = splicing(&upstream);
    let mut pair = Pair::open(&proxy, &upstream);
    let pattern = Pattern::new(8);
    write_pattern(&mut pair.server, pattern, MIB).unwrap();
    expect_pattern(&mut pair.client, pattern, 0, MIB);
    reset(pair.server);
    expect_reset(&mut pair.client);
    proxy.finish();
}

/// Two hundred messages whose ends are below the mark, with no FIN behind any of them.
#[test]
fn the_end_of_every_large_message_arrives_without_fin() {
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]).set("relay.mover", "auto"));
    let mut pair = Pair::open(&proxy, &upstream);
    let mut random = Random::new(200);
    let pattern = Pattern::new(200);
    let mut at = 0;
    let mut writer = pair.server.try_clone().unwrap();
    for _ in 0..200 {
        let bytes = 2 * MIB + random.below(MIB);
        let writing = std::thread::spawn(move || {
            write_from(&mut writer, pattern, at, bytes);
            writer
        });
        expect_pattern(&mut pair.client, pattern, at, bytes);
        writer = writing.join().unwrap();
        at += bytes;
    }
    let guards = proxy.metrics().sum("corelay_low_water_guards_total");
    assert!(guards > 0.0, "no end ever waited below a raised mark");
    finish(&pair.server);
    expect_fin(&mut pair.client);
    drop((pair, writer));
    proxy.finish();
}

/// Bulk and small messages in turn, both ways at once: every promotion and every demotion.
#[test]
fn changes_of_the_mover_keep_every_byte_in_order() {
    const ROUNDS: u64 = 12;
    const SMALL: u64 = 60;
    let upstream = Upstream::new();
    let proxy = Proxy::start(&Config::to([upstream.address()]).set("relay.mover", "auto"));
    let mut pair = Pair::open(&proxy, &upstream);
    let patterns = [Pattern::new(1), Pattern::new(2)];
    let mut random = Random::new(18);
    let mut at = 0;
    for _ in 0..ROUNDS {
        let bulk = MIB + random.below(2 * MIB);
        std::thread::scope(|scope| {
            let mut up = pair.client.try_clone().unwrap();
            let mut down = pair.server.try_clone().unwrap();
            scope.spawn(move || write_from(&mut up, patterns[0], at, bulk));
            scope.spawn(move || write_from(&mut down, patterns[1], at, bulk));
            let server = &mut pair.server;
            scope.spawn(move || expect_pattern(server, patterns[0], at, bulk));
            expect_pattern(&mut pair.client, patterns[1], at, bulk);
        });
        at += bulk;
        for _ in 0..SMALL {
            let bytes = 1 + random.below(500);
            write_from(&mut pair.client, patterns[0], at, bytes);
            expect_pattern(&mut pair.server, patterns[0], at, bytes);
            write_from(&mut pair.server, patterns[1], at, bytes);
            expect_pattern(&mut pair.client, patterns[1], at, bytes);
            at += bytes;
        }
    }
    finish(&pair.client);
    assert_eq!(
        read_pattern_from(&mut pair.server, patterns[0], at),
        (0, End::Fin)
    );
    drop(pair.server);
    assert_eq!(
        read_pattern_from(&mut pair.client, patterns[1], at),
        (0, End::Fin)
    );
    drop(pair.client);
    let line = proxy.access_line();
    let switches = line["mover_switches"].as_u64().unwrap();
    assert!(switches >= ROUNDS, "{line}");
    let metrics = proxy.metrics();
    for mover in ["copy", "splice"] {
        let labels = [("mover", mover)];
        assert!(metrics.sum_where("corelay_mover_switches_total", &labels) >= ROUNDS as f64 / 2.0);
        assert!(metrics.sum_where("corelay_relayed_bytes_total", &labels) > 0.0);
    }
    proxy.finish();
}

/// splice(2) does not go past urgent data, and the socket stays readable all the while.
#[test]
fn urgent_data_ends_splicing_and_not_the_stream() {
    let upstream = Upstream::new();
    let proxy = splicing(&upstream);
    let mut pair = Pair::open(&proxy, &upstream);
    pair.client.write_all(b"before").unwrap();
    expect_bytes(&mut pair.server, b"before");
    SockRef::from(&pair.client).send_out_of_band(b"!").unwrap();
    let before = proxy.process().cpu_ms();
    std::thread::sleep(Duration::from_secs(1));
    let used = proxy.process().cpu_ms() - before;
    assert!(used < 200, "{used} ms of CPU while nothing moved");
    pair.client.write_all(b"after").unwrap();
    let mut rest = [0; 5];
    pair.server.read_exact(&mut rest[..1]).unwrap();
    if rest[0] == b'!' {
        pair.server.read_exact(&mut rest[..1]).unwrap();
    }
    pair.server.read_exact(&mut rest[1..]).unwrap();
    assert_eq!(&rest, b"after");
    drop(pair);
    proxy.finish();
}

/// Urgent data makes splice(2) say "end of stream" when FIN is behind it.
#[test]
fn urgent_data_before_fin_truncates_nothing() {
    for (mover, head) in [("splice", 20), ("auto", 3 * MIB)] {
        let upstream = Upstream::new();
        let proxy = Proxy::start(&Config::to([upstream.address()]).set("relay.mover", mover));
        let mut pair = Pair::open(&proxy, &upstream);
        let writer = pair.client.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            (&writer).write_all(&vec![b'a'; head as usize]).unwrap();
            SockRef::from(&writer).send_out_of_band(b"!").unwrap();
            (&writer).write_all(&[b'b'; 5_000]).unwrap();
            finish(&writer);
        });
        // The server is slow, so that all of it waits at the proxy's source.
        std::thread::sleep(Duration::from_millis(300));
        let mut counts = [0; 256];
        let end = read_each(&mut pair.server, |bytes| {
            bytes
                .iter()
                .for_each(|&byte| counts[usize::from(byte)] += 1);
        });
        writing.join().unwrap();
        assert_eq!(
            (counts[usize::from(b'a')], end),
            (head, End::Fin),
            "{mover}"
        );
        assert_eq!(counts[usize::from(b'b')], 5_000, "{mover}");
        drop(pair);
        proxy.finish();
    }
}

/// More stuck streams than there are pipes: the others are copied, and none waits for a pipe.
#[test]
fn streams_beyond_the_last_pipe_are_copied() {
    const STUCK: usize = 70;
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()])
        .set("relay.mover", "splice")
        .set("workers", 1);
    let proxy = Proxy::start(&config);
    let pattern = Pattern::new(64);
    let mut stuck: Vec<Pair> = (0..STUCK)
        .map(|_| Pair::open_slow(&proxy, &upstream, SMALL_BUFFER_BYTES))
        .collect();
    let quiet = Duration::from_millis(20);
    for pair in &mut stuck {
        write_until_stuck(&mut pair.server, pattern, MORE_THAN_FITS_BYTES, quiet);
    }
    wait_until("every pipe is held", || {
        proxy.metrics().sum("corelay_pipes_held") == 64.0
    });
    let mut pair = Pair::open(&proxy, &upstream);
    let mut writer = pair.server.try_clone().unwrap();
    let writing = std::thread::spawn(move || write_pattern(&mut writer, pattern, 4 * MIB));
    expect_pattern(&mut pair.client, pattern, 0, 4 * MIB);
    writing.join().unwrap().unwrap();
    drop((pair, stuck));
    proxy.finish();
}
