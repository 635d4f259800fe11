//! How the servers stand: one series per server, no core.

use super::page::{Labels, Page, seconds};
use crate::metrics::{Scrape, ServerStanding};

pub(super) fn health(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    let servers = || {
        let servers = labels.servers.iter().zip(scrape.standings);
        servers.filter(|(label, _)| !label.is_empty())
    };
    page.gauge(
        "corelay_server_up",
        "1 while the server gets new sessions, as far as its health is concerned.",
    );
    // A server that is none of the upstream's any more is not down.
    for (label, standing) in servers().filter(|(_, it)| !it.is_removed) {
        page.sample(label, u8::from(standing.is_up));
    }
    page.counter(
        "corelay_server_downs_total",
        "Times that the server stopped getting new sessions.",
    );
    for (label, standing) in servers() {
        page.sample(label, standing.downs_total);
    }
    page.counter(
        "corelay_server_transitions_total",
        "Changes of the server's status; each is a line in the process log.",
    );
    for (label, standing) in servers() {
        page.sample(label, standing.transitions_total);
    }
    page.counter(
        "corelay_health_checks_total",
        "Checks by result; not_made is for want of ports, descriptors or memory of ours.",
    );
    for (label, standing) in servers() {
        for (result, count) in by_result(standing) {
            page.sample(&format!("{label},result=\"{result}\""), count);
        }
    }
    page.gauge(
        "corelay_health_check_latency_seconds",
        "The last check, from the start of the connect to the verdict.",
    );
    for (label, standing) in servers() {
        if let Some(check) = &standing.last_check {
            page.sample(label, seconds(check.latency));
        }
    }
}

pub(super) fn lookups(page: &mut Page, scrape: &Scrape<'_>, labels: &Labels) {
    page.counter(
        "corelay_dns_lookups_total",
        "Lookups of the names of an upstream's servers by result; a failed one leaves the servers as they were.",
    );
    for (label, lookups) in labels.upstreams.iter().zip(scrape.lookups) {
        let Some(lookups) = lookups else { continue };
        for (result, count) in [
            ("answered", lookups.answered_total),
            ("failed", lookups.failed_total),
        ] {
            page.sample(&format!("{label},result=\"{result}\""), count);
        }
    }
}

fn by_result(standing: &ServerStanding) -> [(&'static str, u64); 3] {
    [
        ("passed", standing.checks_passed_total),
        ("failed", standing.checks_failed_total),
        ("not_made", standing.checks_not_made_total),
    ]
}
