//! A core's thread: pin, slab, rings, listeners, loop. The composition root of the data plane.
//!
//! ```text
//!   accept ──> session ──> mode ──> dial ──> relay ──> CloseReason ──> metrics, access log
//! ```
//!
//! Control hands a [`CoreSpec`] over, talks to the core through its mailbox ([`Message`]) and hears
//! from it through one channel ([`Event`]). Nothing else is shared, but for the cells in which each
//! core publishes how many sessions it holds ([`budget::FdBudget`]).

mod accept;
pub mod budget;
pub mod gate;
mod handoff;
mod origins;
pub mod queue;
mod rings;
mod route;
pub mod servers;
mod session;
mod snapshot;
pub mod way;

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::core::busy_poll::BusyPoll;
use crate::core::mailbox::{Receiver, Sender};
use crate::core::pump::{Pump, PumpStats};
use crate::core::{self, Signal};
use crate::log::{Producer, RateLimit, SessionId};
use crate::metrics::CoreMetrics;
use crate::mode::proxy::Required;
use crate::mode::route::Routes;
use crate::outcome::Cause;
use crate::relay::{Relay, RelayOptions};
use crate::ring::{RelayRing, RingError, RingOptions};
use crate::sys::socket::Options;
use crate::sys::{affinity, clock};
use crate::units::{CoreId, ListenerId, ServerId, UpstreamId};
use budget::FdBudget;
use gate::{Door, Gate, Pass};
use handoff::Adoption;
use queue::{Queue, SharedQueue};
use rings::Rings;
use servers::{Group, Pool, UpstreamSettings};
use session::{Arrival, SessionWatcher};
use way::{Target, Way};

/// Stack of a core thread. The loop does not recurse.
const STACK_BYTES: usize = 512 * 1024;

/// What all cores serve; never changes while they run.
#[derive(Debug)]
pub struct Service {
    /// Indexed by [`ListenerId`].
    pub listeners: Vec<ServiceListener>,
    /// Indexed by [`UpstreamId`].
    pub upstreams: Vec<UpstreamSettings>,
    /// Options of upstream sockets; listeners carry theirs already.
    pub socket_options: Options,
    /// Deadlines of relayed sessions.
    pub relay: RelayOptions,
    /// The first part of every session's id.
    pub start_nonce: u32,
    /// How long a core looks for work before it sleeps; zero is not at all.
    pub busy_poll: Duration,
    /// For one connection attempt.
    pub connect_timeout: Duration,
}

/// A listener as the cores see it.
#[derive(Debug)]
pub struct ServiceListener {
    /// Where its sessions go.
    pub target: Target,
    /// Length of the accept queue.
    pub backlog: u32,
    /// Dial only after the client's first byte.
    pub defer_connect: Option<Duration>,
    /// Who may come in; `None` is everybody.
    pub gate: Option<Arc<Gate>>,
    /// A unix socket: it knows no SYN and no SO_REUSEPORT.
    pub is_unix: bool,
    /// A PROXY header comes first.
    pub proxy_protocol: Option<Required>,
    /// Sessions go by the name that the client asks for.
    pub routes: Option<Routes>,
    /// Whether a core may hand its new connections to another one.
    pub may_hand_over: bool,
}

/// Everything that a core thread starts with.
pub struct CoreSpec {
    /// Its index.
    pub id: CoreId,
    /// The CPU it is pinned to.
    pub cpu: usize,
    /// What it serves.
    pub service: Arc<Service>,
    /// Bound sockets, not listening yet, one per listener.
    pub sockets: Vec<(ListenerId, OwnedFd)>,
    /// The relay ring and its slab.
    pub ring: RingOptions,
    /// How many sessions the process can hold.
    pub budget: Arc<FdBudget>,
    /// The servers to begin with, indexed by [`UpstreamId`].
    pub pools: Vec<Arc<Pool>>,
    /// Who waits for them, indexed by [`UpstreamId`].
    pub queues: Vec<Arc<SharedQueue>>,
    /// Messages from control and from other cores.
    pub mailbox: Receiver<Message>,
    /// The mailboxes of all cores, by [`CoreId`].
    pub cores: Arc<[Sender<Message>]>,
    /// Events to control.
    pub events: Events,
    /// Where finished sessions are logged; `None` logs none.
    pub access_log: Option<Producer>,
}

/// To a core, from control unless it says otherwise.
pub enum Message {
    /// An upstream has other servers from now on.
    Pool(UpstreamId, Arc<Pool>),
    /// No server has these ids any more: others will, with counts of their own.
    Forget(Vec<ServerId>),
    /// Reset the sessions that this server has.
    EndSessions(ServerId),
    /// From a core: a place on a server of the upstream is free, and nobody waits for it there.
    PlaceFreed {
        /// Whose.
        upstream: UpstreamId,
        /// Which.
        server: ServerId,
        /// Where the place became free: the last core that it is offered to is the one before.
        origin: CoreId,
    },
    /// From a core: serve this client as if it had been accepted here.
    Adopt(Adoption),
    /// From a core: the session that was handed to it counts there now.
    Adopted,
    /// Begin to accept.
    Listen,
    /// Send a copy of the numbers.
    Snapshot(mpsc::SyncSender<Box<CoreMetrics>>),
    /// Store this number where the watchdog looks.
    Echo(u64, Arc<std::sync::atomic::AtomicU64>),
    /// Stop accepting without resetting anyone; sessions go on.
    Drain,
    /// Reset every session.
    Abort,
}

/// From a core to control.
#[derive(Debug)]
pub enum Event {
    /// Rings and slab are set up.
    Started(CoreId),
    /// They could not be.
    Failed(CoreId, StartError),
    /// Every listener accepts.
    Listening(CoreId),
    /// Nothing is accepted any more and no session is left.
    Drained(CoreId),
    /// There is a session again, from another core, which is told only after this: [`Event::Drained`],
    /// if it came already, is void, and comes again.
    Resumed(CoreId),
    /// Accepting pauses for want of descriptors or memory; at most once a second per core.
    Exhausted {
        /// Which core.
        core: CoreId,
        /// Which listener noticed.
        listener: ListenerId,
        /// What the kernel said, or what would have been said next.
        error: io::Error,
        /// How often since the last report.
        times: u64,
    },
}

/// Where a core's events go.
pub struct Events(Box<dyn Fn(Event) + Send>);

impl Events {
    /// Calls `deliver` on the core's thread: it must not block.
    pub fn new(deliver: impl Fn(Event) + Send + 'static) -> Self {
        Self(Box::new(deliver))
    }

    fn send(&self, event: Event) {
        (self.0)(event);
    }
}

/// Why a core could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The relay ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// monoio's runtime.
    #[error("monoio's ring: {0}")]
    Runtime(#[source] io::Error),
    /// Its descriptor could not be told apart.
    #[error("monoio's ring cannot be found in /proc/thread-self/fd ({0} candidates)")]
    RingNotFound(usize),
    /// An eventfd.
    #[error("creating an eventfd: {0}")]
    Event(#[source] io::Error),
    /// listen(2).
    #[error("listening: {0}")]
    Listen(#[source] io::Error),
}

/// Starts a core's thread, named `core-N`.
pub fn spawn(spec: CoreSpec) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new()
        .name(format!("core-{}", spec.id))
        .stack_size(STACK_BYTES)
        .spawn(move || run(spec))
}

fn run(spec: CoreSpec) {
    if let Err(error) = affinity::pin_to(spec.cpu) {
        tracing::warn!(core = spec.id.0, cpu = spec.cpu, %error, "not pinned: the kernel may move this core's thread");
    }
    let id = spec.id;
    let Rings {
        mut runtime,
        monoio_ring,
        relay_ring,
    } = match Rings::build(spec.ring) {
        Ok(rings) => rings,
        Err(error) => return spec.events.send(Event::Failed(id, error)),
    };
    runtime.block_on(async {
        Core::start(spec, relay_ring, monoio_ring);
        pending::<()>().await;
    });
}

type Engine = Relay<RelayRing, SessionWatcher>;

/// One core's state, shared by its tasks.
struct Core {
    id: CoreId,
    service: Arc<Service>,
    engine: Rc<RefCell<Engine>>,
    ledger: Rc<Ledger>,
    /// Indexed by [`UpstreamId`].
    groups: Vec<Rc<Group>>,
    /// Indexed by [`ListenerId`]; `None` for those without a gate.
    doors: Vec<Option<Rc<Door>>>,
    /// Indexed by [`ListenerId`].
    ways: Vec<Way>,
    /// The mailboxes of all cores, by [`CoreId`].
    cores: Arc<[Sender<Message>]>,
    /// Stop accepting.
    draining: Signal,
    /// Stop everything.
    aborting: Signal,
    pump_stats: Rc<Cell<PumpStats>>,
}

/// What a core counts; reached by its tasks and, inside the engine, by the watcher.
struct Ledger {
    core: CoreId,
    metrics: RefCell<CoreMetrics>,
    access_log: RefCell<Option<Producer>>,
    budget: Arc<FdBudget>,
    /// Sessions alive, dialling or relaying, and those handed to cores that have not answered yet.
    active: Cell<u32>,
    next_sequence: Cell<u64>,
    /// Listeners that still accept, or drain their queue.
    accepting: Cell<usize>,
    draining: Signal,
    events: Events,
    exhausted: RateLimit,
}

impl Ledger {
    fn accepted(&self, listener: ListenerId) {
        self.metrics.borrow_mut().listener(listener).accepted_total += 1;
        self.count_one_more();
    }

    fn count_one_more(&self) {
        self.active.set(self.active.get() + 1);
        self.budget.publish(self.core, self.active.get());
    }

    fn session_ended(&self) {
        self.active.set(self.active.get() - 1);
        self.budget.publish(self.core, self.active.get());
        self.report_if_drained();
    }

    fn exhausted(&self, listener: ListenerId, error: io::Error) {
        if let Some(suppressed) = self.exhausted.allow() {
            let core = self.core;
            self.events.send(Event::Exhausted {
                core,
                listener,
                error,
                times: suppressed + 1,
            });
        }
    }

    fn listener_stopped(&self) {
        self.accepting.set(self.accepting.get() - 1);
        self.report_if_drained();
    }

    fn report_if_drained(&self) {
        if self.draining.is_set() && self.accepting.get() == 0 && self.active.get() == 0 {
            self.events.send(Event::Drained(self.core));
        }
    }
}

/// One per upstream.
fn groups(
    core: CoreId,
    service: &Service,
    pools: &[Arc<Pool>],
    queues: &[Arc<SharedQueue>],
    cores: &Arc<[Sender<Message>]>,
) -> Vec<Rc<Group>> {
    let parts = service.upstreams.iter().zip(pools).zip(queues);
    let mut groups = Vec::with_capacity(pools.len());
    for (index, ((settings, pool), queue)) in parts.enumerate() {
        let upstream = UpstreamId(index as u16);
        let queue = Queue::new(upstream, core, Arc::clone(queue), Arc::clone(cores));
        let group = Group::new(core, settings.clone(), Rc::new(queue), pool);
        groups.push(Rc::new(group));
    }
    groups
}

impl Core {
    fn start(spec: CoreSpec, ring: RelayRing, monoio_ring: i32) {
        let service = spec.service;
        let draining = Signal::default();
        let metrics = CoreMetrics::new(
            spec.id,
            service.listeners.len(),
            service.upstreams.len(),
            spec.pools.iter().map(|pool| pool.servers.len()).sum(),
        );
        let ledger = Rc::new(Ledger {
            core: spec.id,
            metrics: RefCell::new(metrics),
            access_log: RefCell::new(spec.access_log),
            budget: spec.budget,
            active: Cell::new(0),
            next_sequence: Cell::new(0),
            accepting: Cell::new(0),
            draining: draining.clone(),
            events: spec.events,
            exhausted: RateLimit::per_second(),
        });
        let watcher = SessionWatcher::new(Rc::clone(&ledger));
        let engine = Relay::new(ring, watcher, service.relay, clock::now_us());
        let engine = Rc::new(RefCell::new(engine));
        let busy_poll = BusyPoll::new(service.busy_poll);
        let pump = match Pump::new(Rc::clone(&engine), monoio_ring, busy_poll) {
            Ok(pump) => pump,
            Err(error) => {
                return ledger
                    .events
                    .send(Event::Failed(spec.id, StartError::Event(error)));
            }
        };
        let groups = groups(spec.id, &service, &spec.pools, &spec.queues, &spec.cores);
        let doors = service.listeners.iter().map(|it| it.gate.as_ref());
        let doors = doors.map(|gate| gate.map(Door::new)).collect();
        let targets = service.listeners.iter().map(|it| &it.target);
        let ways = targets.map(|target| Way::new(target, spec.id)).collect();
        let core = Rc::new(Self {
            doors,
            ways,
            id: spec.id,
            service,
            engine,
            ledger,
            groups,
            cores: spec.cores,
            draining,
            aborting: Signal::default(),
            pump_stats: pump.stats(),
        });
        pump.start();
        core.serve_mailbox(spec.mailbox, spec.sockets);
        core.ledger.events.send(Event::Started(core.id));
    }

    fn serve_mailbox(
        self: &Rc<Self>,
        mailbox: Receiver<Message>,
        sockets: Vec<(ListenerId, OwnedFd)>,
    ) {
        let core = Rc::clone(self);
        let mut sockets = Some(sockets);
        core::spawn(async move {
            let result = mailbox
                .run(|message| core.on_message(message, &mut sockets))
                .await;
            // A core that cannot be reached must not go on: it could never be stopped.
            panic!("the mailbox of core {} is unusable: {result:?}", core.id);
        });
    }

    fn on_message(
        self: &Rc<Self>,
        message: Message,
        sockets: &mut Option<Vec<(ListenerId, OwnedFd)>>,
    ) {
        match message {
            Message::Pool(upstream, pool) => self.replace_pool(upstream, &pool),
            Message::Forget(servers) => self.ledger.metrics.borrow_mut().forget_servers(&servers),
            Message::EndSessions(server) => {
                let has = |record: &session::Relayed| record.server() == server;
                self.engine
                    .borrow_mut()
                    .abort_where(clock::now_us(), Cause::ServerDown, has);
            }
            Message::PlaceFreed {
                upstream,
                server,
                origin,
            } => {
                let group = &self.groups[usize::from(upstream.0)];
                group.queue.offer(server, origin);
            }
            Message::Adopt(adoption) => self.adopt(adoption),
            Message::Adopted => self.ledger.left(),
            Message::Listen => {
                let event = match self.listen(sockets.take().unwrap_or_default()) {
                    Ok(()) => Event::Listening(self.id),
                    Err(error) => Event::Failed(self.id, StartError::Listen(error)),
                };
                self.ledger.events.send(event);
            }
            Message::Snapshot(reply) => {
                // The asker may have given up: its loss.
                let _ = reply.try_send(Box::new(self.snapshot()));
            }
            Message::Echo(number, place) => {
                place.store(number, std::sync::atomic::Ordering::Release);
            }
            Message::Drain => {
                self.draining.set();
                self.ledger.report_if_drained();
            }
            Message::Abort => {
                self.aborting.set();
                self.engine
                    .borrow_mut()
                    .abort_all(clock::now_us(), Cause::Drain);
            }
        }
    }

    fn replace_pool(&self, upstream: UpstreamId, pool: &Pool) {
        let mut metrics = self.ledger.metrics.borrow_mut();
        for (_, server) in &pool.servers {
            metrics.know_server(server.id);
        }
        drop(metrics);
        self.groups[usize::from(upstream.0)].replace(pool);
    }

    /// What a client takes at its listener's gate, or why it may not come in and whether it is to see a reset.
    fn pass_gate(&self, arrival: Arrival) -> Result<Option<Box<Pass>>, (Cause, bool)> {
        let Some(door) = &self.doors[usize::from(arrival.listener.0)] else {
            return Ok(None);
        };
        match door.enter(arrival.downstream, clock::now_us()) {
            Ok(admitted) => {
                let listener = arrival.listener;
                self.ledger.note_uncounted(listener, admitted.is_uncounted);
                Ok(admitted.pass)
            }
            Err(cause) => Err((cause, door.resets())),
        }
    }

    fn note_retry_denied(&self, upstream: UpstreamId) {
        let mut metrics = self.ledger.metrics.borrow_mut();
        metrics.upstream(upstream).retries_denied_total += 1;
    }

    fn session_id(&self, sequence: u64) -> SessionId {
        SessionId {
            nonce: self.service.start_nonce,
            core: self.id,
            sequence,
        }
    }

    fn note_queued(&self, upstream: UpstreamId) {
        let mut metrics = self.ledger.metrics.borrow_mut();
        metrics.upstream(upstream).queued_total += 1;
    }

    fn listen(self: &Rc<Self>, sockets: Vec<(ListenerId, OwnedFd)>) -> io::Result<()> {
        for (id, socket) in sockets {
            accept::start(Rc::clone(self), id, socket)?;
        }
        Ok(())
    }
}
