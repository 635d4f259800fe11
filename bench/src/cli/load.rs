//! `rr`, `crr`, `answers`, `bulk`, `idle`, `mixed`, `slow`: a load, then its report.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use corelay_bench::endpoint::Endpoint;
use corelay_bench::hlog;
use corelay_bench::load::{Control, Report, answers, bulk, crr, idle, mixed, rr, slow};
use corelay_bench::progress::Progress;
use corelay_bench::units::{ByteRate, ByteSize};

/// How often `idle` looks whether all connections stand.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What all loads take.
#[derive(Args)]
pub(crate) struct Common {
    /// Whom to connect to: ip:port, [ip]:port or unix:/path.
    #[arg(long)]
    to: Endpoint,
    /// Threads; by default one, or one per CPU of --cpus.
    #[arg(long)]
    threads: Option<usize>,
    /// The CPUs that the threads are bound to, in turn: 0,2,3. By default they are not bound.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// For how long: 500ms, 5s, 2min. Ctrl-C ends it earlier, with a report.
    #[arg(long, default_value = "5s")]
    duration: humantime::Duration,
    /// End with an error at the first connection that fails, instead of counting it.
    #[arg(long)]
    fail_fast: bool,
    #[command(flatten)]
    output: Output,
}

impl Common {
    fn threads(&self) -> usize {
        self.threads.unwrap_or(self.cpus.len().max(1))
    }

    /// Runs a load under a progress line, and writes its report.
    fn run(&self, control: &Control, load: impl FnOnce(&Control) -> Result<Report>) -> Result<()> {
        let progress = Progress::show(control, self.duration.into());
        let report = load(control);
        drop(progress);
        let report = report?;
        let started = SystemTime::now().checked_sub(report.elapsed);
        self.output.write(&report, started)?;
        ensure!(
            report.operations + report.bytes_sent + report.bytes_received > 0
                || report.errors.is_empty(),
            "nothing came through"
        );
        Ok(())
    }
}

/// Where a report goes.
#[derive(Args)]
pub(crate) struct Output {
    /// Write the report as JSON, for `merge` and `plot`; - for standard output, and the table goes
    /// to standard error then.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the latency as HdrHistogram's percentile text, in milliseconds.
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Write the latency as HdrHistogram's interval log, with one interval, in nanoseconds.
    #[arg(long, value_name = "FILE")]
    hlog: Option<PathBuf>,
}

impl Output {
    /// The table, and the files that were asked for. `started` is when the load began, if that is
    /// known.
    pub(crate) fn write(&self, report: &Report, started: Option<SystemTime>) -> Result<()> {
        match &self.json {
            Some(path) if path == Path::new("-") => {
                println!("{}", report.to_json());
                eprint!("{}", report.to_table());
            }
            Some(path) => {
                std::fs::write(path, format!("{}\n", report.to_json()))
                    .with_context(|| format!("writing {}", path.display()))?;
                print!("{}", report.to_table());
            }
            None => print!("{}", report.to_table()),
        }
        if let Some(path) = &self.hgrm {
            write_file(path, |file| report.write_hgrm(file))?;
        }
        if let Some(path) = &self.hlog {
            write_file(path, |file| hlog::write(report, started, file))?;
        }
        Ok(())
    }
}

fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    File::create(path)
        .and_then(|file| {
            let mut file = BufWriter::new(file);
            write(&mut file)?;
            file.flush()
        })
        .with_context(|| format!("writing {}", path.display()))
}

#[derive(Args)]
pub(crate) struct Rr {
    #[command(flatten)]
    common: Common,
    /// How many connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Bytes per message: 64, 16KiB.
    #[arg(long, default_value_t = ByteSize(64))]
    size: ByteSize,
    /// Open loop: so many requests per second on a fixed schedule; latency counts from it.
    #[arg(long)]
    rate: Option<f64>,
}

impl Rr {
    fn options(&self) -> Result<rr::Options> {
        Ok(rr::Options {
            to: self.common.to.clone(),
            connections: self.connections,
            threads: self.common.threads(),
            cpus: self.common.cpus.clone(),
            duration: self.common.duration.into(),
            fail_fast: self.common.fail_fast,
            size_bytes: self.size.try_into()?,
            rate: self.rate,
        })
    }

    pub(crate) fn run(&self, control: &Control) -> Result<()> {
        let options = self.options()?;
        self.common
            .run(control, |control| rr::run(&options, control))
    }
}

#[derive(Args)]
pub(crate) struct Crr {
    #[command(flatten)]
    common: Common,
    /// How many connections at a time.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Bytes per message: 64, 16KiB.
    #[arg(long, default_value_t = ByteSize(64))]
    size: ByteSize,
    /// How each connection is closed.
    #[arg(long, value_enum, default_value = "fin")]
    close: Close,
    /// Open loop: so many connections per second on a fixed schedule; latency counts from it.
    #[arg(long)]
    rate: Option<f64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Close {
    /// In order.
    Fin,
    /// With a reset.
    Rst,
}

impl Crr {
    pub(crate) fn run(&self, control: &Control) -> Result<()> {
        let options = crr::Options {
            to: self.common.to.clone(),
            connections: self.connections,
            threads: self.common.threads(),
            cpus: self.common.cpus.clone(),
            duration: self.common.duration.into(),
            fail_fast: self.common.fail_fast,
            size_bytes: self.size.try_into()?,
            close: match self.close {
                Close::Fin => crr::Close::Fin,
                Close::Rst => crr::Close::Rst,
            },
            rate: self.rate,
        };
        self.common
            .run(control, |control| crr::run(&options, control))
    }
}

#[derive(Args)]
pub(crate) struct Answers {
    #[command(flatten)]
    common: Common,
    /// How many connections, one answer each at a time.
    #[arg(long, default_value_t = answers::Options::default().connections)]
    connections: usize,
    /// Bytes of the shortest answer: 1000, 64KiB.
    #[arg(long, default_value_t = ByteSize(answers::Options::default().bytes))]
    bytes: ByteSize,
    /// An answer is so many bytes longer at most; how many is drawn for each.
    #[arg(long, default_value_t = ByteSize(answers::Options::default().spread_bytes))]
    spread: ByteSize,
    /// What the lengths are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Let the kernel drop what is received instead of copying it; nothing is compared then.
    #[arg(long)]
    discard: bool,
    /// Open loop: so many requests per second on a fixed schedule; latency counts from it.
    #[arg(long)]
    rate: Option<f64>,
}

impl Answers {
    pub(crate) fn run(&self, control: &Control) -> Result<()> {
        let options = answers::Options {
            to: self.common.to.clone(),
            connections: self.connections,
            threads: self.common.threads(),
            cpus: self.common.cpus.clone(),
            duration: self.common.duration.into(),
            fail_fast: self.common.fail_fast,
            bytes: self.bytes.0,
            spread_bytes: self.spread.0,
            seed: self.seed,
            discard: self.discard,
            rate: self.rate,
        };
        self.common
            .run(control, |control| answers::run(&options, control))
    }
}

#[derive(Args)]
pub(crate) struct Bulk {
    #[command(flatten)]
    common: Common,
    /// How many connections, one stream each.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// up: to a sink; down: from a source; both: to an echo server and back, or to an endless source.
    #[arg(long, value_enum, default_value = "up")]
    direction: Direction,
    /// Fixed work: bytes per connection and direction (1GiB); the run is over when they are through.
    #[arg(long)]
    bytes: Option<ByteSize>,
    /// All streams together move at most so much per second and direction: 300MiB. Down, the reader
    /// does not read faster. By default as fast as it goes.
    #[arg(long)]
    bytes_per_second: Option<ByteRate>,
    /// Compare every byte: up needs `serve digest`, down `serve source --bytes`, both an echo.
    #[arg(long)]
    verify: bool,
    /// With --verify in down: the source's seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Let the kernel drop what is received instead of copying it.
    #[arg(long)]
    discard: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Direction {
    Up,
    Down,
    Both,
}

impl From<Direction> for bulk::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Up => bulk::Direction::Up,
            Direction::Down => bulk::Direction::Down,
            Direction::Both => bulk::Direction::Both,
        }
    }
}

impl Bulk {
    pub(crate) fn run(&self, control: &Control) -> Result<()> {
        let options = bulk::Options {
            to: self.common.to.clone(),
            connections: self.connections,
            threads: self.common.threads(),
            cpus: self.common.cpus.clone(),
            duration: self.common.duration.into(),
            fail_fast: self.common.fail_fast,
            direction: self.direction.into(),
            bytes: self.bytes.map(|ByteSize(bytes)| bytes),
            bytes_per_second: self.bytes_per_second.map(|ByteRate(rate)| rate),
            verify: self.verify,
            seed: self.seed,
            discard: self.discard,
        };
        self.common
            .run(control, |control| bulk::run(&options, control))
    }
}

#[derive(Args)]
pub(crate) struct Idle {
    #[command(flatten)]
    common: Common,
    /// How many connections.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Connections opened per second; by default as fast as it goes.
    #[arg(long)]
    ramp: Option<f64>,
    /// Send nothing: the target need not be an echo server.
    #[arg(long)]
    no_greeting: bool,
}

impl Idle {
    /// Says once when all connections stand, for scripts that measure then.
    pub(crate) fn run(&self, control: &Control) -> Result<()> {
        let options = idle::Options {
            to: self.common.to.clone(),
            connections: self.connections,
            threads: self.common.threads(),
            cpus: self.common.cpus.clone(),
            duration: self.common.duration.into(),
            fail_fast: self.common.fail_fast,
            ramp: self.ramp,
            greet: !self.no_greeting,
        };
        self.common.run(control, |control| {
            std::thread::scope(|scope| {
                let load = scope.spawn(|| idle::run(&options, control));
                let mut is_told = false;
                while !load.is_finished() {
                    let stand = control.snapshot().operations;
                    if !is_told && stand >= options.connections as u64 {
                        is_told = true;
                        println!("holding {} connections", options.connections);
                    }
                    std::thread::sleep(LOOK_EVERY);
                }
                load.join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("the load panicked")))
            })
        })
    }
}

#[derive(Args)]
pub(crate) struct Mixed {
    #[command(flatten)]
    requests: Rr,
    /// Whom the streams connect to.
    #[arg(long)]
    bulk_to: Endpoint,
    /// How many streams.
    #[arg(long, default_value_t = 4)]
    bulk_connections: usize,
    /// Which way the streams go; see `bulk`.
    #[arg(long, value_enum, default_value = "up")]
    bulk_direction: Direction,
    /// Threads of the streams.
    #[arg(long, default_value_t = 1)]
    bulk_threads: usize,
    /// The CPUs that the streams' threads are bound to.
    #[arg(long, value_delimiter = ',')]
    bulk_cpus: Vec<usize>,
    /// All streams together move at most so much per second and direction; see `bulk`.
    #[arg(long)]
    bulk_bytes_per_second: Option<ByteRate>,
    /// Let the kernel drop what the streams receive.
    #[arg(long)]
    bulk_discard: bool,
}

impl Mixed {
    pub(crate) fn run(&self, control: &Control) -> Result<()> {
        let options = mixed::Options {
            rr: self.requests.options()?,
            bulk: bulk::Options {
                to: self.bulk_to.clone(),
                connections: self.bulk_connections,
                threads: self.bulk_threads,
                cpus: self.bulk_cpus.clone(),
                fail_fast: self.requests.common.fail_fast,
                direction: self.bulk_direction.into(),
                bytes_per_second: self.bulk_bytes_per_second.map(|ByteRate(rate)| rate),
                discard: self.bulk_discard,
                ..bulk::Options::default()
            },
        };
        let common = &self.requests.common;
        common.run(control, |control| mixed::run(&options, control))
    }
}

#[derive(Args)]
pub(crate) struct Slow {
    #[command(flatten)]
    common: Common,
    /// How many connections.
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// What each connection reads per second: 10000, 64KiB, 0.5.
    #[arg(long, default_value_t = ByteRate(10_000.0))]
    bytes_per_second: ByteRate,
    /// SO_RCVBUF of each connection (64KiB); by default as the kernel likes.
    #[arg(long)]
    receive_buffer: Option<ByteSize>,
}

impl Slow {
    pub(crate) fn run(&self, control: &Control) -> Result<()> {
        let options = slow::Options {
            to: self.common.to.clone(),
            connections: self.connections,
            threads: self.common.threads(),
            cpus: self.common.cpus.clone(),
            duration: self.common.duration.into(),
            fail_fast: self.common.fail_fast,
            bytes_per_second: self.bytes_per_second.0,
            receive_buffer_bytes: self.receive_buffer.map(usize::try_from).transpose()?,
        };
        self.common
            .run(control, |control| slow::run(&options, control))
    }
}
