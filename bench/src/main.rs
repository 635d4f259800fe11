//! `corelay-bench`: test servers and load on the command line. See the library for what they do.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool prints"
)]

mod cli;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use corelay_bench::servers::RefusedPort;
use corelay_bench::{compare, limits};

/// What the codes below mean; `docs/bench.md` says the same.
const EXIT_CODES: &str = "\
Exit codes:
  0         it did what was asked for; also a load that Ctrl-C has ended, with its report
  1         it failed, and the last line on stderr says of what
  2         the arguments cannot be read, and nothing was begun
  130, 143  a second Ctrl-C or SIGTERM has ended a load at once, without a report";

/// Test servers and load for layer-4 proxies.
#[derive(Parser)]
#[command(version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a test server until it is killed.
    Serve(cli::serve::Serve),
    /// Request/response on connections that stay, against an echo server or a proxy before one.
    Rr(cli::load::Rr),
    /// Connect, request, response, close.
    Crr(cli::load::Crr),
    /// Long answers on connections that stay: latency to the last byte, and the wait for the tail.
    Answers(cli::load::Answers),
    /// Bulk streams: up, down or both ways.
    Bulk(cli::load::Bulk),
    /// Open connections, one echo each, and hold them.
    Idle(cli::load::Idle),
    /// Requests as in rr beside bulk streams; the latency is that of the requests.
    Mixed(Box<cli::load::Mixed>),
    /// Slow readers of a source.
    Slow(cli::load::Slow),
    /// Make one report of several: histograms, counts and rates are added.
    Merge(cli::reports::Merge),
    /// Draw reports: latency by percentile, and throughput.
    Plot(cli::reports::Plot),
    /// Compare Corelay with other proxies on this machine.
    Compare(compare::Arguments),
    /// Start a program that ends with its parent (internal).
    #[command(name = compare::launch::SUBCOMMAND, hide = true)]
    Launch(compare::launch::Arguments),
    /// Print a port of 127.0.0.1 that is free now, for scripts that configure other proxies.
    FreePort,
}

/// See [`EXIT_CODES`]; 2 comes from the parser of the arguments.
fn main() -> ExitCode {
    limits::raise_open_files();
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // Without the backtrace that anyhow would append: these are refused files and connections.
        Err(error) => {
            eprintln!("corelay-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve(serve) => serve.run(),
        Command::Rr(rr) => rr.run(&cli::control_with_signals()?),
        Command::Crr(crr) => crr.run(&cli::control_with_signals()?),
        Command::Answers(answers) => answers.run(&cli::control_with_signals()?),
        Command::Bulk(bulk) => bulk.run(&cli::control_with_signals()?),
        Command::Idle(idle) => idle.run(&cli::control_with_signals()?),
        Command::Mixed(mixed) => mixed.run(&cli::control_with_signals()?),
        Command::Slow(slow) => slow.run(&cli::control_with_signals()?),
        Command::Merge(merge) => merge.run(),
        Command::Plot(plot) => plot.run(),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Launch(arguments) => compare::launch::run(&arguments),
        Command::FreePort => {
            println!("{}", RefusedPort::new()?.address().port());
            Ok(())
        }
    }
}
