//! The command line as typed: commands, options, their help, and the exit codes. Also the body of
//! `check`, which needs nothing but the configuration.
//!
//! The other commands' bodies live with what they run. Nothing here binds, listens or connects.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config};
use crate::control::gates;

/// How the process ends; documented in `--help`, and part of what scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// Done, or stopped as asked.
    Ok = 0,
    /// Failed while running.
    Failed = 1,
    /// The configuration or the arguments are wrong; nothing was bound. clap ends with it too.
    BadConfig = 2,
    /// This host cannot run Corelay: io_uring missing or blocked, too little locked memory, too few
    /// file descriptors.
    HostUnfit = 3,
    /// An address is in use or not permitted.
    AddressUnavailable = 4,
}

impl ExitCode {
    /// Every code, in order.
    pub const ALL: [ExitCode; 5] = [
        ExitCode::Ok,
        ExitCode::Failed,
        ExitCode::BadConfig,
        ExitCode::HostUnfit,
        ExitCode::AddressUnavailable,
    ];

    /// The number that the process ends with.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

const ABOUT: &str =
    "A thread-per-core layer-4 TCP splicer and load balancer for Linux, on io_uring";

const AFTER_HELP: &str = "\
Examples:
  corelay demo                                    see it work, nothing else needed
  corelay relay --listen 9000 --to 127.0.0.1:9090 --to 127.0.0.1:9091
  corelay check --config config.yaml --print      what would run, with every default
  corelay schema > corelay.schema.json            for an editor that checks as you type
  corelay run --config /etc/corelay/config.yaml

Exit codes:
  0  done, or stopped as asked
  1  failed while running
  2  the configuration or the arguments are wrong; nothing was bound
  3  this host cannot do what is asked for: io_uring missing or blocked, too little
     locked memory, too few file descriptors, CPUs that are not there, options of
     `source` (`corelay doctor --config FILE` tells which)
  4  an address is in use, not permitted or not of this host

Signals: SIGTERM or SIGINT stops accepting and lets sessions finish within
timeouts.drain; a second one ends at once. SIGUSR1 reopens the access log's file.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "corelay", version, about = ABOUT, after_help = AFTER_HELP, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run with a configuration file, in the foreground
    Run(RunArgs),
    /// Run without a file: one listener, one upstream, every default
    Relay(RelayArgs),
    /// Report every error of a configuration file; binds nothing
    Check(CheckArgs),
    /// Print a JSON Schema of the configuration, for editors
    Schema,
    /// Tell what this host offers and what Corelay will use
    Doctor(DoctorArgs),
    /// Run a whole example: two built-in servers, a listener, a burst of traffic
    Demo(DemoArgs),
}

/// `corelay run`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:\n  corelay run --config /etc/corelay/config.yaml")]
pub struct RunArgs {
    /// Configuration file (YAML or JSON)
    #[arg(long, short, value_name = "FILE", default_value = "config.yaml")]
    pub config: PathBuf,
}

/// `corelay relay`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  corelay relay --listen 9000 --to app.internal:8080
  corelay relay --listen [::]:443 --to 10.0.0.5:443 --to 10.0.0.6:443 --admin 127.0.0.1:9901
  corelay relay --listen unix:/run/app.sock --to 127.0.0.1:9090")]
pub struct RelayArgs {
    /// Where to listen: IP:PORT (IPv6 in brackets), unix:/PATH, or a bare port for 0.0.0.0
    #[arg(long, short, value_name = "ADDR")]
    pub listen: String,
    /// A server: HOST:PORT, IP:PORT or unix:/PATH; repeat it for more, they take turns
    #[arg(long, short, value_name = "HOST:PORT", required = true)]
    pub to: Vec<String>,
    /// Metrics, health and statistics over HTTP on this IP:PORT [default: none]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
}

/// `corelay check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Ends with 0 if the file is valid and with 2 if not. Every error is one line on
standard error: FILE:LINE:COLUMN: PATH: problem; remedy. No address is bound and
no name is resolved, so that it is safe beside a running instance; the list files
that `access` names are read.")]
pub struct CheckArgs {
    /// Configuration file (YAML or JSON)
    #[arg(long, short, value_name = "FILE", default_value = "config.yaml")]
    pub config: PathBuf,
    /// Print the effective configuration with every default filled in
    #[arg(long, short)]
    pub print: bool,
}

/// `corelay doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Compare the host's limits with this configuration [default: the defaults]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `corelay demo`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "If a port is taken, the next free one is used and printed.")]
pub struct DemoArgs {
    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9000")]
    pub listen: SocketAddr,
    /// Where metrics, health and statistics are
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9901")]
    pub admin: SocketAddr,
    /// Stop after the table instead of serving until Ctrl-C
    #[arg(long)]
    pub exit: bool,
}

/// Checks a configuration file. Errors go to standard error, one line each; never binds.
pub fn check(args: &CheckArgs) -> ExitCode {
    check_to(
        args,
        &mut std::io::stdout().lock(),
        &mut std::io::stderr().lock(),
    )
}

fn check_to(args: &CheckArgs, stdout: &mut dyn Write, stderr: &mut dyn Write) -> ExitCode {
    let loaded = config::load(&args.config).map_err(|error| error.to_string());
    // The files that a configuration names are part of it.
    let checked = loaded.and_then(|config| match gates::check_lists(&config) {
        Ok(()) => Ok(config),
        Err(error) => Err(format!("{}: {error}", args.config.display())),
    });
    let (code, written) = match checked {
        Ok(config) if args.print => (ExitCode::Ok, write!(stdout, "{}", config::render(&config))),
        Ok(config) => (
            ExitCode::Ok,
            writeln!(
                stdout,
                "{}: ok: {}",
                args.config.display(),
                summary(&config)
            ),
        ),
        Err(error) => (ExitCode::BadConfig, writeln!(stderr, "{error}")),
    };
    after_writing(code, written)
}

/// Prints the schema of the configuration.
pub fn schema() -> ExitCode {
    let written = write!(std::io::stdout().lock(), "{}", config::schema());
    after_writing(ExitCode::Ok, written)
}

fn after_writing(code: ExitCode, written: std::io::Result<()>) -> ExitCode {
    match written {
        Ok(()) => code,
        // The reader went away (`| head`): the verdict stands. Anything else lost the output.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => code,
        Err(_) => ExitCode::Failed,
    }
}

/// One line for a person: how much there is.
fn summary(config: &Config) -> String {
    let servers: usize = config
        .upstreams
        .iter()
        .map(|upstream| upstream.servers.len())
        .sum();
    let admin = config.admin.map_or_else(
        || "no admin listener".to_owned(),
        |admin| format!("admin on {}", admin.bind),
    );
    let listeners = count(config.listeners.len(), "listener");
    format!(
        "{listeners}, {}, {}, {admin}",
        count(config.upstreams.len(), "upstream"),
        count(servers, "server")
    )
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_documents_every_exit_code_and_every_command() {
        let help = Cli::command().render_long_help().to_string();
        for code in ExitCode::ALL {
            assert!(
                help.lines()
                    .any(|line| line.trim_start().starts_with(&format!("{}  ", code.code()))),
                "{code:?}"
            );
        }
        for command in [
            "run",
            "relay",
            "check",
            "schema",
            "doctor",
            "demo",
            "--version",
        ] {
            assert!(help.contains(command), "{command}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).expect(line).command;
        assert!(
            matches!(parse("corelay run"), Command::Run(args) if args.config.as_os_str() == "config.yaml")
        );
        assert!(matches!(
            parse("corelay check --print"),
            Command::Check(CheckArgs { print: true, .. })
        ));
        let Command::Demo(demo) = parse("corelay demo --exit") else {
            panic!("demo")
        };
        assert_eq!(
            (demo.listen.to_string(), demo.exit),
            ("127.0.0.1:9000".to_owned(), true)
        );
        let Command::Relay(relay) = parse("corelay relay --listen 9000 --to a:1 --to b:2") else {
            panic!("relay")
        };
        assert_eq!(relay.to, ["a:1", "b:2"]);
    }

    #[test]
    fn bad_arguments_end_like_a_bad_configuration() {
        for line in [
            "corelay",
            "corelay relay --listen 9000",
            "corelay run --conf x",
            "corelay nonsense",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(
                error.exit_code(),
                i32::from(ExitCode::BadConfig.code()),
                "{line}"
            );
        }
        assert_eq!(
            Cli::try_parse_from(["corelay", "--version"])
                .expect_err("prints")
                .exit_code(),
            0
        );
    }

    #[test]
    fn check_reports_on_the_right_stream() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = directory.path().join("c.yaml");
        let run = |text: &str, print: bool| {
            std::fs::write(&config, text).expect("written");
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let code = check_to(
                &CheckArgs {
                    config: config.clone(),
                    print,
                },
                &mut out,
                &mut err,
            );
            (
                code,
                String::from_utf8(out).expect("UTF-8"),
                String::from_utf8(err).expect("UTF-8"),
            )
        };
        let valid = "[{listen: 9000, forward: [127.0.0.1:9090]}]";
        let (code, out, err) = run(valid, false);
        assert_eq!((code, err.as_str()), (ExitCode::Ok, ""));
        assert!(
            out.ends_with("ok: 1 listener, 1 upstream, 1 server, no admin listener\n"),
            "{out}"
        );
        let (code, printed, _) = run(valid, true);
        assert_eq!(code, ExitCode::Ok);
        assert_eq!(
            run(&printed, true).1,
            printed,
            "what is printed loads again"
        );
        let (code, out, err) = run("[{listen: 9000, forward: []}, {listen: 9000}]", false);
        assert_eq!((code, out.as_str()), (ExitCode::BadConfig, ""));
        assert_eq!(err.lines().count(), 3, "{err}");
        std::fs::remove_file(&config).expect("removed");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(
            check_to(
                &CheckArgs {
                    config,
                    print: false
                },
                &mut out,
                &mut err
            ),
            ExitCode::BadConfig
        );
        assert!(
            String::from_utf8(err)
                .expect("UTF-8")
                .contains("cannot be read")
        );
    }
}
