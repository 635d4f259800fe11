//! The servers of the upstreams: what all cores share of them, and one core's way to a place on one.
//!
//! ```text
//!   control ──Pool (immutable, replaced as a whole)──> mailbox ──> Group: balancer, queue
//!                                                                     │ next()
//!   session ──────────────────────────────────────────────────────────┘──> Seat ──drop──> place free
//! ```
//!
//! A server without a limit costs a connection two plain stores to a cell of its core's own. A limit
//! costs one locked instruction at each end, and holds exactly over all cores.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::origins::Origins;
use super::queue::Queue;
use crate::balance::health::{Observation, ServerFault};
use crate::balance::{Algorithm, Balancer, Candidate, Options};
use crate::mode::proxy::Told;
use crate::outcome::{Cause, CloseReason};
use crate::policy::limit::SharedLimit;
use crate::policy::retry_budget::{Grant, RetryBudget};
use crate::sys::clock;
use crate::sys::source::Source;
use crate::units::{Address, CoreId, ServerId, UpstreamId};

/// One core's connections to one server; written by that core alone.
#[derive(Default)]
#[repr(align(128))]
struct LoadCell(AtomicU32);

/// Where what sessions see of a server is told; called on the cores, must not block.
pub type Tell = Arc<dyn Fn(ServerId, Observation) + Send + Sync>;

/// What all cores share of one server, for as long as anyone holds a connection to it.
pub struct SharedServer {
    /// Which.
    pub id: ServerId,
    /// Whose.
    pub upstream: UpstreamId,
    /// Where.
    pub address: Address,
    /// Connections at a time, over all cores; exact.
    limit: Option<SharedLimit>,
    /// Where failures of the server are told; `None`: nobody wants to know.
    judge: Option<Judge>,
    /// By core.
    loads: Box<[LoadCell]>,
    /// Sessions that begin on it now end at once: it is down, and those it had were ended.
    ends_sessions: AtomicBool,
}

impl SharedServer {
    /// A server that nobody is connected to.
    pub fn new(
        id: ServerId,
        upstream: UpstreamId,
        address: Address,
        max_connections: Option<u32>,
        tell: Option<Tell>,
        cores: usize,
    ) -> Self {
        Self {
            id,
            upstream,
            address,
            limit: max_connections.map(SharedLimit::new),
            judge: tell.map(|tell| Judge {
                tell,
                has_failed: Default::default(),
            }),
            loads: (0..cores).map(|_| LoadCell::default()).collect(),
            ends_sessions: AtomicBool::new(false),
        }
    }

    /// Says whether sessions that begin from now on end at once, such as one that was being dialled when the
    /// others were ended.
    pub fn end_sessions(&self, ends: bool) {
        self.ends_sessions.store(ends, Ordering::Release);
    }

    #[cfg(test)]
    pub(crate) fn pretend_load(&self, connections: u32) {
        self.loads[0].0.store(connections, Ordering::Relaxed);
    }

    /// Connections over all cores; those that begin or end at this moment may be missing.
    pub fn load(&self) -> u32 {
        let cells = self.loads.iter();
        cells.map(|cell| cell.0.load(Ordering::Relaxed)).sum()
    }
}

/// Tells what sessions see of a server. A success is told only after a failure, so that a server without
/// any costs a look at a flag that nobody writes.
struct Judge {
    tell: Tell,
    /// By [`ServerFault`]: failed since the last success.
    has_failed: [AtomicBool; 2],
}

impl Judge {
    fn failed(&self, server: ServerId, fault: ServerFault) {
        // Told first: who sees the flag tells of a success behind it.
        (self.tell)(server, Observation::Failed(fault));
        self.has_failed[fault as usize].store(true, Ordering::Release);
    }

    fn succeeded(&self, server: ServerId, fault: ServerFault, observation: Observation) {
        let flag = &self.has_failed[fault as usize];
        if flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::Acquire) {
            (self.tell)(server, observation);
        }
    }
}

/// An upstream's servers as of now, in the order of the configuration.
pub struct Pool {
    /// What the balancer goes by, and the server itself.
    pub servers: Vec<(Candidate, Arc<SharedServer>)>,
}

impl Pool {
    /// Its servers.
    pub fn ids(&self) -> impl Iterator<Item = ServerId> + '_ {
        self.servers.iter().map(|(_, server)| server.id)
    }

    fn candidates(&self) -> Vec<Candidate> {
        let servers = self.servers.iter();
        servers.map(|(candidate, _)| candidate.clone()).collect()
    }
}

/// What does not change of an upstream.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// How a server is chosen.
    pub algorithm: Algorithm,
    /// A hash is of the name that the client asks for, if it does, and not of its address.
    pub hashes_name: bool,
    /// Where random draws begin; each core goes on from it in its own way.
    pub seed: u64,
    /// There are too many cores to add up the connections of every server.
    pub sample: bool,
    /// Further servers after the first.
    pub retries: u16,
    /// How many sessions of a core may try one; `None` is all.
    pub retry_grant: Option<Grant>,
    /// Sessions that may wait for a place, over all cores.
    pub queue_max: u32,
    /// How long each may.
    pub queue_timeout: Duration,
    /// What becomes of a session for which there is no server.
    pub without_server: WithoutServer,
    /// Where such sessions go first.
    pub fallback: Option<UpstreamId>,
    /// The PROXY header that servers get.
    pub told: Option<Told>,
    /// Options of the sockets towards its servers; `None` is a plain socket.
    pub source: Option<Arc<Source>>,
}

/// What becomes of a session for which there is no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutServer {
    /// RST.
    Reset,
    /// FIN.
    Close,
    /// It waits in the queue for one.
    Hold,
}

/// A server as one core sees it. Seats hold it by a plain count, which other cores never touch.
struct Here {
    server: Arc<SharedServer>,
    core: CoreId,
    queue: Rc<Queue>,
}

impl Here {
    fn try_take(&self) -> bool {
        if let Some(limit) = &self.server.limit
            && !limit.try_acquire()
        {
            return false;
        }
        self.count(1);
        true
    }

    /// This core alone writes the cell.
    fn count(&self, by: i32) {
        let cell = &self.server.loads[usize::from(self.core.0)].0;
        let count = cell.load(Ordering::Relaxed).wrapping_add_signed(by);
        cell.store(count, Ordering::Relaxed);
    }
}

/// A place on a server, from before the connection attempt until the session is over.
pub(super) struct Seat(Rc<Here>);

impl Seat {
    pub(super) fn server(&self) -> ServerId {
        self.0.server.id
    }
}

impl Seat {
    /// The attempt to connect came to nothing, for this reason.
    pub(super) fn attempt_failed(&self, cause: Cause) {
        let server = &self.0.server;
        if let (Some(judge), Some(fault)) = (&server.judge, ServerFault::of_attempt(cause)) {
            judge.failed(server.id, fault);
        }
    }

    /// Whether the session ends at once; see [`SharedServer::end_sessions`].
    pub(super) fn is_over(&self) -> bool {
        self.0.server.ends_sessions.load(Ordering::Acquire)
    }

    /// The server took the connection.
    pub(super) fn connected(&self) {
        let server = &self.0.server;
        if let Some(judge) = &server.judge {
            judge.succeeded(server.id, ServerFault::Connect, Observation::Connected);
        }
    }

    /// The session is over, after so many bytes of the server.
    pub(super) fn ended(&self, reason: CloseReason, upstream_bytes: u64) {
        let server = &self.0.server;
        let Some(judge) = &server.judge else { return };
        match ServerFault::of_session(reason, upstream_bytes) {
            Some(fault) => judge.failed(server.id, fault),
            None => judge.succeeded(server.id, ServerFault::EarlyReset, Observation::Served),
        }
    }
}

impl AsRef<Address> for Seat {
    fn as_ref(&self) -> &Address {
        &self.0.server.address
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.count(-1);
        if let Some(limit) = &self.0.server.limit {
            limit.release();
            self.0.queue.place_freed(self.server());
        }
    }
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSeat {
    /// No server is left to try.
    NoServer,
    /// Those that are left are full.
    Full,
}

/// One upstream on one core.
pub(super) struct Group {
    core: CoreId,
    pub(super) settings: UpstreamSettings,
    pub(super) queue: Rc<Queue>,
    pub(super) origins: Origins,
    retry_budget: Option<RefCell<RetryBudget>>,
    balancer: RefCell<Balancer>,
    /// Of the present pool.
    servers: RefCell<HashMap<ServerId, Rc<Here>>>,
}

impl Group {
    /// With the pool that the process starts with.
    pub(super) fn new(
        core: CoreId,
        settings: UpstreamSettings,
        queue: Rc<Queue>,
        pool: &Pool,
    ) -> Self {
        let options = Options {
            algorithm: settings.algorithm,
            offset: usize::from(core.0),
            seed: settings.seed,
            sample: settings.sample,
        };
        let balancer = Balancer::new(options, &pool.candidates());
        let budget = |grant| RetryBudget::new(grant, clock::now_us());
        let group = Self {
            core,
            retry_budget: settings.retry_grant.map(budget).map(RefCell::new),
            origins: Origins::new(settings.source.clone(), core),
            settings,
            queue,
            balancer: RefCell::new(balancer),
            servers: RefCell::default(),
        };
        group.index(pool);
        group
    }

    /// Goes on with other servers. Sessions keep their seats on those that are gone.
    pub(super) fn replace(&self, pool: &Pool) {
        self.balancer.borrow_mut().replace(&pool.candidates());
        self.index(pool);
        self.queue.call_all();
    }

    fn index(&self, pool: &Pool) {
        let mut servers = self.servers.borrow_mut();
        let known = std::mem::take(&mut *servers);
        for (_, server) in &pool.servers {
            let here = known.get(&server.id).cloned().unwrap_or_else(|| {
                Rc::new(Here {
                    server: Arc::clone(server),
                    core: self.core,
                    queue: Rc::clone(&self.queue),
                })
            });
            servers.insert(server.id, here);
        }
    }

    pub(super) fn upstream(&self) -> UpstreamId {
        self.queue.upstream()
    }

    /// A session has found its first server.
    pub(super) fn session_begins(&self, now_us: u64) {
        if let Some(budget) = &self.retry_budget {
            budget.borrow_mut().begin(now_us);
        }
    }

    /// Whether a session may try a further one; each grant is for one retry.
    pub(super) fn grants_retry(&self, now_us: u64) -> bool {
        let budget = self.retry_budget.as_ref();
        budget.is_none_or(|budget| budget.borrow_mut().try_retry(now_us))
    }

    /// A place on the server whose turn it is, those in `tried` left out.
    pub(super) fn seat(
        &self,
        now_us: u64,
        hash: u64,
        tried: &mut Vec<ServerId>,
    ) -> Result<Seat, NoSeat> {
        let servers = self.servers.borrow();
        let mut balancer = self.balancer.borrow_mut();
        let count = tried.len();
        let result = loop {
            let load = |id: ServerId| servers.get(&id).map_or(0, |here| here.server.load());
            let Some(id) = balancer.pick(now_us, hash, tried, load) else {
                let is_full = tried.len() > count;
                break Err(if is_full {
                    NoSeat::Full
                } else {
                    NoSeat::NoServer
                });
            };
            let here = &servers[&id];
            if here.try_take() {
                break Ok(Seat(Rc::clone(here)));
            }
            tried.push(id);
        };
        tried.truncate(count);
        result
    }
}
