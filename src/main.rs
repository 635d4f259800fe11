//! The `corelay` binary: dispatches the command line.

use std::process;

use clap::Parser;
use corelay::cli::{self, Cli, Command, ExitCode};
use corelay::config::{self, Config, LoadError};
use corelay::control::{self, RunError, process_log};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> process::ExitCode {
    control::panic::install();
    let code = match Cli::parse().command {
        Command::Run(args) => run(config::load(&args.config)),
        Command::Relay(args) => run(config::for_relay(
            &args.listen,
            &args.to,
            args.admin.as_deref(),
        )),
        Command::Check(args) => cli::check(&args),
        Command::Doctor(_) | Command::Demo(_) => ExitCode::Failed,
    };
    code.into()
}

fn run(config: Result<Config, LoadError>) -> ExitCode {
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::BadConfig;
        }
    };
    if let Err(error) = process_log::init(config.log.level, config.log.format) {
        eprintln!("corelay: {error}");
        return ExitCode::Failed;
    }
    match control::start(&config).and_then(control::Running::supervise) {
        Ok(()) => ExitCode::Ok,
        Err(error) => {
            eprintln!("corelay: {error}");
            exit_code(&error)
        }
    }
}

fn exit_code(error: &RunError) -> ExitCode {
    match error {
        RunError::Bind(_) | RunError::AdminBind { .. } => ExitCode::AddressUnavailable,
        RunError::HostUnfit(_) | RunError::Core { .. } => ExitCode::HostUnfit,
        RunError::Resolve(_) | RunError::AccessLog(_) | RunError::Failed(_) => ExitCode::Failed,
    }
}
