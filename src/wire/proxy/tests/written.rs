//! Tests of the encoders, and properties: what is written is read again, and any bytes have one answer.

use proptest::prelude::*;

use super::*;

#[test]
fn version_1_as_written() {
    for (addresses, expected) in [
        (
            inet("192.0.2.1:1", "198.51.100.2:65535"),
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 65535\r\n",
        ),
        (
            inet("[2001:db8::1]:1", "[::]:2"),
            "PROXY TCP6 2001:db8::1 :: 1 2\r\n",
        ),
        (
            inet("192.0.2.1:1", "[2001:db8::1]:2"),
            "PROXY TCP6 ::ffff:c000:201 2001:db8::1 1 2\r\n",
        ),
        (Addresses::Unknown, "PROXY UNKNOWN\r\n"),
        (
            Addresses::Unix {
                source: Vec::new(),
                destination: b"/run/a".to_vec(),
            },
            "PROXY UNKNOWN\r\n",
        ),
    ] {
        assert_eq!(String::from_utf8_lossy(&encode_v1(&addresses)), expected);
    }
}

#[test]
fn version_2_as_written() {
    let tlvs = Tlvs {
        alpn: Some(b"h2".to_vec()),
        authority: Some("a.b".to_owned()),
        unique_id: Some(vec![7]),
    };
    let addresses = inet("192.0.2.1:1024", "198.51.100.2:443");
    let options = V2Options {
        command: Command::Proxy,
        addresses: &addresses,
        tlvs: &tlvs,
        crc32c: false,
    };
    let kept = [tlv(1, b"h2"), tlv(2, b"a.b"), tlv(5, &[7])].concat();
    assert_eq!(encode_v2(options), Ok(v2(0x21, 0x11, &v4_block(&kept))));
    let local = V2Options {
        command: Command::Local,
        tlvs: &Tlvs::default(),
        ..options
    };
    assert_eq!(encode_v2(local), Ok(v2(0x20, 0x00, &[])));
    // HAProxy computes the same checksum.
    let crc32c = V2Options {
        addresses: &inet("[::1]:42968", "[::1]:28103"),
        tlvs: &Tlvs::default(),
        crc32c: true,
        ..options
    };
    assert_eq!(encode_v2(crc32c), Ok(fixture!("proxy_v2_inet6_crc")));
}

#[test]
fn version_2_refuses_what_is_too_long() {
    let encode = |addresses: &Addresses, tlvs: &Tlvs| {
        encode_v2(V2Options {
            command: Command::Proxy,
            addresses,
            tlvs,
            crc32c: true,
        })
    };
    let alpn = |length: usize| Tlvs {
        alpn: Some(vec![b'a'; length]),
        ..Tlvs::default()
    };
    // The fixed part, the heads of two TLVs and the checksum.
    let most = HEADER_MAX_BYTES - 16 - 3 - 3 - 4;
    let longest = encode(&Addresses::Unknown, &alpn(most)).expect("as long as allowed");
    assert_eq!(longest.len(), HEADER_MAX_BYTES);
    assert_eq!(
        encode(&Addresses::Unknown, &alpn(most + 1)),
        Err(EncodeError::Header)
    );
    assert_eq!(
        encode(&Addresses::Unknown, &alpn(1 << 20)),
        Err(EncodeError::Header)
    );
    let unique_id = |length: usize| Tlvs {
        unique_id: Some(vec![0; length]),
        ..Tlvs::default()
    };
    assert!(encode(&Addresses::Unknown, &unique_id(128)).is_ok());
    assert_eq!(
        encode(&Addresses::Unknown, &unique_id(129)),
        Err(EncodeError::UniqueId)
    );
    let path = Addresses::Unix {
        source: vec![b'a'; UNIX_ADDRESS_BYTES + 1],
        destination: Vec::new(),
    };
    assert_eq!(encode(&path, &Tlvs::default()), Err(EncodeError::UnixPath));
}

/// Two ends of one family, so that what is read is what was written.
fn any_addresses() -> impl Strategy<Value = Addresses> {
    let path = || {
        prop_oneof![
            Just(Vec::new()),
            prop::collection::vec(1..=u8::MAX, 1..=UNIX_ADDRESS_BYTES),
        ]
    };
    let pair = |source: SocketAddr, destination: SocketAddr| Addresses::Inet {
        source,
        destination,
    };
    prop_oneof![
        Just(Addresses::Unknown),
        any::<([u8; 4], [u8; 4], u16, u16)>()
            .prop_map(move |(from, to, p, q)| { pair((from, p).into(), (to, q).into()) }),
        any::<([u8; 16], [u8; 16], u16, u16)>()
            .prop_map(move |(from, to, p, q)| { pair((from, p).into(), (to, q).into()) }),
        any::<([u8; 4], [u8; 16], u16, u16)>().prop_map(move |(from, to, p, q)| {
            let from = std::net::Ipv4Addr::from(from).to_ipv6_mapped();
            pair((from, p).into(), (to, q).into())
        }),
        (path(), path()).prop_map(|(source, destination)| Addresses::Unix {
            source,
            destination,
        }),
    ]
}

fn any_tlvs() -> impl Strategy<Value = Tlvs> {
    let bytes = |most| prop::option::of(prop::collection::vec(any::<u8>(), 0..=most));
    (
        bytes(300),
        prop::option::of("[^\0]{0,64}"),
        bytes(UNIQUE_ID_MAX_BYTES),
    )
        .prop_map(|(alpn, authority, unique_id)| Tlvs {
            alpn,
            authority,
            unique_id,
        })
}

proptest! {
    #[test]
    fn version_1_comes_back(addresses in any_addresses()) {
        let line = encode_v1(&addresses);
        let expected = match addresses {
            Addresses::Unix { .. } => Addresses::Unknown,
            other => other,
        };
        assert_header(&line, &v1(expected));
    }

    #[test]
    fn version_2_comes_back(addresses in any_addresses(), tlvs in any_tlvs(), crc32c: bool) {
        let header = encode_v2(V2Options { command: Command::Proxy, addresses: &addresses, tlvs: &tlvs, crc32c })
            .expect("short enough");
        // Behind an unspecified family TLVs are not looked for.
        let tlvs = if addresses == Addresses::Unknown { Tlvs::default() } else { tlvs };
        assert_header(&header, &Header { version: Version::V2, command: Command::Proxy, addresses, tlvs });
    }

    /// Whatever the bytes: an answer within them, and the same one however they are cut.
    #[test]
    fn any_bytes_have_one_answer(
        beginning in prop::sample::select(vec![
            &b""[..], b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"PROXY TCP6 ::1 ::2 1 2\r\n", b"PROXY UNKNOWN ",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1f\x01\x02\x03\x04\x05\x06\x07\x08\0\x01\0\x02\x02\0\x03abc",
        ]),
        change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = [beginning, &rest].concat();
        if let Some((at, byte)) = change && !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for mode in [Mode::V1, Mode::V2, Mode::Any] {
            let answer = parse(mode, &bytes);
            if let Parsed::Done { used, .. } = answer {
                prop_assert!(used <= bytes.len());
            }
            let first = (0..=bytes.len()).map(|cut| parse(mode, &bytes[..cut])).find(|a| *a != Parsed::NeedMore);
            prop_assert_eq!(first.unwrap_or(Parsed::NeedMore), answer);
        }
    }
}
