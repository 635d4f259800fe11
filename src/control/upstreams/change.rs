//! Other servers, because their names have other addresses: pools, health, checks, names, one line.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::server_of;
use super::watch::Watcher;
use crate::balance::Candidate;
use crate::control::resolve::Member;
use crate::sys::clock;
use crate::units::{ServerId, UpstreamId};
use crate::worker::Message;
use crate::worker::servers::{Pool, SharedServer};

/// The word of a server that is in no pool any more.
const REMOVED: &str = "removed";

impl Watcher {
    /// An upstream has these servers from now on.
    pub(super) fn resolved(&mut self, upstream: UpstreamId, members: Vec<Member>) {
        let now_us = clock::now_us();
        let index = usize::from(upstream.0);
        let servers = self.servers_of(index, &members);
        let group = &mut self.groups[index];
        // As many as there are ids for; the others when some are free again.
        group.waiting = (servers.len() < members.len()).then(|| members.clone());
        let before = Arc::clone(&group.pool);
        let ids: Vec<ServerId> = servers.iter().map(|(_, server)| server.id).collect();
        let (known, wanted): (HashSet<_>, HashSet<_>) =
            (before.ids().collect(), ids.iter().copied().collect());
        let gone = before.servers.iter().map(|(_, server)| server);
        let gone: Vec<_> = gone
            .filter(|it| !wanted.contains(&it.id))
            .cloned()
            .collect();
        let new = servers.iter().map(|(_, server)| server);
        let new: Vec<_> = new.filter(|it| !known.contains(&it.id)).cloned().collect();
        let transitions = group.health.set_servers(&ids, now_us);
        for server in &new {
            // It may have been down when it went.
            server.end_sessions(false);
            self.overdue.retain(|(_, waiting)| *waiting != server.id);
        }
        self.list(index, &new);
        for server in &gone {
            self.roster.strike(server.id, now_us);
            if let Some(standing) = self.board.lock().standing(server.id) {
                standing.is_up = false;
                standing.is_removed = true;
                standing.status = REMOVED;
                standing.reason = "not in the answer".to_owned();
                standing.since_us = now_us;
            }
        }
        self.groups[index].pool = Arc::new(self.pool_of(index, &members, servers, &before, now_us));
        self.board.lock().note_shares(&self.groups[index].pool);
        self.send_pool(index);
        log(&self.groups[index].config.name, &new, &gone);
        if let Some(checker) = &self.checker {
            checker.set(super::watch::targets(&self.groups));
        }
        self.apply(index, &transitions);
        self.deadline_us = self.next_deadline_us();
    }

    /// The servers that members are, with the members' places.
    fn servers_of(&mut self, index: usize, members: &[Member]) -> Vec<(usize, Arc<SharedServer>)> {
        let mut servers = Vec::with_capacity(members.len());
        let config = &self.groups[index].config;
        let id = UpstreamId(index as u16);
        for (place, member) in members.iter().enumerate() {
            let server = server_of(&mut self.roster, &self.making, id, config, member);
            servers.extend(server.map(|server| (place, server)));
        }
        let left_out = members.len() - servers.len();
        if left_out > 0 {
            let upstream = &config.name;
            tracing::warn!(
                upstream,
                left_out,
                "there are too many servers in all: some are left out for now"
            );
        }
        servers
    }

    fn list(&self, index: usize, new: &[Arc<SharedServer>]) {
        let health = &self.groups[index].health;
        let mut board = self.board.lock();
        for server in new {
            self.log_names
                .name_server(server.id, &server.address.to_string());
            board.list(server);
            if let (Some(state), Some(standing)) =
                (health.state(server.id), board.standing(server.id))
            {
                super::watch::show(standing, state);
            }
        }
    }

    /// Who stays is as it was, but for its weight and rank; who is new begins a slow start.
    fn pool_of(
        &self,
        index: usize,
        members: &[Member],
        servers: Vec<(usize, Arc<SharedServer>)>,
        before: &Pool,
        now_us: u64,
    ) -> Pool {
        let group = &self.groups[index];
        let before = before.servers.iter();
        let before: HashMap<ServerId, &Candidate> = before.map(|(it, _)| (it.id, it)).collect();
        let candidate = |(place, server): (usize, Arc<SharedServer>)| {
            let mut candidate = super::candidate(server.id, &members[place]);
            if let Some(known) = before.get(&server.id) {
                candidate.available = known.available;
                candidate.slow_start = known.slow_start;
            } else {
                let status = group.health.state(server.id).map(|state| state.status);
                candidate.available = status.is_none_or(|status| status.takes_connections());
                candidate.slow_start = group.slow_start(now_us);
            }
            (candidate, server)
        };
        Pool {
            servers: servers.into_iter().map(candidate).collect(),
        }
    }

    /// Gives the ids of servers that are long gone back.
    pub(super) fn forget(&mut self, now_us: u64) {
        let forgotten = self.roster.forget(now_us);
        if forgotten.is_empty() {
            return;
        }
        self.overdue
            .retain(|(_, waiting)| !forgotten.contains(waiting));
        self.board.lock().forget(&forgotten);
        for core in self.cores.iter() {
            core.send(Message::Forget(forgotten.clone()));
        }
        for index in 0..self.groups.len() {
            if let Some(members) = self.groups[index].waiting.take() {
                self.resolved(UpstreamId(index as u16), members);
            }
        }
    }
}

fn log(upstream: &str, new: &[Arc<SharedServer>], gone: &[Arc<SharedServer>]) {
    tracing::info!(
        upstream,
        added = listed(new),
        removed = listed(gone),
        "an upstream has other servers"
    );
}

/// The addresses, as far as anybody reads on.
fn listed(servers: &[Arc<SharedServer>]) -> String {
    const SHOWN_MAX: usize = 20;
    let shown = servers.iter().take(SHOWN_MAX);
    let mut shown: Vec<String> = shown.map(|it| it.address.to_string()).collect();
    if servers.len() > SHOWN_MAX {
        shown.push(format!("and {} more", servers.len() - SHOWN_MAX));
    }
    shown.join(" ")
}
