//! One session from accept to the relay, and what is written down at its end.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::accept;
use super::gate::Pass;
use super::route::{Client, Route};
use super::servers::Seat;
use super::{Core, Ledger};
use crate::core;
use crate::log::record::{Record, wall_clock};
use crate::metrics::ClosedKey;
use crate::mode::tcp::{self, Attempts, Connected, Plan};
use crate::mode::{self, proxy};
use crate::outcome::{Cause, CloseReason, MoverKind, Side, Stage};
use crate::relay::pair::End;
use crate::relay::{Handover, Summary, Watcher};
use crate::sys::clock;
use crate::units::{ListenerId, ServerId, UpstreamId};
use crate::wire::proxy::ProxyError;

/// Somebody at a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) listener: ListenerId,
    pub(super) downstream: Option<SocketAddr>,
    pub(super) accepted_us: u64,
}

/// What is known of a session before it relays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    sequence: u64,
    arrival: Arrival,
    upstream: Option<UpstreamId>,
    /// The proxy in front of us that told who the client is.
    via: Option<SocketAddr>,
    attempts: u16,
}

/// What the engine keeps for a relayed session.
pub(super) struct Relayed {
    opening: Opening,
    server: ServerId,
    connected_us: u64,
    /// Given back when the session is over, like the pass.
    seat: Seat,
    _pass: Option<Box<Pass>>,
}

/// Serves one accepted connection until its sockets belong to the engine.
pub(super) async fn run(
    core: Rc<Core>,
    client: OwnedFd,
    arrival: Arrival,
    pass: Option<Box<Pass>>,
) {
    let ledger = &core.ledger;
    let service = &core.service;
    let settings = &service.listeners[usize::from(arrival.listener.0)];
    let mut opening = ledger.open(arrival);
    core::take_in_hand(opening.sequence);
    panic_if_told_to(opening.sequence);
    let met = match meet(&core, client, &mut opening, pass).await {
        Ok(met) => met,
        Err(reason) => return ledger.close(clock::now_us(), opening, None, reason, |_| ()),
    };
    let id = core.session_id(opening.sequence);
    let mut servers = Route::new(&core, met.upstream, id, met.known);
    let plan = Plan {
        servers: &mut servers,
        options: &service.socket_options,
        connect_timeout: service.connect_timeout,
        defer_connect: settings.defer_connect,
        // Bytes that count against a limit go through the engine.
        may_take_early: settings.bandwidth.is_none(),
        stop: &core.aborting,
    };
    let mut attempts = Attempts::default();
    let result = tcp::serve(met.client, plan, &mut attempts).await;
    let now_us = clock::now_us();
    opening.attempts = attempts.count;
    let upstream = servers.upstream();
    opening.upstream = Some(upstream);
    ledger.note_attempts(upstream, &attempts, result.as_ref().ok());
    match result {
        Ok(Connected {
            downstream,
            upstream,
            server,
            seat,
        }) => {
            let is_over = seat.is_over();
            let record = Relayed {
                opening,
                server,
                connected_us: now_us,
                seat,
                _pass: met.pass,
            };
            let mut engine = core.engine.borrow_mut();
            let handover = Handover {
                sockets: [downstream, upstream],
                bandwidth: settings.bandwidth.as_ref(),
                early_bytes: attempts.early.map_or(0, |it| it.client_bytes as u64),
            };
            engine.start(now_us, handover, record);
            if core.aborting.is_set() {
                engine.abort_all(now_us, Cause::Drain);
            } else if is_over {
                let has = |record: &Relayed| record.server == server;
                engine.abort_where(now_us, Cause::ServerDown, has);
            }
        }
        // No server took it; those that failed are counted one by one.
        Err(reason) => ledger.close(now_us, opening, None, reason, |_| ()),
    }
}

/// A client of whom enough is known to serve it.
struct Met {
    client: OwnedFd,
    known: Client,
    pass: Option<Box<Pass>>,
    upstream: UpstreamId,
}

/// Finds out who the client is and where it goes, if the listener wants to know: from the PROXY header, and
/// from what the client says first.
async fn meet(
    core: &Core,
    mut client: OwnedFd,
    opening: &mut Opening,
    mut pass: Option<Box<Pass>>,
) -> Result<Met, CloseReason> {
    let listener = opening.arrival.listener;
    let settings = &core.service.listeners[usize::from(listener.0)];
    let mut known = Client::default();
    if let Some(required) = &settings.proxy_protocol {
        let peer = opening.arrival.downstream;
        let received = proxy::receive(client, peer, required, &core.aborting).await;
        let (socket, header) = received.map_err(|refused| {
            let error = refused.error.map(ProxyError::as_str);
            core.ledger.note_opening_error(listener, error);
            refused.reason
        })?;
        client = socket;
        if let Some(source) = header.source() {
            opening.arrival.downstream = Some(source);
            opening.via = peer;
        }
        known.header = Some(header);
        pass = match core.pass_gate(opening.arrival) {
            Ok(pass) => pass,
            Err((cause, resets)) => {
                accept::refuse(resets, client);
                return Err(CloseReason::new(Side::Local, Stage::Accept, cause));
            }
        };
    }
    known.address = opening.arrival.downstream;
    let mut upstream = None;
    if let Some(routes) = &settings.routes {
        let routed = mode::route::route(client, routes, &core.aborting).await;
        let routed = routed.map_err(|unrouted| {
            core.ledger.note_opening_error(listener, unrouted.error);
            unrouted.reason
        })?;
        client = routed.downstream;
        upstream = routed.upstream;
        known.name = routed.name;
        known.protocol = routed.protocol;
    }
    let way = &core.ways[usize::from(listener.0)];
    Ok(Met {
        client,
        pass,
        upstream: upstream.unwrap_or_else(|| way.next(known.address)),
        known,
    })
}

/// Lets a test see what a panic does. Debug builds only.
fn panic_if_told_to(sequence: u64) {
    if cfg!(debug_assertions)
        && std::env::var("CORELAY_TEST_PANIC_SESSION").is_ok_and(|n| n == sequence.to_string())
    {
        panic!("CORELAY_TEST_PANIC_SESSION asks for it");
    }
}

impl Ledger {
    pub(super) fn note_uncounted(&self, listener: ListenerId, is_uncounted: bool) {
        if is_uncounted {
            let mut metrics = self.metrics.borrow_mut();
            metrics.listener(listener).sources_uncounted_total += 1;
        }
    }

    /// The gate let somebody not in, who was counted when accepted: a connection that never becomes a session.
    pub(super) fn refused(&self, arrival: Arrival, cause: Cause) {
        let opening = self.open(arrival);
        let reason = CloseReason::new(Side::Local, Stage::Accept, cause);
        let record = self.record(arrival.accepted_us, opening, None, reason);
        self.write_down(record);
        self.session_ended();
    }

    fn open(&self, arrival: Arrival) -> Opening {
        let sequence = self.next_sequence.get();
        self.next_sequence.set(sequence + 1);
        Opening {
            sequence,
            arrival,
            upstream: None,
            via: None,
            attempts: 0,
        }
    }

    /// What is wrong with what a client sent before it was served.
    fn note_opening_error(&self, listener: ListenerId, error: Option<&'static str>) {
        if let Some(error) = error {
            let mut metrics = self.metrics.borrow_mut();
            let errors = &mut metrics.listener(listener).opening_errors_total;
            *errors.entry(error).or_default() += 1;
        }
    }

    fn note_attempts(
        &self,
        upstream: UpstreamId,
        attempts: &Attempts,
        connected: Option<&Connected<Seat>>,
    ) {
        let mut metrics = self.metrics.borrow_mut();
        let retries = u64::from(attempts.count.saturating_sub(1));
        metrics.upstream(upstream).retries_total += retries;
        for &(server, cause) in &attempts.failed {
            *metrics
                .server(server)
                .connect_failed_total
                .entry(cause)
                .or_default() += 1;
        }
        if let Some(connected) = connected {
            let server = metrics.server(connected.server);
            server.connected_total += 1;
            server.active += 1;
            let took = Duration::from_micros(attempts.connect_us);
            metrics.upstream(upstream).connect.record(took);
        }
        if let Some(early) = attempts.early {
            metrics.upstream(upstream).fast_open_total[early.outcome as usize] += 1;
        }
    }

    fn close(
        &self,
        now_us: u64,
        opening: Opening,
        server: Option<ServerId>,
        reason: CloseReason,
        fill: impl FnOnce(&mut Record),
    ) {
        let mut record = self.record(now_us, opening, server, reason);
        fill(&mut record);
        let mut metrics = self.metrics.borrow_mut();
        let listener = metrics.listener(opening.arrival.listener);
        listener.active -= 1;
        listener
            .duration
            .record(Duration::from_micros(record.duration_us));
        if let Some(us) = record.first_byte_us {
            listener.first_byte.record(Duration::from_micros(us));
        }
        drop(metrics);
        self.write_down(record);
        self.session_ended();
    }

    fn record(
        &self,
        now_us: u64,
        opening: Opening,
        server: Option<ServerId>,
        reason: CloseReason,
    ) -> Record {
        Record {
            sequence: opening.sequence,
            core: self.core,
            listener: opening.arrival.listener,
            upstream: opening.upstream,
            server,
            downstream: opening.arrival.downstream,
            via: opening.via,
            ended_at: wall_clock(),
            connect_us: None,
            first_byte_us: None,
            duration_us: now_us - opening.arrival.accepted_us,
            bytes_to_upstream: 0,
            bytes_to_downstream: 0,
            attempts: opening.attempts,
            close_reason: reason,
            spliced_bytes: None,
            mover_switches: 0,
        }
    }

    /// The one place where a connection's end is counted and logged.
    fn write_down(&self, record: Record) {
        let mut metrics = self.metrics.borrow_mut();
        let key = ClosedKey {
            listener: record.listener,
            upstream: record.upstream,
            server: record.server,
            reason: record.close_reason,
        };
        *metrics.closed.entry(key).or_default() += 1;
        if let Some(access_log) = self.access_log.borrow_mut().as_mut()
            && !access_log.push(record)
        {
            metrics.access_log_dropped_total += 1;
        }
    }
}

/// Hears of the engine's doings.
pub(super) struct SessionWatcher {
    ledger: Rc<Ledger>,
}

impl SessionWatcher {
    pub(super) fn new(ledger: Rc<Ledger>) -> Self {
        Self { ledger }
    }
}

impl Relayed {
    /// The server that has the session.
    pub(super) fn server(&self) -> ServerId {
        self.server
    }
}

impl Watcher for SessionWatcher {
    type Record = Relayed;

    fn delivered(&mut self, record: &Relayed, from: End, bytes: u64, mover: MoverKind) {
        let mut metrics = self.ledger.metrics.borrow_mut();
        metrics.movers.of(mover).bytes_total += bytes;
        match from {
            End::Downstream => {
                metrics
                    .listener(record.opening.arrival.listener)
                    .received_bytes_total += bytes;
                metrics.server(record.server).sent_bytes_total += bytes;
            }
            End::Upstream => {
                metrics
                    .listener(record.opening.arrival.listener)
                    .sent_bytes_total += bytes;
                metrics.server(record.server).received_bytes_total += bytes;
            }
        }
    }

    fn switched(&mut self, _: &Relayed, to: MoverKind) {
        self.ledger
            .metrics
            .borrow_mut()
            .movers
            .of(to)
            .switches_total += 1;
    }

    fn held_back(&mut self, record: &Relayed, from: End) {
        let mut metrics = self.ledger.metrics.borrow_mut();
        let listener = metrics.listener(record.opening.arrival.listener);
        listener.bandwidth_pauses_total[from as usize] += 1;
    }

    fn in_hand(&mut self, record: &Relayed) {
        core::take_in_hand(record.opening.sequence);
    }

    fn closed(&mut self, now_us: u64, record: Relayed, summary: Summary) {
        let Relayed {
            opening,
            server,
            connected_us,
            seat,
            _pass,
        } = record;
        seat.ended(summary.reason, summary.to_downstream_bytes);
        let accepted_us = opening.arrival.accepted_us;
        let mut metrics = self.ledger.metrics.borrow_mut();
        metrics.server(server).active -= 1;
        if let (Some(upstream), Some(at_us)) = (opening.upstream, summary.first_byte_us) {
            let took = Duration::from_micros(at_us.saturating_sub(connected_us));
            metrics.upstream(upstream).first_byte.record(took);
        }
        drop(metrics);
        self.ledger
            .close(now_us, opening, Some(server), summary.reason, |line| {
                line.connect_us = Some(connected_us - accepted_us);
                line.first_byte_us = summary.first_byte_us.map(|at| at - accepted_us);
                line.bytes_to_upstream = summary.to_upstream_bytes;
                line.bytes_to_downstream = summary.to_downstream_bytes;
                line.spliced_bytes = Some(summary.spliced_bytes);
                line.mover_switches = summary.mover_switches;
            });
    }
}
