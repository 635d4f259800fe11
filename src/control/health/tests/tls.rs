//! Our ClientHello against a canned answer, and against OpenSSL where it is installed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;

fn tls(server_name: Option<&str>) -> CheckKind {
    CheckKind::Tls {
        server_name: server_name.map(str::to_owned),
    }
}

/// Reads one whole record, then answers.
fn canned(answer: &'static [u8]) -> Address {
    serve(move |mut stream| {
        let mut head = [0; 5];
        stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        stream.read_exact(&mut body).unwrap();
        stream.write_all(answer).unwrap();
        let _ = stream.read(&mut [0]);
    })
}

#[test]
fn a_server_hello_passes_and_an_alert_fails() {
    let hello = canned(&[22, 3, 3, 0, 6, 2, 0, 0, 2, 3, 3]);
    assert_outcome(&hello, tls(None), CheckOutcome::Passed);
    let wrong = failed(CheckFailure::UnexpectedAnswer);
    let alert = canned(&[21, 3, 3, 0, 2, 2, 80]);
    assert_outcome(&alert, tls(Some("a.example")), wrong);
    let plain = canned(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert_outcome(&plain, tls(None), wrong);
}

/// `openssl s_server`, ended with the test.
struct OpenSsl {
    child: Child,
    address: Address,
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn certificate(folder: &Path, key: &str) -> bool {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-nodes",
            "-subj",
            "/CN=a.example",
            "-newkey",
        ])
        .args(key.split(' '))
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder)
        .output();
    made.is_ok_and(|output| output.status.success())
}

fn openssl(folder: &Path, options: &[&str]) -> OpenSsl {
    let mut child = Command::new("openssl")
        .args(["s_server", "-accept", "127.0.0.1:0"])
        .args(["-cert", "cert.pem", "-key", "key.pem"])
        .args(options)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines
        .by_ref()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("ACCEPT ").map(str::to_owned))
        .expect("s_server says where it listens");
    // It must be able to go on writing.
    thread::spawn(move || lines.for_each(drop));
    OpenSsl {
        child,
        address: address.parse().expect("an address"),
    }
}

#[test]
fn openssl_answers_our_hello() {
    let folder = tempfile::tempdir().unwrap();
    for key in ["rsa:2048", "ec -pkeyopt ec_paramgen_curve:P-256"] {
        if !certificate(folder.path(), key) {
            // Straight to the descriptor: the harness swallows what a passing test prints.
            let _ = io::stderr().write_all(b"skipped: openssl_answers_our_hello: no openssl\n");
            return;
        }
        for version in ["-tls1_2", "-tls1_3"] {
            let server = openssl(folder.path(), &[version]);
            assert_outcome(&server.address, tls(None), CheckOutcome::Passed);
            assert_outcome(
                &server.address,
                tls(Some("a.example")),
                CheckOutcome::Passed,
            );
        }
    }
    // A name that the server insists on.
    let picky = ["-servername", "a.example", "-servername_fatal"];
    let own = ["-cert2", "cert.pem", "-key2", "key.pem"];
    let server = openssl(folder.path(), &[picky.as_slice(), &own].concat());
    assert_outcome(
        &server.address,
        tls(Some("a.example")),
        CheckOutcome::Passed,
    );
    let wrong = failed(CheckFailure::UnexpectedAnswer);
    assert_outcome(&server.address, tls(Some("b.example")), wrong);
}
