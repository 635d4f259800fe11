//! The thread that hears of servers, judges them, and tells the cores.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::halts::{Halts, Turn, has_server};
use super::roster::Roster;
use super::settings::{Checking, judged_by};
use super::{Board, Making, News};
use crate::balance::SlowStart;
use crate::balance::health::{
    CheckOutcome, CheckResult, Reason, State, Status, Transition, UpstreamHealth,
};
use crate::config::Config;
use crate::config::model::{OnDown, Upstream};
use crate::control::Notice;
use crate::control::health::{self, Checker, Target};
use crate::control::resolve::refresh;
use crate::control::resolve::{Answers, Member};
use crate::core::mailbox::Sender;
use crate::log::Namer;
use crate::metrics::{LastCheck, Lookups, ServerStanding};
use crate::sys::clock::{self, micros};
use crate::units::{ServerId, UpstreamId};
use crate::worker::Message;
use crate::worker::servers::Pool;

/// What the thread starts with.
pub(in crate::control) struct Watch<'a> {
    pub(in crate::control) config: &'a Config,
    pub(in crate::control) resolved: &'a [Answers],
    pub(in crate::control) pools: Vec<Arc<Pool>>,
    pub(in crate::control) roster: Roster,
    pub(in crate::control) making: Making,
    pub(in crate::control) news: mpsc::Sender<News>,
    pub(in crate::control) cores: Arc<[Sender<Message>]>,
    pub(in crate::control) heard: mpsc::Receiver<News>,
    pub(in crate::control) board: Board,
    pub(in crate::control) log_names: Namer,
    pub(in crate::control) notices: mpsc::Sender<Notice>,
}

impl Watch<'_> {
    /// Starts to check, to resolve and to judge. The threads live as long as the process.
    ///
    /// # Errors
    /// No descriptor or no thread is to be had.
    pub(in crate::control) fn start(self) -> io::Result<()> {
        let groups: Vec<Group> = self.groups();
        let targets = targets(&groups);
        let checker = if targets.is_empty() {
            None
        } else {
            let results = self.news.clone();
            Some(Checker::start(
                health::Options::default(),
                targets,
                move |server, result| {
                    // The receiver lives as long as the process.
                    let _ = results.send(News::Checked(server, result));
                },
            )?)
        };
        self.board.lock().checker = checker.as_ref().map(Checker::monitor);
        self.resolve()?;
        let watcher = Watcher {
            deadline_us: None,
            groups,
            cores: self.cores,
            checker,
            board: self.board,
            log_names: self.log_names,
            roster: self.roster,
            making: self.making,
            overdue: Vec::new(),
            halts: Halts::new(self.config),
            notices: self.notices,
        };
        let heard = self.heard;
        std::thread::Builder::new()
            .name("upstreams".to_owned())
            .spawn(move || watcher.run(&heard))?;
        Ok(())
    }

    /// Begins to look names up again and again.
    fn resolve(&self) -> io::Result<()> {
        let told = Told {
            board: self.board.clone(),
            news: self.news.clone(),
        };
        refresh::start(self.config, self.resolved, told)
    }

    fn groups(&self) -> Vec<Group> {
        let now_us = clock::now_us();
        let upstreams = self.config.upstreams.iter().zip(&self.pools);
        let group = |(upstream, pool): (&Upstream, &Arc<Pool>)| {
            let ids: Vec<ServerId> = pool.servers.iter().map(|(it, _)| it.id).collect();
            Group {
                health: UpstreamHealth::new(&ids, judged_by(upstream), now_us),
                pool: Arc::clone(pool),
                check: Checking::new(upstream),
                config: upstream.clone(),
                drain: self.config.timeouts.drain,
                waiting: None,
                denied_total: 0,
            }
        };
        upstreams.map(group).collect()
    }
}

/// What is learnt of names goes to the board, and to the watcher.
#[derive(Clone)]
struct Told {
    board: Board,
    news: mpsc::Sender<News>,
}

impl refresh::Watcher for Told {
    fn looked(&self, upstream: UpstreamId, results: Lookups) {
        let mut board = self.board.lock();
        if let Some(lookups) = &mut board.lookups[usize::from(upstream.0)] {
            lookups.add(results);
        }
    }

    fn changed(&self, upstream: UpstreamId, servers: Vec<Member>) {
        // The receiver lives as long as the process.
        let _ = self.news.send(News::Resolved(upstream, servers));
    }
}

/// Whom to check.
pub(super) fn targets(groups: &[Group]) -> Vec<Target> {
    let mut targets = Vec::new();
    for group in groups {
        let Some(check) = &group.check else { continue };
        let servers = group.pool.servers.iter();
        targets.extend(servers.map(|(_, server)| check.target(server)));
    }
    targets
}

/// One upstream.
pub(super) struct Group {
    pub(super) config: Upstream,
    pub(super) check: Option<Checking>,
    pub(super) health: UpstreamHealth,
    pub(super) pool: Arc<Pool>,
    drain: Duration,
    /// Ejections, as shown.
    denied_total: u64,
    /// Its servers, while there are no ids for some of them.
    pub(super) waiting: Option<Vec<Member>>,
}

impl Group {
    /// Where a server's checks go, if that is not where it serves.
    fn checked_elsewhere(&self, server: ServerId) -> Option<String> {
        let mut servers = self.pool.servers.iter();
        let (_, server) = servers.find(|(candidate, _)| candidate.id == server)?;
        let target = self.check.as_ref()?.target(server);
        let at = target.at.resolve(&target.address);
        (at != target.address).then(|| at.to_string())
    }

    /// Of a server that begins to take sessions now.
    pub(super) fn slow_start(&self, now_us: u64) -> Option<SlowStart> {
        self.config.policy.slow_start.map(|duration| SlowStart {
            since_us: now_us,
            duration_us: micros(duration),
        })
    }
}

/// See the head of this file.
pub(super) struct Watcher {
    pub(super) groups: Vec<Group>,
    pub(super) cores: Arc<[Sender<Message>]>,
    pub(super) checker: Option<Checker>,
    pub(super) board: Board,
    pub(super) log_names: Namer,
    pub(super) roster: Roster,
    pub(super) making: Making,
    /// When something is to be done although nothing is heard.
    pub(super) deadline_us: Option<u64>,
    /// Servers that are down whose sessions are reset at this time.
    pub(super) overdue: Vec<(u64, ServerId)>,
    halts: Halts,
    notices: mpsc::Sender<Notice>,
}

impl Watcher {
    fn run(mut self, heard: &mpsc::Receiver<News>) {
        loop {
            let event = match self.deadline_us {
                None => heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at_us) => {
                    let left = at_us.saturating_sub(clock::now_us());
                    heard.recv_timeout(Duration::from_micros(left))
                }
            };
            match event {
                Ok(News::Checked(server, result)) => self.checked(server, result),
                Ok(News::Observed(server, observation)) => {
                    let now_us = clock::now_us();
                    let group = self.group_of(server);
                    let changed = group.map(|group| {
                        let health = &mut self.groups[group].health;
                        (group, health.observed(server, observation, now_us))
                    });
                    if let Some((group, transition)) = changed {
                        self.note_denied(group);
                        self.apply(group, transition.as_slice());
                    }
                }
                Ok(News::Resolved(upstream, members)) => self.resolved(upstream, members),
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

    pub(super) fn next_deadline_us(&self) -> Option<u64> {
        let ejections = self.groups.iter();
        let ejections = ejections.filter_map(|group| group.health.next_expiry_us());
        ejections
            .chain(self.overdue.iter().map(|(at_us, _)| *at_us))
            .chain(self.roster.next_us())
            .chain(self.halts.next_us())
            .min()
    }

    /// Its upstream; `None` for a server that is in no pool any more.
    fn group_of(&self, server: ServerId) -> Option<usize> {
        let upstream = self.roster.upstream_of(server)?;
        Some(usize::from(upstream.0))
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
        self.forget(now_us);
        for turn in self.halts.settle(now_us) {
            let Turn { listener, listens } = turn;
            // The main thread is gone only when the process is ending.
            let _ = self.notices.send(Notice::Listen(listener, listens));
        }
        self.deadline_us = self.next_deadline_us();
    }

    /// Tells everybody: the log, the admin listener, the cores.
    pub(super) fn apply(&mut self, index: usize, transitions: &[Transition]) {
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
            self.send_pool(index);
        }
        for transition in transitions {
            self.act_on_down(index, transition);
        }
        // Only a transition sets or ends an ejection or a drain.
        self.deadline_us = self.next_deadline_us();
    }

    pub(super) fn send_pool(&mut self, index: usize) {
        let group = &self.groups[index];
        let has_server = has_server(&group.pool);
        self.halts
            .note(UpstreamId(index as u16), has_server, clock::now_us());
        for core in self.cores.iter() {
            core.send(Message::Pool(
                UpstreamId(index as u16),
                Arc::clone(&group.pool),
            ));
        }
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
        match group.config.policy.on_down {
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
        let failed_check = transition.reason.failure().is_some();
        let checked_at = group
            .checked_elsewhere(transition.server)
            .filter(|_| failed_check);
        let available = group.health.available();
        let upstream = &group.config.name;
        macro_rules! tell {
            ($level:ident, $what:literal) => {
                tracing::$level!(
                    upstream,
                    server = address,
                    from,
                    to,
                    reason,
                    checked_at,
                    available,
                    $what
                )
            };
        }
        let took = transition.from.takes_connections();
        match (took, transition.to.takes_connections()) {
            (true, false) => tell!(warn, "a server gets no new sessions"),
            (false, true) => tell!(warn, "a server gets new sessions again"),
            _ => tell!(info, "a server's last check was unlike those before"),
        }
    }

    fn note_check(&self, server: ServerId, result: &CheckResult) {
        let mut board = self.board.lock();
        let Some(standing) = board.standing(server) else {
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

    /// Ejections that there would be, but for their limit. Most observations are none.
    fn note_denied(&mut self, index: usize) {
        let group = &mut self.groups[index];
        let total = group.health.ejections().denied_total();
        if total != std::mem::replace(&mut group.denied_total, total) {
            self.board.lock().ejections_denied_total[index] = total;
        }
    }

    fn note_transition(&self, index: usize, transition: &Transition) {
        let Some(state) = self.groups[index].health.state(transition.server) else {
            return;
        };
        let mut board = self.board.lock();
        let Some(standing) = board.standing(transition.server) else {
            return;
        };
        show(standing, state);
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
            candidate.slow_start = group.slow_start(transition.at_us);
        }
    }
    Pool { servers }
}

fn address_of(group: &Group, server: ServerId) -> String {
    let mut servers = group.pool.servers.iter();
    let found = servers.find(|(candidate, _)| candidate.id == server);
    found.map_or_else(String::new, |(_, server)| server.address.to_string())
}

/// How a server stands, as far as its health is concerned.
pub(super) fn show(standing: &mut ServerStanding, state: State) {
    standing.is_up = state.up;
    standing.is_removed = false;
    standing.status = state.status.as_str();
    standing.reason = described(state.reason);
    standing.since_us = state.since_us;
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
