//! The servers of one upstream, and the ejections that they share.

use std::collections::BTreeMap;

use super::ejections::Ejections;
use super::server::{Initial, Server};
use super::{CheckResult, Observation, Options, State, Status, Transition};
use crate::units::ServerId;

/// The health of an upstream. Whoever holds it passes events in and sends what comes out on.
#[derive(Clone, Debug)]
pub struct UpstreamHealth {
    options: Options,
    servers: BTreeMap<ServerId, Server>,
    ejections: Ejections,
}

impl UpstreamHealth {
    /// At the start of the process: every server is trusted.
    pub fn new(servers: &[ServerId], options: Options, now_us: u64) -> Self {
        let servers: BTreeMap<_, _> = servers
            .iter()
            .map(|&id| (id, Server::new(id, Initial::Trusted, now_us)))
            .collect();
        let percent = options.passive.map_or(0, |p| p.max_ejected_percent);
        Self {
            options,
            ejections: Ejections::new(servers.len(), percent),
            servers,
        }
    }

    /// Takes a check's result in. One of a server that is not here any more is nothing.
    pub fn checked(&mut self, server: ServerId, result: &CheckResult) -> Option<Transition> {
        let active = self.options.active?;
        let server = self.servers.get_mut(&server)?;
        server.checked(result, active, &mut self.ejections)
    }

    /// Takes in what a session saw.
    pub fn observed(
        &mut self,
        server: ServerId,
        observation: Observation,
        now_us: u64,
    ) -> Option<Transition> {
        let passive = self.options.passive?;
        let available = match observation {
            Observation::Failed(_) => self.available(),
            // Does not eject: spares the count of all servers.
            Observation::Connected | Observation::Served => 0,
        };
        let server = self.servers.get_mut(&server)?;
        server.observed(
            observation,
            now_us,
            &passive,
            available,
            &mut self.ejections,
        )
    }

    /// Ends the ejections whose time is over.
    pub fn expire(&mut self, now_us: u64) -> Vec<Transition> {
        let ejections = &mut self.ejections;
        self.servers
            .values_mut()
            .filter_map(|server| server.expire(now_us, ejections))
            .collect()
    }

    /// When [`UpstreamHealth::expire`] has something to do next.
    pub fn next_expiry_us(&self) -> Option<u64> {
        self.servers
            .values()
            .filter_map(Server::ejected_until_us)
            .min()
    }

    /// Replaces the list of servers: those that stay keep their state. With fewer servers, the
    /// ejections that end soonest anyway are ended if there are too many.
    pub fn set_servers(&mut self, servers: &[ServerId], now_us: u64) -> Vec<Transition> {
        let ejections = &mut self.ejections;
        self.servers.retain(|id, server| {
            let stays = servers.contains(id);
            if !stays && server.ejected_until_us().is_some() {
                ejections.give_back();
            }
            stays
        });
        let initial = Server::initial(&self.options, self.available());
        for &id in servers {
            self.servers
                .entry(id)
                .or_insert_with(|| Server::new(id, initial, now_us));
        }
        let too_many = self.ejections.resize(self.servers.len());
        (0..too_many)
            .filter_map(|_| self.make_room(now_us))
            .collect()
    }

    fn make_room(&mut self, now_us: u64) -> Option<Transition> {
        let server = self
            .servers
            .values_mut()
            .filter(|server| server.ejected_until_us().is_some())
            .min_by_key(|server| server.ejected_until_us())?;
        server.make_room(now_us, &mut self.ejections)
    }

    /// Servers that take connections now.
    pub fn available(&self) -> usize {
        self.servers
            .values()
            .filter(|server| server.status().takes_connections())
            .count()
    }

    /// Whether a server's next check is worth making soon.
    pub fn wants_fast(&self, server: ServerId) -> bool {
        let status = self.servers.get(&server).map(Server::status);
        status.is_some_and(Status::is_between)
    }

    /// What is known of one server.
    pub fn state(&self, server: ServerId) -> Option<State> {
        self.servers.get(&server).map(Server::state)
    }

    /// What is known of all.
    pub fn states(&self) -> impl Iterator<Item = (ServerId, State)> + '_ {
        self.servers
            .iter()
            .map(|(&id, server)| (id, server.state()))
    }

    /// The share that is set aside.
    pub fn ejections(&self) -> &Ejections {
        &self.ejections
    }
}
