//! `corelay-bench`: test servers and load on the command line. See the library for what they do.

#![allow(clippy::print_stdout, reason = "a command-line tool prints")]

use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use corelay_bench::endpoint::Endpoint;
use corelay_bench::servers::{Behaviour, Blackhole, Fault, RefusedPort, Server};
use corelay_bench::{limits, load};

/// Test servers and load for layer-4 proxies.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a test server until it is killed.
    Serve(Serve),
    /// Closed-loop request/response against an echo server or a proxy before one.
    Rr(Rr),
    /// Open connections, one echo each, and hold them.
    Idle(Idle),
    /// Print a port of 127.0.0.1 that is free now, for scripts that configure other proxies.
    FreePort,
}

#[derive(Args)]
struct Serve {
    /// What the server does.
    #[arg(value_enum)]
    kind: Kind,
    /// ip:port, [ip]:port or unix:/path; port 0 takes a free one. Not for refuse and blackhole,
    /// which take a free port of 127.0.0.1.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: Endpoint,
    /// Its name, in HTTP answers and in its own output.
    #[arg(long, default_value = "server")]
    name: String,
    /// source: how much to send; reset-after, stall: after how many bytes; trickle: bytes at a time.
    #[arg(long, default_value_t = 0)]
    bytes: u64,
    /// source: the pattern's seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// trickle: milliseconds between writes.
    #[arg(long, default_value_t = 1000)]
    interval_ms: u64,
    /// Print counters every second.
    #[arg(long)]
    stats: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Send back what comes.
    Echo,
    /// Read and drop.
    Sink,
    /// Send a pattern, then FIN.
    Source,
    /// Answer HTTP/1.1 with the server's name.
    Http,
    /// Accept and never read.
    NeverRead,
    /// Reset after some bytes, or at once.
    ResetAfter,
    /// Send FIN at once and go on reading.
    HalfClose,
    /// Send a few bytes at a time.
    Trickle,
    /// Echo some bytes, then fall silent.
    Stall,
    /// Speak first, then echo.
    Banner,
    /// Accept and close.
    Close,
    /// Answer SYN with RST.
    Refuse,
    /// Let SYNs vanish.
    Blackhole,
}

#[derive(Args)]
struct Rr {
    /// Whom to connect to.
    #[arg(long)]
    to: Endpoint,
    /// How many connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Bytes per message.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// For how long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Idle {
    /// Whom to connect to.
    #[arg(long)]
    to: Endpoint,
    /// How many connections.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// For how long to hold them.
    #[arg(long, default_value_t = 10.0)]
    hold_seconds: f64,
}

fn main() -> Result<()> {
    limits::raise_open_files();
    match Cli::parse().command {
        Command::Serve(serve) => run_server(&serve),
        Command::Rr(rr) => run_rr(&rr),
        Command::Idle(idle) => run_idle(&idle),
        Command::FreePort => {
            println!("{}", RefusedPort::new()?.address().port());
            Ok(())
        }
    }
}

fn run_server(serve: &Serve) -> Result<()> {
    let behaviour = match serve.kind {
        Kind::Refuse => {
            let port = RefusedPort::new()?;
            return hold_dead(port.address());
        }
        Kind::Blackhole => {
            let hole = Blackhole::new()?;
            return hold_dead(hole.address());
        }
        Kind::Echo => Behaviour::Echo,
        Kind::Sink => Behaviour::Sink { hash: false },
        Kind::Source => Behaviour::Source {
            bytes: serve.bytes,
            seed: serve.seed,
        },
        Kind::Http => Behaviour::Http {
            name: serve.name.clone(),
        },
        Kind::NeverRead => Behaviour::Faulty(Fault::NeverRead),
        Kind::ResetAfter => Behaviour::Faulty(Fault::ResetAfter { bytes: serve.bytes }),
        Kind::HalfClose => Behaviour::Faulty(Fault::HalfCloseEarly),
        Kind::Trickle => Behaviour::Faulty(Fault::Trickle {
            bytes: usize::try_from(serve.bytes.max(1))?,
            interval: Duration::from_millis(serve.interval_ms.max(1)),
        }),
        Kind::Stall => Behaviour::Faulty(Fault::Stall {
            after_bytes: serve.bytes,
        }),
        Kind::Banner => {
            let text = format!("{} ready\r\n", serve.name).into_bytes();
            Behaviour::Faulty(Fault::Banner { text })
        }
        Kind::Close => Behaviour::Faulty(Fault::AcceptThenClose),
    };
    let server = Server::new(behaviour)
        .listen(serve.listen.clone())
        .start()
        .with_context(|| format!("listening on {}", serve.listen))?;
    println!("{} listening on {}", serve.name, server.endpoint());
    loop {
        std::thread::sleep(Duration::from_secs(1));
        if serve.stats {
            println!("{:?}", server.stats());
        }
    }
}

/// The caller holds the sockets; nothing is to be done but to stay.
fn hold_dead(address: std::net::SocketAddr) -> Result<()> {
    println!("dead at {address}");
    loop {
        std::thread::park();
    }
}

fn run_rr(rr: &Rr) -> Result<()> {
    let options = load::rr::Options {
        to: rr.to.clone(),
        connections: rr.connections,
        size_bytes: rr.size,
        duration: Duration::try_from_secs_f64(rr.seconds).context("--seconds")?,
        ..load::rr::Options::default()
    };
    let report = load::rr::run(&options, &load::Control::new())?;
    let us = |quantile| report.service_ns.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "{}",
        serde_json::json!({
            "requests": report.operations,
            "requests_per_second": report.rates.operations,
            "latency_p50_us": us(0.5),
            "latency_p99_us": us(0.99),
            "errors": report.errors,
        })
    );
    Ok(())
}

fn run_idle(idle: &Idle) -> Result<()> {
    let hold = Duration::try_from_secs_f64(idle.hold_seconds).context("--hold-seconds")?;
    let held = load::idle::hold(&idle.to, idle.connections)?;
    println!("holding {} connections", held.len());
    std::thread::sleep(hold);
    Ok(())
}
