//! One core's counters and histograms: plain integers with a single writer, the core's own thread.
//!
//! There is no atomic and no lock: a scrape asks the core for a copy through its mailbox, and the
//! core answers with a [`CoreMetrics`] clone between two passes of its loop. Names and exposition
//! live in [`exposition`] (Prometheus) and [`stats`] (JSON for a person).

pub mod exposition;
pub mod stats;

use std::collections::HashMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::outcome::{CloseReason, FastOpen, MoverKind};
use crate::units::{CoreId, ListenerId, ServerId, UpstreamId};

/// Significant decimal digits kept by every histogram: a value is off by at most 1 %.
const HISTOGRAM_DIGITS: u8 = 2;
/// Longest latency that a histogram tells apart, in microseconds (about 12 days).
const HISTOGRAM_MAX_US: u64 = 1 << 40;

/// What the ids are called and how they belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// By [`ListenerId`].
    pub listeners: Vec<ListenerName>,
    /// By [`UpstreamId`].
    pub upstreams: Vec<String>,
    /// By [`ServerId`]; `None` for an id that no server has.
    pub servers: Vec<Option<ServerName>>,
}

/// A listener's label, and where its sessions go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerName {
    /// As in the configuration.
    pub name: String,
    /// Where its sessions may go.
    pub upstreams: Vec<UpstreamId>,
}

/// A server's label, and where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerName {
    /// Its address.
    pub address: String,
    /// The group that it is one of.
    pub upstream: UpstreamId,
}

/// What the whole process uses; read by the caller, since this module does no I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessMetrics {
    /// Since start, monotonic.
    pub uptime: Duration,
    /// Open file descriptors.
    pub open_fds: u64,
    /// The limit on them (RLIMIT_NOFILE, soft).
    pub max_fds: u64,
    /// Resident memory, in bytes.
    pub resident_memory_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// User and system CPU time.
    pub cpu: Duration,
    /// Connections of the network namespace that an accept queue had no room for.
    pub listen_overflows_total: u64,
    /// Access-log lines that the kernel took.
    pub access_log_lines_written_total: u64,
    /// Whether the access log's target takes nothing at present.
    pub access_log_stalled: bool,
}

/// Everything that one scrape shows.
#[derive(Clone, Copy, Debug)]
pub struct Scrape<'a> {
    /// What the ids are called.
    pub names: &'a Names,
    /// The last copy that each core gave.
    pub cores: &'a [CoreMetrics],
    /// By the index in `cores`: whether the core did not answer this time. Missing means it did.
    pub stale: &'a [bool],
    /// The process.
    pub process: ProcessMetrics,
    /// Of Corelay.
    pub version: &'a str,
    /// Name of each feature of io_uring that Corelay knows of, and whether it is in use.
    pub ring_features: &'a [(&'a str, bool)],
    /// How the servers stand, by [`ServerId`].
    pub standings: &'a [ServerStanding],
    /// How the names of servers were looked up, by [`UpstreamId`]; `None` where there are no names.
    pub lookups: &'a [Option<Lookups>],
    /// By [`UpstreamId`]: failures that would have ejected a server, had not too many been ejected.
    pub ejections_denied_total: &'a [u64],
    /// By [`ListenerId`]: whether it listens.
    pub listening: &'a [bool],
    /// The thread that checks servers.
    pub checker: CheckerMetrics,
    /// The monotonic clock, for what happened how long ago.
    pub now_us: u64,
}

impl Scrape<'_> {
    /// Whether the core at this index of `cores` did not answer.
    pub fn is_stale(&self, index: usize) -> bool {
        self.stale.get(index).copied().unwrap_or(false)
    }
}

/// A latency histogram in microseconds.
#[derive(Clone, Debug)]
pub struct LatencyHistogram {
    inner: Histogram<u64>,
    sum_us: u64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        let inner = Histogram::new_with_bounds(1, HISTOGRAM_MAX_US, HISTOGRAM_DIGITS)
            .expect("the bounds are constants that hdrhistogram accepts");
        Self { inner, sum_us: 0 }
    }
}

impl LatencyHistogram {
    /// Records one duration; anything longer than the histogram's range counts as its end.
    pub fn record(&mut self, value: Duration) {
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.inner.saturating_record(us);
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// The recorded values.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.inner
    }

    /// The sum of the recorded values, in microseconds, not rounded to buckets.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// Adds another core's values.
    pub fn merge(&mut self, other: &Self) {
        self.inner
            .add(&other.inner)
            .expect("both have the same bounds");
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }
}

/// One core's numbers.
#[derive(Clone, Debug)]
pub struct CoreMetrics {
    /// Which core.
    pub core: CoreId,
    /// Indexed by [`ListenerId`].
    pub listeners: Vec<ListenerMetrics>,
    /// Indexed by [`UpstreamId`].
    pub upstreams: Vec<UpstreamMetrics>,
    /// Indexed by [`ServerId`].
    pub servers: Vec<ServerMetrics>,
    /// Sessions that ended.
    pub closed: HashMap<ClosedKey, u64>,
    /// Those of servers that are forgotten.
    pub closed_before: HashMap<CloseReason, u64>,
    /// The slab.
    pub buffers: BufferMetrics,
    /// The two movers.
    pub movers: MoversMetrics,
    /// The relay ring.
    pub ring: RingMetrics,
    /// The core's loop.
    pub pump: PumpMetrics,
    /// Access-log records dropped because the queue was full.
    pub access_log_dropped_total: u64,
}

/// What sessions are counted by when they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClosedKey {
    /// Where it was accepted.
    pub listener: ListenerId,
    /// Where it was to go; `None` if it was refused before that was decided.
    pub upstream: Option<UpstreamId>,
    /// The server that took it, if one did.
    pub server: Option<ServerId>,
    /// Why it ended.
    pub reason: CloseReason,
}

/// Per listener.
#[derive(Clone, Debug, Default)]
pub struct ListenerMetrics {
    /// Connections accepted.
    pub accepted_total: u64,
    /// Of those, handed to another core.
    pub handoffs_total: u64,
    /// Sessions alive, dialling or relaying.
    pub active: u64,
    /// Bytes received from clients.
    pub received_bytes_total: u64,
    /// Bytes sent to clients.
    pub sent_bytes_total: u64,
    /// accept4 failures for want of fds or memory (EMFILE, ENFILE, ENOMEM, ENOBUFS).
    pub accept_exhausted_total: u64,
    /// accept4 failures of a connection that was gone already (ECONNABORTED and its like).
    pub accept_aborted_total: u64,
    /// Times that accepting paused because too few file descriptors were free.
    pub accept_paused_total: u64,
    /// PROXY headers, ClientHellos and HTTP requests that were refused, by what was wrong with them.
    pub opening_errors_total: HashMap<&'static str, u64>,
    /// Connections that passed `limits.per_source` uncounted, because its table was full.
    pub sources_uncounted_total: u64,
    /// Waits of a direction for its bandwidth: of uploads, and of downloads.
    pub bandwidth_pauses_total: [u64; 2],
    /// Accept to the first byte from the server.
    pub first_byte: LatencyHistogram,
    /// Accept to the end.
    pub duration: LatencyHistogram,
}

/// How a server stands, as control judges it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerStanding {
    /// Whether it gets new sessions.
    pub is_up: bool,
    /// It is none of its upstream's any more; what it still has are sessions.
    pub is_removed: bool,
    /// Its share of the sessions.
    pub weight: u16,
    /// Serves only while no other server can.
    pub is_backup: bool,
    /// The word for how it stands.
    pub status: &'static str,
    /// Why.
    pub reason: String,
    /// Since when, in microseconds of the monotonic clock; 0 is the start.
    pub since_us: u64,
    /// Its last check.
    pub last_check: Option<LastCheck>,
    /// Changes of its status.
    pub transitions_total: u64,
    /// Of those, the ones after which it got no new sessions.
    pub downs_total: u64,
    /// Checks by how they ended.
    pub checks_passed_total: u64,
    /// See [`ServerStanding::checks_passed_total`].
    pub checks_failed_total: u64,
    /// Checks that could not be made, for want of ports, descriptors or memory of ours.
    pub checks_not_made_total: u64,
}

impl Default for ServerStanding {
    /// As at the start: trusted.
    fn default() -> Self {
        Self {
            is_up: true,
            is_removed: false,
            weight: 0,
            is_backup: false,
            status: "up",
            reason: "started".to_owned(),
            since_us: 0,
            last_check: None,
            transitions_total: 0,
            downs_total: 0,
            checks_passed_total: 0,
            checks_failed_total: 0,
            checks_not_made_total: 0,
        }
    }
}

/// A check that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastCheck {
    /// The word for how it ended.
    pub outcome: &'static str,
    /// From the start of the connect to the verdict.
    pub latency: Duration,
    /// When, in microseconds of the monotonic clock.
    pub at_us: u64,
}

/// The thread that checks servers; zeros where none is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckerMetrics {
    /// Checks whose sockets are open.
    pub in_flight: u64,
    /// How long the check that is next, or began last, had been due.
    pub late: Duration,
}

/// Lookups of the names of one upstream's servers, after those of the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// With an answer.
    pub answered_total: u64,
    /// Without: the last answer stays.
    pub failed_total: u64,
}

impl Lookups {
    /// One more.
    pub fn count(&mut self, is_answered: bool) {
        if is_answered {
            self.answered_total += 1;
        } else {
            self.failed_total += 1;
        }
    }

    /// As many more.
    pub fn add(&mut self, more: Self) {
        self.answered_total += more.answered_total;
        self.failed_total += more.failed_total;
    }
}

/// Per upstream.
#[derive(Clone, Debug, Default)]
pub struct UpstreamMetrics {
    /// One successful connection attempt.
    pub connect: LatencyHistogram,
    /// From there to the first byte from the server.
    pub first_byte: LatencyHistogram,
    /// Further servers tried after one had failed.
    pub retries_total: u64,
    /// Those not tried for want of budget.
    pub retries_denied_total: u64,
    /// Connections whose first bytes were to go with the SYN, by [`FastOpen`].
    pub fast_open_total: [u64; FastOpen::ALL.len()],
    /// Sessions that had to wait for a place on a server.
    pub queued_total: u64,
    /// Those that wait now.
    pub queued: u64,
}

/// Per server.
#[derive(Clone, Debug, Default)]
pub struct ServerMetrics {
    /// Connections established.
    pub connected_total: u64,
    /// Of those, alive.
    pub active: u64,
    /// Failed attempts, by [`crate::outcome::Cause`].
    pub connect_failed_total: HashMap<crate::outcome::Cause, u64>,
    /// Bytes sent to the server.
    pub sent_bytes_total: u64,
    /// Bytes received from the server.
    pub received_bytes_total: u64,
}

/// The slab and its two buffer groups.
#[derive(Clone, Copy, Debug, Default)]
pub struct BufferMetrics {
    /// Size of one buffer, in bytes.
    pub size_bytes: u64,
    /// Buffers of the slab.
    pub total: u64,
    /// Offered to the kernel.
    pub in_ring: u64,
    /// Holding bytes that are not sent yet.
    pub held: u64,
    /// Pieces that wait on the heap for a peer's room.
    pub set_aside: u64,
    /// How often as much was set aside as may be, and a buffer was kept.
    pub aside_refused_total: u64,
    /// Receives that found their group empty (ENOBUFS).
    pub exhausted_total: u64,
    /// Directions waiting for a buffer now.
    pub waiting: u64,
}

/// What moves bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MoversMetrics {
    /// Indexed by [`MoverKind`].
    pub kinds: [MoverMetrics; 2],
    /// Open pipes.
    pub pipes: u64,
    /// Those that hold bytes, waiting for the destination's room.
    pub pipes_held: u64,
    /// Low-water marks lowered because too few bytes came in time.
    pub low_water_guards_total: u64,
    /// Zero-copy sends are asked for and not switched off.
    pub zero_copy_is_on: bool,
    /// Zero-copy sends that the kernel did not copy.
    pub zero_copy_sends_total: u64,
    /// And those that it copied after all.
    pub copied_sends_total: u64,
}

impl MoversMetrics {
    /// The mover's numbers.
    pub fn of(&mut self, mover: MoverKind) -> &mut MoverMetrics {
        &mut self.kinds[mover as usize]
    }
}

/// Per mover.
#[derive(Clone, Copy, Debug, Default)]
pub struct MoverMetrics {
    /// Bytes delivered.
    pub bytes_total: u64,
    /// Directions that changed to it.
    pub switches_total: u64,
}

/// The relay ring.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingMetrics {
    /// `io_uring_enter` calls.
    pub enters_total: u64,
    /// Submission queue entries submitted.
    pub submitted_total: u64,
    /// Completions reaped.
    pub completed_total: u64,
    /// Passes in which completions did not fit the queue. Above 0 is a bug, or a test-only ring size.
    pub cq_overflow_total: u64,
    /// Receives may have several shots.
    pub is_multishot: bool,
    /// Operations in flight.
    pub in_flight: u64,
    /// Sends that moved bytes.
    pub sends_total: u64,
    /// Sends that had to wait for the peer.
    pub blocked_sends_total: u64,
}

/// The core's loop.
#[derive(Clone, Copy, Debug, Default)]
pub struct PumpMetrics {
    /// Turns given to monoio.
    pub turns_total: u64,
    /// Longest time between two passes of the relay ring while work was pending, in microseconds.
    pub longest_gap_us: u64,
    /// Timers that fired.
    pub timers_fired_total: u64,
    /// Looks for work before a sleep that found some, and that found none.
    pub busy_polls_total: [u64; 2],
}

impl CoreMetrics {
    /// All zero, for a configuration of this shape.
    pub fn new(core: CoreId, listeners: usize, upstreams: usize, servers: usize) -> Self {
        Self {
            core,
            listeners: vec![ListenerMetrics::default(); listeners],
            upstreams: vec![UpstreamMetrics::default(); upstreams],
            servers: vec![ServerMetrics::default(); servers],
            closed: HashMap::new(),
            closed_before: HashMap::new(),
            buffers: BufferMetrics::default(),
            movers: MoversMetrics::default(),
            ring: RingMetrics::default(),
            pump: PumpMetrics::default(),
            access_log_dropped_total: 0,
        }
    }

    /// The listener's numbers.
    pub fn listener(&mut self, id: ListenerId) -> &mut ListenerMetrics {
        &mut self.listeners[usize::from(id.0)]
    }

    /// The upstream's numbers.
    pub fn upstream(&mut self, id: UpstreamId) -> &mut UpstreamMetrics {
        &mut self.upstreams[usize::from(id.0)]
    }

    /// Makes room for a server that is new.
    pub fn know_server(&mut self, id: ServerId) {
        let wanted = usize::from(id.0) + 1;
        if self.servers.len() < wanted {
            self.servers.resize_with(wanted, ServerMetrics::default);
        }
    }

    /// No server has these ids any more. Their sessions are left to the sums over all servers: a series of another
    /// server, or of none, that grew by them would show ends that were long ago.
    pub fn forget_servers(&mut self, ids: &[ServerId]) {
        for id in ids {
            if let Some(server) = self.servers.get_mut(usize::from(id.0)) {
                *server = ServerMetrics::default();
            }
        }
        let of_them = |key: &ClosedKey, _: &mut u64| key.server.is_some_and(|it| ids.contains(&it));
        for (key, count) in self.closed.extract_if(of_them) {
            *self.closed_before.entry(key.reason).or_default() += count;
        }
    }

    /// The server's numbers.
    pub fn server(&mut self, id: ServerId) -> &mut ServerMetrics {
        &mut self.servers[usize::from(id.0)]
    }
}
