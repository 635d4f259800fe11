//! What clients and servers see: sessions, listeners, upstreams, servers, latencies.

use std::collections::BTreeMap;

use super::merged;
use super::page::{Labels, Page};
use crate::metrics::Scrape;
use crate::outcome::{Cause, FastOpen};

/// In the order of [`crate::metrics::ListenerMetrics::bandwidth_pauses_total`], in the words of the
/// configuration.
const DIRECTIONS: [&str; 2] = ["upload", "download"];

pub(super) fn sessions(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    page.counter(
        "corelay_connections_closed_total",
        "Sessions that ended, by who is to blame, how far they had come, and why.",
    );
    for core in scrape.cores {
        // Sorted, so that two scrapes can be compared by eye.
        let closed: BTreeMap<_, _> = core.closed.iter().collect();
        for (key, count) in closed {
            let Some(server) = labels.server_of(key) else {
                continue;
            };
            let pairs = format!(
                "core=\"{}\",{},{},side=\"{}\",stage=\"{}\",cause=\"{}\"",
                core.core,
                labels.listeners[usize::from(key.listener.0)],
                server,
                key.reason.side.as_str(),
                key.reason.stage.as_str(),
                key.reason.cause.as_str()
            );
            page.sample(&pairs, count);
        }
    }
}

pub(super) fn listeners(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    let names = &labels.listeners;
    page.gauge(
        "corelay_listener_listening",
        "1 while the listener listens, 0 while it has stopped for want of servers.",
    );
    for (label, listening) in names.iter().zip(scrape.listening) {
        page.sample(label, u8::from(*listening));
    }
    page.counter(
        "corelay_connections_accepted_total",
        "Connections accepted.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.accepted_total);
    page.counter(
        "corelay_handoffs_total",
        "Connections accepted here and handed to a core with fewer sessions.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.handoffs_total);
    page.gauge(
        "corelay_connections_active",
        "Sessions alive, dialling or relaying.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.active);
    page.counter(
        "corelay_downstream_received_bytes_total",
        "Bytes received from clients.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.received_bytes_total);
    page.counter(
        "corelay_downstream_sent_bytes_total",
        "Bytes sent to clients.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.sent_bytes_total);
    page.counter(
        "corelay_accept_exhausted_total",
        "accept4 failures for want of file descriptors or memory.",
    );
    page.per_core_and(
        scrape,
        names,
        |c| &c.listeners,
        |l| l.accept_exhausted_total,
    );
    page.counter(
        "corelay_accept_aborted_total",
        "accept4 failures of a connection that was gone already.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.accept_aborted_total);
    page.counter(
        "corelay_accept_paused_total",
        "Times that accepting paused because too few file descriptors were free.",
    );
    page.per_core_and(scrape, names, |c| &c.listeners, |l| l.accept_paused_total);
    page.counter(
        "corelay_sources_uncounted_total",
        "Connections that limits.per_source let pass because its table was full.",
    );
    page.per_core_and(
        scrape,
        names,
        |c| &c.listeners,
        |l| l.sources_uncounted_total,
    );
    page.counter(
        "corelay_bandwidth_pauses_total",
        "Waits of one direction of a connection for limits.bandwidth.",
    );
    for core in scrape.cores {
        for (listener, name) in core.listeners.iter().zip(names) {
            for (direction, pauses) in DIRECTIONS.iter().zip(listener.bandwidth_pauses_total) {
                let pairs = format!("core=\"{}\",{name},direction=\"{direction}\"", core.core);
                page.sample(&pairs, pauses);
            }
        }
    }
}

pub(super) fn opening_errors(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    page.counter(
        "corelay_opening_errors_total",
        "PROXY headers, ClientHellos and HTTP requests that were refused, by what was wrong with them.",
    );
    for core in scrape.cores {
        for (listener, name) in core.listeners.iter().zip(&labels.listeners) {
            let errors: BTreeMap<_, _> = listener.opening_errors_total.iter().collect();
            for (error, count) in errors {
                let pairs = format!("core=\"{}\",{name},error=\"{error}\"", core.core);
                page.sample(&pairs, count);
            }
        }
    }
}

pub(super) fn upstreams(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    let names = &labels.upstreams;
    page.counter(
        "corelay_upstream_retries_total",
        "Further servers tried after one had failed.",
    );
    page.per_core_and(scrape, names, |c| &c.upstreams, |u| u.retries_total);
    page.counter(
        "corelay_upstream_retries_denied_total",
        "Further servers not tried for want of retry_budget.",
    );
    page.per_core_and(scrape, names, |c| &c.upstreams, |u| u.retries_denied_total);
    page.counter(
        "corelay_upstream_fast_open_total",
        "Connections established whose first bytes were to go with the SYN, by what became of them.",
    );
    for core in scrape.cores {
        for (upstream, label) in core.upstreams.iter().zip(names) {
            for (outcome, count) in FastOpen::ALL.iter().zip(upstream.fast_open_total) {
                let outcome = outcome.as_str();
                let pairs = format!("core=\"{}\",{label},result=\"{outcome}\"", core.core);
                page.sample(&pairs, count);
            }
        }
    }
    page.gauge(
        "corelay_upstream_queued",
        "Sessions that wait for a place on a server.",
    );
    page.per_core_and(scrape, names, |c| &c.upstreams, |u| u.queued);
    page.counter(
        "corelay_upstream_queued_total",
        "Sessions that had to wait for a place on a server.",
    );
    page.per_core_and(scrape, names, |c| &c.upstreams, |u| u.queued_total);
}

pub(super) fn servers(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    let names = &labels.servers;
    page.counter(
        "corelay_upstream_connections_total",
        "Connections established to servers.",
    );
    page.per_core_and(scrape, names, |c| &c.servers, |s| s.connected_total);
    page.gauge(
        "corelay_upstream_connections_active",
        "Connections to servers, alive.",
    );
    page.per_core_and(scrape, names, |c| &c.servers, |s| s.active);
    page.counter(
        "corelay_upstream_sent_bytes_total",
        "Bytes sent to servers.",
    );
    page.per_core_and(scrape, names, |c| &c.servers, |s| s.sent_bytes_total);
    page.counter(
        "corelay_upstream_received_bytes_total",
        "Bytes received from servers.",
    );
    page.per_core_and(scrape, names, |c| &c.servers, |s| s.received_bytes_total);
    page.counter(
        "corelay_upstream_connect_failures_total",
        "Connection attempts that failed, by cause.",
    );
    for core in scrape.cores {
        let servers = core.servers.iter().zip(names);
        for (server, name) in servers.filter(|(_, name)| !name.is_empty()) {
            let causes: BTreeMap<&Cause, &u64> = server.connect_failed_total.iter().collect();
            for (cause, count) in causes {
                let cause = cause.as_str();
                let pairs = format!("core=\"{}\",{name},cause=\"{cause}\"", core.core);
                page.sample(&pairs, count);
            }
        }
    }
}

pub(super) fn latencies(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    page.family(
        "corelay_first_byte_seconds",
        "histogram",
        "From accept to the first byte from the server.",
    );
    for (index, label) in labels.listeners.iter().enumerate() {
        page.histogram(
            label,
            &merged(scrape, |core| &core.listeners[index].first_byte),
        );
    }
    page.family(
        "corelay_session_duration_seconds",
        "histogram",
        "From accept to the end of the session.",
    );
    for (index, label) in labels.listeners.iter().enumerate() {
        page.histogram(
            label,
            &merged(scrape, |core| &core.listeners[index].duration),
        );
    }
    page.family(
        "corelay_upstream_connect_seconds",
        "histogram",
        "One successful connection attempt.",
    );
    for (index, label) in labels.upstreams.iter().enumerate() {
        page.histogram(
            label,
            &merged(scrape, |core| &core.upstreams[index].connect),
        );
    }
    page.family(
        "corelay_upstream_first_byte_seconds",
        "histogram",
        "From the established connection to the first byte from the server.",
    );
    for (index, label) in labels.upstreams.iter().enumerate() {
        page.histogram(
            label,
            &merged(scrape, |core| &core.upstreams[index].first_byte),
        );
    }
}
