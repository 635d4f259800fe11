//! Tests of [`super`]: tables of what is and is not a header, and headers that HAProxy wrote. What is written, and
//! the properties: `written.rs`.

mod written;

use std::net::Ipv6Addr;

use super::*;
use crate::wire::fixtures::fixture;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn inet(source: &str, destination: &str) -> Addresses {
    Addresses::Inet {
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
    }
}

fn v1(addresses: Addresses) -> Header {
    Header {
        version: Version::V1,
        command: Command::Proxy,
        addresses,
        tlvs: Tlvs::default(),
    }
}

/// A version 2 header: version and command, family and transport, then the block behind the right length.
fn v2(version_command: u8, family_transport: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).expect("a short block");
    let mut header = SIGNATURE.to_vec();
    header.extend([version_command, family_transport]);
    header.extend(length.to_be_bytes());
    header.extend(block);
    header
}

/// An IPv4 block with `tlvs` behind it.
fn v4_block(tlvs: &[u8]) -> Vec<u8> {
    [
        &[192, 0, 2, 1, 198, 51, 100, 2, 0x04, 0x00, 0x01, 0xBB],
        tlvs,
    ]
    .concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("a short value");
    [&[kind], &length.to_be_bytes()[..], value].concat()
}

/// Every proper prefix needs more, the whole is done with what follows left alone, in both modes that take it.
fn assert_header(bytes: &[u8], expected: &Header) {
    let mode = match expected.version {
        Version::V1 => Mode::V1,
        Version::V2 => Mode::V2,
    };
    for mode in [mode, Mode::Any] {
        for cut in 0..bytes.len() {
            assert_eq!(
                parse(mode, &bytes[..cut]),
                Parsed::NeedMore,
                "{cut} of {bytes:x?}"
            );
        }
        for payload in [&b""[..], b"\r\n", b"PROXY ", b"\0\0\0\0"] {
            let done = Parsed::Done {
                value: expected.clone(),
                used: bytes.len(),
            };
            assert_eq!(parse(mode, &[bytes, payload].concat()), done);
        }
    }
}

/// Bad as a whole, and never anything but "need more" before.
fn assert_bad(bytes: &[u8], expected: ProxyError) {
    let shown = String::from_utf8_lossy(bytes);
    assert_eq!(parse(Mode::Any, bytes), Parsed::Bad(expected), "{shown:?}");
    for cut in 0..bytes.len() {
        let answer = parse(Mode::Any, &bytes[..cut]);
        let agrees = answer == Parsed::NeedMore || answer == Parsed::Bad(expected);
        assert!(agrees, "{cut} of {shown:?}: {answer:?}");
    }
}

#[test]
fn lines_of_version_1() {
    let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let full = format!("PROXY UNKNOWN {longest} {longest} 65535 65535\r\n");
    assert_eq!(full.len(), V1_MAX_BYTES);
    for (line, addresses) in [
        (
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
            inet("192.168.0.1:56324", "192.168.0.11:443"),
        ),
        (
            "PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n",
            inet("0.0.0.0:0", "255.255.255.255:65535"),
        ),
        (
            "PROXY TCP6 2001:DB8::1 0:0:0:0:0:0:0:0001 1 2\r\n",
            inet("[2001:db8::1]:1", "[::1]:2"),
        ),
        (
            "PROXY TCP6 ::ffff:192.0.2.1 :: 1 2\r\n",
            inet("[::ffff:192.0.2.1]:1", "[::]:2"),
        ),
        ("PROXY UNKNOWN\r\n", Addresses::Unknown),
        ("PROXY UNKNOWN \r\n", Addresses::Unknown),
        ("PROXY UNKNOWN \0\n\r what ever\r\n", Addresses::Unknown),
        (&full, Addresses::Unknown),
    ] {
        assert_header(line.as_bytes(), &v1(addresses));
    }
}

#[test]
fn lines_that_are_none_of_version_1() {
    for line in [
        // Leading zeroes, ranges, signs.
        "PROXY TCP4 192.168.00.1 192.168.0.11 1 2\r\n",
        "PROXY TCP4 192.168.0.01 192.168.0.11 1 2\r\n",
        "PROXY TCP4 192.168.0.256 192.168.0.11 1 2\r\n",
        "PROXY TCP4 192.168.1 192.168.0.11 1 2\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.5 01 2\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.5 1 00\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.5 65536 2\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.5 1 4294967298\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.5 +1 2\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.5 -1 2\r\n",
        // Families that do not match.
        "PROXY TCP4 ::1 ::2 1 2\r\n",
        "PROXY TCP6 1.2.3.4 1.2.3.5 1 2\r\n",
        "PROXY TCP6 ::1%lo ::2 1 2\r\n",
        "PROXY TCP6 ::10000 ::2 1 2\r\n",
        "PROXY TCP6 1::2::3 ::2 1 2\r\n",
        // Fields and spaces.
        "PROXY TCP4 1.2.3.4 1.2.3.5 1\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.5 1 2 3\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.5 1 2 \r\n",
        "PROXY TCP4  1.2.3.4 1.2.3.5 1 2\r\n",
        "PROXY TCP4 1.2.3.4  1.2.3.5 1 2\r\n",
        "PROXY TCP4 1.2.3.4\t1.2.3.5 1 2\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.5 1 \r\n",
        "PROXY TCP4 \r\n",
        "PROXY TCP4 1.2.3.4\0 1.2.3.5 1 2\r\n",
        // Ends of lines.
        "PROXY TCP4 1.2.3.4 1.2.3.5 1 2\n",
        "PROXY TCP4 1.2.3.4 1.2.3.5 1 2\r1",
        "PROXY TCP4 1.2.3.4 1.2.3.5 1 2\r\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.5 1 2\n\r\n",
    ] {
        assert_bad(line.as_bytes(), ProxyError::Address);
    }
    for line in [
        "PROXY TCP5",
        "PROXY tcp4",
        "PROXY UDP4",
        "PROXY  ",
        "PROXY TCP4\r",
        "PROXY UNKNOWNS",
        "PROXY UNKNOWN\rX",
        "PROXY \r\n",
    ] {
        assert_bad(line.as_bytes(), ProxyError::Family);
    }
    for line in [
        "GET / HTTP/1.1\r\n",
        "proxy ",
        "PROXY\t",
        "PROXY\r\n",
        "PRI * HTTP/2.0",
        "\n",
        "\x16\x03\x01",
        "\0",
    ] {
        assert_bad(line.as_bytes(), ProxyError::Signature);
    }
}

/// 107 bytes with the CRLF are the most; that it cannot come in time is known before it has not come.
#[test]
fn a_line_of_version_1_has_a_longest_length() {
    let line = |length: usize| format!("{:<width$}\r\n", "PROXY UNKNOWN ", width = length - 2);
    assert_header(line(107).as_bytes(), &v1(Addresses::Unknown));
    assert_bad(line(108).as_bytes(), ProxyError::Length);
    let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
    assert_eq!(parse(Mode::V1, &endless[..105]), Parsed::NeedMore);
    assert_eq!(
        parse(Mode::V1, &endless[..106]),
        Parsed::Bad(ProxyError::Length)
    );
    assert_eq!(parse(Mode::V1, &endless), Parsed::Bad(ProxyError::Length));
    let digits = [b"PROXY TCP4 ".as_slice(), &[b'1'; 95]].concat();
    assert_bad(&digits, ProxyError::Length);
    // Too long before it ends wrongly: the same answer with and without the last byte.
    for last in [b"\n", b"\r"] {
        assert_bad(&[&digits[..], last].concat(), ProxyError::Length);
    }
}

#[test]
fn a_version_that_is_not_accepted_fails_at_its_first_byte() {
    assert_eq!(parse(Mode::V1, b"\r"), Parsed::Bad(ProxyError::Signature));
    assert_eq!(parse(Mode::V2, b"P"), Parsed::Bad(ProxyError::Signature));
    assert_eq!(parse(Mode::Any, b"G"), Parsed::Bad(ProxyError::Signature));
    for at in 0..SIGNATURE.len() {
        let mut wrong = SIGNATURE[..=at].to_vec();
        wrong[at] ^= 1;
        assert_bad(&wrong, ProxyError::Signature);
    }
}

#[test]
fn headers_of_version_2() {
    let known = inet("192.0.2.1:1024", "198.51.100.2:443");
    let v6 = [Ipv6Addr::LOCALHOST.octets(), Ipv6Addr::UNSPECIFIED.octets()].concat();
    let v6_block = [&v6[..], &[0, 1, 0, 2]].concat();
    let mut unix_block = vec![0; 2 * UNIX_ADDRESS_BYTES];
    unix_block[..9].copy_from_slice(b"/run/a\0zz");
    unix_block[UNIX_ADDRESS_BYTES..][..5].copy_from_slice(b"\0ab\0c");
    let unix = Addresses::Unix {
        source: b"/run/a".to_vec(),
        destination: b"\0ab\0c".to_vec(),
    };
    let unnamed = Addresses::Unix {
        source: Vec::new(),
        destination: vec![b'p'; UNIX_ADDRESS_BYTES],
    };
    let unnamed_block = [[0; UNIX_ADDRESS_BYTES], [b'p'; UNIX_ADDRESS_BYTES]].concat();
    let (local, proxy) = (Command::Local, Command::Proxy);
    for (version_command, family_transport, block, command, addresses) in [
        (0x21, 0x11, v4_block(&[]), proxy, known.clone()),
        (0x21, 0x12, v4_block(&[]), proxy, known.clone()),
        (
            0x21,
            0x21,
            v6_block.clone(),
            proxy,
            inet("[::1]:1", "[::]:2"),
        ),
        (0x21, 0x22, v6_block, proxy, inet("[::1]:1", "[::]:2")),
        (0x21, 0x31, unix_block.clone(), proxy, unix.clone()),
        (0x21, 0x32, unix_block, proxy, unix),
        (0x21, 0x31, unnamed_block, proxy, unnamed),
        // Unspecified: whatever the block holds is skipped.
        (0x21, 0x00, vec![], proxy, Addresses::Unknown),
        (0x21, 0x00, vec![0xFF; 7], proxy, Addresses::Unknown),
        (0x21, 0x10, vec![1; 3], proxy, Addresses::Unknown),
        (0x21, 0x01, vec![1; 3], proxy, Addresses::Unknown),
        // Local: even the family is ignored.
        (0x20, 0x00, vec![], local, Addresses::Unknown),
        (0x20, 0x11, v4_block(&[]), local, Addresses::Unknown),
        (0x20, 0x11, vec![1; 3], local, Addresses::Unknown),
        (0x20, 0xFF, vec![0xFF; 40], local, Addresses::Unknown),
        // TLVs that are passed over.
        (0x21, 0x11, v4_block(&tlv(0x04, b"")), proxy, known.clone()),
        (
            0x21,
            0x11,
            v4_block(&tlv(0xEA, &[0; 300])),
            proxy,
            known.clone(),
        ),
        (
            0x21,
            0x11,
            v4_block(&tlv(0x20, &[1, 0, 0, 0, 0])),
            proxy,
            known,
        ),
    ] {
        let expected = Header {
            version: Version::V2,
            command,
            addresses,
            tlvs: Tlvs::default(),
        };
        assert_header(&v2(version_command, family_transport, &block), &expected);
    }
}

#[test]
fn headers_that_are_none_of_version_2() {
    let v4 = |tlvs: &[u8]| v2(0x21, 0x11, &v4_block(tlvs));
    let ssl = |inner: &[u8]| v4(&tlv(0x20, &[&[1, 0, 0, 0, 0], inner].concat()));
    for (bytes, expected) in [
        (v2(0x11, 0x11, &[]), ProxyError::Version),
        (v2(0x31, 0x11, &[]), ProxyError::Version),
        (v2(0x01, 0x11, &[]), ProxyError::Version),
        (v2(0x22, 0x11, &[]), ProxyError::Command),
        (v2(0x2F, 0x11, &[]), ProxyError::Command),
        (v2(0x21, 0x41, &[]), ProxyError::Family),
        (v2(0x21, 0x13, &[]), ProxyError::Family),
        (v2(0x21, 0xF0, &[]), ProxyError::Family),
        // Too short for the addresses, up to the last byte.
        (v2(0x21, 0x11, &[]), ProxyError::Length),
        (v2(0x21, 0x11, &[0; 11]), ProxyError::Length),
        (v2(0x21, 0x21, &[0; 35]), ProxyError::Length),
        (v2(0x21, 0x31, &[0; 215]), ProxyError::Length),
        // TLVs past the end: of the header, of their own, of the SSL TLV.
        (v4(&[0xE0]), ProxyError::Tlv),
        (v4(&[0xE0, 0]), ProxyError::Tlv),
        (v4(&[0xE0, 0, 1]), ProxyError::Tlv),
        (v4(&[0xE0, 0xFF, 0xFF, 1]), ProxyError::Tlv),
        (
            v4(&[&tlv(0xE0, b"ab")[..], &[0, 0]].concat()),
            ProxyError::Tlv,
        ),
        (v4(&tlv(0x20, &[1, 0, 0, 0])), ProxyError::Tlv),
        (v4(&tlv(0x20, &[1, 0, 0])), ProxyError::Tlv),
        (ssl(&[0x21]), ProxyError::Tlv),
        (ssl(&[0x21, 0, 8, b'T']), ProxyError::Tlv),
        // Contents.
        (v4(&tlv(0x02, b"a\0b")), ProxyError::Tlv),
        (v4(&tlv(0x02, b"a\xFF")), ProxyError::Tlv),
        (
            v4(&tlv(0x05, &[0; UNIQUE_ID_MAX_BYTES + 1])),
            ProxyError::Tlv,
        ),
        (v4(&tlv(0x03, &[0; 3])), ProxyError::Tlv),
        (v4(&tlv(0x03, &[0; 5])), ProxyError::Tlv),
        (v4(&tlv(0x03, &[0; 4])), ProxyError::Crc),
        // Twice.
        (v4(&tlv(0x01, b"h2").repeat(2)), ProxyError::Tlv),
        (v4(&tlv(0x02, b"a").repeat(2)), ProxyError::Tlv),
        (v4(&tlv(0x03, &[0; 4]).repeat(2)), ProxyError::Tlv),
        (v4(&tlv(0x05, b"1").repeat(2)), ProxyError::Tlv),
    ] {
        assert_bad(&bytes, expected);
    }
}

/// A length over the limit is known from the first 16 bytes; nobody waits for 64 KiB.
#[test]
fn a_header_of_version_2_has_a_longest_length() {
    let padded = |length: usize| {
        let padding = length - 16 - 12 - 3;
        v2(0x21, 0x11, &v4_block(&tlv(0x04, &vec![0; padding])))
    };
    let longest = padded(HEADER_MAX_BYTES);
    assert_eq!(longest.len(), HEADER_MAX_BYTES);
    assert!(matches!(
        parse(Mode::V2, &longest),
        Parsed::Done {
            used: HEADER_MAX_BYTES,
            ..
        }
    ));
    assert_eq!(
        parse(Mode::V2, &longest[..HEADER_MAX_BYTES - 1]),
        Parsed::NeedMore
    );
    assert_eq!(
        parse(Mode::V2, &padded(HEADER_MAX_BYTES + 1)[..16]),
        Parsed::Bad(ProxyError::Length)
    );
    for command in [0x20, 0x21] {
        let huge = [SIGNATURE, &[command, 0x00, 0xFF, 0xFF]].concat();
        assert_bad(&huge, ProxyError::Length);
    }
}

/// What HAProxy writes.
#[test]
fn captured_headers() {
    let header = |version, command, addresses, tlvs| Header {
        version,
        command,
        addresses,
        tlvs,
    };
    let (v1, v2, proxy) = (Version::V1, Version::V2, Command::Proxy);
    let none = Tlvs::default;
    for (bytes, expected) in [
        (
            fixture!("proxy_v1_tcp4"),
            header(
                v1,
                proxy,
                inet("127.0.0.1:42412", "127.0.0.1:28104"),
                none(),
            ),
        ),
        (
            fixture!("proxy_v1_mapped"),
            header(
                v1,
                proxy,
                inet("[::ffff:127.0.0.1]:56766", "[::ffff:127.0.0.1]:28105"),
                none(),
            ),
        ),
        (
            fixture!("proxy_v2_inet_crc"),
            header(
                v2,
                proxy,
                inet("127.0.0.1:56628", "127.0.0.1:28101"),
                none(),
            ),
        ),
        (
            fixture!("proxy_v2_inet6_crc"),
            header(v2, proxy, inet("[::1]:42968", "[::1]:28103"), none()),
        ),
        (
            fixture!("proxy_v2_local"),
            header(v2, Command::Local, Addresses::Unknown, none()),
        ),
        (
            fixture!("proxy_v2_unique_id"),
            header(
                v2,
                proxy,
                inet("127.0.0.1:40698", "127.0.0.1:28102"),
                Tlvs {
                    unique_id: Some(b"id-8".to_vec()),
                    ..none()
                },
            ),
        ),
        (
            fixture!("proxy_v2_ssl"),
            header(
                v2,
                proxy,
                inet("127.0.0.1:43412", "127.0.0.1:28106"),
                Tlvs {
                    alpn: Some(b"h2".to_vec()),
                    authority: Some("front.example.com".to_owned()),
                    unique_id: Some(Vec::new()),
                },
            ),
        ),
    ] {
        assert_header(&bytes, &expected);
    }
}

/// With the checksum in place no single flipped bit behind the length goes unseen.
#[test]
fn the_checksum_covers_every_byte() {
    let bytes = fixture!("proxy_v2_ssl");
    for at in 16..bytes.len() {
        for bit in 0..8 {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << bit;
            let answer = parse(Mode::V2, &wrong);
            // Turning the checksum's own type into another one removes it.
            let removed = at == 28;
            assert!(
                removed || matches!(answer, Parsed::Bad(_)),
                "byte {at}, bit {bit}: {answer:?}"
            );
        }
    }
}

#[test]
fn every_word_is_distinct_and_the_list_is_in_order() {
    let words: std::collections::HashSet<_> = ProxyError::ALL.iter().map(|e| e.as_str()).collect();
    assert_eq!(words.len(), ProxyError::ALL.len());
    for (index, error) in ProxyError::ALL.iter().enumerate() {
        assert_eq!(*error as usize, index);
        assert!(error.as_str().starts_with("proxy_"));
    }
}
