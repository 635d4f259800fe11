//! One server: the verdict of its checks, its ejection, and the status that results.

use super::ejections::Ejections;
use super::{
    Active, CheckOutcome, CheckResult, Observation, Options, Passive, Reason, ServerFault, State,
    Status, Transition,
};
use crate::units::ServerId;

/// Most ejections in a row that are counted, which bounds the loop that takes them off again. More
/// than any sensible `eject_max` / `eject`.
const IN_A_ROW_MAX: u32 = 1_000;

/// How a server begins; see the module above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// Up; the first failed check takes it down.
    Trusted,
    /// Not up; the first passed check brings it up.
    OnProbation,
}

/// What the checks say.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    Up { failures: u32 },
    Down { passes: u32 },
}

/// A server that is set aside.
#[derive(Clone, Copy, Debug)]
struct Ejection {
    until_us: u64,
    fault: ServerFault,
    /// Checks passed in a row since.
    passes: u32,
}

/// The machine of one server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    id: ServerId,
    verdict: Verdict,
    /// Whether a check has ever counted: the first one decides alone.
    is_proven: bool,
    ejection: Option<Ejection>,
    /// Ejections in a row.
    in_a_row: u32,
    /// From when on the server's service is not yet set off against `in_a_row`.
    good_since_us: u64,
    connect_failures: u32,
    early_resets: u32,
    status: Status,
    reason: Reason,
    since_us: u64,
    last_check: Option<CheckResult>,
}

impl Server {
    pub(super) fn new(id: ServerId, initial: Initial, now_us: u64) -> Self {
        let verdict = match initial {
            Initial::Trusted => Verdict::Up { failures: 0 },
            Initial::OnProbation => Verdict::Down { passes: 0 },
        };
        let status = match initial {
            Initial::Trusted => Status::Up,
            Initial::OnProbation => Status::GoingUp,
        };
        Self {
            id,
            verdict,
            is_proven: false,
            ejection: None,
            in_a_row: 0,
            good_since_us: now_us,
            connect_failures: 0,
            early_resets: 0,
            status,
            reason: Reason::Started,
            since_us: now_us,
            last_check: None,
        }
    }

    /// Takes a check's result in.
    pub(super) fn checked(
        &mut self,
        result: &CheckResult,
        active: Active,
        ejections: &mut Ejections,
    ) -> Option<Transition> {
        self.last_check = Some(*result);
        let reason = match result.outcome {
            CheckOutcome::Passed => {
                self.passed(active);
                if self.ends_ejection(active) {
                    self.let_back(ejections);
                    Reason::EjectionEndedByChecks
                } else {
                    Reason::CheckPassed
                }
            }
            CheckOutcome::Failed(failure) => {
                self.failed(active);
                Reason::CheckFailed(failure)
            }
            // Nothing was learnt of the server: no run is broken, none grows.
            CheckOutcome::NotMade(_) => return None,
        };
        self.settle(reason, result.at_us)
    }

    fn passed(&mut self, active: Active) {
        let needed = if self.is_proven { active.rise } else { 1 };
        self.verdict = match self.verdict {
            Verdict::Down { passes } if passes + 1 < needed => Verdict::Down { passes: passes + 1 },
            Verdict::Down { .. } | Verdict::Up { .. } => Verdict::Up { failures: 0 },
        };
        self.is_proven = true;
    }

    fn failed(&mut self, active: Active) {
        let needed = if self.is_proven { active.fall } else { 1 };
        self.verdict = match self.verdict {
            Verdict::Up { failures } if failures + 1 < needed => Verdict::Up {
                failures: failures + 1,
            },
            Verdict::Up { .. } | Verdict::Down { .. } => Verdict::Down { passes: 0 },
        };
        self.is_proven = true;
        if let Some(ejection) = &mut self.ejection {
            ejection.passes = 0;
        }
    }

    /// Counts a passed check for an ejected server; whether it may come back by it.
    fn ends_ejection(&mut self, active: Active) -> bool {
        let needed = active.rise.saturating_mul(self.in_a_row);
        let Some(ejection) = &mut self.ejection else {
            return false;
        };
        ejection.passes = ejection.passes.saturating_add(1);
        ejection.fault == ServerFault::Connect && ejection.passes >= needed
    }

    /// Takes in what a session saw; `available` servers take connections now, this one included.
    pub(super) fn observed(
        &mut self,
        observation: Observation,
        now_us: u64,
        passive: &Passive,
        available: usize,
        ejections: &mut Ejections,
    ) -> Option<Transition> {
        // Sessions that began before it was set aside tell nothing new.
        if !self.status.takes_connections() {
            return None;
        }
        let (fault, count) = match observation {
            Observation::Connected => {
                self.connect_failures = 0;
                return None;
            }
            Observation::Served => {
                self.connect_failures = 0;
                self.early_resets = 0;
                return None;
            }
            Observation::Failed(ServerFault::Connect) => {
                (ServerFault::Connect, &mut self.connect_failures)
            }
            Observation::Failed(ServerFault::EarlyReset) => {
                (ServerFault::EarlyReset, &mut self.early_resets)
            }
        };
        *count = count.saturating_add(1);
        // Denied, the count stays: the next failure asks again.
        if *count < passive.failures || !ejections.take(available) {
            return None;
        }
        self.eject(fault, now_us, passive);
        let reason = match fault {
            ServerFault::Connect => Reason::ConnectFailures,
            ServerFault::EarlyReset => Reason::EarlyResets,
        };
        self.settle(reason, now_us)
    }

    fn eject(&mut self, fault: ServerFault, now_us: u64, passive: &Passive) {
        self.set_service_off(now_us, passive);
        // Beyond the longest time, more would only take longer to be taken off again.
        let in_a_row_max = passive.eject_max_us.div_ceil(passive.eject_us.max(1));
        let in_a_row_max = u32::try_from(in_a_row_max).unwrap_or(u32::MAX);
        self.in_a_row = (self.in_a_row + 1).min(in_a_row_max.clamp(1, IN_A_ROW_MAX));
        self.connect_failures = 0;
        self.early_resets = 0;
        self.ejection = Some(Ejection {
            until_us: now_us.saturating_add(length_us(self.in_a_row, passive)),
            fault,
            passes: 0,
        });
    }

    /// Takes off the ejections that the server has made up for by good service.
    fn set_service_off(&mut self, now_us: u64, passive: &Passive) {
        while self.in_a_row > 0 {
            let owed_us = length_us(self.in_a_row, passive);
            if now_us.saturating_sub(self.good_since_us) < owed_us {
                return;
            }
            self.good_since_us += owed_us;
            self.in_a_row -= 1;
        }
    }

    /// Ends an ejection whose time is over.
    pub(super) fn expire(&mut self, now_us: u64, ejections: &mut Ejections) -> Option<Transition> {
        let until_us = self.ejection?.until_us;
        if now_us < until_us {
            return None;
        }
        self.let_back(ejections);
        self.settle(Reason::EjectionOver, now_us)
    }

    /// Ends an ejection for which the upstream has no place any more.
    pub(super) fn make_room(
        &mut self,
        now_us: u64,
        ejections: &mut Ejections,
    ) -> Option<Transition> {
        self.ejection?;
        self.let_back(ejections);
        self.settle(Reason::FewerServers, now_us)
    }

    fn let_back(&mut self, ejections: &mut Ejections) {
        self.ejection = None;
        ejections.give_back();
    }

    /// Notes the status that results, and tells if it is another one.
    fn settle(&mut self, reason: Reason, at_us: u64) -> Option<Transition> {
        let to = match (self.verdict, self.ejection) {
            (Verdict::Down { passes: 0 }, _) => Status::Down,
            (Verdict::Down { .. }, _) => Status::GoingUp,
            (Verdict::Up { .. }, Some(_)) => Status::Ejected,
            (Verdict::Up { failures: 0 }, None) => Status::Up,
            (Verdict::Up { .. }, None) => Status::GoingDown,
        };
        let from = std::mem::replace(&mut self.status, to);
        if from == to {
            return None;
        }
        if to.takes_connections() && !from.takes_connections() {
            // Time set aside or down is no service, and what failed before is over.
            self.good_since_us = at_us;
            self.connect_failures = 0;
            self.early_resets = 0;
        }
        self.reason = reason;
        self.since_us = at_us;
        Some(Transition {
            server: self.id,
            from,
            to,
            reason,
            at_us,
        })
    }

    pub(super) fn status(&self) -> Status {
        self.status
    }

    pub(super) fn ejected_until_us(&self) -> Option<u64> {
        self.ejection.map(|ejection| ejection.until_us)
    }

    pub(super) fn state(&self) -> State {
        State {
            up: self.status.takes_connections(),
            status: self.status,
            reason: self.reason,
            since_us: self.since_us,
            last_check: self.last_check,
            ejected_until_us: self.ejected_until_us(),
        }
    }

    /// How a server begins in an upstream where `others_available` others take connections.
    pub(super) fn initial(options: &Options, others_available: usize) -> Initial {
        if options.active.is_none() || others_available == 0 {
            Initial::Trusted
        } else {
            Initial::OnProbation
        }
    }
}

/// How long an ejection lasts that is the `in_a_row`th.
fn length_us(in_a_row: u32, passive: &Passive) -> u64 {
    passive
        .eject_us
        .saturating_mul(u64::from(in_a_row))
        .min(passive.eject_max_us)
        .max(1)
}
