//! The section `dns`: how names of servers are resolved.

use std::net::{IpAddr, SocketAddr};

use super::within;
use crate::config::limits::{DEFAULT_DNS, DNS_INTERVAL, DNS_PORT, DNS_TIMEOUT, NAMESERVERS_MAX};
use crate::config::model::{Dns, Family};
use crate::config::read::{Cursor, Report};
use crate::units::shorten;

pub(super) const DNS_KEYS: [&str; 4] = ["nameservers", "interval", "timeout", "family"];

/// The words of `dns.family`.
pub(in crate::config) const FAMILIES: [(&str, Family); 3] = [
    ("both", Family::Both),
    ("ipv4", Family::V4),
    ("ipv6", Family::V6),
];

pub(super) fn dns(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Dns> {
    let section = report.section(at, &DNS_KEYS)?;
    let nameservers_at = section.get("nameservers");
    let nameservers = nameservers_at.and_then(|at| nameservers(report, at));
    let interval = section
        .get("interval")
        .and_then(|at| report.duration_or_off(at, &DNS_INTERVAL));
    let timeout = section
        .get("timeout")
        .and_then(|at| report.duration(at, &DNS_TIMEOUT));
    let family = section
        .get("family")
        .and_then(|at| report.choice(at, &FAMILIES));
    Some(Dns {
        nameservers: nameservers.unwrap_or_default(),
        interval: interval.unwrap_or(DEFAULT_DNS.interval),
        timeout: timeout.unwrap_or(DEFAULT_DNS.timeout),
        family: family.unwrap_or(DEFAULT_DNS.family),
    })
}

fn nameservers(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Vec<SocketAddr>> {
    let items = report.list(at)?;
    within(report, at, items.len(), NAMESERVERS_MAX, "name servers");
    let mut nameservers = Vec::with_capacity(items.len());
    for item in &items {
        let Some(text) = report.text(item) else {
            continue;
        };
        let address = text.parse::<SocketAddr>().ok();
        let address =
            address.or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, DNS_PORT)));
        match address {
            Some(address) if !address.ip().is_unspecified() && address.port() != 0 => {
                nameservers.push(address);
            }
            _ => report.add(
                item.place(),
                format!("`{}` is not the address of a name server", shorten(&text)),
                "write an IP address, with a port if it is not 53, like 127.0.0.1:8600",
            ),
        }
    }
    Some(nameservers)
}
