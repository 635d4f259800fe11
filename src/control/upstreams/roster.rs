//! Which id is which server.
//!
//! An id is a place in every core's tables, and a name in the metrics and the access log. A server that
//! comes back gets the one it had; another server gets it only when nobody can mean the old one any more.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::control::resolve::SERVERS_MAX;
use crate::units::{Address, ServerId, UpstreamId};
use crate::worker::servers::SharedServer;

/// How long a server that is gone keeps its id after its last session: its last lines may wait in the access
/// log's queue, and whoever looks at a dashboard wants to see what became of it.
const REMEMBERED_US: u64 = 10 * 60 * 1_000_000;
/// How often in that time it is looked whether it still has sessions.
const LOOKS: u64 = 10;

/// See the head of this file.
pub(in crate::control) struct Roster {
    remembered_us: u64,
    /// By [`ServerId`]; `None` is free.
    slots: Vec<Option<Slot>>,
    free: BTreeSet<ServerId>,
    ids: HashMap<Key, ServerId>,
    next_look_us: u64,
}

/// What makes two servers one. The limit is part of it, for it never changes.
type Key = (UpstreamId, Address, Option<u32>);

struct Slot {
    server: Arc<SharedServer>,
    max_connections: Option<u32>,
    /// Since when it is in no pool and has no session; checked now and then.
    gone_since_us: Option<u64>,
}

impl Roster {
    /// Without a server.
    pub(super) fn new() -> Self {
        Self {
            remembered_us: test_remembered_us().unwrap_or(REMEMBERED_US),
            slots: Vec::new(),
            free: BTreeSet::new(),
            ids: HashMap::new(),
            next_look_us: u64::MAX,
        }
    }

    /// The server of an upstream at this address, made if it is new; `None`: there are no ids left.
    pub(super) fn enroll(
        &mut self,
        upstream: UpstreamId,
        address: &Address,
        max_connections: Option<u32>,
        make: impl FnOnce(ServerId) -> SharedServer,
    ) -> Option<Arc<SharedServer>> {
        let key = (upstream, address.clone(), max_connections);
        if let Some(id) = self.ids.get(&key) {
            let slot = self.slots[usize::from(id.0)].as_mut();
            let slot = slot.expect("what has an id has a slot");
            slot.gone_since_us = None;
            return Some(Arc::clone(&slot.server));
        }
        let id = match self.free.pop_first() {
            Some(id) => id,
            None if self.slots.len() < SERVERS_MAX => {
                self.slots.push(None);
                ServerId((self.slots.len() - 1) as u16)
            }
            None => return None,
        };
        let server = Arc::new(make(id));
        self.slots[usize::from(id.0)] = Some(Slot {
            server: Arc::clone(&server),
            max_connections,
            gone_since_us: None,
        });
        self.ids.insert(key, id);
        Some(server)
    }

    /// The upstream of a server that is in its pool.
    pub(super) fn upstream_of(&self, id: ServerId) -> Option<UpstreamId> {
        let slot = self.slots.get(usize::from(id.0))?.as_ref()?;
        slot.gone_since_us.is_none().then_some(slot.server.upstream)
    }

    /// The server is in no pool any more.
    pub(super) fn strike(&mut self, id: ServerId, now_us: u64) {
        if let Some(slot) = &mut self.slots[usize::from(id.0)] {
            slot.gone_since_us = Some(now_us);
            self.next_look_us = self.next_look_us.min(now_us + self.look_every_us());
        }
    }

    /// Frees the ids that nobody means any more, and tells which. To be called at [`Roster::next_us`].
    pub(super) fn forget(&mut self, now_us: u64) -> Vec<ServerId> {
        let mut forgotten = Vec::new();
        if now_us < self.next_look_us {
            return forgotten;
        }
        self.next_look_us = u64::MAX;
        let look_again_us = now_us + self.look_every_us();
        for (index, place) in self.slots.iter_mut().enumerate() {
            let Some(slot) = place else { continue };
            let Some(since_us) = &mut slot.gone_since_us else {
                continue;
            };
            if slot.server.load() > 0 {
                *since_us = now_us;
            }
            if now_us < *since_us + self.remembered_us {
                self.next_look_us = look_again_us;
                continue;
            }
            let server = &slot.server;
            let key = (
                server.upstream,
                server.address.clone(),
                slot.max_connections,
            );
            self.ids.remove(&key);
            *place = None;
            let id = ServerId(index as u16);
            self.free.insert(id);
            forgotten.push(id);
        }
        forgotten
    }

    fn look_every_us(&self) -> u64 {
        self.remembered_us / LOOKS
    }

    /// When [`Roster::forget`] is to look next.
    pub(super) fn next_us(&self) -> Option<u64> {
        (self.next_look_us < u64::MAX).then_some(self.next_look_us)
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
    const LOOK_US: u64 = REMEMBERED_US / LOOKS;

    fn enroll(roster: &mut Roster, port: u16, limit: Option<u32>) -> Arc<SharedServer> {
        let address: Address = format!("192.0.2.1:{port}").parse().expect("an address");
        let make = |id| SharedServer::new(id, UPSTREAM, address.clone(), limit, None, 1);
        let server = roster.enroll(UPSTREAM, &address, limit, make);
        server.expect("there is room")
    }

    fn id(roster: &mut Roster, port: u16) -> u16 {
        enroll(roster, port, None).id.0
    }

    /// Looks whenever it is time, until then.
    fn forgotten_by(roster: &mut Roster, until_us: u64) -> Vec<ServerId> {
        let mut forgotten = Vec::new();
        while let Some(now_us) = roster.next_us().filter(|it| *it <= until_us) {
            forgotten.extend(roster.forget(now_us));
        }
        forgotten
    }

    #[test]
    fn who_comes_back_gets_its_id_and_who_is_new_another() {
        let mut roster = Roster::new();
        assert_eq!([1, 2].map(|port| id(&mut roster, port)), [0, 1]);
        roster.strike(ServerId(0), 5);
        assert_eq!(roster.upstream_of(ServerId(0)), None);
        assert_eq!(id(&mut roster, 3), 2);
        assert_eq!(id(&mut roster, 1), 0);
        assert_eq!(roster.upstream_of(ServerId(0)), Some(UPSTREAM));
        assert_eq!(forgotten_by(&mut roster, 2 * REMEMBERED_US), []);
        assert_eq!(roster.next_us(), None, "nobody is gone");
        assert_eq!(enroll(&mut roster, 1, Some(5)).id.0, 3, "another limit");
    }

    #[test]
    fn an_id_is_given_away_only_after_a_while() {
        let mut roster = Roster::new();
        for port in [1, 2] {
            id(&mut roster, port);
        }
        roster.strike(ServerId(0), 5);
        assert_eq!(forgotten_by(&mut roster, 4 + REMEMBERED_US), []);
        assert_eq!(forgotten_by(&mut roster, 5 + REMEMBERED_US), [ServerId(0)]);
        assert_eq!(roster.next_us(), None);
        assert_eq!(id(&mut roster, 3), 0);
        assert_eq!(id(&mut roster, 1), 2, "it is a stranger now");
    }

    #[test]
    fn the_while_begins_with_the_end_of_the_last_session() {
        let mut roster = Roster::new();
        let server = enroll(&mut roster, 1, None);
        server.pretend_load(1);
        roster.strike(server.id, 0);
        assert_eq!(forgotten_by(&mut roster, 5 * REMEMBERED_US), []);
        server.pretend_load(0);
        let end_us = 6 * REMEMBERED_US - LOOK_US;
        assert_eq!(forgotten_by(&mut roster, end_us), []);
        assert_eq!(forgotten_by(&mut roster, end_us + LOOK_US), [server.id]);
    }
}
