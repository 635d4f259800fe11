//! The configuration of upstreams in the words of those who act on it.

use std::sync::Arc;

use crate::balance::Algorithm;
use crate::balance::health::{Active, Options, Pace, Passive};
use crate::config::model::{
    Balance, Check, Eject, HashBy, OnNoServer, ProxyVersions, Upstream, UpstreamPolicy,
};
use crate::control::health::{CheckAt, CheckSpec};
use crate::mode::proxy::Told;
use crate::policy::retry_budget::Grant;
use crate::sys::clock::micros;
use crate::sys::source::Source;
use crate::wire::proxy::Version;
use crate::worker::servers::{UpstreamSettings, WithoutServer};

/// Above so many cores, adding up the connections of every server costs more than looking at two.
const CORES_SUMMED_MAX: usize = 8;

/// What does not change of an upstream while the process runs.
pub(in crate::control) fn settings(
    policy: &UpstreamPolicy,
    source: Option<Arc<Source>>,
    cores: usize,
    seed: u64,
) -> UpstreamSettings {
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
        hashes_name: policy.hash == HashBy::Name,
        retries: policy.retries,
        retry_grant: policy
            .retry_budget
            .map(|budget| Grant::of_core(budget.percent.into(), budget.min_per_second, cores)),
        queue_max: policy.queue.max,
        queue_timeout: policy.queue.timeout,
        without_server: match policy.on_no_server {
            OnNoServer::Reset => WithoutServer::Reset,
            OnNoServer::Close => WithoutServer::Close,
            OnNoServer::Hold => WithoutServer::Hold,
        },
        fallback: policy.fallback,
        told: policy.proxy_protocol.map(|sent| Told {
            version: match sent.version {
                ProxyVersions::V1 => Version::V1,
                ProxyVersions::V2 | ProxyVersions::Any => Version::V2,
            },
            crc32c: sent.crc32c,
            pass_tlvs: sent.pass_tlvs,
            unique_id: sent.unique_id,
        }),
        source,
    }
}

/// What an upstream's servers are judged by.
pub(super) fn judged_by(upstream: &Upstream) -> Options {
    Options {
        active: upstream.check.as_ref().map(|check| Active {
            rise: check.rise,
            fall: check.fall,
        }),
        passive: upstream.policy.eject.map(|eject: Eject| Passive {
            failures: eject.failures,
            eject_us: micros(eject.period),
            eject_max_us: micros(eject.max),
            max_ejected_percent: eject.max_percent,
        }),
    }
}

/// How an upstream's servers are checked.
pub(super) fn checked_by(check: &Check, source: Option<Arc<Source>>) -> Arc<CheckSpec> {
    Arc::new(CheckSpec {
        kind: check.kind.clone(),
        at: check.port.map_or(CheckAt::Server, CheckAt::Port),
        pace: Pace {
            interval_us: micros(check.interval),
            fast_interval_us: micros(check.fast_interval),
            jitter_percent: check.jitter_percent,
        },
        timeout_us: micros(check.timeout),
        source,
    })
}
