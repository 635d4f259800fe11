//! From the servers of the configuration to addresses: host names, and the SRV records of services.
//!
//! Cores never resolve: a slow name server must not stop traffic. Names are looked up at the start, where
//! one without an answer is an error, and by threads of their own from then on ([`refresh`]).

mod client;
pub(super) mod refresh;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use crate::config::Config;
use crate::config::limits::WEIGHT;
use crate::config::model::{Dns, Family, Server, ServerAddress, Upstream};
use crate::metrics::Lookups;
use crate::units::{Address, UpstreamId};
use crate::wire::dns::{Answer, DnsError, Kind, Service};
use client::{AskError, Client};

/// Most servers of all upstreams, by address: as many as there are ids.
pub const SERVERS_MAX: usize = 1 << 16;

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
        "the names of upstream {upstream} have too many addresses ({SERVERS_MAX} servers in all); nothing was started; list fewer"
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
    /// There is an answer, and nothing in it.
    #[error("it has no {0}")]
    Empty(&'static str),
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

/// What a written server leads to, the entry aside.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    address: Address,
    weight: u16,
    backup: bool,
}

/// What the servers of one upstream led to, by their place in its list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers(Vec<Vec<Place>>);

impl Answers {
    /// One list. Two names of one machine are one server, the first: it must not get twice its share.
    pub(super) fn members(&self) -> Vec<Member> {
        let mut members: Vec<Member> = Vec::new();
        let mut known = std::collections::HashSet::new();
        for (entry, places) in self.0.iter().enumerate() {
            for place in places {
                if known.insert(&place.address) {
                    members.push(Member {
                        address: place.address.clone(),
                        entry,
                        weight: place.weight,
                        backup: place.backup,
                    });
                }
            }
        }
        members
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
        let mut places = Vec::with_capacity(upstream.servers.len());
        for server in &upstream.servers {
            let found = resolver.look_up(server);
            places.push(found.map_err(|source| ResolveError::Failed {
                upstream: upstream.name.clone(),
                name: server.address.to_string(),
                source,
                asked: resolver.asked(),
            })?);
        }
        let answers = Answers(places);
        count += answers.members().len();
        if count > SERVERS_MAX {
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
    /// For services; for hosts too, if name servers are configured.
    client: Client,
    uses_host: bool,
    family: Family,
}

impl Resolver {
    pub(super) fn new(dns: &Dns) -> Self {
        let uses_host = dns.nameservers.is_empty();
        let nameservers = if uses_host {
            client::of_this_host()
        } else {
            dns.nameservers.clone()
        };
        Self {
            client: Client::new(nameservers, dns.timeout),
            uses_host,
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

    /// Where a written server is. In an order that depends on the answer's content alone, so that
    /// every host and every look has the same.
    fn look_up(&self, server: &Server) -> Result<Vec<Place>, LookupError> {
        let place = |address| Place {
            address,
            weight: server.weight,
            backup: server.backup,
        };
        match &server.address {
            ServerAddress::Known(address) => Ok(vec![place(address.clone())]),
            ServerAddress::Named { host, port } => {
                let addresses = self.addresses(host, *port)?;
                if addresses.is_empty() {
                    return Err(LookupError::Empty("address"));
                }
                let addresses = addresses.into_iter().map(Address::Tcp);
                Ok(addresses.map(place).collect())
            }
            ServerAddress::Service { name } => self.service(name, server.backup),
        }
    }

    fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, LookupError> {
        let mut addresses = if self.uses_host {
            (host, port).to_socket_addrs()?.collect()
        } else {
            self.asked_for(host, port)?
        };
        addresses.retain(|address| match self.family {
            Family::Both => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        });
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    fn asked_for(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, LookupError> {
        let kinds: &[Kind] = match self.family {
            Family::Both => &[Kind::A, Kind::Aaaa],
            Family::V4 => &[Kind::A],
            Family::V6 => &[Kind::Aaaa],
        };
        let mut addresses = Vec::new();
        for kind in kinds {
            if let Answer::Addresses(found) = self.client.ask(host, *kind)? {
                addresses.extend(found.into_iter().map(|ip| SocketAddr::new(ip, port)));
            }
        }
        Ok(addresses)
    }

    /// A host of the service that decidedly is not there is left out; one of which nothing can be learnt
    /// fails the whole, or servers would go that are there.
    fn service(&self, name: &str, backup: bool) -> Result<Vec<Place>, LookupError> {
        let Answer::Services(mut services) = self.client.ask(name, Kind::Srv)? else {
            return Err(LookupError::Empty("SRV record"));
        };
        services.sort_unstable();
        services.dedup();
        let first = services.first().ok_or(LookupError::Empty("SRV record"))?;
        let (priority, heaviest) = (
            first.priority,
            services.iter().map(|it| it.weight).max().unwrap_or(0),
        );
        let mut places = Vec::new();
        for service in &services {
            let addresses = match self.addresses(&service.target, service.port) {
                Ok(addresses) => addresses,
                Err(LookupError::Dns(AskError::Dns(DnsError::NoSuchName))) => continue,
                Err(error) => return Err(error),
            };
            places.extend(addresses.into_iter().map(|address| Place {
                address: Address::Tcp(address),
                weight: share_of(service, heaviest),
                backup: backup || service.priority > priority,
            }));
        }
        if places.is_empty() {
            return Err(LookupError::Empty("host with an address"));
        }
        Ok(places)
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
