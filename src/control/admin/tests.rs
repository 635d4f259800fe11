//! The admin server over real sockets.

use std::io::{BufRead, BufReader};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Source {
    ready: AtomicBool,
}

impl AdminSource for Source {
    fn metrics_text(&self) -> String {
        "# HELP a b\n# TYPE a gauge\na 1\n".to_owned()
    }
    fn stats_json(&self) -> String {
        "{}\n".to_owned()
    }
    fn upstreams_json(&self) -> String {
        "{}\n".to_owned()
    }

    fn ready(&self) -> Result<(), String> {
        let ready = self.ready.load(Ordering::Relaxed);
        ready
            .then_some(())
            .ok_or("core 1 does not listen yet".to_owned())
    }
    fn healthy(&self) -> Result<(), String> {
        Ok(())
    }
}

struct Server {
    address: SocketAddr,
    source: Arc<Source>,
    handle: AdminHandle,
}

fn server(request_limit: Duration) -> Server {
    let mut admin = Admin::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    admin.request_limit = request_limit;
    let address = admin.local_addr().unwrap();
    let source = Arc::new(Source::default());
    let handle = admin.serve(source.clone()).unwrap();
    Server {
        address,
        source,
        handle,
    }
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Status line, headers and body of one answer.
fn read_answer(reader: &mut impl BufRead, with_body: bool) -> (u16, String, String) {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        assert!(
            reader.read_line(&mut line).unwrap() > 0,
            "cut after {head:?}"
        );
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = vec![0; if with_body { length } else { 0 }];
    reader.read_exact(&mut body).unwrap();
    (status, head, String::from_utf8(body).unwrap())
}

fn ask(server: &Server, request: &str) -> (u16, String, String) {
    let mut stream = connect(server);
    stream.write_all(request.as_bytes()).unwrap();
    read_answer(&mut BufReader::new(stream), !request.starts_with("HEAD"))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn every_route() {
    let server = server(PATIENCE);
    let get = |path: &str| ask(&server, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    let (status, head, body) = get("/metrics");
    assert_eq!(
        (status, body.as_str()),
        (200, "# HELP a b\n# TYPE a gauge\na 1\n")
    );
    assert!(
        head.contains("Content-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert_eq!(get("/stats").2, "{}\n");
    assert_eq!(get("/healthz").0, 200);
    let (status, _, body) = get("/readyz");
    assert_eq!(
        (status, body.as_str()),
        (503, "core 1 does not listen yet\n")
    );
    server.source.ready.store(true, Ordering::Relaxed);
    assert_eq!(get("/readyz").0, 200);
    assert!(get("/").2.contains("/metrics"));
    assert_eq!(get("/metrics/").0, 404);
    assert_eq!(get("/%2e%2e/etc/passwd").0, 404);
    let (status, head, _) = ask(&server, "POST /metrics HTTP/1.1\r\n\r\n");
    assert_eq!(status, 405);
    assert!(head.contains("Allow: GET, HEAD"), "{head}");
    server.handle.stop();
}

#[test]
fn head_has_the_length_and_no_body_and_connections_are_kept() {
    let server = server(PATIENCE);
    let stream = connect(&server);
    let mut reader = BufReader::new(&stream);
    // Pipelined: all three at once.
    let requests = "HEAD /metrics HTTP/1.1\r\n\r\nGET /stats HTTP/1.1\r\n\r\nGET /nope HTTP/1.1\r\nConnection: close\r\n\r\n";
    (&stream).write_all(requests.as_bytes()).unwrap();
    let (status, head, _) = read_answer(&mut reader, false);
    assert_eq!(status, 200);
    assert!(head.contains("Content-Length: 30\r\n"), "{head}");
    assert_eq!(read_answer(&mut reader, true).2, "{}\n");
    let (status, head, _) = read_answer(&mut reader, true);
    assert_eq!(status, 404);
    assert!(head.contains("Connection: close"), "{head}");
    let mut rest = Vec::new();
    assert_eq!(reader.read_to_end(&mut rest).unwrap(), 0, "closed as asked");
    server.handle.stop();
}

#[test]
fn garbage_is_answered_with_400_and_closed() {
    let server = server(PATIENCE);
    let too_many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
    for garbage in [
        "\u{16}\u{3}\u{1}hello",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nbad header\r\n\r\n",
        &too_many_headers,
    ] {
        let mut stream = connect(&server);
        stream.write_all(garbage.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        assert_eq!(read_answer(&mut reader, true).0, 400, "{garbage:?}");
        assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
    // Not a byte too few, not one read without need.
    let endless = format!("GET / HTTP/1.1\r\na: {}", "x".repeat(HEAD_BYTES_MAX));
    assert_eq!(ask(&server, &endless).0, 431);
    server.handle.stop();
}

#[test]
fn a_slow_loris_is_dropped_at_the_total_deadline() {
    let server = server(Duration::from_millis(300));
    let stream = connect(&server);
    let dripping = std::thread::spawn({
        let stream = stream.try_clone().unwrap();
        move || {
            let deadline = Instant::now() + PATIENCE;
            // Each byte comes long before any per-read timeout.
            while (&stream).write_all(b"G").is_ok() {
                assert!(Instant::now() < deadline, "still served");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
    until("it is served", || server.handle.connections() == 1);
    until("it is dropped", || server.handle.connections() == 0);
    drop(stream);
    dripping.join().unwrap();
    // An idle one as well.
    let idle = connect(&server);
    until("it is served", || server.handle.connections() == 1);
    until("it is dropped", || server.handle.connections() == 0);
    drop(idle);
    server.handle.stop();
}

#[test]
fn the_seventeenth_connection_is_refused_and_the_others_are_served() {
    let server = server(PATIENCE);
    let held: Vec<TcpStream> = (0..CONNECTIONS_MAX).map(|_| connect(&server)).collect();
    until("all slots are taken", || {
        server.handle.connections() == CONNECTIONS_MAX
    });
    let request = "GET /healthz HTTP/1.1\r\n\r\n";
    let (status, _, body) = ask(&server, request);
    assert_eq!(status, 503);
    assert!(body.contains("16 connections"), "{body}");
    for mut stream in held {
        stream.write_all(request.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut BufReader::new(stream), true).0, 200);
    }
    until("the slots are free", || server.handle.connections() == 0);
    assert_eq!(ask(&server, request).0, 200);
    server.handle.stop();
}

#[test]
fn stop_ends_open_connections_and_frees_the_port() {
    let server = server(PATIENCE);
    let mut stream = connect(&server);
    until("it is served", || server.handle.connections() == 1);
    let address = server.address;
    server.handle.stop();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    Admin::bind(address).unwrap();
}
