//! From the configuration and the resolved addresses to the pools that cores choose from.

use std::sync::Arc;

use super::resolve::Resolved;
use crate::balance::{Algorithm, Candidate, hash_text};
use crate::config::Config;
use crate::config::model::{Balance, UpstreamPolicy};
use crate::units::ServerId;
use crate::worker::servers::{Pool, SharedServer, UpstreamSettings};

/// Above so many cores, adding up the connections of every server costs more than looking at two.
const CORES_SUMMED_MAX: usize = 8;

/// What does not change of an upstream while the process runs.
pub(super) fn settings(policy: &UpstreamPolicy, cores: usize, seed: u64) -> UpstreamSettings {
    UpstreamSettings {
        seed,
        sample: cores > CORES_SUMMED_MAX,
        algorithm: match policy.balance {
            Balance::RoundRobin => Algorithm::RoundRobin,
            Balance::LeastConnections => Algorithm::LeastConnections,
            Balance::RandomTwoChoices => Algorithm::RandomTwoChoices,
            Balance::SourceHash => Algorithm::SourceHash,
            Balance::Maglev => Algorithm::Maglev,
            Balance::FirstAvailable => Algorithm::FirstAvailable,
        },
        retries: policy.retries,
        queue_max: policy.queue.max,
        queue_timeout: policy.queue.timeout,
    }
}

/// The pools to begin with, by upstream.
pub(super) fn first(config: &Config, resolved: &Resolved, cores: usize) -> Vec<Arc<Pool>> {
    let server = |&id: &ServerId| {
        let resolved = &resolved.servers[usize::from(id.0)];
        let upstream = &config.upstreams[usize::from(resolved.upstream.0)];
        let entry = &upstream.servers[resolved.entry];
        let shared = SharedServer::new(
            id,
            resolved.upstream,
            resolved.address.clone(),
            entry.max_connections,
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
