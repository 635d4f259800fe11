//! The ring under stress and under injected faults: cases 72–75. (76 and 77, which prevent the
//! start, are with the lifecycle.)

use std::io::Write;

use corelay_bench::pattern::{Pattern, Random};
use corelay_bench::servers::Server;
use corelay_bench::signals::Signal;

use crate::support::peers::{
    End, connect, expect_bytes, expect_fin, finish, read_pattern, reset, write_pattern,
};
use crate::support::process::strace;
use crate::support::proxy::{assert_reason, exit};
use crate::support::{Config, DEADLINE, Launch, Pair, Proxy, Upstream, size_from_env, wait_until};

#[test]
fn case_72_teardown_with_a_receive_in_flight_sends_fin() {
    const ROUNDS: usize = 20;
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()]).set("timeouts.idle", "200ms");
    let proxy = Proxy::start(&config);
    // Both receives are armed when the timeout ends the session.
    let mut pairs: Vec<Pair> = (0..ROUNDS)
        .map(|_| {
            let mut pair = Pair::open(&proxy, &upstream);
            pair.greet();
            pair
        })
        .collect();
    for pair in &mut pairs {
        expect_fin(&mut pair.client);
        expect_fin(&mut pair.server);
    }
    for line in proxy.access_lines(ROUNDS) {
        assert_reason(&line, "local/relay/idle_timeout");
    }
    // The slots are used again.
    for _ in 0..ROUNDS {
        Pair::open(&proxy, &upstream).greet();
    }
    drop(pairs);
    proxy.finish();
}

/// Connections end in every way while new ones take over their descriptors. Each carries a pattern
/// of its own, so that a byte of another one shows.
#[test]
fn case_73_reused_descriptors_never_carry_another_connections_bytes() {
    const THREADS: u64 = 8;
    let rounds = size_from_env("CORELAY_E2E_SHORT_CONNECTIONS", 10_000) / THREADS / 4;
    let upstream = Server::echo().start().unwrap();
    // Few buffers: they, too, change hands often.
    let config = Config::to([upstream.address()])
        .set("buffers.size", "4KiB")
        .set("buffers.per_core", 64)
        .set("log.access", "off");
    let proxy = Proxy::start(&config);
    let to = proxy.address();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let mut random = Random::new(thread);
                for round in 0..rounds {
                    let pattern = Pattern::new(thread << 32 | round);
                    let bytes = 1 + random.below(30_000);
                    let mut client = connect(to);
                    write_pattern(&mut client, pattern, bytes).unwrap();
                    match random.below(4) {
                        0 => reset(client),
                        1 => drop(client),
                        _ => {
                            finish(&client);
                            assert_eq!(read_pattern(&mut client, pattern), (bytes, End::Fin));
                        }
                    }
                }
            });
        }
    });
    wait_until("the server has nothing left", || upstream.stats().open == 0);
    proxy.finish();
}

#[test]
fn case_74_an_overflowing_completion_queue_stalls_nothing() {
    const CONNECTIONS: usize = 400;
    const BYTES: u64 = 100_000;
    let upstream = Server::echo().start().unwrap();
    let proxy = Launch::default()
        .env("CORELAY_TEST_CQ_ENTRIES", "8")
        .start(&Config::to([upstream.address()]).set("workers", 1));
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| connect(proxy.address())).collect();
    // All at once: more completions in one pass than the queue holds.
    proxy.signal(Signal::STOP);
    for client in &mut clients {
        client.write_all(&Pattern::new(74).bytes(0, 1000)).unwrap();
    }
    proxy.signal(Signal::CONT);
    std::thread::scope(|scope| {
        for mut client in clients {
            scope.spawn(move || {
                let mut writer = client.try_clone().unwrap();
                let pattern = Pattern::new(74);
                let rest = std::thread::spawn(move || {
                    writer
                        .write_all(&pattern.bytes(1000, BYTES as usize - 1000))
                        .unwrap();
                    finish(&writer);
                });
                assert_eq!(read_pattern(&mut client, pattern), (BYTES, End::Fin));
                rest.join().unwrap();
            });
        }
    });
    let overflowed = proxy.metrics().sum("corelay_ring_cq_overflow_total");
    assert!(
        overflowed > 0.0,
        "the queue never overflowed: the test proves nothing"
    );
    proxy.finish();
}

/// As on a kernel whose multishot receive may lose the end of a stream.
#[test]
fn receives_of_a_single_shot_carry_everything_and_say_so() {
    const MESSAGES: usize = 100;
    let upstream = Server::echo().start().unwrap();
    let proxy = Launch::default()
        .env("CORELAY_TEST_SINGLE_SHOT", "1")
        .start(&Config::to([upstream.address()]));
    let mut client = connect(proxy.address());
    for message in 0..MESSAGES {
        let bytes = Pattern::new(75).bytes(message as u64, 100);
        client.write_all(&bytes).unwrap();
        expect_bytes(&mut client, &bytes);
    }
    finish(&client);
    expect_fin(&mut client);
    assert_eq!(proxy.metrics().sum("corelay_multishot_receive"), 0.0);
    proxy.finish();
}

#[test]
fn case_75_injected_errors_of_io_uring_enter_lose_no_byte() {
    const BYTES: u64 = 3_000_000;
    const CONNECTIONS: u64 = 20;
    let Some(strace) = strace("case 75") else {
        return;
    };
    for error in ["EINTR", "EBUSY", "EAGAIN"] {
        let upstream = Server::echo().start().unwrap();
        let inject = format!("inject=io_uring_enter:error={error}:when=7+7");
        let mut proxy = Launch::default()
            .under([
                &strace,
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=io_uring_enter",
                "-e",
                &inject,
            ])
            .start(&Config::to([upstream.address()]));
        let to = proxy.address();
        std::thread::scope(|scope| {
            for seed in 0..CONNECTIONS {
                scope.spawn(move || {
                    let pattern = Pattern::new(seed);
                    let mut client = connect(to);
                    let mut writer = client.try_clone().unwrap();
                    let sender = std::thread::spawn(move || {
                        write_pattern(&mut writer, pattern, BYTES).unwrap();
                        finish(&writer);
                    });
                    assert_eq!(
                        read_pattern(&mut client, pattern),
                        (BYTES, End::Fin),
                        "{error}"
                    );
                    sender.join().unwrap();
                });
            }
        });
        proxy.check_leaks();
        proxy.signal(Signal::TERM);
        let status = proxy.wait_exit(DEADLINE * 2);
        assert_eq!(status.code(), Some(exit::OK), "{error}");
    }
}
