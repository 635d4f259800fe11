//! While it runs and when it stops: the service manager, a panic, a stalled core, and an orderly end:
//! cases 80, 81, 84 and 85.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corelay_bench::pattern::Pattern;
use corelay_bench::servers::Server;
use corelay_bench::signals::Signal;

use crate::support::peers::{
    End, connect, connect_with_receive_buffer, expect_bytes, expect_reset, finish, read_pattern,
    read_pattern_from, try_connect, write_pattern,
};
use crate::support::process::{Process, strace};
use crate::support::proxy::{assert_reason, exit};
use crate::support::{Config, DEADLINE, Launch, Pair, Proxy, Upstream, size_from_env, wait_until};

#[test]
fn case_80_a_panic_ends_the_process_and_names_thread_and_session() {
    let upstream = Server::echo().start().unwrap();
    let mut proxy = Launch::default()
        .env("CORELAY_TEST_PANIC_SESSION", "3")
        .start(&Config::to([upstream.address()]).set("workers", 1));
    let mut clients = Vec::new();
    let panicked_at = loop {
        assert!(clients.len() < 10, "no session panicked");
        match try_connect(proxy.address()) {
            Ok(client) => clients.push(client),
            Err(_) => break Instant::now(),
        }
        if !proxy.is_running() {
            break Instant::now();
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let status = proxy.wait_exit(DEADLINE);
    assert!(panicked_at.elapsed() < DEADLINE);
    assert!(!status.success(), "{status:?}");
    let log = proxy.log().join("\n");
    let line = log
        .lines()
        .find(|line| line.contains("panic"))
        .expect("a line about the panic");
    assert!(
        line.contains("thread core-0"),
        "the thread is named: {line}"
    );
    assert!(line.contains("session 3"), "the session is named: {line}");
}

/// A service manager's socket.
struct Manager {
    socket: UnixDatagram,
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        Self {
            socket,
            _directory: directory,
            path,
        }
    }

    /// The next message within this time.
    fn next(&self, patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            if let Ok(count) = self.socket.recv(&mut buffer) {
                return Some(String::from_utf8_lossy(&buffer[..count]).into_owned());
            }
        }
        None
    }

    #[track_caller]
    fn wait_for(&self, what: &str) {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if self
                .next(DEADLINE)
                .is_some_and(|message| message.contains(what))
            {
                return;
            }
        }
        panic!("the service manager was never told {what}");
    }
}

#[test]
fn the_service_manager_hears_ready_watchdog_and_stopping() {
    let manager = Manager::new();
    let upstream = Server::echo().start().unwrap();
    let mut proxy = Launch::default()
        .env("NOTIFY_SOCKET", manager.path.to_str().unwrap())
        .env("WATCHDOG_USEC", "1000000")
        .start(&Config::to([upstream.address()]));
    manager.wait_for("READY=1");
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("WATCHDOG=1");
    proxy.signal(Signal::TERM);
    manager.wait_for("STOPPING=1");
    assert!(proxy.wait_exit(DEADLINE).success());
}

#[test]
fn case_81_a_stalled_core_stops_the_watchdog_and_is_logged() {
    let Some(strace) = strace("case 81") else {
        return;
    };
    let manager = Manager::new();
    let upstream = Server::echo().start().unwrap();
    let mut proxy = Launch::default()
        .env("NOTIFY_SOCKET", manager.path.to_str().unwrap())
        .env("WATCHDOG_USEC", "2000000")
        .start(&Config::to([upstream.address()]));
    manager.wait_for("WATCHDOG=1");
    let core = proxy
        .process()
        .thread_id("core-0")
        .expect("a thread core-0");
    // Every entry of this one thread into the kernel for its ring takes a minute.
    let mut tracer = Command::new(strace)
        .args(["-qq", "-o", "/dev/null", "-e", "trace=io_uring_enter"])
        .args(["-e", "inject=io_uring_enter:delay_enter=60000000"])
        .args(["-p", &core.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stalled = proxy.wait_log_where("a core that does not answer", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("does not answer"))
    });
    assert_eq!(stalled["level"], "ERROR");
    // Messages from before the stall are read away; then there is silence for a whole interval.
    let deadline = Instant::now() + DEADLINE;
    while let Some(message) = manager.next(Duration::from_secs(3)) {
        assert!(Instant::now() < deadline, "still fed: {message}");
    }
    assert!(proxy.is_running());
    let tracer_id = Process(tracer.id());
    tracer_id.signal(Signal::KILL);
    tracer.wait().unwrap();
    manager.wait_for("WATCHDOG=1");
    proxy.stop();
}

/// Clients in the middle of a transfer that cannot end by itself: the window is small.
fn open_transfers(proxy: &Proxy, count: usize) -> Vec<TcpStream> {
    (0..count)
        .map(|_| {
            let mut client = connect_with_receive_buffer(proxy.address(), 4096);
            client.read_exact(&mut [0; 1000]).unwrap();
            client
        })
        .collect()
}

#[test]
fn case_84_sigterm_lets_transfers_finish_and_accepts_nobody_new() {
    const BYTES: u64 = 256 * 1024;
    let transfers = size_from_env("CORELAY_E2E_TRANSFERS", 1000) as usize;
    let pattern = Pattern::new(84);
    let source = Server::source(BYTES, 84)
        .send_buffer(16 * 1024)
        .start()
        .unwrap();
    let config = Config::to([source.address()])
        .set("timeouts.drain", "5m")
        // On a busy machine the last client's turn to read may come late.
        .set("timeouts.half_close", "5m");
    let mut proxy = Proxy::start(&config);
    let to = proxy.address();
    let clients = open_transfers(&proxy, transfers);
    proxy.signal(Signal::TERM);
    wait_until("nobody new is accepted", || {
        TcpStream::connect_timeout(&to, Duration::from_millis(100)).is_err()
    });
    assert!(proxy.is_running());
    std::thread::scope(|scope| {
        for share in clients.chunks(transfers.div_ceil(4)) {
            scope.spawn(move || {
                for client in share {
                    let mut client = client.try_clone().unwrap();
                    let (count, end) = read_pattern_from(&mut client, pattern, 1000);
                    assert_eq!((count + 1000, end), (BYTES, End::Fin));
                    finish(&client);
                }
            });
        }
    });
    assert_eq!(proxy.wait_exit(DEADLINE * 2).code(), Some(exit::OK));
    // The probes above may have been accepted before the listeners were told.
    let lines = proxy.access_lines(transfers);
    let cause = |line: &serde_json::Value| line["close_reason"]["cause"].clone();
    let finished = lines
        .iter()
        .filter(|line| cause(line) == "finished")
        .count();
    assert_eq!(finished, transfers);
    assert!(
        lines.iter().all(|line| cause(line) != "drain"),
        "a transfer was cut off"
    );
}

#[test]
fn case_84_at_the_end_of_the_drain_the_rest_is_reset() {
    let upstream = Upstream::new();
    let mut proxy = Proxy::start(&Config::to([upstream.address()]).set("timeouts.drain", "700ms"));
    let mut pair = Pair::open(&proxy, &upstream);
    pair.greet();
    let told_at = Instant::now();
    proxy.signal(Signal::TERM);
    expect_reset(&mut pair.client);
    assert!(told_at.elapsed() >= Duration::from_millis(700), "early");
    expect_reset(&mut pair.server);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::OK));
    assert_reason(&proxy.access_line(), "local/relay/drain");
}

#[test]
fn case_84_a_second_signal_ends_at_once() {
    let upstream = Upstream::new();
    for second in [Signal::TERM, Signal::INT] {
        let config = Config::to([upstream.address()]).set("timeouts.drain", "10m");
        let mut proxy = Proxy::start(&config);
        let mut pair = Pair::open(&proxy, &upstream);
        pair.greet();
        proxy.signal(Signal::INT);
        // The session goes on in between.
        proxy.wait_log_where("the stop", |line| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.starts_with("stopping"))
        });
        pair.greet();
        proxy.signal(second);
        expect_reset(&mut pair.client);
        expect_reset(&mut pair.server);
        assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::OK));
    }
}

#[test]
fn sigterm_right_after_ready_is_an_orderly_stop() {
    let upstream = Server::echo().start().unwrap();
    for _ in 0..10 {
        let mut proxy = Launch::default().spawn(&Config::to([upstream.address()]));
        proxy.wait_log("ready");
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::OK));
    }
}

#[test]
fn case_85_connections_in_the_queue_at_sigterm_are_served() {
    const QUEUED: usize = 200;
    let upstream = Server::echo().start().unwrap();
    let mut proxy = Proxy::start(&Config::to([upstream.address()]).set("timeouts.drain", "1m"));
    // A stopped process accepts nothing; the kernel goes on shaking hands.
    proxy.signal(Signal::STOP);
    let mut clients: Vec<TcpStream> = (0..QUEUED).map(|_| connect(proxy.address())).collect();
    proxy.signal(Signal::TERM);
    proxy.signal(Signal::CONT);
    for (index, client) in clients.iter_mut().enumerate() {
        client
            .write_all(b"served?")
            .unwrap_or_else(|error| panic!("client {index}: {error}"));
        expect_bytes(client, b"served?");
    }
    drop(clients);
    assert_eq!(proxy.wait_exit(DEADLINE * 2).code(), Some(exit::OK));
    assert_eq!(proxy.access_lines(QUEUED).len(), QUEUED);
}

#[test]
fn case_85_who_connects_during_the_stop_is_served_or_refused_but_never_reset() {
    const CLIENTS: usize = 8;
    let upstream = Server::echo().start().unwrap();
    let mut proxy = Proxy::start(&Config::to([upstream.address()]).set("timeouts.drain", "1m"));
    let to = proxy.address();
    let stopped = AtomicBool::new(false);
    let served: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut served = 0;
                    while !stopped.load(Ordering::Relaxed) {
                        // A dropped SYN shows as a timeout, a closed listener as a refusal.
                        let patience = Duration::from_millis(300);
                        let Ok(mut client) = TcpStream::connect_timeout(&to, patience) else {
                            break;
                        };
                        client.set_read_timeout(Some(DEADLINE)).unwrap();
                        client
                            .write_all(b"x")
                            .expect("a connected client was reset");
                        client
                            .read_exact(&mut [0; 1])
                            .expect("a connected client was not served");
                        served += 1;
                    }
                    served
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        proxy.signal(Signal::TERM);
        let status = proxy.wait_exit(DEADLINE * 2);
        stopped.store(true, Ordering::Relaxed);
        assert_eq!(status.code(), Some(exit::OK));
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum()
    });
    assert!(served > CLIENTS, "the clients did connect");
}

/// Someone who connects while the listener closes is served, however early the core could think that it is done.
#[test]
fn case_85_a_client_that_comes_during_the_grace_is_served() {
    let upstream = Upstream::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("listener");
    let config = Config::to([upstream.address()])
        .set("workers", 1)
        .set("listeners.edge.bind", format!("unix:{}", path.display()));
    let mut proxy = Proxy::start(&config);
    // Its path goes when the drain begins; whoever had resolved it before is in the queue.
    let early: Vec<UnixStream> = (0..5)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    proxy.signal(Signal::TERM);
    let mut servers: Vec<TcpStream> = early.iter().map(|_| upstream.accept()).collect();
    wait_until("the path is gone", || !path.exists());
    for (mut client, server) in early.into_iter().zip(&mut servers) {
        server.write_all(b"late").unwrap();
        finish(server);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"late");
    }
    drop(servers);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::OK));
}

/// From the moment at which it is caught, a stop signal is obeyed, also while the cores are starting.
#[test]
fn a_stop_during_the_start_is_obeyed() {
    let upstream = Server::echo().start().unwrap();
    for _ in 0..5 {
        let mut proxy = Launch::default().spawn(&Config::to([upstream.address()]));
        let pid = proxy.process().0;
        wait_until("SIGTERM is caught", || {
            const SIGTERM_BIT: u64 = 1 << (15 - 1);
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            caught
                .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
                .is_some_and(|mask| mask & SIGTERM_BIT != 0)
        });
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::OK));
    }
}

#[test]
fn a_process_that_was_stopped_and_continued_goes_on_as_before() {
    const BYTES: u64 = 128 << 20;
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()])
        .set("upstreams.app.check.type", "tcp")
        .set("upstreams.app.check.interval", "100ms");
    let proxy = Proxy::start(&config);
    let mut admin = TcpStream::connect(proxy.admin()).unwrap();
    admin.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
    let pattern = Pattern::new(7);
    let mut idle = connect(proxy.address());
    idle.write_all(b"x").unwrap();
    expect_bytes(&mut idle, b"x");
    let mut client = connect(proxy.address());
    let mut sender = client.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            write_pattern(&mut sender, pattern, BYTES).unwrap();
            finish(&sender);
        });
        let received = scope.spawn(move || read_pattern(&mut client, pattern));
        let mut times = 0;
        while !received.is_finished() {
            proxy.signal(Signal::STOP);
            wait_until("it stands still", || proxy.process().threads_are('T'));
            proxy.signal(Signal::CONT);
            times += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(received.join().unwrap(), (BYTES, End::Fin));
        assert!(times > 5, "only {times} times");
    });
    idle.write_all(b"y").unwrap();
    expect_bytes(&mut idle, b"y");
    admin
        .write_all(b"Host: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    admin.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(idle);
    for line in proxy.access_lines(2) {
        assert_reason(&line, "downstream/relay/finished");
    }
    let said = proxy.log();
    let warned = said.iter().find(|line| line.contains(r#""WARN""#));
    assert_eq!(warned, None);
    proxy.finish();
}
