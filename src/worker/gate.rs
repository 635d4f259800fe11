//! The gate of a listener: who may come in, how many and how fast. Passed at accept, before anything
//! else is spent on a client.
//!
//! ```text
//!   access list ──> places of the listener ──> its source's limits ──> rate of the listener ──> Pass
//! ```
//!
//! The order keeps one client from spending what belongs to all: who is over the limit of its own
//! network takes no token of the listener's rate.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use crate::outcome::Cause;
use crate::policy::access::{Access, Action};
use crate::policy::bucket::SharedBucket;
use crate::policy::limit::SharedLimit;
use crate::policy::sources::{Refused, Sources, Ticket};
use crate::sys::clock;

/// What all cores share of one listener's gate. All of it is exact over them.
#[derive(Debug)]
pub struct Gate {
    /// By address.
    pub access: Option<Access>,
    /// Connections at a time.
    pub connections: Option<SharedLimit>,
    /// New connections.
    pub rate: Option<SharedBucket>,
    /// Both for each network of clients.
    pub sources: Option<Sources>,
    /// What is done with a client whose network does not fit the table.
    pub on_table_full: Action,
    /// RST for who is refused, else FIN.
    pub resets: bool,
}

/// The gate as one core sees it. Passes hold it by a plain count, which other cores never touch.
pub(super) struct Door(Arc<Gate>);

/// What a session took at the gate, given back when it is dropped.
pub(super) struct Pass {
    door: Rc<Door>,
    has_place: bool,
    ticket: Option<Ticket>,
}

/// Somebody who was let in.
pub(super) struct Admitted {
    /// What is to be kept until the session is over; `None` if nothing was taken.
    pub(super) pass: Option<Box<Pass>>,
    /// Its network did not fit the table.
    pub(super) is_uncounted: bool,
}

impl Door {
    pub(super) fn new(gate: &Arc<Gate>) -> Rc<Self> {
        Rc::new(Self(Arc::clone(gate)))
    }

    /// Whether a refused client gets RST.
    pub(super) fn resets(&self) -> bool {
        self.0.resets
    }

    /// Lets a client in, or says why not.
    pub(super) fn enter(
        self: &Rc<Self>,
        client: Option<SocketAddr>,
        now_us: u64,
    ) -> Result<Admitted, Cause> {
        let gate = &self.0;
        let ip = client.map(|client| client.ip());
        if let (Some(access), Some(ip)) = (&gate.access, ip)
            && access.decide(ip) == Action::Deny
        {
            return Err(Cause::Denied);
        }
        // Whatever is refused below, dropping the pass gives back what was taken until then.
        let mut pass = Pass {
            door: Rc::clone(self),
            has_place: false,
            ticket: None,
        };
        if let Some(connections) = &gate.connections {
            pass.has_place = connections.try_acquire();
            if !pass.has_place {
                return Err(Cause::ListenerFull);
            }
        }
        let mut is_uncounted = false;
        if let (Some(sources), Some(ip)) = (&gate.sources, ip) {
            pass.ticket = gate.admit(sources, ip, now_us)?;
            is_uncounted = pass.ticket.is_none();
        }
        if let Some(rate) = &gate.rate {
            rate.try_take(now_us, 1).map_err(|_| Cause::RateLimited)?;
        }
        let took = pass.has_place || pass.ticket.is_some();
        Ok(Admitted {
            pass: took.then(|| Box::new(pass)),
            is_uncounted,
        })
    }
}

impl Gate {
    fn admit(&self, sources: &Sources, ip: IpAddr, now_us: u64) -> Result<Option<Ticket>, Cause> {
        match sources.admit(ip, now_us) {
            Ok(ticket) => Ok(Some(ticket)),
            Err(Refused::Connections) => Err(Cause::SourceFull),
            Err(Refused::Rate) => Err(Cause::SourceRateLimited),
            Err(Refused::TableFull) => match self.on_table_full {
                Action::Allow => Ok(None),
                Action::Deny => Err(Cause::SourceTableFull),
            },
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let gate = &self.door.0;
        if let (true, Some(connections)) = (self.has_place, &gate.connections) {
            connections.release();
        }
        if let (Some(ticket), Some(sources)) = (self.ticket.take(), &gate.sources) {
            sources.release(ticket, clock::now_us());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

    use super::*;
    use crate::policy::bucket::Rate;
    use crate::policy::sources::Options;

    fn sources(connections: u32, on_table_full: Action) -> Gate {
        let sources = Sources::new(Options {
            v4_prefix_bits: 24,
            v6_prefix_bits: 64,
            connections_max: NonZeroU32::new(connections),
            rate: None,
            entries_max: NonZeroUsize::MIN,
            seed: 7,
        });
        Gate {
            access: None,
            connections: Some(SharedLimit::new(1000)),
            rate: None,
            sources: Some(sources),
            on_table_full,
            resets: true,
        }
    }

    fn client(text: &str) -> Option<SocketAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn a_refusal_gives_back_what_was_taken_before_it() {
        let mut gate = sources(1, Action::Allow);
        let one = NonZeroU64::MIN;
        gate.rate = Some(SharedBucket::new(Rate::new(one, one), 0));
        let gate = Arc::new(gate);
        let door = Door::new(&gate);
        let here = client("192.0.2.1:1");
        let first = door.enter(here, 0).expect("there is room");
        assert_eq!(door.enter(here, 0).err(), Some(Cause::SourceFull));
        let other = client("198.51.100.1:1");
        assert_eq!(door.enter(other, 0).err(), Some(Cause::RateLimited));
        let in_use = || gate.connections.as_ref().map(SharedLimit::in_use);
        let held = |of: Option<SocketAddr>| {
            let sources = gate.sources.as_ref().expect("set above");
            sources.connections(of.expect("set above").ip())
        };
        assert_eq!((in_use(), held(here), held(other)), (Some(1), 1, 0));
        drop(first);
        assert_eq!((in_use(), held(here)), (Some(0), 0));
        // The refusals took no token: one came back within the second.
        assert!(door.enter(here, 1_000_000).is_ok());
    }

    #[test]
    fn a_full_table_lets_pass_or_refuses_as_it_was_told() {
        for (on_full, expected) in [
            (Action::Allow, None),
            (Action::Deny, Some(Cause::SourceTableFull)),
        ] {
            let door = Door::new(&Arc::new(sources(1, on_full)));
            let mut passes = Vec::new();
            let mut refused = None;
            let mut uncounted = 0;
            for third in 0..=255_u8 {
                match door.enter(client(&format!("10.0.{third}.1:1")), 0) {
                    Ok(admitted) => {
                        uncounted += u32::from(admitted.is_uncounted);
                        passes.push(admitted.pass);
                    }
                    Err(cause) => refused = Some(cause),
                }
            }
            assert_eq!(refused, expected);
            assert_eq!(uncounted > 0, on_full == Action::Allow);
        }
    }
}
