//! The `corelay` binary: dispatches the command line.

use std::process;

use clap::Parser;
use corelay::cli::{self, Cli, Command, DemoArgs, DoctorArgs, ExitCode};
use corelay::config::model::{LogFormat, LogLevel};
use corelay::config::{self, Config, LoadError};
use corelay::control::{self, RunError, process_log};
use corelay::demo::{self, DemoError};
use corelay::doctor;

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
        Command::Schema => cli::schema(),
        Command::Doctor(args) => examine(&args),
        Command::Demo(args) => show(&args),
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

fn examine(args: &DoctorArgs) -> ExitCode {
    let config = match args.config.as_deref().map(config::load).transpose() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::BadConfig;
        }
    };
    if doctor::run(config.as_ref(), args.json) {
        ExitCode::Ok
    } else {
        ExitCode::HostUnfit
    }
}

fn show(args: &DemoArgs) -> ExitCode {
    if let Err(error) = process_log::init(LogLevel::Warn, LogFormat::Text) {
        eprintln!("corelay: {error}");
        return ExitCode::Failed;
    }
    match demo::run(args.listen, args.admin, args.exit) {
        Ok(()) => ExitCode::Ok,
        Err(error) => {
            eprintln!("corelay: {error}");
            match error {
                DemoError::Run(error) => exit_code(&error),
                DemoError::Config(_) => ExitCode::BadConfig,
                DemoError::Io(_) => ExitCode::Failed,
            }
        }
    }
}

fn exit_code(error: &RunError) -> ExitCode {
    match error {
        RunError::Bind(_) | RunError::AdminBind { .. } => ExitCode::AddressUnavailable,
        RunError::HostUnfit(_) | RunError::Source(_) | RunError::Core { .. } => ExitCode::HostUnfit,
        RunError::ListFile(_) => ExitCode::BadConfig,
        RunError::Resolve(_) | RunError::AccessLog(_) | RunError::Failed(_) => ExitCode::Failed,
    }
}
