use super::*;
use proptest::prelude::*;

const ID: u16 = 0x1234;

/// An answer, written by hand: header, question, records. The names are not compressed but for those that a
/// test compresses itself.
struct Message(Vec<u8>);

impl Message {
    fn new(flags: u16, asked: &str, kind: u16) -> Self {
        let mut bytes = Vec::new();
        for word in [ID, 0x8000 | flags, 1, 0, 0, 0] {
            bytes.extend(word.to_be_bytes());
        }
        let mut message = Self(bytes);
        message.name(asked);
        message.words(&[kind, 1]);
        message
    }

    fn words(&mut self, words: &[u16]) {
        for word in words {
            self.0.extend(word.to_be_bytes());
        }
    }

    fn name(&mut self, name: &str) {
        self.0.extend(encoded(name));
    }

    /// One record of the answer; `name` is encoded already.
    fn record(mut self, name: &[u8], kind: u16, data: &[u8]) -> Self {
        self.0.extend(name);
        self.words(&[kind, 1, 0, 60, data.len() as u16]);
        self.0.extend(data);
        let count = u16::from_be_bytes([self.0[6], self.0[7]]) + 1;
        self.0[6..8].copy_from_slice(&count.to_be_bytes());
        self
    }
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Vec<u8> {
    let mut data = Vec::new();
    for word in [priority, weight, port] {
        data.extend(word.to_be_bytes());
    }
    data.extend(encoded(target));
    data
}

fn query(name: &str, kind: Kind) -> Query {
    Query::new(ID, name, kind).expect("a name")
}

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const SRV: u16 = 33;
/// Points to the name in the question.
const QUESTION: [u8; 2] = [0xC0, 12];

#[test]
fn a_question_is_what_rfc_1035_says_byte_by_byte() {
    let bytes = query("App.Example.", Kind::A).bytes(true);
    let mut expected = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 1];
    expected.extend(b"\x03app\x07example\x00");
    expected.extend([0, 1, 0, 1]);
    // OPT (RFC 6891 section 6.1.2): root, type 41, size 1232, nothing else.
    expected.extend([0, 0, 41, 0x04, 0xD0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes, expected);
    for (kind, number) in [(Kind::Aaaa, 28), (Kind::Srv, 33)] {
        let bytes = query("app.example", kind).bytes(true);
        assert_eq!(bytes[12 + 13..][..2], [0, number]);
    }
}

#[test]
fn names_that_cannot_be_asked_for() {
    let long = vec!["a".repeat(63); 4].join(".");
    for name in ["", ".", "a..b", ".a", &"a".repeat(64), &long, "a\\.b"] {
        let result = Query::new(ID, name, Kind::A);
        assert_eq!(result, Err(DnsError::BadName), "{name}");
    }
    assert!(Query::new(ID, &"a".repeat(63), Kind::A).is_ok());
}

#[test]
fn addresses_come_through_compression_and_aliases_in_any_order() {
    let message = Message::new(0, "app.example", A)
        .record(&encoded("real.example"), A, &[192, 0, 2, 1])
        .record(&encoded("other.example"), A, &[192, 0, 2, 66])
        .record(&QUESTION, CNAME, &encoded("between.example"))
        .record(&encoded("BETWEEN.example"), CNAME, &encoded("real.example"))
        .record(&encoded("real.EXAMPLE"), A, &[192, 0, 2, 2]);
    let answer = query("APP.example", Kind::A).read(&mut message.0.clone());
    let expected = ["192.0.2.1", "192.0.2.2"].map(|it| it.parse().expect("an address"));
    assert_eq!(answer, Ok(Answer::Addresses(expected.into())));

    let address: Ipv6Addr = "2001:db8::1".parse().expect("an address");
    let message = Message::new(0, "app.example", AAAA).record(&QUESTION, AAAA, &address.octets());
    let answer = query("app.example", Kind::Aaaa).read(&mut message.0.clone());
    assert_eq!(answer, Ok(Answer::Addresses(vec![address.into()])));
}

#[test]
fn places_of_a_service_and_its_decided_absence() {
    let name = "_app._tcp.example";
    let message = Message::new(0, name, SRV)
        .record(&QUESTION, SRV, &srv(10, 60, 8080, "one.example"))
        .record(&QUESTION, SRV, &srv(20, 0, 8081, "Two.example"));
    let service = |priority, weight, target: &str, port| Service {
        priority,
        weight,
        target: target.to_owned(),
        port,
    };
    assert_eq!(
        query(name, Kind::Srv).read(&mut message.0.clone()),
        Ok(Answer::Services(vec![
            service(10, 60, "one.example", 8080),
            service(20, 0, "two.example", 8081)
        ]))
    );
    let absent = Message::new(0, name, SRV).record(&QUESTION, SRV, &srv(0, 0, 0, "."));
    assert_eq!(
        query(name, Kind::Srv).read(&mut absent.0.clone()),
        Ok(Answer::Services(Vec::new()))
    );
}

#[test]
fn what_stands_behind_the_answer_fails_nothing() {
    let mut message = Message::new(0, "app.example", A).record(&QUESTION, A, &[192, 0, 2, 1]);
    // A record of an unknown class in the authority section, and one that is cut in the next.
    message.0[9] = 1;
    message.0[11] = 1;
    message.0.extend(QUESTION);
    message.words(&[6, 0xFFF0, 0, 60, 1]);
    message.0.extend([0, 0xC0]);
    let expected = Answer::Addresses(vec![[192, 0, 2, 1].into()]);
    assert_eq!(
        query("app.example", Kind::A).read(&mut message.0),
        Ok(expected)
    );
}

#[test]
fn what_is_no_answer_says_why() {
    let asked = query("app.example", Kind::A);
    let none = Message::new(0, "app.example", A);
    assert_eq!(
        asked.read(&mut none.0.clone()),
        Ok(Answer::Addresses(Vec::new()))
    );
    let of = |flags| asked.read(&mut Message::new(flags, "app.example", A).0);
    assert_eq!(of(3), Err(DnsError::NoSuchName));
    assert_eq!(of(2), Err(DnsError::ServerFailed(2)));
    assert_eq!(of(5), Err(DnsError::ServerFailed(5)));
    assert_eq!(of(1), Err(DnsError::NotUnderstood));
    assert_eq!(of(0x0200), Err(DnsError::Truncated));
    // Cut in the middle of whatever stood there.
    let mut cut = Message::new(0x0200, "app.example", A).0;
    cut[7] = 9;
    cut.push(0xC0);
    assert_eq!(asked.read(&mut cut), Err(DnsError::Truncated));
    let mut circle = Message::new(0, "app.example", A);
    circle = circle
        .record(&QUESTION, CNAME, &encoded("b.example"))
        .record(&encoded("b.example"), CNAME, &encoded("app.example"));
    assert_eq!(
        asked.read(&mut circle.0.clone()),
        Err(DnsError::TooManyAliases)
    );

    let others = [
        Message::new(0, "other.example", A).0,
        Message::new(0, "app.example", AAAA).0,
        asked.bytes(true),
        Vec::new(),
        vec![0; 12],
    ];
    for mut bytes in others {
        assert_eq!(asked.read(&mut bytes), Err(DnsError::NotOurs), "{bytes:?}");
    }
    let mut cut = none.record(&QUESTION, A, &[192, 0, 2, 1]).0;
    cut.pop();
    assert_eq!(asked.read(&mut cut), Err(DnsError::Malformed));
    // Refused, and without the question.
    let mut bare = vec![0x12, 0x34, 0x80, 0x05];
    bare.extend([0; 8]);
    assert_eq!(asked.read(&mut bare), Err(DnsError::ServerFailed(5)));
}

proptest! {
    /// A name server is a stranger: whatever it sends ends no process.
    #[test]
    fn any_bytes_are_read_without_a_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        flip in any::<bool>(),
    ) {
        if flip {
            let mut message = Message::new(0, "app.example", A).0;
            message.append(&mut bytes);
            bytes = message;
        } else if bytes.len() >= 2 {
            bytes[..2].copy_from_slice(&ID.to_be_bytes());
        }
        for kind in [Kind::A, Kind::Aaaa, Kind::Srv] {
            let _ = query("app.example", kind).read(&mut bytes.clone());
        }
    }
}
