//! Limits of bandwidth. Upper bounds are exact, for what is late can only be less; that a limit is
//! nearly reached is asserted with much room, for the machine may be busy.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use corelay_bench::pattern::Pattern;
use serde_json::json;

use crate::support::peers::{
    End, expect_fin, finish, read_each, read_pattern, reset, wait_acknowledged, wait_reset,
    write_pattern,
};
use crate::support::proxy::assert_reason;
use crate::support::{Config, Pair, Proxy, Upstream, wait_until};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// `buffers.size`, unless it is set.
const BUFFER_BYTES: u64 = 16 * KIB;

/// A limit, and since when it is measured.
#[derive(Clone, Copy)]
struct Limit {
    per_second: u64,
    burst: u64,
    since: Instant,
}

impl Limit {
    /// From now on, or from a little earlier.
    fn new(per_second: u64) -> Self {
        Self {
            per_second,
            burst: (per_second / 10).max(BUFFER_BYTES),
            since: Instant::now(),
        }
    }

    /// Most bytes until now.
    fn granted(&self) -> u64 {
        let us = u64::try_from(self.since.elapsed().as_micros()).unwrap();
        self.burst + self.per_second * us / 1_000_000
    }

    /// Bytes that take so long.
    fn bytes_of(&self, seconds: u64) -> u64 {
        self.burst + self.per_second * seconds
    }

    /// Reads to the end, all the time no more than is granted; returns how many bytes came.
    #[track_caller]
    fn read(&self, stream: &mut TcpStream, pattern: Pattern) -> (u64, End) {
        let mut at = 0;
        let end = read_each(stream, |bytes| {
            assert_eq!(pattern.first_difference(at, bytes), None);
            at += bytes.len() as u64;
            let most = self.granted();
            assert!(at <= most, "{at} of {most} bytes");
        });
        (at, end)
    }
}

/// The rate, the bytes and the FIN behind them, both ways at once, by each mover.
#[test]
fn a_connection_is_held_to_its_rate_and_loses_nothing() {
    let (up, down) = (2 * MIB, 6 * MIB);
    for mover in ["copy", "splice", "auto"] {
        let upstream = Upstream::new();
        let limits = json!({ "upload": up, "download": down });
        let config = Config::to([upstream.address()])
            .set("relay.mover", mover)
            .set("listeners.edge.limits.bandwidth.connection", limits);
        let proxy = Proxy::start(&config);
        let limits = [up, down].map(Limit::new);
        let bytes = limits.map(|it| it.bytes_of(1));
        let patterns = [Pattern::new(1), Pattern::new(2)];
        let started = Instant::now();
        let mut pair = Pair::open(&proxy, &upstream);
        let writers = [&pair.client, &pair.server].map(|it| it.try_clone().unwrap());
        std::thread::scope(|scope| {
            for ((mut writer, pattern), bytes) in writers.into_iter().zip(patterns).zip(bytes) {
                scope.spawn(move || {
                    write_pattern(&mut writer, pattern, bytes).unwrap();
                    finish(&writer);
                });
            }
            let server = &mut pair.server;
            scope.spawn(move || {
                assert_eq!(limits[0].read(server, patterns[0]), (bytes[0], End::Fin));
            });
            let download = limits[1].read(&mut pair.client, patterns[1]);
            assert_eq!(download, (bytes[1], End::Fin));
        });
        let took = started.elapsed();
        assert!(
            took < Duration::from_secs(6),
            "{mover}: {took:?} for one second's worth"
        );
        drop(pair);
        assert_reason_finished(&proxy);
        let metrics = proxy.metrics();
        for direction in ["upload", "download"] {
            let labels = [("direction", direction), ("listener", "edge")];
            let pauses = metrics.sum_where("corelay_bandwidth_pauses_total", &labels);
            assert!(pauses >= 5.0, "{mover}: {pauses} pauses of the {direction}");
        }
        if mover != "auto" {
            let moved = metrics.sum_where("corelay_relayed_bytes_total", &[("mover", mover)]);
            let all = metrics.sum("corelay_relayed_bytes_total");
            // A receive decides the end, and what is too little for a pipe.
            assert!(moved >= all * 0.9, "{mover}: {moved} of {all}");
        }
        proxy.finish();
    }
}

#[track_caller]
fn assert_reason_finished(proxy: &Proxy) {
    let line = proxy.access_line();
    assert_eq!(line["close_reason"]["cause"], "finished", "{line}");
}

/// Two workers and many connections that all have more to send than there is.
#[test]
fn a_listener_is_held_to_its_rate_over_two_workers_and_nobody_starves() {
    const CONNECTIONS: usize = 16;
    const PER_SECOND: u64 = 4 * MIB;
    const SECONDS: u64 = 2;
    for mover in ["copy", "splice"] {
        let upstream = Upstream::new();
        let config = Config::to([upstream.address()])
            .set("workers", 2)
            .set("relay.mover", mover)
            .set(
                "listeners.edge.limits.bandwidth.listener.download",
                PER_SECOND,
            );
        let proxy = Proxy::start(&config);
        let limit = Limit::new(PER_SECOND);
        let pairs: Vec<_> = (0..CONNECTIONS)
            .map(|_| Pair::open(&proxy, &upstream))
            .collect();
        let until = Instant::now() + Duration::from_secs(SECONDS);
        let counts: Vec<u64> = std::thread::scope(|scope| {
            for pair in &pairs {
                let mut writer = pair.server.try_clone().unwrap();
                // Ends when its peer does.
                scope.spawn(move || while writer.write_all(&[7; 64 * 1024]).is_ok() {});
            }
            let reader = |pair: Pair| scope.spawn(move || read_until(pair, until));
            let readers: Vec<_> = pairs.iter().map(clone).map(reader).collect();
            let counts = readers.into_iter().map(|it| it.join().unwrap());
            let counts: Vec<u64> = counts.collect();
            // The last reader was done before this: what came since is not among the counts.
            let most = limit.granted();
            for pair in &pairs {
                let _ = pair.client.shutdown(Shutdown::Both);
                let _ = pair.server.shutdown(Shutdown::Both);
            }
            let sum: u64 = counts.iter().sum();
            assert!(sum <= most, "{mover}: {sum} of {most} bytes");
            assert!(sum >= PER_SECOND * SECONDS / 4, "{mover}: {sum} bytes");
            counts
        });
        let fair = counts.iter().sum::<u64>() / CONNECTIONS as u64;
        assert!(
            counts.iter().all(|it| *it > fair / 4),
            "{mover}: {counts:?}"
        );
        let metrics = proxy.metrics();
        for core in ["0", "1"] {
            let sent = metrics.sum_where("corelay_downstream_sent_bytes_total", &[("core", core)]);
            assert!(sent > 0.0, "core {core} had nothing to do");
        }
        let uploads = [("direction", "upload")];
        let uploads = metrics.sum_where("corelay_bandwidth_pauses_total", &uploads);
        assert_eq!(uploads, 0.0, "nothing limits uploads");
        drop(pairs);
        proxy.finish();
    }
}

fn clone(pair: &Pair) -> Pair {
    Pair {
        client: pair.client.try_clone().unwrap(),
        server: pair.server.try_clone().unwrap(),
    }
}

fn read_until(mut pair: Pair, until: Instant) -> u64 {
    let mut buffer = vec![0; 64 * 1024];
    let mut count = 0;
    while Instant::now() < until {
        count += pair.client.read(&mut buffer).expect("bytes") as u64;
    }
    count
}

/// Burst and rest of an upload that takes more than a second.
const SLOW_PER_SECOND: u64 = 20 * KIB;
const SLOW_BYTES: u64 = BUFFER_BYTES + SLOW_PER_SECOND;

fn slow_upload(upstream: &Upstream, mover: &str) -> Proxy {
    let config = Config::to([upstream.address()])
        .set("relay.mover", mover)
        .set(
            "listeners.edge.limits.bandwidth.connection.upload",
            SLOW_PER_SECOND,
        );
    Proxy::start(&config)
}

#[track_caller]
fn wait_held_back(proxy: &Proxy) {
    wait_until("the upload is held back", || {
        proxy.metrics().sum("corelay_bandwidth_pauses_total") > 0.0
    });
}

#[test]
fn a_fin_comes_behind_the_bytes_that_are_held_back_and_the_other_direction_is_free() {
    for mover in ["copy", "splice"] {
        let upstream = Upstream::new();
        let proxy = slow_upload(&upstream, mover);
        let limit = Limit::new(SLOW_PER_SECOND);
        let mut pair = Pair::open(&proxy, &upstream);
        let pattern = Pattern::new(3);
        write_pattern(&mut pair.client, pattern, SLOW_BYTES).unwrap();
        finish(&pair.client);
        wait_held_back(&proxy);
        let mut writer = pair.server.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            write_pattern(&mut writer, pattern, 4 * MIB).unwrap();
            finish(&writer);
        });
        assert_eq!(read_pattern(&mut pair.client, pattern), (4 * MIB, End::Fin));
        writing.join().unwrap();
        let received = limit.read(&mut pair.server, pattern);
        assert_eq!(received, (SLOW_BYTES, End::Fin));
        let labels = [("direction", "download")];
        let metrics = proxy.metrics();
        let pauses = metrics.sum_where("corelay_bandwidth_pauses_total", &labels);
        assert_eq!(pauses, 0.0);
        assert_reason_finished(&proxy);
        proxy.finish();
    }
}

#[test]
fn a_reset_while_held_back_comes_behind_the_bytes_at_their_pace() {
    for mover in ["copy", "splice"] {
        let upstream = Upstream::new();
        let proxy = slow_upload(&upstream, mover);
        let limit = Limit::new(SLOW_PER_SECOND);
        let mut pair = Pair::open(&proxy, &upstream);
        let pattern = Pattern::new(4);
        write_pattern(&mut pair.client, pattern, SLOW_BYTES).unwrap();
        wait_acknowledged(&pair.client);
        wait_held_back(&proxy);
        reset(pair.client);
        let received = limit.read(&mut pair.server, pattern);
        assert_eq!(received, (SLOW_BYTES, End::Reset));
        assert_reason(&proxy.access_line(), "downstream/relay/reset");
        proxy.finish();
    }
}

/// Nobody is there any more to whom what is held back could go.
#[test]
fn a_reset_of_the_receiver_ends_a_session_that_is_held_back() {
    let upstream = Upstream::new();
    let proxy = slow_upload(&upstream, "auto");
    let mut pair = Pair::open(&proxy, &upstream);
    write_pattern(&mut pair.client, Pattern::new(5), 8 * SLOW_BYTES).unwrap();
    wait_held_back(&proxy);
    reset(pair.server);
    wait_reset(&pair.client);
    assert_reason(&proxy.access_line(), "upstream/relay/reset");
    proxy.finish();
}

/// Each wait lasts a second, several times as long as either timeout.
#[test]
fn who_waits_for_bandwidth_is_neither_idle_nor_stuck() {
    let timeout = Duration::from_millis(250);
    for (mover, server_closes) in [("copy", false), ("splice", false), ("copy", true)] {
        let upstream = Upstream::new();
        let config = Config::to([upstream.address()])
            .set("buffers.size", "1KiB")
            .set("relay.mover", mover)
            .set("timeouts.idle", "250ms")
            .set("timeouts.half_close", "250ms")
            .set("listeners.edge.limits.bandwidth.connection.upload", "1KiB");
        let proxy = Proxy::start(&config);
        let mut limit = Limit::new(KIB);
        limit.burst = KIB;
        let mut pair = Pair::open(&proxy, &upstream);
        let pattern = Pattern::new(6);
        write_pattern(&mut pair.client, pattern, 4 * KIB).unwrap();
        if server_closes {
            finish(&pair.server);
        }
        let started = Instant::now();
        let (received, end) = limit.read(&mut pair.server, pattern);
        assert_eq!(received, 4 * KIB, "{mover}: {end:?}");
        // Then it is silent indeed.
        let took = started.elapsed();
        assert!(took >= Duration::from_secs(2) + timeout, "{took:?}");
        let expected = if server_closes {
            "local/relay/half_close_timeout"
        } else {
            expect_fin(&mut pair.client);
            "local/relay/idle_timeout"
        };
        assert_reason(&proxy.access_line(), expected);
        proxy.finish();
    }
}

/// A unix socket tells how much it holds as well.
#[test]
fn a_unix_listener_is_limited_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edge.sock");
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()])
        .set("listeners.edge.bind", format!("unix:{}", path.display()))
        .set("listeners.edge.limits.bandwidth.listener", SLOW_PER_SECOND);
    let proxy = Proxy::start(&config);
    let limit = Limit::new(SLOW_PER_SECOND);
    let mut client = UnixStream::connect(&path).unwrap();
    let mut server = upstream.accept();
    let pattern = Pattern::new(7);
    let bytes = pattern.bytes(0, SLOW_BYTES as usize);
    client.write_all(&bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(limit.read(&mut server, pattern), (SLOW_BYTES, End::Fin));
    drop((client, server));
    proxy.finish();
}
