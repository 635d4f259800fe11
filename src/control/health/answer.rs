//! What a server sent back: bytes in, a verdict out. No I/O.

use super::ANSWER_BYTES_MAX;
use std::ops::RangeInclusive;

use super::spec::{CheckKind, Expect};
use crate::balance::health::CheckFailure;

/// An HTTP status line, and interim answers before it.
const HTTP_BYTES_MAX: usize = 8 * 1024;

const TLS_RECORD_HEAD_BYTES: usize = 5;
const TLS_ALERT: u8 = 21;
const TLS_HANDSHAKE: u8 = 22;
const TLS_SERVER_HELLO: u8 = 2;
const TLS_ALERT_WARNING: u8 = 1;
const TLS_ALERT_CLOSE_NOTIFY: u8 = 0;
/// RFC 5246 section 6.2.1.
const TLS_RECORD_BYTES_MAX: usize = 1 << 14;

/// What can be said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet.
    More,
    Passed,
    Failed(CheckFailure),
}

/// The bytes so far.
#[derive(Debug, Default)]
pub(super) struct Answer {
    bytes: Vec<u8>,
    /// Searched already: bytes that come one at a time must not cost a search of all.
    searched: usize,
}

impl Answer {
    /// Takes more bytes in.
    pub(super) fn add(&mut self, kind: &CheckKind, chunk: &[u8]) -> Verdict {
        self.bytes.extend_from_slice(chunk);
        let verdict = match kind {
            // Passed when it was connected; what it says does not matter.
            CheckKind::Tcp => Verdict::Passed,
            CheckKind::Exchange {
                expect: Expect::Prefix(prefix),
                ..
            } => begins_with(prefix, &self.bytes),
            CheckKind::Exchange {
                expect: Expect::Contains(wanted),
                ..
            } => self.search(wanted),
            CheckKind::Http { status, .. } => http(status, &self.bytes),
            CheckKind::Tls { .. } => tls(&self.bytes),
        };
        if verdict == Verdict::More && self.bytes.len() >= ANSWER_BYTES_MAX {
            return Verdict::Failed(CheckFailure::UnexpectedAnswer);
        }
        verdict
    }

    /// The server closed before there was a verdict.
    pub(super) fn end(&self, kind: &CheckKind) -> CheckFailure {
        match kind {
            // Whatever it had to say is said, and the bytes are not among it.
            CheckKind::Exchange {
                expect: Expect::Contains(_),
                ..
            } if !self.bytes.is_empty() => CheckFailure::UnexpectedAnswer,
            _ => CheckFailure::ClosedEarly,
        }
    }

    fn search(&mut self, wanted: &[u8]) -> Verdict {
        if wanted.is_empty() {
            return Verdict::Passed;
        }
        let from = self.searched.saturating_sub(wanted.len() - 1);
        self.searched = self.bytes.len();
        let found = self.bytes[from..]
            .windows(wanted.len())
            .any(|window| window == wanted);
        if found {
            Verdict::Passed
        } else {
            Verdict::More
        }
    }
}

fn begins_with(prefix: &[u8], bytes: &[u8]) -> Verdict {
    let common = prefix.len().min(bytes.len());
    if bytes[..common] != prefix[..common] {
        Verdict::Failed(CheckFailure::UnexpectedAnswer)
    } else if common == prefix.len() {
        Verdict::Passed
    } else {
        Verdict::More
    }
}

/// Reads the first status line that is not of an interim answer (RFC 9110 section 15.2).
fn http(expected: &[RangeInclusive<u16>], mut bytes: &[u8]) -> Verdict {
    let too_long = bytes.len() >= HTTP_BYTES_MAX;
    let more = if too_long {
        Verdict::Failed(CheckFailure::UnexpectedAnswer)
    } else {
        Verdict::More
    };
    loop {
        let status = match http_status(bytes) {
            Ok(Some(status)) => status,
            Ok(None) => return more,
            Err(_) => return Verdict::Failed(CheckFailure::UnexpectedAnswer),
        };
        if expected.iter().any(|range| range.contains(&status)) {
            return Verdict::Passed;
        }
        let is_interim = (100..200).contains(&status) && status != 101;
        if !is_interim {
            return Verdict::Failed(CheckFailure::BadStatus(status));
        }
        match bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            Some(end) => bytes = &bytes[end + 4..],
            None => return more,
        }
    }
}

/// The status of the status line at the front; `None` if it is not complete.
fn http_status(bytes: &[u8]) -> Result<Option<u16>, httparse::Error> {
    let mut none = [];
    let Some(line_end) = bytes.iter().position(|&byte| byte == b'\n') else {
        // An answer that is no HTTP is known as such before its first line ends, if it ever does.
        httparse::Response::new(&mut none).parse(bytes)?;
        return Ok(None);
    };
    // As if no header followed: their number and form do not matter here.
    let head = [&bytes[..=line_end], b"\r\n"].concat();
    let mut response = httparse::Response::new(&mut none);
    response.parse(&head)?;
    Ok(response.code)
}

/// Reads records up to the first that is not a warning. A server may warn of a name that it does
/// not know and go on (RFC 6066 section 3).
fn tls(mut bytes: &[u8]) -> Verdict {
    const UNEXPECTED: Verdict = Verdict::Failed(CheckFailure::UnexpectedAnswer);
    loop {
        let Some(&kind) = bytes.first() else {
            return Verdict::More;
        };
        if kind != TLS_HANDSHAKE && kind != TLS_ALERT {
            return UNEXPECTED;
        }
        let Some((head, body)) = bytes.split_at_checked(TLS_RECORD_HEAD_BYTES) else {
            return Verdict::More;
        };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if head[1] != 3 || !(1..=TLS_RECORD_BYTES_MAX).contains(&length) {
            return UNEXPECTED;
        }
        match (kind, body) {
            (_, []) => return Verdict::More,
            (TLS_HANDSHAKE, [TLS_SERVER_HELLO, ..]) => return Verdict::Passed,
            (TLS_HANDSHAKE, _) => return UNEXPECTED,
            (_, [_]) => return Verdict::More,
            (_, [TLS_ALERT_WARNING, what, ..])
                if length == 2 && *what != TLS_ALERT_CLOSE_NOTIFY =>
            {
                bytes = &body[length..];
            }
            _ => return UNEXPECTED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNEXPECTED: Verdict = Verdict::Failed(CheckFailure::UnexpectedAnswer);

    fn http_kind() -> CheckKind {
        CheckKind::Http {
            path: "/".to_owned(),
            host: "h".to_owned(),
            status: vec![200..=299, 401..=401],
        }
    }

    fn exchange(expect: Expect) -> CheckKind {
        let send = Vec::new();
        CheckKind::Exchange { send, expect }
    }

    const TLS: CheckKind = CheckKind::Tls { server_name: None };

    fn whole(kind: &CheckKind, bytes: &[u8]) -> Verdict {
        Answer::default().add(kind, bytes)
    }

    /// The first verdict of an answer that comes in bytes.
    fn trickled(kind: &CheckKind, bytes: &[u8]) -> Verdict {
        let mut answer = Answer::default();
        bytes
            .iter()
            .map(|byte| answer.add(kind, &[*byte]))
            .find(|verdict| *verdict != Verdict::More)
            .unwrap_or(Verdict::More)
    }

    #[track_caller]
    fn judge(kind: &CheckKind, bytes: &[u8], expected: Verdict) {
        assert_eq!(whole(kind, bytes), expected);
        assert_eq!(trickled(kind, bytes), expected, "in bytes");
    }

    #[test]
    fn a_prefix_is_judged_at_its_first_wrong_byte() {
        let kind = exchange(Expect::Prefix(b"+PONG".to_vec()));
        judge(&kind, b"+PO", Verdict::More);
        judge(&kind, b"+PONG\r\n", Verdict::Passed);
        judge(&kind, b"-NOAUTH +PONG", UNEXPECTED);
        assert_eq!(Answer::default().end(&kind), CheckFailure::ClosedEarly);
    }

    #[test]
    fn a_word_is_found_wherever_it_is_and_at_the_end_it_is_missing() {
        let kind = exchange(Expect::Contains(b"role:master".to_vec()));
        judge(&kind, b"x\r\nrole:role:master\r\n", Verdict::Passed);
        let mut answer = Answer::default();
        assert_eq!(answer.end(&kind), CheckFailure::ClosedEarly);
        assert_eq!(answer.add(&kind, b"role:slave"), Verdict::More);
        assert_eq!(answer.end(&kind), CheckFailure::UnexpectedAnswer);
    }

    #[test]
    fn an_answer_has_an_end() {
        let kind = exchange(Expect::Contains(b"y".to_vec()));
        judge(&kind, &[b'x'; ANSWER_BYTES_MAX - 1], Verdict::More);
        judge(&kind, &[b'x'; ANSWER_BYTES_MAX], UNEXPECTED);
        let endless = [b"HTTP/1.1 200 ".as_slice(), &[b'x'; HTTP_BYTES_MAX]].concat();
        judge(&http_kind(), &endless, UNEXPECTED);
    }

    #[test]
    fn a_status_line_is_enough() {
        let kind = http_kind();
        judge(&kind, b"HTTP/1.1 20", Verdict::More);
        judge(&kind, b"HTTP/1.1 204 No Content", Verdict::More);
        judge(&kind, b"HTTP/1.1 204 No Content\r\n", Verdict::Passed);
        judge(&kind, b"HTTP/1.0 401\n", Verdict::Passed);
        let bad = Verdict::Failed(CheckFailure::BadStatus(503));
        judge(&kind, b"HTTP/1.1 503 Busy\r\nA: b\r\n\r\nbody", bad);
        judge(&kind, b"HTTP/1.1 2000 OK\r\n", UNEXPECTED);
        judge(&kind, b"HTTP/2 200\r\n", UNEXPECTED);
        judge(&kind, b"SSH-2.0-x\r\n", UNEXPECTED);
    }

    #[test]
    fn interim_answers_are_passed_over() {
        let kind = http_kind();
        let early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".as_slice();
        judge(&kind, early, Verdict::More);
        judge(
            &kind,
            &[early, b"HTTP/1.1 200 OK\r\n"].concat(),
            Verdict::Passed,
        );
        let bad = Verdict::Failed(CheckFailure::BadStatus(500));
        judge(&kind, &[early, b"HTTP/1.1 500 X\r\n"].concat(), bad);
        let switched = Verdict::Failed(CheckFailure::BadStatus(101));
        judge(&kind, b"HTTP/1.1 101 X\r\n", switched);
    }

    #[test]
    fn a_server_hello_passes_and_a_fatal_alert_does_not() {
        let hello = [22, 3, 3, 0, 80, 2, 0, 0, 76, 3, 3];
        judge(&TLS, &hello[..5], Verdict::More);
        judge(&TLS, &hello, Verdict::Passed);
        let warning = [21, 3, 3, 0, 2, 1, 112];
        judge(&TLS, &warning, Verdict::More);
        judge(&TLS, &[&warning[..], &hello].concat(), Verdict::Passed);
        judge(&TLS, &[21, 3, 3, 0, 2, 2, 40], UNEXPECTED);
        judge(&TLS, &[21, 3, 3, 0, 2, 1, 0], UNEXPECTED);
        judge(&TLS, &[21, 3, 3, 0, 3, 1, 112, 0], UNEXPECTED);
        // Another message, another version, an empty or too long record, plain HTTP.
        judge(&TLS, &[22, 3, 3, 0, 4, 11], UNEXPECTED);
        judge(&TLS, &[22, 2, 0, 0, 4, 2], UNEXPECTED);
        judge(&TLS, &[22, 3, 3, 0, 0, 2], UNEXPECTED);
        judge(&TLS, &[22, 3, 3, 0x40, 1, 2], UNEXPECTED);
        judge(&TLS, b"HTTP/1.1 400 Bad Request\r\n", UNEXPECTED);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_their_segments_do_not_matter(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            which in 0usize..4,
        ) {
            let starts: [&[u8]; 4] = [b"HTTP/1.1 1", &[21, 3, 3, 0, 2, 1], b"ab", &[22, 3, 3]];
            bytes.splice(0..0, starts[which].iter().copied());
            for kind in [
                http_kind(),
                TLS,
                exchange(Expect::Prefix(b"abc".to_vec())),
                exchange(Expect::Contains(vec![b'a', b'a'])),
            ] {
                prop_assert_eq!(whole(&kind, &bytes), trickled(&kind, &bytes));
            }
        }
    }
}
