//! `corelay demo`: a whole working example with nothing else installed. Two embedded HTTP servers, a
//! listener that takes turns between them, a short burst of its own traffic, and what came of it.
//!
//! Everything is real: the traffic crosses the kernel's loopback and the same cores as in `run`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use corelay_bench::servers::{Handle, Server};
use hdrhistogram::Histogram;

use crate::config::model::{AccessLog, LogLevel};
use crate::config::{self, Config};
use crate::control::{self, RunError, Running};
use crate::units::Address;

/// Names of the embedded servers.
const SERVERS: [&str; 2] = ["alpha", "beta"];
/// Clients that send the burst at the same time.
const CLIENTS: usize = 16;
/// Connections that each client opens, one after the other.
const CONNECTIONS_PER_CLIENT: usize = 25;
/// Requests on each connection.
const REQUESTS_PER_CONNECTION: usize = 40;
/// A request that takes longer has failed.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// Ports tried after the one asked for.
const PORTS_TRIED: u16 = 100;

/// Why the demo stopped.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The proxy.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The configuration that it made itself.
    #[error("{0}")]
    Config(#[from] config::LoadError),
    /// A server, a client or the terminal.
    #[error("demo: {0}")]
    Io(#[from] io::Error),
}

/// Runs the demo; with `exit` it ends after the table.
pub fn run(listen: SocketAddr, admin: SocketAddr, exit: bool) -> Result<(), DemoError> {
    let servers: Vec<Handle> = SERVERS
        .iter()
        .map(|name| Server::http(*name).start())
        .collect::<Result<_, _>>()?;
    let listen = free_address(listen, None)?;
    let admin = free_address(admin, Some(listen))?;
    let running = control::start(&configuration(listen, admin, &servers)?)?;
    let address = match &running.addresses[0] {
        Address::Tcp(address) => *address,
        Address::Unix(_) => unreachable!("the demo listens on TCP"),
    };
    let burst = send_burst(address);
    print_table(&burst, &servers, address)?;
    if exit {
        return Ok(running.stop()?);
    }
    print_urls(&running, address)?;
    Ok(running.supervise()?)
}

fn configuration(
    listen: SocketAddr,
    admin: SocketAddr,
    servers: &[Handle],
) -> Result<Config, config::LoadError> {
    let to: Vec<String> = servers
        .iter()
        .map(|server| server.address().to_string())
        .collect();
    let mut config = config::for_relay(&listen.to_string(), &to, Some(&admin.to_string()))?;
    // The table is what the person came for.
    config.log.access = AccessLog::Off;
    config.log.level = LogLevel::Warn;
    Ok(config)
}

/// The address asked for, or the next one whose port is free.
fn free_address(wanted: SocketAddr, taken: Option<SocketAddr>) -> io::Result<SocketAddr> {
    let mut last = None;
    for port in wanted.port()..=wanted.port().saturating_add(PORTS_TRIED) {
        let candidate = SocketAddr::new(wanted.ip(), port);
        if taken == Some(candidate) && port != 0 {
            continue;
        }
        match TcpListener::bind(candidate) {
            Ok(_) => return Ok(candidate),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// What the clients saw.
struct Burst {
    latency_us: Histogram<u64>,
    requests: u64,
    errors: u64,
    bytes: u64,
    took: Duration,
}

fn send_burst(address: SocketAddr) -> Burst {
    let started = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| thread::spawn(move || one_client(address)))
        .collect();
    let mut total = Burst::new();
    for client in clients {
        let seen = client.join().expect("a panic ends the process");
        total.latency_us.add(seen.latency_us).expect("same bounds");
        total.requests += seen.requests;
        total.errors += seen.errors;
        total.bytes += seen.bytes;
    }
    total.took = started.elapsed();
    total
}

impl Burst {
    fn new() -> Self {
        let longest_us = REQUEST_WITHIN.as_micros() as u64 * 2;
        Self {
            latency_us: Histogram::new_with_bounds(1, longest_us, 3).expect("constant bounds"),
            requests: 0,
            errors: 0,
            bytes: 0,
            took: Duration::ZERO,
        }
    }
}

fn one_client(address: SocketAddr) -> Burst {
    let mut seen = Burst::new();
    for _ in 0..CONNECTIONS_PER_CLIENT {
        if one_connection(address, &mut seen).is_err() {
            seen.errors += 1;
        }
    }
    seen
}

fn one_connection(address: SocketAddr, seen: &mut Burst) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&address, REQUEST_WITHIN)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REQUEST_WITHIN))?;
    let mut reader = BufReader::new(&stream);
    for _ in 0..REQUESTS_PER_CONNECTION {
        let started = Instant::now();
        (&stream).write_all(b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")?;
        seen.bytes += read_response(&mut reader)?;
        seen.latency_us
            .saturating_record(started.elapsed().as_micros() as u64);
        seen.requests += 1;
    }
    Ok(())
}

/// Reads one response with a Content-Length. Returns its size, in bytes.
fn read_response(reader: &mut impl BufRead) -> io::Result<u64> {
    let mut line = String::new();
    let mut body_bytes = 0;
    let mut total_bytes = 0;
    loop {
        line.clear();
        let read = reader.read_line(&mut line)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        total_bytes += read as u64;
        let header = line.trim_end().to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            body_bytes = value
                .trim()
                .parse()
                .map_err(|_| io::ErrorKind::InvalidData)?;
        }
        if header.is_empty() {
            break;
        }
    }
    let copied = io::copy(&mut reader.by_ref().take(body_bytes), &mut io::sink())?;
    if copied < body_bytes {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(total_bytes + copied)
    }
}

fn print_table(burst: &Burst, servers: &[Handle], listen: SocketAddr) -> io::Result<()> {
    const BYTES_PER_MIB: f64 = 1024.0 * 1024.0;
    let seconds = burst.took.as_secs_f64();
    let out = &mut io::stdout().lock();
    writeln!(
        out,
        "\n{} connections, {} requests through {listen} in {seconds:.2} s, {} failed\n",
        CLIENTS * CONNECTIONS_PER_CLIENT,
        burst.requests,
        burst.errors
    )?;
    writeln!(out, "  upstream server            connections")?;
    for (name, server) in SERVERS.iter().zip(servers) {
        writeln!(
            out,
            "  {name:<6} {:<21} {:>9}",
            server.address(),
            server.stats().accepted
        )?;
    }
    writeln!(
        out,
        "\n  throughput   {:>10.0} requests/s  {:>8.2} MiB/s",
        burst.requests as f64 / seconds,
        burst.bytes as f64 / seconds / BYTES_PER_MIB
    )?;
    for (label, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
        let ms = burst.latency_us.value_at_quantile(quantile) as f64 / 1_000.0;
        writeln!(out, "  latency {label:<5} {ms:>9.3} ms")?;
    }
    writeln!(
        out,
        "  latency max   {:>9.3} ms",
        burst.latency_us.max() as f64 / 1_000.0
    )?;
    out.flush()
}

fn print_urls(running: &Running, listen: SocketAddr) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    writeln!(out, "\nTry it:")?;
    writeln!(
        out,
        "  curl http://{}/           # answered by alpha and beta in turn",
        shown(listen)
    )?;
    if let Some(admin) = running.admin.map(shown) {
        writeln!(
            out,
            "  curl http://{admin}/stats      # what is going on, for a person"
        )?;
        writeln!(
            out,
            "  curl http://{admin}/metrics    # the same for Prometheus"
        )?;
        writeln!(
            out,
            "  curl http://{admin}/readyz     # whether every listener listens"
        )?;
    }
    writeln!(out, "\nCtrl-C stops it.")?;
    out.flush()
}

/// An address that a client can use: the unspecified one stands for loopback.
fn shown(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
