//! Where one core's connections to an upstream come from: the addresses of `source` in turn, or the
//! client's own.
//!
//! Each core takes its own turns, so that nothing is shared. Ports are chosen at connect(2), per source
//! and destination, wherefore the cores do not get in each other's way.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::sys::source::{Origin, Source};
use crate::units::{Address, CoreId};

/// See the head of this file.
pub(super) struct Origins {
    source: Option<Arc<Source>>,
    /// How many were taken; the cores begin at different addresses.
    turn: Cell<usize>,
}

impl Origins {
    pub(super) fn new(source: Option<Arc<Source>>, core: CoreId) -> Self {
        Self {
            source,
            turn: Cell::new(usize::from(core.0)),
        }
    }

    /// Of the next connection to this server. A plain upstream costs the one look.
    pub(super) fn take(&self, server: &Address, client: Option<SocketAddr>) -> Option<Origin<'_>> {
        let source = self.source.as_deref()?;
        let Address::Tcp(server) = server else {
            return None;
        };
        let local = if source.transparent {
            client
        } else {
            self.next_of(source, server)
        };
        Some(Origin { source, local })
    }

    fn next_of(&self, source: &Source, server: &SocketAddr) -> Option<SocketAddr> {
        let addresses = source.addresses(server.is_ipv4());
        if addresses.is_empty() {
            return None;
        }
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        Some(SocketAddr::new(addresses[turn % addresses.len()], 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(origins: &Origins, server: &str, client: Option<SocketAddr>) -> Option<String> {
        let server: Address = server.parse().unwrap();
        let origin = origins.take(&server, client)?;
        Some(origin.local?.to_string())
    }

    #[test]
    fn addresses_are_taken_in_turn_and_each_core_begins_elsewhere() {
        let source = Source {
            v4: ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
                .map(|ip| ip.parse().unwrap())
                .into(),
            v6: vec!["fd00::1".parse().unwrap()],
            ..Source::default()
        };
        let origins = Origins::new(Some(Arc::new(source)), CoreId(1));
        let expected = [2, 3, 1, 2].map(|last| Some(format!("10.0.0.{last}:0")));
        assert_eq!(
            [(); 4].map(|()| taken(&origins, "10.9.0.1:80", None)),
            expected
        );
        assert_eq!(
            taken(&origins, "[fd00::9]:80", None).as_deref(),
            Some("[fd00::1]:0")
        );
        assert_eq!(taken(&origins, "unix:/run/app.sock", None), None);
    }

    #[test]
    fn a_transparent_one_is_the_clients_own() {
        let source = Source {
            transparent: true,
            ..Source::default()
        };
        let origins = Origins::new(Some(Arc::new(source)), CoreId(0));
        let client = "192.0.2.7:4321".parse().unwrap();
        assert_eq!(
            taken(&origins, "10.9.0.1:80", Some(client)).as_deref(),
            Some("192.0.2.7:4321")
        );
    }
}
