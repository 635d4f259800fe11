//! Proxies side by side: started on the same CPU, put through the same loads in turn, measured from
//! outside.
//!
//! ```text
//! CPU 0 (all but the last)                      last CPU
//! ┌─────────────────────────────┐               ┌──────────────────────────────────────────┐
//! │ load ───────────────────────┼──────────────>│ corelay │ haproxy │ nginx │ … one worker │
//! │ echo, source, sink per proxy│<──────────────┤ each; one is loaded, the others sleep    │
//! └─────────────────────────────┘               └──────────────────────────────────────────┘
//! ```
//!
//! Reading order: `peers` (who), `scenarios` (what), `comparison`, `rounds` (how), `usage`
//! (what it costs), `results`, `bars`, `table`, `run_directory`.

#![allow(clippy::print_stdout, reason = "its tables are its result")]

mod bars;
mod chart;
mod comparison;
mod configure;
mod integrity;
pub mod launch;
mod machine;
mod peers;
mod process;
mod results;
mod rounds;
mod run_directory;
mod scenarios;
mod statistics;
mod table;
mod usage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::limits;
use crate::load::Control;
use crate::units::ByteRate;
use comparison::Comparison;
use machine::{CongestionControl, Machine};
use peers::{CORELAY, Installed, Places};
use rounds::{Effort, Place};
use run_directory::Record;

/// What `corelay-bench compare` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Measured rounds per scenario; one more warms up. Many short ones tell more than few long ones:
    /// a virtual machine's speed changes from one second to the next.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Seconds of load per proxy and round.
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
    /// Scenarios, or groups of them (bulk, rr, crr, mixed, workers); absent = all but bulk-up.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Proxies; absent = all but the variants. direct and corelay always take part.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// The corelay to measure; absent = the one beside this binary.
    #[arg(long)]
    corelay: Option<PathBuf>,
    /// Where the run is written; absent = bench/runs/DATE-MACHINE.
    #[arg(long)]
    out: Option<PathBuf>,
    /// What the machine is called in the folder's name; absent = CPUs, model, hypervisor.
    #[arg(long)]
    machine: Option<String>,
    /// Connections of the scenario idle, as far as the descriptors allow. With few the kernel's huge
    /// pages blur the result: 2 MiB are 1 KiB for each of 2,000.
    #[arg(long, default_value_t = 6000)]
    idle_connections: usize,
    /// Requests per second of the open loop; absent = half of what the slowest proxy can do.
    #[arg(long)]
    rate: Option<f64>,
    /// What the streams of mixed-paced move per second, all together: 300MiB; absent = half of what the
    /// slowest proxy moves in mixed.
    #[arg(long)]
    bulk_bytes_per_second: Option<ByteRate>,
    /// MiB that each proxy must carry unharmed each way before it is measured.
    #[arg(long, default_value_t = 128)]
    integrity_mib: u64,
    /// Do not set the congestion control to cubic, which is for the whole machine.
    #[arg(long)]
    keep_congestion_control: bool,
    /// List scenarios and proxies, and end.
    #[arg(long)]
    list: bool,
}

/// Runs the comparison, prints its tables and writes its folder.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        print_list();
        return Ok(());
    }
    let duration = arguments.check()?;
    let scenarios = scenarios::selected(&arguments.only)?;
    let control = Control::new();
    stop_on_signal(&control)?;
    let work = tempfile::tempdir().context("making a folder for the proxies")?;
    let peers = find_peers(arguments, work.path())?;
    // What is measured is what stands here now, not what an editor makes of it meanwhile.
    let revision = run_directory::revision();

    let congestion_control = CongestionControl::fix(arguments.keep_congestion_control);
    let all_cpus = machine::allowed_cpus();
    let (proxy_cpus, load_cpus) = divide(&all_cpus)?;
    // Servers and load start from this thread and inherit its CPUs.
    launch::pin_thread(load_cpus)?;
    let place = Place {
        folder: work.path(),
        proxy_cpus,
        load_cpus,
        pattern_bytes: arguments.integrity_bytes() / integrity::STREAMS,
        control: &control,
    };
    let effort = Effort {
        rounds: arguments.rounds,
        duration,
        rate: arguments.rate,
        bulk_bytes_per_second: arguments.bulk_bytes_per_second.map(|ByteRate(rate)| rate),
        idle_connections: arguments.idle_connections,
        descriptors: limits::raise_open_files(),
    };
    let mut comparison = Comparison::new(peers, effort, place, &all_cpus);
    comparison.run(&scenarios)?;

    let bars = bars::evaluate(&comparison.results);
    let bars_table = table::bars(&bars);
    println!("{bars_table}");
    let machine = Machine::look();
    let date = machine::today();
    let name = arguments
        .machine
        .clone()
        .unwrap_or_else(|| machine.short_name());
    let folder = run_directory::create(arguments.out.as_deref(), &date, &name)?;
    let charts = chart::draw(&comparison.results, &folder)?;
    let record = Record {
        date,
        machine,
        revision,
        congestion_control: congestion_control.name.clone(),
        proxy_cpus: place.proxy_cpus.to_vec(),
        load_cpus: load_cpus.to_vec(),
        command: command_line(),
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        integrity_bytes: arguments.integrity_bytes(),
        foreign_percent: comparison.results.foreign_percent(),
        open_rate: comparison.effort.rate,
        bulk_bytes_per_second: comparison.effort.bulk_bytes_per_second,
        peers: comparison.peers,
        absent: comparison.absent,
        bars,
        samples: comparison.results.samples,
    };
    println!("{}", run_directory::head(&record));
    let tables = format!("{bars_table}\n## Scenarios\n\n{}", comparison.tables);
    run_directory::write(&folder, &record, &tables, &charts)?;
    println!("written to {}", folder.display());
    Ok(())
}

impl Arguments {
    /// How long each load lasts, if all arguments make sense.
    fn check(&self) -> Result<Duration> {
        ensure!(self.rounds > 0, "--rounds must be at least 1");
        ensure!(self.integrity_mib > 0, "--integrity-mib must be at least 1");
        let duration = Duration::try_from_secs_f64(self.seconds).context("--seconds")?;
        ensure!(!duration.is_zero(), "--seconds must be more than 0");
        Ok(duration)
    }

    fn integrity_bytes(&self) -> u64 {
        self.integrity_mib * 1024 * 1024
    }
}

/// The last CPU for the proxies, all others for load and servers; they share a single one.
fn divide(all: &[usize]) -> Result<(&[usize], &[usize])> {
    ensure!(!all.is_empty(), "no CPU to run on");
    let (others, last) = all.split_at(all.len() - 1);
    Ok((last, if others.is_empty() { all } else { others }))
}

/// The peers that take part and are there, and what is missing for the others.
fn find_peers(arguments: &Arguments, work: &Path) -> Result<(Vec<Installed>, Vec<String>)> {
    let own = std::env::current_exe().context("finding this program's own binary")?;
    let beside = own.parent().context("a binary lies in a folder")?;
    let corelay = match &arguments.corelay {
        Some(path) => path.clone(),
        None => beside.join("corelay"),
    };
    let places = Places {
        corelay: &corelay,
        beside,
        work,
    };
    for name in &arguments.peers {
        peers::by_name(name)?;
    }
    let takes_part = |peer: &&peers::Peer| {
        let asked = arguments.peers.iter().any(|name| name == peer.name);
        match arguments.peers.is_empty() {
            true => peer.by_default,
            false => asked || ["direct", CORELAY].contains(&peer.name),
        }
    };
    let mut installed = Vec::new();
    let mut absent = Vec::new();
    for peer in peers::PEERS.iter().filter(takes_part) {
        match peer.find(&places) {
            Ok(found) => installed.push(found),
            Err(missing) => {
                ensure!(missing.peer.name != CORELAY, "{}", missing.remedy);
                let line = format!("{}: {}", missing.peer.name, missing.remedy);
                eprintln!("absent: {line}");
                absent.push(line);
            }
        }
    }
    Ok((installed, absent))
}

/// Ctrl-C and SIGTERM end the run in order: every proxy is stopped, the congestion control set back.
fn stop_on_signal(control: &Control) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("listening to signals")?;
    let control = control.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in &mut signals {
                control.stop();
            }
        })?;
    Ok(())
}

/// As it was typed, with the program's name for its path.
fn command_line() -> String {
    let arguments = std::env::args().skip(1);
    std::iter::once("corelay-bench".to_owned())
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

fn print_list() {
    println!("scenarios:");
    for scenario in scenarios::SCENARIOS {
        println!("  {:<16} {}", scenario.name, scenario.what);
    }
    println!("proxies:");
    for peer in peers::PEERS {
        let mark = if peer.by_default {
            ""
        } else {
            " (only with --peers)"
        };
        println!("  {:<20} {}{mark}", peer.name, peer.what);
    }
}
