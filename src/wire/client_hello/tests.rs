//! Tests of [`super`]: captured hellos, hellos built to be wrong in one place, then the properties.

use proptest::prelude::*;

use super::*;
use crate::wire::fixtures::fixture;

fn prefixed_u8(content: &[u8]) -> Vec<u8> {
    [&[content.len() as u8], content].concat()
}

fn prefixed_u16(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16).to_be_bytes(), content].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes(), &prefixed_u16(content)[..]].concat()
}

fn sni(name: &[u8]) -> Vec<u8> {
    let entry = [&[NAME_TYPE_HOST], &prefixed_u16(name)[..]].concat();
    extension(EXTENSION_SERVER_NAME, &prefixed_u16(&entry))
}

fn alpn(names: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|name| prefixed_u8(name)).collect();
    extension(EXTENSION_ALPN, &prefixed_u16(&list))
}

/// A hello's body up to its extensions.
fn body_head() -> Vec<u8> {
    [
        &[3, 3][..],
        &[7; 32],
        &prefixed_u8(&[9; 32]),
        &prefixed_u16(&[0x13, 1]),
        &[1, 0],
    ]
    .concat()
}

fn message(body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    [&[MESSAGE_CLIENT_HELLO], &length[1..], body].concat()
}

/// A message in records of at most `fragment_bytes`.
fn records(message: &[u8], fragment_bytes: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[RECORD_HANDSHAKE, 3, 1], &prefixed_u16(part)[..]].concat();
    message.chunks(fragment_bytes).flat_map(record).collect()
}

/// A hello with these extensions in one record.
fn hello_with(extensions: &[&[u8]]) -> Vec<u8> {
    let body = [body_head(), prefixed_u16(&extensions.concat())].concat();
    records(&message(&body), RECORD_MAX_BYTES)
}

fn peek_all(bytes: &[u8]) -> Parsed<Hello, HelloError> {
    peek(bytes, HELLO_MAX_BYTES)
}

fn name_of(bytes: &[u8]) -> Result<Option<String>, HelloError> {
    match peek_all(bytes) {
        Parsed::Done { value, used } => {
            assert_eq!(used, bytes.len());
            Ok(value.server_name.map(|name| name.to_string()))
        }
        Parsed::NeedMore => panic!("needs more: {bytes:x?}"),
        Parsed::Bad(error) => Err(error),
    }
}

/// Every proper prefix needs more; the whole is done, whatever follows.
fn assert_hello(bytes: &[u8], expected: &Hello) {
    for cut in 0..bytes.len() {
        assert_eq!(
            peek_all(&bytes[..cut]),
            Parsed::NeedMore,
            "{cut} of {}",
            bytes.len()
        );
    }
    for behind in [&b""[..], b"\x14\x03\x03\0\x01\x01", b"anything"] {
        let done = Parsed::Done {
            value: expected.clone(),
            used: bytes.len(),
        };
        assert_eq!(peek_all(&[bytes, behind].concat()), done);
    }
}

#[test]
fn captured_hellos() {
    let many: Vec<String> = (0..ALPN_NAMES_MAX)
        .map(|index| format!("p{index:03}"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let web = &["h2", "http/1.1"][..];
    for (bytes, name, alpn, has_ech) in [
        (
            fixture!("tls_openssl_tls13"),
            Some("example.com"),
            web,
            false,
        ),
        (
            fixture!("tls_openssl_tls12"),
            Some("www.example.com"),
            &[][..],
            false,
        ),
        (
            fixture!("tls_openssl_tls10"),
            Some("example.com"),
            &[],
            false,
        ),
        (fixture!("tls_openssl_no_sni"), None, &[], false),
        (
            fixture!("tls_openssl_three_records"),
            Some("fragments.example.com"),
            &many,
            false,
        ),
        (fixture!("tls_curl"), Some("example.org"), web, false),
        (
            fixture!("tls_chrome"),
            Some("browser.example.com"),
            web,
            true,
        ),
        (
            fixture!("tls_firefox"),
            Some("browser.example.com"),
            web,
            true,
        ),
        (
            fixture!("tls_safari"),
            Some("browser.example.com"),
            web,
            false,
        ),
    ] {
        let server_name = name.map(|name| match Host::parse(name.as_bytes()) {
            Some(Host::Name(name)) => name,
            other => panic!("{other:?}"),
        });
        let alpn = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let expected = Hello {
            server_name,
            alpn,
            has_ech,
        };
        assert_hello(&bytes, &expected);
    }
}

/// The post-quantum key share of today's browsers no longer fits one segment of 1,460 bytes.
#[test]
fn captured_hellos_include_a_post_quantum_key_share() {
    const X25519MLKEM768: &[u8] = &[0x11, 0xEC, 0x04, 0xC0];
    for bytes in [
        fixture!("tls_chrome"),
        fixture!("tls_firefox"),
        fixture!("tls_safari"),
    ] {
        assert!(bytes.len() > 1460);
        assert!(bytes.windows(4).any(|window| window == X25519MLKEM768));
    }
}

/// The same hello in records of every size, so that a boundary falls on every byte of the name and of every
/// length.
#[test]
fn fragments_of_every_size_make_the_same_hello() {
    let message = message(
        &[
            body_head(),
            prefixed_u16(&[sni(b"Split.Example"), alpn(&[b"h2"])].concat()),
        ]
        .concat(),
    );
    let Parsed::Done {
        value: expected, ..
    } = peek_all(&records(&message, message.len()))
    else {
        panic!("one record");
    };
    assert_eq!(
        expected.server_name.as_ref().map(ServerName::as_str),
        Some("split.example")
    );
    for size in 1..message.len() {
        assert_hello(&records(&message, size), &expected);
    }
    // Two records, cut at every byte.
    for cut in 1..message.len() {
        let two = [
            records(&message[..cut], cut),
            records(&message[cut..], message.len()),
        ]
        .concat();
        assert_eq!(
            peek_all(&two),
            Parsed::Done {
                value: expected.clone(),
                used: two.len()
            }
        );
    }
}

#[test]
fn names_that_are_and_are_not() {
    let longest = [
        ["a"; 63].concat(),
        ["b"; 63].concat(),
        ["c"; 63].concat(),
        ["d"; 61].concat(),
    ]
    .join(".");
    let longest = longest.as_bytes();
    let (bad, none) = (HelloError::ServerName, Ok(None));
    let name = |text: &str| Ok(Some(text.to_owned()));
    let one = |server_name: &[u8]| name_of(&hello_with(&[&sni(server_name)]));
    assert_eq!(one(b"WWW.Example.COM"), name("www.example.com"));
    assert_eq!(one(b"example.com."), name("example.com"));
    assert_eq!(
        one(longest).map(|found| found.map(|name| name.len())),
        Ok(Some(253))
    );
    assert_eq!(
        one(&[longest, b"."].concat()).map(|found| found.is_some()),
        Ok(true)
    );
    assert_eq!(one(b"192.0.2.1"), none);
    assert_eq!(one(b"2001:db8::1"), none);
    for wrong in [
        &b"example.com\0"[..],
        b"\0",
        b"a\0b.example",
        b"example com",
        b"ex\xFFample",
        b".",
        b"a..b",
        b"[::1]",
        b"example.com:443",
        &[longest, b"e"].concat(),
        &[b'a'; 255],
        &[b'a'; 300],
        &[b'a'; 64],
    ] {
        assert_eq!(one(wrong), Err(bad), "{wrong:x?}");
    }
    assert_eq!(one(b""), Err(HelloError::Length));
    // None at all, in three ways: no extensions, no such extension, another type of name.
    assert_eq!(name_of(&records(&message(&body_head()), 1 << 14)), none);
    assert_eq!(name_of(&hello_with(&[])), none);
    assert_eq!(name_of(&hello_with(&[&alpn(&[b"h2"])])), none);
    let other_type = [&[9], &prefixed_u16(b"x")[..]].concat();
    let with_other = |list: &[u8]| name_of(&hello_with(&[&extension(0, &prefixed_u16(list))]));
    assert_eq!(with_other(&other_type), none);
    let host = [&[0], &prefixed_u16(b"a.example")[..]].concat();
    assert_eq!(
        with_other(&[&other_type[..], &host].concat()),
        name("a.example")
    );
    // Duplicates: the extension, and the name inside it.
    let twice = HelloError::Duplicate;
    assert_eq!(with_other(&host.repeat(2)), Err(twice));
    assert_eq!(
        name_of(&hello_with(&[&sni(b"a.example"), &sni(b"a.example")])),
        Err(twice)
    );
    let alpn = alpn(&[b"h2"]);
    assert_eq!(
        name_of(&hello_with(&[&alpn, &sni(b"a.example"), &alpn])),
        Err(twice)
    );
    let grease = extension(0x0A0A, b"");
    assert_eq!(
        name_of(&hello_with(&[&grease, &sni(b"a.example"), &grease])),
        name("a.example")
    );
}

#[test]
fn lists_of_protocols() {
    let alpn_of = |bytes: &[u8]| match peek_all(bytes) {
        Parsed::Done { value, .. } => Ok(value.alpn),
        Parsed::NeedMore => panic!("needs more"),
        Parsed::Bad(error) => Err(error),
    };
    let long = [b'x'; 255];
    let names: [&[u8]; 3] = [b"\x0a\x0a", b"h2", &long];
    assert_eq!(
        alpn_of(&hello_with(&[&alpn(&names)])),
        Ok(names.map(<[u8]>::to_vec).to_vec())
    );
    let many = vec![&b"h2"[..]; 1000];
    assert_eq!(
        alpn_of(&hello_with(&[&alpn(&many)])).map(|names| names.len()),
        Ok(ALPN_NAMES_MAX)
    );
    for wrong in [
        &[][..],
        &[0],
        &[0, 0],
        &[0, 3, 2, b'h', b'2', 0],
        &[0, 1, 0],
        &[0, 2, 2, b'h'],
        &[0, 9, 2, b'h', b'2'],
    ] {
        let bytes = hello_with(&[&extension(EXTENSION_ALPN, wrong)]);
        assert_eq!(alpn_of(&bytes), Err(HelloError::Length), "{wrong:x?}");
    }
}

/// Each length inside, one too small and one too large.
#[test]
fn lengths_that_do_not_fit() {
    let right = [body_head(), prefixed_u16(&sni(b"a.example"))].concat();
    assert!(name_of(&records(&message(&right), 1 << 14)).is_ok());
    // Session id, suites (low byte), compression, extensions, extension, list, name; random's has none.
    for at in [34, 68, 71, 74, 78, 80, 83] {
        for change in [1_u8, u8::MAX] {
            let mut wrong = right.clone();
            wrong[at] = wrong[at].wrapping_add(change);
            let answer = name_of(&records(&message(&wrong), 1 << 14));
            assert_eq!(answer, Err(HelloError::Length), "byte {at}, {change}");
        }
    }
    for cut in 0..right.len() {
        let answer = name_of(&records(&message(&right[..cut]), 1 << 14));
        let expected = if cut == body_head().len() {
            Ok(None)
        } else {
            Err(HelloError::Length)
        };
        assert_eq!(answer, expected, "cut at {cut}");
    }
    let behind = [&right[..], &[0]].concat();
    assert_eq!(
        name_of(&records(&message(&behind), 1 << 14)),
        Err(HelloError::Length)
    );
    let no_suites = [&[3, 3][..], &[7; 32], &[0], &[0, 0], &[1, 0]].concat();
    assert_eq!(
        name_of(&records(&message(&no_suites), 1 << 14)),
        Err(HelloError::Length)
    );
    let odd_suites = [&[3, 3][..], &[7; 32], &[0], &[0, 3, 0, 1, 2], &[1, 0]].concat();
    assert_eq!(
        name_of(&records(&message(&odd_suites), 1 << 14)),
        Err(HelloError::Length)
    );
    let long_session = [
        &[3, 3][..],
        &[7; 32],
        &prefixed_u8(&[0; 33]),
        &[0, 2, 0, 1],
        &[1, 0],
    ]
    .concat();
    assert_eq!(
        name_of(&records(&message(&long_session), 1 << 14)),
        Err(HelloError::Length)
    );
    let no_compression = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0, 1], &[0]].concat();
    assert_eq!(
        name_of(&records(&message(&no_compression), 1 << 14)),
        Err(HelloError::Length)
    );
    let empty_list = hello_with(&[&extension(0, &[0, 0])]);
    assert_eq!(name_of(&empty_list), Err(HelloError::Length));
    let empty_extension = hello_with(&[&extension(0, &[])]);
    assert_eq!(name_of(&empty_extension), Err(HelloError::Length));
}

#[test]
fn other_protocols_are_known_by_their_first_bytes() {
    for bytes in [
        &b"G"[..],
        b"GET / HTTP/1.1\r\n",
        b"\0",
        b"\x15\x03\x01",
        b"\x17",
        b"\x16\x02",
        b"\x16G",
        b"PROXY ",
    ] {
        assert_eq!(
            peek_all(bytes),
            Parsed::Bad(HelloError::NotTls),
            "{bytes:x?}"
        );
    }
    // SSLv2: version 2, and the compatible hello of a client with SSL 3 or TLS.
    assert_eq!(peek_all(b"\x80\x2e\x01"), Parsed::NeedMore);
    for bytes in [&b"\x80\x2e\x01\x00\x02"[..], b"\x80\x2e\x01\x03"] {
        assert_eq!(
            peek_all(bytes),
            Parsed::Bad(HelloError::Sslv2),
            "{bytes:x?}"
        );
    }
    for bytes in [&b"\x80\x2e\x02"[..], b"\xff\xfe\xfd", b"\x80\x2e\x01\x02"] {
        assert_eq!(
            peek_all(bytes),
            Parsed::Bad(HelloError::NotTls),
            "{bytes:x?}"
        );
    }
}

#[test]
fn records_that_are_wrong() {
    let head = |bytes: &[u8]| peek_all(bytes);
    assert_eq!(head(b"\x16\x03\x00"), Parsed::Bad(HelloError::Version));
    assert_eq!(head(b"\x16\x03\x04"), Parsed::Bad(HelloError::Version));
    for minor in [1, 2, 3] {
        assert_eq!(head(&[22, 3, minor, 0, 5, 1]), Parsed::NeedMore);
    }
    assert_eq!(head(b"\x16\x03\x01\0\0"), Parsed::Bad(HelloError::Record));
    assert_eq!(head(b"\x16\x03\x01\x40\0"), Parsed::NeedMore);
    assert_eq!(
        head(b"\x16\x03\x01\x40\x01"),
        Parsed::Bad(HelloError::Record)
    );
    assert_eq!(
        head(b"\x16\x03\x01\0\x05\x02"),
        Parsed::Bad(HelloError::Message)
    );
    let whole = hello_with(&[&sni(b"a.example")]);
    let two = records(&whole[RECORD_HEAD_BYTES..], 20);
    for (at, byte, expected) in [
        (25, 21, HelloError::Record),
        (26, 2, HelloError::Record),
        (27, 0, HelloError::Version),
        (29, 0, HelloError::Record),
    ] {
        let mut wrong = two.clone();
        wrong[at] = byte;
        assert_eq!(peek_all(&wrong), Parsed::Bad(expected), "byte {at}");
    }
}

/// Over the limit it is refused as soon as a length tells, and at the limit whatever is missing.
#[test]
fn a_hello_has_a_longest_length() {
    let padding = |length: usize| extension(21, &vec![0; length]);
    let bytes = hello_with(&[&sni(b"a.example"), &padding(600)]);
    let most = bytes.len();
    assert!(matches!(peek(&bytes, most), Parsed::Done { .. }));
    assert_eq!(peek(&bytes, most - 1), Parsed::Bad(HelloError::TooLarge));
    assert_eq!(
        peek(&bytes[..9], most - 1),
        Parsed::Bad(HelloError::TooLarge)
    );
    assert_eq!(peek(&bytes[..9], most), Parsed::NeedMore);
    // Record headers count: a hello in tiny records is refused at the limit at the latest.
    let tiny = records(&bytes[RECORD_HEAD_BYTES..], 1);
    assert_eq!(peek(&tiny, 2 * most), Parsed::Bad(HelloError::TooLarge));
    assert!(matches!(peek(&tiny, tiny.len()), Parsed::Done { .. }));
    // 16 MiB promised.
    assert_eq!(
        peek_all(b"\x16\x03\x01\x40\0\x01\xff\xff\xff"),
        Parsed::Bad(HelloError::TooLarge)
    );
    // More than one record holds, allowed by a larger limit.
    let large = message(
        &[
            body_head(),
            prefixed_u16(&[sni(b"a.example"), padding(20_000)].concat()),
        ]
        .concat(),
    );
    let large = records(&large, RECORD_MAX_BYTES);
    assert_eq!(peek_all(&large), Parsed::Bad(HelloError::TooLarge));
    assert!(matches!(peek(&large, 1 << 16), Parsed::Done { .. }));
    assert_eq!(peek(b"", 0), Parsed::Bad(HelloError::TooLarge));
}

/// What follows the message in its record is not a part of it.
#[test]
fn bytes_behind_the_message_are_left_alone() {
    let whole = hello_with(&[&sni(b"a.example")]);
    let with_more = records(
        &[&whole[RECORD_HEAD_BYTES..], &[11, 0, 0, 0]].concat(),
        1 << 14,
    );
    let Parsed::Done { used, .. } = peek_all(&with_more) else {
        panic!("not done");
    };
    assert_eq!(used, with_more.len() - 4);
}

#[test]
fn every_word_is_distinct_and_the_list_is_in_order() {
    let words: std::collections::HashSet<_> = HelloError::ALL.iter().map(|e| e.as_str()).collect();
    assert_eq!(words.len(), HelloError::ALL.len());
    for (index, error) in HelloError::ALL.iter().enumerate() {
        assert_eq!(*error as usize, index);
    }
}

proptest! {
    #[test]
    fn names_and_protocols_come_back(
        name in "[a-z0-9_-]{1,20}(\\.[a-z0-9-]{1,20}){0,4}\\.[a-z]{2,10}",
        protocols in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=255), 1..6),
        before in 0usize..40, fragment_bytes in 1usize..400,
    ) {
        let names: Vec<&[u8]> = protocols.iter().map(Vec::as_slice).collect();
        let extensions = [extension(21, &vec![0; before]), sni(name.to_uppercase().as_bytes()), alpn(&names)].concat();
        let message = message(&[body_head(), prefixed_u16(&extensions)].concat());
        let bytes = records(&message, fragment_bytes);
        match peek(&bytes, 1 << 16) {
            Parsed::Done { value, used } => {
                prop_assert_eq!(used, bytes.len());
                prop_assert_eq!(value.server_name.map(|name| name.to_string()), Some(name));
                prop_assert_eq!(value.alpn, protocols);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    /// Whatever the bytes: an answer within them, and the same one however they are cut.
    #[test]
    fn any_bytes_have_one_answer(
        fragment_bytes in 20usize..200,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        max_bytes in 1usize..600,
    ) {
        let message = message(&[body_head(), prefixed_u16(&[sni(b"a.example"), alpn(&[b"h2", b"x"])].concat())].concat());
        let mut bytes = records(&message, fragment_bytes);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let answer = peek(&bytes, max_bytes);
        if let Parsed::Done { used, .. } = answer {
            prop_assert!(used <= bytes.len().min(max_bytes));
        }
        let first = (0..=bytes.len()).map(|cut| peek(&bytes[..cut], max_bytes)).find(|a| *a != Parsed::NeedMore);
        prop_assert_eq!(first.unwrap_or(Parsed::NeedMore), answer);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = peek_all(&bytes);
        let _ = peek_all(&[b"\x16\x03\x01\x01\0\x01\0\0\xfc\x03\x03", &bytes[..]].concat());
    }
}
