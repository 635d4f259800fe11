//! Host names of servers, resolved once at start. Cores never resolve: a slow name server must not
//! stop traffic.

use std::io;
use std::net::ToSocketAddrs;

use crate::config::Config;
use crate::config::model::ServerAddress;
use crate::units::{Address, ServerId, UpstreamId};

/// A name that could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver failed or knows no such name.
    #[error(
        "upstream {upstream}: cannot resolve {host}: {source}; nothing was started; check the name and /etc/resolv.conf, or write an IP address"
    )]
    Failed {
        /// The upstream.
        upstream: String,
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The name has no address.
    #[error(
        "upstream {upstream}: {host} has no address; nothing was started; check its DNS records, or write an IP address"
    )]
    Empty {
        /// The upstream.
        upstream: String,
        /// The name.
        host: String,
    },
    /// The names have more addresses than there are server ids.
    #[error(
        "upstream {upstream}: its names resolve to too many addresses (65,536 servers in all); nothing was started; list fewer"
    )]
    TooMany {
        /// The upstream.
        upstream: String,
    },
}

/// One address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedServer {
    /// Whose.
    pub upstream: UpstreamId,
    /// Where.
    pub address: Address,
    /// Its place in the upstream's list of the configuration.
    pub entry: usize,
}

/// The servers of all upstreams.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Indexed by [`ServerId`].
    pub servers: Vec<ResolvedServer>,
    /// Indexed by [`UpstreamId`].
    pub upstreams: Vec<Vec<ServerId>>,
}

/// Resolves every name; each of its addresses becomes a server, in the resolver's order.
pub fn resolve(config: &Config) -> Result<Resolved, ResolveError> {
    let mut resolved = Resolved::default();
    for (index, upstream) in config.upstreams.iter().enumerate() {
        let id = UpstreamId(u16::try_from(index).expect("bounded by the configuration"));
        let mut addresses = Vec::new();
        for (entry, server) in upstream.servers.iter().enumerate() {
            match &server.address {
                ServerAddress::Known(address) => addresses.push((entry, address.clone())),
                ServerAddress::Named { host, port } => {
                    let found = look_up(&upstream.name, host, *port)?;
                    addresses.extend(found.into_iter().map(|address| (entry, address)));
                }
            }
        }
        let mut ids = Vec::new();
        for (entry, address) in addresses {
            // Two names of one machine are one server: it must not get twice its share.
            let is_new = ids
                .iter()
                .all(|&ServerId(known)| resolved.servers[usize::from(known)].address != address);
            if is_new {
                let id_of_server =
                    u16::try_from(resolved.servers.len()).map_err(|_| ResolveError::TooMany {
                        upstream: upstream.name.clone(),
                    })?;
                ids.push(ServerId(id_of_server));
                resolved.servers.push(ResolvedServer {
                    upstream: id,
                    address,
                    entry,
                });
            }
        }
        resolved.upstreams.push(ids);
    }
    Ok(resolved)
}

fn look_up(upstream: &str, host: &str, port: u16) -> Result<Vec<Address>, ResolveError> {
    let (upstream, name) = (upstream.to_owned(), host.to_owned());
    match (host, port).to_socket_addrs() {
        Ok(found) => {
            let found: Vec<_> = found.map(Address::Tcp).collect();
            if found.is_empty() {
                return Err(ResolveError::Empty {
                    upstream,
                    host: name,
                });
            }
            Ok(found)
        }
        Err(source) => Err(ResolveError::Failed {
            upstream,
            host: name,
            source,
        }),
    }
}
