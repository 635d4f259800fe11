//! The process around the cores: start, watch, stop. It may block and lock; no byte of a client
//! passes through it.
//!
//! ```text
//!   Starting ──every core listens──> Ready ──SIGTERM, SIGINT──> Draining ──no session left──> exit 0
//!      └──anything fails──> exit 2, 3 or 4, nothing bound          └──timeouts.drain, or a second
//!                                                                     signal──> reset the rest
//! ```

pub mod admin;
mod bandwidth;
mod fds;
pub mod gates;
pub mod health;
mod host;
pub mod listen;
mod listeners;
mod modes;
pub mod notify;
pub mod panic;
pub mod process_log;
pub mod resolve;
pub mod scrape;
pub mod source;
mod supervisor;
mod targets;
mod upstreams;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::config::model::{AccessLog, Listener, Mover};
use crate::core::mailbox::{self, Sender};
use crate::log::{self, LogWriter, Target};
use crate::metrics::{ListenerName, Names, ServerName};
use crate::relay::RelayOptions;
use crate::relay::bulk::{MoverChoice, Thresholds};
use crate::ring::zero_copy::ZERO_COPY_MIN_BYTES;
use crate::ring::{RingOptions, multishot};
use crate::sys::socket;
use crate::sys::socket::Keepalive;
use crate::units::{Address, CoreId, ListenerId};
use crate::worker::budget::FdBudget;
use crate::worker::gate::Gate;
use crate::worker::queue::SharedQueue;
use crate::worker::servers::{Pool, UpstreamSettings};
use crate::worker::{self, CoreSpec, Event, Message, Service, ServiceListener, StartError};
use admin::Admin;
use fds::FdPlan;
use host::{check_host, check_zero_copy, choose_cpus, core_failed, out_of_fds};
use listen::Bound;
use listeners::{Listeners, Parts};
use scrape::CoreStats;

pub use supervisor::Notice;

/// How long the cores may take to set up their rings, and then to listen.
const START_WITHIN: Duration = Duration::from_secs(10);
/// Why the process could not start or go on. Each prints as one line with cause, consequence and
/// remedy.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener's address.
    #[error(transparent)]
    Bind(#[from] listen::BindError),
    /// The admin listener's address.
    #[error("admin: cannot bind {address}: {source}; nothing was started; change `admin.bind`")]
    AdminBind {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A host name.
    #[error(transparent)]
    Resolve(#[from] resolve::ResolveError),
    /// A file of an access list.
    #[error("{0}; nothing was started")]
    ListFile(#[from] gates::ListFileError),
    /// The options of the sockets towards an upstream's servers.
    #[error(transparent)]
    Source(#[from] source::SourceError),
    /// The access log.
    #[error(transparent)]
    AccessLog(#[from] log::LogError),
    /// This host cannot do what the configuration asks for.
    #[error("{0}")]
    HostUnfit(String),
    /// A core could not start.
    #[error("core {core}: {error}; nothing was started; run `corelay doctor`")]
    Core {
        /// Which.
        core: CoreId,
        /// Why.
        error: StartError,
    },
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// What is running.
pub struct Running {
    /// Where each listener listens, by [`crate::units::ListenerId`].
    pub addresses: Vec<Address>,
    /// Where the admin listener listens.
    pub admin: Option<SocketAddr>,
    cores: Arc<[Sender<Message>]>,
    notices: mpsc::Receiver<Notice>,
    stats: Arc<CoreStats>,
    access_log: LogWriter,
    listeners: Listeners,
    _locks: Vec<OwnedFd>,
    drain: Duration,
    echoes: Vec<Arc<AtomicU64>>,
}

/// What is known before anything is opened.
struct Prepared {
    cpus: Vec<usize>,
    fds: FdPlan,
    ring_features: Vec<(&'static str, bool)>,
    gates: Vec<Option<Arc<Gate>>>,
    resolved: Vec<resolve::Answers>,
}

/// Looks whether this host can do what the configuration asks for, reads its files, and resolves its names.
fn prepare(config: &Config) -> Result<Prepared, RunError> {
    let cpus = choose_cpus(&config.workers)?;
    let fds = FdPlan::new(config, cpus.len())?;
    let ring_features = check_host()?;
    check_zero_copy(config, &ring_features)?;
    let gates = gates::gates(config)?;
    supervisor::ignore_reopen().map_err(no_handlers)?;
    let resolved = resolve::resolve(config)?;
    source::check(config, &resolved)?;
    Ok(Prepared {
        cpus,
        fds,
        ring_features,
        gates,
        resolved,
    })
}

/// Starts everything; returns when every core listens.
pub fn start(config: &Config) -> Result<Running, RunError> {
    let Prepared {
        cpus,
        fds,
        ring_features,
        gates,
        resolved,
    } = prepare(config)?;
    // Before anything is bound, and not before the names are known: a signal ends a start that waits for name
    // servers at once.
    let (notices_in, notices) = mpsc::channel();
    supervisor::forward_signals(notices_in.clone()).map_err(no_handlers)?;
    let options = socket_options(config);
    let Bound {
        addresses,
        sockets,
        locks,
        unix_paths,
    } = listen::bind_all(config, &options, &cpus)?;
    listen::warn_of_socket_options(config, &cpus);
    let admin = bind_admin(config)?;
    let (news, heard) = mpsc::channel();
    let making = upstreams::Making::new(cpus.len(), news.clone());
    let (pools, roster) = upstreams::first(config, &resolved, &making);
    let board = upstreams::Board::new(&pools, resolve::lookups(config));
    let names = names(config);
    let servers = board.lock().servers.clone();
    let start_nonce = log::id::start_nonce();
    let called = access_log_names(&names, servers);
    let (access_log, producers) = start_access_log(config, called, start_nonce, cpus.len())?;
    let service = Arc::new(Service {
        start_nonce,
        listeners: listeners(config, gates, cpus.len()),
        ..service(config, options, fds.pipes_per_core, cpus.len())
    });
    let budget = Arc::new(FdBudget::new(cpus.len()));
    let ring = ring_options(config, fds.limit, cpus.len());

    let cores = spawn_cores(Crew {
        cpus: cpus.clone(),
        sockets,
        producers,
        service,
        pools: pools.clone(),
        ring,
        budget: Arc::clone(&budget),
        notices: &notices_in,
    })?;
    let mut early = Vec::new();
    await_cores(&notices, cores.len(), &mut early, |event| {
        matches!(event, Event::Started(_))
    })?;

    let stats = Arc::new(CoreStats::new(
        Arc::clone(&cores),
        names,
        ring_features,
        access_log.monitor(),
        board.clone(),
    ));
    let admin = serve_admin(admin, &stats)?;
    let watch = upstreams::Watch {
        config,
        resolved: &resolved,
        pools,
        roster,
        making,
        news,
        cores: Arc::clone(&cores),
        heard,
        board,
        log_names: access_log.namer(),
        notices: notices_in.clone(),
    };
    watch.start().map_err(out_of_fds)?;
    fds.limit_sessions(&budget)?;
    begin_to_listen(&cores, &notices, &mut early)?;
    // What came meanwhile, in order, for `supervise`. The receiver is in our hands.
    for notice in early {
        let _ = notices_in.send(notice);
    }
    let listeners = Listeners::new(Parts {
        config,
        addresses: &addresses,
        options,
        cpus,
        cores: Arc::clone(&cores),
        show: show_listening(&stats),
        unix_paths,
    });
    stats.started();
    let echoes = cores.iter().map(|_| Arc::default()).collect();
    let running = Running {
        addresses,
        admin,
        cores,
        notices,
        stats,
        access_log,
        listeners,
        _locks: locks,
        drain: config.timeouts.drain,
        echoes,
    };
    running.announce(config);
    Ok(running)
}

/// One after the other: the kernel numbers a group's sockets in the order in which they listen, and
/// `accept.steer: cpu` goes by that number.
fn begin_to_listen(
    cores: &[Sender<Message>],
    notices: &mpsc::Receiver<Notice>,
    early: &mut Vec<Notice>,
) -> Result<(), RunError> {
    for core in cores {
        core.send(Message::Listen);
        await_cores(notices, 1, early, |event| {
            matches!(event, Event::Listening(_))
        })?;
    }
    Ok(())
}

fn show_listening(stats: &Arc<CoreStats>) -> listeners::Show {
    let stats = Arc::clone(stats);
    Box::new(move |listener, listens| stats.set_listening(listener, listens))
}

fn no_handlers(error: std::io::Error) -> RunError {
    RunError::Failed(format!("cannot install signal handlers: {error}"))
}

/// What the cores are started with. The vectors have one item per core.
struct Crew<'a> {
    cpus: Vec<usize>,
    sockets: Vec<Vec<(ListenerId, OwnedFd)>>,
    producers: Vec<log::Producer>,
    service: Arc<Service>,
    pools: Vec<Arc<Pool>>,
    ring: RingOptions,
    budget: Arc<FdBudget>,
    notices: &'a mpsc::Sender<Notice>,
}

/// Starts the cores' threads; returns a mailbox for each.
fn spawn_cores(crew: Crew<'_>) -> Result<Arc<[Sender<Message>]>, RunError> {
    let count = crew.cpus.len();
    let mailboxes = (0..count).map(|_| mailbox::mailbox().map_err(out_of_fds));
    let (senders, mailboxes): (Vec<_>, Vec<_>) = mailboxes
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .unzip();
    let cores: Arc<[Sender<Message>]> = senders.into();
    let queue = |settings: &UpstreamSettings| Arc::new(SharedQueue::new(count, settings.queue_max));
    let queues: Vec<_> = crew.service.upstreams.iter().map(queue).collect();
    let parts = crew.cpus.into_iter().zip(crew.sockets).zip(crew.producers);
    for (index, (((cpu, sockets), producer), mailbox)) in parts.zip(mailboxes).enumerate() {
        let spec = CoreSpec {
            id: CoreId(index as u16),
            cpu,
            service: Arc::clone(&crew.service),
            sockets,
            pools: crew.pools.clone(),
            queues: queues.clone(),
            ring: crew.ring,
            budget: Arc::clone(&crew.budget),
            mailbox,
            cores: Arc::clone(&cores),
            events: supervisor::core_events(crew.notices),
            access_log: Some(producer),
        };
        worker::spawn(spec).map_err(|error| {
            RunError::Failed(format!(
                "cannot start a core's thread: {error}; nothing was started; raise the limit on threads (TasksMax, ulimit -u)"
            ))
        })?;
    }
    Ok(cores)
}

impl Running {
    fn announce(&self, config: &Config) {
        for (listener, address) in config.listeners.iter().zip(&self.addresses) {
            tracing::info!(listener = listener.name, address = %address, "listening");
        }
        if let Some(address) = self.admin {
            tracing::info!(%address, "admin listening");
        }
        tracing::info!(
            cores = self.cores.len(),
            version = env!("CARGO_PKG_VERSION"),
            "ready"
        );
    }
}

fn socket_options(config: &Config) -> socket::Options {
    socket::Options {
        nodelay: config.tcp.nodelay,
        user_timeout: config.tcp.user_timeout,
    }
}

fn bind_admin(config: &Config) -> Result<Option<Admin>, RunError> {
    let Some(admin) = config.admin else {
        return Ok(None);
    };
    Admin::bind(admin.bind)
        .map(Some)
        .map_err(|source| RunError::AdminBind {
            address: admin.bind,
            source,
        })
}

fn serve_admin(
    admin: Option<Admin>,
    stats: &Arc<CoreStats>,
) -> Result<Option<SocketAddr>, RunError> {
    let Some(admin) = admin else { return Ok(None) };
    let address = admin
        .local_addr()
        .map_err(|e| RunError::Failed(format!("admin: {e}")))?;
    // The handle is not kept: the admin server lives as long as the process.
    admin
        .serve(Arc::clone(stats) as Arc<dyn admin::AdminSource>)
        .map_err(|e| RunError::Failed(format!("admin: cannot start its thread: {e}")))?;
    Ok(Some(address))
}

fn names(config: &Config) -> Names {
    let listeners = config.listeners.iter();
    Names {
        listeners: listeners
            .map(|l| ListenerName {
                name: l.name.clone(),
                upstreams: targets::upstreams_of(l),
            })
            .collect(),
        upstreams: config.upstreams.iter().map(|u| u.name.clone()).collect(),
        servers: Vec::new(),
    }
}

fn access_log_names(names: &Names, servers: Vec<Option<ServerName>>) -> log::Names {
    log::Names {
        listeners: names.listeners.iter().map(|l| l.name.clone()).collect(),
        upstreams: names.upstreams.clone(),
        servers: servers.into_iter().flatten().map(|it| it.address).collect(),
    }
}

fn start_access_log(
    config: &Config,
    names: log::Names,
    nonce: u32,
    cores: usize,
) -> Result<(LogWriter, Vec<log::Producer>), RunError> {
    let options = log::Options {
        cores,
        queue_records: log::QUEUE_RECORDS_DEFAULT,
        filter: match config.log.access {
            AccessLog::All => log::Filter::All,
            AccessLog::Errors => log::Filter::Errors,
            AccessLog::Off => log::Filter::Off,
        },
        target: config
            .log
            .access_file
            .clone()
            .map_or(Target::Stdout, Target::File),
        names,
        nonce,
    };
    let (writer, producers) = LogWriter::start(options)?;
    Ok((writer, producers))
}

fn listeners(config: &Config, gates: Vec<Option<Arc<Gate>>>, cores: usize) -> Vec<ServiceListener> {
    let listeners = config.listeners.iter().zip(gates);
    let listeners = listeners.zip(bandwidth::limits(config));
    let listener = |((listener, gate), bandwidth): ((&Listener, _), _)| ServiceListener {
        target: targets::target(config, &listener.target, seed()),
        backlog: listener.backlog,
        defer_connect: listener.defer_connect,
        gate,
        bandwidth,
        is_unix: matches!(listener.bind, Address::Unix(_)),
        proxy_protocol: listener.proxy_protocol.as_ref().map(modes::required),
        routes: modes::routes(listener),
        may_hand_over: cores > 1 && listener.may_hand_over(),
    };
    listeners.map(listener).collect()
}

fn service(config: &Config, options: socket::Options, pipes_max: usize, cores: usize) -> Service {
    let large = config.buffers.size_bytes / 2;
    Service {
        listeners: Vec::new(),
        start_nonce: 0,
        upstreams: config
            .upstreams
            .iter()
            .map(|upstream| {
                let source = upstream.source.as_ref().map(source::of);
                upstreams::settings(&upstream.policy, source, cores, seed())
            })
            .collect(),
        socket_options: options,
        relay: RelayOptions {
            idle_ms: millis(config.timeouts.idle),
            half_close_ms: millis(config.timeouts.half_close),
            max_age_ms: config.timeouts.max_age.map(millis),
            mover: match config.relay.mover {
                Mover::Auto => MoverChoice::Auto,
                Mover::Copy => MoverChoice::Copy,
                Mover::Splice => MoverChoice::Splice,
            },
            thresholds: Thresholds {
                // Small buffers have small receives.
                large_bytes: large.min(Thresholds::DEFAULT.large_bytes),
                ..Thresholds::DEFAULT
            },
            pipes_max,
            keepalive: config.tcp.keepalive.map(|it| Keepalive {
                idle: it.idle,
                interval: it.interval,
                probes: it.count,
            }),
            zero_copy_min_bytes: if config.relay.zero_copy_send {
                ZERO_COPY_MIN_BYTES
            } else {
                u32::MAX
            },
        },
        busy_poll: config.relay.busy_poll.unwrap_or_default(),
        connect_timeout: config.timeouts.connect,
    }
}

/// Different each time and in each process, so that two of them do not draw the same servers in step. The
/// standard library's own source of a random number.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A completion queue that holds every buffer's receive and a few operations of every session.
fn ring_options(config: &Config, fds_max: u64, cores: usize) -> RingOptions {
    const COMPLETIONS_PER_SESSION: u64 = 4;
    let sessions = fds_max / 2 / cores as u64;
    let wanted = u64::from(config.buffers.per_core) + COMPLETIONS_PER_SESSION * sessions;
    RingOptions {
        buffer_bytes: config.buffers.size_bytes,
        buffers: config.buffers.per_core,
        cq_entries: test_cq_entries().unwrap_or(u32::try_from(wanted).unwrap_or(u32::MAX / 2)),
        zero_copy_send: config.relay.zero_copy_send,
        busy_poll: config.relay.busy_poll.is_some(),
        multishot_receive: multishot_receive(),
    }
}

/// Whether a receive may have several shots. Without, a message costs one more entry in the ring.
fn multishot_receive() -> bool {
    let is_denied =
        cfg!(debug_assertions) && std::env::var_os("CORELAY_TEST_SINGLE_SHOT").is_some();
    // Without a ring there is nothing to warn of: no core will start, and says why.
    let is_trusted = !is_denied && multishot::tells_ends().unwrap_or(true);
    if !is_trusted {
        tracing::warn!(
            "this kernel may lose the end of a stream in a multishot receive (or it could not be tried over loopback); receives have a single shot each, at some CPU per message; a newer patch release of the kernel mends it"
        );
    }
    is_trusted
}

/// A completion queue far too small, to see that its overflow loses nothing. Debug builds only.
fn test_cq_entries() -> Option<u32> {
    if !cfg!(debug_assertions) {
        return None;
    }
    std::env::var("CORELAY_TEST_CQ_ENTRIES").ok()?.parse().ok()
}

fn await_cores(
    notices: &mpsc::Receiver<Notice>,
    cores: usize,
    early: &mut Vec<Notice>,
    is_awaited: impl Fn(&Event) -> bool,
) -> Result<(), RunError> {
    let deadline = Instant::now() + START_WITHIN;
    let mut missing = cores;
    while missing > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        match notices.recv_timeout(left) {
            Ok(Notice::Core(Event::Failed(core, error))) => {
                return Err(core_failed(core, error));
            }
            Ok(Notice::Core(event)) if is_awaited(&event) => missing -= 1,
            Ok(Notice::Core(_)) => {}
            Ok(notice) => early.push(notice),
            Err(_) => {
                return Err(RunError::Failed(format!(
                    "{missing} of {cores} cores did not start within {} s; nothing was started; is the machine out of CPU or memory?",
                    START_WITHIN.as_secs()
                )));
            }
        }
    }
    Ok(())
}
