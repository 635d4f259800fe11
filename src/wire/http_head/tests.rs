//! Tests of [`super`]: a table for each kind of answer, then the properties.

use proptest::prelude::*;

use super::*;

fn peek_all(bytes: &[u8]) -> Parsed<Head, HeadError> {
    peek(bytes, HEAD_MAX_BYTES)
}

fn host_of(text: &str) -> Result<Option<String>, HeadError> {
    match peek_all(text.as_bytes()) {
        Parsed::Done { value, used } => {
            assert_eq!(used, text.len(), "{text:?}");
            Ok(value.host.map(|host| host.to_string()))
        }
        Parsed::NeedMore => panic!("needs more: {text:?}"),
        Parsed::Bad(error) => Err(error),
    }
}

#[test]
fn hosts_that_are_asked_for() {
    for (text, expected) in [
        (
            "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
            Some("example.com"),
        ),
        (
            "GET / HTTP/1.1\r\nhOST:Example.COM:8080\r\n\r\n",
            Some("example.com"),
        ),
        (
            "GET / HTTP/1.1\r\nA: b\r\nHost:  \t example.com. \t \r\nC: d\r\n\r\n",
            Some("example.com"),
        ),
        (
            "GET / HTTP/1.1\r\nHost: [2001:DB8::1]:80\r\n\r\n",
            Some("2001:db8::1"),
        ),
        (
            "GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
            Some("192.0.2.1"),
        ),
        ("GET / HTTP/1.1\nHost: lf.example\n\n", Some("lf.example")),
        (
            "\r\n\r\nGET / HTTP/1.1\r\nHost: late.example\r\n\r\n",
            Some("late.example"),
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: star.example\r\n\r\n",
            Some("star.example"),
        ),
        (
            "M-SEARCH /x?y HTTP/1.0\r\nHost: old.example\r\n\r\n",
            Some("old.example"),
        ),
        ("GET / HTTP/1.0\r\n\r\n", None),
        ("GET / HTTP/1.1\r\nX-Host: a.example\r\n\r\n", None),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", None),
        ("GET / HTTP/1.1\r\nHost:   \r\n\r\n", None),
        // The target's own authority counts, whatever the field says.
        (
            "GET http://A.example:81/x HTTP/1.1\r\nHost: b.example\r\n\r\n",
            Some("a.example"),
        ),
        (
            "GET http://a.example?q HTTP/1.1\r\nHost: ///\r\n\r\n",
            Some("a.example"),
        ),
        ("GET https://a.example HTTP/1.1\r\n\r\n", Some("a.example")),
        ("GET WS://[::1]:1/ HTTP/1.1\r\n\r\n", Some("::1")),
        (
            "CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n",
            Some("a.example"),
        ),
    ] {
        assert_eq!(host_of(text), Ok(expected.map(str::to_owned)), "{text:?}");
        for cut in 0..text.len() {
            assert_eq!(
                peek_all(&text.as_bytes()[..cut]),
                Parsed::NeedMore,
                "{cut} of {text:?}"
            );
        }
        let with_body = format!("{text}body\r\n\r\n");
        assert!(
            matches!(peek_all(with_body.as_bytes()), Parsed::Done { used, .. } if used == text.len())
        );
    }
}

#[test]
fn heads_that_are_wrong() {
    let many = format!(
        "GET / HTTP/1.1\r\n{}\r\n",
        "A: b\r\n".repeat(FIELDS_MAX + 1)
    );
    for (text, expected) in [
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n",
            HeadError::HostTwice,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nA: b\r\nHOST:\r\n\r\n",
            HeadError::HostTwice,
        ),
        (
            "GET http://a.example/ HTTP/1.1\r\nHost: b\r\nHost: b\r\n\r\n",
            HeadError::HostTwice,
        ),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", HeadError::Host),
        (
            "GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n",
            HeadError::Host,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example:http\r\n\r\n",
            HeadError::Host,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example:65536\r\n\r\n",
            HeadError::Host,
        ),
        (
            "GET / HTTP/1.1\r\nHost: user@a.example\r\n\r\n",
            HeadError::Host,
        ),
        (
            "GET / HTTP/1.1\r\nHost: b\u{fc}cher.example\r\n\r\n",
            HeadError::Host,
        ),
        (
            "GET / HTTP/1.1\r\nHost : a.example\r\n\r\n",
            HeadError::Syntax,
        ),
        (
            "GET / HTTP/1.1\r\n Host: a.example\r\n\r\n",
            HeadError::Syntax,
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", HeadError::Syntax),
        ("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", HeadError::Syntax),
        ("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", HeadError::Syntax),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", HeadError::Syntax),
        ("GET / HTTP/1.1\rX", HeadError::Syntax),
        ("GET a.example HTTP/1.1\r\n\r\n", HeadError::Target),
        (
            "GET http:///x HTTP/1.1\r\nHost: a.example\r\n\r\n",
            HeadError::Target,
        ),
        (
            "GET http://user@a.example/ HTTP/1.1\r\n\r\n",
            HeadError::Target,
        ),
        ("GET 1://a.example/ HTTP/1.1\r\n\r\n", HeadError::Target),
        ("GET ://a.example/ HTTP/1.1\r\n\r\n", HeadError::Target),
        (
            "CONNECT / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            HeadError::Target,
        ),
        (&many, HeadError::Fields),
    ] {
        assert_eq!(host_of(text), Err(expected), "{text:?}");
    }
}

/// Other protocols do not wait for a whole line: the shortest beginning that tells, and not one byte less.
#[test]
fn other_protocols_are_known_by_their_first_bytes() {
    let long_method = "M".repeat(METHOD_MAX_BYTES + 1);
    for text in [
        "\x16",
        "\0",
        " ",
        "\u{fc}",
        "SSH-2.0-OpenSSH_9.6\r",
        "PING\r",
        "*1\r",
        "PROXY TCP4 1",
        "EHLO a.example\r",
        "set foo 0",
        "GET /\r",
        "GET  ",
        "GET / HTTP/2",
        "GET / HTTP/1.2",
        "GET / h",
        "GET / HTTX",
        "GET /\0",
        "PRI / HTTP/2",
        &long_method,
    ] {
        // The letter beyond ASCII has two bytes, the first of which tells.
        let known = if text.is_ascii() { text.len() } else { 1 };
        let bytes = text.as_bytes();
        assert_eq!(
            peek_all(&bytes[..known]),
            Parsed::Bad(HeadError::NotHttp),
            "{text:?}"
        );
        assert_eq!(peek_all(&bytes[..known - 1]), Parsed::NeedMore, "{text:?}");
    }
}

#[test]
fn the_preface_of_http_2_has_its_own_answer() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for cut in 0..HTTP2_REQUEST_LINE.len() {
        assert_eq!(peek_all(&preface[..cut]), Parsed::NeedMore);
    }
    for cut in HTTP2_REQUEST_LINE.len()..=preface.len() {
        assert_eq!(peek_all(&preface[..cut]), Parsed::Bad(HeadError::Http2));
    }
}

#[test]
fn a_head_has_a_longest_length() {
    let text = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    assert!(matches!(
        peek(text.as_bytes(), text.len()),
        Parsed::Done { .. }
    ));
    assert_eq!(
        peek(text.as_bytes(), text.len() - 1),
        Parsed::Bad(HeadError::TooLarge)
    );
    let endless = format!("GET /{}", "a".repeat(100_000));
    assert_eq!(
        peek_all(endless.as_bytes()),
        Parsed::Bad(HeadError::TooLarge)
    );
    assert_eq!(
        peek_all("\r\n".repeat(50_000).as_bytes()),
        Parsed::Bad(HeadError::TooLarge)
    );
    // As many fields as are allowed.
    let most = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(FIELDS_MAX));
    assert_eq!(host_of(&most), Ok(None));
}

#[test]
fn every_word_is_distinct_and_the_list_is_in_order() {
    let words: std::collections::HashSet<_> = HeadError::ALL.iter().map(|e| e.as_str()).collect();
    assert_eq!(words.len(), HeadError::ALL.len());
    for (index, error) in HeadError::ALL.iter().enumerate() {
        assert_eq!(*error as usize, index);
    }
}

proptest! {
    #[test]
    fn hosts_come_back(
        host in "[a-z0-9_-]{1,20}(\\.[a-z0-9-]{1,20}){0,4}\\.[a-z]{2,10}",
        port in prop::option::of(any::<u16>()),
        others in prop::collection::vec("[A-Za-z-]{5,20}: [ -~]{0,40}", 0..20),
        at in any::<prop::sample::Index>(),
    ) {
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let mut fields = others;
        fields.insert(at.index(fields.len() + 1), format!("Host: {}{port}", host.to_uppercase()));
        let text = format!("GET / HTTP/1.1\r\n{}\r\n\r\n", fields.join("\r\n"));
        prop_assert_eq!(host_of(&text), Ok(Some(host)));
    }

    /// Whatever the bytes: an answer within them, and the same one however they are cut.
    #[test]
    fn any_bytes_have_one_answer(
        beginning in prop::sample::select(vec![
            "", "GET / HTTP/1.1\r\nHost: a.example\r\nA: b\r\n\r\n", "GET http://a.example/ HTTP/1.1\r\nHost: b\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\n", "\r\n\r\nCONNECT a:1 HTTP/1.0\n\n",
        ]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        rest in prop::collection::vec(any::<u8>(), 0..60),
        max_bytes in 1usize..200,
    ) {
        let mut bytes = [beginning.as_bytes(), &rest].concat();
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        let answer = peek(&bytes, max_bytes);
        if let Parsed::Done { used, .. } = answer {
            prop_assert!(used <= bytes.len().min(max_bytes));
        }
        let first = (0..=bytes.len()).map(|cut| peek(&bytes[..cut], max_bytes)).find(|a| *a != Parsed::NeedMore);
        prop_assert_eq!(first.unwrap_or(Parsed::NeedMore), answer);
    }
}
