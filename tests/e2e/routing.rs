//! Sessions by the name that the client asks for, TLS untouched: cases 37 and 56 to 59.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use corelay_bench::servers::{Handle, RefusedPort, Server};
use serde_json::{Value, json};

use crate::support::peers::{End, connect, expect_bytes, expect_reset, finish, read_to_end};
use crate::support::process::tool;
use crate::support::proxy::assert_reason;
use crate::support::{Config, Proxy, Upstream, skip, wait_until};

/// A ClientHello as RFC 8446 has it, with this server name, these protocols and so much padding.
fn client_hello(name: Option<&str>, alpn: &[&[u8]], padding: usize) -> Vec<u8> {
    let with_length = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let mut extensions = Vec::new();
    if let Some(name) = name {
        let entry = [&[0], with_length(name.as_bytes()).as_slice()].concat();
        extensions.extend([0, 0]);
        extensions.extend(with_length(&with_length(&entry)));
    }
    if !alpn.is_empty() {
        let entry = |protocol: &&[u8]| [&[protocol.len() as u8], *protocol].concat();
        let list: Vec<u8> = alpn.iter().flat_map(entry).collect();
        extensions.extend([0, 16]);
        extensions.extend(with_length(&with_length(&list)));
    }
    // RFC 7685.
    extensions.extend([0, 21]);
    extensions.extend(with_length(&vec![0; padding]));
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend(with_length(&[0x13, 0x01]));
    body.extend([1, 0]);
    body.extend(with_length(&extensions));
    let length = (body.len() as u32).to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

/// The message in records of at most so many bytes.
fn records(message: &[u8], most: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let head = [&[22, 3, 1], (part.len() as u16).to_be_bytes().as_slice()].concat();
        [head.as_slice(), part].concat()
    };
    message.chunks(most).flat_map(record).collect()
}

fn hello(name: &str) -> Vec<u8> {
    records(&client_hello(Some(name), &[], 0), 16_384)
}

/// `app` for other names, `a` for a.example, `wild` for those below example.org, `none` without a name,
/// `plain` without TLS (or HTTP).
fn config(by: &str, servers: &[(&str, SocketAddr); 5]) -> Config {
    let [(_, app), others @ ..] = servers;
    let config = Config::to([*app]).set(
        "listeners.edge.route",
        json!({
            "by": by,
            "names": { "A.Example": "a", "*.example.org": "wild" },
            "no_name": "none",
            "other_protocol": "plain",
            "timeout": "600ms",
        }),
    );
    others.iter().fold(config, |config, (name, server)| {
        config.set(
            &format!("upstreams.{name}"),
            json!({ "servers": [server.to_string()] }),
        )
    })
}

/// Five echo servers and a proxy before them.
struct Bed {
    proxy: Proxy,
    _servers: Vec<Handle>,
    seen: usize,
}

impl Bed {
    fn new(by: &str) -> Self {
        let names = ["app", "a", "wild", "none", "plain"];
        let servers: Vec<_> = names
            .iter()
            .map(|_| Server::echo().start().unwrap())
            .collect();
        let named: [_; 5] = std::array::from_fn(|at| (names[at], servers[at].address()));
        Self {
            proxy: Proxy::start(&config(by, &named)),
            _servers: servers,
            seen: 0,
        }
    }

    /// Sends the parts, expects all of them back unchanged, and returns the upstream.
    fn upstream_of(&mut self, parts: &[&[u8]]) -> String {
        let mut client = connect(self.proxy.address());
        for part in parts {
            client.write_all(part).unwrap();
            if parts.len() > 1 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        expect_bytes(&mut client, &parts.concat());
        client.write_all(b"and on").unwrap();
        expect_bytes(&mut client, b"and on");
        drop(client);
        self.next_line()["upstream"].as_str().unwrap().to_owned()
    }

    fn next_line(&mut self) -> Value {
        self.seen += 1;
        self.proxy.access_lines(self.seen).remove(self.seen - 1)
    }
}

#[test]
fn cases_56_to_59_a_client_hello_is_routed_by_its_name_and_forwarded_unchanged() {
    let mut bed = Bed::new("sni");
    for (name, upstream) in [
        ("a.example", "a"),
        ("A.EXAMPLE", "a"),
        ("a.example.", "a"),
        ("x.example.org", "wild"),
        ("y.x.example.org", "wild"),
        ("example.org", "app"),
        ("other.example", "app"),
    ] {
        assert_eq!(bed.upstream_of(&[&hello(name)]), upstream, "{name}");
    }
    let nameless = records(&client_hello(None, &[], 0), 16_384);
    assert_eq!(bed.upstream_of(&[&nameless]), "none");
    assert_eq!(bed.upstream_of(&[&hello("192.0.2.1")]), "none");
    assert_eq!(bed.upstream_of(&[b"GET / HTTP/1.1\r\n\r\n"]), "plain");
    assert_eq!(bed.upstream_of(&[b"SSH-2.0-x\r\n"]), "plain");
    bed.proxy.finish();
}

#[test]
fn case_56_a_client_hello_may_come_in_any_pieces_and_as_large_as_post_quantum_ones_are() {
    let mut bed = Bed::new("sni");
    let small = hello("a.example");
    for split in [1, 3, 5, 9, 44, small.len() - 1] {
        assert_eq!(
            bed.upstream_of(&[&small[..split], &small[split..]]),
            "a",
            "{split}"
        );
    }
    // Records that end within the name.
    let large = client_hello(Some("a.example"), &[], 1_800);
    for most in [60, 61, 700] {
        let bytes = records(&large, most);
        let parts: Vec<_> = bytes.chunks(1_200).collect();
        assert_eq!(bed.upstream_of(&parts), "a", "records of {most}");
    }
    let huge = records(&client_hello(Some("a.example"), &[], 15_000), 16_384);
    assert_eq!(bed.upstream_of(&[&huge]), "a");
    bed.proxy.finish();
}

#[test]
fn case_57_what_is_no_sound_client_hello_is_refused() {
    let mut bed = Bed::new("sni");
    let too_large = records(&client_hello(Some("a.example"), &[], 20_000), 16_384);
    let with_nul = hello("a\0.example");
    for bytes in [too_large.as_slice(), &with_nul, &hello(&"a".repeat(300))] {
        let mut client = connect(bed.proxy.address());
        // It may be reset before all is written.
        let _ = client.write_all(bytes);
        assert_ne!(read_to_end(&mut client).1, End::Silence);
        assert_reason(&bed.next_line(), "downstream/accept/route_malformed");
    }
    let mut client = connect(bed.proxy.address());
    client.write_all(&hello("a.example")[..20]).unwrap();
    finish(&client);
    assert_eq!(read_to_end(&mut client).1, End::Reset);
    assert_reason(&bed.next_line(), "downstream/accept/route_malformed");
    bed.proxy.finish();
}

#[test]
fn case_37_a_client_hello_that_trickles_in_is_over_at_the_one_deadline() {
    let mut bed = Bed::new("sni");
    let mut client = connect(bed.proxy.address());
    let began = Instant::now();
    for byte in hello("a.example").iter().take(8) {
        client.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    expect_reset(&mut client);
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert_reason(&bed.next_line(), "local/accept/route_timeout");
    bed.proxy.finish();
}

#[test]
fn an_http_request_is_routed_by_its_host() {
    let mut bed = Bed::new("host");
    for (head, upstream) in [
        ("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "a"),
        (
            "GET / HTTP/1.1\r\nUser-Agent: x\r\nhost: A.example:8080\r\n\r\n",
            "a",
        ),
        (
            "POST http://x.example.org/ HTTP/1.1\r\nHost: a.example\r\n\r\nbody",
            "wild",
        ),
        ("GET / HTTP/1.0\r\n\r\n", "none"),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "none"),
        ("GET / HTTP/1.1\r\nHost: other\r\n\r\n", "app"),
        ("\x16\x03\x01 not HTTP", "plain"),
    ] {
        let (first, rest) = head.as_bytes().split_at(2);
        assert_eq!(bed.upstream_of(&[first, rest]), upstream, "{head:?}");
    }
    let mut client = connect(bed.proxy.address());
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        .unwrap();
    expect_reset(&mut client);
    assert_reason(&bed.next_line(), "downstream/accept/route_malformed");
    bed.proxy.finish();
}

#[test]
fn the_name_is_told_to_servers_that_get_a_proxy_header() {
    let upstream = Upstream::new();
    let config = Config::to([upstream.address()])
        .set("listeners.edge.route", json!({ "by": "sni", "names": {} }))
        .set("upstreams.app.proxy_protocol", "v2");
    let proxy = Proxy::start(&config);
    let mut client = connect(proxy.address());
    let hello = hello("told.example");
    client.write_all(&hello).unwrap();
    let mut server = upstream.accept();
    let mut bytes = vec![0; 28 + 3 + "told.example".len()];
    std::io::Read::read_exact(&mut server, &mut bytes).unwrap();
    // PP2_TYPE_AUTHORITY.
    assert_eq!(&bytes[28..31], [2, 0, 12]);
    assert_eq!(&bytes[31..], b"told.example");
    expect_bytes(&mut server, &hello);
    drop((client, server));
    proxy.finish();
}

#[test]
fn the_protocol_that_decided_is_told_to_servers_that_get_a_proxy_header() {
    let upstream = Upstream::new();
    let route = json!({ "by": "sni", "alpn": { "h2": "app" } });
    let config = Config::to([upstream.address()])
        .set("listeners.edge.route", route)
        .set("upstreams.app.proxy_protocol", "v2");
    let proxy = Proxy::start(&config);
    let offers = [("h2", Some("h2")), ("spdy/1", None)];
    for (second, told) in offers {
        let offered = ["http/1.1".as_bytes(), second.as_bytes()];
        let mut client = connect(proxy.address());
        let hello = records(&client_hello(None, &offered, 0), 16_384);
        client.write_all(&hello).unwrap();
        let mut server = upstream.accept();
        let mut bytes = vec![0; 28 + told.map_or(0, |it| 3 + it.len())];
        std::io::Read::read_exact(&mut server, &mut bytes).unwrap();
        // PP2_TYPE_ALPN.
        let expected = told.map_or(Vec::new(), |it| [&[1, 0, 2], it.as_bytes()].concat());
        assert_eq!(&bytes[28..], expected);
        expect_bytes(&mut server, &hello);
        drop((client, server));
    }
    proxy.finish();
}

#[test]
fn a_protocol_that_is_offered_comes_before_the_name() {
    let [app, web, acme] = [(); 3].map(|()| Server::echo().start().unwrap());
    let servers = |server: &Handle| json!({ "servers": [server.address().to_string()] });
    let config = Config::to([app.address()])
        .set(
            "listeners.edge.route",
            json!({
                "by": "sni",
                "alpn": { "acme-tls/1": "acme", "hex:00ff": "acme", "h2": "web" },
                "names": { "a.example": "a" },
            }),
        )
        .set("upstreams.a", servers(&app))
        .set("upstreams.web", servers(&web))
        .set("upstreams.acme", servers(&acme));
    let mut bed = Bed {
        proxy: Proxy::start(&config),
        _servers: vec![app, web, acme],
        seen: 0,
    };
    let known = Some("a.example");
    for (name, alpn, upstream) in [
        (known, &[][..], "a"),
        (known, &[b"acme-tls/1".as_slice()][..], "acme"),
        (Some("b.example"), &[b"acme-tls/1"], "acme"),
        (None, &[b"acme-tls/1"], "acme"),
        (known, &[&[0x0A, 0x0A], b"h2", b"acme-tls/1"], "web"),
        (known, &[b"http/1.1", b"acme-tls/1", b"h2"], "acme"),
        (known, &[&[0, 255]], "acme"),
        (known, &[b"http/1.1", b"H2", b"hex:00ff"], "a"),
        (Some("b.example"), &[b"http/1.1"], "app"),
    ] {
        let hello = records(&client_hello(name, alpn, 0), 16_384);
        assert_eq!(bed.upstream_of(&[&hello]), upstream, "{name:?} {alpn:?}");
    }
    // Upstreams that only a protocol leads to are the listener's like all others.
    let stats: Value = serde_json::from_str(&bed.proxy.get("/stats").body).unwrap();
    assert_eq!(
        stats["listeners"]["edge"]["upstreams"],
        json!(["a", "acme", "app", "web"]),
        "{stats}"
    );
    bed.proxy.finish();
}

/// The server that each of these requests reached, in their order.
fn servers_of(proxy: &Proxy, requests: &[(SocketAddr, Vec<u8>)]) -> Vec<String> {
    let seen = proxy.access_so_far().len();
    let mut clients = Vec::new();
    for (to, request) in requests {
        let mut client = connect(*to);
        client.write_all(request).unwrap();
        expect_bytes(&mut client, request);
        clients.push(client.local_addr().unwrap().to_string());
    }
    let lines = proxy.access_lines(seen + requests.len()).split_off(seen);
    let server = |client: &String| {
        let mut lines = lines.iter();
        let line = lines.find(|line| line["downstream"] == **client).unwrap();
        line["server"].as_str().unwrap().to_owned()
    };
    clients.iter().map(server).collect()
}

fn request_for(name: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n").into_bytes()
}

#[test]
fn a_name_reaches_the_same_server_on_every_core_and_in_every_process_by_sni_and_by_host() {
    let servers: [Handle; 4] = std::array::from_fn(|_| Server::echo().start().unwrap());
    let dead = RefusedPort::new().unwrap();
    for balance in ["source_hash", "maglev"] {
        let addresses = servers.each_ref().map(Handle::address);
        let config = Config::to(addresses)
            .set("upstreams.app.balance", balance)
            .set("upstreams.app.hash", "name")
            .set("listeners.edge.route.by", "sni")
            .set(
                "listeners.web",
                json!({ "bind": "127.0.0.1:0", "upstream": "app", "route": { "by": "host" } }),
            )
            // Hashed anew for the upstream that a session falls back to.
            .set(
                "upstreams.dead",
                json!({
                    "servers": [dead.address().to_string()],
                    "check": { "interval": "50ms", "fall": 1 },
                    "fallback": "app",
                }),
            )
            .set(
                "listeners.falls",
                json!({ "bind": "127.0.0.1:0", "upstream": "dead", "route": { "by": "host" } }),
            );
        let names: Vec<String> = (0..24).map(|number| format!("s{number}.example")).collect();
        let mut choices = Vec::new();
        for _ in 0..2 {
            let proxy = Proxy::start(&config);
            let at = |name: &str| proxy.listener(name).parse::<SocketAddr>().unwrap();
            proxy.wait_log("a server gets no new sessions");
            let by_sni = names.iter().map(|name| (at("edge"), hello(name)));
            let by_sni = servers_of(&proxy, &by_sni.collect::<Vec<_>>());
            for listener in ["web", "falls"] {
                // More than once, and in upper case: two cores accept them.
                for name in [str::to_owned as fn(&str) -> String, str::to_uppercase] {
                    let requests = names
                        .iter()
                        .map(|it| (at(listener), request_for(&name(it))));
                    let by_host = servers_of(&proxy, &requests.collect::<Vec<_>>());
                    assert_eq!(by_host, by_sni, "{balance}, {listener}");
                }
            }
            // Without a name it is the address, of which there is one.
            let nameless = records(&client_hello(None, &[], 0), 16_384);
            let mut nameless = servers_of(&proxy, &vec![(at("edge"), nameless); 8]);
            let plain = b"SSH-2.0-x\r\n".to_vec();
            nameless.extend(servers_of(&proxy, &[(at("web"), plain)]));
            nameless.dedup();
            assert_eq!(nameless.len(), 1, "{nameless:?}");
            proxy.finish();
            choices.push(by_sni);
        }
        assert_eq!(choices[0], choices[1], "{balance}");
        let mut used = choices.remove(0);
        used.sort();
        used.dedup();
        assert!(used.len() > 1, "24 names, and one address");
    }
}

/// A TLS server of OpenSSL's that answers with a page.
struct TlsServer {
    child: std::process::Child,
    address: SocketAddr,
}

impl TlsServer {
    fn start(openssl: &Path, directory: &Path, more: &[&str]) -> Self {
        let path = |name: &str| directory.join(name).display().to_string();
        let made = Command::new(openssl)
            .args("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=a.example".split(' '))
            .args(["-keyout", &path("key"), "-out", &path("cert")])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let address = RefusedPort::new().unwrap().address();
        let child = Command::new(openssl)
            .args(["s_server", "-quiet", "-www"])
            .args(["-accept", &address.to_string()])
            .args(["-key", &path("key"), "-cert", &path("cert")])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("openssl listens", || {
            std::net::TcpStream::connect(address).is_ok()
        });
        Self { child, address }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Real TLS from end to end: the handshake survives being looked at.
#[test]
fn openssl_talks_through_it_to_the_server_of_its_name_or_protocol() {
    let Some(openssl) = tool("openssl") else {
        return skip("TLS through a route", "no openssl here");
    };
    let openssl = Path::new(&openssl);
    let directory = tempfile::tempdir().unwrap();
    let named = TlsServer::start(openssl, directory.path(), &["-alpn", "h2"]);
    let acme = TlsServer::start(openssl, directory.path(), &["-alpn", "acme-tls/1"]);
    let wrong = Server::echo().start().unwrap();
    let config = Config::to([wrong.address()])
        .set(
            "listeners.edge.route",
            json!({
                "by": "sni",
                "alpn": { "acme-tls/1": "acme" },
                "names": { "a.example": "a" },
            }),
        )
        .set(
            "upstreams.a",
            json!({ "servers": [named.address.to_string()] }),
        )
        .set(
            "upstreams.acme",
            json!({ "servers": [acme.address.to_string()] }),
        );
    let proxy = Proxy::start(&config);
    let rounds = [("h2", "a"), ("acme-tls/1", "acme")];
    for (round, (protocol, upstream)) in rounds.into_iter().enumerate() {
        let client = Command::new(openssl)
            .args(["s_client", "-servername", "a.example", "-alpn", protocol])
            .args(["-connect", &proxy.address().to_string()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&client.stdout);
        assert!(
            said.contains("CN = a.example") || said.contains("CN=a.example"),
            "{said}"
        );
        assert!(
            said.contains(&format!("ALPN protocol: {protocol}")),
            "{said}"
        );
        let line = proxy.access_lines(round + 1).remove(round);
        assert_eq!(line["upstream"], upstream);
    }
    proxy.finish();
}
