//! `serve`: a test server until it is killed.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use corelay_bench::endpoint::Endpoint;
use corelay_bench::servers::{Behaviour, Blackhole, Fault, RefusedPort, Server};
use corelay_bench::units::ByteSize;

#[derive(Args)]
pub(crate) struct Serve {
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
    /// source: how much to send, 0 without end; reset-after, stall, freeze: after how many bytes;
    /// corrupt: which byte; trickle: bytes at a time. 1000, 64KiB, 1GiB.
    #[arg(long, default_value_t = ByteSize(0))]
    bytes: ByteSize,
    /// source: the pattern's seed; faulty: what the faults are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// trickle: time between writes; delay: of each answer; freeze: of the standstill.
    #[arg(long, default_value = "1s")]
    interval: humantime::Duration,
    /// The CPU that the server's thread is bound to.
    #[arg(long)]
    cpu: Option<usize>,
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
    /// Have the kernel drop what comes: the cheapest sink.
    Discard,
    /// Read, and answer the end with the SHA-256 of what came.
    Digest,
    /// Send a pattern, then FIN; without --bytes the same bytes again and again, and drop what comes.
    Source,
    /// Answer each request with as many bytes as it asks for, and keep the connection open: for the
    /// load of this name.
    Answers,
    /// Answer HTTP/1.1 with the server's name.
    Http,
    /// Another fault on each connection, drawn from --seed.
    Faulty,
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
    /// Echo, later.
    Delay,
    /// Echo; stand still once.
    Freeze,
    /// Echo with one bit wrong.
    Corrupt,
    /// Answer SYN with RST.
    Refuse,
    /// Let SYNs vanish.
    Blackhole,
}

impl Serve {
    /// Runs until the process is killed.
    pub(crate) fn run(&self) -> Result<()> {
        let behaviour = match self.kind {
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
            Kind::Discard => Behaviour::Discard,
            Kind::Digest => Behaviour::Digest,
            Kind::Source if self.bytes.0 == 0 => Behaviour::Blast,
            Kind::Source => Behaviour::Source {
                bytes: self.bytes.0,
                seed: self.seed,
            },
            Kind::Answers => Behaviour::Answers,
            Kind::Http => Behaviour::Http {
                name: self.name.clone(),
            },
            Kind::Faulty => Behaviour::FaultyMix { seed: self.seed },
            _ => Behaviour::Faulty(self.fault()?),
        };
        let mut server = Server::new(behaviour).listen(self.listen.clone());
        if let Some(cpu) = self.cpu {
            server = server.cpu(cpu);
        }
        let server = server
            .start()
            .with_context(|| format!("listening on {}", self.listen))?;
        println!("{} listening on {}", self.name, server.endpoint());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if self.stats {
                println!("{:?}", server.stats());
            }
        }
    }

    fn fault(&self) -> Result<Fault> {
        let interval = Duration::from(self.interval).max(Duration::from_millis(1));
        Ok(match self.kind {
            Kind::ResetAfter => Fault::ResetAfter {
                bytes: self.bytes.0,
            },
            Kind::HalfClose => Fault::HalfCloseEarly,
            Kind::Trickle => Fault::Trickle {
                bytes: usize::try_from(self.bytes.0.max(1))?,
                interval,
            },
            Kind::Stall => Fault::Stall {
                after_bytes: self.bytes.0,
            },
            Kind::Banner => Fault::Banner {
                text: format!("{} ready\r\n", self.name).into_bytes(),
            },
            Kind::Close => Fault::AcceptThenClose,
            Kind::Delay => Fault::Delay { delay: interval },
            Kind::Freeze => Fault::Freeze {
                after_bytes: self.bytes.0,
                pause: interval,
            },
            Kind::Corrupt => Fault::Corrupt { at: self.bytes.0 },
            _ => Fault::NeverRead,
        })
    }
}

/// The caller holds the sockets; nothing is to be done but to stay.
fn hold_dead(address: std::net::SocketAddr) -> Result<()> {
    println!("dead at {address}");
    loop {
        std::thread::park();
    }
}
