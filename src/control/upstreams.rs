//! How the servers of all upstreams stand: the pools that cores choose from, and the thread that changes
//! them.
//!
//! ```text
//!   checker ──results──┐                       ┌──Pool──> every core
//!                      ├──> watch: UpstreamHealth ──line──> process log
//!   cores ──failures───┘                       └──Standing──> admin
//! ```

mod settings;
mod watch;

pub(super) use settings::settings;
pub(super) use watch::{Standings, Watch, standings};

use std::sync::{Arc, mpsc};

use super::resolve::Resolved;
use crate::balance::health::Heard;
use crate::balance::{Candidate, hash_text};
use crate::config::Config;
use crate::units::ServerId;
use crate::worker::servers::{Pool, SharedServer};

/// The pools to begin with, by upstream.
pub(super) fn first(
    config: &Config,
    resolved: &Resolved,
    cores: usize,
    heard: &mpsc::Sender<Heard>,
) -> Vec<Arc<Pool>> {
    let server = |&id: &ServerId| {
        let resolved = &resolved.servers[usize::from(id.0)];
        let upstream = &config.upstreams[usize::from(resolved.upstream.0)];
        let entry = &upstream.servers[resolved.entry];
        let shared = SharedServer::new(
            id,
            resolved.upstream,
            resolved.address.clone(),
            entry.max_connections,
            upstream.policy.eject.map(|_| heard.clone()),
            cores,
        );
        let candidate = Candidate {
            id,
            weight: entry.weight,
            backup: entry.backup,
            available: true,
            slow_start: None,
            key: hash_text(&resolved.address.to_string()),
        };
        (candidate, Arc::new(shared))
    };
    let pool = |ids: &Vec<ServerId>| {
        Arc::new(Pool {
            servers: ids.iter().map(server).collect(),
        })
    };
    resolved.upstreams.iter().map(pool).collect()
}
