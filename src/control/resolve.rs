//! From the servers of the configuration to addresses: host names, and the SRV records of services.
//!
//! Cores never resolve: a slow name server must not stop traffic. Names are looked up at the start, where
//! one without an answer is an error, and by threads of their own from then on (`refresh`).

mod client;
pub(super) mod refresh;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Instant;

use crate::config::limits::WEIGHT;
use crate::config::model::{Dns, Family, Server, ServerAddress, Upstream};
use crate::config::{Config, can_be_server};
use crate::metrics::Lookups;
use crate::units::{Address, UpstreamId};
use crate::wire::dns::{Answer, DnsError, Kind, Service};
use client::{AskError, Client};

/// Most servers of all upstreams, by address: as many as there are ids.
pub const SERVERS_MAX: usize = 1 << 16;
/// Most servers of one upstream, by address: no answer is to use up the ids of all others.
pub const MEMBERS_MAX: usize = 1 << 14;

/// Names that could not be resolved at the start.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver failed, or knows no such name.
    #[error(
        "upstream {upstream}: cannot resolve {name}: {source}; nothing was started; check the name and {asked}, or write an IP address"
    )]
    Failed {
        /// The upstream.
        upstream: String,
        /// The name.
        name: String,
        /// Why.
        source: LookupError,
        /// What else may be wrong.
        asked: &'static str,
    },
    /// The names have more addresses than there are server ids.
    #[error(
        "the names of upstream {upstream} have too many addresses (more than {MEMBERS_MAX}, or {SERVERS_MAX} in all); nothing was started; list fewer"
    )]
    TooMany {
        /// The upstream.
        upstream: String,
    },
}

/// Why a name has no addresses at present.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The host's resolver said so.
    #[error(transparent)]
    Host(#[from] io::Error),
    /// The name servers did.
    #[error(transparent)]
    Dns(#[from] AskError),
    /// There is an answer, and nothing in it that can be used.
    #[error("it has no {0}")]
    Empty(&'static str),
    /// There is far too much in it.
    #[error("it has more than {MEMBERS_MAX} addresses")]
    TooMany,
}

/// One server, as an answer has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where.
    pub address: Address,
    /// Its place in the upstream's list of the configuration.
    pub entry: usize,
    /// Its share.
    pub weight: u16,
    /// Serves only while no other server can.
    pub backup: bool,
}

/// What the servers of one upstream led to, by their place in its list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers(Vec<Vec<Member>>);

impl Answers {
    /// One list. Two names of one machine are one server, the first: it must not get twice its share.
    pub(super) fn members(&self) -> Vec<Member> {
        let mut known = HashSet::new();
        let members = self.0.iter().flatten();
        members
            .filter(|member| known.insert(&member.address))
            .cloned()
            .collect()
    }
}

/// Resolves every name; by [`UpstreamId`].
///
/// # Errors
/// The first name without an answer.
pub fn resolve(config: &Config) -> Result<Vec<Answers>, ResolveError> {
    let resolver = Resolver::new(&config.dns);
    let mut resolved = Vec::with_capacity(config.upstreams.len());
    let mut count = 0;
    for upstream in &config.upstreams {
        let mut found = Vec::with_capacity(upstream.servers.len());
        for (entry, server) in upstream.servers.iter().enumerate() {
            let members = resolver.look_up(entry, server);
            found.push(members.map_err(|source| ResolveError::Failed {
                upstream: upstream.name.clone(),
                name: server.address.to_string(),
                source,
                asked: resolver.asked(),
            })?);
        }
        let answers = Answers(found);
        let members = answers.members().len();
        count += members;
        if members > MEMBERS_MAX || count > SERVERS_MAX {
            let upstream = upstream.name.clone();
            return Err(ResolveError::TooMany { upstream });
        }
        resolved.push(answers);
    }
    Ok(resolved)
}

/// Nothing counted yet, by [`UpstreamId`]; `None` where there are no names.
pub(super) fn lookups(config: &Config) -> Vec<Option<Lookups>> {
    let mut lookups = vec![None; config.upstreams.len()];
    for (id, _) in named(config) {
        lookups[usize::from(id.0)] = Some(Lookups::default());
    }
    lookups
}

/// Descriptors that lookups need at most.
pub(super) fn fds(config: &Config) -> u64 {
    /// A socket, or what getaddrinfo(3) opens.
    const PER_THREAD: u64 = 4;
    let threads = named(config).count().min(refresh::THREADS_MAX);
    threads as u64 * PER_THREAD
}

/// The upstreams whose servers have names.
fn named(config: &Config) -> impl Iterator<Item = (UpstreamId, &Upstream)> {
    let upstreams = config.upstreams.iter().enumerate();
    let has_name = |upstream: &Upstream| {
        let mut servers = upstream.servers.iter();
        servers.any(|server| !matches!(server.address, ServerAddress::Known(_)))
    };
    upstreams
        .filter(move |(_, upstream)| has_name(upstream))
        .map(|(index, upstream)| (UpstreamId(index as u16), upstream))
}

/// Looks names up, one after the other; blocks.
pub(super) struct Resolver {
    /// For services and their hosts; for other hosts too, if name servers are configured.
    client: Client,
    uses_host: bool,
    family: Family,
}

impl Resolver {
    pub(super) fn new(dns: &Dns) -> Self {
        Self {
            client: Client::new(dns.nameservers.clone(), dns.timeout),
            uses_host: dns.nameservers.is_empty(),
            family: dns.family,
        }
    }

    fn asked(&self) -> &'static str {
        if self.uses_host {
            "/etc/resolv.conf"
        } else {
            "dns.nameservers"
        }
    }

    /// Where a written server is, `entry` being its place. In an order that depends on the answer's content
    /// alone, so that every host and every look has the same.
    fn look_up(&self, entry: usize, server: &Server) -> Result<Vec<Member>, LookupError> {
        let member = |address| Member {
            address,
            entry,
            weight: server.weight,
            backup: server.backup,
        };
        match &server.address {
            ServerAddress::Known(address) => Ok(vec![member(address.clone())]),
            ServerAddress::Named { host, port } => {
                let mut addresses: Vec<SocketAddr> = if self.uses_host {
                    (host.as_str(), *port).to_socket_addrs()?.collect()
                } else {
                    let ips = self.ips(host, self.client.deadline())?.into_iter();
                    ips.map(|ip| SocketAddr::new(ip, *port)).collect()
                };
                addresses.retain(|address| self.is_wanted(*address));
                addresses.sort_unstable();
                addresses.dedup();
                if addresses.is_empty() {
                    return Err(LookupError::Empty("address that a server can have"));
                }
                Ok(addresses
                    .into_iter()
                    .map(Address::Tcp)
                    .map(member)
                    .collect())
            }
            ServerAddress::Service { name } => self.service(entry, name, server.backup),
        }
    }

    /// Whether a server can have this address, and one of this family is wanted.
    fn is_wanted(&self, address: SocketAddr) -> bool {
        let is_of_family = match self.family {
            Family::Both => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        };
        is_of_family && can_be_server(address)
    }

    /// Of the name servers. That there is no such name is believed only of all families: some say so of the
    /// one that they have no record of (RFC 4074 section 4.2).
    fn ips(&self, host: &str, by: Instant) -> Result<Vec<IpAddr>, AskError> {
        let kinds: &[Kind] = match self.family {
            Family::Both => &[Kind::A, Kind::Aaaa],
            Family::V4 => &[Kind::A],
            Family::V6 => &[Kind::Aaaa],
        };
        let mut ips = Vec::new();
        let mut is_known = false;
        for kind in kinds {
            match self.client.ask(host, *kind, by) {
                Ok(Answer::Addresses(found)) => {
                    is_known = true;
                    ips.extend(found);
                }
                Ok(Answer::Services(_)) => unreachable!("addresses were asked for"),
                Err(AskError::Dns(DnsError::NoSuchName)) => {}
                Err(error) => return Err(error),
            }
        }
        if is_known {
            Ok(ips)
        } else {
            Err(DnsError::NoSuchName.into())
        }
    }

    /// A host of the service that decidedly is not there is left out; one of which nothing can be learnt
    /// fails the whole, or servers would go that are there. Its hosts are absolute names, wherefore the host's
    /// own resolver, which has search domains, is not asked.
    fn service(&self, entry: usize, name: &str, backup: bool) -> Result<Vec<Member>, LookupError> {
        let by = self.client.deadline();
        let Answer::Services(mut services) = self.client.ask(name, Kind::Srv, by)? else {
            unreachable!("services were asked for")
        };
        services.sort_unstable();
        services.dedup();
        let first = services.first().ok_or(LookupError::Empty("SRV record"))?;
        let heaviest = services.iter().map(|it| it.weight).max().unwrap_or(0);
        let mut hosts: HashMap<&str, Vec<IpAddr>> = HashMap::new();
        let mut members = Vec::new();
        for service in &services {
            if !hosts.contains_key(service.target.as_str()) {
                let ips = match self.ips(&service.target, by) {
                    Err(AskError::Dns(DnsError::NoSuchName)) => Vec::new(),
                    result => result?,
                };
                hosts.insert(&service.target, ips);
            }
            let mut addresses: Vec<SocketAddr> = hosts[service.target.as_str()]
                .iter()
                .map(|&ip| SocketAddr::new(ip, service.port))
                .filter(|address| self.is_wanted(*address))
                .collect();
            addresses.sort_unstable();
            members.extend(addresses.into_iter().map(|address| Member {
                address: Address::Tcp(address),
                entry,
                weight: share_of(service, heaviest),
                backup: backup || service.priority > first.priority,
            }));
            if members.len() > MEMBERS_MAX {
                return Err(LookupError::TooMany);
            }
        }
        if members.is_empty() {
            return Err(LookupError::Empty(
                "host with an address that a server can have",
            ));
        }
        Ok(members)
    }
}

/// RFC 2782 has weights up to 65,535, and gives those of weight 0 a very small chance.
fn share_of(service: &Service, heaviest: u16) -> u16 {
    let most = *WEIGHT.end() as u32;
    let weight = u32::from(service.weight);
    let scaled = if u32::from(heaviest) > most {
        weight * most / u32::from(heaviest)
    } else {
        weight
    };
    scaled.max(1) as u16
}

#[cfg(test)]
mod tests;
