//! A small HTTP/1.1 server role: keep-alive, pipelining, its own name in every answer.
//!
//! Enough for curl, browsers and load generators; not a web server.

use super::role::{Next, Role};

/// Longest request head, in bytes; a longer one is answered with 431.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Most header fields in a request.
const MAX_HEADERS: usize = 64;

pub(super) struct HttpRole {
    answer_keep: Vec<u8>,
    answer_close: Vec<u8>,
    /// Bytes of a head that is not complete yet.
    head: Vec<u8>,
    /// Bytes of the current request's body that are still to come.
    body_left: u64,
}

/// What a request's head says that matters here.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    length: usize,
    body_bytes: u64,
    keep_alive: bool,
}

/// A head that cannot be served.
#[derive(Debug, PartialEq, Eq)]
struct BadHead(&'static str);

impl HttpRole {
    pub(super) fn new(name: &str) -> Self {
        Self {
            answer_keep: answer("200 OK", name, "keep-alive"),
            answer_close: answer("200 OK", name, "close"),
            head: Vec::new(),
            body_left: 0,
        }
    }

    /// Answers every complete request in `self.head`.
    fn answer_all(&mut self, out: &mut Vec<u8>) -> Next {
        loop {
            let skip = usize::try_from(self.body_left)
                .unwrap_or(usize::MAX)
                .min(self.head.len());
            self.head.drain(..skip);
            self.body_left -= skip as u64;
            if self.body_left > 0 || self.head.is_empty() {
                return Next::Continue;
            }
            match parse(&self.head) {
                Ok(None) if self.head.len() < MAX_HEAD_BYTES => return Next::Continue,
                Ok(None) => return refuse("431 Request Header Fields Too Large", out),
                Err(BadHead(status)) => return refuse(status, out),
                Ok(Some(head)) => {
                    self.head.drain(..head.length);
                    self.body_left = head.body_bytes;
                    if !head.keep_alive {
                        out.extend_from_slice(&self.answer_close);
                        return Next::Finish;
                    }
                    out.extend_from_slice(&self.answer_keep);
                }
            }
        }
    }
}

impl Role for HttpRole {
    fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Next {
        self.head.extend_from_slice(bytes);
        self.answer_all(out)
    }
}

fn answer(status: &str, name: &str, connection: &str) -> Vec<u8> {
    let body = format!("hello from {name}\n");
    format!(
        "HTTP/1.1 {status}\r\nx-server: {name}\r\ncontent-type: text/plain\r\n\
         content-length: {}\r\nconnection: {connection}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn refuse(status: &str, out: &mut Vec<u8>) -> Next {
    out.extend_from_slice(
        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes(),
    );
    Next::Finish
}

/// Parses one request head; `None` if it is not complete yet.
fn parse(bytes: &[u8]) -> Result<Option<Head>, BadHead> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(BadHead("400 Bad Request")),
    };
    let mut head = Head {
        length,
        body_bytes: 0,
        keep_alive: request.version == Some(1),
    };
    for header in request.headers.iter() {
        let value = std::str::from_utf8(header.value).map_err(|_| BadHead("400 Bad Request"))?;
        if header.name.eq_ignore_ascii_case("content-length") {
            head.body_bytes = value
                .trim()
                .parse()
                .map_err(|_| BadHead("400 Bad Request"))?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(BadHead("501 Not Implemented"));
        } else if header.name.eq_ignore_ascii_case("connection") {
            if value.eq_ignore_ascii_case("close") {
                head.keep_alive = false;
            } else if value.eq_ignore_ascii_case("keep-alive") {
                head.keep_alive = true;
            }
        }
    }
    Ok(Some(head))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(pieces: &[&[u8]]) -> (String, Next) {
        let mut role = HttpRole::new("one");
        let mut out = Vec::new();
        let mut next = Next::Continue;
        for piece in pieces {
            next = role.received(piece, &mut out);
        }
        (String::from_utf8(out).unwrap(), next)
    }

    #[test]
    fn pipelined_requests_and_a_body_in_pieces_get_one_answer_each() {
        let (out, next) = exchange(&[
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\ncontent-le",
            b"ngth: 5\r\n\r\nhel",
            b"loGET / HTTP/1.1\r\n\r\n",
        ]);
        assert_eq!(out.matches("200 OK").count(), 3);
        assert_eq!(out.matches("x-server: one").count(), 3);
        assert_eq!(out.matches("hello from one\n").count(), 3);
        assert_eq!(next, Next::Continue);
    }

    #[test]
    fn close_and_old_versions_finish() {
        assert_eq!(
            exchange(&[b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"]).1,
            Next::Finish
        );
        assert_eq!(exchange(&[b"GET / HTTP/1.0\r\n\r\n"]).1, Next::Finish);
    }

    #[test]
    fn nonsense_and_endless_heads_are_refused() {
        assert!(exchange(&[b"\x16\x03\x01\x00\r\n\r\n"]).0.contains(" 400 "));
        let endless = [
            b"GET / HTTP/1.1\r\nx: ".to_vec(),
            vec![b'a'; MAX_HEAD_BYTES],
        ]
        .concat();
        assert!(exchange(&[&endless]).0.contains(" 431 "));
    }
}
