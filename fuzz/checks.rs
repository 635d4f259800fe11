//! What must hold for any bytes, one function per fuzz target. A broken rule is a panic.
//!
//! Used by the fuzz targets beside this file, and by `tests/corpus.rs`, which replays their corpus in every
//! ordinary test run.

// Each fuzz target calls one of these.
#![allow(dead_code)]

use std::fmt::Debug;

use corelay::config;
use corelay::wire::dns::{Answer, Kind, Query};
use corelay::wire::proxy::{self, Addresses, Command, Header, Mode, Tlvs, V2Options, Version};
use corelay::wire::{Parsed, client_hello, http_head};

type Check = fn(&[u8]);

/// Every target's name and its check.
pub(crate) const TARGETS: [(&str, Check); 6] = [
    ("proxy_v1", proxy_v1),
    ("proxy_v2", proxy_v2),
    ("client_hello", client_hello),
    ("http_head", http_head),
    ("dns", dns),
    ("config", config),
];

/// A name server's answer: only what was asked for comes out, and every name and list is within its bounds.
pub(crate) fn dns(data: &[u8]) {
    const ID: u16 = 0x1234;
    let mut message = data.to_vec();
    if let Some(id) = message.get_mut(..2) {
        // A guess of the id is not what is to be found.
        id.copy_from_slice(&ID.to_be_bytes());
    }
    for kind in [Kind::A, Kind::Aaaa, Kind::Srv] {
        let query = Query::new(ID, "app.example", kind).expect("a name");
        match (query.read(&mut message.clone()), kind) {
            (Ok(Answer::Addresses(addresses)), Kind::A) => {
                assert!(addresses.iter().all(|ip| ip.is_ipv4()));
            }
            (Ok(Answer::Addresses(addresses)), Kind::Aaaa) => {
                assert!(addresses.iter().all(|ip| ip.is_ipv6()));
            }
            (Ok(Answer::Services(services)), Kind::Srv) => {
                assert!(services.iter().all(|it| !it.target.is_empty()));
            }
            (Err(_), _) => {}
            (Ok(other), _) => panic!("{kind:?} was asked for: {other:?}"),
        }
    }
}

/// A version 1 header: one answer however it is cut; what was read can be written and is read as the same.
pub(crate) fn proxy_v1(data: &[u8]) {
    let parse = |data: &[u8]| proxy::parse(Mode::V1, data);
    if let Some(header) = one_answer(data, proxy::V1_MAX_BYTES, parse) {
        let written = proxy::encode_v1(&header.addresses);
        let used = written.len();
        assert_eq!(
            parse(&written),
            Parsed::Done {
                value: header,
                used
            }
        );
    }
}

/// A version 2 header, likewise.
pub(crate) fn proxy_v2(data: &[u8]) {
    let parse = |data: &[u8]| proxy::parse(Mode::V2, data);
    if let Some(header) = one_answer(data, proxy::HEADER_MAX_BYTES, parse) {
        let options = V2Options {
            command: header.command,
            addresses: &header.addresses,
            tlvs: &header.tlvs,
            crc32c: data.len().is_multiple_of(2),
        };
        // A header that is as long as can be has no room left for a checksum.
        if let Ok(written) = proxy::encode_v2(options) {
            let used = written.len();
            assert_eq!(
                parse(&written),
                Parsed::Done {
                    value: header,
                    used
                }
            );
        }
    }
    // Any addresses and any TLVs make a line of version 1, too.
    let read = proxy::parse(Mode::Any, data);
    if let Parsed::Done { value, .. } = read {
        let told = matches!(value.addresses, Addresses::Inet { .. });
        let line = proxy::encode_v1(&value.addresses);
        let addresses = if told {
            value.addresses
        } else {
            Addresses::Unknown
        };
        let expected = Header {
            version: Version::V1,
            command: Command::Proxy,
            addresses,
            tlvs: Tlvs::default(),
        };
        let used = line.len();
        let value = expected;
        assert_eq!(proxy::parse(Mode::Any, &line), Parsed::Done { value, used });
    }
}

/// A ClientHello: one answer however it is cut, and a limit moves nothing but the limit.
pub(crate) fn client_hello(data: &[u8]) {
    for max_bytes in [client_hello::HELLO_MAX_BYTES, 600] {
        let found = one_answer(data, max_bytes, |data| client_hello::peek(data, max_bytes));
        if let Some(hello) = found {
            assert!(hello.alpn.len() <= client_hello::ALPN_NAMES_MAX);
            if let Some(name) = hello.server_name {
                let name = name.as_str();
                assert!((1..=253).contains(&name.len()));
                assert_eq!(name, name.to_ascii_lowercase());
                assert!(!name.ends_with('.'));
            }
        }
    }
}

/// A request head, likewise.
pub(crate) fn http_head(data: &[u8]) {
    for max_bytes in [http_head::HEAD_MAX_BYTES, 200] {
        one_answer(data, max_bytes, |data| http_head::peek(data, max_bytes));
    }
}

/// A configuration: text that loads is printed and loads again as the same; text that does not has a reason.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let environment = |name: &str| (name == "PORT").then(|| "9000".to_owned());
    match config::from_str(text, "fuzz", &environment) {
        Ok(loaded) => {
            let printed = config::render(&loaded);
            let again = config::from_str(&printed, "printed", &|_| None);
            assert_eq!(again.expect("what is printed loads"), loaded, "{printed}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Checks that an answer stays within the bytes, does not depend on how they are cut, and does come once
/// `max_bytes` are there. Gives the value.
fn one_answer<T, E>(
    data: &[u8],
    max_bytes: usize,
    parse: impl Fn(&[u8]) -> Parsed<T, E>,
) -> Option<T>
where
    T: PartialEq + Debug,
    E: PartialEq + Debug,
{
    let answer = parse(data);
    let used = match &answer {
        Parsed::Done { used, .. } => *used,
        _ => data.len(),
    };
    assert!(used <= data.len(), "{used} used of {}", data.len());
    assert!(used <= max_bytes || !matches!(answer, Parsed::Done { .. }));
    assert!(answer != Parsed::NeedMore || data.len() < max_bytes);
    // A few cuts only: all of them would make a check quadratic. Where they fall depends on the bytes alone.
    let sum = data.iter().fold(0_usize, |sum, byte| {
        (sum.wrapping_mul(31) + usize::from(*byte)) & 0xFFFF
    });
    for cut in [used.saturating_sub(1), used / 2, sum % (used + 1)] {
        let earlier = parse(&data[..cut]);
        let agrees = (earlier == answer && cut >= used) || earlier == Parsed::NeedMore;
        let refused = matches!(answer, Parsed::Bad(_)) && earlier == answer;
        assert!(
            agrees || refused,
            "{earlier:?} after {cut} bytes, then {answer:?}"
        );
    }
    match answer {
        Parsed::Done { value, used } => {
            assert!(
                matches!(parse(&data[..used]), Parsed::Done { value: same, used: also } if same == value && also == used)
            );
            Some(value)
        }
        _ => None,
    }
}
