//! PROXY headers from those in front and to the servers: cases 37 and 49 to 55, and HAProxy and nginx as
//! peers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use corelay::wire::proxy::{
    Addresses, Command, Header, Mode, Tlvs, V2Options, encode_v1, encode_v2, parse,
};
use corelay_bench::servers::{RefusedPort, Server};
use serde_json::{Value, json};

use crate::support::peer_proxy::PeerProxy;
use crate::support::peers::{
    End, connect, expect_bytes, expect_rejected, expect_reset, finish, read_to_end,
};
use crate::support::proxy::{assert_reason, reason};
use crate::support::{Config, Proxy, Upstream, skip};

const CLIENT: &str = "192.0.2.7:51514";

fn addresses() -> Addresses {
    Addresses::Inet {
        source: CLIENT.parse().unwrap(),
        destination: "198.51.100.1:443".parse().unwrap(),
    }
}

fn v1() -> Vec<u8> {
    encode_v1(&addresses())
}

fn v2(command: Command, addresses: &Addresses, tlvs: &Tlvs) -> Vec<u8> {
    let options = V2Options {
        command,
        addresses,
        tlvs,
        crc32c: true,
    };
    encode_v2(options).unwrap()
}

/// A listener that wants headers, from this host unless told otherwise.
fn required(server: SocketAddr) -> Config {
    Config::to([server]).set(
        "listeners.edge.proxy_protocol",
        json!({ "trusted": ["127.0.0.0/8"] }),
    )
}

/// A header off the stream, as a server reads it.
fn read_header(stream: &mut TcpStream) -> Header {
    let mut bytes = Vec::new();
    loop {
        match parse(Mode::Any, &bytes) {
            corelay::wire::Parsed::Done { value, used } => {
                assert_eq!(used, bytes.len());
                return value;
            }
            corelay::wire::Parsed::NeedMore => {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a whole header");
                bytes.extend(byte);
            }
            corelay::wire::Parsed::Bad(error) => panic!("{error} in {bytes:?}"),
        }
    }
}

#[test]
fn case_49_the_client_is_whom_the_header_names_and_its_bytes_follow_unchanged() {
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&required(upstream.address()));
    let v6 = Addresses::Inet {
        source: "[2001:db8::7]:4000".parse().unwrap(),
        destination: "[2001:db8::1]:443".parse().unwrap(),
    };
    let none = Tlvs::default();
    let tlvs = Tlvs {
        authority: Some("app.example".to_owned()),
        ..Tlvs::default()
    };
    let unknown = Addresses::Unknown;
    let headers = [
        (v1(), Some(CLIENT)),
        (v2(Command::Proxy, &addresses(), &none), Some(CLIENT)),
        (v2(Command::Proxy, &v6, &tlvs), Some("[2001:db8::7]:4000")),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (v2(Command::Local, &addresses(), &none), None),
        (v2(Command::Proxy, &unknown, &none), None),
    ];
    for (round, (header, named)) in headers.iter().enumerate() {
        let mut client = connect(proxy.address());
        let own = client.local_addr().unwrap().to_string();
        // Case 51: header and payload in one segment.
        client
            .write_all(&[header.as_slice(), b"hello"].concat())
            .unwrap();
        expect_bytes(&mut client, b"hello");
        client.write_all(b"more").unwrap();
        expect_bytes(&mut client, b"more");
        drop(client);
        let line = proxy.access_lines(round + 1).remove(round);
        assert_eq!(line["downstream"], named.unwrap_or(&own));
        assert_eq!(line["via"].as_str(), named.map(|_| own.as_str()), "{line}");
        assert_eq!(
            line["bytes_to_upstream"], 9,
            "the header is not the client's: {line}"
        );
    }
    proxy.finish();
}

#[test]
fn case_50_a_header_may_be_split_anywhere() {
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&required(upstream.address()));
    let header = v2(Command::Proxy, &addresses(), &Tlvs::default());
    let mut clients = Vec::new();
    for split in 1..header.len() {
        let mut client = connect(proxy.address());
        client.write_all(&header[..split]).unwrap();
        clients.push((client, split));
    }
    // Long enough for every first part to have been looked at.
    std::thread::sleep(Duration::from_millis(100));
    for (client, split) in &mut clients {
        client
            .write_all(&[&header[*split..], b"x"].concat())
            .unwrap();
        expect_bytes(client, b"x");
    }
    drop(clients);
    for line in proxy.access_lines(header.len() - 1) {
        assert_eq!(line["downstream"], CLIENT);
    }
    proxy.finish();
}

#[test]
fn cases_52_and_53_a_bad_header_is_refused_and_nobody_is_contacted() {
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&required(upstream.address()));
    let mut wrong_sum = v2(Command::Proxy, &addresses(), &Tlvs::default());
    *wrong_sum.last_mut().unwrap() ^= 1;
    let mut no_end = v1();
    no_end.truncate(no_end.len() - 2);
    no_end.extend([b' '; 100]);
    let headers: [(&[u8], &str); 5] = [
        (b"GET / HTTP/1.1\r\n\r\n", "proxy_signature"),
        (b"\x16\x03\x01", "proxy_signature"),
        (&wrong_sum, "proxy_crc"),
        (&no_end, "proxy_"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", "proxy_address"),
    ];
    for (round, (bytes, _)) in headers.iter().enumerate() {
        let mut client = connect(proxy.address());
        client.write_all(bytes).unwrap();
        expect_reset(&mut client);
        let line = proxy.access_lines(round + 1).remove(round);
        assert_reason(&line, "downstream/accept/proxy_malformed");
    }
    let page = proxy.get("/metrics").body;
    for (_, error) in headers {
        let seen = page
            .lines()
            .any(|line| line.starts_with("corelay_opening_errors_total") && line.contains(error));
        assert!(seen, "{error} is not counted");
    }
    // Cut short, and a connection without a byte.
    let mut client = connect(proxy.address());
    client.write_all(b"PROXY TCP4 1.2").unwrap();
    finish(&client);
    assert_eq!(read_to_end(&mut client).1, End::Reset);
    drop(connect(proxy.address()));
    // Two cores may have had them.
    let mut reasons: Vec<_> = proxy.access_lines(7)[5..].iter().map(reason).collect();
    reasons.sort();
    assert_eq!(
        reasons,
        [
            "downstream/accept/empty",
            "downstream/accept/proxy_malformed"
        ]
    );
    assert_eq!(upstream.stats().accepted, 0);
    proxy.finish();
}

#[test]
fn case_37_a_header_that_trickles_in_is_over_at_the_one_deadline() {
    let upstream = Server::echo().start().unwrap();
    let config = required(upstream.address()).set("listeners.edge.proxy_protocol.timeout", "600ms");
    let proxy = Proxy::start(&config);
    let mut client = connect(proxy.address());
    let began = Instant::now();
    let header = v1();
    for byte in header.iter().take(8) {
        client.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    expect_reset(&mut client);
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert_reason(&proxy.access_line(), "local/accept/proxy_timeout");
    proxy.finish();
}

#[test]
fn case_54_only_those_who_are_trusted_may_send_one() {
    let upstream = Server::echo().start().unwrap();
    let config = required(upstream.address()).set(
        "listeners.edge.proxy_protocol.trusted",
        json!(["10.0.0.0/8", "127.0.0.2"]),
    );
    let proxy = Proxy::start(&config);
    expect_rejected(proxy.address());
    assert_reason(&proxy.access_line(), "downstream/accept/proxy_untrusted");
    assert_eq!(upstream.stats().accepted, 0);
    proxy.finish();
}

#[test]
fn access_and_limits_are_those_of_the_client_that_the_header_names() {
    let upstream = Server::echo().start().unwrap();
    let config = required(upstream.address())
        .set(
            "listeners.edge.access",
            json!([{ "deny": "192.0.2.7" }, { "allow": "all" }]),
        )
        .set("listeners.edge.limits.per_source.connections", 1);
    let proxy = Proxy::start(&config);
    let enter = |line: &str| {
        let mut client = connect(proxy.address());
        client.write_all(format!("{line}\r\nx").as_bytes()).unwrap();
        client
    };
    expect_reset(&mut enter("PROXY TCP4 192.0.2.7 192.0.2.1 1 2"));
    let mut first = enter("PROXY TCP4 192.0.2.8 192.0.2.1 1 2");
    expect_bytes(&mut first, b"x");
    expect_reset(&mut enter("PROXY TCP4 192.0.2.8 192.0.2.1 3 2"));
    // Another client by way of the same proxy.
    let mut other = enter("PROXY TCP4 192.0.2.9 192.0.2.1 1 2");
    expect_bytes(&mut other, b"x");
    let mut reasons: Vec<_> = proxy.access_lines(2).iter().map(reason).collect();
    reasons.sort();
    assert_eq!(reasons, ["local/accept/denied", "local/accept/source_full"]);
    drop((first, other));
    // Given back.
    crate::support::wait_until("both sessions are over", || {
        proxy.metrics().sum("corelay_connections_active") == 0.0
    });
    let mut again = enter("PROXY TCP4 192.0.2.8 192.0.2.1 5 2");
    expect_bytes(&mut again, b"x");
    drop(again);
    proxy.finish();
}

#[test]
fn hashes_go_by_the_client_that_the_header_names() {
    let servers = [(); 4].map(|()| Server::echo().start().unwrap());
    let addresses = servers.each_ref().map(|it| it.address().to_string());
    for balance in ["source_hash", "maglev"] {
        let config = required(servers[0].address())
            .set("upstreams.app.servers", json!(addresses))
            .set("upstreams.app.balance", balance);
        let proxy = Proxy::start(&config);
        // Twice each, all by way of one sender.
        for _ in 0..2 {
            for last in 1..=24 {
                let mut client = connect(proxy.address());
                let header = format!("PROXY TCP4 192.0.2.{last} 192.0.2.1 {last} 2\r\nx");
                client.write_all(header.as_bytes()).unwrap();
                expect_bytes(&mut client, b"x");
            }
        }
        let mut chosen = std::collections::BTreeMap::<String, Vec<Value>>::new();
        for line in proxy.access_lines(48) {
            let client: SocketAddr = line["downstream"].as_str().unwrap().parse().unwrap();
            let choices = chosen.entry(client.ip().to_string()).or_default();
            choices.push(line["server"].clone());
        }
        assert_eq!(chosen.len(), 24);
        assert!(chosen.values().all(|it| it[0] == it[1]), "{balance}");
        let used: std::collections::BTreeSet<_> =
            chosen.values().map(|it| it[0].to_string()).collect();
        assert!(used.len() > 1, "{balance}: 24 clients, and one server");
        proxy.finish();
    }
}

#[test]
fn case_55_servers_get_the_header_once_before_the_data_also_after_a_retry() {
    let dead = RefusedPort::new().unwrap();
    for (version, expected) in [("v1", Mode::V1), ("v2", Mode::V2)] {
        let upstream = Upstream::new();
        let config = Config::to([dead.address(), upstream.address()])
            .set("workers", 1)
            .set("upstreams.app.eject", "off")
            .set("upstreams.app.proxy_protocol", version);
        let proxy = Proxy::start(&config);
        for _ in 0..2 {
            let mut client = connect(proxy.address());
            client.write_all(b"data").unwrap();
            let mut server = upstream.accept();
            let header = read_header(&mut server);
            assert_eq!(
                header.version,
                match expected {
                    Mode::V1 => corelay::wire::proxy::Version::V1,
                    _ => corelay::wire::proxy::Version::V2,
                }
            );
            assert_eq!(header.source(), client.local_addr().ok());
            assert_eq!(header.destination(), Some(proxy.address()));
            expect_bytes(&mut server, b"data");
            server.write_all(b"reply").unwrap();
            drop(server);
            assert_eq!(read_to_end(&mut client), (b"reply".to_vec(), End::Fin));
        }
        proxy.finish();
    }
}

#[test]
fn what_came_in_is_told_on() {
    let upstream = Upstream::new();
    let config = required(upstream.address()).set(
        "upstreams.app.proxy_protocol",
        json!({ "version": "v2", "crc32c": true }),
    );
    let proxy = Proxy::start(&config);
    let tlvs = Tlvs {
        alpn: Some(b"h2".to_vec()),
        authority: Some("app.example".to_owned()),
        unique_id: Some(b"id-1".to_vec()),
    };
    let mut client = connect(proxy.address());
    client
        .write_all(&v2(Command::Proxy, &addresses(), &tlvs))
        .unwrap();
    let mut server = upstream.accept();
    let header = read_header(&mut server);
    assert_eq!((&header.addresses, &header.tlvs), (&addresses(), &tlvs));
    drop((client, server));
    proxy.finish();
}

/// The id that a server was told in its header.
fn told_id(server: &mut TcpStream) -> String {
    let id = read_header(server).tlvs.unique_id.expect("an id");
    String::from_utf8(id).unwrap()
}

#[test]
fn the_id_that_servers_are_told_is_the_one_in_the_access_log() {
    let dead = RefusedPort::new().unwrap();
    let upstream = Upstream::new();
    // Two cores, also after a retry.
    let config = Config::to([dead.address(), upstream.address()])
        .set("upstreams.app.eject", "off")
        .set(
            "upstreams.app.proxy_protocol",
            json!({ "version": "v2", "crc32c": true, "unique_id": true }),
        );
    let proxy = Proxy::start(&config);
    let mut told = Vec::new();
    for _ in 0..12 {
        let client = connect(proxy.address());
        let mut server = upstream.accept();
        let from = client.local_addr().unwrap().to_string();
        told.push((from, told_id(&mut server)));
    }
    let mut logged: Vec<_> = proxy
        .access_lines(told.len())
        .iter()
        .map(|line| ["downstream", "id"].map(|key| line[key].as_str().unwrap().to_owned()))
        .map(|[from, id]| (from, id))
        .collect();
    told.sort();
    logged.sort();
    assert_eq!(told, logged);
    proxy.finish();
}

#[test]
fn an_id_that_came_in_is_kept_if_it_is_passed_on_at_all() {
    let came_in = Tlvs {
        authority: Some("app.example".to_owned()),
        unique_id: Some(b"id-1".to_vec()),
        ..Tlvs::default()
    };
    let without = Tlvs {
        unique_id: None,
        ..came_in.clone()
    };
    for (pass_tlvs, is_named, tlvs, expected) in [
        (json!(true), true, &came_in, Some("id-1")),
        (json!(false), false, &came_in, None),
        (json!(true), true, &without, None),
        (json!(["unique_id"]), false, &came_in, Some("id-1")),
        (json!(["authority", "alpn"]), true, &came_in, None),
    ] {
        let upstream = Upstream::new();
        let config = required(upstream.address()).set(
            "upstreams.app.proxy_protocol",
            json!({ "version": "v2", "unique_id": true, "pass_tlvs": pass_tlvs }),
        );
        let proxy = Proxy::start(&config);
        let mut client = connect(proxy.address());
        client
            .write_all(&v2(Command::Proxy, &addresses(), tlvs))
            .unwrap();
        let mut server = upstream.accept();
        let told = read_header(&mut server).tlvs;
        let authority = is_named.then_some("app.example");
        assert_eq!(told.authority.as_deref(), authority, "the rest as ever");
        drop((client, server));
        let line = proxy.access_line();
        let expected = expected.unwrap_or_else(|| line["id"].as_str().unwrap());
        assert_eq!(told.unique_id.as_deref(), Some(expected.as_bytes()));
        proxy.finish();
    }
}

#[test]
fn haproxy_reads_the_id() {
    let behind = Upstream::new();
    let bind = "accept-proxy\n  unique-id-format haproxy-saw-%[fc_pp_unique_id]";
    let server = format!(
        "{} send-proxy-v2 proxy-v2-options unique-id",
        behind.address()
    );
    let Some(peer) = PeerProxy::haproxy(bind, &server) else {
        return skip("ids for others", "no haproxy here");
    };
    let config = Config::to([peer.address()]).set(
        "upstreams.app.proxy_protocol",
        json!({ "version": "v2", "unique_id": true }),
    );
    let proxy = Proxy::start(&config);
    let client = connect(proxy.address());
    let mut server = behind.accept();
    let told = told_id(&mut server);
    drop((client, server));
    let line = proxy.access_line();
    assert_eq!(
        told.strip_prefix("haproxy-saw-"),
        line["id"].as_str(),
        "{line}"
    );
    proxy.finish();
}

#[test]
fn haproxy_and_nginx_send_headers_that_are_understood() {
    let upstream = Server::echo().start().unwrap();
    let proxy = Proxy::start(&required(upstream.address()));
    let to = proxy.address();
    let senders = [
        (
            "haproxy v1",
            PeerProxy::haproxy("", &format!("{to} send-proxy")),
        ),
        (
            "haproxy v2",
            PeerProxy::haproxy("", &format!("{to} send-proxy-v2 proxy-v2-options crc32c")),
        ),
        (
            "nginx",
            PeerProxy::nginx("", &format!("proxy_pass {to}; proxy_protocol on;")),
        ),
    ];
    let mut rounds = 0;
    for (name, sender) in senders {
        let Some(sender) = sender else {
            skip("PROXY headers of others", &format!("no {name} here"));
            continue;
        };
        let mut client = connect(sender.address());
        let own = client.local_addr().unwrap().to_string();
        client.write_all(b"hello").unwrap();
        expect_bytes(&mut client, b"hello");
        drop(client);
        let line = proxy.access_lines(rounds + 1).remove(rounds);
        assert_eq!(line["downstream"], own, "{name}");
        rounds += 1;
    }
    proxy.finish();
}

#[test]
fn haproxy_and_nginx_understand_ours() {
    for version in ["v1", "v2"] {
        let behind = Upstream::new();
        // HAProxy tells on whom it was told of.
        if let Some(peer) =
            PeerProxy::haproxy("accept-proxy", &format!("{} send-proxy", behind.address()))
        {
            let config = Config::to([peer.address()]).set("upstreams.app.proxy_protocol", version);
            let proxy = Proxy::start(&config);
            let mut client = connect(proxy.address());
            client.write_all(b"data").unwrap();
            let mut server = behind.accept();
            let header = read_header(&mut server);
            assert_eq!(
                header.source(),
                client.local_addr().ok(),
                "haproxy, {version}"
            );
            expect_bytes(&mut server, b"data");
            drop((client, server));
            proxy.finish();
        } else {
            skip("PROXY headers to others", "no haproxy here");
        }
        if let Some(peer) = PeerProxy::nginx(
            "proxy_protocol",
            "return $proxy_protocol_addr:$proxy_protocol_port;",
        ) {
            let config = Config::to([peer.address()]).set("upstreams.app.proxy_protocol", version);
            let proxy = Proxy::start(&config);
            let mut client = connect(proxy.address());
            let own = client.local_addr().unwrap().to_string();
            assert_eq!(
                read_to_end(&mut client),
                (own.into_bytes(), End::Fin),
                "nginx, {version}"
            );
            drop(client);
            proxy.finish();
        } else {
            skip(
                "PROXY headers to others",
                "no nginx with its stream module here",
            );
        }
    }
}
