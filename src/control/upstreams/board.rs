//! What is shown of the upstreams: the servers' names, how they stand, and how names were looked up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::control::health::Monitor;
use crate::metrics::{CheckerMetrics, Lookups, ServerName, ServerStanding};
use crate::units::ServerId;
use crate::worker::servers::{Pool, SharedServer};

/// Written by the threads of control, read by the admin listener.
#[derive(Clone)]
pub(in crate::control) struct Board(Arc<Mutex<Shown>>);

/// See the head of this file.
#[derive(Clone, Default)]
pub(in crate::control) struct Shown {
    /// By [`ServerId`]; `None` for an id that no server has.
    pub(in crate::control) servers: Vec<Option<ServerName>>,
    /// By [`ServerId`].
    pub(in crate::control) standings: Vec<ServerStanding>,
    /// By [`crate::units::UpstreamId`]; `None` where there are no names.
    pub(in crate::control) lookups: Vec<Option<Lookups>>,
    /// By [`crate::units::UpstreamId`].
    pub(in crate::control) ejections_denied_total: Vec<u64>,
    /// `None`: nobody is checked.
    pub(super) checker: Option<Monitor>,
}

impl Board {
    /// With the servers to begin with.
    pub(in crate::control) fn new(pools: &[Arc<Pool>], lookups: Vec<Option<Lookups>>) -> Self {
        let mut shown = Shown {
            lookups,
            ejections_denied_total: vec![0; pools.len()],
            ..Shown::default()
        };
        for pool in pools {
            for (_, server) in &pool.servers {
                shown.list(server);
            }
            shown.note_shares(pool);
        }
        Self(Arc::new(Mutex::new(shown)))
    }

    pub(in crate::control) fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    pub(in crate::control) fn checker(&self) -> CheckerMetrics {
        let stats = self.checker.as_ref().map(Monitor::stats);
        stats.map_or_else(CheckerMetrics::default, |stats| CheckerMetrics {
            in_flight: stats.in_flight,
            late: Duration::from_micros(stats.late_us),
        })
    }

    /// Lists a server, which may have been listed before.
    pub(super) fn list(&mut self, server: &SharedServer) {
        let index = usize::from(server.id.0);
        if self.servers.len() <= index {
            self.servers.resize(index + 1, None);
            self.standings
                .resize_with(index + 1, ServerStanding::default);
        }
        let name = &mut self.servers[index];
        if name.is_none() {
            *name = Some(ServerName {
                address: server.address.to_string(),
                upstream: server.upstream,
            });
            self.standings[index] = ServerStanding::default();
        }
    }

    /// What the servers of a pool are given.
    pub(super) fn note_shares(&mut self, pool: &Pool) {
        for (candidate, _) in &pool.servers {
            if let Some(standing) = self.standing(candidate.id) {
                standing.weight = candidate.weight;
                standing.is_backup = candidate.backup;
            }
        }
    }

    pub(super) fn forget(&mut self, servers: &[ServerId]) {
        for server in servers {
            self.servers[usize::from(server.0)] = None;
        }
    }

    pub(super) fn standing(&mut self, server: ServerId) -> Option<&mut ServerStanding> {
        self.standings.get_mut(usize::from(server.0))
    }
}
