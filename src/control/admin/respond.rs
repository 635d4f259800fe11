//! From bytes to a request's head, and from a head to an answer. No sockets, no clock.

use super::AdminSource;
use crate::metrics::exposition;

/// Headers that a request may have; scrapers and browsers send fewer than twenty.
const HEADERS_MAX: usize = 64;
const TEXT: &str = "text/plain; charset=utf-8";
const INDEX: &str = "\
Corelay

/metrics   Prometheus text format
/stats     the same for a person, as JSON
/upstreams how the servers stand, as JSON
/healthz   200 while every core turns
/readyz    200 while every listener listens, 503 before, while stopping, and without servers if told so
";

/// What matters of a request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    method: String,
    path: String,
    /// Whether another request may follow on this connection.
    pub(super) keep_alive: bool,
}

impl Head {
    /// Stands for a request that could not be read: the connection's last.
    pub(super) const LAST: Head = Head {
        method: String::new(),
        path: String::new(),
        keep_alive: false,
    };
}

/// Parses a head: it and its length, `None` if there is more to come, or the answer that tells what
/// is wrong with it.
pub(super) fn parse(input: &[u8]) -> Result<Option<(Head, usize)>, Answer> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let used = match request.parse(input) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(Answer::text(400, format!("bad request: {error}\n"))),
    };
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(Answer::text(400, "bad request\n".to_owned()));
    };
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let head = Head {
        method: method.to_owned(),
        path: path.to_owned(),
        keep_alive: keeps_alive(&request),
    };
    Ok(Some((head, used)))
}

/// HTTP/1.1 keeps the connection unless told otherwise, HTTP/1.0 the other way round. A body, which no
/// request here needs, is not read, so that nothing behind it could be understood.
fn keeps_alive(request: &httparse::Request<'_, '_>) -> bool {
    let mut keep_alive = request.version == Some(1);
    for header in request.headers.iter() {
        let value = String::from_utf8_lossy(header.value).to_ascii_lowercase();
        let value = value.trim();
        if header.name.eq_ignore_ascii_case("connection") {
            for token in value.split(',').map(str::trim) {
                match token {
                    "close" => return false,
                    "keep-alive" => keep_alive = true,
                    _ => {}
                }
            }
        }
        let announces_body = (header.name.eq_ignore_ascii_case("content-length") && value != "0")
            || header.name.eq_ignore_ascii_case("transfer-encoding");
        if announces_body {
            return false;
        }
    }
    keep_alive
}

/// Chooses the answer.
pub(super) fn route(head: &Head, source: &dyn AdminSource) -> Answer {
    if head.method != "GET" && head.method != "HEAD" {
        let mut answer = Answer::text(405, "only GET and HEAD\n".to_owned());
        answer.allow = Some("GET, HEAD");
        return answer;
    }
    match head.path.as_str() {
        "/" => Answer::text(200, INDEX.to_owned()),
        "/metrics" => Answer {
            content_type: exposition::CONTENT_TYPE,
            ..Answer::text(200, source.metrics_text())
        },
        "/stats" => Answer {
            content_type: "application/json",
            ..Answer::text(200, source.stats_json())
        },
        "/upstreams" => Answer {
            content_type: "application/json",
            ..Answer::text(200, source.upstreams_json())
        },
        "/healthz" => Answer::probe(source.healthy()),
        "/readyz" => Answer::probe(source.ready()),
        _ => Answer::text(404, "not found; / lists what there is\n".to_owned()),
    }
}

/// An answer, before it is known whether its body is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    status: u16,
    content_type: &'static str,
    allow: Option<&'static str>,
    body: String,
}

impl Answer {
    pub(super) fn text(status: u16, body: String) -> Self {
        Self {
            status,
            content_type: TEXT,
            allow: None,
            body,
        }
    }

    fn probe(result: Result<(), String>) -> Self {
        match result {
            Ok(()) => Self::text(200, "ok\n".to_owned()),
            Err(reason) => Self::text(503, format!("{reason}\n")),
        }
    }

    /// The bytes to send for this head: without the body for HEAD.
    pub(super) fn bytes(&self, head: Head) -> Vec<u8> {
        let mut text = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: {}\r\n",
            self.status,
            reason_phrase(self.status),
            self.content_type,
            self.body.len(),
            if head.keep_alive {
                "keep-alive"
            } else {
                "close"
            },
        );
        if let Some(methods) = self.allow {
            text.push_str("Allow: ");
            text.push_str(methods);
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        if head.method != "HEAD" {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }
}

fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        parse(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn keep_alive_follows_version_and_headers() {
        for (text, keep_alive) in [
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nconnection: TE, Close\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", false),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
            ),
        ] {
            assert_eq!(head(text).keep_alive, keep_alive, "{text:?}");
        }
    }

    #[test]
    fn a_query_is_not_part_of_the_path() {
        assert_eq!(head("GET /metrics?a=b HTTP/1.1\r\n\r\n").path, "/metrics");
    }

    #[test]
    fn every_prefix_of_a_request_waits_for_more() {
        let text = b"GET /stats HTTP/1.1\r\nHost: a\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(parse(&text[..end]).unwrap(), None, "{end}");
        }
        assert_eq!(parse(text).unwrap().unwrap().1, text.len());
    }
}
