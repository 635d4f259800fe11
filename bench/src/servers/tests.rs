//! Each server against a plain client: that the test servers do what the tests rely on.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{Fault, Handle, Server, answers};
use crate::endpoint::Endpoint;
use crate::pattern::Pattern;

const DEADLINE: Duration = Duration::from_secs(10);

fn connect(server: &Handle) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn echo_returns_everything_and_answers_fin_with_fin() {
    let server = Server::echo().start().unwrap();
    let mut stream = connect(&server);
    let sent = Pattern::new(1).bytes(0, 3_000_000);
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let thread = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    thread.join().unwrap();
    assert!(received == sent);
    wait_until("the connection is closed", || server.stats().open == 0);
    assert_eq!(server.stats().bytes_in, sent.len() as u64);
    assert_eq!(server.stats().bytes_out, sent.len() as u64);
}

#[test]
fn a_hashing_sink_reports_bytes_hash_and_end() {
    let server = Server::hashing_sink().start().unwrap();
    let mut stream = connect(&server);
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    let mut finished = Vec::new();
    wait_until("the report is there", || {
        finished.extend(server.finished());
        !finished.is_empty()
    });
    assert_eq!(finished[0].bytes, 5);
    assert!(finished[0].clean);
    assert_eq!(
        finished[0].sha256,
        <[u8; 32]>::from(Sha256::digest(b"hello"))
    );
}

#[test]
fn a_source_sends_its_pattern_to_a_client_that_has_half_closed() {
    let server = Server::source(1_000_000, 9).start().unwrap();
    let mut stream = connect(&server);
    stream.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), 1_000_000);
    assert_eq!(Pattern::new(9).first_difference(0, &received), None);
    wait_until("the connection is closed", || server.stats().open == 0);
}

#[test]
fn http_answers_with_its_name() {
    let server = Server::http("alpha").start().unwrap();
    let mut stream = connect(&server);
    stream
        .write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("x-server: alpha\r\n") && answer.ends_with("hello from alpha\n"));
}

#[test]
fn a_reset_is_a_reset_and_half_close_reads_on() {
    let server = Server::faulty(Fault::ResetAfter { bytes: 4 })
        .start()
        .unwrap();
    let mut stream = connect(&server);
    stream.write_all(b"1234").unwrap();
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let server = Server::faulty(Fault::HalfCloseEarly).start().unwrap();
    let mut stream = connect(&server);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    stream.write_all(b"still read").unwrap();
    wait_until("all is read", || server.stats().bytes_in == 10);
}

#[test]
fn banner_trickle_stall_and_close_do_what_they_say() {
    let banner = Server::faulty(Fault::Banner {
        text: b"hi".to_vec(),
    })
    .start()
    .unwrap();
    let mut two = [0; 2];
    connect(&banner).read_exact(&mut two).unwrap();
    assert_eq!(&two, b"hi");

    let interval = Duration::from_millis(5);
    let trickle = Server::faulty(Fault::Trickle { bytes: 1, interval })
        .start()
        .unwrap();
    connect(&trickle).read_exact(&mut [0; 3]).unwrap();

    let stall = Server::faulty(Fault::Stall { after_bytes: 2 })
        .start()
        .unwrap();
    let mut stream = connect(&stall);
    stream.write_all(b"abcd").unwrap();
    stream.read_exact(&mut two).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    assert_eq!(
        stream.read(&mut two).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );

    let close = Server::faulty(Fault::AcceptThenClose).start().unwrap();
    assert_eq!(connect(&close).read(&mut two).unwrap(), 0);
}

#[test]
fn never_read_stops_the_writer_and_notices_its_reset() {
    let server = Server::faulty(Fault::NeverRead)
        .receive_buffer(4096)
        .start()
        .unwrap();
    let mut stream = connect(&server);
    stream
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let chunk = vec![0; 1 << 20];
    let error = (0..64)
        .find_map(|_| stream.write_all(&chunk).err())
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(server.stats().bytes_in, 0);
}

#[test]
fn a_unix_socket_serves_and_its_path_goes_away() {
    let path = std::env::temp_dir().join(format!("corelay-bench-{}.sock", std::process::id()));
    let server = Server::echo()
        .listen(Endpoint::Unix(path.clone()))
        .start()
        .unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    drop(server);
    assert!(!path.exists());
}

#[test]
fn dropping_a_server_closes_its_port() {
    let server = Server::echo().start().unwrap();
    let address = server.address();
    drop(server);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn an_answer_has_the_length_asked_for_and_no_end_follows_it() {
    let server = Server::answers().start().unwrap();
    let mut stream = connect(&server);
    for length in [3_000_001_u64, 1, 0, 700_000] {
        stream.write_all(&length.to_be_bytes()).unwrap();
        let mut answer = vec![0; length as usize];
        stream.read_exact(&mut answer).unwrap();
        let block = answers::block();
        let mut done = 0;
        while done < length {
            let expected = &block[answers::slice(length, done)];
            let from = done as usize;
            assert!(answer[from..from + expected.len()] == *expected);
            done += expected.len() as u64;
        }
    }
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let silence = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(silence.kind(), ErrorKind::WouldBlock);
    // Its own FIN is answered once there is nothing more to answer.
    stream.write_all(&5_u64.to_be_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 5);
    wait_until("the connection is closed", || server.stats().open == 0);
}
