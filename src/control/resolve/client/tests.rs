use std::net::{TcpListener, UdpSocket};
use std::sync::mpsc;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);
/// For a server that is to be given up.
const SHORT: Duration = Duration::from_millis(100);

/// A name server on a free port, which answers each datagram with these, one after the other. Its thread
/// ends with the test's process at the latest.
fn over_udp(mut reply: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound");
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok((len, client)) = socket.recv_from(&mut bytes) {
            for answer in reply(&bytes[..len]) {
                socket.send_to(&answer, client).expect("loopback");
            }
        }
    });
    address
}

/// The question as an answer: with these flags, and `count` addresses.
fn answer(question: &[u8], flags: u16, count: u8) -> Vec<u8> {
    let mut bytes = question.to_vec();
    bytes[2..4].copy_from_slice(&(0x8180 | flags).to_be_bytes());
    if bytes[11] == 1 {
        // Without the OPT record at its end.
        bytes.truncate(bytes.len() - 11);
    }
    bytes[7] = count;
    bytes[11] = 0;
    for last in 0..count {
        bytes.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, last]);
    }
    bytes
}

fn asks(servers: &[SocketAddr], timeout: Duration) -> Result<Answer, AskError> {
    let client = Client::new(servers.to_vec(), timeout);
    client.ask("app.example", Kind::A, client.deadline())
}

fn addresses(count: u8) -> Answer {
    let address = |last| IpAddr::from([192, 0, 2, last]);
    Answer::Addresses((0..count).map(address).collect())
}

#[test]
fn answers_to_other_questions_are_passed_over() {
    let server = over_udp(|question| {
        let mut forged = answer(question, 0, 3);
        forged[0] ^= 0xFF;
        let mut of_another = answer(question, 0, 3);
        of_another[13] ^= 1;
        vec![forged, of_another, vec![1], answer(question, 0, 1)]
    });
    assert_eq!(asks(&[server], TIMEOUT).expect("an answer"), addresses(1));
}

#[test]
fn every_question_has_an_id_and_a_port_of_its_own() {
    let (seen, ids) = mpsc::channel();
    let server = over_udp(move |question| {
        seen.send([question[0], question[1]]).expect("awaited");
        vec![answer(question, 0, 1)]
    });
    let client = Client::new(vec![server], TIMEOUT);
    for _ in 0..20 {
        let answer = client.ask("app.example", Kind::A, client.deadline());
        answer.expect("an answer");
    }
    let mut ids: Vec<_> = ids.try_iter().collect();
    ids.sort_unstable();
    ids.dedup();
    // Two of 20 are equal in one of 350 runs, four never.
    assert!(ids.len() >= 17, "{ids:?}");
}

#[test]
fn the_next_server_is_asked_when_one_fails_and_not_when_it_knows_better() {
    let silent = over_udp(|_| Vec::new());
    let failing = over_udp(|question| vec![answer(question, 2, 0)]);
    let working = over_udp(|question| vec![answer(question, 0, 2)]);
    let knowing = over_udp(|question| vec![answer(question, 3, 0)]);
    let deaf = {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.local_addr().expect("bound")
    };
    let found = asks(&[deaf, silent, failing, working], SHORT);
    assert_eq!(found.expect("an answer"), addresses(2));
    let none = asks(&[knowing, working], TIMEOUT);
    assert!(
        matches!(none, Err(AskError::Dns(DnsError::NoSuchName))),
        "{none:?}"
    );
    let late = asks(&[silent], SHORT).expect_err("nobody answers");
    assert_eq!(
        late.to_string(),
        format!("name server {silent}: no answer in time (dns.timeout)")
    );
    let refused = asks(&[failing], TIMEOUT).expect_err("it fails");
    assert_eq!(refused.to_string(), "the name server failed (RCODE 2)");
}

#[test]
fn who_answered_last_is_asked_first() {
    let (seen, asked) = mpsc::channel();
    let silent = over_udp(move |_| {
        seen.send(()).expect("awaited");
        Vec::new()
    });
    let working = over_udp(|question| vec![answer(question, 0, 1)]);
    let client = Client::new(vec![silent, working], SHORT);
    for _ in 0..3 {
        let answer = client.ask("app.example", Kind::A, client.deadline());
        answer.expect("an answer");
    }
    assert_eq!(asked.try_iter().count(), 1);
}

#[test]
fn who_does_not_know_edns_is_asked_without() {
    let server = over_udp(|question| {
        let has_edns = question[11] == 1;
        vec![answer(question, u16::from(has_edns), u8::from(!has_edns))]
    });
    assert_eq!(asks(&[server], TIMEOUT).expect("an answer"), addresses(1));
}

#[test]
fn nobody_is_asked_beyond_the_deadline() {
    let silent = over_udp(|_| Vec::new());
    let client = Client::new(vec![silent; 8], TIMEOUT);
    let began = Instant::now();
    let by = began + SHORT;
    let late = client.ask("app.example", Kind::A, by);
    assert!(matches!(late, Err(AskError::Io { .. })), "{late:?}");
    assert!(began.elapsed() < TIMEOUT);
}

#[test]
fn a_lost_datagram_is_sent_again() {
    let mut count = 0;
    let server = over_udp(move |question| {
        count += 1;
        if count == 1 {
            return Vec::new();
        }
        vec![answer(question, 0, 1)]
    });
    assert_eq!(asks(&[server], SHORT * 3).expect("an answer"), addresses(1));
}

#[test]
fn what_does_not_fit_comes_over_tcp_in_whatever_pieces() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = listener.local_addr().expect("bound");
    let socket = UdpSocket::bind(server).expect("the same port of UDP");
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        let (len, client) = socket.recv_from(&mut bytes).expect("a question");
        let truncated = answer(&bytes[..len], 0x0200, 0);
        socket.send_to(&truncated, client).expect("loopback");
        let (mut stream, _) = listener.accept().expect("a client");
        let mut length = [0; 2];
        stream.read_exact(&mut length).expect("a length");
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question).expect("a question");
        let long = answer(&question, 0, 200);
        let framed = [&(long.len() as u16).to_be_bytes(), &long[..]].concat();
        for piece in framed.chunks(1000) {
            stream.write_all(piece).expect("a client");
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(asks(&[server], TIMEOUT).expect("an answer"), addresses(200));
}

#[test]
fn name_servers_of_the_host() {
    let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\n\
                nameserver\t2001:db8::1\nnameserver fe80::1%eth0\nnameserver 192.0.2.3 # third\n\
                nameserver 192.0.2.4\n";
    let expected = ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.3:53"];
    assert_eq!(
        nameservers(text),
        expected.map(|it| it.parse().expect("an address"))
    );
}
