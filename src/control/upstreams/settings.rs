//! The configuration of upstreams in the words of those who act on it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::balance::Algorithm;
use crate::balance::health::{Active, Options, Pace, Passive};
use crate::config::model::{
    Balance, Check, CheckHeader, Eject, HashBy, OnNoServer, ProxySent, ProxyVersions,
    ServerAddress, Upstream, UpstreamPolicy,
};
use crate::control::health::{CheckAt, CheckSpec, Target};
use crate::control::source;
use crate::mode::proxy::Told;
use crate::policy::retry_budget::Grant;
use crate::sys::clock::micros;
use crate::sys::source::Source;
use crate::units::Address;
use crate::wire::proxy::Version;
use crate::worker::servers::{SharedServer, UpstreamSettings, WithoutServer};

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
            OnNoServer::Reset | OnNoServer::StopListening => WithoutServer::Reset,
            OnNoServer::Close => WithoutServer::Close,
            OnNoServer::Hold => WithoutServer::Hold,
        },
        fallback: policy.fallback,
        told: policy.proxy_protocol.map(|sent| Told {
            version: version(&sent),
            crc32c: sent.crc32c,
            pass_tlvs: sent.pass_tlvs,
            unique_id: sent.unique_id,
        }),
        source,
    }
}

fn version(sent: &ProxySent) -> Version {
    match sent.version {
        ProxyVersions::V1 => Version::V1,
        ProxyVersions::V2 | ProxyVersions::Any => Version::V2,
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

/// How and where an upstream's servers are checked.
pub(in crate::control) struct Checking {
    spec: Arc<CheckSpec>,
    port: Option<u16>,
    header: CheckHeader,
    /// That of the sessions.
    told: Option<Version>,
    /// Of those with a `check_address`, by where they serve.
    addresses: HashMap<Address, Address>,
}

impl Checking {
    /// `None`: nobody is asked.
    pub(super) fn new(upstream: &Upstream) -> Option<Self> {
        let check = upstream.check.as_ref()?;
        let source = upstream.source.as_ref().map(source::of);
        let addresses = upstream.servers.iter().filter_map(|server| {
            let ServerAddress::Known(serving) = &server.address else {
                return None;
            };
            Some((serving.clone(), server.check_address.clone()?))
        });
        Some(Self {
            spec: checked_by(check, source),
            port: check.port,
            header: check.header,
            told: upstream.policy.proxy_protocol.as_ref().map(version),
            addresses: addresses.collect(),
        })
    }

    /// The check of one server.
    pub(super) fn target(&self, server: &SharedServer) -> Target {
        let at = match (self.addresses.get(&server.address), self.port) {
            (Some(address), _) => CheckAt::Address(address.clone()),
            (None, Some(port)) => CheckAt::Port(port),
            (None, None) => CheckAt::Server,
        };
        let header = match self.header {
            CheckHeader::Off => None,
            CheckHeader::V1 => Some(Version::V1),
            CheckHeader::V2 => Some(Version::V2),
            // What listens elsewhere is another socket, which need not expect one.
            CheckHeader::AsSessions => self
                .told
                .filter(|_| at.resolve(&server.address) == server.address),
        };
        Target {
            server: server.id,
            address: server.address.clone(),
            at,
            header,
            check: Arc::clone(&self.spec),
        }
    }
}

fn checked_by(check: &Check, source: Option<Arc<Source>>) -> Arc<CheckSpec> {
    Arc::new(CheckSpec {
        kind: check.kind.clone(),
        pace: Pace {
            interval_us: micros(check.interval),
            fast_interval_us: micros(check.fast_interval),
            jitter_percent: check.jitter_percent,
        },
        timeout_us: micros(check.timeout),
        source,
    })
}
