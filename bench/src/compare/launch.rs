//! A program started on certain CPUs that cannot outlive whoever started it.
//!
//! This binary starts itself again (`corelay-bench launch`), sets CPU affinity and the parent-death
//! signal on itself, and becomes the program. So no unsafe code runs between fork and exec, and a
//! killed `compare` leaves no proxy behind.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "launch";

/// What `corelay-bench launch` takes.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// CPUs to run on; absent = wherever this process may.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// The process that must be alive.
    #[arg(long)]
    parent: i32,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the program; returns only if it cannot.
pub fn run(arguments: &Arguments) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before the line above.
    ensure!(
        getppid().map(Pid::as_raw_nonzero).map(i32::from) == Some(arguments.parent),
        "the process that asked for this is gone"
    );
    if !arguments.cpus.is_empty() {
        pin_thread(&arguments.cpus)?;
    }
    let [program, rest @ ..] = &arguments.command[..] else {
        bail!("no program given");
    };
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

/// The command that runs this program on these CPUs, as a child of this process.
pub(super) fn command(cpus: &[usize], program: &[OsString]) -> Result<Command> {
    let own = std::env::current_exe().context("finding this program's own binary")?;
    let mut command = Command::new(own);
    command.arg(SUBCOMMAND);
    command.args(["--parent", &std::process::id().to_string()]);
    if !cpus.is_empty() {
        command.args(["--cpus", &join(cpus)]);
    }
    command.arg("--").args(program);
    Ok(command)
}

/// Lets the calling thread, and what it starts from now on, run on these CPUs only.
pub(super) fn pin_thread(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        ensure!(*cpu < CpuSet::MAX_CPU, "there is no CPU {cpu}");
        set.set(*cpu);
    }
    sched_setaffinity(None, &set).with_context(|| format!("pinning to CPUs {}", join(cpus)))
}

pub(super) fn join(cpus: &[usize]) -> String {
    let names: Vec<String> = cpus.iter().map(usize::to_string).collect();
    names.join(",")
}
