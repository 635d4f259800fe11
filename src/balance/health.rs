//! Whether a server gets new connections: what active checks found, and what traffic found.
//!
//! Pure: the time is passed in, nothing is read or sent. The checks themselves are made in
//! `control`, which also keeps one [`UpstreamHealth`] per upstream and hands the cores what comes
//! out of it. Not here: what to do when no server is left.
//!
//! ```text
//!  checks      ┌──────── fall failures in a row ────────┐
//!              │                                        v
//!   Up <─pass─ GoingDown <─fail─ Up      Down ─pass─> GoingUp ─fail─> Down
//!    ^                                                  │
//!    └───────────────── rise passes in a row ───────────┘
//!
//!  traffic     Up, GoingDown ──failures in a row──> Ejected ──time over, or enough passes──> back
//! ```
//!
//! The two are independent: a server takes connections if its checks hold it up *and* it is not
//! ejected. Where both speak against it, the checks' verdict is the one that is shown.
//!
//! How a server begins. At the start of the process it is [`Initial::Trusted`]: up, but the first
//! failed check takes it down (as HAProxy has it); a proxy that restarts must not refuse everybody
//! until its checks are through. One that appears later, by DNS, is [`Initial::OnProbation`]: the
//! others carry the traffic, so nothing is lost by waiting for its first passed check, which is
//! enough. Where no other server is left to wait with, or nothing is checked, it is trusted.
//!
//! An ejection is a guess, made from failures that may have another cause, hence its bounds: a
//! share of the servers ([`ejections`]), never the last one that takes connections, and a time.
//! The time is `eject` × the ejections in a row, at most `eject_max`. One is taken off that number
//! each time the server has served for as long as its last ejection would have lasted. Where
//! servers are checked, one ejected for failed *connects* is let back early by `rise` × (ejections
//! in a row) passed checks: each of them did what had failed. One ejected for *resets* is not, for
//! its checks passed all along.
//!
//! An administrator's word (drain, maintenance) will stand above both, as further variants of
//! [`Status`].

mod check;
pub mod ejections;
mod server;
#[cfg(test)]
mod tests;
mod traffic;
mod upstream;

use crate::units::ServerId;
pub use check::{CheckFailure, CheckOutcome, CheckResult, LocalFault, Pace};
pub use server::Initial;
pub use traffic::{Observation, ServerFault};
pub use upstream::UpstreamHealth;

/// What an upstream's servers are judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `None`: nothing is checked.
    pub active: Option<Active>,
    /// `None`: traffic ejects nobody.
    pub passive: Option<Passive>,
}

/// How many checks decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    /// Passes in a row that bring a server up; at least 1.
    pub rise: u32,
    /// Failures in a row that take it down; at least 1.
    pub fall: u32,
}

/// When traffic ejects a server, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passive {
    /// Failed connects in a row, or early resets in a row; at least 1.
    pub failures: u32,
    /// The first ejection; at least 1.
    pub eject_us: u64,
    /// The longest; at least `eject_us`.
    pub eject_max_us: u64,
    /// Share of the upstream's configured servers; see [`ejections`] for how it is rounded.
    pub max_ejected_percent: u8,
}

/// How a server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Status {
    /// Takes connections.
    Up,
    /// Takes connections; its last check failed, and not often enough yet.
    GoingDown,
    /// Takes none for a while, because connections to it failed.
    Ejected,
    /// Takes none; its last check passed, and not often enough yet, or none was made yet.
    GoingUp,
    /// Takes none; its checks fail.
    Down,
}

impl Status {
    /// Every status, in the order of the discriminants.
    pub const ALL: [Self; 5] = [
        Status::Up,
        Status::GoingDown,
        Status::Ejected,
        Status::GoingUp,
        Status::Down,
    ];

    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::Up => "up",
            Status::GoingDown => "going_down",
            Status::Ejected => "ejected",
            Status::GoingUp => "going_up",
            Status::Down => "down",
        }
    }

    /// Whether the server gets new connections.
    pub const fn takes_connections(self) -> bool {
        matches!(self, Status::Up | Status::GoingDown)
    }

    /// Whether the next check decides something, so that it is worth making soon.
    pub const fn is_between(self) -> bool {
        matches!(self, Status::GoingDown | Status::GoingUp)
    }
}

/// Why a server's status changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nothing happened yet.
    Started,
    /// A check passed.
    CheckPassed,
    /// A check failed.
    CheckFailed(CheckFailure),
    /// Connects failed in a row.
    ConnectFailures,
    /// Connections were reset early, in a row.
    EarlyResets,
    /// Its ejection is over.
    EjectionOver,
    /// It was ejected, and enough checks passed since.
    EjectionEndedByChecks,
    /// It was ejected, and the upstream now has too few servers for so many ejections.
    FewerServers,
}

impl Reason {
    /// The word used in logs and metric labels. A failed check's own reason is in
    /// [`Reason::failure`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Started => "started",
            Reason::CheckPassed => "check_passed",
            Reason::CheckFailed(_) => "check_failed",
            Reason::ConnectFailures => "connect_failures",
            Reason::EarlyResets => "early_resets",
            Reason::EjectionOver => "ejection_over",
            Reason::EjectionEndedByChecks => "ejection_ended_by_checks",
            Reason::FewerServers => "fewer_servers",
        }
    }

    /// What the check failed with.
    pub const fn failure(self) -> Option<CheckFailure> {
        match self {
            Reason::CheckFailed(failure) => Some(failure),
            _ => None,
        }
    }
}

/// A server changed its status: one log line, one count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Which.
    pub server: ServerId,
    /// What it was.
    pub from: Status,
    /// What it is; never the same.
    pub to: Status,
    /// Why.
    pub reason: Reason,
    /// When, on the clock of the caller.
    pub at_us: u64,
}

/// What is known of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether it gets new connections.
    pub up: bool,
    /// How it stands.
    pub status: Status,
    /// Why it stands so.
    pub reason: Reason,
    /// Since when.
    pub since_us: u64,
    /// What its last check gave, one that could not be made included.
    pub last_check: Option<CheckResult>,
    /// When its ejection ends.
    pub ejected_until_us: Option<u64>,
}
