//! The thread that hears of servers, judges them, and tells the cores.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::settings::{checked_by, judged_by};
use crate::balance::SlowStart;
use crate::balance::health::{
    CheckOutcome, CheckResult, Heard, Reason, State, Status, Transition, UpstreamHealth,
};
use crate::config::Config;
use crate::config::model::OnDown;
use crate::control::health::{self, Checker, Target};
use crate::control::source;
use crate::core::mailbox::Sender;
use crate::metrics::{LastCheck, ServerStanding};
use crate::sys::clock::{self, micros};
use crate::units::{ServerId, UpstreamId};
use crate::worker::Message;
use crate::worker::servers::Pool;

/// How the servers stand, by [`ServerId`]; for the admin listener.
pub(in crate::control) type Standings = Arc<Mutex<Vec<ServerStanding>>>;

/// Standings of servers of which nothing was heard yet.
pub(in crate::control) fn standings(servers: usize) -> Standings {
    Arc::new(Mutex::new(vec![ServerStanding::default(); servers]))
}

/// What the thread starts with.
pub(in crate::control) struct Watch<'a> {
    pub(in crate::control) config: &'a Config,
    pub(in crate::control) pools: Vec<Arc<Pool>>,
    pub(in crate::control) cores: Arc<[Sender<Message>]>,
    pub(in crate::control) heard: mpsc::Receiver<Heard>,
    /// For the checker's results.
    pub(in crate::control) results: mpsc::Sender<Heard>,
    pub(in crate::control) standings: Standings,
}

impl Watch<'_> {
    /// Starts to check and to judge. The thread lives as long as the process.
    ///
    /// # Errors
    /// No descriptor or no thread is to be had.
    pub(in crate::control) fn start(self) -> io::Result<()> {
        let groups: Vec<Group> = self.groups();
        let targets = targets(self.config, &groups);
        let checker = if targets.is_empty() {
            None
        } else {
            let results = self.results;
            Some(Checker::start(
                health::Options::default(),
                targets,
                move |server, result| {
                    // The receiver lives as long as the process.
                    let _ = results.send(Heard::Checked(server, result));
                },
            )?)
        };
        let upstream_of = self.pools.iter().enumerate().flat_map(|(index, pool)| {
            let servers = pool.servers.iter();
            servers.map(move |(candidate, _)| (candidate.id, index))
        });
        let watcher = Watcher {
            upstream_of: upstream_of.collect(),
            deadline_us: None,
            groups,
            cores: self.cores,
            checker,
            standings: self.standings,
            overdue: Vec::new(),
        };
        let heard = self.heard;
        std::thread::Builder::new()
            .name("upstreams".to_owned())
            .spawn(move || watcher.run(&heard))?;
        Ok(())
    }

    fn groups(&self) -> Vec<Group> {
        let now_us = clock::now_us();
        let upstreams = self.config.upstreams.iter().zip(&self.pools).enumerate();
        let group = |(index, (upstream, pool)): (usize, (&_, &Arc<Pool>))| {
            let upstream: &crate::config::model::Upstream = upstream;
            let ids: Vec<ServerId> = pool.servers.iter().map(|(it, _)| it.id).collect();
            Group {
                id: UpstreamId(index as u16),
                name: upstream.name.clone(),
                health: UpstreamHealth::new(&ids, judged_by(upstream), now_us),
                pool: Arc::clone(pool),
                slow_start_us: upstream.policy.slow_start.map(micros),
                on_down: upstream.policy.on_down,
                drain: self.config.timeouts.drain,
            }
        };
        upstreams.map(group).collect()
    }
}

fn targets(config: &Config, groups: &[Group]) -> Vec<Target> {
    let mut targets = Vec::new();
    for (upstream, group) in config.upstreams.iter().zip(groups) {
        let Some(check) = &upstream.check else {
            continue;
        };
        let source = upstream.source.as_ref().map(source::of);
        let check = checked_by(check, source);
        for (candidate, server) in &group.pool.servers {
            targets.push(Target {
                server: candidate.id,
                address: server.address.clone(),
                check: Arc::clone(&check),
            });
        }
    }
    targets
}

/// One upstream.
struct Group {
    id: UpstreamId,
    name: String,
    health: UpstreamHealth,
    pool: Arc<Pool>,
    slow_start_us: Option<u64>,
    on_down: OnDown,
    drain: Duration,
}

struct Watcher {
    groups: Vec<Group>,
    cores: Arc<[Sender<Message>]>,
    checker: Option<Checker>,
    standings: Standings,
    /// The place of each server's upstream in `groups`.
    upstream_of: HashMap<ServerId, usize>,
    /// When something is to be done although nothing is heard.
    deadline_us: Option<u64>,
    /// Servers that are down whose sessions are reset at this time.
    overdue: Vec<(u64, ServerId)>,
}

impl Watcher {
    fn run(mut self, heard: &mpsc::Receiver<Heard>) {
        loop {
            let event = match self.deadline_us {
                None => heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at_us) => {
                    let left = at_us.saturating_sub(clock::now_us());
                    heard.recv_timeout(Duration::from_micros(left))
                }
            };
            match event {
                Ok(Heard::Checked(server, result)) => self.checked(server, result),
                Ok(Heard::Observed(server, observation)) => {
                    let now_us = clock::now_us();
                    let group = self.group_of(server);
                    let changed = group.map(|group| {
                        let health = &mut self.groups[group].health;
                        (group, health.observed(server, observation, now_us))
                    });
                    if let Some((group, Some(transition))) = changed {
                        self.apply(group, &[transition]);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self
                .deadline_us
                .is_some_and(|at_us| at_us <= clock::now_us())
            {
                self.expire();
            }
        }
    }

    fn next_deadline_us(&self) -> Option<u64> {
        let ejections = self.groups.iter();
        let ejections = ejections.filter_map(|group| group.health.next_expiry_us());
        ejections
            .chain(self.overdue.iter().map(|(at_us, _)| *at_us))
            .min()
    }

    /// Its upstream; `None` for a server that is in no pool any more.
    fn group_of(&self, server: ServerId) -> Option<usize> {
        self.upstream_of.get(&server).copied()
    }

    fn checked(&mut self, server: ServerId, result: CheckResult) {
        let Some(index) = self.group_of(server) else {
            return;
        };
        let health = &mut self.groups[index].health;
        let transition = health.checked(server, &result);
        self.note_check(server, &result);
        if let Some(transition) = transition {
            self.apply(index, &[transition]);
        }
        // A server that is between up and down hovers there for two or three checks.
        let wants_fast = self.groups[index].health.wants_fast(server);
        if let Some(checker) = &self.checker {
            checker.fast(server, wants_fast);
        }
    }

    /// Does what is due.
    fn expire(&mut self) {
        let now_us = clock::now_us();
        for index in 0..self.groups.len() {
            let transitions = self.groups[index].health.expire(now_us);
            self.apply(index, &transitions);
        }
        let (due, later) = self.overdue.iter().partition(|(at_us, _)| *at_us <= now_us);
        self.overdue = later;
        let due: Vec<(u64, ServerId)> = due;
        for (_, server) in due {
            self.end_sessions(server);
        }
        self.deadline_us = self.next_deadline_us();
    }

    /// Tells everybody: the log, the admin listener, the cores.
    fn apply(&mut self, index: usize, transitions: &[Transition]) {
        if transitions.is_empty() {
            return;
        }
        for transition in transitions {
            self.log(index, transition);
            self.note_transition(index, transition);
        }
        let changes = |it: &Transition| it.from.takes_connections() != it.to.takes_connections();
        if transitions.iter().any(changes) {
            let group = &mut self.groups[index];
            group.pool = Arc::new(changed(group, transitions));
            for core in self.cores.iter() {
                core.send(Message::Pool(group.id, Arc::clone(&group.pool)));
            }
        }
        for transition in transitions {
            self.act_on_down(index, transition);
        }
        // Only a transition sets or ends an ejection or a drain.
        self.deadline_us = self.next_deadline_us();
    }

    /// What becomes of the sessions of a server whose checks found it down. An ejection is a guess,
    /// and ends nobody's session.
    fn act_on_down(&mut self, index: usize, transition: &Transition) {
        let Transition { server, to, .. } = *transition;
        // An ejection that shows when the checks pass again is a guess, and ends nobody's session either.
        if to.takes_connections() || to == Status::Ejected {
            self.overdue.retain(|(_, waiting)| *waiting != server);
            self.set_ending(index, server, false);
        }
        if to != Status::Down {
            return;
        }
        let group = &self.groups[index];
        match group.on_down {
            OnDown::Keep => {}
            OnDown::Close => self.end_sessions(server),
            OnDown::Drain => {
                let at_us = transition.at_us + micros(group.drain);
                self.overdue.push((at_us, server));
            }
        }
    }

    fn set_ending(&self, index: usize, server: ServerId, ends: bool) {
        let mut servers = self.groups[index].pool.servers.iter();
        if let Some((_, shared)) = servers.find(|(candidate, _)| candidate.id == server) {
            shared.end_sessions(ends);
        }
    }

    fn end_sessions(&self, server: ServerId) {
        if let Some(index) = self.group_of(server) {
            self.set_ending(index, server, true);
        }
        for core in self.cores.iter() {
            core.send(Message::EndSessions(server));
        }
    }

    fn log(&self, index: usize, transition: &Transition) {
        let group = &self.groups[index];
        let address = address_of(group, transition.server);
        let (from, to) = (transition.from.as_str(), transition.to.as_str());
        let reason = described(transition.reason);
        let available = group.health.available();
        let upstream = &group.name;
        let what = match (
            transition.from.takes_connections(),
            transition.to.takes_connections(),
        ) {
            (true, false) => "a server gets no new sessions",
            (false, true) => "a server gets new sessions again",
            _ => {
                return tracing::info!(
                    upstream,
                    server = address,
                    from,
                    to,
                    reason,
                    available,
                    "a server's last check was unlike those before"
                );
            }
        };
        tracing::warn!(
            upstream,
            server = address,
            from,
            to,
            reason,
            available,
            "{what}"
        );
    }

    fn note_check(&self, server: ServerId, result: &CheckResult) {
        let mut standings = lock(&self.standings);
        let Some(standing) = standings.get_mut(usize::from(server.0)) else {
            return;
        };
        standing.last_check = Some(LastCheck {
            outcome: result.outcome.as_str(),
            latency: Duration::from_micros(result.latency_us),
            at_us: result.at_us,
        });
        let count = match result.outcome {
            CheckOutcome::Passed => &mut standing.checks_passed_total,
            CheckOutcome::Failed(_) => &mut standing.checks_failed_total,
            CheckOutcome::NotMade(_) => &mut standing.checks_not_made_total,
        };
        *count += 1;
    }

    fn note_transition(&self, index: usize, transition: &Transition) {
        let Some(state) = self.groups[index].health.state(transition.server) else {
            return;
        };
        let mut standings = lock(&self.standings);
        let Some(standing) = standings.get_mut(usize::from(transition.server.0)) else {
            return;
        };
        let State {
            up,
            status,
            reason,
            since_us,
            ..
        } = state;
        standing.is_up = up;
        standing.status = status.as_str();
        standing.reason = described(reason);
        standing.since_us = since_us;
        standing.transitions_total += 1;
        if transition.from.takes_connections() && !transition.to.takes_connections() {
            standing.downs_total += 1;
        }
    }
}

/// The pool after these transitions.
fn changed(group: &Group, transitions: &[Transition]) -> Pool {
    let mut servers = group.pool.servers.clone();
    for transition in transitions {
        let mut all = servers.iter_mut();
        let found = all.find(|(candidate, _)| candidate.id == transition.server);
        let Some((candidate, _)) = found else {
            continue;
        };
        let comes_back = !candidate.available && transition.to.takes_connections();
        candidate.available = transition.to.takes_connections();
        if comes_back {
            candidate.slow_start = group.slow_start_us.map(|duration_us| SlowStart {
                since_us: transition.at_us,
                duration_us,
            });
        }
    }
    Pool { servers }
}

fn address_of(group: &Group, server: ServerId) -> String {
    let mut servers = group.pool.servers.iter();
    let found = servers.find(|(candidate, _)| candidate.id == server);
    found.map_or_else(String::new, |(_, server)| server.address.to_string())
}

/// The reason in words: what a failed check failed with stands behind it.
fn described(reason: Reason) -> String {
    match reason.failure() {
        None => reason.as_str().to_owned(),
        Some(failure) => match failure.status() {
            None => format!("{}: {}", reason.as_str(), failure.as_str()),
            Some(status) => format!("{}: {} {status}", reason.as_str(), failure.as_str()),
        },
    }
}

fn lock(standings: &Standings) -> MutexGuard<'_, Vec<ServerStanding>> {
    standings.lock().unwrap_or_else(PoisonError::into_inner)
}
