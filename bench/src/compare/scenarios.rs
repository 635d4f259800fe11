//! What the proxies are put through, by name.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::results::Unit;
use crate::endpoint::Endpoint;
use crate::load::bulk::Direction;
use crate::load::crr::Close;
use crate::load::{Control, Report, answers, bulk, crr, mixed, rr};

/// Bytes of a request and of its answer.
const MESSAGE_BYTES: usize = 64;
/// Connections at a time in the scenarios of short connections.
const SHORT_CONNECTIONS: usize = 16;
/// Connections of the open loop, and of the load that finds its rate.
const OPEN_CONNECTIONS: usize = 64;
/// Connections with requests beside bulk streams.
const MIXED_CONNECTIONS: usize = 8;
/// Bulk streams beside requests.
const MIXED_STREAMS: usize = 4;
/// Connections that carry long answers.
const TAILS_CONNECTIONS: usize = 4;

/// The contestant of the scenarios `workers-…` beside Corelay with one worker.
pub(super) const CORELAY_ALL_CPUS: &str = "corelay-all-cpus";

/// Who takes part, and how they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contest {
    /// All proxies run at the same time and are loaded in turn.
    SideBySide,
    /// Corelay on all CPUs and Corelay on one, in turn.
    Workers,
    /// Each proxy is started afresh and alone.
    OneAtATime,
}

/// What goes over the connections.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Load {
    Rr {
        connections: usize,
    },
    Crr {
        close: Close,
    },
    Bulk {
        streams: usize,
        direction: Direction,
    },
    Mixed,
    MixedPaced,
    Tails,
    Open,
    /// Held, not measured by work.
    Idle,
}

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) unit: Unit,
    pub(super) contest: Contest,
    /// Whether it runs when `--only` is not given.
    pub(super) by_default: bool,
    load: Load,
}

const fn scenario(name: &'static str, what: &'static str, unit: Unit, load: Load) -> Scenario {
    Scenario {
        name,
        what,
        unit,
        contest: Contest::SideBySide,
        by_default: true,
        load,
    }
}

const fn down(streams: usize) -> Load {
    Load::Bulk {
        streams,
        direction: Direction::Down,
    }
}

const fn up(streams: usize) -> Load {
    Load::Bulk {
        streams,
        direction: Direction::Up,
    }
}

/// All of them, in the order in which they run: what runs at a rate comes after what finds it.
pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "bulk-1",
        "one stream, server to client",
        Unit::Gigabyte,
        down(1),
    ),
    scenario(
        "bulk-4",
        "4 streams, server to client",
        Unit::Gigabyte,
        down(4),
    ),
    Scenario {
        by_default: false,
        ..scenario(
            "bulk-up-1",
            "one stream, client to server",
            Unit::Gigabyte,
            up(1),
        )
    },
    Scenario {
        by_default: false,
        ..scenario(
            "bulk-up-4",
            "4 streams, client to server",
            Unit::Gigabyte,
            up(4),
        )
    },
    scenario(
        "rr-1",
        "64 B there and back, 1 connection",
        Unit::Request,
        Load::Rr { connections: 1 },
    ),
    scenario(
        "rr-8",
        "64 B there and back, 8 connections",
        Unit::Request,
        Load::Rr { connections: 8 },
    ),
    scenario(
        "rr-64",
        "64 B there and back, 64 connections",
        Unit::Request,
        Load::Rr { connections: 64 },
    ),
    scenario(
        "crr-fin",
        "connect, 64 B there and back, FIN; 16 at a time",
        Unit::Connection,
        Load::Crr { close: Close::Fin },
    ),
    scenario(
        "crr-rst",
        "connect, 64 B there and back, RST; 16 at a time",
        Unit::Connection,
        Load::Crr { close: Close::Rst },
    ),
    scenario(
        "mixed",
        "64 B on 8 connections beside 4 bulk streams; latency is that of the requests",
        Unit::Gigabyte,
        Load::Mixed,
    ),
    scenario(
        "mixed-paced",
        "as mixed, all at the same bytes per second: half of what the slowest proxy moves in mixed",
        Unit::Gigabyte,
        Load::MixedPaced,
    ),
    scenario(
        "tails",
        "answers of 20 to 21 MiB on 4 connections that stay open; latency is that of the last byte",
        Unit::Gigabyte,
        Load::Tails,
    ),
    scenario(
        "open",
        "open loop, 64 B on 64 connections at half the slowest proxy's rr-64 rate; latency from the \
         intended start",
        Unit::Request,
        Load::Open,
    ),
    Scenario {
        contest: Contest::OneAtATime,
        ..scenario(
            "idle",
            "idle connections, one echo each",
            Unit::Connection,
            Load::Idle,
        )
    },
    Scenario {
        contest: Contest::Workers,
        ..scenario(
            "workers-rr-64",
            "Corelay with a worker on every CPU (the load shares them), rr-64",
            Unit::Request,
            Load::Rr { connections: 64 },
        )
    },
    Scenario {
        contest: Contest::Workers,
        ..scenario(
            "workers-bulk-4",
            "Corelay with a worker on every CPU (the load shares them), bulk-4",
            Unit::Gigabyte,
            down(4),
        )
    },
];

/// The scenarios that find the rates of [`OPEN`] and [`MIXED_PACED`].
pub(super) const OPEN_CAPACITY: &str = "rr-64";
pub(super) const MIXED_CAPACITY: &str = "mixed";
/// The open loop.
pub(super) const OPEN: &str = "open";
/// Requests beside streams that are held to a rate.
pub(super) const MIXED_PACED: &str = "mixed-paced";

/// The scenario of this name.
pub(super) fn by_name(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

/// Scenarios whose names are these, or begin with one of these and a dash: `workers`, `bulk`.
/// Fails if a name fits none.
pub(super) fn selected(names: &[String]) -> Result<Vec<&'static Scenario>> {
    let fits = |scenario: &Scenario, name: &str| {
        let rest = scenario.name.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    for name in names {
        let is_known = SCENARIOS.iter().any(|scenario| fits(scenario, name));
        ensure!(is_known, "there is no scenario {name:?}; see --list");
    }
    let wanted = |scenario: &&Scenario| {
        if names.is_empty() {
            return scenario.by_default;
        }
        names.iter().any(|name| fits(scenario, name))
    };
    Ok(SCENARIOS.iter().filter(wanted).collect())
}

/// Where the load goes: through a proxy, or to the servers themselves.
#[derive(Clone, Debug)]
pub(super) struct Targets {
    /// Sends back what comes.
    pub(super) echo: Endpoint,
    /// Sends without end, as cheaply as it can.
    pub(super) source: Endpoint,
    /// Has the kernel drop what comes.
    pub(super) sink: Endpoint,
    /// Sends a pattern that can be checked.
    pub(super) pattern: Endpoint,
    /// Answers the SHA-256 of what came.
    pub(super) digest: Endpoint,
    /// Sends as much as it is asked for, and keeps the connection open.
    pub(super) answers: Endpoint,
}

/// How the load runs.
#[derive(Clone, Debug)]
pub(super) struct Drive<'a> {
    pub(super) targets: &'a Targets,
    pub(super) cpus: &'a [usize],
    pub(super) duration: Duration,
    /// Requests per second of the open loop.
    pub(super) rate: Option<f64>,
    /// What the paced streams move together.
    pub(super) bulk_bytes_per_second: Option<f64>,
    pub(super) control: &'a Control,
}

impl Scenario {
    /// Whether its operations are short enough for their latency to mean something.
    pub(super) fn has_latency(&self) -> bool {
        !matches!(self.load, Load::Bulk { .. } | Load::Idle)
    }

    /// Loads one proxy once.
    pub(super) fn drive(&self, drive: &Drive<'_>) -> Result<Report> {
        match self.load {
            Load::Rr { connections } => rr::run(&rr_options(drive, connections), drive.control),
            Load::Open => {
                let options = rr::Options {
                    rate: Some(
                        drive
                            .rate
                            .context("the rate of the open loop is not known")?,
                    ),
                    ..rr_options(drive, OPEN_CONNECTIONS)
                };
                rr::run(&options, drive.control)
            }
            Load::Crr { close } => {
                let options = crr::Options {
                    to: drive.targets.echo.clone(),
                    connections: SHORT_CONNECTIONS,
                    cpus: drive.cpus.to_vec(),
                    duration: drive.duration,
                    size_bytes: MESSAGE_BYTES,
                    close,
                    ..crr::Options::default()
                };
                crr::run(&options, drive.control)
            }
            Load::Bulk { streams, direction } => {
                bulk::run(&bulk_options(drive, streams, direction), drive.control)
            }
            Load::Mixed => mixed::run(&mixed_options(drive), drive.control),
            Load::MixedPaced => {
                let rate = drive.bulk_bytes_per_second;
                let mut options = mixed_options(drive);
                options.bulk.bytes_per_second =
                    Some(rate.context("the rate of the paced streams is not known")?);
                mixed::run(&options, drive.control)
            }
            Load::Tails => answers::run(&tails_options(drive), drive.control),
            Load::Idle => anyhow::bail!("idle connections are held, not driven"),
        }
    }
}

fn rr_options(drive: &Drive<'_>, connections: usize) -> rr::Options {
    rr::Options {
        to: drive.targets.echo.clone(),
        connections,
        cpus: drive.cpus.to_vec(),
        duration: drive.duration,
        size_bytes: MESSAGE_BYTES,
        ..rr::Options::default()
    }
}

fn mixed_options(drive: &Drive<'_>) -> mixed::Options {
    mixed::Options {
        rr: rr_options(drive, MIXED_CONNECTIONS),
        bulk: bulk_options(drive, MIXED_STREAMS, Direction::Down),
    }
}

fn tails_options(drive: &Drive<'_>) -> answers::Options {
    answers::Options {
        to: drive.targets.answers.clone(),
        connections: TAILS_CONNECTIONS,
        cpus: drive.cpus.to_vec(),
        duration: drive.duration,
        // As in bulk: the load must not be what limits the proxy.
        discard: true,
        ..answers::Options::default()
    }
}

fn bulk_options(drive: &Drive<'_>, streams: usize, direction: Direction) -> bulk::Options {
    let to = match direction {
        Direction::Up => &drive.targets.sink,
        Direction::Down | Direction::Both => &drive.targets.source,
    };
    bulk::Options {
        to: to.clone(),
        connections: streams,
        cpus: drive.cpus.to_vec(),
        duration: drive.duration,
        direction,
        // The load must not be what limits the proxy: it does not look at the bytes here.
        discard: direction == Direction::Down,
        ..bulk::Options::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_selects_itself_or_a_whole_group() {
        let names = |wanted: &[&str]| -> Vec<&str> {
            let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
            selected(&wanted)
                .unwrap()
                .iter()
                .map(|one| one.name)
                .collect()
        };
        assert_eq!(names(&["rr-8"]), ["rr-8"]);
        assert_eq!(names(&["crr", "idle"]), ["crr-fin", "crr-rst", "idle"]);
        assert_eq!(names(&["workers"]), ["workers-rr-64", "workers-bulk-4"]);
        assert!(selected(&["r".to_owned()]).is_err());
        assert!(!names(&[]).contains(&"bulk-up-1"));
        assert_eq!(names(&["mixed"]), ["mixed", "mixed-paced"]);
        assert!(names(&[]).contains(&"mixed-paced"));
    }

    #[test]
    fn what_finds_a_rate_runs_before_what_runs_at_it() {
        let place = |name| SCENARIOS.iter().position(|one| one.name == name).unwrap();
        assert!(place(OPEN_CAPACITY) < place(OPEN));
        assert!(place(MIXED_CAPACITY) < place(MIXED_PACED));
    }
}
