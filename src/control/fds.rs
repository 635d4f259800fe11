//! How the descriptors that this process may open are shared out.

use super::RunError;
use super::health::{self, Checker};
use super::resolve;
use crate::config::Config;
use crate::config::model::Mover;
use crate::sys::process;
use crate::worker::budget::FdBudget;

/// Descriptors kept free for the admin listener's clients, a reopened log, /proc, and for cores
/// that accept at the same moment.
const RESERVED: u64 = 24;
/// Signals, the access log and its wake-up, the admin listener, the lock of a group.
const PROCESS: u64 = 6;
/// Two rings and two eventfds.
const PER_CORE: u64 = 4;
/// The two ends.
const PER_PIPE: u64 = 2;
/// The client's and the server's.
const PER_SESSION: u64 = 2;

/// The shares.
pub(super) struct FdPlan {
    /// RLIMIT_NOFILE, soft, after it was raised.
    pub(super) limit: u64,
    /// Pipes that one core may open.
    pub(super) pipes_per_core: usize,
    /// What sessions must leave alone.
    kept: u64,
}

impl FdPlan {
    /// Raises the limit, and plans with it.
    ///
    /// # Errors
    /// A limit that the start alone would exhaust, told before anything is open: whichever step failed
    /// first would name the wrong remedy. It is an estimate; [`FdPlan::limit_sessions`] counts.
    pub(super) fn new(config: &Config, cores: usize) -> Result<Self, RunError> {
        let in_use = process::open_fds();
        let limit = process::raise_max_fds();
        let cores = cores as u64;
        let pipes_per_core = pipes_per_core(config, limit, cores);
        let checks = if config.upstreams.iter().any(|it| it.check.is_some()) {
            Checker::fds(&health::Options::default()) as u64
        } else {
            0
        };
        let kept = RESERVED + resolve::fds(config) + checks + PER_PIPE * pipes_per_core * cores;
        let listening = cores * (PER_CORE + config.listeners.len() as u64);
        let needed = in_use + PROCESS + listening + kept + PER_SESSION;
        if limit < needed {
            return Err(too_few(limit, in_use, needed));
        }
        Ok(Self {
            limit,
            pipes_per_core: pipes_per_core as usize,
            kept,
        })
    }

    /// Sets how many sessions fit, now that everything else that stays open is open.
    ///
    /// # Errors
    /// Not one fits.
    pub(super) fn limit_sessions(&self, budget: &FdBudget) -> Result<(), RunError> {
        let in_use = process::open_fds();
        let sessions = budget.set_limit(self.limit, in_use, self.kept);
        if sessions == 0 {
            let needed = in_use + self.kept + PER_SESSION;
            return Err(too_few(self.limit, in_use, needed));
        }
        /// Fewer than this is probably a forgotten limit.
        const FEW_SESSIONS: u64 = 1_000;
        if sessions < FEW_SESSIONS {
            tracing::warn!(
                sessions,
                fds_max = self.limit,
                "few sessions fit under the limit on open files; raise LimitNOFILE (ulimit -n)"
            );
        }
        Ok(())
    }
}

/// Pipes of one core: they are borrowed only while they hold bytes, so that 64 serve any number of
/// streams whose peers keep up. A small limit on open files goes to sessions.
fn pipes_per_core(config: &Config, limit: u64, cores: u64) -> u64 {
    const MAX: u64 = 64;
    const SHARE: u64 = 16;
    if config.relay.mover == Mover::Copy {
        return 0;
    }
    (limit / SHARE / (PER_PIPE * cores)).clamp(1, MAX)
}

fn too_few(limit: u64, in_use: u64, needed: u64) -> RunError {
    RunError::HostUnfit(format!(
        "RLIMIT_NOFILE is {limit}, of which {in_use} are open: not one session fits; nothing was started; raise it to {needed} at least (LimitNOFILE, ulimit -n)"
    ))
}
