//! How the servers of all upstreams stand: the pools that cores choose from, and the thread that changes
//! them.
//!
//! ```text
//!   checker ───results──┐                       ┌──Pool──> every core
//!   cores ────failures──┼──> watch: UpstreamHealth ──line──> process log
//!   resolver ──answers──┘                       └──Board──> admin
//! ```

mod board;
mod change;
mod roster;
mod settings;
mod watch;

pub(super) use board::Board;
pub(super) use settings::settings;
pub(super) use watch::Watch;

use std::sync::{Arc, mpsc};

use super::resolve::{Answers, Member};
use crate::balance::health::{CheckResult, Observation};
use crate::balance::{Candidate, hash_text};
use crate::config::Config;
use crate::config::model::Upstream;
use crate::units::{ServerId, UpstreamId};
use crate::worker::servers::{Pool, SharedServer, Tell};
use roster::Roster;

/// What the thread that watches hears.
pub(super) enum News {
    /// Of a server, by its check.
    Checked(ServerId, CheckResult),
    /// Of a server, by a session.
    Observed(ServerId, Observation),
    /// The names of an upstream's servers lead to these now.
    Resolved(UpstreamId, Vec<Member>),
}

/// What every new server is made with.
pub(super) struct Making {
    cores: usize,
    tell: Tell,
}

impl Making {
    pub(super) fn new(cores: usize, news: mpsc::Sender<News>) -> Self {
        let tell: Tell = Arc::new(move |server, observation| {
            // The receiver lives as long as the process.
            let _ = news.send(News::Observed(server, observation));
        });
        Self { cores, tell }
    }
}

/// The pools to begin with, by upstream, and the ids that their servers have.
pub(super) fn first(
    config: &Config,
    resolved: &[Answers],
    making: &Making,
) -> (Vec<Arc<Pool>>, Roster) {
    let mut roster = Roster::new();
    let mut pools = Vec::with_capacity(resolved.len());
    for (index, (upstream, answers)) in config.upstreams.iter().zip(resolved).enumerate() {
        let id = UpstreamId(index as u16);
        let mut servers = Vec::new();
        for member in answers.members() {
            let server = server_of(&mut roster, making, id, upstream, &member)
                .expect("counted when they were resolved");
            servers.push((candidate(server.id, &member), server));
        }
        pools.push(Arc::new(Pool { servers }));
    }
    (pools, roster)
}

/// The server that a member is; `None`: there are no ids left.
fn server_of(
    roster: &mut Roster,
    making: &Making,
    id: UpstreamId,
    upstream: &Upstream,
    member: &Member,
) -> Option<Arc<SharedServer>> {
    let max_connections = upstream.servers[member.entry].max_connections;
    roster.enroll(id, &member.address, max_connections, |server| {
        let tell = upstream.policy.eject.map(|_| Arc::clone(&making.tell));
        let address = member.address.clone();
        SharedServer::new(server, id, address, max_connections, tell, making.cores)
    })
}

/// A member as balancers see it, healthy.
fn candidate(id: ServerId, member: &Member) -> Candidate {
    Candidate {
        id,
        weight: member.weight,
        backup: member.backup,
        available: true,
        slow_start: None,
        key: hash_text(&member.address.to_string()),
    }
}
