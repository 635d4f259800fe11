//! The PROXY header that checks begin with, byte for byte.

use super::*;
use crate::wire::proxy::Version;

const V1: &[u8] = b"PROXY UNKNOWN\r\n";
/// Signature, version 2 with the command LOCAL, the unspecified family, no further byte.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// The first bytes that a server gets from a check.
fn heard(kind: CheckKind, header: Option<Version>, count: usize) -> Vec<u8> {
    let (sender, receiver) = mpsc::channel();
    let address = serve(move |mut stream| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        let _ = sender.send(bytes);
    });
    let mut target = target(0, &address, spec(kind));
    target.header = header;
    let (_checker, _results) = start(Options::default(), vec![target]);
    receiver.recv_timeout(DEADLINE).expect("a check")
}

#[test]
fn the_header_comes_before_what_is_asked() {
    for (version, header) in [(Version::V1, V1), (Version::V2, V2)] {
        let asked: [(CheckKind, &[u8]); 4] = [
            (http(), b"GET /health?a=b HTTP/1.1\r\n"),
            (expecting(b"PING\r\n", b"+PONG"), b"PING\r\n"),
            // Where the server speaks first there is the header alone.
            (expecting(b"", b"220 "), b""),
            (CheckKind::Tls { server_name: None }, &[22, 3, 1]),
        ];
        for (kind, then) in asked {
            let expected = [header, then].concat();
            assert_eq!(heard(kind, Some(version), expected.len()), expected);
        }
    }
    assert_eq!(heard(http(), None, 5), b"GET /");
}

#[test]
fn a_tcp_check_sends_none() {
    let (listener, address) = listen();
    let mut target = target(0, &address, spec(CheckKind::Tcp));
    target.header = Some(Version::V2);
    assert_eq!(check_of(target).outcome, CheckOutcome::Passed);
    listener.set_nonblocking(true).unwrap();
    let heard = listener.accept().map_err(|error| error.kind());
    assert_eq!(heard.err(), Some(io::ErrorKind::WouldBlock));
}
