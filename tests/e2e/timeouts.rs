//! Deadlines: cases 7, 27 and 35–39. Nothing here asserts how *late* a deadline may fire beyond the
//! tests' own patience; that it never fires early is asserted.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corelay_bench::load::idle;
use corelay_bench::pattern::Pattern;
use corelay_bench::servers::Server;

use crate::support::peers::{
    End, connect, expect_bytes, expect_fin, expect_reset, finish, read_each, read_to_end,
    wait_reset, write_pattern, write_until_stuck,
};
use crate::support::proxy::assert_reason;
use crate::support::{
    Config, DEADLINE, Launch, Pair, Proxy, Upstream, size_from_env, skip, wait_until,
};

/// How long a write may be stuck before it counts as stuck.
const QUIET: Duration = Duration::from_millis(300);
/// More than all buffers between two ends hold.
const MORE_THAN_FITS_BYTES: u64 = 64 * 1024 * 1024;

#[test]
fn case_07_half_closed_and_silent_is_reset_by_half_close_timeout() {
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()]).set("timeouts.half_close", "400ms");
    let proxy = Proxy::start(&config);

    let mut pair = Pair::open(&proxy, &upstream);
    let closed_at = Instant::now();
    finish(&pair.client);
    expect_fin(&mut pair.server);
    expect_reset(&mut pair.client);
    assert!(closed_at.elapsed() >= Duration::from_millis(400), "early");
    wait_reset(&pair.server);
    assert_reason(&proxy.access_line(), "local/relay/half_close_timeout");

    let mut pair = Pair::open(&proxy, &upstream);
    finish(&pair.server);
    expect_fin(&mut pair.client);
    expect_reset(&mut pair.server);
    wait_reset(&pair.client);
    assert_reason(&proxy.access_lines(2)[1], "local/relay/half_close_timeout");
    proxy.finish();
}

#[test]
fn case_07_traffic_of_the_open_side_keeps_a_half_closed_connection_alive() {
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()]).set("timeouts.half_close", "800ms");
    let proxy = Proxy::start(&config);
    let mut pair = Pair::open(&proxy, &upstream);
    finish(&pair.client);
    expect_fin(&mut pair.server);
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        pair.server.write_all(b"late").unwrap();
        expect_bytes(&mut pair.client, b"late");
    }
    drop(pair.server);
    expect_fin(&mut pair.client);
    assert_reason(&proxy.access_line(), "downstream/relay/finished");
    proxy.finish();
}

#[test]
fn case_27_idle_timeout_fires_with_stuck_data() {
    let upstream = Upstream::new();
    // Longer than writing takes after the proxy has stopped to read.
    let config = Config::to([upstream.address()]).set("timeouts.idle", "2s");
    let proxy = Proxy::start(&config);
    let mut pair = Pair::open_slow(&proxy, &upstream, 4096);
    write_until_stuck(
        &mut pair.server,
        Pattern::new(27),
        MORE_THAN_FITS_BYTES,
        QUIET,
    );
    assert_reason(&proxy.access_line(), "local/relay/idle_timeout");
    wait_until("the server's side is closed", || {
        pair.server.write_all(&[0; 4096]).is_err()
    });
    // What was on its way to the client may still be read; then the stream ends.
    let end = read_each(&mut pair.client, |_| {});
    assert_ne!(end, End::Silence);
    proxy.finish();
}

#[test]
fn case_35_idle_timeout_closes_silence_with_fin_and_spares_one_way_traffic() {
    let idle = Duration::from_millis(800);
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()]).set("timeouts.idle", "800ms");
    let proxy = Proxy::start(&config);
    for upwards in [true, false] {
        let mut pair = Pair::open(&proxy, &upstream);
        let (from, to) = match upwards {
            true => (&mut pair.client, &mut pair.server),
            false => (&mut pair.server, &mut pair.client),
        };
        let mut last = Instant::now();
        for _ in 0..10 {
            std::thread::sleep(idle / 4);
            last = Instant::now();
            from.write_all(b"alive").unwrap();
            expect_bytes(to, b"alive");
        }
        expect_fin(&mut pair.client);
        assert!(last.elapsed() >= idle, "early: after {:?}", last.elapsed());
        expect_fin(&mut pair.server);
    }
    for line in proxy.access_lines(2) {
        assert_reason(&line, "local/relay/idle_timeout");
    }
    proxy.finish();
}

#[test]
fn case_36_max_age_ends_a_busy_and_a_stuck_connection() {
    let upstream = Upstream::new();
    let to = || Config::to([upstream.address()]);
    let proxy = Proxy::start(&to().set("timeouts.max_age", "1s"));

    let mut pair = Pair::open(&proxy, &upstream);
    let opened = Instant::now();
    let mut writer = pair.client.try_clone().unwrap();
    let talking = std::thread::spawn(move || {
        while writer.write_all(b"talk").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let (_, end) = read_to_end(&mut pair.server);
    assert_ne!(end, End::Silence);
    assert!(
        opened.elapsed() >= Duration::from_millis(900),
        "early: {:?}",
        opened.elapsed()
    );
    talking.join().unwrap();
    assert_reason(&proxy.access_line(), "local/relay/max_age");
    proxy.finish();

    // Longer than it takes to get stuck on a busy machine.
    let proxy = Proxy::start(&to().set("timeouts.max_age", "5s"));
    let mut pair = Pair::open_slow(&proxy, &upstream, 4096);
    write_until_stuck(
        &mut pair.server,
        Pattern::new(36),
        MORE_THAN_FITS_BYTES,
        QUIET,
    );
    assert_reason(&proxy.access_line(), "local/relay/max_age");
    proxy.finish();
}

/// Of the deadlines before the relay only the one for the first byte exists yet.
#[test]
fn case_37_a_client_that_says_nothing_is_closed_at_the_first_byte_deadline() {
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()]).set("listeners.edge.defer_connect", "500ms");
    let proxy = Proxy::start(&config);
    let opened = Instant::now();
    let mut client = connect(proxy.address());
    let (received, end) = read_to_end(&mut client);
    assert!(received.is_empty());
    assert_ne!(end, End::Silence);
    assert!(opened.elapsed() >= Duration::from_millis(500), "early");
    let line = proxy.access_line();
    assert_eq!(
        line["close_reason"]["cause"], "first_byte_timeout",
        "{line}"
    );
    assert_eq!(line["close_reason"]["stage"], "accept", "{line}");
    assert_eq!(upstream.stats().accepted, 0, "the server was dialled");
    proxy.finish();
}

#[test]
fn case_38_thousands_of_timers_in_one_tick_all_fire_and_none_early() {
    const IDLE_MS: f64 = 3000.0;
    let connections = size_from_env("CORELAY_E2E_IDLE_CONNECTIONS", 2000) as usize;
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()]).set("timeouts.idle", "3s");
    let proxy = Proxy::start(&config);
    let held = idle::hold(&proxy.address().into(), connections).unwrap();
    let lines = proxy.access_lines(connections);
    let mut worst_ms = 0.0_f64;
    for line in &lines {
        assert_reason(line, "local/relay/idle_timeout");
        let duration_ms = line["duration_ms"].as_f64().unwrap();
        assert!(duration_ms >= IDLE_MS, "early: {line}");
        worst_ms = worst_ms.max(duration_ms - IDLE_MS);
    }
    eprintln!("{connections} timers, the latest {worst_ms:.1} ms after its due time");
    drop(held);
    wait_until("the server has nothing left", || upstream.stats().open == 0);
    proxy.finish();
}

fn libfaketime() -> Option<PathBuf> {
    ["x86_64-linux-gnu", "aarch64-linux-gnu", ""]
        .iter()
        .map(|folder| {
            Path::new("/usr/lib")
                .join(folder)
                .join("faketime/libfaketimeMT.so.1")
        })
        .find(|path| path.exists())
}

#[test]
fn case_39_a_step_of_the_wall_clock_changes_nothing() {
    let Some(library) = libfaketime() else {
        skip("case 39", "no libfaketime here");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let offset_file = directory.path().join("offset");
    std::fs::write(&offset_file, "+0").unwrap();
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()])
        .set("timeouts.idle", "5s")
        .set("timeouts.half_close", "5s")
        .set("timeouts.max_age", "10m");
    let proxy = Launch::default()
        .env("LD_PRELOAD", library.to_str().unwrap())
        .env("FAKETIME_TIMESTAMP_FILE", offset_file.to_str().unwrap())
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start(&config);
    let mut pair = Pair::open(&proxy, &upstream);
    let mut hours = Vec::new();
    for (round, offset) in ["+0", "+3600", "-3600", "+0"].into_iter().enumerate() {
        std::fs::write(&offset_file, offset).unwrap();
        pair.greet();
        std::thread::sleep(Duration::from_millis(300));
        pair.greet();
        // A short session shows in its access-log line that the step was seen.
        drop(Pair::open(&proxy, &upstream));
        let line = proxy.access_lines(round + 1).remove(round);
        assert_eq!(line["close_reason"]["side"], "downstream", "{line}");
        hours.push(
            line["time"].as_str().unwrap()[11..13]
                .parse::<i32>()
                .unwrap(),
        );
    }
    let step = |from: i32, to: i32| (to - from).rem_euclid(24);
    // A session may end just after the full hour, which adds one.
    assert!(
        (1..=2).contains(&step(hours[0], hours[1])),
        "hours {hours:?}"
    );
    assert!(
        (22..=23).contains(&step(hours[1], hours[2])),
        "hours {hours:?}"
    );
    drop(pair);
    let last = proxy.access_lines(5).remove(4);
    assert_eq!(last["close_reason"]["cause"], "finished");
    let duration_ms = last["duration_ms"].as_f64().unwrap();
    assert!(duration_ms < DEADLINE.as_millis() as f64, "{last}");
    proxy.finish();
}

/// Durations come from the monotonic clock: the wall clock is read for the log alone.
#[test]
fn case_39_only_the_log_reads_the_wall_clock() {
    /// Where `SystemTime::now` may be called: where a record or a log line gets its time.
    const ALLOWED: [&str; 3] = ["log/", "sys/clock.rs", "control/process_log.rs"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path
                .strip_prefix(&root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let reads = text.contains("SystemTime::now") || text.contains("CLOCK_REALTIME");
            let allowed = ALLOWED.iter().any(|allowed| name.starts_with(allowed))
                || name.ends_with("tests.rs");
            assert!(!reads || allowed, "{name} reads the wall clock");
        }
    }
}

/// What the kernel still holds for a slow reader is traffic: neither timeout may cut it.
#[test]
fn a_slow_download_of_bytes_that_the_kernel_holds_is_neither_idle_nor_half_closed() {
    const BYTES: u64 = 1_500_000;
    for server_closes in [true, false] {
        let upstream = Upstream::new();
        let config = Config::to([upstream.address()])
            .set("timeouts.idle", "1s")
            .set("timeouts.half_close", "1s");
        let proxy = Proxy::start(&config);
        let mut pair = Pair::open_slow(&proxy, &upstream, 4096);
        let pattern = Pattern::new(35);
        write_pattern(&mut pair.server, pattern, BYTES).unwrap();
        if server_closes {
            finish(&pair.server);
        }
        // About four seconds: four times the timeouts.
        let mut received = 0;
        let mut buffer = vec![0; 4096];
        while received < BYTES {
            let count = pair.client.read(&mut buffer).expect("the stream goes on");
            assert!(count > 0, "cut after {received} bytes");
            assert_eq!(pattern.first_difference(received, &buffer[..count]), None);
            received += count as u64;
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(pair);
        proxy.access_line();
        proxy.finish();
    }
}
