//! What is shown of the upstreams: the servers' names, how they stand, and how names were looked up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::metrics::{Lookups, ServerName, ServerStanding};
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
}

impl Board {
    /// With the servers to begin with.
    pub(in crate::control) fn new(pools: &[Arc<Pool>], lookups: Vec<Option<Lookups>>) -> Self {
        let mut shown = Shown {
            lookups,
            ..Shown::default()
        };
        let servers = pools.iter().flat_map(|pool| &pool.servers);
        for (_, server) in servers {
            shown.list(server);
        }
        Self(Arc::new(Mutex::new(shown)))
    }

    pub(in crate::control) fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
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

    pub(super) fn forget(&mut self, servers: &[ServerId]) {
        for server in servers {
            self.servers[usize::from(server.0)] = None;
        }
    }

    pub(super) fn standing(&mut self, server: ServerId) -> Option<&mut ServerStanding> {
        self.standings.get_mut(usize::from(server.0))
    }
}
