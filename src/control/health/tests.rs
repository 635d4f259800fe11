//! The checker against real sockets.

mod header;
mod lifecycle;
mod tls;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::*;
use crate::balance::health::{CheckFailure, CheckOutcome, Pace};
use crate::units::Address;

/// How long anything may take before a test gives up.
const DEADLINE: Duration = Duration::from_secs(20);
const MS_US: u64 = 1_000;
const HOUR_US: u64 = 3_600_000 * MS_US;

/// Once an hour: one check for a test.
fn spec(kind: CheckKind) -> CheckSpec {
    CheckSpec {
        kind,
        pace: Pace {
            interval_us: HOUR_US,
            fast_interval_us: 20 * MS_US,
            jitter_percent: 10,
        },
        timeout_us: 5_000 * MS_US,
        source: None,
    }
}

fn expecting(send: &[u8], prefix: &[u8]) -> CheckKind {
    CheckKind::Exchange {
        send: send.to_vec(),
        expect: Expect::Prefix(prefix.to_vec()),
    }
}

fn http() -> CheckKind {
    CheckKind::Http {
        path: "/health?a=b".to_owned(),
        host: "app.example.org".to_owned(),
        status: vec![200..=399],
    }
}

fn target(id: u16, address: &Address, check: CheckSpec) -> Target {
    Target {
        server: ServerId(id),
        address: address.clone(),
        at: CheckAt::Server,
        header: None,
        check: Arc::new(check),
    }
}

type Results = Receiver<(ServerId, CheckResult)>;

fn start(options: Options, targets: Vec<Target>) -> (Checker, Results) {
    let (sender, results) = mpsc::channel();
    let report = move |server, result| {
        // A test that has seen enough has dropped its end.
        let _ = sender.send((server, result));
    };
    (Checker::start(options, targets, report).unwrap(), results)
}

/// The result of one check.
#[track_caller]
fn check(address: &Address, check: CheckSpec) -> CheckResult {
    check_of(target(0, address, check))
}

#[track_caller]
fn check_of(target: Target) -> CheckResult {
    let (_checker, results) = start(Options::default(), vec![target]);
    let (server, result) = results.recv_timeout(DEADLINE).expect("a result");
    assert_eq!(server, ServerId(0));
    result
}

#[track_caller]
fn assert_outcome(address: &Address, kind: CheckKind, expected: CheckOutcome) {
    assert_eq!(check(address, spec(kind)).outcome, expected);
}

fn failed(failure: CheckFailure) -> CheckOutcome {
    CheckOutcome::Failed(failure)
}

fn listen() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    (listener, address)
}

/// Does the same with each connection, one after the other, for as long as the process lives.
fn serve(mut with: impl FnMut(TcpStream) + Send + 'static) -> Address {
    let (listener, address) = listen();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            with(stream);
        }
    });
    address
}

/// A port that is taken, where nobody listens.
fn refusing() -> (Socket, Address) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, Address::Tcp(address))
}

/// A listener whose full accept queue drops every SYN, and what keeps it so.
fn blackhole() -> (Vec<Socket>, Address) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap();
    let mut kept = vec![socket];
    for _ in 0..4 {
        let filler = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None).unwrap();
        filler.set_nonblocking(true).unwrap();
        // In progress, or in the queue.
        let _ = filler.connect(&address);
        kept.push(filler);
    }
    (kept, Address::Tcp(address.as_socket().unwrap()))
}

#[test]
fn a_tcp_check_passes_and_the_servers_process_never_hears_of_it() {
    let (listener, address) = listen();
    let result = check(&address, spec(CheckKind::Tcp));
    assert_eq!(result.outcome, CheckOutcome::Passed);
    assert!(result.latency_us < 5_000 * MS_US);
    listener.set_nonblocking(true).unwrap();
    let heard = listener.accept().map_err(|error| error.kind());
    assert_eq!(heard.err(), Some(io::ErrorKind::WouldBlock));
}

#[test]
fn refused_is_refused() {
    let (_socket, address) = refusing();
    assert_outcome(&address, CheckKind::Tcp, failed(CheckFailure::Refused));
    let missing = Address::Unix("/nonexistent/check.sock".into());
    assert_outcome(&missing, CheckKind::Tcp, failed(CheckFailure::Refused));
}

#[test]
fn a_server_that_drops_syns_times_out() {
    let (_kept, address) = blackhole();
    let mut spec = spec(CheckKind::Tcp);
    spec.timeout_us = 200 * MS_US;
    let result = check(&address, spec);
    assert_eq!(result.outcome, failed(CheckFailure::Timeout));
    assert!(result.latency_us >= 200 * MS_US, "{result:?}");
    assert!(result.latency_us < 5_000 * MS_US, "{result:?}");
}

#[test]
fn a_server_that_accepts_and_closes_fails_all_but_tcp() {
    let closing = serve(drop);
    for kind in [
        expecting(b"", b"220 "),
        http(),
        CheckKind::Tls { server_name: None },
    ] {
        assert_outcome(&closing, kind, failed(CheckFailure::ClosedEarly));
    }
    let resetting = serve(|stream| {
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap()
    });
    assert_outcome(
        &resetting,
        expecting(b"PING\r\n", b"+PONG"),
        failed(CheckFailure::ClosedEarly),
    );
    assert_outcome(&resetting, CheckKind::Tcp, CheckOutcome::Passed);
    let midway = serve(|mut stream| stream.write_all(b"22").unwrap());
    assert_outcome(
        &midway,
        expecting(b"", b"220 "),
        failed(CheckFailure::ClosedEarly),
    );
}

#[test]
fn bytes_that_trickle_in_do_not_prolong_a_check() {
    let address = serve(|mut stream| {
        while stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    });
    let mut spec = spec(expecting(b"", &[b'x'; 60_000]));
    spec.timeout_us = 300 * MS_US;
    let result = check(&address, spec);
    assert_eq!(result.outcome, failed(CheckFailure::Timeout));
    assert!(result.latency_us >= 300 * MS_US, "{result:?}");
    assert!(result.latency_us < 5_000 * MS_US, "{result:?}");
}

#[test]
fn a_wrong_answer_fails_at_once_and_a_right_one_passes() {
    let address = serve(|mut stream| {
        let mut request = [0; 6];
        stream.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"PING\r\n");
        stream.write_all(b"-LOADING Redis\r\n").unwrap();
        // Held open until the check has ended: it does not wait for the close.
        let _ = stream.read(&mut [0]);
    });
    let wrong = failed(CheckFailure::UnexpectedAnswer);
    assert_outcome(&address, expecting(b"PING\r\n", b"+PONG"), wrong);
    let right = expecting(b"PING\r\n", b"-LOADING ");
    assert_outcome(&address, right, CheckOutcome::Passed);
    let contains = CheckKind::Exchange {
        send: b"PING\r\n".to_vec(),
        expect: Expect::Contains(b"Redis".to_vec()),
    };
    assert_outcome(&address, contains, CheckOutcome::Passed);
}

#[test]
fn a_long_request_goes_out_and_an_early_answer_to_it_counts() {
    let long = vec![b'x'; 32 << 20];
    let sent = long.clone();
    let patient = serve(move |mut stream| {
        let mut request = vec![0; sent.len()];
        stream.read_exact(&mut request).unwrap();
        assert!(request == sent);
        stream.write_all(b"ok").unwrap();
        let _ = stream.read(&mut [0]);
    });
    assert_outcome(&patient, expecting(&long, b"ok"), CheckOutcome::Passed);
    // Its close, with bytes unread, is a reset behind the answer.
    let hasty = serve(|mut stream| stream.write_all(b"ok, enough").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hasty.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.write_all(b"ok, enough").unwrap();
        }
    });
    for address in [hasty, Address::Unix(path)] {
        for _ in 0..20 {
            assert_outcome(&address, expecting(&long, b"ok"), CheckOutcome::Passed);
        }
    }
}

/// Reads a request's head and answers it; whether the whole answer could be written, and the head.
fn http_server(status: &'static str, body_bytes: usize) -> (Address, Receiver<(bool, String)>) {
    let (sender, answered) = mpsc::channel();
    let address = serve(move |mut stream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_err() {
                // The checker was ended meanwhile.
                return;
            }
            head.push(byte[0]);
        }
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {body_bytes}\r\n\r\n");
        stream.write_all(answer.as_bytes()).unwrap();
        // As a server that works on its answer.
        thread::sleep(Duration::from_millis(20));
        let is_whole = stream.write_all(&vec![b'b'; body_bytes]).is_ok();
        let _ = sender.send((is_whole, String::from_utf8(head).unwrap()));
    });
    (address, answered)
}

#[test]
fn http_goes_by_the_status_and_lets_the_server_finish() {
    let (address, answered) = http_server("200 OK", 20_000);
    let (_checker, results) = start(Options::default(), vec![target(0, &address, spec(http()))]);
    let (_, result) = results.recv_timeout(DEADLINE).unwrap();
    assert_eq!(result.outcome, CheckOutcome::Passed);
    let (is_whole, head) = answered.recv_timeout(DEADLINE).unwrap();
    assert!(is_whole, "the server could not write its body");
    assert_eq!(
        head,
        "GET /health?a=b HTTP/1.1\r\nHost: app.example.org\r\nUser-Agent: corelay-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    let (address, _answered) = http_server("503 Service Unavailable", 10);
    let busy = failed(CheckFailure::BadStatus(503));
    assert_outcome(&address, http(), busy);
}

#[test]
fn unix_sockets_are_checked_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A tcp check is gone already.
            let _ = stream.write_all(b"220 ready\r\n");
            let _ = stream.read(&mut [0]);
        }
    });
    let address = Address::Unix(path);
    assert_outcome(&address, expecting(b"", b"220 "), CheckOutcome::Passed);
    assert_outcome(&address, CheckKind::Tcp, CheckOutcome::Passed);
    // A port means nothing here.
    let mut with_port = target(0, &address, spec(CheckKind::Tcp));
    with_port.at = CheckAt::Port(1);
    assert_eq!(check_of(with_port).outcome, CheckOutcome::Passed);
}

#[test]
fn a_server_can_be_checked_elsewhere() {
    let (_socket, serving) = refusing();
    let (_listener, checked) = listen();
    let Address::Tcp(ip) = &checked else {
        unreachable!("a TCP listener")
    };
    for at in [CheckAt::Port(ip.port()), CheckAt::Address(checked.clone())] {
        let mut target = target(0, &serving, spec(CheckKind::Tcp));
        target.at = at;
        assert_eq!(check_of(target).outcome, CheckOutcome::Passed);
    }
}
