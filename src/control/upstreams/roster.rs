//! Which id is which server.
//!
//! An id is a place in every core's tables, and a name in the metrics and the access log. A server that
//! comes back gets the one it had; another server gets it only when nobody can mean the old one any more.

use std::collections::HashMap;
use std::sync::Arc;

use crate::control::resolve::SERVERS_MAX;
use crate::units::{Address, ServerId, UpstreamId};
use crate::worker::servers::SharedServer;

/// How long a server that is gone keeps its id after its last session: its last lines may wait in the access
/// log's queue, and whoever looks at a dashboard wants to see what became of it.
const REMEMBERED_US: u64 = 10 * 60 * 1_000_000;

/// See the head of this file.
pub(in crate::control) struct Roster {
    remembered_us: u64,
    /// By [`ServerId`]; `None` is free.
    slots: Vec<Option<Slot>>,
    ids: HashMap<(UpstreamId, Address), ServerId>,
}

struct Slot {
    server: Arc<SharedServer>,
    /// Since when it is in no pool.
    gone_since_us: Option<u64>,
}

impl Roster {
    /// Without a server.
    pub(super) fn new() -> Self {
        Self {
            remembered_us: test_remembered_us().unwrap_or(REMEMBERED_US),
            slots: Vec::new(),
            ids: HashMap::new(),
        }
    }

    /// The server of an upstream at this address, made if it is new; `None`: there are no ids left.
    pub(super) fn enroll(
        &mut self,
        upstream: UpstreamId,
        address: &Address,
        make: impl FnOnce(ServerId) -> SharedServer,
    ) -> Option<Arc<SharedServer>> {
        let key = (upstream, address.clone());
        if let Some(id) = self.ids.get(&key) {
            let slot = self.slots[usize::from(id.0)].as_mut();
            let slot = slot.expect("what has an id has a slot");
            slot.gone_since_us = None;
            return Some(Arc::clone(&slot.server));
        }
        let free = self.slots.iter().position(Option::is_none);
        let index = free.unwrap_or(self.slots.len());
        if index >= SERVERS_MAX {
            return None;
        }
        let id = ServerId(index as u16);
        let server = Arc::new(make(id));
        let slot = Some(Slot {
            server: Arc::clone(&server),
            gone_since_us: None,
        });
        if index == self.slots.len() {
            self.slots.push(slot);
        } else {
            self.slots[index] = slot;
        }
        self.ids.insert(key, id);
        Some(server)
    }

    /// The server is in no pool any more.
    pub(super) fn strike(&mut self, id: ServerId, now_us: u64) {
        if let Some(slot) = &mut self.slots[usize::from(id.0)] {
            slot.gone_since_us = Some(now_us);
        }
    }

    /// Frees the ids that nobody means any more, and tells which.
    pub(super) fn forget(&mut self, now_us: u64) -> Vec<ServerId> {
        let mut forgotten = Vec::new();
        for (index, place) in self.slots.iter_mut().enumerate() {
            let Some(slot) = place else { continue };
            let Some(since_us) = slot.gone_since_us else {
                continue;
            };
            if now_us < since_us + self.remembered_us {
                continue;
            }
            if slot.server.load() > 0 {
                slot.gone_since_us = Some(now_us);
                continue;
            }
            let server = &slot.server;
            self.ids.remove(&(server.upstream, server.address.clone()));
            *place = None;
            forgotten.push(ServerId(index as u16));
        }
        forgotten
    }

    /// When [`Roster::forget`] has something to look at next.
    pub(super) fn next_us(&self) -> Option<u64> {
        let slots = self.slots.iter().flatten();
        let gone = slots.filter_map(|slot| slot.gone_since_us);
        gone.min().map(|since_us| since_us + self.remembered_us)
    }
}

/// Less patience, to see an id given away. Debug builds only.
fn test_remembered_us() -> Option<u64> {
    if !cfg!(debug_assertions) {
        return None;
    }
    std::env::var("CORELAY_TEST_REMEMBERED_US")
        .ok()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPSTREAM: UpstreamId = UpstreamId(3);

    fn enroll(roster: &mut Roster, port: u16) -> ServerId {
        let address: Address = format!("192.0.2.1:{port}").parse().expect("an address");
        let make = |id| SharedServer::new(id, UPSTREAM, address.clone(), None, None, 1);
        let server = roster.enroll(UPSTREAM, &address, make);
        server.expect("there is room").id
    }

    #[test]
    fn who_comes_back_gets_its_id_and_who_is_new_another() {
        let mut roster = Roster::new();
        assert_eq!([1, 2].map(|port| enroll(&mut roster, port).0), [0, 1]);
        roster.strike(ServerId(0), 5);
        assert_eq!(enroll(&mut roster, 3).0, 2);
        assert_eq!(enroll(&mut roster, 1).0, 0);
        assert_eq!(roster.next_us(), None, "nobody is gone");
    }

    #[test]
    fn an_id_is_given_away_only_after_a_while() {
        let mut roster = Roster::new();
        enroll(&mut roster, 1);
        enroll(&mut roster, 2);
        roster.strike(ServerId(0), 5);
        assert_eq!(roster.next_us(), Some(5 + REMEMBERED_US));
        assert_eq!(roster.forget(4 + REMEMBERED_US), []);
        assert_eq!(roster.forget(5 + REMEMBERED_US), [ServerId(0)]);
        assert_eq!(roster.next_us(), None);
        assert_eq!(enroll(&mut roster, 3).0, 0);
        assert_eq!(enroll(&mut roster, 1).0, 2, "it is a stranger now");
    }

    #[test]
    fn one_with_a_session_is_remembered() {
        let mut roster = Roster::new();
        let address: Address = "192.0.2.1:1".parse().expect("an address");
        let make = |id| SharedServer::new(id, UPSTREAM, address.clone(), None, None, 1);
        let server = roster.enroll(UPSTREAM, &address, make).expect("room");
        server.pretend_load(1);
        roster.strike(server.id, 0);
        assert_eq!(roster.forget(REMEMBERED_US), []);
        assert_eq!(roster.next_us(), Some(2 * REMEMBERED_US));
        server.pretend_load(0);
        assert_eq!(roster.forget(2 * REMEMBERED_US), [server.id]);
    }
}
