//! Options of the sockets towards servers: from the configuration, and tried out before anything starts.
//!
//! A core could only fail one session after the other with what this host refuses; tried on a socket
//! that never connects, it is one line that names cause and remedy. What a host may still take away
//! later (an address, an interface) ends sessions as `local_ports` or `local_resources`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::resolve::Answers;
use super::targets::upstreams_of;
use crate::config::Config;
use crate::config::model::{self, ServerAddress, Upstream};
use crate::sys::source::{Refused, Source, Step};
use crate::units::{Address, UpstreamId};

/// What a source asks for and this host does not give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("upstream {upstream}: source.{problem}; nothing was started; {remedy}")]
pub struct SourceError {
    /// Whose.
    pub upstream: String,
    /// The key and what is wrong with it.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// In the words of the sockets.
pub(super) fn of(source: &model::Source) -> Arc<Source> {
    Arc::new(Source {
        v4: source.addresses_of(true),
        v6: source.addresses_of(false),
        interface: source.interface.clone(),
        mark: source.mark,
        dscp: source.dscp,
        congestion: source.congestion.clone(),
        transparent: source.transparent,
        fast_open: source.fast_open,
    })
}

/// Tries the sources of all upstreams, for the families of their servers.
pub(super) fn check(config: &Config, resolved: &[Answers]) -> Result<(), SourceError> {
    for (index, upstream) in config.upstreams.iter().enumerate() {
        let Some(source) = &upstream.source else {
            continue;
        };
        let servers = resolved[index].members();
        let families = servers.iter().filter_map(|it| is_ipv4(&it.address));
        let families: BTreeSet<bool> = families.collect();
        let clients = client_families(config, UpstreamId(index as u16));
        for is_ipv4 in families {
            check_family(upstream, source, &clients, is_ipv4)?;
        }
        try_out(upstream, source)?;
    }
    Ok(())
}

/// Why a server of this family cannot be reached from an upstream's source: problem and remedy.
pub(super) fn misfit(
    config: &Config,
    upstream: UpstreamId,
    is_ipv4: bool,
) -> Option<(String, String)> {
    let clients = client_families(config, upstream);
    let upstream = &config.upstreams[usize::from(upstream.0)];
    let source = upstream.source.as_ref()?;
    let error = check_family(upstream, source, &clients, is_ipv4).err()?;
    Some((error.problem, error.remedy))
}

/// Tries the sources without looking a name up; nothing is changed, and nothing stays open.
pub fn problems(config: &Config) -> Vec<SourceError> {
    let upstreams = config.upstreams.iter();
    let tried = upstreams.filter_map(|it| try_out(it, it.source.as_ref()?).err());
    tried.collect()
}

fn try_out(upstream: &Upstream, source: &model::Source) -> Result<(), SourceError> {
    let wanted = of(source);
    let servers = upstream.servers.iter();
    let mut families: BTreeSet<bool> = servers
        .filter_map(|server| match &server.address {
            ServerAddress::Known(address) => is_ipv4(address),
            ServerAddress::Named { .. } | ServerAddress::Service { .. } => None,
        })
        .collect();
    families.extend(source.addresses.iter().map(|range| range.is_ipv4()));
    if families.is_empty() {
        // Names: whichever it will be, the options are much the same.
        families.insert(true);
    }
    for is_ipv4 in families {
        wanted.try_out(is_ipv4).map_err(|refused| {
            let (problem, remedy) = explain(source, &refused);
            SourceError {
                upstream: upstream.name.clone(),
                problem,
                remedy,
            }
        })?;
    }
    Ok(())
}

/// Of the servers that are known by now, also by name.
fn check_family(
    upstream: &Upstream,
    source: &model::Source,
    clients: &BTreeSet<bool>,
    is_ipv4: bool,
) -> Result<(), SourceError> {
    let family = if is_ipv4 { "IPv4" } else { "IPv6" };
    let error = |problem: String, remedy: &str| {
        Err(SourceError {
            upstream: upstream.name.clone(),
            problem,
            remedy: remedy.to_owned(),
        })
    };
    if source.transparent && clients.iter().any(|client| *client != is_ipv4) {
        return error(
            format!(
                "transparent: a server has an {family} address, and its clients are not all of that family"
            ),
            "give each family an upstream of its own",
        );
    }
    if !source.addresses.is_empty() && source.addresses_of(is_ipv4).is_empty() {
        return error(
            format!("address: a server has an {family} address, and the source has none"),
            &format!("add an {family} address of this host"),
        );
    }
    Ok(())
}

/// Of the listeners that lead to an upstream, also as a fallback.
fn client_families(config: &Config, upstream: UpstreamId) -> BTreeSet<bool> {
    let leads_here = |to: &UpstreamId| {
        let direct = &config.upstreams[usize::from(to.0)];
        *to == upstream || direct.policy.fallback == Some(upstream)
    };
    let listeners = config.listeners.iter();
    let listeners = listeners.filter(|it| upstreams_of(it).iter().any(leads_here));
    listeners.filter_map(|it| is_ipv4(&it.bind)).collect()
}

fn is_ipv4(address: &Address) -> Option<bool> {
    match address {
        Address::Tcp(address) => Some(address.is_ipv4()),
        Address::Unix(_) => None,
    }
}

/// The key with what is wrong, and what to do. See socket(7), ip(7), tcp(7).
fn explain(source: &model::Source, Refused { step, error }: &Refused) -> (String, String) {
    let errno = error.raw_os_error().unwrap_or_default();
    let grant = "grant it (AmbientCapabilities= and CapabilityBoundingSet= in the systemd unit)";
    let needs = |key: &str| {
        (
            format!("{key}: this process lacks CAP_NET_ADMIN: {error}"),
            format!("{grant}, or remove the key"),
        )
    };
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    match (step, errno) {
        (Step::Mark, libc::EPERM) => needs("mark"),
        (Step::Transparent, libc::EPERM | libc::EACCES) => needs("transparent"),
        (Step::Interface, libc::ENODEV) => (
            format!(
                "interface: this host has no network interface `{}`",
                name(&source.interface)
            ),
            "name one that `ip link` shows".to_owned(),
        ),
        (Step::Interface, libc::EPERM) => (
            format!("interface: this process lacks CAP_NET_RAW: {error}"),
            format!("{grant}, or remove the key"),
        ),
        (Step::Congestion, libc::ENOENT) => (
            format!(
                "congestion: this kernel has no congestion control `{}`",
                name(&source.congestion)
            ),
            "load its module (modprobe tcp_NAME), or name one of net.ipv4.tcp_available_congestion_control".to_owned(),
        ),
        (Step::Congestion, libc::EPERM) => (
            format!(
                "congestion: `{}` is not allowed to processes without CAP_NET_ADMIN",
                name(&source.congestion)
            ),
            "add it to net.ipv4.tcp_allowed_congestion_control, or name one of those".to_owned(),
        ),
        (Step::Address(ip), libc::EADDRNOTAVAIL) if source.interface.is_some() => (
            format!("address: this host does not have {ip} where source.interface leads"),
            "write an address that `ip address` shows for it, or add it there".to_owned(),
        ),
        (Step::Address(ip), libc::EADDRNOTAVAIL) => (
            format!("address: this host does not have {ip}"),
            "write addresses that `ip address` shows, or add it with `ip address add`".to_owned(),
        ),
        (Step::Socket, _) => (
            format!("no socket to try it on: {error}"),
            "raise the limit on open files (LimitNOFILE, ulimit -n)".to_owned(),
        ),
        (step, _) => (
            format!("{}: {error}", key(*step)),
            "run `corelay doctor`, or remove the key".to_owned(),
        ),
    }
}

fn key(step: Step) -> String {
    match step {
        Step::Socket => "a socket to try it on".to_owned(),
        Step::Mark => "mark".to_owned(),
        Step::Interface => "interface".to_owned(),
        Step::Congestion => "congestion".to_owned(),
        Step::Dscp => "dscp".to_owned(),
        Step::Transparent => "transparent".to_owned(),
        Step::Address(ip) => format!("address: {ip}"),
    }
}
