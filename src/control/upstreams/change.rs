//! Other servers, because their names have other addresses: pools, health, checks, names, one line.

use std::collections::HashSet;
use std::sync::Arc;

use super::enrolled;
use super::watch::{Group, Watcher};
use crate::balance::SlowStart;
use crate::control::resolve::Member;
use crate::sys::clock;
use crate::units::{ServerId, UpstreamId};
use crate::worker::Message;
use crate::worker::servers::{Pool, SharedServer};

/// The word of a server that is in no pool any more.
const REMOVED: &str = "removed";

impl Watcher {
    /// An upstream has these servers from now on.
    pub(super) fn resolved(&mut self, upstream: UpstreamId, members: &[Member]) {
        let now_us = clock::now_us();
        let index = usize::from(upstream.0);
        let servers = self.enroll(index, members);
        let before = Arc::clone(&self.groups[index].pool);
        let ids: Vec<ServerId> = servers.iter().map(|(_, server)| server.id).collect();
        let (known, wanted): (HashSet<_>, HashSet<_>) =
            (before.ids().collect(), ids.iter().copied().collect());
        let gone: Vec<ServerId> = before.ids().filter(|id| !wanted.contains(id)).collect();
        let new = servers.iter().map(|(_, server)| Arc::clone(server));
        let new: Vec<Arc<SharedServer>> = new.filter(|it| !known.contains(&it.id)).collect();
        let group = &mut self.groups[index];
        let transitions = group.health.set_servers(&ids, now_us);
        for server in &new {
            // It may have been down when it went.
            server.end_sessions(false);
            self.overdue.retain(|(_, waiting)| *waiting != server.id);
            self.upstream_of.insert(server.id, index);
        }
        self.list(index, &new);
        for &id in &gone {
            self.upstream_of.remove(&id);
            self.roster.strike(id, now_us);
            if let Some(standing) = self.board.lock().standing(id) {
                standing.is_up = false;
                standing.status = REMOVED;
                standing.reason = "not in the answer".to_owned();
                standing.since_us = now_us;
            }
        }
        self.groups[index].pool = Arc::new(self.pool_of(index, members, servers, &before, now_us));
        self.send_pool(index);
        log(&self.groups[index], &before, &new, &gone);
        if let Some(checker) = &self.checker {
            checker.set(super::watch::targets(&self.groups));
        }
        self.apply(index, &transitions);
        self.deadline_us = self.next_deadline_us();
    }

    fn enroll(&mut self, index: usize, members: &[Member]) -> Vec<(usize, Arc<SharedServer>)> {
        let mut servers = Vec::with_capacity(members.len());
        let group = &self.groups[index];
        for (place, member) in members.iter().enumerate() {
            let making = &self.making;
            match enrolled(&mut self.roster, making, group.id, &group.config, member) {
                Some(server) => servers.push((place, server)),
                None => {
                    let upstream = &group.name;
                    tracing::warn!(upstream, server = %member.address, "there are too many servers: this one is left out");
                }
            }
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

    /// Who stays keeps its slow start; who is new begins one.
    fn pool_of(
        &self,
        index: usize,
        members: &[Member],
        servers: Vec<(usize, Arc<SharedServer>)>,
        before: &Pool,
        now_us: u64,
    ) -> Pool {
        let group = &self.groups[index];
        let candidate = |(place, server): (usize, Arc<SharedServer>)| {
            let mut candidate = super::candidate(server.id, &members[place]);
            let status = group.health.state(server.id).map(|state| state.status);
            candidate.available = status.is_none_or(|status| status.takes_connections());
            let mut known = before.servers.iter();
            let known = known.find(|(known, _)| known.id == server.id);
            candidate.slow_start = match known {
                Some((known, _)) => known.slow_start,
                None => group.slow_start_us.map(|duration_us| SlowStart {
                    since_us: now_us,
                    duration_us,
                }),
            };
            (candidate, server)
        };
        Pool {
            servers: servers.into_iter().map(candidate).collect(),
        }
    }

    /// Gives the ids of servers that are long gone back.
    pub(super) fn forget(&mut self, now_us: u64) {
        for id in self.roster.forget(now_us) {
            self.overdue.retain(|(_, waiting)| *waiting != id);
            self.board.lock().forget(id);
            for core in self.cores.iter() {
                core.send(Message::Forget(id));
            }
        }
    }
}

fn log(group: &Group, before: &Pool, new: &[Arc<SharedServer>], gone: &[ServerId]) {
    let added: Vec<String> = new.iter().map(|it| it.address.to_string()).collect();
    let removed: Vec<String> = before
        .servers
        .iter()
        .filter(|(_, server)| gone.contains(&server.id))
        .map(|(_, server)| server.address.to_string())
        .collect();
    tracing::info!(
        upstream = group.name,
        added = added.join(" "),
        removed = removed.join(" "),
        "an upstream has other servers"
    );
}
